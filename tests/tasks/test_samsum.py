"""The real samsum on local files and through a stubbed hub."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.contracts import HarnessError
from tasks.samsum.functions import dataset
from tasks.samsum.train import TRAIN_TASK


def test_local_file_through_lm_eval(
    load_tasks: Callable[..., dict[str, Any]], canned_lm: Any, tmp_path: Path
) -> None:
    from lm_eval.evaluator import evaluate

    path = tmp_path / "test.jsonl"
    rows = [
        {"id": n, "dialogue": f" A: {word}?\r\nB: yes. ", "summary": f"\nB has {word}. "}
        for n, word in enumerate(("pens", "cards"))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = load_tasks("samsum", data_files={"samsum": str(path)})
    assert tasks["samsum"].eval_docs[0]["dialogue"] == "A: pens?\r\nB: yes."
    lm = canned_lm(lambda doc: "B has pens")
    found = evaluate(lm, tasks, apply_chat_template=True, bootstrap_iters=0)["results"]["samsum"]
    assert found["rouge1,none"] == pytest.approx((1 + 2 / 3) / 2)


def test_rows_come_from_the_hub_stripped(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load(*args: Any, **kwargs: Any) -> list[dict[str, str]]:
        asked.append((args, kwargs))
        return [{"id": "1", "dialogue": " a\n", "summary": " b "}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert list(TRAIN_TASK.rows()) == [{"dialogue": "a", "summary": "b"}]
    assert asked == [(("knkarthick/samsum",), {"split": "train"})]
    assert dataset()["test"].to_list() == [{"id": "samsum-test-0000", "dialogue": "a", "summary": "b"}]


def test_without_a_hub_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(HarnessError, match=r"knkarthick/samsum.*no route\).*--train-data FILE") as caught:
        dataset()
    assert "\n" not in str(caught.value)
