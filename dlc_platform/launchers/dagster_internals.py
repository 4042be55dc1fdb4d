"""The parts of Dagster beyond its public interface that the platform uses: private modules, which a release may move.

No other module imports them. A test names each of them that another version of Dagster no longer has.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluationTargetMaterializationData
from dagster._core.definitions.freshness import FreshnessState, TimeWindowFreshnessPolicy
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.errors import DagsterRunNotFoundError, DagsterUserCodeUnreachableError
from dagster._core.events import DagsterEventType, RunFailureReason
from dagster._core.execution.backfill import BulkActionsFilter, BulkActionStatus
from dagster._core.execution.retries import auto_reexecution_should_retry_run
from dagster._core.instance.ref import InstanceRef
from dagster._core.launcher.base import (
    CheckRunHealthResult,
    LaunchRunContext,
    ResumeRunContext,
    RunLauncher,
    WorkerStatus,
)
from dagster._core.run_coordinator.base import SubmitRunContext
from dagster._core.run_coordinator.queued_run_coordinator import QueuedRunCoordinator
from dagster._core.scheduler.instigation import InstigatorState, InstigatorStatus, InstigatorTick, TickStatus
from dagster._core.storage.asset_check_execution_record import (
    AssetCheckExecutionRecord,
    AssetCheckExecutionRecordStatus,
)
from dagster._core.storage.dagster_run import FINISHED_STATUSES, IN_PROGRESS_RUN_STATUSES
from dagster._core.storage.event_log.schema import SqlEventLogStorageMetadata, SqlEventLogStorageTable
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage
from dagster._core.storage.sql import ALEMBIC_SCRIPTS_LOCATION, stamp_alembic_rev
from dagster._core.storage.tags import (
    AUTO_RETRY_RUN_ID_TAG,
    MAX_RETRIES_TAG,
    PARTITION_NAME_TAG,
    PRIORITY_TAG,
    RETRY_NUMBER_TAG,
    RETRY_ON_ASSET_OR_OP_FAILURE_TAG,
    RUN_FAILURE_REASON_TAG,
    RUN_KEY_TAG,
    SCHEDULE_NAME_TAG,
    SENSOR_NAME_TAG,
    WILL_RETRY_TAG,
)
from dagster._grpc.types import ExecuteRunArgs, ResumeRunArgs
from dagster._serdes import ConfigurableClass, ConfigurableClassData, deserialize_value, serialize_value
from dagster._utils import interrupts
from dagster._utils.interrupts import capture_interrupts, check_captured_interrupt
from dagster._utils.schedules import cron_string_iterator

if TYPE_CHECKING:
    from dagster._cli.api import _execute_run_command_body as execute_run_command_body
    from dagster._cli.api import _resume_run_command_body as resume_run_command_body
    from dagster._core.storage.runs.schema import RunsTable, RunStorageSqlMetadata, RunTagsTable
    from dagster._core.storage.runs.sql_run_storage import SqlRunStorage
    from dagster._core.storage.schedules.schema import ScheduleStorageSqlMetadata
    from dagster._core.workspace.context import WorkspaceProcessContext
    from dagster._daemon.controller import get_daemon_statuses

__all__ = [
    "ALEMBIC_SCRIPTS_LOCATION",
    "AUTO_RETRY_RUN_ID_TAG",
    "FINISHED_STATUSES",
    "IN_PROGRESS_RUN_STATUSES",
    "MAX_RETRIES_TAG",
    "PARTITION_NAME_TAG",
    "PRIORITY_TAG",
    "RETRY_NUMBER_TAG",
    "RETRY_ON_ASSET_OR_OP_FAILURE_TAG",
    "RUN_FAILURE_REASON_TAG",
    "RUN_KEY_TAG",
    "SCHEDULE_NAME_TAG",
    "SENSOR_NAME_TAG",
    "WILL_RETRY_TAG",
    "AssetCheckEvaluationTargetMaterializationData",
    "AssetCheckExecutionRecord",
    "AssetCheckExecutionRecordStatus",
    "BulkActionStatus",
    "BulkActionsFilter",
    "CheckRunHealthResult",
    "ConfigurableClass",
    "ConfigurableClassData",
    "DagsterEventType",
    "DagsterRunNotFoundError",
    "DagsterUserCodeUnreachableError",
    "ExecuteRunArgs",
    "FreshnessState",
    "InstanceRef",
    "InstigatorState",
    "InstigatorStatus",
    "InstigatorTick",
    "InstigatorType",
    "LaunchRunContext",
    "QueuedRunCoordinator",
    "ResumeRunArgs",
    "ResumeRunContext",
    "RunFailureReason",
    "RunLauncher",
    "RunStorageSqlMetadata",
    "RunTagsTable",
    "RunsTable",
    "ScheduleStorageSqlMetadata",
    "SqlEventLogStorage",
    "SqlEventLogStorageMetadata",
    "SqlEventLogStorageTable",
    "SqlRunStorage",
    "SubmitRunContext",
    "TickStatus",
    "TimeWindowFreshnessPolicy",
    "WorkerStatus",
    "WorkspaceProcessContext",
    "auto_reexecution_should_retry_run",
    "capture_interrupts",
    "check_captured_interrupt",
    "cron_string_iterator",
    "deserialize_value",
    "execute_run_command_body",
    "get_daemon_statuses",
    "interrupts",
    "resume_run_command_body",
    "serialize_value",
    "stamp_alembic_rev",
]

#: Names that take long to import and that few processes need, each with its module.
_LATER = {
    "RunsTable": ("dagster._core.storage.runs.schema", "RunsTable"),
    "RunStorageSqlMetadata": ("dagster._core.storage.runs.schema", "RunStorageSqlMetadata"),
    "RunTagsTable": ("dagster._core.storage.runs.schema", "RunTagsTable"),
    "SqlRunStorage": ("dagster._core.storage.runs.sql_run_storage", "SqlRunStorage"),
    "ScheduleStorageSqlMetadata": ("dagster._core.storage.schedules.schema", "ScheduleStorageSqlMetadata"),
    "execute_run_command_body": ("dagster._cli.api", "_execute_run_command_body"),
    "resume_run_command_body": ("dagster._cli.api", "_resume_run_command_body"),
    "WorkspaceProcessContext": ("dagster._core.workspace.context", "WorkspaceProcessContext"),
    "get_daemon_statuses": ("dagster._daemon.controller", "get_daemon_statuses"),
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(name)
    module, own = _LATER[name]
    return getattr(import_module(module), own)
