"""safetune-harness: how much safety a fine-tuning method costs, and how much skill it buys."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from harness.config import RunConfig

# Read by transformers when it is imported: no architecture has it fetch code from the hub and run it.
os.environ.setdefault("USE_HUB_KERNELS", "NO")

__version__ = "0.1.0"
__all__ = ["compare"]


def compare(config: RunConfig | str | None = None, **overrides: Any) -> pd.DataFrame:
    """Run a comparison and return its leaderboard; the same walk as ``harness compare``.

    ``config``: a resolved RunConfig, a recipe's name or path, or None for the mini world; ``overrides`` are
    recipe keys (``methods=["vanilla"]``). Raises HarnessError where the command line prints one line.
    """
    from harness import comparison  # heavy imports stay out of ``import harness``

    return comparison.run(config, **overrides)
