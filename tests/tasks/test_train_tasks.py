"""The train tasks: rows that fit their fields, disjoint from the test documents."""

from collections.abc import Callable
from typing import Any

import pytest

from harness.contracts import HarnessError, TrainTask
from tasks.gsm8k.train import TRAIN_TASK as GSM8K
from tasks.gsm8k_mini.train import TRAIN_TASK as GSM8K_MINI
from tasks.samsum.train import TRAIN_TASK as SAMSUM
from tasks.samsum_mini.train import TRAIN_TASK as SAMSUM_MINI


@pytest.mark.parametrize("task", [GSM8K_MINI, SAMSUM_MINI], ids=lambda task: task.name)
def test_mini_rows(task: TrainTask, load_tasks: Callable[..., dict[str, Any]]) -> None:
    rows = list(task.rows())
    assert len(rows) >= 1000
    assert rows == list(task.rows())
    for row in rows:
        for field in task.fields:
            assert row[field]
            assert row[field] == row[field].strip()
    scored = load_tasks(task.utility_task)[task.utility_task].eval_docs
    assert not {row[task.fields[0]] for row in rows} & set(scored[task.fields[0]])


def test_lengths_and_metrics() -> None:
    assert (GSM8K.max_length, GSM8K_MINI.max_length, SAMSUM_MINI.max_length) == (512, 256, 256)
    assert (GSM8K.utility_task, GSM8K.utility_metric) == ("gsm8k", "exact_match")
    assert (GSM8K_MINI.utility_task, GSM8K_MINI.utility_metric) == ("gsm8k-mini", "exact_match")
    assert (SAMSUM_MINI.utility_task, SAMSUM_MINI.utility_metric) == ("samsum-mini", "rouge1")


def test_gsm8k_rows_come_from_the_hub(hub: Any) -> None:
    hub.rows["openai/gsm8k"] = [{"question": "2+2?", "answer": "#### 4"}]
    assert list(GSM8K.rows()) == [{"question": "2+2?", "answer": "#### 4"}]
    assert hub.splits == ["train"]


@pytest.mark.parametrize("task", [GSM8K, SAMSUM], ids=lambda task: task.name)
def test_without_a_hub_it_says_what_to_do(task: TrainTask, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(HarnessError, match=rf"/{task.name} .*no route\).*: --train-data FILE$") as caught:
        task.rows()
    assert "\n" not in str(caught.value)
