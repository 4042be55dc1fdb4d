"""Models and poses from elsewhere, in a lab with a catalogue: by hand and by the commands."""

import getpass
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pytest
import yaml
from sqlalchemy import Engine, select, text

from dlc_platform.catalog import tables
from dlc_platform.catalog.estimates import incomplete_poses
from dlc_platform.catalog.models import bodyparts_of, model_version
from dlc_platform.catalog.sessions import current_files
from dlc_platform.cli import app
from dlc_platform.dlc.training import TrainedModel
from dlc_platform.errors import PlatformError
from dlc_platform.estimates.importing import RegisteredPoses, register_model, register_poses
from dlc_platform.identity import sha256_file
from dlc_platform.orchestration.instance import open_instance, prepare
from dlc_platform.platform import Platform
from dlc_platform.sessions.recordings import scan
from dlc_platform.sessions.registration import register
from dlc_platform.settings.lab import Lab
from dlc_platform.settings.loading import load_lab
from dlc_platform.store import Store
from dlc_platform_tests.dlc.train_folders import lay_out, make_project
from dlc_platform_tests.sessions.test_registration import write_video
from dlc_platform_tests.video.conftest import spoil

SESSION = "sub-1_ses-1"
SCORER = "DLC_Resnet50_tinyJan1shuffle1_snapshot_best-190"


