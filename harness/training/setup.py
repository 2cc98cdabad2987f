"""What a training needs, as its modules hand it on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from harness.config import TrainingConfig
from harness.contracts import Encoded, Method
from harness.training.logprobs import TargetHead
from harness.training.resume import Places


@dataclass
class Setup:
    """What is trained, how, and on what."""

    model: Any
    tokenizer: Any
    method: Method
    settings: TrainingConfig
    seed: int
    places: Places
    pad_id: int
    head: TargetHead
    examples: Sequence[Encoded]
    safety_examples: Sequence[Encoded]
