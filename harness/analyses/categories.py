"""``harness analyze categories``: where a method is less safe, by category of harm (HEx-PHI has 11).

Safe rates by category and method, and which of them differ from vanilla's on the same requests: exact
McNemar by document, over several seeds the leaderboard's test of documents crossed with seeds; then Holm
over a metric's categories within the leaderboard's families (``families.py``). Written to the run's
``analysis`` folder as numbers and as heat maps.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.analyses.shared import FOLDER, SAFE_RATES, chosen_judge, mean_of_all, safety_tasks
from harness.config import RunConfig
from harness.contracts import HarnessError
from harness.figures import charts, looks
from harness.leaderboard import families, scores
from harness.leaderboard.outcomes import TaskOutcome
from harness.leaderboard.statistics import (
    Difference,
    difference_over_seeds,
    holm,
    paired_rate_difference,
    rate,
)
from harness.leaderboard.tables import ALPHA, BASELINE, METHOD_ORDER, UNTRAINED, trained_on
from harness.run import plan, run_folder
from harness.run.plan import BASE_MODEL, Cell, shown_method
from harness.run.resolve import resolve
from harness.storage.files import Stage, content_hash, read_json, write_json_atomic, write_text_atomic
from harness.text import csv_cell

VERSION = 4
COLUMNS = (
    *("metric", "train_task", "method", "seed", "category", "value", "low", "high", "n", "unjudged"),
    *("delta", "delta_low", "delta_high", "delta_p"),
)

Row = dict[str, Any]
Place = tuple[str, str, int | None, str]  # train task ("": elsewhere), method, seed, metric
Outcomes = dict[Place, TaskOutcome]


def categories(out: Path, *, judge: str | None = None) -> Row:
    """Write ``analysis/categories.{json,csv}`` and a heat map a train task and metric, and return the record
    that categories.json holds. Rates in percent, differences in percentage points.

    - ``rows``: by metric, train task, method, seed and category; ``delta*``: against vanilla of that
      train task and seed on the requests judged in both, ``delta_p`` after Holm. The base model stands
      under every train task and seed; a checkpoint that was trained elsewhere stands apart ("" and null),
      against the base model;
    - ``table``: the same over the seeds: mean, lowest, highest, the mean difference with its interval and p
      after Holm, and ``changed``: "higher" or "lower" where it is real (p < 0.05);
    - ``missing``: what has no verdicts, and why.

    Raises HarnessError where no request has a category, UsageError for a judge that is none of the run's.
    """
    config = run_folder.stored_config(out)
    judge = chosen_judge(config, judge)
    with run_folder.lock(out):
        outcomes, missing = collect(config, out, judge)
        if not any(category for one in outcomes.values() for category in one.categories.values()):
            reason = next(iter(missing.values()), "the requests of this run's safety tasks have none")
            raise HarnessError(f"{out}: no safe rate by category: {reason}")
        names = [file_stem(task, metric) for task in _train_tasks(config) for metric in SAFE_RATES]
        outputs = ["categories.json", "categories.csv"]
        outputs += [f"{name}.{kind}" for name in names for kind in charts.FORMATS]
        given = [
            [*key, content_hash(one.values), content_hash(one.categories)] for key, one in outcomes.items()
        ]
        inputs = {"version": VERSION, "judge": judge, "outcomes": given, "missing": missing}
        stage = Stage(out / FOLDER, "categories", inputs, outputs)
        if not stage.done():
            rows = compared(outcomes)
            gaps = [{"cell": cell, "reason": reason} for cell, reason in missing.items()]
            record = _record(config, judge, rows, pooled(rows, outcomes)) | {"missing": gaps}
            stage.run(lambda scratch: _write(scratch, config, record))
        result: Row = read_json(out / FOLDER / "categories.json")
    return result


def _record(config: RunConfig, judge: str, rows: list[Row], table: list[Row]) -> Row:
    return {
        "model": config.base_model,
        "judge": judge,
        "tasks": safety_tasks(config),
        "comparisons": {metric: _comparisons(rows, metric) for metric in SAFE_RATES},
        "rows": rows,
        "table": table,
    }


def limited(record: Row, metric: str | None) -> Row:
    """The record with one metric's rows; all of it for None."""
    if metric is None:
        return record
    parts = {name: [row for row in record[name] if row["metric"] == metric] for name in ("rows", "table")}
    return {**record, **parts}


