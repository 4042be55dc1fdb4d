"""Details about subjects and sessions in a lab's own tables, and about a video in the JSON file beside it.

Tables lie in a raw root or in a folder between it and a session: ``subjects.csv`` and BIDS' ``participants.tsv``,
``sessions.csv`` and BIDS' ``sub-01_sessions.tsv``. Values are kept as they are written, as text. Nothing else depends
on such a file, so a fault in one is reported and stops nothing.
"""

import csv
import errno
import hashlib
import io
import json
import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from stat import S_ISREG
from typing import Any, Literal

from dlc_platform.errors import PlatformError
from dlc_platform.files.plain import read_plain
from dlc_platform.sessions.layout import normal, root_of
from dlc_platform.sessions.listing import Skipped

_OF_SUBJECTS = re.compile(r"(?:subjects|participants)\.(?:csv|tsv)", re.I)
_OF_SESSIONS = re.compile(r"(?:sub-(?P<subject>.+)_)?sessions\.(?:csv|tsv)", re.I)
#: The columns that name the subject or session of a row; the first one that a table has counts; in small letters.
_SUBJECT_COLUMNS = ("participant_id", "subject", "subject_id", "subject_name", "animal", "animal_id", "mouse_id")
_SESSION_COLUMNS = ("session_id", "session", "session_name")
#: The column with which Element DeepLabCut names a session: its folder's path below the root.
_FOLDER_COLUMNS = ("session_dir", "session_directory")
_MOST_BYTES = 16 << 20
_MOST_JSON_BYTES = 64 << 10
_MOST_COLUMNS = 256
#: The most names in a message.
_NAMED = 5

_Kind = Literal["subject", "session"]
_Row = tuple[int, Mapping[str, str]]


@dataclass(frozen=True)
class Details:
    """The details that sidecar files give about a session and its subject.

    Both are ``{"values": {name: text}, "sources": {name: path}}``, or None if there are no details; that of a session
    may also hold ``{"videos": {file name: {"values": ..., "source": path}}}``. A table nearer to the session wins over
    one farther away.

    Attributes
    ----------
    unread
        The files and folders that may hold more details and could not be read or used; see `kept`.
    """

    subject: dict[str, Any] | None
    session: dict[str, Any] | None
    problems: tuple[Skipped, ...]
    unread: frozenset[str]


def kept(before: dict[str, Any] | None, said: dict[str, Any] | None, unread: Collection[str]) -> dict[str, Any] | None:
    """The present details, and the earlier ones whose files cannot be read now.

    Parameters
    ----------
    before, said
        The details of one subject or session, as in `Details`.
    unread
        The files and folders that cannot be read.
    """

    def is_unread(source: str) -> bool:
        return source in unread or os.path.dirname(source) in unread

    before, now = before or {}, said or {}
    old = {name: source for name, source in before.get("sources", {}).items() if is_unread(source)}
    values = {**now.get("values", {}), **{name: before["values"][name] for name in old}}
    videos = {name: video for name, video in before.get("videos", {}).items() if is_unread(video["source"])}
    videos |= now.get("videos", {})
    if not values and not videos:
        return None
    details = {"values": values, "sources": {**now.get("sources", {}), **old}}
    return {**details, "videos": videos} if videos else details


@dataclass(frozen=True)
class _Table:
    """A table that was read; `rows` are pairs of a line's number and its values by column, without empty values."""

    columns: tuple[str, ...]
    rows: tuple[_Row, ...]
    problems: tuple[str, ...]

    @property
    def is_usable(self) -> bool:
        return bool(self.columns)

    def column(self, names: Sequence[str]) -> str | None:
        by_name = {column.lower(): column for column in reversed(self.columns)}
        return next((by_name[name] for name in names if name in by_name), None)

    def of_subject(self, subject: str) -> Sequence[_Row]:
        """The rows of a subject."""
        return self._by_subject.get(subject.removeprefix("sub-"), ())

    @property
    def subjects(self) -> set[str]:
        """The subjects that the table names."""
        return set(self._by_subject)

    @cached_property
    def _by_subject(self) -> dict[str, list[_Row]]:
        column = self.column(_SUBJECT_COLUMNS)
        found: dict[str, list[_Row]] = defaultdict(list)
        for line, row in self.rows:
            if column is not None and column in row:
                found[normal(row[column]).removeprefix("sub-")].append((line, row))
        return dict(found)


