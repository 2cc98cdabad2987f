"""What a model can take: how long a text, and which token ids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from harness.contracts import HarnessError
from harness.text import one_line

UNBOUNDED = 2**31  # tokens, or ids: of a model that states no limit
# What architectures call the longest prompt and answer together.
CONTEXT = (
    "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_seq_length", "max_sequence_length",
    "seq_length", "seq_len", "max_target_positions", "model_max_length", "context_length",
    "max_context_length", "num_positions", "max_positions",
)  # fmt: skip
# What architectures call a table with a row for each position.
_POSITIONS = ("wpe", "embed_positions", "position_embedding", "position_embeddings", "pos_embed", "pos_emb")


def text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of a model's language part, where it has others beside it."""
    part = config.get("text_config")
    return part if isinstance(part, Mapping) and part else config


def stated_context(config: Mapping[str, Any]) -> int:
    """The longest prompt and answer together, by a model's config.json; unbounded where it says nothing. Of
    several limits the least holds; numbers that stand for "none", such as 1e30, are none."""
    for part in (text_part(config), config):
        found = [limit for name in CONTEXT for limit in _limits(part.get(name))]
        if found:
            return min(found)
    return UNBOUNDED


def _limits(value: Any) -> Iterator[int]:
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, (int, float)) and not isinstance(one, bool) and 1 <= one < UNBOUNDED:
            yield int(one)


def context_tokens(model: Any) -> int:
    """The longest prompt and answer together of a loaded model: what it states, and no more than its table
    of positions has rows."""
    return min([stated_context(model.config.to_dict()), *_position_rows(model)])


def _position_rows(model: Any) -> Iterator[int]:
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if name.rpartition(".")[2] not in _POSITIONS or weight is None or _is_beside(name):
            continue
        before = getattr(module, "offset", None)  # rows in front that no position has
        if before is None:
            padding = getattr(module, "padding_idx", None)
            before = 0 if padding is None else padding + 1
        if weight.ndim == 2:
            yield max(1, int(weight.shape[0]) - int(before))


def _is_beside(name: str) -> bool:
    """Whether a module is of another part than the text's: pictures have positions too."""
    return any(word in name for word in ("vision", "visual", "image", "audio", "encoder."))


def embedding_rows(model: Any) -> int:
    """How many token ids a model knows; no limit where its embedding is of no usual kind."""
    try:
        return int(model.get_input_embeddings().weight.shape[0])
    except (AttributeError, NotImplementedError, IndexError, TypeError):
        return UNBOUNDED


def check_ids(tokenizer: Any, ids: Sequence[int], rows: int, where: str) -> None:
    """Raises HarnessError, which names the token, for an id that a model of ``rows`` embeddings has not.
    ``where``: whose ids these are."""
    highest = max(ids, default=0)
    if highest >= rows:
        text = one_line(str(tokenizer.convert_ids_to_tokens(highest)))[:60]
        raise HarnessError(
            f"{where}: token {highest:,} ('{text}') of the tokenizer of '{tokenizer.name_or_path}' is beyond "
            f"the {rows:,} rows of the model's embedding; give the tokenizer that belongs to the model, or "
            "resize the model's embedding and train it"
        )


def check_template(tokenizer: Any, rows: int) -> None:
    """Raises HarnessError where a chat template writes a token that a model of ``rows`` embeddings has not.
    Such a token that nothing writes does no harm: some tokenizers have one for pictures."""
    from harness.contracts import Message
    from harness.models import chat

    if not getattr(tokenizer, "chat_template", None):
        return
    form = chat.format_of(tokenizer)
    prompt = chat.prompt_ids(tokenizer, [Message("user", "user-probe")])
    written = [token for token in prompt if token in form.special_ids]
    check_ids(tokenizer, [*written, *form.end], rows, "the chat template")


def padding_id(tokenizer: Any, rows: int, otherwise: int = 0) -> int:
    """The token that fills a batch's rows, which nothing attends to: the tokenizer's, if the model has it. A
    tokenizer may have got one that its model's embedding was never made larger for."""
    found = tokenizer.pad_token_id
    return int(found) if found is not None and found < rows else otherwise
