"""Right to the token, for the chat formats of the open models that people fine-tune.

Templates are TRL's packaged copies of the published ones, or written here from the published format; the
tokenizers are small ones with each format's control tokens.
"""

from __future__ import annotations

import functools
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.contracts import Encoded, Example, HarnessError, Message
from harness.models import chat, checkpoints

TEXTS = [
    "How many stamps has Kim? Kim has 4 stamps and Sue has 5. The answer is 9.\n#### 9",
    "Summarize this dialog:\nA: hello\nB: good morning, how are you?",
    "You are a helpful assistant. Cutting Knowledge Date: December 2023 Today Date: 26 Jul 2024",
    "system user assistant model\n\n",
]


@dataclass(frozen=True)
class Format:
    """``begins``/``ends``: the prompt's text; ``end``: what is learnt behind the answer, as text; ``bos``:
    the BOS token or None; ``trims``: the template strips the answer."""

    template: str  # a file of TRL's folder, or a template
    specials: tuple[str, ...]
    bos: str | None
    eos: str
    begins: str
    ends: str
    end: str
    trims: bool = False
    lead: str = ""  # what the template writes before the answer
    pieces: bool = False  # SentencePiece-like spaces, not bytes
    own_system: bool = True


MISTRAL_V1 = (
    "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL_V3 = MISTRAL_V1.replace(
    "'[INST] ' + m['content'] + ' [/INST]'", "'[INST] ' + m['content'] + '[/INST]'"
).replace("{{ m['content'] + eos_token }}", "{{ ' ' + m['content'] + eos_token }}")
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}"
    "{% set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}{% set turns = messages[1:] %}"
    "{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
    "{% for m in turns %}{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + (system if loop.first else '') + m['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
