import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from dlc_platform.dlc.labels import LabelTable, read_labels
from dlc_platform.dlc.project import read_project
from dlc_platform.errors import PlatformError

FOLDER = "labeled-data/video1"
TABLE = f"{FOLDER}/CollectedData_tester.csv"


@pytest.fixture
def project(tmp_path: Path, make_project: Callable[..., Path]) -> Path:
    return make_project(tmp_path / "p", 3)


def read(project: Path) -> LabelTable:
    return read_labels(read_project(project))


def rewrite(project: Path, change: Callable[[list[list[str]]], list[list[str]]]) -> Path:
    table = project / TABLE
    with open(table, newline="") as file:
        rows = list(csv.reader(file))
    with open(table, "w", newline="") as file:
        csv.writer(file).writerows(change(rows))
    return table


def replace(project: Path, row: int, column: int, cell: str) -> Path:
    def change(rows: list[list[str]]) -> list[list[str]]:
        rows[row][column] = cell
        return rows

    return rewrite(project, change)


def three_index_columns(rows: list[list[str]]) -> list[list[str]]:
    header = [[row[0], "", "", *row[1:]] for row in rows[:3]]
    return header + [[*row[0].split("/"), *row[1:]] for row in rows[3:]]


def windows(rows: list[list[str]]) -> list[list[str]]:
    return rows[:3] + [[row[0].replace("/", "\\"), *row[1:]] for row in rows[3:]]


def with_likelihood(rows: list[list[str]]) -> list[list[str]]:
    extra = ["tester", "nose", "likelihood"]
    return [[*row, extra[i] if i < 3 else "1.0"] for i, row in enumerate(rows)]


@pytest.mark.parametrize("change", [three_index_columns, windows, with_likelihood, lambda rows: [*rows, rows[-1]]])
def test_every_way_to_write_a_table_reads_the_same(project: Path, change: Callable[..., list[list[str]]]):
    before = read(project)
    rewrite(project, change)
    after = read(project)
    pd.testing.assert_frame_equal(before.images, after.images)
    pd.testing.assert_frame_equal(before.points, after.points)


def test_reads_what_deeplabcut_writes(project: Path):
    before = read(project)
    frame = pd.read_csv(project / TABLE, header=[0, 1, 2], index_col=0)
    frame.index = pd.MultiIndex.from_tuples([tuple(str(path).split("/")) for path in frame.index])
    frame.to_csv(project / TABLE)
    pd.testing.assert_frame_equal(before.points, read(project).points)


def test_points_are_tidy_and_nan_where_not_labelled(project: Path):
    replace(project, 3, 1, "")
    labels = read(project)
    assert list(labels.points.columns) == ["folder", "file", "bodypart", "x", "y"]
    assert list(labels.images.columns) == ["folder", "file", "path", "sha256", "width", "height"]
    assert len(labels.images) == 3 and len(labels.points) == 6
    nose = labels.points.iloc[0]
    assert nose["bodypart"] == "nose" and pd.isna(nose["x"]) and pd.isna(nose["y"])
    assert labels.points.iloc[1:].notna().all(axis=None)
    assert labels.folders() == ["video1"]


def test_rows_without_a_label_are_counted(project: Path):
    rewrite(project, lambda rows: [*rows[:3], [rows[3][0], "", "", "", ""], *rows[4:]])
    labels = read(project)
    assert len(labels.images) == 2 and labels.unlabelled == 1


def test_labels_outside_the_image_are_no_labels(project: Path):
    replace(project, 3, 1, "2000.5")
    labels = read(project)
    assert labels.outside == 1 and pd.isna(labels.points["x"].iloc[0])


def test_folders_that_video_sets_does_not_name_are_read_and_drawn_ones_are_not(project: Path):
    shutil.copytree(project / FOLDER, project / "labeled-data" / "another")
    shutil.copytree(project / FOLDER, project / "labeled-data" / "video1_labeled")
    shutil.copytree(project / FOLDER, project / "labeled-data" / ".ipynb_checkpoints")
    (project / "labeled-data" / "not_labelled_yet").mkdir()
    assert read(project).folders() == ["another", "video1"]


def test_a_table_of_another_scorer_is_taken_when_it_is_the_only_one(project: Path):
    table = project / TABLE
    other = table.rename(table.with_name("CollectedData_somebody.csv"))
    assert len(read(project).images) == 3
    shutil.copy(other, other.with_name("CollectedData_else.csv"))
    with pytest.raises(PlatformError, match=r"CollectedData_else.csv, CollectedData_somebody.csv"):
        read(project)
    shutil.copy(other, table)
    assert len(read(project).images) == 3


def refused(project: Path, *parts: str) -> None:
    with pytest.raises(PlatformError) as error:
        read(project)
    for part in parts:
        assert part in str(error.value)


def test_missing_image(project: Path):
    (project / FOLDER / "img001.png").unlink()
    refused(project, str(project / FOLDER / "img001.png"), "is missing", "Put the image back")


def test_image_that_is_no_image(project: Path):
    (project / FOLDER / "img001.png").write_bytes(b"not a picture")
    refused(project, "img001.png", "not an image")


def test_unknown_body_part(project: Path):
    rewrite(project, lambda rows: [[cell.replace("tail", "whisker") for cell in row] for row in rows])
    refused(project, str(project / TABLE), "whisker", "config.yaml")


@pytest.mark.parametrize("cell", ["left", "inf"])
def test_cell_that_is_no_number(project: Path, cell: str):
    table = replace(project, 4, 2, cell)
    refused(project, str(table), repr(cell), "img001.png")


def test_image_labelled_twice_and_differently(project: Path):
    table = rewrite(project, lambda rows: [*rows, [rows[3][0], "1.0", "2.0", "3.0", "4.0"]])
    refused(project, str(table), "img000.png twice")


def test_only_hdf5(project: Path):
    table = (project / TABLE).rename((project / TABLE).with_suffix(".h5"))
    refused(project, table.name, "pickles", "pandas.read_hdf")


def test_table_of_several_animals(project: Path):
    rewrite(project, lambda rows: [rows[0], ["individuals", "a", "a", "a", "a"], *rows[1:]])
    refused(project, "multi-animal")


def test_table_that_is_none(project: Path):
    (project / TABLE).write_text("x,y\n1,2\n")
    refused(project, "is not a label table")


@pytest.mark.parametrize("line", [1, 2])
def test_header_lines_of_different_length(project: Path, line: int):
    table = rewrite(project, lambda rows: [row[:-1] if number == line else row for number, row in enumerate(rows)])
    with pytest.raises(PlatformError, match=r"has \d columns in its line `bodyparts` and \d in its line `coords`") as e:
        read(project)
    assert str(table) in e.value.problem


def test_empty_columns_at_the_end_change_nothing(project: Path):
    before = read(project)
    rewrite(project, lambda rows: [[*row, ""] if number != 2 else row for number, row in enumerate(rows)])
    pd.testing.assert_frame_equal(read(project).points, before.points)


def test_nothing_labelled(project: Path):
    shutil.rmtree(project / "labeled-data")
    refused(project, "no labelled frame", "napari")
