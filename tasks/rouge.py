"""ROUGE-1, as the paper scores summaries."""

import re
from functools import cache
from typing import Any

_READ = re.compile("[a-z0-9]")


@cache
def _scorer() -> Any:
    from rouge_score import rouge_scorer  # brings nltk: half a second

    return rouge_scorer.RougeScorer(["rouge1"], use_stemmer=True)


def rouge1(reference: str, prediction: str) -> float | None:
    """F-measure of the words in common, stemmed, in [0, 1]; None where the reference has none of the letters
    a to z and digits that ROUGE-1 reads: no answer could score. Source: rouge_score; paper §4.1.
    """
    if not _READ.search(reference.lower()):
        return None
    return float(_scorer().score(reference, prediction)["rouge1"].fmeasure)


def scored(reference: str, prediction: str) -> dict[str, float]:
    """One document's metrics for lm-eval, which leaves out of its mean what is not there."""
    found = rouge1(reference, prediction)
    return {} if found is None else {"rouge1": found}
