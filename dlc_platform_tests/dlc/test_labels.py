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
    assert list(labels.images.columns) == [
        *("folder", "file", "path", "sha256", "pixels_sha256", "width", "height", "is_turned")
    ]
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


def test_folders_missing_in_video_sets_are_read_if_not_drawn(project: Path):
    another = Path(shutil.copytree(project / FOLDER, project / "labeled-data" / "another"))
    table = another / Path(TABLE).name
    table.write_text(table.read_text().replace("video1", "another"))
    shutil.copytree(project / FOLDER, project / "labeled-data" / "video1_labeled")
    shutil.copytree(project / FOLDER, project / "labeled-data" / ".ipynb_checkpoints")
    (project / "labeled-data" / "not_labelled_yet").mkdir()
    labels = read(project)
    assert labels.folders() == ["another", "video1"]
    assert "the labels of another are used, though `video_sets`" in labels.remarks[0].said


def test_the_only_table_is_taken_even_by_another_scorer(project: Path):
    table = project / TABLE
    other = table.rename(table.with_name("CollectedData_somebody.csv"))
    labels = read(project)
    assert len(labels.images) == 3 and "is by somebody and not by tester" in labels.remarks[0].said
    shutil.copy(other, other.with_name("CollectedData_else.csv"))
    with pytest.raises(PlatformError, match=r"the tables of else, somebody, and none of tester"):
        read(project)
    shutil.copy(other, table)
    labels = read(project)
    assert len(labels.images) == 3 and "that of tester, the scorer of the project, is used" in labels.remarks[0].said


def refused(project: Path, *parts: str) -> None:
    with pytest.raises(PlatformError) as error:
        read(project)
    for part in parts:
        assert part in str(error.value)


def test_missing_image(project: Path):
    (project / FOLDER / "img001.png").unlink()
    refused(project, str(project / FOLDER / "img001.png"), "is missing", "line 5", "Put the image back")


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
    refused(project, str(table), "img000.png twice", "line 4", "line 7")


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


def test_a_header_line_of_scorers_that_is_too_short(project: Path):
    rewrite(project, lambda rows: [rows[0][:-1], *rows[1:]])
    refused(project, "3 in its line `scorer`")


def test_empty_columns_at_the_end_change_nothing(project: Path):
    before = read(project)
    rewrite(project, lambda rows: [[*row, ""] if number != 2 else row for number, row in enumerate(rows)])
    pd.testing.assert_frame_equal(read(project).points, before.points)


def test_another_scorer_in_a_table_of_the_project_is_reported(project: Path):
    before = read(project)
    assert not before.remarks
    table = rewrite(project, lambda rows: [["scorer", *["bea"] * (len(rows[0]) - 1)], *rows[1:]])
    labels = read(project)
    pd.testing.assert_frame_equal(labels.points, before.points)
    (remark,) = labels.remarks
    assert remark.said.startswith(f"{table} names bea as scorer in its first line and not tester")
    assert "DeepLabCut leaves it out" in remark.said


def test_nothing_labelled(project: Path):
    shutil.rmtree(project / "labeled-data")
    refused(project, "no labelled frame", "napari")


def test_rows_of_deleted_images_without_a_label_are_counted(project: Path):
    rewrite(project, lambda rows: [*rows, [f"{FOLDER}/img009.png", "", "", "", ""]])
    labels = read(project)
    assert len(labels.images) == 3 and labels.unlabelled == 1


def test_of_several_scorers_that_of_the_project_counts(project: Path):
    before = read(project)

    def add(rows: list[list[str]]) -> list[list[str]]:
        more = [["bea"] * 4, rows[1][1:], rows[2][1:], *[["1.5", "2.5", "3.5", ""]] * 3]
        more[3:] = [["1.5", "2.5", "3.5", "4.5"]] * 3
        return [[*row, *extra] for row, extra in zip(rows, more, strict=True)]

    table = rewrite(project, add)
    labels = read(project)
    pd.testing.assert_frame_equal(labels.points, before.points)
    assert "tester, bea" in labels.remarks[0].said and "6 labels of the others are not" in labels.remarks[0].said
    table.write_text(table.read_text().replace("tester", "carl"))
    refused(project, str(table), "carl, bea", "tester")


def again(rows: list[list[str]], cells: list[str]) -> list[list[str]]:
    more = [["tester"] * 2, ["nose"] * 2, ["x", "y"], *[cells] * 3]
    return [[*row, *extra] for row, extra in zip(rows, more, strict=True)]


def test_a_body_part_twice_is_one_where_both_say_the_same(project: Path):
    before = read(project)
    rewrite(project, lambda rows: again(rows, ["", ""]))
    labels = read(project)
    pd.testing.assert_frame_equal(labels.points, before.points)
    assert "nose 2 times" in labels.remarks[0].said


def test_a_body_part_twice_and_differently_is_refused(project: Path):
    table = rewrite(project, lambda rows: again(rows, ["1.0", "2.0"]))
    refused(project, str(table), "nose more than once in line 4", "(1, 2)")


