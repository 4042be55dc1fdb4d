"""What runs elsewhere: the workflows, the scripts and the image, against published schemas and our own command line."""

import importlib.metadata
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from typer.core import TyperGroup

from dlc_platform.cli import app
from dlc_platform_tests.deployments.conftest import DEPLOYMENTS

ROOT = DEPLOYMENTS.parent
WORKFLOWS = ROOT / ".github" / "workflows"
SCRIPTS = [
    DEPLOYMENTS / "entrypoint",
    DEPLOYMENTS / "hashes",
    DEPLOYMENTS / "pinned",
    DEPLOYMENTS / "postgres" / "initialise.sh",
    *sorted(DEPLOYMENTS.glob("*/deploy")),
    DEPLOYMENTS / "workstation" / "make-secrets",
]
UNITS = sorted([*DEPLOYMENTS.glob("*/*.service"), *DEPLOYMENTS.glob("*/*.timer")])
#: A variable of a shell, of a unit or of a workflow.
VARIABLE = re.compile(r"\$\{\{.*?\}\}|\$\{[^}]*\}|\$\w+|%i")


def workflow(name: str) -> dict[str, Any]:
    content = yaml.safe_load((WORKFLOWS / name).read_text())
    # YAML takes `on` for a truth value.
    return {"on" if key is True else key: value for key, value in content.items()}


@pytest.mark.parametrize(
    ("schema", "files"),
    [
        ("github-workflows", sorted(WORKFLOWS.glob("*.yml"))),
        ("dependabot", [ROOT / ".github" / "dependabot.yml"]),
        ("compose-spec", sorted((DEPLOYMENTS / "workstation").glob("compose*.yaml"))),
    ],
)
def test_the_published_schema_takes_it(schema: str, files: list[Path]):
    assert files
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", *files],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_systemd_knows_every_line_of_the_units(unit: Path, tmp_path: Path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("the system has no systemd")
    for file in unit.parent.glob("*.service"):
        # Neither the programs nor Docker are on this machine.
        text = re.sub("(?m)^ExecStart=.*", "ExecStart=/bin/true", file.read_text())
        (tmp_path / file.name).write_text(text.replace("Requires=docker.service\n", ""))
    if unit.suffix != ".service":
        shutil.copy(unit, tmp_path)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / unit.name.replace("@.", "@lab."))],
        capture_output=True,
        text=True,
        check=False,
    )
    of_unit = [line for line in done.stderr.splitlines() if unit.stem in line]
    assert not of_unit, of_unit


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(DEPLOYMENTS)))
def test_the_scripts_can_be_run(script: Path):
    assert script.stat().st_mode & 0o111, "it is not executable"
    subprocess.run(["sh", "-n", script], check=True)
    assert "set -eu" in script.read_text()


def commands(text: str) -> list[list[str]]:
    """The arguments of every `dlc-platform` in a text; what only its own place knows is replaced by a number."""
    text = text.replace('"$program"', "dlc-platform").replace('"$@"', "").replace("\\\n", " ")
    text = re.sub(r"\$\([^)]*\)", "1", VARIABLE.sub("1", text))
    # The lists of YAML, which need no shell.
    text = re.sub(r"\[(dlc-platform, [^]]*)\]", lambda found: found[1].replace(",", " "), text)
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    calls = re.findall(r"(?:(?<![\w/.=-])|bin/)dlc-platform ([a-z][^|;&`\n]*)", "\n".join(lines))
    return [shlex.split(call) for call in calls]


def test_every_command_that_a_deployment_calls_exists():
    """Each is parsed by our own command line; nothing is run."""
    group = typer.main.get_command(app.app)
    assert isinstance(group, TyperGroup)
    known = group.commands
    files = [
        *SCRIPTS,
        *(path for kind in ("*.yaml", "*.service", "*.md") for path in sorted(DEPLOYMENTS.rglob(kind))),
        *sorted(WORKFLOWS.glob("*.yml")),
    ]
    called = set()
    for file in files:
        for name, *arguments in commands(file.read_text()):
            assert name in known, f"{file}: there is no command {name}"
            known[name].make_context(name, arguments)
            called.add(name)
    assert {"migrate", "backup", "doctor", "up"} <= called


