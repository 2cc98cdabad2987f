"""Safety-data mixing: add demonstrations of refusals to the training data (arXiv 2309.07875, Safety-Tuned
LLaMAs).

The paper finds that some 3 % of such examples (a few hundred) make a tuned model much safer at no loss of
capability, and that too many make it refuse what is harmless. The added rows lengthen the training; their
tokens are part of the method's cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.contracts import Example, Method, PrepareContext


@dataclass
class SafetyMixing(Method):
    """``share``: of all training rows, the safety demonstrations', in (0, 1)."""

    name = "safety-mixing"
    summary = "adds refused harmful requests to the training data"
    needs_safety_data = True

    share: float = 0.03

    def __post_init__(self) -> None:
        check_share(self.share)

    def prepare(self, examples: list[Example], context: PrepareContext) -> list[Example]:
        added, wanted = draw_demonstrations(examples, self.share, context)
        context.record["safety_examples_added"] = len(added)
        context.record["safety_examples_wanted"] = wanted
        if len(added) < wanted:
            reached = len(added) / (len(examples) + len(added))
            context.record["note"] = (
                f"the safety data have {len(added):,} rows and a share of {self.share:g} needs {wanted:,}: "
                f"{reached:.2%} of the rows are safety demonstrations; give more safety data"
            )
        return examples + added


def check_share(share: float) -> None:
    if not 0 < share < 1:
        raise ValueError(f"share must be above 0 and below 1, not {share}")


def draw_demonstrations(
    examples: Sequence[Example], share: float, context: PrepareContext
) -> tuple[list[Example], int]:
    """Safety demonstrations that make ``share`` of all rows, as far as there are enough, without repetition;
    and how many that takes."""
    wanted = max(1, round(len(examples) * share / (1 - share)))
    available = list(context.safety_examples)
    return context.rng.sample(available, min(wanted, len(available))), wanted
