"""The leaderboard: one row a cell and judge, with intervals, differences from vanilla and what is real.

``build`` turns the outcomes of a run's cells into the public table and ``long_scores`` into scores.csv.
Outcomes are fractions in [0, 1]; the two frames hold percentages and percentage points (tables.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd

from harness.leaderboard.detectable import Comparison
from harness.leaderboard.families import Compared, compare, control, correct, family, percent
from harness.leaderboard.health import MEANINGFUL, NOT_MEANINGFUL
from harness.leaderboard.outcomes import CellResult, TaskOutcome
from harness.leaderboard.statistics import Estimate, mean_over_seeds, rate_over_seeds
from harness.leaderboard.tables import (
    BASELINE,
    COSTS,
    DONE,
    FAILED,
    KEY,
    MEAN,
    METHOD_ORDER,
    SCORE_COLUMNS,
    UNTRAINED,
    Row,
    as_frame,
    columns,
    further_columns,
)
from harness.run import metrics

Paper = Mapping[tuple[str, str, str], Mapping[str, float]]  # (train task, method, judge) -> metric -> percent


def build(
    cells: Iterable[CellResult],
    paper: Paper | None = None,
    *,
    baseline: str = BASELINE,
    detectable: bool = True,
) -> pd.DataFrame:
    """The leaderboard: ``tables.columns``, one row a cell, and over several seeds one with their means.

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
    cells = _sort(cells)
    controls = [cell for cell in cells if cell.method == control(cell.train_task, baseline)]
    baselines = {_find_place(cell): cell for cell in controls}
    further = tuple(dict.fromkeys(outcome.task for cell in cells for outcome in cell.further))
    rows, compared = _make_rows(cells, baselines, (*metrics.names(), *further))
    correct(compared, detectable=detectable)
    _add_reported(rows, paper or {})
    return as_frame(rows, (*columns(), *further_columns(further)))


def _add_reported(rows: Iterable[Row], paper: Paper) -> None:
    """Give each row that did not fail what a paper reports for it."""
    for row in rows:
        if not row["status"].startswith(FAILED):
            figures = paper.get((row["train_task"], row["method"], row["judge"]), {})
            row |= {f"{metric}_paper": figures.get(metric) for metric in metrics.names()}


def _make_rows(
    cells: Sequence[CellResult], baselines: Mapping[Place, CellResult], names: Sequence[str]
) -> tuple[list[Row], list[Compared]]:
    """A row a cell, with one of the means over several seeds; and their differences, not yet corrected."""
    several = {
        group[0].model for group in _group(cells, "model") if len({cell.seed for cell in group} - {None}) > 1
    }
    rows: list[Row] = []
    compared: list[Compared] = []
    for group in _group(cells, "model", "train_task", "method", "judge"):
        seeds = []
        for cell in group:
            row, found = _make_row(cell, baselines, names)
            seeds.append(row)
            compared += found
        rows += seeds
        if group[0].model in several and group[0].train_task != UNTRAINED:
            row, found = _make_mean_row(group, seeds, baselines, names)
            rows.append(row)
            compared += found
    return rows, compared


def long_scores(cells: Iterable[CellResult]) -> pd.DataFrame:
    """Every score that is there, in percent: a row for each task and for each of its categories.

    ``category`` is "" for all documents. ``judge`` is "" for what no judge has seen (utility), whose row then
    stands once for however many judges a run has.
    """
    rows: dict[tuple[str, ...], Row] = {}
    for cell in _sort(cells):
        if cell.failed:
            continue
        judges = {name: cell.judge if metrics.is_judged(name) else "" for name in metrics.names()}
        own = [(cell.outcome(name), judge) for name, judge in judges.items()]
        others = (*cell.cross, *cell.further)
        cross = [(outcome, cell.judge if outcome.labels else "") for outcome in others]
        for outcome, judge in [*own, *cross]:
            if outcome is None:
                continue
            meant = partial(_withhold, outcome=outcome, cells=[cell])
            for category in [None, *dict.fromkeys(name for name in outcome.categories.values() if name)]:
                names = (cell.model, cell.method, cell.train_task, _name_seed(cell))
                key = (*names, outcome.task, outcome.metric, judge, category or "")
                if key not in rows:
                    named = dict(zip(SCORE_COLUMNS, key, strict=False))
                    rows[key] = named | _tabulate(meant(outcome.estimate(category)))
    return as_frame(list(rows.values()), SCORE_COLUMNS)


def _sort(cells: Iterable[CellResult]) -> list[CellResult]:
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


def _find_place(cell: CellResult) -> Place:
    """Where a cell and its baseline stand."""
    return cell.model, cell.train_task, cell.seed, cell.judge


def _name_seed(cell: CellResult) -> str:
    return "" if cell.seed is None else str(cell.seed)


def _make_row(
    cell: CellResult, baselines: Mapping[Place, CellResult], names: Sequence[str]
) -> tuple[Row, list[Compared]]:
    """A row in percentages, not yet rounded, and its differences, not yet corrected."""
    row: Row = {name: getattr(cell, name) for name in (*KEY, "status")} | {"seed": _name_seed(cell)}
    compared: list[Compared] = []
    if not cell.failed:
        row |= {name: cell.training.get(name) for name in COSTS} | _measure_health(cell)
    for metric in names:
        outcome = cell.outcome(metric)
        if outcome is None:
            continue
        estimate = _withhold(outcome.estimate(), outcome, [cell])
        for suffix, figure in _tabulate(estimate).items():
            row[metric if suffix == "value" else f"{metric}_{suffix}"] = figure
        row |= _describe(metric, outcome)
        if metric not in metrics.by_rule():
            row[f"{metric}_refusals"] = percent(outcome.refusals()) if cell.meaningful else None
        compared += _compare_cells(row, metric, [cell], baselines)
    return row, compared


