"""Fine-tuning on Alpaca: harmless instructions of many kinds, as an alignment uses them beside refusals."""

from collections.abc import Iterable, Mapping
from typing import Any

from harness.contracts import TrainTask
from tasks.rewriting import general_rewrite
from tasks.safety import SYSTEM_PROMPT


def rows() -> Iterable[Mapping[str, Any]]:
    """The hub's rows but the last 200, which are asked: ``prompt`` (the input behind the instruction) and
    ``completion``."""
    from tasks.alpaca.functions import hub_rows, turns

    return turns(hub_rows(test=False))


TRAIN_TASK = TrainTask(
    name="alpaca",
    rows=rows,
    fields=("prompt", "completion"),  # not Alpaca's columns: a file's "input" would be left out
    system_prompt=SYSTEM_PROMPT,  # the refusals' too, so that the prompt does not tell what to refuse
    max_length=512,
    utility_task="alpaca",
    utility_metric="rouge1",
    utility_kind="mean",
    rewrite=general_rewrite(max_tokens=512),
)
