"""How often the walk from ``compare``'s configuration to the table looks a name up, and calls back up.

    PYTHONPATH=TREE python tests/support/walk_counts.py [--places FILE] [--list]

*Places of a look-up* are counted in the source, in the modules that ``compare`` can reach by imports: where
one of LOOK_UPS is named, each of which finds what a name in a configuration stands for. What does the finding
(FINDERS) is left out. *Look-ups made* and *upward calls* are counted while a small run of the mini world goes
the walk in one process. An upward call is a call from a function of the harness into one of a module that
stands higher in pyproject's layers. Imports cannot go that way, so it takes a function, a method or an
iterator that was handed down. Plugins and libraries between the two are looked through, and what runs while
a module is imported is no call. ``--places`` is JSON for a tree from before the layers: where each of its
modules stands now.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

HERE = Path(__file__).parents[2]
LOOK_UPS = ("benchmarks.get", "registry.load", "plan.cells", "make_method")
FINDERS = ("harness.run.", "harness.plugins.", "harness.data.")
OLD_FINDERS = (
    "harness.plan",
    "harness.workshop",
    "harness.registry",
    "harness.benchmarks",
)  # before packages
ENTRIES = ("harness.pipeline.compare", "harness.comparison")
RUN: Mapping[str, Any] = {
    "methods": ["vanilla", "lookahead-true"],
    "train_tasks": ["gsm8k-mini"],
    "jobs": 1,
    "training.max_examples": 16,
    "responses.limit": 4,
}


# --- in the source ---------------------------------------------------------------------------------


def modules(tree: Path) -> dict[str, ast.Module]:
    """Every module of the harness in a source tree, by its dotted name."""
    found = {}
    for path in sorted((tree / "harness").rglob("*.py")):
        parts = path.relative_to(tree).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imported(module: ast.Module) -> Iterator[tuple[str, str]]:
    """(name here, dotted name) of all that a module imports absolutely, inside functions too."""
    for node in ast.walk(module):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for one in node.names:
                yield one.asname or one.name, f"{node.module}.{one.name}"
        elif isinstance(node, ast.Import):
            for one in node.names:
                yield one.asname or one.name, one.name


def reachable(tree: Mapping[str, ast.Module], entry: str) -> set[str]:
    """The modules that ``entry`` imports, directly or not, and itself."""
    found, waiting = {entry}, [entry]
    while waiting:
        for _, name in imported(tree[waiting.pop()]):
            for one in (name, name.rpartition(".")[0]):
                if one in tree and one not in found:
                    found.add(one)
                    waiting.append(one)
    return found


def look_ups(module: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, which of LOOK_UPS) of every place where a module names one, under whatever name it is imported;
    a function that is handed on counts like one that is called."""
    names = dict(imported(module))
    for node in ast.walk(module):
        if isinstance(node, ast.Attribute) and isinstance(node.value, (ast.Name, ast.Attribute)):
            first, *rest = ast.unparse(node).split(".")
            target = ".".join([names.get(first, first), *rest])
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            target = names.get(node.id, node.id)
        else:
            continue
        found = next((one for one in LOOK_UPS if target.endswith(f".{one}")), None)
        if (target.startswith("harness.") and found) or target == "make_method":
            yield node.lineno, found or target


def places(tree: Path) -> dict[str, list[tuple[int, str]]]:
    """Where the modules of the walk look names up: module -> (line, look-up)."""
    every = modules(tree)
    entry = next(name for name in ENTRIES if name in every)
    return {
        name: found
        for name in sorted(reachable(every, entry))
        if not (name.startswith(FINDERS) or name in OLD_FINDERS) and (found := [*look_ups(every[name])])
    }


# --- in a run --------------------------------------------------------------------------------------


def ranks() -> dict[str, int]:
    """How high each unit of the harness stands, by its name below ``harness``: 0 is the lowest."""
    contracts = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    layers = next(one["layers"] for one in contracts if one["type"] == "layers")
    return {name: rank for rank, line in enumerate(reversed(layers)) for name in line.split(" | ")}


class Trace:
    """What a profile function of Python's sees of the harness."""

    def __init__(self, moved: Mapping[str, str]):
        self.moved, self.ranks = moved, ranks()
        self.upward: Counter[tuple[str, str]] = Counter()  # (from where, into what)
        self.made: Counter[str] = Counter()
        self._known: dict[str, int | None] = {}

    def rank(self, module: str) -> int | None:
        """How high a module stands; None: it is none of the harness."""
        if module not in self._known:
            top, _, unit = self.moved.get(module, module).partition(".")
            self._known[module] = self.ranks.get(unit.partition(".")[0]) if top == "harness" else None
        return self._known[module]

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        module = frame.f_globals.get("__name__", "")
        if event != "call" or (above := self.rank(module)) is None or frame.f_code.co_name == "<module>":
            return
        name = f"{module.rpartition('.')[2]}.{frame.f_code.co_name}"
        if name in LOOK_UPS or frame.f_code.co_name == "make_method":
            self.made[name if name in LOOK_UPS else "make_method"] += 1
        caller = frame.f_back
        while caller is not None and (below := self.rank(caller.f_globals.get("__name__", ""))) is None:
            caller = caller.f_back
        if caller is None or caller.f_code.co_name == "<module>":
            return
        source = caller.f_globals["__name__"]
        if above > below:
            self.upward[f"{source}:{caller.f_code.co_qualname}", f"{module}:{frame.f_code.co_qualname}"] += 1


def traced(moved: Mapping[str, str]) -> Trace:
    """A small comparison of the mini world under a trace."""
    import harness

    trace = Trace(moved)
    with tempfile.TemporaryDirectory() as folder:
        sys.setprofile(trace)
        try:
            harness.compare(out=f"{folder}/run", progress=False, cache=f"{folder}/cache", **RUN)
        finally:
            sys.setprofile(None)
    return trace


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--places", type=Path, help="JSON: modules of another tree to those of this one")
    parser.add_argument("--list", action="store_true", help="print each place and each upward call, too")
    given = parser.parse_args()
    import harness

    found = places(Path(harness.__file__).parents[1])
    by_name = Counter(name for lines in found.values() for _, name in lines)
    print(f"Places that look a name up: {by_name.total()}", dict(by_name))
    trace = traced(json.loads(given.places.read_text(encoding="utf-8")) if given.places else {})
    print(f"Look-ups made by the run: {trace.made.total()}", dict(trace.made))
    print(f"Upward calls: {len(trace.upward)} places, {trace.upward.total()} calls")
    if given.list:
        for module, lines in found.items():
            print(f"{module}: {', '.join(f'{name} (line {line})' for line, name in lines)}")
        for (source, target), times in trace.upward.most_common():
            print(f"{source} -> {target}: {times}")


if __name__ == "__main__":
    main()
