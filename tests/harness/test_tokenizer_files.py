"""A loaded tokenizer gives the ids of its own file, or of its SentencePiece model, or is refused."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import tokenizer_files
from harness.contracts import HarnessError
from harness.mini import data, seed_model_path
from harness.models import checkpoints
from tasks import prefill

SHARED = Path(__file__).parents[3] / "shared" / "data"
LLAMA = SHARED / "llama2-tokenizer"
PIECES = ["<unk>", "<s>", "</s>", "▁", "a", "b", "c", "▁a", "▁b", "ab", "▁ab"]
IDS = {piece: i for i, piece in enumerate(PIECES)}
MERGES = [["▁", "a"], ["▁", "b"], ["a", "b"], ["▁a", "b"]]


def token(content: str, number: int | None = None, **flags: Any) -> dict[str, Any]:
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    return {"content": content, **plain, **({} if number is None else {"id": number}), **flags}


LLAMA_LIKE = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [token(PIECES[i], i) for i in range(3)],
    "normalizer": {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ],
    },
    "pre_tokenizer": None,
    "post_processor": None,
    "decoder": {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
    },
    "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "vocab": IDS, "merges": MERGES},
}
CONFIG = {
    "tokenizer_class": "LlamaTokenizer",
    "legacy": False,
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
}


def write(folder: Path, files: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value), encoding="utf-8")
    return folder


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A small tokenizer as Llama 2's is published."""
    return write(tmp_path / "llama", {"tokenizer.json": LLAMA_LIKE, "tokenizer_config.json": CONFIG})


def ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def of_file(folder: Path, texts: list[str]) -> list[list[int]]:
    from tokenizers import Tokenizer

    own = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return [one.ids for one in own.encode_batch(texts, add_special_tokens=False)]


def named(*pieces: str) -> list[int]:
    return [IDS[piece] for piece in pieces]


# --- tokenizer.json --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"legacy": True},
        {"legacy": None},
        {"tokenizer_class": "LlamaTokenizerFast"},
        {"tokenizer_class": "PreTrainedTokenizerFast"},
        {"tokenizer_class": "GPT2Tokenizer"},
        {"tokenizer_class": "Qwen2Tokenizer"},
        {"tokenizer_class": "GemmaTokenizer"},
        {"tokenizer_class": "Nobody'sTokenizer"},
        {"add_prefix_space": False},
        {"split_special_tokens": True},
        {"do_lower_case": True},
        {"added_tokens_decoder": {"2": token("</s>", lstrip=True, rstrip=True)}},
        {"added_tokens_decoder": {"1": token("<s>", normalized=True)}},
    ],
    ids=lambda changes: json.dumps(changes)[:50],
)
def test_the_ids_are_the_files_whatever_the_configuration_says(changes: dict[str, Any], llama: Path) -> None:
    write(llama, {"tokenizer_config.json": {**CONFIG, **changes}})
    loaders = checkpoints.load_tokenizer, lambda path: prefill.load_tokenizer("t", {"tokenizer": str(path)})
    for load in loaders:
        tokenizer = load(llama)
        # By hand: each run of text between control tokens opens with a blank of its own.
        assert ids(tokenizer, "<s>ab") == named("<s>", "▁ab")
        assert ids(tokenizer, "<s> ab</s> a</s>b") == named(
            "<s>", "▁", "▁ab", "</s>", "▁", "▁a", "</s>", "▁b"
        )
        assert tokenizer.decode(ids(tokenizer, "ab a")) == "ab a"
        texts = [*tokenizer_files.PROBE, " <s>", "a </s> b", "<s></s>"]
        assert [ids(tokenizer, text) for text in texts] == of_file(llama, texts)


