"""The Dagster instance of a lab: its dagster.yaml, and the environment in which any `dagster` command works on it."""

import fcntl
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TextIO

import dagster as dg
import yaml

from dlc_platform.catalog.database import lost_catalog, migrate, open_catalog, open_lab, open_where_there
from dlc_platform.catalog.sessions import assign_cameras
from dlc_platform.devices.gpus import find_devices
from dlc_platform.errors import HOME_VARIABLE, PlatformError, command
from dlc_platform.files.yaml import load_yaml, yaml_text
from dlc_platform.launchers.dagster_internals import InstanceRef
from dlc_platform.launchers.needs import gpu_slots
from dlc_platform.orchestration.assets.models import GPU_POOL
from dlc_platform.orchestration.resources import LabResource
from dlc_platform.orchestration.retries import NONE_THAT_WAITS, PatientRunCoordinator
from dlc_platform.postgres.connection import dagster_url, existing_dagster_url, postgres_url
from dlc_platform.settings.environment import DAGSTER_POSTGRES_FILE_VARIABLE, POSTGRES_FILE_VARIABLE, POSTGRES_VARIABLE
from dlc_platform.settings.lab import Lab
from dlc_platform.settings.loading import load_lab
from dlc_platform.settings.schema import write_schema
from dlc_platform.store import Store

#: Its value holds a password: it is set in the environment, and dagster.yaml only names the variable.
_URL_VARIABLE = "DLC_PLATFORM_DAGSTER_POSTGRES_URL"
_LOCK = "run.lock"
#: The time for which an interrupted training can be continued.
_TRAININGS_KEPT = timedelta(days=14)


def prepare(home: Path, migrates: bool = True) -> dict[str, str]:
    """Make a lab ready for Dagster: Postgres runs, the catalogue is up to date, dagster.yaml follows lab.yaml.

    Parameters
    ----------
    migrates
        Bring older tables of the catalogue up to date. Only the start of a lab does so. A new lab gets its tables in
        any case.

    Returns
    -------
    dict
        The environment variables that let any `dagster` command work on the lab; some of them hold a password.

    Raises
    ------
    PlatformError
        When lab.yaml or its `dagster_yaml` is not valid, Postgres cannot be reached, the lab's catalogue is missing, or
        the tables must not be changed and are not those of this version.
    """
    lab = load_lab(home)
    wanted = wanted_dagster_yaml(home, lab)
    if not migrates and (known := open_where_there(home)) is not None:
        known.dispose()
    if (lost := lost_catalog(home, Store(lab.store))) is not None:
        raise lost
    engine = open_catalog(postgres_url(home))
    try:
        # A lab that has tables has up-to-date ones here, or gets them.
        migrate(engine)
        # The database lists stale poses by itself.
        assign_cameras(engine, lab.tracking.project_of)
    finally:
        engine.dispose()
    dagster_url(postgres_url(home))  # this makes the schema
    environment = environment_of(home)
    write(dagster_yaml(home), yaml.safe_dump(wanted, sort_keys=False))
    write_schema(home)
    with open_instance(environment) as instance:
        # The pool's default limit does not hold for the first runs of a new pool.
        for pool, limit in pool_limits(lab).items():
            instance.event_log_storage.set_concurrency_slots(pool, limit)
    return environment


def environment_of_started(home: Path) -> dict[str, str]:
    """As `environment_of`, for a lab whose services can be started by hand now; nothing is made or changed.

    Raises
    ------
    PlatformError
        When the lab was never started, or its catalogue has the tables of another version of the platform.
    """
    load_lab(home)
    open_lab(home).dispose()
    if not dagster_yaml(home).exists():
        # Without it Dagster would keep everything in its own files.
        raise PlatformError(
            f"the lab {home} was never started: {dagster_yaml(home)} is missing",
            f"Write it with {command('migrate', home)}",
        )
    return environment_of(home)


def dagster_yaml(home: Path) -> Path:
    """The path of the lab's dagster.yaml."""
    return home / "dagster" / "dagster.yaml"


def taken_lab(home: Path) -> Path:
    """The path of the lab.yaml that is in force while the lab is up: the last valid edit."""
    return home / "dagster" / "lab.yaml"


