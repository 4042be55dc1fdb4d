"""Jobs: work that a person, a sensor or CI starts as one thing."""

import dagster as dg

from dlc_platform.orchestration.checks import made_by_production_models

process_sessions = dg.define_asset_job(
    "process_sessions",
    selection=["session_videos", "labeled_frames", "pose_estimates", "pose_quality"],
    executor_def=dg.in_process_executor,
    description="Register the videos of sessions, count their labels, estimate poses with the production models "
    "and judge them.",
)

train_recipe = dg.define_asset_job(
    "train_recipe",
    selection=["training_dataset", "trained_model", "model_evaluation", "model_comparison", "production_model"],
    executor_def=dg.in_process_executor,
    description="Build a recipe's dataset, train and evaluate a model, compare all versions, and apply the rule of "
    "promotion.",
)

promote_model = dg.define_asset_job(
    "promote_model",
    selection=dg.AssetSelection.assets("production_model") | dg.AssetSelection.checks(made_by_production_models),
    executor_def=dg.in_process_executor,
    description="Promote a model version, or roll back to an earlier one: name it in the config of production_model, "
    "with the reason and who you are. Without a config the rule of lab.yaml decides.",
)

estimate_poses = dg.define_asset_job(
    "estimate_poses",
    selection=["pose_estimates", "pose_quality"],
    executor_def=dg.in_process_executor,
    description="Estimate the poses of sessions with the production models, even if they have poses already.",
)

evaluate_new_labels = dg.define_asset_job(
    "evaluate_new_labels",
    selection=["training_dataset", "production_evaluation"],
    executor_def=dg.in_process_executor,
    description="Gather the labelled frames of a recipe's project, and evaluate its production model on them.",
)

verify_store = dg.define_asset_job(
    "verify_store",
    selection=["store_verification"],
    executor_def=dg.in_process_executor,
    description="Read the whole store again and compare it with the catalogue.",
)

back_up = dg.define_asset_job(
    "back_up",
    selection=["lab_backup"],
    executor_def=dg.in_process_executor,
    description="Write the database, the index of the store and lab.yaml into one file.",
)

clean_up = dg.define_asset_job(
    "clean_up",
    selection=["lab_cleaning"],
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
