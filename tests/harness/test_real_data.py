"""Guards the walk on real input: GSM8K rows through training, answering, scoring and the leaderboard, and
their export for another trainer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.storage.files import read_json, read_jsonl

GSM8K = Path(__file__).parents[3] / "shared" / "data" / "gsm8k"
pytestmark = pytest.mark.requires_shared_data
SETTINGS = {
    "training.max_examples": 16,
    "training.epochs": 1,
    "training.batch_size": 8,
    "training.micro_batch_size": 8,
    "responses.limit": 2,
    "jobs": 1,
}


@pytest.mark.slow
def test_real_rows_go_all_the_way_to_the_leaderboard(
    tmp_path: Path, command: Callable[..., Any], values: Callable[..., Any]
) -> None:
    out = tmp_path / "run"
    flags = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
    ended = command(
        "compare", "--methods", "vanilla,lookahead-true", "--train-tasks", "gsm8k",
        "--train-data", GSM8K / "train.jsonl", "--data", f"gsm8k={GSM8K / 'test.jsonl'}",
        "--out", out, *flags,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    rows = {row["method"]: row for row in values(out)}
    assert list(rows) == ["seed", "vanilla", "lookahead-true"]
    for row in rows.values():
        assert (row["train_task"], row["utility_task"], row["utility_metric"]) == (
            "gsm8k",
            "gsm8k",
            "exact_match",
        )
        assert (row["utility_n"], row["rsr_n"], row["status"]) == ("2", "2", "done")
    questions = [row["question"] for row in read_jsonl(GSM8K / "test.jsonl")[:2]]
    answers = read_jsonl(out / "gsm8k/vanilla/seed-42/gsm8k/responses.jsonl")
    assert [row["prompt"] for row in answers] == questions
    trained = read_json(out / "gsm8k/lookahead-true/seed-42/training.json")
    assert trained["examples"] == 16
    assert trained["train_tokens"] > read_json(out / "gsm8k/vanilla/seed-42/training.json")["train_tokens"]


@pytest.mark.parametrize("method", ["vanilla", "lookahead-true", "lookahead-virtual"])
def test_export_writes_rows_for_any_other_trainer(
    method: str, tmp_path: Path, command: Callable[..., Any]
) -> None:
    out = tmp_path / "out.jsonl"
    ended = command(
        "data", "export", "--method", method, "--train-task", "gsm8k", "--data", GSM8K / "train.jsonl",
        "--out", out, "--limit", 50,
    )  # fmt: skip
    assert (ended.code, ended.out) == (0, f"{out}: 50 examples\n")
    published = read_jsonl(GSM8K / "train.jsonl")[:50]
    written = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert len(written) == 50
    for row, source in zip(written, published, strict=True):
        assert list(row) == ["messages"]
        assert [turn["role"] for turn in row["messages"]] == ["system", "user", "assistant"]
        user, answer = row["messages"][1]["content"], row["messages"][2]["content"]
        assert user.startswith(source["question"])
        assert answer.endswith(source["answer"])
        assert (user == source["question"]) == (method == "vanilla")
        assert (answer == source["answer"]) == (method != "lookahead-virtual")
