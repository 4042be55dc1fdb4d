"""Making a lab: the first lab.yaml, for a person to read and change."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dlc_platform.dlc.comparison import FEWEST_IMAGES
from dlc_platform.dlc.dataset import side
from dlc_platform.dlc.labels import read_labels
from dlc_platform.dlc.project import CONFIG_FILE, Project, read_project
from dlc_platform.errors import PlatformError, shell_word
from dlc_platform.files.yaml import dump_yaml
from dlc_platform.sessions.cropping import holds_crops, region_rule
from dlc_platform.settings.environment import LAB_FILE
from dlc_platform.settings.inference import SMALLEST_REGION
from dlc_platform.settings.loading import as_written, load_lab
from dlc_platform.settings.recipes import NET_TYPES, Recipe
from dlc_platform.settings.schema import SCHEMA_LINE, write_schema
from dlc_platform.text.words import counted
from dlc_platform.video.region import Region

#: The seed of a new project's split, and of its first training.
_SEED = 42
#: The shares of labelled images to test on; the first one that is enough is used, a third at most.
_TEST_FRACTIONS = (0.1, 0.15, 0.2, 0.25, 0.3)

_TEXT = """\
{schema}# This file says where the lab's recordings and labels lie, how its models are trained, and when poses are good.
# Relative paths begin at the folder of this file. `dlc-platform doctor {home}` checks it.
{name}
# The folders that hold the recorded sessions; they are only read.
raw_roots:
{raw_roots}
# The folders and the file name of a video name its session. By default they follow NeuroBlueprint (sub-*/ses-*). Write
# `preset: bids`, `preset: element` or your own pattern for other folders. `marker` is a file that the rig writes when a
# video is complete. Links that lead out of a raw root are followed, unless `links_outside` is leave_out.
# layout:
#   pattern: '(?P<subject>[^/]+)/(?P<session>[^/]+)/(?P<camera>[^/]+)\\.mp4'
#   marker: '{{stem}}.done'
#   links_outside: leave_out
# `dlc-platform scan {home} --dry-run` shows what it finds, and why the rest is left out.

# The lab's DeepLabCut projects of a single animal; they are only read. `split_seed` chooses the test images of all
# recipes. Do not change it: versions that were trained before a change cannot be compared with later ones.
projects:
{projects}
# Recipes for `dlc-platform train {home} NAME`. `net_type` is one of cspnext_s, cspnext_m, cspnext_x, hrnet_w18,
# hrnet_w32, hrnet_w48, resnet_50 and resnet_101; `weights` is imagenet (downloaded once), random, or a folder with
# config.json and model.safetensors.
# `seed` chooses the random numbers of training: with another seed, a training is repeated on the same images.
# `test_fraction` is the fraction of the labelled images that models are tested on, and not trained. With fewer than
# {fewest} test images no interval of the error is shown, and no version counts as better.
{tests}
recipes:
{recipes}
# Each camera is tracked by the production model of a project: the first rule that matches the camera's name counts.
inference:
{inference}
# A region is the part of the picture to use, in pixels; without one, all of it is used. It holds for training,
# inference and pictures, e.g.
{regions}
# The rule by which a model version becomes the production model:
#   clearly_better: its test error is lower, beyond chance, and no body part got worse. The first version is promoted at
#   once.
#   person: only a person promotes.
# A hopeless version is never promoted by the rule. If a person promotes it, it tracks nothing by itself. A version is
# hopeless if one of these is true on its test images:
#   correct: fewer predictions than this fraction lie near their label. Near means within 0.2 of the animal's size (the
#   loosest PCK in use), or within 3 times the error of a person who labels again, if that is more. This error is
#   2.3 % of the animal's size (2.69 px on DeepLabCut's open field), unless you write yours as `human_error_px`.
#   confident: fewer predictions than this fraction reach likelihood_cutoff.
#   spread: the predictions spread less than this fraction of the spread of the labels. Such a model predicts nearly the
#   same place in every image.
promotion:
  rule: clearly_better
  confidence: 0.95
  hopeless: {{correct: 0.5, within_animal: 0.2, within_human: 3, human_error_px: null, confident: 0.05, spread: 0.1}}

