"""``harness simulate``: how often the intervals of statistics.py hold the truth, in simulated runs.

A run's answers come from a probit model in which documents and seeds are both random:

    answer = 1 where  m + document + seed + rest > 0      (a value in [0, 1]: Phi(m + document + seed + rest))

with normal terms. ``rest`` has standard deviation 1 and documents have DIFFICULTY; ``m`` and the seeds'
deviation are solved for, so that the rate over all documents and seeds, and the deviation of the seeds' rates
around it, are what a setting says. Two methods that are compared share the documents and no seed. The truth
is the rate over all documents and seeds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.console import Console
from scipy.optimize import brentq
from scipy.stats import norm

from harness.console.progress import Display
from harness.console.terminal import bare_table
from harness.leaderboard import statistics
from harness.leaderboard.spread import crossed_spread, score_limits
from harness.storage.files import write_text_atomic

BAND = (93.0, 97.0)  # percent: coverage that 95 % intervals are held to
DIFFICULTY = 1.0  # standard deviation of the documents' difficulty, beside 1 of an answer itself
RESAMPLES = 999  # of the bootstrap here: the width and coverage of 9,999 in a tenth of the time
RATES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
PAIRS = (
    (0.05, 0.05),
    (0.5, 0.5),
    (0.9, 0.9),
    (0.98, 0.98),
    (0.6, 0.5),
    (0.8, 0.5),
    (0.95, 0.85),
    (0.99, 0.9),
)
SEED_DEVIATIONS = (0.0, 0.02, 0.05)  # of a method's rate from seed to seed

Figure = Literal["rate", "mean"]
Answers = NDArray[np.float64]  # (runs, documents, seeds)


@dataclass(frozen=True)
class Setting:
    """What is simulated: one method's figure, or with ``baseline`` the paired difference of two methods'."""

    figure: Figure
    rate: float
    baseline: float | None = None
    seeds: int = 1
    seed_deviation: float = 0.0  # standard deviation of each method's rate from seed to seed
    unjudged: float = 0.0  # share of answers without a verdict


@dataclass(frozen=True)
class Coverage:
    """Of a setting's 95 % intervals, in percent and points: how many hold the truth, and their mean width."""

    coverage: float
    width: float

    @property
    def outside(self) -> str:
        """ "" within BAND, else on which side of it."""
        if self.coverage < BAND[0]:
            return "below"
        return "above" if self.coverage > BAND[1] else ""


def settings() -> list[Setting]:
    """All that the command simulates by default."""
    several = [(seeds, deviation) for seeds in (3, 5) for deviation in SEED_DEVIATIONS]
    return [
        *(Setting("rate", rate) for rate in RATES),
        *(Setting("rate", rate, baseline) for rate, baseline in PAIRS),
        *(Setting("rate", rate, None, *seeds) for seeds in several for rate in RATES),
        *(Setting("rate", rate, baseline, *seeds) for seeds in several for rate, baseline in PAIRS),
        *(Setting("rate", rate, None, 3, 0.02, 0.05) for rate in (0.5, 0.9)),
        Setting("rate", 0.6, 0.5, 3, 0.02, 0.05),
        Setting("mean", 0.5),
        Setting("mean", 0.55, 0.5),
        *(Setting("mean", 0.5, None, *seeds) for seeds in several),
        *(Setting("mean", 0.55, 0.5, *seeds) for seeds in several),
    ]


def simulate(
    chosen: Sequence[Setting], *, runs: int, n: int, seed: int, console: Console | None = None
) -> pd.DataFrame:
    """A row for each setting: its fields, ``n`` documents, coverage and mean width (percent, points), and
    ``outside``, where the coverage is not within BAND. The same for the same ``seed``."""
    rows: list[dict[str, Any]] = []
    with Display(console or Console(quiet=True), len(chosen), "settings") as display:
        for number, setting in enumerate(chosen):
            found = coverage(setting, runs=runs, n=n, rng=np.random.default_rng([seed, number]))
            rows.append({**asdict(setting), "n": n, **asdict(found), "outside": found.outside})
            display.cell_done()
    frame = pd.DataFrame(rows)
    scaled = ["rate", "baseline", "seed_deviation", "unjudged"]
    frame[scaled] = (100 * frame[scaled].astype(float)).round(2)
    return frame.rename(columns={"seed_deviation": "seed_sd"}).round({"coverage": 2, "width": 2})


