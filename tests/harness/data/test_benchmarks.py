"""Guards what is read from the tasks' YAML without lm-eval, and the hash that a change of a task changes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.contracts import HarnessError, UsageError
from harness.data import benchmarks
from harness.plugins import registry


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of tasks that takes the place of the installed ones."""
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "one.yaml").write_text(
        "task: one\nprocess_results: !function one.functions.score\n"
        "metadata: {version: 3, kind: safety, prefill_tokens: 3}\n",
        encoding="utf-8",
    )
    (tmp_path / "one" / "functions.py").write_text("score = 1\n", encoding="utf-8")
    monkeypatch.setattr(registry, "task_folders", lambda: [tmp_path])
    benchmarks.installed.cache_clear()
    yield tmp_path
    benchmarks.installed.cache_clear()


def test_ours_are_all_found_with_their_kind() -> None:
    kinds = {name: (found.kind, found.prefilled) for name, found in benchmarks.installed().items()}
    assert kinds["gsm8k-mini"] == ("utility", False)
    assert kinds["samsum-mini"] == ("utility", False)
    assert kinds["hexphi_raw-mini"] == ("safety", False)
    assert kinds["hexphi_prefill-mini"] == ("safety", True)
    assert all(found.path.is_file() for found in benchmarks.installed().values())


def test_reading_them_imports_neither_lm_eval_nor_torch() -> None:
    code = (
        "import sys; from harness.data.benchmarks import installed;"
        "[b.content for b in installed().values()];"
        "print([m for m in ('torch', 'lm_eval', 'transformers', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_metadata_and_function_tags(folder: Path) -> None:
    one = benchmarks.get("one")
    assert (one.version, one.kind, one.prefilled, one.sources) == ("3", "safety", True, ())


def test_the_content_changes_with_the_task_its_code_and_its_sources(folder: Path) -> None:
    def content() -> str:
        benchmarks.installed.cache_clear()  # a command reads a task once
        return benchmarks.get("one").content

    before = content()
    assert content() == before
    (folder / "one" / "functions.py").write_text("score = 2\n", encoding="utf-8")
    code = content()
    (folder / "shared.py").write_text("x = 1\n", encoding="utf-8")
    assert content() == code  # a module beside it, in no package, is none of its own
    (folder / "__init__.py").write_text("", encoding="utf-8")
    shared = content()
    (folder / "one" / "one.yaml").write_text(
        "task: one\nmetadata: {kind: utility, sources: [harness.mini.data]}\n", encoding="utf-8"
    )
    assert len({before, code, shared, content()}) == 4


def test_a_source_that_is_not_installed_is_named(folder: Path) -> None:
    (folder / "one" / "one.yaml").write_text(
        "task: one\nmetadata: {kind: utility, sources: [no_such_module]}\n", encoding="utf-8"
    )
    benchmarks.installed.cache_clear()
    with pytest.raises(HarnessError, match="'no_such_module', which is not installed"):
        benchmarks.get("one").content  # noqa: B018


def test_groups_and_bases_are_no_tasks(folder: Path) -> None:
    (folder / "group.yaml").write_text("group: g\ntask: [one]\n", encoding="utf-8")
    (folder / "base.yaml").write_text("test_split: test\n", encoding="utf-8")
    assert list(benchmarks.installed()) == ["one"]


def test_a_broken_yaml_and_a_second_task_of_one_name_are_errors(folder: Path) -> None:
    (folder / "two.yaml").write_text("task: one\nmetadata: {kind: utility}\n", encoding="utf-8")
    with pytest.raises(HarnessError, match="two lm-eval tasks are called 'one'"):
        benchmarks.installed()
    (folder / "two.yaml").write_text("task: [\n", encoding="utf-8")
    with pytest.raises(HarnessError, match=r"two\.yaml: not valid YAML"):
        benchmarks.installed()


def test_an_unknown_task_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'gsm8k-mini'"):
        benchmarks.get("gsm8k-mine")


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ("{version: 1}", "metadata has no kind: utility, safety, over-refusal"),
        ("{kind: safty}", "unknown kind 'safty': did you mean 'safety'?"),
        ("{kind: [safety]}", "unknown kind '['safety']': did you mean 'safety'?"),
    ],
)
def test_a_task_says_its_kind(folder: Path, metadata: str, says: str) -> None:
    (folder / "two.yaml").write_text(f"task: two\nmetadata: {metadata}\n", encoding="utf-8")
    with pytest.raises(HarnessError) as error:
        benchmarks.installed()
    assert str(error.value) == f"{folder / 'two.yaml'}: {says}"
