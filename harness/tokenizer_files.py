"""A tokenizer as it was published: its ids are those of its own tokenizer.json.

transformers builds some classes anew from a file's vocabulary and merges, and leaves out the rest of it:
Llama 2's ``<s>[INST]`` becomes 1, 29961 where the file, SentencePiece and the paper's runs have 1, 518. So
the file itself is what encodes here, and a probe of texts compares what was loaded with it. A folder that
has a SentencePiece model alone is compared with the ``sentencepiece`` package, and refused where transformers
has converted it into something else.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.contracts import HarnessError
from harness.mini import data
from harness.text import one_line
from harness.tokenizing import guarded, panics_told

FILE = "tokenizer.json"
CONFIG = "tokenizer_config.json"
ADDED = "added_tokens.json"
FLAGS = ("single_word", "lstrip", "rstrip", "normalized")
SENTENCEPIECE = "*.model"
DOWNLOADED = ("*.json", "*.model", "*.jinja", "*.txt", "additional_chat_templates/*.jinja")
PROBE = (
    "Hello",
    " hello",
    "  two blanks, and one behind ",
    "\n\nlines\n  and\ttabs\r\n",
    "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHow many stamps has Kim? [/INST] Kim has 4. ",
    "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n",
    "<start_of_turn>user\nHello<end_of_turn>\n<start_of_turn>model\n",
    "### Instruction:\nAdd them.\n\n### Response:",
    "Kim buys 12 boxes of 48 pens at $1,250.75 each: 12 * 48 = 576, or 3/4 of 768.\n#### 576",
    "<<12*48=576>>576; 20% off; 2e-5; 0.001; -7; \N{MINUS SIGN}7; 1000000",
    "I'm sure they're here, aren't they? WE'LL SEE; don't.",
    "def f(x: int) -> int:\n    return {'a': [x ** 2, None]}[\"a\"][0]  # done\n",
    "Zo\N{LATIN SMALL LETTER E WITH DIAERESIS} et Zoe\N{COMBINING DIAERESIS}",
    "\N{LATIN SMALL LIGATURE FI}n, \N{FULLWIDTH LATIN CAPITAL LETTER A}",
    "\N{CYRILLIC CAPITAL LETTER DE}\N{CYRILLIC SMALL LETTER A} \N{ARABIC LETTER BEH} "
    "\N{DEVANAGARI LETTER KA} \N{CJK UNIFIED IDEOGRAPH-4F60}\N{CJK UNIFIED IDEOGRAPH-597D} "
    "\N{HANGUL SYLLABLE HAN}",
    "\N{GRINNING FACE} \N{NO-BREAK SPACE}\N{ZERO WIDTH JOINER}\N{REPLACEMENT CHARACTER}\N{EM DASH}"
    "\N{LOWER ONE EIGHTH BLOCK}x",
)  # fmt: skip
_MARKERS = 8  # added tokens that are probed: so many of the first and of the last
_TEMPLATE = 4_000  # characters of a chat template's source
_ROWS = 200  # rows of each task of the mini world
_PIECES = 8_000  # entries of a SentencePiece vocabulary
_JOINED = 8  # of them in one text


def folder_of(source: str, revision: str) -> Path:
    """The folder of a tokenizer: a local one, or what the hub has under a name."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(source, revision=revision, allow_patterns=list(DOWNLOADED)))


def load(folder: Path) -> Any:
    """A folder's tokenizer, guarded (tokenizing.py), with the ids of its own file.

    Raises HarnessError where it gives others, or cannot be compared though there is what to compare it with.
    """
    from transformers import AutoTokenizer

    with panics_told(str(folder)):
        whole = (folder / FILE).is_file()
        pieces = None if whole else _sentencepiece(folder)
        loaded = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        if whole:
            loaded = _as_in_file(loaded, folder)
        elif pieces is not None:
            _check_sentencepiece(loaded, folder, pieces)
        else:
            _tell(f"{folder}: no {FILE}; its ids are as transformers makes them, and compared with nothing")
        return guarded(loaded)