def collect(config: RunConfig, out: Path, judge: str) -> tuple[Outcomes, dict[str, str]]:
    """A run's safety outcomes, and why cells have none (by folder)."""
    found: Outcomes = {}
    missing: dict[str, str] = {}
    reader = scores.Reader()
    for cell in resolve(config).cells():
        for metric, task in safety_tasks(config).items():
            try:
                scope = config.safety.judged_scope
                outcome = scores.meant(cell, out / cell.folder, task, judge, metric, scope, reader)
            except HarnessError as error:
                missing[str(cell.folder)] = str(error)
                continue
            for train_task, seed in _places(config, cell):
                found[train_task, cell.method, seed, metric] = outcome
    return found, missing


def _places(config: RunConfig, cell: Cell) -> Iterator[tuple[str, int | None]]:
    """The train tasks and seeds that a cell is compared under."""
    elsewhere = plan.elsewhere(config)
    if cell.method in elsewhere or (cell.kind == "seed" and elsewhere):
        yield UNTRAINED, None
    if cell.method in elsewhere:
        return
    declared = config.trained_on.get(cell.method, cell.train_task)
    for train_task in config.train_tasks if declared is None else (declared,):
        for seed in config.seeds if cell.seed is None else (cell.seed,):
            yield train_task, seed


def _train_tasks(config: RunConfig) -> list[str]:
    return [*config.train_tasks, *([UNTRAINED] if plan.elsewhere(config) else [])]


def file_stem(train_task: str, metric: str) -> str:
    return f"categories-{train_task or 'elsewhere'}-{metric}"


def compared(outcomes: Outcomes) -> list[Row]:
    """A row for each outcome and category, with its difference from vanilla; rates in percent."""
    order = {name: rank for rank, name in enumerate(METHOD_ORDER)}
    tasks = sorted(dict.fromkeys(key[0] for key in outcomes), key=lambda task: task == UNTRAINED)

    def position(key: Place) -> tuple[int, ...]:
        task, method, seed, metric = key
        return SAFE_RATES.index(metric), tasks.index(task), order.get(method, len(order)), seed or 0

    rows = []
    for key in sorted(outcomes, key=position):
        task, method, seed, metric = key
        names = {"metric": metric, "train_task": task, "method": method, "seed": seed}
        control = families.control(task)
        baseline = outcomes.get((task, control, seed, metric)) if method != control else None
        own = _by_category(outcomes[key])
        reference = _by_category(baseline) if baseline else {}
        for category, values in own.items():
            rows.append({**names, "category": category, **_cell(values, reference.get(category, {}))})
    for family in _families(rows, "metric", "seed"):
        _correct(family)
    return rows


def _families(rows: Iterable[Row], *names: str) -> list[list[Row]]:
    """The rows that are corrected together, among those that are equal in ``names``."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(
            (families.family(row["method"], row["train_task"]), *(row[name] for name in names)), []
        ).append(row)
    return list(found.values())


def _correct(family: Sequence[Row]) -> None:
    for row, p in zip(family, holm([row["delta_p"] for row in family]), strict=True):
        row["delta_p"] = p


def _by_category(outcome: TaskOutcome) -> dict[str, dict[str, float | None]]:
    """The outcome's values by category and document; a document without a category is left out."""
    found: dict[str, dict[str, float | None]] = {}
    for document, category in outcome.categories.items():
        if category is not None:
            found.setdefault(category, {})[document] = outcome.values[document]
    return found


def _cell(values: Mapping[str, float | None], reference: Mapping[str, float | None]) -> Row:
    own = rate(values.values())
    return {
        "value": _percent(own.value),
        "low": _percent(own.low),
        "high": _percent(own.high),
        "n": own.n,
        "unjudged": own.unjudged,
        **_delta(paired_rate_difference(values, reference)),
    }


def _delta(delta: Difference) -> Row:
    return {
        "delta": _percent(delta.value),
        "delta_low": _percent(delta.low),
        "delta_high": _percent(delta.high),
        "delta_p": delta.p,
    }


def _percent(fraction: float | None) -> float | None:
    return None if fraction is None else round(100 * fraction, 2)


def _comparisons(rows: Sequence[Row], metric: str) -> int:
    """How many tests Holm corrects for, in the largest family."""
    tested = [row for row in rows if row["metric"] == metric and row["delta_p"] is not None]
    return max((len(family) for family in _families(tested, "seed")), default=0)


