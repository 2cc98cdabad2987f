"""A training's optimizer steps: planned global batches, cut into this device's micro-batches when they are
asked for."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from torch.utils.data import Dataset

from harness.config import TrainingConfig
from harness.contracts import Encoded
from harness.training.batching import MicroBatch, collate, deal, loss_tokens, stand_in


@dataclass(frozen=True)
class Step:
    """One optimizer step on this device: its micro-batches, and the counts of the global batch."""

    index: int
    micro_batches: list[MicroBatch]
    token_count: int
    global_micro_batches: int


class Steps(Dataset[Step]):
    """Planned global batches as this device's steps."""

    def __init__(
        self,
        batches: Sequence[Sequence[Encoded]],
        settings: TrainingConfig,
        pad_id: int,
        rank: int,
        devices: int,
    ):
        self.batches, self.settings, self.pad_id = batches, settings, pad_id
        self.rank, self.devices = rank, devices
        self.smaller: list[tuple[int, int]] = []  # from which step on (from 0) at most how many examples

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Step:
        batch, packed = self.batches[index], self.settings.batching == "padding-free"
        mine = self.dealt(index)[self.rank]
        return Step(
            index=index,
            micro_batches=[
                collate(micro, self.pad_id, packed) if micro else stand_in(batch, self.pad_id, packed)
                for micro in mine
            ],
            token_count=max(1, sum(loss_tokens(example) for example in batch)),
            global_micro_batches=len(mine) * self.devices,
        )

    def dealt(self, index: int) -> list[list[list[Encoded]]]:
        """A step's micro-batches, by device."""
        return self.cut(self.batches[index], index)

    def cut(self, batch: Sequence[Encoded], index: int) -> list[list[list[Encoded]]]:
        """Any global batch as step ``index`` would cut and deal it."""
        sizes = [size for step, size in self.smaller if step <= index]
        size = min(sizes, default=self.settings.micro_batch_size)
        return deal(batch, size, self.settings.micro_batch_tokens, self.settings.batching, self.devices)

    def cut_smaller(self, index: int, size: int) -> None:
        """From step ``index`` on at most ``size`` examples in a micro-batch; the loss is the same."""
        self.smaller.append((index, size))

    def padding(self) -> int:
        """Computed tokens that are no example's, over all devices and steps."""
        if self.settings.batching == "padding-free":
            return 0
        total = 0
        for index in range(len(self)):
            for micro in itertools.chain.from_iterable(self.dealt(index)):
                lengths = [len(example.input_ids) for example in micro]
                total += max(lengths, default=0) * len(lengths) - sum(lengths)
        return total
