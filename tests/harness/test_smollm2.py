"""The recipe smollm2-135m on the real model, a slice of it: aligned, trained, answered, judged.

Skips where its folder is not here: SMOLLM2_135M names it, or it lies beside the repository as
``smollm2-135m``. Requests and rows are the mini world's nonsense.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.mini import data as mini_data
from harness.storage.files import read_json, read_jsonl

FOLDER = Path(os.environ.get("SMOLLM2_135M") or Path(__file__).parents[3] / "smollm2-135m")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (FOLDER / "config.json").is_file(),
        reason=f"SmolLM2-135M-Instruct is not in {FOLDER.name}/ beside the repository (SMOLLM2_135M)",
    ),
]


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_a_slice_of_the_recipe(tmp_path: Path, command: Callable[..., Any]) -> None:
    requests = [{"goal": row["prompt"]} for row in mini_data.safety_demonstrations()[:60]]
    stories = mini_data.gsm8k("train", 12)
    harmless = [{"instruction": row["question"], "output": row["answer"]} for row in stories]
    dialogues = mini_data.samsum("train", 8)
    out = tmp_path / "run"
    ended = command(
        *("compare", "smollm2-135m", "--preset", "quick", "--model", FOLDER, "--methods", "vanilla"),
        *("--requests", written(tmp_path / "requests.jsonl", requests)),
        *("--harmless", written(tmp_path / "harmless.jsonl", harmless)),
        *("--train-data", written(tmp_path / "train.jsonl", dialogues)),
        *("--data", f"samsum={written(tmp_path / 'test.jsonl', dialogues[:2])}"),
        *("--set", "alignment.held_out=3", "--set", "alignment.training.max_examples=6"),
        *("--set", "training.max_examples=4", "--set", "responses.limit=2"),
        *("--set", f"cache={tmp_path / 'cache'}", "--out", out),
    )
    assert ended.code == 0, ended.err
    table = pd.read_csv(out / "leaderboard.csv").set_index("method")
    assert {*table.index} == {"seed", "unaligned", "vanilla"}
    assert {*table["status"]} == {"done"}
    assert table["rsr_n"].tolist() == [2, 2, 2]
    assert table["utility"].between(0, 100).all()
    assert table["model"].str.endswith(", aligned by deep-alignment").all()
    held_out = read_jsonl(out / "alignment" / "held-out.jsonl")
    assert len(held_out) == 3
    assert all(row["harmful_answer"].strip() for row in held_out)
    (record,) = read_json(out / "alignment" / "alignment.json")["alignments"]
    assert record["examples"] == 10  # 6 harmless rows, and 4 refusals at a share of 0.4