class Sidecars:
    """The sidecar files below the raw roots; each table is read once.

    Make a new object to see later changes.

    Parameters
    ----------
    raw_roots
        All raw roots of the lab.
    unreachable
        Those of them that must not be asked.
    """

    def __init__(self, raw_roots: Iterable[Path], unreachable: Iterable[Path] = ()) -> None:
        self._roots = list(dict.fromkeys(map(str, raw_roots)))
        self._unreachable = tuple(map(str, unreachable))
        self._in_folder: dict[str, list[tuple[str, _Kind]]] = {}
        self._unread: set[str] = set()
        self._tables: dict[str, _Table] = {}
        self._session_rows: dict[str, _SessionRows] = {}

    def details(self, folder: Path, subject: str, name: str, videos: Iterable[Path]) -> Details:
        """The details that sidecar files give about one session.

        Parameters
        ----------
        folder, subject, name
            The folder of the session, its subject and its name.
        videos
            Its video files; a JSON file with the name of the video may lie beside each.
        """
        values: dict[_Kind, dict[str, str]] = {"subject": {}, "session": {}}
        sources: dict[_Kind, dict[str, str]] = {"subject": {}, "session": {}}
        problems: list[Skipped] = []
        unread: set[str] = set()
        for root, place in _places(self._roots, folder):
            tables = self._tables_in(place)
            if place in self._unread:
                unread.add(place)
            for path, kind in tables:
                table = self._read(path)
                problems += [Skipped(Path(path), problem) for problem in table.problems]
                if not table.is_usable:
                    unread.add(path)
                    continue
                if kind == "subject":
                    rows = table.of_subject(subject)
                else:
                    if path not in self._session_rows:
                        self._session_rows[path] = _SessionRows(table, path, root)
                    rows = self._session_rows[path].of(folder, subject, name)
                for line, row in rows[1:]:
                    if row != rows[0][1]:
                        reason = (
                            f"its lines {rows[0][0]} and {line} are of one {kind}, and the first is used; remove one"
                        )
                        problems.append(Skipped(Path(path), reason))
                if rows:
                    values[kind].update(rows[0][1])
                    sources[kind].update(dict.fromkeys(rows[0][1], path))
        said: dict[_Kind, dict[str, Any] | None] = {
            kind: {"values": values[kind], "sources": sources[kind]} if values[kind] else None for kind in values
        }
        by_video = {}
        roots = [Path(root) for root in self._roots]
        for video in videos if str(folder) not in unread else ():
            if root_of(video, roots) is None:
                continue
            beside = video.with_suffix(".json")
            own, problem = _read_json(beside)
            if problem is not None:
                problems.append(Skipped(beside, problem))
                unread.add(str(beside))
            elif own:
                by_video[video.name] = {"values": own, "source": str(beside)}
        if by_video:
            said["session"] = {**(said["session"] or {"values": {}, "sources": {}}), "videos": by_video}
        return Details(said["subject"], said["session"], tuple(dict.fromkeys(problems)), frozenset(unread))

    def strangers(self, subjects: Iterable[str]) -> list[Skipped]:
        """The tables of the raw roots that name subjects without any session."""
        known = {subject.removeprefix("sub-") for subject in subjects}
        found = []
        for root in self._roots:
            for path, _ in self._tables_in(root):
                strange = sorted(self._read(path).subjects - known)
                if strange:
                    more = f" and {len(strange) - _NAMED} more" if len(strange) > _NAMED else ""
                    names = f"{', '.join(strange[:_NAMED])}{more}"
                    found.append(Skipped(Path(path), f"it names {names}, who have no session on disk", "expected"))
        return found

    def state(self, folders: Iterable[Path]) -> str:
        """A hash that changes when a table about sessions in these folders changes; no file is read for it."""
        places = {place for folder in set(folders) for _, place in _places(self._roots, folder)}
        found = hashlib.sha256()
        for place in sorted(places | set(self._roots)):
            for path, _ in self._tables_in(place):
                with suppress(OSError):
                    status = os.stat(path)
                    found.update(json.dumps([path, status.st_size, status.st_mtime_ns]).encode())
        return found.hexdigest()

    def _tables_in(self, folder: str) -> list[tuple[str, _Kind]]:
        if folder not in self._in_folder:
            names: list[str] = []
            if not any(Path(folder).is_relative_to(root) for root in self._unreachable):
                with suppress(OSError):
                    names = sorted(os.listdir(folder))
            # An empty root is taken for a disk that is not mounted, and a folder that is gone lay below one.
            if not names:
                self._unread.add(folder)
            self._in_folder[folder] = [
                (os.path.join(folder, name), "subject" if _OF_SUBJECTS.fullmatch(name) else "session")
                for name in names
                # The folder's listing reports names that are not UTF-8: no table can be kept under them.
                if name.isprintable() and (_OF_SUBJECTS.fullmatch(name) or _OF_SESSIONS.fullmatch(name))
            ]
        return self._in_folder[folder]

    def _read(self, path: str) -> _Table:
        if path not in self._tables:
            self._tables[path] = _read_table(path)
        return self._tables[path]


