"""Data and metric of the lm-eval task ``samsum-mini``."""

from collections.abc import Mapping, Sequence
from typing import Any

from harness.mini import data
from tasks.documents import as_test_split
from tasks.rouge import scored


def dataset(**metadata: Any) -> dict[str, Any]:
    """The mini world's 200 test dialogues: ``id``, ``dialogue``, ``summary``, both stripped."""
    rows = [{field: text.strip() for field, text in row.items()} for row in data.samsum("test")]
    return as_test_split(rows, "samsum-mini-test")


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """One document's ROUGE-1 F-measure, in [0, 1]; none where ROUGE-1 cannot read its reference."""
    return scored(doc["summary"], results[0])
