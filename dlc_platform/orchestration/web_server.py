"""Dagster's web server with something around its pages; what that is, and the lab's own pages, is not said here."""

from collections.abc import Callable

from dagster_webserver import app, cli
from starlette.types import ASGIApp

from dlc_platform.launchers.dagster_internals import WorkspaceProcessContext


def serve(around: Callable[[ASGIApp, bool], ASGIApp]) -> None:
    """Run the command `dagster-webserver` with the arguments of this process; does not return.

    Parameters
    ----------
    around
        Makes the application that browsers reach, of Dagster's own one and whether that is there to look only.
    """

    def make_app(context: WorkspaceProcessContext, *arguments: object, **options: object) -> ASGIApp:
        pages = app.create_app_from_workspace_process_context(context, *arguments, **options)  # pyright: ignore
        return around(pages, context.read_only)

    # Nothing else of Dagster's command is changed: options, instance, workspace and signals are its own.
    cli.create_app_from_workspace_process_context = make_app  # pyright: ignore
    cli.main()
