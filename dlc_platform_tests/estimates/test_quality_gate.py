"""Poses are judged by their model's own labels and evaluation, and what fails is held back as lab.yaml says."""

import json
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from sqlalchemy import Engine, text

from dlc_platform.catalog import quarantine, tables
from dlc_platform.catalog.models import record_imported_model
from dlc_platform.catalog.sessions import assign_cameras, current_files, register_session
from dlc_platform.catalog.verdicts import pose_verdict
from dlc_platform.catalog.writing import BodyParts
from dlc_platform.cli import app
from dlc_platform.cli import poses as poses_commands
from dlc_platform.errors import MachineFault, PlatformError
from dlc_platform.estimates.quality_gate import Assessment, PoseJudge, assess, reference_of, require_good_poses
from dlc_platform.models.judging import judge_version, what_to_do
from dlc_platform.models.promotion import barred_versions, versions_that_may_not_start
from dlc_platform.platform import Platform
from dlc_platform.pose.table import POSE_TABLE, SINGLE_ANIMAL, write_parquet
from dlc_platform.reports.daily import daily_report
from dlc_platform.settings.lab import Lab
from dlc_platform.settings.loading import load_lab
from dlc_platform.store import Store
from dlc_platform_tests.catalog.small_lab import (
    dataset,
    evaluate,
    identity,
    image,
    record_dataset,
    recording,
    session,
    track,
    train,
    video,
)

SESSION = "sub-1_ses-1"
FRAMES = 300
LENGTH = 40.0


def points(count: int, seed: int) -> np.ndarray:
    """The nose and the tail of an animal that is about 40 px long and drifts, shape (count, 2, 2)."""
    random = np.random.default_rng(seed)
    centre = np.clip(320 + np.cumsum(random.normal(0, 1, (count, 2)), axis=0), 60, 420)
    angle = np.cumsum(random.normal(0, 0.05, count))
    ahead = np.stack([np.cos(angle), np.sin(angle)], axis=1) * random.normal(LENGTH / 2, 1, count)[:, None]
    return np.stack([centre + ahead, centre - ahead], axis=1)


def poses(places: np.ndarray, likelihood: float = 0.95) -> pd.DataFrame:
    frames = len(places)
    return pd.DataFrame(
        {
            "frame": np.tile(np.arange(frames, dtype=np.int32), 2),
            "time_s": np.tile(np.arange(frames) / 30, 2),
            "individual": pd.Categorical([SINGLE_ANIMAL] * 2 * frames),
            "bodypart": pd.Categorical(np.repeat(["nose", "tail"], frames)),
            "x": places[:, :, 0].T.ravel().astype(np.float32),
            "y": places[:, :, 1].T.ravel().astype(np.float32),
            "likelihood": np.full(2 * frames, likelihood, np.float32),
        }
    )


def slow() -> np.ndarray:
    """An animal that creeps along by 3 px a second."""
    return points(1, seed=3) + np.linspace(0, 20, FRAMES)[:, None, None]


