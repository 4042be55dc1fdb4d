"""A DeepLabCut project of the lab: its config.yaml, and its validation by DeepLabCut.

Projects are only read; nothing here writes. Label tables are read in `labels`.
"""

import sys
from collections.abc import Collection
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from dlc_platform.errors import PlatformError
from dlc_platform.files.yaml import load_yaml, yaml_text
from dlc_platform.video.region import Region

if TYPE_CHECKING:
    from deeplabcut.core.config import ProjectConfig

CONFIG_FILE = "config.yaml"


@dataclass(frozen=True)
class Project:
    """A single-animal DeepLabCut project.

    Attributes
    ----------
    path
        The folder that holds config.yaml.
    skeleton
        Pairs of body parts; pairs that name other things (DeepLabCut's template does) are left out.
    video_paths
        The videos of ``video_sets`` as they are written there; they need not exist on this machine.
    cropped
        The part of each video that DeepLabCut analyses, if the project says ``cropping: true``; None if it analyses
        whole pictures.
    config
        All of config.yaml, as read.
    """

    path: Path
    task: str
    scorer: str
    bodyparts: tuple[str, ...]
    skeleton: tuple[tuple[str, str], ...]
    video_paths: tuple[Path, ...]
    cropped: Region | None
    config: dict[str, Any]


def read_config(file: Path) -> dict[str, Any]:
    """All of a project's config.yaml, of any kind of project, without importing deeplabcut.

    Raises
    ------
    PlatformError
        When it is missing, not YAML, has a key twice, or holds no keys.
    """
    try:
        text = yaml_text(file)
    except FileNotFoundError:
        raise PlatformError(
            f"{file} does not exist", "Point `path` of this project in lab.yaml to the folder that holds config.yaml"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise PlatformError(f"{file} cannot be read: {error}", "Check the file and its permissions") from error
    config = load_yaml(file, text)
    if not isinstance(config, dict):
        raise PlatformError(f"{file} holds no keys", "Make the project with deeplabcut.create_new_project")
    return config


def read_skeleton(config: dict[str, Any], bodyparts: Collection[str]) -> tuple[tuple[str, str], ...]:
    """The pairs of ``skeleton`` in a config.yaml; pairs that name other things (DeepLabCut's template does) are not."""
    skeleton = config.get("skeleton")
    pairs = [tuple(map(str, pair)) for pair in skeleton if isinstance(pair, list)] if isinstance(skeleton, list) else []
    return tuple((pair[0], pair[1]) for pair in pairs if len(pair) == 2 and set(pair) <= set(bodyparts))


def read_project(path: Path) -> Project:
    """Read a project's config.yaml without importing deeplabcut.

    Raises
    ------
    PlatformError
        When config.yaml is missing or not YAML, names no scorer or no body parts, or belongs to a multi-animal project.
    """
    file = path / CONFIG_FILE
    config = read_config(file)
    if _is_true(config.get("multianimalproject")) or config.get("bodyparts") == "MULTI!":
        raise PlatformError(
            f"{file} is a multi-animal project, and only single-animal projects can be used",
            "Use a project with `multianimalproject: false`, or leave this one out",
        )
    for key in ("Task", "scorer"):
        if config.get(key) in (None, ""):
            raise PlatformError(f"{file} has no value for `{key}`", f"Write `{key}`, as DeepLabCut does")
    listed = config.get("bodyparts")
    if not isinstance(listed, list) or not listed:
        raise PlatformError(f"{file} names no body parts", "List the labelled body parts under `bodyparts`")
    for part in listed:
        # A truth value or a date is not the name that the tables use.
        if not isinstance(part, str | int | float) or isinstance(part, bool) or part == "":
            raise PlatformError(
                f"{file} has {part!r} under `bodyparts`, which YAML does not read as a name",
                "Write the name in quotes, as the label tables have it",
            )
    bodyparts = tuple(str(part) for part in listed)
    if twice := [part for part in dict.fromkeys(bodyparts) if bodyparts.count(part) > 1]:
        raise PlatformError(f"{file} names {', '.join(twice)} twice under `bodyparts`", "Remove or rename one of them")
    if "all" in bodyparts:
        raise PlatformError(f"{file} names a body part `all`, which stands for their total in tables", "Rename it")
    videos = config.get("video_sets")
    return Project(
        path=path,
        task=str(config["Task"]),
        scorer=str(config["scorer"]),
        bodyparts=bodyparts,
        skeleton=read_skeleton(config, bodyparts),
        video_paths=tuple(Path(str(v).replace("\\", "/")) for v in videos) if isinstance(videos, dict) else (),
        cropped=_cropped(config),
        config=config,
    )


def _cropped(config: dict[str, Any]) -> Region | None:
    if not _is_true(config.get("cropping")):
        return None
    corners = [config.get(key) for key in ("x1", "x2", "y1", "y2")]
    if not all(isinstance(corner, int) and not isinstance(corner, bool) for corner in corners):
        return None  # DeepLabCut refuses that itself
    left, right, top, bottom = map(int, corners)  # pyright: ignore[reportArgumentType] (integers, as was checked)
    return Region(left, top, right - left, bottom - top) if right > left and bottom > top else None


def _is_true(value: Any) -> bool:
    """A yes-or-no value of config.yaml, in all spellings that DeepLabCut accepts."""
    return str(value).lower() in ("true", "yes", "on", "y", "t", "1")


def check_with_deeplabcut(project: Project) -> None:
    """Let DeepLabCut validate config.yaml, on a copy in memory.

    Raises
    ------
    PlatformError
        Naming the file and each key that DeepLabCut rejects.
    """
    from copy import deepcopy

    from pydantic import ValidationError

    try:
        _project_config().from_dict(deepcopy(project.config))
    except ValidationError as error:
        reasons = [
            f"`{'.'.join(map(str, problem['loc']))}` is not a key that DeepLabCut knows"
            if problem["type"] == "extra_forbidden"
            else f"`{'.'.join(map(str, problem['loc'])) or 'the file'}`: {problem['msg']}"
            for problem in error.errors(include_url=False)
        ]
        raise PlatformError(
            f"DeepLabCut rejects {project.path / CONFIG_FILE}: {'; '.join(reasons)}",
            "Remove unknown keys and correct the others in config.yaml",
        ) from None


def _project_config() -> type["ProjectConfig"]:
    """DeepLabCut's model of config.yaml, without the rest of deeplabcut, which takes half a minute to import."""
    whole = "deeplabcut" in sys.modules
    if not whole:
        spec = find_spec("deeplabcut")
        assert spec is not None
        bare = ModuleType("deeplabcut")
        bare.__path__ = list(spec.submodule_search_locations or ())
        sys.modules["deeplabcut"] = bare
    try:
        from deeplabcut.core.config import ProjectConfig
    finally:
        if not whole:
            # A later import of deeplabcut gets all of it.
            for name in [name for name in sys.modules if name.split(".")[0] == "deeplabcut"]:
                del sys.modules[name]
    return ProjectConfig
