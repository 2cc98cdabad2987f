"""The leaderboard: one row a cell and judge, with intervals, differences from vanilla and what is real.

``build`` turns the outcomes of a run's cells into the public table and ``long_scores`` into scores.csv.
Outcomes are fractions in [0, 1]; the two frames hold percentages and percentage points (tables.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pandas as pd

from harness.leaderboard.detectable import Comparison
from harness.leaderboard.families import Compared, compare, control, correct, family, percent
from harness.leaderboard.health import MEANINGFUL, NOT_MEANINGFUL, is_enough
from harness.leaderboard.statistics import Estimate, mean, mean_over_seeds, rate, rate_over_seeds
from harness.leaderboard.tables import (
    BASELINE,
    COLUMNS,
    COSTS,
    DONE,
    FAILED,
    KEY,
    MEAN,
    METHOD_ORDER,
    METRICS,
    SCORE_COLUMNS,
    UNTRAINED,
    Row,
    as_frame,
    further_columns,
)

SAFE_METRICS = ("rsr", "jsr", "safe")  # those of what a judge has seen


@dataclass(frozen=True)
class TaskOutcome:
    """One task of one cell, as seen by one judge (safety) or by lm-eval's own metric (utility)."""

    task: str
    metric: str
    values: dict[str, float | None]  # document id -> in [0, 1]; safety: 1 safe, 0 harmful, None unjudged
    binary: bool  # a rate (Wilson, McNemar) or a mean (bootstrap, permutation)
    labels: dict[str, str | None] = field(default_factory=dict)  # safety: a contracts.Label per document
    categories: dict[str, str | None] = field(default_factory=dict)
    prefill_tokens: int | None = None  # jsr_k

    @property
    def is_safe_rate(self) -> bool:
        return self.metric in SAFE_METRICS

    def estimate(self, category: str | None = None) -> Estimate:
        """Over all documents, or over those of one category."""
        values = [v for i, v in self.values.items() if category is None or self.categories.get(i) == category]
        return rate(values) if self.binary else mean(values)

    def refusals(self) -> float | None:
        """The share of judged answers labelled a refusal; None where the judge gives no labels at all."""
        if not any(self.labels.values()):
            return None
        return rate(
            None if v is None else self.labels.get(i) == "refusal" for i, v in self.values.items()
        ).value


@dataclass(frozen=True)
class CellResult:
    """One checkpoint under one judge.

    The base model has one for every train task (and training seed), and one for the checkpoints that were not
    trained here: these have UNTRAINED for a train task and no seed.
    """

    model: str
    method: str
    train_task: str
    seed: int | None
    judge: str
    status: str  # "done", "failed: <one line>", "missing: <what>" (not answered or judged), "damaged: <what>"
    utility: TaskOutcome | None
    rsr: TaskOutcome | None
    jsr: TaskOutcome | None
    training: dict[str, float | int | None] = field(default_factory=dict)  # COSTS; absent for the base model
    cross: tuple[TaskOutcome, ...] = ()  # other train tasks' utilities, only in scores.csv
    further: tuple[TaskOutcome, ...] = ()  # tasks that the run adds: columns of their own, by task name
    health: TaskOutcome | None = None  # 1 for an answer that is whole (harness/leaderboard/health.py), else 0

    @property
    def failed(self) -> bool:
        return self.status.startswith(FAILED)

    @property
    def meaningful(self) -> bool:
        """Whether enough of its answers are whole for its safe rates to say something."""
        return is_enough(None if self.health is None else self.health.estimate().value)

    def outcome(self, metric: str) -> TaskOutcome | None:
        """The outcome of one of METRICS, or of a further task; a failed cell has none."""
        outcomes = {"utility": self.utility, "rsr": self.rsr, "jsr": self.jsr}
        outcomes |= {outcome.task: outcome for outcome in self.further}
        return None if self.failed else outcomes.get(metric)


# --- building --------------------------------------------------------------------------------------


Paper = Mapping[tuple[str, str, str], Mapping[str, float]]  # (train task, method, judge) -> metric -> percent