def coverage(setting: Setting, *, runs: int, n: int, rng: np.random.Generator) -> Coverage:
    """Simulate a setting's runs, each of ``n`` documents."""
    documents = DIFFICULTY * rng.standard_normal((runs, n, 1))
    first = answers(setting, setting.rate, documents, rng)
    truth = setting.rate
    if setting.baseline is None:
        low, high = _limits(setting, first)
    else:
        second = answers(setting, setting.baseline, documents, rng)
        truth -= setting.baseline
        low, high = _difference_limits(setting, first, second)
    held = (low <= truth + 1e-9) & (truth - 1e-9 <= high)
    return Coverage(100 * float(held.mean()), 100 * float((high - low).mean()))


def answers(setting: Setting, rate: float, documents: Answers, rng: np.random.Generator) -> Answers:
    """Of a checkpoint with that rate, to ``documents`` (runs, documents, 1): their difficulty."""
    runs, n, _ = documents.shape
    own = 1 + DIFFICULTY**2 if setting.figure == "rate" else 2 + DIFFICULTY**2
    spread = seed_effect(rate, setting.seed_deviation, own)
    middle = norm.ppf(rate) * np.sqrt(own + spread**2)
    seeds = spread * rng.standard_normal((runs, 1, setting.seeds))
    latent = middle + documents + seeds + rng.standard_normal((runs, n, setting.seeds))
    answers = (latent > 0).astype(float) if setting.figure == "rate" else norm.cdf(latent)
    answers[rng.random(answers.shape) < setting.unjudged] = np.nan
    return np.asarray(answers)


@lru_cache(maxsize=1_000)
def seed_effect(rate: float, deviation: float, own: float) -> float:
    """The seeds' standard deviation on the probit scale, where ``own`` is the variance of all else, for which
    the seeds' rates Phi((m + seed) / sqrt(own)) have that deviation around their mean, ``rate``."""
    if deviation == 0:
        return 0.0
    points, weights = np.polynomial.hermite_e.hermegauss(80)

    def excess(spread: float) -> float:
        middle = norm.ppf(rate) * np.sqrt(own + spread**2)
        rates = norm.cdf((middle + spread * points) / np.sqrt(own))
        return float(np.sqrt((weights * (rates - rate) ** 2).sum() / weights.sum()) - deviation)

    return float(brentq(excess, 1e-9, 100.0))


def _limits(setting: Setting, answers: Answers) -> tuple[Any, Any]:
    _, n, seeds = answers.shape
    if setting.unjudged:
        over = statistics.rate_over_seeds if setting.figure == "rate" else statistics.mean_over_seeds
        return _pairs(over(_by_document(run)) for run in answers)
    if seeds > 1 and setting.figure == "rate":
        spread = crossed_spread(answers, rates=True, exactly=True)
        return score_limits(answers.mean(axis=(1, 2)), spread, n * seeds)
    if seeds > 1:
        return _symmetric(answers, rates=False)
    if setting.figure == "rate":
        limits = {k: statistics.wilson(k, n) for k in range(n + 1)}
        return _columns([limits[int(k)] for k in answers.sum(axis=(1, 2))])
    return _columns([statistics.bootstrap_mean(run[:, 0], RESAMPLES) for run in answers])


