"""The names of the assets, by which a person selects them; each stands here once.

A test holds them against the assets that Dagster loads.
"""

SESSION_VIDEOS = "session_videos"
LABELED_FRAMES = "labeled_frames"
POSE_ESTIMATES = "pose_estimates"
POSE_QUALITY = "pose_quality"
TRAINING_DATASET = "training_dataset"
TRAINED_MODEL = "trained_model"
MODEL_EVALUATION = "model_evaluation"
MODEL_COMPARISON = "model_comparison"
PRODUCTION_MODEL = "production_model"
PRODUCTION_EVALUATION = "production_evaluation"
STORE_VERIFICATION = "store_verification"
LAB_BACKUP = "lab_backup"
LAB_CLEANING = "lab_cleaning"
DAILY_REPORT = "daily_report"
