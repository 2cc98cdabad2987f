"""The real samsum on local files and through a stubbed hub."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

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


def test_rows_come_from_the_hub_stripped(hub: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert len(dataset()["test"]) == 819
    hub.rows["knkarthick/samsum"] = [
        {"id": "1", "dialogue": " a\n", "summary": " b "},
        {"id": "2", "dialogue": None, "summary": "c"},
    ]
    assert list(TRAIN_TASK.rows()) == [{"dialogue": " a\n", "summary": " b "}]  # until the method is done
    assert "samsum: 1 of 2 rows left out: they are empty" in caplog.messages
    assert dataset()["test"].to_list() == [{"id": "samsum-test-0000", "dialogue": "a", "summary": "b"}]
    assert hub.splits == ["test", "train", "test"]


@pytest.mark.parametrize("ending", ["json", "csv", "jsonl"])
def test_the_corpus_and_the_hubs_files(tmp_path: Path, hub: Any, ending: str) -> None:
    """The original corpus' test.json, the hub's former test.csv, and JSON lines: id, dialogue, summary."""
    path, rows = tmp_path / f"test.{ending}", hub.rows["knkarthick/samsum"]
    if ending == "csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    elif ending == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text(json.dumps(rows))
    found = dataset(data_files={"samsum": str(path)})["test"]
    assert found.to_list() == dataset()["test"].to_list()
    assert found[0] == {"id": "samsum-test-0000", "dialogue": "A: 0?\r\nB: yes.", "summary": "B has 0."}
