"""Statistics against published tables, hand computation and properties that a wrong formula breaks."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm, ttest_1samp, ttest_rel
from scipy.stats import t as student
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from harness.leaderboard.spread import Spread, crossed_spread, mean_squares, score_limits
from harness.leaderboard.statistics import (
    _BATCH_VALUES,
    Difference,
    Estimate,
    _batch,
    difference_over_seeds,
    holm,
    holm_levels,
    mean,
    mean_over_seeds,
    paired_mean_difference,
    paired_rate_difference,
    rate,
    rate_over_seeds,
    square_and_add,
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


def newcombe(both: int, gained: int, lost: int, neither: int, z: float) -> tuple[float, float]:
    """Method 10 of Newcombe 1998 as it is written there, in numbers alone: e, f, g, h are the four counts."""
    n = both + gained + lost + neither

    def score(x: int) -> tuple[float, float]:
        centre, half = 2 * x + z**2, z * math.sqrt(z**2 + 4 * x * (n - x) / n)
        return (centre - half) / (2 * (n + z**2)), (centre + half) / (2 * (n + z**2))

    first, second = both + gained, both + lost
    (l2, u2), (l3, u3) = score(first), score(second)
    product = first * (n - first) * second * (n - second)
    covariance: float = both * neither - gained * lost
    if covariance > 0:
        covariance = max(covariance - n / 2, 0)
    phi = covariance / math.sqrt(product) if product else 0.0
    dl2, du2, dl3, du3 = first / n - l2, u2 - first / n, second / n - l3, u3 - second / n
    delta = math.sqrt(max(0.0, dl2**2 - 2 * phi * dl2 * du3 + du3**2))
    epsilon = math.sqrt(max(0.0, du2**2 - 2 * phi * du2 * dl3 + dl3**2))
    return max(-1.0, (gained - lost) / n - delta), min(1.0, (gained - lost) / n + epsilon)


@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_the_interval_is_newcombes_of_every_small_table(alpha: float) -> None:
    tables = [
        (both, gained, lost, n - both - gained - lost)
        for n in (1, 2, 3, 4, 7, 15)
        for both, gained, lost in itertools.product(range(n + 1), repeat=3)
        if both + gained + lost <= n
    ]
    z = float(norm.isf(alpha / 2))
    for both, gained, lost, neither in tables:
        found = square_and_add(both, gained, lost, both + gained + lost + neither, alpha)
        assert found == pytest.approx(newcombe(both, gained, lost, neither, z), abs=1e-9)
        assert -1 <= found[0] <= found[1] <= 1


def test_many_tables_have_the_interval_that_each_has() -> None:
    counts = np.array([[3, 2, 1], [0, 0, 0], [10, 0, 0], [2, 5, 1]])
    low, high = square_and_add(counts[:, 0], counts[:, 1], counts[:, 2], 10)
    alone = [square_and_add(both, gained, lost, 10) for both, gained, lost, *_ in counts.tolist()]
    assert list(zip(low, high, strict=True)) == pytest.approx(alone)


def test_agreement_on_other_documents_narrows_the_interval() -> None:
    """Pairing must pay: the same two rates, once in step and once independent."""
    in_step = paired_rate_difference(*paired(50, 10, 0, 40))
    independent = paired_rate_difference(*paired(30, 30, 20, 20))
    assert in_step.value == independent.value == 0.1
    assert figures(independent)[1] < 0 < figures(in_step)[1]


@pytest.mark.parametrize("n", [30, 100, 200])
def test_where_mcnemar_finds_a_difference_the_interval_excludes_0(n: int) -> None:
    """A star would contradict its interval otherwise. Every table, with every seventh count in both."""
    gained, lost = np.meshgrid(np.arange(n + 1), np.arange(n + 1))
    found = 0
    for both in range(0, n, 7):
        possible = (gained > lost) & (gained + lost + both <= n)
        more, less = gained[possible], lost[possible]
        p = 2 * binom.cdf(less, more + less, 0.5)
        low, _ = square_and_add(np.full(more.shape, both), more, less, n)
        assert (low[p < 0.05] > 0).all()
        found += int((p < 0.05).sum())
    assert found > 200


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


# --- several seeds -----------------------------------------------------------------------------------

tables = st.integers(2, 4).flatmap(
    lambda seeds: st.lists(st.lists(st.booleans(), min_size=seeds, max_size=seeds), min_size=2, max_size=12)
)


def by_seed(table: Any) -> list[dict[str, float | None]]:
    """(documents, seeds) as outcomes by document, a mapping a seed; None where nan."""
    columns = np.array(table, dtype=float).T
    return [{str(i): None if math.isnan(v) else float(v) for i, v in enumerate(seed)} for seed in columns]


def noise(documents: int, seeds: int, *, difficulty: float = 1.0, seed_effect: float = 0.3) -> Any:
    rng = np.random.default_rng(7)
    latent = rng.normal(size=(documents, seeds)) + difficulty * rng.normal(size=(documents, 1))
    return (latent + seed_effect * rng.normal(size=(1, seeds)) > 0).astype(float)


def test_mean_squares_are_those_of_the_two_way_analysis_of_variance() -> None:
    table = noise(12, 3)
    long = pd.DataFrame(
        [(value, i, j) for i, row in enumerate(table) for j, value in enumerate(row)], columns=["y", "d", "s"]
    )
    published = anova_lm(smf.ols("y ~ C(d) + C(s)", long).fit())["mean_sq"]
    assert mean_squares(table) == pytest.approx(tuple(published))


def test_many_tables_have_the_mean_squares_that_each_has() -> None:
    tables = np.stack([noise(12, 3, seed_effect=effect) for effect in (0.0, 0.5, 1.0, 2.0, 3.0)])
    many = mean_squares(tables)
    assert [found.shape for found in many] == [(5,)] * 3
    for place, table in enumerate(tables):
        assert [found[place] for found in many] == pytest.approx(mean_squares(table))
    spread = crossed_spread(tables, rates=True)
    margins = [float(crossed_spread(table, rates=True).margin()) for table in tables]
    assert spread.margin() == pytest.approx(margins)


def test_a_spread_of_nothing_has_the_documents_quantile() -> None:
    none = Spread(0.0, 0.0, 9, 2)
    assert none.quantile() == pytest.approx(2.26216, abs=1e-5)
    assert none.margin() == 0.0


def test_p_is_no_smaller_than_the_smallest() -> None:
    spread = Spread(1e-12, 1e-12, 400, 9)
    assert spread.p(1.0) == 1e-30
    wide = Spread(documents=0.0004, seeds=0.0002, df_documents=40, df_seeds=3)
    assert spread.p(1.0) < wide.p(1.0)


def test_limits_of_nothing_and_everything_stay_between_0_and_1() -> None:
    spread = Spread(0.0, 0.0, math.inf, 1)
    for answers in range(2, 400):
        low, high = score_limits(np.array([0.0, 1.0]), spread, 2 * answers)
        assert low.min() >= 0
        assert high.max() <= 1
        rates = proportion_confint(np.array([0, answers]), answers, method="wilson")
        assert [*low, *high] == pytest.approx([*rates[0], *rates[1]], abs=1e-12)


def test_the_spreads_parts_by_hand() -> None:
    # documents 1, 1/2, 0; seeds 2/3, 1/3: SS 1 = 2 x (1/4 + 0 + 1/4), 1/6 = 3 x 2 x 1/36; rest 3/2 - 1 - 1/6
    spread = crossed_spread(np.array([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]]), rates=True)
    assert spread.documents == pytest.approx((1 / 2 - 1 / 6) / 6)
    assert spread.seeds == pytest.approx((1 / 6) / 6)
    assert (spread.df_documents, spread.df_seeds) == (2, 1)
    exactly = crossed_spread(np.array([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]]), rates=True, exactly=True)
    assert exactly.documents == pytest.approx((2 / 3 * 1 / 2 - 1 / 6) / 6)
    assert exactly.df_documents == math.inf


def test_the_quantile_is_midway_between_cochrans_and_satterthwaites() -> None:
    # Cochran: t' = (w1 t1 + w2 t2) / (w1 + w2); Satterthwaite: df = (w1 + w2)² / (w1²/f1 + w2²/f2)
    spread = Spread(documents=3.0, seeds=1.0, df_documents=9, df_seeds=2)
    cochran = (3 * 2.26216 + 1 * 4.30265) / 4
    satterthwaite = student.ppf(0.975, 16 / (9 / 9 + 1 / 2))
    assert spread.quantile() == pytest.approx((cochran + satterthwaite) / 2, abs=1e-5)
    assert spread.margin() == pytest.approx(2 * spread.quantile())
    assert Spread(0.0, 1.0, 9, 2).quantile() == pytest.approx(4.30265, abs=1e-5)
    assert Spread(1.0, 0.0, math.inf, 2).quantile() == pytest.approx(1.95996, abs=1e-5)


def test_p_is_the_level_at_which_the_interval_reaches_zero() -> None:
    spread = Spread(documents=0.0004, seeds=0.0002, df_documents=40, df_seeds=3)
    for value in (0.02, 0.08, -0.3):
        assert spread.margin(spread.p(value)) == pytest.approx(abs(value))
    assert spread.p(0.0) == 1.0
    assert spread.p(0.5) < spread.p(0.3) < spread.p(0.08) < spread.p(0.02)


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(2, 5))
def test_equal_seeds_say_no_more_of_a_rate_than_one(values: list[bool], seeds: int) -> None:
    one = {str(i): value for i, value in enumerate(values)}
    over, alone = rate_over_seeds([one] * seeds), rate(values)
    assert over.n == seeds * alone.n
    if len(values) > 1:
        assert figures(over) == pytest.approx(figures(alone))


def test_equal_seeds_say_no_more_of_a_difference_than_one() -> None:
    values, baseline = by_seed(noise(40, 2))
    over = difference_over_seeds([values] * 3, [baseline] * 3, rates=True)
    pairs = list(values.values()), list(baseline.values())
    test = ttest_rel(*pairs)
    assert figures(over)[1:] == pytest.approx(tuple(test.confidence_interval()))
    assert over.p == pytest.approx(test.pvalue)
    assert over.n == 120


def test_of_seeds_that_are_all_alike_the_least_certain_is_given() -> None:
    many, few = {str(i): i % 2 for i in range(40)}, {str(i): i % 2 if i < 10 else None for i in range(40)}
    alone = [paired_rate_difference(values, values) for values in (many, few)]
    widths = [(one.high or 0) - (one.low or 0) for one in alone]
    assert widths[0] < widths[1]
    for pair in ((many, few), (few, many)):
        assert difference_over_seeds(pair, pair, rates=True) == replace(alone[1], n=50)
    shifted = [{name: value and 0.5 for name, value in values.items()} for values in (many, few)]
    means = difference_over_seeds([many, few], [many, few], rates=False)
    assert (means.value, means.low, means.high, means.p, means.n) == (0.0, 0.0, 0.0, 1.0, 50)
    assert difference_over_seeds(shifted, shifted, rates=False).p == 1.0


@pytest.mark.parametrize("over", [rate_over_seeds, mean_over_seeds])
def test_answers_and_unjudged_ones_are_counted_over_seeds(over: Callable[[Any], Estimate]) -> None:
    """Numbers whose difference no other operation gives: 9 of 14 were judged."""
    seeds = [{str(i): float(i % 2) if i < judged else None for i in range(7)} for judged in (4, 5)]
    estimate = over(seeds)
    assert (estimate.n, estimate.unjudged) == (9, 5)


def test_resampling_takes_as_much_memory_as_it_may() -> None:
    for n in (1, 3, 330, 7_000, 399_999):
        assert _batch(n) * n <= _BATCH_VALUES < (_batch(n) + 1) * n
    assert _batch(_BATCH_VALUES + 1) == _batch(10 * _BATCH_VALUES) == 1


def test_seeds_without_document_effects_have_the_t_test_of_their_figures() -> None:
    table = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1.0], [1, 1, 0]])
    documents, _, rest = mean_squares(table)
    assert documents <= rest
    test = ttest_1samp(table.mean(axis=0), 0)
    over = difference_over_seeds(by_seed(table), by_seed(0 * table), rates=True)
    assert figures(over)[1:] == pytest.approx(tuple(test.confidence_interval()))
    assert over.p == pytest.approx(test.pvalue)


def test_a_rates_interval_over_seeds_is_wilsons_with_the_effective_size_and_quantile() -> None:
    table = noise(60, 3)
    over, spread = rate_over_seeds(by_seed(table)), crossed_spread(table, rates=True, exactly=True)
    p, t = table.mean(), float(spread.quantile())
    size = p * (1 - p) / float(spread.variance)
    assert 60 / 3 < size < 180
    # Wilson's with z replaced: statsmodels knows z alone, so that its level is set to what t is of a normal
    level = 2 * norm.sf(t)
    published = proportion_confint(p * size, size, alpha=level, method="wilson")
    assert figures(over) == pytest.approx((p, *published))


def test_a_rate_without_spread_keeps_the_uncertainty_of_its_documents() -> None:
    sure = rate_over_seeds([{str(i): True for i in range(330)}] * 3)
    assert figures(sure) == pytest.approx(figures(rate([True] * 330)))
    same = difference_over_seeds(by_seed(np.ones((330, 3))), by_seed(np.ones((330, 3))), rates=True)
    assert same == replace(paired_rate_difference(*paired(330, 0, 0, 0)), n=990)


def test_the_answers_bound_the_effective_size() -> None:
    # every document is right in one of four seeds, each seed in as many: 400 answers, no more
    table = np.array([np.roll([1.0, 0.0, 0.0, 0.0], shift) for shift in range(4)] * 25)
    assert figures(rate_over_seeds(by_seed(table))) == pytest.approx(
        figures(rate([True, False, False, False] * 100))
    )


def test_equal_counts_are_no_proof_of_equal_seeds() -> None:
    # in each of three seeds one other document of 100 is lost: by the seeds' figures alone a difference of
    # exactly one point; half an answer's deviation says 4.30 x 0.5 / 100 / sqrt(3) around it
    lost = np.zeros((100, 3))
    lost[[0, 1, 2], [0, 1, 2]] = -1
    found = difference_over_seeds(by_seed(lost), by_seed(lost * 0), rates=True)
    margin = 4.30265 * 0.005 / math.sqrt(3)
    assert figures(found) == pytest.approx((-0.01, -0.01 - margin, -0.01 + margin), abs=1e-6)
    assert found.p == pytest.approx(2 * student.sf(0.01 / (0.005 / math.sqrt(3)), 2), rel=1e-3)
    as_means = difference_over_seeds(by_seed(lost), by_seed(lost * 0), rates=False)
    assert figures(as_means)[1:] == pytest.approx((-0.01, -0.01), abs=1e-9)


@settings(deadline=None)
@given(tables, st.randoms(use_true_random=False))
def test_over_seeds_properties(table: list[list[bool]], rng: random.Random) -> None:
    seeds = by_seed(table)
    for estimate, interval in ((rate_over_seeds(seeds), True), (mean_over_seeds(seeds), False)):
        value, low, high = figures(estimate)
        assert value == pytest.approx(np.mean(table))
        assert 0 <= low <= value + NOISE <= high + 2 * NOISE <= 1 + 3 * NOISE
        assert low < high or not interval
    mirrored = rate_over_seeds(by_seed(1 - np.array(table, dtype=float)))
    value, low, high = figures(rate_over_seeds(seeds))
    assert figures(mirrored) == pytest.approx((1 - value, 1 - high, 1 - low))
    baseline = by_seed(np.roll(np.array(table, dtype=float), 1, axis=0))
    there = difference_over_seeds(seeds, baseline, rates=True)
    back = difference_over_seeds(baseline, seeds, rates=True)
    assert figures(back) == pytest.approx([-x for x in np.array(figures(there))[[0, 2, 1]]])
    assert there.p == pytest.approx(back.p)
    order = rng.sample(range(len(seeds)), len(seeds))
    documents = rng.sample(sorted(seeds[0]), len(seeds[0]))
    shuffled = [{name: seeds[k][name] for name in documents} for k in order]
    again = difference_over_seeds(shuffled, [baseline[k] for k in order], rates=True)
    assert figures(again) == pytest.approx(figures(there))
    assert rate_over_seeds(shuffled) == pytest.approx(rate_over_seeds(seeds), abs=NOISE) or figures(
        rate_over_seeds(shuffled)
    ) == pytest.approx(figures(rate_over_seeds(seeds)))


def test_a_shift_moves_a_mean_and_leaves_its_spread() -> None:
    table = np.random.default_rng(2).uniform(0.2, 0.5, size=(30, 3))
    plain, moved = mean_over_seeds(by_seed(table)), mean_over_seeds(by_seed(table + 0.25))
    assert figures(moved) == pytest.approx([x + 0.25 for x in figures(plain)])
    difference = difference_over_seeds(by_seed(table + 0.25), by_seed(table * 0), rates=False)
    assert figures(difference) == pytest.approx(figures(moved))


def test_seeds_that_differ_widen_the_interval() -> None:
    def width(seed_effect: float) -> float:
        _, low, high = figures(rate_over_seeds(by_seed(noise(330, 3, seed_effect=seed_effect))))
        return high - low

    assert width(0.0) < 0.7 * width(0.3) < 0.7 * width(1.0)


def test_unjudged_answers_over_seeds_are_left_out_and_counted() -> None:
    table = noise(50, 3)
    table[0, 0] = table[1, 1] = table[1, 2] = np.nan
    estimate = rate_over_seeds(by_seed(table))
    assert (estimate.n, estimate.unjudged) == (147, 3)
    assert estimate.value == pytest.approx(np.mean(np.nanmean(table, axis=0)))
    # the spread is that of the 48 documents judged in all seeds; the mean weighs 50, two of them less
    judged = np.isfinite(table)
    weight = float(((judged / judged.sum(axis=0)).mean(axis=1) ** 2).sum())
    assert 1 / 50 < weight < 1 / 49
    spread = crossed_spread(table[2:], rates=True, exactly=True, weight=weight)
    assert figures(estimate)[1:] == pytest.approx(score_limits(estimate.value, spread, 147))
    complete = crossed_spread(table[2:], rates=True, exactly=True)
    assert spread.documents == pytest.approx(complete.documents * 48 * weight)
    assert spread.seeds == complete.seeds


def test_pairs_over_seeds_are_those_judged_in_both() -> None:
    values, baseline = noise(20, 2), noise(20, 2, seed_effect=1.0)
    values[3, 0], baseline[4, 1] = np.nan, np.nan
    found = difference_over_seeds(by_seed(values), by_seed(baseline), rates=True)
    assert found.n == 38
    assert found.value == pytest.approx(np.mean(np.nanmean(values - baseline, axis=0)))


def test_what_cannot_be_estimated_over_seeds_is_undefined() -> None:
    assert rate_over_seeds([{"a": None}, {"a": True}]) == Estimate(None, None, None, 1, unjudged=1)
    assert rate_over_seeds([{"a": True}, {"a": False}]) == Estimate(0.5, None, None, 2)  # one document
    assert mean_over_seeds([{}, {}]) == Estimate(None, None, None, 0)
    assert difference_over_seeds([{"a": 1.0}, {"b": 1.0}], [{"a": 0.0}, {"a": 1.0}], rates=True).value is None
    assert difference_over_seeds([{"a": 1.0}] * 2, [{"a": 0.0}] * 2, rates=True).p is None
    with pytest.raises(ValueError, match="0 or 1"):
        rate_over_seeds([{"a": 0.5}, {"a": 1}])
    with pytest.raises(ValueError, match="finite"):
        mean_over_seeds([{"a": math.inf}, {"a": 1}])


def test_one_seed_is_that_seed() -> None:
    values = {"a": 1.0, "b": 0.0, "c": None}
    assert rate_over_seeds([values]) == rate(values.values())
    assert mean_over_seeds([values]) == mean(values.values())


def test_a_differences_interval_stays_between_minus_one_and_one() -> None:
    # nearly all pairs differ one way, the seeds by much: the t interval alone would pass 1
    table = np.ones((40, 3))
    table[:12, 0] = table[:2, 1] = 0
    _, low, high = figures(difference_over_seeds(by_seed(table), by_seed(table * 0), rates=True))
    spread = crossed_spread(table, rates=True)
    assert table.mean() + float(spread.margin()) > 1
    assert high == 1.0
    assert low == pytest.approx(table.mean() - float(spread.margin()))
    _, low, _ = figures(difference_over_seeds(by_seed(table * 0), by_seed(table), rates=True))
    assert low == -1.0


def test_only_rates_take_equal_seeds_to_deviate_by_half_an_answer() -> None:
    table = np.zeros((100, 3))
    table[[0, 1, 2], [0, 1, 2]] = -1
    rates = difference_over_seeds(by_seed(table), by_seed(table * 0), rates=True)
    means = difference_over_seeds(by_seed(table), by_seed(table * 0), rates=False)
    assert figures(means) == pytest.approx((-0.01, -0.01, -0.01))  # the seeds' means are the same
    assert figures(rates)[1] < -0.02


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


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.one_of(st.floats(1e-6, 1), st.sampled_from([0.01, 0.02, 0.025, 0.05]), st.none()), max_size=9)
)
def test_holms_levels_are_where_the_star_begins(p_values: list[float | None]) -> None:
    levels = holm_levels(p_values)
    assert [p is None for p in p_values] == [level is None for level in levels]
    for place, level in enumerate(levels):
        if level is None:
            continue
        for p, found in ((level * (1 - 1e-6), True), (level * (1 + 1e-6), False)):
            others = [*p_values[:place], p, *p_values[place + 1 :]]
            adjusted = holm(others)[place]
            assert adjusted is not None
            assert (adjusted <= 0.05) == found


def test_holms_level_of_many_that_are_found_is_the_last_steps() -> None:
    assert holm_levels([0.001, 0.001, 0.001, 0.9]) == pytest.approx([0.025, 0.025, 0.025, 0.05])
    assert holm_levels([0.9, 0.8, None]) == [0.025, 0.025, None]
    assert holm_levels([]) == []


@pytest.mark.slow
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
    theirs = multipletests([p for p, _ in tested], method="holm")[1].tolist() if tested else []
    assert [q for _, q in tested] == pytest.approx(theirs)
