"""Guards the measured cost of a block: its seconds, and its own peak memory rather than the process's."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from harness.training.measure import TreeMemory, cost


def test_seconds_of_the_block_are_counted_even_when_it_fails() -> None:
    with pytest.raises(ValueError, match="x"), cost("cpu") as found:  # noqa: PT012
        time.sleep(0.05)
        raise ValueError("x")
    assert found.seconds >= 0.05


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak is the process's since its start")
def test_the_peak_is_the_blocks_own() -> None:
    with cost("cpu") as large:
        block = b"x" * (256 * 2**20)
    del block
    with cost("cpu") as small:
        pass
    assert large.peak_memory_bytes > 256 * 2**20
    assert small.peak_memory_bytes < large.peak_memory_bytes - 128 * 2**20


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:1"])
def test_a_run_on_the_cpu_of_a_machine_with_a_gpu(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose peak it is goes by where the block computes, not by what the machine has."""
    import torch

    reset: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset.append)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda asked: 7 if asked == device else 0)
    with cost(device) as found:
        pass
    assert reset == ([] if device == "cpu" else [device])
    assert (found.peak_memory_bytes == 7) == (device != "cpu")
    assert found.peak_memory_bytes > 0


def test_tree_memory_counts_children_too() -> None:
    hold = "import sys; kept = b'x' * 300_000_000; print(len(kept), flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        with TreeMemory() as memory:
            time.sleep(0.2)  # its first sample is taken at once
        assert child.stdin is not None
        child.stdin.close()
    assert memory.peak_bytes > 300_000_000