def lab_problem(home: Path) -> Path:
    """The path of the file in which `up` says why the last edit of lab.yaml is not in force; else there is no such
    file."""
    return home / "dagster" / "lab-problem.txt"


def where_it_stands(home: Path) -> Iterator[str]:
    """Lines about a lab that was copied or moved since its last start: the things that still name its old place."""
    try:
        written = load_yaml(dagster_yaml(home), yaml_text(dagster_yaml(home)))
        before = Path(written["local_artifact_storage"]["config"]["base_dir"]).parent
    except (OSError, PlatformError, ValueError, KeyError, TypeError):  # never started, or the lab's own file
        return
    if before == home or before.resolve() == home.resolve():
        return
    was = "copied" if before.exists() else "moved"
    yield (
        f"This lab was {was} from {before}. Relative paths in lab.yaml now begin at {home}. Registered files are "
        "found there by themselves, after the sensor's next look"
    )
    lab = load_lab(home)
    named = {
        **{f"raw_roots ({root})": root for root in lab.raw_roots},
        **{f"the project {name}": project.path for name, project in lab.projects.items()},
        "store": lab.store,
        "backups": lab.backups.folder,
    }
    for what, path in named.items():
        if path.is_relative_to(before):
            yield (
                f"lab.yaml still names {path} ({what}), in the lab's old place. Write "
                f"{path.relative_to(before)} instead, if this lab is to use its own"
            )


def wanted_dagster_yaml(home: Path, lab: Lab) -> dict[str, Any]:
    """The content of dagster.yaml: what lab.yaml asks for, replaced by the lab's own parts of it.

    Raises
    ------
    PlatformError
        When the file with the lab's own parts cannot be read, has no keys, or has a value that Dagster cannot use.
    """
    written = _dagster_yaml(home, lab)
    if lab.dagster_yaml is None:
        return written
    try:
        own = load_yaml(lab.dagster_yaml, yaml_text(lab.dagster_yaml))
    except OSError as error:
        raise PlatformError(
            f"{lab.dagster_yaml} cannot be read: {error.strerror}", "Correct dagster_yaml in lab.yaml"
        ) from error
    except UnicodeDecodeError as error:
        raise PlatformError(f"{lab.dagster_yaml} is not UTF-8: {error.reason}", "Save it as UTF-8") from error
    if not isinstance(own, dict):
        raise PlatformError(f"{lab.dagster_yaml} holds no keys", "Write parts of dagster.yaml into it")
    merged = _merged(written, own)
    _require_usable(merged, lab.dagster_yaml)
    return merged


def _require_usable(merged: Mapping[str, Any], own: Path) -> None:
    """Check that Dagster accepts a dagster.yaml, and can make the launcher and the queue that it names.

    Dagster itself checks that only when the first run is launched, which then fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "dagster.yaml").write_text(yaml.safe_dump(dict(merged)))
        try:
            reference = InstanceRef.from_dir(folder)
            assert reference.run_launcher and reference.run_coordinator
        except PlatformError as error:
            raise PlatformError(f"{own} does not fit: {error.problem}", error.remedy) from error
        except Exception as error:
            told = " ".join(str(error).split())
            raise PlatformError(f"Dagster does not accept {own}: {told}", "Mend that key") from error


def environment_of(home: Path) -> dict[str, str]:
    """The environment variables of a lab that is prepared already; some of them hold a password."""
    environment = {
        HOME_VARIABLE: str(home),
        "DAGSTER_HOME": str(dagster_yaml(home).parent),
        "DAGSTER_DISABLE_TELEMETRY": "true",
        _URL_VARIABLE: existing_dagster_url(postgres_url(home)).render_as_string(hide_password=False),
    }
    for name in (POSTGRES_VARIABLE, POSTGRES_FILE_VARIABLE, DAGSTER_POSTGRES_FILE_VARIABLE):
        if given := os.environ.get(name):
            # Else the catalogue would be looked for in the embedded server.
            environment[name] = given
    return environment


def pool_limits(lab: Lab) -> dict[str, int]:
    """The most runs of each pool of the lab's assets that may be under way at a time."""
    return {GPU_POOL: lab.runs.gpu_runs or gpu_slots(find_devices(lab.gpus), lab)}


