"""A recipe file plus flags, validated into one RunConfig.

Packaged recipes are in recipes/; a recipe can ``extends: ANOTHER`` and hold only what differs.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import (
    ValidationError,
)

from harness.config import base_recipe
from harness.config.problems import first_problem
from harness.config.run_config import RunConfig, meanings
from harness.config.values import lay_over, put, yaml_names
from harness.contracts import UsageError
from harness.data import benchmarks
from harness.models.checkpoints import MINI
from harness.plugins import plugin_files, registry
from harness.plugins.plugin_code import Kind
from harness.reading import yaml_value

TASK_DIRS = "task_dirs"  # of a command alone: folders of tasks of the user's own
PRESET, PRESETS = "preset", "presets"  # of a command: one of the sets of values that a recipe offers


def recipe_names() -> list[str]:
    return yaml_names("recipes")


def load(recipe: str | None = None, overrides: dict[str, Any] | None = None) -> RunConfig:
    """A recipe (packaged name or YAML file; default: base_recipe.chosen) with ``overrides`` laid over it.

    Override keys may be dotted (``training.epochs``). One for a real model has what it does not say from
    recipes/base and not from the mini world. Raises UsageError with one line.
    """
    given = dict(overrides or {})
    if recipe is None:
        recipe, implied = base_recipe.chosen(given)
        given = {**implied, **given}
        if recipe == base_recipe.REAL:  # runs of different models have folders of their own
            given.setdefault("name", f"{recipe}-{base_recipe.short_name(str(given['model']))}")
    where, values, families = _read(recipe)
    values = _with_preset(values, given.pop(PRESET, None), where)
    plugin_files.refuse_in_recipe(values, where)
    values = _laid_over(values, given)
    model = values.get("model")
    if base_recipe.REAL in families and model is None:
        raise UsageError(f"{where}: for which model? add --model MODEL (a folder or a hub name)")
    if base_recipe.MINI not in families and model not in (None, MINI):
        values = lay_over(_read(base_recipe.REAL)[1], values)
    return validated(_with_code(values, given), where)


def _with_preset(values: dict[str, Any], preset: str | None, where: str) -> dict[str, Any]:
    """A recipe's values with those of one of its presets over them; such runs have folders of their own."""
    offered = values.pop(PRESETS, None) or {}
    if not (isinstance(offered, dict) and all(isinstance(one, dict) for one in offered.values())):
        raise UsageError(f"{where}: presets: expected NAME: {{key: value}}")
    if preset is None:
        return values
    if preset not in offered:
        if not offered:
            raise UsageError(f"{where} has no presets: leave --preset out")
        raise registry.unknown(f"preset of {where}", preset, offered)
    return lay_over({**values, "name": f"{values['name']}-{preset}"}, offered[preset])


def changed(config: RunConfig, overrides: Mapping[str, Any], where: str) -> RunConfig:
    """A configuration with ``overrides`` (keys may be dotted) laid over it. Raises UsageError."""
    values = config.model_dump()  # not as JSON: what is written leaves keys out
    return validated(_with_code(_laid_over(values, overrides), overrides), where)


