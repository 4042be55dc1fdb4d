import re
from pathlib import Path

from typer.testing import CliRunner

from dlc_platform_tests.benchmarks.inference import app


def test_the_comparison_runs_both_sides_on_the_same_frames(tiny_video: Path) -> None:
    """How fast they are is not tested: that depends on the day."""
    arguments = ["cspnext_s", "--frames", "24", "--pieces", "2", "--rounds", "1", "--video", str(tiny_video)]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert "24 frames of 96x96" in done.output and "estimate with openvino" in done.output
    assert re.search(r"ratio \d+\.\d\d", done.output)
    assert "100.00% within 0.001 px and 0.0001" in done.output
