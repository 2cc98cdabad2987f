"""Nested values of recipes: laid over each other, and set by dotted keys."""

from __future__ import annotations

from importlib import resources
from typing import Any

from harness.contracts import UsageError

BY_TASK = ("train_data", "columns")  # keys that may hold something for each train task


def yaml_names(folder: str) -> list[str]:
    """The files of a packaged folder, without their endings."""
    files = (path.name for path in (resources.files("harness") / folder).iterdir())
    return sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml"))


def lay_over(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """``over`` laid over ``base``, section by section."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = lay_over(merged[key], value) if both else value
    return merged


def put(values: dict[str, Any], dotted: str, value: Any) -> None:
    """Set a dotted key (``training.epochs``) in nested sections."""
    *sections, last = dotted.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise UsageError(f"'{dotted}': '{section}' is not a section")
    there = values.get(last)
    # One train task's rows on the command line leave those of the recipe's others.
    if dotted in BY_TASK and isinstance(value, dict) and isinstance(there, dict):
        both = {**there, **value}
        by_task = dotted == "train_data" or all(isinstance(one, dict) for one in both.values())
        value = both if by_task else value
    values[last] = value
