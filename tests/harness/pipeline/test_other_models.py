"""Guards ModelRef options: the other model is found, counted by content, told, forecast, and shipped."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hook_methods
import pytest

from harness import config
from harness.contracts import HarnessError
from harness.mini import seed_model_path
from harness.pipeline import cluster_storage, doctor, estimate, needs, other_models
from harness.plugins import plugin_files
from harness.run import plan
from harness.run.context import RunContext
from harness.storage.files import read_json
from harness.training import stage as training

FILE = hook_methods.__file__ or ""
ROW = "gsm8k-mini/safe-lora/seed-42"


@pytest.fixture(autouse=True)
def _nothing_named() -> Iterator[None]:
    plugin_files.forget()
    yield
    plugin_files.forget()


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """The mini model under another path."""
    return Path(shutil.copytree(seed_model_path(), tmp_path / "other"))


def recipe(method: str = "SafeLora", **overrides: Any) -> config.RunConfig:
    given = {"methods": [f"{FILE}:{method}"], "train_tasks": ["gsm8k-mini"], **overrides}
    return config.load(None, given)


def reading(place: Path, **overrides: Any) -> config.RunConfig:
    return recipe(**{"method_options.safe-lora.unaligned": str(place), **overrides})


def identity(given: config.RunConfig, out: Path) -> str:
    return training.train_stage(RunContext(given, out), plan.cells(given)[-1]).identity


def change(folder: Path) -> None:
    """Another model: the last byte of its weights differs."""
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_a_training_is_known_by_the_other_models_content(other: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(other, tmp_path / "moved"))
    own = identity(reading(other), tmp_path)
    assert identity(reading(moved), tmp_path) == own  # no path is part of it
    assert identity(recipe(), tmp_path) == own  # the default is the same model
    change(moved)
    assert identity(reading(moved), tmp_path) != own


def test_a_variants_option_names_one_too(other: Path, tmp_path: Path) -> None:
    variant = {"far": {"method": "safe-lora", "options": {"unaligned": str(other)}}}
    given = recipe(variants=variant)
    assert other_models.named(given) == {"mini": ["safe-lora"], str(other): ["far"]}
    assert other_models.named(config.load(None, {"methods": ["all"]})) == {}


@pytest.mark.parametrize("where", ["folder", "server"])
def test_one_that_cannot_be_had_is_one_line(where: str, tmp_path: Path) -> None:
    place = str(tmp_path / "nowhere") if where == "folder" else "openai:gpt@http://localhost:1/v1"
    given = recipe(**{"method_options.safe-lora.unaligned": place})
    with pytest.raises(HarnessError, match="no model folder" if where == "folder" else "no server gives"):
        identity(given, tmp_path)


def test_the_empty_name_is_refused() -> None:
    with pytest.raises(HarnessError, match=r"method_options\.safe-lora\.unaligned: .*at least 1 character"):
        other_models.named(recipe(**{"method_options.safe-lora.unaligned": ""}))


def test_doctor_and_the_plan_say_what_is_read(other: Path, tmp_path: Path) -> None:
    given = reading(other)
    found = [f for f in doctor.examine(given, tmp_path / "run") if str(other) in f.found]
    assert [(f.status, f.about) for f in found] == [("pass", "model")]
    (other / "model.safetensors").unlink()
    found = [f for f in doctor.examine(given, tmp_path / "run") if f.status == "fail"]
    assert any(str(other) in f.found for f in found)


def test_the_plan_names_it_with_its_size(other: Path, tmp_path: Path) -> None:
    (line,) = other_models.lines(RunContext(reading(other), tmp_path))
    assert line.startswith(f"Other model: {other} for safe-lora (")
    (line,) = other_models.lines(RunContext(reading(Path("no-one/no-model")), tmp_path))
    assert line == "Other model: no-one/no-model for safe-lora (not here yet: a run fetches it)"


def test_a_dry_run_fetches_nothing_and_says_what_is_missing(
    command: Callable[..., Any], tmp_path: Path
) -> None:
    ended = command(
        "compare", "--methods", f"{FILE}:SafeLora", "--train-tasks", "gsm8k-mini", "--dry-run",
        "--set", "method_options.safe-lora.unaligned=no-one/no-model", "--out", tmp_path / "run",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    text = " ".join(ended.out.split())
    assert "Model no-one/no-model, which safe-lora reads, is not here yet: a run fetches it." in text


def test_memory_has_room_for_it_and_for_a_safety_gradient(other: Path, tmp_path: Path) -> None:
    def needed(given: config.RunConfig) -> float:
        run_context = RunContext(given, tmp_path)
        known = estimate.architecture(run_context)
        assert known is not None
        found = estimate.estimate_training_memory(run_context, plan.cells(given), known)
        assert found is not None
        return found.size

    plain = needed(config.load(None, {"methods": ["vanilla"], "train_tasks": ["gsm8k-mini"]}))
    known = estimate.architecture(RunContext(reading(other), tmp_path))
    assert known is not None
    size = (other / "model.safetensors").stat().st_size
    assert needed(reading(other)) - plain == pytest.approx(size)
    assert needed(recipe("SafeGrad")) - plain == pytest.approx(4 * known.parameters)


def test_it_travels_to_a_cluster_and_identities_stay(other: Path, tmp_path: Path) -> None:
    change(other)
    variant = {"far": {"method": "safe-lora", "options": {"unaligned": str(other)}}}
    given = reading(other, executor="ray", variants=variant)
    named = plugin_files.shipped()
    storage = cluster_storage.Storage(f"file://{tmp_path / 'store'}")
    there = storage.take_in(given)
    assert str(other) in there
    plugin_files.forget()
    plugin_files.take(named)  # as on a node
    brought = storage.bring(given, there)
    (place,) = set(other_models.named(brought))
    assert Path(place) != other
    assert (Path(place) / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert brought.method_options["safe-lora"]["unaligned"] == place
    assert brought.variants["far"].options["unaligned"] == place
    assert identity(brought, tmp_path) == identity(given, tmp_path)


def test_hooks_that_sharding_forbids_are_found_before_anything_is_trained(tmp_path: Path) -> None:
    shared = {"training.num_processes": 2, "training.distributed": "zero2"}
    for method, name in (("SafeGrad", "safe-grad"), ("All", "all-hooks")):
        run_context = RunContext(recipe(method, **shared), tmp_path)
        with pytest.raises(HarnessError, match=f"'{name}' works on the gradients, which zero2"):
            needs.check_methods(run_context, [name])
    needs.check_methods(RunContext(recipe(**shared), tmp_path), ["safe-lora"])


@pytest.mark.slow
def test_a_comparison_reads_it(other: Path, tmp_path: Path, small_settings: dict[str, Any]) -> None:
    import harness

    change(other)
    settings = {
        **small_settings, "methods": ["vanilla", f"{FILE}:SafeLora", f"{FILE}:SafeGrad"],
        "train_tasks": "gsm8k-mini",
        "training.epochs": 1, "training.max_examples": 16,
        "method_options.safe-lora.unaligned": str(other),
    }  # fmt: skip
    board = harness.compare(out=tmp_path / "run", **settings)
    assert set(board["status"]) == {"done"}
    record = read_json(tmp_path / "run" / ROW / "training.json")
    assert record["method"]["projected"] > 0
    assert record["train_seconds"] >= record["loop_seconds"] + record["after_training_seconds"] - 0.002
    record = read_json(tmp_path / "run/gsm8k-mini/safe-grad/seed-42/training.json")
    assert record["safety_gradient"]["calls"] == record["steps"]
