"""Products in the catalogue: made by one at a time, and known by their manifests."""

import time

import pytest
from sqlalchemy import Engine, text

from dlc_platform.catalog import tables
from dlc_platform.catalog.database import open_catalog
from dlc_platform.catalog.estimates import record_poses
from dlc_platform.catalog.products import making_alone, recorded_products
from dlc_platform.catalog.sessions import current_files, session_keys
from dlc_platform_tests.catalog.looking import at_once
from dlc_platform_tests.catalog.small_lab import identity

KEY = "sub-1_ses-1"


def test_of_two_that_make_one_product_the_second_waits(engine: Engine) -> None:
    order: list[str] = []

    def task(own: Engine) -> None:
        with making_alone(own, identity("1")):
            order.append("begins")
            time.sleep(0.2)
            order.append("ends")

    at_once(engine, *[task] * 3)
    assert order == ["begins", "ends"] * 3


def test_a_lost_product_that_is_made_again_has_a_new_manifest(lab: Engine) -> None:
    _, top = current_files(lab, KEY)
    for number in ("1", "2"):
        estimate = tables.PoseEstimate(
            id=identity("9"),
            video_id=top.video_id,
            model_id=identity("b"),
            origin="computed",
            scorer="DLC_b",
            frames=300,
            seconds=1.0,
            manifest_sha256=identity(number),
            run_id="again",
        )
        made = tables.RecordingPoses(recording_file_id=top.id, pose_estimate_id=identity("9"), run_id="again")
        record_poses(lab, estimate, made, {})
        assert recorded_products(lab)["poses", identity("9")] == identity(number)


def test_a_product_is_free_again_when_its_maker_fails(engine: Engine) -> None:
    with pytest.raises(ValueError), making_alone(engine, identity("1")):
        raise ValueError("the network failed")
    other = open_catalog(engine.url)
    with making_alone(other, identity("1")):
        pass
    other.dispose()


@pytest.mark.parametrize("work_fails", [False, True])
def test_work_outlives_the_connection_that_holds_its_lock(engine: Engine, work_fails: bool) -> None:
    def work() -> str:
        with making_alone(engine, identity("1")):
            with open_catalog(engine.url).connect() as other:
                lock = "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory'"
                assert other.scalars(text(lock)).all() == [True]
            if work_fails:
                raise ValueError("the network failed")
            return "all frames"

    if work_fails:
        with pytest.raises(ValueError, match="the network failed"):
            work()
    else:
        assert work() == "all frames"
    with making_alone(engine, identity("1")):
        assert session_keys(engine) == set()
