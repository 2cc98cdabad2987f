"""The setting under which a training was begun (agreement.py): kept for a restart of it, and the same in all
of its processes."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from harness.contracts import HarnessError
from harness.training.agreement import Agreement
from harness.training.setting import Setting

FILE = "setting.json"


def begun_under(folder: Path) -> Setting | None:
    """The setting under which the training that keeps its state in ``folder`` was begun, if it was. Half a
    file was being written before the first step."""
    try:
        return Setting(**json.loads((folder / FILE).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def keep(setting: Setting, folder: Path) -> None:
    """Leave it for a restart of the training."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_text(json.dumps(asdict(setting)), encoding="utf-8")


def shared(decide: Callable[[], Agreement], follow: Callable[[Setting], None]) -> Agreement:
    """What the first process decides, in all processes of a training. The others ``follow``."""
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not several or torch.distributed.get_world_size() == 1:
        return decide()
    sent: list[Any] = [None]
    if torch.distributed.get_rank() == 0:
        try:
            with _all_threads():
                sent = [decide()]
        except HarnessError as error:
            sent = [str(error)]
    torch.distributed.broadcast_object_list(sent, src=0)
    if isinstance(sent[0], str):
        raise HarnessError(sent[0])
    agreement: Agreement = sent[0]
    follow(agreement.setting)
    return agreement


@contextlib.contextmanager
def _all_threads() -> Iterator[None]:
    """The other processes wait: on a CPU their cores are free."""
    before = torch.get_num_threads()
    torch.set_num_threads(
        max(before, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
    )
    try:
        yield
    finally:
        torch.set_num_threads(before)
