"""Which engine answers, and what its class says of its answers: settings and versions that are part of their
identity. Speed and memory are no part of it."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from typing import Any

from harness.config import ResponsesConfig
from harness.contracts import HarnessError
from harness.engines import engine_checks
from harness.engines.base import Engine
from harness.plugins import plugin_code, registry

AUTO = "auto"  # a configuration that leaves the choice to the machine
ALWAYS = ("dtype", "limit", "thinking")  # of ``responses``: in the identity of every engine's answers


def engine_class(name: str) -> type[Engine]:
    """The class behind an engine's name. Raises UsageError for an unknown name, HarnessError for something
    that is no engine."""
    loaded = registry.load("engine", name)
    if not (isinstance(loaded, type) and issubclass(loaded, Engine)):
        raise HarnessError(f"engine '{name}' is no Engine class of harness.engines.base")
    plugin_code.check_names(f"engine '{name}'", loaded)
    engine_checks.check_class(name, loaded)
    for setting in (*loaded.settings, *loaded.settings_if_set):
        if setting not in ResponsesConfig.model_fields:
            raise HarnessError(f"engine '{name}' depends on '{setting}', which is no setting of responses")
    return loaded


def is_named(engine: str) -> bool:
    """Whether a configuration names its engine, and does not leave it to the machine."""
    return engine != AUTO


def chosen(settings: ResponsesConfig, device: str, weights: Callable[[], int | None]) -> str:
    """The engine that ``auto`` stands for: the first that says it suits this machine and model."""
    for name in registry.names("engine"):
        if engine_class(name).suits(settings, device, weights):
            return name
    raise HarnessError(
        f"no engine suits this machine: name one (--engine {'|'.join(registry.names('engine'))})"
    )


def for_servers(engine: str) -> str:
    """The engine of models that a server has, in a run with ``engine``: that one, or the first of servers."""
    names = [engine, *registry.names("engine")]
    return next(name for name in names if is_named(name) and engine_class(name).remote)


def devices(engine: str, settings: ResponsesConfig) -> int:
    """How many GPUs an engine takes; one that is yet to be chosen, one."""
    return engine_class(engine).devices(settings) if is_named(engine) else 1


def settings_of_answers(settings: ResponsesConfig, engine: str) -> dict[str, Any]:
    """Those that answers of ``engine`` depend on."""
    values, usual = settings.model_dump(mode="json"), ResponsesConfig().model_dump(mode="json")
    kind = engine_class(engine)
    names = [*ALWAYS, *kind.settings]
    names += [name for name in kind.settings_if_set if values[name] != usual[name]]
    return {name: values[name] for name in names}


def versions(engine: str) -> dict[str, str]:
    """What of an engine's own packages answers depend on, besides the libraries that all share."""
    packages = engine_class(engine).packages
    return {d.metadata["Name"]: d.version for name in packages for d in metadata.distributions(name=name)}
