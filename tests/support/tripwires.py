"""What Python itself says of files that are opened, processes and connections: to see that nothing acts."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_armed: list[list[str]] = []
EVENTS = ("open", "os.listdir", "os.scandir", "os.mkdir", "os.remove", "os.rename", "os.link", "os.symlink")
STARTED = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn")


def _hook(event: str, given: tuple[Any, ...]) -> None:
    if not _armed:
        return
    if event in EVENTS:
        paths = [os.fsdecode(one) for one in given if isinstance(one, (str, bytes, os.PathLike))]
        _armed[-1].extend(f"{event} {path}" for path in paths)
    elif event in STARTED or event == "socket.connect":
        _armed[-1].append(f"{event} {given!r}")


@contextmanager
def watched() -> Iterator[list[str]]:
    """A line for each file that this process opens, changes or lists, each process and each connection."""
    if _hook not in _hooked:
        sys.addaudithook(_hook)  # for good: an audit hook cannot be taken back
        _hooked.append(_hook)
    seen: list[str] = []
    _armed.append(seen)
    try:
        yield seen
    finally:
        _armed.remove(seen)


_hooked: list[Any] = []
