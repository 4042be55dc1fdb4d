"""What goes wrong in a lab's life: a failure names the file and the remedy, the rest goes on, the next run completes.

All of it on one lab whose model is trained; every test brings its own sessions and takes them away again.
"""

import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import dagster as dg
import numpy as np
import psutil
import pytest
import sqlalchemy
import yaml

from dlc_platform.demo.lab import PROJECT
from dlc_platform.demo.render import render, write_video
from dlc_platform.devices.locks import DIRECTORY_VARIABLE
from dlc_platform.errors import PlatformError
from dlc_platform.identity import sha256_file
from dlc_platform.orchestration.checks import default_checks
from dlc_platform.orchestration.materialize import materialize
from dlc_platform.orchestration.missing_partitions import missing
from dlc_platform.orchestration.resources import LabResource
from dlc_platform.platform import Platform
from dlc_platform.postgres import server
from dlc_platform_tests.orchestration.conftest import RECIPE
from dlc_platform_tests.orchestration.up import COMMAND, plain_environment
from dlc_platform_tests.video.conftest import spoil
from dlc_platform_tests.video.conftest import write_video as write_raw_stream

SESSIONS = "session_videos,pose_estimates"


class Lab:
    """The tracked lab, and the sessions that a test adds to it."""

    def __init__(self, home: Path):
        self.home = home
        self.said: list[str] = []
        self._folders: list[Path] = []

    def folder(self, session: str) -> Path:
        subject, number = session.split("_")
        folder = self.home / "raw" / subject / number
        folder.mkdir(parents=True)
        self._folders.append(folder.parent)
        return folder

    def video(self, session: str, seed: int = 1, frames: int = 20) -> Path:
        path = self.folder(session) / "cam-top.mp4"
        write_video(path, render(seed, frames).frames)
        return path

    def run(self, selection: str, *partitions: str) -> bool:
        self.said = []
        return materialize(self.home, selection, list(partitions), self.said.append)

    @property
    def output(self) -> str:
        return "\n".join(self.said)

    def products(self) -> set[Path]:
        """Everything below the store's kinds, half-written products too."""
        return {product for kind in (self.home / "store").iterdir() for product in kind.iterdir()}

    def checks(self, **expected: str) -> None:
        """Each of these checks says this; one that passes says nothing."""
        for check in default_checks:
            name = check.check_key.name
            if name in expected:
                result = check(LabResource(home=str(self.home)))
                assert isinstance(result, dg.AssetCheckResult)
                assert result.passed is not bool(expected[name])
                assert expected[name] in (result.description or "")

    def estimate(self, session: str) -> str:
        return str(Platform(self.home).estimates().set_index("session").loc[session, "pose_estimate"])

    def is_checked(self, session: str) -> bool:
        """Whether the UI shows checks of a session's poses."""
        keys = [dg.AssetCheckKey(dg.AssetKey("pose_estimates"), "likelihood")]
        with dg.DagsterInstance.get() as instance:
            infos = instance.event_log_storage.get_asset_check_partition_info(keys, partition_keys=[session])
            return [info.latest_execution_status.value for info in infos] in (["SUCCEEDED"], ["FAILED"])

    def count(self, query: str, **parameters: str) -> int:
        engine = sqlalchemy.create_engine(server.ensure_running(self.home / "postgres"))
        with engine.connect() as connection:
            number = connection.scalar(sqlalchemy.text(f"select count(*) from {query}"), parameters)
        engine.dispose()
        assert number is not None
        return number

    def remove_sessions(self) -> None:
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def lab(tracked_lab: Path) -> Iterator[Lab]:
    lab = Lab(tracked_lab)
    yield lab
    lab.remove_sessions()


def last_failure() -> str:
    """What the UI shows of the last run that failed."""
    with dg.DagsterInstance.get() as instance:
        run, *_ = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE]), limit=1)
        (record, *_) = instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE).records
        event = record.event_log_entry.dagster_event
        assert event is not None and event.step_failure_data.user_failure_data is not None
        return event.step_failure_data.user_failure_data.description or ""


