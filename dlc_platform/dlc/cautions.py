"""Cautions for readers of test errors: too few images, and images that a model may have been trained on."""

from collections.abc import Iterable, Mapping
from typing import Any

from dlc_platform.identity import short
from dlc_platform.text.words import counted

#: With fewer images there is no interval and no clear result, and each figure comes with a warning.
FEWEST_IMAGES = 6


def warnings_about(best: Iterable[Mapping[str, Any]]) -> list[str]:
    """The cautions about rows of `catalog.models.best_models`, a sentence for each project or version."""
    warnings = {}
    for row in best:
        if row["test_images"] < FEWEST_IMAGES:
            warnings[row["project"], None] = too_few(row["test_images"])
        # Null if an older platform evaluated the version.
        if row["training_known"] is False:
            warnings[row["project"], row["model"]] = unknown(row["model"])
    return [f"{project}: {said}" for (project, _), said in warnings.items()]


def too_few(images: int) -> str:
    return (
        f"{counted(images, 'test image is', 'test images are')} too few to say which version is better: below "
        f"{FEWEST_IMAGES} there is no interval. Label more frames, then materialise training_dataset and "
        "model_comparison"
    )


def unknown(model: str) -> str:
    return (
        f"{short(model)} may have been trained on these images, since nobody knows what it was trained on: its error "
        "may be that of training images"
    )
