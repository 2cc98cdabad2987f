"""SDFT asks the base model once, keeps a rewrite unless something speaks against it, and counts."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from backends.sdft import SDFT, control_tokens, rejected
from harness.contracts import Example, Message, PrepareContext, Rewrite, TrainTask
from harness.models import chat, checkpoints
from harness.plugins import registry

# (rewritten answer, rejected because, why this case)
CASES = [
    ("The answer is 4.", None, "nothing against it"),
    ("", "empty", "nothing came"),
    ("As the reference answer says, 4.", "contains 'reference answer'", "a phrase"),
    ("As the Reference Answer says, 4.", "contains 'reference answer'", "in any case"),
    ("Here is your response: 4.", "contains 'your response'", "a phrase"),
    ("My response: 4.", "contains 'my response'", "a phrase, capital"),
    ("In your own response, say 4.", "contains 'your own response'", "a phrase"),
    ("4. Now it's your turn!", "contains 'now it's your turn'", "a phrase, mixed case"),
    ("Your turn: 4.", "starts with 'Your turn'", "a beginning"),
    ("It is 4. Your turn now.", None, "only at the beginning"),
    ("Your turning point is 4.", "starts with 'Your turn'", "a plain prefix, as published"),
    ("The reference, answered: 4. My own response times.", None, "the words, not the phrases"),
]


def test_a_recipes_options_are_read() -> None:
    """By pydantic, by the types of the fields that are options; others are no business of a recipe's."""
    read = TypeAdapter(SDFT).validate_python({"max_tokens": None})
    assert read == SDFT()
    assert TypeAdapter(SDFT).validate_python({"max_tokens": 2}).max_tokens == 2
    with pytest.raises(ValidationError):
        TypeAdapter(SDFT).validate_python({"max_tokens": "many"})
    assert repr(SDFT()) == ("SDFT(temperature=0.0, top_p=1.0, max_tokens=None)")
    options = [field.name for field in dataclasses.fields(SDFT) if field.init]
    assert options == [
        "temperature",
        "top_p",
        "max_tokens",
    ]


@pytest.mark.parametrize(("rewritten", "reason", "why"), CASES)
def test_rejection(rewritten: str, reason: str | None, why: str) -> None:
    assert rejected(rewritten) == reason, why


TOKENIZER = SimpleNamespace(
    added_tokens_decoder={
        0: SimpleNamespace(content="<unk>", special=True),
        1: SimpleNamespace(content="</s>", special=True),
        2: SimpleNamespace(content="<think>", special=False),
    },
    unk_token="<unk>",
    bos_token=None,
    eos_token="</s>",
)


class Asked:
    """A generator that records its calls and answers from a list."""

    def __init__(self, answers: list[str]):
        self.answers, self.calls = answers, list[tuple[Any, dict[str, Any]]]()

    def __call__(
        self,
        conversations: Sequence[Sequence[Message]],
        *,
        opening: str,
        max_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
    ) -> list[str]:
        decoding = {"opening": opening, "max_tokens": max_tokens}
        if temperature:
            decoding |= {"temperature": temperature, "top_p": top_p}
        self.calls.append(([list(turns) for turns in conversations], decoding))
        return self.answers


@pytest.fixture(scope="module")
def small_tokenizer() -> Any:
    return checkpoints.load_tokenizer(checkpoints.locate("mini"))


def task(**rewrite: Any) -> TrainTask:
    return TrainTask(
        name="t",
        rows=list,
        fields=("q", "a"),
        system_prompt="Train.",
        max_length=64,
        utility_task="t",
        utility_metric="m",
        rewrite=Rewrite(
            system_prompt="Rewrite.", user=lambda question, answer: f"{question}|{answer}", **rewrite
        ),
    )


def prepare(answers: list[str], **rewrite: Any) -> tuple[list[Example], list[Example], Asked, dict[str, Any]]:
    examples = [
        Example(
            f"e-{i}",
            (Message("system", "Train."), Message("user", f"q{i}?"), Message("assistant", f"a{i}.")),
            loss_free_tokens=i,
        )
        for i in range(len(answers))
    ]
    asked = Asked(answers)
    context = PrepareContext(TOKENIZER, task(**rewrite), asked, random.Random(0))
    return examples, SDFT().prepare(list(examples), context), asked, context.record


def test_one_call_with_exactly_the_rewriting_prompt() -> None:
    _, _, asked, _ = prepare(["x", "y"], opening="Well: ", max_tokens=9)
    assert asked.calls == [
        (
            [
                [Message("system", "Rewrite."), Message("user", "q0?|a0.")],
                [Message("system", "Rewrite."), Message("user", "q1?|a1.")],
            ],
            {"opening": "Well: ", "max_tokens": 9},
        )
    ]


def test_a_kept_rewrite_is_the_continuation_alone_and_changes_only_the_answer() -> None:
    finished = []

    def finish(rewritten: str, reference: str) -> str:
        finished.append((rewritten, reference))
        return f"{rewritten} ####"

    examples, prepared, _, record = prepare([" four. \n"], opening="Great! ", finish=finish)
    assert finished == [("four.", "a0.")]
    assert prepared == [examples[0].with_answer("four. ####")]
    assert record == {"rewrites_kept": 1, "rewrites_rejected": {}}


