"""``harness sweep``: one thing varied, all else as in the recipe, in one run.

Preview lengths and prefixes are the LookAhead Tuning paper's Figures 4 and 5; depths of the prefilling attack
and budgets (learning rates, scored after every epoch) go beyond it. A sweep is a comparison whose variants
hold the values: it is resumed, extended and judged as any other run. What it found is in ``RUN/analysis``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape

from harness import config as configuration
from harness.analyses.shared import FOLDER
from harness.config import RunConfig, VariantConfig
from harness.contracts import HarnessError, JudgePendingError, UsageError
from harness.data import benchmarks
from harness.leaderboard import tables
from harness.pipeline import align, compare
from harness.pipeline.outcome import CellsFailedError
from harness.plugins import registry
from harness.run import plan, run_folder
from harness.run.resolve import resolve
from harness.studies import sweep_points, sweep_report
from harness.studies.sweep_points import BUDGET, Place

PREFIXES = (  # the paper's three, byte for byte: its default, a sentence, nonsense
    "Let's solve this problem. ",
    "Let's deal with this situation.",
    "dadjalsasdfghkjzmnb",
)


@dataclass(frozen=True)
class Sweep:
    """What is varied: a ``key`` of a variant's ``options`` or ``training``.

    ``method``: whose, unless told otherwise (None: all of the run's); ``values``: unless told otherwise;
    ``axis``: what they are; ``suffix``: of a row's name, from a value.
    """

    section: Literal["options", "training"]
    key: str
    method: str | None
    values: tuple[Any, ...]
    axis: str
    suffix: Callable[[Any], str]


def slug(text: str, longest: int) -> str:
    """A text's letters and digits as part of a row's name; "" where it has none."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:longest].rstrip("-")


SWEEPS = {
    "preview-length": Sweep(
        section="options",
        key="preview_tokens",
        method="lookahead-true",
        values=(1, 2, 4, 6, 8, 12),
        axis="previewed answer tokens, m",
        suffix="m{}".format,
    ),
    "prefix": Sweep(
        "options", "prefix", "lookahead-virtual", PREFIXES, "prefix", lambda text: slug(text, 30) or "text"
    ),
    BUDGET: Sweep("training", "learning_rate", None, (), "learning rate and epoch", "lr{:g}".format),
}


# --- the comparison --------------------------------------------------------------------------------


def run(
    name: str,
    config: RunConfig,
    out: Path,
    console: Console,
    *,
    methods: Sequence[str] | None = None,
    values: Sequence[Any] | None = None,
    dry_run: bool = False,
    debug: bool = False,
) -> None:
    """Do what is not done yet of the sweep ``name`` into ``out``; then write and print what it shows.

    Raises UsageError for methods or values that cannot be swept; else what ``compare.compare`` raises,
    with the points that there are written before where cells or judges have not finished.
    """
    if not dry_run:  # a point of the sweep is a row of the recipe, not a model to be aligned once more
        config = align.align(config, out, console)
    sweep = SWEEPS.get(name)
    chosen = list(methods or ())
    if sweep:
        chosen = chosen or ([sweep.method] if sweep.method else _own_methods(config))
        there = run_folder.stored_config(out).variants if (out / "run.json").is_file() else {}
        config = spread(sweep, config, chosen, values or sweep.values, there)
    else:
        config = _with_depths(config, chosen)
    failed: HarnessError | None = None
    try:
        compare.compare(config, out, console, dry_run=dry_run, debug=debug)
    except (CellsFailedError, JudgePendingError) as error:
        failed = error
    if not dry_run:
        axis = sweep.axis if sweep else "tokens of the prefill, k"
        with run_folder.lock(out):
            found = places(sweep, run_folder.stored_config(out), chosen) if sweep else {}
            record = sweep_points.collect(name, axis, out, found)
            files = sweep_report.write(record, out / FOLDER)
        sweep_report.show(record, console)
        names = ", ".join(str(path) for path in files)
        console.print(f"\nFiles: {escape(names)}", highlight=False, soft_wrap=True)
    if failed:
        raise failed


def spread(
    sweep: Sweep,
    config: RunConfig,
    methods: Sequence[str],
    values: Sequence[Any],
    there: Mapping[str, VariantConfig] | None = None,
) -> RunConfig:
    """The configuration with a row for each method and value. The value that a method has anyway is the
    method's own row: it is not trained twice. ``there``: variants of the run, whose names are taken too.
    Raises UsageError for a method or value that cannot be."""
    _check_methods(sweep, methods)
    variants: dict[str, Any] = {name: v.model_dump(mode="json") for name, v in config.variants.items()}
    taken = {name: v.model_dump(mode="json") for name, v in (there or {}).items()} | variants
    added: dict[str, str] = {}  # row -> method
    for method in methods:
        for value in dict.fromkeys(values):
            changed: dict[str, Any] = {sweep.section: {sweep.key: value}}
            variant = VariantConfig(method=method, **changed).model_dump(mode="json")
            row = _free(f"{method}-{sweep.suffix(value)}", variant, taken)
            added[row] = method
            variants[row] = taken[row] = variant
    base = config.model_dump(mode="json") | {"methods": [plan.SEED]}
    config = configuration.validated(base | {"variants": variants}, f"sweep of {sweep.key}")
    plain = {row: method for row, method in added.items() if _is_plain(config, row, method)}
    baseline = [] if sweep.section == "training" else [tables.BASELINE]
    update = {
        "methods": tuple(dict.fromkeys([plan.SEED, *baseline, *plain.values()])),
        "variants": {name: variant for name, variant in config.variants.items() if name not in plain},
    }
    return config.model_copy(update=update)


def places(sweep: Sweep, config: RunConfig, methods: Iterable[str]) -> dict[str, Place]:
    """Which rows of a run are points of the sweep, those of earlier commands too: variants that differ in its
    key alone, and own rows of their methods and of ``methods``. Numbers in their order."""
    varied = {}
    for name, variant in config.variants.items():
        changes = getattr(variant, sweep.section)
        own_base = variant.model or variant.alignment
        if not own_base and {*variant.options, *variant.training} == {*changes} == {sweep.key}:
            varied[name] = Place(variant.method, _value(sweep, config, name))
    swept = {*methods, *(place.method for place in varied.values())}
    own = {name: Place(name, _value(sweep, config, name)) for name in _own_methods(config) if name in swept}
    found = {**own, **varied}
    if any(isinstance(place.value, str) for place in found.values()):
        return found
    order = list(dict.fromkeys(place.method for place in found.values()))
    return dict(sorted(found.items(), key=lambda item: (order.index(item[1].method), item[1].value)))


def _value(sweep: Sweep, config: RunConfig, row: str) -> Any:
    """What a row has under the key that is swept."""
    of = config.row(row).training if sweep.section == "training" else resolve(config).method(row)
    return getattr(of, sweep.key)


def _own_methods(config: RunConfig) -> list[str]:
    return [name for name in plan.methods(config) if name not in config.variants]


def _check_methods(sweep: Sweep, methods: Iterable[str]) -> None:
    known = registry.names("method")
    for method in methods:
        if method not in known:
            raise registry.unknown("method", method, known)
        if sweep.section == "options" and not _has_option(method, sweep.key):
            have = ", ".join(name for name in known if _has_option(name, sweep.key))
            raise UsageError(f"--methods {method}: it has no option '{sweep.key}'; those that have: {have}")


def _has_option(method: str, option: str) -> bool:
    fields = dataclasses.fields(registry.load("method", method))
    return any(field.name == option and field.init for field in fields)


def _free(name: str, variant: Any, taken: Mapping[str, Any]) -> str:
    """The name, numbered where another variant has it already."""
    number, free = 1, name
    while taken.get(free, variant) != variant:
        number += 1
        free = f"{name}-{number}"
    return free


def _is_plain(config: RunConfig, row: str, method: str) -> bool:
    """Whether a row is the method as the recipe has it. Raises UsageError for a value that cannot be."""
    same_training = config.row(row).training == config.row(method).training
    return resolve(config).method(row) == resolve(config).method(method) and same_training


def _with_depths(config: RunConfig, methods: Sequence[str]) -> RunConfig:
    """The run, with its prefilled task at every depth that there is one for."""
    prefilled = resolve(config).benchmark(config.safety.prefill_task)
    for group, members in benchmarks.groups().items():
        depths = [resolve(config).benchmark(member) for member in members]
        if all(task.depth and task.path.parent == prefilled.path.parent for task in depths):
            tasks = tuple(dict.fromkeys([*config.safety_tasks, group]))
            return config.model_copy(
                update={"safety_tasks": tasks, "methods": tuple(methods or config.methods)}
            )
    raise UsageError(f"task '{prefilled.name}' has no group of depths beside it (harness tasks)")
