"""Evaluations in the catalogue: once, again, and with what becomes known later."""

from sqlalchemy import Engine

from dlc_platform.catalog import tables
from dlc_platform.catalog.evaluations import evaluated_models, evaluation_table, evaluations_of, record_evaluation
from dlc_platform_tests.catalog.looking import records, rows
from dlc_platform_tests.catalog.small_lab import evaluate, identity

KEY = "sub-1_ses-1"


def test_one_evaluation_twice(lab: Engine) -> None:
    evaluate(lab, "6", "a", "d", 99.0)
    errors = rows(lab, tables.EvaluationError, "evaluation_id", "rmse_px")
    assert len(errors) == 12 and max(rmse for _, rmse in errors) == 5.0
    assert [row.id for row in evaluations_of(lab, "maze")] == [identity("6"), identity("7")]
    assert evaluations_of(lab, "arena") == []
    assert evaluated_models(lab) == {identity("a"), identity("b")}


def test_sessions_that_become_known_after_an_evaluation(lab: Engine) -> None:
    def count() -> int:
        return len(rows(lab, tables.EvaluationSessionError, "session_key"))

    assert count() == 0
    evaluation = tables.Evaluation(
        id=identity("7"), model_id=identity("b"), dataset_id=identity("d"), likelihood_cutoff=0.6, run_id="again"
    )
    error = tables.EvaluationSessionError(
        evaluation_id=identity("7"), side="train", session_key=KEY, keypoints=3, rmse_px=1.0
    )
    record_evaluation(lab, evaluation, [], {}, [error])
    assert count() == 1


def test_counts_by_a_new_cutoff_replace_the_earlier_ones(lab: Engine) -> None:
    evaluate(lab, "7", "b", "d", 2.0, cutoff=0.9, confident=0.5)
    columns = ("evaluation_id", "side", "fraction_confident")
    found = {row[1:] for row in rows(lab, tables.EvaluationError, *columns) if row[0] == identity("7")}
    assert found == {("test", 0.5), ("train", 0.5)}
    assert dict(rows(lab, tables.Evaluation, "id", "likelihood_cutoff")) == {identity("6"): 0.6, identity("7"): 0.9}


def test_evaluations(lab: Engine) -> None:
    found = evaluation_table(lab)
    assert list(found) == [
        "project", "model", "dataset", "side", "bodypart", "test_images", "taught_images", "training_known",
        "keypoints", "missed", "rmse_px", "rmse_confident_px", "mean_px", "median_px", "mean_likelihood",
        "fraction_confident", "likelihood_cutoff", "evaluated_at", "evaluation",
    ]  # fmt: skip
    sides = [(side, bodypart) for side in ("test", "train") for bodypart in ("nose", "tail", "all")]
    assert records(found, "evaluation", "side", "bodypart") == [
        (identity(letter), *side) for letter in "67" for side in sides
    ]
    last = found[(found["model"] == identity("b")) & (found["bodypart"] == "all")]
    assert records(last, "side", "rmse_px", "rmse_confident_px", "likelihood_cutoff") == [
        ("test", 3.0, None, 0.6),
        ("train", 2.0, None, 0.6),
    ]
