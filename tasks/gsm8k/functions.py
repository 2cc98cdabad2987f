"""Data of the lm-eval task ``gsm8k``."""

from collections.abc import Iterable, Mapping
from typing import Any

from harness.contracts import HarnessError
from tasks.documents import as_test_split, local_file, read_jsonl

HUB = ("openai/gsm8k", "main")


def hub_rows(split: str) -> Iterable[Mapping[str, Any]]:
    """The hub's rows of a split, ``question`` and ``answer``. Raises HarnessError if it can't be reached."""
    import datasets

    try:
        rows: Iterable[Mapping[str, Any]] = datasets.load_dataset(*HUB, split=split)
    except Exception as error:
        cause = str(error).strip().split("\n")[0]
        raise HarnessError(
            f"gsm8k: the hub data set {HUB[0]} cannot be loaded ({cause}); give a local copy: "
            '--train-data FILE to train, metadata {"data_files": {"gsm8k": FILE}} to evaluate'
        ) from error
    return rows


def dataset(**metadata: Any) -> dict[str, Any]:
    """The 1,319 test rows from the hub, or metadata's ``{"data_files": {"gsm8k": FILE}}`` (JSONL)."""
    path = local_file("gsm8k", metadata)
    rows = hub_rows("test") if path is None else read_jsonl(path, ("question", "answer"))
    kept = ({key: row[key] for key in ("id", "question", "answer") if key in row} for row in rows)
    return as_test_split(kept, "gsm8k-test")
