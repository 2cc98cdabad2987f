"""Data of the lm-eval task ``gsm8k-mini``."""

from typing import Any

from harness.mini import data
from tasks.documents import as_test_split


def dataset(**metadata: Any) -> dict[str, Any]:
    """The mini world's 200 test stories: ``id``, ``question``, ``answer``. Takes and ignores any metadata."""
    return as_test_split(data.gsm8k("test"), "gsm8k-mini-test")
