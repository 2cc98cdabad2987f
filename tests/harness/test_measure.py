"""Guards the measured cost of a block: its seconds, and its own peak memory rather than the process's."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from harness.measure import TreeMemory, cost


def test_seconds_of_the_block_are_counted_even_when_it_fails() -> None:
    with pytest.raises(ValueError, match="x"), cost() as found:  # noqa: PT012
        time.sleep(0.05)
        raise ValueError("x")
    assert found.seconds >= 0.05


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak is the process's since its start")
def test_the_peak_is_the_blocks_own() -> None:
    with cost() as large:
        block = b"x" * (256 * 2**20)
    del block
    with cost() as small:
        pass
    assert large.peak_memory_bytes > 256 * 2**20
    assert small.peak_memory_bytes < large.peak_memory_bytes - 128 * 2**20


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
