"""Under which attention and batching a model trains: the fastest that says what the model itself says.

Before the first step the trainer's log-probabilities of up to ``ROWS`` rows are compared with those of the
model's own implementation on each row alone: with the attention that transformers chooses for it, or eager
attention where that would leave out soft-capping (Gemma 2). What a mask-free attention drops (sinks, ALiBi,
chunks) and what packed rows tell each other (recurrent and convolutional layers) shows as a difference. The
settings are tried from the fastest to the slowest:

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

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from harness.config import TrainingConfig
from harness.contracts import Encoded, HarnessError
from harness.text import shortened
from harness.training import attention
from harness.training.batching import collate, deal, loss_tokens
from harness.training.logprobs import TargetHead, autocast

ROWS = 4
LIMITS = {"float32": 1e-4, "bfloat16": 0.02}  # nats a token, in the mean


@dataclass(frozen=True)
class Setting:
    """How rows pass through a model. ``attention``: as transformers names it."""

    attention: str
    batching: str
    micro_batch_size: int

    def over(self, settings: TrainingConfig) -> TrainingConfig:
        """A recipe's settings with these in place of its own."""
        return settings.model_copy(update=asdict(self))

    def __str__(self) -> str:
        rows = "one row at a time" if self.micro_batch_size == 1 else f"batching {self.batching}"
        return f"attention {self.attention}, {rows}"


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
    limit, asked, rows = LIMITS[settings.dtype], _read_setting(settings), sample(examples)
    with _evaluating(model, settings):
        own = _use_own(base)
        expected = _compute_expected(model, head, rows, pad_id, settings)
        noise = _measure_noise(model, rows[0], settings)

        def measure(setting: Setting) -> float | str:
            return (
                _put_in_force(base, own, setting)
                or _find_lacking_kernel(base, setting, settings)
                or _measure_difference(model, head, rows, expected, pad_id, setting)
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
    with _evaluating(model, settings):
        found = _measure_difference(model, head, agreed.rows, agreed.expected, pad_id, agreed.setting)
    if isinstance(found, str) or found > LIMITS[settings.dtype]:
        asked = {"Liger's kernels": settings.liger, "compiled layers": settings.compile}
        put_in = " and ".join(name for name, wanted in asked.items() if wanted)
        keys = " and ".join(f"training.{key}" for key in ("liger", "compile") if getattr(settings, key))
        raise HarnessError(
            f"model type '{kind_of(model)}': with {put_in} its log-probabilities are not those of its "
            f"own implementation ({describe(_record_difference(found))}); set {keys} to false"
        )


def list_candidates(asked: Setting, own: str) -> list[Setting]:
    """Settings from the fastest to the slowest, each once. ``own``: the model's own attention."""
    padded = "grouped" if asked.batching == "padding-free" else asked.batching
    tried = [
        asked,
        replace(asked, batching=padded),
        Setting(own, padded, asked.micro_batch_size),
        Setting(own, padded, 1),
    ]
    return list(dict.fromkeys(tried))


def sample(examples: Sequence[Encoded]) -> list[Encoded]:
    """``ROWS`` rows with loss from the longest to the shortest, evenly spread. Of fewer some come twice, as a
    global batch may hold them twice; where no row has loss, all tokens count."""
    usable = [example for example in examples if loss_tokens(example)]
    if not usable:
        usable = [replace(e, trained=[True] * len(e.input_ids)) for e in examples if len(e.input_ids) > 1]
    if not usable:
        raise HarnessError("no training row has two tokens: there is nothing to predict")
    ordered = sorted(usable, key=lambda example: -len(example.input_ids))
    places = [round(number * (len(ordered) - 1) / (ROWS - 1)) for number in range(ROWS)]
    return [replace(ordered[place]) for place in places]


def mean_difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Mean over all tokens of how far apart two log-probabilities are, in nats; NaN if one is no number."""
    return float((torch.cat([*found]) - torch.cat([*expected])).abs().mean())


def own_logp(model: Any, ids: Sequence[int], places: Sequence[int]) -> Tensor:
    """(N,) float32: log-probabilities of the tokens at ``places`` of one row alone, by the model's forward
    pass and nothing of ours."""
    row = torch.tensor([list(ids)], device=model.device)
    logits = model(input_ids=row, use_cache=False).logits[0]  # (T, V)
    at = torch.tensor(list(places), device=model.device)
    return -cross_entropy(logits[at - 1].float(), row[0, at], reduction="none").cpu()


# --- the two sides ---------------------------------------------------------------------------------


def _compute_expected(
    model: Any, head: TargetHead, rows: Sequence[Encoded], pad_id: int, settings: TrainingConfig
) -> list[Tensor]:
    """The model's own log-probabilities of each row's loss-carrying tokens. Raises HarnessError where it has
    none, or where they look at later tokens."""
    kind = kind_of(model)

    def alone(row: Encoded) -> Tensor:
        places = [place for place in range(1, len(row.input_ids)) if row.trained[place]]
        try:
            return own_logp(model, row.input_ids, places)
        except torch.OutOfMemoryError:  # the logits of all positions are the largest part
            return head.target_logp(model, collate([row], pad_id).to(model.device)).cpu()

    with _without_adapters(model, settings):
        try:
            expected = [alone(row) for row in rows]
            ahead = _measure_lookahead(model, rows[-1])
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            longest = max(len(row.input_ids) for row in rows)
            raise HarnessError(
                f"model type '{kind}': transformers' own implementation fails on training rows of up to "
                f"{longest} tokens ({type(error).__name__}: {shortened(error, 200)}); lower "
                "training.max_length or choose another model"
            ) from error
    if not torch.cat(expected).isfinite().all():
        raise HarnessError(
            f"model type '{kind}': its log-probabilities of training rows are no finite numbers; set "
            "training.dtype to float32 or choose another model"
        )
    if not ahead <= LIMITS[settings.dtype]:
        raise HarnessError(
            f"model type '{kind}' is no causal language model as it is configured: tokens change what it "
            f"says of earlier ones by {ahead:.2g} nats a token; choose another model"
        )
    return expected


def _measure_lookahead(model: Any, row: Encoded) -> float:
    """How far the log-probabilities of a row's first half depend on its second half, in nats a token."""
    half = len(row.input_ids) // 2
    places = range(1, half + 1)  # the last of them is foretold from the first half alone
    turned = [*row.input_ids[: half + 1], *reversed(row.input_ids[:half])][: len(row.input_ids)]
    found = [own_logp(model, ids, places) for ids in (row.input_ids, turned)]
    return mean_difference(found[:1], found[1:])


def _measure_noise(model: Any, row: Encoded, settings: TrainingConfig) -> float | None:
    """How far the model in training mode is from itself in evaluation mode, in nats a token."""
    places = range(1, len(row.input_ids))
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        with _without_adapters(model, settings), torch.random.fork_rng(devices):
            still = own_logp(model, row.input_ids, places)
            model.train()
            return mean_difference([own_logp(model, row.input_ids, places)], [still])
    except Exception:  # it is told, not needed
        return None
    finally:
        model.eval()


def _measure_difference(
    model: Any,
    head: TargetHead,
    rows: Sequence[Encoded],
    expected: Sequence[Tensor],
    pad_id: int,
    setting: Setting,
) -> float | str:
    """How far the trainer's log-probabilities are from the expected ones, or why that cannot be told. Where
    the device has no memory for all rows at once, the longest are left out; two remain."""
    for first in range(len(rows) - 1):
        try:
            found = _compute_trained(model, head, rows[first:], pad_id, setting)
            difference = mean_difference(found, expected[first:])
            return difference if math.isfinite(difference) else "its log-probabilities are no finite numbers"
        except torch.OutOfMemoryError:
            continue
        except Exception as error:
            return f"{type(error).__name__}: {shortened(error, 200)}"
    return "the device has no memory for two rows at once"


def _compute_trained(
    model: Any, head: TargetHead, rows: Sequence[Encoded], pad_id: int, setting: Setting
) -> list[Tensor]:
    """The trainer's log-probabilities of each row, as many rows in a forward pass as in training."""
    found: dict[int, Tensor] = {}  # deal sorts the rows
    packed = setting.batching == "padding-free"
    (micros,) = deal(rows, setting.micro_batch_size, None, setting.batching)  # type: ignore[arg-type]
    for micro in micros:
        values = head.target_logp(model, collate(micro, pad_id, packed).to(model.device)).cpu()
        for row, logp in zip(micro, values.split([loss_tokens(row) for row in micro]), strict=True):
            found[id(row)] = logp
    return [found[id(row)] for row in rows]


# --- attention -------------------------------------------------------------------------------------


def _read_setting(settings: TrainingConfig) -> Setting:
    """What the recipe asks for."""
    chosen = attention.CAUSAL if settings.attention == "auto" else settings.attention
    return Setting(chosen, settings.batching, settings.micro_batch_size)


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


@contextlib.contextmanager
def _evaluating(model: Any, settings: TrainingConfig) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), autocast(model, settings):
            yield
    finally:
        model.train(was_training)


def _without_adapters(model: Any, settings: TrainingConfig) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext() if settings.tuning == "full" else model.disable_adapter()


# --- words and files -------------------------------------------------------------------------------


def kind_of(model: Any) -> str:
    """The architecture by the name that transformers gives it."""
    return str(model.config.model_type)


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
