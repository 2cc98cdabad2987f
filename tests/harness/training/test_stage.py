"""What a training says about itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.storage.files import read_json
from harness.training.stage import agreement_notes

PACKED = {"attention": "harness_causal", "batching": "padding-free", "micro_batch_size": 8}
PADDED = PACKED | {"batching": "grouped"}
ALONE = {"attention": "eager", "batching": "grouped", "micro_batch_size": 1}


def notes(taken: dict[str, Any], *rejected: dict[str, Any], noise: float | None = 0.0) -> list[str]:
    record = {"taken": taken, "rejected": list(rejected), "training_noise": noise, "limit": 1e-4}
    return agreement_notes("gsm8k vanilla", record)


def test_a_training_as_its_recipe_says_needs_no_words() -> None:
    assert notes(PACKED) == notes(PACKED, noise=None) == notes(PACKED, noise=1e-4) == []


def test_another_setting_is_said_in_a_line_with_its_reason() -> None:
    assert notes(PADDED, PACKED | {"difference": 0.43219}) == [
        "gsm8k vanilla  trained with attention harness_causal, batching grouped, which agrees with the "
        "model's own implementation; harness_causal, padding-free does not: log-probabilities 0.43 nats a "
        "token from the model's own implementation"
    ]
    (said,) = notes(ALONE, PACKED | {"reason": "attention without a mask does not know sinks"}, PADDED)
    assert said.endswith("padding-free cannot be: attention without a mask does not know sinks")
    assert "attention eager, one row at a time, which" in said


def test_noise_of_training_mode_is_said() -> None:
    (said,) = notes(PACKED, noise=0.03412)
    assert "draws at random in training (a router's noise): 0.034 nats a token" in said


def test_each_training_records_what_was_compared(small_run: Path) -> None:
    records = [read_json(path)["agreement"] for path in small_run.glob("*/*/*/training.json")]
    assert records
    for record in records:
        assert record["taken"] == record["asked"]
        assert record["difference"] <= record["limit"] == 1e-4
        assert record["rows"] == 4
        assert record["seconds"] < 30
