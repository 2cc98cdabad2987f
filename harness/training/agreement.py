"""Under which attention and batching a model trains: the fastest that says what the model itself says.

Before the first step the trainer's log-probabilities of a few rows are compared with those of the model's
own implementation on each row alone (own_logp.py): with the attention that transformers chooses for it, or
eager attention where that would leave out soft-capping (Gemma 2). What a mask-free attention drops (sinks,
ALiBi, chunks) and what packed rows tell each other (recurrent and convolutional layers) shows as a
difference. The settings are tried from the fastest to the slowest:

1. as the recipe says (``attention: auto`` is our own attention without a mask);
2. the same rows padded instead of packed;
3. padded, under the model's own attention;
4. one row at a time, under the model's own attention.

Rules. All is compared in evaluation mode: a router that draws at random while it trains (sparse mixtures) is
the model's own affair, and how far training mode is from evaluation mode is recorded. Weights in 4 bits are
compared with themselves. Weights that will be sharded (ZeRO-3, FSDP2) are compared before that, by the first
process alone: whole on its device, or on the CPU where that does not hold them, which then says nothing of
the device's kernels. Gradient checkpointing is not part of it; Liger's kernels and compiled layers are, once
they are there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from harness.config import TrainingConfig
from harness.contracts import Encoded, HarnessError
from harness.text import shortened
from harness.training import attention
from harness.training.batching import loss_tokens
from harness.training.logprobs import TargetHead
from harness.training.own_logp import (
    LIMITS,
    compute_own,
    enter_evaluation,
    kind_of,
    measure_difference,
    measure_noise,
    sample,
)
from harness.training.setting import Setting, list_candidates, read_setting


@dataclass(frozen=True)
class Agreement:
    """``setting``: the one to train under. ``record``: what training.json says about the choice. ``rows`` and
    ``expected``: what was compared, and the model's own log-probabilities of it."""

    setting: Setting
    record: dict[str, Any]
    rows: list[Encoded]
    expected: list[Tensor]


def choose(
    model: Any,
    base: Any,
    head: TargetHead,
    examples: Sequence[Encoded],
    pad_id: int,
    settings: TrainingConfig,
    begun: Setting | None = None,
) -> Agreement:
    """The fastest setting that agrees, in force on ``model`` when this returns.

    ``base``: the model inside ``model``, which may have adapters around it. ``begun``: the setting under
    which this training was begun, and under which alone it may go on. Raises HarnessError where none agrees.
    """
    start = time.perf_counter()
    limit, asked, rows = LIMITS[settings.dtype], read_setting(settings), sample(examples)
    with enter_evaluation(model, settings):
        own = _use_own(base)
        expected = compute_own(model, head, rows, pad_id, settings)
        noise = measure_noise(model, rows[0], settings)

        def measure(setting: Setting) -> float | str:
            return (
                _put_in_force(base, own, setting)
                or _find_lacking_kernel(base, setting, settings)
                or measure_difference(model, head, rows, expected, pad_id, setting)
            )

        choice = _find_first([begun] if begun else list_candidates(asked, own.name), measure, limit)
        if choice.setting is None:
            own.restore(base)
            raise HarnessError(_describe_refusal(base, choice.rejected, begun, settings))
    record = {
        "asked": asdict(asked),
        **choice.record(limit, rows),
        "training_noise": noise,
        "device": str(model.device),
        "seconds": round(time.perf_counter() - start, 3),
    }
    return Agreement(choice.setting, record, rows, expected)


@dataclass(frozen=True)
class _Choice:
    """The first setting that agrees, or None; how far off it is, or why that cannot be told; and what was
    rejected before it."""

    setting: Setting | None
    found: float | str
    rejected: list[dict[str, Any]]

    def record(self, limit: float, rows: Sequence[Encoded]) -> dict[str, Any]:
        """Of a setting that was found, by log-probabilities of ``rows``."""
        assert self.setting is not None
        return {
            "taken": asdict(self.setting),
            **_record_difference(self.found),
            "limit": limit,
            "rejected": self.rejected,
            "rows": len(rows),
            "tokens": sum(map(loss_tokens, rows)),
        }


