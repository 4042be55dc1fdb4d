"""The commands, as a person or a script runs them."""

import csv
import getpass
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path

import pytest
import yaml
from sqlalchemy import URL, Engine, text

from dlc_platform.catalog.quarantine import Fault, judge
from dlc_platform.cli import app, printing
from dlc_platform.lab.doctor import Finding, examine
from dlc_platform.notify.messages import News
from dlc_platform.notify.outbox import announce, deliver
from dlc_platform.settings.loading import load_lab
from dlc_platform.store import Store
from dlc_platform_tests import receivers
from dlc_platform_tests.catalog.conftest import lab as lab
from dlc_platform_tests.catalog.small_lab import identity
from dlc_platform_tests.keeping import fill, make_old
from dlc_platform_tests.orchestration.up import COMMAND, plain_environment

DAGSTER = str(Path(sys.executable).with_name("dagster"))
WORKSPACE = Path(app.__file__).parents[2] / "workspace.yaml"
SESSION = "sub-1_ses-1"


def call(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(argument) for argument in arguments],
        env={**plain_environment(), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def home(
    make_reachable: Callable[[], AbstractContextManager[Path]],
    make_project: Callable[..., Path],
    tiny_video: Path,
) -> Iterator[Path]:
    """A lab that `dlc-platform init` made: one session, one project."""
    with make_reachable() as folder:
        video = folder / "raw" / "sub-1" / "ses-1" / "seen_cam-top.mp4"
        video.parent.mkdir(parents=True)
        shutil.copy(tiny_video, video)
        project = make_project(folder / "tiny-tester-2026-01-01", 4)
        done = call(COMMAND, "init", folder / "lab", folder / "raw", project)
        assert done.returncode == 0, done.stderr
        assert "dlc-platform doctor" in done.stdout
        yield folder / "lab"


@pytest.fixture(scope="module")
def variables(home: Path) -> dict[str, str]:
    """What `dlc-platform env` prints, as a shell understands it."""
    assert call(COMMAND, "migrate", home).returncode == 0
    done = call(COMMAND, "env", home)
    assert done.returncode == 0, done.stderr
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    assert all(words[0] == "export" for words in lines)
    return dict(words[1].split("=", 1) for words in lines)


@pytest.fixture
def broken_lab(tmp_path: Path, home: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A function that makes a lab with other settings, and a Postgres of its own: its home."""
    monkeypatch.setenv("DLC_PLATFORM_POSTGRES_URL", engine.url.render_as_string(hide_password=False))

    def make(**settings: object) -> Path:
        text = (home / "lab.yaml").read_text()
        (tmp_path / "lab").mkdir()
        (tmp_path / "lab" / "lab.yaml").write_text(yaml.safe_dump({**yaml.safe_load(text), **settings}))
        return tmp_path / "lab"

    return make


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[object, str]]:
    """Runs a command in this process: its exit code, or what it ends with on stderr, and what it printed."""

    def run(*arguments: object) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", ["dlc-platform", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            app.main()
        said = capsys.readouterr()
        return said.err if ended.value.code == 2 else ended.value.code, said.out

    return run


def test_a_new_lab_is_healthy(home: Path):
    done = call(COMMAND, "doctor", home)
    assert done.returncode == 0, done.stdout
    assert "WRONG" not in done.stdout
    assert "4 labelled frames" in done.stdout
    assert "sessions: 1 on disk" in done.stdout
    assert "Dagster: the lab was never up" in done.stdout


def test_doctor_speaks_json(tmp_path: Path, command: Callable[..., tuple[object, str]]):
    (tmp_path / "lab.yaml").write_text("raw_roots: 7")
    code, out = command("doctor", tmp_path, "--json")
    assert code == 1
    (finding,) = json.loads(out)
    assert (finding["what"], finding["state"], finding["warning"]) == ("lab.yaml", "wrong", False)
    assert "raw_roots" in finding["found"] and finding["remedy"]


def test_any_dagster_command_works_with_the_variables(home: Path, variables: dict[str, str]):
    done = call(DAGSTER, "asset", "list", "-m", "dlc_platform.definitions", **variables)
    assert {"session_videos", "pose_estimates", "production_model"} <= set(done.stdout.split()), done.stderr
    assert call(DAGSTER, "definitions", "validate", "-w", WORKSPACE, **variables).returncode == 0


def test_the_variables_name_an_external_postgres_too(home: Path, engine: Engine, variables: dict[str, str]):
    url = engine.url.render_as_string(hide_password=False)
    done = call(COMMAND, "env", home, DLC_PLATFORM_POSTGRES_URL=url)
    assert f"export DLC_PLATFORM_POSTGRES_URL={shlex.quote(url)}" in done.stdout.splitlines()
    assert "DLC_PLATFORM_POSTGRES_URL" not in variables


def test_without_a_lab_the_definitions_say_so():
    done = call(DAGSTER, "asset", "list", "-m", "dlc_platform.definitions")
    assert done.returncode != 0
    assert "the environment variable DLC_PLATFORM_HOME is not set" in done.stderr
    assert "dlc-platform env HOME" in done.stderr


def test_run_materialises_and_the_tables_show_it(home: Path, command: Callable[..., tuple[object, str]]):
    done = call(COMMAND, "run", home, "session_videos,labeled_frames")
    assert done.returncode == 0, done.stderr
    assert f"session_videos [{SESSION}]: done" in done.stdout
    summary = done.stdout[done.stdout.index("That took ") :].splitlines()
    assert summary[1:3] == ["  1 session registered, 20 frames", "  1 session searched for labels"]
    assert summary[-1] == f"`dlc-platform sessions {home}` lists what is registered"
    assert done.stderr == ""

    code, out = command("sessions", home, "--json")
    assert code == 0
    (row,) = json.loads(out)
    assert (row["session"], row["camera"], row["frames"], row["width"]) == (SESSION, "top", 20, 96)
    for table, told in (("models", "there is no model yet"), ("poses", "no session has poses yet")):
        assert json.loads(command(table, home, "--json")[1]) == []
        assert command(table, home)[1] == f"{told}\n"
    assert SESSION in command("sessions", home)[1]


def test_a_run_that_fails_says_why_in_a_line(home: Path):
    broken = home.parent / "raw" / "sub-2" / "ses-1" / "broken.mp4"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"not a video")
    try:
        done = call(COMMAND, "run", home, "session_videos")
        assert done.returncode == 1
        told = [line for line in done.stdout.splitlines() if str(broken) in line]
        assert len(told) == 1
        assert " registered\n  NOT done: sub-2_ses-1. The reasons stand above\n" in done.stdout.replace(
            ", 20 frames", ""
        )
        assert f" for a person: `dlc-platform sessions {home} --waiting` says why and what to do" in done.stdout
        assert "Traceback" not in done.stdout + done.stderr
        assert "STEP_FAILURE" not in done.stdout + done.stderr
    finally:
        shutil.rmtree(broken.parents[1])


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("sessions", "HOME/nowhere"), "lab.yaml does not exist"),
        (("up", "HOME/nowhere"), "lab.yaml does not exist"),
        (("run", "HOME/nowhere", "*"), "lab.yaml does not exist"),
        (("env", "HOME/nowhere"), "lab.yaml does not exist"),
        (("init", "HOME", "HOME", "HOME"), "exists already"),
        (("run", "HOME", "poses_estimates"), "poses_estimates"),
        (("demo", "--home", "HOME/lab.yaml"), "lab.yaml cannot be used: File exists"),
        (("demo", "--home", "HOME/lab.yaml/demo"), "demo cannot be used: Not a directory"),
        (("demo", "--home", "/proc/demo"), "/proc/demo cannot be used"),
        (("run", "HOME", "pose_estimates", "--partition", "sub-9"), "sub-9 is neither a session nor"),
    ],
)
def test_an_error_is_one_sentence(
    home: Path, arguments: tuple[str, ...], problem: str, command: Callable[..., tuple[object, str]]
):
    ended, _ = command(*(argument.replace("HOME", str(home)) for argument in arguments))
    assert isinstance(ended, str)  # what Python writes to stderr, to end with 1
    assert ended.startswith("dlc-platform: ")
    assert problem in ended
    assert "\n" not in ended


@pytest.mark.parametrize(("name", "arguments"), [("run.lock", ("run", "*")), ("up.lock", ("up",))])
def test_a_lab_that_one_may_not_use_is_named(
    name: str, arguments: tuple[str, ...], broken_lab: Callable[..., Path], command: Callable[..., tuple[object, str]]
):
    home = broken_lab()
    (home / name).mkdir()  # even root cannot write into it
    ended, _ = command(arguments[0], home, *arguments[1:])
    assert f"{home}/{name} cannot be opened: Is a directory. Run this as the user whose lab it is" in str(ended)


@pytest.mark.parametrize("port", ["70000", "-5", "0"])
def test_a_port_that_is_none(home: Path, port: str):
    done = call(COMMAND, "up", home, "--port", port)
    assert done.returncode == 2
    assert done.stderr.startswith("dlc-platform: --port: ") and "Traceback" not in done.stderr


def test_only_what_is_meant_for_people_is_warned_of():
    code = """
import logging, warnings
from dlc_platform.cli import app as cli
from dlc_platform.errors import PlatformWarning
def app(**_):
    warnings.warn("a beta of some library")
    logging.warning("said to everybody")
    logging.getLogger("library").warning("a detail of a library")
    logging.getLogger("library").error("a library failed")
    logging.getLogger("dlc_platform.dlc").warning("ours")
    warnings.warn("some poses are in quarantine", PlatformWarning)
cli.app = app
cli.main()
"""
    assert call(sys.executable, "-c", code).stderr.splitlines() == [
        "a library failed",
        "ours",
        "dlc-platform: some poses are in quarantine",
    ]
    shown = call(sys.executable, "-c", code, PYTHONWARNINGS="default").stderr
    assert "UserWarning: a beta of some library" in shown and "WARNING:root:said to everybody" in shown


def test_tables_keep_to_the_screen_and_are_made_without_pandas(lab: Engine, broken_lab: Callable[..., Path]):
    judge(lab, SESSION, "videos", [Fault("too dark " * 20, "Switch the lamp on", identity("a"), "/raw/a b/top.mp4")])
    home = broken_lab()
    lists = [["sessions"], ["sessions", "--quarantined"], ["models"], ["poses"], ["parameters"], ["promotions"]]
    lists += [
        ["best"],
        ["stale"],
        ["notifications"],
        ["quality"],
        ["lineage", SESSION],
        ["touched", identity("b")[:12]],
        ["impact", identity("b")[:12]],
        ["backfill", "--dry-run"],
        ["report"],
        ["gpus"],
    ]
    code = """
import sys
from dlc_platform.cli import app as cli
for name, *more in eval(sys.argv[2]):
    try:
        cli.app([name, sys.argv[1], *more])
    except SystemExit as ended:
        assert not ended.code, (name, ended)
light = sorted({"pandas", "numpy", "dagster", "alembic"} & sys.modules.keys())
for name, *more in (["compare"], ["scan", "--dry-run"]):
    try:
        cli.app([name, sys.argv[1], *more])
    except (SystemExit, cli.PlatformError):
        pass
print()
print(light, sorted({"dagster", "alembic", "torch", "deeplabcut", "scipy"} & sys.modules.keys()))
"""
    url = lab.url.render_as_string(hide_password=False)
    done = call(sys.executable, "-c", code, home, lists, COLUMNS="80", DLC_PLATFORM_POSTGRES_URL=url)
    assert done.returncode == 0, done.stderr
    *lines, loaded = done.stdout.splitlines()
    assert loaded == "[] []"
    assert all(len(line) <= 80 for line in lines if "`dlc-platform" not in line)
    assert "/raw/a b/top.mp4" in done.stdout and identity("b")[:12] in done.stdout


def test_an_error_goes_to_stderr(tmp_path: Path):
    done = call(COMMAND, "models", tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert f"{tmp_path}/lab.yaml does not exist" in done.stderr


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"recipes": {"r": {"project": "tiny", "epoch": 3}}}, "recipes.r.epoch is not a key"),
        ({"raw_roots": ["gone"]}, "the raw root cannot be read"),
        ({"raw_roots": ["{raw}", "{twice}"]}, "the session key sub-1_ses-1 is claimed by"),
        ({"projects": {"tiny": {"path": "no-project"}}}, "no-project"),
        ({"store": "/proc/store"}, "/proc"),
        ({"store": "lab.yaml/store"}, "lab.yaml is not a folder"),
        ({"store": "s" * 300}, "cannot be reached: File name too long"),
        ({"recipes": {"r": {"project": "tiny", "net_type": "resnet50"}}}, "no single-animal network `resnet50`"),
        ({"recipes": {"r": {"project": "tiny", "weights": "no-weights"}}}, "no-weights holds no config.json"),
    ],
)
def test_doctor_finds_what_is_wrong(
    settings: dict,
    found: str,
    tmp_path: Path,
    home: Path,
    broken_lab: Callable[..., Path],
    command: Callable[..., tuple[object, str]],
):
    twice = tmp_path / "twice"
    shutil.copytree(home.parent / "raw", twice)
    filled = json.loads(json.dumps(settings).replace("{raw}", str(home.parent / "raw")).replace("{twice}", str(twice)))
    code, out = command("doctor", broken_lab(**filled))
    assert code == 1
    wrong = [line for line in out.splitlines() if line.startswith("WRONG")]
    assert wrong
    assert any(found in line for line in wrong), out


def test_doctor_says_that_other_accounts_can_open_home(make_reachable: Callable[[], AbstractContextManager[Path]]):
    with make_reachable() as folder:
        home = folder / "my lab"
        (home / "postgres" / "data").mkdir(parents=True)
        (home / "lab.yaml").write_text("raw_roots: [raw]\nprojects: {a: {path: project}}\n")

        def said() -> list[Finding]:
            return [one for one in islice(examine(home), 2) if one.what == "HOME"]

        home.chmod(0o755)
        (open_to_all,) = said()
        assert open_to_all.found == f"every account of this machine can open {home} (mode 0755)"
        assert open_to_all.warning and open_to_all.remedy.endswith(f"chmod o-rwx '{home}'")
        subprocess.run(open_to_all.remedy.partition(": ")[2], shell=True, check=True)
        assert said() == []
        # Postgres of root, which is another account, has its data there.
        home.chmod(0o755)
        if os.geteuid() == 0:
            os.chown(home / "postgres" / "data", 10001, 10001)
            (listed,) = said()
            assert "can list" in listed.found and listed.remedy.startswith(f"Run: chmod o-rw '{home}' (")
            home.chmod(0o751)
            assert said() == []
        # Nobody comes through the folder above.
        home.chmod(0o755)
        folder.chmod(0o700)
        assert said() == []


def test_doctor_finds_a_configuration_that_deeplabcut_rejects(
    tmp_path: Path,
    make_project: Callable[..., Path],
    broken_lab: Callable[..., Path],
    command: Callable[..., tuple[object, str]],
):
    config = make_project(tmp_path / "project", 1) / "config.yaml"
    config.write_text(config.read_text() + "video_sets_original: {}\n")
    code, out = command("doctor", broken_lab(projects={"tiny": {"path": str(config.parent)}}))
    assert code == 1
    assert f"WRONG   project tiny: DeepLabCut rejects {config}: `video_sets_original` is not a key" in out


def test_doctor_finds_a_postgres_that_does_not_answer(
    broken_lab: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, command: Callable[..., tuple[object, str]]
):
    home = broken_lab()
    monkeypatch.setenv("DLC_PLATFORM_POSTGRES_URL", "postgresql://me:secret@127.0.0.1:1/nothing")
    code, out = command("doctor", home)
    assert code == 1
    (line,) = [line for line in out.splitlines() if line.startswith("WRONG")]
    assert "127.0.0.1:1" in line
    assert "secret" not in out


def test_verify_says_what_differs(
    lab: Engine, broken_lab: Callable[..., Path], command: Callable[..., tuple[object, str]]
):
    home = broken_lab()
    store = Store(home / "store")
    fill(lab, store)
    code, out = command("verify", home)
    assert (code, out) == (0, "The store is as the catalogue knows it\n")
    young = store.put("models", identity("c"), {}, lambda folder: None)
    assert command("verify", home)[0] == 0
    lost = store.path("poses", identity("8")) / "sub" / "file"
    lost.unlink()
    code, out = command("verify", home)
    assert code == 1
    assert f"WRONG   {lost}: the file is missing. Bring the product back" in out
    assert f"warning {young}: no row of the catalogue names this product yet. Wait" in out
    assert out.endswith("\n1 difference; 1 warning\n")


def test_verify_says_how_many_products_are_too_old_to_check(
    lab: Engine, broken_lab: Callable[..., Path], command: Callable[..., tuple[object, str]]
):
    home = broken_lab()
    fill(lab, Store(home / "store"))
    with lab.begin() as connection:
        connection.execute(text("update dlc.pose_estimate set manifest_sha256 = null"))
    code, out = command("verify", home)
    assert code == 0 and out.count("older than checksums") == 2
    assert out.endswith("\nNo difference was found; 2 warnings\n")


def test_impact_is_a_table_only_where_sessions_become_stale(
    lab: Engine, broken_lab: Callable[..., Path], command: Callable[..., tuple[object, str]]
):
    home = broken_lab(projects={"maze": {"path": "maze"}}, recipes={}, inference=[{"project": "maze"}])
    assert command("impact", home, identity("b")) == (0, "no session becomes stale\n")
    assert json.loads(command("impact", home, identity("b"), "--json")[1]) == []
    heading, row, said = command("impact", home, identity("a"))[1].splitlines()
    assert heading.split()[0] == "session" and row.split()[0] == SESSION and said.startswith("1 session becomes stale")


def test_poses_by_other_rules_are_listed_after_those_by_models(
    lab: Engine, broken_lab: Callable[..., Path], command: Callable[..., tuple[object, str]]
):
    maze = {"projects": {"maze": {"path": "maze"}}, "recipes": {}}
    home = broken_lab(**maze, inference=[{"project": "maze", "precision": "half"}])
    code, out = command("stale", home)
    assert code == 0
    none, _, said, _, row, *below = out.splitlines()
    assert none == "no session is stale" and said.startswith(
        "1 session has poses of another region or precision than lab.yaml"
    )
    assert "pose_estimates --partition KEY" in said
    assert row.split()[0] == SESSION and "full precision" in row and "half precision" in "".join(below)
    assert json.loads(command("stale", home, "--json")[1]) == []


@pytest.mark.parametrize("reason", ["", "  "])
def test_a_promotion_without_a_reason_starts_no_run(
    reason: str,
    lab: Engine,
    broken_lab: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(sys, "argv", ["dlc-platform", "promote", str(broken_lab()), identity("a"), "--reason", reason])
    with pytest.raises(SystemExit) as ended:
        app.main()
    said = capsys.readouterr()
    assert said.err == "dlc-platform: the promotion has no reason. Say why in --reason: the promotion keeps it.\n"
    assert ended.value.code == 2 and said.out == ""


def test_gc_lists_and_with_delete_removes(
    lab: Engine, broken_lab: Callable[..., Path], command: Callable[..., tuple[object, str]]
):
    home = broken_lab()
    store = Store(home / "store")
    fill(lab, store)
    assert command("gc", home) == (0, "Nothing to remove\n")
    useless = store.put("models", identity("c"), {}, lambda folder: (folder / "file").write_bytes(bytes(3_000_000)))
    make_old(useless)
    code, out = command("gc", home)
    assert code == 0 and useless.exists()
    assert f"models/{identity('c')}" in out and "3 MB" in out and "could go" in out
    code, out = command("gc", home, "--delete")
    assert code == 0 and not useless.exists()
    assert "removed" in out and f"3 MB removed from {store.root}" in out
    assert command("verify", home)[0] == 0


def test_backup_and_restore_say_where_the_store_is_expected(
    lab: Engine,
    broken_lab: Callable[..., Path],
    command: Callable[..., tuple[object, str]],
    tmp_path: Path,
    empty_database: URL,
    monkeypatch: pytest.MonkeyPatch,
):
    home = broken_lab()
    fill(lab, Store(home / "store"))
    shutil.rmtree(home / "store" / "models" / identity("a"))
    code, out = command("backup", home, tmp_path / "file")
    assert code == 0 and (tmp_path / "file").is_file()
    assert "7 products" in out and "the store lacks 1 product that the catalogue names" in out
    assert "exists already" in str(command("backup", home, tmp_path / "file")[0])
    monkeypatch.setenv("DLC_PLATFORM_POSTGRES_URL", empty_database.render_as_string(hide_password=False))
    code, out = command("restore", tmp_path / "file", tmp_path / "second")
    assert code == 0
    assert f"lab.yaml expects the store in {tmp_path}/second/store; it was in {home}/store" in out
    assert "warning: 7 products are missing from the store" in out
    assert f"dlc-platform verify {tmp_path}/second" in out
    assert "is not empty" in str(command("restore", tmp_path / "file", tmp_path / "second")[0])


def test_doctor_holds_regions_against_the_videos(
    lab: Engine, broken_lab: Callable[..., Path], command: Callable[..., tuple[object, str]]
):
    size = {"width": 600, "height": 400}
    inside, beyond, nowhere = ({"x": x, "y": 80, **size} for x in (40, 41, 0))
    regions = [{"session": "sub-1_*", **beyond}, {"camera": "top", **inside}, {"camera": "Top", **nowhere}]
    code, out = command("doctor", broken_lab(regions=regions))
    assert code == 1
    assert (
        "WRONG   region of top: the region 600 x 400 at (41, 80) reaches over the picture of top of sub-1_ses-1, which "
        "is 640 x 480. Correct it under `regions` in lab.yaml." in out
    )
    assert "warning regions: the region 600 x 400 at (0, 80) (camera Top, session *) matches no registered" in out
    assert "ok      regions: 1 registered video holds its own" in out


def test_doctor_knows_no_videos_before_the_first_start(
    empty_database: URL,
    broken_lab: Callable[..., Path],
    command: Callable[..., tuple[object, str]],
    monkeypatch: pytest.MonkeyPatch,
):
    home = broken_lab(regions=[{"x": 0, "y": 0, "width": 32, "height": 32}])
    monkeypatch.setenv("DLC_PLATFORM_POSTGRES_URL", empty_database.render_as_string(hide_password=False))
    code, out = command("doctor", home)
    assert code == 0 and "matches no registered video" in out


def test_doctor_lets_pass_what_lies_in_every_lab(
    tmp_path: Path, broken_lab: Callable[..., Path], command: Callable[..., tuple[object, str]]
):
    folder = tmp_path / "raw" / "sub-1" / "ses-1"
    folder.mkdir(parents=True)
    for name in (".hidden.mp4", "growing.mp4.part", "aDLC_Resnet50_xJan1shuffle1_snapshot_050_labeled.mp4"):
        (folder / name).touch()
    (tmp_path / "raw" / "stray.mp4").touch()
    (tmp_path / "raw" / "sub-2" / "ses-1").mkdir(parents=True)
    (tmp_path / "raw" / "sub-2" / "ses-1" / "a.mp4").touch()
    (tmp_path / "raw" / "sub-2" / "ses-1" / "a.mp4.part").touch()
    code, out = command("doctor", broken_lab(raw_roots=[str(tmp_path / "raw")]))
    assert code == 0, out
    assert "stray.mp4 is left out" in out
    assert "warning layout: neuroblueprint matches 1 of 2 videos (50 %)" in out
    assert "warning sessions: 1 is not ready, such as sub-2_ses-1 with a.mp4: a.mp4.part beside it says" in out
    assert "DLC_" not in out
    assert ".hidden" not in out


def test_doctor_says_that_the_layout_matches_nothing(
    tmp_path: Path, broken_lab: Callable[..., Path], command: Callable[..., tuple[object, str]]
):
    for number in range(15):
        (tmp_path / "raw" / f"m{number}").mkdir(parents=True)
        (tmp_path / "raw" / f"m{number}" / "day1.mp4").touch()
    (tmp_path / "raw" / "m1.mp4").touch()
    code, out = command("doctor", broken_lab(raw_roots=[str(tmp_path / "raw")], layout={"preset": "bids"}))
    assert code == 1
    assert "WRONG   layout: bids matches 0 of 16 videos (0 %). Correct `layout` in lab.yaml" in out
    assert out.count("raw/m") == 11 and "6 more are left out: its path does not match" in out


def test_doctor_says_that_versions_of_two_seeds_do_not_compare(
    broken_lab: Callable[..., Path], command: Callable[..., tuple[object, str]]
):
    recipes = {name: {"project": "tiny", "weights": "random", "seed": seed} for name, seed in (("a", 1), ("b", 2))}
    lab = broken_lab(recipes=recipes)
    settings = yaml.safe_load((lab / "lab.yaml").read_text())
    assert settings["projects"]["tiny"].pop("split_seed") == 42
    (lab / "lab.yaml").write_text(yaml.safe_dump(settings))
    code, out = command("doctor", lab)
    assert code == 0, out
    assert "warning recipes a, b: they have different seeds, so that versions of the project tiny share " in out
    assert "Give the project one `split_seed`" in out
    settings["projects"]["tiny"]["split_seed"] = 7
    (lab / "lab.yaml").write_text(yaml.safe_dump(settings))
    assert "different seeds" not in command("doctor", lab)[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("lineage", "sub-9_ses-9"), "there is no registered session 'sub-9_ses-9'"),
        (("touched", "abc"), "no model version begins with 'abc'"),
        (("impact", "abc"), "no model version begins with 'abc'"),
        (("promote", "abc", "--reason", "why not"), "no model version begins with 'abc'"),
        (("promote", "--back", "tiny", "--reason", "why not"), "no other version of 'tiny' was in production before"),
        (("backfill", "--session", "sub-9_ses-9"), "there is no registered session 'sub-9_ses-9'"),
        (("backfill", "--project", "maze"), "there is no project 'maze'"),
        (("quality", "sub-999"), "there is no registered session 'sub-999'"),
        (("quality", "sub-999", "--judge"), "there is no registered session 'sub-999'"),
        (("compare", "--project", "maze"), "there is no project 'maze'. Choose among tiny"),
        (("promote", "--back", "maze", "--reason", "why not"), "there is no project 'maze'"),
        (("report", "--day", "2999-01-01"), "2999-01-01 has not begun"),
        (("report", "--day", "1999-01-01"), "1999-01-01 is before the lab began"),
        (("train", "quick"), "there is no recipe 'quick'"),
    ],
)
def test_what_the_catalogue_does_not_hold_is_told_in_a_sentence(
    arguments: tuple[str, ...],
    said: str,
    broken_lab: Callable[..., Path],
    command: Callable[..., tuple[object, str]],
    capsys: pytest.CaptureFixture[str],
):
    name, *rest = arguments
    code, out = command(name, broken_lab(), *rest)
    assert code and said in f"{code} {out} {capsys.readouterr().err}"


def test_a_new_lab_has_empty_lists(broken_lab: Callable[..., Path], command: Callable[..., tuple[object, str]]):
    home = broken_lab()
    for name, told in {
        "best": "no models were compared yet",
        "parameters": "no recipe was trained yet",
        "promotions": "no model was promoted yet",
        "models": "there is no model yet",
        "poses": "no session has poses yet",
        "notifications": "nobody was told anything yet",
        "sessions": f"no session is registered yet: `dlc-platform scan {home} --dry-run` says what lies on the disks",
    }.items():
        assert command(name, home) == (0, f"{told}\n")
        assert command(name, home, "--csv")[1].count("\n") == 1, "the names of the columns"
    assert "bodypart" in command("quality", home, "--csv")[1]
    ended, printed = command("compare", home, "--csv")
    assert "has no training dataset" in str(ended) and printed == ""


def test_a_session_is_released_from_quarantine(
    lab: Engine, broken_lab: Callable[..., Path], command: Callable[..., tuple[object, str]]
):
    home = broken_lab()
    judge(lab, SESSION, "videos", [Fault("too dark", "Switch the lamp on", identity("a"), "/raw/top.mp4")])
    judge(lab, SESSION, "poses", [Fault("failed", "Look at the run", identity("b"))])
    out = command("sessions", home, "--quarantined")[1]
    assert "/raw/top.mp4" in out
    assert "Switch the lamp on" in out
    found = json.loads(command("sessions", home, "--quarantined", "--json")[1])
    assert {(row["session"], row["stage"], row["reason"]) for row in found} == {
        (SESSION, "videos", "too dark"),
        (SESSION, "poses", "failed"),
    }
    assert "quarantine: 1 session at the stage poses, 1 session at the stage videos" in command("doctor", home)[1]

    out = command("sessions", "release", home, SESSION, "--stage", "videos", "--reason", "it was night")[1]
    released, but = out.splitlines()
    assert (
        released == f"{SESSION} is released: 1 reason that held it up does not count any more, until its files change"
    )
    assert but.startswith(f"But /raw/{SESSION}/side.mp4 cannot be read") and "until it is copied again" in but
    with lab.connect() as connection:
        row = connection.execute(text("select * from dlc.quarantine where stage = 'videos'")).one()
    assert (row.released_by, row.release_reason) == (getpass.getuser(), "it was night")
    ended, _ = command("sessions", "release", home, "sub-999")
    assert "there is no registered session 'sub-999'" in str(ended)
    ended, _ = command("sessions", "release", home, SESSION, "--stage", "videos")
    assert f"session '{SESSION}' is not in quarantine at the stage videos" in str(ended)
    assert command("sessions", "release", home, SESSION, "--by", "ada")[0] == 0
    assert json.loads(command("sessions", home, "--quarantined", "--json")[1]) == []
    # The listing of what is registered needs no name, as before.
    assert SESSION in command("sessions", home)[1]


def test_lists_have_all_columns_as_csv_and_wide(
    lab: Engine, broken_lab: Callable[..., Path], command: Callable[..., tuple[object, str]]
):
    judge(lab, SESSION, "videos", [Fault("\x1b[2Jtoo, dark", "Switch the lamp on", identity("a"), "/raw/a b/top.mp4")])
    home = broken_lab()
    for name in (["sessions"], ["sessions", "--quarantined"], ["models"], ["promotions"], ["lineage", SESSION]):
        first, *more = name
        records = json.loads(command(first, home, *more, "--json")[1])
        read = list(csv.DictReader(io.StringIO(command(first, home, *more, "--csv")[1])))
        assert [list(row) for row in read] == [list(row) for row in records], name
        assert [row.get("session") for row in read] == [row.get("session") for row in records]
        if first != "lineage":
            heads = set(command(first, home, *more, "--wide")[1].splitlines()[0].split())
            assert heads <= {re.sub("_(s|gb|bytes|hours)$", "", key).replace("_seconds", "_time") for key in records[0]}
    said = command("sessions", home, "--quarantined", "--csv")[1]
    assert "\x1b" not in said and '"\\x1b[2Jtoo, dark"' in said
    wide = command("sessions", home, "--wide")[1].splitlines()
    assert "subject" in wide[0].split() and len(wide) == 1 + len(json.loads(command("sessions", home, "--json")[1]))
    assert "subject" not in command("sessions", home)[1], "an option is of its own call"


def test_copied_output_can_be_read_again_and_keeps_its_origin(
    lab: Engine,
    broken_lab: Callable[..., Path],
    command: Callable[..., tuple[object, str]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(printing, "wide_asked", False)
    monkeypatch.setattr(printing, "csv_asked", False)
    parameters = {"epochs": 3, "transforms": {"scale": [0.85, 1.2], "flip": False}, "weights": "random"}
    printing.show_details([{"recipe": "quick", "version": 1, "parameters": parameters}], ["recipe", "parameters"])
    title, *block = capsys.readouterr().out.splitlines()
    assert title == "quick" and yaml.safe_load("\n".join(block)) == {"parameters": parameters}

    home = broken_lab()
    records = json.loads(command("touched", home, identity("b"), "--json")[1])
    _, *lines = command("touched", home, identity("b"))[1].splitlines()
    assert [line.split()[0] for line in lines] == sorted({row["session"] for row in records})

    (row, *_) = json.loads(command("lineage", home, SESSION, "--json")[1])
    told = command("lineage", home, SESSION)[1]
    for name in ("estimation_environment", "parameters", "dataset", "run_id"):
        assert not row[name] or f"    {name}" in told, name


def test_a_machine_without_gpus_and_a_lab_of_today_are_told_so(
    lab: Engine, broken_lab: Callable[..., Path], command: Callable[..., tuple[object, str]]
):
    home = broken_lab(gpus=[])
    with lab.begin() as connection:
        connection.execute(text("update dlc.session set registered_at = now()"))
        connection.execute(text("update dlc.lab_beginning set began_at = now()"))
    assert command("gpus", home)[1] == "this machine has no GPU that the lab may use: everything runs on the CPU\n"
    assert json.loads(command("gpus", home, "--json")[1])[0]["gpu"] == "cpu"
    assert command("report", home)[1].startswith("The lab began today, ")
    assert json.loads(command("report", home, "--json")[1])["sessions_arrived"] == 0


def test_no_text_in_csv_is_a_formula_and_numbers_are_numbers(
    lab: Engine, broken_lab: Callable[..., Path], command: Callable[..., tuple[object, str]]
):
    texts = ["=HYPERLINK(1)", "+1+cmd|x", "@SUM(1)", "-2+3", "\uff1d1+1", "-2.5", "+3", "a=b", "'=1"]
    faults = [Fault(reason, "Mend it", identity("a"), f"/raw/{place}") for place, reason in enumerate(texts)]
    judge(lab, SESSION, "poses", faults)
    read = csv.DictReader(io.StringIO(command("sessions", broken_lab(), "--quarantined", "--csv")[1]))
    guarded = {row["file"]: row["reason"] for row in read}
    assert [guarded[f"/raw/{place}"] for place in range(len(texts))] == [
        *("'=HYPERLINK(1)", "'+1+cmd|x", "'@SUM(1)", "'-2+3", "'\uff1d1+1", "-2.5", "+3", "a=b", "'=1"),
    ]


def test_figures_have_the_unit_that_suits_them(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(printing, "wide_asked", False)
    monkeypatch.setattr(printing, "csv_asked", False)
    rows = [{"session": "s", "duration_s": 7200.0, "memory_gb": 139.8, "inference_gpu_hours": 0.25, "size_bytes": 3e6}]
    printing.show_table(rows, list(rows[0]))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == ["session duration memory inference_gpu size", "s 2 h 140 GB 15 min 3 MB"]


def test_a_test_message_reaches_the_channels_or_says_why_not(
    broken_lab: Callable[..., Path], command: Callable[..., tuple[object, str]], tmp_path: Path
):
    with receivers.webhook() as hook:
        (tmp_path / "url").write_text(hook.url)
        (tmp_path / "url").chmod(0o644)
        channels = [{"name": "room", "url_file": str(tmp_path / "url")}, {"name": "dumb", "url_variable": "NO_HOOK"}]
        home = broken_lab(notify={"webhooks": channels})
        code, out = command("notify", "test", home)
        assert code == 1
        assert out.splitlines()[0] == "room: taken"
        assert out.splitlines()[1].startswith("dumb: NOT taken: the environment variable NO_HOOK")
        assert hook.titles() == ["A test of dlc-platform"]

        out = command("doctor", home)[1]
        assert f"channel room: 127.0.0.1:{hook.port} answers" in out
        assert f"other users of this machine may read {tmp_path / 'url'}" in out
        assert "warning channel dumb: the environment variable NO_HOOK" in out
        assert len(hook.got) == 1  # asking whether it answers sends nothing
        assert "secret" not in out
    assert json.loads(command("notifications", home, "--json")[1]) == []


def test_what_was_given_up_is_said(
    engine: Engine, broken_lab: Callable[..., Path], command: Callable[..., tuple[object, str]], tmp_path: Path
):
    with receivers.webhook() as hook:
        hook.statuses = [410]
        (tmp_path / "url").write_text(hook.url)
        home = broken_lab(notify={"webhooks": [{"name": "room", "url_file": str(tmp_path / "url")}]})
        settings = load_lab(home)
        announce(engine, settings.notify.channels, [News("run_failure", "r", "A run failed", "the disk is full")])
        deliver(engine, settings.name, settings.notify, [].append)
        (row,) = json.loads(command("notifications", home, "--json")[1])
        assert (row["state"], row["last_error"]) == ("given up", "answered 410 (Gone)")
        assert "1 notification was given up and 0 wait; the last failure: answered 410" in command("doctor", home)[1]


def test_the_report_of_a_day(lab: Engine, broken_lab: Callable[..., Path], command: Callable[..., tuple[object, str]]):
    home = broken_lab(time_zone="Europe/Berlin")
    with lab.begin() as connection:
        connection.execute(text("update dlc.session set registered_at = '2026-03-04 23:30+00'"))
    found = json.loads(command("report", home, "--day", "2026-03-05", "--json")[1])
    assert (found["day"], found["sessions_arrived"], len(found["days"])) == ("2026-03-05", 2, 30)
    assert command("report", home, "--day", "2026-03-05")[1].startswith("2026-03-05, Europe/Berlin: 2 sessions arrived")
    assert (found["days"][-1]["day"], found["days"][-1]["sessions_arrived"]) == ("2026-03-05", 2)
    assert "0 sessions arrived" in command("report", home, "--day", "2026-03-06")[1]
    rows = list(csv.DictReader(io.StringIO(command("report", home, "--day", "2026-03-05", "--csv")[1])))
    assert [row["table"] for row in rows] == ["cameras"] * len(found["cameras"]) + ["days"] * 30
    assert (rows[-1]["day"], rows[-1]["sessions_arrived"]) == ("2026-03-05", "2")
    assert "2026-03-04" in str(command("report", home, "--day", "2026-03-04")[0])
    assert "'soon' is not a day" in str(command("report", home, "--day", "soon")[0])