def test_a_damaged_recording_is_not_tracked_and_the_others_are(lab: Lab) -> None:
    good = lab.video("sub-d1_ses-1", seed=1)
    bad = good.with_name("cam-side.mp4")
    write_video(bad, render(2, 20).frames)
    whole = bad.read_bytes()
    spoil(bad, [10, 11])
    assert lab.run("session_videos"), lab.output
    lab.checks(recordings_are_whole=f"{bad}: damaged: ", every_frame_is_accounted_for="")
    # A file in quarantine holds up no other.
    assert lab.run("pose_estimates"), lab.output
    assert "cam-side.mp4 of sub-d1_ses-1 is left out" in lab.output and f"{bad} is damaged: " in lab.output
    assert "of 20 frames can be decoded" in lab.output and "damaged_videos: track" in lab.output
    assert lab.is_checked("sub-d1_ses-1")
    estimates = Platform(lab.home).estimates().set_index("session")
    assert estimates.loc["sub-d1_ses-1", "recording"] == "cam-top"
    bad.write_bytes(whole)
    assert lab.run(SESSIONS), lab.output
    lab.checks(recordings_are_whole="", every_frame_is_accounted_for="")
    assert len(Platform(lab.home).estimates().set_index("session").loc["sub-d1_ses-1"]) == 2


def test_poses_are_judged_even_if_another_file_fails(lab: Lab) -> None:
    good = lab.video("sub-d2_ses-1", seed=31)
    bad = good.with_name("cam-side.mp4")
    write_video(bad, render(32, 20).frames)
    assert lab.run("session_videos"), lab.output
    write_video(bad, render(33, 20).frames)
    assert not lab.run("pose_estimates")
    assert f"{bad} was replaced since it was registered" in last_failure()
    assert lab.count("dlc.pose_verdict where pose_estimate_id = :id", id=lab.estimate("sub-d2_ses-1")) == 1
    assert lab.is_checked("sub-d2_ses-1")


def test_a_video_with_other_frames_is_tracked_when_read_again(lab: Lab) -> None:
    path = lab.video("sub-e1_ses-1", seed=9)
    assert lab.run("session_videos"), lab.output
    engine = sqlalchemy.create_engine(server.ensure_running(lab.home / "postgres"))
    with engine.begin() as connection:
        update = sqlalchemy.text("update dlc.video set frames = 21 where id = :id")
        connection.execute(update, {"id": sha256_file(path)})
    engine.dispose()
    for _ in range(2):
        assert not lab.run("pose_estimates")
        assert f"{path} gave 20 of 20 frames when it was tracked" in last_failure()
        assert "materialise session_videos for its session again" in last_failure()
    assert lab.run("session_videos", "sub-e1_ses-1"), lab.output
    assert lab.run("pose_estimates"), lab.output
    assert len(Platform(lab.home).poses("sub-e1_ses-1", ["snout"])) == 20


def test_a_file_without_timestamps_is_registered_with_a_warning(lab: Lab) -> None:
    timed = lab.video("sub-e2_ses-1", seed=10)
    raw = write_raw_stream(timed.with_name("cam-side.mp4"), frames=20, rate=25, format="h264")
    for partitions in ([], ["sub-e2_ses-1"]):
        assert lab.run("session_videos", *partitions), lab.output
        assert f"{raw} has no timestamps: times are counted at 25 frames per second" in lab.output
        assert f"{timed} has no timestamps" not in lab.output


