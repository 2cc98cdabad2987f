"""``harness simulate``: what a family's star is worth, in simulated runs, and what max-T would give instead.

METHODS methods on TASKS train tasks are compared with each task's vanilla, as a leaderboard's second family
is. Answers come from simulation.py's model: all checkpoints of a run answer the same documents. Some of the
methods differ from vanilla, all by the same amount; the others have vanilla's rate.

The star is Holm's correction of the comparisons' p-values. Beside it stands single-step max-T (``max_t.py``),
whose star is a simultaneous interval that excludes 0. Of both the table has the power, in percent of runs:
*any*: at least one true difference found; *average*: the share of true differences found; *all*: every one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.console import Console
from scipy.stats import binom, ttest_1samp

from harness.console.progress import Display
from harness.leaderboard import statistics
from harness.leaderboard.spread import ALPHA, Spread, crossed_spread
from harness.studies import simulation
from harness.studies.max_t import joint_level
from harness.studies.simulation import PAIRS, SEED_DEVIATIONS, Answers, Figure, Setting, TitledTable

METHODS, TASKS = 7, 2
FAMILY = METHODS * TASKS
LEAST = 93.0  # percent: coverage that simultaneous intervals are held to
MOST = 7.0  # percent: false stars; 5 and what a thousand runs leave to chance
DRAWS = 2**12  # of max-T's level in each run
FEW = (1, 4, 7)  # of the family differ
_LEVELS = np.exp(np.linspace(np.log(1e-9), 0.0, 60))  # at which p-values are interpolated


@dataclass(frozen=True)
class FamilySetting:
    """``differing`` of the FAMILY comparisons are of a method with ``rate``; vanilla and the others have
    ``baseline``."""

    figure: Figure
    rate: float
    baseline: float
    differing: int
    seeds: int = 1
    seed_deviation: float = 0.0


@dataclass(frozen=True)
class Found:
    """In percent of the runs (``average``: of the true differences); None where nothing differs, or all does.

    ``false``: the star stands at a difference that is none; ``together``: all max-T intervals hold the truth.
    """

    false: float | None
    any: float | None
    average: float | None
    all: float | None
    any_max_t: float | None
    average_max_t: float | None
    all_max_t: float | None
    together: float


def settings() -> list[FamilySetting]:
    """The differences that simulation.py has, and some in which few methods differ."""
    several = [(1, 0.0), *((seeds, deviation) for seeds in (3, 5) for deviation in SEED_DEVIATIONS)]
    whole = [
        FamilySetting("rate", rate, baseline, FAMILY if rate != baseline else 0, *seeds)
        for seeds in several
        for rate, baseline in PAIRS
    ]
    means = [FamilySetting("mean", 0.55, 0.5, FAMILY, *seeds) for seeds in several]
    some = [
        FamilySetting("rate", rate, baseline, differing, *seeds)
        for seeds in ((1, 0.0), (5, 0.02))
        for rate, baseline in ((0.6, 0.5), (0.65, 0.5), (0.95, 0.85))
        for differing in FEW
    ]
    return [*whole, *means, *some]


def simulate(
    chosen: Sequence[FamilySetting], *, runs: int, n: int, seed: int, console: Console | None = None
) -> pd.DataFrame:
    """A row for each setting: its fields, ``n`` documents, what was found, and ``outside``: "above" where
    false stars are more than MOST, "below" where max-T's intervals hold less than LEAST. The same for the
    same ``seed``."""
    rows: list[dict[str, Any]] = []
    with Display(console or Console(quiet=True), len(chosen), "families") as display:
        for number, setting in enumerate(chosen):
            found = family(setting, runs=runs, n=n, rng=np.random.default_rng([seed, number, FAMILY]))
            rows.append({**asdict(setting), "n": n, **asdict(found), "outside": _outside(found)})
            display.cell_done()
    frame = pd.DataFrame(rows)
    scaled = ["rate", "baseline", "seed_deviation"]
    frame[scaled] = (100 * frame[scaled].astype(float)).round(2)
    figures = list(Found.__dataclass_fields__)
    frame[figures] = frame[figures].astype(float)
    return frame.rename(columns={"seed_deviation": "seed_sd"}).round(1)


def _outside(found: Found) -> str:
    above = found.false is not None and found.false > MOST
    return " ".join(["above"] * above + ["below"] * (found.together < LEAST))


def family(setting: FamilySetting, *, runs: int, n: int, rng: np.random.Generator) -> Found:
    """Simulate a setting's runs, each of ``n`` documents."""
    truth = np.zeros(FAMILY)
    truth[: setting.differing] = setting.rate - setting.baseline
    held, stars, others = [], [], []
    for _ in range(runs):
        low, high, p = _intervals(setting, *_answers(setting, n, rng))
        held.append(bool(np.all((low <= truth + 1e-9) & (truth - 1e-9 <= high))))
        stars.append(np.array(statistics.holm(p.tolist()), dtype=float) < ALPHA)
        others.append((low > 0) | (high < 0))
    found, differs = np.array(stars), truth != 0
    return Found(
        None if differs.all() else 100 * float(found[:, ~differs].any(axis=1).mean()),
        *_power(found, differs),
        *_power(np.array(others), differs),
        100 * float(np.mean(held)),
    )


