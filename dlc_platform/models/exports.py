"""The exports of model versions in the catalogue."""

from sqlalchemy import Engine

from dlc_platform.catalog.models import record_export
from dlc_platform.catalog.tables import ModelExport
from dlc_platform.dlc.environment import versions
from dlc_platform.dlc.exports import Export
from dlc_platform.store import Store


def keep_export(engine: Engine, store: Store, export: Export, run_id: str | None) -> None:
    """Write down in the catalogue an export that is in the store."""
    record_export(
        engine,
        ModelExport(
            id=export.id,
            model_id=export.model_id,
            backend=export.backend,
            device=export.device,
            precision=export.precision,
            accepted=export.accepted,
            images=export.images,
            deviation_px=export.deviation_px,
            deviation_likelihood=export.deviation_likelihood,
            eager_ms_per_frame=export.eager_ms_per_frame,
            ms_per_frame=export.ms_per_frame,
            manifest_sha256=store.claim("exports", export.id),
            run_id=run_id,
        ),
        versions(),
    )