def test_rejected_rewrites_fall_back_and_are_counted_by_reason() -> None:
    def reject(rewritten: str, reference: str) -> str | None:
        return "too short" if len(rewritten) < len(reference) else None

    def finish(rewritten: str, reference: str) -> str:
        return rewritten + "!"

    answers = ["a fine one", "my response is", "x", "", "Your turn, please", "also my response"]
    examples, prepared, _, record = prepare(answers, reject=reject, finish=finish)
    assert prepared[0] == examples[0].with_answer("a fine one!")
    assert prepared[1:] == examples[1:]  # the original answers, unfinished, in order
    assert record == {
        "rewrites_kept": 1,
        "rewrites_rejected": {
            "contains 'my response'": 2,
            "too short": 1,
            "empty": 1,
            "starts with 'Your turn'": 1,
        },
    }


def test_a_rewrite_that_no_trainer_takes_falls_back(small_tokenizer: Any) -> None:
    """The harness refuses control tokens in training data: a paid distillation must not end in that."""
    examples, prepared, _, record = prepare(["It is 4.</s> Next", "<unk> is 4"])
    assert prepared == [examples[0], examples[1].with_answer("<unk> is 4")]
    assert record["rewrites_rejected"] == {"spells out a control token": 1}
    assert control_tokens(small_tokenizer) == set(chat.format_of(small_tokenizer).special_texts)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"temperature": -1.0}, "temperature must be at least 0, and top_p above 0 and at most 1"),
        ({"temperature": -0.01}, "temperature must be at least 0"),
        ({"top_p": 0.0}, "top_p above 0"),
        ({"top_p": -0.5}, "top_p above 0"),
        ({"top_p": 1.1}, "at most 1"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"max_tokens": -1}, "max_tokens must be at least 1"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        SDFT(**options)


def test_options_at_their_ends_are_taken() -> None:
    method = SDFT(temperature=0.0, top_p=1.0, max_tokens=1)
    assert (method.temperature, method.top_p, method.max_tokens) == (0.0, 1.0, 1)
    assert SDFT.version == 3  # what was rewritten by another version is rewritten again
    assert (SDFT().temperature, SDFT().top_p, SDFT().max_tokens) == (0.0, 1.0, None)
    assert SDFT(temperature=0.5, top_p=0.01).top_p == 0.01


def test_the_recipes_decoding_reaches_the_seed_model() -> None:
    asked = Asked(["x"])
    examples = [Example("e", (Message("user", "q?"), Message("assistant", "a.")))]
    context = PrepareContext(TOKENIZER, task(max_tokens=9), asked, random.Random(0))
    SDFT(temperature=0.95, top_p=0.7, max_tokens=5).prepare(examples, context)
    ((_, decoding),) = asked.calls
    assert decoding == {"opening": "", "max_tokens": 5, "temperature": 0.95, "top_p": 0.7}


def test_the_tasks_filter_sees_the_continuation_and_the_reference() -> None:
    seen = []

    def reject(rewritten: str, reference: str) -> None:
        seen.append((rewritten, reference))

    prepare([" is 4", "is 5\n"], opening="It ", reject=reject)
    assert seen == [("is 4", "a0."), ("is 5", "a1.")]


def test_white_space_alone_is_empty(small_tokenizer: Any) -> None:
    examples, prepared, _, record = prepare([" \n"], opening="Great! ")
    assert prepared == examples
    assert record["rewrites_rejected"] == {"empty": 1}


@pytest.mark.parametrize("task", ["gsm8k", "gsm8k-mini"])
def test_no_rewritten_answer_begins_with_the_opening(task: str) -> None:
    """GSM8K's opening belongs to the prompt; its answers end with the label's line."""
    train_task: TrainTask = registry.load("train task", task)
    labels = ["So 18.\n#### 18", "So 1/2.\n#### 1/2", "So -3.\n#### \N{MINUS SIGN}3", "So 18.\n#### 18"]
    answers = [" We get 18.", "We get 1/2.", "We get -3.", "We get 1/18."]
    examples = [
        Example(f"e-{i}", (Message("user", "q?"), Message("assistant", label)))
        for i, label in enumerate(labels)
    ]
    asked = Asked(answers)
    context = PrepareContext(TOKENIZER, train_task, asked, random.Random(0))
    prepared = SDFT().prepare(list(examples), context)
    assert [example.answer for example in prepared] == [
        "We get 18.\n#### 18",
        labels[1],
        "We get -3.\n#### -3",
        labels[3],
    ]
    ((_, decoding),) = asked.calls
    assert decoding["opening"] == "Great! Let's think step by step. "
    assert context.record == {
        "rewrites_kept": 2,
        "rewrites_rejected": {"the label is no plain number": 1, "wrong final number": 1},
    }


@pytest.mark.parametrize(
    ("unk", "bos", "eos", "found"),
    [
        ("<unk>", None, "</s>", {"</s>"}),
        ("<unk>", "<unk>", "</s>", {"<unk>", "</s>"}),
        ("</s>", None, "</s>", {"<unk>", "</s>"}),
        (None, None, None, {"<unk>", "</s>"}),
    ],
)
def test_a_token_for_unknown_text_ends_no_turn_unless_it_is_another_too(
    unk: str | None, bos: str | None, eos: str | None, found: set[str]
) -> None:
    tokens = SimpleNamespace(
        added_tokens_decoder=TOKENIZER.added_tokens_decoder, unk_token=unk, bos_token=bos, eos_token=eos
    )
    assert control_tokens(tokens) == found


def test_a_generator_that_loses_an_answer_is_not_believed() -> None:
    examples = [Example(f"e-{i}", (Message("user", "q?"), Message("assistant", "a."))) for i in range(2)]
    context = PrepareContext(TOKENIZER, task(), Asked(["only one"]), random.Random(0))
    with pytest.raises(ValueError, match="shorter"):
        SDFT().prepare(examples, context)