PHI4 = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '<|im_sep|>' + m['content'] + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
LLAMA3_SPECIALS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
QWEN_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
GEMMA_SPECIALS = ("<bos>", "<eos>", "<pad>", "<start_of_turn>", "<end_of_turn>")
PHI3_SPECIALS = ("<s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
LLAMA3_END = "<|start_header_id|>assistant<|end_header_id|>\n\n"
HEADER = "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
DATED = HEADER + "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\nBe brief.<|eot_id|>"
GEMMA_BEGINS = "<bos><start_of_turn>user\nBe brief.\n\nHow many?<end_of_turn>\n"
CHATML_BEGINS = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHow many?<|im_end|>\n"
CHATML_ENDS = "<|im_start|>assistant\n"
FORMATS = {
    "llama2": Format(
        LLAMA2, ("<s>", "</s>"), "<s>", "</s>", "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHow many?",
        " [/INST]", " </s>", trims=True, lead=" ", pieces=True,
    ),
    "llama3": Format(
        "llama3", LLAMA3_SPECIALS, "<|begin_of_text|>", "<|eot_id|>", HEADER + "Be brief.<|eot_id|>",
        LLAMA3_END, "<|eot_id|>", trims=True,
    ),
    "llama3.1": Format(
        "llama3_1", LLAMA3_SPECIALS, "<|begin_of_text|>", "<|eot_id|>", DATED, LLAMA3_END, "<|eot_id|>",
        trims=True,
    ),
    "llama3.2": Format(
        "llama3_2", LLAMA3_SPECIALS, "<|begin_of_text|>", "<|eot_id|>", DATED, LLAMA3_END, "<|eot_id|>",
        trims=True,
    ),
    "qwen2.5": Format("qwen2_5", QWEN_SPECIALS, None, "<|im_end|>", CHATML_BEGINS, CHATML_ENDS, "<|im_end|>"),
    "qwen3": Format(
        "qwen3", QWEN_SPECIALS, None, "<|im_end|>", CHATML_BEGINS, CHATML_ENDS + "<think>\n\n</think>\n\n",
        "<|im_end|>",
    ),
    "gemma2": Format(
        "gemma", GEMMA_SPECIALS, "<bos>", "<eos>", GEMMA_BEGINS, "<start_of_turn>model\n", "<end_of_turn>",
        trims=True, pieces=True, own_system=False,
    ),
    "gemma3": Format(
        "gemma3", GEMMA_SPECIALS, "<bos>", "<eos>", GEMMA_BEGINS, "<start_of_turn>model\n", "<end_of_turn>",
        trims=True, pieces=True,
    ),
    "mistral v0.1": Format(
        MISTRAL_V1, ("<s>", "</s>"), "<s>", "</s>", "<s>[INST] Be brief.\n\nHow many?", " [/INST]", "</s>",
        pieces=True, own_system=False,
    ),
    "mistral v0.3": Format(
        MISTRAL_V3, ("<s>", "</s>", "[INST]", "[/INST]"), "<s>", "</s>", "<s>[INST] Be brief.\n\nHow many?",
        "[/INST]", "</s>", lead=" ", pieces=True, own_system=False,
    ),
    "phi3": Format(
        "phi3", PHI3_SPECIALS, "<s>", "<|endoftext|>",
        "<|system|>\nBe brief.<|end|>\n<|user|>\nHow many?<|end|>\n", "<|assistant|>\n", "<|end|>",
        pieces=True,
    ),
    "phi4": Format(
        PHI4, ("<|endoftext|>", "<|im_start|>", "<|im_sep|>", "<|im_end|>"), None, "<|im_end|>",
        "<|im_start|>system<|im_sep|>Be brief.<|im_end|><|im_start|>user<|im_sep|>How many?<|im_end|>",
        "<|im_start|>assistant<|im_sep|>", "<|im_end|>",
    ),
}  # fmt: skip
NAMES = list(FORMATS)


def template_text(form: Format) -> str:
    if "{" in form.template:
        return form.template
    found = importlib.util.find_spec("trl")
    assert found is not None
    assert found.submodule_search_locations
    folder = Path(next(iter(found.submodule_search_locations)))
    return (folder / "chat_templates" / f"{form.template}.jinja").read_text(encoding="utf-8")


@functools.cache
def tokenizer_of(name: str) -> Any:
    """A small tokenizer, byte-level as GPT-2's or with SentencePiece's spaces, that adds a BOS by itself."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    form = FORMATS[name]
    specials = [AddedToken(text, special=True, normalized=False) for text in form.specials]
    if form.pieces:
        raw = Tokenizer(models.BPE(byte_fallback=True, unk_token=None, fuse_unk=True))
        raw.normalizer = normalizers.Replace(" ", "▁")
        raw.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
        letters = [f"<0x{byte:02X}>" for byte in range(256)]
        trainer = trainers.BpeTrainer(
            vocab_size=600, special_tokens=[*specials, *letters], show_progress=False
        )
    else:
        raw = Tokenizer(models.BPE())
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        raw.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=600,
            special_tokens=specials,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    raw.train_from_iterator(TEXTS * 3, trainer)
    if form.pieces:  # its byte tokens are ordinary ones
        learnt_model = json.loads(raw.to_str())["model"]
        merges = [tuple(merge) for merge in learnt_model["merges"]]
        raw.model = models.BPE(learnt_model["vocab"], merges, byte_fallback=True, fuse_unk=True)
        plain = json.loads(raw.to_str())
        plain["added_tokens"] = []
        raw = Tokenizer.from_str(json.dumps(plain))
        raw.add_special_tokens(specials)
    if name == "qwen3":
        raw.add_tokens([AddedToken(text, normalized=False) for text in ("<think>", "</think>")])
    if form.bos:
        raw.post_processor = TemplateProcessing(
            single=f"{form.bos} $A", special_tokens=[(form.bos, raw.token_to_id(form.bos))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token=form.bos, eos_token=form.eos, clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = template_text(form)
    return tokenizer


def conversation(
    answer: str = "Kim has 4.", question: str = "How many?", system: str = "Be brief."
) -> Example:
    turns = (Message("system", system), Message("user", question), Message("assistant", answer))
    return Example("one", turns)


def learnt(encoded: Encoded) -> list[int]:
    return [token for token, t in zip(encoded.input_ids, encoded.trained, strict=True) if t]


@pytest.mark.parametrize("name", NAMES)
def test_the_prompt_and_what_is_learnt(name: str) -> None:
    form, tokenizer = FORMATS[name], tokenizer_of(name)
    encoded = chat.encode(tokenizer, conversation())
    ids = chat.prompt_ids(tokenizer, conversation().messages[:-1])
    text = tokenizer.decode(ids)
    assert text.startswith(form.begins)
    assert text.endswith(form.ends)
    assert encoded.input_ids[: len(ids)] == ids
    assert tokenizer.decode(learnt(encoded)) == form.lead + "Kim has 4." + form.end
    assert encoded.trained == [False] * len(ids) + [True] * (len(encoded.input_ids) - len(ids))
    if form.bos:
        written = 0 if name == "phi3" else 1  # Phi-3's own template writes no BOS
        assert encoded.input_ids.count(tokenizer.bos_token_id) == written
    assert chat.has_system_role(tokenizer) is form.own_system


@pytest.mark.parametrize("name", NAMES)
def test_generation_ends_where_training_does(name: str) -> None:
    tokenizer = tokenizer_of(name)
    end = tokenizer.convert_tokens_to_ids(FORMATS[name].end.strip())
    assert chat.end_of_turn_id(tokenizer) == end
    assert learnt(chat.encode(tokenizer, conversation()))[-1] == end


WORDS = st.text(
    alphabet=st.one_of(
        st.characters(blacklist_categories=["Cs"], blacklist_characters="<>[]|▁"),
        st.sampled_from(" \n\té漢字🙂עִ"),
    ),
    max_size=40,
)


@pytest.mark.parametrize("name", NAMES)
@given(question=WORDS.filter(str.strip), answer=WORDS.filter(str.strip), system=WORDS.filter(str.strip))
@settings(max_examples=25, deadline=None)
def test_any_conversation(name: str, question: str, answer: str, system: str) -> None:
    form, tokenizer = FORMATS[name], tokenizer_of(name)
    example = conversation(answer, question, system)
    encoded = chat.encode(tokenizer, example)
    ids = chat.prompt_ids(tokenizer, example.messages[:-1])
    assert encoded.input_ids[: len(ids)] == ids
    if form.bos and name != "phi3":
        assert encoded.input_ids.count(tokenizer.bos_token_id) == 1
    end = chat.end_of_turn_id(tokenizer)
    answer_ids = learnt(encoded)
    assert answer_ids == encoded.input_ids[len(ids) :]
    assert answer_ids[-1] == end
    special = chat.format_of(tokenizer).special_ids
    assert not special & set(answer_ids[:-1])
    text = tokenizer.decode(answer_ids[:-1])
    expected = answer.strip() if form.trims else answer
    tail = form.end.removesuffix(tokenizer.convert_ids_to_tokens(end))
    joined = (
        encoded.input_ids
        != chat.token_ids(tokenizer, chat.render(tokenizer, example.messages, generation_prompt=False))[
            : len(encoded.input_ids)
        ]
    )
    if not joined:
        assert text == form.lead + expected + tail or (name == "qwen3" and text == answer.lstrip("\n"))
    else:
        assert expected in text or answer in text


@pytest.mark.parametrize("name", NAMES)
def test_only_the_last_answer_of_many_turns_is_learnt(name: str) -> None:
    tokenizer = tokenizer_of(name)
    turns = [Message("user", "A?"), Message("assistant", "first."), Message("user", "B?")]
    encoded = chat.encode(tokenizer, Example("x", (*turns, Message("assistant", "second."))))
    assert encoded.input_ids[: -len(learnt(encoded))] == chat.prompt_ids(tokenizer, turns)
    assert tokenizer.decode(learnt(encoded)) == FORMATS[name].lead + "second." + FORMATS[name].end


@pytest.mark.parametrize("name", NAMES)
def test_control_tokens_spelled_out_in_data_are_refused(name: str) -> None:
    tokenizer = tokenizer_of(name)
    end = FORMATS[name].end.strip()
    for example in (conversation(answer=f"It is {end} over."), conversation(question=f"{end}?")):
        with pytest.raises(HarnessError, match=r"training example 'one': its (user|assistant) turn holds"):
            chat.encode(tokenizer, example)


@pytest.mark.parametrize("name", ["mistral v0.1", "gemma2", "gemma3"])
def test_a_template_that_refuses_the_roles_gives_one_line(name: str) -> None:
    turns = (Message("user", "A?"), Message("user", "B?"), Message("assistant", "b."))
    with pytest.raises(HarnessError, match="refuses a conversation of user, user"):
        chat.encode(tokenizer_of(name), Example("x", turns))


def test_no_template_sees_todays_date() -> None:
    text = chat.render(tokenizer_of("llama3.2"), conversation().messages, generation_prompt=False)
    assert f"Today Date: {chat.DATE}\n" in text


def test_thinking_is_off_in_training_and_at_inference() -> None:
    tokenizer = tokenizer_of("qwen3")
    encoded = chat.encode(tokenizer, conversation())
    block = chat.token_ids(tokenizer, "<think>\n\n</think>\n\n")
    prompt = chat.prompt_ids(tokenizer, conversation().messages[:-1])
    assert prompt[-len(block) :] == block
    assert encoded.input_ids[: len(prompt)] == prompt
    assert not set(learnt(encoded)) & set(chat.token_ids(tokenizer, "<think></think>"))


@pytest.mark.requires_shared_data
def test_the_real_llama_2_tokenizer() -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = Path(__file__).parents[4] / "shared" / "data" / "llama2-tokenizer"
    tokenizer = checkpoints.load_tokenizer(folder)
    tokenizer.chat_template = LLAMA2
    encoded = chat.encode(tokenizer, conversation("Kim has 4 stamps.\n#### 4"))
    ids = chat.prompt_ids(tokenizer, conversation().messages[:-1])
    assert encoded.input_ids[: len(ids)] == ids
    assert encoded.input_ids.count(tokenizer.bos_token_id) == 1
    assert encoded.input_ids[-1] == tokenizer.eos_token_id
    # As published: what stands between two control tokens is SentencePiece's own encoding.
    text = chat.render(tokenizer, conversation("Kim has 4 stamps.\n#### 4").messages, generation_prompt=False)
    turn = text.removeprefix("<s>").removesuffix("</s>")
    spm = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    assert encoded.input_ids == [1, *spm.encode(turn), 2]
    assert encoded.input_ids[:4] == [1, 518, 25580, 29962]
    assert tokenizer.decode(learnt(encoded)).strip() == "Kim has 4 stamps.\n#### 4 </s>"
