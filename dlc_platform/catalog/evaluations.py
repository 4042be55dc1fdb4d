"""Evaluations and comparisons of model versions in the catalogue."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, func, or_, select, update

from dlc_platform.catalog.asking import frame
from dlc_platform.catalog.tables import (
    Comparison,
    ComparisonError,
    Evaluation,
    EvaluationError,
    EvaluationSessionError,
    ModelVersion,
)
from dlc_platform.catalog.writing import environment_of, every_row, first, insert_new, insert_product, overwrite

if TYPE_CHECKING:
    import pandas as pd


_EVALUATIONS = """
select m.project, v.model_id as model, v.dataset_id as dataset, x.side, x.bodypart, v.test_images, v.taught_images,
       v.training_known, x.keypoints, x.missed, x.rmse_px, x.rmse_confident_px, x.mean_px, x.median_px,
       x.mean_likelihood, x.fraction_confident, v.likelihood_cutoff,
       v.evaluated_at, v.id as evaluation
from dlc.evaluation v
join dlc.model_version m on m.id = v.model_id
join dlc.evaluation_error x on x.evaluation_id = v.id
order by v.evaluated_at, v.id, x.side, x.bodypart = 'all', x.bodypart
"""


def evaluation_table(engine: Engine) -> "pd.DataFrame":
    """One row for each evaluation, side and body part; distances in pixels.

    Side ``test`` is over `test_images` images that the version was not trained on, side ``train`` over those that it
    was trained on. `taught_images` counts the images on the dataset's test side that it was trained on. If
    `training_known` is false, nobody knows what it was trained on.
    """
    return frame(engine, _EVALUATIONS)


def record_evaluation(
    engine: Engine,
    evaluation: Evaluation,
    errors: Iterable[EvaluationError],
    environment: Mapping[str, Any],
    session_errors: Sequence[EvaluationSessionError] = (),
) -> None:
    """Write down an evaluation (once) and its errors, by side and body part and by side and session.

    The errors are those of the present likelihood cut-off and of the sessions that are known now; test errors are over
    images that the model was not trained on.
    """
    view = {
        name: getattr(evaluation, name)
        for name in ("likelihood_cutoff", "test_images", "taught_images", "training_known")
    }
    with engine.begin() as connection:
        evaluation.environment_id = environment_of(connection, environment)
        if not insert_product(connection, evaluation):
            other = or_(*(getattr(Evaluation, name).is_distinct_from(value) for name, value in view.items()))
            changed = update(Evaluation).where(Evaluation.id == evaluation.id, other).values(**view)
            if not connection.execute(changed).rowcount:
                errors = ()
        overwrite(connection, errors)
        overwrite(connection, session_errors)


def record_comparison(engine: Engine, comparison: Comparison, errors: Iterable[ComparisonError]) -> None:
    """Write down a comparison as its project's newest one, even if the same comparison was made before."""
    with engine.begin() as connection:
        if not insert_new(connection, comparison):
            again = {"made_at": func.now(), "run_id": comparison.run_id}
            connection.execute(update(Comparison).where(Comparison.id == comparison.id).values(**again))
        # An older platform wrote intervals from too few images.
        overwrite(connection, errors)


def evaluated_models(engine: Engine) -> set[str]:
    """The model versions that have an evaluation."""
    with engine.connect() as connection:
        return set(connection.scalars(select(Evaluation.model_id)))


def evaluations_of(engine: Engine, project: str) -> list[Evaluation]:
    """The evaluations of a project's model versions, oldest first."""
    statement = (
        select(Evaluation)
        .join(ModelVersion, ModelVersion.id == Evaluation.model_id)
        .where(ModelVersion.project == project)
        .order_by(Evaluation.evaluated_at, Evaluation.id)
    )
    return every_row(engine, statement)


def evaluation_of(engine: Engine, model_id: str) -> Evaluation | None:
    """The newest evaluation of a model version: on the dataset that it was trained on if there is one, else on any."""
    own = select(ModelVersion.dataset_id).where(ModelVersion.id == model_id).scalar_subquery()
    statement = (
        select(Evaluation)
        .where(Evaluation.model_id == model_id)
        .order_by((Evaluation.dataset_id == own).desc().nulls_last(), Evaluation.evaluated_at.desc(), Evaluation.id)
        .limit(1)
    )
    return first(engine, statement)
