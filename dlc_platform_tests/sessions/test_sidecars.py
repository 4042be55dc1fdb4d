"""What a lab's own tables say of its sessions, in every state in which such tables are found."""

import os
from pathlib import Path

import pytest
from sqlalchemy import Engine

from dlc_platform.catalog.sessions import current_files, detail_table
from dlc_platform.sessions.recordings import scan
from dlc_platform.sessions.registration import register, reread_details
from dlc_platform.sessions.sidecars import Details, Sidecars
from dlc_platform.settings.layout import Layout
from dlc_platform_tests.sessions.test_recordings import place
from dlc_platform_tests.sessions.test_registration import write_video


def details(
    root: Path, key: str = "sub-1_ses-1", layout: Layout | None = None, roots: list[Path] | None = None
) -> Details:
    found = scan([root], layout or Layout()).sessions
    (session,) = (session for session in found if session.key == key)
    videos = [file.path for recording in session.recordings for file in recording.files]
    return Sidecars(roots or [root]).details(session.folder, session.subject, session.name, videos)


def values(said: dict | None) -> dict[str, str]:
    return {} if said is None else said["values"]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return place(tmp_path / "raw", "sub-1/ses-1/a.mp4", "sub-1/ses-2/a.mp4", "sub-2_id-x/ses-1/b.mp4")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("subjects.csv", "subject,sex,note\n1,F,\n2,M,old\n"),
        ("Subjects.CSV", "\ufeffSubject;Sex\n1;F\n2;M\n"),
        ("subjects.tsv", "subject_id,sex\nsub-1,F\nsub-2,M\n"),
        ("participants.tsv", "participant_id\tsex\nsub-1\tF\n\nsub-2\tM\r\n"),
        ("participants.csv", "participant_id | sex\nsub-1 | F\nsub-2 | M\n"),
    ],
)
def test_subjects(raw: Path, name: str, text: str) -> None:
    (raw / name).write_text(text, encoding="utf-8")
    said = details(raw).subject
    assert {column.lower(): value for column, value in values(said).items() if column.lower() == "sex"} == {"sex": "F"}
    assert said is not None and set(said["sources"].values()) == {str(raw / name)}
    assert details(raw).session is None and details(raw).problems == ()
    assert "M" in values(details(raw, "sub-2_ses-1").subject).values()


def test_a_value_stays_as_it_is_written(raw: Path) -> None:
    (raw / "participants.tsv").write_text('participant_id\tweight\tborn\tn\tnote\nsub-1\t020.50\t1/2/24\tn/a\t"a\tb"\n')
    assert values(details(raw).subject) == {
        "participant_id": "sub-1",
        "weight": "020.50",
        "born": "1/2/24",
        "n": "n/a",
        "note": "a\tb",
    }


@pytest.mark.parametrize(
    ("where", "text"),
    [
        ("sessions.csv", "subject,session,weather\n1,1,rain\n1,2,sun\n2,1,snow\n"),
        ("sessions.tsv", "participant_id\tsession_id\tweather\nsub-1\tses-1\train\nsub-1\tses-2\tsun\n"),
        ("sub-1/sub-1_sessions.tsv", "session_id\tweather\nses-1\train\nses-2\tsun\n"),
        ("sub-1/sessions.csv", "session,weather\n1,rain\n2,sun\n"),
        ("sessions.csv", "subject,session_dir,weather\n1,sub-1/ses-1/,rain\n1,sub-1\\ses-2,sun\n"),
    ],
)
def test_sessions(raw: Path, where: str, text: str) -> None:
    (raw / where).write_text(text)
    weather = {key: values(details(raw, key).session).get("weather") for key in ("sub-1_ses-1", "sub-1_ses-2")}
    assert weather == {"sub-1_ses-1": "rain", "sub-1_ses-2": "sun"}
    assert values(details(raw, "sub-2_ses-1").session).get("weather") in (None, "snow")
    assert details(raw).subject is None and details(raw).problems == ()


def test_a_folder_may_say_more_of_its_subject_than_its_name(raw: Path) -> None:
    (raw / "sub-2_id-x" / "sessions.csv").write_text("session,weather\nses-1,fog\n")
    assert values(details(raw, "sub-2_ses-1").session) == {"session": "ses-1", "weather": "fog"}