class SmallLab:
    """A lab with a catalogue and a store: a session with the recording `top`, and model versions by hand."""

    def __init__(self, home: Path, engine: Engine):
        self.home, self.engine = home, engine
        self.store = Store(home / "store")
        self.settle({})
        register_session(engine, session(SESSION), [(recording(SESSION, "top", "1"), video("1"))])
        assign_cameras(engine, {"top": "maze"}.get)

    def settle(self, quality: dict[str, Any], **more: Any) -> Lab:
        """Write lab.yaml anew."""
        settings = {
            "raw_roots": ["raw"],
            "projects": {"maze": {"path": "maze"}},
            "inference": [{"project": "maze"}],
            "pose_quality": quality,
        }
        (self.home / "lab.yaml").write_text(yaml.safe_dump(settings | more))
        self.lab = load_lab(self.home)
        return self.lab

    def train(
        self,
        model: str,
        of_dataset: str,
        evaluation: str | None,
        likelihood: float = 0.95,
        off_px: float = 0.5,
        test_images: int = 20,
    ) -> None:
        """A version with 40 labelled images, and its predictions on 20 test images where it was evaluated."""
        record_dataset(self.engine, f"recipe {model}", dataset(of_dataset), [image(of_dataset, "3", SESSION)])
        places = points(60, seed=1)
        labels = pd.DataFrame(
            [
                (f"{number}", "train" if number < 40 else "test", part, *places[number, place])
                for number in range(40 + test_images)
                for place, part in enumerate(("nose", "tail"))
            ],
            columns=["image", "side", "bodypart", "x", "y"],
        )
        manifest = {
            "n_train": 40,
            "n_test": test_images,
            "bodyparts": ["nose", "tail"],
            "skeleton": [["nose", "tail"]],
            "task": "maze",
            "sessions": [],
        }
        self.store.put(
            "datasets", identity(of_dataset), manifest, lambda folder: labels.to_parquet(folder / "labels.parquet")
        )
        train(self.engine, model, of_dataset)
        if evaluation is None:
            return
        predictions = labels.assign(
            predicted_x=labels["x"] + off_px,
            predicted_y=labels["y"],
            likelihood=likelihood,
            distance_px=off_px,
        )
        self.store.put(
            "evaluations",
            identity(evaluation),
            {"model": identity(model), "dataset": identity(of_dataset), "seconds": 1.0},
            lambda folder: predictions.to_parquet(folder / "predictions.parquet"),
        )
        evaluate(self.engine, evaluation, model, of_dataset, 2.0)

    def track(self, letter: str, model: str, table: pd.DataFrame) -> None:
        """Put these poses in force."""
        self.store.put("poses", identity(letter), {}, lambda folder: write_parquet(table, folder / POSE_TABLE))
        (file,) = current_files(self.engine, SESSION)
        track(self.engine, letter, file, model)

    def assess(self) -> Assessment:
        (found,) = assess(self.engine, self.store, self.lab.pose_rules, SESSION, "run")
        return found

    def held(self) -> list[str]:
        return [fault.reason for fault in quarantine.faults_of(self.engine, SESSION, "quality")]


