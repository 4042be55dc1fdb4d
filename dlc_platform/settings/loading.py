"""Loading lab.yaml: it is read, checked as a whole, and its faults are named by line and key."""

import os
from collections.abc import Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dlc_platform.errors import PlatformError, command
from dlc_platform.files.yaml import keys_not_text, load_yaml, written_at, yaml_text
from dlc_platform.settings.channels import Notify
from dlc_platform.settings.environment import LAB_FILE, STAGE_VARIABLE, TAKEN_VARIABLE, WRITTEN_FOLDERS
from dlc_platform.settings.fields import Section, leaves
from dlc_platform.settings.lab import STAGES, Lab, Stage

#: The words for faults that pydantic describes with its own types.
_FORMS = {
    **dict.fromkeys(("list_type", "tuple_type", "frozen_set_type"), "must be a list, such as [a, b]"),
    **dict.fromkeys(("model_type", "dict_type"), "must hold keys of its own, such as {key: value}"),
}


def load_lab(home: Path) -> Lab:
    """Read and validate ``HOME/lab.yaml``; relative paths are taken from HOME.

    Processes that `up` started read the copy that `up` last took.

    Raises
    ------
    PlatformError
        When it cannot be read or is not valid. It names the file, each wrong key with its value, and the remedy.
    """
    taken = Path(os.environ.get(TAKEN_VARIABLE) or home / LAB_FILE)
    is_of_home = taken.is_file() and taken.resolve().is_relative_to(home.resolve())
    file = taken if is_of_home else home / LAB_FILE
    try:
        text = yaml_text(file)
    except FileNotFoundError:
        raise PlatformError(
            f"{file} does not exist",
            f"Name the folder that holds it, or make a lab with {command('init', home, 'RAW_ROOT', 'DLC_PROJECT')}",
        ) from None
    except OSError as error:
        raise PlatformError(f"{file} cannot be read: {error.strerror}", "Check its permissions") from error
    except UnicodeDecodeError as error:
        raise PlatformError(f"{file} is not UTF-8: {error}", "Save it again as UTF-8 text") from error
    content = load_yaml(file, text)
    if not isinstance(content, dict):
        raise PlatformError(f"{file} holds no keys", "Write at least raw_roots and projects")
    if wrong := keys_not_text(text):
        said = "; ".join(
            f"line {line}: {'.'.join(place)}: the name {place[-1]} is not text in YAML; put it in quotes: '{place[-1]}'"
            for place, line in wrong
        )
        raise PlatformError(f"{file} is not valid: {said}", "Mend these names and try again")
    try:
        lab = Lab.model_validate(content)
    except ValidationError as error:
        raise PlatformError(f"{file} is not valid: {_explain(error, text)}", "Mend these keys and try again") from None
    lab = lab.model_copy(
        update={
            "raw_roots": tuple(_absolute(home, root) for root in lab.raw_roots),
            "stage": _stage(lab.stage),
            "store": _absolute(home, lab.store),
            "dagster_yaml": None if lab.dagster_yaml is None else _absolute(home, lab.dagster_yaml),
            "backups": lab.backups.model_copy(update={"folder": _absolute(home, lab.backups.folder)}),
            "projects": {
                name: entry.model_copy(update={"path": _absolute(home, entry.path)})
                for name, entry in lab.projects.items()
            },
            "recipes": {
                name: recipe
                if recipe.weights in ("imagenet", "random")
                else recipe.model_copy(update={"weights": str(_absolute(home, Path(recipe.weights)))})
                for name, recipe in lab.recipes.items()
            },
            "notify": _with_absolute_files(home, lab.notify),
        }
    )
    _require_apart(file, home, lab)
    return lab


def _require_apart(file: Path, home: Path, lab: Lab) -> None:
    """Refuse a lab.yaml in which the platform would write into folders that it must only read, read its own folders, or
    read a folder twice.

    Raises
    ------
    PlatformError
        When two folders overlap; it names both.
    """
    for folder in (*lab.raw_roots, *(project.path for project in lab.projects.values())):
        if _lies_in(home, folder):
            raise PlatformError(
                f"{file} is not valid: its own folder lies inside {folder}, where nothing may be written",
                "Move the lab's home out of the raw roots and the projects, or correct them",
            )
        for key, own in (("store", lab.store), ("backups.folder", lab.backups.folder)):
            if _lies_in(own, folder):
                raise PlatformError(
                    f"{file} is not valid: {key} is {own}, which lies inside {folder}, where nothing may be written",
                    "Choose a folder outside the raw roots and the projects",
                )
    written = [lab.store, *(home / name for name in WRITTEN_FOLDERS)]
    read = [("raw_roots", root) for root in lab.raw_roots]
    read += [(f"projects.{name}.path", project.path) for name, project in lab.projects.items()]
    for key, folder in read:
        for own in written:
            if _lies_in(folder, own):
                raise PlatformError(
                    f"{file} is not valid: {key} has {folder}, which lies inside {own}, where the platform writes",
                    "Choose the folder of the recordings or of the project itself",
                )
    for number, root in enumerate(lab.raw_roots):
        for other in lab.raw_roots[:number]:
            # A root whose written path lies below another is allowed: the first root that can place a video has it.
            if root != other and (root.is_relative_to(other) or other.is_relative_to(root)):
                continue
            if _lies_in(root, other) or _lies_in(other, root):
                where = "twice" if root == other else f"and {other}: one lies inside the other by another name"
                raise PlatformError(
                    f"{file} is not valid: raw_roots has {root} {where}", "Remove one, or its videos are found twice"
                )


