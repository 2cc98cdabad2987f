"""A model's own log-probabilities of training rows, and how far the trainer's are from them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from harness.config import TrainingConfig
from harness.contracts import Encoded, HarnessError
from harness.text import shortened
from harness.training.batching import collate, deal, loss_tokens
from harness.training.logprobs import TargetHead, autocast
from harness.training.setting import Setting

ROWS = 4
LIMITS = {"float32": 1e-4, "bfloat16": 0.02}  # nats a token, in the mean


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


def compute_alone(model: Any, ids: Sequence[int], places: Sequence[int]) -> Tensor:
    """(N,) float32: log-probabilities of the tokens at ``places`` of one row alone, by the model's forward
    pass and nothing of ours."""
    row = torch.tensor([list(ids)], device=model.device)
    logits = model(input_ids=row, use_cache=False).logits[0]  # (T, V)
    at = torch.tensor(list(places), device=model.device)
    return -cross_entropy(logits[at - 1].float(), row[0, at], reduction="none").cpu()


def compute_own(
    model: Any, head: TargetHead, rows: Sequence[Encoded], pad_id: int, settings: TrainingConfig
) -> list[Tensor]:
    """The model's own log-probabilities of each row's loss-carrying tokens. Raises HarnessError where it has
    none, or where they look at later tokens."""
    kind = kind_of(model)

    def alone(row: Encoded) -> Tensor:
        places = [place for place in range(1, len(row.input_ids)) if row.trained[place]]
        try:
            return compute_alone(model, row.input_ids, places)
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
    found = [compute_alone(model, ids, places) for ids in (row.input_ids, turned)]
    return mean_difference(found[:1], found[1:])


def measure_noise(model: Any, row: Encoded, settings: TrainingConfig) -> float | None:
    """How far the model in training mode is from itself in evaluation mode, in nats a token."""
    places = range(1, len(row.input_ids))
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        with _without_adapters(model, settings), torch.random.fork_rng(devices):
            still = compute_alone(model, row.input_ids, places)
            model.train()
            return mean_difference([compute_alone(model, row.input_ids, places)], [still])
    except Exception:  # it is told, not needed
        return None
    finally:
        model.eval()


def measure_difference(
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
            found = compute_trained(model, head, rows[first:], pad_id, setting)
            difference = mean_difference(found, expected[first:])
            return difference if math.isfinite(difference) else "its log-probabilities are no finite numbers"
        except torch.OutOfMemoryError:
            continue
        except Exception as error:
            return f"{type(error).__name__}: {shortened(error, 200)}"
    return "the device has no memory for two rows at once"


def compute_trained(
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


@contextlib.contextmanager
def enter_evaluation(model: Any, settings: TrainingConfig) -> Iterator[None]:
    """The block runs without gradients, in evaluation mode and under the training's autocast."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), autocast(model, settings):
            yield
    finally:
        model.train(was_training)


def _without_adapters(model: Any, settings: TrainingConfig) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext() if settings.tuning == "full" else model.disable_adapter()


def kind_of(model: Any) -> str:
    """The architecture by the name that transformers gives it."""
    return str(model.config.model_type)
