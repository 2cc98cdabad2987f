"""Guards that one thing is said in one way on the command line: options, RECIPE's place, defaults."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import click
import pytest

from harness import cli, config
from harness.commands import help_texts
from harness.config import base_recipe
from harness.contracts import UsageError

Command = Callable[..., Any]


def leaves(group: click.Group = cli.cli, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        here = (*path, name)
        if isinstance(command, click.Group):
            yield from leaves(command, here)
        else:
            yield " ".join(here), command


LEAVES = dict(leaves())
OF_RECIPES = {
    name: command
    for name, command in LEAVES.items()
    if any(param.name == "settings" for param in command.params)
}


def option(command: click.Command, name: str) -> click.Option | None:
    return next(
        (
            one
            for one in command.params
            if isinstance(one, click.Option) and not one.hidden and name in one.opts
        ),
        None,
    )


@pytest.mark.parametrize("name", LEAVES)
def test_every_option_says_its_default(name: str) -> None:
    context = click.Context(LEAVES[name])
    for param in LEAVES[name].params:
        if isinstance(param, click.Option) and not param.hidden:
            shown = (param.get_help_record(context) or ("", ""))[1].lower()
            assert "default:" in shown or "[required]" in shown, f"{name} {param.opts}: {shown}"


@pytest.mark.parametrize("name", OF_RECIPES)
def test_a_command_that_reads_recipes_takes_recipe(name: str) -> None:
    if not any(param.name == "run" for param in OF_RECIPES[name].params):  # which has its own
        assert option(OF_RECIPES[name], "--recipe") is not None


@pytest.mark.parametrize("spellings", [("--method", "--methods"), ("--train-task", "--train-tasks")])
def test_both_numbers_of_a_word_are_understood(spellings: tuple[str, str]) -> None:
    for name, command in OF_RECIPES.items():
        one, other = (option(command, spelling) for spelling in spellings)
        assert one is other, name


def test_data_names_evaluation_files_everywhere() -> None:
    found = {name: option(command, "--data") for name, command in LEAVES.items()}
    shapes = {(one.metavar, one.help) for one in found.values() if one is not None}
    assert len(shapes) == 1
    assert next(iter(shapes))[0] == "TASK=FILE"


def test_the_defaults_are_those_of_the_recipes() -> None:
    """What a help text says, against what a command without a recipe gets."""
    mini, own = config.load("mini"), config.load(None, {"model": "owner/name"})
    said = help_texts.DEFAULTS

    def both(key: str) -> tuple[str, str]:
        _, of_mini, of_others = said[key].split("; ")
        return of_mini.removeprefix("mini: "), of_others.removeprefix("other models: ")

    assert both("methods") == (",".join(mini.methods), "the paper's five")
    assert len(own.methods) == 5
    for key in ("train_tasks", "judges"):
        assert both(key) == (",".join(getattr(mini, key)), ",".join(getattr(own, key)))
    assert both("scope") == (mini.safety.judged_scope, own.safety.judged_scope)
    assert both("safety_data") == (mini.safety_data, "none")
    assert own.safety_data is None
    assert said["recipe"] == f"{mini.name}; other models: {base_recipe.REAL}"
    for one in (mini, own):
        assert said["seeds"] == ",".join(map(str, one.seeds))
        assert (said["engine"], said["executor"]) == (one.engine, one.executor)
        training, responses = one.training, one.responses
        assert (said["tuning"], said["distributed"]) == (training.tuning, training.distributed)
        assert said["num_processes"] == str(training.num_processes)
        assert said["tensor_parallel"] == str(responses.tensor_parallel)
        assert said["data_parallel"] == str(responses.data_parallel)
        assert said["mode"] == one.judging.mode
        assert (one.judging.rubric, one.judging.threshold, one.judging.max_cost) == (None, None, None)
        assert (training.launcher, training.report_to, one.train_data, one.columns) == (None, (), None, {})
        assert (responses.server, responses.tokenizer, responses.thinking) == (None, None, False)
    assert said["model"] == mini.model


def test_headings_hold_what_a_command_uses(command: Command) -> None:
    trains = command("train", "--help").out
    for heading in ("Models and tasks:", "Data:", "Training:", "Run:"):
        assert f"\n{heading}" in trains
    for foreign in ("Scoring:", "Judging:", "--safety-task", "--utility-task", "--data ", "--thinking"):
        assert foreign not in trains
    answers = command("respond", "--help").out
    assert "Training:" not in answers
    assert "Judging:" not in answers
    assert "results/runs/respond-<name>" in " ".join(answers.split())


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("training.lr", "training.learning_rate"),
        ("lr", "training.learning_rate"),
        ("responses.lr", "training.learning_rate"),
        ("training.epoch", "training.epochs"),
        ("num_train_epochs", "training.epochs"),
        ("batch_size", "training.batch_size"),
        ("training.bs", "training.batch_size"),
        ("training.wd", "training.weight_decay"),
        ("training.lora_r", "training.lora.r"),
        ("lora_alpha", "training.lora.alpha"),
        ("training.lora.rank", "training.lora.r"),
        ("training.max_seq_length", "training.max_length"),
        ("judging.cost", "judging.max_cost"),
        ("methds", "methods"),
        ("variants.v.training.lr", "variants.v.training.learning_rate"),
    ],
)
def test_a_key_by_another_name_is_offered(given: str, meant: str) -> None:
    variant = {"variants": {"v": {"method": "vanilla", "training": {}}}} if given[0] == "v" else {}
    with pytest.raises(UsageError, match=rf"unknown key '.*': did you mean '{meant}'\?$"):
        config.load("mini", {**variant, given: 1})


def test_every_other_name_stands_for_a_key() -> None:
    """And is no key itself where that one is."""
    keys = {key for key, _, _ in config.meanings()}
    for other, meant in config.ELSEWHERE.items():
        places = [key.removesuffix(meant) for key in keys if key.rpartition(".")[2] == meant]
        assert places, meant
        assert not {f"{place}{other}" for place in places} & keys


def test_recipe_has_one_place_and_one_option(command: Command) -> None:
    both = command("compare", "mini", "--recipe", "llama2-7b-paper", "--dry-run")
    assert both.code == 2
    assert "given twice: mini and --recipe llama2-7b-paper" in both.err
    commands = ("compare", "tune --utility-floor 1", "sweep prefill-depth", "doctor", "train vanilla")
    for line in (*commands, "respond mini", "data show --method vanilla"):
        ended = command(*line.split(), "--recipe", "nosuch")
        assert (ended.code, ended.err.startswith("Error: no recipe 'nosuch'")) == (2, True), ended.err


def test_names_are_taken_from_one_option_or_from_several(command: Command) -> None:
    ended = command("compare", "--method", "vanilla", "--methods", "nope,sdft", "--dry-run")
    assert "unknown method 'nope'" in ended.err
    one = command("data", "show", "--methods", "vanilla,sdft")
    assert one.code == 2
    assert "'--method': takes one name here, and there are 2: vanilla, sdft" in one.err
