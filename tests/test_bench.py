"""The benchmark of scale still runs, on a small scale. Nothing timed is asserted."""

import subprocess
import sys
from pathlib import Path

import pytest

SCALE = Path(__file__).parent / "bench" / "scale.py"


@pytest.mark.slow
def test_the_bench_of_scale_prints_its_two_measurements() -> None:
    """Each at a tenth, and whole."""
    ended = subprocess.run(
        [sys.executable, SCALE, "--cells", "10", "--responses", "20"],
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert [line.split(",")[0].split(" (")[0] for line in ended.stdout.splitlines()] == [
        "9 cells",
        "9 cells",
        "2 responses",
        "20 responses",
    ]
