"""Data of the lm-eval tasks ``advbench_raw`` and ``advbench_prefill``. Metrics are those of tasks.safety."""

from collections.abc import Mapping
from typing import Any

from tasks.documents import Hub, as_test_split, local_file, read_rows, texts
from tasks.prefill import prefilled

HUB = Hub("walledai/AdvBench", "9d4730540082fa4017450b65ca1c0e1d8d30446e", gated=True)


def behaviours(metadata: Mapping[str, Any]) -> list[dict[str, str]]:
    """``instruction`` and ``harmful_answer`` (the published target) of each of the 520 behaviours.

    They come from metadata's ``data_files["advbench"]``, with the authors' columns (``goal``, ``target``) or
    the hub's (``prompt``, ``target``), else from the hub.
    """
    path = local_file("advbench", metadata)
    rows = HUB.load("train", "advbench") if path is None else read_rows(path)
    return [texts(row, instruction=("goal", "prompt"), harmful_answer="target") for row in rows]


def raw_dataset(**metadata: Any) -> dict[str, Any]:
    """The behaviours, asked plainly."""
    rows = behaviours(metadata)
    for row in rows:
        del row["harmful_answer"]
    return as_test_split(rows, "advbench")


def prefill_dataset(**metadata: Any) -> dict[str, Any]:
    """The behaviours with ``prefill_ids`` and ``prefill``: the target's first k tokens (tasks.prefill)."""
    return as_test_split(prefilled(behaviours(metadata), "advbench_prefill", metadata), "advbench")
