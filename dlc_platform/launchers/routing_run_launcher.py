"""`RoutingRunLauncher`: sends each run to one of several launchers, by its pools and tags.

Nothing about a particular launcher belongs here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from dagster import Array, DagsterInstance, DagsterRun, Field, Permissive
from dagster import _check as check

from dlc_platform.errors import PlatformError
from dlc_platform.launchers.dagster_internals import (
    CheckRunHealthResult,
    ConfigurableClass,
    ConfigurableClassData,
    LaunchRunContext,
    ResumeRunContext,
    RunLauncher,
    WorkerStatus,
)

#: The tag of a run's route. From it every process knows where the run is watched and stopped.
ROUTE_TAG = "dlc_platform/route"


@dataclass(frozen=True)
class Route:
    """A launcher, and the conditions for the runs that go to it.

    Attributes
    ----------
    pool
        A step of the run must be in this pool.
    tags
        The run must have these tags, with these values; ``*`` stands for any value.
    """

    name: str
    launcher: RunLauncher
    pool: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def takes_all(self) -> bool:
        """True if every run may use this route."""
        return self.pool is None and not self.tags

    def takes(self, run: DagsterRun) -> bool:
        """True if a run uses this route when no earlier route takes it."""
        concurrency = run.run_op_concurrency
        pools = (concurrency.all_pools or ()) if concurrency is not None else ()
        return (self.pool is None or self.pool in pools) and all(
            key in run.tags and value in ("*", run.tags[key]) for key, value in self.tags.items()
        )


class RoutingRunLauncher(RunLauncher, ConfigurableClass):
    """Sends each run to the first route that takes it.

    Configured in ``dagster.yaml``::

        run_launcher:
          module: dlc_platform.launchers.routing_run_launcher
          class: RoutingRunLauncher
          config:
            routes:
              - name: cluster
                pool: gpu
                tags: {lab/where: cluster}
                launcher:
                  module: dlc_platform.launchers.slurm_run_launcher
                  class: SlurmRunLauncher
                  config: {partition: gpu}
              - name: local
                launcher:
                  module: dlc_platform.launchers.gpu_run_launcher
                  class: GpuRunLauncher

    The last route must take every run.
    """

    def __init__(self, routes: Sequence[Route], inst_data: ConfigurableClassData | None = None):
        super().__init__()
        names = [route.name for route in routes]
        if not routes or not routes[-1].takes_all:
            raise PlatformError(
                "run_launcher.config.routes in dagster.yaml has no last route that takes every run",
                "End the list with a route that has neither `pool` nor `tags`",
            )
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise PlatformError(
                f"run_launcher.config.routes in dagster.yaml has several routes called {', '.join(twice)}",
                "Give each a name of its own",
            )
        self._routes = {route.name: route for route in routes}
        self._inst_data = inst_data

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        """The source of the configuration."""
        return self._inst_data

    @classmethod
    def config_type(cls) -> dict[str, Field]:
        """The keys below ``config`` in ``dagster.yaml``."""
        launcher = {"module": str, "class": str, "config": Field(Permissive(), default_value={})}
        route = {
            "name": Field(str),
            "pool": Field(str, is_required=False),
            "tags": Field(Permissive(), default_value={}),
            "launcher": Field(launcher),
        }
        return {"routes": Field(Array(route))}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData, config_value: Mapping[str, Any]
    ) -> "RoutingRunLauncher":
        """The launcher that ``dagster.yaml`` describes."""
        routes = []
        for route in config_value["routes"]:
            told = route["launcher"]
            described = ConfigurableClassData(told["module"], told["class"], yaml.safe_dump(dict(told["config"])))
            tags = {key: str(value) for key, value in route["tags"].items()}
            routes.append(Route(route["name"], described.rehydrate(as_type=RunLauncher), route.get("pool"), tags))
        return cls(routes, inst_data)

    def register_instance(self, instance: DagsterInstance) -> None:
        """Tell every launcher the instance of the runs."""
        super().register_instance(instance)
        for route in self._routes.values():
            route.launcher.register_instance(instance)

    def route_of(self, run: DagsterRun) -> Route | None:
        """The route that a launched run took; None if dagster.yaml does not have it any more."""
        return self._routes.get(run.tags.get(ROUTE_TAG, ""))

    def launch_run(self, context: LaunchRunContext) -> None:
        """Choose a route, write it on the run, and let the route's launcher launch the run."""
        run = context.dagster_run
        route = next(route for route in self._routes.values() if route.takes(run))
        # Before the launch, so that the started process can be found; it replaces the tag of the run that this one
        # retries.
        self._instance.add_run_tags(run.run_id, {ROUTE_TAG: route.name})
        tagged = check.not_none(self._instance.get_run_by_id(run.run_id))
        route.launcher.launch_run(context._replace(dagster_run=tagged))

    @property
    def supports_resume_run(self) -> bool:
        """True if any of the launchers supports it."""
        return any(route.launcher.supports_resume_run for route in self._routes.values())

    def resume_run(self, context: ResumeRunContext) -> None:
        """Let the launcher of a run resume it.

        Raises
        ------
        PlatformError
            When it cannot.
        """
        route = self.route_of(context.dagster_run)
        if route is None or not route.launcher.supports_resume_run:
            raise PlatformError(
                f"the run {context.dagster_run.run_id} cannot be resumed by {self._named(context.dagster_run)}",
                "Start it again from the UI",
            )
        route.launcher.resume_run(context)

    def terminate(self, run_id: str) -> bool:
        """Let the launcher of a run stop it."""
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return False
        route = self.route_of(run)
        if route is None:
            self._instance.report_engine_event(f"Cannot terminate this run: {self._named(run)}", run, cls=type(self))
            return False
        return route.launcher.terminate(run_id)

    @property
    def supports_check_run_worker_health(self) -> bool:
        """True if any of the launchers supports it."""
        return any(route.launcher.supports_check_run_worker_health for route in self._routes.values())

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """The state of a run by its launcher; a run that nobody watches counts as running, so that nothing runs
        twice."""
        route = self.route_of(run)
        if route is None or not route.launcher.supports_check_run_worker_health:
            return CheckRunHealthResult(WorkerStatus.RUNNING, f"not watched: {self._named(run)}")
        return route.launcher.check_run_worker_health(run)

    def get_run_worker_debug_info(self, run: DagsterRun, include_container_logs: bool | None = True) -> str | None:
        """The facts that a run's launcher knows about its worker."""
        route = self.route_of(run)
        return route.launcher.get_run_worker_debug_info(run, include_container_logs) if route else None

    def dispose(self) -> None:
        """Let every launcher tidy up."""
        for route in self._routes.values():
            route.launcher.dispose()

    def join(self, timeout: int = 30) -> None:
        """Wait for the work that the launchers started in this process."""
        for route in self._routes.values():
            route.launcher.join(timeout)

    def _named(self, run: DagsterRun) -> str:
        if ROUTE_TAG not in run.tags:
            return "it took no route of this launcher"
        known = "" if self.route_of(run) else ", which is not in dagster.yaml any more"
        return f"its route is {run.tags[ROUTE_TAG]}{known}"


def launcher_of(instance: DagsterInstance, run: DagsterRun) -> RunLauncher:
    """The launcher of a run, behind any router.

    Raises
    ------
    PlatformError
        When its route is not in dagster.yaml any more.
    """
    launcher = instance.run_launcher
    if not isinstance(launcher, RoutingRunLauncher):
        return launcher
    route = launcher.route_of(run)
    if route is None:
        raise PlatformError(
            f"the run {run.run_id} was launched by the route {run.tags.get(ROUTE_TAG)!r}, which dagster.yaml lacks",
            "Put the route back under run_launcher.config.routes",
        )
    return route.launcher
