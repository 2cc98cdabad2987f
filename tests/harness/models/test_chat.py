"""Ids are made once: training sees inference's prompt, and learns the answer and its end alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from harness.contracts import Encoded, Example, HarnessError, Message
from harness.mini import seed_model_path
from harness.models import chat

PLAIN = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{{ eos_token }}{% endfor %}"
OPEN = "{% if add_generation_prompt %}<|assistant|>{% endif %}"

LLAMA2 = (
    "{% set system = '' %}{% if messages[0]['role'] == 'system' %}"
    "{% set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    "{% set messages = messages[1:] %}{% endif %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + (system if loop.first else '') + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
CHATML = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
RAISES = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('no system role') }}{% endif %}" + PLAIN + OPEN
)
DROPS = (
    "{{ bos_token }}{% for m in messages if m['role'] != 'system' %}"
    "<|{{ m['role'] }}|>{{ m['content'] }}{{ eos_token }}{% endfor %}" + OPEN
)
TRIMS = "{{ bos_token }}" + PLAIN.replace("m['content']", "m['content'] | trim") + OPEN
NO_END = "{{ bos_token }}" + PLAIN.replace("{{ eos_token }}", "\n") + OPEN
FORGETS = (  # the past is written differently from the present, as templates that drop thinking do
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>Think. {% endif %}"
)
TEMPLATES = {
    "mini": None,
    "llama2": LLAMA2,
    "chatml": CHATML,
    "chatml, unnamed end": CHATML,
    "raises on system": RAISES,
    "drops system": DROPS,
    "trims": TRIMS,
    "no end of turn": NO_END,
    "forgets": FORGETS,
}


def load(kind: str = "mini") -> Any:
    from tokenizers.processors import TemplateProcessing
    from transformers import AddedToken, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(seed_model_path())
    bos = tokenizer.bos_token  # as Llama's: a text that is tokenized gets a BOS unless told otherwise
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    assert tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id
    if kind.startswith("chatml"):
        tokenizer.add_tokens(
            [AddedToken(name, special=True, normalized=False) for name in ("<|im_start|>", "<|im_end|>")],
            special_tokens=True,
        )
    if kind == "chatml":
        tokenizer.eos_token = "<|im_end|>"
    if TEMPLATES[kind] is not None:
        tokenizer.chat_template = TEMPLATES[kind]
    return tokenizer


@pytest.fixture(scope="module")
def tokenizers() -> Callable[[str], Any]:
    made: dict[str, Any] = {}

    def get(kind: str) -> Any:
        if kind not in made:
            made[kind] = load(kind)
        return made[kind]

    return get


def conversation(answer: str = "Kim has 4 stamps.", question: str = "How many?", **changes: Any) -> Example:
    turns = (Message("system", "Be brief."), Message("user", question), Message("assistant", answer))
    return dataclasses.replace(Example("one", turns), **changes)


def trained_text(tokenizer: Any, encoded: Encoded) -> str:
    kept = [token for token, t in zip(encoded.input_ids, encoded.trained, strict=True) if t]
    return str(tokenizer.decode(kept))


# (template, the prompt as text, what is learnt)
EXPECTED = [
    (
        "mini",
        "<|bos|><|system|>Be brief.<|end|><|user|>How many?<|end|><|assistant|>",
        "Kim has 4 stamps.<|end|>",
    ),
    (
        "llama2",
        "<|bos|>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHow many? [/INST]",
        " Kim has 4 stamps. <|end|>",
    ),
    (
        "chatml",
        "<|bos|><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHow many?<|im_end|>\n"
        "<|im_start|>assistant\n",
        "Kim has 4 stamps.<|im_end|>",
    ),
    (
        "chatml, unnamed end",
        "<|bos|><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHow many?<|im_end|>\n"
        "<|im_start|>assistant\n",
        "Kim has 4 stamps.<|im_end|>",
    ),
    (
        "raises on system",
        "<|bos|><|user|>Be brief.\n\nHow many?<|end|><|assistant|>",
        "Kim has 4 stamps.<|end|>",
    ),
    ("drops system", "<|bos|><|user|>Be brief.\n\nHow many?<|end|><|assistant|>", "Kim has 4 stamps.<|end|>"),
    (
        "trims",
        "<|bos|><|system|>Be brief.<|end|><|user|>How many?<|end|><|assistant|>",
        "Kim has 4 stamps.<|end|>",
    ),
    (
        "no end of turn",
        "<|bos|><|system|>Be brief.\n<|user|>How many?\n<|assistant|>",
        "Kim has 4 stamps.\n<|end|>",
    ),
    (
        "forgets",
        "<|bos|><|system|>Be brief.<|end|><|user|>How many?<|end|><|assistant|>Think. ",
        "Kim has 4 stamps.<|end|>",
    ),
]


@pytest.mark.parametrize(("kind", "prompt", "learnt"), EXPECTED, ids=[case[0] for case in EXPECTED])
def test_prompt_and_answer(kind: str, prompt: str, learnt: str, tokenizers: Callable[[str], Any]) -> None:
    tokenizer = tokenizers(kind)
    example = conversation()
    encoded = chat.encode(tokenizer, example)
    ids = chat.prompt_ids(tokenizer, example.messages[:-1])
    assert tokenizer.decode(ids) == prompt
    assert encoded.input_ids[: len(ids)] == ids
    assert encoded.trained == [False] * len(ids) + [True] * (len(encoded.input_ids) - len(ids))
    assert trained_text(tokenizer, encoded) == learnt
    assert encoded.input_ids.count(tokenizer.bos_token_id) == 1
    assert encoded.id == "one"


def test_every_template_is_tested() -> None:
    assert [case[0] for case in EXPECTED] == list(TEMPLATES)


@pytest.mark.parametrize(
    ("kind", "shown"),
    [("mini", True), ("llama2", True), ("raises on system", False), ("drops system", False)],
)
def test_has_system_role(kind: str, shown: bool, tokenizers: Callable[[str], Any]) -> None:
    assert chat.has_system_role(tokenizers(kind)) is shown


def test_a_trimming_template_trims_in_training_as_at_inference(tokenizers: Callable[[str], Any]) -> None:
    """A previewed prefix ends with a space; the template takes it, in the prompt and before the answer."""
    tokenizer = tokenizers("trims")
    example = conversation(answer="  Kim. ", question="How many? The answer begins with: Let's. ")
    encoded = chat.encode(tokenizer, example)
    ids = chat.prompt_ids(tokenizer, example.messages[:-1])
    assert encoded.input_ids[: len(ids)] == ids
    assert trained_text(tokenizer, encoded) == "Kim.<|end|>"


def test_only_the_last_answer_is_learnt(tokenizers: Callable[[str], Any]) -> None:
    turns = [
        Message("user", "A?"),
        Message("assistant", "a."),
        Message("user", "B?"),
        Message("assistant", "b."),
    ]
    encoded = chat.encode(tokenizers("mini"), Example("x", tuple(turns)))
    assert trained_text(tokenizers("mini"), encoded) == "b.<|end|>"


@given(question=st.text(), answer=st.text(min_size=1).filter(str.strip), free=st.integers(0, 30))
@settings(max_examples=150)
def test_any_text(question: str, answer: str, free: int, tokenizers: Callable[[str], Any]) -> None:
    tokenizer = tokenizers("mini")
    assume(not any(name in question + "\n" + answer for name in chat.format_of(tokenizer).special_texts))
    example = conversation(answer, question, loss_free_tokens=free)
    encoded = chat.encode(tokenizer, example)
    ids = chat.prompt_ids(tokenizer, example.messages[:-1])
    assert encoded.input_ids[: len(ids)] == ids
    assert len(encoded.trained) == len(encoded.input_ids)
    answer_ids = encoded.input_ids[len(ids) :]
    assert tokenizer.decode(answer_ids) == answer + tokenizer.eos_token
    assert sum(encoded.trained) == max(len(answer_ids) - free, 0)
    assert not any(encoded.trained[: len(ids) + min(free, len(answer_ids))])
    assert encoded.input_ids.count(tokenizer.bos_token_id) == 1


@given(text=st.text())
@settings(max_examples=60)
def test_token_ids_add_nothing(text: str, tokenizers: Callable[[str], Any]) -> None:
    assert tokenizers("mini").decode(chat.token_ids(tokenizers("mini"), text)) == text


@pytest.mark.parametrize(
    ("length", "ids", "trained"),
    [
        (6, [1, 2, 3, 4, 5, 6], [False, False, False, True, True, True]),
        (99, [1, 2, 3, 4, 5, 6], [False, False, False, True, True, True]),
        (5, [1, 2, 3, 4, 5], [False, False, False, True, True]),
        (4, [1, 2, 3, 4], [False, False, False, True]),
        (3, None, None),
        (1, None, None),
    ],
)
def test_truncate(length: int, ids: list[int] | None, trained: list[bool] | None) -> None:
    whole = Encoded("x", [1, 2, 3, 4, 5, 6], [False, False, False, True, True, True])
    cut = chat.truncate(whole, length)
    assert cut == (Encoded("x", ids, trained) if ids is not None and trained is not None else None)


def test_encode_all_counts_what_it_cuts_and_drops(tokenizers: Callable[[str], Any]) -> None:
    from harness.training.rows import encode_all

    tokenizer = tokenizers("mini")
    long = conversation("Kim has 4 stamps and Sue has 5 stamps.")
    far = conversation(question="How many? " * 30)
    fits = len(chat.encode(tokenizer, conversation()).input_ids)
    kept, counts = encode_all(tokenizer, [conversation(), long, far, long], fits)
    assert counts == {"truncated_examples": 2, "dropped_examples": 1}
    assert [len(encoded.input_ids) for encoded in kept] == [fits, fits, fits]
    with pytest.raises(HarnessError, match=r"fits into max_length 8: raise training\.max_length"):
        encode_all(tokenizer, [far], 8)


def test_no_chat_template() -> None:
    tokenizer = load()
    tokenizer.chat_template = None
    with pytest.raises(HarnessError, match=r"seed_model' has no chat template; use a chat model, or put"):
        chat.prompt_ids(tokenizer, conversation().messages[:-1])


def test_an_empty_answer(tokenizers: Callable[[str], Any]) -> None:
    with pytest.raises(HarnessError, match="training example 'one' has an empty answer"):
        chat.encode(tokenizers("mini"), conversation(""))


# --- ends of turns that are text -------------------------------------------------------------------

TURNED = (  # {end} behind each answer, of a template whose next turn begins with a text
    "{{% for m in messages %}}{{% if m['role'] == 'assistant' %}}{{{{ m['content'] }}}}{end}\n"
    "{{% else %}}### {{{{ m['role'] }}}}:\n{{{{ m['content'] }}}}\n### Answer:\n{{% endif %}}{{% endfor %}}"
)


def with_end(end: str, template: str = TURNED) -> Any:
    tokenizer = load()
    tokenizer.chat_template = template.format(end=end)
    return tokenizer


@pytest.mark.parametrize(
    ("end", "answer", "kept"),
    [
        ("[/END]", "Kim has 4.[/END]", "Kim has 4."),
        ("[/END]", "Kim has 4.[/END]\n", "Kim has 4."),
        ("[/END]", "Kim has 4.[/END]\n### user:\nMore?\n### Answer:\nNo.", "Kim has 4."),
        ("[/END]", "[/END]\n### user:", ""),
        ("[/END]", "Kim [has] 4.", "Kim [has] 4."),
        (" </turn>", "Kim has 4. </turn> and more", "Kim has 4."),
        # a short text may be the answer's own: it ends it at its end, or where the next turn follows
        ("##", "Kim has 4.##", "Kim has 4."),
        ("##", "## Kim\nhas 4.", "## Kim\nhas 4."),
        ("##", "## Kim\nhas 4.##\n### user:\nMore?", "## Kim\nhas 4."),
        (".", "Kim has 4...", "Kim has 4.."),
        # white space, or the next turn's heading alone, end nothing
        ("", "Kim has 4.\n### user:\nMore?", "Kim has 4.\n### user:\nMore?"),
        ("\n\n", "Kim has 4.\n\nSo.\n\n", "Kim has 4.\n\nSo.\n\n"),
        # a token ends it already
        ("{{ eos_token }}", "Kim has 4.\n", "Kim has 4.\n"),
    ],
)
def test_an_end_of_turn_that_is_text_is_no_part_of_an_answer(end: str, answer: str, kept: str) -> None:
    form = chat.format_of(with_end(end))
    assert chat.to_end(answer, form) == kept
    assert chat.to_end(kept, form) == kept or end == "."
    assert form.text_end == ("" if "eos" in end else end.strip())


def test_a_short_end_without_a_heading_behind_it_ends_an_answer_only_at_its_end() -> None:
    template = "{{% for m in messages %}}{{{{ m['content'] }}}}{end}{{% endfor %}}"
    form = chat.format_of(with_end("##", template))
    assert form.next_turn == form.text_end == "##"
    assert chat.to_end("## Kim\nhas 4.##", form) == "## Kim\nhas 4."


def test_what_is_learnt_behind_an_answer_is_what_ends_it() -> None:
    tokenizer = with_end("[/END]")
    form = chat.format_of(tokenizer)
    learnt = trained_text(tokenizer, chat.encode(tokenizer, conversation()))
    assert learnt == f"Kim has 4 stamps.[/END]\n{tokenizer.eos_token}"
    assert chat.to_end(learnt.removesuffix(tokenizer.eos_token), form) == "Kim has 4 stamps."
    with pytest.raises(HarnessError, match="its assistant turn holds the control token '\\[/END\\]'"):
        chat.encode(tokenizer, conversation("Kim [/END] has 4 stamps."))
    assert chat.encode(with_end("##"), conversation("## Kim has 4 stamps.")).trained  # may be anyone's


def test_an_end_of_turn_that_is_an_ordinary_token_stops_an_answer() -> None:
    from harness.models import checkpoints

    tokenizer = with_end("<|im_end|>")
    assert chat.template_stops(tokenizer) == {tokenizer.eos_token_id}  # several tokens
    tokenizer.add_tokens(["<|im_end|>"])
    tokenizer.chat_template += " "
    added = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert chat.template_stops(tokenizer) == {tokenizer.eos_token_id, added}
    assert checkpoints.stop_ids(None, tokenizer) == {tokenizer.eos_token_id, added}
    tokenizer.chat_template = None
    assert checkpoints.stop_ids(None, tokenizer) == {tokenizer.eos_token_id}


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Sure.<|im_end|>", "Sure."),
        ("Sure.</s>", "Sure."),
        ("<s>Old</s>", "<s>Old</s>"),
        ("<|eot_id|>", ""),
        ("Sure. <|im_end|>\n<|endoftext|>\n", "Sure."),
        ("Sure.<|im_end|>\n<|im_start|>user\nMore?", "Sure."),
        ("Write <|im_end|> behind it.", "Write <|im_end|> behind it."),
        ("Sure. ", "Sure. "),
        ("", ""),
    ],
)
def test_known_ends_of_turns_are_cut_off_where_the_template_is_not_known(text: str, kept: str) -> None:
    assert chat.to_end(text, None) == kept


@given(
    text=st.text(), end=st.sampled_from(["[/END]", "##", "</turn>"]), blank=st.sampled_from(["", " ", "\n"])
)
@settings(max_examples=100)
def test_any_answer_before_an_end_is_kept(
    text: str, end: str, blank: str, tokenizers: Callable[[str], Any]
) -> None:
    form = FORMS.setdefault(end, chat.format_of(with_end(end)))
    assume(end not in text)
    bare = text.rstrip()
    assert chat.to_end(text, form) == text
    assert chat.to_end(f"{bare}{blank}{end}{blank}", form) == bare
    assert chat.to_end(f"{bare}{end}\n### user:\n{text}", form) == bare


FORMS: dict[str, chat.Format] = {}


# --- reasoning in prompts and tokens ---------------------------------------------------------------


def with_marks(*names: str, template: str) -> Any:
    from transformers import AddedToken

    tokenizer = load()
    tokens = [AddedToken(name, special=True, normalized=False) for name in names]
    tokenizer.add_tokens(tokens, special_tokens=True)
    tokenizer.chat_template = template
    return tokenizer


def test_marks_that_are_control_tokens_are_shown_and_no_others() -> None:
    tokenizer = with_marks("<|START_THINKING|>", "<|END_THINKING|>", "<|other|>", template=NO_END)
    text = "<|other|><|START_THINKING|>I count.<|END_THINKING|>Kim has 4.<|other|>"
    ids = chat.token_ids(tokenizer, text)
    assert chat.text_of(tokenizer, ids) == "<|START_THINKING|>I count.<|END_THINKING|>Kim has 4."
    plain = chat.token_ids(tokenizer, "Kim has 4.<|other|>")
    assert chat.text_of(tokenizer, plain) == "Kim has 4." == tokenizer.decode(plain, skip_special_tokens=True)


CHANNELS = (
    "{% for m in messages %}<|start|>{{ m['role'] }}{% if m['role'] == 'assistant' %}<|channel|>final"
    "{% endif %}<|message|>{{ m['content'] }}{% if m['role'] == 'assistant' and loop.last %}<|return|>"
    "{% else %}<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
    "{# <|channel|>analysis #}"
)


def test_a_prefill_opens_the_channel_of_answers() -> None:
    names = ("<|start|>", "<|channel|>", "<|message|>", "<|return|>")
    tokenizer = with_marks(*names, template=CHANNELS)
    turns = [Message("user", "How many?")]
    plain, answering = (chat.prompt_ids(tokenizer, turns, answering=answering) for answering in (False, True))
    assert tokenizer.decode(plain).endswith("<|start|>assistant")
    assert tokenizer.decode(answering).endswith("<|start|>assistant<|channel|>final<|message|>")
    assert chat.thinking_at(tokenizer, plain) == chat.Thinking(None, reasons=True)
    assert chat.end_of_turn_id(tokenizer) == tokenizer.convert_tokens_to_ids("<|return|>")
    said = chat.token_ids(tokenizer, "<|channel|>final<|message|>Kim has 4.")
    assert chat.text_of(tokenizer, said) == "<|channel|>final<|message|>Kim has 4."


def test_a_model_reasons_by_its_template_unless_the_prompt_says_otherwise() -> None:
    tokenizer = load()
    tokenizer.chat_template = str(tokenizer.chat_template) + "{# splits at </think> #}"
    prompt = chat.prompt_ids(tokenizer, [Message("user", "How many?")])
    assert chat.thinking_at(tokenizer, prompt) == chat.Thinking(None, reasons=True)
    assert chat.thinking_at(tokenizer, prompt, answering=True) == chat.PLAIN
    closed = prompt + chat.token_ids(tokenizer, "<think>\n\n</think>\n\n")
    assert chat.thinking_at(tokenizer, closed) == chat.PLAIN
    assert chat.thinking_at(load(), prompt) == chat.PLAIN
