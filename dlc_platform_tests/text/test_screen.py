"""Tables and texts on a screen of 80 columns."""

import itertools

import pytest

from dlc_platform.text.screen import details, fitting, folded, table, wrapped
from dlc_platform.text.words import counted, lasting, listed, said_of, sized

PATH = "/raw/My Videos of the whole year/" + "a very long folder/" * 4 + "top.mp4"


def test_a_table_that_fits_is_one_line_for_each_row():
    rows = [["sub-1_ses-1", "60", "pass"], ["sub-12_ses-1", "1500", ""]]
    assert list(table(["session", "frames", "verdict"], rows, 80)) == [
        "session       frames  verdict",
        "sub-1_ses-1       60  pass",
        "sub-12_ses-1    1500",
    ]


def test_what_does_not_fit_stands_below_its_row_with_its_name():
    columns = ["session", "file", "reason", "frames"]
    rows = [["sub-1_ses-1", PATH, f"{PATH} is dark. " + "Switch the lamp on " * 6, "60"], ["sub-2_ses-1", "", "", "7"]]
    lines = list(table(columns, rows, 80, whole=["file"]))
    assert lines[:3] == ["session      frames", "sub-1_ses-1      60", f"    file: {PATH}"]
    assert lines[3] == "    reason:" and lines[4].startswith(f"        {PATH}")
    assert lines[-1] == "sub-2_ses-1       7"
    assert all(len(line) <= 80 for line in lines if PATH not in line)


def test_short_values_below_a_row_share_a_line():
    rows = [["s" * 75, "r" * 40, "1" * 20, "2" * 30]]
    assert list(table(["session", "recording", "b", "c"], rows, 80)) == [
        "session",
        "s" * 75,
        f"    recording: {'r' * 40}",
        f"    b: {'1' * 20}    c: {'2' * 30}",
    ]


def test_a_column_without_a_value_is_left_out():
    assert list(table(["a", "b", "c"], [["x", "", "y"]], 80)) == ["a  c", "x  y"]
    assert list(table(["a", "b"], [["", "y"]], 80)) == ["a  b", "   y"]


def test_a_narrow_screen_does_without_what_a_reader_can_spare():
    columns = ["session", "frames", "size", "model", "reason"]
    rows = [["sub-1_ses-1", "60", "160x160", "0123456789ab", ""], ["sub-2_ses-1", "7", "160x160", "", "r" * 90]]
    spare = [1, 2]
    assert fitting(columns, rows, 80, spare) == ([0, 1, 2, 3, 4], [])
    assert fitting(columns, rows, 35, spare) == ([0, 1, 3, 4], [2])
    assert fitting(columns, rows, 35, [2, 1]) == ([0, 2, 3, 4], [1])
    # What is needed and does not fit stands below its row, and leaves no less room for the others.
    assert fitting(columns, rows, 30, spare) == ([0, 3, 4], [1, 2])
    # A column without any value is neither shown nor said to be left out.
    assert fitting(columns, [[*row[:2], "", *row[3:]] for row in rows], 30, spare) == ([0, 3, 4], [1])


def test_many_values_of_one_thing_stand_one_below_the_other():
    pairs = [("model", "0123456789ab"), ("gpu", ""), ("path", PATH), ("reason", "it is dark, " * 6 + "and `run HOME`")]
    assert list(details("cam-top", pairs, 60, whole=["path"])) == [
        "cam-top",
        "    model   0123456789ab",
        f"    path    {PATH}",
        "    reason  it is dark, it is dark, it is dark, it is dark,",
        "            it is dark, it is dark, and `run HOME`",
    ]


def test_values_with_several_lines_stand_below_their_key():
    pairs = [("model", "0123456789ab"), ("parameters", "epochs: 3\nscale: [1, 2]\n"), ("gpu", "none")]
    assert list(details("cam-top", pairs, 60)) == [
        "cam-top",
        "    model  0123456789ab",
        "    parameters:",
        "        epochs: 3",
        "        scale: [1, 2]",
        "    gpu    none",
    ]