# A recording with a truncated or damaged video is registered. With `stop` it is not tracked; with `track`, the part
# that can be decoded is tracked.
damaged_videos: stop

# The lab tells people of failures, sessions in quarantine, late poses and the day's report: by a webhook (its URL
# stands in a file or an environment variable, never here) or by e-mail, e.g.
# notify:
#   webhooks: [{{name: lab-room, url_file: room.url, format: slack}}]
# Poses are late after so many hours.
freshness:
  poses_within_hours: 24

# The time zone of reports and schedules, such as Europe/Berlin.
time_zone: UTC

# Poses of a session fail, or get a warning, if a score is beyond one of these floors. Floors hold for every model,
# whatever it does on its own test images. null switches a floor off. The page "Good poses and bad ones" says more.
#   confident: the fraction of keypoints that reach likelihood_cutoff, in the frames in which the animal is seen. Below
#   one half, most of the recording is lost. (The International Brain Laboratory fails a session if 20 % of a paw is.)
#   bodypart_confident: the same for one body part. It only warns, because the part may be hidden for good reasons.
#   mean_likelihood: 0.3 means that half of the keypoints have DeepLabCut's cutoff of 0.6, and the others 0.
#   empty_frames: the fraction of frames without any keypoint.
#   still: the fraction of frames in which no keypoint moves, although the picture does.
#   no_animal: the fraction of frames in which half of the keypoints are unsure, and far from sure ones that move. In an
#   empty cage a network is often sure of a thing that looks like an ear.
#   background: the fraction of a body part's confident places that are a thing away from the animal, which never moves.
pose_quality:
  floors:
    confident: {{fail: 0.5}}
    bodypart_confident: {{warn: 0.5}}
    mean_likelihood: {{fail: 0.3}}
    empty_frames: {{warn: 0.5, fail: 0.9}}
    still: {{warn: 0.1, fail: 0.5}}
    no_animal: {{warn: 0.2, fail: 0.5}}
    background: {{warn: 0.1, fail: 0.5}}
# Limits follow from the model's own evaluation, and only warn. Limits that you write replace them. A rule has other
# limits for some cameras. `blocks` lists the work that bad poses block: downstream, exports, promotion; by default they
# block nothing. For example:
#   limits: {{fraction_confident: {{fail: 0.3}}, jumps: {{warn: 0.01, fail: 0.05}}}}
#   rules: [{{camera: 'side*', floors: {{confident: {{fail: 0.3}}}}, arena: [[40, 0], [600, 480]]}}]
#   blocks: [exports]

# Limits for the videos of a camera. Figures without a limit are compared with the camera's earlier videos, and only
# warn, e.g.
# video_quality:
#   - {{camera: 'top*', resolution: [640, 480], frame_rate: 30, exposure: [40, 200], on_failure: quarantine}}

# This folder holds the datasets, models, evaluations and poses.
store: store

# The lab looks for new videos every scan_seconds, and takes a video that has not changed for settle_seconds.
settle_seconds: {settle_seconds}
scan_seconds: {scan_seconds}

# One look takes tick_seconds at most. `order` says which sessions come first: newest, oldest or name. At most
# queued_sessions are under way at a time.
scan:
  tick_seconds: 20
  order: newest
  queued_sessions: 200
  sessions_per_run: 100
  gigabytes_per_run: 4

# GPUs that runs may use: auto, or a list such as [0, 1].
gpus: auto

# Schedules and sensors are on in production, and off in staging and development until somebody switches them on.
stage: production

# The lab's own upkeep begins at these times: minute, hour, day of the month, month, day of the week. null switches
# one off.
# schedules:
#   catch_up: '30,40 2 * * *'
#   evaluate_new_labels: '0 3 * * 6'
#   verify_store: '0 4 1 * *'
#   back_up: '0 6 1 * *'
#   clean_up: '0 5 * * *'
# The UI answers under 127.0.0.1 and localhost, and under these host names, such as that of a proxy.
# web: {{hosts: [dlc.lab.example.org]}}
# Backups lie in this folder, best on another disk; so many are kept.
# backups: {{folder: backups, keep: 12}}
# A run whose worker died is tried again after these minutes. Logs of runs are kept for so many days.
# runs: {{retry_minutes: [1, 5, 25], keep_events_days: 90}}

