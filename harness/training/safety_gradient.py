"""The gradient of a loss on the recipe's safety data, beside a training's own gradients.

Each call draws a batch of the size of a training step's: reshuffled epochs of the safety data, cut into
batches. Which one depends on the training's seed, the step and how often the step has asked, and on nothing
else, so that a resumed training draws the same.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from harness.config import TrainingConfig
from harness.contracts import Encoded, HarnessError, LossInputs, Method
from harness.training import flops
from harness.training.batching import collate, loss_tokens
from harness.training.distributed import free_cached
from harness.training.logprobs import TargetHead, autocast
from harness.training.steps import Steps

Loss = Callable[[LossInputs], Any]


class SafetyGradient:
    """What ``TrainContext.safety_gradient`` calls. ``spent``: what all calls have cost, over all processes.

    ``step``: the optimizer step that asks, from 1; 0 before the first. ``steps`` cut a batch into
    micro-batches; ``on_memory(index, largest)`` is told where one did not fit, and raises what ends the
    training, or cuts smaller ones.
    """

    def __init__(
        self,
        model: Any,
        head: TargetHead,
        method: Method,
        examples: Sequence[Encoded],
        settings: TrainingConfig,
        pad_id: int,
        seed: int,
    ):
        self.model, self.head, self.method, self.examples = model, head, method, examples
        self.settings, self.pad_id, self.seed = settings, pad_id, seed
        several = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.rank = torch.distributed.get_rank() if several else 0
        self.devices = torch.distributed.get_world_size() if several else 1
        self.steps = Steps([], settings, pad_id, self.rank, self.devices)
        self.on_memory: Callable[[int, int], None] = self._cut_smaller
        self.step, self._asked = 0, 0
        self.spent = {"calls": 0, "tokens": 0, "flops": 0}

    def begin(self, step: int) -> None:
        """An optimizer step begins to ask."""
        self.step, self._asked = step, 0

    def __call__(self, loss: Loss | None = None) -> dict[str, Tensor]:
        """float32, by the names of the trained weights; the same in each process, zero where a weight has no
        part in it. ``loss``: of a micro-batch (default: cross-entropy). ``.grad`` stays as it is."""
        if not self.examples:
            raise HarnessError(
                f"method '{self.method.name}' asks for the gradient on safety data and has none: set "
                "needs_safety_data = True in it, and safety_data in the recipe"
            )
        batch = self.batch()
        self._asked += 1
        while (found := self._try(batch, loss or self._cross_entropy)) is None:
            free_cached()
            self.on_memory(max(0, self.step - 1), self._largest(batch))
        if self.devices > 1:
            for gradient in found.values():
                torch.distributed.all_reduce(gradient)
        lengths = [len(example.input_ids) for example in batch]
        self.spent["calls"] += 1
        self.spent["tokens"] += sum(lengths)
        self.spent["flops"] += flops.count(self.model).train(lengths, sum(map(loss_tokens, batch)))
        return found

    def batch(self) -> list[Encoded]:
        """The batch of the next call."""
        size, whole = self.settings.batch_size, len(self.examples)
        places = range(self.step * size, (self.step + 1) * size)
        epochs = {epoch: self._shuffled(epoch) for epoch in {place // whole for place in places}}
        return [epochs[place // whole][place % whole] for place in places]

    def _shuffled(self, epoch: int) -> list[Encoded]:
        rng = random.Random(f"{self.seed} safety {self._asked} {epoch}")
        return rng.sample(self.examples, len(self.examples))

    def _cross_entropy(self, inputs: LossInputs) -> Any:
        return Method.loss(self.method, inputs)

    def _try(self, batch: Sequence[Encoded], loss: Loss) -> dict[str, Tensor] | None:
        """This process's share of the gradient; None where the device's memory did not do."""
        try:
            return self._gradient(batch, loss)
        except torch.OutOfMemoryError:
            return None

    def _gradient(self, batch: Sequence[Encoded], loss: Loss) -> dict[str, Tensor]:
        trained = {name: one for name, one in self.model.named_parameters() if one.requires_grad}
        total = {name: torch.zeros_like(one, dtype=torch.float32) for name, one in trained.items()}
        mine = self.steps.cut(batch, max(0, self.step - 1))[self.rank]
        was_training = self.model.training
        self.model.train()
        with torch.enable_grad():
            for micro in filter(None, mine):
                inputs = self._inputs(batch, micro, len(mine) * self.devices)
                with autocast(self.model, self.settings):
                    value = loss(inputs)
                found = torch.autograd.grad(value, list(trained.values()), allow_unused=True)
                for name, gradient in zip(trained, found, strict=True):
                    if gradient is not None:
                        total[name] += gradient
        self.model.train(was_training)
        return total

    def _inputs(self, batch: Sequence[Encoded], micro: Sequence[Encoded], count: int) -> LossInputs:
        packed = self.settings.batching == "padding-free"
        rows = collate(micro, self.pad_id, packed).to(self.model.device)
        with autocast(self.model, self.settings):
            return self.head.loss_inputs(
                self.model,
                rows,
                self.method,
                token_count=max(1, sum(map(loss_tokens, batch))),
                micro_batches=count,
                plain_model=self.model,
            )

    def _largest(self, batch: Sequence[Encoded]) -> int:
        return max(len(micro) for micro in self.steps.cut(batch, max(0, self.step - 1))[self.rank])

    def _cut_smaller(self, index: int, largest: int) -> None:
        """Before the first step, when no restart needs to know."""
        if self.devices > 1 or largest == 1:
            raise HarnessError(
                "a device has no memory for the gradient on safety data: lower training.micro_batch_size, or "
                "set training.gradient_checkpointing"
            )
        self.steps.cut_smaller(index, largest // 2)
