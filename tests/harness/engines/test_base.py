"""Guards what becomes of a generated text: answer and reasoning apart, whatever a server or a model wrote."""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from asking import asking
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from transformers import AddedToken

from harness import finish
from harness.engines import lm, replies
from harness.engines.base import Completion, Engine, Request
from harness.engines.openai import Characters
from harness.mini import seed_model_path
from harness.models import chat, checkpoints
from harness.models.checkpoints import Checkpoint

HIDDEN = "I am sorry, that is illegal."


class Scripted(Engine):
    """Answers each prompt with the same ids."""

    def __init__(self, tokenizer: Any, ids: list[int]):
        self.tokenizer, self.ids, self.context_tokens = tokenizer, ids, 4096
        self.stop_ids = (
            checkpoints.stop_ids(None, tokenizer) if hasattr(tokenizer, "chat_template") else set()
        )

    @classmethod
    def open(cls, checkpoint: Any, settings: Any, device: str) -> Any: ...

    def generate(self, prompts: Any, request: Request) -> list[list[int]]:
        return [self.ids for _ in prompts]

    def logprobs(self, pairs: Any, request: Request) -> Any: ...

    def ask(self, **doc: Any) -> Completion:
        history = [{"role": "user", "content": "How do I bake bread?"}]
        options = {"max_gen_toks": 64, "until": []}
        asked = Instance("generate_until", doc=doc, arguments=(json.dumps(history), options), idx=0,
                         metadata=("task", 0, 1))  # fmt: skip
        asking(self).generate_until([asked])
        return asking(self).completions["task", 0, 0]


def missing(found: Completion) -> str | None:
    return finish.missing(found.text, found.finish_reason, found.reasoning, found.unavailable)


def tokenizer_with(*specials: str, behind: str = "", template: str | None = None) -> Any:
    tokenizer = checkpoints.load_tokenizer(seed_model_path())
    tokens = [AddedToken(name, special=True, normalized=False) for name in specials]
    tokenizer.add_tokens(tokens, special_tokens=True)
    tokenizer.chat_template = (template or str(tokenizer.chat_template)) + behind
    return tokenizer


def answer(tokenizer: Any, text: str, *, ended: bool = True, **doc: Any) -> Completion:
    ids = chat.token_ids(tokenizer, text)
    return Scripted(tokenizer, [*ids, tokenizer.eos_token_id] if ended else ids).ask(**doc)


@pytest.mark.parametrize(
    ("specials", "start", "end"),
    [
        (("<|START_THINKING|>", "<|END_THINKING|>"), "<|START_THINKING|>", "<|END_THINKING|>"),
        (("<think>", "</think>"), "<think>", "</think>"),
        (("[THINK]", "[/THINK]"), "[THINK]", "[/THINK]"),
        (("<|channel>", "<channel|>"), "<|channel>thought\n", "<channel|>"),
        (("<|channel|>", "<|start|>", "<|message|>", "<|finis|>"), "<|channel|>analysis<|message|>",
         "<|start|>assistant<|channel|>final<|message|>"),
        ((), "<thought>", "</thought>"),
    ],
)  # fmt: skip
def test_marks_are_seen_whether_or_not_they_are_control_tokens(
    specials: tuple[str, ...], start: str, end: str
) -> None:
    tokenizer = tokenizer_with(*specials)
    found = answer(tokenizer, f"{start}{HIDDEN}{end}Sure. First,")
    assert (found.reasoning, found.text, found.finish_reason) == (HIDDEN, "Sure. First,", "stop")
    cut = answer(tokenizer, f"{start}{HIDDEN}", ended=False)
    assert (cut.text, cut.finish_reason, missing(cut)) == ("", "length", finish.UNFINISHED)
    assert missing(answer(tokenizer, f"{start}{HIDDEN}")) == finish.UNTOLD
    # an opened answer goes on, and what it begins with is taken apart all the same
    opened = answer(tokenizer, f"{start}{HIDDEN}{end}first,", prefill_ids=chat.token_ids(tokenizer, "Sure,"))
    assert (opened.reasoning, opened.text) == (HIDDEN, "first,")


def test_a_closing_mark_alone_ends_reasoning_only_where_the_model_is_one_that_reasons() -> None:
    text = f"First, take the lamp.</think>{HIDDEN}"
    plain = answer(tokenizer_with(), text)
    assert (plain.text, plain.reasoning, missing(plain)) == (text, None, finish.UNTOLD)
    thinker = tokenizer_with(behind="{# splits an answer at </think> #}")
    found = answer(thinker, text)
    assert (found.reasoning, found.text, missing(found)) == ("First, take the lamp.", HIDDEN, None)
    opened = answer(thinker, text, prefill_ids=chat.token_ids(thinker, "Sure,"))
    assert missing(opened) == finish.UNTOLD  # it was in the middle of its answer
    closed = tokenizer_with(behind="{% if add_generation_prompt %}<think>\n\n</think>\n\n{% endif %}")
    assert missing(answer(closed, text)) == finish.UNTOLD
    always = tokenizer_with(behind="{% if add_generation_prompt %}<think>\n{% endif %}")
    assert answer(always, text).text == HIDDEN
    assert missing(answer(always, "I count", ended=False)) == finish.UNFINISHED


