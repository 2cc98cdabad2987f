"""Everything works from a source tree on PYTHONPATH, in an environment where the project is not installed."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

import harness
from harness.contracts import HarnessError
from harness.pipeline.checkup import installation
from harness.plugins import registry
from harness.run import context

TREE = Path(harness.__file__).parents[1]
# Read by every Python when it starts: our distribution's metadata is gone, as if it were not installed.
HIDDEN = """
from importlib import metadata
found = metadata.MetadataPathFinder.find_distributions
metadata.MetadataPathFinder.find_distributions = lambda *given, **named: (
    one for one in found(*given, **named) if (one.metadata["Name"] or "").lower() != "safetune-harness"
)
"""


@pytest.fixture
def from_tree(tmp_path: Path) -> Callable[..., tuple[str, int]]:
    """(arguments of Python) -> what it says, and its exit code."""
    hiding = tmp_path / "hiding"
    hiding.mkdir()
    (hiding / "sitecustomize.py").write_text(HIDDEN, encoding="utf-8")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {**os.environ, "PYTHONPATH": f"{TREE}{os.pathsep}{hiding}", "COLUMNS": "200"}

    def run(*arguments: str) -> tuple[str, int]:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=elsewhere, env=environment, capture_output=True, text=True
        )
        return done.stdout + done.stderr, done.returncode

    return run


def test_the_metadata_is_really_hidden(from_tree: Callable[..., tuple[str, int]]) -> None:
    code = "from importlib import metadata; print(metadata.version('safetune-harness'))"
    said, ended = from_tree("-c", code)
    assert ended == 1
    assert "No package metadata was found for safetune-harness" in said


def test_the_version(from_tree: Callable[..., tuple[str, int]]) -> None:
    said, ended = from_tree("-m", "harness", "--version")
    assert (said.strip(), ended) == (f"harness, version {harness.__version__}", 0)


@pytest.mark.parametrize(("kind", "command"), [("method", "methods"), ("judge", "judges")])
def test_names_are_found(kind: str, command: str, from_tree: Callable[..., tuple[str, int]]) -> None:
    said, ended = from_tree("-m", "harness", command)
    assert ended == 0
    for name in registry._TABLES[kind]:
        assert name in said


def test_doctor_says_that_it_is_a_tree_and_looks_at_what_it_needs(
    from_tree: Callable[..., tuple[str, int]],
) -> None:
    said, ended = from_tree("-m", "harness", "doctor", "mini")
    text = " ".join(said.split())
    assert ended == 0, said
    assert f"safetune-harness is not installed: it runs from {TREE}" in text
    assert "PackageNotFoundError" not in text
    assert "0 fail" in text


def test_a_dry_run_probes_trainings_and_answers(from_tree: Callable[..., tuple[str, int]]) -> None:
    said, ended = from_tree(
        "-m", "harness", "compare", "mini", "--dry-run", "--methods", "vanilla",
        "--train-tasks", "gsm8k-mini", "--set", "training.max_examples=16", "--set", "responses.limit=4",
    )  # fmt: skip
    assert ended == 0, said
    assert "Traceback" not in said
    assert "Memory: a training takes at most about" in said
    assert "Estimated time: about" in said


def test_what_a_tree_needs_is_in_its_project_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    needed = installation.read_dependencies()
    assert {line.partition(">")[0] for line in needed} >= {"torch", "transformers", "lm-eval"}
    monkeypatch.setattr(registry, "__file__", str(tmp_path / "harness" / "plugins" / "registry.py"))
    assert installation.read_dependencies() == []
    (tmp_path / "pyproject.toml").write_text("[project\n", encoding="utf-8")
    assert installation.read_dependencies() == []
    (tmp_path / "pyproject.toml").write_text("[project]\n", encoding="utf-8")
    assert installation.read_dependencies() == []


def test_a_librarys_version_without_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    assert context.version_of("rouge-score") == metadata.version("rouge-score")

    def gone(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", gone)
    given = types.ModuleType("of_a_tree")
    monkeypatch.setitem(sys.modules, "of_a_tree", given)
    for said in (None, "", 3):
        given.__version__ = said  # type: ignore[attr-defined]
        with pytest.raises(HarnessError, match="of-a-tree is not installed, or does not say its version"):
            context.version_of("of-a-tree")
    given.__version__ = "1.2"  # type: ignore[attr-defined]
    assert context.version_of("of-a-tree") == "1.2"
    with pytest.raises(HarnessError, match="pip install not-there"):
        context.version_of("not-there")
