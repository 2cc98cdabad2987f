"""Test methods, one for each hook: what the literature does with it, in a few lines. No reproductions.

One file with all that they need, so that a launched training gets them as it gets a user's own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from harness.contracts import LossInputs, Method, ModelRef, TrainContext

MINI = ModelRef("mini")


@dataclass
class SafeGrad(Method):
    """Takes the part that conflicts with safety out of the gradient, and adds ``rho`` times the safety
    gradient (after arXiv 2508.07172, with cross-entropy)."""

    name = "safe-grad"
    summary = "projects the gradient"
    needs_safety_data = True

    rho: float = 0.5

    def on_gradients(self, model: Any, context: TrainContext) -> None:
        safety = context.safety_gradient()
        own = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
        dot = sum((own[name] * safety[name]).sum() for name in own)
        norm = sum(gradient.square().sum() for gradient in safety.values())
        conflict = torch.where(dot < 0, dot / norm, 0.0)
        for name, gradient in own.items():
            gradient.add_((self.rho - conflict) * safety[name])
        context.record["steps"] = context.record.get("steps", 0) + 1
        context.record["drawn"] = [*context.record.get("drawn", []), context.rng.random()]


def _along(v: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """C X = V (V^T X) / |V| (arXiv 2405.16833)."""
    return v @ (v.T @ change) / v.norm().clamp(min=1e-12)


@dataclass
class SafeLora(Method):
    """Projects each matrix's change onto aligned - unaligned weights: of an adapter its B, of a model tuned
    whole the difference from the base model (after arXiv 2405.16833)."""

    name = "safe-lora"
    summary = "projects the change"

    unaligned: ModelRef = MINI
    start: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def before_training(self, model: Any, context: TrainContext) -> None:
        self.start = {name: weight.detach().clone() for name, weight in model.named_parameters()}

    @torch.no_grad()
    def after_training(self, model: Any, context: TrainContext) -> None:
        other, changed = context.model(self.unaligned), 0
        adapted = any(hasattr(module, "lora_B") for module in model.modules())
        for name, module in model.named_modules():
            if adapted and hasattr(module, "lora_B"):
                b = module.lora_B["default"].weight
                b.copy_(_along(module.base_layer.weight - other.weight(f"{name}.weight"), b))
            elif not adapted and isinstance(module, torch.nn.Linear) and f"{name}.weight" in self.start:
                start = self.start[f"{name}.weight"]
                along = _along(start - other.weight(f"{name}.weight"), module.weight - start)
                module.weight.copy_(start + along)
            else:
                continue
            changed += 1
        context.record["projected"] = changed


@dataclass
class FrozenLayers(Method):
    """Freezes some of the decoder's blocks, or the adapters in them (after arXiv 2408.17003)."""

    name = "frozen-layers"
    summary = "freezes blocks"

    frozen: tuple[int, ...] = (0,)

    def before_training(self, model: Any, context: TrainContext) -> None:
        blocks = context.layers(model)
        for place in self.frozen:
            blocks[place].requires_grad_(False)
        context.record["layers"] = len(blocks)


@dataclass
class Penalised(Method):
    """Cross-entropy, a penalty on the last block's states, and one on the logits."""

    name = "penalised"
    summary = "penalises states and logits"
    needs_logits = True
    needs_hidden_states = True

    strength: float = 0.01

    def loss(self, inputs: LossInputs) -> Any:
        states = inputs.hidden_states[-2].square().mean(-1)  # (B, A)
        logits = torch.logsumexp(inputs.logits, -1).square() * inputs.mask
        return super().loss(inputs) + self.strength * (states.sum() + logits.sum()) / inputs.token_count


@dataclass
class All(SafeGrad, SafeLora, Penalised):
    """Every hook at once."""

    name = "all-hooks"
    summary = "all of it"

    unaligned: ModelRef = MINI

    def before_training(self, model: Any, context: TrainContext) -> None:
        SafeLora.before_training(self, model, context)
        context.layers(model)[0].requires_grad_(False)
