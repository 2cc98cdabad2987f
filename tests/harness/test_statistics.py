"""Statistics against published tables, hand computation and properties that a wrong formula breaks."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_rel

from harness.statistics import (
    Difference,
    Estimate,
    holm,
    mean,
    paired_mean_difference,
    paired_rate_difference,
    rate,
)

outcomes = st.one_of(st.booleans(), st.none())
fractions = st.floats(0, 1)
NOISE = 1e-9


def paired(both: int, gained: int, lost: int, neither: int) -> tuple[dict[str, bool], dict[str, bool]]:
    """Outcomes and baseline outcomes: so many true in both, first alone, second alone, neither."""
    kinds = (
        [(True, True)] * both + [(True, False)] * gained + [(False, True)] * lost + [(False, False)] * neither
    )
    return {str(i): a for i, (a, _) in enumerate(kinds)}, {str(i): b for i, (_, b) in enumerate(kinds)}


def figures(result: Estimate | Difference) -> tuple[float, float, float]:
    """Value, low and high, all of them defined and finite."""
    defined = [x for x in (result.value, result.low, result.high) if x is not None and math.isfinite(x)]
    value, low, high = defined
    return value, low, high


# --- rate ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # Newcombe 1998, Statistics in Medicine 17:857-872, Table I, method 3 (score, no continuity correction)
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_rate_has_the_published_wilson_interval(successes: int, n: int, low: float, high: float) -> None:
    estimate = rate([True] * successes + [False] * (n - successes))
    assert estimate.value == successes / n
    assert figures(estimate)[1:] == pytest.approx((low, high), abs=5e-5)


def test_unjudged_are_counted_and_left_out() -> None:
    estimate = rate([True, None, False, True, None])
    assert estimate == replace(rate([True, False, True]), unjudged=2)
    assert estimate.n == 3
    assert rate([1.0, 0.0, 1.0]) == rate([True, False, True])


@pytest.mark.parametrize("estimator", [rate, mean])
def test_nothing_judged_is_undefined(estimator: Callable[[Any], Estimate]) -> None:
    assert estimator([]) == Estimate(None, None, None, 0)
    assert estimator([None, None]) == Estimate(None, None, None, 0, unjudged=2)


@pytest.mark.parametrize("wrong", [0.5, 2, float("nan")])
def test_a_rate_refuses_what_is_not_binary(wrong: float) -> None:
    with pytest.raises(ValueError, match="0 or 1"):
        rate([True, wrong])
    with pytest.raises(ValueError, match="0 or 1"):
        paired_rate_difference({"a": wrong}, {"a": True})


@given(st.lists(outcomes, max_size=60))
def test_rate_properties(values: list[bool | None]) -> None:
    estimate = rate(values)
    assert estimate.n + estimate.unjudged == len(values)
    if estimate.n == 0:
        return
    value, low, high = figures(estimate)
    assert -NOISE <= low <= value + NOISE <= high + 2 * NOISE <= 1 + 3 * NOISE
    assert low < high


# --- mean ------------------------------------------------------------------------------------------


def test_mean_agrees_with_normal_theory_on_many_symmetric_values() -> None:
    rng = random.Random(1)
    values = [rng.random() for _ in range(2_000)]
    estimate = mean(values)
    centre = math.fsum(values) / len(values)
    half = 1.96 * math.sqrt(math.fsum((v - centre) ** 2 for v in values)) / len(values)
    assert estimate.value == pytest.approx(centre)
    assert estimate.low == pytest.approx(centre - half, abs=0.05 * half)
    assert estimate.high == pytest.approx(centre + half, abs=0.05 * half)


def test_the_interval_follows_the_skew() -> None:
    # one 1 among a hundred: resampled means are Poisson(1) / 100, whose percentile limits are 0 and 0.03;
    # BCa corrects for bias and skew and so reaches further up
    _, low, high = figures(mean([0.0] * 99 + [1.0]))
    assert low == 0.0
    assert 0.035 < high < 0.07


def test_degenerate_means() -> None:
    assert mean([0.3]) == Estimate(0.3, None, None, 1)  # one value says nothing of its spread
    assert mean([0.5] * 5) == Estimate(0.5, 0.5, 0.5, 5)
    assert mean([0.5, None, 0.5]) == Estimate(0.5, 0.5, 0.5, 2, unjudged=1)
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="finite"):
            mean([0.5, wrong])


@settings(max_examples=25, deadline=None)
@given(st.lists(fractions, min_size=2, max_size=25), st.randoms(use_true_random=False))
def test_mean_properties(values: list[float], rng: random.Random) -> None:
    estimate = mean(values)
    value, low, high = figures(estimate)
    assert min(values) - NOISE <= low <= value + NOISE
    assert value - NOISE <= high <= max(values) + NOISE
    shuffled = values[:]
    rng.shuffle(shuffled)
    assert mean(shuffled) == estimate  # seeded, and blind to the order


# --- paired rates ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [  # Newcombe 1998, Statistics in Medicine 17:2635-2650, Table III, method 10
        ((36, 12, 2, 0), 0.0569, 0.3404),  # phi negative: no correction
        ((20, 12, 2, 16), 0.0562, 0.3292),  # phi positive: continuity-corrected
        ((18, 12, 2, 18), 0.0562, 0.3290),
        ((36, 14, 0, 0), 0.1528, 0.4167),  # an empty margin: phi is 0
        ((35, 14, 0, 1), 0.1461, 0.4175),  # phi positive, but less than its correction: 0
        ((18, 14, 0, 18), 0.1441, 0.3963),
        ((2, 97, 1, 0), 0.8721, 0.9854),
        # Cavo et al. 2012, as in Fagerland et al. 2017, Statistical Analysis of Contingency Tables
        ((59, 6, 16, 80), -0.1186, -0.0046),
    ],
)
def test_paired_interval_is_the_published_one(
    table: tuple[int, int, int, int], low: float, high: float
) -> None:
    difference = paired_rate_difference(*paired(*table))
    assert difference.value == pytest.approx((table[1] - table[2]) / sum(table))
    assert figures(difference)[1:] == pytest.approx((low, high), abs=6e-5)


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [
        (1, 6, 0.125),  # two tails of Bin(7, 1/2): 2 (1 + 7) / 128; one tail would be 0.0625
        (6, 0, 0.03125),  # 2 / 64
        (3, 3, 1.0),  # capped
        (0, 0, 1.0),  # no document differs
    ],
)
@pytest.mark.parametrize("agreeing", [0, 50])
def test_p_is_the_exact_two_sided_mcnemar(gained: int, lost: int, p: float, agreeing: int) -> None:
    values, baseline = paired(agreeing, gained, lost, 1)
    assert paired_rate_difference(values, baseline).p == pytest.approx(p)


def test_only_pairs_judged_in_both_count() -> None:
    values = {"a": True, "b": True, "c": None, "d": False, "only here": False}
    baseline = {"a": False, "b": True, "c": True, "d": None, "only there": True}
    # the pairs are a (gained) and b (both); c, d and the two lone documents say nothing about a difference
    assert paired_rate_difference(values, baseline) == paired_rate_difference(
        {"a": True, "b": True}, {"a": False, "b": True}
    )
    assert paired_rate_difference(values, baseline).n == 2
    assert paired_mean_difference(values, baseline).n == 2
    assert paired_mean_difference(values, baseline).value == 0.5


def test_pairs_are_joined_by_document_not_by_position() -> None:
    values, baseline = paired(5, 6, 0, 5)
    backwards = dict(reversed(baseline.items()))
    assert paired_rate_difference(values, backwards) == paired_rate_difference(values, baseline)


@pytest.mark.parametrize("compare", [paired_rate_difference, paired_mean_difference])
def test_no_pair_is_undefined(compare: Callable[[Any, Any], Difference]) -> None:
    for baseline in ({}, {"a": None}, {"b": 1.0}):
        assert compare({"a": 1.0}, baseline) == Difference(None, None, None, None, 0)


@given(*[st.integers(0, 40)] * 4)
def test_paired_rate_properties(both: int, gained: int, lost: int, neither: int) -> None:
    if both + gained + lost + neither == 0:
        return
    values, baseline = paired(both, gained, lost, neither)
    difference, swapped = paired_rate_difference(values, baseline), paired_rate_difference(baseline, values)
    value, low, high = figures(difference)
    assert -1 <= low <= value + NOISE <= high + 2 * NOISE <= 1 + 2 * NOISE
    assert low < high
    assert figures(swapped) == pytest.approx((-value, -high, -low))
    assert difference.p is not None
    assert 0 < difference.p <= 1
    assert swapped.p == difference.p


def test_agreement_on_other_documents_narrows_the_interval() -> None:
    """Pairing must pay: the same two rates, once in step and once independent."""
    in_step = paired_rate_difference(*paired(50, 10, 0, 40))
    independent = paired_rate_difference(*paired(30, 30, 20, 20))
    assert in_step.value == independent.value == 0.1
    assert figures(independent)[1] < 0 < figures(in_step)[1]


# --- paired means ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        # of 16 sign patterns the observed one and the all-positive reach its sum: 2 of 16, and twice that
        ([0.1, 0.2, 0.3, -0.05], 0.25),
        ([0.1, 0.2, 0.3, 0.15, 0.05], 0.0625),  # all agree: 2 of 32
        ([0.0, 0.0, 0.0], 1.0),
        ([0.2], 1.0),  # one pair can show nothing
    ],
)
def test_permutation_p_is_exact_and_two_sided(differences: list[float], p: float) -> None:
    values = {str(i): 0.5 + difference for i, difference in enumerate(differences)}
    result = paired_mean_difference(values, dict.fromkeys(values, 0.5))
    assert result.p == pytest.approx(p)
    assert result.value == pytest.approx(sum(differences) / len(differences))


def test_permutation_p_agrees_with_the_paired_t_test_on_many_documents() -> None:
    rng = random.Random(5)
    baseline = {str(i): rng.uniform(0.2, 0.8) for i in range(150)}
    values = {i: value + rng.gauss(0.008, 0.06) for i, value in baseline.items()}
    p = ttest_rel([values[i] for i in baseline], list(baseline.values())).pvalue
    assert 0.02 < p < 0.5  # not so extreme that everything agrees
    assert paired_mean_difference(values, baseline).p == pytest.approx(p, abs=0.02)


def test_the_interval_is_of_the_paired_differences() -> None:
    # documents differ widely, the methods by 0.01 or 0.03 on each: an unpaired interval would be 0.2 wide
    baseline = {str(i): 0.1 + 0.8 * i / 40 for i in range(41)}
    values = {i: value + (0.01 if int(i) % 2 else 0.03) for i, value in baseline.items()}
    difference = paired_mean_difference(dict(reversed(values.items())), baseline)
    value, low, high = figures(difference)
    assert value == pytest.approx(0.02, abs=5e-4)
    assert 0.015 < low < 0.0185 < 0.0215 < high < 0.025
    assert difference.p == 2 / 10_000  # the least that the resamples can show


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(fractions, fractions), min_size=2, max_size=10))
def test_paired_mean_properties(pairs: list[tuple[float, float]]) -> None:
    values = {str(i): a for i, (a, _) in enumerate(pairs)}
    baseline = {str(i): b for i, (_, b) in enumerate(pairs)}
    difference = paired_mean_difference(values, baseline)
    value, low, high = figures(difference)
    assert -1 - NOISE <= low <= value + NOISE <= high + 2 * NOISE <= 1 + 3 * NOISE
    assert difference.p is not None
    assert 2 / 2 ** len(pairs) <= difference.p + NOISE <= 1 + 2 * NOISE
    swapped = paired_mean_difference(baseline, values)  # exact for so few pairs
    assert swapped.p == pytest.approx(difference.p)
    assert swapped.value == pytest.approx(-value, abs=NOISE)


# --- Holm ------------------------------------------------------------------------------------------


def test_holm_steps_down_and_skips_what_is_no_comparison() -> None:
    # three comparisons: 0.01 x 3, 0.03 x 2, 0.04 x 1 raised to the one before (Bonferroni: 0.03, 0.09, 0.12)
    assert holm([0.01, None, 0.04, 0.03]) == [
        pytest.approx(0.03),
        None,
        pytest.approx(0.06),
        pytest.approx(0.06),
    ]
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
    assert holm([None]) == [None]


@settings(max_examples=25, deadline=None)  # statsmodels collects garbage on every call
@given(st.lists(st.one_of(fractions, st.none()), max_size=15))
def test_holm_properties(p_values: list[float | None]) -> None:
    adjusted = holm(p_values)
    tested = [(p, q) for p, q in zip(p_values, adjusted, strict=True) if p is not None and q is not None]
    assert [p is None for p in p_values] == [q is None for q in adjusted]
    assert all(p - NOISE <= q <= min(1, len(tested) * p) + NOISE for p, q in tested)
    assert [q for _, q in sorted(tested)] == sorted(q for _, q in tested)
    if tested:
        assert min(q for _, q in tested) == pytest.approx(min(1, len(tested) * min(p for p, _ in tested)))
    assert holm(p_values[::-1]) == adjusted[::-1]
