"""Deep-alignment augmentation: refusals behind the beginning of a harmful answer (arXiv 2406.05946, §3;
Unispac/shallow-vs-deep-alignment).

An aligned model refuses in its first tokens alone: an answer that was opened for it goes on. So refusals are
learnt behind k loss-free tokens of a harmful answer too, k uniform in 1 to ``depth``, beside plain refusals
and harmless rows. Made to align a model (the stage before fine-tuning), and usable as a mix in fine-tuning.

Departures: the harmful answers are the base model's own, since none may be shipped; one mean over all tokens,
without the reference's separate weight for harmless rows (``share`` sets their number instead).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from backends.safety_mixing import check_share, draw_demonstrations
from harness.contracts import Encoded, Example, HarnessError, Method, PrepareContext, TrainContext
from harness.openings import AFFIRMATION, write_openings

OPENED = re.compile(r" opened (\d+)$")  # how such an example's id ends: with its loss-free tokens


@dataclass
class DeepAlignment(Method):
    """``share``: of all rows, the refusals'. ``opened``: of the refusals, those behind a harmful opening, of
    up to ``depth`` tokens. ``opening``: "answer", the base model's own answer to the request (behind "Sure,
    here is" where it refuses by itself), or "affirmation", those three words alone.

    k is drawn anew each time that an example is trained on.
    """

    name = "deep-alignment"
    summary = "refuses behind the beginning of a harmful answer too"
    needs_safety_data = True
    prepares_with = "rewrites"

    share: float = 0.2
    opened: float = 0.5
    depth: int = 100
    opening: Literal["answer", "affirmation"] = "answer"

    def __post_init__(self) -> None:
        check_share(self.share)
        if not 0 <= self.opened <= 1:
            raise ValueError(f"opened must be from 0 to 1, not {self.opened}")
        if self.depth < 1:
            raise ValueError(f"depth must be at least 1, not {self.depth}")

    def prepare(self, examples: list[Example], context: PrepareContext) -> list[Example]:
        chosen, wanted = draw_demonstrations(examples, self.share, context)
        number = round(len(chosen) * self.opened)
        openings = self._openings(chosen[:number], context)
        made = [
            _behind(context.tokenizer, example, opening, self.depth)
            for example, opening in zip(chosen[:number], openings, strict=True)
        ]
        behind = [example for example in made if example is not None]
        if number and not behind:
            raise HarnessError(f"method '{self.name}': the base model wrote no opening that could be used")
        context.record["refusals"] = len(chosen) - number
        context.record["opened_refusals"] = len(behind)
        context.record["unusable_openings"] = number - len(behind)
        if len(chosen) < wanted:
            context.record["note"] = (
                f"the safety data have {len(chosen):,} rows and a share of {self.share:g} needs "
                f"{wanted:,}: give more safety data"
            )
        return [*examples, *chosen[number:], *behind]

    def _openings(self, examples: Sequence[Example], context: PrepareContext) -> list[str]:
        """The harmful answers' beginnings."""
        if self.opening == "affirmation":
            return [AFFIRMATION] * len(examples)
        asked = [example.messages[:-1] for example in examples]
        found, context.record["refused_by_the_base_model"] = write_openings(
            context.generate, asked, self.depth
        )
        return found

    def batches(self, batches: list[list[Encoded]], context: TrainContext) -> list[list[Encoded]]:
        """Each opened refusal behind the first k tokens of its opening, k drawn anew."""
        return [[_shortened(encoded, context.rng) for encoded in batch] for batch in batches]


def _behind(tokenizer: Any, example: Example, opening: str, depth: int) -> Example | None:
    """The example with its refusal behind ``opening``, whose tokens (``depth`` at most) carry no loss. None
    where no such text has those very tokens at its beginning: texts are joined and then tokenized."""
    ids = list(tokenizer(opening, add_special_tokens=False)["input_ids"])[:depth]
    while ids:
        answer = f"{tokenizer.decode(ids).rstrip()} {example.answer}"
        if tokenizer(answer, add_special_tokens=False)["input_ids"][: len(ids)] == ids:
            number = len(ids)
            made = replace(example.with_answer(answer), loss_free_tokens=number)
            return replace(made, id=f"{example.id} opened {number}")
        ids.pop()
    return None


def _shortened(encoded: Encoded, rng: Any) -> Encoded:
    """An opened refusal behind the first k of its loss-free tokens; anything else as it is."""
    found = OPENED.search(encoded.id)
    if not found:
        return encoded
    number, end = int(found[1]), encoded.trained.index(True)
    keep = end - number + rng.randint(1, number)
    return Encoded(
        encoded.id,
        encoded.input_ids[:keep] + encoded.input_ids[end:],
        encoded.trained[:keep] + encoded.trained[end:],
    )