def test_heads_are_folded_where_a_table_does_not_fit():
    columns, rows = ["session", "fraction_confident", "rmse_px"], [["sub-1_ses-1", "91.7%", "2.7"]]
    assert folded(columns, rows, 80) == columns
    assert folded(columns, rows, 30) == ["session", "fraction_\nconfident", "rmse_px"]
    assert list(table(folded(columns, rows, 30), rows, 30)) == [
        "             fraction_",
        "session      confident",
        "sub-1_ses-1      91.7%",
        "    rmse_px: 2.7",
    ]
    # A value that is as long as the head gains nothing.
    assert folded(columns, [["s", "0123456789abcdefgh", "1"]], 10)[1] == "fraction_confident"


@pytest.mark.parametrize(
    "path", ["/raw/My Videos/of the year/top.mp4", "/raw/a b/", "/raw/cam top.avi", "'/raw/my mouse/ses 1'/x"]
)
def test_a_path_with_spaces_is_not_broken(path: str):
    (line,) = [line for line in wrapped(f"the video {path} cannot be read. Mend it", 24) if "/raw" in line]
    assert path in line


def test_wide_letters_and_single_accents_keep_columns_straight():
    lines = list(table(["name", "n"], [["マウス", "a"], ["Mu\N{COMBINING DIAERESIS}ller", "b"], ["plain", "c"]], 80))
    assert lines[1:] == ["マウス  a", "Mu\N{COMBINING DIAERESIS}ller  b", "plain   c"]


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_no_value_is_ever_cut(width: int):
    columns = [f"column_{number}" for number in range(8)]
    rows = [["/" + letter * length for length in range(1, 90, 12)] for letter in "ab"]
    text = "\n".join(table(columns, rows, width))
    assert all(value in text for value in itertools.chain(*rows))


def test_a_text_is_never_broken_within_a_command_or_a_path():
    command = "`dlc-platform sessions release HOME sub-1_ses-1 --stage videos --reason WHY --by somebody`"
    lines = wrapped(f"{PATH} is dark; release it with {command} or not", 80, 4, 8, [PATH])
    assert lines == [f"    {PATH}", "        is dark; release it with", f"        {command}", "        or not"]
    assert wrapped("a line\nbreak", 80) == ["a line\\nbreak"]


def test_one_thing_is_no_things():
    assert [counted(number, "session") for number in (0, 1, 2)] == ["0 sessions", "1 session", "2 sessions"]
    assert counted(1, "session is", "sessions are") == "1 session is"
    assert counted(3, "session is", "sessions are") == "3 sessions are"


def test_a_time_has_the_unit_that_suits_it():
    # At the end of each unit's range nothing turns into 1e+02.
    assert [lasting(seconds / 3600) for seconds in (9.96, 99.4, 99.7, 5971)] == ["10 s", "99 s", "2 min", "1.66 h"]
    assert [lasting(999.6), lasting(1234)] == ["1,000 h", "1,234 h"]
    assert [sized(size) for size in (999_400, 999_600, 9.996e8, 9.996e11)] == ["999 kB", "1 MB", "1 GB", "1,000 GB"]
    assert [lasting(hours) for hours in (0, 0.0002, 0.01, 0.2, 2, 170.2)] == [
        *("0 s", "0.72 s", "36 s", "12 min", "2 h", "170 h"),
    ]


def test_a_size_has_the_unit_that_suits_it():
    assert [sized(size) for size in (0, 512, 3.21e6, 72e6, 1.5e9, 2.4e12)] == [
        *("0 kB", "0.512 kB", "3.21 MB", "72 MB", "1.5 GB", "2,400 GB"),
    ]


def test_of_many_names_the_first_are_listed():
    assert listed(["a", "b"]) == "a, b" and listed([]) == ""
    assert listed(list("abcd"), most=2) == "a, b and 2 more"


def test_a_figure_stays_with_its_unit():
    assert wrapped("it took 12 min and 3 GB of 14 px", 10) == ["it took", "12 min and", "3 GB of", "14 px"]


def test_a_sentence_names_what_it_is_about_once():
    assert said_of("/x/m.mkv", "/x/m.mkv is truncated") == "/x/m.mkv is truncated"
    assert said_of("/x/m.mkv", "it is truncated") == "/x/m.mkv: it is truncated"
    assert said_of("/x/m.mkv", "/y/x/m.mkv is its copy") == "/x/m.mkv: /y/x/m.mkv is its copy"
    assert said_of("sub-1", "sub-10 is a copy of it") == "sub-1: sub-10 is a copy of it"