def open_instance(environment: Mapping[str, str]) -> dg.DagsterInstance:
    """The instance of a lab that was prepared; sets the variables for this process and its children."""
    os.environ.update(environment)
    return dg.DagsterInstance.get()


def open_lock(path: Path) -> TextIO:
    """Open a lock file of a lab.

    Raises
    ------
    PlatformError
        When it cannot be opened, as in another user's lab.
    """
    try:
        return open(path, "a+")
    except OSError as error:
        raise PlatformError(
            f"{path} cannot be opened: {error.strerror}", "Run this as the user whose lab it is"
        ) from error


@contextmanager
def used(home: Path) -> Iterator[None]:
    """Hold the lab's Postgres while this process needs it, so that nobody stops it meanwhile."""
    load_lab(home)
    with open_lock(home / _LOCK) as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield


def is_used(home: Path) -> bool:
    """True if a process is within `used`."""
    with open_lock(home / _LOCK) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def clean(lab: LabResource) -> None:
    """Remove files that a crash left: half-written products, and interrupted trainings that nobody continued in
    time."""
    from dlc_platform.dlc.training import remove_unfinished

    lab.store.remove_partials()
    remove_unfinished(lab.workspaces, _TRAININGS_KEPT)


def _merged(written: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Merge key by key; the lab's own values win. A mapping that names a class is one piece with its configuration."""
    merged = {**written, **own}
    for key in written.keys() & own.keys():
        old, new = written[key], own[key]
        if isinstance(old, Mapping) and isinstance(new, Mapping) and "class" not in new:
            merged[key] = _merged(old, new)
    return merged


def _dagster_yaml(home: Path, lab: Lab) -> dict[str, Any]:
    return {
        "storage": {"postgres": {"postgres_url": {"env": _URL_VARIABLE}}},
        "run_launcher": {
            "module": "dlc_platform.launchers.gpu_run_launcher",
            "class": "GpuRunLauncher",
            "config": {
                "gpus": "auto" if lab.gpus == "auto" else list(lab.gpus),
                "avoid_busy": lab.avoid_busy_gpus,
            },
        },
        "concurrency": {
            "pools": {"granularity": "run", "default_limit": 1},
            "runs": {
                "max_concurrent_runs": max(4, 2 * (os.cpu_count() or 1), pool_limits(lab)[GPU_POOL] + 2),
                "tag_concurrency_limits": [NONE_THAT_WAITS],
            },
        },
        "run_coordinator": {
            "module": PatientRunCoordinator.__module__,
            "class": PatientRunCoordinator.__name__,
            "config": {"retry_minutes": list(lab.runs.retry_minutes)},
        },
        "run_monitoring": {
            "enabled": True,
            "poll_interval_seconds": 5,
            "free_slots_after_run_end_seconds": 5,
            "start_timeout_seconds": round(60 * lab.runs.start_minutes),
            "cancel_timeout_seconds": round(60 * lab.runs.cancel_minutes),
            **({} if lab.runs.most_hours is None else {"max_runtime_seconds": round(3600 * lab.runs.most_hours)}),
        },
        # A worker that died is started again; a computation that failed is not, because it would fail the same way.
        "run_retries": {
            "enabled": True,
            "max_retries": len(lab.runs.retry_minutes),
            "retry_on_asset_or_op_failure": False,
        },
        # Dagster keeps a row for each look of a sensor, and most of them say that there was nothing to do.
        "retention": {
            "sensor": {"purge_after_days": {"skipped": 3, "failure": 30, "success": 90}},
            "schedule": {"purge_after_days": {"skipped": 30, "failure": 90, "success": 365}},
        },
        "local_artifact_storage": {
            "module": "dagster._core.storage.root",
            "class": "LocalArtifactStorage",
            "config": {"base_dir": str(home / "dagster")},
        },
        "compute_logs": {
            "module": "dagster._core.storage.local_compute_log_manager",
            "class": "LocalComputeLogManager",
            "config": {"base_dir": str(home / "dagster" / "compute-logs")},
        },
        "telemetry": {"enabled": False},
        "nux": {"enabled": False},
    }


def write(path: Path, content: str) -> None:
    """Write a file whole: a process that reads it meanwhile finds the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(f".{os.getpid()}")
    beside.write_text(content)
    beside.replace(path)
