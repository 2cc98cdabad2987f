"""Guards that what would stop a run after its first training is found before it: in the plan, by doctor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness import config
from harness.contracts import Example, HarnessError, Method, PrepareContext
from harness.pipeline import doctor, needs
from harness.pipeline.checkup.finding import Finding

Command = Callable[..., Any]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``installed("wandb")``: of the packages that are asked for only these are here."""

    def only(*names: str) -> None:
        monkeypatch.setattr(needs, "is_here", lambda module: module in names)

    only()
    return only


@pytest.mark.parametrize(
    ("overrides", "here", "says"),
    [
        ({"training.report_to": ["wandb"]}, (), "tracker wandb is not installed: pip install wandb, or --set "
         "training.report_to=[]"),
        ({"training.report_to": ["wandb", "trackio"]}, ("trackio",),
         "tracker wandb is not installed: pip install wandb, or --report-to trackio"),
        ({"training.tuning": "qlora"}, (),
         "bitsandbytes is not installed: pip install bitsandbytes, or --tuning lora"),
        ({"training.optimizer": "adamw_8bit"}, (), "optimizer adamw_8bit: bitsandbytes is not installed"),
        ({"training.liger": True}, (), "pip install liger-kernel"),
        ({"training.num_processes": 2}, (), "DeepSpeed is not installed"),
        ({"training.attention": "flash_attention_2"}, (), "attention flash_attention_2 is not installed"),
        ({"executor": "ray"}, (), "Ray is not installed"),
        ({"variants": {"v": {"method": "vanilla", "training": {"tuning": "qlora"}}}}, (), "bitsandbytes"),
        ({"judges": ["llama-guard-3"], "judging.engine": "vllm"}, (), "judging.engine vllm: vLLM is not"),
    ],
)  # fmt: skip
def test_a_missing_package_is_named_with_what_to_do(
    overrides: dict[str, Any], here: tuple[str, ...], says: str, installed: Callable[..., None]
) -> None:
    installed(*here)
    with pytest.raises(HarnessError) as caught:
        needs.check(config.load("mini", overrides))
    assert says in str(caught.value)
    assert "; " not in str(caught.value)  # one thing is missing


@pytest.mark.parametrize(
    ("overrides", "here"),
    [
        ({}, ()),
        ({"training.report_to": ["tensorboard"]}, ("tensorboardX",)),
        ({"training.report_to": ["wandb"], "methods": ["seed"]}, ()),  # nothing is trained
        ({"training.distributed": "zero3"}, ()),  # on one device
        ({"training.num_processes": 2, "training.distributed": "fsdp2"}, ()),
        ({"training.tuning": "qlora"}, ("bitsandbytes",)),
        ({"judges": ["keyword"], "judging.engine": "vllm"}, ()),
    ],
)
def test_what_is_not_used_is_not_missed(
    overrides: dict[str, Any], here: tuple[str, ...], installed: Callable[..., None]
) -> None:
    installed(*here)
    assert needs.missing(config.load("mini", overrides)) == []


def test_the_names_are_those_of_real_modules() -> None:
    assert needs.is_here("pytest")
    assert not needs.is_here("no_such_module_anywhere")
    assert not needs.is_here("no_such_package.module")


def test_a_missing_tracker_is_in_the_plan_in_doctor_and_stops_a_run(
    command: Command, installed: Callable[..., None], tmp_path: Path, small: Callable[..., list[str]]
) -> None:
    flags = ["--methods", "vanilla", "--report-to", "wandb", *small(), "--out", tmp_path / "run"]
    line = "tracker wandb is not installed: pip install wandb, or --set training.report_to=[]"
    planned = command("compare", *flags, "--dry-run")
    assert planned.code == 0
    assert f"Missing here: {line}\n" in planned.out
    for walk in (["compare"], ["train", "vanilla"]):
        ended = command(*walk, *(flags if walk == ["compare"] else flags[2:]))
        assert (ended.code, ended.err) == (1, f"Error: {line}\n")
    assert not (tmp_path / "run").exists()
    looked = command("doctor", *flags)
    assert looked.code == 1
    assert "tracker wandb" in looked.err


def examined(tmp_path: Path, **overrides: Any) -> dict[str, Finding]:
    found = doctor.examine(config.load("mini", overrides), tmp_path / "run")
    return {finding.about: finding for finding in found}


def test_doctor_reads_the_rows_that_are_trained_on(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"q": "1+1?", "a": "#### 2"}\n')
    given = {"train_tasks": ["gsm8k-mini"], "train_data": str(rows), "methods": ["vanilla"]}
    wrong = examined(tmp_path, **given, columns={"prompt": "nope", "answer": "a"})["rows"]
    assert wrong.status == "fail"
    assert wrong.found == f"{rows}, line 1: no column 'nope'; there are 'a', 'q'"
    right = examined(tmp_path, **given, columns={"prompt": "q", "answer": "a"})
    assert right["rows of gsm8k-mini"].status == "pass"
    assert right["rows of gsm8k-mini"].found == f"1 from {rows}"
    assert right["needed packages"].status == "pass"


@dataclass
class Broken(Method):
    """A method whose own code fails."""

    name = "broken"
    summary = "fails"
    version = 1

    def prepare(self, examples: list[Example], context: PrepareContext) -> list[Example]:
        raise KeyError("no such thing")


@dataclass
class Asking(Method):
    """A method that lets the base model write, and takes what it writes."""

    name = "asking"
    summary = "asks"
    version = 1

    def prepare(self, examples: list[Example], context: PrepareContext) -> list[Example]:
        prompts = [example.messages[:-1] for example in examples]
        made = context.generate(prompts, opening="", max_tokens=4)
        return [example.with_answer(text) for example, text in zip(examples, made, strict=True)]


def test_a_methods_own_error_comes_before_any_training(
    command: Command, plugin: Callable[..., None], small: Callable[..., list[str]], tmp_path: Path
) -> None:
    plugin("method", "broken", Broken)
    out = tmp_path / "run"
    flags = ["--methods", "vanilla,broken", *small(), "--out", out]
    for more in ([], ["--dry-run"]):
        ended = command("compare", *flags, *more)
        assert ended.code == 1
        assert ended.err.startswith(
            "Error: method 'broken' cannot prepare rows of gsm8k-mini: KeyError: 'no such thing' ("
        )
        assert f"{Path(__file__).name}, line " in ended.err
        assert ended.err.count("\n") == 1
        assert not [*out.rglob("training.json")]
    found = examined(tmp_path, methods=["broken"], train_tasks=["gsm8k-mini"])["needs"]
    assert (found.status, found.found) == ("fail", ended.err.strip().removeprefix("Error: "))


def test_a_method_that_asks_the_base_model_is_tried_without_it(
    plugin: Callable[..., None], tmp_path: Path
) -> None:
    plugin("method", "asking", Asking)
    found = examined(tmp_path, methods=["asking"], train_tasks=["gsm8k-mini"])
    assert "needs" not in found