@pytest.fixture
def small(tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> SmallLab:
    monkeypatch.setenv("DLC_PLATFORM_POSTGRES_URL", engine.url.render_as_string(hide_password=False))
    return SmallLab(tmp_path, engine)


@pytest.fixture
def tracked(small: SmallLab) -> SmallLab:
    """Good poses by an evaluated version."""
    small.train("a", "d", "6")
    small.track("8", "a", poses(points(FRAMES, seed=2)))
    return small


def test_a_judge_judges_the_poses_of_a_run_once(tracked: SmallLab) -> None:
    judge = PoseJudge(tracked.engine, tracked.store, tracked.lab.pose_rules)
    first = judge.judge(SESSION, "mine")
    assert judge.judged(SESSION, "mine") is first and first[0].course is not None
    # Once more where somebody else judged them since, and where other poses are in force.
    tracked.assess()
    again = judge.judged(SESSION, "mine")
    assert again is not first and judge.judged(SESSION, "mine") is again
    tracked.track("9", "a", poses(points(FRAMES, seed=4)))
    (other,) = judge.judged(SESSION, "mine")
    assert other.pose_estimate_id == identity("9")


def test_a_judge_looks_again_at_what_it_could_not_read(tracked: SmallLab) -> None:
    file = tracked.store.path("evaluations", identity("6")) / "predictions.parquet"
    away = file.rename(tracked.home / "away")
    judge = PoseJudge(tracked.engine, tracked.store, tracked.lab.pose_rules)
    (unread,) = judge.judge(SESSION, "mine")
    assert unread.verdict == "fail" and not unread.is_complete
    away.rename(file)
    (read,) = judge.judged(SESSION, "mine")
    assert read.verdict == "pass" and tracked.held() == []


def test_good_poses_pass_by_their_models_own_evaluation(tracked: SmallLab) -> None:
    reference = reference_of(tracked.engine, tracked.store, identity("a"), tracked.lab.model_rules)
    assert reference.labels.size_px == pytest.approx(LENGTH, abs=2)
    assert [limb.name for limb in reference.labels.limbs] == ["nose to tail"]
    assert reference.evaluated is not None and (reference.dataset_id, reference.evaluation_id) == (
        identity("d"),
        identity("6"),
    )
    found = tracked.assess()
    assert found.verdict == "pass" and found.findings == [] and tracked.held() == []
    verdict = pose_verdict(tracked.engine, identity("8"))
    assert verdict is not None and (verdict.verdict, verdict.evaluation_id) == ("pass", identity("6"))
    table = Platform(tracked.home).quality(SESSION)
    assert list(table["bodypart"]) == ["nose", "tail", "nose to tail", "all"]
    assert table["swaps"].isna().all() and table["swaps"].dtype == float
    assert set(table["verdict"]) == {"pass"} and set(table["session"]) == {SESSION}
    with pytest.raises(PlatformError, match="sub-9_ses-9"):
        Platform(tracked.home).quality("sub-9_ses-9")


def unsure(fraction: float, likelihood: float = 0.3) -> pd.DataFrame:
    """Good poses, but for this fraction of them, of which the model is not sure."""
    table = poses(points(FRAMES, seed=2))
    return table.assign(likelihood=table["likelihood"].where(table["frame"] >= fraction * FRAMES, likelihood))


def test_poses_worse_than_on_test_images_only_get_a_warning(small: SmallLab) -> None:
    small.train("a", "d", "6")
    small.track("8", "a", unsure(0.4))
    found = small.assess()
    assert found.verdict == "warn" and {finding.metric for finding in found.findings} == {"fraction_confident"}
    assert small.held() == [] and len(Platform(small.home).poses(SESSION)) == 2 * FRAMES
    table = Platform(small.home).quality().set_index("bodypart")
    said = str(table.loc["nose", "findings"])
    assert table.loc["nose", "verdict"] == "warn" and "warn: fraction_confident of nose is 0.6, limit 0." in said
    assert "(the model's test images)" in said
    assert table.loc["all", "verdict"] == "warn" and table.loc["nose to tail", "verdict"] == "pass"


def test_poses_fail_by_floors_even_if_a_bad_model_allows_them(small: SmallLab) -> None:
    """The model is as unsure of its own test images, so the limits that follow from them ask for nothing."""
    small.settle({}, promotion={"hopeless": {"confident": None}})
    small.train("a", "d", "6", likelihood=0.1)
    small.track("8", "a", unsure(1, 0.094))
    found = small.assess()
    assert found.verdict == "fail"
    assert [str(finding) for finding in found.findings if finding.level == "fail"] == [
        "0.0% of all keypoints are confident, floor 50%",
        "the mean likelihood of all keypoints is 0.094, floor 0.3",
    ]
    platform = Platform(small.home)
    with pytest.raises(PlatformError, match=r"0\.0% of all keypoints are confident, floor 50%, and 1 more"):
        platform.require_good_poses(SESSION)
    assert set(platform.quality(SESSION)["verdict"]) == {"fail", "warn", "pass"}
    today = daily_report(small.engine, datetime.now(UTC).date(), "UTC", "stop")
    assert (today.sessions_estimated, today.sessions_with_bad_poses) == (1, 1)
    assert "1 of them with poses that fail" in str(today)
    verdict = pose_verdict(small.engine, identity("8"))
    assert verdict is not None and verdict.floors is not None
    assert verdict.floors["confident"] == {"warn": None, "fail": 0.5}
    # A lab may know better, for all or for some cameras.
    lower = {"confident": {"fail": None}, "bodypart_confident": None, "mean_likelihood": {"fail": 0.05}}
    for quality in ({"floors": lower}, {"rules": [{"camera": "top", "floors": lower}]}):
        small.settle(quality, promotion={"hopeless": {"confident": None}})
        assert small.assess().verdict == "pass" and small.held() == []
        platform.require_good_poses(SESSION)


def write_moving_video(path: Path, moves: bool) -> None:
    """The 300 frames that the catalogue knows, with a dark animal that crosses the picture, or stays where it is."""
    import av

    floor = np.random.default_rng(1).normal(160, 4, (480, 640))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 640, 480, "yuv420p"
        for number in range(FRAMES):
            grey = floor.copy()
            x = 20 + (2 * number % 560 if moves else 0)
            grey[220:250, x : x + 40] = 40
            grey = np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="bgr24")))
        container.mux(stream.encode())


