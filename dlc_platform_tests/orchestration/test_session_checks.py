"""Each session's own asset checks, from runs over many sessions and over one, also where one of them fails."""

import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from dlc_platform.errors import PlatformError
from dlc_platform.orchestration.materialize import materialize
from dlc_platform.orchestration.partitions import for_each_session, many_sessions, range_tags, sessions
from dlc_platform.orchestration.session_checks import for_each_checked_session, session_checks
from dlc_platform.sessions.video_checks import QUESTIONS

#: A partition without a folder.
NEVER_SEEN = "sub-1_ses-9"


@pytest.fixture
def home(
    make_reachable: Callable[[], AbstractContextManager[Path]],
    make_project: Callable[..., Path],
    tiny_video: Path,
) -> Iterator[Path]:
    """A lab of three sessions: a good one, an empty file, and one of another size than lab.yaml expects."""
    with make_reachable() as folder:
        for session in ("ses-1", "ses-2", "ses-3"):
            video = folder / "raw" / "sub-1" / session / "cam-top.mp4"
            video.parent.mkdir(parents=True)
            shutil.copy(tiny_video, video)
        video.rename(video.with_name("cam-side.mp4"))
        (folder / "raw/sub-1/ses-2/cam-top.mp4").write_bytes(b"")
        settings = {
            "raw_roots": [str(folder / "raw")],
            "projects": {"tiny": {"path": str(make_project(folder / "tiny-tester-2026-01-01", 6))}},
            "video_quality": [{"camera": "side", "resolution": [640, 480], "on_failure": "quarantine"}],
        }
        (folder / "lab").mkdir()
        (folder / "lab" / "lab.yaml").write_text(yaml.safe_dump(settings))
        before = dict(os.environ)
        yield folder / "lab"
        os.environ.clear()
        os.environ.update(before)


def verdicts() -> dict[str, dict[str, bool]]:
    """Of each check, what it says of each session: as the UI counts it, of its newest materialisation alone."""
    found: dict[str, dict[str, bool]] = {name: {} for name in QUESTIONS}
    keys = [dg.AssetCheckKey(dg.AssetKey("session_videos"), name) for name in QUESTIONS]
    with dg.DagsterInstance.get() as instance:
        for info in instance.event_log_storage.get_asset_check_partition_info(keys):
            assert info.partition_key is not None
            if info.latest_execution_status.value == "PLANNED":
                continue
            assert info.is_current or info.partition_key == NEVER_SEEN
            found[info.check_key.name][info.partition_key] = info.latest_execution_status.value == "SUCCEEDED"
    return found


def test_each_session_has_its_own_checks(home: Path, tiny_video: Path) -> None:
    said: list[str] = []
    assert not materialize(home, "session_videos", [], said.append)
    told = "\n".join(said)
    assert "cam-top.mp4 is empty (0 bytes)" in told and "1 of 3 sessions failed" in told
    assert "sub-1_ses-3 is in quarantine" in told and "640 x 480 is expected" in told
    good = {"sub-1_ses-1": True, "sub-1_ses-2": True, "sub-1_ses-3": True}
    expected = {name: good for name in QUESTIONS}
    expected["videos_can_be_read"] = good | {"sub-1_ses-2": False}
    expected["resolution_as_expected"] = good | {"sub-1_ses-3": False}
    # Both hold the same video.
    expected["no_file_is_a_copy"] = {"sub-1_ses-1": False, "sub-1_ses-2": True, "sub-1_ses-3": False}
    assert "is the very video of" in told
    assert verdicts() == expected

    # Of a session that was never registered nothing is known, so nothing is good.
    with dg.DagsterInstance.get() as instance:
        instance.add_dynamic_partitions("sessions", [NEVER_SEEN])
    assert not materialize(home, "session_videos", [NEVER_SEEN], said.append)
    expected["videos_can_be_read"] |= {NEVER_SEEN: False}
    assert verdicts() == expected

    shutil.copy(tiny_video, home.parent / "raw/sub-1/ses-2/cam-top.mp4")
    said.clear()
    assert materialize(home, "session_videos", ["sub-1_ses-2"], said.append), "\n".join(said)
    expected["no_file_is_a_copy"] = dict.fromkeys(good, False)
    assert verdicts() == expected | {"videos_can_be_read": good | {NEVER_SEEN: False}}
    with dg.DagsterInstance.get() as instance:
        (record,) = instance.fetch_materializations(dg.AssetKey("session_videos"), limit=1).records
        assert record.asset_materialization is not None
        assert "data:image/" in str(record.asset_materialization.metadata["picture_timeline"].value)


@pytest.mark.parametrize("broken", [["a"], []])
def test_a_broken_check_hides_no_failure_and_no_other_session(broken: list[str]) -> None:
    @dg.asset(
        partitions_def=sessions,
        backfill_policy=many_sessions,
        check_specs=session_checks("things", {"fine": "Whether it is."}),
    )
    def things(context: dg.AssetExecutionContext) -> Iterator[Any]:
        def work(key: str) -> dict[str, Any]:
            if key in broken:
                raise PlatformError("no folder", "Bring it back")
            return {}

        def check(key: str) -> Iterator[dg.AssetCheckResult]:
            if key == "a":
                raise ValueError("odd")
            yield dg.AssetCheckResult(passed=True, check_name="fine")

        yield from for_each_checked_session(context, work, check)

    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("sessions", ["a", "b"])
        job = dg.Definitions(
            assets=[things], jobs=[dg.define_asset_job("job", [things], partitions_def=sessions)]
        ).resolve_job_def("job")
        result = job.execute_in_process(tags=range_tags(["a", "b"]), instance=instance, raise_on_error=False)
        (failure,) = result.get_step_failure_events()
        data = failure.step_failure_data.user_failure_data
        assert data is not None and data.description is not None
        assert ("1 of 2 sessions failed: a: no folder" if broken else "could not be checked: a") in data.description
        evaluations = result.get_asset_check_evaluations()
        assert [(own.partition, own.passed) for own in evaluations] == [("b", True)]


def test_metadata_is_made_beside_the_next_session() -> None:
    told: list[tuple[str, str | None]] = []
    drawn = threading.Event()

    @dg.asset(partitions_def=sessions, backfill_policy=many_sessions)
    def things(context: dg.AssetExecutionContext) -> None:
        def work(key: str) -> Callable[[], Mapping[str, Any]]:
            if key == "b":
                assert drawn.wait(60), "the first session's metadata is not made before the second one is done"

            def tell() -> Mapping[str, Any]:
                drawn.set()
                if key == "b":
                    raise PlatformError("no picture", "Draw one")
                return {"of": key}

            return tell

        for_each_session(context, work, lambda key, problem: told.append((key, problem and problem.problem)))

    with dg.DagsterInstance.ephemeral() as instance:
        keys = ["a", "b", "c"]
        instance.add_dynamic_partitions("sessions", keys)
        job = dg.Definitions(
            assets=[things], jobs=[dg.define_asset_job("job", [things], partitions_def=sessions)]
        ).resolve_job_def("job")
        result = job.execute_in_process(tags=range_tags(keys), instance=instance, raise_on_error=False)
        (failure,) = result.get_step_failure_events()
        data = failure.step_failure_data.user_failure_data
        assert data is not None and "1 of 3 sessions failed: b: no picture" in str(data.description)
        found = instance.fetch_materializations(dg.AssetKey("things"), limit=5).records
        done = [record.asset_materialization for record in reversed(found)]
        assert [own and (own.partition, own.metadata["of"].value) for own in done] == [("a", "a"), ("c", "c")]
        assert told == [("a", None), ("b", "no picture"), ("c", None)]
