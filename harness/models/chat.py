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
- What a template writes behind an answer ends it, be it a token or text: it is learnt in training, and cut
  off an answer (``Format``, ``to_end``). White space alone ends nothing.
- Only the last answer and its end-of-turn token are learnt, with the white space that a template writes
  around the answer. An answer that a template rewrites (a thinking block that it takes out) is refused.
- Control tokens spelled out in training data are refused, because they would end a turn in the middle of a
  text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

from harness import finish
from harness.contracts import Encoded, Example, HarnessError, Message
from harness.models import reasoning
from harness.models.reasoning_marks import Mark

DATE = "26 Jul 2024"  # what Llama 3.1's and 3.2's templates show where no clock is at hand
OPTIONS: dict[str, Any] = {
    "enable_thinking": False,
    "date_string": DATE,
    "strftime_now": datetime(2024, 7, 26).strftime,  # the clock of templates that take no date
}
PROBE, NEXT = "answer-probe", "next-probe"
PROMPT_END = 32  # tokens of a prompt that are searched for a mark of reasoning
_LIKE_A_TOKEN = re.compile(r"[<\[{◁|].*[>\]}▷|]", re.DOTALL)
# Ends of turns as text, where a server's template or a model's tokenizer is not the one they belong to.
_ENDS = (
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>", "<|return|>",
    "<|end_of_turn|>", "<end_of_turn>", "<turn|>", "<|END_OF_TURN_TOKEN|>", "<｜end▁of▁sentence｜>",
    "<|eot|>", "<|eom|>", "<|end_message|>", "<|close|>message<|sep|>", "[|endofturn|]", "<end_of_utterance>",
    "<eos>", "</s>", "[/INST]",
)  # fmt: skip
_KNOWN_NEXT = re.compile(
    r"(?:<\|im_end\|>\s*<\|im_start\|>|<\|eot_id\|>\s*<\|start_header_id\|>|<\|end\|>\s*<\|user\|>|"
    r"<end_of_turn>\s*<start_of_turn>|<turn\|>\s*<\|turn>|</s>\s*(?:<s>)?\s*\[INST\])"
)


@dataclass(frozen=True)
class Format:
    """What there is to know of a tokenizer's chat template.

    ``before`` and ``behind``: what a template writes around an answer, as text; ``end``: the ids of
    ``behind``, up to and including the end-of-turn token, none where nothing ends an answer;
    ``specials_behind``: special tokens in it in all. ``text_end``: an end of turn that is no special token,
    "" where there is none; ``next_turn``: the same up to the next user's words; ``stops``: every token that
    ends an answer by the template.
    """

    has_system_role: bool
    special_ids: frozenset[int]
    special_texts: tuple[str, ...]
    before: str
    behind: str
    end: tuple[int, ...]
    specials_behind: int
    text_end: str
    next_turn: str
    stops: frozenset[int]

    @property
    def spelled(self) -> tuple[str, ...]:
        """What would end or open a turn in the middle of a text."""
        own = (self.text_end,) if _like_a_token(self.text_end) else ()
        return (*self.special_texts, *own)


class Thinking(NamedTuple):
    """How a prompt leaves the model: ``opened``, the mark of a block of reasoning that it ends in;
    ``reasons``, whether it may begin with one by itself, as its template speaks of reasoning."""

    opened: Mark | None = None
    reasons: bool = False


PLAIN = Thinking()


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
    special = special_ids(tokenizer)
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
    text_end = _before_specials(behind, texts)
    text_ids = token_ids(tokenizer, text_end)
    own_token = len(text_ids) == 1 and _like_a_token(text_end)
    return Format(
        has_system_role=_shows_system(tokenizer),
        special_ids=special,
        special_texts=tuple(sorted(texts)),
        before=past.removeprefix(opening) if past.startswith(opening) else "",
        behind=behind,
        end=tuple(end),
        specials_behind=sum(token in special for token in ids),
        text_end=text_end,
        next_turn=_next_turn(tokenizer, turns, texts),
        stops=frozenset({*end[-1:], *(text_ids if own_token else ())}),
    )


@lru_cache(maxsize=64)
def special_ids(tokenizer: Any) -> frozenset[int]:
    """A tokenizer's control tokens; not all of them have a named role such as eos_token."""
    added = tokenizer.added_tokens_decoder.items()
    return frozenset({*tokenizer.all_special_ids, *(token for token, how in added if how.special)})