def test_the_same_pose_in_every_frame_fails_if_the_picture_moves(small: SmallLab, tmp_path: Path) -> None:
    small.train("a", "d", "6")
    small.track("8", "a", poses(points(1, seed=3).repeat(FRAMES, axis=0)))
    # The video is on no disk: whether the animal was at rest cannot be said, and is not taken for good.
    found = small.assess()
    assert found.verdict == "warn" and "could not be read" in str(found.findings[0])
    file = tmp_path / "top.mp4"
    for moves, verdict in ((True, "fail"), (False, "pass")):
        write_moving_video(file, moves)
        with small.engine.begin() as connection:
            connection.execute(text("update dlc.recording_file set path = :path"), {"path": str(file)})
            connection.execute(text("update dlc.video set size_bytes = :size"), {"size": file.stat().st_size})
            if not moves:  # the same poses are of another video now
                connection.execute(text("update dlc.pose_verdict set basis = '{}'"))
        found = small.assess()
        assert found.verdict == verdict
    assert found.scores.iloc[-1]["still"] == 1 and found.scores.iloc[-1]["still_in_motion"] == 0


def test_poses_judged_before_there_were_floors_are_judged_again(
    tracked: SmallLab, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tracked.assess()
    with tracked.engine.begin() as connection:
        connection.execute(
            text(
                "update dlc.pose_verdict set floors = null, basis = basis - 'scores', findings = '[{\"metric\": "
                '"jumps", "individual": "animal0", "bodypart": "nose", "value": 0.5, "limit": 0.02, '
                '"level": "warn"}]\', verdict = \'warn\''
            )
        )
        connection.execute(text("update dlc.pose_score set confident_when_seen = null, fraction_empty = null"))
    platform = Platform(tracked.home)
    assert "warn: jumps of nose is 0.5, limit 0.02" in set(platform.quality(SESSION)["findings"])
    assert platform.not_judged_by_floors(SESSION) == platform.not_judged_by_floors() != []
    with pytest.raises(PlatformError, match=f"not judged by the floors.*quality .* {SESSION} --judge"):
        platform.require_good_poses(SESSION)
    monkeypatch.setattr(sys, "argv", ["dlc-platform", "quality", str(tracked.home), SESSION])
    with pytest.raises(SystemExit):
        app.main()
    assert f"judge them with `dlc-platform quality {tracked.home} {SESSION} --judge`" in capsys.readouterr().out
    with tracked.engine.begin() as connection:
        connection.execute(text("truncate dlc.pose_verdict cascade"))
    for arguments in ([], [SESSION]):
        monkeypatch.setattr(sys, "argv", ["dlc-platform", "quality", str(tracked.home), *arguments])
        with pytest.raises(SystemExit):
            app.main()
        out = capsys.readouterr().out
        assert "none yet" not in out and " --judge`" in out and "judged yet" in out
    assert tracked.assess().verdict == "pass" and platform.not_judged_by_floors() == []
    platform.require_good_poses(SESSION)
    other = "sub-2_ses-1"
    register_session(tracked.engine, session(other), [(recording(other, "top", "2"), video("2"))])
    with pytest.raises(PlatformError, match="has no poses"):
        platform.require_good_poses(other)


def test_the_poses_of_a_hopeless_model_fail_and_say_so(small: SmallLab) -> None:
    small.train("a", "d", "6", off_px=30)
    small.track("8", "a", poses(points(FRAMES, seed=2)))
    found = small.assess()
    assert found.verdict == "fail" and found.findings[0].metric == "model_correct"
    assert "0% lie within 7.93 px" in small.held()[0] and "floor 50%" in small.held()[0]
    assert found.reference.judgement is not None and found.reference.judgement.standing == "hopeless"
    (fault,) = quarantine.faults_of(small.engine, SESSION, "quality")
    assert "promote that version" in fault.remedy
    # A lab says what is hopeless.
    small.settle({}, promotion={"hopeless": {"correct": None}})
    assert small.assess().verdict == "pass"


def damage(store: Store, what: str) -> Path:
    """Damage the dataset or the evaluation of a `SmallLab`, and return the file that is to be named."""
    product = store.path("datasets", identity("d")) if "dataset" in what else store.path("evaluations", identity("6"))
    table = product / ("labels.parquet" if "dataset" in what else "predictions.parquet")
    if what.startswith("lost file"):
        table.unlink()
    elif what.startswith("lost"):
        shutil.rmtree(product)
        return product / "manifest.json"
    elif what.startswith("one byte"):
        content = bytearray(table.read_bytes())
        content[len(content) // 2] ^= 1
        table.write_bytes(content)
    else:
        (product / "manifest.json").write_text("{")
        return product / "manifest.json"
    return table


@pytest.mark.parametrize("what", ["lost", "lost file", "one byte", "manifest"])
@pytest.mark.parametrize("of", ["evaluation", "dataset"])
def test_a_model_whose_evaluation_cannot_be_read_is_not_trusted(small: SmallLab, what: str, of: str) -> None:
    small.train("a", "d", "6", off_px=30)
    small.track("8", "a", poses(points(FRAMES, seed=2)))
    copy = shutil.copytree(small.store.root, small.home / "copy")
    file = damage(small.store, f"{what} {of}")
    rules = small.lab.model_rules
    judgement = judge_version(small.engine, small.store, identity("a"), rules)
    assert judgement.standing == "unread" and not judgement.tracks_by_itself
    assert str(judgement).startswith(f"not judged, because its results on test images cannot be read: {file} is ")
    (barred,) = versions_that_may_not_start(small.engine, small.store, "maze", rules).values()
    assert "was passed over, because it is not judged" in barred
    # Poses that a person asks for are judged by what is left, and fail by name.
    found = small.assess()
    assert found.verdict == "fail" and [finding.metric for finding in found.findings] == ["model_unread"]
    (fault,) = quarantine.faults_of(small.engine, SESSION, "quality")
    assert str(file) in fault.reason and fault.remedy.startswith(f"Bring {file.parent} back from a copy of the store")
    assert f"quality HOME {SESSION} --judge" in fault.remedy
    # The file comes back: the model is as hopeless as it was, and says so.
    shutil.rmtree(small.store.root)
    copy.rename(small.store.root)
    assert judge_version(small.engine, small.store, identity("a"), rules).standing == "hopeless"
    assert small.assess().findings[0].metric == "model_correct"


def test_poses_are_measured_again_when_lost_labels_come_back(tracked: SmallLab) -> None:
    copy = shutil.copytree(tracked.store.root, tracked.home / "copy")
    damage(tracked.store, "lost dataset")
    assert set(tracked.assess().scores["bodypart"]) == {"nose", "tail", "all"}  # limbs are the labels'
    shutil.rmtree(tracked.store.root)
    copy.rename(tracked.store.root)
    found = tracked.assess()
    assert found.verdict == "pass" and "nose to tail" in set(found.scores["bodypart"]) and tracked.held() == []


def test_a_store_that_is_away_is_no_fault_of_a_session(tracked: SmallLab) -> None:
    root = tracked.store.root.rename(tracked.home / "elsewhere")
    for is_empty in (False, True):  # nothing is there, or an empty mount point
        if is_empty:
            tracked.store.root.mkdir()
        with pytest.raises(MachineFault, match="datasets of the store is not there"):
            tracked.assess()
        with pytest.raises(MachineFault, match="of the store is not there"):
            versions_that_may_not_start(tracked.engine, tracked.store, "maze", tracked.lab.model_rules)
        judgement = judge_version(tracked.engine, tracked.store, identity("a"), tracked.lab.model_rules)
        assert not judgement.tracks_by_itself and "Mount its disk" in what_to_do(judgement)
        assert tracked.held() == []
    tracked.store.root.rmdir()
    root.rename(tracked.store.root)
    assert tracked.assess().verdict == "pass"


def test_changed_limits_judge_poses_again_without_reading_them(tracked: SmallLab) -> None:
    tracked.assess()
    path = tracked.store.path("poses", identity("8")) / POSE_TABLE
    path.rename(path.with_suffix(".away"))
    tracked.settle({"limits": {"fraction_confident": {"warn": 0.9, "fail": 0.5}, "temporal_norm_px": {"warn": 0.1}}})
    found = tracked.assess()
    assert {(finding.metric, finding.level) for finding in found.findings} == {("temporal_norm_px", "warn")}
    assert found.scores["rows"].dropna().tolist() == [FRAMES, FRAMES, FRAMES]
    tracked.settle({"limits": {"temporal_norm_px": {"fail": 0.1}}})
    assert tracked.assess().verdict == "fail" and "temporal_norm_px of nose" in tracked.held()[0]
    verdict = pose_verdict(tracked.engine, identity("8"))
    assert verdict is not None and verdict.limits == {"temporal_norm_px": {"warn": None, "fail": 0.1}}
    # A rule for these poses comes before the limits for all.
    mild = {"project": "ma*", "camera": "top", "limits": {"temporal_norm_px": {"fail": 99}}}
    tracked.settle({"limits": {"temporal_norm_px": {"fail": 0.1}}, "rules": [mild]})
    assert tracked.assess().verdict == "pass" and tracked.held() == []
    # Another arena needs the poses.
    tracked.settle({"rules": [{"arena": [[0, 0], [10, 10]]}]})
    with pytest.raises(PlatformError, match="is missing"):
        tracked.assess()
    path.with_suffix(".away").rename(path)
    assert {finding.metric for finding in tracked.assess().findings} == {"outside"}
    assert Platform(tracked.home).quality()["outside"].iloc[0] == 1
    # The region of the camera is its arena where none is given.
    tracked.settle({}, regions=[{"x": 0, "y": 0, "width": 32, "height": 32}])
    assert {finding.metric for finding in tracked.assess().findings} == {"outside"}


def test_a_failing_session_is_held_until_release_or_other_poses(tracked: SmallLab) -> None:
    strict = {"limits": {"temporal_norm_px": {"fail": 0.1}}, "blocks": ["downstream", "exports"]}
    tracked.settle(strict)
    tracked.assess()
    platform = Platform(tracked.home)
    for read in (lambda: platform.poses(SESSION), lambda: platform.require_good_poses(SESSION)):
        with pytest.raises(PlatformError, match=r"temporal_norm_px of nose is .*release"):
            read()
    assert len(platform.poses(SESSION, include_quarantined=True)) == 2 * FRAMES
    # What lab.yaml does not block is only warned of.
    tracked.settle(strict | {"blocks": []})
    with pytest.warns(UserWarning, match="in quarantine"):
        Platform(tracked.home).poses(SESSION)
    # Whoever asks gets the answer all the same.
    with pytest.raises(PlatformError, match="in quarantine"):
        Platform(tracked.home).require_good_poses(SESSION)
    tracked.settle(strict)

    quarantine.release(tracked.engine, SESSION, "a person", ["quality"])
    require_good_poses(tracked.engine, SESSION)
    assert len(platform.poses(SESSION)) == 2 * FRAMES
    # Judged again with the same failures, also by a stricter limit, it stays out.
    assert tracked.assess().verdict == "fail" and tracked.held() == []
    tracked.settle({"limits": {"temporal_norm_px": {"fail": 0.05}}})
    tracked.assess()
    assert tracked.held() == []
    # Another score that fails is another matter.
    tracked.settle({"limits": {"temporal_norm_px": {"fail": 0.05}, "mean_likelihood": {"fail": 0.99}}})
    tracked.assess()
    assert "and 3 more" in tracked.held()[0]

    # A retrained version whose poses are good lets it out by itself; the poses of before stay bad.
    tracked.settle(strict)
    tracked.train("b", "e", "7")
    tracked.track("9", "b", poses(slow()))
    assert tracked.assess().verdict == "pass" and tracked.held() == []
    assert len(platform.poses(SESSION)) == 2 * FRAMES
    assert pose_verdict(tracked.engine, identity("8")).verdict == "fail"  # pyright: ignore


def test_only_the_poses_that_fail_are_held_back(tracked: SmallLab) -> None:
    tracked.settle({"limits": {"temporal_norm_px": {"fail": 0.1}}, "blocks": ["exports"]})
    tracked.train("b", "e", "7")
    tracked.track("9", "b", poses(slow()))
    tracked.assess()
    tracked.track("8", "a", poses(points(FRAMES, seed=2)))
    tracked.assess()
    platform = Platform(tracked.home)
    with pytest.raises(PlatformError, match="in quarantine"):
        platform.poses(SESSION)
    with pytest.raises(PlatformError, match="in quarantine"):
        platform.poses(SESSION, model=identity("a"))
    assert len(platform.poses(SESSION, model=identity("b"))) == 2 * FRAMES


def test_rows_that_are_not_the_frames_fail_by_themselves(small: SmallLab) -> None:
    small.train("a", "d", "6")
    small.track("8", "a", poses(points(FRAMES - 1, seed=2)))
    assert small.assess().verdict == "fail"
    assert "rows of nose is 299, limit 300" in small.held()[0]


def test_a_model_without_labels_has_absolute_limits(small: SmallLab) -> None:
    model = tables.ModelVersion(
        id=identity("c"), project="maze", weights_sha256=identity("f"), scorer="DLC_c", source={"path": "/elsewhere"}
    )
    record_imported_model(small.engine, model, BodyParts(("nose", "tail")))
    assert reference_of(small.engine, small.store, identity("c"), small.lab.model_rules).dataset_id is None
    assert reference_of(small.engine, small.store, None, small.lab.model_rules).evaluated is None
    small.track("8", "c", poses(points(FRAMES, seed=2)))
    found = small.assess()
    assert found.verdict == "pass" and found.reference.labels.limbs == ()
    # The lab knows how large the animal is.
    small.settle({"rules": [{"animal_px": 0.01}]})
    assert {finding.metric for finding in small.assess().findings} == {"jumps"}
    # Once it is evaluated on labels of its project, there is more to say.
    small.train("a", "d", None)
    assert reference_of(small.engine, small.store, identity("a"), small.lab.model_rules).evaluated is None
    small.train("b", "d", "6")
    shutil.copytree(small.store.path("evaluations", identity("6")), small.store.path("evaluations", identity("7")))
    evaluate(small.engine, "7", "c", "d", 2.0)
    assert reference_of(small.engine, small.store, identity("c"), small.lab.model_rules).labels.limbs


def test_a_version_whose_poses_fail_is_not_promoted_by_the_rule(tracked: SmallLab) -> None:
    strict = {"limits": {"temporal_norm_px": {"fail": 0.1}}}
    lab = tracked.settle(strict)
    tracked.assess()
    assert barred_versions(tracked.engine, lab.pose_quality, "maze") == {}
    lab = tracked.settle(strict | {"blocks": ["promotion"]})
    # Of few poses nothing follows for the version.
    for letter in "012345679":
        assert barred_versions(tracked.engine, lab.pose_quality, "maze") == {}
        tracked.track(letter, "a", poses(points(FRAMES, seed=2)))
        tracked.assess()
    ((model, reason),) = barred_versions(tracked.engine, lab.pose_quality, "maze").items()
    assert model == identity("a") and "10 of the 10 poses" in reason
    assert barred_versions(tracked.engine, lab.pose_quality, "other") == {}


def test_the_command_lists_and_judges_again(
    tracked: SmallLab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["dlc-platform", "quality", str(tracked.home), *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            app.main()
        assert not ended.value.code
        return capsys.readouterr().out

    assert "no poses were judged yet" in said()
    judged = said("--judge")
    assert "all pass" in judged and "1 recording: 1 pass" in judged
    assert "nose to tail" in said(SESSION) and "pass" in said(SESSION)
    tracked.settle({"limits": {"temporal_norm_px": {"fail": 0.1}}})
    assert "fail" not in said(SESSION)
    assert "fail" in said(SESSION, "--judge") and tracked.held()
    assert len(json.loads(said("--json"))) == 4

    # Without a session the newest that do not pass, in one line each.
    other = "sub-2_ses-1"
    register_session(tracked.engine, session(other), [(recording(other, "top", "1"), video("1"))])
    (file,) = current_files(tracked.engine, other)
    track(tracked.engine, "8", file, "a")
    listed = said()
    assert SESSION in listed and other in listed and "nose to tail" not in listed and "2 recordings: 2 fail" in listed
    monkeypatch.setattr(poses_commands, "_NOT_PASSING", 1)
    listed = said()
    assert other in listed and SESSION not in listed and "the newest 1 of 2 that do not pass are listed" in listed
    assert len(json.loads(said("--json"))) == 8


@pytest.mark.parametrize(
    ("quality", "said"),
    [
        ({"limits": {"jumpz": {"warn": 1}}}, "pose_quality.limits.jumpz"),
        ({"rules": [{"arena": [[0, 0]]}]}, "pose_quality.rules.0.arena"),
        ({"blocks": ["everything"]}, "pose_quality.blocks.0"),
        ({"promotion_fraction": 1}, "pose_quality.promotion_fraction"),
        ({"floors": {"confident": {"warn": 0.2}}}, "pose_quality.floors.*confident must warn before it fails"),
        ({"floors": {"still": {"fail": 2}}}, "pose_quality.floors.*still must be a fraction"),
        ({"floors": {"stil": None}}, "pose_quality.floors.stil"),
    ],
)
def test_limits_that_cannot_be_meant(small: SmallLab, quality: dict[str, Any], said: str) -> None:
    with pytest.raises(PlatformError, match=said):
        small.settle(quality)
