"""lm-eval's side of an engine, kept with it: a test asks first and looks at the completions then."""

from __future__ import annotations

from typing import Any

from harness.engines.base import Engine
from harness.engines.lm import Asking, TaskModel


def asking(engine: Engine, **how: Any) -> TaskModel:
    """The engine's TaskModel: a new one where ``how`` (of Asking) is given, else the one that it has."""
    if how or "asking" not in vars(engine):
        vars(engine)["asking"] = TaskModel(engine, Asking(**how))
    found: TaskModel = vars(engine)["asking"]
    return found
