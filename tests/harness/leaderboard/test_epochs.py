"""Each epoch's checkpoint is scored, written and shown; a second command has nothing to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.storage.files import read_jsonl


@pytest.mark.slow
def test_every_epoch_is_scored(
    tmp_path: Path, command: Callable[..., Any], small: Callable[..., list[str]]
) -> None:
    out = tmp_path / "run"
    flags = [
        "compare", "--methods", "vanilla", "--eval-every-epoch", "--out", out,
        *small(**{"training.epochs": 3, "training.max_examples": 64, "responses.limit": 6,
                  "training.learning_rate": 1e-3}),
    ]  # fmt: skip
    ended = command(*flags)
    assert ended.code == 0, ended.err
    frame = pd.read_csv(out / "epochs.csv")
    assert set(frame["epoch"]) == {1, 2, 3}
    assert set(frame["method"]) == {"vanilla"}
    cell = out / "gsm8k-mini/vanilla/seed-42"
    for epoch, folder in ((1, cell / "epoch-1"), (2, cell / "epoch-2"), (3, cell)):
        assert (folder / "checkpoint/model.safetensors").exists()
        rows = read_jsonl(folder / "gsm8k-mini/responses.jsonl")
        value = 100 * sum(row["metrics"]["exact_match"] for row in rows) / 6
        mine = frame[(frame["epoch"] == epoch) & (frame["metric"] == "exact_match")]
        assert mine["value"].tolist() == [round(value, 2)]
        assert (folder / "hexphi_prefill-mini/verdicts.mini-exact.jsonl").exists()
    weights = {(folder / "checkpoint/model.safetensors").read_bytes() for folder in (cell, cell / "epoch-1")}
    assert len(weights) == 2
    assert (out / "epochs-gsm8k-mini.svg").read_text().startswith("<?xml")
    assert "By epoch, trained on gsm8k-mini" in ended.out
    again = command(*flags)
    assert "Nothing to do" in again.out
    assert "By epoch, trained on gsm8k-mini" in again.out
    assert not list(out.rglob(".training"))
