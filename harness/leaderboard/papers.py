"""What papers report, to stand beside a user's own run of the same setting: one YAML file a paper.

A recipe names its paper (``paper: lookahead-tuning``). The figures are shown where the run's settings are
still those of the packaged recipe that the paper's file names; else the tables say what differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

from harness import config as configuration
from harness.config import RunConfig
from harness.run import metrics

# What a result depends on. How it is computed may differ (devices, micro-batches), and so may the seeds.
SETTINGS = (
    *("model", "train_data", "columns", "mix"),
    *(f"training.{key}" for key in ("epochs", "learning_rate", "schedule", "batch_size", "warmup_steps")),
    *(f"training.{key}" for key in ("betas", "weight_decay", "max_grad_norm", "tuning")),
    *(f"training.{key}" for key in ("max_examples", "max_length", "too_long")),
    *("responses.limit", "responses.thinking"),
    *(f"safety.{key}" for key in ("raw_task", "prefill_task", "prefill_tokens", "judged_scope")),
)
JUDGING = ("rubric", "threshold", "prompt_files")

Figures = dict[tuple[str, str, str], dict[str, float]]  # (train task, method, judge) -> metric -> percent


@dataclass(frozen=True)
class Departure:
    """In what a run of a paper's recipe still is not the paper's; said where the run has the method and the
    train task (None: any), and where its safe rates stand beside the paper's (or anywhere)."""

    says: str
    method: str | None = None
    train_task: str | None = None
    safe_rates: bool = False


@dataclass(frozen=True)
class Paper:
    """A paper's table, in percent: train task -> method -> metric (utility, rsr, jsr)."""

    title: str
    recipe: str
    departures: tuple[Departure, ...]
    figures: dict[str, dict[str, dict[str, float]]]


def load(name: str) -> Paper:
    text = (resources.files("harness") / "papers" / f"{name}.yaml").read_text(encoding="utf-8")
    values = yaml.safe_load(text)
    return Paper(**values | {"departures": tuple(Departure(**one) for one in values["departures"])})


def figures(config: RunConfig) -> Figures:
    """The paper's figures for a run's rows; none where the run's settings are others. Safe rates stand beside
    those of the recipe's judges alone."""
    if config.paper is None or differing(config):
        return {}
    paper = load(config.paper)
    judges = configuration.load(paper.recipe).judges if not _judging(config) else ()
    return {
        (task, method, judge): {k: v for k, v in row.items() if judge in judges or not metrics.is_judged(k)}
        for task, rows in paper.figures.items()
        for method, row in rows.items()
        for judge in config.judges
    }


def notes(config: RunConfig) -> list[str]:
    """What the tables say of the paper's figures; nothing where the recipe has none."""
    if config.paper is None:
        return []
    paper = load(config.paper)
    others = differing(config)
    if others:
        return [
            f"Not beside {paper.title}: this run differs from recipe {paper.recipe} in {_listed(others)}."
        ]
    lines = [f"Paper: {paper.title}, one run; its evaluation files are taken to be the same."]
    recipe = configuration.load(paper.recipe).judges
    left_out = [name for name in config.judges if name not in recipe]
    if left_out:
        lines.append(f"Its safe rates are not put beside those of {_listed(left_out)}: it had another judge.")
    if _judging(config):
        lines.append(f"Its safe rates are left out: {_listed(_judging(config))} of the judge is another.")
    safe_rates = not _judging(config) and len(left_out) < len(config.judges)
    return lines + [f"vs paper, not as there: {line}." for line in departures(config, safe_rates=safe_rates)]


def departures(config: RunConfig, *, safe_rates: bool) -> list[str]:
    """In what a run of the paper's recipe still differs from the paper, as far as the run has it."""
    assert config.paper is not None
    return [
        one.says
        for one in load(config.paper).departures
        if one.method in (None, *config.methods)
        and one.train_task in (None, *config.train_tasks)
        and (safe_rates or not one.safe_rates)
    ]


def differing(config: RunConfig) -> list[str]:
    """The settings in which a run is not its paper's recipe."""
    if config.paper is None:
        return []
    paper = load(config.paper)
    recipe = configuration.load(paper.recipe)
    methods = {method for rows in paper.figures.values() for method in rows}
    others = [key for key in SETTINGS if _value(config, key) != _value(recipe, key)]
    options = [
        f"method_options.{method}"
        for method in sorted(methods)
        if config.method_options.get(method, {}) != recipe.method_options.get(method, {})
    ]
    return [*others, *options]


def _judging(config: RunConfig) -> list[str]:
    return [key for key in JUDGING if getattr(config.judging, key)]


def _value(config: RunConfig, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _listed(parts: Sequence[str]) -> str:
    return ", ".join(parts)
