"""The checks of `dlc-platform doctor`: the faults of a lab, and what to do about them.

Nothing is changed here, except that the lab's embedded Postgres is started and left running. Nothing expensive is done:
no video is decoded, no network is loaded.
"""

import math
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine

from dlc_platform.catalog.database import lost_catalog, open_where_there
from dlc_platform.catalog.notifications import channel_states
from dlc_platform.catalog.promotions import production_model
from dlc_platform.catalog.quarantine import quarantine_counts
from dlc_platform.catalog.sessions import known_files
from dlc_platform.devices.gpus import GpuNames, find_devices, has_driver
from dlc_platform.dlc.backbone import IMAGENET, NETWORKS, check_weights
from dlc_platform.dlc.labels import read_labels
from dlc_platform.dlc.project import check_with_deeplabcut, read_project
from dlc_platform.errors import PlatformError, command, shell_word
from dlc_platform.identity import short
from dlc_platform.lab.waiting import waiting
from dlc_platform.models.comparison import ONE_SPLIT, different_splits, too_few_test_images
from dlc_platform.models.judging import judge_version, what_to_do
from dlc_platform.notify.messages import Channel
from dlc_platform.notify.sending import exposed_secret, reach
from dlc_platform.postgres.connection import existing_url
from dlc_platform.sessions.cropping import crop_without_region
from dlc_platform.sessions.layout import OUTSIDE, alike
from dlc_platform.sessions.recordings import Scan, scan
from dlc_platform.settings.inference import InferenceRule, Tracking
from dlc_platform.settings.lab import Lab
from dlc_platform.settings.layout import Layout
from dlc_platform.settings.loading import load_lab
from dlc_platform.settings.promotion import ModelRules
from dlc_platform.settings.recipes import Recipe
from dlc_platform.store import Store
from dlc_platform.text.words import counted
from dlc_platform.video.region import Region
from dlc_platform.video.registered import KnownFile

_LITTLE_SPACE_BYTES = 5 << 30
_MOST_OF_A_KIND = 10


@dataclass(frozen=True)
class Finding:
    """The result of one check; `remedy` is empty if all is well, and a warning is not a failure."""

    what: str
    found: str
    remedy: str = ""
    warning: bool = False


def examine(home: Path) -> Iterator[Finding]:
    """Examine a lab.

    The order is: settings, disks, Postgres, projects, recipes, sessions, regions, quarantine, production models,
    channels and devices.
    """
    try:
        lab = load_lab(home)
    except PlatformError as error:
        yield Finding("lab.yaml", error.problem, error.remedy)
        return
    yield Finding("lab.yaml", f"{home / 'lab.yaml'} is valid")
    yield from _open_home(home)
    yield from _store(lab.store)
    yield from _postgres(home, Store(lab.store))
    with _catalogue(home) as engine:
        files = [] if engine is None else known_files(engine)
    for name in lab.projects:
        yield from _project(name, lab, files)
    yield from _recipes(lab.recipes, lab.inference)
    yield from _sessions(lab.raw_roots, lab.layout, lab.scan.root_timeout_seconds)
    if lab.regions:
        yield from _regions(lab.tracking, files)
    yield from _waiting_for_a_person(home, lab)
    yield from _production(home, Store(lab.store), lab.projects, lab.model_rules)
    yield from _notify(home, lab.notify.channels)
    yield examine_devices(lab.gpus)


def examine_devices(listed: GpuNames) -> Finding:
    """Check that this machine has the GPUs that lab.yaml lists."""
    try:
        gpus = find_devices(listed)
        driver = not gpus or has_driver()
    except PlatformError as error:
        return Finding("devices", error.problem, error.remedy)
    names = ", ".join(map(str, gpus))
    if driver:
        return Finding("devices", names or "no GPU: everything runs on the CPU")
    return Finding(
        "devices",
        f"lab.yaml lists {names}, and this machine has no NVIDIA driver: what runs here computes on the CPU",
        "Install the driver, or write `gpus: auto` into lab.yaml, or `gpus: []` for the CPU; if a cluster has "
        "the GPUs, all is well",
        warning=True,
    )


