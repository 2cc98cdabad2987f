"""Every packaged recipe is whole, says what it needs, and shows its plan without its model at hand."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import config
from harness.contracts import UsageError
from harness.models import devices
from harness.pipeline import estimate
from harness.plugins import registry
from harness.run import plan
from harness.training import memory

FOLDER = Path(config.__file__).parents[1] / "recipes"
NAMES = config.recipe_names()
LARGE = [name for name in NAMES if name != "mini"]


def expected_bytes(name: str, device: str = "cuda") -> float:
    loaded = config.load(name)
    training = loaded.training.model_copy(update={"device": device})
    model = memory.find(loaded.model, None)
    assert model is not None, f"{loaded.model} is not among memory.PUBLISHED"
    lengths = [registry.load("train task", task).max_length for task in loaded.train_tasks]
    return memory.training_bytes(model, training, max(lengths))


@pytest.mark.parametrize("name", LARGE)
def test_it_opens_with_its_command_and_memory(name: str) -> None:
    lines = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith(f"# harness compare {name} ")
    stated = re.search(r"# Hardware: (\d) GPUs? of (\d+) GB. Expected memory: about (\d+) GB", lines[1])
    assert stated is not None, lines[1]
    devices, size, memory_gb = map(int, stated.groups())
    assert devices == config.load(name).training.num_processes
    assert memory_gb == round(expected_bytes(name) / 1e9)
    assert memory_gb < 0.9 * size


@pytest.mark.parametrize("name", NAMES)
def test_its_names_exist(name: str) -> None:
    assert len(plan.cells(config.load(name))) >= 3


@pytest.mark.parametrize("name", LARGE)
def test_its_dry_run_shows_the_plan_and_fetches_nothing(
    name: str, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    ended = command("compare", name, "--dry-run", "--out", tmp_path / "run")
    assert ended.code == 0, ended.err
    shown = " ".join(ended.out.split())
    assert f"Plan: {name} →" in shown
    number = config.load(name).training.num_processes
    place = f"each of {number} devices" if number > 1 else "one device"
    expected = estimate.gigabytes(expected_bytes(name, devices.device(config.load(name).training.device)))
    assert f"Memory: a training takes at most about {expected} on {place} (" in shown
    assert "is not here yet: a run fetches it" in shown
    assert not (tmp_path / "run").exists()


def test_sdfts_published_values() -> None:
    """RECIPE §4 and §8: dropout 0.1, a training prompt of its own, sampled rewrites."""
    published = config.load("llama2-7b-sdft-published")
    training, lora = published.training, published.training.lora
    assert (lora.r, lora.alpha, lora.target_modules) == (8, 16, ("q_proj", "v_proj"))
    assert (training.tuning, lora.dropout) == ("lora", 0.1)
    assert (training.learning_rate, training.schedule) == (1e-4, "cosine")
    assert (training.batch_size, training.epochs) == (8, 5)
    assert published.method_options["sdft"] == {"temperature": 0.95, "top_p": 0.7, "max_tokens": 512}
    (name,) = published.train_tasks
    task, usual = (registry.load("train task", one) for one in (name, "gsm8k"))
    assert task.system_prompt == "You are an expert in math. A math question follows. Answer it."
    assert dataclasses.replace(task, name=usual.name, system_prompt=usual.system_prompt) == usual
    assert config.load("llama2-7b-paper").training.lora.dropout == 0.0


def test_the_papers_values() -> None:
    """RECIPE §2."""
    training = config.load("llama2-7b-paper").training
    assert (training.epochs, training.learning_rate, training.schedule) == (3, 2e-5, "linear")
    assert (training.warmup_steps, training.weight_decay, training.max_grad_norm) == (0, 0.0, 1.0)
    assert (training.batch_size, training.micro_batch_size, training.num_processes) == (64, 16, 4)
    assert (training.betas, training.dtype, training.distributed) == ((0.5, 0.999), "bfloat16", "zero2")
    assert (training.tuning, training.gradient_checkpointing) == ("full", True)
    lengths = {task: registry.load("train task", task).max_length for task in ("gsm8k", "samsum")}
    assert lengths == {"gsm8k": 512, "samsum": 1024}
    assert config.load("llama2-7b-paper").seeds == (42,)


def test_a_preset_lies_over_its_recipe(tmp_path: Path) -> None:
    """Such a run has a folder of its own; the command's own values come last."""
    path = tmp_path / "own.yaml"
    path.write_text(
        "extends: mini\ntraining: {epochs: 5}\n"
        "presets:\n  quick: {training: {epochs: 1}, methods: [vanilla]}\n"
    )
    assert config.load(str(path)).training.epochs == 5
    quick = config.load(str(path), {"preset": "quick"})
    assert (quick.name, quick.training.epochs, quick.methods) == ("own-quick", 1, ("vanilla",))
    assert quick.training.batch_size == config.load(str(path)).training.batch_size
    assert config.load(str(path), {"preset": "quick", "training.epochs": 3}).training.epochs == 3


@pytest.mark.parametrize(
    ("text", "preset", "said"),
    [
        ("presets: {quick: {}}", "quik", "did you mean 'quick'?"),
        ("methods: [vanilla]", "quick", "has no presets: leave --preset out"),
        ("presets: {quick: 3}", None, "presets: expected NAME: {key: value}"),
        ("presets: {quick: {trainin: 3}}", "quick", "trainin"),
    ],
)
def test_a_preset_that_is_not_there(tmp_path: Path, text: str, preset: str | None, said: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(f"extends: mini\n{text}\n")
    with pytest.raises(UsageError, match=re.escape(said)):
        config.load(str(path), {"preset": preset} if preset else {})


def test_smollm2s_quick_preset_is_a_part_of_the_whole() -> None:
    whole, quick = config.load("smollm2-135m"), config.load("smollm2-135m", {"preset": "quick"})
    assert {*quick.methods} < {*whole.methods}
    assert quick.training.max_examples < whole.training.max_examples  # type: ignore[operator]
    assert quick.alignment.method == whole.alignment.method == "deep-alignment"
    assert quick.alignment.held_out < whole.alignment.held_out
