"""One table of labels, ``CollectedData_*.csv`` or ``.h5``, as its file has it, before it meets any image.

A table is held against its own structure here: it says one thing, or it is refused with the line. Which tables count,
and which image a row is of, is decided in `labels`.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from unicodedata import normalize

from dlc_platform.dlc.project import CONFIG_FILE, Project
from dlc_platform.errors import PlatformError
from dlc_platform.files.plain import read_plain
from dlc_platform.text.words import counted

Point = tuple[float, float]
UNLABELLED: Point = (math.nan, math.nan)

_HEADER = ("scorer", "bodyparts", "coords")
#: The labels of ten thousand images of a hundred body parts.
_MOST_BYTES = 32 << 20
_COORDINATES = ("x", "y", "likelihood")
_AGAIN = "Open the folder in napari and save its labels again"
#: How pandas calls a cell of the header that was empty.
_UNNAMED = re.compile(r"Unnamed: \d+(_level_\d+)?")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
#: What pandas, and so DeepLabCut, takes for an empty cell.
_EMPTY = frozenset({"", "nan", "-nan", "na", "n/a", "<na>", "#n/a", "#na", "null", "none"})


@dataclass(frozen=True)
class Remark:
    """Something of the labels that a person should know, though they can be used."""

    said: str
    remedy: str


@dataclass(frozen=True)
class LabelRow:
    """The labels of one image.

    Attributes
    ----------
    place
        Where the row stands in its file, such as ``line 4``.
    folder
        The folder that its path names, None where the path is the bare name of a file.
    points
        Body part to (x, y) in pixels; NaN where it is not labelled.
    """

    place: str
    folder: str | None
    file: str
    points: dict[str, Point]

    @property
    def is_labelled(self) -> bool:
        """True when a body part has a label."""
        return any(not math.isnan(x) for x, _ in self.points.values())


@dataclass(frozen=True)
class LabelFile:
    """A table of labels: its rows as they stand there, and what is odd about it."""

    path: Path
    rows: list[LabelRow]
    remarks: list[Remark]


@dataclass(frozen=True)
class _Raw:
    """Columns (scorer, bodypart, coordinate), and rows of place, path and numbers.

    It may be cut off where nothing shows that its last number is whole.
    """

    columns: list[tuple[str, str, str]]
    rows: list[tuple[str, str, list[float]]]
    may_be_cut: bool = False


def read_label_file(path: Path, project: Project) -> LabelFile:
    """Read a table of labels.

    Of several scorers, the labels of the project's own count, as for DeepLabCut.

    Raises
    ------
    PlatformError
        When it cannot be read, cannot be understood, or contradicts itself.
    """
    raw = _read_csv(path) if path.suffix.lower() == ".csv" else _read_hdf(path)
    scorer, remarks = _scorer(path, raw, project)
    parts = _bodyparts(path, raw, scorer, project)
    rows = []
    for place, text, numbers in raw.rows:
        folder, file = _image(path, place, text)
        points = {part: _point(path, place, part, numbers, columns) for part, columns in parts.items()}
        rows.append(LabelRow(place, folder, file, points))
    halves = [
        f"{part} in {place}"
        for place, _, numbers in raw.rows
        for part, columns in parts.items()
        for x, y in columns
        if math.isnan(numbers[x]) != math.isnan(numbers[y])
    ]
    if halves:
        remarks.append(
            Remark(
                f"{path} has only one of x and y {len(halves)} times, such as for {halves[0]}: that is no label, "
                "as for DeepLabCut",
                "Write the numbers that are missing, or label those body parts again in napari",
            )
        )
    if raw.may_be_cut:
        remarks.append(
            Remark(
                f"{path} ends without the end of a line, as a copy that was cut off does: its last number may be too "
                "short",
                "See that the labels of its last line are right, then save it again in napari",
            )
        )
    remarks += [
        Remark(
            f"{path} has the columns of {part} {len(columns)} times, which do not contradict each other: read as one",
            _AGAIN,
        )
        for part, columns in parts.items()
        if len(columns) > 1
    ]
    return LabelFile(path, rows, remarks)


def same_name(name: str) -> str:
    """A name of a file or a folder in the form in which two spellings of it are equal."""
    return normalize("NFC", name)


def _scorer(path: Path, raw: _Raw, project: Project) -> tuple[str, list[Remark]]:
    scorers = list(dict.fromkeys(scorer for scorer, _, _ in raw.columns))
    own = next((scorer for scorer in scorers if same_name(scorer) == same_name(project.scorer)), None)
    if len(scorers) == 1:
        (only,) = scorers
        # Of a table that its name calls another person's, that is said where the tables of a folder are found.
        if own is not None or same_name(path.stem) != f"CollectedData_{same_name(project.scorer)}":
            return only, []
        return only, [
            Remark(
                f"{path} names {only} as scorer in its first line and not {project.scorer}, the scorer of the "
                "project: it is used, and DeepLabCut leaves it out",
                "Leave it so if its labels are meant; otherwise move it out of labeled-data",
            )
        ]
    if own is None:
        raise PlatformError(
            f"{path} holds the labels of several scorers, {', '.join(scorers)}, and none of them is the scorer of "
            f"{project.path / CONFIG_FILE}, {project.scorer}",
            "Write the one whose labels count as `scorer` in config.yaml, or keep the labels of each in a project of "
            "their own",
        )
    others = [index for index, (scorer, _, coordinate) in enumerate(raw.columns) if scorer != own and coordinate == "x"]
    left_out = sum(not math.isnan(numbers[index]) for _, _, numbers in raw.rows for index in others)
    return own, [
        Remark(
            f"{path} holds the labels of {', '.join(scorers)}: those of {own}, the scorer of the project, are used, "
            f"and {counted(left_out, 'label')} of the others {'is' if left_out == 1 else 'are'} not",
            f"Leave it so if {own} is right; otherwise write another `scorer` in config.yaml",
        )
    ]


def _bodyparts(path: Path, raw: _Raw, scorer: str, project: Project) -> dict[str, list[tuple[int, int]]]:
    """For each body part of a scorer the positions of its x and y, more than one pair where it is there again."""
    found: dict[str, dict[str, list[int]]] = {}
    unknown: list[str] = []
    for index, (its_scorer, written, coordinate) in enumerate(raw.columns):
        if its_scorer != scorer:
            continue
        part = _bodypart(written, project)
        if part is None:
            unknown.append(written)
            continue
        if coordinate not in _COORDINATES:
            raise PlatformError(
                f"{path} has {coordinate or 'nothing'!r} in its line `coords` for {part}, where x, y are expected",
                _AGAIN,
            )
        found.setdefault(part, {}).setdefault(coordinate, []).append(index)
    if unknown:
        raise PlatformError(
            f"{path} labels {', '.join(dict.fromkeys(unknown))}, which `bodyparts` in {project.path / CONFIG_FILE} "
            f"does not name (it names {', '.join(project.bodyparts)})",
            "Add the name there, or correct its spelling where it is wrong",
        )
    for part, columns in found.items():
        xs, ys = (len(columns.get(coordinate, [])) for coordinate in ("x", "y"))
        if xs != ys:
            raise PlatformError(f"{path} has {counted(xs, 'column')} x and {ys} y of {part}", _AGAIN)
    return {part: list(zip(columns.get("x", []), columns.get("y", []), strict=True)) for part, columns in found.items()}


def _bodypart(written: str, project: Project) -> str | None:
    """The body part of the project that a table means; None for none of them."""
    known = {same_name(part): part for part in project.bodyparts}
    # A table that was read as numbers has 1.0 for 1.
    return known.get(same_name(written)) or known.get(written.removesuffix(".0"))


def _image(path: Path, place: str, text: str) -> tuple[str | None, str]:
    """The folder, where it is named, and the file of a path, whose slashes may be those of Windows."""
    parts = [part.strip() for part in text.replace("\\", "/").split("/") if part.strip()]
    if not parts:
        raise PlatformError(f"{path} names no image in {place}", _AGAIN)
    return (parts[-2] if len(parts) > 1 else None), parts[-1]


def _point(path: Path, place: str, part: str, numbers: list[float], columns: list[tuple[int, int]]) -> Point:
    points: set[Point] = set()
    for x, y in ((numbers[x], numbers[y]) for x, y in columns):
        if not math.isnan(x) and not math.isnan(y):
            points.add((x, y))
    if len(points) > 1:
        raise PlatformError(
            f"{path} has {part} more than once in {place}, and differently: "
            f"{' and '.join(f'({x:g}, {y:g})' for x, y in sorted(points))}",
            "Correct the numbers that are wrong, or open the folder in napari and save its labels again",
        )
    return points.pop() if points else UNLABELLED


def _read_csv(path: Path) -> _Raw:
    text = _read_text(path)
    lines = list(_lines(path, text))
    if len(lines) < len(_HEADER):
        raise PlatformError(f"{path} is not a label table: it has {counted(len(lines), 'line')}", _AGAIN)
    header = [cells for _, cells in lines[: len(_HEADER)]]
    if lines[1][1][0].strip() == "individuals":
        raise PlatformError(f"{path} holds labels of a multi-animal project", "Use a single-animal project")
    if tuple(cells[0].strip() for cells in header) != _HEADER:
        raise PlatformError(
            f"{path} is not a label table: its first lines must begin with {', '.join(_HEADER)}", _AGAIN
        )
    # pandas leaves the cells of the header empty over the second and third index column, or calls them unnamed.
    first = 1
    while any(first < len(cells) for cells in header) and all(_is_unnamed(cells, first) for cells in header):
        first += 1
    widths = {name: len(_stripped(cells)) for name, cells in zip(_HEADER, header, strict=True)}
    width = widths["coords"]
    if len(set(widths.values())) > 1:
        raise PlatformError(
            f"{path} has {widths['bodyparts'] - first} columns in its line `bodyparts` and {width - first} in its line "
            f"`coords`, and {widths['scorer'] - first} in its line `scorer`",
            _AGAIN,
        )
    if width <= first:
        raise PlatformError(f"{path} is not a label table: it has no columns of body parts", _AGAIN)
    if not all(cell.strip() for cells in header for cell in cells[first:width]):
        raise PlatformError(f"{path} has a column without a name in its first lines", _AGAIN)
    scorers, parts, coordinates = ([cell.strip() for cell in cells[first:width]] for cells in header)
    # A table that was read and written with pandas may number the cells of its first line: ann, ann.1, ann.2...
    scorers = [scorers[0] if name == f"{scorers[0]}.{number}" else name for number, name in enumerate(scorers)]
    rows = []
    for number, cells in lines[len(_HEADER) :]:
        place = f"line {number}"
        if len(cells) < width or len(_stripped(cells)) > width:
            raise PlatformError(
                f"{path} has {counted(len(cells), 'cell')} in {place}, and its header has {width}: the line is "
                f"{'cut off' if len(cells) < width else 'too long'}",
                _AGAIN,
            )
        image = "/".join(cells[:first])
        numbers = [_number(cell, path, f"{place}, for {image}") for cell in cells[first:width]]
        rows.append((place, image, numbers))
    # pandas, and so DeepLabCut, ends every line.
    may_be_cut = not text.endswith(("\n", "\r")) and bool(lines[-1][1][-1].strip())
    return _Raw(list(zip(scorers, parts, coordinates, strict=True)), rows, may_be_cut)


def _read_text(path: Path) -> str:
    try:
        data = read_plain(path, _MOST_BYTES)
    except OSError as error:
        raise PlatformError(f"{path} cannot be read: {error.strerror}", "See who may read the file") from error
    text = _text(data)
    if "\0" in text:
        raise PlatformError(f"{path} holds zero bytes, as after a crash or an interrupted copy", _AGAIN)
    return text


def _lines(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """The number and the cells of each line that is not empty."""
    start = text.lstrip()[:7]
    if start in ("scorer;", "scorer\t"):
        # It may have taken points for the marks of thousands, or numbers for days: nothing of that shows.
        separator = "semicolons" if start.endswith(";") else "tabs"
        raise PlatformError(
            f"{path} has {separator} between its cells: a spreadsheet program wrote it, which may have changed numbers",
            _AGAIN,
        )
    try:
        reader = csv.reader(io.StringIO(text, newline=""))
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield reader.line_num, cells
    except csv.Error as error:
        raise PlatformError(f"{path} cannot be read: {error}", _AGAIN) from error


def _text(data: bytes) -> str:
    """Text in the encodings that people's programs save a .csv in; every name in it is compared with others later."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", errors="replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")