# A keypoint is confident from this likelihood on. Others are drawn hollow.
likelihood_cutoff: 0.6
"""


def make_lab(home: Path, raw_roots: Sequence[Path], projects: Sequence[Path]) -> Path:
    """Write ``HOME/lab.yaml`` for these raw roots and DeepLabCut projects, with one recipe for each project.

    Raises
    ------
    PlatformError
        When a lab.yaml exists already, a folder is missing or unusable, or a project cannot be read.
    """
    home = home.absolute()
    file = home / LAB_FILE
    if file.exists():
        raise PlatformError(f"{file} exists already", "Edit it, or choose another HOME")
    if not raw_roots or not projects:
        raise PlatformError(
            "a lab needs raw data and labels", "Give at least one folder of sessions and one DeepLabCut project"
        )
    raw_roots = list(dict.fromkeys(root.absolute() for root in raw_roots))
    for root in raw_roots:
        if not root.is_dir():
            raise PlatformError(f"the raw root {root} is not a folder", "Create it, or give another folder")
        _require_outside(home, root, "raw root")
    entries: dict[str, Project] = {}
    for path in dict.fromkeys(projects):
        if not (path / CONFIG_FILE).exists():
            raise PlatformError(
                f"{path / CONFIG_FILE} does not exist", "Give the folder of a DeepLabCut project, which holds that file"
            )
        project = read_project(path.absolute())
        _require_outside(home, project.path, "project")
        first = _name(project.task, "project")
        number, name = 1, first
        while name in entries:
            number += 1
            name = f"{first}-{number}"
        entries[name] = project
    recipes: dict[str, Recipe] = {}
    images = {name: labelled_images(project) for name, project in entries.items()}
    for name, project in entries.items():
        # Older projects may name networks that DeepLabCut's PyTorch engine does not have.
        asked = project.config.get("default_net_type")
        net_type = str(asked) if asked in NET_TYPES else "resnet_50"
        recipes[f"{name}-{_name(net_type.replace('_', ''), 'network')}"] = Recipe(
            project=name, net_type=net_type, test_fraction=_test_fraction(images[name]), seed=_SEED
        )
    rules = [("*", next(iter(entries)))]
    text = lab_text(home, _name(home.name, "lab"), raw_roots, entries, images, recipes, rules)
    try:
        # A person who wants to share the lab opens it with chmod; nothing here changes that again.
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise PlatformError(
            f"{file} cannot be written: {error.strerror}", "Choose a HOME in a folder of your own"
        ) from error
    except UnicodeEncodeError as error:
        raise PlatformError(
            f"the name of a folder is not text: {error}", "Rename it, or give another path to it"
        ) from error
    try:
        load_lab(home)
    except PlatformError:
        file.unlink()  # a file that `doctor` would refuse
        raise
    write_schema(home)
    return file


def lab_text(
    home: Path,
    name: str,
    raw_roots: Sequence[Path],
    projects: Mapping[str, Project],
    images: Mapping[str, Sequence[str] | None],
    recipes: Mapping[str, Recipe],
    inference: Sequence[tuple[str, str]],
    split_seed: int = _SEED,
    settle_seconds: int = 30,
    scan_seconds: int = 30,
) -> str:
    """A lab.yaml with its comments.

    Parameters
    ----------
    images
        The result of `labelled_images` for each project.
    inference
        The pattern of a camera and the project that tracks it, for each rule.
    """
    return _TEXT.format(
        schema=SCHEMA_LINE,
        fewest=FEWEST_IMAGES,
        home=shell_word(home),  # in comments, which a line break would end
        name=_yaml({"name": name}, indent=""),
        raw_roots=_yaml([as_written(home, root) for root in raw_roots]),
        projects=_yaml(
            {
                name: {"path": as_written(home, project.path), "split_seed": split_seed}
                for name, project in projects.items()
            }
        ),
        tests="\n".join(
            f"# {name}: {_tested(images[recipe.project], split_seed, recipe.test_fraction)}"
            for name, recipe in recipes.items()
        ),
        recipes=_yaml({name: _written(recipe) for name, recipe in recipes.items()}),
        inference=_yaml([{"camera": camera, "project": project} for camera, project in inference]),
        regions=_regions(projects),
        settle_seconds=settle_seconds,
        scan_seconds=scan_seconds,
    )


#: The keys that a recipe always shows; other keys are shown if they differ from their defaults.
_ALWAYS = {"project", "net_type", "epochs", "batch_size", "test_fraction", "seed", "weights"}


def _written(recipe: Recipe) -> dict[str, Any]:
    changed = recipe.model_dump(mode="json", exclude_defaults=True)
    return {key: value for key, value in recipe.model_dump(mode="json").items() if key in _ALWAYS or key in changed} | {
        key: value for key, value in changed.items() if isinstance(value, dict)
    }


def labelled_images(project: Project) -> list[str] | None:
    """The identities of a project's labelled images; None if its labels cannot be read, which `doctor` explains."""
    try:
        return list(read_labels(project).images["sha256"])
    except PlatformError:
        return None