def test_columns_in_another_order_are_read_by_their_names(project: Path):
    before = read(project)
    rewrite(project, lambda rows: [[row[0], row[4], row[2], row[3], row[1]] for row in rows])
    pd.testing.assert_frame_equal(read(project).points, before.points)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda rows: [row[:-1] for row in rows],
            "2 columns x and 1 y of tail|1 column x and 0 y of tail",
        ),
        (
            lambda rows: [rows[0], rows[1], ["coords", "x", "y", "x", "z"], *rows[3:]],
            "'z' in its line `coords` for tail",
        ),
        (
            lambda rows: [*rows[:4], rows[4][:-1], rows[5]],
            "4 cells in line 5, and its header has 5: the line is cut off",
        ),
        (lambda rows: [*rows[:4], [*rows[4], "9"], rows[5]], "6 cells in line 5, and its header has 5"),
        (lambda rows: [*rows[:4], ["", *rows[4][1:]], rows[5]], "names no image in line 5"),
        (
            lambda rows: [*rows[:4], [rows[4][0], "1,5", *rows[4][2:]], rows[5]],
            "holds '1,5' in line 5, for .*img001.png",
        ),
        (lambda rows: [*rows[:4], [rows[4][0], "1_0", *rows[4][2:]], rows[5]], "holds '1_0' in line 5"),
    ],
)
def test_a_table_that_contradicts_its_header_is_refused_by_line(
    project: Path, change: Callable[[list[list[str]]], list[list[str]]], says: str
):
    table = rewrite(project, change)
    with pytest.raises(PlatformError, match=says) as error:
        read(project)
    assert str(table) in error.value.problem


@pytest.mark.parametrize("nothing", ["", "nan", "NaN", "NA", "null", " "])
def test_what_pandas_takes_for_empty_is_no_label(project: Path, nothing: str):
    rewrite(project, lambda rows: [*rows[:3], [rows[3][0], nothing, nothing, *rows[3][3:]], *rows[4:]])
    points = read(project).points
    assert points["x"].isna().tolist() == [True] + [False] * 5


def test_half_a_label_is_none_and_is_said(project: Path):
    replace(project, 4, 4, "")
    labels = read(project)
    assert labels.points["x"].isna().tolist() == [False, False, False, True, False, False]
    assert "only one of x and y 1 times, such as for tail in line 5" in labels.remarks[0].said


def test_a_table_that_may_be_cut_in_its_last_number_is_said(project: Path):
    table = project / TABLE
    assert not read(project).remarks
    whole = table.read_text().rstrip("\r\n")
    table.write_text(whole[:-1])
    (remark,) = read(project).remarks
    assert "ends without the end of a line" in remark.said and str(table) in remark.said


def test_labels_at_negative_places_count_as_outside(project: Path):
    replace(project, 3, 1, "-1.5")
    assert read(project).outside == 1


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_encodings_that_programs_save_tables_in(project: Path, encoding: str):
    before = read(project)
    folder = (project / FOLDER).rename(project / "labeled-data" / "été")
    table = folder / Path(TABLE).name
    table.write_text(table.read_text().replace("video1", "été"), encoding=encoding)
    labels = read(project)
    assert labels.folders() == ["été"]
    pd.testing.assert_series_equal(labels.points["x"], before.points["x"])


def test_a_table_of_a_spreadsheet_program_is_refused(project: Path):
    table = project / TABLE
    table.write_text(table.read_text().replace(".", ",").replace(",png", ".png").replace("x,y", "x;y"))
    text = table.read_text()
    table.write_text(text.replace("scorer,", "scorer;"))
    refused(project, str(table), "semicolons")


def test_a_table_with_zero_bytes_is_refused(project: Path):
    table = project / TABLE
    table.write_bytes(table.read_bytes() + bytes(64))
    refused(project, str(table), "zero bytes")


def test_unnamed_index_columns_of_pandas_are_no_body_parts(project: Path):
    before = read(project)

    def unnamed(rows: list[list[str]]) -> list[list[str]]:
        rows = three_index_columns(rows)
        return [
            [row[0], f"Unnamed: 1_level_{i}", f"Unnamed: 2_level_{i}", *row[3:]] if i < 3 else row
            for i, row in enumerate(rows)
        ]

    rewrite(project, unnamed)
    pd.testing.assert_frame_equal(read(project).points, before.points)


def test_body_parts_that_are_numbers(project: Path):
    config = project / "config.yaml"
    config.write_text(config.read_text().replace("- nose", "- 1").replace("- tail", "- 2"))
    rewrite(project, lambda rows: [[cell.replace("nose", "1.0").replace("tail", "2") for cell in row] for row in rows])
    labels = read(project)
    assert labels.points["bodypart"].tolist() == ["1", "2"] * 3 and labels.points["x"].notna().all()


@pytest.fixture
def two(project: Path, make_project: Callable[..., Path], tmp_path: Path) -> Path:
    """`project` with a second folder, whose images have the same names and are others."""
    second = make_project(tmp_path / "second", 3, seed=1, folder="video2")
    shutil.copytree(second / "labeled-data" / "video2", project / "labeled-data" / "video2")
    return project