def _is_unnamed(cells: Sequence[str], index: int) -> bool:
    cell = cells[index].strip() if index < len(cells) else ""
    return not cell or _UNNAMED.fullmatch(cell) is not None


def _stripped(cells: Sequence[str]) -> Sequence[str]:
    """Cells without the empty ones at their end."""
    last = max((index for index, cell in enumerate(cells) if cell.strip()), default=-1)
    return cells[: last + 1]


def _number(cell: str, path: Path, place: str) -> float:
    text = cell.strip()
    if text.lower() in _EMPTY:
        return math.nan
    number = float(text) if _NUMBER.fullmatch(text) else math.inf
    if math.isinf(number):
        raise PlatformError(f"{path} holds {cell[:60]!r} in {place}, which is not a number", "Correct that cell")
    return number


def _read_hdf(path: Path) -> _Raw:
    from dlc_platform.interop.pandas_hdf import read_hdf_table

    table = read_hdf_table(path, _AGAIN)
    if any(len(column) == len(_HEADER) + 1 for column in table.columns):
        raise PlatformError(f"{path} holds labels of a multi-animal project", "Use a single-animal project")
    if not table.columns or any(len(column) != len(_HEADER) for column in table.columns):
        raise PlatformError(f"{path} is not a label table: its columns must be {', '.join(_HEADER)}", _AGAIN)
    if not isinstance(table.index, list):
        raise PlatformError(f"{path} does not name its images: its rows are only numbered", _AGAIN)
    rows = []
    for number, (names, values) in enumerate(zip(table.index, table.values.tolist(), strict=True), 1):
        if any(math.isinf(value) for value in values):
            raise PlatformError(f"{path} holds an infinite number in row {number}", _AGAIN)
        rows.append((f"row {number}", "/".join(names), [float(value) for value in values]))
    columns = [(scorer, part, coordinate) for scorer, part, coordinate in table.columns]
    return _Raw(columns, rows)
