"""Poses of the small lab, held against the rules of lab.yaml that hold now."""

import sys
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from sqlalchemy import Engine

from dlc_platform.catalog import tables
from dlc_platform.catalog.estimates import record_poses
from dlc_platform.catalog.sessions import assign_cameras, current_files
from dlc_platform.cli import app
from dlc_platform.dlc.parameters import CONFIG_FILE, TRACKING
from dlc_platform.estimates.other_rules import poses_of_other_rules, unread_rules
from dlc_platform.settings.environment import POSTGRES_VARIABLE
from dlc_platform.settings.lab import Lab
from dlc_platform.store import MANIFEST, Store
from dlc_platform_tests.catalog.conftest import lab as lab
from dlc_platform_tests.catalog.small_lab import ENVIRONMENT, identity, track

ONE = "sub-1_ses-1"
REGION = {"x": 25, "y": 18, "width": 48, "height": 64}


def settings(region: dict[str, Any] | None = None, **rule: str) -> Lab:
    return Lab.model_validate(
        {
            "raw_roots": [Path("/raw")],
            "projects": {"maze": {"path": Path("/maze")}},
            "inference": [{"project": "maze", **rule}],
            "regions": [region] if region else [],
        }
    )


def other(engine: Engine, lab: Lab) -> pd.DataFrame:
    return poses_of_other_rules(engine, Store(lab.store), lab.tracking)


@pytest.mark.parametrize(
    ("made_with", "rules", "said"),
    [
        (None, settings(), None),
        (None, settings(REGION), ("whole picture, full precision", "region 48 x 64 at (25, 18), full precision")),
        (None, settings(precision="half"), ("whole picture, full precision", "whole picture, half precision")),
        (None, settings({**REGION, "session": "sub-2_*"}), None),
        (None, settings(camera="side", precision="half"), None),
        ({"region": REGION}, settings(REGION), None),
        (
            {"region": REGION},
            settings(),
            ("region 48 x 64 at (25, 18), full precision", "whole picture, full precision"),
        ),
        ({"region": REGION, "precision": "half"}, settings(REGION, precision="half"), None),
    ],
)
def test_poses_of_other_rules(
    made_with: dict[str, Any] | None, rules: Lab, said: tuple[str, str] | None, lab: Engine
) -> None:
    _, top = current_files(lab, ONE)
    track(lab, "c", top, "b", parameters=made_with)
    found = other(lab, rules)
    columns = ["session", "camera", "path", "made_with", "lab_yaml"]
    expected = [(ONE, "top", f"/raw/{ONE}/top.mp4", *said)] if said else []
    assert list(found[columns].itertuples(index=False, name=None)) == expected


def test_multi_animal_poses_with_other_tracks_are_listed(lab: Engine, tmp_path: Path) -> None:
    model = tmp_path / "models" / identity("b")
    model.mkdir(parents=True)
    (model / MANIFEST).write_text("{}")
    (model / CONFIG_FILE).write_text("metadata: {individuals: [one, other]}")
    now = settings().model_copy(update={"store": tmp_path})
    _, top = current_files(lab, ONE)
    track(lab, "c", top, "b")
    (row,) = other(lab, now).to_dict("records")
    assert row["made_with"] == "whole picture, full precision, tracking 1"
    assert row["lab_yaml"] == f"whole picture, full precision, tracking {TRACKING}"
    track(lab, "d", top, "b", parameters={"tracking": TRACKING})
    assert other(lab, now).empty
    # Whether or not its model is still in the store.
    assert other(lab, settings()).empty


def test_imported_poses_follow_no_rule(lab: Engine) -> None:
    _, top = current_files(lab, ONE)
    imported = tables.PoseEstimate(
        id=identity("c"), video_id=top.video_id, origin="imported", scorer="DLC_c", frames=300, source={"file": "a.h5"}
    )
    poses = tables.RecordingPoses(recording_file_id=top.id, pose_estimate_id=imported.id)
    record_poses(lab, imported, poses, ENVIRONMENT)
    assert other(lab, settings(REGION)).empty


def test_rules_that_the_catalogue_does_not_follow_yet_are_said(lab: Engine) -> None:
    rules = settings(camera="top")
    assert unread_rules(lab, rules.tracking) is None
    said = unread_rules(lab, settings(camera="side").tracking)
    assert said is not None
    assert "the cameras top (maze before, no project now), and this answer follows the old ones" in said
    assign_cameras(lab, settings(camera="side").tracking.project_of)
    assert unread_rules(lab, settings(camera="side").tracking) is None


def test_stale_and_impact_say_so(
    lab: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(POSTGRES_VARIABLE, lab.url.render_as_string(hide_password=False))
    lines = ["raw_roots: [/raw]", "projects: {maze: {path: /maze}}", "inference: [{project: maze, camera: side}]"]
    (tmp_path / "lab.yaml").write_text("\n".join(lines))
    with warnings.catch_warnings():
        for command in (["stale"], ["impact", identity("a")], ["stale", "--json"]):
            monkeypatch.setattr(sys, "argv", ["dlc-platform", command[0], str(tmp_path), *command[1:]])
            with pytest.raises(SystemExit):
                app.main()
            assert "rules of lab.yaml have changed for the cameras top (" in capsys.readouterr().err
