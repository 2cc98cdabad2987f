"""The simulation that chose the star: power and errors are counted right, a wrong star shows."""

from __future__ import annotations

import numpy as np
import pytest

from harness.leaderboard import statistics
from harness.studies import family_simulation
from harness.studies.family_simulation import FAMILY, FamilySetting, family, settings, simulate


def found(setting: FamilySetting, runs: int = 200, n: int = 330) -> family_simulation.Found:
    return family(setting, runs=runs, n=n, rng=np.random.default_rng(5))


def test_few_stars_are_false_and_the_intervals_hold_together() -> None:
    nothing = found(FamilySetting("rate", 0.5, 0.5, 0))
    assert nothing.false is not None
    assert nothing.false <= 10  # 200 runs: 1.5 points of standard error
    assert nothing.together >= 90
    assert (nothing.any, nothing.average, nothing.all_max_t) == (None, None, None)


def test_power_counts_any_the_share_and_all() -> None:
    some = found(FamilySetting("rate", 0.6, 0.5, 7))
    assert some.any is not None
    assert some.average is not None
    assert some.all is not None
    assert some.any >= some.average >= some.all
    one = found(FamilySetting("rate", 0.6, 0.5, 1))
    assert one.any == one.average == one.all
    sure = found(FamilySetting("rate", 0.9, 0.5, FAMILY), runs=20)
    assert (sure.false, sure.any, sure.average, sure.all) == (None, 100.0, 100.0, 100.0)
    assert (sure.any_max_t, sure.average_max_t, sure.all_max_t) == (100.0, 100.0, 100.0)


def test_a_star_for_everything_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "holm", lambda p: [0.0] * len(p))
    assert found(FamilySetting("rate", 0.5, 0.5, 0), runs=5).false == 100.0


def test_power_of_mcnemar_is_as_computed() -> None:
    # one comparison of 14 differs much more than the others could: its power is that of McNemar at 5 % / 14
    setting = FamilySetting("rate", 0.65, 0.5, 1)
    rng = np.random.default_rng(8)
    gained = lost = 0
    for _ in range(200):
        first, vanilla = family_simulation._answers(setting, 330, rng)
        gained += int((first[0] * (1 - vanilla[0])).sum())
        lost += int(((1 - first[0]) * vanilla[0]).sum())
    up, down = gained / 66_000, lost / 66_000
    assert up - down == pytest.approx(0.15, abs=0.01)
    from scipy.stats import binom

    counts = rng.multinomial(330, [up, down, 1 - up - down], 20_000)
    p = 2 * binom.cdf(counts[:, :2].min(axis=1), counts[:, :2].sum(axis=1), 0.5)
    assert found(setting, runs=600).any == pytest.approx(100 * (p <= 0.05 / 14).mean(), abs=4)


def test_over_seeds_p_is_the_leaderboards() -> None:
    setting = FamilySetting("rate", 0.6, 0.5, FAMILY, 3, 0.02)
    first, vanilla = family_simulation._answers(setting, 60, np.random.default_rng(9))
    *_, p = family_simulation._intervals(setting, first, vanilla)
    for place in (0, 5):
        sides = [
            [{str(i): float(v) for i, v in enumerate(seed)} for seed in part[place].T]
            for part in (first, vanilla)
        ]
        expected = statistics.difference_over_seeds(*sides, rates=True).p
        assert p[place] == pytest.approx(expected, rel=0.05)


def test_all_answer_the_same_documents() -> None:
    first, vanilla = family_simulation._answers(
        FamilySetting("rate", 0.5, 0.5, 0), 4_000, np.random.default_rng(10)
    )
    assert first.shape == vanilla.shape == (FAMILY, 4_000, 1)
    assert np.array_equal(vanilla[0], vanilla[2])  # of one train task
    assert not np.array_equal(vanilla[0], vanilla[1])
    assert np.corrcoef(first[0, :, 0], first[1, :, 0])[0, 1] > 0.25


def test_the_settings_are_those_of_the_intervals_and_some_with_few_that_differ() -> None:
    chosen = settings()
    assert len(set(chosen)) == len(chosen)
    for seeds in (1, 3, 5):
        assert {s.baseline for s in chosen if s.seeds == seeds and s.figure == "rate"} >= {
            0.05,
            0.5,
            0.9,
            0.98,
        }
    assert {s.differing for s in chosen} == {0, 1, 4, 7, FAMILY}
    assert all((s.differing == 0) == (s.rate == s.baseline) for s in chosen)


def test_the_table_says_what_is_outside_and_how_the_rules_compare() -> None:
    chosen = [FamilySetting("rate", 0.5, 0.5, 0), FamilySetting("rate", 0.7, 0.5, 4)]
    first, second = (simulate(chosen, runs=10, n=100, seed=1) for _ in range(2))
    assert first.equals(second)
    assert first["differing"].tolist() == [0, 4]
    assert first["rate"].tolist() == [50.0, 70.0]
    frame = first.assign(false=[9.0, 5.0], together=[95.0, 90.0], any_max_t=[None, 80.0], any=[None, 70.0])
    said = family_simulation.summary(frame)
    assert "at most 9 % of the runs, mean 7.0 %; mean (most) by seeds: 1 seed 7.0 (9)." in said
    three = family_simulation.summary(frame.assign(seeds=[1, 3]))
    assert "by seeds: 1 seed 9.0 (9); 3 seeds 5.0 (5)." in three
    assert "in 1 of 2 families" in said
    assert "1 seed: any +10.0 (+10.0 to +10.0)" in said
    table = family_simulation.make_table(first)
    assert (table.name, table.frame is first) == ("-families", True)


def test_false_stars_and_lost_intervals_are_told_apart() -> None:
    def outside(false: float | None, together: float) -> str:
        return family_simulation._outside(
            family_simulation.Found(false, None, None, None, None, None, None, together)
        )

    assert outside(5.0, 95.0) == ""
    assert outside(7.1, 95.0) == "above"
    assert outside(None, 92.9) == "below"
    assert outside(8.0, 80.0) == "above below"
