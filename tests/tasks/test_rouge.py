"""rouge1 is rouge_score's ROUGE-1 F-measure with stemming."""

from itertools import pairwise

import pytest
from rouge_score.rouge_scorer import RougeScorer

from harness.mini import data
from tasks.rouge import rouge1
from tasks.samsum_mini.functions import process_results

# (reference, prediction, value, why)
CASES = [
    ("Ann will go.", "Ann will go.", 1.0, "the same words"),
    ("Ann will go.", "", 0.0, "nothing"),
    ("Ann will go.", "...", 0.0, "no word"),
    ("Ann lends pens", "ANN LENDING PEN", 1.0, "case and endings do not count"),
    ("a b c d", "a b", 2 / 3, "precision 1, recall 1/2"),
    ("a b", "a a a a", 1 / 3, "a word counts as often as both have it"),
]


@pytest.mark.parametrize(("reference", "prediction", "value", "why"), CASES)
def test_cases(reference: str, prediction: str, value: float, why: str) -> None:
    assert rouge1(reference, prediction) == pytest.approx(value), why


def test_equals_rouge_score() -> None:
    scorer = RougeScorer(["rouge1"], use_stemmer=True)
    rows = data.samsum("test", 50)
    for row, other in pairwise(rows):
        expected = scorer.score(row["summary"], other["summary"])["rouge1"].fmeasure
        assert process_results(row, [other["summary"]]) == {"rouge1": expected}
