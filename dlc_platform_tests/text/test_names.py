"""Names that nothing has are refused with what comes near; names of files fit a disk."""

from pathlib import Path

import pytest

from dlc_platform.errors import PlatformError
from dlc_platform.text.names import file_name, near_names, require_known

SESSIONS = [f"sub-{subject:03}_ses-{session:03}" for subject in range(1, 5) for session in range(1, 4)]
LISTING = "`dlc-platform sessions HOME`"


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("sub-001_ses-01", "sub-001_ses-001"),
        ("SUB-002_ses-003", "sub-002_ses-003"),
        ("sub-003", "sub-003_ses-001"),
        ("sub-001-ses-002", "sub-001_ses-002"),
    ],
)
def test_a_name_that_comes_near_is_proposed(name: str, near: str) -> None:
    assert near in near_names(name, SESSIONS)
    with pytest.raises(
        PlatformError, match=f"there is no session '{name}'. Did you mean .*{near}.*: `dlc-platform sess"
    ):
        require_known("session", ["sub-001_ses-001", name], SESSIONS, LISTING)


def test_nothing_near_leads_to_the_listing() -> None:
    assert near_names("", SESSIONS) == near_names("sub-999", SESSIONS) == []
    with pytest.raises(PlatformError, match=r"'sub-999'. Choose among those of `dlc-platform sessions "):
        require_known("session", ["sub-999"], SESSIONS, LISTING)
    with pytest.raises(PlatformError, match=r"no project 'cage'. Choose among arena, maze"):
        require_known("project", ["cage"], ["maze", "arena"], "lab.yaml")
    with pytest.raises(PlatformError, match="There is none yet"):
        require_known("session", ["sub-1_ses-1"], [], LISTING)


def test_known_names_pass() -> None:
    require_known("session", SESSIONS[:2], set(SESSIONS), LISTING)
    require_known("session", [], [], LISTING)


@pytest.mark.parametrize("stem", ["a" * 251, "ö" * 125 + "x", "鼠" * 83, "🐁" * 62 + "abc"])
def test_a_name_made_of_a_long_one_fits_a_disk(stem: str, tmp_path: Path) -> None:
    (tmp_path / f"{stem}.mp4").touch()
    name = file_name(stem, "DLC_CspnextS_my-project_0123456789ab_el.h5")
    (tmp_path / name).touch()
    assert name.endswith("DLC_CspnextS_my-project_0123456789ab_el.h5") and name.startswith(stem[:10])
    assert name != file_name(stem[:-1] + "é", "DLC_CspnextS_my-project_0123456789ab_el.h5")
    assert file_name("cam-top", "DLC.h5") == "cam-topDLC.h5"