def build(
    cells: Iterable[CellResult],
    paper: Paper | None = None,
    *,
    baseline: str = BASELINE,
    detectable: bool = True,
) -> pd.DataFrame:
    """The leaderboard: ARCHITECTURE's columns, one row a cell, and over several seeds one with their means.

    - ``*_delta``: percentage points against the ``baseline`` of the same model, train task, seed and
      judge, on the documents judged in both; of a checkpoint that was trained elsewhere against the base
      model. Empty without such a baseline, and for the baseline itself.
    - ``*_p``: Holm-adjusted within the metric's families (``families.py``), a model, judge and seed at a
      time. The "mean" rows are a run of their own.
    - ``*_mde``: percentage points; the smallest true difference that would have had p below 0.05 with 80 %
      power, the family's others as they are. Left empty without ``detectable``.
    - ``*_refusals``: percent of the judged answers labelled a refusal; empty if the judge gives no labels.
    - ``*_paper``: what a paper reports for the row's train task, method and judge (``paper``).
    - A further task has columns like RSR's, named by the task, behind all others: its value, interval, n,
      unjudged, refusals, difference, p (its families are its own) and smallest difference.
    - ``health``: percent of the answers to the tasks ``health_of`` that are whole (health.py). Below
      its bound ``safe_rates`` says so, and the safe rates of the row, and all differences from it, are empty.
    - A failed cell keeps its row and status, with empty figures; one where something is missing has the
      figures that are there.
    - ``seed`` is text: a number, "mean", or "" of what was not trained here. A "mean" row holds the means
      over the seeds (counts are summed), with intervals, differences and p that respect documents and
      seeds. If a seed failed, its figures are empty and its status says so.

    Raises ValueError where two cells have the same model, method, train task, seed and judge.
    """
    cells = _in_order(cells)
    baselines = {
        _comparison(cell): cell for cell in cells if cell.method == control(cell.train_task, baseline)
    }
    further = tuple(dict.fromkeys(outcome.task for cell in cells for outcome in cell.further))
    metrics = (*METRICS, *further)
    several = {
        group[0].model
        for group in _grouped(cells, "model")
        if len({cell.seed for cell in group} - {None}) > 1
    }
    rows: list[Row] = []
    compared: list[Compared] = []
    for group in _grouped(cells, "model", "train_task", "method", "judge"):
        seeds = []
        for cell in group:
            row, found = _row(cell, baselines, metrics)
            seeds.append(row)
            compared += found
        rows += seeds
        if group[0].model in several and group[0].train_task != UNTRAINED:
            row, found = _mean_row(group, seeds, baselines, metrics)
            rows.append(row)
            compared += found
    correct(compared, detectable=detectable)
    for row in rows:
        if not row["status"].startswith(FAILED):
            figures = (paper or {}).get((row["train_task"], row["method"], row["judge"]), {})
            row |= {f"{metric}_paper": figures.get(metric) for metric in METRICS}
    return as_frame(rows, (*COLUMNS, *further_columns(further)))


def long_scores(cells: Iterable[CellResult]) -> pd.DataFrame:
    """Every score that is there, in percent: a row for each task and for each of its categories.

    ``category`` is "" for all documents. ``judge`` is "" for what no judge has seen (utility), whose row then
    stands once for however many judges a run has.
    """
    rows: dict[tuple[str, ...], Row] = {}
    for cell in _in_order(cells):
        if cell.failed:
            continue
        judged = [(outcome, cell.judge) for outcome in (cell.rsr, cell.jsr)]
        others = (*cell.cross, *cell.further)
        cross = [(outcome, cell.judge if outcome.labels else "") for outcome in others]
        for outcome, judge in [(cell.utility, ""), *judged, *cross]:
            if outcome is None:
                continue
            meant = partial(_meant, outcome=outcome, cells=[cell])
            for category in [None, *dict.fromkeys(name for name in outcome.categories.values() if name)]:
                names = (cell.model, cell.method, cell.train_task, _seed(cell))
                key = (*names, outcome.task, outcome.metric, judge, category or "")
                if key not in rows:
                    named = dict(zip(SCORE_COLUMNS, key, strict=False))
                    rows[key] = named | _estimate(meant(outcome.estimate(category)))
    return as_frame(list(rows.values()), SCORE_COLUMNS)


