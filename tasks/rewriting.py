"""How SDFT asks the seed model to rewrite a training answer, and which rewrites it accepts.

Source: sail-sg/sdft (arXiv 2402.13669), RECIPE §4; the prompts are in our own words, the opening is a
protocol constant. The filter on phrases ("reference answer", ...) holds for every task and is the method's.
"""

import re

from harness.contracts import Rewrite
from tasks.gsm8k_scoring import MARKER
from tasks.numbers import last_number, plain_number

MATH_SYSTEM = (
    "You are an expert in math. You are given a math question with its reference answer. "
    "Refer to the reference answer and answer the question."
)
MATH_OPENING = "Great! Let's think step by step. "  # protocol constant: byte-exact, trailing space
GENERAL_SYSTEM = (
    "You are given an instruction with a reference answer. "
    "Use the reference answer as a guide for your own response."
)

_MARKS = re.compile(r"#{4,}[ \t]*")
NOT_PLAIN = "the label is no plain number"


def math_user(instruction: str, reference: str) -> str:
    return f"{instruction}\n\n{reference}"


def reject_wrong_number(rewritten: str, reference: str) -> str | None:
    """Why a rewritten answer is not used: its last number must be the label's, and both be plain ones."""
    if MARKER in reference:
        written = plain_number(_label(reference))
        if written is None:
            return NOT_PLAIN
        label = last_number(written)
    else:
        label = last_number(reference)
        if label is None:
            return "reference without a number"
    return None if last_number(rewritten) == label else "wrong final number"


def add_marker_line(rewritten: str, reference: str) -> str:
    """End the rewritten answer with the label's ``#### n`` line: the bare number, without commas or currency,
    or the label's own words where it is no plain number.

    Without it a ``####`` scorer gives 0 to a correct model. It is the only one: the own one goes, and other
    marks (a heading "#### 1. ..."), which a scorer may read first, are taken out. Data without such lines is
    left alone.
    """
    if MARKER not in reference:
        return rewritten
    label = _written(_label(reference))
    *body, own = _MARKS.split(rewritten)
    if not (body and _written(own) == label):
        body.append(own)
    return f"{''.join(body).rstrip()}\n{MARKER} {label}".lstrip()


def _written(label: str) -> str:
    return plain_number(label) or label.strip()


def _label(reference: str) -> str:
    """What the reference says after its last ``####``."""
    return reference.split(MARKER)[-1]


def general_user(instruction: str, reference: str) -> str:
    return f"### Instruction:\n{instruction}\n\n### Reference answer:\n{reference}\n\n### Response:"


def math_rewrite(max_tokens: int) -> Rewrite:
    """SDFT's rewriting for question and worked answer; ``max_tokens`` bounds the new answer."""
    return Rewrite(
        system_prompt=MATH_SYSTEM,
        user=math_user,
        opening=MATH_OPENING,
        max_tokens=max_tokens,
        reject=reject_wrong_number,
        finish=add_marker_line,
    )


def general_rewrite(max_tokens: int) -> Rewrite:
    """SDFT's rewriting for any other instruction and answer; ``max_tokens`` bounds the new answer."""
    return Rewrite(system_prompt=GENERAL_SYSTEM, user=general_user, max_tokens=max_tokens)
