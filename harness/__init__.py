"""safetune-harness: how much safety a fine-tuning method costs, and how much skill it buys."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from harness.version import __version__

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from harness.api import Run
    from harness.config import RunConfig

# Read by transformers when it is imported: no architecture has it fetch code from the hub and run it.
os.environ.setdefault("USE_HUB_KERNELS", "NO")

__all__ = ["__version__", "compare", "load"]


def compare(
    config: RunConfig | str | None = None,
    *,
    out: str | Path | None = None,
    progress: bool | None = None,
    **overrides: Any,
) -> pd.DataFrame:
    """Run a comparison and return its leaderboard; the same walk as ``harness compare``.

    ``config``: a recipe's name or path, a resolved RunConfig, or None for the mini world. ``overrides`` are
    recipe keys (``methods=["vanilla", "./ema.py:Ema"]``, ``**{"training.epochs": 1}``) and ``task_dirs`` (a
    list of folders with lm-eval tasks). ``out``: the run's folder (default: results/runs/<recipe name>).
    ``progress``: show how far it is; by default in a notebook alone.

    Raises HarnessError where the command line prints one line; where cells have failed, after the others are
    done. The same call goes on where an interrupted one stopped.
    """
    from harness import api  # heavy imports stay out of ``import harness``

    return api.compare(config, out=out, progress=progress, **overrides)


def load(run: str | Path) -> Run:
    """Open a run that is there: ``.leaderboard``, ``.judge(...)``, ``.gate(...)``, ``.report()``.

    ``run``: its folder. Raises HarnessError where there is none.
    """
    from harness import api

    return api.load(run)