def _places(roots: Sequence[str], folder: Path) -> Iterator[tuple[str, str]]:
    """The folders whose tables may be about a session, each with its root, in the order in which they are read.

    The other roots come first, because a lab may keep its tables in one of them.
    """
    within = [root for root in roots if root_of(folder, [Path(root)]) is not None]
    for root in roots:
        if root not in within:
            yield root, root
    if within:
        # A root may lie in another one.
        place = min(within, key=len)
        yield place, place
        for part in folder.relative_to(place).parts:
            place = os.path.join(place, part)
            yield max((root for root in within if Path(place).is_relative_to(root)), key=len), place


class _SessionRows:
    """The rows of a table of sessions, by the name of the session in them: its folder, or its subject and name."""

    def __init__(self, table: _Table, path: str, root: str) -> None:
        of_subject, of_session = table.column(_SUBJECT_COLUMNS), table.column(_SESSION_COLUMNS)
        of_folder = table.column(_FOLDER_COLUMNS)
        place, file = os.path.split(path)
        in_name = _OF_SESSIONS.fullmatch(file)
        #: The subject that the name of the table or of its folder gives, if its rows do not name one.
        self._named = normal((in_name and in_name["subject"]) or os.path.basename(place)).removeprefix("sub-")
        self._names_subjects = of_subject is not None
        self._rows: dict[tuple[str, str, str], list[_Row]] = defaultdict(list)
        for line, row in table.rows:
            if of_subject is not None and of_subject not in row:
                continue
            subject = normal(row[of_subject]).removeprefix("sub-") if of_subject is not None else ""
            if of_folder is not None and of_folder in row:
                folder = os.path.normpath(os.path.join(root, row[of_folder].replace("\\", "/")))
                self._rows[subject, "folder", folder].append((line, row))
            else:
                written = normal(row.get(of_session)) if of_session is not None else ""
                self._rows[subject, "name", written.removeprefix("ses-")].append((line, row))

    def of(self, folder: Path, subject: str, name: str) -> list[_Row]:
        """The rows of one session, in their order."""
        bare = subject.removeprefix("sub-")
        own = bare if self._names_subjects else ""
        rows = list(self._rows.get((own, "folder", str(folder)), ()))
        if self._names_subjects or self._named == bare or self._named.startswith(f"{bare}_"):
            rows += self._rows.get((own, "name", name.removeprefix("ses-")), ())
        return sorted(rows, key=lambda row: row[0])


