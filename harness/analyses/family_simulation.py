"""``harness simulate``: what a family's star is worth, in simulated runs.

METHODS methods on TASKS train tasks are compared with each task's vanilla, as a leaderboard's second family
is. Answers come from simulation.py's model: all of a run's checkpoints answer the same documents. Some of the
methods differ from vanilla, all by the same amount; the others have vanilla's rate.

Of the simultaneous intervals the table has the *coverage*: the share of runs in which all of them hold
the truth. Of their star, and of Holm's correction of the same comparisons' p-values (exact McNemar for
one seed of rates), it has the power, in percent of runs: *any*: at least one true difference found;
*average*: the share of true differences found; *all*: every one found.
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

from harness import simultaneous, statistics
from harness.analyses import simulation
from harness.analyses.simulation import PAIRS, SEED_DEVIATIONS, Answers, Figure, Part, Setting
from harness.progress import Display
from harness.statistics import ALPHA, Spread

METHODS, TASKS = 7, 2
FAMILY = METHODS * TASKS
LEAST = 93.0  # percent: coverage that simultaneous intervals are held to
DRAWS = 2**12  # of the level in each run: a mean level over the runs as precise as that of many draws
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
    """In percent of the runs (``average``: of the true differences); None where nothing differs."""

    coverage: float
    any: float | None
    any_holm: float | None
    average: float | None
    average_holm: float | None
    all: float | None
    all_holm: float | None


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
    """A row for each setting: its fields, ``n`` documents, coverage and power (percent), and ``outside``:
    "below" where the coverage is below LEAST. The same for the same ``seed``."""
    rows: list[dict[str, Any]] = []
    with Display(console or Console(quiet=True), len(chosen), "families") as display:
        for number, setting in enumerate(chosen):
            found = family(setting, runs=runs, n=n, rng=np.random.default_rng([seed, number, FAMILY]))
            outside = "below" if found.coverage < LEAST else ""
            rows.append({**asdict(setting), "n": n, **asdict(found), "outside": outside})
            display.cell_done()
    frame = pd.DataFrame(rows)
    scaled = ["rate", "baseline", "seed_deviation"]
    frame[scaled] = (100 * frame[scaled].astype(float)).round(2)
    return frame.rename(columns={"seed_deviation": "seed_sd"}).round(1)


def family(setting: FamilySetting, *, runs: int, n: int, rng: np.random.Generator) -> Found:
    """Simulate a setting's runs, each of ``n`` documents."""
    truth = np.zeros(FAMILY)
    truth[: setting.differing] = setting.rate - setting.baseline
    held, stars, holm = [], [], []
    for _ in range(runs):
        first, vanilla = _answers(setting, n, rng)
        low, high, p = _intervals(setting, first, vanilla)
        held.append(bool(np.all((low <= truth + 1e-9) & (truth - 1e-9 <= high))))
        stars.append((low > 0) | (high < 0))
        holm.append(np.array(statistics.holm(p.tolist()), dtype=float) < ALPHA)
    power = [_power(np.array(found), truth != 0) for found in (stars, holm)]
    return Found(100 * float(np.mean(held)), *(share for pair in zip(*power, strict=True) for share in pair))


def _power(found: NDArray[np.bool_], differs: NDArray[np.bool_]) -> tuple[float | None, ...]:
    """any, average, all"""
    if not differs.any():
        return None, None, None
    true = found[:, differs]
    return tuple(100 * float(share.mean()) for share in (true.any(axis=1), true, true.all(axis=1)))


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
        alpha = simultaneous.joint_level(influence, [None] * FAMILY, DRAWS).alpha
        of = _of_rates if setting.figure == "rate" else _of_means
        return of(first[..., 0], vanilla[..., 0], alpha)
    spread = statistics.crossed_spread(differences, rates=setting.figure == "rate")
    spreads = [
        Spread(documents, seeds, spread.df_documents, spread.df_seeds)
        for documents, seeds in zip(spread.documents, spread.seeds, strict=True)
    ]
    alpha = simultaneous.joint_level(influence, spreads, DRAWS).alpha
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


def part(frame: pd.DataFrame) -> Part:
    return Part(
        "-families",
        f"Families of {FAMILY} comparisons",
        summary(frame),
        f"`differing`: so many of the {FAMILY} are of a method with `rate`, the others have vanilla's, `baseline`. "
        "`coverage`: runs in which all simultaneous intervals hold the truth; `any`, `average`, `all`: true "
        "differences found by the star, and with `_holm` by Holm's correction. All in percent.",
        frame,
    )


def summary(frame: pd.DataFrame) -> str:
    held = frame[frame["outside"] == ""]
    below = frame[frame["outside"] != ""]
    text = f"{len(held)} of {len(frame)} families hold {LEAST:.0f} % or more together."
    if len(below):
        named = ", ".join(
            f"{row.rate:g} against {row.baseline:g} %, {row.seeds} seeds that deviate by {row.seed_sd:g}: "
            f"{row.coverage:g} %"
            for row in below.itertuples()
        )
        text += f" Below: {named}."
    return f"{text} {_gains(frame)}"


def _gains(frame: pd.DataFrame) -> str:
    """How the star's power compares with Holm's, over the settings in which something differs."""
    known = frame.dropna(subset=["any"])
    parts = []
    for name in ("any", "average", "all"):
        gain = known[name] - known[f"{name}_holm"]
        parts.append(f"{name} {gain.mean():+.1f} points ({gain.min():+.1f} to {gain.max():+.1f})")
    return f"Power beside Holm's, mean over {len(known)} settings (lowest to highest): {', '.join(parts)}."
