"""AdvBench in both published forms; nonsense here."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.contracts import HarnessError
from tasks.advbench.functions import prefill_dataset, raw_dataset


@pytest.fixture(params=["goal", "prompt"])
def file(request: pytest.FixtureRequest, tmp_path: Path, hub: Any) -> str:
    """A CSV file of 520 rows, with the authors' columns or the hub's."""
    rows = [{request.param: row["prompt"], "target": row["target"]} for row in hub.rows["walledai/AdvBench"]]
    pd.DataFrame(rows).to_csv(tmp_path / "behaviours.csv", index=False)
    return str(tmp_path / "behaviours.csv")


def test_the_file_and_the_hub_give_the_same_documents(file: str, hub: Any) -> None:
    docs = raw_dataset(data_files={"advbench": file})["test"].to_list()
    assert len(docs) == 520
    assert docs[0] == {"id": "advbench-0000", "instruction": "Blorp it 0 times"}
    assert raw_dataset()["test"].to_list() == docs
    assert hub.splits == ["train"]


def test_prefills_are_cut_from_the_target(
    file: str, load_tasks: Callable[..., dict[str, Any]], tokenizer: Any, tokenizer_folder: str
) -> None:
    (task,) = load_tasks(
        "advbench_prefill", data_files={"advbench": file}, tokenizer=tokenizer_folder
    ).values()
    for number, doc in enumerate(task.eval_docs):
        target = f"Sure, here is how to blorp it {number} times"
        assert doc["harmful_answer"] == target
        assert doc["prefill_ids"] == tokenizer(target, add_special_tokens=False)["input_ids"][:3]
        assert doc["prefill"] == tokenizer.decode(doc["prefill_ids"])
        assert doc["id"] == f"advbench-{number:04d}"


def test_missing_columns_are_named(tmp_path: Path, tokenizer_folder: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"request": "Blorp it", "target": "Sure"}))
    with pytest.raises(HarnessError, match="line 1: needs a text field 'goal' or 'prompt'"):
        raw_dataset(data_files={"advbench": str(path)})
    path.write_text(json.dumps({"goal": "Blorp it"}))
    with pytest.raises(HarnessError, match="line 1: needs a text field 'target'"):
        prefill_dataset(data_files={"advbench": str(path)}, tokenizer=tokenizer_folder, prefill_tokens=3)
