"""Adapters through the whole walk: trained, scored on their base, merged; 4 bits where bitsandbytes is."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.models import checkpoints
from harness.storage.files import read_json, read_jsonl

CELL = "gsm8k-mini/vanilla/seed-42"
TASKS = ("gsm8k-mini", "hexphi_raw-mini", "hexphi_prefill-mini")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, small_settings: dict[str, Any]) -> Path:
    """Two runs that differ in ``merge`` alone."""
    import harness

    base = tmp_path_factory.mktemp("lora")
    changes = {"training.tuning": "lora", "training.learning_rate": 0.01, "methods": ["vanilla"]}
    for merge in (False, True):
        settings = {**small_settings, **changes, "training.merge": merge}
        harness.compare(out=base / ("merged" if merge else "adapter"), **settings)
    return base


@pytest.mark.slow
def test_an_adapter_and_its_merged_checkpoint_answer_alike(runs: Path) -> None:
    for task in TASKS:
        one, two, seed = (
            [row["response"] for row in read_jsonl(runs / where / task / "responses.jsonl")]
            for where in (f"adapter/{CELL}", f"merged/{CELL}", "adapter/seed")
        )
        assert sum(a == b for a, b in zip(one, two, strict=True)) >= 7  # of 8; rounding may tip one
        if task == "gsm8k-mini":
            assert one != seed  # it has learnt something


def test_what_is_saved(runs: Path) -> None:
    adapter, merged = (runs / name / CELL / "checkpoint" for name in ("adapter", "merged"))
    assert checkpoints.is_adapter(adapter)
    assert not checkpoints.is_adapter(merged)
    size = (adapter / "adapter_model.safetensors").stat().st_size
    assert size < 0.5 * (merged / "model.safetensors").stat().st_size
    record = read_json(runs / "adapter" / CELL / "training.json")
    assert record["train_flops"] < read_json(runs / "merged" / CELL / "training.json")["train_flops"] * 1.01


def test_a_merged_model_is_the_sum(runs: Path) -> None:
    seed = checkpoints.locate("mini")
    adapter = checkpoints.load_model(runs / "adapter" / CELL / "checkpoint", "float32", "cpu", base=seed)
    merged = checkpoints.load_model(runs / "merged" / CELL / "checkpoint", "float32", "cpu")
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, adapter(ids).logits, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(
            merged(ids).logits, checkpoints.load_model(seed, "float32", "cpu")(ids).logits, atol=1e-2
        )


@pytest.mark.slow
def test_an_adapter_is_a_checkpoint_of_the_users_own(
    runs: Path, command: Callable[..., Any], small: Callable[..., list[str]], tmp_path: Path
) -> None:
    adapter = tmp_path / "mine"
    shutil.copytree(runs / "adapter" / CELL / "checkpoint", adapter)
    out = tmp_path / "run"
    flags = ["--methods", "seed", "--checkpoint", f"mine={adapter}", "--out", out]
    assert command("compare", *flags, *small()).code == 0
    one, two = (
        [row["response"] for row in read_jsonl(folder / "gsm8k-mini" / "responses.jsonl")]
        for folder in (out / "checkpoints/mine", runs / "adapter" / CELL)
    )
    assert one == two


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_qlora_trains_on_four_bits(
    tmp_path: Path, command: Callable[..., Any], small: Callable[..., list[str]]
) -> None:
    out = tmp_path / "run"
    ended = command("compare", "--methods", "vanilla", "--tuning", "qlora", "--out", out, *small())
    assert ended.code == 0, ended.err
    assert checkpoints.is_adapter(out / CELL / "checkpoint")
