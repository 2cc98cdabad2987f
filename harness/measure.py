"""What a block of work cost: wall seconds and peak memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Cost:
    seconds: float = 0.0
    peak_memory_bytes: int = 0


@contextmanager
def cost() -> Iterator[Cost]:
    """Fills the yielded Cost when the block ends. On CUDA the device's peak counts, else the process's."""
    _reset_peak()
    found, start = Cost(), time.perf_counter()
    try:
        yield found
    finally:
        found.seconds = time.perf_counter() - start
        found.peak_memory_bytes = _peak()


def _cuda() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and torch.cuda.is_available()


def _reset_peak() -> None:
    if _cuda():
        sys.modules["torch"].cuda.reset_peak_memory_stats()
        return
    with suppress(OSError):  # where this is no Linux the peak is the process's own since its start
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    if _cuda():
        return int(sys.modules["torch"].cuda.max_memory_allocated())
    try:
        status = Path("/proc/self/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