ENDS = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] }}[/END]\n"
    "{% else %}[{{ m['role'] }}]{{ m['content'] }}\n{% endif %}{% endfor %}"
)


def test_an_end_of_turn_that_is_text_ends_an_answer() -> None:
    tokenizer = tokenizer_with(template=ENDS)
    found = answer(tokenizer, "mix the glue[/END]\n[user]more", ended=False)
    assert (found.text, found.finish_reason) == ("mix the glue", "stop")
    assert answer(tokenizer, "mix the glue[/END]\n").text == "mix the glue"
    assert missing(answer(tokenizer, "[/END]")) == finish.EMPTY
    cut = answer(tokenizer, "mix the glue", ended=False)
    assert (cut.text, cut.finish_reason) == ("mix the glue", "length")
    plain = answer(tokenizer_with(), "mix the glue[/END] and wait")
    assert plain.text == "mix the glue[/END] and wait"


def test_an_answer_ends_at_its_first_stop_token() -> None:
    tokenizer = tokenizer_with()
    said, more, end = (chat.token_ids(tokenizer, "mix the glue"), chat.token_ids(tokenizer, "and wait"),
                       tokenizer.eos_token_id)  # fmt: skip
    for behind in ([end], [end, *more], [end, *more, end], [end, end]):
        found = Scripted(tokenizer, [*said, *behind]).ask()
        assert (found.text, found.tokens, found.finish_reason) == ("mix the glue", len(said) + 1, "stop")
    for reason, kept in (("length", "stop"), ("eos", "eos"), ("content_filter", "content_filter")):
        packed = replies.Reply(ids=[*said, end, *more], finish_reason=reason).packed()
        found = Scripted(tokenizer, packed).ask()
        assert (found.text, found.finish_reason) == ("mix the glue", kept)
    assert missing(Scripted(tokenizer, [end, *said, end]).ask()) == finish.EMPTY


def test_a_tool_call_that_is_written_as_text_is_no_answer() -> None:
    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    for text in (call, f"{call} Sure.", f"<think>{HIDDEN}</think>\n{call}"):
        made = Completion(text, 9, "stop")
        assert missing(Scripted(tokenizer_with(), []).answered(made, chat.PLAIN)) == finish.CALLED_TOOL
    made = Completion(f"Sure. {call}", 9, "stop")
    assert missing(Scripted(tokenizer_with(), []).answered(made, chat.PLAIN)) is None


def test_a_tool_call_behind_a_control_token_is_no_answer() -> None:
    tokenizer = tokenizer_with("<|python_tag|>", "<think>", "</think>")
    assert missing(answer(tokenizer, "<|python_tag|>mix.call(glue)")) == finish.CALLED_TOOL
    thought = answer(tokenizer, f"<think>{HIDDEN}</think><|python_tag|>mix.call(glue)")
    assert (thought.reasoning, missing(thought)) == (HIDDEN, finish.CALLED_TOOL)
    assert missing(answer(tokenizer, "first, <|python_tag|>mix.call(glue)")) is None


# --- whatever a server says ------------------------------------------------------------------------

WORDS = st.text(st.characters(blacklist_characters="<>[]|◁▷#/", blacklist_categories=["Cs"]), max_size=30)
REASONS = st.sampled_from(
    [
        None,
        "stop",
        "length",
        "content_filter",
        "tool_calls",
        "error",
        "who_knows",
        {"type": "stop"},
        7,
        ["stop"],
    ]
)
MARKS = st.sampled_from(
    [None, ("<think>", "</think>"), ("\ufeff<Thought>", "</Thought>"), ("[THINK]", "[/THINK]"),
     ("◁think▷", "◁/think▷"), ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
     ("<|START_THINKING|>", "<|END_THINKING|>")]
)  # fmt: skip
SHAPES: dict[str, Any] = {
    "text": lambda text: text,
    "list": lambda text: [text],
    "parts": lambda text: [{"type": "image_url", "image_url": {}}, {"type": "text", "text": text}],
    "thinking": lambda text: [{"type": "thinking", "thinking": [{"text": HIDDEN}]}, {"text": text}],
    "message": lambda text: {"type": "message", "content": [{"type": "output_text", "text": text}]},
    "refusal": lambda text: [{"type": "refusal", "refusal": text}],
}


