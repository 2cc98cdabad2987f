"""What ``harness clean`` removes of a run: what its plan says the harness wrote there, and nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from harness import comparison, epochs, gallery, plan, store
from harness.analyses.shared import FOLDER
from harness.config import RunConfig
from harness.contracts import HarnessError


def weights(run: Path, config: RunConfig) -> list[Path]:
    """The checkpoints of a run's trainings, and what unfinished trainings left."""
    folders = [run / cell.folder for cell in plan.cells(config) if cell.kind == "trained"]
    parts = ("checkpoint", "epoch-*/checkpoint", ".training")
    return sorted(found for folder in folders for part in parts for found in folder.glob(part))


def whole(run: Path, config: RunConfig) -> list[Path]:
    """All that the harness wrote into a run folder, its record last."""
    folders = {
        run / FOLDER,
        run / gallery.FOLDER,
        *(run / cell.folder.parts[0] for cell in plan.cells(config)),
    }
    names = (*comparison.FILES, *epochs.outputs(config), comparison.REPORT, "leaderboard.done.json")
    files = {run / name for name in names}
    return [*sorted(path for path in folders | files if path.exists()), run / "run.json"]


def size(targets: Iterable[Path]) -> int:
    """In bytes; of a link that of the link."""
    return sum(file.lstat().st_size for target in targets for file in store.files_below(target))


def remove(run: Path, targets: Sequence[Path]) -> None:
    """Remove files and folders of a run, which is held; of a link the link alone. Raises HarnessError, before
    anything is removed, where one of them does not really lie in the run."""
    home = run.resolve()
    for target in targets:
        if target.parent.resolve() != home / target.parent.relative_to(run):
            raise HarnessError(f"{target} leads out of the run: nothing is removed")
    for target in targets:
        store.remove(target)


def remove_empty(run: Path) -> None:
    """Remove what is left of a run that was removed; files of the user's own stay."""
    (run / ".lock").unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        run.rmdir()
