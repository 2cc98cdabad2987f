"""GSM8K's two published scoring rules, for ``gsm8k`` and ``gsm8k-mini``. Standard library only."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

MARKER = "####"
_FIRST_NUMBER = re.compile(r"#### (-?[0-9.,]+)")


def final_text(text: str) -> str:
    """What is compared as a string: the part after the last ``####``, stripped, then without its commas. Of a
    text without ``####`` it is the whole.

    Source: LookAhead Tuning, eval/calculate_utility.py, in its order: ``##### 18`` leaves "# 18", and
    ``#### 18 ,`` leaves "18 ".
    """
    return text.split(MARKER)[-1].strip().replace(",", "")


def first_marked_number(text: str) -> float | None:
    """The number of the first match of ``#### number``, commas dropped; None without one that is a float.

    Source: shallow-vs-deep-alignment, utility_eval/gsm8k_eval.py and evaluator.py.
    """
    match = _FIRST_NUMBER.search(text)
    try:
        return float(match.group(1).replace(",", "")) if match else None
    except ValueError:  # "1.2.3", "."
        return None


def exact_match(response: str, reference: str) -> float:
    """1.0 where the final texts of both are the same string (the paper's rule), else 0.0."""
    return float(final_text(response) == final_text(reference))


def exact_match_first(response: str, reference: str) -> float:
    """1.0 where the first ``#### number`` of both are the same float, else 0.0."""
    found = first_marked_number(response)
    return float(found is not None and found == first_marked_number(reference))


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """One document's metrics, in {0, 1}; ``doc["answer"]`` is the reference with its ``#### n`` line."""
    return {
        "exact_match": exact_match(results[0], doc["answer"]),
        "exact_match_first": exact_match_first(results[0], doc["answer"]),
    }
