"""ROUGE-1, as the paper scores summaries."""

from functools import cache
from typing import Any


@cache
def _scorer() -> Any:
    from rouge_score import rouge_scorer  # brings nltk: half a second

    return rouge_scorer.RougeScorer(["rouge1"], use_stemmer=True)


def rouge1(reference: str, prediction: str) -> float:
    """F-measure of the words in common, stemmed, in [0, 1]. Source: rouge_score; paper §4.1."""
    return float(_scorer().score(reference, prediction)["rouge1"].fmeasure)
