"""What cannot change within a run folder: all that its answers and trainings rest on."""

from __future__ import annotations

from typing import Any

from harness.config import RunConfig
from harness.data import loading
from harness.engines import select
from harness.run.context import RunContext
from harness.storage.files import content_hash

GROWING = (
    "methods",
    "train_tasks",
    "seeds",
    "judges",
    "checkpoints",
    "trained_on",
    "utility_tasks",
    "safety_tasks",
    "safety_sets",
    "utility_sets",
    "code",
    "method_options",
    "variants",
    "cross_tasks",
    "jobs",
    "judging",
    "executor",
    "ray",
)

APART = ("name", "note", "paper", "cache", "alignment", "aligned")  # what they do shows in the base model


def find_fixed(ctx: RunContext) -> dict[str, Any]:
    """What cannot change within a run folder: flat, so that a difference can be named."""
    config = ctx.config
    by_content = {"model", "train_data", "columns", "mix", "safety_data", "data"}
    values = config.model_dump(mode="json", exclude={*GROWING, *by_content, *APART})
    values["training"] = config.training.identity()
    values["responses"] = select.settings_of_answers(config.responses, ctx.engine_name)
    values["responses"]["part"] = config.responses.part
    if config.responses.part != "all":
        values["responses"]["validation_share"] = config.responses.validation_share
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": inner_value for inner, inner_value in value.items()}
        else:
            flat[key] = value
    flat["model"] = content_hash(ctx.seed_fingerprint)
    flat["engine"] = ctx.engine_name
    flat |= _find_train_data(config)
    if config.safety_data:
        flat["safety_data"] = loading.source_hash(config.safety_data)
    flat |= {f"mix.{loading.source_hash(source)[:12]}": share for source, share in config.mix.items()}
    flat |= {f"safety_sets.{name}": loading.data_hash(path) for name, path in config.safety_sets.items()}
    flat |= {
        f"utility_sets.{name}": content_hash([loading.data_hash(one.file), one.metric])
        for name, one in config.utility_sets.items()
    }
    return flat | {f"data.{task}": loading.data_hash(path) for task, path in config.data.items()}


def _find_train_data(config: RunConfig) -> dict[str, Any]:
    """What each train task learns from that is not its own rows: ``train_data.TASK`` and ``columns.TASK``."""
    found: dict[str, Any] = {}
    for task in config.train_tasks:
        source, columns = config.train_source(task), config.columns_of(task)
        found |= {f"train_data.{task}": loading.source_hash(source)} if source else {}
        found |= {f"columns.{task}": columns} if columns else {}
    return found
