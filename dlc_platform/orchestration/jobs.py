"""Jobs: work that a person, a sensor or CI starts as one thing."""

import dagster as dg

from dlc_platform.orchestration.checks import made_by_production_models
from dlc_platform.text.assets import (
    LAB_BACKUP,
    LAB_CLEANING,
    LABELED_FRAMES,
    MODEL_COMPARISON,
    MODEL_EVALUATION,
    POSE_ESTIMATES,
    POSE_QUALITY,
    PRODUCTION_EVALUATION,
    PRODUCTION_MODEL,
    SESSION_VIDEOS,
    STORE_VERIFICATION,
    TRAINED_MODEL,
    TRAINING_DATASET,
)

process_sessions = dg.define_asset_job(
    "process_sessions",
    selection=[SESSION_VIDEOS, LABELED_FRAMES, POSE_ESTIMATES, POSE_QUALITY],
    executor_def=dg.in_process_executor,
    description="Register the videos of sessions, count their labels, estimate poses with the production models "
    "and judge them.",
)

train_recipe = dg.define_asset_job(
    "train_recipe",
    selection=[TRAINING_DATASET, TRAINED_MODEL, MODEL_EVALUATION, MODEL_COMPARISON, PRODUCTION_MODEL],
    executor_def=dg.in_process_executor,
    description="Build a recipe's dataset, train and evaluate a model, compare all versions, and apply the rule of "
    "promotion.",
)

promote_model = dg.define_asset_job(
    "promote_model",
    selection=dg.AssetSelection.assets(PRODUCTION_MODEL) | dg.AssetSelection.checks(made_by_production_models),
    executor_def=dg.in_process_executor,
    description="Promote a model version, or roll back to an earlier one: name it in the config of production_model, "
    "with the reason and who you are. Without a config the rule of lab.yaml decides.",
)

estimate_poses = dg.define_asset_job(
    "estimate_poses",
    selection=[POSE_ESTIMATES, POSE_QUALITY],
    executor_def=dg.in_process_executor,
    description="Estimate the poses of sessions with the production models, even if they have poses already.",
)

evaluate_new_labels = dg.define_asset_job(
    "evaluate_new_labels",
    selection=[TRAINING_DATASET, PRODUCTION_EVALUATION],
    executor_def=dg.in_process_executor,
    description="Gather the labelled frames of a recipe's project, and evaluate its production model on them.",
)

verify_store = dg.define_asset_job(
    "verify_store",
    selection=[STORE_VERIFICATION],
    executor_def=dg.in_process_executor,
    description="Read the whole store again and compare it with the catalogue.",
)

back_up = dg.define_asset_job(
    "back_up",
    selection=[LAB_BACKUP],
    executor_def=dg.in_process_executor,
    description="Write the database, the index of the store and lab.yaml into one file.",
)

clean_up = dg.define_asset_job(
    "clean_up",
    selection=[LAB_CLEANING],
    executor_def=dg.in_process_executor,
    description="Remove files that crashes left in the store, and the logs of old runs.",
)

default_jobs = [
    process_sessions,
    train_recipe,
    promote_model,
    estimate_poses,
    evaluate_new_labels,
    verify_store,
    back_up,
    clean_up,
]