@pytest.fixture
def home(tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lab whose one session has a recording of one file, `top`, and one of two, `side`."""
    folder = tmp_path / "raw" / "sub-1" / "ses-1"
    write_video(folder / "cam-top.mp4", 10)
    write_video(folder / "cam-side_part-1.mp4", 12, shade=50)
    write_video(folder / "cam-side_part-10.mp4", 13, shade=100)
    home = tmp_path / "lab"
    home.mkdir()
    settings = {
        "raw_roots": [str(tmp_path / "raw")],
        "projects": {"tiny": {"path": "/no/matter"}, "other": {"path": "/no/matter"}},
        "layout": {
            "pattern": r"sub-(?P<subject>\w+)/ses-(?P<session>\w+)/cam-(?P<camera>[a-z]+)(_part-(?P<part>\d+))?\.mp4"
        },
    }
    (home / "lab.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.setenv("DLC_PLATFORM_POSTGRES_URL", engine.url.render_as_string(hide_password=False))
    lab = load_lab(home)
    (session,) = scan(lab.raw_roots, lab.layout).sessions
    register(engine, session)
    return home


@pytest.fixture
def lab(home: Path) -> Lab:
    return load_lab(home)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[object, str]]:
    """Runs a command in this process: its exit code, or what it ends with on stderr, and what it printed."""

    def run(*arguments: object) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", ["dlc-platform", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            app.main()
        said = capsys.readouterr()
        return said.err if ended.value.code == 2 else ended.value.code, said.out

    return run


def pose_file(folder: Path, video: str, rows: int, individuals: bool = False, seed: int = 0) -> Path:
    levels = [[SCORER], ["nose", "tail"], ["x", "y", "likelihood"]]
    names = ["scorer", "bodyparts", "coords"]
    if individuals:
        levels.insert(1, ["mouse1", "mouse2"])
        names.insert(1, "individuals")
    columns = pd.MultiIndex.from_product(levels, names=names)
    values = np.random.default_rng(seed).random((rows, len(columns))).astype(np.float32)
    file = folder / f"{video}{SCORER}.h5"
    pd.DataFrame(values, columns=columns).to_hdf(file, key="df_with_missing", format="table")
    return file


def imported(engine: Engine, lab: Lab, file: Path, session: str, *rest: Any, **options: Any) -> RegisteredPoses:
    return register_poses(engine, Store(lab.store), lab.video_rules, lab.pose_rules, file, session, *rest, **options)


def materialised(engine: Engine) -> int:
    with engine.connect() as connection:
        return len(connection.execute(select(tables.RecordingPoses.id)).all())


def test_imported_poses_are_in_force_where_there_are_none(home: Path, lab: Lab, engine: Engine, tmp_path: Path):
    file = pose_file(tmp_path, "cam-top", 10)
    done = imported(engine, lab, file, SESSION)
    assert done.in_force and done.video.name == "cam-top.mp4" and done.poses.note == ""
    platform = Platform(home)
    (row,) = platform.estimates().to_dict("records")
    assert (row["recording"], row["camera"], row["frames"]) == ("cam-top", "top", 10)
    assert (row["origin"], row["model"], row["scorer"], row["run_id"]) == ("imported", None, SCORER, None)
    assert row["mean_likelihood"] == pytest.approx(platform.poses(SESSION)["likelihood"].mean())
    (lineage,) = platform.lineage(SESSION).to_dict("records")
    assert (lineage["origin"], lineage["scorer"], lineage["model"]) == ("imported", SCORER, None)
    # Judged at once, by absolute limits: no model says what it could be sure of.
    assert set(platform.quality(SESSION)["bodypart"]) == {"nose", "tail", "all"}
    assert lineage["source"] == {"file": str(file), "file_sha256": sha256_file(file), "rows": 10, "note": ""}
    manifest = Store(lab.store).path("poses", done.poses.id) / "manifest.json"
    with engine.connect() as connection:
        assert connection.scalar(select(tables.PoseEstimate.manifest_sha256)) == sha256_file(manifest)
    table = platform.poses(SESSION, bodyparts=["tail"])
    theirs = pd.DataFrame(pd.read_hdf(file))
    np.testing.assert_array_equal(table["x"], theirs[SCORER, "tail", "x"].astype(np.float32))


def test_groups_of_poses_are_those_that_there_are(home: Path, lab: Lab, engine: Engine, tmp_path: Path):
    """Two sessions, each with a recording that the other lacks; one has animals, and things of which each is alone."""
    folder = tmp_path / "raw" / "sub-2" / "ses-1"
    write_video(folder / "cam-back.mp4", 11, shade=150)
    for session in scan(lab.raw_roots, lab.layout).sessions:
        register(engine, session)
    imported(engine, lab, pose_file(tmp_path, "cam-top", 10), SESSION)
    file = pose_file(tmp_path, "cam-back", 11, individuals=True)
    wide = pd.DataFrame(pd.read_hdf(file))
    thing = wide.loc[:, (SCORER, "mouse1", "nose", slice(None))]
    columns = [(SCORER, "single", "feeder", coordinate) for _, _, _, coordinate in thing.columns]
    thing = thing.set_axis(pd.MultiIndex.from_tuples(columns, names=wide.columns.names), axis=1)
    pd.concat([wide, thing], axis=1).to_hdf(file, key="df_with_missing", format="table")
    imported(engine, lab, file, "sub-2_ses-1")

    poses = Platform(home).poses([SESSION, "sub-2_ses-1"], include_quarantined=True)
    by = ["session", "recording", "individual", "bodypart"]
    there = {tuple(row) for row in poses[by].astype(str).to_numpy()}
    assert len(there) == 2 + 5
    means = poses.groupby(by)["x"].mean()
    assert set(means.index) == there and means.notna().all()
    # With each column of its own too, also where rows were chosen before.
    feeders = poses[poses["bodypart"] == "feeder"]
    for name, value in zip(by, ("sub-2_ses-1", "cam-back", "single", "feeder"), strict=True):
        assert feeders.groupby(name).size().to_dict() == feeders[name].value_counts().to_dict() == {value: 11}
    assert poses["x"].groupby([poses["session"], poses["recording"]]).sum().index.tolist() == [
        (SESSION, "cam-top"),
        ("sub-2_ses-1", "cam-back"),
    ]


def test_poses_of_a_damaged_video_follow_the_rule_of_lab_yaml(lab: Lab, engine: Engine, tmp_path: Path):
    video = spoil(Path(current_files(engine, SESSION)[-1].path), [3])
    assert video.name == "cam-top.mp4"
    for session in scan(lab.raw_roots, lab.layout).sessions:
        register(engine, session)
    file = pose_file(tmp_path, "cam-top", 10)
    with pytest.raises(PlatformError, match=r"cam-top\.mp4 is damaged: .*damaged_videos: track"):
        imported(engine, lab, file, SESSION)
    done = imported(engine, lab.model_copy(update={"damaged_videos": "track"}), file, SESSION)
    assert done.in_force and done.poses.frames == 10
    (row,) = incomplete_poses(engine).to_dict("records")
    assert (row["frames"], row["rows"]) == (10, 10) and row["damage"].startswith("damaged: ")


def test_a_file_without_poses_keeps_its_place_in_the_recording(home: Path, lab: Lab, engine: Engine, tmp_path: Path):
    """Of a recording of 12 and 13 frames the first file was never tracked."""
    imported(engine, lab, pose_file(tmp_path, "cam-side_part-10", 13), SESSION)
    with pytest.warns(UserWarning, match=r"cam-side_part-1\.mp4, a file of the recording .* has no poses"):
        table = Platform(home).poses(SESSION, include_quarantined=True)
    nose = table[table["bodypart"] == "nose"]
    assert nose["frame"].tolist() == list(range(12, 25))
    assert nose["time_s"].iloc[0] == pytest.approx(12 / 25)
    # Nobody knows how many frames a file has that cannot be read.
    (video,) = [file for file in current_files(engine, SESSION) if file.path.endswith("part-1.mp4")]
    Path(video.path).write_bytes(b"no video" * 1000)
    for session in scan(lab.raw_roots, lab.layout).sessions:
        register(engine, session)
    with pytest.raises(PlatformError, match=r"at which frame of its recording .*part-10\.mp4 of session sub-1_ses-1"):
        Platform(home).poses(SESSION, include_quarantined=True)


def test_poses_by_several_models_are_told(
    home: Path, lab: Lab, engine: Engine, tmp_path: Path, recwarn: pytest.WarningsRecorder
):
    folder = tmp_path / "raw" / "sub-1" / "ses-2"
    write_video(folder / "cam-top.mp4", 11)
    for session in scan(lab.raw_roots, lab.layout).sessions:
        register(engine, session)
    both = [SESSION, "sub-1_ses-2"]
    for session, frames in zip(both, (10, 11), strict=True):
        imported(engine, lab, pose_file(tmp_path, "cam-top", frames), session)
    platform = Platform(home)
    platform.poses(both, include_quarantined=True)
    assert not [warning for warning in recwarn if "models" in str(warning.message)]
    with engine.begin() as connection:
        connection.execute(
            text("insert into dlc.skeleton (id) values ('s')"),
        )
        connection.execute(
            text(
                "insert into dlc.model_version (id, project, origin, skeleton_id, weights_sha256, scorer, source) "
                "values ('abc', 'tiny', 'imported', 's', 'w', 's', '{}')"
            )
        )
        connection.execute(text("update dlc.pose_estimate set model_id = 'abc' where frames = 11"))
    with pytest.warns(UserWarning, match=r"camera top are by several models: imported \(1 session\), abc \(1 sess"):
        platform.poses(both, include_quarantined=True)


def test_the_same_import_again_changes_nothing(lab: Lab, engine: Engine, tmp_path: Path):
    file = pose_file(tmp_path, "cam-top", 10)
    first = imported(engine, lab, file, SESSION)
    for use in (False, True):
        assert imported(engine, lab, file, SESSION, use=use) == first
    assert materialised(engine) == 1


def test_existing_poses_stay_in_force_unless_a_person_decides(home: Path, lab: Lab, engine: Engine, tmp_path: Path):
    def in_force() -> str:
        return Platform(home).estimates()["pose_estimate"].item()

    file, again = pose_file(tmp_path, "cam-top", 10), pose_file(tmp_path, "cam-top-again", 10, seed=1)
    one = imported(engine, lab, file, SESSION)
    other = imported(engine, lab, again, SESSION)
    assert not other.in_force and in_force() == one.poses.id
    used = imported(engine, lab, again, SESSION, use=True)
    assert used.in_force and in_force() == other.poses.id
    back = imported(engine, lab, file, SESSION, use=True)
    assert back.in_force and in_force() == one.poses.id
    assert materialised(engine) == 3


def test_poses_of_several_animals_come_in(home: Path, lab: Lab, engine: Engine, tmp_path: Path):
    imported(engine, lab, pose_file(tmp_path, "cam-top", 10, individuals=True), SESSION)
    table = Platform(home).poses(SESSION)
    assert set(table["individual"]) == {"mouse1", "mouse2"} and len(table) == 40
    with engine.connect() as connection:
        assert set(connection.scalars(select(tables.PoseScore.bodypart))) == {"nose", "tail", "all"}


def test_the_video_is_told_by_the_name_of_the_file(lab: Lab, engine: Engine, tmp_path: Path):
    def video(name: str, rows: int, recording: str | None = None) -> str:
        return imported(engine, lab, pose_file(tmp_path, name, rows), SESSION, recording).video.name

    assert video("cam-side_part-10", 13) == "cam-side_part-10.mp4"
    assert video("cam-side_part-1", 12) == "cam-side_part-1.mp4"
    assert video("anything", 10, "cam-top") == "cam-top.mp4"
    with pytest.raises(PlatformError, match=r"could be the poses of .*cam-top\.mp4.*say which recording: .*cam-top"):
        video("anything", 10)
    with pytest.raises(PlatformError, match="no recording 'cam-back'"):
        video("cam-top", 10, "cam-back")
    with pytest.raises(PlatformError, match="there is no registered session 'sub-9_ses-1'"):
        imported(engine, lab, pose_file(tmp_path, "cam-top", 10), "sub-9_ses-1")


def test_a_mismatch_is_said_in_the_lineage(home: Path, lab: Lab, engine: Engine, tmp_path: Path):
    file = pose_file(tmp_path, "cam-top", 11)
    with pytest.raises(PlatformError, match="has 11 rows and the video has 10 frames: 1 row lies beyond the video"):
        imported(engine, lab, file, SESSION)
    assert materialised(engine) == 0 and not lab.store.exists()
    imported(engine, lab, file, SESSION, allow_mismatch=True)
    (source,) = Platform(home).lineage(SESSION)["source"]
    assert "11 rows and the video has 10 frames" in source["note"] and source["rows"] == 11


def test_digits_that_are_not_kept_are_said_in_the_lineage(home: Path, lab: Lab, engine: Engine, tmp_path: Path):
    file = pose_file(tmp_path, "cam-top", 10)
    (pd.DataFrame(pd.read_hdf(file)).astype(np.float64) / 3).to_csv(file.with_suffix(".csv"))
    imported(engine, lab, file.with_suffix(".csv"), SESSION)
    (source,) = Platform(home).lineage(SESSION)["source"]
    assert source["note"].startswith("coordinates are kept to float32's seven digits")


def test_the_files_of_a_recording_are_told_apart(
    home: Path, lab: Lab, engine: Engine, tmp_path: Path, command: Callable[..., tuple[object, str]]
):
    for video, rows in (("cam-side_part-1", 12), ("cam-side_part-10", 13), ("cam-top", 10)):
        imported(engine, lab, pose_file(tmp_path, video, rows), SESSION)
    for listed in ("sessions", "poses"):
        # What does not fit beside a row stands below it, and below all what `--wide` has more.
        lines = [line for line in command(listed, home)[1].splitlines() if not line.startswith((" ", "("))]
        heading, *rows = map(str.split, lines)
        assert heading[:3] == ["session", "recording", "position"]
        assert [row[1:3] for row in rows] == [["cam-side_part", "0"], ["cam-side_part", "1"], ["cam-top", "0"]]


def test_a_video_that_was_replaced_gets_no_poses(lab: Lab, engine: Engine, tmp_path: Path):
    write_video(tmp_path / "raw" / "sub-1" / "ses-1" / "cam-top.mp4", 10, shade=200)
    with pytest.raises(PlatformError, match="was replaced since it was registered"):
        imported(engine, lab, pose_file(tmp_path, "cam-top", 10), SESSION)


def test_an_imported_model_is_a_version_of_its_project(
    home: Path, lab: Lab, engine: Engine, tiny_model: TrainedModel, tmp_path: Path
):
    folder = lay_out(tiny_model, make_project(tmp_path / "elsewhere"), "snapshot-best-012.pt", prefix="p")
    model, new = register_model(engine, Store(lab.store), lab.projects, "tiny", folder)
    assert new and register_model(engine, Store(lab.store), lab.projects, "tiny", folder) == (model, False)
    (row,) = Platform(home).models().to_dict("records")
    assert (row["project"], row["origin"], row["model"], row["scorer"]) == ("tiny", "imported", model.id, model.scorer)
    assert row["source"]["model_prefix"] == "p"
    assert bodyparts_of(engine, model.id) == ["nose", "tail"]
    version = model_version(engine, model.id)
    assert version is not None and version.weights_sha256 == tiny_model.weights_sha256
    assert version.manifest_sha256 == sha256_file(model.path / "manifest.json")
    with pytest.raises(PlatformError, match="is a version of the project tiny"):
        register_model(engine, Store(lab.store), lab.projects, "other", folder)
    with pytest.raises(PlatformError, match=r"no project 'maze'\. Choose among other, tiny"):
        register_model(engine, Store(lab.store), lab.projects, "maze", folder)


def test_imported_poses_can_name_an_imported_model(
    home: Path, lab: Lab, engine: Engine, tiny_model: TrainedModel, tmp_path: Path
):
    folder = lay_out(tiny_model, make_project(tmp_path / "elsewhere"), "snapshot-012.pt")
    model, _ = register_model(engine, Store(lab.store), lab.projects, "tiny", folder)
    file = pose_file(tmp_path, "cam-top", 10)
    done: RegisteredPoses = imported(engine, lab, file, SESSION, model_id=model.id)
    (lineage,) = Platform(home).lineage(SESSION).to_dict("records")
    assert (lineage["model"], lineage["model_origin"], lineage["project"]) == (model.id, "imported", "tiny")
    assert lineage["model_source"]["snapshot"] == "snapshot-012.pt"
    assert Platform(home).model_sessions(model.id)["session"].tolist() == [SESSION]
    unnamed = imported(engine, lab, file, SESSION)
    assert unnamed.poses.id != done.poses.id and not unnamed.in_force
    columns = pd.MultiIndex.from_product(
        [[SCORER], ["nose", "paw"], ["x", "y", "likelihood"]], names=["scorer", "bodyparts", "coords"]
    )
    pd.DataFrame(np.zeros((10, 6)), columns=columns).to_csv(tmp_path / "paw.csv")
    with pytest.raises(PlatformError, match=f"holds paw, and the model {model.id} predicts nose, tail"):
        imported(engine, lab, tmp_path / "paw.csv", SESSION, "cam-top", model_id=model.id)


def test_the_commands(home: Path, tiny_model: TrainedModel, tmp_path: Path, command: Callable[..., tuple[object, str]]):
    project = make_project(tmp_path / "elsewhere")
    folder = lay_out(tiny_model, project, "snapshot-050.pt", "snapshot-200.pt", shuffle=3, prefix="nets")
    found = (project, "--shuffle", 3, "--model-prefix", "nets", "--snapshot", "snapshot-050.pt")
    assert "Name one with --project: other or tiny" in str(command("models", "import", home, *found)[0])
    code, out = command("models", "import", home, *found, "--project", "tiny")
    assert code == 0 and f"snapshot-050.pt of {folder} is now a model version of tiny" in out
    code, out = command("models", "import", home, folder, "--project", "tiny")
    # The same weights under another name are the same version.
    assert code == 0 and "was already a model version of tiny" in out
    (row,) = json.loads(command("models", home, "--json")[1])
    assert (row["origin"], row["recipe"], row["production"]) == ("imported", None, False)
    assert command("models", "list", home)[1] == command("models", home)[1]
    assert "imported" in command("models", home)[1]

    file = pose_file(tmp_path, "cam-top", 11)
    asked = ("poses", "import", home, SESSION, file, "--model", row["model"][:8])
    ended, _ = command(*asked)
    assert isinstance(ended, str) and "11 rows and the video has 10 frames" in ended and "--allow-mismatch" in ended
    code, out = command(*asked, "--allow-mismatch")
    assert code == 0
    assert "Mind that cam-top" in out and "1 row lies beyond the video" in out and "They are in force" in out
    other = tmp_path / "cam-top-other.h5"
    shutil.copy(pose_file(tmp_path, "x", 10, seed=3), other)
    asked = ("poses", "import", home, SESSION, other, "--recording", "cam-top")
    assert "They are not in force" in command(*asked)[1]
    (row,) = json.loads(command("poses", home, "--json")[1])
    assert row["model"] is not None
    assert "They are in force" in command(*asked, "--use")[1]
    # The UI shows them as what they are.
    with open_instance(prepare(home)) as instance:
        wanted = dg.AssetRecordsFilter(dg.AssetKey("pose_estimates"), asset_partitions=[SESSION])
        (made,) = instance.fetch_materializations(wanted, limit=1).records
        (seen,) = instance.fetch_observations(wanted, limit=9).records
        assert instance.get_dynamic_partitions("sessions") == [SESSION]
    assert made.asset_materialization is not None and seen.asset_observation is not None
    said = f"Imported by {getpass.getuser()} from {other}, by a model that was not named; no run of this lab made them"
    assert made.asset_materialization.description == said
    assert made.asset_materialization.metadata["file_sha256"].value == sha256_file(other)
    assert seen.asset_observation.metadata["in_force"].value is False
    (row,) = json.loads(command("poses", "--json", home)[1])
    assert (row["origin"], row["model"], row["scorer"]) == ("imported", None, SCORER)
    listed = command("poses", home, "--wide")[1]
    assert "imported" in listed and SCORER in listed
    assert "no DeepLabCut project" in str(
        command("models", "import", home, folder, "--project", "tiny", "--shuffle", 3)[0]
    )
