"""Log-probabilities of the loss-carrying tokens, without computing logits for any other."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from harness.config import TrainingConfig
from harness.contracts import Encoded, LossInputs, Method
from harness.training.batching import MicroBatch, collate, deal, loss_tokens

# Logits that are float32 at once where the loss is computed in chunks: what a core's cache holds, or 64 MiB.
CHUNK, CHUNK_ON_DEVICE = 2**18, 2**24


def token_logp(logits: Tensor, targets: Tensor) -> Tensor:
    """(N, V) logits, in float32 or less, to the float32 (N,) log-probabilities of the targets."""
    return -cross_entropy(logits.float(), targets, reduction="none")


def chunked_logp(logits: Tensor, targets: Tensor) -> Tensor:
    """``token_logp`` of some rows at a time: what is kept for the backward pass are the logits as they come,
    and two numbers a row, where torch keeps all logits once more in float32, and makes as many gradients."""
    found = _Chunked.apply(logits, targets)
    assert isinstance(found, Tensor)
    return found


class _Chunked(torch.autograd.Function):
    """log p = (x_target - max x) - log sum exp(x - max x), which is exact far from zero too; its gradient by
    x is 1 at the target less the softmax of x."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        largest, total = torch.empty(2, len(targets), dtype=torch.float32, device=logits.device)
        logp = torch.empty_like(total)
        for rows in _chunks(logits):
            states = logits[rows].float()
            largest[rows] = states.amax(1)
            chosen = states.gather(1, targets[rows, None])[:, 0]
            total[rows] = (states - largest[rows, None]).exp_().sum(1).log_()
            logp[rows] = (chosen - largest[rows]) - total[rows]
        ctx.save_for_backward(logits, targets, largest, total)
        return logp

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        logits, targets, largest, total = ctx.saved_tensors
        gradients = torch.empty_like(logits)
        for rows in _chunks(logits):
            above = upstream[rows, None]
            states = logits[rows].float() - largest[rows, None]
            part = states.sub_(total[rows, None]).exp_().mul_(-above)
            gradients[rows] = part.scatter_add_(1, targets[rows, None], above)
        return gradients, None


