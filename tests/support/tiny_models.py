"""A tiny model, with weights large enough for what rows tell each other to show, of every architecture that
the installed transformers lists as a causal language model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from harness.contracts import Encoded

NAMES = list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
VOCABULARY = 97
LEFT_OUT = {
    "blt": "its patcher's sizes have other names: 96 million parameters at the least",
    "kimi_linear": "its layers take half a minute a row where there is no kernel",
}
_SIZES = {
    VOCABULARY: """
        vocab_size vocab_size_per_layer_input
    """,
    32: """
        hidden_size d_model n_embd emb_dim embedding_size word_embed_proj_dim attention_hidden_size
        embedding_dim lru_width input_embedding_size output_embedding_size pronunciation_embed_dim
        shape_embed_dim
    """,
    64: """
        intermediate_size ffn_dim n_inner decoder_ffn_dim encoder_ffn_dim dff d_inner dim_ff ffn_hidden_size
        moe_intermediate_size shared_expert_intermediate_size moe_shared_expert_intermediate_size
        mamba_d_ssm feed_forward_size shared_intermediate_size expert_ffn_hidden_size
    """,
    4: """
        num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_encoder_layers
        num_blocks num_decoder_layers num_attention_heads n_head n_heads decoder_attention_heads
        encoder_attention_heads num_encoder_attention_heads num_decoder_attention_heads attention_heads
        num_heads linear_num_key_heads linear_num_value_heads num_experts n_routed_experts num_local_experts
        moe_num_experts time_step_rank mamba_dt_rank
    """,
    2: """
        num_key_value_heads num_kv_heads num_experts_per_tok moe_k moe_topk eos_token_id
    """,
    8: """
        head_dim d_head attention_head_dim dim_head kv_channels attention_head_size v_head_dim
        qk_nope_head_dim qk_rope_head_dim linear_key_head_dim linear_value_head_dim rotary_dim
        sliding_window attention_chunk_size attention_window_size chunk_size mamba_chunk_size mamba_n_heads
        mamba_d_head mamba_num_heads mamba_head_dim mamba_d_state ssm_state_size state_size
    """,
    16: """
        kv_lora_rank q_lora_rank o_lora_rank
    """,
    1: """
        n_group topk_group n_groups bos_token_id
    """,
    128: """
        max_position_embeddings n_positions n_ctx context_length
    """,
    0: """
        pad_token_id
    """,
    0.3: """
        initializer_range init_std
    """,
}
SIZES: dict[str, float] = {key: size for size, keys in _SIZES.items() for key in keys.split()}
BY_LAYER = (
    "layer_types",
    "layers_block_type",
    "hybrid_override_pattern",
    "mlp_layer_types",
    "no_rope_layers",
)
# What some architectures want besides; the first with which a model works is taken.
ATTEMPTS: list[dict[str, Any]] = [
    {},
    {"num_key_value_heads": 4},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    {"num_experts_per_tok": 1},
    {"num_heads": 8},
    {"is_decoder": True},
    {"partial_rotary_factor": 0.5},
]


def build(name: str, **changes: Any) -> Any:
    """A model in evaluation mode. Raises what transformers raises where none can be built, and ValueError for
    one that would be large or slow."""
    if name in LEFT_OUT:
        raise ValueError(LEFT_OUT[name])
    first: Exception | None = None
    for attempt in ATTEMPTS:
        try:
            return _working(configuration(name, **attempt, **changes))
        except Exception as error:
            first = first or error
    assert first is not None
    raise first


def configuration(name: str, **changes: Any) -> Any:
    """The architecture's own configuration with small sizes."""
    plain = AutoConfig.for_model(name).to_dict()
    by_layer = {key: None for key in BY_LAYER if isinstance(plain.get(key), list | tuple)}
    return AutoConfig.for_model(name, **{**_small(plain), **by_layer, **changes})


def _small(plain: Mapping[str, Any]) -> dict[str, Any]:
    small: dict[str, Any] = {}
    for key, value in plain.items():
        if isinstance(value, dict) and key.endswith("config"):
            small[key] = _small(value)
        elif key in SIZES and isinstance(value, int | float) and not isinstance(value, bool):
            small[key] = SIZES[key]
    return small


def _working(config: Any) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        model(input_ids=torch.arange(3, 15)[None], use_cache=False)
    return model


def rows() -> list[Encoded]:
    """Four rows of unlike lengths; the first two tokens of each carry no loss."""
    generator = torch.Generator().manual_seed(3)
    made = []
    for number, length in enumerate((9, 13, 7, 11)):
        ids = torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()
        made.append(Encoded(str(number), ids, [False] * 2 + [True] * (length - 2)))
    return made