def _laid_over(values: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Recipe values with a command's own over them, but for what names files with code (``_with_code``)."""
    for key, value in overrides.items():
        if key.partition(".")[0] == "code":
            raise UsageError(
                f"'{key}' is a run's record; name files with code by --methods FILE.py:CLASS, "
                "--judge FILE.py:CLASS, --task-dir DIR"
            )
        if key != TASK_DIRS:
            put(values, key, value)
    return values


def _with_code(values: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Values, complete but for what a command names by file: that is read here, and its names and record put
    in place: ``methods``, ``judges``, and folders of tasks under ``task_dirs``."""
    folders = given.get(TASK_DIRS) or ()
    code = values.setdefault("code", {})
    own: dict[str, Kind] = {"methods": "method", "judges": "judge"}
    for key, kind in own.items():
        if key in given and isinstance(given[key], (str, list, tuple)):
            wanted = [given[key]] if isinstance(given[key], str) else list(map(str, given[key]))
            values[key], records = plugin_files.named(
                kind, wanted, registry.installed_names(kind), code.get(key) or {}
            )
            code[key] = {**(code.get(key) or {}), **records}
    for folder in [folders] if isinstance(folders, (str, Path)) else folders:
        plugin_files.name_folder(folder)
    code["task_dirs"] = [str(folder) for folder in plugin_files.folders()]
    if code["task_dirs"]:
        code["tasks"] = {**(code.get("tasks") or {}), **_own_tasks(values, needed=bool(folders))}
    return values


def _own_tasks(values: Mapping[str, Any], *, needed: bool) -> dict[str, dict[str, Any]]:
    """The records of the tasks that a run takes from folders that the command names. Raises UsageError where
    one is ``needed`` and it takes none."""
    safety = values.get("safety") or {}
    wanted = [safety.get("raw_task"), safety.get("prefill_task")] if isinstance(safety, dict) else []
    for key in ("utility_tasks", "safety_tasks"):
        names = values.get(key) or ()
        wanted += [names] if isinstance(names, str) else names
    members = benchmarks.groups()
    single = [task for name in wanted if isinstance(name, str) for task in members.get(name, [name])]
    there = benchmarks.of_folders()
    found = {name: there[name].record() for name in single if name in there}
    if needed and not found:
        shown = ", ".join(sorted(there)[:8]) or "none of its YAML files is one"
        raise UsageError(f"--task-dir: which of its tasks? --utility-task or --safety-task ({shown})")
    return found


def validated(values: dict[str, Any], where: str) -> RunConfig:
    """Raises UsageError with ``where`` and pydantic's first finding."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        keys = [key for key, *_ in meanings()]
        raise UsageError(f"{where}: {first_problem(error, RunConfig, keys=keys)}") from None


def parse_setting(text: str) -> tuple[str, Any]:
    """``key=value`` of ``--set``; the value is YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"--set '{text[:60]}': expected key=value, as in --set training.epochs=1")
    try:
        return key.strip(), yaml_value(value)
    except ValueError as error:  # without the value, which may be a key
        raise UsageError(f"--set {key.strip()}: the value is not valid YAML") from error


def _packaged(recipe: str) -> Any:
    """The file of a packaged recipe. ``base`` has the one for models of the user's own, which names none."""
    folder = resources.files("harness") / "recipes"
    return (folder / "base" if recipe == base_recipe.REAL else folder) / f"{recipe}.yaml"


def _read(recipe: str, seen: tuple[str, ...] = ()) -> tuple[str, dict[str, Any], tuple[str, ...]]:
    """Where a recipe is, its keys, laid over those of the one that it ``extends``, and the names of both."""
    names: tuple[str, ...] = (recipe,)
    if recipe in (*recipe_names(), base_recipe.REAL):
        where, text = f"recipe '{recipe}'", _packaged(recipe).read_bytes()
    else:
        path = Path(recipe)
        try:
            where, found = str(path), path.read_bytes() if path.is_file() else None
        except (OSError, ValueError) as error:  # not readable; no path at all
            raise UsageError(f"recipe '{recipe[:60]}': cannot be read ({type(error).__name__})") from error
        if found is None:
            near = difflib.get_close_matches(recipe, recipe_names(), n=1)
            if recipe in registry.METHODS:
                raise UsageError(f"no recipe '{recipe}': a method? --methods {recipe}")
            hint = f"did you mean '{near[0]}'?" if near else f"packaged: {', '.join(recipe_names())}"
            raise UsageError(f"no recipe '{recipe}': neither a file nor a packaged recipe; {hint}")
        text = found
    try:
        values = yaml_value(text)
    except ValueError as error:
        raise UsageError(f"{where}: not valid YAML ({error})") from error
    if not isinstance(values, dict):
        raise UsageError(f"{where}: expected keys and values at the top level")
    base = values.pop("extends", None)
    if base is not None:
        if not isinstance(base, str):
            raise UsageError(f"{where}: extends names one recipe, packaged or a file")
        if base in (*seen, recipe):
            raise UsageError(
                f"{where}: extends goes round in a circle: {' -> '.join([*seen, recipe, str(base)])}"
            )
        _, inherited, further = _read(base, (*seen, recipe))
        names += further
        values = lay_over(inherited, {"name": _stem(recipe), **values})
    values.setdefault("name", _stem(recipe))
    return where, values, names


def _stem(recipe: str) -> str:
    return Path(recipe).name.removesuffix(".yaml").removesuffix(".yml")