def _open_home(home: Path) -> Iterator[Finding]:
    """Warn if other accounts of the machine can open HOME; a new HOME is closed to them."""
    try:
        mode = home.stat().st_mode & 0o777
        reachable = all(folder.stat().st_mode & 0o001 for folder in home.resolve().parents)
        data = home / "postgres" / "data"
        # The Postgres of root runs as another account, which must pass through HOME if its data lie there.
        through = data.is_dir() and not data.is_symlink() and data.stat().st_uid != home.stat().st_uid
    except OSError:  # for example in a container, which does not see the folders above
        return
    if not reachable or not mode & (0o004 if through else 0o005):
        return
    if through:
        found = f"every account of this machine can list {home} (mode {mode:04o})"
        remedy = f"Run: chmod o-rw {shell_word(home)} (its Postgres, which runs as another account, can still pass)"
    else:
        found = f"every account of this machine can open {home} (mode {mode:04o})"
        remedy = f"If you do not want that, run: chmod o-rwx {shell_word(home)}"
    yield Finding("HOME", found, remedy, warning=True)


def _store(folder: Path) -> Iterator[Finding]:
    place = folder
    try:
        while not place.exists():
            place = place.parent
    except OSError as error:
        yield Finding(
            "store",
            f"{place} cannot be reached: {error.strerror}",
            "Mend the permissions of the folders above, or point `store` elsewhere",
        )
        return
    if not place.is_dir():
        yield Finding("store", f"{place} is not a folder", "Remove it, or point `store` elsewhere")
        return
    if not os.access(place, os.W_OK):
        yield Finding("store", f"{place} is not writable", "Make it writable, or point `store` elsewhere")
        return
    free = shutil.disk_usage(place).free
    text = f"{folder}, {free / 2**30:.0f} GiB free"
    if free < _LITTLE_SPACE_BYTES:
        yield Finding("store", text, "Free some space, or point `store` in lab.yaml to a larger disk")
    else:
        yield Finding("store", text)


def _postgres(home: Path, store: Store) -> Iterator[Finding]:
    try:
        if (lost := lost_catalog(home, store)) is not None:
            raise lost
        url = existing_url(home)
    except PlatformError as error:
        yield Finding("Postgres", error.problem, error.remedy)
        return
    if url is None:
        yield Finding("Postgres", "the lab has no database yet; its first start makes one")
        return
    yield Finding("Postgres", f"database {url.database} on {url.host}:{url.port} answers")


def _project(name: str, lab: Lab, files: list[KnownFile]) -> Iterator[Finding]:
    try:
        project = read_project(lab.projects[name].path)
        check_with_deeplabcut(project)
        labels = read_labels(project)
    except PlatformError as error:
        yield Finding(f"project {name}", error.problem, error.remedy)
        return
    yield Finding(
        f"project {name}",
        f"{counted(len(labels.images), 'labelled frame')} in {counted(len(labels.folders()), 'folder')}",
    )
    for recipe, own in lab.recipes.items():
        if own.project == name and (few := too_few_test_images(lab.split_of(recipe), labels.images["sha256"])):
            yield Finding(f"recipe {recipe}", few, "Label more frames, or write a larger `test_fraction`", warning=True)
    if splits := different_splits(name, lab.splits_of(name), labels.images["sha256"]):
        recipes = ", ".join(lab.splits_of(name))
        yield Finding(f"recipes {recipes}", splits, ONE_SPLIT, warning=True)
    crop = crop_without_region(name, project, lab.tracking, files)
    for remark in (*labels.remarks, *([crop] if crop else [])):
        yield Finding(f"project {name}", remark.said, remark.remedy, warning=True)


