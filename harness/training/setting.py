"""How rows pass through a model: attention, batching, rows at a time."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from harness.config import TrainingConfig
from harness.training import attention


@dataclass(frozen=True)
class Setting:
    """How rows pass through a model. ``attention``: as transformers names it."""

    attention: str
    batching: str
    micro_batch_size: int

    def over(self, settings: TrainingConfig) -> TrainingConfig:
        """A recipe's settings with these in place of its own."""
        return settings.model_copy(update=asdict(self))

    def __str__(self) -> str:
        rows = "one row at a time" if self.micro_batch_size == 1 else f"batching {self.batching}"
        return f"attention {self.attention}, {rows}"


def list_candidates(asked: Setting, own: str) -> list[Setting]:
    """Settings from the fastest to the slowest, each once. ``own``: the model's own attention."""
    padded = "grouped" if asked.batching == "padding-free" else asked.batching
    tried = [
        asked,
        replace(asked, batching=padded),
        Setting(own, padded, asked.micro_batch_size),
        Setting(own, padded, 1),
    ]
    return list(dict.fromkeys(tried))


def read_setting(settings: TrainingConfig) -> Setting:
    """What the recipe asks for."""
    chosen = attention.CAUSAL if settings.attention == "auto" else settings.attention
    return Setting(chosen, settings.batching, settings.micro_batch_size)