@settings(max_examples=50, deadline=None)
@given(texts=st.lists(st.text(alphabet="ab c\n▁é")), marker=st.sampled_from(["<s>", "</s>", ""]))
def test_any_text_has_the_files_ids(
    texts: list[str], marker: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("any") / "llama"
    write(folder, {"tokenizer.json": LLAMA_LIKE, "tokenizer_config.json": CONFIG})
    text = marker.join(texts)
    assert [ids(checkpoints.load_tokenizer(folder), text)] == of_file(folder, [text])


def test_a_file_that_lowers_cuts_and_pads_is_followed_in_what_it_says_of_ids(tmp_path: Path) -> None:
    cut = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    fixed = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0}
    padded = {**fixed, "pad_type_id": 0, "pad_token": "<unk>"}
    value = {**LLAMA_LIKE, "normalizer": {"type": "Lowercase"}, "truncation": cut, "padding": padded}
    write(tmp_path, {"tokenizer.json": value, "tokenizer_config.json": CONFIG})
    assert ids(checkpoints.load_tokenizer(tmp_path), "ABABc") == named("ab", "ab", "c")


def test_what_is_saved_has_the_same_ids_for_any_program(llama: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    checkpoints.load_tokenizer(llama).save_pretrained(tmp_path / "saved")
    write(tmp_path / "saved", {"config.json": {"model_type": "llama"}})
    texts = ["<s>ab", "<s> ab</s>b", " a", *tokenizer_files.PROBE]
    for tokenizer in (
        AutoTokenizer.from_pretrained(tmp_path / "saved"),
        checkpoints.load_tokenizer(tmp_path / "saved"),
    ):
        assert [ids(tokenizer, text) for text in texts] == of_file(llama, texts)
        assert tokenizer.eos_token_id == 2


def test_it_is_told_once_that_another_class_is_not_followed(
    llama: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        checkpoints.load_tokenizer(llama)
        checkpoints.load_tokenizer(seed_model_path())
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        f"{llama}: its ids are those of its tokenizer.json; transformers' LlamaTokenizer gives others"
    ]


def test_a_class_in_python_is_not_followed_either(tmp_path: Path) -> None:
    shutil.copy(seed_model_path() / "tokenizer.json", tmp_path)
    config = json.loads((seed_model_path() / "tokenizer_config.json").read_text(encoding="utf-8"))
    write(tmp_path, {"tokenizer_config.json": {**config, "tokenizer_class": "ByT5Tokenizer"}})
    texts = ["Kim has 4 stamps.", *tokenizer_files.PROBE]
    tokenizer = checkpoints.load_tokenizer(tmp_path)
    assert [ids(tokenizer, text) for text in texts] == of_file(tmp_path, texts)


def test_what_still_differs_is_one_line(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import PreTrainedTokenizerFast

    true = PreTrainedTokenizerFast._encode_plus

    def drops(self: Any, text: Any, **how: Any) -> Any:
        found = true(self, text, **how)
        found["input_ids"][3] = found["input_ids"][3][1:]
        return found

    monkeypatch.setattr(PreTrainedTokenizerFast, "_encode_plus", drops)
    with pytest.raises(
        HarnessError, match=r"other ids than its tokenizer.json \(text 3 of the probe"
    ) as told:
        checkpoints.load_tokenizer(llama)
    assert str(llama) in str(told.value)
    assert "\n" not in str(told.value)


# --- added tokens ----------------------------------------------------------------------------------

NEW = len(PIECES)


@pytest.mark.parametrize(
    ("files", "tokens"),
    [
        ({"tokenizer_config.json": {**CONFIG, "added_tokens_decoder": {str(NEW): token("<x>")}}}, ["<x>"]),
        (
            {
                "tokenizer_config.json": {
                    **CONFIG,
                    "added_tokens_decoder": {
                        str(NEW + 1): token("<think>", special=False),
                        str(NEW): token("<x>"),
                        str(NEW + 2): token("<y>"),
                        "1": token("<s>"),
                    },
                }
            },
            ["<x>", "<think>", "<y>"],
        ),
        ({"added_tokens.json": {"<x>": NEW, "<y>": NEW + 1}}, ["<x>", "<y>"]),
        ({"tokenizer_config.json": {**CONFIG, "pad_token": "<pad>"}}, ["<pad>"]),
        ({"special_tokens_map.json": {"additional_special_tokens": ["<x>", "<y>"]}}, ["<x>", "<y>"]),
    ],
    ids=["config", "config, mixed", "added_tokens.json", "pad_token", "map"],
)
def test_tokens_that_only_other_files_declare_are_met_in_texts(
    files: dict[str, Any], tokens: list[str], llama: Path, tmp_path: Path
) -> None:
    write(llama, files)
    tokenizer = checkpoints.load_tokenizer(llama)
    tokenizer.save_pretrained(tmp_path / "saved")
    for one in (tokenizer, checkpoints.load_tokenizer(tmp_path / "saved")):
        for i, content in enumerate(tokens):
            assert one.convert_tokens_to_ids(content) == NEW + i
            assert ids(one, f"ab{content}ab") == [*named("▁ab"), NEW + i, *named("▁ab")]
        assert ids(one, "<s>ab") == named("<s>", "▁ab")
        assert len(one) == NEW + len(tokens)


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config.json": {**CONFIG, "added_tokens_decoder": {str(NEW + 5): token("<x>")}}},
        {"added_tokens.json": {"<x>": NEW + 1, "<y>": NEW + 2}},
    ],
)
def test_a_token_that_cannot_have_its_id_is_one_line(files: dict[str, Any], llama: Path) -> None:
    write(llama, files)
    with pytest.raises(HarnessError, match=r"its added token '<x>' is declared as 1[26], and is 11 ") as told:
        checkpoints.load_tokenizer(llama)
    assert str(told.value).startswith(str(llama))


