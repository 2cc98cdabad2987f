"""What a configuration names, found once: its cells, methods, train tasks and tasks.

``resolve(config)`` is where the rest of the harness asks; a run's ``RunContext`` asks here too. Nobody else
looks a name up (tests/harness/run/test_lookups.py). A configuration is enough, so that a plan and a reader of
a finished run ask alike. Cells go to other processes and hold names; what these stand for is found there.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from pydantic import TypeAdapter, ValidationError

from harness.config import RunConfig
from harness.contracts import Method, TrainTask, UsageError
from harness.data import benchmarks
from harness.data.benchmarks import Benchmark
from harness.plugins import plugin_files, registry
from harness.run import plan
from harness.run.plan import Cell

REMEMBERED = 32  # configurations: a command has a handful, a merge one a run


class Resolved:
    """What one configuration names, each found when it is first asked for; an error is raised each time."""

    def __init__(self, config: RunConfig):
        self.config = config
        self._methods: dict[str, Method] = {}
        self._train_tasks: dict[str, TrainTask] = {}
        self._benchmarks: dict[str, Benchmark] = {}

    def cells(self) -> list[Cell]:
        """All cells, the base model's first. Raises UsageError for unknown names."""
        return [*self._cells]

    @functools.cached_property
    def _cells(self) -> tuple[Cell, ...]:
        return tuple(plan.cells(self.config))

    def method(self, row: str) -> Method:
        """The method of a row with its options, to ask what it is and needs: one object for all who ask.
        Raises UsageError for an option that the method lacks."""
        if row not in self._methods:
            self._methods[row] = self.make_method(row)
        return self._methods[row]

    def make_method(self, row: str) -> Method:
        """As ``method``, an object of its own: for what lets a method prepare rows, which may leave its mark
        on it."""
        of = self.config.row(row)
        method_class: Any = self.method_class(row)
        known = [field.name for field in dataclasses.fields(method_class) if field.init]
        for option in of.options:
            if option not in known:
                raise registry.unknown(f"option of {row}", option, known)
        try:
            return _adapter(method_class).validate_python(of.options)
        except ValidationError as error:
            problem = error.errors()[0]
            section = ["variants", row, "options"] if row in self.config.variants else ["method_options", row]
            where = ".".join([*section, *map(str, problem["loc"])])
            raise UsageError(f"{where}: {problem['msg'].removeprefix('Value error, ')}") from error

    def method_class(self, row: str) -> type[Method]:
        """What a row's method is, whatever its options."""
        found: type[Method] = registry.load("method", self.config.row(row).method)
        return found

    def train_task(self, of: Cell | str) -> TrainTask:
        """The train task of a name, or the one that a trained cell learns."""
        name = of if isinstance(of, str) else of.train_task
        assert name is not None, "a cell that is not trained here has no train task"
        if name not in self._train_tasks:
            self._train_tasks[name] = registry.load("train task", name)
        return self._train_tasks[name]

    def train_tasks(self) -> list[TrainTask]:
        """Those that the configuration trains on, in its order."""
        return [self.train_task(name) for name in self.config.train_tasks]

    def benchmark(self, task: str) -> Benchmark:
        """The task of a name: the user's, ours, or lm-eval's. Raises UsageError with the nearest name."""
        if task not in self._benchmarks:
            self._benchmarks[task] = benchmarks.get(task, self.config.own_tasks)
        return self._benchmarks[task]


@functools.cache
def _adapter(method_class: Any) -> TypeAdapter[Method]:
    return TypeAdapter(method_class)


_known: list[Resolved] = []  # the newest last


def resolve(config: RunConfig) -> Resolved:
    """What ``config`` names. It is kept for this very object, which cannot change: another configuration,
    equal or not, is resolved for itself."""
    for one in reversed(_known):
        if one.config is config:
            return one
    found = Resolved(config)
    _known.append(found)
    del _known[:-REMEMBERED]
    return found


def every_train_task() -> list[TrainTask]:
    """All that are installed, whatever a configuration names: to tell of any task what it measures."""
    return [registry.load("train task", name) for name in registry.names("train task")]


plugin_files.when_changed(_known.clear)  # a name may stand for another file's class now
