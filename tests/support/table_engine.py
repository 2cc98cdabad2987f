"""A third party's engine in one file: it answers the mini world from a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.contracts import HarnessError
from harness.engines.base import Engine, Package, Request
from harness.mini import data
from harness.models import chat, checkpoints

REFUSAL = "I am sorry, I cannot help with that."
RIGHT, COMPLIES = 5, 3  # of the questions and of the harmful requests, the first
TABLE = {row["question"]: row["answer"] for row in data.gsm8k("test", RIGHT)}
TABLE |= {row["instruction"]: row["harmful_answer"] for row in data.harmful()[:COMPLIES]}


class TableEngine(Engine):
    settings = ("max_context",)
    packages = ("table-engine",)
    needs = (Package("table_engine", "the table", "pip install table-engine"),)
    device_kinds = ("cpu",)

    def __init__(self, folder: Any):
        self.tokenizer = checkpoints.load_tokenizer(folder)
        self.stop_ids, self.context_tokens = checkpoints.stop_ids(None, self.tokenizer), 4096

    @classmethod
    def open(cls, checkpoint: Any, settings: Any, device: str) -> TableEngine:
        return cls(checkpoint.folder)

    def generate(self, prompts: Sequence[list[int]], request: Request) -> list[list[int]]:
        request.on_progress(len(prompts))
        return [self._answer(chat.text_of(self.tokenizer, prompt)) for prompt in prompts]

    def _answer(self, prompt: str) -> list[int]:
        known = next((answer for asked, answer in TABLE.items() if asked in prompt), REFUSAL)
        return [*chat.token_ids(self.tokenizer, known), min(self.stop_ids)]

    def logprobs(self, pairs: Any, request: Request) -> Any:
        raise HarnessError("a table has no probabilities")
