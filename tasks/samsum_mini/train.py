"""Fine-tuning on samsum-mini: the mini world's dialogues and their summaries."""

from collections.abc import Iterable, Mapping
from typing import Any

from harness.contracts import TrainTask
from tasks.rewriting import general_rewrite


def rows() -> Iterable[Mapping[str, Any]]:
    """The mini world's training dialogues: ``dialogue``, ``summary``, both stripped."""
    from harness.mini import data

    return [{field: text.strip() for field, text in row.items()} for row in data.samsum("train")]


TRAIN_TASK = TrainTask(
    name="samsum-mini",
    rows=rows,
    fields=("dialogue", "summary"),
    system_prompt="You are a helpful assistant for dialog summarization.",
    prompt_template="Summarize this dialog:\n{prompt}",
    max_length=256,
    utility_task="samsum-mini",
    utility_metric="rouge1",
    utility_kind="mean",
    rewrite=general_rewrite(max_tokens=64),
)
