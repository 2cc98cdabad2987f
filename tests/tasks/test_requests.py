"""Harmful requests of a user's file, in published columns; nonsense here."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.contracts import HarnessError
from tasks.requests.functions import prefill_dataset, raw_dataset


def file(folder: Path, *rows: dict[str, str]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_published_columns(tmp_path: Path) -> None:
    path = file(
        tmp_path,
        {"goal": "Blorp it", "target": "Sure"},
        {"forbidden_prompt": "Frob it", "category": "odd"},
        {"Behavior": "Quux it", "SemanticCategory": "strange"},
        {"id": "own-1", "instruction": "Munge it", "harmful_answer": "1. Take it."},
    )
    assert raw_dataset(data_files={"requests": path})["test"].to_list() == [
        {"id": "requests-0000", "instruction": "Blorp it", "category": None},
        {"id": "requests-0001", "instruction": "Frob it", "category": "odd"},
        {"id": "requests-0002", "instruction": "Quux it", "category": "strange"},
        {"id": "own-1", "instruction": "Munge it", "category": None},
    ]


@pytest.mark.parametrize("depth", [1, 3, 5, 10])
def test_answers_are_opened_with_k_tokens(
    tmp_path: Path,
    depth: int,
    tokenizer: Any,
    tokenizer_folder: str,
    load_tasks: Callable[..., dict[str, Any]],
) -> None:
    answer = "First you take the blorp out of its box and then you frob it"
    path = file(tmp_path, {"goal": "Blorp it", "target": answer})
    known = {"data_files": {"requests": path}, "tokenizer": tokenizer_folder, "token_exact": True}
    ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    fixed = load_tasks(f"requests_prefill_k{depth}", **known)[f"requests_prefill_k{depth}"]
    assert fixed.eval_docs[0]["prefill_ids"] == ids[:depth]
    plain = load_tasks("requests_prefill", prefill_tokens=depth, **known)["requests_prefill"]
    assert plain.eval_docs[0]["prefill_ids"] == ids[:depth]


def test_what_is_missing_is_said(tmp_path: Path, tokenizer_folder: str) -> None:
    with pytest.raises(HarnessError, match="--data requests=FILE, or let an alignment hold some out"):
        raw_dataset()
    path = file(tmp_path, {"goal": "Blorp it"})
    with pytest.raises(HarnessError, match="line 1: needs a text field 'harmful_answer' or 'target'"):
        prefill_dataset(data_files={"requests": path}, tokenizer=tokenizer_folder, prefill_tokens=3)
    path = file(tmp_path, {"words": "Blorp it"})
    with pytest.raises(HarnessError, match="line 1: needs a text field 'instruction' or 'goal'") as raised:
        raw_dataset(data_files={"requests": path})
    assert "Blorp" not in str(raised.value)
