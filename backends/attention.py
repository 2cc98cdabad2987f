"""Causal attention that needs no mask: over padded rows, or over examples laid end to end in one row.

Padding stands on the right, where no real token looks; packed examples are kept apart by their lengths. So no
mask is built, none is checked (transformers would wait for the device to do so), and attention's fastest
kernels apply. Registered with transformers under the name ``CAUSAL``. What else an architecture asks of its
attention (sinks, position biases, soft-capping) is refused, never dropped: agreement.py takes another then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

CAUSAL = "harness_causal"
EAGER = "eager"
UNFUSED = (EAGER, "sdpa")  # transformers' own that keep no packed rows apart by their lengths
# Arguments that change nothing here: what is passed through to every layer, or says what holds anyway.
HARMLESS = {
    *("cu_seq_lens_k", "max_length_k", "position_ids", "position_embeddings", "cache_position", "use_cache"),
    *("past_key_values", "past_key_value", "output_attentions", "output_hidden_states", "return_dict"),
    *("output_router_logits", "layer_idx", "num_items_in_batch", "is_causal", "dropout", "deterministic"),
}
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
    if query.is_cuda:
        from torch.nn.attention.varlen import varlen_attn

        longest = max_length_q or int(cu_seq_lens_q.diff().max())
        packed = varlen_attn(
            query[0].transpose(0, 1).to(value.dtype),  # (T, H, D); rotary embeddings leave float32
            key[0].transpose(0, 1).to(value.dtype),
            value[0].transpose(0, 1),
            cu_seq_lens_q,
            cu_seq_lens_q,
            longest,
            longest,
            scale=scaling,
            window_size=(-1 if sliding_window is None else sliding_window - 1, 0),
            enable_gqa=gqa,
        )
        assert isinstance(packed, Tensor)
        return packed.unsqueeze(0), None
    lengths = cu_seq_lens_q.diff().tolist()  # on a CPU there is nothing to wait for
    examples = zip(*(states.split(lengths, dim=2) for states in (query, key, value)), strict=True)
    parts = [_over_rows(q, k, v, scaling, sliding_window, gqa) for q, k, v in examples]
    return torch.cat(parts, dim=1), None


def _over_rows(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None, gqa: bool
) -> Tensor:
    length = query.shape[2]
    mask = None
    if window is not None and length > window:
        position = torch.arange(length, device=query.device)
        distance = position[:, None] - position[None, :]
        mask = (distance >= 0) & (distance < window)
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
