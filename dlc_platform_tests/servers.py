"""Postgres servers of the tests, which need not outlive a power cut."""

from pathlib import Path

import sqlalchemy
from sqlalchemy import URL

from dlc_platform.postgres import server


def ensure_running_without_fsync(directory: Path) -> URL:
    """The URL of the server of a directory. With fsync, to drop a test's database takes more than a second."""
    url = server.ensure_running(directory)
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            connection.execute(sqlalchemy.text(f"alter system set {setting} = off"))
        connection.execute(sqlalchemy.text("select pg_reload_conf()"))
    return url
