"""Text that came from outside, as it may be shown, kept or made a file's name."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Container, Iterable, Mapping
from typing import Any

LEFT_OUT = "(left out)"
LONGEST_SHOWN = 40  # characters of a name or value from a data file
SHORTEST_KEY = 8  # characters; anything shorter is a setting, not a key
_FORMULAS = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_WORD = re.compile(r"(?!.*//)[A-Za-z0-9_./:@+\[\]-]{1,100}")
_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}
WEIGHTS = "checkpoint"  # a run's folders of weights, which alone may be links to folders elsewhere
_KEY_NAMES = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD)$", re.IGNORECASE)
_LIKE_KEYS = (
    re.compile(r"\b(?:sk|hf|ghp|xox[a-z])[-_][A-Za-z0-9_-]{8,}"),
    re.compile(r"(?i)\bbearer\s+\S+"),
    re.compile(r"(?i)(?<=://)[^/\s@]+@"),
    re.compile(r"(?i)[\w-]*(?:api[-_]?key|token|secret|password)\s*[=:]\s*[^\s&'\",]+"),
)


def csv_cell(value: Any) -> Any:
    """A value of a CSV file: text in one line that no spreadsheet takes for a formula; others as they are."""
    if not isinstance(value, str):
        return value
    line = one_line(value)
    return f"'{line}" if line.startswith(_FORMULAS) else line


def is_name(text: str) -> bool:
    """Whether a text can name a file or folder on any system: no way out of the folder, no device, not the
    name of a run's folders of weights."""
    stem = text.lower().split(".")[0]
    return bool(_NAME.fullmatch(text)) and not text.endswith(".") and stem not in {*_DEVICES, WEIGHTS}


def is_word(value: Any) -> bool:
    """Whether a value from outside is one short word, as names of models, errors and parameters are: such a
    word may be shown, and anything else that a server sends in its place may not."""
    return isinstance(value, str) and _WORD.fullmatch(value) is not None


def shown_words(values: Iterable[Any], most: int = 5) -> str:
    """The first ``most`` of the values that are words, for a line; empty where none is."""
    return ", ".join([value for value in values if is_word(value)][:most])


def cut(text: str, most: int) -> str:
    """The first ``most`` characters of a longer text, with a mark that says how long it was."""
    return text if len(text) <= most else f"{text[:most]} (cut: it had {len(text):,} characters)"


def shown(value: Any) -> str:
    """A short value from outside in quotes, such as a column's name; of a long one, which may be a text that
    is not to be shown, and of others what they are."""
    if not isinstance(value, (str, int, float)):
        return f"({type(value).__name__})"
    text = printable(str(value))
    return repr(text) if len(text) <= LONGEST_SHOWN else f"({len(text):,} characters)"


def listed(reasons: Mapping[str, int], always: Container[str] = ()) -> str:
    """What happened how often, the most frequent first: "12 empty answer; 3 others". ``always``: what is
    shown however rare it is."""
    most = sorted(reasons.items(), key=lambda item: (item[0] not in always, -item[1], item[0]))
    shown = "; ".join(f"{count} {reason}" for reason, count in most[:3])
    return shown + (f"; {sum(count for _, count in most[3:])} others" if len(most) > 3 else "")


def printable(text: str) -> str:
    """A blank for every character that does not print: terminal escapes, line ends, turned directions."""
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)


def one_line(text: str) -> str:
    """Without line breaks, terminal escapes and other characters that don't print."""
    return printable(text).strip()


def whole(text: str) -> str:
    """With "?" for half a surrogate pair, which JSON's escapes can spell and no file takes."""
    return text.encode("utf-8", "replace").decode()


def without_keys(text: str) -> str:
    """A text without the keys of this process's environment, and without what looks like one."""
    keys = {value for name, value in os.environ.items() if _KEY_NAMES.search(name)}
    for key in sorted(keys, key=len, reverse=True):
        if len(key) >= SHORTEST_KEY:
            text = text.replace(key, LEFT_OUT)
    for pattern in _LIKE_KEYS:
        text = pattern.sub(LEFT_OUT, text)
    return text


def shortened(error: BaseException, most: int = 300) -> str:
    """What an error of a library says, in one line."""
    return one_line(without_keys(" ".join(str(error).split())))[:most]


def shown_traceback() -> str:
    """The traceback of the error at hand. It may quote a server's reply, and that a request."""
    text = without_keys(traceback.format_exc())
    return "\n".join(map(printable, text.split("\n")))