def _lies_in(inner: Path, outer: Path) -> bool:
    """True if a folder is another folder or lies below it, by any names, links and mounts; it need not exist."""
    own, other = inner.resolve(), outer.resolve()
    if own.is_relative_to(other):
        return True
    try:
        identity = other.stat()
    except OSError:
        return False
    for folder in (own, *own.parents):
        with suppress(OSError):
            if os.path.samestat(folder.stat(), identity):
                return True
    return False


def _stage(written: Stage) -> Stage:
    given = os.environ.get(STAGE_VARIABLE)
    if not given:
        return written
    for stage in STAGES:
        if given == stage:
            return stage
    raise PlatformError(
        f"the environment variable {STAGE_VARIABLE} is {given!r}", f"Set it to one of {', '.join(STAGES)}, or unset it"
    )


def as_written(home: Path, path: Path) -> str:
    """The path for lab.yaml: relative below HOME, so that a lab that is copied or moved names its own folders."""
    below = path.absolute()
    if not below.is_relative_to(home.absolute()):
        return str(below)
    relative = str(below.relative_to(home.absolute()))
    return f"./{relative}" if relative.startswith("~") else relative


def _absolute(home: Path, path: Path) -> Path:
    return Path(os.path.normpath(home / os.path.expanduser(path)))


def _with_absolute_files(home: Path, notify: Notify) -> Notify:
    webhooks = [
        one.model_copy(update={"url_file": _absolute(home, one.url_file)}) if one.url_file else one
        for one in notify.webhooks
    ]
    mails = [
        one.model_copy(update={"password_file": _absolute(home, one.password_file)}) if one.password_file else one
        for one in notify.mails
    ]
    return notify.model_copy(update={"webhooks": tuple(webhooks), "mails": tuple(mails)})


def _explain(error: ValidationError, text: str) -> str:
    lines: list[tuple[int, str]] = []
    for problem in error.errors(include_url=False):
        place = problem["loc"]
        # pydantic ends the place of a wrong key with "[key]".
        if place[-1:] == ("[key]",) and problem["type"] != "extra_forbidden":
            place = place[:-1]
        key = ".".join(map(str, place))
        value = problem["input"]
        written = written_at(text, place)
        # If somebody wrote a secret into lab.yaml, it should not get into a log as well.
        shown = "not shown" if problem["loc"][:1] == ("notify",) else _brief(value)
        if problem["type"] == "extra_forbidden":
            near = get_close_matches(str(place[-1]).lower(), _keys_beside(place), n=2, cutoff=0.6)
            meant = f"did you mean {' or '.join(near)}?" if near else "remove it or correct its name"
            said = f"{key} is not a key of lab.yaml (value: {shown}); {meant}"
        elif problem["type"] == "missing":
            said = f"{key} is missing; add it"
        elif value is None:
            said = f"{key} has no value; give it one, or remove it"
        elif problem["type"] in ("string_type", "path_type") and not isinstance(value, (list, dict)):
            letters = "" if written is None or shown == "not shown" else written.value
            quoted = f"quotes: '{letters}'" if letters else "quotes"
            said = f"{key} is {letters or shown}, which is not text in YAML; put it in {quoted}"
        else:
            reason = _FORMS.get(problem["type"]) or problem["msg"].removeprefix("Value error, ")
            reason = reason.replace("tuple", "list").replace("Tuple", "List")
            said = f"{key} is {shown}: {reason}" if key else reason
        lines.append((0, said) if written is None else (written.line, f"line {written.line}: {said}"))
    return "; ".join(said for _, said in sorted(lines, key=lambda line: line[0]))


def _keys_beside(place: Sequence[str | int]) -> list[str]:
    """The keys that lab.yaml knows in the section of a key."""
    annotation: Any = Lab
    for part in place[:-1]:
        sections = _sections(annotation)
        if isinstance(annotation, type) and issubclass(annotation, Section) and part in annotation.model_fields:
            annotation = annotation.model_fields[str(part)].annotation
        else:  # a name or a number, which leads to a section
            annotation = sections[0] if sections else Any
    return [key for section in _sections(annotation) for key in section.model_fields]


def _sections(annotation: Any) -> list[type[Section]]:
    return [kind for kind, _ in leaves(annotation) if isinstance(kind, type) and issubclass(kind, Section)]


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
