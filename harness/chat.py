"""Conversations to token ids, the same way for training, scoring and prefilling.

Everything here works on ids: rendering a prompt as text and tokenizing it again changes ids (a prefilled
answer's above all) and may double the BOS token. Policies, for every template:

- A template without a place for a system prompt gets it at the head of the first user turn.
- Models that can think do not: templates are rendered with ``enable_thinking=False``, in training and at
  inference; the empty thinking block that some then write belongs to the prompt. Answers may be given with
  thinking (``responses.thinking``). What a model reasons, asked or not, is kept apart from its answer: the
  answer alone is scored and judged, and reasoning that does not end leaves no answer. A prefilled answer is
  opened behind the reasoning: a block that a template opens is closed first.
- No template sees today's date: those that show one show ``DATE``.
- Only the last answer and its end-of-turn token are learnt, with the white space that a template writes
  around the answer. An answer that a template rewrites (a thinking block that it takes out) is refused.
- Control tokens spelled out in training data are refused, because they would end a turn in the middle of a
  text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

from harness.contracts import Encoded, Example, HarnessError, Message

DATE = "26 Jul 2024"  # what Llama 3.1's and 3.2's templates show where no clock is at hand
OPTIONS: dict[str, Any] = {
    "enable_thinking": False,
    "date_string": DATE,
    "strftime_now": datetime(2024, 7, 26).strftime,  # the clock of templates that take no date
}
PROBE = "answer-probe"
THINKING = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))  # around a model's reasoning


@dataclass(frozen=True)
class Format:
    """What there is to know of a tokenizer's chat template.

    ``before`` and ``behind``: what a template writes around an answer, as text; ``end``: the ids of
    ``behind``, up to and including the end-of-turn token, none where nothing ends an answer;
    ``specials_behind``: special tokens in it in all.
    """

    has_system_role: bool
    special_ids: frozenset[int]
    special_texts: tuple[str, ...]
    before: str
    behind: str
    end: tuple[int, ...]
    specials_behind: int


def format_of(tokenizer: Any) -> Format:
    """The format of a tokenizer's chat template. Raises HarnessError where it has none."""
    if not getattr(tokenizer, "chat_template", None):
        raise HarnessError(
            f"the tokenizer of '{tokenizer.name_or_path}' has no chat template; "
            "use a chat model, or put chat_template.jinja into its folder"
        )
    return _format_of(tokenizer, str(tokenizer.chat_template))


@lru_cache(maxsize=64)
def _format_of(tokenizer: Any, template: str) -> Format:
    added = tokenizer.added_tokens_decoder.items()  # not all of them are named roles such as eos_token
    special = {*tokenizer.all_special_ids, *(token for token, how in added if how.special)}
    harmless = {tokenizer.unk_token} - {tokenizer.bos_token, tokenizer.eos_token}  # "<unk>" ends nothing
    texts = {str(tokenizer.convert_ids_to_tokens(token)) for token in special} - harmless
    turns = [{"role": "user", "content": "user-probe"}, {"role": "assistant", "content": PROBE}]
    try:
        opening = _apply(tokenizer, turns[:1], generation_prompt=True)
        past, shown, behind = _apply(tokenizer, turns, generation_prompt=False).rpartition(PROBE)
    except Exception as error:
        raise _refused(tokenizer, "user, assistant", error) from error
    if not shown:
        raise HarnessError(f"the chat template of '{tokenizer.name_or_path}' does not show the answer's text")
    ids = token_ids(tokenizer, behind)
    first = next((place for place, token in enumerate(ids) if token in special), None)
    end = ids[: first + 1] if first is not None else [*ids, tokenizer.eos_token_id]
    if end[-1] is None:
        end = []
    return Format(
        has_system_role=_shows_system(tokenizer),
        special_ids=frozenset(special),
        special_texts=tuple(sorted(texts)),
        before=past.removeprefix(opening) if past.startswith(opening) else "",
        behind=behind,
        end=tuple(end),
        specials_behind=sum(token in special for token in ids),
    )


def _shows_system(tokenizer: Any) -> bool:
    probe = [{"role": "system", "content": "system-probe"}, {"role": "user", "content": "user-probe"}]
    try:
        return "system-probe" in _apply(tokenizer, probe, generation_prompt=True)
    except Exception:
        return False


def has_system_role(tokenizer: Any) -> bool:
    """Whether the chat template shows a system message; some drop it in silence, some raise."""
    return format_of(tokenizer).has_system_role


def end_of_turn_id(tokenizer: Any) -> int:
    """The token that ends an answer, in training and therefore at inference. Raises HarnessError where there
    is none."""
    end = format_of(tokenizer).end
    if not end:
        raise HarnessError(
            f"nothing ends an answer in the chat template of '{tokenizer.name_or_path}', and its tokenizer "
            "has no eos_token; name one in tokenizer_config.json"
        )
    return end[-1]


def merge_system(messages: Sequence[Message]) -> list[Message]:
    """For templates without a system role: the system prompt opens the first user turn."""
    if len(messages) < 2 or messages[0].role != "system":
        return list(messages)
    first = Message("user", f"{messages[0].content}\n\n{messages[1].content}")
    return [first, *messages[2:]]


