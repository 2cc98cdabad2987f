"""What a training saves: tried before its first step, and an epoch's weights as they would be at the end."""

from __future__ import annotations

import contextlib
import copy
import random
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from harness.config import TrainingConfig
from harness.contracts import HarnessError, Method, TrainContext


def rehearse(model: Any, tokenizer: Any, settings: TrainingConfig) -> None:
    """Save what is beside the weights to a folder that is thrown away, and merge the adapter for a moment:
    its B is zero, so that the weights stay what they are. Raises HarnessError for what would otherwise fail
    when all the work is done.

    A 4-bit base is not merged here: what is merged at the end is its unquantised model, on the CPU.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="harness-") as scratch:
            for part in (model.config, model.generation_config, tokenizer):
                part.save_pretrained(scratch)
        if settings.merge and settings.tuning == "lora":
            model.merge_adapter()
            model.unmerge_adapter()
    except Exception as error:
        why = " ".join(str(error).split())[:200]
        name = model.name_or_path or type(model).__name__
        raise HarnessError(f"{name}: what is trained of it could not be saved ({why})") from error


@contextlib.contextmanager
def finished(method: Method, model: Any, context: TrainContext) -> Iterator[None]:
    """For the block, the model as ``after_training`` would leave it; behind it the weights, the method and
    all random draws are what they were, to the bit. Meanwhile a copy of the weights lies in the CPU's memory.

    Raises HarnessError where ``after_training`` puts other weights in the place of the model's own.
    """
    if type(method).after_training is Method.after_training:
        yield
        return
    tensors = _tensors(model)
    kept = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
    trained = {name: tensor.requires_grad for name, tensor in tensors.items()}
    with _own_draws(model):
        _apart(method, model).after_training(model, _for_a_look(context))
        found = _tensors(model)
        if [*found] != [*tensors] or any(found[name] is not tensors[name] for name in found):
            raise HarnessError(
                f"method '{method.name}': after_training replaces weights of the model, which cannot be "
                "undone after an epoch: act on them in place, or leave out --eval-every-epoch"
            )
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in tensors.items():
                    tensor.data = tensor.data.to(kept[name].dtype)
                    tensor.data.copy_(kept[name])
                    tensor.requires_grad_(trained[name])


def _tensors(model: Any) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _apart(method: Method, model: Any) -> Method:
    """A copy of the method that holds the same model."""
    shared = [model, *model.modules(), *model.parameters(), *model.buffers()]
    return copy.deepcopy(method, {id(one): one for one in shared})


def _for_a_look(context: TrainContext) -> TrainContext:
    """A context whose draws and record are thrown away."""
    rng = random.Random()
    rng.setstate(context.rng.getstate())
    return replace(context, rng=rng, record=copy.deepcopy(context.record))


@contextlib.contextmanager
def _own_draws(model: Any) -> Iterator[None]:
    """All random states as they were, behind the block."""
    python, arrays = random.getstate(), np.random.get_state()
    device = model.device
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)
