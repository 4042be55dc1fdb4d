"""Jobs: what a person, a sensor or CI starts as one thing."""

import dagster as dg

process_sessions = dg.define_asset_job(
    "process_sessions",
    selection=["session_videos", "labeled_frames", "pose_estimates"],
    executor_def=dg.in_process_executor,
    description="Register the videos of sessions, count their labels, and estimate poses with the production models.",
)

train_recipe = dg.define_asset_job(
    "train_recipe",
    selection=["training_dataset", "trained_model", "model_evaluation", "model_comparison", "production_model"],
    executor_def=dg.in_process_executor,
    description="Build a recipe's dataset, train and evaluate a model, compare all versions, and let it compete.",
)

default_jobs = [process_sessions, train_recipe]
