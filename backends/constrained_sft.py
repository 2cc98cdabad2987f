"""Constrained SFT: hold the first answer tokens near the base model (arXiv 2406.05946; paper eq. 2-3).

torch is imported where it is used: planning a run looks at every method, and must not wait for it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.contracts import LossInputs, Method, TrainContext

if TYPE_CHECKING:
    from torch import Tensor

BETA = 0.1  # b_t from the sixth answer token on
FIRST_FACTOR, EARLY_FACTOR, EARLY_TOKENS = 5.0, 20.0, 5  # b_1 = 0.5, b_2..b_5 = 2.0


def token_betas(
    mask: Tensor,
    beta: float = BETA,
    first_factor: float = FIRST_FACTOR,
    early_factor: float = EARLY_FACTOR,
    early_tokens: int = EARLY_TOKENS,
) -> Tensor:
    """b_t of each answer token, by its position in the answer. mask (B, T) bool -> (B, T) float64."""
    import torch

    position = mask.cumsum(dim=1)  # 1 at the first answer token
    betas = torch.full(mask.shape, beta, dtype=torch.float64, device=mask.device)
    betas = betas.masked_fill(position <= early_tokens, beta * early_factor)
    return betas.masked_fill(position <= 1, beta * first_factor)


def constrained_loss(
    logp: Tensor,
    ref_logp: Tensor,
    mask: Tensor,
    *,
    token_count: Tensor | int | None = None,
    betas: Tensor | None = None,
    min_weight: float | None = None,
) -> Tensor:
    """The constrained objective, -(2/b_t) log sigmoid(b_t d_t) with d_t = logp - ref_logp (paper eq. 2-3).

    ``logp``, ``ref_logp``: (B, T) log-probabilities of the target tokens under the tuned and the base model;
    ``mask``: (B, T) bool, true on answer tokens. Returns a scalar: the sum over answer tokens divided by
    ``token_count`` (default: the answer tokens given), 0 where there is none. ``min_weight`` clamps each
    token's gradient weight w_t = 2 (1 - sigmoid(b_t d_t)) from below, as the authors' trainer does (1e-3);
    the value is then the surrogate -w_t log p with w_t held constant. Default: the paper's form, no clamp.
    """
    import torch
    from torch.nn.functional import logsigmoid

    betas = (token_betas(mask) if betas is None else betas).to(logp.dtype)
    difference = torch.where(mask, logp - ref_logp.to(logp.dtype), torch.zeros_like(logp))
    if min_weight is None:
        per_token = -2.0 / betas * logsigmoid(betas * difference)
    else:
        weight = 2.0 * torch.sigmoid(-betas * difference.detach())
        per_token = -weight.clamp(min=min_weight) * logp
    count = mask.sum() if token_count is None else token_count
    at_least_one = count.clamp(min=1) if isinstance(count, torch.Tensor) else max(1, count)
    total = torch.where(mask, per_token, torch.zeros_like(per_token)).sum()
    return total / at_least_one


@dataclass
class ConstrainedSFT(Method):
    """The reference log-probabilities are the untouched base model's, computed once before training."""

    prepares_with = "seed_logp"
    name = "constrained-sft"
    summary = "holds the first answer tokens near the base model's distribution"

    beta: float = BETA
    first_factor: float = FIRST_FACTOR
    early_factor: float = EARLY_FACTOR
    early_tokens: int = EARLY_TOKENS
    min_weight: float | None = None
    reference: dict[str, list[float]] = field(default_factory=dict, init=False, repr=False)

    def before_training(self, model: Any, context: TrainContext) -> None:
        scores = context.seed_logp(context.examples)
        self.reference = {
            example.id: values for example, values in zip(context.examples, scores, strict=True)
        }

    def loss(self, inputs: LossInputs) -> Tensor:
        import torch

        rows, width = inputs.logp.shape
        stored = [self.reference[example_id] for example_id in inputs.ids]
        padded = torch.tensor(
            [values + [0.0] * (width - len(values)) for values in stored], dtype=inputs.logp.dtype
        )
        if inputs.logp.is_cuda:
            padded = padded.pin_memory()  # a copy from pageable memory waits for the device
        ref_logp = padded.view(rows, width).to(inputs.logp.device, non_blocking=True)
        betas = token_betas(inputs.mask, self.beta, self.first_factor, self.early_factor, self.early_tokens)
        return constrained_loss(
            inputs.logp,
            ref_logp,
            inputs.mask,
            token_count=inputs.token_count,
            betas=betas,
            min_weight=self.min_weight,
        )