def _as_in_file(loaded: Any, folder: Path) -> Any:
    """The loaded tokenizer, encoding and decoding with the file itself.

    What its configuration says of special tokens, and of what is put around a text, stays.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    file = Tokenizer.from_file(str(folder / FILE))
    file.no_truncation()
    file.no_padding()
    _add_declared(file, getattr(loaded, "added_tokens_decoder", {}), folder)
    texts = probe(file, getattr(loaded, "chat_template", None))
    wanted = [one.ids for one in file.encode_batch(texts, add_special_tokens=False)]
    own = _first_other(loaded, texts, wanted) is None
    if not isinstance(loaded, PreTrainedTokenizerFast):
        if own:
            return loaded
        loaded = PreTrainedTokenizerFast.from_pretrained(folder, trust_remote_code=False)
    file.post_processor = loaded._tokenizer.post_processor
    loaded._tokenizer = file
    loaded.split_special_tokens = False
    if not own:
        _tell(
            f"{folder}: its ids are those of its {FILE}; transformers' {type(loaded).__name__} gives others"
        )
        # Saved under this name, it is read from its file again, by any program.
        loaded.__class__ = type("TokenizersBackend", (type(loaded),), {"__module__": type(loaded).__module__})
    other = _first_other(loaded, texts, wanted)
    if other is not None:
        raise HarnessError(
            f"{folder}: the loaded tokenizer gives other ids than its {FILE} (text {other} of the probe, "
            f"from 0); set tokenizer_class in {CONFIG} to PreTrainedTokenizerFast"
        )
    return loaded


def _add_declared(file: Any, held: dict[int, Any], folder: Path) -> None:
    """Add to a file's tokenizer the tokens (``held``, by id) that only other files declare. A token that both
    have is matched as the file says; it is special where either says so."""
    declared = dict(_in_config(folder))
    bare = _in_added(folder).keys() - declared.keys()
    known = {token.content: token for token in file.get_added_tokens_decoder().values()}
    vocabulary = file.get_vocab()
    new = []
    for _, token in sorted(held.items()):
        mine = known.get(token.content)
        if mine is None:
            # Of added_tokens.json, which says nothing of it, the text as it stands is meant.
            new.append(_flagged(token, token, normalized=False) if token.content in bare else token)
        elif token.special and not mine.special:
            new.append(_flagged(token, mine, special=True))
    for special, tokens in itertools.groupby(new, key=lambda token: bool(token.special)):
        (file.add_special_tokens if special else file.add_tokens)(list(tokens))
    for content, number in (_in_added(folder) | declared).items():
        if content not in vocabulary and file.token_to_id(content) not in (None, number):
            raise HarnessError(
                f"{folder}: its added token '{one_line(content)[:40]}' is declared as {number}, and is "
                f"{file.token_to_id(content)} behind the tokens of {FILE}; save the tokenizer with all of "
                "its added tokens"
            )


def _flagged(token: Any, flags: Any, **changed: bool) -> Any:
    """An added token with the flags of another, and changes to them."""
    from tokenizers import AddedToken

    given = {name: getattr(flags, name) for name in FLAGS} | {"special": token.special} | changed
    return AddedToken(token.content, **given)


def _in_config(folder: Path) -> Iterator[tuple[str, int]]:
    """(added token, id) as tokenizer_config.json says."""
    for number, token in _object(folder / CONFIG, "added_tokens_decoder").items():
        content = token.get("content") if isinstance(token, dict) else token
        if isinstance(content, str) and number.isdecimal():
            yield content, int(number)


def _in_added(folder: Path) -> dict[str, int]:
    """The id of each added token, as added_tokens.json says."""
    return {content: number for content, number in _object(folder / ADDED).items() if isinstance(number, int)}


def _object(path: Path, *keys: str) -> dict[str, Any]:
    """The object of a JSON file, or under keys in it; an empty one where there is none."""
    value = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def probe(file: Any, template: Any) -> list[str]:
    """The texts on which a loaded tokenizer is compared with its file: those of every tokenizer, the source
    of its chat template, and its added tokens in front of, between and behind words."""
    contents = [token.content for _, token in sorted(file.get_added_tokens_decoder().items())]
    markers = dict.fromkeys(contents[:_MARKERS] + contents[-_MARKERS:])
    return [
        *PROBE,
        *([template[:_TEMPLATE]] if isinstance(template, str) else []),
        *(f"{marker}[INST] Hello{marker} there {marker}\n12{marker}" for marker in markers),
    ]


def _first_other(loaded: Any, texts: Sequence[str], wanted: Sequence[list[int]]) -> int | None:
    """The first text to which a tokenizer gives other ids than the wanted ones."""
    found = loaded(list(texts), add_special_tokens=False)["input_ids"]
    return next((i for i, ids in enumerate(wanted) if list(found[i]) != list(ids)), None)


def _sentencepiece(folder: Path) -> Any:
    """The SentencePiece model of a folder; None where it has none. Raises HarnessError where it cannot be
    read: nothing else could say what the ids are."""
    files = sorted(folder.glob(SENTENCEPIECE))
    if not files:
        return None
    remedy = f"put the {FILE} that the model was published with beside it"
    if len(files) > 1:
        raise HarnessError(f"{folder}: no {FILE}, and {len(files)} files *.model; {remedy}")
    try:
        sentencepiece = importlib.import_module("sentencepiece")
    except ImportError as error:
        raise HarnessError(
            f"{files[0]}: no {FILE} beside it, and only the package sentencepiece can check its ids: "
            f"pip install sentencepiece protobuf, or {remedy}"
        ) from error
    try:
        return sentencepiece.SentencePieceProcessor(model_file=str(files[0]))
    except Exception as error:
        raise HarnessError(f"{files[0]}: no SentencePiece model that can be read; {remedy}") from error


def _check_sentencepiece(loaded: Any, folder: Path, model: Any) -> None:
    """Raises HarnessError where a converted tokenizer gives a text other ids than SentencePiece does."""
    texts = [*PROBE, *_mini_texts(), *_vocabulary_texts(model)]
    wanted = model.encode(texts)
    found = loaded(texts, add_special_tokens=False)["input_ids"]
    others = [i for i, ids in enumerate(wanted) if list(found[i]) != ids]
    if others:
        raise HarnessError(
            f"{folder}: made from its SentencePiece model alone, the tokenizer gives other ids than "
            f"sentencepiece to {len(others):,} of {len(texts):,} texts (the first: text {others[0]} of the "
            f"probe, from 0); put the {FILE} that the model was published with beside it"
        )


def _mini_texts() -> list[str]:
    """Word problems and dialogues of the mini world."""
    rows = [*data.gsm8k("train", _ROWS), *data.samsum("train", _ROWS)]
    return [text for row in rows for text in row.values()]


def _vocabulary_texts(model: Any) -> list[str]:
    """The words of a SentencePiece vocabulary, evenly chosen, and texts of several of them."""
    plain = [
        model.id_to_piece(i).replace("\N{LOWER ONE EIGHTH BLOCK}", " ")
        for i in range(model.get_piece_size())
        if not (model.is_control(i) or model.is_unknown(i) or model.is_byte(i) or model.is_unused(i))
    ]
    chosen = plain[:: len(plain) // _PIECES + 1]
    return [*chosen, *("".join(chosen[i : i + _JOINED]) for i in range(0, len(chosen), _JOINED))]


@functools.cache
def _tell(line: str) -> None:
    """Tell a line once."""
    logging.getLogger(__name__).warning("%s", line)
