"""Which recipe a command goes by that names none: the mini world's for the mini world's models, and for every
other model the one of recipes/base. A model of one's own must not inherit tasks, judge and budget that were
made for a generated language."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from harness.contracts import UsageError
from harness.data import benchmarks
from harness.models import adapter_limits, checkpoints, hub
from harness.reading import json_value
from harness.text import is_name

MINI, REAL = "mini", "real"
MINI_DATA = "harness.mini.data"  # among the sources of every task of the mini world
_TOKENIZER = "tokenizer.json"


def chosen(overrides: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The recipe's name for a command with these settings, and what they further imply: the base model of
    adapters that are given as checkpoints.

    Raises UsageError where a whole checkpoint is to be compared and its base model is not named: compared
    with itself it would look as if nothing had been lost.
    """
    if overrides.get("model") is not None:
        return MINI if overrides["model"] == checkpoints.MINI else REAL, {}
    given = overrides.get("checkpoints")
    own = {name: str(place) for name, place in given.items()} if isinstance(given, dict) else {}
    own = {name: place for name, place in own.items() if is_own(place)}
    if not own:
        return MINI, {}
    bases = {name: _base(place) if checkpoints.is_here(place) else None for name, place in own.items()}
    unknown = [name for name, base in bases.items() if base is None]
    if unknown or len({*bases.values()}) > 1:
        name = min(unknown or bases)
        raise UsageError(
            f"--checkpoint {name}={own[name]}: from which model was it fine-tuned? Add --model BASE (a "
            "folder or a hub name); harness respond scores a checkpoint alone"
        )
    return REAL, {"model": next(iter(bases.values()))}


def for_checkpoint(checkpoint: str, tasks: Iterable[str] = ()) -> tuple[str, dict[str, Any]]:
    """The same for a checkpoint that answers alone: it is its own model, an adapter's is its base. A model on
    a server belongs to the mini world if all ``tasks`` do."""
    if checkpoint.startswith(checkpoints.SERVER):
        found = list(tasks)
        return MINI if found and all(map(_is_mini_task, found)) else REAL, {"model": checkpoints.MINI}
    if not is_own(checkpoint):
        return MINI, {}
    return REAL, {"model": _base(checkpoint) or checkpoint}


def short_name(place: str) -> str:
    """A row's or a run's name for a model: its folder's, or its own on the hub or a server."""
    last = re.split(r"[/:]", place.partition("@http")[0].rstrip("/"))[-1]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("-._")[:60]
    return name if is_name(name) else "model"


def is_own(place: str) -> bool:
    """Whether a model is none of the mini world: a folder with another vocabulary, or a name on the hub.
    What is no model at all is not, and is refused elsewhere."""
    if place == checkpoints.MINI or place.startswith(checkpoints.SERVER):
        return False
    folder = Path(place).expanduser()
    if not folder.is_dir():
        return hub.can_be_named(place)
    if not (folder / _TOKENIZER).is_file() and checkpoints.is_adapter(folder):
        return is_own(adapter_limits.base_name(folder))
    found = _vocabulary(folder)
    return found is not None and found != _vocabulary(checkpoints.locate(checkpoints.MINI))


def _base(place: str) -> str | None:
    """The model that an adapter names as its base; None for a whole model."""
    folder = Path(place).expanduser()
    folder = folder if folder.is_dir() else checkpoints.locate(place)
    return adapter_limits.base_name(folder) if checkpoints.is_adapter(folder) else None


def _vocabulary(folder: Path) -> Any:
    """A tokenizer's tokens and their ids, as far as they tell the mini world's from others; None where there
    is no tokenizer. A large one is not read: the mini world's has few tokens."""
    file, largest = (
        folder / _TOKENIZER,
        4 * (checkpoints.locate(checkpoints.MINI) / _TOKENIZER).stat().st_size,
    )
    if not file.is_file():
        return "another format" if any(folder.glob("*.model")) else None
    if file.stat().st_size > largest:
        return "large"
    try:
        return json_value(file.read_text(encoding="utf-8"))["model"]["vocab"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_mini_task(task: str) -> bool:
    groups = benchmarks.groups()
    names = [name for name in groups.get(task, [task]) if name in benchmarks.installed()]
    return bool(names) and all(MINI_DATA in benchmarks.get(name).sources for name in names)