def _find_first(
    settings: Sequence[Setting], measure: Callable[[Setting], float | str], limit: float
) -> _Choice:
    """The first that is at most ``limit`` off."""
    rejected: list[dict[str, Any]] = []
    for setting in settings:
        found = measure(setting)
        if not isinstance(found, str) and found <= limit:
            return _Choice(setting, found, rejected)
        rejected.append({**asdict(setting), **_record_difference(found)})
    return _Choice(None, "", rejected)


def confirm(agreed: Agreement, model: Any, head: TargetHead, pad_id: int, settings: TrainingConfig) -> None:
    """Compare again, when kernels have been put into the model since. Raises HarnessError if it differs."""
    with enter_evaluation(model, settings):
        found = measure_difference(model, head, agreed.rows, agreed.expected, pad_id, agreed.setting)
    if isinstance(found, str) or found > LIMITS[settings.dtype]:
        asked = {"Liger's kernels": settings.liger, "compiled layers": settings.compile}
        put_in = " and ".join(name for name, wanted in asked.items() if wanted)
        keys = " and ".join(f"training.{key}" for key in ("liger", "compile") if getattr(settings, key))
        raise HarnessError(
            f"model type '{kind_of(model)}': with {put_in} its log-probabilities are not those of its "
            f"own implementation ({describe(_record_difference(found))}); set {keys} to false"
        )


# --- attention -------------------------------------------------------------------------------------


def _use_own(base: Any) -> attention.Own:
    """The attention of the model's own implementation, in force when this returns."""
    if attention.is_capped(base):
        attention.use(base, attention.EAGER)
    return attention.in_force(base)


def _put_in_force(base: Any, own: attention.Own, setting: Setting) -> str | None:
    """Put a setting's attention in force; why it cannot be, otherwise."""
    try:
        name = own.restore(base) if setting.attention == own.name else attention.use(base, setting.attention)
    except ImportError as error:
        raise HarnessError(
            f"training.attention {setting.attention} is not installed ({shortened(error, 200)})"
        ) from error
    except Exception as error:
        return shortened(error, 200)
    if name != setting.attention:
        return f"the architecture has {name} attention alone"
    if setting.batching == "padding-free" and name in attention.UNFUSED:
        return f"{name} attention knows no packed rows"
    return None


def _find_lacking_kernel(base: Any, setting: Setting, settings: TrainingConfig) -> str | None:
    """Why the device cannot take packed rows under a setting with our own attention."""
    if setting.batching == "padding-free" and setting.attention == attention.CAUSAL:
        return attention.no_kernel_for(base, settings)
    return None


# --- words and files -------------------------------------------------------------------------------


def _describe_refusal(
    base: Any, rejected: Sequence[dict[str, Any]], begun: Setting | None, settings: TrainingConfig
) -> str:
    what = describe(rejected[-1])
    limit = f"at most {LIMITS[settings.dtype]:g} nats a token from its own implementation's"
    if begun:
        return (
            f"model type '{kind_of(base)}': this training was begun under {begun}, which no longer has "
            f"log-probabilities {limit} ({what}); begin it anew in another run folder"
        )
    return (
        f"model type '{kind_of(base)}' cannot be trained here: under no attention and batching are its "
        f"log-probabilities {limit} (one row at a time: {what}); choose another model"
        + ("" if settings.dtype == "float32" else ", or set training.dtype to float32")
    )


def _record_difference(found: float | str) -> dict[str, Any]:
    return {"reason": found} if isinstance(found, str) else {"difference": found}


def describe(tried: Mapping[str, Any]) -> str:
    """Of one tried setting how far off it is, or why that cannot be told."""
    return str(tried.get("reason") or f"differs by {tried['difference']:.2g} nats a token")


def follow(base: Any, setting: Setting) -> None:
    """Put in force what another process has chosen for the same model."""
    if reason := _put_in_force(base, attention.in_force(base), setting):
        raise HarnessError(f"processes of one training differ: {reason}")
