"""Causal attention that needs no mask: over padded rows, or over examples laid end to end in one row.

Padding stands on the right, where no real token looks; packed examples are kept apart by their lengths. So no
mask is built, none is checked (transformers would wait for the device to do so), and attention's fastest
kernels apply. Registered with transformers under the name ``CAUSAL``. What else an architecture asks of its
attention (sinks, position biases, soft-capping) is refused, never dropped: agreement.py takes another then.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from harness.config import TrainingConfig
from harness.text import shortened

CAUSAL = "harness_causal"
EAGER = "eager"
UNFUSED = (EAGER, "sdpa")  # transformers' own that keep no packed rows apart by their lengths
# Arguments that change nothing here: what is passed through to every layer, or says what holds anyway.
HARMLESS = {
    *("cu_seq_lens_k", "max_length_k", "position_ids", "position_embeddings", "cache_position", "use_cache"),
    *("past_key_values", "past_key_value", "output_attentions", "output_hidden_states", "return_dict"),
    *("output_router_logits", "layer_idx", "num_items_in_batch", "is_causal", "dropout", "deterministic"),
}
KERNEL_MODULE = "torch.nn.attention.varlen"  # with torch's kernel for packed rows, where it has one
KERNEL_TAKES = ("scale", "window_size")  # what is asked of it by name
USUAL_HEADS = (8, 2, 64)  # of queries, of keys, and their size
HALF = (torch.bfloat16, torch.float16)
WORDS = {"softcap": "soft-capping", "s_aux": "sinks", "position_bias": "position biases"}


def causal_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """query (B, H, T, D), key and value (B, H_kv, T, D) -> (B, T, H, D).

    ``cu_seq_lens_q`` (examples + 1) int32: where each packed example begins, and the end; B is 1 then.
    ``max_length_q``: the longest of them, which a device is asked for where it is not given.
    ``sliding_window``: a token sees so many tokens, itself included. Raises ValueError for whatever else an
    architecture asks for: a mask of its own, dropout, or an argument that is not known to be harmless.
    """
    asked = {name for name, asks in kwargs.items() if asks is not None and name not in HARMLESS}
    asked |= {"attention_mask"} if attention_mask is not None else set()
    asked |= {"dropout"} if kwargs.get("dropout") else set()
    asked |= {"is_causal"} if kwargs.get("is_causal") is False else set()
    if asked:
        names = ", ".join(WORDS.get(name, name) for name in sorted(asked))
        raise ValueError(f"attention without a mask does not know {names}")
    gqa = query.shape[1] != key.shape[1]
    if cu_seq_lens_q is None:
        return _over_rows(query, key, value, scaling, sliding_window, gqa), None
    if _takes_kernel(query.device):
        longest = max_length_q or int(cu_seq_lens_q.diff().max())
        return _by_kernel(query, key, value, cu_seq_lens_q, longest, scaling, sliding_window), None
    lengths = cu_seq_lens_q.diff().tolist()  # on a CPU there is nothing to wait for
    examples = zip(*(states.split(lengths, dim=2) for states in (query, key, value)), strict=True)
    parts = [_over_rows(q, k, v, scaling, sliding_window, gqa) for q, k, v in examples]
    return torch.cat(parts, dim=1), None


@dataclass(frozen=True)
class Kernel:
    """A kernel for packed rows. ``missing``: what is asked of it and it does not know; ``shares_heads``:
    whether it lets several query heads share a key's."""

    run: Callable[..., Any]
    missing: tuple[str, ...]
    shares_heads: bool

    @classmethod
    def of(cls, run: Callable[..., Any]) -> Kernel:
        known = inspect.signature(run).parameters
        return cls(run, tuple(name for name in KERNEL_TAKES if name not in known), "enable_gqa" in known)

    @classmethod
    def installed(cls) -> Kernel | None:
        """torch's; None where it has none."""
        try:
            return cls.of(importlib.import_module(KERNEL_MODULE).varlen_attn)
        except (ImportError, AttributeError):
            return None


kernel = Kernel.installed()


def no_kernel_for(model: Any, settings: TrainingConfig) -> str | None:
    """Why packed rows of a model cannot pass through attention on the device that trains it; None where they
    can. Asked before the first step."""
    sharded = model.device.type == "cpu" and settings.device != "auto"  # it is moved to the device later
    device = torch.device(settings.device) if sharded else model.device
    return no_kernel(device, settings.dtype, model.config.get_text_config())


