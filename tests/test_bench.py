"""The benchmark of scale still runs, on a small scale; the training benchmark's clock and counts are right.
Nothing timed is asserted."""

import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from bench import train_speed

SCALE = Path(__file__).parent / "bench" / "scale.py"


@pytest.mark.slow
def test_the_bench_of_scale_prints_its_two_measurements() -> None:
    """Each at a tenth, and whole."""
    ended = subprocess.run(
        [sys.executable, SCALE, "--cells", "10", "--responses", "20"],
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert [line.split(",")[0].split(" (")[0] for line in ended.stdout.splitlines()] == [
        "9 cells",
        "9 cells",
        "2 responses",
        "20 responses",
    ]


# --- training --------------------------------------------------------------------------------------


def test_the_clock_waits_for_a_device_twice_and_leaves_the_warm_up_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waited: list[int] = []
    seconds = itertools.count(10.0, 3.0)
    step = 0
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append(step))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 100 * step)
    monkeypatch.setattr(train_speed.time, "perf_counter", lambda: next(seconds))
    clock = train_speed.Clock("cuda", warm_up=5)
    for step in range(1, 21):
        clock(step, 20)
    assert waited == [5, 20]
    assert (clock.seconds, clock.watched, clock.peak_bytes) == (3.0, 15, 2000)


@pytest.mark.parametrize(("warm_up", "watched"), [(1, 2), (2, 1), (9, 1)])
def test_at_least_one_step_is_timed(warm_up: int, watched: int) -> None:
    clock = train_speed.Clock("cpu", warm_up)
    for step in (1, 2, 3):
        clock(step, 3)
    assert (len(clock.marks), clock.watched) == (2, watched)


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_both_counts_of_operations(tuning: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand for the tiny Llama: 64 wide, 192 inside, 2 layers; 10 and 6 tokens, 7 of them with loss."""
    from harness.training import flops

    monkeypatch.setattr(flops, "peak", lambda name, dtype: 1e12)
    options = argparse.Namespace(
        size="tiny", tuning=tuning, dtype="float32", device="cpu", batch=2, micro_batch=2,
        our_micro_batch=None, batching="grouped", checkpointing=False, set=[],
    )  # fmt: skip
    found = train_speed.utilisation(options, [([1] * 10, 6), ([1] * 6, 3)], seconds=2.0)
    linear, head = 2 * (4 * 64 * 64 + 3 * 64 * 192), 64 * 32_000
    weights = linear + 2 * head + (2 * 2 + 1) * 64
    if tuning == "full":
        by_formula = 6 * (16 * linear + 7 * head + 2 * 2 * 64 * (10**2 + 6**2))
        by_n = 6 * weights * 16
        assert found["tflops"] == pytest.approx(by_formula / 2.0 / 1e12)
    else:
        adapters = 2 * 16 * (4 * (64 + 64) + 3 * (64 + 192))
        weights += adapters
        by_n = 4 * weights * 16
        frozen = 4 * (16 * linear + 7 * head)  # forward, and backward for what comes before
        assert frozen / 2 < found["tflops"] * 2e12 < 1.3 * frozen
    assert found["parameters"] == weights
    assert found["tflops_by_n"] == pytest.approx(by_n / 2.0 / 1e12)
    assert found["mfu_by_n"] == pytest.approx(by_n / 2.0 / 1e12)


@pytest.mark.slow
def test_a_contenders_figures_are_one_line() -> None:
    command = [sys.executable, SCALE.with_name("train_speed.py"), "--size", "tiny", "--rows", "12"]
    command += ["--batch", "4", "--micro-batch", "2", "--threads", "1", "--contender", "ours"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    (line,) = [line for line in ended.stdout.splitlines() if line.startswith("RESULT ")]
    found: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
    rows = train_speed.rows("gsm8k", 12, 32_000)
    assert found["tokens"] == sum(len(ids) for ids, _ in rows[4:])
    assert (found["steps"], len(found["losses"])) == (2, 3)
    assert found["whole"]["tokens"] == sum(len(ids) for ids, _ in rows)
    assert found["whole"]["seconds"] > found["seconds"]


@pytest.mark.slow
def test_each_setting_is_a_line_and_a_broken_one_stops_no_other() -> None:
    command = [sys.executable, SCALE.with_name("train_speed.py"), "--size", "tiny", "--rows", "8"]
    command += ["--batch", "4", "--micro-batch", "2", "--threads", "1", "--contender", "ours"]
    command += ["--each", "", "--each", "lora=7", "--each", "chunked_loss=true batching=in-order"]
    ended = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in ended.stdout.splitlines() if line.startswith("RESULT ")]
    usual, other = (json.loads(line.removeprefix("RESULT ")) for line in lines)
    assert usual["setting"] == "grouped, micro-batch 2"
    assert other["setting"] == "in-order, micro-batch 2, chunked_loss=true, batching=in-order"
    assert other["losses"] == pytest.approx(usual["losses"], abs=1e-5)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("lora=7: ValidationError: ")
