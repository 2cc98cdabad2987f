"""What a block of work cost: wall seconds and peak memory."""

from __future__ import annotations

import resource
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Cost:
    seconds: float = 0.0
    peak_memory_bytes: int = 0


@contextmanager
def cost(device: str) -> Iterator[Cost]:
    """Fills the yielded Cost when the block ends. ``device``: on which it computes ("cpu", "cuda", "cuda:1"):
    of a CUDA device the peak there counts, else the process's, whatever devices the machine has."""
    _reset_peak(device)
    found, start = Cost(), time.perf_counter()
    try:
        yield found
    finally:
        found.seconds = time.perf_counter() - start
        found.peak_memory_bytes = _peak(device)


class TreeMemory:
    """The peak memory of this process and its children together, in bytes, sampled once a second.

    Shared pages count once (proportional set size) where the system tells, else once a process.
    """

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> TreeMemory:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        import psutil

        this = psutil.Process()
        while True:
            total = 0
            for process in [this, *this.children(recursive=True)]:
                with suppress(psutil.Error):  # a process that has just ended
                    memory = process.memory_full_info()
                    total += getattr(memory, "pss", memory.rss)
            self.peak_bytes = max(self.peak_bytes, total)
            if self._ended.wait(1.0):
                return


def _cuda(device: str) -> Any:
    """torch.cuda, where a block computes there and it is at hand."""
    torch = sys.modules.get("torch")
    on_cuda = device.startswith("cuda") and torch is not None and torch.cuda.is_available()
    return torch.cuda if torch is not None and on_cuda else None


def _reset_peak(device: str) -> None:
    if cuda := _cuda(device):
        cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):  # where this is no Linux the peak is the process's own since its start
        Path("/proc/self/clear_refs").write_text("5")


def _peak(device: str) -> int:
    if cuda := _cuda(device):
        return int(cuda.max_memory_allocated(device))
    try:
        status = Path("/proc/self/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
