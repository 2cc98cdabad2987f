"""Greedy answers by transformers' own continuous batching: a row that ends makes room for the next prompt.

It draws its sizes from free memory, begins before its requests are there, and logs errors instead of raising
them. So all sizes are given, requests come before the start, and errors are read: the same prompts are
answered in the same order of steps each time. It is good with flash-attention alone; here it has been tested
and not measured.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import fields
from typing import Any

import torch
from transformers import GenerationConfig

from harness.contracts import HarnessError
from harness.text import shortened

PAGE = 256  # tokens of a cache page: what flash-attention's kernels for pages ask for
PASS = 1024  # tokens that a pass reads at once, at the least
ROUNDS = 8  # batches of prompts that are answered together
INSTEAD = "set responses.continuous=false"


def check(model: Any) -> None:
    """Raises HarnessError where transformers has no continuous batching for ``model``."""
    if not hasattr(model, "init_continuous_batching"):
        raise HarnessError(
            f"{type(model).__name__} has no continuous batching in this transformers: {INSTEAD}"
        )


def answers(
    model: Any,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    stop_ids: Collection[int],
    pad_id: int,
    slots: int,
) -> list[list[int]]:
    """Continuations with their stop tokens, at most ``slots`` prompts at once. Raises torch.OutOfMemoryError
    where the device has no room for so many, HarnessError where transformers fails otherwise."""
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    check(model)
    longest = max(map(len, prompts)) + max_new_tokens
    decoding = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=sorted(stop_ids), pad_token_id=pad_id
    )
    found: dict[str, list[int]] = {}
    with _managed(model, decoding, _sizes(slots, longest, model.dtype)) as manager:
        names = manager.add_requests([list(prompt) for prompt in prompts], max_new_tokens=max_new_tokens)
        manager.start()
        while len(found) < len(names):
            result = manager.get_result(timeout=1)
            if result is None and not manager.is_running():
                raise _failure(manager, None)
            if result is None or not result.is_finished():
                continue
            if result.error is not None:
                raise _failure(manager, result.error)
            found[result.request_id] = list(result.generated_tokens)
    return [found[name] for name in names]


def _sizes(slots: int, tokens: int, dtype: torch.dtype) -> Any:
    """The configuration for ``slots`` rows of so many tokens, under the names that this transformers has."""
    from transformers import ContinuousBatchingConfig

    known = {field.name for field in fields(ContinuousBatchingConfig)}
    flash = dtype != torch.float32 and importlib.util.find_spec("flash_attn") is not None
    wanted: dict[str, Any] = {
        "page_size" if "page_size" in known else "block_size": PAGE,
        "num_blocks": slots * math.ceil(tokens / PAGE) + 1,
        "max_batch_tokens": max(PASS, slots),
        "max_requests_per_batch": slots,
        "allow_block_sharing": False,
        "auto_switch_to_flash": flash,  # which it would fetch from the hub where it is not installed
    }
    absent = sorted(wanted.keys() - known)
    if absent:
        raise HarnessError(
            f"continuous batching of this transformers has no setting {', '.join(absent)}: {INSTEAD}"
        )
    return ContinuousBatchingConfig(**wanted)


@contextlib.contextmanager
def _managed(model: Any, decoding: GenerationConfig, sizes: Any) -> Iterator[Any]:
    """A manager whose thread ends, and whose attention leaves the model, with the block."""
    own = model.config._attn_implementation
    log = logging.getLogger("ContinuousBatchingLogger")  # it shows tracebacks of what it swallows
    before, log.disabled = log.disabled, True
    manager, whole = None, False
    try:
        manager = model.init_continuous_batching(generation_config=decoding, continuous_batching_config=sizes)
        yield manager
        whole = True
    except ValueError as error:
        raise HarnessError(f"continuous batching: {shortened(error, 200)} ({INSTEAD})") from error
    finally:
        if manager is not None and manager._generation_thread is not None:
            manager.stop(block=True, hard_stop=not whole)
        if model.config._attn_implementation != own:
            model.set_attn_implementation(own)
        log.disabled = before


def _failure(manager: Any, said: str | None) -> Exception:
    """What to raise for a thread that has ended, or for what a result says of its request."""
    error = getattr(getattr(manager, "background_thread_status", None), "fatal_error", None)
    error = error or RuntimeError(said or "its thread has ended")
    if isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error):
        return torch.OutOfMemoryError(str(error))
    return HarnessError(f"continuous batching failed: {shortened(error, 200)} ({INSTEAD})")
