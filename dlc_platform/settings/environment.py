"""The environment variables of the platform, and the names of the files and folders in a lab's home."""

import os
from pathlib import Path

from dlc_platform.errors import HOME_VARIABLE, PlatformError

POSTGRES_VARIABLE = "DLC_PLATFORM_POSTGRES_URL"
#: A file that holds the URL; containers and services get their secrets so.
POSTGRES_FILE_VARIABLE = "DLC_PLATFORM_POSTGRES_URL_FILE"
#: A file with another URL of the same database, for a role of Dagster's own. There is no variable for that URL itself,
#: because dagster.yaml names it and the platform makes it.
DAGSTER_POSTGRES_FILE_VARIABLE = "DLC_PLATFORM_DAGSTER_POSTGRES_URL_FILE"
STAGE_VARIABLE = "DLC_PLATFORM_STAGE"
#: For a web server that does not see the lab's home: the file that holds its token, and the names that it answers to.
WEB_TOKEN_FILE_VARIABLE = "DLC_PLATFORM_WEB_TOKEN_FILE"
WEB_READ_ONLY_TOKEN_FILE_VARIABLE = "DLC_PLATFORM_WEB_READ_ONLY_TOKEN_FILE"
WEB_HOSTS_VARIABLE = "DLC_PLATFORM_WEB_HOSTS"
LAB_FILE = "lab.yaml"
#: Names the copy of lab.yaml that `up` last took. All processes that it starts read this copy, so that an edit comes
#: into force for all of them together, and an invalid edit for none.
TAKEN_VARIABLE = "DLC_PLATFORM_TAKEN_LAB"
#: The folders of a lab's home into which the platform writes, besides those that lab.yaml names.
WRITTEN_FOLDERS = ("postgres", "dagster", "work", "logs")


def home_from_environment() -> Path:
    """The lab that ``DLC_PLATFORM_HOME`` names.

    Raises
    ------
    PlatformError
        When the variable is not set.
    """
    value = os.environ.get(HOME_VARIABLE)
    if not value:
        raise PlatformError(
            f"the environment variable {HOME_VARIABLE} is not set, so there is no lab to work on",
            'Run `eval "$(dlc-platform env HOME)"` first, or start the platform with `dlc-platform up HOME`',
        )
    return Path(value).expanduser().resolve()