def _chunks(logits: Tensor) -> Iterator[slice]:
    most = CHUNK if logits.device.type == "cpu" else CHUNK_ON_DEVICE
    rows = max(1, most // logits.shape[1])
    return (slice(start, start + rows) for start in range(0, logits.shape[0], rows))


class TargetHead:
    """Lets a causal language model's output head see the positions before loss-carrying tokens alone.

    Most tokens of a prompt carry no loss, and the head is a large part of a small model with a large
    vocabulary: a pre-hook hands it the hidden states that count, so that whatever the model does with its
    logits (scaling, soft-capping) stays the model's own affair. Of a model without such a head, or one that
    uses its weights another way, the logits of all positions are computed and the others left out.
    ``token_logp`` makes them of the logits (``chunked``: of some at a time), and may be exchanged.
    """

    def __init__(self, model: Any, *, chunked: bool = False):
        self.token_logp: Callable[[Tensor, Tensor], Tensor] = chunked_logp if chunked else token_logp
        self.can_be_compiled = not chunked
        self._micro: MicroBatch | None = None
        self._with_logits = self._with_states = False
        head = model.get_output_embeddings()
        if isinstance(head, torch.nn.Module):
            head.register_forward_pre_hook(self._select)

    def _select(self, head: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self._micro is None:
            return None
        return (
            inputs[0].flatten(0, 1).index_select(0, self._micro.positions)[None],
            *inputs[1:],
        )  # (1, N, H)

    def enter(self, model: Any) -> None:
        """Have ``model``'s own forward pass end with the log-probabilities, where this head asks. A library
        that wraps it later and turns all that it returns into float32 (accelerate) then leaves the logits."""
        own = model.forward

        @functools.wraps(own)
        def forward(this: Any, *given: Any, **named: Any) -> Any:
            output = own(*given, **named)
            if self._micro is None:
                return output
            found = self._of(output, self._micro)
            return found if len(found) > 1 else found[0]

        model.forward = MethodType(forward, model)

    def logp(self, model: Any, micro: MicroBatch) -> Tensor:
        """float32 (B, A), 0 where there is no token. ``model`` may be wrapped for several devices."""
        return _by_answer(self.target_logp(model, micro), micro)

    def target_logp(self, model: Any, micro: MicroBatch) -> Tensor:
        """float32 (N,): of all rows' loss-carrying tokens, one row after the other."""
        (logp,) = self._pass(model, micro)
        return logp

    def loss_inputs(
        self,
        model: Any,
        micro: MicroBatch,
        method: Method,
        *,
        token_count: int,
        micro_batches: int,
        plain_model: Any,
    ) -> LossInputs:
        """What ``method`` sees of a micro-batch that passes through ``model``; ``plain_model``: the same,
        not wrapped for several devices."""
        inputs = LossInputs(
            logp=None,
            mask=micro.mask,
            ids=micro.ids,
            token_count=token_count,
            model=plain_model,
            micro_batches=micro_batches,
        )
        if not (method.needs_logits or method.needs_hidden_states):
            inputs.logp = self.logp(model, micro)
            return inputs
        self._with_logits, self._with_states = method.needs_logits, method.needs_hidden_states
        try:
            logp, *more = self._pass(model, micro)
        finally:
            self._with_logits = self._with_states = False
        inputs.logp = _by_answer(logp, micro)
        if method.needs_logits:
            inputs.logits = _by_answer(more.pop(0).float(), micro)
        if method.needs_hidden_states:
            inputs.hidden_states = torch.stack([_by_answer(states.float(), micro) for states in more.pop(0)])
        return inputs

    def _pass(self, model: Any, micro: MicroBatch) -> tuple[Tensor, ...]:
        """Log-probabilities (N,), then logits (N, V) and states (L + 1, N, H) where they are asked for."""
        asked = {"output_hidden_states": True} if self._with_states else {}
        self._micro = micro
        try:
            found = model(**micro.inputs, use_cache=False, **asked)
        finally:
            self._micro = None
        if isinstance(found, Tensor):
            return (found,)
        return found if isinstance(found, tuple) else self._of(found, micro)

    def _of(self, output: Any, micro: MicroBatch) -> tuple[Tensor, ...]:
        """``output.logits``: (1, N, V), or (B, T, V) of a model that computes all."""
        logits = output.logits
        if logits.shape[:2] != (1, len(micro.targets)):  # N is less than T: nothing foretells a first token
            logits = logits.flatten(0, 1).index_select(0, micro.positions)[None]
        found = [self.token_logp(logits[0], micro.targets)]
        if self._with_logits:
            found.append(logits[0])
        if self._with_states:
            states = [one.flatten(0, 1).index_select(0, micro.positions) for one in output.hidden_states]
            found.append(torch.stack(states))
        return tuple(found)


def _by_answer(values: Tensor, micro: MicroBatch) -> Tensor:
    """(N, ...) to (B, A, ...), 0 where there is no token."""
    rows, width = micro.shape
    if values.ndim == 1:
        return values.new_zeros(rows * width).scatter(0, micro.slots, values).view(rows, width)
    spread = values.new_zeros(rows * width, *values.shape[1:]).index_copy(0, micro.slots, values)
    return spread.view(rows, width, *values.shape[1:])


@torch.no_grad()
def answer_logp(
    model: Any, head: TargetHead, examples: Sequence[Encoded], pad_id: int, settings: TrainingConfig
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
def autocast(model: Any, settings: TrainingConfig) -> Iterator[None]:
    """The precision of training, outside the trainer."""
    with torch.autocast(model.device.type, torch.bfloat16, enabled=settings.dtype == "bfloat16"):
        yield
