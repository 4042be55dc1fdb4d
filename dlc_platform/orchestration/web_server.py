"""Dagster's web server with an application around its pages; that application, and the lab's own pages, are
elsewhere."""

from collections.abc import Callable

from dagster_webserver import app, cli
from starlette.types import ASGIApp

from dlc_platform.launchers.dagster_internals import WorkspaceProcessContext


def serve(around: Callable[[ASGIApp, bool], ASGIApp]) -> None:
    """Run the command `dagster-webserver` with the arguments of this process; does not return.

    Parameters
    ----------
    around
        Makes the application that browsers reach from Dagster's own one; the flag is true for a read-only server.
    """

    def make_app(context: WorkspaceProcessContext, *arguments: object, **options: object) -> ASGIApp:
        pages = app.create_app_from_workspace_process_context(context, *arguments, **options)  # pyright: ignore
        return around(pages, context.read_only)

    # Nothing else in Dagster's command is changed: options, instance, workspace and signals are its own.
    cli.create_app_from_workspace_process_context = make_app  # pyright: ignore
    cli.main()
