"""The checks for a GPU run on a CPU as they are, and the committed losses are still what the CPU gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from gpu import checks, reference, runner, small

from backends import constrained_sft
from harness.training import attention, trainer

# What takes a minute on a CPU, or a compiler. The rest of the matrix differs in settings alone.
QUICK = (
    "llama full grouped", "gemma3_text lora padding-free", "safety-mixing", "no waiting padding-free",
    "no waiting constrained-sft", "chunked loss", "no adapter casts", "no cudnn attention",
    "resumed float32", "out of memory", "answers", "divergence", "local judge",
)  # fmt: skip
RELEASES = 1e-3  # nats a token between two releases of the libraries


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def place(tmp_path: Path) -> small.Place:
    return small.Place("cpu", tmp_path)


@pytest.mark.parametrize("name", reference.NAMES)
def test_the_committed_losses_are_the_cpus(name: str, place: small.Place) -> None:
    found = reference.losses(name, place)
    assert found == pytest.approx(reference.read()[name], abs=RELEASES, rel=0)


def test_each_committed_loss_has_its_training() -> None:
    assert tuple(reference.read()) == reference.NAMES


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow, pytest.mark.timeout(600)])
        for name in checks.CHECKS
        if name != "vllm"  # tests/extras has more of it
    ],
)
def test_runs_on_a_cpu(name: str, place: small.Place) -> None:
    try:
        assert checks.CHECKS[name].run(place)
    except checks.NotHereError as missing:
        pytest.skip(f"{name}: {missing}")


def test_what_is_there_and_what_the_matrix_holds() -> None:
    named = {(family, tuning) for family in small.FAMILIES for tuning in small.TUNINGS}
    assert all(f"{one} {two} {three}" in checks.CHECKS for one, two in named for three in small.BATCHINGS)
    assert set(runner.QUICK) <= set(checks.CHECKS)
    from harness.plugins import registry

    packaged = {name for name, where in registry.METHODS.items() if where.startswith("backends.")}
    assert {*small.METHODS, "vanilla"} == packaged - {*registry.NOT_IN_ALL}  # those change rows alone


# --- what only a GPU is asked, with a stand-in for torch.cuda ------------------------------------------


class Pretended(small.Place):
    """A CPU that passes for a GPU."""

    @property
    def cuda(self) -> bool:
        return True


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What torch.cuda is asked, in order. 1,000 bytes are taken by the first training, then 2,000."""
    calls: list[Any] = []
    taken = iter([1000, 2000, 3000])
    memory = SimpleNamespace(total_memory=10_000)
    answers: dict[str, Any] = {
        "set_sync_debug_mode": calls.append,
        "set_per_process_memory_fraction": calls.append,
        "max_memory_reserved": lambda: next(taken),
        "reset_peak_memory_stats": lambda: None,
        "get_device_properties": lambda number: memory,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    return calls


def test_a_gpus_steps_are_watched_one_by_one(tmp_path: Path, asked: list[Any]) -> None:
    assert checks.CHECKS["no waiting grouped"].run(Pretended("cpu", tmp_path)) == {"steps": 3}
    first, rest = asked[:3], asked[3:]
    assert first == ["default"] * 3  # steps that are not watched end so too
    assert rest == ["error", "default"] * 3 + ["default"]


def test_a_gpus_memory_is_cut_between_both_sizes_and_given_back(
    tmp_path: Path, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "ON_CUDA", (8, 24, {}))
    loss = trainer.HookedTrainer.micro_batch_loss

    def limited(self: Any, model: Any, micro: Any, step: Any) -> Any:
        if asked and asked[-1] < 1 and len(micro.ids) > 4:
            raise torch.OutOfMemoryError("as a GPU says it")
        return loss(self, model, micro, step)

    monkeypatch.setattr(trainer.HookedTrainer, "micro_batch_loss", limited)
    found = checks.CHECKS["out of memory"].run(Pretended("cpu", tmp_path))
    assert asked == [0.15, 1.0]
    assert found["losses"] <= checks.TOLERANCE["float32"]


def test_a_gpus_two_trainings_are_made_repeatable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    found = checks.CHECKS["resumed float32"].run(Pretended("cpu", tmp_path))
    assert found["resumed has"]
    assert not torch.are_deterministic_algorithms_enabled()  # put back


# --- a check finds what it is for -----------------------------------------------------------------------


def test_neighbours_that_see_each_other_are_found(
    place: small.Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packed rows as one: our own comparison with the model's implementation turns to another setting."""
    whole = attention._over_rows

    def leaking(module: Any, query: Any, key: Any, value: Any, mask: Any = None, **options: Any) -> Any:
        gqa = query.shape[1] != key.shape[1]
        scaling, window = options.get("scaling"), options.get("sliding_window")
        return whole(query, key, value, scaling, window, gqa), None

    from transformers import AttentionInterface

    monkeypatch.setitem(AttentionInterface._global_mapping, attention.CAUSAL, leaking)
    with pytest.raises(AssertionError, match="rejected"):
        checks.CHECKS["llama full padding-free"].run(place)


def test_another_learning_rate_is_found(place: small.Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(small.SETTINGS, "learning_rate", 2.9e-3)
    with pytest.raises(AssertionError, match="from the CPU's"):
        checks.CHECKS["llama full grouped float32"].run(place)
    monkeypatch.setitem(small.SETTINGS, "learning_rate", 2.5e-3)
    with pytest.raises(AssertionError, match="from the CPU's"):
        checks.CHECKS["llama full grouped"].run(place)


def test_a_step_that_waits_is_found(place: small.Place, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = constrained_sft.constrained_loss

    def waiting(*args: Any, **options: Any) -> Any:
        found = loss(*args, **options)
        assert found.item() > 0
        return found

    monkeypatch.setattr(constrained_sft, "constrained_loss", waiting)
    with pytest.raises(RuntimeError, match="waits for the device"):
        checks.CHECKS["no waiting constrained-sft"].run(place)
    assert trainer.HookedTrainer.training_step.__module__ == "harness.training.loop"  # put back


def test_an_answer_that_differs_is_found_and_a_tie_is_none() -> None:
    model = checks.mini("cpu")
    asked = checks.prompts(small.tokenizer_of(), 2)
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([asked[0]])).logits[0, -1]
    best, last = int(logits.argmax()), int(logits.argmin())
    same = [[best], [best]]
    assert checks.alike(model, asked, same, same) == 2
    with pytest.raises(AssertionError, match="another token than on the CPU"):
        checks.alike(model, asked, [[last], [best]], same)
    with pytest.raises(AssertionError, match="ends where the other goes on"):
        checks.alike(model, asked, [[best, 5], [best]], same)


# --- the runner without pytest --------------------------------------------------------------------------


def broken(place: small.Place) -> dict[str, Any]:
    raise ValueError("as it happens")


def absent(place: small.Place) -> dict[str, Any]:
    raise checks.NotHereError("no such card")


def endless(place: small.Place) -> dict[str, Any]:
    (place.folder.parents[0] / "begun").touch()
    time.sleep(600)
    return {}


def crashing(place: small.Place) -> dict[str, Any]:
    os._exit(7)


@pytest.mark.parametrize("workers", [1, 3])
def test_what_fails_hangs_or_crashes_takes_no_other_along(
    workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    works = {
        "broken": checks.Check(broken),
        "endless": checks.Check(endless, limit_s=2),
        "crashing": checks.Check(crashing),
        "absent": checks.Check(absent),
        "needy": checks.Check(broken, needs=("no_such_module",)),
        "cuda's": checks.Check(broken, only="cuda"),
        "good": checks.Check(lambda place: {"folder": place.folder.is_dir()}),
    }
    monkeypatch.setattr(checks, "CHECKS", works)
    found = {one["check"]: one for one in runner.run([*works], "cpu", "fork", 60, workers)}
    assert {name: one["outcome"] for name, one in found.items()} == {
        "broken": "failed", "endless": "over its limit", "crashing": "failed", "absent": "skipped",
        "needy": "skipped", "cuda's": "skipped", "good": "passed",
    }  # fmt: skip
    assert found["broken"]["reason"] == "ValueError: as it happens"
    assert found["crashing"]["reason"] == "its process ended with 7"
    assert found["needy"]["reason"] == "no_such_module not installed"
    assert found["good"]["values"] == {"folder": True}
    late = [*runner.run([*works], "cpu", "fork", 0)]
    assert {one["reason"] for one in late} == {"no time left"}


def test_the_runner_prints_each_result(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "gpu.runner", "--device", "cpu", "--only", "local judge"]
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}"}
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert ended.returncode == 0, ended.stderr
    (line,) = [line for line in ended.stdout.splitlines() if line.startswith("RESULT ")]
    found = json.loads(line.removeprefix("RESULT "))
    assert (found["check"], found["outcome"]) == ("local judge", "passed")
