"""The order of the data, and how a global batch is cut into micro-batches.

Global batches are planned ahead, the same for every method. How one is cut (and dealt to devices) changes
nothing but speed, because the loss is a sum over the global batch's answer tokens divided by their number. So
micro-batches may be formed by length within a global batch, with no bias in the order of training.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from harness.contracts import Encoded

Batching = Literal["grouped", "in-order", "padding-free"]


def global_batches(
    examples: Sequence[Encoded], epochs: int, batch_size: int, seed: int
) -> list[list[Encoded]]:
    """Shuffled epochs laid end to end and cut into batches; only the very last one can be smaller."""
    rng = random.Random(seed)
    stream: list[Encoded] = []
    for _ in range(epochs):
        stream += rng.sample(examples, len(examples))
    return [stream[start : start + batch_size] for start in range(0, len(stream), batch_size)]


def loss_tokens(example: Encoded) -> int:
    """Tokens that carry loss. The first token of a sequence is never predicted."""
    return sum(example.trained[1:])


def deal(
    batch: Sequence[Encoded], size: int, max_tokens: int | None, batching: Batching, devices: int = 1
) -> list[list[list[Encoded]]]:
    """Cut a global batch into micro-batches and deal them: for each device a list, all of one length.

    A micro-batch has at most ``size`` examples and at most ``max_tokens`` tokens as computed (padding
    included, where there is any), but never fewer than one example. An empty one stands where a device
    would have nothing to do while the others wait for it.
    """
    ordered = batch if batching == "in-order" else sorted(batch, key=lambda e: -len(e.input_ids))
    cut: list[list[Encoded]] = []
    for example in ordered:
        if not cut or not _fits([*cut[-1], example], size, max_tokens, batching):
            cut.append([])
        cut[-1].append(example)
    while len(cut) % devices and any(len(micro) > 1 for micro in cut):  # no device idle: halve the largest
        widest = max(cut, key=lambda micro: _computed(micro, batching) if len(micro) > 1 else 0)
        cut.remove(widest)
        cut += [widest[: len(widest) // 2], widest[len(widest) // 2 :]]
    cut += [[] for _ in range(-len(cut) % devices)]
    if devices > 1:
        cut.sort(key=lambda micro: -_computed(micro, batching))
    return [cut[device::devices] for device in range(devices)]


def _fits(micro: Sequence[Encoded], size: int, max_tokens: int | None, batching: Batching) -> bool:
    return len(micro) <= size and (max_tokens is None or _computed(micro, batching) <= max_tokens)


def _computed(micro: Sequence[Encoded], batching: Batching) -> int:
    lengths = [len(example.input_ids) for example in micro]
    return sum(lengths) if batching == "padding-free" else max(lengths, default=0) * len(lengths)


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """The tensors of one forward pass over B examples with N loss-carrying tokens.

    ``inputs``: the model's arguments, (B, T) padded on the right or (1, sum of lengths) packed;
    ``positions`` (N,): where in the flattened rows the next token carries loss; ``targets`` (N,): that
    token; ``slots`` (N,): its place in the flattened (B, A) of ``LossInputs``; ``shape``: (B, A).
    """

    inputs: dict[str, Any]
    positions: Tensor
    targets: Tensor
    slots: Tensor
    shape: tuple[int, int]
    mask: Tensor  # (B, A) bool
    ids: list[str]

    def to(self, device: Any) -> MicroBatch:
        def move(value: Any) -> Any:
            return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value

        return MicroBatch(
            inputs={name: move(value) for name, value in self.inputs.items()},
            positions=move(self.positions),
            targets=move(self.targets),
            slots=move(self.slots),
            shape=self.shape,
            mask=move(self.mask),
            ids=self.ids,
        )


def collate(micro: Sequence[Encoded], pad_id: int, packed: bool = False) -> MicroBatch:
    """Padded rows, or all examples in one row without padding. Nothing without a loss-carrying token fails:
    its loss is 0."""
    lengths = [len(example.input_ids) for example in micro]
    width = max(loss_tokens(example) for example in micro)
    inputs: dict[str, Any]
    if packed:
        starts = [0]
        for length in lengths:
            starts.append(starts[-1] + length)
        bounds = torch.tensor(starts, dtype=torch.int32)
        inputs = {
            "input_ids": torch.tensor([token for example in micro for token in example.input_ids])[None],
            "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
            "cu_seq_lens_q": bounds,
            "cu_seq_lens_k": bounds,
            "max_length_q": max(lengths),
            "max_length_k": max(lengths),
        }
    else:
        starts = [row * max(lengths) for row in range(len(micro))]
        ids = torch.full((len(micro), max(lengths)), pad_id)
        for row, example in enumerate(micro):
            ids[row, : lengths[row]] = torch.tensor(example.input_ids)
        inputs = {"input_ids": ids}
    positions: list[int] = []
    targets: list[int] = []
    slots: list[int] = []
    for row, example in enumerate(micro):
        found = [place for place in range(1, lengths[row]) if example.trained[place]]
        positions += [starts[row] + place - 1 for place in found]
        targets += [example.input_ids[place] for place in found]
        slots += range(row * width, row * width + len(found))
    places = torch.tensor(slots, dtype=torch.long)
    mask = torch.zeros(len(micro) * width, dtype=torch.bool)
    mask[places] = True
    return MicroBatch(
        inputs=inputs,
        positions=torch.tensor(positions, dtype=torch.long),
        targets=torch.tensor(targets, dtype=torch.long),
        slots=places,
        shape=(len(micro), width),
        mask=mask.view(len(micro), width),
        ids=[example.id for example in micro],
    )


def stand_in(batch: Sequence[Encoded], pad_id: int, packed: bool = False) -> MicroBatch:
    """A micro-batch without examples, for a device that has none left: two tokens that carry no loss."""
    idle = collate([Encoded("", batch[0].input_ids[:2], [False, False])], pad_id, packed)
    return replace(idle, shape=(0, 0), mask=idle.mask.view(0, 0), ids=[])
