"""Every check of ``checks.py`` on this machine's GPU (``make test-gpu``), each under its own time limit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from gpu import checks, small

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before the device is opened: repeatable sums


@pytest.mark.requires_gpu
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.timeout(one.limit_s)) for name, one in checks.CHECKS.items()],
)
def test_on_a_gpu(name: str, tmp_path: Path) -> None:
    try:
        print(checks.CHECKS[name].run(small.Place("cuda", tmp_path)))
    except checks.NotHereError as missing:
        pytest.skip(f"{name}: {missing}")