def _describe(name: str, outcome: TaskOutcome) -> Row:
    """What a headline metric's columns say of how it was measured."""
    metric, found = metrics.of(name), Row()
    if metric and metric.task is None:
        found |= {f"{name}_task": outcome.task, f"{name}_metric": outcome.metric}
    if metric and metric.prefilled:
        found[f"{name}_k"] = outcome.prefill_tokens
    return found


def _compare_cells(
    row: Row, metric: str, cells: Sequence[CellResult], baselines: Mapping[Place, CellResult]
) -> list[Compared]:
    """The difference of a row's cells (one a seed) from their baselines, if they have one each."""
    outcomes = [cell.outcome(metric) for cell in cells]
    references = [_find_reference(cell, baselines.get(_find_place(cell)), metric) for cell in cells]
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


def _measure_health(cell: CellResult) -> Row:
    if cell.health is None:
        return {}
    return _health_columns(cell.health.estimate(), [cell])


def _health_columns(estimate: Estimate, cells: Sequence[CellResult]) -> Row:
    found = _tabulate(estimate)
    return {
        "health": found["value"],
        "health_low": found["low"],
        "health_high": found["high"],
        "health_n": found["n"],
        "health_of": cells[0].health.task if cells[0].health else "",
        "safe_rates": MEANINGFUL if all(cell.meaningful for cell in cells) else NOT_MEANINGFUL,
    }


def _withhold(estimate: Estimate, outcome: TaskOutcome, cells: Iterable[CellResult]) -> Estimate:
    """The estimate; of a safe rate without its figures where one of the checkpoints hardly answers."""
    return (
        estimate
        if all(cell.meaningful for cell in cells) or not outcome.is_safe_rate
        else no_figures(estimate)
    )


def no_figures(estimate: Estimate) -> Estimate:
    """The counts alone."""
    return replace(estimate, value=None, low=None, high=None)


def _find_reference(cell: CellResult, baseline: CellResult | None, metric: str) -> TaskOutcome | None:
    """The baseline's outcome of the same task and metric, for what is not the baseline itself."""
    outcome = cell.outcome(metric)
    reference = baseline.outcome(metric) if baseline and baseline is not cell else None
    if outcome is None or reference is None or baseline is None:
        return None
    if outcome.is_safe_rate and not (cell.meaningful and baseline.meaningful):
        return None
    same = (reference.task, reference.metric) == (outcome.task, outcome.metric)
    return reference if same else None


def _tabulate(estimate: Estimate) -> Row:
    return {
        "value": percent(estimate.value),
        "low": percent(estimate.low),
        "high": percent(estimate.high),
        "n": estimate.n,
        "unjudged": estimate.unjudged,
    }


def _make_mean_row(
    cells: Sequence[CellResult],
    seeds: Sequence[Row],
    baselines: Mapping[Place, CellResult],
    names: Sequence[str],
) -> tuple[Row, list[Compared]]:
    """One method over its seeds, from its cells and their rows. A figure that a seed lacks stays empty: a
    mean over fewer seeds is not comparable."""
    if len(cells) == 1:
        row = seeds[0] | {"seed": MEAN}
        return row, [one for metric in names for one in _compare_cells(row, metric, cells, baselines)]
    row = {name: seeds[0][name] for name in KEY} | {"seed": MEAN, "status": _combine_status(seeds)}
    if row["status"].startswith(FAILED):
        return row, []
    compared: list[Compared] = []
    for metric in names:
        if first := cells[0].outcome(metric):
            row |= _describe(metric, first)
        outcomes = [outcome for cell in cells if (outcome := cell.outcome(metric)) is not None]
        if len(outcomes) < len(cells):
            continue
        values = [outcome.values for outcome in outcomes]
        binary = all(outcome.binary for outcome in outcomes)
        estimate = rate_over_seeds(values) if binary else mean_over_seeds(values)
        estimate = _withhold(estimate, outcomes[0], cells)
        for suffix, figure in _tabulate(estimate).items():
            row[metric if suffix == "value" else f"{metric}_{suffix}"] = figure
        row[f"{metric}_refusals"] = _combine(seeds, f"{metric}_refusals", _average)
        compared += _compare_cells(row, metric, cells, baselines)
    healths = [cell.health for cell in cells if cell.health is not None]
    if len(healths) == len(cells):
        row |= _health_columns(rate_over_seeds([outcome.values for outcome in healths]), cells)
    row |= {name: _combine(seeds, name, _average) for name in COSTS}
    return row, compared  # which holds this row: no copy of it


def _combine_status(seeds: Sequence[Row]) -> str:
    failed = sum(row["status"].startswith(FAILED) for row in seeds)
    if failed:
        return f"{FAILED}: {failed} of {len(seeds)} seeds"
    return next((row["status"] for row in seeds if row["status"] != DONE), DONE)


def _combine(group: Sequence[Row], name: str, combine: Callable[[list[Any]], float]) -> float | None:
    """None unless every seed has the figure."""
    figures = [row.get(name) for row in group]
    return None if None in figures else combine(figures)


def _average(figures: list[float]) -> float:
    return sum(figures) / len(figures)


def _group(cells: Sequence[CellResult], *names: str) -> list[list[CellResult]]:
    groups: dict[tuple[Any, ...], list[CellResult]] = {}
    for cell in cells:
        groups.setdefault(tuple(getattr(cell, name) for name in names), []).append(cell)
    return list(groups.values())
