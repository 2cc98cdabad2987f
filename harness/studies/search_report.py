"""How ``harness tune`` is recorded, drawn and printed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.console.terminal import print_whole, say
from harness.figures import charts, looks
from harness.figures.labels import Label, place_labels
from harness.leaderboard.tables import BASELINE, DONE, STAR, as_csv, columns, mark, one_decimal
from harness.run import metrics
from harness.run.plan import SEED, shown_method
from harness.storage import records
from harness.storage.files import write_json_atomic, write_text_atomic
from harness.studies.search_trials import KEYS, TRIALS, Floor, Row, Search, nearest

FIGURES = tuple(
    name for name in columns() if name.partition("_")[0] in metrics.names()
)  # as in leaderboard.csv


def record(
    search: Search,
    settings: Sequence[Row],
    front: Sequence[str],
    floor: Floor,
    limit: float,
    chosen: Row | None,
    final: Mapping[str, Row],
) -> Row:
    """What ``tune.json`` holds: JSON values, percentages named as in leaderboard.csv."""
    config, near = search.config, None if chosen else nearest(settings, floor)
    tried = [
        {"row": row["row"], "method": row["method"], KEYS[row["method"]]: row["value"]}
        | {"trial": row["trial"], "front": row["row"] in front}
        | _figures(row)
        for row in settings
    ]
    return {
        "model": config.base_model,
        "train_task": search.train_task,
        "objective": search.objective,
        "judge": config.judges[0],
        "seeds": list(config.seeds),
        "space": {name: list(values) for name, values in search.space.values.items()},
        "search": {
            "proposals": "every setting" if search.exhaustive else "optuna.samplers.TPESampler",
            "seed": search.seed,
            "wanted": search.wanted,
            "failed": {name: row["status"] for name, row in search.rows.items() if row["status"] != DONE},
        },
        "floor": {"utility": round(limit, 2), "drop": floor.drop, "confident": floor.confident},
        "validation_share": config.responses.validation_share,
        "documents": _documents(search.out / TRIALS / SEED),
        "references": {name: _figures(search.rows[name]) for name in (SEED, BASELINE)},
        "trials": tried,
        "pareto": list(dict.fromkeys(front)),
        "chosen": chosen["row"] if chosen else None,
        "nearest": near["row"] if near else None,
        "final": {name: _figures(row) for name, row in final.items()},
    }


def _figures(row: Row) -> Row:
    return {name: row[name] for name in FIGURES if name in row}


def _documents(cell: Path) -> Row:
    """How many documents of each task are in which part."""
    folders = [path.parent for path in sorted(cell.glob("*/task.json"))]
    return {folder.name: records.documents(folder).get("parts", {}) for folder in folders}


def write(record: Row, out: Path) -> None:
    """``tune.json``, ``pareto.csv`` (the trials of the front, by utility) and ``pareto.{svg,pdf,png}``."""
    write_json_atomic(out / "tune.json", record)
    front = sorted((row for row in record["trials"] if row["front"]), key=lambda row: row["utility"])
    names = ["row", "method", *KEYS.values(), "chosen", *FIGURES]
    rows = [
        {name: row.get(name) for name in names} | {"chosen": row["row"] == record["chosen"]} for row in front
    ]
    write_text_atomic(out / "pareto.csv", as_csv(pd.DataFrame(rows)[names]))
    draw(record, charts.files(out, "pareto"))


def draw(record: Row, paths: Iterable[Path]) -> None:
    """All trials by utility and safety on the validation documents, the front, the floor and the choice."""
    safe = record["objective"]
    title = f"Tuning on {record['train_task']}: validation documents"
    figure, axes = charts.canvas(title, "utility (%)", f"{safe.upper()} (%)", size=(7.4, 4.4))
    styles = looks.looks([*record["references"], *record["space"]])
    labels = []
    for method in record["space"]:
        mine = [row for row in record["trials"] if row["method"] == method]
        style = {**styles[method], "linestyle": "none"}
        axes.plot([row["utility"] for row in mine], [row[safe] for row in mine], **style, label=method)
        for row in mine:
            text = str(row["preview_tokens"]) if "preview_tokens" in row else ""
            labels.append(Label((row["utility"], row[safe]), text))
    for name, row in record["references"].items():
        style = {**styles[name], "linestyle": "none"}
        axes.plot([row["utility"]], [row[safe]], **style, label=shown_method(name))
    front = sorted((row["utility"], row[safe]) for row in record["trials"] if row["front"])
    axes.step(*zip(*front, strict=True), where="pre", color="#808080", linewidth=1, label="Pareto front")
    floor = record["floor"]["utility"]
    axes.axvline(floor, color="#808080", linewidth=0.8, linestyle=":", label=f"floor {floor:g}")
    for row in record["trials"]:
        if row["row"] == record["chosen"]:
            ring = {"marker": "o", "markersize": 13, "markerfacecolor": "none", "color": looks.BLACK}
            axes.plot([row["utility"]], [row[safe]], linestyle="none", label="chosen", **ring)
    charts.legend(figure, axes)
    place_labels(figure, axes, labels, fontsize=7)
    charts.save(figure, *paths)


def show(record: Row, out: Path, console: Console) -> None:
    """The trials, the choice, and what it is worth on the final documents."""
    print_whole(_trials(record), console)
    shares = [f"{task} {n['validation']} and {n['final']}" for task, n in record["documents"].items()]
    say(console, f"Documents (validation and final): {', '.join(shares)}.")
    for name, status in record["search"]["failed"].items():
        say(console, f"{name}: {status} (the same command tries it again)", "red")
    if record["chosen"] is None:
        for line in _not_held(record):
            say(console, line, "red")
    else:
        for line in _choice(record):
            say(console, line, "bold")
        print_whole(_final(record), console)
        say(console, "Percent with 95 % intervals. Δ: points against vanilla on the same documents, which no")
        say(console, f"choice has seen; {STAR}: a difference, with all comparisons counted. The chosen one's")
        say(console, "validation figures are the best of many, and so too good.")
        line, held = kept(record)
        say(console, line, "bold" if held else "bold red")
    files = ", ".join(str(out / name) for name in ("tune.json", "pareto.csv", "pareto.svg"))
    say(console, f"Files: {files}")


def kept(record: Row) -> tuple[str, bool]:
    """Whether the chosen setting holds the floor on the final documents too, as a sentence and as a fact."""
    final, drop = record["final"], record["floor"]["drop"]
    limit = record["floor"]["utility"]
    if drop is not None and final.get(BASELINE, {}).get("utility") is not None:
        limit = round(final[BASELINE]["utility"] - drop, 2)
    row = final.get(record["chosen"], {})
    if row.get("utility") is None:
        return "It has no utility on the final documents: see the statuses above.", False
    found = f"utility {row['utility']:.1f} against a floor of {limit:g}"
    if row["utility"] < limit:
        return (
            f"On the final documents it does NOT hold the floor: {found}. "
            "Choose with --confident, or a higher floor.",
            False,
        )
    below = row.get("utility_low") is not None and row["utility_low"] < limit
    return (
        f"On the final documents it holds the floor: {found}{', though its interval goes below' * below}.",
        True,
    )


def _floor(record: Row) -> tuple[str, str]:
    """The floor, and by which figure of a setting it is held."""
    floor = record["floor"]
    below = f" ({floor['drop']:g} points below vanilla)" if floor["drop"] is not None else ""
    by = "by the lower bound of its 95 % interval" if floor["confident"] else "by its figure"
    return f"{floor['utility']:g}{below}", by


def _choice(record: Row) -> list[str]:
    floor, by = _floor(record)
    return [
        f"Chosen: {_named(record, record['chosen'])}",
        f"It has the highest {record['objective'].upper()} of the settings whose utility, {by}, is at least "
        f"{floor} on the validation documents.",
    ]


def _not_held(record: Row) -> list[str]:
    floor, by = _floor(record)
    near = next(row for row in record["trials"] if row["row"] == record["nearest"])
    held = near["utility_low" if record["floor"]["confident"] else "utility"]
    safe = record["objective"]
    return [
        f"No setting's utility, {by}, is at least {floor} on the validation documents.",
        f"Nearest: {_named(record, near['row'])} with {held:.1f} ({safe.upper()} {near[safe]:.1f}).",
        "Nothing was scored on the final documents: name a lower floor, or try more settings.",
    ]


def _named(record: Row, name: str) -> str:
    """A row and its setting, a prefix in quotes."""
    row = next(row for row in record["trials"] if row["row"] == name)
    key = KEYS[row["method"]]
    return f"{name} ({key.replace('_', ' ')} {json.dumps(row[key], ensure_ascii=False)})"


def _trials(record: Row) -> Table:
    table = Table(title=f"\nTrials on the validation documents, trained on {record['train_task']}",
                  title_justify="left", box=None, header_style="bold", padding=(0, 2, 0, 0))  # fmt: skip
    table.add_column("row", overflow="fold")
    for heading in ("utility", "95 %", "RSR", "JSR", "95 %", ""):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    references = [{"row": name, "front": False} | row for name, row in record["references"].items()]
    for row in [*references, *sorted(record["trials"], key=lambda row: row["utility"])]:
        marks = ["front"] * row["front"] + ["chosen"] * (row["row"] == record["chosen"])
        spans = [_span(row, name) for name in ("utility", "jsr")]
        cells = (
            one_decimal(row["utility"]),
            spans[0],
            one_decimal(row["rsr"]),
            one_decimal(row["jsr"]),
            spans[1],
        )
        table.add_row(Text(shown_method(row["row"])), *cells, ", ".join(marks))
    return table


def _final(record: Row) -> Table:
    table = Table(title="\nOn the final documents", title_justify="left", box=None, header_style="bold",
                  padding=(0, 2, 0, 0))  # fmt: skip
    table.add_column("row", overflow="fold")
    for heading in ("utility", "95 %", "Δ", "RSR", "Δ", "JSR", "95 %", "Δ"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, row in record["final"].items():
        utility = (one_decimal(row["utility"]), _span(row, "utility"), _delta(row, "utility"))
        rates = (
            one_decimal(row["rsr"]),
            _delta(row, "rsr"),
            one_decimal(row["jsr"]),
            _span(row, "jsr"),
            _delta(row, "jsr"),
        )
        table.add_row(
            Text(shown_method(name), style="bold" if name == record["chosen"] else ""), *utility, *rates
        )
    return table


def _span(row: Row, name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return "" if low is None or high is None else f"{low:.1f}–{high:.1f}"


def _delta(row: Row, name: str) -> str:
    delta = row[f"{name}_delta"]
    return "" if delta is None else f"{delta:+.1f}{mark(row, name)}"