def test_a_token_of_the_file_is_special_where_the_configuration_says_so(llama: Path) -> None:
    tokens = [token(PIECES[i], i) for i in range(3)]
    tokens[2] |= {"special": False, "rstrip": True}
    write(llama, {"tokenizer.json": {**LLAMA_LIKE, "added_tokens": tokens}})
    tokenizer = checkpoints.load_tokenizer(llama)
    assert ids(tokenizer, "ab</s>   ab") == of_file(llama, ["ab</s>   ab"])[0] == named("▁ab", "</s>", "▁ab")
    assert tokenizer.decode(named("▁ab", "</s>"), skip_special_tokens=True) == "ab"


# --- folders without tokenizer.json ----------------------------------------------------------------


def sentencepiece_folder(folder: Path, tokenizer_class: str, **options: Any) -> Path:
    sentencepiece = pytest.importorskip("sentencepiece")
    texts = [text for row in [*data.gsm8k("train", 300), *data.samsum("train", 300)] for text in row.values()]
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=made, vocab_size=500, model_type="bpe", minloglevel=3,
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, **options,
    )  # fmt: skip
    write(folder, {"tokenizer_config.json": {"tokenizer_class": tokenizer_class}})
    (folder / "tokenizer.model").write_bytes(made.getvalue())
    return folder


def test_a_sentencepiece_folder_that_is_converted_wrongly_is_refused(tmp_path: Path) -> None:
    folder = sentencepiece_folder(tmp_path / "wrong", "LlamaTokenizer")
    with pytest.raises(HarnessError, match=r"other ids than sentencepiece to \d+ of [\d,]+ texts") as told:
        checkpoints.load_tokenizer(folder)
    assert str(told.value).startswith(f"{folder}: ")
    assert "put the tokenizer.json" in str(told.value)
    with pytest.raises(HarnessError, match="other ids than sentencepiece"):
        prefill.load_tokenizer("t", {"tokenizer": str(folder)})


def test_a_sentencepiece_folder_that_is_converted_right_is_taken(tmp_path: Path) -> None:
    folder = sentencepiece_folder(tmp_path / "right", "GemmaTokenizer", add_dummy_prefix=False, pad_id=3)
    model = sys.modules["sentencepiece"].SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    texts = [text for row in [*data.gsm8k("test", 50), *data.samsum("test", 50)] for text in row.values()]
    assert checkpoints.load_tokenizer(folder)(texts, add_special_tokens=False)["input_ids"] == model.encode(
        texts
    )
    (folder / "tokenizer_config.json").unlink()  # the model alone
    assert checkpoints.tokenizer_folder(str(folder)) == folder
    assert checkpoints.load_tokenizer(folder)(texts, add_special_tokens=False)["input_ids"] == model.encode(
        texts
    )


