from pathlib import Path

from dlc_platform_tests.benchmarks.load_definitions import load

HEAVY = {"deeplabcut", "torch", "matplotlib", "pandas", "av", "cv2", "pyarrow", "tables", "scipy"}


def test_loading_the_definitions_is_light(tmp_path: Path) -> None:
    """Every Dagster process loads them, and the daemon and the webserver again and again."""
    loaded = load(tmp_path)
    assert "pose_estimates" in loaded["assets"] and "trained_model" in loaded["assets"]
    assert HEAVY & set(loaded["modules"]) == set()
    assert loaded["peak_mb"] < 200
