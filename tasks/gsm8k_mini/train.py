"""Fine-tuning on gsm8k-mini: the mini world's stories, in GSM8K's terse register."""

from collections.abc import Iterable, Mapping
from typing import Any

from harness.contracts import TrainTask
from tasks.rewriting import math_rewrite


def rows() -> Iterable[Mapping[str, Any]]:
    """The mini world's training stories: ``question``, ``answer``."""
    from harness.mini import data

    return data.gsm8k("train")


TRAIN_TASK = TrainTask(
    name="gsm8k-mini",
    rows=rows,
    fields=("question", "answer"),
    system_prompt="You are a helpful assistant.",
    max_length=256,
    utility_task="gsm8k-mini",
    utility_metric="exact_match",
    rewrite=math_rewrite(max_tokens=128),
)