def test_bad_files_do_not_stop_good_ones(lab: Lab) -> None:
    good = lab.video("sub-a1_ses-1", seed=1)
    empty = lab.folder("sub-a2_ses-1") / "cam-top.mp4"
    empty.touch()
    cut = lab.video("sub-a3_ses-1", seed=2)
    whole = cut.read_bytes()
    cut.write_bytes(whole[: len(whole) * 2 // 3])
    text = lab.folder("sub-a4_ses-1") / "cam-top.mp4"
    text.write_text("not a film " * 100)
    lab.video("sub-a5_ses-1", seed=3)
    before = lab.products()

    assert not lab.run("session_videos")
    for file, reason, remedy in (
        (empty, "is empty (0 bytes)", "Copy the file again"),
        (cut, "", "Copy the file again"),
        (text, "is not a video", "remove it if it is no video"),
    ):
        for told in (last_failure(), lab.output):
            assert f"{file} {reason}".strip() in told
            assert remedy in told
    assert not lab.run("pose_estimates")
    assert str(cut) in last_failure()

    platform = Platform(lab.home)
    problems = platform.sessions().set_index("session")["problem"]
    assert problems[["sub-a1_ses-1", "sub-a5_ses-1"]].isna().all()
    for session, file in (("sub-a2_ses-1", empty), ("sub-a3_ses-1", cut), ("sub-a4_ses-1", text)):
        assert str(file) in problems[session]
    for session in ("sub-a1_ses-1", "sub-a5_ses-1"):
        assert len(platform.poses(session, ["snout"])) == 20
    with pytest.raises(PlatformError, match="no poses"):
        platform.poses("sub-a3_ses-1")
    assert len(lab.products() - before) == 2

    for seed, file in enumerate((empty, text), 4):
        write_video(file, render(seed, 20).frames)
    cut.write_bytes(whole)
    assert lab.run(SESSIONS), lab.output
    assert len(Platform(lab.home).poses("sub-a3_ses-1", ["snout"])) == 20
    assert len(lab.products() - before) == 5
    assert good.is_file()


def test_a_replaced_video_has_poses_of_its_own(lab: Lab) -> None:
    path = lab.video("sub-b1_ses-1", seed=11)
    assert lab.run(SESSIONS), lab.output
    before, poses = lab.estimate("sub-b1_ses-1"), Platform(lab.home).poses("sub-b1_ses-1")
    write_video(path, np.ascontiguousarray(render(11, 20).frames[:, :, ::-1]))

    # Asked for by name, before the new file is registered: never the new file under the old one's identity.
    assert not lab.run("pose_estimates", "sub-b1_ses-1")
    assert f"{path} was replaced since it was registered" in last_failure()
    assert "session_videos --partition sub-b1_ses-1" in lab.output
    assert lab.estimate("sub-b1_ses-1") == before

    assert lab.run(SESSIONS), lab.output
    after = lab.estimate("sub-b1_ses-1")
    assert after != before
    now = Platform(lab.home).poses("sub-b1_ses-1")
    assert not np.allclose(poses[["x", "y"]], now[["x", "y"]])
    assert lab.count("dlc.pose_estimate where id = :id", id=before) == 1
    assert {before, after} <= {product.name for product in lab.products()}


def test_a_video_that_changes_after_it_was_registered_is_refused(lab: Lab) -> None:
    path = lab.video("sub-b2_ses-1", seed=12)
    assert lab.run("session_videos"), lab.output
    products = lab.products()
    write_video(path, render(13, 20).frames)
    assert not lab.run("pose_estimates")
    assert f"{path} was replaced since it was registered" in last_failure()
    assert lab.products() == products
    assert lab.run(SESSIONS), lab.output
    assert lab.estimate("sub-b2_ses-1")


def test_sessions_that_cannot_be_used_are_said(lab: Lab) -> None:
    path = lab.video("sub-f1_ses-1", seed=21)
    twin = lab.home / "raw" / "sub-f1_copy" / "ses-1" / path.name
    shutil.copytree(path.parents[1], twin.parents[1])
    empty = lab.folder("sub-f2_ses-1")
    claimed = f"the session key sub-f1_ses-1 is claimed by {path.parent} and {twin.parent}"
    nothing = f"{empty}: the session folder of sub-f2_ses-1 holds no video"
    try:
        lab.video("sub-f3_ses-1", seed=22)
        assert lab.run(SESSIONS), lab.output
        assert lab.estimate("sub-f3_ses-1")
        assert claimed in lab.output and nothing in lab.output
        assert lab.run("session_videos"), "with nothing to do"
        assert claimed in lab.output and nothing in lab.output
        with pytest.raises(PlatformError, match="neither a session nor a recipe") as caught:
            lab.run("session_videos", "sub-f1_ses-1")
        assert claimed in caught.value.problem
    finally:
        shutil.rmtree(twin.parents[1])
    assert lab.run(SESSIONS), lab.output
    assert lab.estimate("sub-f1_ses-1")


@pytest.fixture
def second_project(lab: Lab, tmp_path: Path, make_project: Callable[..., Path]) -> Iterator[Path]:
    """A project `other` beside the lab's own, with the recipe `other-quick`."""
    project = make_project(tmp_path / "other", 6)
    before = (lab.home / "lab.yaml").read_text()
    settings = yaml.safe_load(before)
    settings["projects"]["other"] = {"path": str(project)}
    settings["recipes"]["other-quick"] = {**settings["recipes"][RECIPE], "project": "other", "test_fraction": 0.4}
    (lab.home / "lab.yaml").write_text(yaml.safe_dump(settings))
    yield project
    (lab.home / "lab.yaml").write_text(before)


def test_a_broken_project_stops_no_other(lab: Lab, second_project: Path) -> None:
    image = second_project / "labeled-data/video1/img003.png"
    image.rename(image.with_suffix(".away"))
    lab.video("sub-e1_ses-1", seed=31)
    assert lab.run("session_videos,labeled_frames", "sub-e1_ses-1"), lab.output
    assert f"the labels of the project other are left out: {image} is missing" in lab.output
    labels = "dlc.session_labels where session_key = 'sub-e1_ses-1' and project = :project"
    assert lab.count(labels, project=PROJECT) == 1
    assert lab.count(labels, project="other") == 0
    assert not lab.run("training_dataset", "other-quick", RECIPE)
    assert f"{image} is missing, but CollectedData_tester.csv holds labels for it" in lab.output
    assert "Put the image back" in lab.output
    assert f"training_dataset [{RECIPE}]: done" in lab.output

    # Mended, what was left out is what is missing.
    image.with_suffix(".away").rename(image)
    assert lab.run("labeled_frames"), lab.output
    assert lab.count(labels, project="other") == 1
    assert lab.run("training_dataset", "other-quick"), lab.output


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"project": "other"}, f"its training dataset belongs to the project {PROJECT}, and lab.yaml now says other"),
        ({"seed": 2}, "its training dataset was not split by the present seed and test_fraction of lab.yaml (2, "),
        ({"test_fraction": 0.4}, "test_fraction of lab.yaml (1, 0.4)"),
    ],
)
def test_a_recipe_is_not_trained_on_another_ones_dataset(
    lab: Lab, second_project: Path, change: dict, reason: str
) -> None:
    def missing_datasets() -> list[str]:
        return missing(LabResource(home=str(lab.home)), "training_dataset")

    file = lab.home / "lab.yaml"
    before = file.read_text()
    settings = yaml.safe_load(before)
    del settings["recipes"]["other-quick"]
    settings["recipes"][RECIPE] |= change
    file.write_text(yaml.safe_dump(settings))
    products = lab.products()
    assert not lab.run("trained_model", RECIPE)
    assert f"the recipe {RECIPE} cannot be trained: " in lab.output and reason in lab.output
    assert "Materialise training_dataset first" in lab.output
    assert lab.products() == products
    assert missing_datasets() == [RECIPE]
    settings["recipes"][RECIPE]["test_fraction"] = 0.4  # of six images, too
    file.write_text(yaml.safe_dump(settings))
    assert lab.run("training_dataset"), lab.output
    assert missing_datasets() == []

    file.write_text(before)
    assert RECIPE in missing_datasets()
    assert lab.run("training_dataset", RECIPE), lab.output
    assert RECIPE not in missing_datasets()


