import subprocess
import sys
import threading

import pytest
from sqlalchemy import Engine, text

from dlc_platform.catalog.quarantine import (
    OTHER_EVIDENCE,
    Fault,
    faults_of,
    judge,
    quarantine_counts,
    quarantine_table,
    release,
)
from dlc_platform.errors import PlatformError
from dlc_platform_tests.catalog.small_lab import identity

ONE, TWO = "sub-1_ses-1", "sub-2_ses-1"
#: Judges a session fifty times, with evidence of its own, as soon as it is told to.
JUDGE = """
import os, sys
from sqlalchemy import make_url
from dlc_platform.catalog.database import open_catalog
from dlc_platform.catalog.quarantine import Fault, judge
engine = open_catalog(make_url(os.environ["CATALOGUE"]))
print("ready", flush=True)
letter = sys.stdin.readline().strip()
for _ in range(50):
    (held,) = judge(engine, "sub-1_ses-1", "videos", [Fault(f"seen by {letter}", "look", letter * 64, "/raw/top.mp4")])
    assert held.evidence == letter * 64
"""


def fault(letter: str, path: str | None = "/raw/top.mp4", reason: str = "too dark") -> Fault:
    return Fault(reason, "switch the lamp on", identity(letter), path)


def entries(engine: Engine) -> list[tuple[str, str | None]]:
    """Every entry, oldest first: its evidence and who released it."""
    with engine.connect() as connection:
        return [
            (evidence[0], by)
            for evidence, by in connection.execute(text("select evidence, released_by from dlc.quarantine order by id"))
        ]


def test_a_session_is_in_while_something_is_wrong_with_it(lab: Engine) -> None:
    assert judge(lab, ONE, "videos", [fault("a"), fault("b", None)], "run-1") == [fault("a"), fault("b", None)]
    assert faults_of(lab, ONE, "videos") == [fault("a"), fault("b", None)]
    assert faults_of(lab, ONE, "poses") == faults_of(lab, TWO, "videos") == []

    # The same again is the same entry, in other words; what is not named any more is over.
    judge(lab, ONE, "videos", [fault("a", reason="much too dark")])
    assert faults_of(lab, ONE, "videos") == [fault("a", reason="much too dark")]
    assert entries(lab) == [("a", None), ("b", OTHER_EVIDENCE)]

    # Another stage is another matter.
    judge(lab, ONE, "poses", [fault("c", None)])
    assert judge(lab, ONE, "videos", []) == []
    assert faults_of(lab, ONE, "poses") == [fault("c", None)]


def test_no_character_of_a_reason_fails_a_judgement(lab: Engine) -> None:
    hostile = fault("a", reason="the body part 'nose\0' of \udcff\ud800 " + "is long " * 2000)
    judge(lab, ONE, "labels", [hostile])
    judge(lab, ONE, "labels", [hostile])
    (held,) = faults_of(lab, ONE, "labels")
    assert held.reason.startswith("the body part 'nose' of ?? is long") and len(entries(lab)) == 1


def test_a_released_entry_stays_out_until_the_evidence_changes(lab: Engine) -> None:
    judge(lab, ONE, "videos", [fault("a"), fault("b", "/raw/side.mp4")])
    judge(lab, ONE, "quality", [fault("c", None)])
    assert release(lab, ONE, "ada", ["videos"], "it is a night recording") == 2
    assert release(lab, ONE, "ada", ["videos"]) == 0
    assert [f.evidence[0] for f in faults_of(lab, ONE, "quality")] == ["c"]

    assert judge(lab, ONE, "videos", [fault("a"), fault("b", "/raw/side.mp4")]) == []
    # The file changed, and then it was put back: the person meant that very file.
    assert judge(lab, ONE, "videos", [fault("d")]) == [fault("d")]
    assert judge(lab, ONE, "videos", [fault("a")]) == []
    assert entries(lab) == [("a", "ada"), ("b", "ada"), ("c", None), ("d", OTHER_EVIDENCE)]

    # What only other evidence ended comes back with the evidence.
    assert judge(lab, ONE, "videos", [fault("d")]) == [fault("d")]
    assert release(lab, ONE, "ada") == 2
    found = quarantine_table(lab, open_only=False)
    assert set(found["release_reason"].dropna()) == {"it is a night recording"}


def test_several_faults_of_a_file_are_one_entry_with_all_reasons(lab: Engine) -> None:
    two = [fault("a"), fault("b", reason="out of focus")]
    (held,) = judge(lab, ONE, "videos", two)
    assert held.reason == "too dark; out of focus"
    assert held.remedy == "switch the lamp on"
    assert judge(lab, ONE, "videos", reversed(two))[0].evidence == held.evidence
    # One of them is mended: that is other evidence.
    release(lab, ONE, "ada")
    assert judge(lab, ONE, "videos", two[:1]) == two[:1]


def test_two_processes_judge_a_session_that_has_no_entry_yet(lab: Engine) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", JUDGE],
            env={"CATALOGUE": lab.url.render_as_string(hide_password=False)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for letter, process in zip("ab", processes, strict=True):
        assert process.stdin is not None
        process.stdin.write(letter + "\n")
        process.stdin.flush()
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    assert len(faults_of(lab, ONE, "videos")) == 1
    found = entries(lab)
    assert {by for _, by in found[:-1]} == {OTHER_EVIDENCE}
    # Neither process was ever told what the other one had found.
    assert {letter for letter, _ in found} == {"a", "b"}


def test_a_release_waits_for_the_judgement_that_is_under_way(lab: Engine) -> None:
    judge(lab, ONE, "videos", [fault("a")])
    ended: list[int] = []
    releasing = threading.Thread(target=lambda: ended.append(release(lab, ONE, "ada")))
    with lab.begin() as judging:
        # As `judge` does before it reads the entries.
        judging.execute(text("select key from dlc.session where key = :key for no key update"), {"key": ONE})
        releasing.start()
        releasing.join(0.5)
        assert ended == []
        judging.execute(text("update dlc.quarantine set reason = 'much too dark'"))
    releasing.join()
    assert ended == [1]


@pytest.mark.parametrize("by", [OTHER_EVIDENCE, f" {OTHER_EVIDENCE}", ""])
def test_nobody_releases_in_the_name_of_other_evidence(lab: Engine, by: str) -> None:
    judge(lab, ONE, "videos", [fault("a")])
    with pytest.raises(PlatformError, match="nobody is called"):
        release(lab, ONE, by)
    assert entries(lab) == [("a", None)]


def test_the_listing_names_reason_and_remedy_the_newest_first(lab: Engine) -> None:
    judge(lab, ONE, "videos", [fault("a")], "run-1")
    judge(lab, TWO, "poses", [fault("b", None)])
    judge(lab, TWO, "videos", [fault("c"), fault("d", "/raw/side.mp4")])
    judge(lab, ONE, "videos", [])
    found = quarantine_table(lab)
    assert list(found["session"]) == [TWO] * 3
    assert list(found["stage"]) == ["videos", "videos", "poses"]
    assert found["file"].isna().sum() == 1
    assert set(found["remedy"]) == {"switch the lamp on"}
    assert len(quarantine_table(lab, open_only=False)) == 4
    assert len(quarantine_table(lab, most=2)) == 2
    counts = quarantine_counts(lab).set_index("stage")
    assert counts["sessions"].to_dict() == {"poses": 1, "videos": 1}
    assert counts["files"].to_dict() == {"poses": 0, "videos": 2}
