"""The parts of a training's steps, each alone, to be timed for a forecast."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from harness.config import TrainingConfig
from harness.contracts import Encoded
from harness.training import adapters, attention, flops, isolation
from harness.training.arguments import check_batching, filler_id
from harness.training.batching import Batching, collate, deal, loss_tokens
from harness.training.logprobs import TargetHead, autocast


class StepProbe:
    """The parts of a training's steps, each alone, to be timed for a forecast. The weights stay as they are.

    ``model`` gets ``settings``' adapters and the attention that they ask for. It is not compared with the
    model's own implementation (agreement.py), which takes longer than a forecast may.
    """

    def __init__(self, model: Any, tokenizer: Any, settings: TrainingConfig):
        check_batching(settings)
        adapters.without_dropout(model)
        asked = attention.CAUSAL if settings.attention == "auto" else settings.attention
        with contextlib.suppress(Exception):  # the training refuses it, or takes another
            attention.use(model, asked)
        self.model, self.settings = adapters.with_adapters(model, settings), settings
        if settings.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        self._packed = (
            settings.batching == "padding-free"
            and attention.in_force(model).name == attention.CAUSAL
            and attention.no_kernel_for(model, settings) is None
        )
        self._pad_id = filler_id(model, tokenizer)
        self._head = TargetHead(self.model, chunked=settings.chunked_loss)
        self._costs = flops.count(self.model)
        self._trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self._optimizer = optimizer_like(settings, self._trained)
        self.model.train()
        self.layers = self._layers()

    def _layers(self) -> int:
        """How many layers a pass may be cut to the first of; 0 where the model runs all of them whatever its
        configuration says."""
        config, ran = self.model.config.get_text_config(), list[int]()
        blocks = getattr(self.model.get_decoder(), "layers", ())
        hooks = [block.register_forward_pre_hook(lambda *given: ran.append(1)) for block in blocks]
        with contextlib.suppress(Exception), self._cut_to(1), torch.no_grad():
            self.model(input_ids=torch.full((1, 1), self._pad_id, device=self.model.device))
        for hook in hooks:
            hook.remove()
        return int(config.num_hidden_layers) if len(ran) == 1 else 0

    @contextlib.contextmanager
    def _cut_to(self, layers: int) -> Iterator[None]:
        """Hugging Face's decoders run as many of their layers as their configuration counts."""
        config = self.model.config.get_text_config()
        whole = config.num_hidden_layers
        config.num_hidden_layers = layers
        try:
            yield
        finally:
            config.num_hidden_layers = whole

    def micro_batches(self, batch: Sequence[Encoded], settings: TrainingConfig) -> list[list[Encoded]]:
        """A global batch as one device takes it under ``settings``."""
        padded = settings.batching == "padding-free" and not self._packed
        batching: Batching = "grouped" if padded else settings.batching
        dealt = deal(batch, settings.micro_batch_size, settings.micro_batch_tokens, batching)
        return [micro for micro in dealt[0] if micro]

    def passes(self, micro: Sequence[Encoded], layers: int | None = None) -> None:
        """One micro-batch forwards and backwards, through the first ``layers`` alone where they are given."""
        inputs = collate(micro, self._pad_id, self._packed).to(self.model.device)
        with self._cut_to(layers) if layers else contextlib.nullcontext():
            with autocast(self.model, self.settings), self._kernels():
                loss = -self._head.logp(self.model, inputs).sum() / max(1, len(inputs.targets))
            loss.backward()

    @contextlib.contextmanager
    def _kernels(self) -> Iterator[None]:
        """Those of the settings but Liger's, and nothing compiled: that takes longer than a forecast may."""
        with (
            isolation.cudnn_attention(self.settings.cudnn_attention),
            adapters.adapter_casts(self.model, self.settings),
        ):
            yield

    def update(self) -> None:
        """What ends a step. The gradients stay, so that the next one has as much to do."""
        torch.nn.utils.clip_grad_norm_(self._trained, self.settings.max_grad_norm or 1.0)
        self._optimizer.step()

    def flops(self, micro: Sequence[Encoded], layers: int | None = None) -> int:
        """Of ``passes`` with the same arguments, padding included where there is any."""
        lengths = [len(example.input_ids) for example in micro]
        computed = lengths if self._packed else [max(lengths)] * len(lengths)
        whole = self._costs.train(computed, sum(map(loss_tokens, micro)))
        left_out = 1 - layers / self.layers if layers else 0.0
        return whole - round(left_out * self._costs.train(computed, 0))

    @staticmethod
    def cut(example: Encoded, tokens: int) -> Encoded:
        """The last ``tokens`` tokens of an example."""
        return replace(example, input_ids=example.input_ids[-tokens:], trained=example.trained[-tokens:])


def optimizer_like(settings: TrainingConfig, trained: Sequence[Tensor]) -> torch.optim.Optimizer:
    """The optimizer of a training under ``settings``, which changes nothing. Where its package is missing
    (the training then says so), or fails on this device, torch's own stands in."""
    if settings.optimizer == "adamw_8bit":
        with contextlib.suppress(Exception):
            from bitsandbytes.optim import AdamW

            first = torch.nn.Parameter(torch.zeros(8192, device=trained[0].device))
            first.grad = torch.zeros_like(first)
            AdamW([first], lr=0.0, weight_decay=0.0, optim_bits=8).step()
            found: torch.optim.Optimizer = AdamW(trained, lr=0.0, weight_decay=0.0, optim_bits=8)
            return found
    return torch.optim.AdamW(
        trained, lr=0.0, weight_decay=0.0, fused=settings.optimizer == "adamw_torch_fused"
    )
