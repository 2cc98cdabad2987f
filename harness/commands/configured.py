"""From options to a configuration: a recipe, or a stored run's, with what a command's flags change."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.contracts import UsageError

if TYPE_CHECKING:
    from harness.config import RunConfig
    from harness.config.trust import Step


TRAINING = ("tuning", "merge", "num_processes", "distributed", "launcher", "report_to")  # recipe's training.*
ALIGNMENT = ("requests", "harmless")  # recipe's alignment.*
RESPONSES = ("thinking", "server", "tokenizer", "tensor_parallel", "data_parallel")  # recipe's responses.*
JUDGING = ("rubric", "threshold", "prompt_files", "mode", "max_cost")  # recipe's judging.*


def utility_sets(files: dict[str, str], metrics: dict[str, str]) -> dict[str, dict[str, str]]:
    """Utility sets as a recipe has them. Raises UsageError for the metric of none of them."""
    unknown = [name for name in metrics if name and name not in files]
    if unknown:
        raise UsageError(f"--utility-metric {unknown[0]}=…: there is no --utility-set {unknown[0]}=FILE")
    if metrics and not files:
        raise UsageError("--utility-metric: of which questions? --utility-set NAME=FILE")
    every = metrics.get("")
    chosen = {name: metrics.get(name, every) for name in files}
    return {
        name: {"file": file, **({"metric": metric} if (metric := chosen[name]) else {})}
        for name, file in files.items()
    }


def judging_flags(flags: dict[str, Any]) -> dict[str, Any]:
    """The options of ``judging_options`` that were given, as recipe keys; taken out of ``flags``."""
    given = {f"judging.{key}": flags.pop(key) for key in JUDGING}
    given["safety.judged_scope"] = flags.pop("scope")
    return {key: value for key, value in given.items() if value not in (None, {})}


def resolve(recipe: str | None, settings: tuple[str, ...], **flags: Any) -> RunConfig:
    """Recipe, then ``--set``, then flags that were given."""
    from harness import config

    return config.load(recipe, _overrides(settings, flags))


def begun_with(out: Path | None) -> str | None:
    """The recipe for a command without one that names a run which is there: the mini world's if that is the
    run's. Then what differs is told against it."""
    from harness.config import base_recipe
    from harness.run import run_folder

    there = out is not None and (out / "run.json").is_file()
    mini = there and out is not None and run_folder.stored_config(out).model == base_recipe.MINI
    return base_recipe.MINI if mini else None


def resolve_stored(
    run: Path, steps: Collection[Step], settings: tuple[str, ...] = (), **flags: Any
) -> RunConfig:
    """The configuration of a run that is there, with what this command changes. Raises UsageError where only
    the run asks for something that acts on this machine and that ``steps`` would take (config/trust.py)."""
    from harness.run import run_folder

    return run_folder.taken_config(run, _overrides(settings, flags), steps)


def _overrides(settings: tuple[str, ...], flags: dict[str, Any]) -> dict[str, Any]:
    """Dotted recipe keys to the values that a command gives them."""
    from harness import config

    overrides = dict(config.parse_setting(text) for text in settings)
    overrides |= judging_flags(flags) if "mode" in flags else {}
    if "utility_sets" in flags:
        flags["utility_sets"] = utility_sets(flags["utility_sets"], flags.pop("utility_metrics"))
    sections = {"training": TRAINING, "responses": RESPONSES, "alignment": ALIGNMENT}
    dotted = {key: f"{section}.{key}" for section, keys in sections.items() for key in keys}
    return overrides | {
        dotted.get(key, key): value
        for key, value in flags.items()
        if value not in (None, {}, False, ()) and not (key == "task_dirs" and not value)
    }


def out_folder(config: RunConfig, out: Path | None) -> Path:
    from harness.pipeline.compare import RUNS

    return out if out is not None else RUNS / config.name