def _recipes(recipes: Mapping[str, Recipe], inference: Sequence[InferenceRule]) -> Iterator[Finding]:
    for (net_type, weights), names in _networks(recipes).items():
        try:
            check_weights(weights, net_type)
        except PlatformError as error:
            # The network connection may come back before somebody trains.
            passing = weights == IMAGENET and net_type in NETWORKS
            yield Finding(f"recipe {', '.join(names)}", error.problem, error.remedy, warning=passing)
    if not recipes:
        yield Finding("recipes", "none", "Add a recipe to lab.yaml to train a model", warning=True)
    if not inference:
        yield Finding("inference", "no rules", "Add a rule under `inference` to have sessions tracked", warning=True)


def _networks(recipes: Mapping[str, Recipe]) -> dict[tuple[str, str], list[str]]:
    """The networks and first weights that the recipes ask for, each with its recipes."""
    asked: dict[tuple[str, str], list[str]] = {}
    for name, recipe in recipes.items():
        asked.setdefault((recipe.net_type, recipe.weights), []).append(name)
    return asked


def _sessions(raw_roots: Sequence[Path], layout: Layout, root_seconds: float) -> Iterator[Finding]:
    found = scan(raw_roots, layout, root_seconds)
    yield Finding("sessions", f"{len(found.sessions)} on disk")
    yield from _layout(layout, found)
    waiting = [session for session in found.sessions if session.waits is not None]
    if waiting:
        text, _, remedy = f"{waiting[0].key} with {waiting[0].waits}".partition("; ")
        yield Finding(
            "sessions",
            f"{counted(len(waiting), 'is', 'are')} not ready, such as {text}",
            _sentence(remedy),
            warning=True,
        )
    shown: Counter[str] = Counter()
    for skipped in found.skipped:
        if skipped.kind == "expected":
            continue
        reason, _, remedy = skipped.reason.partition("; ")
        lost = skipped.kind == "lost"
        shown[skipped.reason] += not lost
        if shown[skipped.reason] <= _MOST_OF_A_KIND:
            yield Finding("sessions", f"{skipped.path} is left out: {reason}", _sentence(remedy), warning=not lost)
    for reason, number in shown.items():
        if number > _MOST_OF_A_KIND:
            more = f"{counted(number - _MOST_OF_A_KIND, 'more is', 'more are')} left out: {reason.partition('; ')[0]}"
            yield Finding("sessions", more, "See all with `dlc-platform scan HOME --dry-run --all`", warning=True)


def _layout(layout: Layout, found: Scan) -> Iterator[Finding]:
    """The share of the videos on disk that the layout assigns to sessions."""
    name = layout.preset or ("the pattern" if "pattern" in layout.model_fields_set else "neuroblueprint")
    placed = sum(len(recording.files) for session in found.sessions for recording in session.recordings)
    outside = [skipped.path for skipped in found.skipped if skipped.reason == OUTSIDE]
    videos = placed + len(outside)
    if videos:
        text = f"{name} matches {placed} of {counted(videos, 'video')} ({math.floor(100 * placed / videos)} %)"
        remedy = f"Correct `layout` in lab.yaml if {outside[0]} and its like are sessions" if outside else ""
        yield Finding("layout", text, remedy, warning=placed > 0)
    for keys in alike(session.key for session in found.sessions):
        text = f"{' and '.join(keys)} are nearly the same key"
        yield Finding("layout", text, "Rename the folders of one, if they are one session", warning=True)


def _regions(tracking: Tracking, files: list[KnownFile]) -> Iterator[Finding]:
    """Check that each region lies in all videos of the cameras and sessions that it is for."""
    held = 0
    used: set[Region] = set()
    wrong: dict[tuple[Region, str], list[PlatformError]] = {}
    for file in files:
        region = tracking.region_for(file.session, file.camera)
        if region is None:
            continue
        used.add(region)
        try:
            region.check(file.width, file.height, f"{file.name} of {file.session}")
            held += 1
        except PlatformError as error:
            wrong.setdefault((region, file.camera), []).append(error)
    for (_, camera), errors in wrong.items():
        more = f"; the same of {len(errors) - 1} more of its videos" if len(errors) > 1 else ""
        yield Finding(f"region of {camera}", errors[0].problem + more, errors[0].remedy)
    for rule in tracking.regions:
        region = Region(rule.x, rule.y, rule.width, rule.height)
        if region not in used:
            yield Finding(
                "regions",
                f"the region {region} (camera {rule.camera}, session {rule.session}) matches no registered video",
                "Correct its patterns in lab.yaml, if it should be",
                warning=True,
            )
    yield Finding("regions", f"{counted(held, 'registered video holds its own', 'registered videos hold theirs')}")


