"""Log-probabilities of the loss-carrying tokens, without computing logits for any other."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from backends.batching import MicroBatch, collate, deal, loss_tokens
from harness.contracts import Encoded


class TargetHead:
    """Lets a causal language model's output head see the positions before loss-carrying tokens alone.

    Most tokens of a prompt carry no loss, and the head is a large part of a small model with a large
    vocabulary: a pre-hook hands it the hidden states that count, so that whatever the model does with its
    logits (scaling, soft-capping) stays the model's own affair. Of a model without such a head, or one that
    uses its weights another way, the logits of all positions are computed and the others left out.
    """

    def __init__(self, model: Any):
        self._positions: Tensor | None = None
        head = model.get_output_embeddings()
        if isinstance(head, torch.nn.Module):
            head.register_forward_pre_hook(self._select)

    def _select(self, head: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self._positions is None:
            return None
        return (inputs[0].flatten(0, 1).index_select(0, self._positions)[None], *inputs[1:])  # (1, N, H)

    def logp(self, model: Any, micro: MicroBatch) -> Tensor:
        """float32 (B, A), 0 where there is no token. ``model`` may be wrapped for several devices."""
        logp = self.target_logp(model, micro)
        rows, width = micro.shape
        return logp.new_zeros(rows * width).scatter(0, micro.slots, logp).view(rows, width)

    def target_logp(self, model: Any, micro: MicroBatch) -> Tensor:
        """float32 (N,): of all rows' loss-carrying tokens, one row after the other."""
        self._positions = micro.positions
        try:
            logits = model(**micro.inputs, use_cache=False).logits  # (1, N, V), or (B, T, V)
        finally:
            self._positions = None
        if logits.shape[:2] != (1, len(micro.targets)):  # N is less than T: nothing foretells a first token
            logits = logits.flatten(0, 1).index_select(0, micro.positions)[None]
        return -cross_entropy(logits[0].float(), micro.targets, reduction="none")


@torch.no_grad()
def answer_logp(
    model: Any, head: TargetHead, examples: Sequence[Encoded], pad_id: int, settings: Any
) -> list[list[float]]:
    """Each example's log-probabilities of its loss-carrying tokens under ``model``, batched by length."""
    packed = settings.batching == "padding-free"
    was_training = model.training
    model.eval()
    found: dict[int, list[float]] = {}
    (micros,) = deal(examples, settings.micro_batch_size, settings.micro_batch_tokens, settings.batching)
    with autocast(model, settings):
        while micros:
            examples_here = micros.pop()
            try:
                values = head.logp(model, collate(examples_here, pad_id, packed).to(model.device)).cpu()
            except torch.OutOfMemoryError:
                if len(examples_here) == 1:
                    raise
                middle = len(examples_here) // 2
                micros += [examples_here[:middle], examples_here[middle:]]
                continue
            for example, row in zip(examples_here, values, strict=True):
                found[id(example)] = row[: loss_tokens(example)].tolist()
    model.train(was_training)
    return [found[id(example)] for example in examples]


@contextlib.contextmanager
def autocast(model: Any, settings: Any) -> Iterator[None]:
    """The precision of training, outside the trainer."""
    with torch.autocast(model.device.type, torch.bfloat16, enabled=settings.dtype == "bfloat16"):
        yield
