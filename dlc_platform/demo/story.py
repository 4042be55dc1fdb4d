"""The demo's story: a small lab does the whole main job, and the result is compared with the truth.

The demo does what a person would do, from outside: it writes lab.yaml, starts the lab, asks Dagster for a training, and
puts videos into the raw folder. Its material comes from `lab` and `render`.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dlc_platform.demo import lab as material
from dlc_platform.dlc.project import read_project
from dlc_platform.errors import PlatformError, command
from dlc_platform.lab.new_lab import lab_text, labelled_images
from dlc_platform.orchestration.services import Services
from dlc_platform.orchestration.up import running
from dlc_platform.platform import Platform
from dlc_platform.settings.environment import LAB_FILE, STAGE_VARIABLE
from dlc_platform.settings.schema import write_schema
from dlc_platform.text.words import counted

if TYPE_CHECKING:
    import pandas as pd

_RECIPE = "arena-cspnext"
_MEDIAN_LIMIT_PX = 5.0
_DEADLINE_SECONDS = 1800


def tell(home: Path, port: int | None, stay: Callable[[], None] | None, say: Callable[[str], None]) -> bool:
    """Run the demo.

    Parameters
    ----------
    home
        A folder that does not exist yet, or is empty.
    stay
        Called at the end, while everything still runs; with None everything stops at the end.
    say
        Called with one line for each step.

    Returns
    -------
    bool
        False if the median error of the automatic poses is over 5 px.

    Raises
    ------
    PlatformError
        When `home` is in use, or a run fails.
    """
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        in_use = any(home.iterdir())
    except OSError as error:
        raise PlatformError(f"{home} cannot be used: {error.strerror}", "Choose another folder with --home") from error
    if in_use:
        raise PlatformError(
            f"{home} is not empty",
            f"Look at that demo again with {command('up', home)}, remove it, or choose another --home",
        )
    # The demo waits for the sensors, even if this machine has another stage set.
    os.environ[STAGE_VARIABLE] = "production"
    stages: dict[str, float] = {}
    with _stage("render the lab", stages, say):
        lab = material.make_lab(home)
        write_settings(lab)
    with running(home, port, say) as services:
        say(f"The UI: {services.address}")
        platform = Platform(home)
        with _stage("register the labelled sessions", stages, say):
            _wait_until(lambda: len(platform.sessions()) == len(material.LABELLED), services)
        with _stage("train, evaluate, promote", stages, say):
            services.follow(services.launch("train_recipe", _RECIPE), lambda message: say(f"  {message}"))
        _report_model(platform, say)
        with _stage("record two new sessions", stages, say):
            drops = material.drop_sessions(lab)
        with _stage("find and track them, unasked", stages, say):
            wanted = {drop.session for drop in drops}
            _wait_until(lambda: wanted <= set(platform.estimates()["session"]), services)
        errors = _errors(platform, drops)
        median = float(errors["error"].median())
        say(f"Automatic poses against the truth, {len(errors)} keypoints of {len(drops)} unseen sessions:")
        say(f"  median error {median:.2f} px, 90 % below {errors['error'].quantile(0.9):.2f} px")
        for bodypart, own in errors.groupby("bodypart", sort=False)["error"]:
            say(f"  {bodypart}: median {own.median():.2f} px")
        say("Time by stage:")
        for name, seconds in stages.items():
            say(f"  {name}: {seconds:.0f} s")
        say(f"  together: {sum(stages.values()):.0f} s")
        good = median <= _MEDIAN_LIMIT_PX
        if not good:
            say(f"The median error is over {_MEDIAN_LIMIT_PX:g} px")
        if stay is not None:
            say("Where to look:")
            for what, asset, key in (
                ("pictures of the poses", "pose_estimates", drops[0].session),
                ("the worst test frames", "model_evaluation", _RECIPE),
            ):
                say(f"  {what}: {services.url}/assets/{asset}?view=partitions&partition={key}")
            say(f"  from Python: dlc_platform.platform.Platform({str(home)!r}).poses({drops[0].session!r})")
            say("The UI stays up; Ctrl-C stops everything.")
            stay()
    say(f"Stopped. {command('up', home)} starts the lab again")
    return good


def write_settings(lab: material.DemoLab) -> None:
    """The lab.yaml that `init` would write, with the demo's recipe and a sensor that looks more often."""
    project = read_project(lab.project)
    text = lab_text(
        lab.home,
        "demo",
        [lab.raw],
        {material.PROJECT: project},
        {material.PROJECT: labelled_images(project)},
        {_RECIPE: material.RECIPE},
        [("top", material.PROJECT)],
        split_seed=material.RECIPE.seed,
        settle_seconds=4,
        scan_seconds=4,
    )
    (lab.home / LAB_FILE).write_text(text, encoding="utf-8")
    write_schema(lab.home)


def _wait_until(done: Callable[[], bool], services: Services) -> None:
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while not done():
        services.check()
        services.check_runs()
        if time.monotonic() > deadline:
            raise PlatformError(f"there was no result within {_DEADLINE_SECONDS} s", f"Look at {services.url}/runs")
        time.sleep(1)


def _report_model(platform: Platform, say: Callable[[str], None]) -> None:
    model = platform.models().iloc[-1]
    say(
        f"Model {model['model'][:12]}: {counted(model['train_images'], 'training image')}, "
        f"RMSE {model['test_rmse_px']:.2f} px on {counted(model['test_images'], 'test image')}"
    )


def _errors(platform: Platform, drops: list[material.Drop]) -> "pd.DataFrame":
    import pandas as pd

    return pd.concat(
        [material.position_errors(platform.poses(drop.session), pd.read_parquet(drop.truth)) for drop in drops]
    )


@contextmanager
def _stage(name: str, stages: dict[str, float], say: Callable[[str], None]) -> Iterator[None]:
    say(f"{name[0].upper()}{name[1:]} ...")
    started = time.monotonic()
    yield
    stages[name] = time.monotonic() - started
    say(f"{name[0].upper()}{name[1:]}: {stages[name]:.0f} s")