def pooled(rows: Sequence[Row], outcomes: Outcomes) -> list[Row]:
    """One row a metric, train task, method and category: over its ``seeds``."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        key = tuple(row[name] for name in ("metric", "train_task", "method", "category"))
        groups.setdefault(key, []).append(row)
    found = []
    for (metric, task, method, category), group in groups.items():
        values = [row["value"] for row in group if row["value"] is not None]
        names = {"metric": metric, "train_task": task, "method": method, "category": category}
        found.append(
            {
                **names,
                "seeds": [row["seed"] for row in group],
                "value": _mean([row["value"] for row in group]),
                "lowest": min(values, default=None),
                "highest": max(values, default=None),
                "n": min(row["n"] for row in group),
                "unjudged": sum(row["unjudged"] for row in group),
                **_over_seeds(group, outcomes),
            }
        )
    for family in _families([row for row in found if len(row["seeds"]) > 1], "metric"):
        _correct(family)
    return [row | {"changed": _changed(row)} for row in found]


def _over_seeds(group: Sequence[Row], outcomes: Outcomes) -> Row:
    """The difference from vanilla over a group's seeds; p of several seeds is not adjusted yet."""
    if len(group) == 1:
        return {name: group[0][name] for name in ("delta", "delta_low", "delta_high", "delta_p")}
    task, method, metric = (group[0][name] for name in ("train_task", "method", "metric"))
    category = group[0]["category"]
    pairs = [
        [outcomes.get((task, name, row["seed"], metric)) for row in group] for name in (method, BASELINE)
    ]
    if method == BASELINE or None in pairs[1]:
        return _delta(Difference(None, None, None, None, 0))
    own, reference = ([_by_category(one)[category] for one in side if one] for side in pairs)
    return _delta(difference_over_seeds(own, reference, rates=True))


def _mean(values: Sequence[float | None]) -> float | None:
    found = mean_of_all(values)
    return None if found is None else round(found, 2)


def _changed(row: Row) -> str | None:
    if row["delta_p"] is None or row["delta_p"] >= ALPHA:
        return None
    return "higher" if row["delta"] > 0 else "lower"


# --- files -----------------------------------------------------------------------------------------


def _write(folder: Path, config: RunConfig, record: Row) -> None:
    write_json_atomic(folder / "categories.json", record)
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: csv_cell(value) for name, value in row.items()} for row in record["rows"])
    write_text_atomic(folder / "categories.csv", text.getvalue())
    for task in _train_tasks(config):
        for metric in SAFE_RATES:
            title = f"{metric.upper()} by category (%), {trained_on({'train_task': task})}"
            heat_map(grid_of(record, task, metric), title, charts.files(folder, file_stem(task, metric)))


def grid_of(record: Row, task: str, metric: str) -> dict[str, dict[str, Row]]:
    """The table's rows of a train task and metric, by category and method."""
    found: dict[str, dict[str, Row]] = {}
    for row in record["table"]:
        if (row["train_task"], row["metric"]) == (task, metric):
            found.setdefault(row["category"], {})[row["method"]] = row
    return found


def heat_map(grid: Mapping[str, Mapping[str, Row]], title: str, paths: Sequence[Path]) -> None:
    """Categories down, methods across, a safe rate in each cell: light is safe, and so it is in grey."""
    methods = list(dict.fromkeys(method for cells in grid.values() for method in cells))
    size = (3.2 + 0.75 * max(1, len(methods)), 1.8 + 0.36 * max(1, len(grid)))
    figure, axes = charts.canvas(title, "", "", size=size)
    axes.grid(visible=False)
    values = [[_shade(cells.get(method)) for method in methods] for cells in grid.values()]
    if values:
        axes.imshow(values, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    axes.set_xticks(range(len(methods)), [*map(shown_method, methods)], rotation=35, ha="right", fontsize=8)
    axes.set_yticks(range(len(grid)), list(grid), fontsize=8)
    for y, cells in enumerate(grid.values()):
        for x, method in enumerate(methods):
            row = cells.get(method)
            ink = looks.BLACK if math.isnan(_shade(row)) else looks.CELL_INK[_shade(row) > 55]
            axes.text(x, y, shown_rate(row), ha="center", va="center", fontsize=7.5, color=ink)
    control = BASELINE if BASELINE in methods else BASE_MODEL
    axes.set_xlabel(f"* a difference from {control}, with all comparisons counted", fontsize=7)
    charts.save(figure, *paths)


def _shade(row: Row | None) -> float:
    return float("nan") if row is None or row["value"] is None else float(row["value"])


def shown_rate(row: Row | None) -> str:
    if row is None or row["value"] is None:
        return "-"
    return f"{row['value']:.1f}{'*' if row['changed'] else ''}"
