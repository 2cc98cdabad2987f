"""Guards that a model of one's own takes nothing from the mini world, and that the mini world's keep it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import own_model
import pytest

from harness import config
from harness.config import RunConfig, base_recipe, recipe
from harness.contracts import UsageError
from harness.mini import seed_model_path
from harness.models import devices
from harness.run import context

Command = Callable[..., Any]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return own_model.make(tmp_path_factory.mktemp("models") / "own")


def adapter(folder: Path, base: str) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    return folder


# --- which recipe ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "recipe"),
    [
        ({}, "mini"),
        ({"model": None}, "mini"),
        ({"model": "mini"}, "mini"),
        ({"model": "./anything"}, "real"),
        ({"model": "owner/name"}, "real"),
        ({"model": "owner/name", "checkpoints": {"mine": "owner/other"}}, "real"),
        ({"model": "mini", "checkpoints": {"mine": "owner/other"}}, "mini"),
        ({"checkpoints": {"mine": "./not-there"}}, "mini"),  # refused as no model, elsewhere
        ({"checkpoints": {"mine": "openai:m@http://localhost:1/v1"}}, "mini"),
        ({"checkpoints": {"mine": str(seed_model_path())}}, "mini"),
        ({"checkpoints": "no mapping"}, "mini"),
    ],
)
def test_which_recipe_a_command_without_one_takes(overrides: dict[str, Any], recipe: str) -> None:
    assert base_recipe.chosen(overrides)[0] == recipe


def test_a_whole_checkpoint_is_not_compared_with_itself(own: Path, tmp_path: Path) -> None:
    """Its own weights as the base model would show that no safety was lost, whatever was."""
    for place in (str(own), "owner/name"):
        with pytest.raises(UsageError, match=r"^--checkpoint mine=.*: from which model .* Add --model BASE"):
            base_recipe.chosen({"checkpoints": {"mine": place}})
    adapted = adapter(tmp_path / "adapter", str(own))
    with pytest.raises(UsageError, match="--checkpoint mine="):
        base_recipe.chosen({"checkpoints": {"adapted": str(adapted), "mine": str(own)}})


def test_an_adapters_base_is_the_model(own: Path, tmp_path: Path) -> None:
    one = str(adapter(tmp_path / "one", str(own)))
    found = base_recipe.chosen({"checkpoints": {"mine": one, "again": one}})
    assert found == ("real", {"model": str(own)})
    assert base_recipe.for_checkpoint(one) == ("real", {"model": str(own)})
    of_mini = str(adapter(tmp_path / "of-mini", str(seed_model_path())))
    assert base_recipe.chosen({"checkpoints": {"mine": of_mini}}) == ("mini", {})
    other = str(adapter(tmp_path / "other", "owner/name"))
    with pytest.raises(UsageError, match="from which model"):
        base_recipe.chosen({"checkpoints": {"mine": one, "other": other}})


def test_what_answers_alone(own: Path, tmp_path: Path) -> None:
    assert base_recipe.for_checkpoint("mini") == ("mini", {})
    assert base_recipe.for_checkpoint(str(seed_model_path())) == ("mini", {})
    assert base_recipe.for_checkpoint(str(own)) == ("real", {"model": str(own)})
    server = "openai:m@http://localhost:1/v1"
    assert base_recipe.for_checkpoint(server)[0] == "real"
    assert base_recipe.for_checkpoint(server, ["gsm8k-mini", "hexphi_raw-mini"])[0] == "mini"
    assert base_recipe.for_checkpoint(server, ["gsm8k-mini", "gsm8k"])[0] == "real"


def test_the_vocabulary_tells_the_mini_world(own: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(seed_model_path(), tmp_path / "copy"))
    tokenizer = copied / "tokenizer.json"
    tokenizer.write_text(json.dumps(json.loads(tokenizer.read_text()), indent=4))  # saved by another library
    assert not base_recipe.is_own(str(copied))
    changed = json.loads(tokenizer.read_text())
    changed["model"]["vocab"]["zzz"] = 99_999
    tokenizer.write_text(json.dumps(changed))
    assert base_recipe.is_own(str(copied))
    tokenizer.write_text(" " * 10_000_000)  # as large as a real one's
    assert base_recipe.is_own(str(copied))
    tokenizer.write_text("{")
    assert not base_recipe.is_own(str(copied))  # no model: refused where it is loaded
    tokenizer.unlink()
    assert not base_recipe.is_own(str(copied))
    (copied / "tokenizer.model").write_bytes(b"sentencepiece")
    assert base_recipe.is_own(str(copied))


# --- what it says ----------------------------------------------------------------------------------


def test_a_real_model_takes_the_papers_tasks_and_budget(own: Path) -> None:
    """RECIPE §2, §5."""
    found = config.load(None, {"model": str(own)})
    assert (found.name, found.model, found.note, found.paper) == ("real-own", str(own), None, None)
    assert config.load(None, {"model": "owner/Some Name", "name": "mine"}).name == "mine"
    assert found.train_tasks == ("gsm8k", "samsum")
    assert (found.safety.raw_task, found.safety.prefill_task) == ("hexphi_raw", "hexphi_prefill")
    assert (found.safety.prefill_tokens, found.judges, found.safety_data) == (3, ("keyword",), None)
    assert found.methods == ("vanilla", "sdft", "constrained-sft", "lookahead-true", "lookahead-virtual")
    training = found.training
    assert (training.epochs, training.learning_rate, training.schedule) == (3, 2e-5, "linear")
    assert (training.batch_size, training.betas, training.weight_decay) == (64, (0.5, 0.999), 0.0)
    assert (training.max_grad_norm, training.warmup_steps, training.max_examples) == (1.0, 0, None)
    assert (training.device, training.dtype, found.responses.dtype) == ("auto", "auto", "auto")
    assert (found.threads, found.method_options, found.engine) == (None, {}, "auto")
    assert found.seeds == (42,)


def test_a_recipe_that_names_its_model_alone_takes_them_too(own: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"model: {own}\ntraining: {{epochs: 1}}\n")
    found = config.load(str(file))
    assert (found.name, found.judges, found.train_tasks) == ("mine", ("keyword",), ("gsm8k", "samsum"))
    assert (found.training.epochs, found.training.dtype) == (1, "auto")
    file.write_text("training: {epochs: 1}\n")
    assert config.load(str(file)).judges == ("mini-exact",)
    assert config.load(str(file), {"model": str(own)}).judges == ("keyword",)
    file.write_text(f"extends: real\nmodel: {own}\njudges: [llama-guard-3]\n")
    assert config.load(str(file)).judges == ("llama-guard-3",)
    file.write_text(f"extends: mini\nmodel: {own}\n")
    assert config.load(str(file)).judges == ("mini-exact",)  # asked for by name
    assert config.load("mini", {"model": str(own)}).train_tasks == ("gsm8k-mini", "samsum-mini")


@pytest.mark.parametrize("name", [name for name in config.recipe_names() if name != "mini"])
def test_the_packaged_recipes_are_what_they_say(name: str) -> None:
    """The base recipe lies under them and changes nothing."""
    values = recipe._read(name)[1]
    values.pop("presets", None)
    assert config.load(name) == RunConfig.model_validate(values)


def test_the_base_recipe_needs_a_model(command: Command) -> None:
    with pytest.raises(UsageError, match=r"^recipe 'real': for which model\? add --model MODEL"):
        config.load("real")
    assert "real  " in command("recipes").out


@pytest.mark.parametrize(
    ("choice", "device", "found"),
    [("auto", "cpu", "float32"), ("bfloat16", "cpu", "bfloat16"), ("float32", "cuda", "float32")],
)
def test_the_precision_of_a_device(choice: str, device: str, found: str) -> None:
    assert devices.dtype(choice, device) == found


def test_auto_precision_asks_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.dtype("auto", "cuda") == "bfloat16"  # a plan for another machine
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for has, found in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has=has, **_: has)
        assert devices.dtype("auto", "cuda") == found


def test_a_runs_record_holds_no_auto_precision(tmp_path: Path) -> None:
    variant = {"method": "vanilla", "training": {"dtype": "auto"}}
    other = {"method": "sdft", "training": {"epochs": 1}}
    asked = config.load("mini", {"variants": {"a": variant, "b": other}, "training.dtype": "auto"})
    settled = context.RunContext(asked, tmp_path).config
    assert {settled.row(name).training.dtype for name in ("vanilla", "a", "b")} == {"float32"}
    assert settled.variants["b"] == asked.variants["b"]
    cuda = config.load(
        "mini", {"training.dtype": "auto", "responses.dtype": "auto", "training.device": "cuda"}
    )
    ctx = context.RunContext(cuda, tmp_path)
    assert {ctx.config.training.dtype, ctx.config.responses.dtype} <= {"float32", "bfloat16"}
    plain = config.load("mini")
    assert context.RunContext(plain, tmp_path).config is plain


# --- as a user sees it -----------------------------------------------------------------------------


def test_the_plan_says_what_a_model_of_ones_own_gets(own: Path, command: Command, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "1+1?", "answer": "#### 2"}\n')
    flags = ["--model", own, "--train-tasks", "gsm8k", "--methods", "vanilla", "--dry-run"]
    ended = command("compare", *flags, "--out", tmp_path / "run")  # no network: the hub has the rest
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    heading = f"model {own}; device cpu; engine hf; precision float32; judged by keyword"
    assert heading in lines
    assert lines[lines.index(heading) + 1].startswith("keyword: looks for refusal phrases, no more.")
    assert "--judge llama-guard-3" in ended.out
    assert "Mini world" not in ended.out
    assert "The training rows of gsm8k are not here yet: a run fetches them" in ended.out
    assert not (tmp_path / "run").exists()
    given = command("compare", *flags, "--train-data", rows, "--judge", "openai:gpt-4o")
    assert "judged by openai:gpt-4o" in given.out
    assert "looks for refusal phrases" not in given.out


def test_respond_keeps_out_of_a_finished_run(
    command: Command, run_copy: Path, snapshot: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    finished = tmp_path / "results/runs/mini"
    finished.parent.mkdir(parents=True)
    shutil.copytree(run_copy, finished)
    before = snapshot(finished)
    flags = ["--tasks", "gsm8k-mini", "--set", "responses.limit=2"]
    ended = command("respond", seed_model_path(), "--name", "mine", *flags)
    assert ended.code == 0, ended.err
    assert snapshot(finished) == before
    assert (tmp_path / "results/runs/respond-mine/checkpoints/mine/gsm8k-mini/responses.jsonl").is_file()


@pytest.mark.slow
def test_a_model_of_ones_own_answers_alone(own: Path, command: Command, tmp_path: Path) -> None:
    test = tmp_path / "test.jsonl"
    test.write_text('{"question": "1+1?", "answer": "#### 2"}\n')
    out = tmp_path / "run"
    ended = command("respond", own, "--tasks", "gsm8k", "--data", f"gsm8k={test}", "--out", out)
    assert ended.code == 0, ended.err
    assert f"model {own}; device cpu; engine hf; precision float32\n" in ended.out
    record = json.loads((out / "run.json").read_text())["config"]
    assert (record["model"], record["responses"]["dtype"], record["note"]) == (str(own), "float32", None)


def test_data_of_tasks_that_are_not_asked_for_are_not_needed(
    own: Path, command: Command, tmp_path: Path
) -> None:
    """hexphi_prefill is of the recipe as well; its answers are on the hub alone."""
    requests = tmp_path / "requests.jsonl"
    requests.write_text('{"instruction": "one two", "category": "x"}\n')
    flags = ["--tasks", "hexphi_raw", "--data", f"hexphi_raw={requests}", "--out", tmp_path / "run"]
    ended = command("respond", own, *flags)
    assert ended.code == 0, ended.err
    assert (tmp_path / "run/checkpoints" / own.name / "hexphi_raw/responses.jsonl").is_file()


def test_the_hubs_retries_are_no_lines_of_their_own(caplog: pytest.LogCaptureFixture) -> None:
    """Five tries were ten lines before the one that says what is the matter."""
    import logging

    from huggingface_hub.utils import _http

    context.quiet()
    assert _http.logger.name == context.RETRIES
    _http.logger.warning("Retrying in 8s [Retry 4/5].")
    assert not caplog.records
    assert _http.logger.isEnabledFor(logging.ERROR)