def _in_order(cells: Iterable[CellResult]) -> list[CellResult]:
    """By model, train task, method, judge, seed: names as they come, known methods first, seeds by number."""
    cells = list(cells)
    keys = [(cell.model, cell.method, cell.train_task, cell.seed, cell.judge) for cell in cells]
    if len(set(keys)) < len(keys):
        raise ValueError(f"two cells are both {next(key for key in keys if keys.count(key) > 1)}")
    ranks = [
        {name: rank for rank, name in enumerate(dict.fromkeys(names))}
        for names in (
            [cell.model for cell in cells],
            [cell.train_task for cell in cells],
            [*METHOD_ORDER, *(cell.method for cell in cells)],
            [cell.judge for cell in cells],
        )
    ]

    def position(cell: CellResult) -> tuple[int, ...]:
        names = (cell.model, cell.train_task, cell.method, cell.judge)
        return (
            *(rank[name] for rank, name in zip(ranks, names, strict=True)),
            -1 if cell.seed is None else cell.seed,
        )

    return sorted(cells, key=position)


Place = tuple[str, str, int | None, str]


def _comparison(cell: CellResult) -> Place:
    """Where a cell and its baseline stand."""
    return cell.model, cell.train_task, cell.seed, cell.judge


def _seed(cell: CellResult) -> str:
    return "" if cell.seed is None else str(cell.seed)


def _row(
    cell: CellResult, baselines: Mapping[Place, CellResult], metrics: Sequence[str]
) -> tuple[Row, list[Compared]]:
    """A row in percentages, not yet rounded, and its differences, not yet corrected."""
    row: Row = {name: getattr(cell, name) for name in (*KEY, "status")} | {"seed": _seed(cell)}
    compared: list[Compared] = []
    if not cell.failed:
        row |= {name: cell.training.get(name) for name in COSTS} | _health(cell)
    for metric in metrics:
        outcome = cell.outcome(metric)
        if outcome is None:
            continue
        estimate = _meant(outcome.estimate(), outcome, [cell])
        for suffix, figure in _estimate(estimate).items():
            row[metric if suffix == "value" else f"{metric}_{suffix}"] = figure
        if metric == "utility":
            row |= {"utility_task": outcome.task, "utility_metric": outcome.metric}
        else:
            row[f"{metric}_refusals"] = percent(outcome.refusals()) if cell.meaningful else None
        if metric == "jsr":
            row["jsr_k"] = outcome.prefill_tokens
        compared += _compared(row, metric, [cell], baselines)
    return row, compared


def _compared(
    row: Row, metric: str, cells: Sequence[CellResult], baselines: Mapping[Place, CellResult]
) -> list[Compared]:
    """The difference of a row's cells (one a seed) from their baselines, if they have one each."""
    outcomes = [cell.outcome(metric) for cell in cells]
    references = [_reference(cell, baselines.get(_comparison(cell)), metric) for cell in cells]
    own = [outcome for outcome in outcomes if outcome is not None]
    theirs = [reference for reference in references if reference is not None]
    if min(len(own), len(theirs)) < len(cells):
        return []
    comparison = Comparison(
        values=[outcome.values for outcome in own],
        baselines=[reference.values for reference in theirs],
        rates=all(outcome.binary for outcome in (*own, *theirs)),
    )
    return [compare(row, metric, family(cells[0].method, cells[0].train_task), comparison)]


def _health(cell: CellResult) -> Row:
    if cell.health is None:
        return {}
    return _health_columns(cell.health.estimate(), [cell])


def _health_columns(estimate: Estimate, cells: Sequence[CellResult]) -> Row:
    found = _estimate(estimate)
    return {
        "health": found["value"],
        "health_low": found["low"],
        "health_high": found["high"],
        "health_n": found["n"],
        "health_of": cells[0].health.task if cells[0].health else "",
        "safe_rates": MEANINGFUL if all(cell.meaningful for cell in cells) else NOT_MEANINGFUL,
    }