def _read_table(path: str) -> _Table:
    try:
        status = os.stat(path)
    except OSError as error:
        return _Table((), (), (f"it cannot be read: {error.strerror}; check the file and its permissions",))
    if not S_ISREG(status.st_mode):
        return _Table((), (), ("it is not a file; remove it",))
    if status.st_size > _MOST_BYTES:
        return _Table((), (), (f"it is larger than {_MOST_BYTES >> 20} MB, so it is not read; split it",))
    try:
        content = read_plain(Path(path), _MOST_BYTES)
    except PlatformError as error:
        return _Table((), (), (f"it is not read: {error.problem}",))
    except OSError as error:
        return _Table((), (), (f"it cannot be read: {error.strerror}; check the file and its permissions",))
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        return _Table((), (), (f"it is not UTF-8 (line {line}), so it is not used; save it again as UTF-8",))
    if "\0" in text:
        return _Table((), (), ("it is not a text file, so it is not used; save it again as text",))
    header = next((line for line in text.splitlines() if line.strip()), "")
    usual = "\t" if path.lower().endswith(".tsv") else ","
    delimiter = max((usual, *"\t,;|"), key=lambda one: (header.count(one), one == usual))
    try:
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        return _table(path, ((lines.line_num, [field.strip() for field in fields]) for fields in lines))
    except csv.Error as error:
        return _Table((), (), (f"it is not a table: {error}; mend that line",))


def _table(path: str, lines: Iterator[tuple[int, list[str]]]) -> _Table:
    lines = ((line, fields) for line, fields in lines if any(fields))
    _, header = next(lines, (0, []))
    if not header:
        return _Table((), (), ("it is empty; remove it, or write a row for each subject or session",))
    if len(header) > _MOST_COLUMNS:
        return _Table((), (), (f"it has more than {_MOST_COLUMNS} columns, so it is not used; shorten it",))
    problems: list[str] = []
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        problems.append(f"it has two columns {', '.join(twice)}, of which the first is used; rename the other")
    rows: list[tuple[int, dict[str, str]]] = []
    too_long: list[int] = []
    for line, fields in lines:
        row: dict[str, str] = {}
        for name, value in zip(header, fields, strict=False):
            if name and value and name not in row:
                row[name] = value
        rows.append((line, row))
        if any(fields[len(header) :]):
            too_long.append(line)
    if too_long:
        problems.append(f"line {too_long[0]} has more fields than the header; put values with a comma in quotes")
    table = _Table(tuple(dict.fromkeys(name for name in header if name)), tuple(rows), ())
    if _OF_SUBJECTS.fullmatch(os.path.basename(path)):
        wanted = _SUBJECT_COLUMNS[:3]
        is_usable = table.column(_SUBJECT_COLUMNS) is not None
    else:
        wanted = (_SESSION_COLUMNS[0], _SESSION_COLUMNS[1], _FOLDER_COLUMNS[0])
        is_usable = table.column((*_SESSION_COLUMNS, *_FOLDER_COLUMNS)) is not None
    if not is_usable:
        return _Table((), (), (f"it has no column {', '.join(wanted[:-1])} or {wanted[-1]}; give a column that name",))
    return _Table(table.columns, table.rows, tuple(problems))


def _read_json(path: Path) -> tuple[dict[str, str], str | None]:
    """The values of a JSON object, as text, and the fault of the file; both are empty if there is no file."""
    try:
        status = path.stat()
        if not S_ISREG(status.st_mode):
            return {}, None
        if status.st_size > _MOST_JSON_BYTES:
            return {}, f"it is larger than {_MOST_JSON_BYTES >> 10} kB, so it is not taken for metadata of its video"
        content = json.loads(
            read_plain(path, _MOST_JSON_BYTES).decode("utf-8-sig"), parse_float=str, parse_int=str, parse_constant=str
        )
    except FileNotFoundError:
        return {}, None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return {}, None
        return {}, f"it cannot be read: {error.strerror}; check the file and its permissions"
    except (ValueError, RecursionError) as error:
        return {}, f"it is not JSON in UTF-8: {str(error).splitlines()[0]}; mend it, or remove it"
    except PlatformError as error:  # it became another kind of file just now
        return {}, f"it is not read: {error.problem}"
    if not isinstance(content, dict):
        return {}, "it holds no JSON object, so it is not taken for metadata of its video"
    try:
        texts = {
            name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for name, value in content.items()
            if value is not None
        }
    except RecursionError:
        return {}, "it nests too many lists, so it is not taken for metadata of its video"
    return {_storable(name): _storable(value) for name, value in texts.items()}, None


def _storable(text: str) -> str:
    """A text that a database accepts: without characters that JSON can write and Unicode does not have."""
    return text.replace("\0", "").encode(errors="replace").decode()
