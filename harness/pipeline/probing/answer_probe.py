"""How long the answers to some prompts take: from real answers, as far as the probe has time for them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from harness.engines.base import Request
from harness.pipeline import estimate
from harness.pipeline.probing.effort import Effort
from harness.pipeline.probing.speed import AnsweringSpeed
from harness.pipeline.probing.time_budget import OutOfTimeError, TimeBudget, time_work
from harness.run.context import RunContext

LONGEST = 64  # tokens of a probed answer
FEWER = ((4, 64), (2, 64), (2, 32), (2, 16), (1, 8))  # rows and tokens, where a whole batch takes too long
MARGIN = 1.5  # a batch may take so many times what its parts let expect
TYPICAL_REST = 0.5  # of what a task's token limit leaves: how far an answer goes that the probe cut off
UNSEEN = 32  # tokens of an answer, at least about, that no look has been taken at
TASK_SHARE = 0.4  # of what is left: for the answers to one task
USUAL_PROMPT = 96  # tokens


@dataclass(frozen=True)
class Beginnings:
    """Of some answers: the places of their prompts, the prompts' tokens, the answers' tokens, and the seconds
    that all took."""

    places: Sequence[int] = ()
    prompts: Sequence[int] = ()
    found: Sequence[list[int]] = ()
    seconds: float = 0.0


class AnswerProbe:
    """Answers prompts with the base model, and foretells what all answers take."""

    def __init__(self, ctx: RunContext, budget: TimeBudget):
        self.budget, self.size = budget, ctx.config.responses.batch_size
        self.speed: AnsweringSpeed | None = None
        self.model: Any = None
        self.engine: Any = None
        self._ctx = ctx

    def measure_speed(self, model: Any, share: float) -> bool:
        """Time reading and decoding, in a ``share`` of the time that is left. False where the speed stays
        unknown: there is no time, or the architecture's cache is of another kind. Raises
        torch.OutOfMemoryError."""
        import torch

        from harness.engines.hf import HFEngine

        self.model = model
        self.engine = HFEngine(model, self._ctx.seed_tokenizer, self.size)
        try:
            with self.budget.part(share):
                self.speed = AnsweringSpeed(self.budget, model, self.size, USUAL_PROMPT)
        except torch.OutOfMemoryError:
            raise
        except Exception:
            return False
        return True

    def answer(
        self, prompts: Sequence[list[int]], limit: int, times: float
    ) -> tuple[Effort, dict[int, list[int]]]:
        """What all prompts take, in batches, and the beginnings of those answers that the probe has made, by
        their prompts' places. ``times``: how many such prompts the work has for each of these.

        One look after another, each at more of a batch's rows and further into their answers, as long as what
        the last has shown justifies the time.
        """
        if self.speed is None:
            return Effort(), {}
        order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
        batch = estimate.spread(order, self.size)
        share = len(prompts) / len(batch)
        lengths = [len(prompts[place]) for place in batch]
        looks = [(len(batch), LONGEST), *FEWER]
        seen = Beginnings()
        while True:
            least = self._extrapolate(lengths, seen, limit, typical_rest=0.0)
            self.budget.justify(least.seconds * share * times)
            place = self._find_look(looks, prompts, batch, limit)
            if place is None:
                break
            rows, tokens = looks[place]
            with contextlib.suppress(OutOfTimeError), self.budget.watching(self.model):
                seen = self._begin(prompts, estimate.spread(batch, rows), min(limit, tokens))
            looks = looks[:place]
        effort = self._extrapolate(lengths, seen, limit, TYPICAL_REST)
        effort.read = sum(map(len, prompts)) / share
        return effort * share, dict(zip(seen.places, seen.found, strict=True))

    def read_s(self, lengths: Sequence[int]) -> float:
        """Seconds of passes over what is only read."""
        ordered = sorted(lengths)
        batches = [ordered[start : start + self.size] for start in range(0, len(ordered), self.size)]
        assert self.speed is not None
        return sum(self.speed.prompts(max(batch) * len(batch)) for batch in batches)

    def _find_look(
        self, looks: Sequence[tuple[int, int]], prompts: Sequence[list[int]], batch: Sequence[int], limit: int
    ) -> int | None:
        """The place of the largest look, of so many rows and tokens, that there is time for."""
        assert self.speed is not None
        for place, (rows, tokens) in enumerate(looks):
            longest = max(len(prompts[one]) for one in estimate.spread(batch, rows))
            expected = self.speed.batch(min(rows, len(batch)), longest, min(limit, tokens))
            if MARGIN * expected <= TASK_SHARE * self.budget.left():
                return place
        return None

    def _begin(self, prompts: Sequence[list[int]], places: Sequence[int], tokens: int) -> Beginnings:
        """Answers to the prompts at ``places``, of ``tokens`` at most."""
        some, found = [prompts[place] for place in places], list[list[int]]()
        took = time_work(self.budget, lambda: found.extend(self.engine.generate(some, Request(tokens))))
        return Beginnings(places, [len(prompt) for prompt in some], found, took)

    def _extrapolate(self, batch: Sequence[int], seen: Beginnings, limit: int, typical_rest: float) -> Effort:
        """A whole batch from the beginnings of some of its answers. ``batch``: tokens of its prompts;
        ``typical_rest``: of what the limit leaves, how far an answer goes that was cut off."""
        speed, rows, prompt, found, some = self.speed, len(batch), max(batch), seen.found, seen.prompts
        assert speed is not None
        if not found:
            tokens = limit * typical_rest if typical_rest else min(limit, UNSEEN)
            return Effort(seconds=speed.batch(rows, prompt, tokens), written=rows * tokens)
        steps = max(map(len, found))
        cut = [len(ids) == steps and ids[-1] not in self.engine.stop_ids for ids in found]
        rest = (limit - steps) * typical_rest if any(cut) else 0.0
        # What generate() does besides the model's passes, or the machine being slower or faster than before.
        apart = seen.seconds - speed.batch(len(some), max(some), steps)
        whole = speed.batch(rows, prompt, steps) + apart if rows > len(some) else seen.seconds
        seconds = max(seen.seconds, whole) + speed.more(rows, prompt + steps, rest)
        return Effort(seconds=seconds, written=(sum(map(len, found)) + rest * sum(cut)) * rows / len(found))