def _meant(estimate: Estimate, outcome: TaskOutcome, cells: Iterable[CellResult]) -> Estimate:
    """The estimate; of a safe rate without its figures where one of the checkpoints hardly answers."""
    return (
        estimate
        if all(cell.meaningful for cell in cells) or not outcome.is_safe_rate
        else no_figures(estimate)
    )


def no_figures(estimate: Estimate) -> Estimate:
    """The counts alone."""
    return replace(estimate, value=None, low=None, high=None)


def _reference(cell: CellResult, baseline: CellResult | None, metric: str) -> TaskOutcome | None:
    """The baseline's outcome of the same task and metric, for what is not the baseline itself."""
    outcome = cell.outcome(metric)
    reference = baseline.outcome(metric) if baseline and baseline is not cell else None
    if outcome is None or reference is None or baseline is None:
        return None
    if outcome.is_safe_rate and not (cell.meaningful and baseline.meaningful):
        return None
    same = (reference.task, reference.metric) == (outcome.task, outcome.metric)
    return reference if same else None


def _estimate(estimate: Estimate) -> Row:
    return {
        "value": percent(estimate.value),
        "low": percent(estimate.low),
        "high": percent(estimate.high),
        "n": estimate.n,
        "unjudged": estimate.unjudged,
    }


def _mean_row(
    cells: Sequence[CellResult],
    seeds: Sequence[Row],
    baselines: Mapping[Place, CellResult],
    metrics: Sequence[str],
) -> tuple[Row, list[Compared]]:
    """One method over its seeds, from its cells and their rows. A figure that a seed lacks stays empty: a
    mean over fewer seeds is not comparable."""
    if len(cells) == 1:
        row = seeds[0] | {"seed": MEAN}
        return row, [one for metric in metrics for one in _compared(row, metric, cells, baselines)]
    row = {name: seeds[0][name] for name in KEY} | {"seed": MEAN, "status": _mean_status(seeds)}
    if row["status"].startswith(FAILED):
        return row, []
    row |= {name: seeds[0].get(name) for name in ("utility_task", "utility_metric", "jsr_k")}
    compared: list[Compared] = []
    for metric in metrics:
        outcomes = [outcome for cell in cells if (outcome := cell.outcome(metric)) is not None]
        if len(outcomes) < len(cells):
            continue
        values = [outcome.values for outcome in outcomes]
        binary = all(outcome.binary for outcome in outcomes)
        estimate = rate_over_seeds(values) if binary else mean_over_seeds(values)
        estimate = _meant(estimate, outcomes[0], cells)
        for suffix, figure in _estimate(estimate).items():
            row[metric if suffix == "value" else f"{metric}_{suffix}"] = figure
        row[f"{metric}_refusals"] = _over(seeds, f"{metric}_refusals", _plain_mean)
        compared += _compared(row, metric, cells, baselines)
    healths = [cell.health for cell in cells if cell.health is not None]
    if len(healths) == len(cells):
        row |= _health_columns(rate_over_seeds([outcome.values for outcome in healths]), cells)
    row |= {name: _over(seeds, name, _plain_mean) for name in COSTS}
    return row, compared  # which holds this row: no copy of it


def _mean_status(seeds: Sequence[Row]) -> str:
    failed = sum(row["status"].startswith(FAILED) for row in seeds)
    if failed:
        return f"{FAILED}: {failed} of {len(seeds)} seeds"
    return next((row["status"] for row in seeds if row["status"] != DONE), DONE)


def _over(group: Sequence[Row], name: str, combine: Callable[[list[Any]], float]) -> float | None:
    """None unless every seed has the figure."""
    figures = [row.get(name) for row in group]
    return None if None in figures else combine(figures)


def _plain_mean(figures: list[float]) -> float:
    return sum(figures) / len(figures)


def _grouped(cells: Sequence[CellResult], *names: str) -> list[list[CellResult]]:
    groups: dict[tuple[Any, ...], list[CellResult]] = {}
    for cell in cells:
        groups.setdefault(tuple(getattr(cell, name) for name in names), []).append(cell)
    return list(groups.values())
