"""``harness analyze kl``: Fig. 3 and eq. 4 of the LookAhead Tuning paper, on any run.

By checkpoint the mean KL(base || tuned) at each answer token and over the first few, with 95 % intervals over
the prompts; and over the checkpoints its correlation with their safe rates. Written to the run's ``analysis``
folder, as numbers and as figures.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text
from scipy.stats import norm, pearsonr, spearmanr

from harness.analyses import divergence, divergence_figures
from harness.analyses.divergence import Settings
from harness.analyses.shared import FOLDER, SAFE_RATES, chosen_judge, mean_of_all, print_table, safety_tasks
from harness.config import RunConfig, trust
from harness.console.progress import Display, Reporter
from harness.console.terminal import bare_table
from harness.contracts import HarnessError
from harness.figures import charts
from harness.generation import splits
from harness.leaderboard import scores
from harness.leaderboard.spread import ALPHA
from harness.run import run_folder
from harness.run.context import RunContext
from harness.run.plan import Cell
from harness.run.resolve import resolve
from harness.storage.files import Stage, read_json, write_json_atomic, write_text_atomic
from harness.text import csv_cell

VERSION = 2
SHOWN = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)  # positions in a terminal; the files have all
FEWEST = 4  # checkpoints that a correlation's interval takes

Row = dict[str, Any]


def kl(
    out: Path,
    settings: Settings,
    console: Console,
    *,
    judge: str | None = None,
    batch_size: int | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Row:
    """Measure what is not measured yet in the run ``out``, write ``analysis/kl.{json,csv,svg,pdf,png}`` and
    ``analysis/kl-safety.*``, and return the record that kl.json holds.

    - ``rows``: by checkpoint, its ``positions`` and ``first`` k tokens (nats, interval, prompts) and its safe
      rates (percent, by ``judge``: default the run's first);
    - ``average``: by train task and method, over the seeds; ``correlations``; ``missing``; ``notes``.

    ``overrides``: the run's keys that this command names itself (a model, data), as a run of somebody else's
    needs them (trust.py). Raises HarnessError where nothing can be compared, UsageError for a judge that is
    none of the run's.
    """
    config = run_folder.taken_config(out, overrides or {}, trust.RESPOND)
    judge = chosen_judge(config, judge)
    ctx = divergence.make_run_context(config, out, settings)
    with run_folder.lock(out):
        cells = divergence.list_cells(config)
        if not cells:
            raise HarnessError(f"{out}: this run has the base model alone, and nothing to compare with it")
        size = batch_size or config.responses.batch_size
        found, missing = _measure(ctx, settings, size, console)
        rates = {cell: _read_rates(config, out, cell, judge) for cell in found}
        seed_rates = _read_rates(config, out, resolve(config).cells()[0], judge)
        name = settings.name
        inputs = _list_inputs(found, rates, missing) | {"seed": seed_rates, "judge": judge}
        whole = Stage(out / FOLDER, name, inputs, _list_outputs(name))
        if not whole.done():
            record = _make_record(config, settings, judge, found, rates, missing)
            whole.run(lambda scratch: _write(scratch, name, record, seed_rates))
        result: Row = read_json(out / FOLDER / f"{name}.json")
    return result


def _measure(
    ctx: RunContext, settings: Settings, size: int, console: Console
) -> tuple[dict[Cell, Stage], dict[Cell, str]]:
    """What ``divergence.measure`` finds, with its progress shown. Raises HarnessError for nothing."""
    with Display(console, 1, "divergence") as display:
        ctx.reporter = Reporter(display.show)
        found, missing = divergence.measure(ctx, settings, size)
    if not found:
        raise HarnessError(next(iter(missing.values())))
    return found, missing


def _list_inputs(found: Mapping[Cell, Stage], rates: Mapping[Cell, Any], missing: Mapping[Cell, str]) -> Row:
    """What the record is made of, by which it is known to be current."""
    return {
        "version": VERSION,
        "cells": {str(cell.folder): one.identity for cell, one in found.items()},
        "rates": {str(cell.folder): given for cell, given in rates.items()},
        "missing": {str(cell.folder): reason for cell, reason in missing.items()},
    }


def _list_outputs(name: str) -> list[str]:
    """The files of an analysis, in its folder."""
    figures = [f"{stem}.{kind}" for stem in (name, f"{name}-safety") for kind in charts.FORMATS]
    return [f"{name}.json", f"{name}.csv", *figures]


def _read_rates(config: RunConfig, out: Path, cell: Cell, judge: str) -> dict[str, float | None]:
    """A cell's safe rates in percent, None where they are not there."""
    found: dict[str, float | None] = {}
    scope = config.safety.judged_scope
    for metric, task in safety_tasks(config).items():
        try:
            value = scores.meant(cell, out / cell.folder, task, judge, metric, scope).estimate().value
        except HarnessError:
            value = None
        found[metric] = None if value is None else round(100 * value, 2)
    return found


# --- figures ---------------------------------------------------------------------------------------


def _make_record(
    config: RunConfig,
    settings: Settings,
    judge: str,
    found: Mapping[Cell, Stage],
    rates: Mapping[Cell, dict[str, float | None]],
    missing: Mapping[Cell, str],
) -> Row:
    rows = [
        {
            **_name(cell),
            **divergence.read_summary(one),
            **rates[cell],
        }
        for cell, one in found.items()
    ]
    of = "harmful answers" if settings.answers == "harmful" else "the base model's own answers"
    notes = [
        f"KL(base || tuned) of the next token, nats; both read the same {of}, and neither writes.",
        f"Requests: {divergence.find_task(config, settings.answers)}; each model is asked as it is scored "
        "(PTST: under its safety prompt).",
        f"Weights {settings.dtype}, divergence float32. Intervals: 95 %, BCa bootstrap over the prompts.",
        f"Safe rates: percent, by {judge}.",
        "Correlations: over the tuned checkpoints, without the base model (KL 0). Intervals (Fisher's z)",
        "take the checkpoints for independent, which the methods and seeds of one run are not.",
        *filter(None, [splits.note(config.responses)]),
    ]
    return {
        "model": config.base_model,
        **asdict(settings),
        "task": divergence.find_task(config, settings.answers),
        "judge": judge,
        "unit": "nats",
        "rows": rows,
        "means": average(rows),
        "correlations": correlations(rows),
        "missing": [{**_name(cell), "reason": reason} for cell, reason in missing.items()],
        "notes": notes,
    }


def _name(cell: Cell) -> Row:
    """``train_task`` and ``seed`` are None for a checkpoint of the user's own."""
    return {"train_task": cell.train_task, "method": cell.method, "seed": cell.seed}


def average(rows: Sequence[Row]) -> list[Row]:
    """One row a train task and method: plain means over its ``seeds``, and how far these lie apart."""
    groups: dict[tuple[str | None, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["train_task"], row["method"]), []).append(row)
    return [
        {
            "train_task": task,
            "method": method,
            "seeds": [row["seed"] for row in group],
            "n": max(row["n"] for row in group),
            "positions": _combine(group, "positions", "position"),
            "first": _combine(group, "first", "tokens"),
            **{metric: mean_of_all([row[metric] for row in group]) for metric in SAFE_RATES},
        }
        for (task, method), group in groups.items()
    ]


def _combine(group: Sequence[Row], name: str, key: str) -> list[Row]:
    found = []
    for same in zip(*(row[name] for row in group), strict=True):
        values = [one["value"] for one in same if one["value"] is not None]
        found.append(
            {
                key: same[0][key],
                "value": mean_of_all([one["value"] for one in same]),
                "lowest": min(values, default=None),
                "highest": max(values, default=None),
            }
        )
    return found


def correlations(rows: Sequence[Row]) -> list[Row]:
    """Of the mean KL over the first k tokens with RSR and JSR, over all checkpoints (``train_task`` None)
    and, where there are several, within each train task. Eq. 4 says that it is negative."""
    tasks = list(dict.fromkeys(row["train_task"] for row in rows if row["train_task"] is not None))
    groups: list[tuple[str | None, list[Row]]] = [(None, list(rows))]
    if len(tasks) > 1:
        groups += [(task, [row for row in rows if row["train_task"] == task]) for task in tasks]
    found = []
    for (task, group), metric in itertools.product(groups, SAFE_RATES):
        for place, first in enumerate(rows[0]["first"] if rows else ()):
            pairs = [(row["first"][place]["value"], row[metric]) for row in group if row[metric] is not None]
            found.append(
                {"train_task": task, "metric": metric, "tokens": first["tokens"], **correlate(pairs)}
            )
    return found


def correlate(pairs: Sequence[tuple[float, float]]) -> Row:
    """``spearman`` and ``pearson``, each with its 95 % interval by Fisher's z (Spearman's with the variance
    of Bonett and Wright 2000, Psychometrika 65:23-28), and ``n``. None with a ``reason`` where undefined; a
    perfect correlation has no interval."""
    n = len(pairs)
    nothing: Row = {"spearman": None, "pearson": None, "n": n}
    if n < FEWEST:
        return {**nothing, "reason": f"needs {FEWEST} checkpoints, has {n}"}
    divergences, rates = (np.array(side) for side in zip(*pairs, strict=True))
    for side, what in ((divergences, "KL"), (rates, "safe rate")):
        if np.ptp(side) == 0:
            return {**nothing, "reason": f"all {n} checkpoints have the same {what}"}
    spearman, pearson = float(spearmanr(divergences, rates)[0]), float(pearsonr(divergences, rates)[0])
    return {
        "spearman": {"value": spearman, **_fisher(spearman, n, 1 + spearman**2 / 2)},
        "pearson": {"value": pearson, **_fisher(pearson, n, 1.0)},
        "n": n,
        "reason": None,
    }


def _fisher(r: float, n: int, variance: float) -> Row:
    if abs(r) > 1 - 1e-12:
        return {"low": None, "high": None}
    reach = norm.ppf(1 - ALPHA / 2) * math.sqrt(variance / (n - 3))
    return {"low": math.tanh(math.atanh(r) - reach), "high": math.tanh(math.atanh(r) + reach)}


# --- files -----------------------------------------------------------------------------------------


def _write(folder: Path, name: str, record: Row, seed_rates: Mapping[str, float | None]) -> None:
    write_json_atomic(folder / f"{name}.json", record)
    write_text_atomic(folder / f"{name}.csv", _csv(record))
    divergence_figures.curves(record, charts.files(folder, name))
    divergence_figures.against_safety(record, seed_rates, charts.files(folder, f"{name}-safety"))


def _csv(record: Row) -> str:
    """Long: a row for each checkpoint and position, and for each of its means over the first tokens."""
    columns = ("train_task", "method", "seed", "figure", "tokens", "value", "low", "high", "n")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in record["rows"]:
        for figure, key in (("positions", "position"), ("first", "tokens")):
            for one in row[figure]:
                kind = "position" if figure == "positions" else "first"
                values = (one[name] for name in ("value", "low", "high", "n"))
                place = (row["train_task"], row["method"], row["seed"], kind, one[key])
                writer.writerow(map(csv_cell, (*place, *values)))
    return text.getvalue()


def show(record: Row, out: Path, console: Console) -> None:
    """Print what ``kl`` found, made for 100 columns."""

    def say(text: str, style: str = "") -> None:
        console.print(Text(text, style=style), soft_wrap=True)

    say(f"Divergence from the base model {record['model']}: {record['answers']} answers", "bold")
    for task in dict.fromkeys(row["train_task"] for row in record["rows"]):
        say(f"\ntrained on {task}\n" if task else "\ncheckpoints\n", "bold")
        mine = [row for row in record["means"] if row["train_task"] == task]
        print_table(_means_table(record, mine), console)
        say("\nby answer token\n")
        print_table(_positions_table(mine), console)
    say("\ncorrelation of the mean KL over the first k tokens with the safe rates\n", "bold")
    print_table(_correlations_table(record["correlations"]), console)
    for reason in dict.fromkeys(one["reason"] for one in record["correlations"] if one["reason"]):
        say(f"-: {reason}")
    for reason in dict.fromkeys(gap["reason"] for gap in record["missing"]):
        gone = [_place(gap) for gap in record["missing"] if gap["reason"] == reason]
        say(f"{', '.join(gone)} missing: {reason}", "red")
    say("")
    if any(len(row["seeds"]) > 1 for row in record["means"]):
        say("Means over the seeds; below them the lowest and the highest seed's.")
    for note in record["notes"]:
        say(note)
    name = Settings(record["answers"]).name
    files = [f"{name}.json", f"{name}.csv", f"{name}.svg", f"{name}-safety.svg"]
    say("Files: " + ", ".join(str(out / FOLDER / file) for file in files))


def _place(row: Row) -> str:
    return " ".join(str(row[name]) for name in ("train_task", "method", "seed") if row[name] is not None)


def _table(*headings: str) -> Table:
    table = bare_table()
    table.add_column(headings[0], overflow="fold", max_width=20)
    for heading in headings[1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _means_table(record: Row, rows: Sequence[Row]) -> Table:
    own = {(row["train_task"], row["method"]): row for row in record["rows"]}
    tokens = [one["tokens"] for one in rows[0]["first"]]
    table = _table("method", *(f"first {k}" for k in tokens), "prompts", "RSR", "JSR")
    for row in rows:
        spread = row["first"] if len(row["seeds"]) > 1 else own[row["train_task"], row["method"]]["first"]
        ends = ("lowest", "highest") if len(row["seeds"]) > 1 else ("low", "high")
        cells = [
            Text(_nats(one["value"])).append(f"\n{_range(apart[ends[0]], apart[ends[1]])}", style="dim")
            for one, apart in zip(row["first"], spread, strict=True)
        ]
        rates = ["-" if row[name] is None else f"{row[name]:.1f}" for name in SAFE_RATES]
        table.add_row(Text(row["method"]), *cells, str(row["n"]), *rates)
    return table


def _positions_table(rows: Sequence[Row]) -> Table:
    places = [one["position"] for one in rows[0]["positions"] if one["position"] in SHOWN]
    table = _table("method", *map(str, places))
    for row in rows:
        values = {one["position"]: one["value"] for one in row["positions"]}
        table.add_row(Text(row["method"]), *(_nats(values[place]) for place in places))
    return table


def _correlations_table(rows: Sequence[Row]) -> Table:
    table = _table("checkpoints", "rate", "k", "n", "Spearman", "95 %", "Pearson", "95 %")
    for row in rows:
        cells = []
        for name in ("spearman", "pearson"):
            one = row[name]
            cells += ["-", ""] if one is None else [f"{one['value']:+.2f}", _signed(one["low"], one["high"])]
        name = row["train_task"] or "all"
        table.add_row(Text(name), row["metric"].upper(), str(row["tokens"]), str(row["n"]), *cells)
    return table


def _nats(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if value < 10 else f"{value:.1f}"


def _range(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{_nats(low)}–{_nats(high)}"


def _signed(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:+.2f} to {high:+.2f}"