def no_kernel(device: Any, dtype: str, config: Any = None) -> str | None:
    """Why packed rows cannot pass through attention on a device; None where they can. ``config``: of a
    model's language part, for its heads. The kernel has limits of its own (half precision, sizes of heads,
    the device), which a forward and a backward pass over a few tokens find out."""
    device = torch.device(device)
    if not _takes_kernel(device):
        return None
    if dtype != "bfloat16":
        return f"the device's kernel for packed rows takes half precision alone, not {dtype}"
    if kernel is None:
        return f"torch {torch.__version__} has no kernel for packed rows ({KERNEL_MODULE})"
    if kernel.missing:
        names = " and no ".join(kernel.missing)
        return f"the kernel for packed rows of torch {torch.__version__} knows no {names}"
    try:
        _try_kernel(device, *(_heads(config) if config is not None else USUAL_HEADS))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        return f"the device's kernel for packed rows fails ({type(error).__name__}: {shortened(error, 200)})"
    return None


def _heads(config: Any) -> tuple[int, int, int]:
    """The heads of queries, those of keys and values, and their size."""
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return heads, getattr(config, "num_key_value_heads", None) or heads, size


def _takes_kernel(device: torch.device) -> bool:
    """Whether packed rows pass through torch's kernel: on a CPU each is computed for itself."""
    return device.type == "cuda"


def _try_kernel(device: torch.device, heads: int, shared: int, size: int) -> None:
    """Two short rows through the kernel and back. Raises whatever it raises."""
    with torch.enable_grad():
        query, key, value = (
            torch.zeros(1, count, 5, size, device=device, dtype=torch.bfloat16, requires_grad=True)
            for count in (heads, shared, shared)
        )
        bounds = torch.tensor([0, 2, 5], dtype=torch.int32, device=device)
        found = _by_kernel(query, key, value, bounds, 3, None, 2)
        torch.autograd.grad(found.float().sum(), (query, key, value))


def _by_kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bounds: Tensor,
    longest: int,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """(1, H, T, D) -> (1, T, H, D) in half precision.

    The kernel casts nothing by itself, unlike torch's own attention under autocast: rotary embeddings and
    norms over heads leave float32 where the weights are float32.
    """
    if kernel is None:
        raise ValueError(f"torch {torch.__version__} has no kernel for packed rows ({KERNEL_MODULE})")
    dtype = _precision(value)
    packed = [states[0].transpose(0, 1).to(dtype) for states in (query, key, value)]  # (T, H, D)
    groups = query.shape[1] // key.shape[1]
    options: dict[str, Any] = {"scale": scaling}
    if groups > 1 and kernel.shares_heads:
        options["enable_gqa"] = True
    elif groups > 1:
        packed[1:] = [states.repeat_interleave(groups, dim=1) for states in packed[1:]]
    options["window_size"] = (-1 if window is None else window - 1, 0)
    found = kernel.run(*packed, bounds, bounds, longest, longest, **options)
    assert isinstance(found, Tensor)
    return found.unsqueeze(0)


def _precision(states: Tensor) -> torch.dtype:
    """In which attention is computed: that of the states, or under autocast that of autocast."""
    device = states.device.type
    if states.dtype not in HALF and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return states.dtype


def _over_rows(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None, gqa: bool
) -> Tensor:
    length = query.shape[2]
    mask = None
    if window is not None and length > window:
        position = torch.arange(length, device=query.device)
        distance = position[:, None] - position[None, :]
        mask = (distance >= 0) & (distance < window)
    # Of CUDA's kernels only flash attention lets heads share, which knows no mask and no float32: another
    # would keep all scores. There the shared heads are repeated.
    if gqa and _takes_kernel(query.device) and (mask is not None or _precision(value) not in HALF):
        groups, gqa = query.shape[1] // key.shape[1], False
        key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
    output: Tensor = scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=gqa
    )
    return output.transpose(1, 2)


AttentionInterface.register(CAUSAL, causal_attention)


@dataclass(frozen=True)
class Own:
    """The attention that a model was loaded with. ``name``: of its language part; ``parts``: of the whole and
    of each part that has a configuration of its own."""

    name: str
    parts: dict[str, Any]

    def restore(self, model: Any) -> str:
        """Give it back; returns its name."""
        return use(model, self.parts)


def in_force(model: Any) -> Own:
    """The attention that a transformers model has now."""
    config = model.config
    parts = {"": config} | {name: getattr(config, name, None) for name in config.sub_configs}
    found = {name: getattr(part, "_attn_implementation", None) for name, part in parts.items()}
    return Own(_name(model), {name: chosen for name, chosen in found.items() if chosen})


def use(model: Any, wanted: str | dict[str, Any]) -> str:
    """Ask a model for another attention; returns the name of what is then in force, which stays what it was
    where the architecture has none but its own."""
    if wanted and model._can_set_attn_implementation():
        model.set_attn_implementation(wanted)
    return _name(model)


def is_capped(model: Any) -> bool:
    """Whether a model caps its attention's logits (Gemma 2), which of transformers' own attentions eager and
    flash attention do, and torch's does not."""
    return getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is not None


def _name(model: Any) -> str:
    return str(model.config.get_text_config()._attn_implementation or EAGER)
