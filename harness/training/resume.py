"""Where a training keeps what a restart needs, and what an interrupted one has left there."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MARKER = "complete.json"  # written last into a resume state
METHOD_STATE = "method.safetensors"
OUT_OF_MEMORY = "out-of-memory.jsonl"  # a line for each time that micro-batches had to become smaller


@dataclass(frozen=True)
class Places:
    """Where a training reads and writes. ``output``: the checkpoint, and ``epoch-N`` folders beside it;
    ``state``: what a restart needs, kept until the training is done; ``reports``: for ``report_to``."""

    output: Path
    state: Path
    reports: Path


def resume_state(folder: Path, epoch_ends: Mapping[int, int]) -> Path | None:
    """The newest complete resume state below ``folder``; none past the end of an epoch (by step) whose
    weights are gone: a kill while they were moved into the stage's outputs takes them along."""
    lost = [step for step, epoch in epoch_ends.items() if not (folder / f"epoch-{epoch}").is_dir()]
    complete = {
        int(file.parent.name.rpartition("-")[2]): file.parent
        for file in folder.glob(f"checkpoint-*/{MARKER}")
    }
    usable = [step for step in complete if all(step < end for end in lost)]
    return complete[max(usable)] if usable else None


def smaller_before(folder: Path) -> list[dict[str, int]]:
    """When an interrupted training with its state in ``folder`` ran out of memory, so that one that goes on
    there cuts the same steps the same way. Half a line was being written when it ended."""
    found = []
    file = folder / OUT_OF_MEMORY
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            row = json.loads(line)
            found.append({name: int(row[name]) for name in ("step", "micro_batch_size")})
    return found


def note_smaller(folder: Path, row: Mapping[str, int]) -> None:
    """Write down that a step ran out of memory. An interrupted line before it may lack its end."""
    with (folder / OUT_OF_MEMORY).open("a", encoding="utf-8") as file:
        file.write(f"\n{json.dumps(row)}\n")


def draws(rng: random.Random) -> list[Any]:
    """The state of a source of random numbers as JSON values."""
    version, numbers, gauss = rng.getstate()
    return [version, list(numbers), gauss]


def draw_on(rng: random.Random, kept: list[Any]) -> None:
    """Let ``rng`` go on from where ``draws`` was asked."""
    version, numbers, gauss = kept
    rng.setstate((version, tuple(numbers), gauss))