def _test_fraction(images: Sequence[str] | None) -> float:
    """The share of a project's labelled images to test on.

    A tenth, or as much more as it takes for `FEWEST_IMAGES`, up to the most that leaves enough to learn from.
    """
    if images is None:
        return _TEST_FRACTIONS[0]
    enough = [one for one in _TEST_FRACTIONS if _number_tested(images, _SEED, one) >= FEWEST_IMAGES]
    return (*enough, _TEST_FRACTIONS[-1])[0]


def _tested(images: Sequence[str] | None, seed: int, fraction: float) -> str:
    """The number of images that a recipe is tested on, in words."""
    if images is None:
        return "its labels could not be counted, see `doctor`"
    number = _number_tested(images, seed, fraction)
    few = "" if number >= FEWEST_IMAGES else ", which are too few: label more"
    return f"{number} of {counted(len(images), 'labelled image')} {'is' if number == 1 else 'are'} tested on{few}"


def _number_tested(images: Sequence[str], seed: int, fraction: float) -> int:
    return sum(side(image, seed, fraction) == "test" for image in images)


def _require_outside(home: Path, folder: Path, what: str) -> None:
    if home.resolve().is_relative_to(folder.resolve()):
        raise PlatformError(
            f"HOME {home} lies inside the {what} {folder}, where nothing may be written",
            f"Choose a HOME outside the {what}",
        )


def _name(text: str, otherwise: str) -> str:
    """A name that lab.yaml accepts, with room for an ending."""
    return re.sub(r"\.{2,}", ".", re.sub(r"[^A-Za-z0-9_.-]+", "-", text))[:45].strip("-._") or otherwise


def _regions(projects: Mapping[str, Project]) -> str:
    """The regions of projects that say `cropping: true`: as rules if that is certain, else as comments to check."""
    cropped = [(name, project, project.cropped) for name, project in projects.items() if project.cropped]
    lines = [f"#   - {region_rule(Region(40, 0, 560, 480))}"]
    for name, project, region in cropped:
        large = min(region.width, region.height) >= SMALLEST_REGION
        if len(projects) == 1 and large and holds_crops(project):
            return (
                "# This one is what DeepLabCut crops (`cropping: true` in config.yaml).\n"
                f"regions:\n  - {region_rule(region)}"
            )
        lines.append(f"# The project {name} says `cropping: true` in config.yaml: see whether its cameras need")
        lines.append(f"#   - {region_rule(region)}")
    return "\n".join(["# regions:", *lines])


def _yaml(value: object, indent: str = "  ") -> str:
    return "".join(indent + line for line in dump_yaml(value, sort_keys=False).splitlines(keepends=True))
