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

from harness import finish
from harness.config import RunConfig
from harness.contracts import HarnessError
from harness.data import benchmarks
from harness.judging import verdict_files
from harness.plugins import registry
from harness.run.plan import Cell
from harness.run.resolve import resolve
from harness.storage import records

LONGEST = 4_000  # characters of a text; what is cut says so
LABELS = {"refusal": "r", "compliance": "c", "partial": "p", "incoherent": "i", None: "-"}
VERDICTS = {True: "h", False: "s", None: "u"}
ABSENT = " "
PARTS = ("system", "prompt", "prefill", "response", "reasoning")

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
    cells, texts = resolve(config).cells(), Texts()
    tasks: dict[str, Row] = {}
    categories: dict[str, dict[str, str]] = {}  # task -> id -> category
    answers: list[dict[str, Row]] = []
    for cell in cells:  # one by one: the texts of a large run's safety tasks are never all in memory
        mine = {}
        for name in cell.tasks:
            folder = run / cell.folder / name
            if not (folder / "responses.jsonl").is_file():
                continue
            if name not in tasks:
                tasks[name] = _task(name, config, folder, show_harmful)
            ids, seen = categories.setdefault(name, {}), {}
            for row in records.each_response(folder):
                seen[row["id"]] = _seen(row, tasks[name], texts)
                ids[row["id"]] = str(row["category"] or "")
            verdicts = _verdicts(folder, config.judges, texts if show_harmful else None)
            mine[name] = _columns(seen, verdicts, [*ids], tasks[name], show_harmful)
        answers.append(mine)
    for name, task in tasks.items():
        known = list(dict.fromkeys(categories[name].values()))
        task["ids"], task["categories"] = [*categories[name]], known
        task["category"] = [known.index(category) for category in categories[name].values()]
        for mine in answers:
            if name in mine:
                mine[name] = _filled_up(mine[name], len(task["ids"]))
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
    return resolve(config).benchmark(task).readable


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


def _verdicts(folder: Path, judges: Iterable[str], reasons: Texts | None) -> dict[str, dict[str, Row]]:
    """By judge and id: signs of VERDICTS and LABELS, and the number of the reason in ``reasons``."""
    found = {}
    for judge in judges:
        with contextlib.suppress(HarnessError):  # the leaderboard's status says what is wrong with them
            found[judge] = {
                row["exchange_id"]: {
                    "verdict": VERDICTS[row["harmful"]],
                    "label": LABELS[row["label"]],
                    "reason": reasons and reasons.number(row.get("reason")),
                }
                for row in verdict_files.read_verdicts(folder, judge)
            }
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


def _task(name: str, config: RunConfig, folder: Path, show_harmful: bool) -> Row:
    """``folder``: the first that has answers to it."""
    judged = resolve(config).benchmark(name).kind == "safety"
    return {
        "judged": judged,
        "metric": None if judged else _metric(name, config, folder),
        "readable": readable(name, config),
        "texts": show_harmful or readable(name, config),
    }


def _metric(task: str, config: RunConfig, folder: Path) -> str | None:
    """The leaderboard's: the train task's own, else the first that is a share of one."""
    trained = resolve(config).train_tasks()
    own = next((one.utility_metric for one in trained if one.utility_task == task), None)
    return benchmarks.first_share(records.responses(folder)) if own is None else str(own)


def _seen(row: Row, task: Row, texts: Texts) -> Row:
    """What is shown of an answer: a value for each column."""
    seen: Row = {
        "tokens": row.get("tokens"),
        "characters": len(row["response"]),
        "cut": "1" if finish.cut_off(row["finish_reason"]) else "0",
    }
    if task["metric"]:
        seen["scores"] = row["metrics"].get(task["metric"])
    if task["texts"]:
        seen |= {part: texts.number(row.get(part)) for part in PARTS}
    return seen


def _columns(
    seen: Mapping[str, Row],
    verdicts: Mapping[str, Mapping[str, Row]],
    ids: Sequence[str],
    task: Row,
    show_harmful: bool,
) -> Row:
    """A cell's answers to a task, in the order of ``ids``."""

    def values(of: Mapping[str, Row], name: str, absent: Any = None) -> list[Any]:
        return [of[i][name] if i in of else absent for i in ids]

    reasons = {judge: values(given, "reason") for judge, given in verdicts.items()}
    named = [
        "tokens",
        "characters",
        *(["scores"] if task["metric"] else []),
        *(PARTS if task["texts"] else []),
    ]
    return {
        **{name: values(seen, name) for name in named},
        "cut": "".join(values(seen, "cut", "0")),
        "verdicts": {judge: "".join(values(given, "verdict", ABSENT)) for judge, given in verdicts.items()},
        "labels": {judge: "".join(values(given, "label", ABSENT)) for judge, given in verdicts.items()},
        **({"reasons": reasons} if show_harmful else {}),
    }


def _filled_up(answers: Row, length: int) -> Row:
    """A cell's answers with what later cells have besides."""

    def filled(name: str, value: Any) -> Any:
        if isinstance(value, str):
            return value.ljust(length, "0" if name == "cut" else ABSENT)
        if isinstance(value, dict):
            return {judge: filled(name, inner) for judge, inner in value.items()}
        return value + [None] * (length - len(value))

    return {name: filled(name, value) for name, value in answers.items()}
