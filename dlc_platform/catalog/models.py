"""Model versions in the catalogue: recipes, training runs, exports, imported models, and the search for a model.

Their errors are in `evaluations`; the choice of the one that tracks is in `promotions`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, select, text
from sqlalchemy.dialects.postgresql import insert

from dlc_platform.catalog.asking import Asked, Question, frame, rows
from dlc_platform.catalog.tables import Bodypart, ModelExport, ModelVersion, RecipeVersion, TrainingRun
from dlc_platform.catalog.writing import (
    BodyParts,
    environment_of,
    every_row,
    first,
    insert_product,
    parameter_set_of,
    skeleton_of,
    values_of,
)
from dlc_platform.errors import PlatformError

if TYPE_CHECKING:
    import pandas as pd

_SHORT, _CANDIDATES = 12, 5

#: The images behind a test error, in words; null if there is no test error.
_TESTED_ON = """
case when {images} = 0 then 'no image that it was not trained on'
     else {images} || case when {images} = 1 then ' image' else ' images' end
          || case when not {known} then ', perhaps trained on' else '' end end
"""

_MODELS = f"""
select m.project, m.origin, t.recipe, m.id as model, m.net_type, m.scorer, d.train_images, e.test_images, t.epochs,
       t.seconds as train_seconds, e.rmse_px as test_rmse_px,
       {_TESTED_ON.format(images="e.test_images", known="e.known")} as tested_on, p.model is not null as production,
       coalesce(t.trained_at, m.registered_at) as made_at, m.dataset_id as dataset,
       m.parameter_set_id as parameter_set, t.run_id, m.source
from dlc.model_version m
left join dlc.training_run t on t.model_id = m.id
left join dlc.dataset d on d.id = m.dataset_id
left join lateral (
    select x.rmse_px, v.test_images, v.training_known as known
    from dlc.evaluation v
    join dlc.evaluation_error x on x.evaluation_id = v.id and x.side = 'test' and x.bodypart = 'all'
    where v.model_id = m.id and (m.dataset_id is null or v.dataset_id = m.dataset_id)
    order by v.evaluated_at desc limit 1
) e on true
left join dlc.production_models p on p.project = m.project and p.model = m.id
order by made_at, t.id
"""

_PARAMETERS = """
select v.recipe, v.version, v.project, v.first_used_at, v.parameter_set_id as parameter_set, s.parameters,
       (select array_agg(distinct o.recipe order by o.recipe) from dlc.recipe_version o
        where o.parameter_set_id = v.parameter_set_id and o.recipe <> v.recipe) as also_called
from dlc.recipe_version v
join dlc.parameter_set s on s.id = v.parameter_set_id
order by v.recipe, v.version
"""


#: Queries for measured frames per second, the one closest to this model first; each with its name. All are about the
#: device that computed last, because a mean over GPUs and CPUs is the speed of neither.
_SPEEDS = (
    (
        "measured on its own estimates",
        "select sum(frames) / nullif(sum(seconds), 0) from dlc.pose_estimate "
        "where model_id = :model and origin = 'computed' group by device order by max(estimated_at) desc limit 1",
    ),
    (
        "measured on other versions of the same network",
        "select sum(e.frames) / nullif(sum(e.seconds), 0) from dlc.model_version m "
        "join dlc.model_version o on o.net_type = m.net_type join dlc.pose_estimate e on e.model_id = o.id "
        "where m.id = :model and e.origin = 'computed' group by e.device order by max(e.estimated_at) desc limit 1",
    ),
    (
        "measured on its evaluation",
        "select sum(d.train_images + d.test_images) / nullif(sum(e.seconds), 0) from dlc.evaluation e "
        "join dlc.dataset d on d.id = e.dataset_id where e.model_id = :model and e.seconds is not null",
    ),
)


@Question
def model_table() -> Asked:
    """One row for each training and each imported version, oldest first.

    `test_rmse_px` is over the test images of the version's own dataset; for an imported version, over those of its last
    evaluation. `test_images` counts them. `tested_on` gives the count in words, and adds if the version may have been
    trained on them.
    """
    return _MODELS, {}


def export_table(engine: Engine) -> "pd.DataFrame":
    """One row for each export of a model version, oldest first, with its measured deviation and time."""
    return frame(
        engine,
        "select model_id as model, backend, device, precision, accepted, images, deviation_px, deviation_likelihood, "
        "eager_ms_per_frame, ms_per_frame, made_at from dlc.model_export order by made_at, id",
    )


@Question
def parameter_table() -> Asked:
    """One row for each version of each recipe; `also_called` names the other recipes with the very same parameters."""
    return _PARAMETERS, {}


@Question
def model_sessions(model: str) -> Asked:
    """The sessions that a model version learned from, was tested on or tracked; `role` is taught, tested or tracked."""
    return "select * from dlc.model_sessions where model = :model order by role, session", {"model": model}


@Question
def best_models() -> Asked:
    """The versions of each project's newest comparison by body part, the best first; errors in pixels."""
    return "select * from dlc.best_models order by project, bodypart <> 'all', bodypart, rank, model", {}


