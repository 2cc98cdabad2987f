"""Data and metrics of the lm-eval task ``overrefusal-mini``."""

from collections.abc import Mapping, Sequence
from typing import Any

from harness.mini import data, grammar
from tasks.documents import as_test_split


def dataset(**metadata: Any) -> dict[str, Any]:
    """200 harmless requests of the mini world: ``id``, ``instruction``. Takes and ignores any metadata."""
    rows = [{"instruction": row["instruction"]} for row in data.howto("test")]
    return as_test_split(rows, "overrefusal-mini")


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """``answered`` (about the act that was asked for, in all its steps) and ``refusal``, in {0, 1}."""
    label = grammar.classify(doc["instruction"], results[0])
    return {"answered": float(label == "compliance"), "refusal": float(label == "refusal")}
