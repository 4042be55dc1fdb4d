"""Dagster's web server behind the gate: `python -m dlc_platform.web`, with the options of `dagster-webserver`.

Its token and the names under which it answers are those of the lab that DLC_PLATFORM_HOME names. Where the server does
not see the lab's home, as in a container, the environment gives them.
"""

import sys

from dagster._core.workspace.context import WorkspaceProcessContext
from dagster_webserver import app, cli
from starlette.types import ASGIApp

from dlc_platform.errors import PlatformError
from dlc_platform.orchestration import web_access
from dlc_platform.web.gate import Gate, Rules, host_of


def main() -> None:
    try:
        # What is wrong with them is said before Dagster loads anything.
        token, hosts = web_access.token("--read-only" in sys.argv), frozenset(map(host_of, web_access.hosts()))
    except (PlatformError, ValueError) as error:
        sys.exit(f"{error}")

    def make_gated_app(context: WorkspaceProcessContext, *arguments: object, **options: object) -> ASGIApp:
        pages = app.create_app_from_workspace_process_context(context, *arguments, **options)  # pyright: ignore
        return Gate(pages, Rules(token, hosts, context.read_only))

    # Nothing else of Dagster's command is changed: options, instance, workspace and signals are its own.
    cli.create_app_from_workspace_process_context = make_gated_app  # pyright: ignore
    cli.main()


if __name__ == "__main__":
    main()
