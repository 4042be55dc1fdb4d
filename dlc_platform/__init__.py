"""A data platform for pose estimation with DeepLabCut.

A notebook needs only this: ``from dlc_platform import Platform``. It is imported when it is first asked for, so that
each layer can be used without paying for the others.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dlc_platform.errors import PlatformError as PlatformError
    from dlc_platform.platform import Platform as Platform

_HOMES = {"Platform": "dlc_platform.platform", "PlatformError": "dlc_platform.errors"}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
