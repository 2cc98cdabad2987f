"""Guards that what a configuration names is found once, is the right thing, and never another's."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from harness import config
from harness.config import RunConfig
from harness.contracts import UsageError
from harness.data import benchmarks
from harness.plugins import plugin_files, registry
from harness.run import plan
from harness.run import resolve as module
from harness.run.context import RunContext
from harness.run.resolve import Resolved, every_train_task, resolve

EMA = """
from dataclasses import dataclass
from harness.contracts import Method

@dataclass
class Ema(Method):
    name = "ema"
    decay: float = {decay}
"""


def made(**overrides: Any) -> RunConfig:
    return config.load(None, overrides)


@pytest.fixture(autouse=True)
def _forgotten() -> Any:
    yield
    plugin_files.forget()


def test_all_is_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[tuple[str, str]] = []
    load, get = registry.load, benchmarks.get
    monkeypatch.setattr(registry, "load", lambda kind, name: loaded.append((kind, name)) or load(kind, name))
    monkeypatch.setattr(
        benchmarks, "get", lambda name, sets=(): loaded.append(("task", name)) or get(name, sets)
    )
    given = made(methods=["vanilla"])
    asked = [
        lambda: resolve(given).method("vanilla"),
        lambda: resolve(given).train_task("gsm8k-mini"),
        lambda: resolve(given).benchmark("hexphi_raw-mini"),
        lambda: resolve(given)._cells,
    ]
    for ask in asked:
        first, times = ask(), len(loaded)
        assert ask() is first
        assert len(loaded) == times > 0


def test_a_run_asks_its_configuration(tmp_path: Path) -> None:
    ctx = RunContext(made(methods=["vanilla"]), tmp_path)
    names = resolve(ctx.config)
    cell = ctx.cells()[-1]
    assert ctx.cells() == names.cells() == plan.cells(ctx.config)
    assert ctx.method("vanilla") is names.method("vanilla")
    assert ctx.train_task(cell) is ctx.train_task("samsum-mini") is names.train_task("samsum-mini")
    assert ctx.benchmark(cell.tasks[0]) is names.benchmark(cell.tasks[0]) == benchmarks.get("samsum-mini")
    assert names.train_tasks() == [
        registry.load("train task", name) for name in ("gsm8k-mini", "samsum-mini")
    ]
    # Another configuration of the same run is another's.
    ctx.config = ctx.config.model_copy(update={"train_tasks": ("gsm8k-mini",)})
    assert {one.train_task for one in ctx.cells()} == {None, "gsm8k-mini"}


def test_what_is_changed_is_resolved_anew() -> None:
    first = made(methods=["lookahead-true"])
    other = first.model_copy(update={"method_options": {"lookahead-true": {"preview_tokens": 3}}})
    equal = made(methods=["lookahead-true"])
    assert resolve(first) is resolve(first)
    assert first == equal
    assert resolve(first) is not resolve(equal)
    plain, three = (resolve(one).method("lookahead-true") for one in (first, other))
    assert (plain.preview_tokens, three.preview_tokens) == (6, 3)  # type: ignore[attr-defined]
    assert resolve(first).method("lookahead-true") is plain
    assert len(resolve(first.model_copy(update={"seeds": (1, 2)})).cells()) > len(resolve(first).cells())


def test_a_list_of_cells_is_the_askers() -> None:
    names = resolve(made(methods=["vanilla"]))
    names.cells().clear()
    assert len(names.cells()) == 3


def test_a_method_that_prepares_is_an_object_of_its_own() -> None:
    names = resolve(made(variants={"m2": {"method": "lookahead-true", "options": {"preview_tokens": 2}}}))
    shared, own = names.method("m2"), names.make_method("m2")
    assert shared is names.method("m2")
    assert own == shared
    assert own is not shared
    assert names.make_method("m2") is not own
    assert names.method_class("m2") is type(own)


def test_an_error_is_raised_each_time() -> None:
    names = resolve(made(method_options={"vanilla": {"zzz": 1}}))
    for _ in range(2):
        with pytest.raises(UsageError, match="unknown option of vanilla 'zzz'"):
            names.method("vanilla")
        with pytest.raises(UsageError, match="unknown task 'gsm8k-minj': did you mean 'gsm8k-mini'"):
            names.benchmark("gsm8k-minj")
        with pytest.raises(UsageError, match="unknown train task 'samsum-minj'"):
            names.train_task("samsum-minj")
        with pytest.raises(UsageError, match="unknown method"):
            resolve(made(methods=["vanila"])).cells()


def test_a_file_that_comes_or_goes_is_not_what_it_was(tmp_path: Path) -> None:
    file = tmp_path / "ema.py"
    found = []
    for decay in (0.5, 0.25):
        file.write_text(EMA.format(decay=decay), encoding="utf-8")
        given = made(methods=[f"{file}:Ema"])
        found.append(resolve(given).method("ema").decay)  # type: ignore[attr-defined]
    assert found == [0.5, 0.25]
    plugin_files.forget()
    with pytest.raises(UsageError, match="unknown method 'ema'"):
        resolve(given).method("ema")


def test_a_file_named_after_a_look_is_the_one(tmp_path: Path) -> None:
    """One configuration, asked before and after the command names the file anew."""
    file = tmp_path / "ema.py"
    file.write_text(EMA.format(decay=0.5), encoding="utf-8")
    given = made(methods=[f"{file}:Ema"])
    assert resolve(given).method("ema").decay == 0.5  # type: ignore[attr-defined]
    file.write_text(EMA.format(decay=0.25), encoding="utf-8")
    plugin_files.named("method", [f"{file}:Ema"], registry.installed_names("method"), {})
    assert resolve(given).method("ema").decay == 0.25  # type: ignore[attr-defined]


def test_a_users_own_set_is_the_users(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"messages": [{"role": "user", "content": "How?"}]}\n', encoding="utf-8")
    quiz = {"file": str(rows), "metric": "contains"}
    given = made(methods=["vanilla"], safety_sets={"mine": str(rows)}, utility_sets={"quiz": quiz})
    mine = resolve(given).benchmark("mine")
    assert (mine.name, mine.task, mine.kind) == ("mine", "conversations", "safety")
    assert resolve(given).benchmark("quiz").task == "questions-contains"
    with pytest.raises(UsageError, match="unknown task 'mine'"):
        resolve(made(methods=["vanilla"])).benchmark("mine")
    cell = resolve(given).cells()[0]
    assert cell.safety_tasks == ["hexphi_raw-mini", "hexphi_prefill-mini", "mine"]


def test_cells_say_which_tasks_are_judged() -> None:
    further = {"utility_tasks": ["overrefusal-mini"], "safety_tasks": ["hexphi_sampled-mini"]}
    given = made(methods=["vanilla"], **further)
    for cell in resolve(given).cells():
        kinds = {task: benchmarks.get(task).kind for task in cell.tasks}
        assert cell.safety_tasks == [task for task in cell.tasks if kinds[task] == "safety"]
        assert {"overrefusal-mini", "hexphi_sampled-mini"} < {*cell.tasks}
        assert len(cell.safety_tasks) == 3
    trained = {cell.train_task: cell.utility_task for cell in resolve(given).cells()}
    assert trained == {None: "", "gsm8k-mini": "gsm8k-mini", "samsum-mini": "samsum-mini"}


def test_a_cell_that_travels_holds_names_alone() -> None:
    names = resolve(made(methods=["vanilla"]))
    for cell in names.cells():
        there = pickle.loads(pickle.dumps(cell))
        assert there == cell
        for value in vars(there).values():
            flat = value if isinstance(value, (tuple, frozenset)) else [value]
            assert all(isinstance(one, (str, int, Path, type(None))) for one in flat)


def test_few_configurations_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMEMBERED", 2)
    given = [made() for _ in range(3)]
    found = [resolve(one) for one in given]
    assert module._known == found[1:]
    assert resolve(given[0]) is not found[0]
    assert isinstance(resolve(given[0]), Resolved)


def test_every_train_task_is_of_what_is_installed() -> None:
    assert [one.name for one in every_train_task()] == registry.names("train task")