def test_each_workflow_may_do_no_more_than_it_needs():
    for file in WORKFLOWS.glob("*.yml"):
        described = workflow(file.name)
        assert described["permissions"] == {"contents": "read"}, file.name
        text = file.read_text()
        # What somebody outside can name is never part of a script.
        for job in described["jobs"].values():
            for step in job.get("steps", []):
                assert "${{" not in step.get("run", ""), (file.name, step)
                if "uses" in step:
                    # A tag can be moved; its version stands behind the commit, where dependabot renews both.
                    assert re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40}", step["uses"]), step
                    assert re.search(rf"{re.escape(step['uses'])} # v\d+\.\d+\.\d+\n", text), step
                    assert "checkout" not in step["uses"] or step["with"]["persist-credentials"] is False
        assert "pull_request_target" not in text
    # Only what pushes an image may write packages.
    writing = {
        (file.name, name)
        for file in WORKFLOWS.glob("*.yml")
        for name, job in workflow(file.name)["jobs"].items()
        if job.get("permissions", {}).get("packages") == "write"
    }
    assert writing == {("deploy.yml", "image"), ("deploy.yml", "staged"), ("deploy.yml", "release")}


def test_the_workflow_runs_the_tests_as_the_script_does():
    script = (ROOT / ".ci" / "run").read_text()
    job = workflow("ci.yml")["jobs"]["test"]
    steps = [step["run"] for step in job["steps"] if "run" in step]
    lacking = re.findall(r"lacking\+=\((.*)\)", script)
    others = re.findall(r"apt-get install -y -qq ([a-z -]+) >", script)
    (installing,) = [step for step in steps if "apt-get install" in step]
    assert set(installing.partition("--yes ")[2].split()) == {
        *lacking,
        *(one for line in others for one in line.split()),
    }
    # The workflow measures coverage besides, for which the script has no time.
    ran = [step.replace(" --cov --cov-report=term", "") for step in steps if step.startswith("uv run")]
    assert ran == re.findall("(?m)^uv run .*", script)
    # Whose packages these are, and in which the same user works.
    assert job["container"]["image"] == "python:${{ matrix.python }}-trixie"


def test_dependabot_watches_what_it_can_renew():
    """It renews Python packages by uv.lock, which is not in the repository."""
    watched = yaml.safe_load((ROOT / ".github" / "dependabot.yml").read_text())["updates"]
    assert "uv.lock" in (ROOT / ".gitignore").read_text().splitlines()
    assert [one["package-ecosystem"] for one in watched] == ["github-actions", "docker", "docker-compose"]


def test_main_goes_to_staging_and_a_release_to_production():
    described = workflow("deploy.yml")
    assert described["on"]["push"] == {"branches": ["main"], "tags": ["v*"]}
    jobs = described["jobs"]
    assert jobs["image"]["needs"] == jobs["release"]["needs"] == "ci"
    assert jobs["image"]["if"] == "github.ref == 'refs/heads/main'"
    assert jobs["release"]["if"] == "startsWith(github.ref, 'refs/tags/v')"
    for name, needs in (("staging", "image"), ("staged", "staging"), ("production", "release")):
        assert jobs[name]["needs"] == needs
    for name in ("staging", "production"):
        assert jobs[name]["with"]["environment"] == name
    deployed = workflow("deploy-to.yml")["jobs"]["deploy"]
    assert deployed["environment"] == "${{ inputs.environment }}"
    assert deployed["concurrency"]["cancel-in-progress"] is False
    asked = workflow("rollback.yml")["on"]["workflow_dispatch"]["inputs"]
    assert asked["environment"]["options"] == ["staging", "production"]


