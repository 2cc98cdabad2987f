"""Data of the lm-eval task ``gsm8k``."""

from collections.abc import Iterator, Mapping
from typing import Any

from harness.contracts import HarnessError
from tasks.documents import Hub, Placed, as_test_split, local_file, read_rows, texts
from tasks.gsm8k_scoring import MARKER, final_text

HUB = Hub("openai/gsm8k", "cc7b047b6e5bb11b4f1af84efc572db110a51b3c", config="main")


def hub_rows(split: str) -> Iterator[Mapping[str, str]]:
    """The hub's rows of a split, ``question`` and ``answer``. Raises HarnessError if it can't be reached."""
    flag = "--train-data FILE" if split == "train" else ""
    return map(checked, HUB.load(split, "gsm8k", flag))


def checked(row: Placed) -> dict[str, str]:
    found = texts(row, question="question", answer="answer")
    if MARKER not in found["answer"] or not final_text(found["answer"]):
        raise HarnessError(f"{row[0]}: 'answer' needs its last line '#### NUMBER', which is what is scored")
    return found


def dataset(**metadata: Any) -> dict[str, Any]:
    """The 1,319 test rows from the hub, or metadata's ``{"data_files": {"gsm8k": FILE}}``."""
    path = local_file("gsm8k", metadata)
    rows = hub_rows("test") if path is None else map(checked, read_rows(path))
    return as_test_split(rows, "gsm8k-test")
