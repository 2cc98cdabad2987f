"""Guards that what answers at once stays light: the command line, planning, and a run already done."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "lm_eval", "datasets")


def loaded(code: str, names: tuple[str, ...]) -> list[str]:
    """Which of the modules a new interpreter has after running the code."""
    code = f"import sys\n{code}\nprint('LOADED', *(m for m in {names!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()[1:]


def running(*arguments: str) -> str:
    return (
        f"sys.argv = {['harness', *arguments]!r}\n"
        "from harness.cli import main\n"
        "try: main()\n"
        "except SystemExit as ended: assert not ended.code, ended.code"
    )


@pytest.mark.parametrize("code", ["import harness.cli", running("--help"), running("compare", "--help")])
def test_the_command_line_is_light(code: str) -> None:
    assert (
        loaded(code, (*HEAVY, "pandas", "pydantic", "yaml", "rich", "numpy", "scipy", "multiprocessing"))
        == []
    )


@pytest.mark.parametrize(
    "code",
    [
        "import harness",
        "import harness.contracts",
        "import harness.run.plan, harness.config, harness.pipeline.stages",
    ],
)
def test_the_packages_spine_is_light(code: str) -> None:
    assert loaded(code, (*HEAVY, "pandas", "scipy")) == []


def test_listing_what_there_is_needs_no_heavy_library() -> None:
    assert loaded(running("judges"), HEAVY) == []
    assert loaded(running("tasks"), HEAVY) == []


def test_a_finished_run_is_shown_again_without_any_heavy_library(
    small_run: Path, small: Callable[..., list[str]]
) -> None:
    again = running("compare", "--out", str(small_run), *small(methods="all"))
    assert loaded(again, HEAVY) == []
    assert loaded(running("leaderboard", str(small_run)), HEAVY) == []


def test_contracts_use_the_standard_library_alone() -> None:
    code = (
        "import harness.contracts;"
        "found = {name.partition('.')[0] for name in set(sys.modules) - before} - {'harness'};"
        "print(*found - set(sys.stdlib_module_names))"
    )
    code = f"import sys; before = set(sys.modules); {code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