def test_a_table_of_sessions_without_subjects_belongs_to_nobody(raw: Path) -> None:
    (raw / "sessions.csv").write_text("session,weather\n1,rain\n")
    assert details(raw).session is None


def test_the_nearer_table_has_the_last_word(raw: Path, tmp_path: Path) -> None:
    other = place(tmp_path / "other", "notes.txt")
    (other / "subjects.csv").write_text("subject,sex,cage\n1,F,7\n")
    (raw / "subjects.csv").write_text("subject,sex\n1,M\n")
    said = details(raw, roots=[raw, other]).subject
    assert said is not None and said["values"] == {"subject": "1", "sex": "M", "cage": "7"}
    assert said["sources"]["cage"] == str(other / "subjects.csv") and said["sources"]["sex"] == str(
        raw / "subjects.csv"
    )


def test_the_tables_of_element_deeplabcut(tmp_path: Path) -> None:
    place(tmp_path, "subject6/session1/m3v1mp4.mp4")
    (tmp_path / "subjects.csv").write_text(
        "subject,sex,subject_birth_date,subject_description\nsubject6,M,2020-01-03,hneih_E105\n"
    )
    (tmp_path / "sessions.csv").write_text("subject,session_dir,session_note\nsubject6,subject6/session1,quiet\n")
    said = details(tmp_path, "sub-subject6_ses-session1", Layout.model_validate({"preset": "element"}))
    assert values(said.subject)["subject_birth_date"] == "2020-01-03"
    assert values(said.session)["session_note"] == "quiet"


def test_a_json_beside_a_video(raw: Path) -> None:
    (raw / "sub-1/ses-1/a.json").write_text(
        '{"Rate": 30.10, "n": 007e2, "On": true, "Lens": {"f": 2}, "x": null, "z": "a\\u0000\\ud800"}'.replace(
            "007e2", "7e2"
        )
    )
    said = details(raw)
    assert said.session is not None and said.session["videos"] == {
        "a.mp4": {
            "values": {"Rate": "30.10", "n": "7e2", "On": "true", "Lens": '{"f": "2"}', "z": "a?"},
            "source": str(raw / "sub-1/ses-1/a.json"),
        }
    }


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("subjects.csv", "subject,sex\n1,é\n".encode("latin-1"), "not UTF-8 (line 2)"),
        ("subjects.csv", b"PK\x03\x04\x00\x00", "not a text file"),
        ("subjects.csv", b"", "empty"),
        ("subjects.csv", b"\n \n", "empty"),
        ("subjects.csv", b"name,sex\n1,F\n", "no column participant_id, subject or subject_id"),
        ("sessions.csv", b"subject,weather\n1,rain\n", "no column session_id, session or session_dir"),
        ("subjects.csv", b"subject,sex\n1,F,G\n", "line 2 has more fields"),
        ("subjects.csv", b"subject,sex,sex\n1,F,M\n", "two columns sex"),
        ("subjects.csv", b"subject,sex\n1,F\n1,M\n", "lines 2 and 3 are of one subject"),
        ("subjects.csv", b'subject,note\n1,"' + b"x" * 200_000 + b'"\n', "not a table"),
        ("subjects.csv", b",".join([b"subject"] * 300), "more than 256 columns"),
        ("sub-1/ses-1/a.json", b"{", "not JSON"),
        ("sub-1/ses-1/a.json", b"\xff\xfe", "not JSON"),
        ("sub-1/ses-1/a.json", b"[" * 60_000, "not JSON"),
        ("sub-1/ses-1/a.json", b"[1]", "no JSON object"),
        ("sub-1/ses-1/a.json", b" " * 100_000, "larger than 64 kB"),
    ],
)
def test_what_is_wrong_with_a_file_is_named_and_stops_nothing(raw: Path, name: str, content: bytes, words: str) -> None:
    (raw / name).write_bytes(content)
    (raw / "participants.tsv").write_text("participant_id\tcage\nsub-1\t7\n")
    said = details(raw)
    assert values(said.subject)["cage"] == "7"
    ((path, reason),) = ((problem.path, problem.reason) for problem in said.problems)
    assert path == raw / name and words in reason