def test_each_merge_of_a_sentencepiece_model_is_looked_at(tmp_path: Path) -> None:
    folder = sentencepiece_folder(tmp_path / "right", "GemmaTokenizer", add_dummy_prefix=False, pad_id=3)
    model = sys.modules["sentencepiece"].SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    texts = tokenizer_files._vocabulary_texts(model)
    seen = {piece for text in texts for piece in model.encode(text)}
    words = {i for i in range(500) if not (model.is_byte(i) or model.is_control(i) or model.is_unknown(i))}
    assert len(words) > 200
    assert len(seen & words) > 0.95 * len(words)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (
            lambda folder, patch: patch.setitem(sys.modules, "sentencepiece", None),
            "pip install sentencepiece",
        ),
        (lambda folder, _: (folder / "tokenizer.model").write_bytes(b"junk" * 99), "no SentencePiece model"),
        (lambda folder, _: (folder / "tokenizer.model").write_bytes(b""), "no SentencePiece model"),
        (lambda folder, _: (folder / "other.model").write_bytes(b"x"), "2 files"),
    ],
    ids=["no package", "junk", "empty", "two"],
)
def test_a_sentencepiece_folder_that_cannot_be_compared_is_one_line(
    damage: Any, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = sentencepiece_folder(tmp_path / "m", "GemmaTokenizer", add_dummy_prefix=False, pad_id=3)
    damage(folder, monkeypatch)
    with pytest.raises(HarnessError, match=says) as told:
        checkpoints.load_tokenizer(folder)
    assert str(folder) in str(told.value)
    assert "the tokenizer.json that the model was published with" in str(told.value)
    assert "\n" not in str(told.value)


def test_a_vocabulary_and_merges_alone_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, {"vocab.json": {"<|endoftext|>": 0, "a": 1, "b": 2, "ab": 3}})
    write(tmp_path, {"tokenizer_config.json": {"tokenizer_class": "GPT2Tokenizer"}})
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n", encoding="utf-8")
    assert ids(checkpoints.load_tokenizer(tmp_path), "ab") == [3]
    assert f"{tmp_path}: no tokenizer.json" in caplog.text


def test_a_tokenizer_alone_is_no_model(llama: Path) -> None:
    assert checkpoints.tokenizer_folder(str(llama)) == llama
    with pytest.raises(HarnessError, match="a tokenizer alone, where a model is wanted"):
        checkpoints.locate(str(llama))


# --- the real one ----------------------------------------------------------------------------------


@pytest.mark.requires_shared_data
def test_llama_2_on_every_real_text(tmp_path: Path) -> None:
    """Equal to its file and to SentencePiece; a folder with the SentencePiece model alone is refused."""
    sentencepiece = pytest.importorskip("sentencepiece")
    model = sentencepiece.SentencePieceProcessor(model_file=str(LLAMA / "tokenizer.model"))
    tokenizer = checkpoints.load_tokenizer(LLAMA)
    rows = [
        json.loads(line)
        for name in ("train", "test")
        for line in (SHARED / "gsm8k" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    rows += json.loads((SHARED / "samsum" / "test200.json").read_text(encoding="utf-8"))
    texts = [row[key] for row in rows for key in ("question", "answer", "dialogue", "summary") if key in row]
    assert len(texts) == 2 * (7473 + 1319 + 200)
    wanted = model.encode(texts)
    assert tokenizer(texts, add_special_tokens=False)["input_ids"] == wanted
    opened = tokenizer([f"<s>{text}" for text in texts], add_special_tokens=False)["input_ids"]
    assert opened == [[1, *one] for one in wanted]
    assert ids(tokenizer, "<s>[INST]") == [1, 518, 25580, 29962]
    for names in (["tokenizer.model"], ["tokenizer.model", "tokenizer_config.json"]):
        for name in names:
            shutil.copy(LLAMA / name, tmp_path)
        with pytest.raises(HarnessError, match="other ids than sentencepiece"):
            checkpoints.load_tokenizer(tmp_path)
