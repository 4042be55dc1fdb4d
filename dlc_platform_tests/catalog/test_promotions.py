"""Promotions in the catalogue: of those at the same moment, one wins."""

import pytest
from sqlalchemy import Engine

from dlc_platform.catalog.promotions import production_model, promote, promotion_in_force
from dlc_platform_tests.catalog.looking import at_once
from dlc_platform_tests.catalog.small_lab import identity, promotion, train


def test_a_promotion_against_what_is_no_longer_so(lab: Engine) -> None:
    assert production_model(lab, "maze") == identity("b")
    assert production_model(lab, "arena") is None
    assert not promote(lab, promotion("a"), expected=identity("a"))
    assert not promote(lab, promotion("a"), expected=None)
    assert promote(lab, promotion("a"), expected=identity("b"))
    in_force = promotion_in_force(lab, "maze")
    assert in_force is not None and (in_force.model_id, in_force.reason) == (identity("a"), "a it is")
    assert in_force.evaluation_id is None


@pytest.mark.parametrize("expected", [None, "a"])
def test_of_promotions_at_once_one_wins(lab: Engine, expected: str | None) -> None:
    train(lab, "c", "d", project="arena")
    if expected:
        assert promote(lab, promotion(expected, "arena"), expected=None)
    against = identity(expected) if expected else None
    tasks = [
        lambda own, model=model: promote(own, promotion(model, "arena"), expected=against)
        for model in ("b", "c", "b", "c", "b", "c")
    ]
    won = at_once(lab, *tasks)
    assert sorted(map(str, won)) == ["False"] * 5 + ["True"]
    assert production_model(lab, "arena") == identity("bcbcbc"[won.index(True)])
    assert production_model(lab, "maze") == identity("b")


def test_promotions_of_two_projects_do_not_meet(lab: Engine) -> None:
    won = at_once(
        lab,
        lambda own: promote(own, promotion("a", "arena"), expected=None),
        lambda own: promote(own, promotion("a", "maze"), expected=identity("b")),
    )
    assert won == [True, True]
