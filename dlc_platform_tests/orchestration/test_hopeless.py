"""What a model version that is hopeless, or cannot be judged, does not do: the rule never promotes it, and it tracks
nothing by itself."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from sqlalchemy import Engine, text

from dlc_platform.catalog.promotions import promotion_in_force
from dlc_platform.estimates.eligibility import find_trackers
from dlc_platform.lab.doctor import _production
from dlc_platform.lab.plan import plan
from dlc_platform.lab.waiting import waiting
from dlc_platform.models.judging import _judge_evaluation
from dlc_platform.orchestration.assets.production import production_model
from dlc_platform.orchestration.materialize import _how_good, _what_came_of
from dlc_platform.orchestration.outcomes import wanted_poses
from dlc_platform.orchestration.resources import LabResource
from dlc_platform.orchestration.sensors import reestimate_stale_sessions
from dlc_platform.platform import Platform
from dlc_platform_tests.catalog.small_lab import identity
from dlc_platform_tests.estimates.test_quality_gate import FRAMES, SESSION, SmallLab, damage, points, poses


@pytest.fixture
def lab(tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallLab]:
    """A session whose file was seen, and no model."""
    monkeypatch.setenv("DLC_PLATFORM_POSTGRES_URL", engine.url.render_as_string(hide_password=False))
    small = SmallLab(tmp_path, engine)
    with engine.begin() as connection:
        connection.execute(
            text(
                "insert into dlc.scanned_root (id, path, layout) values (1, '/raw', repeat('0', 64)); "
                "insert into dlc.scanned_folder (id, root_id, path, changed_ns, seen_at) "
                "values (1, 1, 'x/', 1, now()); "
                "insert into dlc.sighting (folder_id, name, size_bytes, mtime_ns, session_key) values "
                "(1, 'top.mp4', 1000, 1, :session)"
            ),
            {"session": SESSION},
        )
    yield small


def promote(lab: SmallLab, **choice: str) -> dg.ExecuteInProcessResult:
    if choice:
        # What a person chooses has to be there.
        write = {"pytorch_config.yaml": "method: bu\n"}
        lab.store.put(
            "models",
            choice["model"],
            {"dataset": None, "bodyparts": ["nose", "tail"], "scorer": "DLC"},
            lambda folder: [(folder / name).write_text(content) for name, content in write.items()] and None,
        )
    return dg.materialize(
        [production_model],
        resources={"lab": LabResource(home=str(lab.home))},
        run_config={"ops": {"production_model": {"config": choice}}},
        raise_on_error=False,
    )


def refusal(result: dg.ExecuteInProcessResult) -> str:
    """Why nothing was promoted; such a run is no failure, and materialises nothing."""
    assert result.success and not result.asset_materializations_for_node("production_model")
    (told,) = [
        event.asset_observation_data.asset_observation for event in result.all_events if event.is_asset_observation
    ]
    return str(told.metadata["refused"].value)


def test_a_training_whose_version_is_hopeless_ends_with_that(lab: SmallLab) -> None:
    lab.train("a", "d", "6", off_px=30)
    with dg.DagsterInstance.ephemeral() as instance:
        told = list(_what_came_of(LabResource(home=str(lab.home)), instance, "first"))
    assert any(line.startswith("It was not promoted: it is hopeless: of the model's") for line in told), told
    assert told[-1].startswith("Next: label more frames") and "dlc-platform promote" not in told[-1]


def wanted(lab: SmallLab) -> list[str]:
    return [found.session_key for found in wanted_poses(LabResource(home=str(lab.home)))]


def test_the_rule_never_promotes_a_hopeless_version_even_first(lab: SmallLab) -> None:
    lab.train("a", "d", "6", off_px=30)
    result = promote(lab)
    assert promotion_in_force(lab.engine, "maze") is None
    told = refusal(result)
    assert f"version {identity('a')[:12]} was passed over, because it is hopeless" in told
    assert "0% lie within 7.93 px" in told and "floor 50%" in told
    # The next one that is of use is the first one.
    lab.train("b", "e", "7")
    assert promote(lab).success
    promotion = promotion_in_force(lab.engine, "maze")
    assert promotion is not None and (promotion.model_id, promotion.kind) == (identity("b"), "first")
    assert promotion.warning is None and "was passed over, because it is hopeless" in promotion.reason
    assert wanted(lab) == [SESSION]


def test_a_person_may_promote_it_but_it_tracks_nothing_by_itself(
    lab: SmallLab,
) -> None:
    lab.train("a", "d", "6", off_px=30)
    result = promote(lab, model=identity("a"), reason="to see it move", by="ada")
    assert result.success
    promotion = promotion_in_force(lab.engine, "maze")
    assert promotion is not None and str(promotion.warning).startswith("hopeless: of the model's 40 labelled test")
    (event,) = result.asset_materializations_for_node("production_model")
    assert "hopeless: of" in str(event.metadata["production"])
    assert "hopeless" in Platform(lab.home).promotions()["warning"].iloc[0]

    assert wanted(lab) == []
    # It was tracked with another version before: nor is it estimated again.
    lab.train("b", "e", "7")
    lab.track("8", "b", poses(points(FRAMES, seed=2)))
    with dg.instance_for_test() as instance:
        looked = reestimate_stale_sessions(dg.build_sensor_context(instance), lab=LabResource(home=str(lab.home)))
    assert isinstance(looked, dg.SensorResult) and not looked.run_requests
    message = str(looked.skip_reason)
    assert "0 stale sessions" in message and "is hopeless" in message and "Label more frames" in message
    # A lab that says otherwise gets what it asked for.
    lab.settle({}, promotion={"hopeless": {"correct": None}})
    with dg.instance_for_test() as instance:
        looked = reestimate_stale_sessions(dg.build_sensor_context(instance), lab=LabResource(home=str(lab.home)))
    assert isinstance(looked, dg.SensorResult) and len(looked.run_requests or []) == 1


def test_the_plan_says_why_nothing_is_tracked(lab: SmallLab, tmp_path: Path) -> None:
    lab.train("a", "d", "6", off_px=30)
    assert promote(lab, model=identity("a"), reason="to see it move", by="ada").success
    video = tmp_path / "raw/sub-1/ses-1/top.mp4"
    video.parent.mkdir(parents=True)
    video.write_bytes(b"0" * 1000)
    with lab.engine.begin() as connection:
        connection.execute(
            text("update dlc.recording_file set path = :path, mtime_ns = :mtime"),
            {"path": str(video), "mtime": video.stat().st_mtime_ns},
        )
    (planned,) = plan(lab.settle({}, settle_seconds=0), lab.engine).sessions
    (file,) = planned.files
    assert file.poses == "none" and "is hopeless" in str(file.reason) and "--partition SESSION" in str(file.reason)


def test_a_version_with_few_test_images_gets_a_warning(lab: SmallLab) -> None:
    lab.train("a", "d", "6", test_images=3)
    assert promote(lab).success
    promotion = promotion_in_force(lab.engine, "maze")
    assert promotion is not None and promotion.model_id == identity("a")
    assert promotion.warning == "unproven: 3 labelled test images, and fewer than 6 cannot show that it is any good"
    assert wanted(lab) == [SESSION]


def test_a_version_without_test_images_waits_for_a_person(lab: SmallLab) -> None:
    lab.train("a", "d", "6", test_images=0)
    assert "so its error is not known" in refusal(promote(lab))
    assert promote(lab, model=identity("a"), reason="the only one", by="ada").success
    assert wanted(lab) == [SESSION]


def test_nothing_is_tracked_by_a_model_whose_evaluation_is_lost(lab: SmallLab, tmp_path: Path) -> None:
    lab.train("a", "d", "6", off_px=30)
    assert promote(lab, model=identity("a"), reason="to see it move", by="ada").success
    file = damage(lab.store, "lost file evaluation")
    _judge_evaluation.cache_clear()  # as in a process that began after that
    assert wanted(lab) == []
    (told,) = find_trackers(lab.engine, lab.store, lab.lab.projects, lab.lab.model_rules).held.values()
    assert f"is not judged, because its results on test images cannot be read: {file} is missing" in told
    assert f"Bring {file.parent} back from a copy of the store" in told and "then it goes on by itself" in told
    (waits,) = [row for row in waiting(lab.engine, lab.lab) if row.step == "poses"]
    assert f"{file} is missing" in waits.reason and f"Bring {file.parent} back" in waits.remedy
    (found,) = [
        own
        for own in _production(lab.home, lab.store, lab.lab.projects, lab.lab.model_rules)
        if own.what == "production model of maze"
    ]
    assert not found.warning and str(file) in found.found and "Nothing is tracked with it by itself" in found.remedy

    # The rule decides nothing for this project, and says why; a person may decide, and the promotion says what he knew.
    lab.train("b", "e", "7")
    told = refusal(promote(lab))
    assert f"the rule decides nothing, because an evaluation cannot be read: {file} is missing" in told
    assert f"Bring {file.parent} back" in told
    assert promote(lab, model=identity("a"), reason="all the same", by="ada").success
    promotion = promotion_in_force(lab.engine, "maze")
    assert promotion is not None and str(promotion.warning).startswith("not judged, because")
    assert promotion.evaluation_id == identity("6") and promotion.test_rmse_px is None

    # Where the whole store is away, the rule waits for it.
    lab.store.root.rename(tmp_path / "elsewhere")
    result = promote(lab)
    assert not result.success and "of the store is not there" in str(result.all_events[-2:])


def test_why_a_version_is_hopeless_is_told_once(lab: SmallLab) -> None:
    lab.train("a", "d", "6", off_px=30)
    result = promote(lab)
    warned = [str(event.message) for event in result.all_events if "passed over" in str(event.message)]
    assert not warned
    with dg.DagsterInstance.ephemeral() as instance:
        home = LabResource(home=str(lab.home))
        (said,) = [line for line in _what_came_of(home, instance, "first", refusal(result)) if "promoted" in line]
    assert said == "It was not promoted: see the reason above"


def test_a_run_that_judges_poses_says_how_many_are_good(lab: SmallLab) -> None:
    lab.train("a", "d", "6")
    lab.track("8", "a", poses(points(FRAMES, seed=2)))
    lab.assess()
    home = LabResource(home=str(lab.home))
    assert (
        next(iter(_how_good(home, [SESSION])))
        == "The poses of 1 session were judged: 1 passed, 0 with warnings, 0 failed"
    )
    with lab.engine.begin() as connection:
        connection.execute(text("update dlc.pose_verdict set verdict = 'fail'"))
    said = list(_how_good(home, [SESSION, "sub-9_ses-9"]))
    assert said[0].endswith("0 passed, 0 with warnings, 1 failed") and said[1] == f"Failed: {SESSION}"
    assert f"sessions {lab.home} --quarantined` says why and what to do" in said[2]
    assert list(_how_good(home, [])) == []