#: A double of docker with a registry, which is a folder: each tag is a file with what is in the image.
REGISTRY = r"""#!/bin/sh
file() { printf '%s/%s' "$IMAGES" "$(printf '%s' "$1" | tr '/:' '--')"; }
case "$1 $2 ${3:-}" in
    "login "*) cat > /dev/null ;;
    "build "*) ;;
    "push "*) echo "$GITHUB_SHA" > "$(file "$2")" ;;
    "buildx imagetools inspect") cat "$(file "$4")" ;;
    "buildx imagetools create") cp "$(file "$6")" "$(file "$5")" ;;
    *) echo "docker knows no $*" >&2; exit 1 ;;
esac
"""


class Pipeline:
    """The workflow `deploy`: its steps run in the order of their jobs, and how the called workflows end is given."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.images = folder / "images"
        self.images.mkdir()
        (folder / "docker").write_text(REGISTRY)
        (folder / "docker").chmod(0o755)

    def push(self, ref: str, commit: str, **ends: bool) -> tuple[dict[str, bool], str]:
        """How the jobs that were run ended, and what their steps said."""
        conditions = {
            None: True,
            "github.ref == 'refs/heads/main'": ref == "refs/heads/main",
            "startsWith(github.ref, 'refs/tags/v')": ref.startswith("refs/tags/v"),
        }
        ended: dict[str, bool] = {}
        said = ""
        for name, job in workflow("deploy.yml")["jobs"].items():
            if not ended.get(job.get("needs", ""), "needs" not in job) or not conditions[job.get("if")]:
                continue
            ended[name] = ends.get(name, True)
            for step in job.get("steps", []):
                if ended[name] and "run" in step and "sudo" not in step["run"]:
                    done = self._run(step["run"], ref, commit)
                    ended[name] = done.returncode == 0
                    said += done.stdout + done.stderr
        return ended, said

    def _run(self, script: str, ref: str, commit: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": f"{self.folder}:{os.environ['PATH']}",
            "IMAGES": str(self.images),
            "IMAGE": "registry/dlc-platform",
            "REGISTRY": "registry",
            "TARGET": "cpu",
            "TOKEN": "token",
            "GITHUB_ACTOR": "ada",
            "GITHUB_SHA": commit,
            "GITHUB_REF_NAME": ref.rpartition("/")[2],
        }
        command = ["bash", "-e", "-o", "pipefail", "-c", script]
        return subprocess.run(command, env=environment, check=False, capture_output=True, text=True)

    def tags(self) -> dict[str, str]:
        """The commit in each image by its tag."""
        return {
            file.name.removeprefix("registry-dlc-platform-"): file.read_text().strip() for file in self.images.iterdir()
        }


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    return Pipeline(tmp_path)


def test_a_release_is_the_image_that_staging_ran(pipeline: Pipeline):
    ended, _ = pipeline.push("refs/heads/main", "c0ffee")
    assert ended == {"ci": True, "image": True, "staging": True, "staged": True}
    ended, _ = pipeline.push("refs/tags/v1", "c0ffee")
    assert ended == {"ci": True, "release": True, "production": True}
    assert pipeline.tags() == {"c0ffee": "c0ffee", "c0ffee-staged": "c0ffee", "v1": "c0ffee"}


@pytest.mark.parametrize("failed", ["image", "staging"])
def test_what_staging_did_not_run_goes_to_no_production(pipeline: Pipeline, failed: str):
    pipeline.push("refs/heads/main", "c0ffee", **{failed: False})
    ended, said = pipeline.push("refs/tags/v1", "c0ffee")
    assert ended == {"ci": True, "release": False}
    assert "::error::v1 is not released, because staging has not run its commit c0ffee" in said
    assert "v1" not in pipeline.tags()


def test_a_release_whose_tests_failed_goes_nowhere(pipeline: Pipeline):
    assert pipeline.push("refs/heads/main", "c0ffee", ci=False)[0] == {"ci": False}
    pipeline.push("refs/heads/main", "c0ffee")
    assert pipeline.push("refs/tags/v1", "c0ffee", ci=False)[0] == {"ci": False}
    assert "v1" not in pipeline.tags()


@pytest.mark.parametrize(
    ("environment", "tag", "taken"),
    [("staging", "c0ffee", True), ("staging", "v1", True), ("production", "v1", True), ("production", "c0ffee", False)],
)
def test_production_goes_back_to_releases_alone(environment: str, tag: str, taken: bool):
    jobs = workflow("rollback.yml")["jobs"]
    assert jobs["rollback"]["needs"] == "released"
    (step,) = jobs["released"]["steps"]
    done = subprocess.run(
        ["bash", "-e", "-c", step["run"]],
        env={"ENVIRONMENT": environment, "TAG": tag},
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode == 0) == taken
    assert ("::error::c0ffee is no release" in done.stdout) != taken


@pytest.mark.parametrize(
    ("deployment", "command", "told"),
    [
        ("workstation", 'deployments/workstation/deploy "$TAG"', {"DEPLOYMENT_FOLDER"}),
        ("kubernetes", 'deployments/kubernetes/deploy "$TAG"', {"IMAGE", "LAB_FILE", "SIGN_ON_IMAGE"}),
        ("local", 'git archive HEAD | sudo deployments/local/deploy "$TAG"', set()),
    ],
)
def test_a_deployment_gets_only_settings_that_its_target_lacks(deployment: str, command: str, told: set[str]):
    job = workflow("deploy-to.yml")["jobs"]["deploy"]
    assert job["env"].keys() == {"TAG", "DEPLOYMENT"}
    checkout, known, *steps = job["steps"]
    assert checkout["with"]["ref"] == "${{ inputs.tag }}"
    (step,) = [step for step in steps if step["if"] == f"env.DEPLOYMENT == '{deployment}'"]
    assert step.get("env", {}).keys() == told
    # From the checkout itself: nothing that is at work is replaced before the script has looked at the new version.
    assert step["run"] == command
    assert os.access(DEPLOYMENTS / deployment / "deploy", os.X_OK)
    for name, code in ((deployment, 0), ("slurm", 1)):
        assert (
            subprocess.run(["bash", "-e", "-c", known["run"]], env={"DEPLOYMENT": name}, check=False).returncode == code
        )


def test_the_image_runs_as_an_ordinary_user_and_is_minimal():
    lines = (DEPLOYMENTS / "Dockerfile").read_text().splitlines()
    stages = [line.split() for line in lines if line.startswith("FROM ")]
    names = [stage[-1] for stage in stages]
    assert names[-2:] == ["cpu", "cuda"]
    for number, stage in enumerate(stages):
        assert stage[1] in names[:number] or stage[1].startswith("python:"), stage
    users = [line for line in lines if line.startswith("USER ")]
    assert users == ["USER 10001:10001"]
    # It stands in the stage that both targets are made of.
    runtime = lines.index("FROM base AS runtime")
    assert runtime < lines.index(users[0]) < lines.index("FROM runtime AS cpu")
    copied = [line.split() for line in lines if line.startswith("COPY ") and "--from" not in line]
    allowed = {
        line.removeprefix("!")
        for line in (DEPLOYMENTS / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    given = {word for line in copied for word in line[1:-1] if not word.startswith("--")}
    assert given == allowed
    assert all((ROOT / one).exists() for one in given)
    # `uv pip install` takes the dependencies alone; the tests' are in a group.
    assert not any("uv sync" in line or "uv run" in line for line in lines)


def constraints() -> set[str]:
    return set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]["constraint-dependencies"])


@pytest.mark.parametrize(
    ("installed", "complaint"),
    [
        ("{torch}+cpu {rich}", ""),
        ("numpy==1.0 {rich}", "numpy==1.0 is not what"),
        ("{torch} a-stranger==1.0", "a-stranger==1.0 is not what"),
    ],
)
def test_the_image_holds_the_versions_of_pyproject_alone(tmp_path: Path, installed: str, complaint: str):
    """By a double of uv, which says what is installed."""
    steps = (DEPLOYMENTS / "Dockerfile").read_text().replace("\\\n", "").splitlines()
    installing = [line for line in steps if "uv pip install" in line and "--no-deps ." not in line]
    assert len(installing) == 2
    for line, file in zip(installing, ("requirements-cpu.txt", "requirements.txt"), strict=True):
        assert "--require-hashes" in line and f"--requirements {file}" in line and line.endswith(" && pinned")
    known = {one.partition("==")[0]: one for one in constraints()}
    (tmp_path / "uv").write_text(f"#!/bin/sh\nprintf '%s\\n' {installed.format(**known)}\n")
    (tmp_path / "uv").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        [DEPLOYMENTS / "pinned"], cwd=ROOT, env=environment, check=False, capture_output=True, text=True
    )
    assert complaint in done.stderr
    assert done.returncode == (1 if complaint else 0), done.stderr


def hashed(name: str) -> dict[str, set[str]]:
    """The packages of a file of requirements as `name==version`, each with its hashes."""
    found: dict[str, set[str]] = {}
    for line in (DEPLOYMENTS / name).read_text().replace("\\\n", "").splitlines():
        if not line.startswith("#"):
            package, *rest = line.split()
            found[package] = {word.removeprefix("--hash=") for word in rest if word.startswith("--hash=")}
    return found


def needed(name: str, extras: frozenset[str] = frozenset()) -> Iterator[str]:
    """The packages that a package of this environment needs here, those of its needs among them."""
    waiting, seen = [(name, extras)], set()
    while waiting:
        one, own = waiting.pop()
        if (one, own) in seen:
            continue
        seen.add((one, own))
        for text in importlib.metadata.requires(one) or ():
            requirement = Requirement(text)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in (*own, "")):
                yield canonicalize_name(requirement.name)
                waiting.append((requirement.name, frozenset(requirement.extras)))


def test_the_hashes_are_those_of_pyproject():
    """Otherwise run deployments/hashes, and commit what it writes."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    direct = [*project["dependencies"], *project["optional-dependencies"]["kubernetes"]]
    whole, cpu = hashed("requirements.txt"), hashed("requirements-cpu.txt")
    assert whole.keys() <= constraints()
    versions = dict(package.split("==") for package in whole)
    for requirement in map(Requirement, direct):
        name = canonicalize_name(requirement.name)
        assert requirement.specifier.contains(versions.get(name, "none")), f"{requirement} is not in the hashes"
    assert set(needed("dlc-platform", frozenset({"kubernetes"}))) <= versions.keys()
    assert all(hashes and all(re.fullmatch("sha256:[0-9a-f]{64}", one) for one in hashes) for hashes in whole.values())
    # PyTorch's builds for the CPU are others, and only these.
    assert cpu.items() <= whole.items()
    left_out = {package.partition("==")[0] for package in whole.keys() - cpu.keys()}
    assert {"torch", "torchvision", "triton"} < left_out
    assert all(re.match("(torch|torchvision|triton)$|(nvidia|cuda)-", name) for name in left_out)


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-cpu.txt"])
def test_the_hashes_name_no_place_that_packages_come_from(name: str):
    text = (DEPLOYMENTS / name).read_text()
    for line in text.splitlines():
        assert re.fullmatch(
            r"#.*|[a-z0-9-]+==[\w.]+( ; [\w .'()<>=!]+)?( \\)?|    --hash=sha256:[0-9a-f]{64}( \\)?", line
        ), line
    assert "://" not in text


def test_the_tests_run_with_the_versions_of_pyproject():
    here = {
        f"{re.sub(r'[-_.]+', '-', one.name).lower()}=={one.version.partition('+')[0]}"
        for one in importlib.metadata.distributions()
    }
    assert {one for one in here - constraints() if not one.startswith("dlc-platform==")} == set()
