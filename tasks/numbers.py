"""The number that a text ends with, read strictly: what is no plain decimal number is not read at all.

SDFT's filter compares a rewritten answer's number with its label's. A fraction, a power, an exponent, a group
of digits between blanks or a sign that may be a dash could be read in two ways, and a wrong reading would
train on a wrong number; so none of them is read.
"""

import re
from decimal import Decimal

_MINUS = "\N{HYPHEN-MINUS}\N{MINUS SIGN}\N{SMALL HYPHEN-MINUS}\N{FULLWIDTH HYPHEN-MINUS}"
_DASH = "\N{HYPHEN}\N{NON-BREAKING HYPHEN}\N{FIGURE DASH}\N{EN DASH}\N{EM DASH}\N{HORIZONTAL BAR}"
_SIGN = rf"[+{re.escape(_MINUS)}]"
_SIGN_OR_DASH = rf"[+{re.escape(_MINUS + _DASH)}]"
_CURRENCY = "$\N{CENT SIGN}\N{POUND SIGN}\N{YEN SIGN}\N{EURO SIGN}\N{INDIAN RUPEE SIGN}"
_DECIMAL = r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_PLAIN = re.compile(rf"(?:{_DECIMAL})")
_LABEL = re.compile(rf"(?P<before>{_SIGN}?)\s*[{_CURRENCY}]?\s*(?P<behind>{_SIGN}?)(?P<digits>{_DECIMAL})\.?")
# Digits of every script, superscripts and fractions such as "½" included.
_DIGIT = r"[\d\u00b2\u00b3\u00b9\u00bc-\u00be\u2070-\u2089\u2150-\u218b]"
_FRACTION = r"\s*[/\N{FRACTION SLASH}\N{DIVISION SLASH}\N{DIVISION SIGN}]\s*"
_EXPONENT = rf"\.?[eE]{_SIGN}?"
_POWER = rf"\s*(?:\^|\*\*)\s*\{{?{_SIGN}?"
_BLANK = "[ \N{NO-BREAK SPACE}\N{THIN SPACE}\N{NARROW NO-BREAK SPACE}](?=[0-9]{3}(?![0-9]))"
_BETWEEN = rf"(?:{_FRACTION}|{_EXPONENT}|{_POWER}|{_BLANK}|[.,:'\u2019_])"
_WRITTEN = re.compile(rf"\.?{_DIGIT}+(?:{_BETWEEN}{_DIGIT}+)*")
_BEFORE = re.compile(rf"(?P<sign>{_SIGN_OR_DASH}?)(?P<gap>\s*)[{_CURRENCY}]?\s*\Z")
_NOT_ALONE = re.compile(r"(?:\^\s*\{?|[\w)\]}]\*\*|\}\s*\{|[/÷⁄∕]|\b(?:minus|negative))\s*\Z", re.IGNORECASE)
_SUBTRACTED_FROM = re.compile(rf"{_DIGIT}[)\]}}%.]*\s*\Z")


def plain_number(text: str) -> str | None:
    """The digits of a text that is one plain decimal number and nothing else, as it writes them, with "-" for
    any minus and without plus, commas, currency sign and final full stop; None for any other text.
    """
    found = _LABEL.fullmatch(text.strip())
    if found is None or (found["before"] and found["behind"]):
        return None
    sign = "-" if (found["before"] or found["behind"] or "+") in _MINUS else ""
    return sign + found["digits"].replace(",", "")


def last_number(text: str) -> Decimal | None:
    """The last number of a text ("1,800.00" is 1800); None without one, and where it is not a plain one."""
    *_, written = None, *_WRITTEN.finditer(text)
    if written is None or not _PLAIN.fullmatch(written.group()):
        return None
    sign = _sign(text[: written.start()])
    return None if sign is None else sign * Decimal(written.group().replace(",", ""))


def _sign(before: str) -> int | None:
    """The sign that the text before a number gives it; None where that cannot be told, or where the number is
    a part of another (a denominator, an exponent)."""
    if _NOT_ALONE.search(before.rstrip(f"{_CURRENCY} ")):
        return None
    found = _BEFORE.search(before)
    assert found is not None  # it matches the empty text at the end
    left, sign = before[: found.start()], found["sign"]
    if sign in ("", "+") or _SUBTRACTED_FROM.search(left) or (sign in _DASH and found["gap"]):
        return 1
    if found["gap"] or left[-1:] in (*_MINUS, *_DASH):
        return None
    if left[-1:].isalpha():
        return 1  # a compound: "size-18"
    return -1 if sign in _MINUS else None