def test_a_project_without_a_model_stops_no_other_camera(lab: Lab, second_project: Path) -> None:
    file = lab.home / "lab.yaml"
    settings = yaml.safe_load(file.read_text())
    settings["inference"].insert(0, {"camera": "side", "project": "other"})
    file.write_text(yaml.safe_dump(settings))
    top = lab.video("sub-e3_ses-1", seed=33)
    shutil.copy(top, top.with_name("cam-side.mp4"))
    assert lab.run("session_videos", "sub-e3_ses-1"), lab.output
    assert not lab.run("pose_estimates", "sub-e3_ses-1")
    assert "1 of 2 recordings cannot be tracked: the project other has no production model yet" in lab.output
    assert set(Platform(lab.home).poses("sub-e3_ses-1", ["snout"])["recording"]) == {"cam-top"}


def test_a_configuration_that_deeplabcut_rejects(lab: Lab, second_project: Path) -> None:
    config = second_project / "config.yaml"
    good = config.read_text()
    config.write_text(good + "video_sets_original: {}\n")
    assert not lab.run("training_dataset", "other-quick")
    assert f"DeepLabCut rejects {config}: `video_sets_original` is not a key that DeepLabCut knows" in lab.output
    assert "Remove unknown keys" in lab.output
    config.write_text("bodyparts: [nose\n")
    lab.video("sub-e2_ses-1", seed=32)
    assert lab.run("session_videos,labeled_frames,pose_estimates", "sub-e2_ses-1"), lab.output
    assert f"{config} is not YAML" in lab.output
    config.write_text(good)


def test_a_full_disk_is_named_and_the_next_run_completes(lab: Lab) -> None:
    mount = shutil.which("mount")
    if os.geteuid() != 0 or mount is None:
        pytest.skip("only root can mount a small disk")
    lab.video("sub-d1_ses-1", seed=41)
    assert lab.run("session_videos"), lab.output
    poses = lab.home / "store" / "poses"
    command = [mount, "-t", "tmpfs", "-o", "size=24k", "tmpfs", str(poses)]
    mounted = subprocess.run(command, check=False, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.strip()}")
    try:
        assert not lab.run("pose_estimates")
        assert f"no space left on the disk of the store {lab.home}/store" in last_failure()
        assert "Free some space" in lab.output
        visible = [path for path in poses.iterdir() if not path.name.startswith(".work-")]
        assert visible == [], "work that was begun is kept out of sight"
    finally:
        subprocess.run(["umount", str(poses)], check=True)
    assert lab.run("pose_estimates"), lab.output
    assert lab.estimate("sub-d1_ses-1")


