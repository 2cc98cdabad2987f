"""Runs the checks where there is no pytest: each in a process of its own, under its own time limit.

    PYTHONPATH=.:tests python -m gpu.runner --device cuda

Prints ``RESULT`` and a JSON object for each check as it ends. The processes are forks of this one, which has
imported what they need and has not touched the device: a check costs no second import, and one that crashes
the device takes no other along.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Asking whether there is a device must not open it here: a fork could not open it again.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # two runs of a check have the same sums

RESULT = "result.json"
QUICK = ("llama full grouped", "gemma3_text lora padding-free", "lisa", "out of memory", "local judge")


@dataclass
class Running:
    """A check at work in a process of its own, and where it writes what it finds."""

    name: str
    limit_s: float
    child: Any
    scratch: tempfile.TemporaryDirectory[str]
    begun: float = field(default_factory=time.monotonic)

    @classmethod
    def begin(cls, name: str, device: str, start: str, limit_s: float) -> Running:
        scratch = tempfile.TemporaryDirectory(prefix="gpu-check-")
        child = multiprocessing.get_context(start).Process(
            target=_child, args=(name, device, Path(scratch.name))
        )
        child.start()
        return cls(name, limit_s, child, scratch)

    def result(self) -> dict[str, Any] | None:
        """What became of it; None while it may go on."""
        seconds = round(time.monotonic() - self.begun, 2)
        late = self.child.is_alive() and seconds >= self.limit_s
        if self.child.is_alive() and not late:
            return None
        self.child.join(0)
        code, file = self.child.exitcode, Path(self.scratch.name) / RESULT
        if late:
            found: dict[str, Any] = {
                "outcome": "over its limit",
                "reason": f"more than {self.limit_s:.0f} s",
            }
        elif file.exists():
            found = json.loads(file.read_text(encoding="utf-8"))
        else:
            found = {"outcome": "failed", "reason": f"its process ended with {code}"}
        self.end()
        return {"check": self.name, **found, "seconds": seconds}

    def end(self) -> None:
        _end(self.child)
        self.scratch.cleanup()


def run(
    names: Sequence[str], device: str, start: str, deadline_s: float, workers: int = 1
) -> Iterator[dict[str, Any]]:
    """What became of each check, as they end: ``outcome`` passed, failed, skipped or over its limit. At most
    ``workers`` are at work at once, which share the device."""
    from gpu.checks import CHECKS

    ends = time.monotonic() + deadline_s
    waiting, active = list(names), list[Running]()
    try:
        while waiting or active:
            while waiting and len(active) < workers:
                name = waiting.pop(0)
                limit = min(CHECKS[name].limit_s, ends - time.monotonic())
                if limit < 1:
                    yield {"check": name, "outcome": "skipped", "reason": "no time left", "seconds": 0.0}
                else:
                    active.append(Running.begin(name, device, start, limit))
            for one in [*active]:
                if (found := one.result()) is not None:
                    active.remove(one)
                    yield found
            time.sleep(0.02)
    finally:
        for one in active:
            one.end()


def _end(child: Any) -> None:
    """The process, and those that it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.kill()
    child.join()


def _child(name: str, device: str, scratch: Path) -> None:
    os.setsid()  # so that all of it can be ended
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    from gpu.checks import CHECKS, NotHereError
    from gpu.small import Place

    if device == "cpu":
        import torch

        torch.set_num_threads(1)
    try:
        found = {"outcome": "passed", "values": CHECKS[name].run(Place(device, scratch / "work"))}
    except NotHereError as error:
        found = {"outcome": "skipped", "reason": str(error)}
    except BaseException as error:
        traceback.print_exc()
        found = {"outcome": "failed", "reason": f"{type(error).__name__}: {error}"[:600]}
    whole = scratch / f"{RESULT}.part"
    whole.write_text(json.dumps(found, default=str), encoding="utf-8")
    os.replace(whole, scratch / RESULT)


def _opens_device(device: str) -> None:
    import torch

    torch.zeros(1, device=device)


def start_method(device: str) -> str:
    """fork, unless an import has already opened the device here."""
    context = multiprocessing.get_context("fork")
    child = context.Process(target=_opens_device, args=(device,))
    child.start()
    child.join(60)
    if child.is_alive() or child.exitcode:
        _end(child)
        print("a fork cannot open the device: each check imports everything anew", file=sys.stderr)
        return "spawn"
    return "fork"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--deadline", type=float, default=240.0, help="seconds for all checks")
    parser.add_argument("--workers", type=int, default=3, help="checks at work at once")
    parser.add_argument("--only", nargs="+", help="checks by name")
    parser.add_argument("--quick", action="store_true", help="a few of them")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))  # and the check that runs
    ends = time.monotonic() + options.deadline
    from gpu.checks import CHECKS

    names = options.only or ([*QUICK] if options.quick else [*CHECKS])
    unknown = sorted({*names} - {*CHECKS})
    if unknown:
        sys.exit(f"no such check: {', '.join(unknown)} (there are: {', '.join(CHECKS)})")
    with contextlib.suppress(ImportError):  # once for all forks
        for module in ("peft", "judges.local", "harness.engines.hf"):
            importlib.import_module(module)
    failed = 0
    start = start_method(options.device)
    for found in run(names, options.device, start, ends - time.monotonic(), options.workers):
        failed += found["outcome"] in ("failed", "over its limit")
        print("RESULT " + json.dumps(found), flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