def test_a_table_that_is_no_file_is_never_opened(raw: Path) -> None:
    os.mkfifo(raw / "subjects.csv")
    os.mkfifo(raw / "sub-1/ses-1/a.json")
    (raw / "participants.tsv").mkdir()
    (raw / "sessions.csv").symlink_to("nowhere")
    assert sorted(problem.reason.split(";")[0] for problem in details(raw).problems) == [
        "it cannot be read: No such file or directory",
        "it is not a file",
        "it is not a file",
    ]


def test_utf_16_of_a_spreadsheet_is_read(raw: Path) -> None:
    (raw / "subjects.csv").write_bytes("subject\tsex\n1\té\n".encode("utf-16"))
    assert values(details(raw).subject)["sex"] == "é"


def test_subjects_without_sessions_are_named(raw: Path) -> None:
    (raw / "participants.tsv").write_text("participant_id\nsub-1\nsub-8\nsub-9\n")
    (problem,) = Sidecars([raw]).strangers({"1", "2"})
    assert "it names 8, 9, who have no session" in problem.reason


def test_the_state_changes_when_a_table_does(raw: Path) -> None:
    folders = [session.folder for session in scan([raw], Layout()).sessions]

    def state() -> str:
        return Sidecars([raw]).state(folders)

    seen = [state()]
    for file in (raw / "subjects.csv", raw / "sub-1" / "sessions.csv"):
        file.write_text("subject\n1\n")
        seen.append(state())
        assert state() == seen[-1]
        file.write_text("subject\n1\n2\n")
        seen.append(state())
    (raw / "sub-1/ses-1/notes.txt").write_text("x")
    assert len(set(seen)) == 5 and state() == seen[-1]


def test_a_name_that_leaves_no_room_for_a_sidecar_has_none(tmp_path: Path) -> None:
    video = write_video(tmp_path / "raw/sub-1/ses-1" / f"{'n' * 251}.mp4", 3)
    details = Sidecars([tmp_path / "raw"]).details(video.parent, "1", "1", [video])
    assert (details.session, details.problems, details.unread) == (None, (), frozenset())


