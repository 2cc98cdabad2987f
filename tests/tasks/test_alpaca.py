"""Alpaca: what is asked and what is trained on are apart, and an input stands behind its instruction."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.contracts import HarnessError
from harness.data import loading
from tasks.alpaca.functions import TEST_ROWS, dataset, process_results
from tasks.alpaca.train import TRAIN_TASK


def test_the_hubs_last_rows_are_asked_and_the_others_trained_on(hub: Any) -> None:
    asked = dataset()["test"].to_list()
    trained = list(TRAIN_TASK.rows())
    assert (len(asked), len(trained)) == (TEST_ROWS, 100)
    assert {row["prompt"] for row in asked}.isdisjoint(row["prompt"] for row in trained)
    assert asked[-1] == {"id": "alpaca-0199", "prompt": "Add 299", "completion": "It is 299."}
    assert hub.splits == ["train", "train"]


def test_an_input_stands_behind_its_instruction(tmp_path: Path) -> None:
    """In evaluation as in training, which reads the file by its own columns."""
    rows = [
        {"instruction": "Translate", "input": "der Blorp", "output": "the blorp"},
        {"instruction": "Count", "input": "", "output": "One."},
        {"instruction": "Sing", "output": "La."},
    ]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    asked = [row["prompt"] for row in dataset(data_files={"alpaca": str(path)})["test"]]
    assert asked == ["Translate\n\nder Blorp", "Count", "Sing"]
    trained = loading.examples(TRAIN_TASK, path, None)
    assert [one.instruction for one in trained] == asked
    assert {one.messages[0].content for one in trained} == {TRAIN_TASK.system_prompt}


@pytest.mark.parametrize("row", [{"instruction": "Sing"}, {"instruction": " ", "output": "La."}])
def test_a_row_without_a_text_is_named(tmp_path: Path, row: dict[str, str]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(HarnessError, match="line 1: needs a text field"):
        dataset(data_files={"alpaca": str(path)})


def test_metrics() -> None:
    document = {"completion": "two blue kettles"}
    assert process_results(document, ["two red kettles"]) == {
        "rouge1": pytest.approx(2 / 3), "answered": 1.0, "refusal": 0.0
    }  # fmt: skip
    refused = process_results(document, ["I'm sorry, but I can't."])
    assert (refused["answered"], refused["refusal"]) == (0.0, 1.0)
    assert process_results(document, [" "])["answered"] == 0.0
    assert "rouge1" not in process_results({"completion": "…"}, ["so"])


def test_the_train_task_is_measured_by_it(load_tasks: Callable[..., dict[str, Any]], hub: Any) -> None:
    task = load_tasks(TRAIN_TASK.utility_task)[TRAIN_TASK.utility_task]
    assert TRAIN_TASK.utility_metric in task.process_results(task.eval_docs[0], ["It is 100."])
