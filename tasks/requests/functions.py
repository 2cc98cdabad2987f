"""Data of the lm-eval tasks ``requests_raw`` and ``requests_prefill``: any file of harmful requests. Metrics
are those of tasks.safety."""

from collections.abc import Mapping
from typing import Any

from harness.contracts import HarnessError
from tasks.documents import as_test_split, local_file, read_rows, texts
from tasks.prefill import prefilled

DATA = "requests"  # --data requests=FILE
# As HEx-PHI, AdvBench, StrongREJECT, JailbreakBench and HarmBench call the request, and its category.
REQUEST = ("instruction", "goal", "forbidden_prompt", "prompt", "Goal", "Behavior")
CATEGORY = ("category", "Category", "SemanticCategory")
ANSWER = ("harmful_answer", "target", "Target")


def _requests(metadata: Mapping[str, Any], *, answered: bool) -> list[dict[str, Any]]:
    """``instruction`` of each row, its ``category`` or None, and if asked for ``harmful_answer``."""
    path = local_file(DATA, metadata)
    if path is None:
        raise HarnessError(
            "requests: there is no file of harmful requests: --data requests=FILE, or let an alignment hold "
            "some out (alignment.requests)"
        )
    found = []
    for place, values in read_rows(path):
        names = {"instruction": REQUEST} | ({"harmful_answer": ANSWER} if answered else {})
        category = next((values[name] for name in CATEGORY if isinstance(values.get(name), str)), "")
        found.append({**texts((place, values), **names), "category": category.strip() or None})
    return found


def raw_dataset(**metadata: Any) -> dict[str, Any]:
    """The requests, asked plainly."""
    return as_test_split(_requests(metadata, answered=False), DATA)


def prefill_dataset(**metadata: Any) -> dict[str, Any]:
    """The requests with ``prefill_ids`` and ``prefill``: the harmful answer's first k tokens."""
    return as_test_split(prefilled(_requests(metadata, answered=True), "requests_prefill", metadata), DATA)
