"""Which of Postgres's programs is taken, by what it prints of itself."""

from pathlib import Path

import pytest

from dlc_platform.postgres.dump import _version  # pyright: ignore[reportPrivateUsage]
from dlc_platform.postgres.server import installed_programs


@pytest.mark.parametrize(
    ("printed", "version"),
    [
        ("pg_dump (PostgreSQL) 18.6", 18),
        ("pg_dump (PostgreSQL) 18.1 (Debian 18.1-1.pgdg120+2)", 18),
        ("pg_dump (PostgreSQL) 19beta1", 19),
        ("pg_dump (EnterpriseDB) 16.2.0", 16),
        ("2 updates are waiting\\npg_dump (PostgreSQL) 17.4", 17),
        ("perl: \\377 locale\\npg_dump (PostgreSQL) 9.6.24", 9),
        ("pg_dump 4.0 of something else", None),
        ("", None),
    ],
)
def test_a_version_is_read_from_the_programs_own_line(tmp_path: Path, printed: str, version: int | None):
    program = tmp_path / "pg_dump"
    program.write_text(f"#!/bin/sh\nprintf '{printed}'\necho '7 warnings' >&2\n")
    program.chmod(0o755)
    assert _version(str(program)) == version


def test_the_programs_that_come_along_tell_their_version():
    assert _version(str(installed_programs() / "pg_dump")) == _version(str(installed_programs() / "pg_restore")) == 18