def render(
    tokenizer: Any, messages: Sequence[Message], *, generation_prompt: bool, thinking: bool = False
) -> str:
    """The conversation as the model reads it. Raises HarnessError when the template refuses it."""
    if not format_of(tokenizer).has_system_role:
        messages = merge_system(messages)
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        return _apply(tokenizer, turns, generation_prompt=generation_prompt, thinking=thinking)
    except Exception as error:
        raise _refused(tokenizer, ", ".join(message.role for message in messages), error) from error


def _refused(tokenizer: Any, roles: str, error: Exception) -> HarnessError:
    return HarnessError(
        f"the chat template of '{tokenizer.name_or_path}' refuses a conversation of {roles} "
        f"({' '.join(str(error).split())[:150]})"
    )


def _apply(
    tokenizer: Any, turns: list[dict[str, str]], *, generation_prompt: bool, thinking: bool = False
) -> str:
    options = {**OPTIONS, "enable_thinking": thinking}
    return str(
        tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=generation_prompt, **options
        )
    )


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text as it stands: no BOS or EOS is added."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def prompt_ids(
    tokenizer: Any, messages: Sequence[Message], *, thinking: bool = False, answering: bool = False
) -> list[int]:
    """Ids of a conversation up to where the assistant's turn begins; ``answering``: up to where its answer
    begins, behind a block of reasoning that the template may have opened."""
    text = render(tokenizer, messages, generation_prompt=True, thinking=thinking)
    marks = _opened(text)
    return token_ids(tokenizer, f"{text.rstrip()}\n\n{marks[1]}\n\n" if answering and marks else text)


def _opened(text: str) -> tuple[str, str] | None:
    """The marks of the block of reasoning that a prompt ends in, if it does."""
    return next((marks for marks in THINKING if text.rstrip().endswith(marks[0])), None)


def inside_thinking(tokenizer: Any, ids: Sequence[int]) -> bool:
    """Whether a prompt ends inside a block of reasoning."""
    return _opened(tokenizer.decode(list(ids[-16:]), skip_special_tokens=False)) is not None


def split_reasoning(text: str, *, opened: bool = False) -> tuple[str | None, str]:
    """(reasoning or None, answer) of a model's turn. ``opened``: its prompt has begun the reasoning.

    Only what stands at the beginning is reasoning: a mark further on hides nothing from a judge. Reasoning
    that does not end leaves an empty answer.
    """
    bare = text.lstrip()
    for start, end in THINKING:
        if (opened and end in bare) or bare.startswith(start):
            reasoning, _, answer = bare.removeprefix(start).partition(end)
            return reasoning.strip(), answer.lstrip("\n")
    return (text, "") if opened else (None, text)


def encode(tokenizer: Any, example: Example) -> Encoded:
    """Ids of a training conversation; the answer and its end-of-turn token carry loss, nothing else does.

    The prompt's ids are exactly those seen at inference. Raises HarnessError for an empty answer, one that
    the template rewrites, and texts that spell out a control token.
    """
    if not example.answer.strip():
        raise HarnessError(f"training example '{example.id}' has an empty answer")
    form = format_of(tokenizer)
    end_of_turn_id(tokenizer)  # or there is nothing to learn the end from
    for message in example.messages:
        spelled = next((text for text in form.special_texts if text in message.content), None)
        if spelled:
            raise HarnessError(
                f"training example '{example.id}': its {message.role} turn holds the control token "
                f"{spelled!r} as text; remove it"
            )
    opening = render(tokenizer, example.messages[:-1], generation_prompt=True)
    text = render(tokenizer, example.messages, generation_prompt=False)
    written = form.before + _as_written(tokenizer, form, text, example)
    prompt = token_ids(tokenizer, opening)
    # A template may write the past differently behind an answer (drop thinking, or Mistral's system prompt):
    # then the answer is put behind the prompt as inference has it.
    for whole in (token_ids(tokenizer, whole) for whole in (text, opening + written + form.behind)):
        if whole[: len(prompt)] == prompt:
            answer = _to_end_of_turn(form, whole[len(prompt) :])
            break
    else:  # white space, or signs, that merge across the border
        answer = [*token_ids(tokenizer, written), *form.end]
    free = min(example.loss_free_tokens, len(answer))
    trained = [False] * (len(prompt) + free) + [True] * (len(answer) - free)
    return Encoded(example.id, prompt + answer, trained)


def _as_written(tokenizer: Any, form: Format, text: str, example: Example) -> str:
    """The answer as the template writes it: as it is, or stripped. Raises HarnessError where it differs."""
    body = text.removesuffix(form.behind)
    if body.endswith(form.before + example.answer):
        return example.answer
    if body.rstrip().endswith(example.answer.strip()):
        return example.answer.strip()
    raise HarnessError(
        f"training example '{example.id}': the chat template of '{tokenizer.name_or_path}' rewrites its "
        "answer (a thinking block in it?); give the bare answer"
    )


def _to_end_of_turn(form: Format, ids: list[int]) -> list[int]:
    """Cut what a template writes behind the end-of-turn token; add one where it writes none."""
    if not form.specials_behind:
        return [*ids, form.end[-1]]
    places = [place for place, token in enumerate(ids) if token in form.special_ids]
    return ids[: places[-form.specials_behind] + 1]


def truncate(encoded: Encoded, max_length: int) -> Encoded | None:
    """Cut the answer's end at ``max_length`` tokens; None when no trained token is left."""
    if len(encoded.input_ids) <= max_length:
        return encoded
    trained = encoded.trained[:max_length]
    return Encoded(encoded.id, encoded.input_ids[:max_length], trained) if any(trained) else None
