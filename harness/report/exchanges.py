"""The exchanges of a run, as the report's browser reads them: by train task and seed, method beside method.

Ids, categories, verdicts and lengths are always there. Texts are those of utility tasks; a safety task's, and
those of any task that is none of ours, only with ``show_harmful``.
"""

from __future__ import annotations

import contextlib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import benchmarks, judging, plan, records, registry
from harness.config import RunConfig
from harness.contracts import HarnessError
from harness.plan import Cell

LONGEST = 4_000  # characters of a text; what is cut says so
LABELS = {"refusal": "r", "compliance": "c", "partial": "p", "incoherent": "i", None: "-"}
VERDICTS = {True: "h", False: "s", None: "u"}
ABSENT = " "

Row = dict[str, Any]


class Texts:
    """Each text once: answers refer to it by its number."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, text: str | None) -> int:
        return self._numbers.setdefault(visible(text or ""), len(self._numbers))

    @property
    def all(self) -> list[str]:
        return list(self._numbers)


def collect(run: Path, config: RunConfig, *, show_harmful: bool = False) -> Row:
    """What there is of every cell: JSON values. Strings of one letter an exchange keep it small: VERDICTS and
    LABELS, in the order of the task's ids, ABSENT where a cell has no such exchange."""
    cells = plan.cells(config)
    texts = Texts()
    tasks: dict[str, Row] = {}
    answers: list[dict[str, Row]] = []
    stored = [_stored(run, cell) for cell in cells]
    for name in dict.fromkeys(task for found in stored for task in found):
        every = [row for found in stored for row in found.get(name, ())]
        tasks[name] = _task(name, config, every, show_harmful)
    for cell, found in zip(cells, stored, strict=True):
        mine = {}
        for name, rows in found.items():
            verdicts = _verdicts(run / cell.folder / name, config.judges)
            mine[name] = _answers(rows, verdicts, tasks[name], texts, show_harmful)
        answers.append(mine)
    return {
        "harmful": show_harmful,
        "judges": [{"name": name, "combines": registry.combines(name)} for name in config.judges],
        "tasks": tasks,
        "cells": [
            {"method": cell.method, "answers": mine} for cell, mine in zip(cells, answers, strict=True)
        ],
        "groups": _groups(config, cells),
        "texts": texts.all,
    }


def readable(task: str, config: RunConfig) -> bool:
    return benchmarks.get(task, config.safety_sets).readable


def visible(text: str) -> str:
    """A text cut to LONGEST, in which what would steer a terminal or turn the reading direction is a sign."""
    cut = f" … ({len(text) - LONGEST:,} more characters)" if len(text) > LONGEST else ""
    return "".join(map(_sign, text[:LONGEST])) + cut


def _sign(character: str) -> str:
    if character in "\n\t" or character.isprintable():
        return character
    if ord(character) < 0x20:
        return chr(0x2400 + ord(character))
    return character if unicodedata.category(character) == "Zs" else f"[U+{ord(character):04X}]"


# --- files -----------------------------------------------------------------------------------------


def _stored(run: Path, cell: Cell) -> dict[str, list[Row]]:
    folders = {task: run / cell.folder / task for task in cell.tasks}
    return {
        task: records.responses(folder)
        for task, folder in folders.items()
        if (folder / "responses.jsonl").is_file()
    }


def _verdicts(folder: Path, judges: Iterable[str]) -> dict[str, dict[str, Row]]:
    found = {}
    for judge in judges:
        path = folder / judging.verdicts_file(judge)
        with contextlib.suppress(HarnessError):  # the leaderboard's status says what is wrong with it
            if path.is_file():
                found[judge] = {row["exchange_id"]: row for row in records.verdicts(path)}
    return found


def _groups(config: RunConfig, cells: Sequence[Cell]) -> list[Row]:
    """What stands side by side: a train task's methods of one seed, with what is not trained here."""
    return [
        {
            "train_task": task,
            "seed": seed,
            "cells": [
                place
                for place, cell in enumerate(cells)
                if cell.train_task in (None, task) and cell.seed in (None, seed)
            ],
        }
        for task in config.train_tasks
        for seed in config.seeds
    ]


# --- columns ---------------------------------------------------------------------------------------


def _task(name: str, config: RunConfig, rows: Sequence[Row], show_harmful: bool) -> Row:
    of = {row["id"]: str(row["category"] or "") for row in rows}
    categories = list(dict.fromkeys(of.values()))
    judged = benchmarks.get(name, config.safety_sets).kind == "safety"
    return {
        "judged": judged,
        "metric": None if judged else _metric(name, config, rows),
        "readable": readable(name, config),
        "texts": show_harmful or readable(name, config),
        "ids": list(of),
        "categories": categories,
        "category": [categories.index(category) for category in of.values()],
    }


def _metric(task: str, config: RunConfig, rows: Sequence[Row]) -> str | None:
    """The leaderboard's: the train task's own, else the first that is a share of one."""
    trained = [registry.load("train task", name) for name in config.train_tasks]
    own = next((one.utility_metric for one in trained if one.utility_task == task), None)
    return benchmarks.first_share(rows) if own is None else str(own)


def _answers(
    rows: Sequence[Row],
    verdicts: Mapping[str, Mapping[str, Row]],
    task: Row,
    texts: Texts,
    show_harmful: bool,
) -> Row:
    by_id = {row["id"]: row for row in rows}
    found = [by_id.get(name) for name in task["ids"]]
    metric = task["metric"]
    answers: Row = {
        "tokens": [row and row.get("tokens") for row in found],
        "characters": [row and len(row["response"]) for row in found],
        "cut": "".join("1" if row and row["finish_reason"] == "length" else "0" for row in found),
        "scores": [row and row["metrics"].get(metric) for row in found] if metric else None,
        "verdicts": {},
        "labels": {},
    }
    for judge, given in verdicts.items():
        mine = [given.get(name) for name in task["ids"]]
        answers["verdicts"][judge] = "".join(ABSENT if v is None else VERDICTS[v["harmful"]] for v in mine)
        answers["labels"][judge] = "".join(ABSENT if v is None else LABELS[v["label"]] for v in mine)
    if task["texts"]:
        for part in ("system", "prompt", "prefill", "response", "reasoning"):
            answers[part] = [row and texts.number(row.get(part)) for row in found]
    if show_harmful:
        answers["reasons"] = {
            judge: [texts.number((given.get(name) or {}).get("reason")) for name in task["ids"]]
            for judge, given in verdicts.items()
        }
    return answers
