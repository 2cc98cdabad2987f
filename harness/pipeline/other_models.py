"""The models that the options of a run's methods name (contracts.ModelRef): which they are and what they
take, before anything is trained, and how they go to a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from harness.config import RunConfig
from harness.contracts import ModelRef, model_refs
from harness.models import checkpoints
from harness.plugins import registry
from harness.run import plan
from harness.run.context import RunContext
from harness.run.resolve import resolve


def named(config: RunConfig) -> dict[str, list[str]]:
    """Each of the models, with the rows whose options name it, or that start from it."""
    found: dict[str, list[str]] = {}
    for row, variant in config.variants.items():
        if variant.model not in (None, config.model):
            found.setdefault(str(variant.model), []).append(row)
    for row in plan.methods(config):
        if config.row(row).method in registry.names("method"):  # not of a file that the run alone names
            for ref in model_refs(resolve(config).method(row)):
                found.setdefault(str(ref), []).append(row)
    return found


def size(ctx: RunContext, row: str) -> int:
    """Bytes that a row's method may hold in the CPU's memory at once: of those models that are here."""
    refs = model_refs(ctx.method(row))
    return sum(ctx.other_model(ref).size for ref in refs if checkpoints.is_here(ref))


def lines(ctx: RunContext) -> list[str]:
    """For the plan: what is read besides the base model, and what of it a run would fetch."""
    found = []
    bases = {variant.model for variant in ctx.config.variants.values()}
    for name, rows in named(ctx.config).items():
        if name in bases:
            what = "their base model"
        elif checkpoints.is_here(name):
            what = f"{ctx.other_model(name).size / 1e9:.2g} GB in the CPU's memory while it is read"
        else:
            what = "not here yet: a run fetches it"
        found.append(f"Other model: {name} for {', '.join(rows)} ({what})")
    return found


def moved(config: RunConfig, places: Mapping[str, str]) -> dict[str, Any]:
    """The sections of a recipe in which options name models that are in new places, with these."""
    options = {name: dict(given) for name, given in config.method_options.items()}
    variants = {name: one.model_dump() for name, one in config.variants.items()}
    if not any(name in places for name in named(config)):
        return {}
    for row in {row for rows in named(config).values() for row in rows}:
        method = resolve(config).method(row)
        values = {one.name: getattr(method, one.name) for one in fields(method) if one.init}  # type: ignore[arg-type]
        new = {name: _there(value, places) for name, value in values.items() if model_refs(value)}
        if row in variants:
            base = variants[row]["model"]
            variants[row]["model"] = places.get(str(base), base)
            variants[row]["options"] = {**variants[row]["options"], **new}
        else:
            options[row] = {**options.get(row, {}), **new}
    return {"method_options": options, "variants": variants}


def _there(value: Any, places: Mapping[str, str]) -> Any:
    """An option's value with its models in their new places, as a recipe has it."""
    if isinstance(value, ModelRef):
        return places.get(str(value), str(value))
    if isinstance(value, Mapping):
        return {name: _there(one, places) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_there(one, places) for one in value]
    return value