def require_model_id(engine: Engine, start: str) -> str:
    """The identity of the model version that begins with `start`: the short form that tables show, or more of it.

    Raises
    ------
    PlatformError
        When no version begins with it, or several do; the message names these.
    """
    query = "select id, project from dlc.model_version where starts_with(id, :written) order by registered_at, id"
    written = start.strip().lower()
    found = rows(engine, query, written=written) if written else []
    if len(found) == 1:
        return found[0]["id"]
    if not found:
        raise PlatformError(
            f"no model version begins with {start!r}", "Copy its identity from `dlc-platform models HOME`"
        )
    # Enough of each to tell them apart.
    length = next(n for n in range(_SHORT, 65) if len({row["id"][:n] for row in found}) == len(found))
    candidates = ", ".join(f"{row['id'][:length]} of {row['project']}" for row in found[:_CANDIDATES])
    more = f", and {len(found) - _CANDIDATES} more" if len(found) > _CANDIDATES else ""
    raise PlatformError(
        f"{len(found)} model versions begin with {start!r}: {candidates}{more}", "Write more of the one that you mean"
    )


def record_recipe(engine: Engine, recipe: str, project: str, parameters: Mapping[str, Any]) -> list[str]:
    """Write down the present parameters of a recipe; parameters that differ from the last ones are a new version.

    Returns
    -------
    list of str
        The other recipes, of any project, that had the very same parameters before.
    """
    with engine.begin() as connection:
        parameter_set = parameter_set_of(connection, parameters)
        connection.execute(
            text("select pg_advisory_xact_lock(hashtextextended(:recipe, 0))"), {"recipe": f"version of {recipe}"}
        )
        versions = select(RecipeVersion.version, RecipeVersion.project, RecipeVersion.parameter_set_id)
        newest = connection.execute(
            versions.where(RecipeVersion.recipe == recipe).order_by(RecipeVersion.version.desc()).limit(1)
        ).first()
        if newest is None or (newest.project, newest.parameter_set_id) != (project, parameter_set):
            number = newest.version + 1 if newest else 1
            connection.execute(
                insert(RecipeVersion).values(
                    recipe=recipe, version=number, project=project, parameter_set_id=parameter_set
                )
            )
        same = select(RecipeVersion.recipe).where(
            RecipeVersion.parameter_set_id == parameter_set, RecipeVersion.recipe != recipe
        )
        return sorted(set(connection.scalars(same)))


def record_training(
    engine: Engine,
    model: ModelVersion,
    bodyparts: BodyParts,
    run: TrainingRun,
    parameters: Mapping[str, Any],
    environment: Mapping[str, Any],
) -> bool:
    """Write down a trained model version, its parameters and the training that made it.

    Returns
    -------
    bool
        False when the same version was known already.
    """
    with engine.begin() as connection:
        model.origin = "trained"
        model.skeleton_id = skeleton_of(connection, bodyparts)
        model.parameter_set_id = parameter_set_of(connection, parameters)
        run.environment_id = environment_of(connection, environment)
        new = insert_product(connection, model)
        connection.execute(insert(TrainingRun).values(**values_of(run)))
    return new


def record_export(engine: Engine, export: ModelExport, environment: Mapping[str, Any]) -> None:
    """Write down, once, an export of a model version and what was measured of it.

    Parameters
    ----------
    environment
        The software and hardware that made and measured it.
    """
    with engine.begin() as connection:
        export.environment_id = environment_of(connection, environment)
        insert_product(connection, export)


def record_imported_model(engine: Engine, model: ModelVersion, bodyparts: BodyParts) -> bool:
    """Write down a model version that was trained elsewhere; `source` says where.

    Returns
    -------
    bool
        False when it was known already.
    """
    with engine.begin() as connection:
        model.origin = "imported"
        model.skeleton_id = skeleton_of(connection, bodyparts)
        return insert_product(connection, model)


def current_model(engine: Engine, recipe: str) -> ModelVersion | None:
    """The model version that was last trained for a recipe."""
    statement = (
        select(ModelVersion)
        .join(TrainingRun, TrainingRun.model_id == ModelVersion.id)
        .where(TrainingRun.recipe == recipe)
        .order_by(TrainingRun.id.desc())
        .limit(1)
    )
    return first(engine, statement)


def model_version(engine: Engine, model_id: str) -> ModelVersion | None:
    """A model version by its identity."""
    return first(engine, select(ModelVersion).where(ModelVersion.id == model_id))


def models_of(engine: Engine, project: str) -> list[ModelVersion]:
    """The model versions of a project, trained and imported, oldest first."""
    statement = select(ModelVersion).where(ModelVersion.project == project)
    return every_row(engine, statement.order_by(ModelVersion.registered_at, ModelVersion.id))


def measured_speed(engine: Engine, model_id: str) -> tuple[float | None, str]:
    """The expected speed of a version in frames per second, and the source of that figure; None and "" if unknown."""
    with engine.connect() as connection:
        for basis, query in _SPEEDS:
            if measured := connection.scalar(text(query), {"model": model_id}):
                return float(measured), basis
    return None, ""


def bodyparts_of(engine: Engine, model_id: str) -> list[str]:
    """The body parts that a model version predicts, in its order."""
    statement = (
        select(Bodypart.name)
        .join(ModelVersion, ModelVersion.skeleton_id == Bodypart.skeleton_id)
        .where(ModelVersion.id == model_id)
        .order_by(Bodypart.position)
    )
    with engine.connect() as connection:
        return list(connection.scalars(statement))


def require_model(engine: Engine, start: str) -> ModelVersion:
    """The model version whose identity begins with `start`; see `require_model_id`."""
    model = model_version(engine, require_model_id(engine, start))
    assert model is not None  # rows of models stay
    return model
