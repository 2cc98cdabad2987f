"""What a disk refuses, in one line: no space, no permission, a file where a folder should be."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from harness.contracts import HarnessError

FULL = (errno.ENOSPC, errno.EDQUOT)
# What safetensors, torch.save and SQLite say of a full disk, who hand on no errno.
SAID = ("No space left on device", "file write failed", "disk is full")
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)


class DiskFullError(HarnessError):
    """No space is left. Nothing else in the command would fare better."""


def refusal(error: BaseException | None) -> HarnessError | None:
    """The line for an error, or its cause, that a disk has given; None for any other."""
    while error is not None:
        where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        code = error.errno if isinstance(error, OSError) else None
        if code in FULL or any(words in str(error) for words in SAID):
            return DiskFullError(
                f"{where}no space left on the disk; what is done stays, and the same command goes on "
                "once there is some"
            )
        if where and code in REFUSED:
            return HarnessError(f"{where}cannot be written or read ({os.strerror(code or 0)})")
        error = error.__cause__ or error.__context__
    return None


def nearest(folder: Path) -> Path:
    """The folder itself, or the nearest above it that is there."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def check_writable(folder: Path, mend: str) -> None:
    """Whether a folder can be made or written to, without making it. Raises HarnessError with the mend."""
    there = nearest(folder)
    if not there.is_dir():
        raise HarnessError(f"{there} is a file and no folder; {mend}")
    if not os.access(there, os.W_OK):
        raise HarnessError(f"{there}: cannot be written; {mend}")
