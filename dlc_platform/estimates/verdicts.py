"""The last verdicts on poses in force, for people to read. `quality_gate` gives them."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Engine

from dlc_platform.catalog.verdicts import pose_quality, pose_verdicts, poses_that_do_not_pass
from dlc_platform.pose.findings import ALL, Finding, worst


def quality_rows(engine: Engine, session: str | None = None) -> list[dict[str, Any]]:
    """The scores of the poses in force by body part, each with its verdict and the findings in words."""
    return [in_words(row) for row in pose_quality.rows(engine, session)]


def worst_quality(engine: Engine, most: int) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The newest recordings whose poses do not pass, each in one row over all body parts, and the counts of all
    verdicts.

    Returns
    -------
    list of dict
        At most `most` rows of `quality_rows`.
    dict
        The number of recordings by verdict.
    """
    rows = poses_that_do_not_pass.rows(engine, most)
    return [in_words(row) for row in rows], pose_verdicts(engine)


def in_words(row: Mapping[Any, Any]) -> dict[str, Any]:
    """A row of scores with the findings about its body part alone, or about all."""
    own = (row["individual"], row["bodypart"])
    recorded = [Finding(**finding) for finding in row["findings"]]
    findings = [found for found in recorded if row["bodypart"] == ALL or (found.individual, found.bodypart) == own]
    words = "; ".join(f"{finding.level}: {finding}" for finding in findings)
    return {**row, "verdict": worst(findings), "findings": words}
