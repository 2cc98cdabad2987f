"""rouge1 is rouge_score's ROUGE-1 F-measure with stemming."""

from itertools import pairwise

import pytest
from rouge_score.rouge_scorer import RougeScorer

from harness.mini import data
from tasks.rouge import rouge1
from tasks.samsum.functions import process_results as samsum
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


@pytest.mark.parametrize(
    "reference",
    [
        "",
        "...",
        "\u041c\u0430\u0448\u0430 \u0434\u043e\u043c\u0430.",
        "\u6771\u4eac",
        "\u00e9\u00e8",
        "\U0001f642",
        "\uff11\uff12",
    ],
)
@pytest.mark.parametrize("prediction", ["Ann", "", "\u6771\u4eac"])
def test_a_reference_that_it_cannot_read_has_no_score(reference: str, prediction: str) -> None:
    assert rouge1(reference, prediction) is None
    assert process_results({"summary": reference}, [prediction]) == {}
    assert samsum({"summary": reference}, [prediction]) == {}


@pytest.mark.parametrize("reference", ["a", "Z", "7", "\u6771\u4eac 7", "\u00e9t\u00e9"])
def test_one_letter_or_digit_is_enough(reference: str) -> None:
    assert rouge1(reference, reference) == 1.0
    assert rouge1(reference, "\u6771\u4eac") == 0.0
    assert samsum({"summary": reference}, [reference]) == {"rouge1": 1.0}


def test_equals_rouge_score() -> None:
    scorer = RougeScorer(["rouge1"], use_stemmer=True)
    rows = data.samsum("test", 50)
    for row, other in pairwise(rows):
        expected = scorer.score(row["summary"], other["summary"])["rouge1"].fmeasure
        assert process_results(row, [other["summary"]]) == {"rouge1": expected}
