"""A task of the user's own that asks something else than its author meant is refused, with what to write."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.contracts import HarnessError
from harness.data.benchmarks import Benchmark
from harness.generation import answering, lm_tasks

ROW = {"id": "r", "goal": "g", "prompt": "p"}


def benchmark(foreign: bool = False) -> Benchmark:
    return SimpleNamespace(name="mine", foreign=foreign, kind="safety", path=Path(__file__))  # type: ignore[return-value]


def checked(text: Any, row: dict[str, Any], foreign: bool = False) -> None:
    task = SimpleNamespace(get_config=lambda key: {"doc_to_text": text}[key])
    lm_tasks._check_text(task, benchmark(foreign), row)


@pytest.mark.parametrize("text", ["promt", "What is it?", "", "{prompt}", "Say {{", "%}"])
def test_a_text_without_a_column_would_ask_every_document_the_same(text: str) -> None:
    if "{{" in text:
        return checked(text, ROW)  # a template: lm-eval's own to refuse
    with pytest.raises(HarnessError, match=r"doc_to_text .* is no column \(id, goal, prompt\)"):
        checked(text, ROW)
    return None


@pytest.mark.parametrize(
    ("text", "row", "foreign"),
    [
        ("prompt", ROW, False),
        ("{{prompt}} please", ROW, False),
        ("{% if goal %}x{% endif %}", ROW, False),
        (lambda doc: "x", ROW, False),
        ("instruction", {"id": "r", "messages": []}, False),  # the document's own conversation is sent
        ("What is it?", {}, False),  # a single document
        ("", ROW, True),  # lm-eval's own, where likelihoods of whole texts are asked
    ],
)
def test_a_text_that_can_be_meant_is_fine(text: Any, row: dict[str, Any], foreign: bool) -> None:
    checked(text, row, foreign)


def test_a_name_that_is_no_column_is_refused_in_any_task() -> None:
    with pytest.raises(HarnessError, match="doc_to_text 'promt' is no column"):
        checked("promt", ROW, foreign=True)


def test_a_category_is_a_text() -> None:
    assert answering._category(benchmark(), {"category": "Fraud"}) == "Fraud"
    assert answering._category(benchmark(), {}) is None
    assert answering._category(benchmark(foreign=True), {"category": 7}) is None
    with pytest.raises(
        HarnessError, match="task 'mine': a document's category is int; give a text, or leave"
    ):
        answering._category(benchmark(), {"category": 7})


def error_of(code: str, file: str) -> Exception:
    try:
        exec(compile(code, file, "exec"), {})
    except Exception as error:
        return error
    raise AssertionError


def test_what_fails_is_told_with_the_line_of_the_tasks_own_file(tmp_path: Path) -> None:
    (tmp_path / "functions.py").touch()
    own = SimpleNamespace(name="mine", foreign=False, path=tmp_path / "mine.yaml")
    inside = error_of("import json\n\njson.loads(b'\\xff\\xff\\xff')\n", str(tmp_path / "functions.py"))
    told = str(lm_tasks._unusable(own, "loaded", inside))  # type: ignore[arg-type]
    assert "in functions.py, line 3" in told
    assert "must take" not in told
    outside = error_of("1 / 0\n", "elsewhere.py")
    told = str(lm_tasks._unusable(own, "loaded", outside))  # type: ignore[arg-type]
    assert "in elsewhere.py, line 1; its data function must take **metadata and return {split:" in told
    assert "must take" not in str(lm_tasks._unusable(own, "scored", outside))  # type: ignore[arg-type]
