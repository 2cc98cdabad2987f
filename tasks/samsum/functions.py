"""Data and metric of the lm-eval task ``samsum``."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tasks.documents import Hub, Placed, as_test_split, local_file, read_rows, texts
from tasks.rouge import scored

log = logging.getLogger(__name__)

# Samsung's own upload is gone.
HUB = Hub("knkarthick/samsum", "6b929ff10edec703164e3ddb2e94aae058c9ab5f")


def hub_rows(split: str) -> list[Placed]:
    """The hub's rows of a split, as they are. Raises HarnessError if they can't be reached.

    The corpus has a training row without a dialogue: such rows are left out, with a line that counts them.
    """
    flag = "--train-data FILE" if split == "train" else ""
    rows = list(HUB.load(split, "samsum", flag))
    whole = [row for row in rows if row[1].get("dialogue") and row[1].get("summary")]
    if len(whole) < len(rows):
        log.warning("samsum: %d of %d rows left out: they are empty", len(rows) - len(whole), len(rows))
    return whole


def dialogues(rows: Iterable[Placed]) -> Iterator[dict[str, str]]:
    """Dialogue and summary as they stand: LookAhead's preview comes before training strips them."""
    for row in rows:
        found = texts(row, dialogue="dialogue", summary="summary")
        yield {field: found[field] for field in ("dialogue", "summary")}


def stripped(rows: Iterable[Placed]) -> Iterator[dict[str, str]]:
    """Dialogue and summary without outer white space, as the paper asks for them and scores them."""
    for row in dialogues(rows):
        yield {field: text.strip() for field, text in row.items()}


def dataset(**metadata: Any) -> dict[str, Any]:
    """The 819 test rows from the hub, or metadata's ``{"data_files": {"samsum": FILE}}``."""
    path = local_file("samsum", metadata)
    return as_test_split(stripped(hub_rows("test") if path is None else read_rows(path)), "samsum-test")


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """One document's ROUGE-1 F-measure, in [0, 1]; none where ROUGE-1 cannot read its reference."""
    return scored(doc["summary"], results[0])
