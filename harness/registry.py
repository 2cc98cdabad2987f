"""Which methods, train tasks, judges and engines there are: names first, code only when one is used.

The tables are plain strings, to be found with grep. Other packages add theirs through the entry points
``harness.backends`` (a Method class), ``harness.judges`` (a Judge class) and ``harness.tasks`` (a TrainTask,
or a package whose folder holds lm-eval YAML files). A duplicate name or a plugin that fails to load raises.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from harness.contracts import HarnessError, UsageError

METHODS = {
    "vanilla": "backends.vanilla:Vanilla",
    "sdft": "backends.sdft:SDFT",
    "constrained-sft": "backends.constrained_sft:ConstrainedSFT",
    "lookahead-true": "backends.lookahead:LookAheadTrue",
    "lookahead-virtual": "backends.lookahead:LookAheadVirtual",
}
TRAIN_TASKS = {
    "gsm8k": "tasks.gsm8k.train:TRAIN_TASK",
    "gsm8k-mini": "tasks.gsm8k_mini.train:TRAIN_TASK",
    "samsum-mini": "tasks.samsum_mini.train:TRAIN_TASK",
}
JUDGES = {
    "mini-exact": "judges.mini_exact:MiniExact",
    "keyword": "judges.keyword:Keyword",
}
ENGINES = {
    "hf": "harness.engines.hf:HFEngine",
}
TRAINER = "backends.trainer:train"

_GROUPS = {"method": "harness.backends", "train task": "harness.tasks", "judge": "harness.judges"}
_TABLES = {"method": METHODS, "train task": TRAIN_TASKS, "judge": JUDGES, "engine": ENGINES}


def unknown(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """The one line for a name that does not exist, with the nearest that does."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(names)}"
    return UsageError(f"unknown {kind} '{name}': {hint}")


def names(kind: str) -> list[str]:
    """All names of a kind ('method', 'train task', 'judge', 'engine'), built-in ones first."""
    return list(_table(kind))


def load(kind: str, name: str) -> Any:
    """The class or object behind a name. Raises UsageError for an unknown name."""
    table = _table(kind)
    if name not in table:
        raise unknown(kind, name, table)
    return load_object(table[name])


def load_object(target: str) -> Any:
    """What ``module:attribute`` names."""
    module, _, attribute = target.partition(":")
    try:
        loaded = importlib.import_module(module)
        return getattr(loaded, attribute) if attribute else loaded
    except Exception as error:
        raise HarnessError(f"plugin '{target}' cannot be loaded: {type(error).__name__}: {error}") from error


def task_folders() -> list[Path]:
    """Folders with lm-eval YAML files: ours, and those of packages behind ``harness.tasks``."""
    folders = [Path(str(resources.files("tasks")))]
    for entry in metadata.entry_points(group=_GROUPS["train task"]):
        module = importlib.import_module(entry.value.partition(":")[0])
        if module.__file__ is None:
            raise HarnessError(f"entry point '{entry.name}' of harness.tasks: '{entry.value}' has no folder")
        folders.append(Path(module.__file__).parent)
    return list(dict.fromkeys(folders))


def _table(kind: str) -> dict[str, str]:
    table = dict(_TABLES[kind])
    for entry in metadata.entry_points(group=_GROUPS[kind]) if kind in _GROUPS else ():
        if kind == "train task" and ":" not in entry.value:
            continue  # a package of lm-eval tasks alone: see task_folders
        if entry.name in table:
            raise HarnessError(
                f"two plugins are called {kind} '{entry.name}': {table[entry.name]} and {entry.value}; "
                "uninstall or rename one"
            )
        table[entry.name] = entry.value
    return table
