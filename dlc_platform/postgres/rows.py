"""Rows from a dump, written into our own tables; the dump's statements are read and never run.

A dump can come from anybody, and Postgres runs the statements of a dump with all rights of the person who restores it.
So the caller makes the tables, with our own migrations. This module takes apart the text of the dump that `pg_restore`
shows: its definitions must be those of our tables, and only rows and positions of sequences are taken from its data, as
values. The meaning of a row is not known here.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

from dlc_platform.errors import one_line

_HEAD = re.compile(r"-- (?:Data for )?Name: (?P<name>.*); Type: (?P<kind>[A-Z ]+); Schema: (?P<schema>.*); Owner: .*")
_WORD = re.compile(r"[\w$]+")
#: Statements about objects that are not taken: comments have no effect, and rights and statistics are the server's own.
_IGNORED = {"COMMENT", "ACL", "DEFAULT ACL", "STATISTICS DATA"}
_LONGEST_DEFINITIONS = 16 << 20
_NAME = r'(?:[a-z_][a-z0-9_]*|"(?:[^"]|"")+")'
_COPY = re.compile(rf"COPY ({_NAME})\.({_NAME}) \(({_NAME}(?:, {_NAME})*)\) FROM stdin;")
_SETVAL = re.compile(rf"SELECT pg_catalog\.setval\('({_NAME})\.({_NAME})', (-?\d{{1,19}}), (true|false)\);")
_ENCODING = re.compile(r"SET client_encoding = '([A-Za-z0-9_]{1,32})';")
#: Statements with which pg_restore prepares a session of psql.
_PREPARING = re.compile(
    r"--.*|SET \w+ = [\w']+;|SELECT pg_catalog\.set_config\('search_path', '', false\);|\\(un)?restrict \w+"
)
_END = b"\\.\n"

#: The identity of an object: its kind, schema and name.
Key = tuple[str, str, str]


class Unfilled(Exception):
    """Postgres did not take the rows, for a reason of its own: a full disk, or a lost connection."""


def foreign(wanted: str, given: Iterator[bytes]) -> list[str]:
    """The objects that a dump defines and our own schemas do not, or define differently; in words for a person.

    Two versions of Postgres write one definition in different ways. So a definition counts as ours if it has no name,
    function, type or value that ours does not have.

    Parameters
    ----------
    wanted
        The definitions of our schemas, by `dump.definitions`.
    given
        Those of the dump, by `dump.shown`.

    Raises
    ------
    ValueError
        When they are far longer than ours can be.
    """
    ours = _definitions(line.encode() for line in wanted.splitlines(keepends=True))
    found = []
    for (kind, schema, name), words in _definitions(given).items():
        if kind in _IGNORED:
            continue
        what = f"the {kind.lower()} {one_line(name if schema == '-' else f'{schema}.{name}')}"
        if (own := ours.get((kind, schema, name))) is None:
            found.append(f"{what}, which is not one of the platform's")
        elif other := sorted(words - own):
            found.append(f"{what}, which the platform makes without {one_line(', '.join(other))}")
    return found


def fill(connection: Connection, lines: Iterator[bytes], schemas: Sequence[str], leave_out: bool = False) -> None:
    """Put the rows of a dump into the tables of our schemas; they replace the rows that are there.

    Every row is checked by its table: types, values that are missing, keys and constraints.

    Parameters
    ----------
    connection
        In a transaction, which cannot be used any more if this fails.
    lines
        The dump's data, by `dump.shown`.
    leave_out
        Skip tables and sequences that are not ours.

    Raises
    ------
    ValueError
        When the data is not that of these tables; it names the table.
    Unfilled
        When the fault is not in the data.
    """
    import psycopg2

    columns = _columns(connection, schemas)
    sequences = _sequences(connection, schemas)
    links = _links(connection, schemas)
    for table, name, _ in links:
        connection.exec_driver_sql(f"alter table {table} drop constraint {name}")
    connection.exec_driver_sql(f"truncate {', '.join(_quoted(*table) for table in columns)}")
    cursor = connection.connection.cursor()
    for raw in lines:
        line = raw.decode(errors="replace").rstrip("\n")
        if match := _COPY.fullmatch(line):
            table = _plain(match[1]), _plain(match[2])
            listed = [_plain(name) for name in re.findall(_NAME, match[3])]
            if leave_out and table not in columns:
                passed = _Rows(lines)
                while passed.read():
                    pass
                continue
            if table not in columns or set(listed) - columns[table]:
                raise ValueError(f"its data is for {one_line(line)}, which the platform's tables do not have")
            statement = f"copy {_quoted(*table)} ({', '.join(map(_quoted, listed))}) from stdin"
            rows = _Rows(lines)
            try:
                cursor.copy_expert(statement, rows)
            except psycopg2.Error as error:
                # An error raised while psycopg2 reads comes out as an error of Postgres.
                raise (rows.error or _refused(connection, ".".join(table), error)) from error
        elif match := _SETVAL.fullmatch(line):
            if (sequence := (_plain(match[1]), _plain(match[2]))) not in sequences:
                if leave_out:
                    continue
                raise ValueError(f"it sets {one_line('.'.join(sequence))}, which is not a sequence of the platform")
            values = _quoted(*sequence), match[3], match[4] == "true"
            try:
                cursor.execute("select setval(%s::regclass, %s::bigint, %s)", values)
            except psycopg2.Error as error:
                raise _refused(connection, ".".join(sequence), error) from error
        elif match := _ENCODING.fullmatch(line):
            try:
                cursor.execute("select set_config('client_encoding', %s, true)", (match[1],))
            except psycopg2.Error as error:
                raise _refused(connection, "any table", error) from error
        elif line and not _PREPARING.fullmatch(line):
            raise ValueError(f"among its data is {one_line(line)!r}, which is not a row")
    for table, name, definition in links:
        try:
            connection.exec_driver_sql(f"alter table {table} add constraint {name} {definition}")
        except IntegrityError as error:
            raise _refused(connection, table, error.orig or error) from error


class _Rows:
    """The rows that follow a COPY, as `copy_expert` reads them; reading stops at their end."""

    def __init__(self, lines: Iterator[bytes]):
        self._lines = lines
        self._ended = False
        self.error: ValueError | None = None

    def read(self, _size: int = -1) -> bytes:
        if self._ended:
            return b""
        try:
            line = next(self._lines, None)
            if line is None:
                raise ValueError("its data ends in the middle of a table")
        except ValueError as error:
            self.error = error
            raise
        self._ended = line == _END
        return b"" if self._ended else line


def _definitions(lines: Iterator[bytes]) -> dict[Key, set[str]]:
    """The words of the statements that define each object."""
    found: dict[Key, set[str]] = {}
    words: set[str] = set()
    length = 0
    for raw in lines:
        if (length := length + len(raw)) > _LONGEST_DEFINITIONS:
            raise ValueError(f"what it defines is longer than {_LONGEST_DEFINITIONS >> 20} MB")
        line = raw.decode(errors="replace").rstrip("\n")
        if match := _HEAD.fullmatch(line):
            words = found.setdefault((match["kind"], match["schema"], match["name"]), set())
        elif not _PREPARING.fullmatch(line):
            words.update(_WORD.findall(line))
    return found


def _columns(connection: Connection, schemas: Sequence[str]) -> dict[tuple[str, str], set[str]]:
    statement = text(
        "select table_schema, table_name, array_agg(column_name::text) from information_schema.columns "
        "join information_schema.tables using (table_schema, table_name) "
        "where table_schema = any(:schemas) and table_type = 'BASE TABLE' group by 1, 2"
    )
    return {(schema, table): set(names) for schema, table, names in connection.execute(statement, _of(schemas))}


def _sequences(connection: Connection, schemas: Sequence[str]) -> set[tuple[str, str]]:
    statement = text("select schemaname, sequencename from pg_sequences where schemaname = any(:schemas)")
    return {(schema, name) for schema, name in connection.execute(statement, _of(schemas))}


def _links(connection: Connection, schemas: Sequence[str]) -> list[tuple[str, str, str]]:
    """Foreign keys, quoted: table, name and definition. They are needed because a dump holds its tables in any
    order."""
    statement = text(
        "select format('%I.%I', nspname, relname), quote_ident(conname), pg_get_constraintdef(c.oid) "
        "from pg_constraint c join pg_class r on r.oid = conrelid join pg_namespace n on n.oid = relnamespace "
        "where contype = 'f' and nspname = any(:schemas) order by 1, 2"
    )
    return [(table, name, definition) for table, name, definition in connection.execute(statement, _of(schemas))]


def _of(schemas: Sequence[str]) -> dict[str, Any]:
    return {"schemas": list(schemas)}


def _plain(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


def _quoted(*names: str) -> str:
    return ".".join('"' + name.replace('"', '""') + '"' for name in names)


def _refused(connection: Connection, table: str, error: BaseException) -> Exception:
    """The error for rows that Postgres refused: a ValueError if the rows are at fault, else `Unfilled`."""
    import psycopg2

    # Class 54 means that a limit of Postgres is exceeded: a value that fits into no index, JSON that is too deep.
    of_rows = isinstance(error, (psycopg2.DataError, psycopg2.IntegrityError, psycopg2.ProgrammingError))
    if of_rows or (isinstance(error, psycopg2.Error) and (error.pgcode or "").startswith("54")):
        return ValueError(f"its rows are not rows of {one_line(table)}: {one_line(str(error))}")
    # It may be lost, and then cannot be rolled back.
    connection.invalidate()
    return Unfilled(str(error))