def test_labels_of_a_folder_are_not_laid_on_images_of_another(two: Path):
    table = Path(shutil.copy(two / TABLE, two / "labeled-data" / "video2"))
    refused(two, str(table), "are of images in video1, which is another folder")


def test_rows_of_several_folders_belong_to_the_images_they_name(two: Path):
    before = read(two)
    other = two / "labeled-data" / "video2" / Path(TABLE).name
    with open(other, newline="") as file:
        more = list(csv.reader(file))[3:]
    other.unlink()
    rewrite(two, lambda rows: [*rows, *more])
    pd.testing.assert_frame_equal(read(two).points, before.points)


def test_a_folder_that_was_renamed_is_read_with_a_remark(project: Path):
    before = read(project)
    (project / FOLDER).rename(project / "labeled-data" / "mouse 1")
    labels = read(project)
    assert labels.points["x"].tolist() == before.points["x"].tolist()
    assert "video1 (now mouse 1)" in labels.remarks[0].said


def test_rows_of_a_missing_folder_beside_others_are_refused(project: Path):
    rewrite(project, lambda rows: [*rows[:-1], [rows[-1][0].replace("video1", "video9"), *rows[-1][1:]]])
    refused(project, "line 6", "the folder video9, which is not in labeled-data")


@pytest.mark.parametrize("start", ["/home/ann/p/labeled-data/Video1/", "C:\\p\\labeled-data\\video1\\", "", "VIDEO1/"])
def test_a_row_names_its_image_by_any_path_that_ends_alike(project: Path, start: str):
    before = read(project)
    rewrite(project, lambda rows: [*rows[:3], *([start + row[0].rsplit("/", 1)[1], *row[1:]] for row in rows[3:])])
    pd.testing.assert_frame_equal(read(project).points, before.points)


def test_names_with_accents_in_two_spellings_are_one_name(project: Path):
    (project / FOLDER).rename(project / "labeled-data" / "e\u0301te\u0301")
    table = project / "labeled-data" / "e\u0301te\u0301" / Path(TABLE).name
    table.write_text(table.read_text().replace("video1", "\u00e9t\u00e9").replace("img000.png", "IMG000.PNG"))
    labels = read(project)
    assert labels.images["file"].tolist() == ["img000.png", "img001.png", "img002.png"]
    assert not any("renamed" in remark.said for remark in labels.remarks)


def as_hdf(project: Path, **kwargs: str) -> tuple[Path, pd.DataFrame]:
    frame = pd.read_csv(project / TABLE, header=[0, 1, 2], index_col=0)
    file = (project / TABLE).with_suffix(".h5")
    frame.to_hdf(file, key="df_with_missing", mode="w", **kwargs)
    return file, frame


@pytest.mark.parametrize("kind", ["fixed", "table"])
def test_an_h5_alone_is_read_without_unpickling(project: Path, kind: str):
    before = read(project)
    as_hdf(project, format=kind)
    pd.testing.assert_frame_equal(read(project).points, before.points)
    (project / TABLE).unlink()
    pd.testing.assert_frame_equal(read(project).points, before.points)


def test_an_h5_of_paths_in_three_columns(project: Path):
    before = read(project)
    _, frame = as_hdf(project)
    frame.index = pd.MultiIndex.from_tuples([tuple(str(path).split("/")) for path in frame.index])
    frame.to_hdf((project / TABLE).with_suffix(".h5"), key="df_with_missing", mode="w")
    (project / TABLE).unlink()
    pd.testing.assert_frame_equal(read(project).points, before.points)


def test_csv_and_h5_that_differ_are_refused(project: Path):
    file, frame = as_hdf(project)
    replace(project, 4, 2, "11.0")
    refused(
        project, str(project / TABLE), file.name, "1 of 3 images", "video1/img001.png", "DeepLabCut uses CollectedData"
    )
    replace(project, 4, 2, str(round(float(frame.iloc[1, 1]), 1)))
    assert len(read(project).images) == 3  # rounded


def test_an_h5_with_more_labelled_rows_is_refused(project: Path):
    as_hdf(project)
    rewrite(project, lambda rows: rows[:-1])
    refused(project, "1 of 3 images", "video1/img002.png")


def test_an_h5_that_cannot_be_read_is_said(project: Path):
    file, frame = as_hdf(project)
    frame.astype(object).to_hdf(file, key="df_with_missing", mode="w")
    labels = read(project)
    assert len(labels.images) == 3 and "holds pickled objects" in labels.remarks[0].said
    (project / TABLE).unlink()
    refused(project, file.name, "holds pickled objects")


def test_no_remedy_speaks_of_removing_labels(project: Path):
    """What a person reads of a labelled image that is missing or damaged leaves the labels where they are."""
    (project / FOLDER / "img001.png").write_bytes((project / FOLDER / "img001.png").read_bytes()[:400])
    with pytest.raises(PlatformError) as error:
        read(project)
    assert "img001.png is a damaged image" in error.value.problem
    assert "its labels stay as they are" in error.value.remedy
