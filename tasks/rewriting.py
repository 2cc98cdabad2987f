"""How SDFT asks the seed model to rewrite a training answer, and which rewrites it accepts.

Source: sail-sg/sdft (arXiv 2402.13669), RECIPE §4; the prompts are in our own words, the opening is a
protocol constant. The filter on phrases ("reference answer", ...) holds for every task and is the method's.
"""

import re
from decimal import Decimal

from harness.contracts import Rewrite
from tasks.gsm8k_scoring import after_last_marker

MATH_SYSTEM = (
    "You are an expert in math. You are given a math question with its reference answer. "
    "Refer to the reference answer and answer the question."
)
MATH_OPENING = "Great! Let's think step by step. "  # protocol constant: byte-exact, trailing space
GENERAL_SYSTEM = (
    "You are given an instruction with a reference answer. "
    "Use the reference answer as a guide for your own response."
)

# A minus after a digit is a subtraction ("20-12"), not a sign.
_NUMBER = re.compile(r"(?<![0-9])-?[0-9]+(?:,[0-9]+)*(?:\.[0-9]+)?")
_MARKER = re.compile(r"#{4,}[ \t]*")


def last_digits(text: str) -> str | None:
    """The last number in a text as it is written, commas dropped; None without one."""
    found = _NUMBER.findall(text)
    return found[-1].replace(",", "") if found else None


def last_number(text: str) -> Decimal | None:
    """The last number in a text ("1,800.00" is 1800); None without one."""
    digits = last_digits(text)
    return None if digits is None else Decimal(digits)


def final_number(reference: str) -> Decimal | None:
    """A label's number: the last one after its last ``####``, or of the whole text without a marker."""
    marked = after_last_marker(reference)
    return last_number(reference if marked is None else marked)


def math_user(instruction: str, reference: str) -> str:
    return f"{instruction}\n\n{reference}"


def reject_wrong_number(rewritten: str, reference: str) -> str | None:
    """Why a rewritten answer is not used: its last number must be the label's."""
    label = final_number(reference)
    if label is None:
        return "reference without a number"
    return None if last_number(rewritten) == label else "wrong final number"


def add_marker_line(rewritten: str, reference: str) -> str:
    """End the rewritten answer with the label's ``#### n`` line: the bare number, without commas or currency.

    Without it a ``####`` scorer gives 0 to a correct model. It is the only one: the own one goes, and other
    marks (a heading "#### 1. ..."), which a scorer may read first, are taken out. Data without such lines is
    left alone.
    """
    marked = after_last_marker(reference)
    label = None if marked is None else last_digits(marked)
    if label is None:
        return rewritten
    *body, own = _MARKER.split(rewritten)
    if not (body and own.strip(" \n$.").replace(",", "") == label):
        body.append(own)
    return f"{''.join(body).rstrip()}\n#### {label}".lstrip()


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
