"""Guards what is foretold of answers: some of them, and their beginnings, stand for all."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from harness import config
from harness.engines.base import Request
from harness.pipeline.probing import answer_probe
from harness.pipeline.probing.answer_probe import AnswerProbe
from harness.pipeline.probing.time_budget import TimeBudget
from harness.run.context import RunContext


class Speed:
    """Of answers: a millisecond a prompt's token, and for a decoded token as many as rows are."""

    def batch(self, rows: int, prompt: float, tokens: float) -> float:
        return 0.001 * rows * prompt + self.more(rows, prompt, tokens)

    def more(self, rows: int, held: float, tokens: float) -> float:
        return 0.001 * rows * tokens


@pytest.fixture
def answering(tmp_path: Path) -> AnswerProbe:
    """A probe of 16 prompts at once at the known speed, whose engine ends answers with token 0."""
    recipe = {"train_tasks": "gsm8k-mini", "methods": ["vanilla"], "responses.batch_size": 16}
    probe = AnswerProbe(RunContext(config.load(None, recipe), tmp_path), TimeBudget(clock=lambda: 0.0))
    probe.speed, probe.model = Speed(), torch.nn.Linear(1, 1)  # type: ignore[assignment]
    probe.engine = SimpleNamespace(
        stop_ids={0}, generate=lambda prompts, request: [[7] * request.max_new_tokens for _ in prompts]
    )
    return probe


def test_an_answer_that_the_probe_cut_off_is_taken_to_go_on(answering: AnswerProbe) -> None:
    work, found = answering.answer([[1, 2, 3]] * 2, 1000, 1.0)
    rest = (1000 - answer_probe.LONGEST) / 2
    assert work.written == 2 * (answer_probe.LONGEST + rest)
    assert work.read == 6
    assert found == {0: [7] * answer_probe.LONGEST, 1: [7] * answer_probe.LONGEST}
    assert work.seconds == pytest.approx(0.001 * 2 * rest)  # the beginnings took no time
    assert answering.answer([[1, 2, 3]], 10, 1.0)[0].written == 10


def test_some_rows_and_tokens_of_a_batch_stand_for_all_of_it(answering: AnswerProbe) -> None:
    now = [0.0]
    answering.budget = TimeBudget(clock=lambda: now[0])

    def generate(prompts: list[list[int]], request: Request) -> list[list[int]]:
        """Each answer ends after its fourth token; half as fast as was measured."""
        now[0] += 2 * 0.001 * len(prompts) * (max(map(len, prompts)) + 4)
        return [[7, 7, 7, 0] for _ in prompts]

    answering.engine.generate = generate
    # 16 prompts of 100 tokens and 64 tokens each: 2.6 s, more than a task may take of the 4 s that there are
    work, found = answering.answer([[5] * 100] * 40, 300, 1.0)
    assert len(found) == 4
    apart = 0.001 * 4 * 104  # what the beginnings took more than was expected
    assert work.seconds == pytest.approx(40 / 16 * (0.001 * 16 * 104 + apart), rel=0.08)
    assert work.written == pytest.approx(40 * 4, rel=0.08)
    assert work.read == 40 * 100


def test_answers_without_time_are_taken_to_be_of_half_their_limit(
    answering: AnswerProbe,
) -> None:
    now = [0.0]
    answering.budget = TimeBudget(clock=lambda: now[0])
    now[0] = 10.0
    work, found = answering.answer([[5] * 10] * 16, 300, 1.0)
    assert found == {}
    assert work.written == 16 * 150
    assert work.seconds == pytest.approx(0.001 * 16 * (10 + 150))
