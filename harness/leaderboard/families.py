"""Which differences of a leaderboard are corrected together, and their columns.

For each judge and metric (and each seed, or the means over them) there are three families:

(a) the base model against vanilla, a comparison a train task. The question was there before any method was;
(b) every other row against vanilla, over methods, variants and train tasks;
(c) checkpoints that were trained elsewhere, against the base model.

Within each, p-values are Holm's. A difference is a finding, with a star, where its p is below 0.05.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from harness.leaderboard.detectable import Comparison, least_difference
from harness.leaderboard.statistics import (
    Difference,
    difference_over_seeds,
    holm,
    holm_levels,
    paired_mean_difference,
    paired_rate_difference,
)
from harness.leaderboard.tables import BASELINE, UNTRAINED
from harness.run.plan import SEED

Family = Literal["base", "methods", "own"]
Row = dict[str, Any]


def family(method: str, train_task: str) -> Family:
    """The family of a row."""
    if train_task == UNTRAINED:
        return "own"
    return "base" if method == SEED else "methods"


def control(train_task: str, baseline: str = BASELINE) -> str:
    """The row that a train task's rows are compared with."""
    return SEED if train_task == UNTRAINED else baseline


@dataclass(frozen=True)
class Compared:
    """A difference that stands in ``row``'s columns of ``metric``, before any correction."""

    row: Row
    metric: str
    family: Family
    comparison: Comparison


def difference(comparison: Comparison) -> Difference:
    """Of one seed, or over several."""
    values, baselines = comparison.values, comparison.baselines
    if len(values) > 1:
        return difference_over_seeds(values, baselines, rates=comparison.rates)
    compare = paired_rate_difference if comparison.rates else paired_mean_difference
    return compare(values[0], baselines[0])


def compare(row: Row, metric: str, family: Family, comparison: Comparison) -> Compared:
    """Write a difference, its interval and its own p into the row (points; p)."""
    found = difference(comparison)
    row |= {
        f"{metric}_delta": percent(found.value),
        f"{metric}_delta_low": percent(found.low),
        f"{metric}_delta_high": percent(found.high),
        f"{metric}_p": found.p,
    }
    return Compared(row, metric, family, comparison)


def correct(compared: Sequence[Compared], *, detectable: bool) -> None:
    """Adjust the p-values of each family; with ``detectable`` write the smallest difference, in points, that
    each comparison would have given a star, the others as they are."""
    families: dict[tuple[str, ...], list[Compared]] = {}
    for one in compared:
        named = (one.metric, one.family, *(one.row[name] for name in ("model", "judge", "seed")))
        families.setdefault(named, []).append(one)
    for members in families.values():
        p_values = [one.row[f"{one.metric}_p"] for one in members]
        adjusted = zip(members, holm(p_values), holm_levels(p_values), strict=True)
        for one, p, level in adjusted:
            one.row[f"{one.metric}_p"] = p
            if detectable and level is not None:
                one.row[f"{one.metric}_mde"] = percent(least_difference(one.comparison, level))


def percent(fraction: float | None) -> float | None:
    return None if fraction is None else 100 * fraction