def _before_specials(behind: str, texts: set[str]) -> str:
    """What shows of a text before its first special token."""
    places = [behind.find(text) for text in texts if text and text in behind]
    text = behind[: min(places, default=len(behind))].strip()
    return text if finish.has_text(text) else ""


def _next_turn(tokenizer: Any, turns: list[dict[str, str]], texts: set[str]) -> str:
    """What shows between an answer and the next user's words, up to the first special token."""
    try:
        shown = _apply(tokenizer, [*turns, {"role": "user", "content": NEXT}], generation_prompt=False)
    except Exception:  # of one turn alone
        return ""
    return _before_specials(shown.rpartition(PROBE)[2].partition(NEXT)[0], texts)


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


def template_stops(tokenizer: Any) -> frozenset[int]:
    """Every token that ends an answer by the chat template; none without one. Raises HarnessError where the
    template has none."""
    if not getattr(tokenizer, "chat_template", None):
        return frozenset()
    return format_of(tokenizer).stops or frozenset({end_of_turn_id(tokenizer)})


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
    return token_ids(tokenizer, _answering(tokenizer, text) if answering else text)


def _answering(tokenizer: Any, prompt: str) -> str:
    """A prompt whose next token is one of the answer: behind the reasoning, in the channel of the answers."""
    opened = reasoning.opened_by(prompt)
    if opened and opened.closing.startswith("<|end|>"):
        return f"{prompt}{opened.closing}"
    if opened:
        return f"{prompt.rstrip()}\n\n{opened.closing}\n\n"
    before = format_of(tokenizer).before
    return f"{prompt}{before}" if "<|channel|>" in before else prompt


def thinking_at(tokenizer: Any, ids: Sequence[int], *, answering: bool = False) -> Thinking:
    """How a prompt's ids leave the model; ``answering``: in the middle of an answer."""
    end = tokenizer.decode(list(ids[-PROMPT_END:]), skip_special_tokens=False)
    template = str(getattr(tokenizer, "chat_template", None) or "")
    reasons = not answering and reasoning.is_in(template) and not reasoning.closed_by(end)
    return Thinking(reasoning.opened_by(end), reasons)


@lru_cache(maxsize=64)
def _unseen_ids(tokenizer: Any) -> tuple[frozenset[int], frozenset[int]]:
    """Control tokens that are marks of reasoning, and all the others."""
    texts = {token: str(tokenizer.convert_ids_to_tokens(token)) for token in special_ids(tokenizer)}
    marks = reasoning.mark_tokens(set(texts.values()))
    shown = frozenset(token for token, text in texts.items() if text in marks)
    return shown, frozenset(texts) - shown


def text_of(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of generated ids without control tokens, but for the marks of reasoning among them."""
    marks, others = _unseen_ids(tokenizer)
    if marks.isdisjoint(ids):
        return str(tokenizer.decode(list(ids), skip_special_tokens=True))
    kept = [token for token in ids if token not in others]
    return str(tokenizer.decode(kept, skip_special_tokens=False))


def to_end(text: str, form: Format | None) -> str:
    """An answer up to the end of its turn, where that came as text: the template's own, or a known one with
    nothing behind it but a next turn. ``form``: of the template, where it is known."""
    kept = text
    if form is not None and form.text_end:
        mark = form.text_end if _like_a_token(form.text_end) else form.next_turn
        if mark.startswith(form.text_end) and (mark != form.text_end or _like_a_token(mark)):
            kept = kept.partition(mark)[0]
    known = _KNOWN_NEXT.search(kept)
    kept = _known_off(kept[: known.start()] if known else kept)
    if form is not None and form.text_end and kept.rstrip().endswith(form.text_end):
        kept = _known_off(kept.rstrip().removesuffix(form.text_end))
    return text if kept == text else kept.rstrip()


def _known_off(text: str) -> str:
    while True:
        bare = text.rstrip()
        end = next((end for end in _ENDS if bare.endswith(end)), None)
        if end is None or (end == "</s>" and "<s>" in text):
            return text
        text = bare.removesuffix(end)


def _like_a_token(text: str) -> bool:
    """Whether a text can only be a mark: <|im_end|>, [/INST]."""
    return _LIKE_A_TOKEN.fullmatch(text) is not None


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
        spelled = next((text for text in form.spelled if text in message.content), None)
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
