"""Promotions in the catalogue: the model version that is in production in each project, since when, and who decided."""

from sqlalchemy import Engine, select

from dlc_platform.catalog.asking import Asked, Question
from dlc_platform.catalog.models import _TESTED_ON
from dlc_platform.catalog.tables import Promotion
from dlc_platform.catalog.writing import every_row, first, insert_new

_PROMOTIONS = f"""
select p.project, p.model_id as model, p.kind, p.promoted_by, p.reason, p.test_rmse_px, p.test_images,
       {_TESTED_ON.format(images="p.test_images", known="coalesce(v.training_known, m.dataset_id is not null)")}
       as tested_on, p.promoted_at, p.evaluation_id as evaluation, p.run_id, p.id as promotion, p.warning
from dlc.promotion p
join dlc.model_version m on m.id = p.model_id
left join dlc.evaluation v on v.id = p.evaluation_id
order by p.id
"""


@Question
def promotion_table() -> Asked:
    """Every promotion, oldest first: who promoted which version, when, why, and the evaluation that it relied on.

    `test_rmse_px` is the error that the choice relied on, over `test_images` images; see `tested_on` of `models`.
    """
    return _PROMOTIONS, {}


def promote(engine: Engine, promotion: Promotion, expected: str | None) -> bool:
    """Make a model version the production model of its project.

    Parameters
    ----------
    expected
        The production model at the time of the decision; None if there was none.

    Returns
    -------
    bool
        False if another promotion came in between; then nothing was written.
    """
    in_force = select(Promotion.id, Promotion.model_id).where(Promotion.project == promotion.project)
    with engine.begin() as connection:
        previous = connection.execute(in_force.order_by(Promotion.id.desc()).limit(1)).first()
        if (previous.model_id if previous else None) != expected:
            return False
        promotion.previous_id = previous.id if previous else None
        # The database takes only one of two promotions that follow the same one.
        return insert_new(connection, promotion)


def promotion_in_force(engine: Engine, project: str) -> Promotion | None:
    """The promotion that says which model version a project uses; None before the first one."""
    return first(engine, select(Promotion).where(Promotion.project == project).order_by(Promotion.id.desc()).limit(1))


def promotions_of(engine: Engine, project: str) -> list[Promotion]:
    """Every promotion of a project, oldest first."""
    return every_row(engine, select(Promotion).where(Promotion.project == project).order_by(Promotion.id))


def production_model(engine: Engine, project: str) -> str | None:
    """The identity of a project's production model; None before the first promotion."""
    statement = select(Promotion.model_id).where(Promotion.project == project).order_by(Promotion.id.desc()).limit(1)
    with engine.connect() as connection:
        return connection.scalar(statement)
