"""Guards that what a configuration names is looked up in one place, and what the counts of the walk count."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
import walk_counts

import harness

TREE = Path(harness.__file__).parents[1]
ELSEWHERE = {  # module -> why it looks a name up itself
    "harness.commands.listings": "it lists what is installed, whatever a configuration names",
    "harness.commands.run": "a task's kind decides under which key it is configured",
    "harness.config.base_recipe": "the tasks decide which recipe there is to be",
    "harness.engines.select": "an engine by the name that a configuration or a checkpoint gives it",
    "harness.studies.sweeps": "which methods have an option, before one is configured",
    "harness.training.job": "a training's own process has a name and options, and no configuration",
}


def test_nobody_else_looks_a_name_up() -> None:
    found = {
        name
        for name, module in walk_counts.modules(TREE).items()
        if not name.startswith(walk_counts.FINDERS) and [*walk_counts.look_ups(module)]
    }
    assert found == {*ELSEWHERE}, "ask harness.run.resolve (or add a reason; or take one away)"


@pytest.mark.parametrize(
    "text",
    [
        "from harness.data import benchmarks\nbenchmarks.get('x')",
        "from harness.data import benchmarks as tasks\ntasks.get('x')",
        "from harness.data.benchmarks import get\nget('x')",
        "from harness.data.benchmarks import get as found\nmap(found, 'x')",
        "import harness.plugins.registry\nharness.plugins.registry.load('method', 'x')",
        "from harness import plugins\nplugins.registry.load('method', 'x')",
        "from harness.run.plan import cells\ncells(config)",
        "def work():\n    from harness.run import plan\n    return plan.cells",
        "from harness.training import job\njob.make_method('vanilla', {})",
        "def make_method(name): ...\nmake_method('vanilla')",
    ],
)
def test_a_look_up_is_found_under_any_name(text: str) -> None:
    assert len([*walk_counts.look_ups(ast.parse(text))]) == 1


@pytest.mark.parametrize(
    "text",
    [
        "from harness.run.resolve import resolve\nresolve(config).cells()",
        "from harness.run.resolve import resolve\nnames = resolve(config)\nnames.make_method('vanilla')",
        "from harness.run import plan\nplan.epochs(config, cell)",
        "given = {}\ngiven.get('benchmarks')",
        "from harness.plugins import registry\nregistry.names('method')",
    ],
)
def test_what_is_none_is_not(text: str) -> None:
    assert not [*walk_counts.look_ups(ast.parse(text))]


# --- upward calls ----------------------------------------------------------------------------------


def of_module(name: str, text: str, **known: Any) -> FunctionType:
    """The function ``called`` of a module of that name."""
    space: dict[str, Any] = {"__name__": name, **known}
    exec(text, space)
    found: FunctionType = space["called"]
    return found


def counted(begin: FunctionType) -> dict[tuple[str, str], int]:
    trace = walk_counts.Trace({"old.work": "harness.pipeline.compare"})
    sys.setprofile(trace)
    try:
        begin()
    finally:
        sys.setprofile(None)
    return dict(trace.upward)


def test_the_order_is_the_contracts() -> None:
    ranks = walk_counts.ranks()
    assert (
        ranks["text"] < ranks["storage"] < ranks["run"] < ranks["training"] < ranks["pipeline"] < ranks["cli"]
    )
    assert ranks["mini"] == ranks["text"] == 0
    assert {path.stem for path in (TREE / "harness").glob("*.py")} - {*ranks} == {"__init__"}


def test_a_callback_from_below_is_counted_and_a_plain_call_is_not() -> None:
    above = of_module("harness.pipeline.compare", "def called(): pass")
    below = of_module("harness.storage.files", "def called(work): work(); work()")
    begin = of_module("harness.pipeline.compare", "def called(): below(above)", below=below, above=above)
    edge = "harness.storage.files:called", "harness.pipeline.compare:called"
    assert counted(begin) == {edge: 2}


def test_one_layer_and_what_lies_between_do_not_matter() -> None:
    above = of_module("harness.pipeline.compare", "def called(): pass")
    same = of_module("harness.pipeline.workers", "def called(work): work()")
    plugin = of_module("backends.vanilla", "def called(work): work()")
    below = of_module("harness.training.job", "def called(): plugin(above)", plugin=plugin, above=above)
    assert counted(of_module("harness.pipeline.x", "def called(): same(above)", same=same, above=above)) == {}
    assert counted(below) == {("harness.training.job:called", "harness.pipeline.compare:called"): 1}


def test_an_iterator_that_was_handed_down_is_a_callback() -> None:
    rows = of_module("harness.judging.stage", "def called():\n    yield 1\n    yield 2")
    below = of_module("harness.storage.files", "def called(rows): return list(rows)")
    begin = of_module("harness.judging.stage", "def called(): below(rows())", below=below, rows=rows)
    edge = "harness.storage.files:called", "harness.judging.stage:called"
    assert counted(begin) == {edge: 3}  # two rows and the end


def test_a_module_of_another_tree_stands_where_it_stands_now() -> None:
    above = of_module("old.work", "def called(): pass")
    below = of_module("harness.storage.files", "def called(): above()", above=above)
    assert counted(below) == {("harness.storage.files:called", "old.work:called"): 1}
