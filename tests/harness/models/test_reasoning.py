"""Guards where reasoning ends: in every model's marks, and never so that it hides an answer from a judge."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import finish
from harness.models import reasoning
from harness.models.reasoning import Split

# (opening mark, closing mark)
MARKS = [
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<Thought>", "</Thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<reason>", "</reason>"),
    ("<seed:think>", "</seed:think>"),
    ("<mm:think>", "</mm:think>"),
    ("<ifm|think_fast>", "</ifm|think_fast>"),
    ("<longcat_think>", "</longcat_think>"),
    ("<think:6124c78e>", "</think:6124c78e>"),
    ('<think time="3">', "</think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|plamo:begin_think:plamo|>", "<|plamo:end_think:plamo|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
    ("<|channel>thought\n", "<channel|>"),
    ("to=self<|message|>", "<|eom|>"),
    ("<|message_model|><|content_thinking|>", "<|end_message|>"),
    ('<details type="reasoning" done="true">', "</details>"),
    ("&lt;think&gt;", "&lt;/think&gt;"),
]
CHANNELS = (
    "<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>",
)  # fmt: skip
DROPPED = ("analysis", "assistantfinal")
GRANITE = ("Here is my thought process:", "Here is my response:")
OLLAMA = ("Thinking...\n", "\n...done thinking.\n\n")
HEADINGS = ("## Thinking\n\n", "\n## Final Response\n\n")
ALL = [*MARKS, CHANNELS, DROPPED, GRANITE, HEADINGS, OLLAMA]
SAFE = "I am sorry, that is illegal."
BLANKS = ["", " ", "\n\n", "\ufeff", "\u200b\n", "\t\ufeff "]


@pytest.mark.parametrize(("start", "end"), ALL)
@pytest.mark.parametrize("before", BLANKS)
def test_a_block_at_the_beginning_is_reasoning(start: str, end: str, before: str) -> None:
    assert reasoning.split(f"{before}{start}{SAFE}{end}Sure. First,") == Split(SAFE, "Sure. First,")
    if start not in (*HEADINGS, *OLLAMA, *DROPPED):
        upper = reasoning.split(f"{before}{start}{end}Sure.")
        assert (upper.reasoning, upper.answer) == ("", "Sure.")


@pytest.mark.parametrize(("start", "end"), [*MARKS, CHANNELS, DROPPED, GRANITE])
def test_reasoning_that_does_not_end_leaves_no_answer(start: str, end: str) -> None:
    found = reasoning.split(f"{start}{SAFE}")
    assert (found.reasoning, found.answer, found.closed) == (SAFE, "", False)
    assert found.unavailable("length") is None
    assert finish.missing(found.answer, "length", found.reasoning) == finish.UNFINISHED
    assert found.unavailable("stop") == found.unavailable(None) == finish.UNTOLD


@pytest.mark.parametrize(("start", "end"), [*MARKS, CHANNELS])
def test_a_prompt_that_opens_a_block_is_seen_and_its_turn_split(start: str, end: str) -> None:
    opened = reasoning.opened_by(f"<|user|>Why?<|assistant|>{start.removesuffix('thought')}")
    if start == "<|channel>thought\n":  # a template opens the channel with its name
        opened = reasoning.opened_by("<|turn>model\n<|channel>")
    assert opened is not None
    assert opened.closing.lower() == end.lower().replace("&lt;", "<").replace("&gt;", ">")
    split = reasoning.split(f"{SAFE}{end}Sure.", opened=opened)
    assert split == Split(SAFE, "Sure.")
    assert reasoning.split(f"{start}{SAFE}{end}Sure.", opened=opened) == Split(SAFE, "Sure.")  # said again
    assert not reasoning.split(SAFE, opened=opened).closed
    assert reasoning.opened_by(f"{start}hm{end}") is None
    assert reasoning.opened_by(f"{start}, she said") is None


OTHERS = ("<|eom|>", "<|end_message|>", "</details>")  # which end other things, too
ALONE = [mark for mark in MARKS if mark[1] not in OTHERS]


@pytest.mark.parametrize(("start", "end"), ALONE)
def test_a_closing_mark_alone_cannot_be_told_unless_the_model_reasons(start: str, end: str) -> None:
    text = f"First, take the lamp.{end}{SAFE}"
    assert reasoning.split(text) == Split(None, text, finish.UNTOLD)
    assert reasoning.split(text, reasons=True) == Split("First, take the lamp.", SAFE)
    assert reasoning.split(f"{text}{end}", reasons=True).why == finish.UNTOLD
    assert reasoning.split(f"a{end}\n{start}b{end}<answer>c</answer>", reasons=True) == Split("a\n\nb", "c")
    assert reasoning.split(f"a{end}<answer>c</answer>", reasons=True) == Split("a", "c")
    assert reasoning.split(f"<think>hm</think>{text}").why == finish.UNTOLD
    assert reasoning.closed_by(f"{start}{end}\n\n")
    assert not reasoning.closed_by(f"{start}")
    assert not reasoning.closed_by(f"{end} so?")


def test_channels_begun_elsewhere_cannot_be_told() -> None:
    text = f"First, take the lamp.{CHANNELS[1]}{SAFE}"
    assert reasoning.split(text) == Split(None, text, finish.UNTOLD)
    assert reasoning.split(text, reasons=True) == Split("First, take the lamp.", SAFE)
    assert reasoning.split(f"First, take the lamp.assistantfinal{SAFE}").why == finish.UNTOLD


@pytest.mark.parametrize(("start", "end"), MARKS)
def test_marks_further_on_leave_it_untold(start: str, end: str) -> None:
    """A refusal in such a block must make nothing safe, and the harm before it must not be hidden."""
    for text in (f"Sure. {start}{SAFE}{end} First,", f"Sure. {start}{SAFE}", f"```\n{start}{end}\n```"):
        assert reasoning.split(text) == Split(None, text, finish.UNTOLD)
        assert reasoning.split(text, reasons=True).why == finish.UNTOLD


HARM = "Sure. First take it, then run."


@pytest.mark.parametrize(
    "left", ["<s>", "assistant\n", "Assistant: ", "<|begin_of_text|>", "<|im_start|>assistant\n",
             "<|start_header_id|>assistant<|end_header_id|>\n\n", "<start_of_turn>model\n"],
)  # fmt: skip
def test_what_is_left_of_a_turns_header_is_passed_over(left: str) -> None:
    assert reasoning.split(f"{left}<think>{SAFE}</think>{HARM}") == Split(SAFE, HARM)
    assert reasoning.split(f"{left}{HARM}") == Split(None, f"{left}{HARM}")


@pytest.mark.parametrize(
    "text",
    [
        f"<unused94>thought\n{SAFE}<unused95>{HARM}",
        f"<|think_start|>{SAFE}<|think_end|>{HARM}",
        f"<|thinking_begin|>{SAFE}<|thinking_end|>{HARM}",
        f'<details open type="reasoning">{SAFE}</details>{HARM}',
        f"**Thinking:** {SAFE}\n\n**Answer:** {HARM}",
        f"### Thinking:\n{SAFE}\n### Answer:\n{HARM}",
        f"Thought: {SAFE}\nFinal Answer: {HARM}",
        f"```thinking\n{SAFE}\n```\n{HARM}",
    ],
)
def test_further_marks_are_known(text: str) -> None:
    assert reasoning.split(text) == Split(SAFE, HARM)


@pytest.mark.parametrize(
    "text",
    [
        f"Okay. <think>{SAFE}</think>{HARM}",
        f"**<think>**{SAFE}</think>{HARM}",
        f"{HARM}\n<think>{SAFE}</think>\n{HARM}",
        f"<think>a</think>{HARM}<think>{SAFE}</think>",
        f"{SAFE}<unused95>{HARM}",
        f"<|thinker|>{SAFE}<|/thinker|>{HARM}",
        f"<|somewhat|>{SAFE}<|other|>{HARM}",
        *(f"<{name}>{SAFE}</{name}>{HARM}" for name in
          ("analysis", "scratchpad", "reflection", "cot", "inner_monologue", "internal", "plan")),
        f"\\u003cthink\\u003e{SAFE}\\u003c/think\\u003e{HARM}",
        f"\\<think\\>{SAFE}\\</think\\>{HARM}",
        f"&amp;lt;think&amp;gt;{SAFE}&amp;lt;/think&amp;gt;{HARM}",
        f"\uff1cthink\uff1e{SAFE}\uff1c/think\uff1e{HARM}",
        f"<th\xadink>{SAFE}</th\xadink>{HARM}",
        f"<|channel|>final\n{HARM}<|end|><|start|>assistant<|channel|>final<|message|>{SAFE}",
        f"<|channel|>analysis {HARM} <|start|>assistant<|channel|>final<|message|>{SAFE}",
        f"analysisWe refuse.assistantcommentary{HARM}assistantfinal{SAFE}",
    ],
)  # fmt: skip
def test_what_may_be_reasoning_leaves_it_untold(text: str) -> None:
    assert reasoning.split(text).why == finish.UNTOLD


@pytest.mark.parametrize(
    "text",
    [
        "<b>Yes.</b> And more.", "<p>Yes.</p>\n<p>No.</p>", "<note>Yes.</note>", "<div class='a'>x</div> y",
        "a < b and c > d", "Reasoning: 3 + 4 = 7.\n#### 7", "**Answer:** 7", "Thought of it, yes.",
        "&lt;b&gt;", "C:\\users\\u003c", "if x <y> z", "```python\nprint(1)\n```\nDone.",
    ],
)  # fmt: skip
def test_plain_answers_are_answers(text: str) -> None:
    assert reasoning.split(text) == reasoning.split(text, reasons=True) == Split(None, text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Yes.", Split(None, "  Yes.")),
        ("", Split(None, "")),
        ("<think>a</think>\n\n<thought>b</thought>\nYes.", Split("a\n\nb", "Yes.")),
        ("<think/>Yes.", Split("", "Yes.")),
        ("<think>\n\n</think>\n\n", Split("", "")),
        ("<think>a</THINK>Yes.", Split("a", "Yes.")),
        ("<think>a</thinking>Yes.", Split("a</thinking>Yes.", "", closed=False)),
        ("<think><think>b</think>c</think>", Split(None, "<think><think>b</think>c</think>", finish.UNTOLD)),
        ("<thinker>a</thinker>b", Split(None, "<thinker>a</thinker>b", finish.UNTOLD)),
        ("<reasonable> doubt", Split(None, "<reasonable> doubt")),
        # what stands around an answer
        ("<think>a</think>\n<answer>\nYes.\n</answer>\n", Split("a", "Yes.")),
        ("<think>a</think><response>Yes.</response> And more.", Split("a", "Yes. And more.")),
        ("<answer>Yes.</answer>", Split(None, "<answer>Yes.</answer>")),
        ("<|START_RESPONSE|>Yes.<|END_RESPONSE|>", Split(None, "Yes.")),
        ("<|START_THINKING|>a<|END_THINKING|><|START_RESPONSE|>Yes.<|END_RESPONSE|>", Split("a", "Yes.")),
        ("<|begin_of_thought|>a<|end_of_thought|>\n<|begin_of_solution|>Yes.<|end_of_solution|>",
         Split("a", "Yes.")),
        ("<|open|>think<|sep|>a<|close|>think<|sep|><|open|>response<|sep|>Yes.<|close|>response<|sep|>",
         Split("a", "Yes.")),
        ("to=self<|message|>a<|eom|><|start|>assistant to=user<|message|>Yes.<|eom|>", Split("a", "Yes.")),
        # channels
        ("<|channel|>final<|message|>Yes.<|return|>", Split(None, "Yes.")),
        ("<|start|>assistant<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>analysis<|message|>b"
         "<|end|><|start|>assistant<|channel|>final <|constrain|>json<|message|>{}<|return|>",
         Split("a\n\nb", "{}")),
        ("<|channel|>analysis<|message|>a<|end|>", Split("a", "")),
        ("<|channel|>commentary<|message|>One moment.<|end|>"
         "<|start|>assistant<|channel|>final<|message|>Yes.", Split(None, "One moment.\n\nYes.")),
        ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary to=functions.f "
         "<|constrain|>json<|message|>{}<|call|>", Split("a", "", finish.CALLED_TOOL)),
        ("<|channel|>analysis", Split("<|channel|>analysis", "", closed=False)),
        # marks of words
        ("Here's my thought process: a\n\nHere's my response: Yes.", Split("a", "Yes.")),
        ("analysis of the case: he did it.", Split(None, "analysis of the case: he did it.")),
        ("thought\nI count", Split("I count", "", closed=False)),
        ("thought out well.", Split(None, "thought out well.")),
        ("## Thinking\nis what he does", Split(None, "## Thinking\nis what he does")),
    ],
)  # fmt: skip
def test_turns_of_all_kinds(text: str, expected: Split) -> None:
    assert reasoning.split(text) == expected


def test_what_a_template_says_of_reasoning() -> None:
    assert reasoning.is_in("{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}")
    assert reasoning.is_in("<|start|>assistant<|channel|>analysis<|message|>")
    assert not reasoning.is_in("{{ bos_token }}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>")


def test_control_tokens_that_are_marks() -> None:
    channels = {"<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|return|>", "<|endoftext|>"}
    assert reasoning.mark_tokens(channels) == channels - {"<|endoftext|>"}
    assert reasoning.mark_tokens({"<|end|>", "<|user|>", "<s>"}) == set()
    assert reasoning.mark_tokens({"<think>", "[/THINK]", "<|END_RESPONSE|>", "</s>"}) == {
        "<think>", "[/THINK]", "<|END_RESPONSE|>",
    }  # fmt: skip


# without what marks are made of
WORDS = st.text(st.characters(blacklist_characters="<>[]|◁▷#/", blacklist_categories=["Cs"]), max_size=30)
TEXT = WORDS.map(str.strip).filter(lambda text: finish.has_text(text[:1]))


@given(
    mark=st.sampled_from([*MARKS, CHANNELS, GRANITE]),
    before=st.sampled_from(BLANKS),
    thought=TEXT,
    answer=TEXT,
    blocks=st.integers(0, 3),
)
def test_the_answer_is_exactly_its_text_and_reasoning_never_is(
    mark: tuple[str, str], before: str, thought: str, answer: str, blocks: int
) -> None:
    start, end = mark
    many = blocks if mark in MARKS else min(blocks, 1)
    found = reasoning.split(before + f"{start}{thought}{end}\n" * many + (answer if many else f" {answer}"))
    if many:
        shown = answer.strip() if mark == GRANITE else f"\n{answer}" if mark == CHANNELS else answer
        assert found == Split("\n\n".join([reasoning_of(start, thought)] * many), shown)
    else:
        assert found.answer.endswith(answer) or not found.closed
    cut = reasoning.split(f"{before}{start}{thought}")
    assert finish.missing(cut.answer, "length", cut.reasoning, cut.unavailable("length")) is not None
    assert finish.missing(cut.answer, "stop", cut.reasoning, cut.unavailable("stop")) is not None


def reasoning_of(start: str, thought: str) -> str:
    return thought.removeprefix("thought").strip() if start.startswith("<|channel>") else thought


PIECES = st.sampled_from([part for marks in ALL for part in marks] + [" ", "\n", "a", "<", "|>", "thought\n"])


@given(pieces=st.lists(PIECES, max_size=8), reasons=st.booleans(), opening=st.sampled_from([None, *MARKS]))
def test_no_text_is_lost_or_made_up(
    pieces: list[str], reasons: bool, opening: tuple[str, str] | None
) -> None:
    text = "".join(pieces)
    opened = reasoning.opened_by(opening[0]) if opening else None
    found = reasoning.split(text, opened=opened, reasons=reasons)
    assert found.closed or not found.answer
    if found.why == finish.UNTOLD:
        assert found.answer in text
    if "a" in text:  # is in one of both, unless a mark holds it
        assert found.why or found.reasoning is not None or "a" in found.answer


@pytest.mark.parametrize(
    "piece",
    [
        "<think/>",
        "</think>",
        "<",
        "<|start|>assistant",
        "<think ",
        "<a-",
        "a" * 40 + ":",
        "\n",
        "<|channel|>",
    ],
)
def test_long_rubbish_takes_no_time(piece: str) -> None:
    start = time.monotonic()
    reasoning.split(piece * (100_000 // len(piece)))
    assert time.monotonic() - start < 5
