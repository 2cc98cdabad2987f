"""Guards which cells a run has and what each answers, as ARCHITECTURE.md says, and every unknown name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness import config
from harness.contracts import UsageError
from harness.plugins import registry
from harness.run import plan

ALL = [name for name in registry.names("method") if name not in registry.NOT_IN_ALL]
SAFETY = ("hexphi_raw-mini", "hexphi_prefill-mini")


def cells(**overrides: Any) -> list[plan.Cell]:
    return plan.cells(config.load(None, overrides))


def test_all_is_the_seed_model_and_every_method_on_every_task() -> None:
    found = cells()
    tasks = ("gsm8k-mini", "samsum-mini", *SAFETY)
    assert found[0] == plan.Cell("seed", "seed", None, None, Path("seed"), tasks, frozenset(SAFETY))
    trained = [(cell.train_task, cell.method) for cell in found[1:]]
    assert trained == [(task, name) for task in ("gsm8k-mini", "samsum-mini") for name in ALL]
    assert all(cell.kind == "trained" and cell.seed == 42 for cell in found[1:])


def test_a_checkpoint_is_scored_on_its_own_utility_and_on_both_safety_tasks() -> None:
    by_task = {cell.train_task: cell.tasks for cell in cells(methods=["vanilla"])}
    assert by_task["gsm8k-mini"] == ("gsm8k-mini", *SAFETY)
    assert by_task["samsum-mini"] == ("samsum-mini", *SAFETY)


def test_cross_tasks_add_the_other_utilities() -> None:
    assert {cell.tasks for cell in cells(cross_tasks=True)} == {("gsm8k-mini", "samsum-mini", *SAFETY)}


def test_seeds_multiply_trained_cells_alone() -> None:
    found = cells(methods=["sdft", "vanilla"], train_tasks=["gsm8k-mini"], seeds=[3, 1])
    assert [str(cell.folder) for cell in found] == [
        "seed",
        "gsm8k-mini/sdft/seed-3",
        "gsm8k-mini/sdft/seed-1",
        "gsm8k-mini/vanilla/seed-3",
        "gsm8k-mini/vanilla/seed-1",
    ]
    assert found[2].label == "gsm8k-mini · sdft · seed 1"


def test_the_users_own_checkpoints_follow_the_seed_model() -> None:
    found = cells(methods=["seed"], checkpoints={"mine": "/somewhere"})
    assert [(cell.kind, cell.method, str(cell.folder)) for cell in found] == [
        ("seed", "seed", "seed"),
        ("checkpoint", "mine", "checkpoints/mine"),
    ]
    assert found[0].tasks == found[1].tasks


def test_where_a_checkpoint_was_trained_adds_no_cell() -> None:
    given = {"methods": ["vanilla"], "checkpoints": {"mine": "/somewhere"}}
    assert cells(**given, trained_on={"mine": "samsum-mini"}) == cells(**given)


def test_names_are_not_doubled() -> None:
    assert plan.methods(config.load(None, {"methods": ["sdft", "all", "seed", "sdft"]})) == [
        "sdft",
        *[name for name in ALL if name != "sdft"],
    ]
    folders = [cell.folder for cell in cells(cross_tasks=True, checkpoints={"mine": "x"}, seeds=[1, 2])]
    assert len(set(folders)) == len(folders)


def test_a_variant_is_a_row_beside_the_methods() -> None:
    variants = {"m2": {"method": "lookahead-true", "training": {"epochs": 2}}}
    found = cells(methods=["vanilla"], train_tasks=["gsm8k-mini"], variants=variants, eval_every_epoch=True)
    assert [str(cell.folder) for cell in found] == [
        "seed",
        "gsm8k-mini/vanilla/seed-42",
        "gsm8k-mini/m2/seed-42",
    ]
    assert (found[2].kind, found[2].method, found[2].tasks) == ("trained", "m2", found[1].tasks)
    resolved = config.load(None, {"variants": variants, "eval_every_epoch": True})
    assert [len(plan.epochs(resolved, cell)) for cell in found] == [0, 2, 1]
    named = config.load(None, {"variants": variants, "methods": ["m2", "vanilla"]})
    assert plan.methods(named) == ["vanilla", "m2"]
    assert plan.methods(config.load(None, {"variants": variants, "methods": ["seed"]})) == ["m2"]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"methods": ["vanila"]}, "unknown method 'vanila': did you mean 'vanilla'?"),
        ({"methods": ["sead"]}, "unknown method 'sead': did you mean 'seed'?"),
        ({"method_options": {"sdfd": {}}}, "unknown method 'sdfd': did you mean 'sdft'?"),
        ({"train_tasks": ["gsm8k-min"]}, "unknown train task 'gsm8k-min': did you mean 'gsm8k-mini'?"),
        ({"engine": "hff"}, "unknown engine 'hff': did you mean 'hf'?"),
        ({"safety.raw_task": "hexphi-raw"}, "unknown task 'hexphi-raw': did you mean 'hexphi_raw'?"),
        ({"data": {"gsm9k": "x"}}, "unknown data 'gsm9k': did you mean 'gsm8k'?"),
        ({"safety.raw_task": "gsm8k-mini"}, "task 'gsm8k-mini' is no safety task"),
        ({"variants": {"sdft": {"method": "vanilla"}}}, "variants.sdft: that is a method's name"),
        ({"variants": {"seed": {"method": "vanilla"}}}, "variants.seed: that is a method's name"),
        (
            {"variants": {"m2": {"method": "vanila"}}},
            "unknown method of variants.m2, 'vanila': did you mean 'vanilla'?",
        ),
        (
            {"variants": {"mine": {"method": "vanilla"}}, "checkpoints": {"mine": "x"}},
            "--checkpoint mine=…: that is a method's name",
        ),
        (
            {"checkpoints": {"mine": "x"}, "trained_on": {"mina": "gsm8k-mini"}},
            "unknown checkpoint 'mina': did you mean 'mine'?",
        ),
        (
            {"checkpoints": {"mine": "x"}, "trained_on": {"mine": "gsm8k-min"}},
            "unknown train task of this run 'gsm8k-min': did you mean 'gsm8k-mini'?",
        ),
        (
            {
                "checkpoints": {"mine": "x"},
                "train_tasks": ["gsm8k-mini"],
                "trained_on": {"mine": "samsum-mini"},
            },
            "unknown train task of this run 'samsum-mini'",
        ),
        ({"checkpoints": {"vanilla": "x"}}, "--checkpoint vanilla=…: that is a method's name"),
        ({"checkpoints": {"seed": "x"}}, "--checkpoint seed=…: that is a method's name"),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest(overrides: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as error:
        cells(**overrides)
    assert says in str(error.value)
