"""The check that lab.yaml is valid before a run is launched: else its worker could not load it, and the run would
fail."""

import os
from pathlib import Path

from dlc_platform.errors import HOME_VARIABLE, PlatformError
from dlc_platform.launchers.dagster_internals import DagsterUserCodeUnreachableError
from dlc_platform.settings.loading import load_lab


def require_valid_lab() -> None:
    """
    Raises
    ------
    DagsterUserCodeUnreachableError
        When lab.yaml is not valid. Dagster's queue then keeps the run, and asks again later.
    """
    home = os.environ.get(HOME_VARIABLE)
    if home is None:
        return
    try:
        load_lab(Path(home))
    except PlatformError as problem:
        raise DagsterUserCodeUnreachableError(f"This run waits until lab.yaml is mended. {problem}") from problem
