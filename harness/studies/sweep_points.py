"""The points of a sweep, from the files of its run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from harness.config import RunConfig
from harness.leaderboard import build, epochs, tables
from harness.leaderboard import collect as run_results
from harness.models import checkpoints
from harness.run import metrics, plan, run_folder
from harness.run.resolve import resolve

DEPTHS, BUDGET = "prefill-depth", "budget"  # the sweeps whose points are no rows of the leaderboard
REFERENCES = (plan.SEED, tables.BASELINE)
METRICS = metrics.names()
MEASURES = tuple(  # of a point, named as in leaderboard.csv
    name
    for name in tables.columns()
    if name.partition("_")[0] in METRICS and "_delta" not in name and not name.endswith("_p")
)

Point = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """Where a row of the run stands in the sweep."""

    method: str
    value: Any


def collect(name: str, axis: str, out: Path, places: Mapping[str, Place]) -> dict[str, Any]:
    """What the sweep ``name`` found, as JSON values; percentages as in the leaderboard.

    ``points``: one a train task, judge, seed ("mean" over several) and row, with ``method``, ``value`` (of a
    budget: ``learning_rate`` and ``epoch``) and MEASURES (of a depth: JSR's alone). ``references``: the seed
    model and vanilla, likewise.
    """
    config = run_folder.stored_config(out)
    frame = tables.read(out)
    rows = _rows(frame)
    references: list[Point] = []
    if name == DEPTHS:
        points = _by_depth(config, rows)
    else:
        points = _by_epoch(config, out, places) if name == BUDGET else _placed(rows, places)
        lengths = _lengths(config, (place.value for place in places.values()))
        points = [point | lengths.get(point.get("value"), {}) for point in points]
        references = [_point(row, row["method"]) for row in rows if row["method"] in REFERENCES]
        references = [point for point in references if point["row"] not in places]
    return {
        "sweep": name,
        "axis": axis,
        "model": config.base_model,
        "judges": list(config.judges),
        "notes": frame.attrs["notes"],
        "points": points,
        "references": references,
    }


def _rows(frame: pd.DataFrame) -> list[Point]:
    found: list[Point] = json.loads(frame.to_json(orient="records"))
    return found


def _point(row: Point, method: str, **coordinates: Any) -> Point:
    named = {name: row[name] for name in ("train_task", "judge", "seed")} | {"row": row["method"]}
    measured = {name: row[name] for name in MEASURES}
    return named | {"method": method} | coordinates | measured | {"status": row["status"]}


def _placed(rows: Iterable[Point], places: Mapping[str, Place]) -> list[Point]:
    """The points of each value, in the order of the values."""
    points = [
        _point(row, places[row["method"]].method, value=places[row["method"]].value)
        for row in rows
        if row["method"] in places
    ]
    return _in_order(points, places)


def _in_order(points: Iterable[Point], places: Mapping[str, Place]) -> list[Point]:
    """By train task, as they come, then row, as in ``places``; else as they come."""
    tasks: dict[str, int] = {}
    ranked = [(tasks.setdefault(point["train_task"], len(tasks)), point) for point in points]
    order = {row: rank for rank, row in enumerate(places)}
    return [point for _, point in sorted(ranked, key=lambda pair: (pair[0], order[pair[1]["row"]]))]


def _by_epoch(config: RunConfig, out: Path, places: Mapping[str, Place]) -> list[Point]:
    cells = [cell for cell in resolve(config).cells() if cell.kind == "trained" and cell.method in places]
    failures = run_folder.read_failures(out)
    points = []
    for epoch, found in epochs.ends(config, cells):
        for row in _rows(build.build(run_results.collect(config, out, found, failures))):
            place = places[row["method"]]
            points.append(_point(row, place.method, learning_rate=place.value, epoch=epoch))
    return _in_order(points, places)


def _by_depth(config: RunConfig, rows: Iterable[Point]) -> list[Point]:
    family = resolve(config).benchmark(config.safety.prefill_task).path.parent
    further = [resolve(config).benchmark(task) for task in plan.further(config)]
    depths = {task.depth: task.name for task in further if task.depth and task.path.parent == family}
    suffixes = ("", "_low", "_high", "_n", "_unjudged", "_refusals")
    points = []
    for row in rows:
        for depth, task in sorted(depths.items()):
            # No column where no cell has an outcome
            measured = {f"jsr{suffix}": row.get(f"{task}{suffix}") for suffix in suffixes}
            named = {name: row[name] for name in ("train_task", "judge", "seed")}
            named |= {"row": row["method"], "method": config.row(row["method"]).method}
            points.append(named | {"value": depth, "task": task} | measured | {"status": row["status"]})
    return points


def _lengths(config: RunConfig, values: Iterable[Any]) -> dict[Any, dict[str, int]]:
    """Of each text how many tokens it has under the base model's tokenizer."""
    texts = [value for value in values if isinstance(value, str)]
    if not texts:
        return {}
    tokenizer = checkpoints.load_tokenizer(checkpoints.tokenizer_folder(config.model))
    return {text: {"tokens": len(tokenizer(text, add_special_tokens=False)["input_ids"])} for text in texts}


def shown(points: Iterable[Point], train_task: str, judge: str) -> list[Point]:
    """The points of one table or figure: over several seeds their means."""
    mine = [point for point in points if (point["train_task"], point["judge"]) == (train_task, judge)]
    return tables.means(mine)
