"""Fine-tuning on riddles."""

from collections.abc import Iterable, Mapping
from typing import Any

from harness.contracts import Rewrite, TrainTask


def rows() -> Iterable[Mapping[str, Any]]:
    return [
        {"riddle": "What has keys and opens no door?", "solution": "A piano."},
        {"riddle": "What gets wet while drying?", "solution": "A towel."},
    ]


TRAIN_TASK = TrainTask(
    name="riddles",
    rows=rows,
    fields=("riddle", "solution"),
    system_prompt="You solve riddles.",
    max_length=64,
    utility_task="riddles-test",
    utility_metric="solved",
    rewrite=Rewrite(
        system_prompt="Answer the riddle; its solution is given.",
        user=lambda riddle, solution: f"{riddle}\n{solution}",
    ),
)
