"""Conversations to token ids, the same way for training, scoring and prefilling.

Everything here works on ids: rendering a prompt as text and tokenizing it again changes ids (a prefilled
answer's above all) and may double the BOS token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.contracts import Encoded, Example, HarnessError, Message


def has_system_role(tokenizer: Any) -> bool:
    """Whether the chat template shows a system message; some drop it in silence, some raise."""
    probe = [{"role": "system", "content": "system-probe"}, {"role": "user", "content": "user-probe"}]
    try:
        return "system-probe" in tokenizer.apply_chat_template(probe, tokenize=False)
    except Exception:
        return False


def merge_system(messages: Sequence[Message]) -> list[Message]:
    """For templates without a system role: the system prompt opens the first user turn."""
    if len(messages) < 2 or messages[0].role != "system":
        return list(messages)
    first = Message("user", f"{messages[0].content}\n\n{messages[1].content}")
    return [first, *messages[2:]]


def render(tokenizer: Any, messages: Sequence[Message], *, generation_prompt: bool) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise HarnessError(
            f"the tokenizer of '{tokenizer.name_or_path}' has no chat template; "
            "use a chat model, or put chat_template.jinja into its folder"
        )
    if messages and messages[0].role == "system" and not has_system_role(tokenizer):
        messages = merge_system(messages)
    turns = [{"role": message.role, "content": message.content} for message in messages]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generation_prompt))


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text as it stands: no BOS or EOS is added."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def prompt_ids(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Ids of a conversation up to where the assistant's answer begins."""
    return token_ids(tokenizer, render(tokenizer, messages, generation_prompt=True))


def encode(tokenizer: Any, example: Example) -> Encoded:
    """Ids of a training conversation; the answer and its end-of-turn token carry loss, nothing else does.

    The prompt's ids are exactly those seen at inference. Raises HarnessError for an empty answer.
    """
    if not example.answer:
        raise HarnessError(f"training example '{example.id}' has an empty answer")
    prompt = prompt_ids(tokenizer, example.messages[:-1])
    whole = token_ids(tokenizer, render(tokenizer, example.messages, generation_prompt=False))
    if whole[: len(prompt)] == prompt:
        answer = _to_end_of_turn(tokenizer, whole[len(prompt) :])
    else:  # the template writes the past differently (drops thinking, merges white space): join ids instead
        answer = [*token_ids(tokenizer, example.answer), tokenizer.eos_token_id]
    free = min(example.loss_free_tokens, len(answer))
    trained = [False] * (len(prompt) + free) + [True] * (len(answer) - free)
    return Encoded(example.id, prompt + answer, trained)


def _to_end_of_turn(tokenizer: Any, ids: list[int]) -> list[int]:
    """Cut what a template writes after the end-of-turn token; add one where it writes none."""
    added = tokenizer.added_tokens_decoder.items()  # not all of them are named roles such as eos_token
    special = {*tokenizer.all_special_ids, *(token for token, how in added if how.special)}
    last = max((i for i, token in enumerate(ids) if token in special), default=None)
    return ids[: last + 1] if last is not None else [*ids, tokenizer.eos_token_id]


def truncate(encoded: Encoded, max_length: int) -> Encoded | None:
    """Cut the answer's end at ``max_length`` tokens; None when no trained token is left."""
    if len(encoded.input_ids) <= max_length:
        return encoded
    trained = encoded.trained[:max_length]
    return Encoded(encoded.id, encoded.input_ids[:max_length], trained) if any(trained) else None