def test_details_come_with_registration_and_follow_their_tables(engine: Engine, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    video = write_video(raw / "sub-1/ses-1/cam-top.mp4", 3)
    (raw / "subjects.csv").write_text("subject,sex\n1,F\n")
    (raw / "sub-1/sessions.csv").write_text("session,weather\n1,rain\n")
    video.with_suffix(".json").write_text('{"Lens": "wide"}')
    (session,) = scan([raw], Layout()).sessions
    register(engine, session, Sidecars([raw]))

    def said() -> dict[tuple[str, str], str]:
        table = detail_table(engine, "sub-1_ses-1")
        return dict(zip(zip(table["of"], table["name"], strict=True), table["value"], strict=True))

    assert said() == {
        ("subject", "subject"): "1",
        ("subject", "sex"): "F",
        ("session", "session"): "1",
        ("session", "weather"): "rain",
        ("cam-top.mp4", "Lens"): "wide",
    }
    (row,) = current_files(engine, "sub-1_ses-1")
    video.unlink()
    (raw / "subjects.csv").write_text("subject,sex\n1,M\n")
    (raw / "sub-1/sessions.csv").unlink()
    assert reread_details(engine, Sidecars([raw])) == 2
    assert said() == {("subject", "subject"): "1", ("subject", "sex"): "M", ("cam-top.mp4", "Lens"): "wide"}
    assert reread_details(engine, Sidecars([raw])) == 0
    assert current_files(engine, "sub-1_ses-1")[0].id == row.id


def table_of(engine: Engine) -> dict[str, str]:
    table = detail_table(engine, "sub-1_ses-1")
    return dict(zip(table["name"], table["value"], strict=True))


@pytest.fixture
def told(engine: Engine, tmp_path: Path) -> Path:
    """A raw root with a registered session of which two tables and a JSON file speak."""
    raw = tmp_path / "raw"
    write_video(raw / "sub-1/ses-1/cam-top.mp4", 3).with_suffix(".json").write_text('{"Lens": "wide"}')
    (raw / "subjects.csv").write_text("subject,sex\n1,F\n")
    (raw / "sub-1/sessions.csv").write_text("session,weather\n1,rain\n")
    (session,) = scan([raw], Layout()).sessions
    register(engine, session, Sidecars([raw]))
    return raw


@pytest.mark.parametrize("is_there", [True, False])
def test_a_root_that_is_not_mounted_changes_no_details(engine: Engine, told: Path, is_there: bool) -> None:
    before = table_of(engine)
    assert len(before) == 5
    told.rename(told.with_name("elsewhere"))
    if is_there:
        told.mkdir()
    assert reread_details(engine, Sidecars([told])) == 0
    assert table_of(engine) == before


def test_a_root_that_is_not_to_be_asked_changes_no_details(engine: Engine, told: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "subjects.csv").write_text("subject,strain\n1,wild\n")
    (told / "subjects.csv").write_text("subject,sex\n1,M\n")
    assert reread_details(engine, Sidecars([other, told], [told])) == 0
    assert reread_details(engine, Sidecars([other, told])) == 1
    assert (table_of(engine)["sex"], table_of(engine)["strain"]) == ("M", "wild")
    (told / "subjects.csv").unlink()
    (told / "sub-1/sessions.csv").write_text("session,weather\n1,snow\n")
    assert reread_details(engine, Sidecars([other, told], [other])) == 2
    assert table_of(engine) == {"strain": "wild", "session": "1", "weather": "snow", "Lens": "wide"}


def test_a_folder_that_is_gone_keeps_what_was_said(engine: Engine, told: Path) -> None:
    write_video(told / "sub-2/ses-1/cam-top.mp4", 3)
    (told / "subjects.csv").write_text("subject,sex\n1,M\n")
    before = table_of(engine)
    (told / "sub-1").rename(told.parent / "sub-1")
    assert reread_details(engine, Sidecars([told])) == 0
    (told.parent / "sub-1").rename(told / "sub-1")
    assert reread_details(engine, Sidecars([told])) == 1
    assert table_of(engine) == before | {"sex": "M"}


@pytest.mark.parametrize("content", [b"", b"session,weather\n1,\xfcber\n", b"nothing,known\n1,2\n"])
def test_a_table_that_cannot_be_used_keeps_what_it_said(engine: Engine, told: Path, content: bytes) -> None:
    before = table_of(engine)
    (told / "sub-1/sessions.csv").write_bytes(content)
    (told / "sub-1/ses-1/cam-top.json").write_text('{"Lens"')
    (told / "subjects.csv").write_text("subject,sex\n1,M\n")
    assert reread_details(engine, Sidecars([told])) == 1
    assert table_of(engine) == before | {"sex": "M"}
    (session,) = scan([told], Layout()).sessions
    register(engine, session, Sidecars([told]))
    assert table_of(engine) == before | {"sex": "M"}


def test_registering_without_sidecars_leaves_the_details(engine: Engine, told: Path) -> None:
    before = table_of(engine)
    (session,) = scan([told], Layout()).sessions
    register(engine, session)
    assert table_of(engine) == before


def test_each_session_of_a_large_table_gets_its_own_row(tmp_path: Path) -> None:
    """By folder, by subject and name, and by the name in a subject's own table; the first row counts."""
    raw = tmp_path / "raw"
    (raw / "sub-1/ses-1").mkdir(parents=True)
    number = range(300)
    by_folder = [f"sub-{i},ses-1,sub-{i}/ses-1/,{i}" for i in number]
    by_name = [f"{i},1,,named {i}" for i in number]
    (raw / "sessions.csv").write_text("\n".join(["subject,session,session_dir,a", *by_folder, *by_name]))
    (raw / "sub-1/sessions.csv").write_text("\n".join(["session,b", *(f"ses-{i},{i}" for i in number)]))
    sidecars = Sidecars([raw])
    for subject in ("sub-1", "sub-299"):
        said = sidecars.details(raw / subject / "ses-1", subject, "ses-1", [])
        assert values(said.session)["a"] == subject.removeprefix("sub-")
        assert values(said.session).get("b") == ("1" if subject == "sub-1" else None)
    elsewhere = sidecars.details(raw / "sub-7" / "moved", "sub-7", "ses-1", [])
    assert values(elsewhere.session)["a"] == "named 7" and not elsewhere.problems