def _difference_limits(setting: Setting, first: Answers, second: Answers) -> tuple[Any, Any]:
    n = first.shape[1]
    if setting.unjudged:
        return _pairs(
            statistics.difference_over_seeds(_by_document(a), _by_document(b), rates=setting.figure == "rate")
            for a, b in zip(first, second, strict=True)
        )
    if setting.seeds > 1:
        return _symmetric(first - second, rates=setting.figure == "rate")
    if setting.figure == "rate":
        counts = [(a * b, a * (1 - b), (1 - a) * b) for a, b in [(first[..., 0], second[..., 0])]]
        both, gained, lost = (part.sum(axis=1).astype(int) for part in counts[0])
        tables = zip(both.tolist(), gained.tolist(), lost.tolist(), strict=True)
        return _columns([statistics.square_and_add(*table, n) for table in tables])
    return _columns([statistics.bootstrap_mean(run[:, 0], RESAMPLES) for run in first - second])


def _symmetric(answers: Answers, *, rates: bool) -> tuple[Any, Any]:
    value, margin = answers.mean(axis=(1, 2)), crossed_spread(answers, rates=rates).margin()
    return value - margin, value + margin


def _by_document(run: Answers) -> list[dict[str, float | None]]:
    """One run's answers (documents, seeds) as the leaderboard hands them over."""
    return [{str(i): None if np.isnan(v) else float(v) for i, v in enumerate(seed)} for seed in run.T]


def _pairs(found: Iterator[Any]) -> tuple[Any, Any]:
    return _columns([(interval.low, interval.high) for interval in found])


def _columns(limits: Sequence[tuple[float | None, float | None]]) -> tuple[Any, Any]:
    low, high = np.array(limits, dtype=float).T
    return low, high


# --- what it says ------------------------------------------------------------------------------------


def summary(frame: pd.DataFrame) -> str:
    within = int((frame["outside"] == "").sum())
    return f"{within} of {len(frame)} settings hold {BAND[0]:.0f} to {BAND[1]:.0f} %."


@dataclass(frozen=True)
class TitledTable:
    """A table of the command's output: its name, what it says, and how to read it."""

    name: str  # "" or what its file's name ends with
    title: str
    summary: str
    reading: str
    frame: pd.DataFrame


def make_table(frame: pd.DataFrame) -> TitledTable:
    return TitledTable(
        "",
        "Coverage of each interval alone",
        summary(frame),
        "Rates and deviations in percent, widths in points. `seed_sd`: the deviation of each method's rate "
        "from seed to seed; `outside`: below or above.",
        frame,
    )


def rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A frame's rows as JSON has them, None where a cell is empty."""
    found: list[dict[str, Any]] = json.loads(frame.to_json(orient="records"))
    return found


def write(tables: Sequence[TitledTable], path: Path, command: str) -> None:
    """Each table as CSV in ``path`` (and beside it), and all as Markdown, with the command that made them."""
    blocks = ["# Intervals and stars, simulated", f"`{command}`"]
    for table in tables:
        place = path.with_name(f"{path.stem}{table.name}{path.suffix}")
        write_text_atomic(place, table.frame.to_csv(index=False, lineterminator="\n"))
        blocks += [f"## {table.title}", table.summary, table.reading, _markdown(table.frame)]
    write_text_atomic(path.with_suffix(".md"), "\n\n".join(blocks) + "\n")


def _markdown(frame: pd.DataFrame) -> str:
    head = "| " + " | ".join(frame.columns) + " |"
    rule = "|" + " ---: |" * len(frame.columns)
    rows = ["| " + " | ".join(_shown(value) for value in row) + " |" for row in frame.itertuples(index=False)]
    return "\n".join([head, rule, *rows])


def show(titled: TitledTable, console: Console) -> None:
    frame, table = titled.frame, bare_table()
    console.print(f"\n[bold]{titled.title}[/]\n")
    for name in frame.columns:
        table.add_column(name, justify="left" if name in ("figure", "outside") else "right")
    for row in frame.itertuples(index=False):
        table.add_row(*map(_shown, row), style="yellow" if row.outside else "")
    console.print(table)
    console.print(f"\n{titled.summary} {titled.reading}", highlight=False)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:g}"
    return str(value)
