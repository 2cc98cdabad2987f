"""Fine-tuning on GSM8K, as the paper does (answers keep ``<<...>>`` and ``#### n``), and as SDFT does."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from harness.contracts import TrainTask
from tasks.rewriting import math_rewrite


def rows() -> Iterable[Mapping[str, Any]]:
    """The 7,473 training rows from the hub: ``question``, ``answer``."""
    from tasks.gsm8k.functions import hub_rows

    return hub_rows("train")


TRAIN_TASK = TrainTask(
    name="gsm8k",
    rows=rows,
    fields=("question", "answer"),
    system_prompt="You are a helpful assistant.",
    max_length=512,
    utility_task="gsm8k",
    utility_metric="exact_match",
    rewrite=math_rewrite(max_tokens=512),
)

# sail-sg/sdft trains under a system prompt of its own; the words are ours (RECIPE §4, §8).
SDFT_SYSTEM = "You are an expert in math. A math question follows. Answer it."
SDFT_TRAIN_TASK = replace(TRAIN_TASK, name="gsm8k-sdft", system_prompt=SDFT_SYSTEM)