def _power(
    found: NDArray[np.bool_], differs: NDArray[np.bool_]
) -> tuple[float | None, float | None, float | None]:
    """any, average, all"""
    if not differs.any():
        return None, None, None
    true = found[:, differs]
    some, every = true.any(axis=1), true.all(axis=1)
    return 100 * float(some.mean()), 100 * float(true.mean()), 100 * float(every.mean())


def _answers(setting: FamilySetting, n: int, rng: np.random.Generator) -> tuple[Answers, Answers]:
    """(comparisons, documents, seeds): of the methods, and of the vanilla that each is compared with."""
    documents = simulation.DIFFICULTY * rng.standard_normal((1, n, 1))

    def of(rate: float, count: int) -> Answers:
        one = Setting(setting.figure, rate, None, setting.seeds, setting.seed_deviation)
        return simulation.answers(one, rate, np.repeat(documents, count, axis=0), rng)

    methods = [of(setting.rate, setting.differing)] if setting.differing else []
    if setting.differing < FAMILY:
        methods.append(of(setting.baseline, FAMILY - setting.differing))
    vanilla = of(setting.baseline, TASKS)
    return np.concatenate(methods), vanilla[np.arange(FAMILY) % TASKS]


def _intervals(setting: FamilySetting, first: Answers, vanilla: Answers) -> tuple[Any, Any, Any]:
    """The simultaneous intervals' ends, and each comparison's own p."""
    differences = first - vanilla
    moved = differences.mean(axis=2).T
    moved = moved - moved.mean(axis=0)
    length = np.sqrt((moved**2).sum(axis=0))
    influence = np.divide(moved, length, out=np.zeros_like(moved), where=length > 0)
    if setting.seeds == 1:
        alpha = joint_level(influence, draws=DRAWS)
        of = _of_rates if setting.figure == "rate" else _of_means
        return of(first[..., 0], vanilla[..., 0], alpha)
    spread = crossed_spread(differences, rates=setting.figure == "rate")
    spreads = [
        Spread(documents, seeds, spread.df_documents, spread.df_seeds)
        for documents, seeds in zip(spread.documents, spread.seeds, strict=True)
    ]
    alpha = joint_level(influence, spreads, draws=DRAWS)
    value, margin = differences.mean(axis=(1, 2)), spread.margin(alpha)
    reached = np.array([spread.margin(level) for level in _LEVELS])  # falls as the level rises
    logs = np.log(_LEVELS)[::-1]
    pairs = zip(np.abs(value), reached.T, strict=True)
    p = np.exp([np.interp(size, margins[::-1], logs) for size, margins in pairs])
    return value - margin, value + margin, p


def _of_rates(first: Any, vanilla: Any, alpha: float) -> tuple[Any, Any, Any]:
    n = first.shape[1]
    both, gained, lost = (
        part.sum(axis=1) for part in (first * vanilla, first * (1 - vanilla), (1 - first) * vanilla)
    )
    low, high = statistics.square_and_add(both, gained, lost, n, alpha)
    p = np.minimum(1.0, 2 * binom.cdf(np.minimum(gained, lost), gained + lost, 0.5))  # McNemar, exact
    return low, high, p


def _of_means(first: Any, vanilla: Any, alpha: float) -> tuple[Any, Any, Any]:
    """Holm's p from the paired t test, as near to the permutation test's as 330 documents make it."""
    found = [statistics.bootstrap_mean(np.sort(one), alpha=alpha) for one in first - vanilla]
    low, high = np.array(found, dtype=float).T
    return low, high, ttest_1samp(first - vanilla, 0.0, axis=1).pvalue


# --- what it says ------------------------------------------------------------------------------------


def make_table(frame: pd.DataFrame) -> TitledTable:
    return TitledTable(
        "-families",
        f"Families of {FAMILY} comparisons",
        summary(frame),
        f"`differing`: so many of the {FAMILY} are of methods with `rate`; the others "
        "have vanilla's, `baseline`. All in percent. `false`: runs with a star where nothing differs; "
        "`any`, `average`, `all`: true differences that got a star; `_max_t`: that single-step max-T would "
        "have found; `together`: runs in which all of its intervals hold the truth.",
        frame,
    )


def summary(frame: pd.DataFrame) -> str:
    known = frame.dropna(subset=["false"])
    by_seeds = "; ".join(
        f"{_seeds(seeds)} {group['false'].mean():.1f} ({group['false'].max():g})"
        for seeds, group in known.groupby("seeds")
    )
    text = (
        f"False stars: at most {known['false'].max():g} % of the runs, mean {known['false'].mean():.1f} %; "
        f"mean (most) by seeds: {by_seeds}. "
        f"Max-T's intervals hold {LEAST:.0f} % or more together in "
        f"{int((frame['together'] >= LEAST).sum())} of {len(frame)} families."
    )
    power = frame.dropna(subset=["any"])
    gains = []
    for seeds in sorted({int(number) for number in power["seeds"]}):
        group = power[power["seeds"] == seeds]
        parts = [f"{name} {_gain(group, name)}" for name in ("any", "average", "all")]
        gains.append(f"{_seeds(seeds)}: {', '.join(parts)}")
    return f"{text} Power of max-T less the star's, in points, mean (lowest to highest): {'; '.join(gains)}."


def _seeds(number: Any) -> str:
    return f"{number:g} seed{'s' if number > 1 else ''}"


def _gain(frame: pd.DataFrame, name: str) -> str:
    gain = frame[f"{name}_max_t"] - frame[name]
    return f"{gain.mean():+.1f} ({gain.min():+.1f} to {gain.max():+.1f})"
