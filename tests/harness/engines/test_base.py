"""How an engine is asked for answers: each batch of a sampled task draws from a seed of its own, the same
whatever was answered before."""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from lm_eval.api.instance import Instance

from harness import chat
from harness.engines import base
from harness.engines.base import IdEngine
from harness.models import Checkpoint

SIZE = 3  # prompts in a batch


class Recording(IdEngine):
    """Cuts the prompts in batches, answers each with one token, and keeps the settings of each call."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = SimpleNamespace(decode=lambda ids, **how: " ".join(map(str, ids)))
        self.context_tokens, self.stop_ids = 100, {0}
        self.calls: list[tuple[list[list[int]], dict[str, Any]]] = []

    @classmethod
    def open(cls, checkpoint: Checkpoint, settings: Any, device: str) -> IdEngine:
        return cls()

    def generate(self, prompts: Sequence[list[int]], max_new_tokens: int, **how: Any) -> list[list[int]]:
        self.calls.append((list(prompts), how))
        return [[7, 0] for _ in prompts]

    def plan(self, prompts: Sequence[list[int]]) -> list[list[int]]:
        return [list(range(start, min(start + SIZE, len(prompts)))) for start in range(0, len(prompts), SIZE)]

    def logprobs(self, pairs: Any) -> Any:
        raise NotImplementedError


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Recording:
    monkeypatch.setattr(chat, "prompt_ids", lambda tokenizer, turns, **how: [len(turns[-1].content)])
    monkeypatch.setattr(chat, "inside_thinking", lambda tokenizer, ids: False)
    return Recording()


def requests(count: int, repeats: int = 1, **options: Any) -> list[Instance]:
    """``repeats`` times the same object for each document, as lm-eval has it."""
    made = [
        Instance(
            "generate_until",
            doc={},
            arguments=(json.dumps([{"role": "user", "content": "x" * (number + 1)}]), options),
            idx=0,
            metadata=("some-task", number, repeats),
        )
        for number in range(count)
    ]
    return [one for one in made for _ in range(repeats)]


def seeds(engine: Recording) -> list[int]:
    return [how["seed"] for _, how in engine.calls]


def test_each_batch_and_sample_draws_from_a_seed_of_its_own(engine: Recording) -> None:
    engine.generate_until(requests(2 * SIZE, repeats=2, temperature=0.7, do_sample=True))
    assert [len(prompts) for prompts, _ in engine.calls] == [SIZE] * 4
    first = [base.SAMPLE_SEED * 100_003, base.SAMPLE_SEED * 100_003 + SIZE]
    second = [(base.SAMPLE_SEED + 1) * 100_003, (base.SAMPLE_SEED + 1) * 100_003 + SIZE]
    assert seeds(engine) == [*first, *second]


def test_what_is_known_already_changes_no_seed(engine: Recording) -> None:
    asked = requests(2 * SIZE, temperature=0.7, do_sample=True)
    engine.generate_until(asked)
    whole = seeds(engine)
    engine.calls.clear()
    engine.known = {number: [7, 0] for number in range(SIZE)}
    engine.generate_until(asked)
    assert seeds(engine) == whole[1:]


def test_greedy_answers_have_the_batchs_number_alone(engine: Recording) -> None:
    engine.generate_until(requests(SIZE + 1, temperature=0.0))
    assert [(how["temperature"], how["seed"]) for _, how in engine.calls] == [(0.0, 0), (0.0, SIZE)]
