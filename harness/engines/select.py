"""What answers depend on, by engine: these of the recipe's ``responses`` are in their identity; speed and
memory are no part of it."""

from __future__ import annotations

from typing import Any

from harness.config import ResponsesConfig

ALWAYS = ("dtype", "limit", "thinking")
SETTINGS = {
    "hf": ("batch_size", "static_cache"),
    "vllm": ("tensor_parallel", "max_context"),
    "openai": ("server",),
}
FURTHER = {"hf": ("continuous", "cudnn_attention")}  # the same, where they are not the default


def settings_of_answers(settings: ResponsesConfig, engine: str) -> dict[str, Any]:
    """Those that answers of ``engine`` depend on."""
    values, usual = settings.model_dump(mode="json"), ResponsesConfig().model_dump(mode="json")
    names = [*ALWAYS, *SETTINGS.get(engine, ())]
    names += [name for name in FURTHER.get(engine, ()) if values[name] != usual[name]]
    return {name: values[name] for name in names}
