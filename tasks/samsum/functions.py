"""Data and metric of the lm-eval task ``samsum``."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness.contracts import HarnessError
from tasks.documents import as_test_split, local_file, read_jsonl
from tasks.rouge import rouge1

HUB = "knkarthick/samsum"  # Samsung's own upload is gone
FIELDS = ("dialogue", "summary")


def hub_rows(split: str) -> Iterable[Mapping[str, Any]]:
    """The hub's rows of a split, stripped. Raises HarnessError if they can't be reached."""
    import datasets

    try:
        rows = datasets.load_dataset(HUB, split=split)
    except Exception as error:
        cause = str(error).strip().split("\n")[0]
        raise HarnessError(
            f"samsum: the hub data set {HUB} cannot be loaded ({cause}); give a local copy: "
            '--train-data FILE to train, metadata {"data_files": {"samsum": FILE}} to evaluate'
        ) from error
    return map(stripped, rows)


def stripped(row: Mapping[str, Any]) -> dict[str, str]:
    """Dialogue and summary without outer white space, as the paper trains and scores them."""
    return {field: row[field].strip() for field in FIELDS}


def dataset(**metadata: Any) -> dict[str, Any]:
    """The 819 test rows from the hub, or metadata's ``{"data_files": {"samsum": FILE}}`` (JSONL)."""
    path = local_file("samsum", metadata)
    rows = hub_rows("test") if path is None else map(stripped, read_jsonl(path, FIELDS))
    return as_test_split(rows, "samsum-test")


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """One document's ROUGE-1 F-measure, in [0, 1]."""
    return {"rouge1": rouge1(doc["summary"], results[0])}
