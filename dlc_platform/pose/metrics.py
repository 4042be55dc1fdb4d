"""The names of the scores of poses, in the order of tables; `scores` says what each is."""

#: The scores in the order of tables, without `rows`.
METRICS = (
    "mean_likelihood",
    "fraction_confident",
    "fraction_missing",
    "jumps",
    "unsure_jumps",
    "swaps",
    "limb_outliers",
    "outside",
    "reprojection_px",
    "temporal_norm_px",
    "confident_when_seen",
    "fraction_empty",
    "still",
    "still_in_motion",
    "no_animal",
    "background",
)


#: Scores for which less is worse.
LESS_IS_WORSE = ("mean_likelihood", "fraction_confident")