class Command:
    """`dlc-platform run` in a process of its own."""

    def __init__(self, home: Path, *arguments: str):
        self._process = subprocess.Popen(
            [COMMAND, "run", str(home), *arguments],
            env=plain_environment() | {key: value for key, value in os.environ.items() if key == DIRECTORY_VARIABLE},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.output: list[str] = []
        self._seen = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._seen:
                self.output.append(line)
                self._seen.notify_all()

    def wait_for_line(self, text: str) -> None:
        with self._seen:
            assert self._seen.wait_for(lambda: any(text in line for line in self.output), 300), "".join(self.output)

    def kill(self) -> None:
        self._process.kill()

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def end(self) -> int:
        code = self._process.wait(300)
        self._reader.join()
        return code


def interrupt(lab: Lab, command: Command, number: signal.Signals, asset: str, before: set[Path]) -> None:
    """Send the signal: the command stops the asset at once, and shows no product that was not there `before`."""
    command.signal(number)
    assert command.end() == 1
    output = "".join(command.output)
    running, cancelled = [line for line in command.output if ": running" in line or "cancelled (run " in line]
    assert running.split(" [")[0] == cancelled.split(" [")[0] == asset
    assert command.output[-1].startswith("dlc-platform: interrupted. What was done is kept"), output
    assert "Traceback" not in output, output
    assert {product for product in lab.products() if not product.name.startswith(".")} == before
    with dg.DagsterInstance.get() as instance:
        run = instance.get_run_by_id(cancelled.split("(run ")[1].split(")")[0])
        assert run is not None and run.status == dg.DagsterRunStatus.CANCELED
        assert run.tags.get("dagster/will_retry") != "true"


def test_the_next_run_completes_an_interrupted_inference(lab: Lab) -> None:
    """First SIGTERM, then Postgres ends, and then the same session is tracked to its end."""
    path = lab.folder("sub-c1_ses-1") / "cam-top.mp4"
    # It says how far it is, and goes on for seconds after that.
    write_video(path, np.concatenate([render(51, 60).frames] * 25))
    assert lab.run("session_videos"), lab.output
    before = lab.products()
    command = Command(lab.home, "pose_estimates")
    command.wait_for_line("frame ")
    interrupt(lab, command, signal.SIGTERM, "pose_estimates", before)

    command = Command(lab.home, "pose_estimates")
    command.wait_for_line("frame ")
    pid = int((lab.home / "postgres/data/postmaster.pid").read_text().split()[0])
    postmaster = psutil.Process(pid)
    for process in [postmaster, *postmaster.children()]:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    assert command.end() == 1
    output = "".join(command.output)
    assert "Traceback" not in output, output
    assert command.output[-1].startswith("dlc-platform: Postgres"), output
    assert "run again" in command.output[-1]

    assert lab.run("pose_estimates"), lab.output
    estimate = lab.estimate("sub-c1_ses-1")
    assert len(Platform(lab.home).poses("sub-c1_ses-1", ["snout"])) == 1500
    assert lab.count("dlc.pose_estimate where id = :id", id=estimate) == 1
    assert lab.count("dlc.recording_poses where pose_estimate_id = :id", id=estimate) == 1
    assert not any(product.name.startswith(".") for product in lab.products())


def test_the_next_run_completes_an_interrupted_training(lab: Lab) -> None:
    """Ctrl-C ends what was to follow, too; SIGKILL leaves files of the training, which the next run removes."""
    lab.video("sub-i2_ses-1", seed=62)
    assert lab.run("session_videos"), lab.output
    before = lab.products()
    keys = ("--partition", RECIPE, "--partition", "sub-i2_ses-1")
    command = Command(lab.home, "trained_model,pose_estimates", *keys)
    command.wait_for_line("epoch 1 of 2")
    interrupt(lab, command, signal.SIGINT, "trained_model", before)

    command = Command(lab.home, "trained_model", "--partition", RECIPE)
    command.wait_for_line("epoch 1 of 2")
    command.kill()
    assert command.end() == -signal.SIGKILL
    assert list((lab.home / "work").rglob("*.pt")) != []
    assert lab.products() == before
    assert lab.run("trained_model", RECIPE), lab.output
    assert list((lab.home / "work").rglob("*.pt")) == []
    # The same labels and the same recipe on the same machine: the same model version.
    assert lab.products() == before
    # And what Ctrl-C had kept from being begun.
    assert lab.run("pose_estimates"), lab.output
    assert len(Platform(lab.home).poses("sub-i2_ses-1", ["snout"])) == 20