def _waiting_for_a_person(home: Path, lab: Lab) -> Iterator[Finding]:
    with _catalogue(home) as engine:
        if engine is None:
            return
        counts = quarantine_counts(engine)
        wait = waiting(engine, lab)
    held = [one for one in wait if not one.passing]
    if held:
        yield Finding(
            "waiting",
            f"{counted(len({one.session for one in held}), 'session is', 'sessions are')} held up, such as "
            f"{held[0].session}: {held[0].reason}",
            f"See all, and what to do, with {command('sessions', home, '--waiting')}",
            warning=True,
        )
    else:
        number = len({one.session for one in wait})
        turn = counted(number, "session waits for its turn", "sessions wait for their turn")
        yield Finding("waiting", f"{turn}, and none is held up" if number else "no session waits or is held up")
    if counts.empty:
        yield Finding("quarantine", "no session is in it")
        return
    stages = ", ".join(
        f"{counted(int(str(row.sessions)), 'session')} at the stage {row.stage}" for row in counts.itertuples()
    )
    remedy = f"See why with {command('sessions', home, '--quarantined')}"
    yield Finding("quarantine", stages, remedy, warning=True)


def _production(home: Path, store: Store, projects: Iterable[str], rules: ModelRules) -> Iterator[Finding]:
    """The judgement of the production models by their test images."""
    with _catalogue(home) as engine:
        if engine is None:
            return
        in_production = {project: production_model(engine, project) for project in projects}
        judged = {
            project: (model, judge_version(engine, store, model, rules))
            for project, model in in_production.items()
            if model is not None
        }
    for project, (model, judgement) in judged.items():
        yield Finding(
            f"production model of {project}",
            f"{short(model)} is {judgement}",
            f"Nothing is tracked with it by itself. {what_to_do(judgement)}"
            if not judgement.tracks_by_itself
            else "Label more frames, so that some are left for the test side"
            if judgement.standing == "unproven"
            else "",
            warning=judgement.standing == "unproven",
        )


def _notify(home: Path, channels: Sequence[Channel]) -> Iterator[Finding]:
    """Check that each channel has its secret and a server that answers, and list what could not be sent."""
    if not channels:
        yield Finding("notifications", "lab.yaml names no channel: failures are seen in the UI alone")
        return
    with _catalogue(home) as engine:
        names = [channel.name for channel in channels]
        states = channel_states(engine, names) if engine is not None else {}
    for channel in channels:
        what = f"channel {channel.name}"
        if secret_file := exposed_secret(channel):
            yield Finding(
                what,
                f"other users of this machine may read {secret_file}",
                f"Keep it to yourself: chmod 600 {shell_word(secret_file)}",
                warning=True,
            )
        try:
            yield Finding(what, f"{reach(channel)}; it is told of {', '.join(channel.send)}")
        except PlatformError as error:
            # The service may have a variable that this shell does not have, and a server may come back.
            yield Finding(what, error.problem, error.remedy, warning=True)
        waiting, given_up, last_error = states.get(channel.name, (0, 0, None))
        if given_up or last_error:
            yield Finding(
                what,
                f"{counted(given_up, 'notification was', 'notifications were')} given up and "
                f"{counted(waiting, 'waits', 'wait')}; the last failure: {last_error}",
                f"Send a test with {command('notify', 'test', home)}",
                warning=True,
            )


@contextmanager
def _catalogue(home: Path) -> Iterator[Engine | None]:
    """The catalogue, if there is one that is up to date; else `inspection` says why not."""
    try:
        engine = open_where_there(home)
    except PlatformError:
        engine = None
    try:
        yield engine
    finally:
        if engine is not None:
            engine.dispose()


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] or "Rename or remove it"