@given(
    text=WORDS.map(str.strip), reason=REASONS, shape=st.sampled_from(sorted(SHAPES)), mark=MARKS,
    field=st.none() | st.just(HIDDEN), closed=st.booleans(),
)  # fmt: skip
def test_the_answer_is_exactly_its_text_or_there_is_none(
    text: str, reason: Any, shape: str, mark: tuple[str, str] | None, field: str | None, closed: bool
) -> None:
    whole = text if mark is None else f"{mark[0]}{HIDDEN}{mark[1]}{text}" if closed else f"{mark[0]}{HIDDEN}"
    message = SimpleNamespace(content=SHAPES[shape](whole), reasoning=field)
    reply = replies.of_choice(SimpleNamespace(message=message, finish_reason=reason), None)
    packed = json.loads(json.dumps(reply.within(10_000).packed()))
    found = Scripted(Characters("x"), []).completion(packed, [])
    shown = finish.has_text(text[:1]) and not text.startswith("thought") and (mark is None or closed)
    word = reason["type"] if isinstance(reason, dict) else reason
    if shown and word in (None, "stop", "length"):
        assert (found.text, missing(found)) == (text, None)
    if not finish.has_text(text) or (mark and not closed):
        assert missing(found) is not None
    if word not in (None, "stop", "length"):
        assert missing(found) is not None
    assert HIDDEN not in found.text
    assert (HIDDEN in (found.reasoning or "")) == bool(mark or field or shape == "thinking")


# --- seeds ------------------------------------------------------------------------------------------

SIZE = 3  # prompts in a batch


class Recording(Engine):
    """Cuts the prompts in batches, answers each with one token, and keeps the settings of each call."""

    def __init__(self) -> None:
        self.tokenizer = checkpoints.load_tokenizer(seed_model_path())
        self.context_tokens, self.stop_ids = 100, {0}
        self.calls: list[tuple[list[list[int]], Request]] = []

    @classmethod
    def open(cls, checkpoint: Checkpoint, settings: Any, device: str) -> Recording:
        return cls()

    def generate(self, prompts: Sequence[list[int]], request: Request) -> list[list[int]]:
        self.calls.append((list(prompts), request))
        return [[7, 0] for _ in prompts]

    def plan(self, prompts: Sequence[list[int]]) -> list[list[int]]:
        return [list(range(start, min(start + SIZE, len(prompts)))) for start in range(0, len(prompts), SIZE)]

    def logprobs(self, pairs: Any, request: Request) -> Any:
        raise NotImplementedError


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Recording:
    monkeypatch.setattr(chat, "prompt_ids", lambda tokenizer, turns, **how: [len(turns[-1].content)])
    monkeypatch.setattr(chat, "thinking_at", lambda tokenizer, ids, **how: chat.Thinking())
    return Recording()


def requests(count: int, repeats: int = 1, **options: Any) -> list[Instance]:
    """``repeats`` times the same object for each document, as lm-eval has it."""
    made = [
        Instance(
            "generate_until",
            doc={},
            arguments=(json.dumps([{"role": "user", "content": "x" * (number + 1)}]), options),
            idx=0,
            metadata=("some-task", number, repeats),
        )
        for number in range(count)
    ]
    return [one for one in made for _ in range(repeats)]


def seeds(engine: Recording) -> list[int]:
    return [request.seed for _, request in engine.calls]


def test_each_batch_and_sample_draws_from_a_seed_of_its_own(engine: Recording) -> None:
    asking(engine).generate_until(requests(2 * SIZE, repeats=2, temperature=0.7, do_sample=True))
    assert [len(prompts) for prompts, _ in engine.calls] == [SIZE] * 4
    first = [lm.SAMPLE_SEED * 100_003, lm.SAMPLE_SEED * 100_003 + SIZE]
    second = [(lm.SAMPLE_SEED + 1) * 100_003, (lm.SAMPLE_SEED + 1) * 100_003 + SIZE]
    assert seeds(engine) == [*first, *second]


def test_what_is_known_already_changes_no_seed(engine: Recording) -> None:
    asked = requests(2 * SIZE, temperature=0.7, do_sample=True)
    asking(engine).generate_until(asked)
    whole = seeds(engine)
    engine.calls.clear()
    asking(engine, known={number: [7, 0] for number in range(SIZE)})
    asking(engine).generate_until(asked)
    assert seeds(engine) == whole[1:]


def test_greedy_answers_have_the_batchs_number_alone(engine: Recording) -> None:
    asking(engine).generate_until(requests(SIZE + 1, temperature=0.0))
    assert [(request.temperature, request.seed) for _, request in engine.calls] == [(0.0, 0), (0.0, SIZE)]
