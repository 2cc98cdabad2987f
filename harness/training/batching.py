"""The order of the data, and how a global batch is cut into micro-batches.

Global batches are planned ahead, the same for every method. How one is cut (and dealt to devices) changes
nothing but speed, because the loss is a sum over the global batch's answer tokens divided by their number. So
micro-batches may be formed by length within a global batch, with no bias in the order of training.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from harness.contracts import Encoded

Array = np.ndarray[Any, Any]
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
        own = [*self.inputs.values(), self.positions, self.targets, self.slots, self.mask]
        here = {id(value): value for value in own if isinstance(value, Tensor)}  # one may stand there twice
        there = dict(zip(here, moved_together([*here.values()], device), strict=True))
        return replace(
            self,
            inputs={name: there.get(id(value), value) for name, value in self.inputs.items()},
            positions=there[id(self.positions)],
            targets=there[id(self.targets)],
            slots=there[id(self.slots)],
            mask=there[id(self.mask)],
        )


def moved_together(tensors: Sequence[Tensor], device: Any) -> list[Tensor]:
    """Tensors of the CPU on another device. A GPU gets them in one copy from pinned memory, for which the
    CPU does not wait."""
    if torch.device(device).type != "cuda":
        return [tensor.to(device, non_blocking=True) for tensor in tensors]
    return taken_apart(end_to_end(tensors, pinned=True).to(device, non_blocking=True), tensors)


def end_to_end(tensors: Sequence[Tensor], *, pinned: bool = False) -> Tensor:
    """The bytes of tensors, one behind the other, each from a multiple of eight on."""
    whole = torch.empty(sum(map(_room, tensors)), dtype=torch.uint8, pin_memory=pinned)
    for place, tensor in zip(taken_apart(whole, tensors), tensors, strict=True):
        place.copy_(tensor)
    return whole


def taken_apart(whole: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The tensors in bytes that lie end to end, with the types and shapes that ``like`` have."""
    found, start = [], 0
    for tensor in like:
        found.append(whole[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape))
        start += _room(tensor)
    return found


def _room(tensor: Tensor) -> int:
    return -(-tensor.nbytes // 8) * 8


def collate(micro: Sequence[Encoded], pad_id: int, packed: bool = False) -> MicroBatch:
    """Padded rows, or all examples in one row without padding. Nothing without a loss-carrying token fails:
    its loss is 0."""
    lengths = np.array([len(example.input_ids) for example in micro])
    total, longest = int(lengths.sum()), int(lengths.max())
    starts = np.concatenate(([0], lengths.cumsum()))  # of each example, end to end; and the end
    ids = np.fromiter(chain.from_iterable(example.input_ids for example in micro), np.int64, total)
    trained = np.fromiter(chain.from_iterable(example.trained for example in micro), np.bool_, total)
    trained[starts[:-1][lengths > 0]] = False  # a first token is never predicted
    row_of = np.arange(len(micro)).repeat(lengths)
    column = np.arange(total) - starts[row_of]
    found = trained.nonzero()[0]
    rows = row_of[found]
    counts = np.bincount(rows, minlength=len(micro))
    width = int(counts.max())
    slots = rows * width + np.arange(len(found)) - (counts.cumsum() - counts)[rows]
    mask = np.zeros(len(micro) * width, np.bool_)
    mask[slots] = True
    inputs = (
        _packed(ids, column, starts)
        if packed
        else _padded(ids, row_of, column, (len(micro), longest), pad_id)
    )
    positions = found - 1 if packed else rows * longest + column[found] - 1
    return MicroBatch(
        inputs=inputs,
        positions=torch.from_numpy(positions),
        targets=torch.from_numpy(ids[found]),
        slots=torch.from_numpy(slots),
        shape=(len(micro), width),
        mask=torch.from_numpy(mask).view(len(micro), width),
        ids=[example.id for example in micro],
    )


def _packed(ids: Array, column: Array, starts: Array) -> dict[str, Any]:
    """All examples in one row; ``starts``: where each begins, and the end."""
    bounds, longest = torch.from_numpy(starts.astype(np.int32)), int(np.diff(starts).max())
    return {
        "input_ids": torch.from_numpy(ids)[None],
        "position_ids": torch.from_numpy(column)[None],
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def _padded(ids: Array, row_of: Array, column: Array, shape: tuple[int, int], pad_id: int) -> dict[str, Any]:
    """An example a row, filled up on the right."""
    padded = np.full(shape, pad_id, np.int64)
    padded[row_of, column] = ids
    return {"input_ids": torch.from_numpy(padded)}


def stand_in(batch: Sequence[Encoded], pad_id: int, packed: bool = False) -> MicroBatch:
    """A micro-batch without examples, for a device that has none left: two tokens that carry no loss."""
    idle = collate([Encoded("", batch[0].input_ids[:2], [False, False])], pad_id, packed)
    return replace(idle, shape=(0, 0), mask=idle.mask.view(0, 0), ids=[])
