"""What a server has against a request, in whatever shape it says so: JSON of any form, JSON inside strings
(as proxies pass on what they were told), a page, plain text. Nothing of it is meant to be shown."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

LONGEST_TOLD = 4_000  # characters of one text that are searched
LONGEST_READ = 2**16  # bytes of an error's body
MOST_VALUES = 2_000
DEEPEST = 32  # values within values, those inside strings counted on
MOST_INSIDE = 64  # places in a text where a JSON value may begin
NAMING = {"param", "parameter", "parameters", "field", "loc", "path", "pointer", "property", "argument"}
CODES = {"code", "type", "reason", "status"}
ECHOES = {"input", "messages", "request", "url", "ctx", "headers"}  # what was sent, not what is wrong
TEXTS = {"message", "msg", "detail", "details", "error", "errors", "title", "description", "raw"}

_CONTEXT = re.compile(
    r"context.{0,3}(length|window|size)|maximum.{0,30}(?<!completion )(?<!output )tokens|reduce the length"
    r"|inputs?\W{0,3}tokens?\b.{0,60}(must be|exceed)|too many (input |prompt )?tokens"
    r"|\b(prompt|input|request|conversation|messages?)\b.{0,30}too (long|many tokens)"
    r"|string_above_max_length|longer than the maximum"
)
_FILTER = re.compile(
    r"content.?(filter|policy|management)|responsible.?ai|moderation|safety (system|filter|setting|polic)"
    r"|flagged|(usage|safety) polic|prohibited.?content|data.?inspection"
)
_UNKNOWN = re.compile(
    r"un(supported|recogni|known|expected)|n.t support|not (be )?(support|permit|allow)|extra|forbid"
)
_REFUSES = re.compile(
    _UNKNOWN.pattern + r"|unprocessable|not (be )?(recogni|accept|avail|implement|valid)|invalid|must be"
    r"|only .{0,40}(support|allow)|fail(ed|s)? to|cannot|can not|can't|does not|incompatible|deprecated"
    r"|no longer|removed"
)
_TOO_LARGE = re.compile(
    r"too (large|big|high|long|many)|at most|less than|<=|exceed|greater than|above|maximum|out of range"
    r"|limit of"
)
_INNER = re.compile(r"\b(?:error|status|http)\W{0,3}(?:code)?\W{0,3}(400|422)\b")  # "Error code: 400 - ..."
_ANY_PARAMETER = re.compile(
    r"parameters?\b|arguments?\b|(extra|additional|unknown) (input|field|propert|name)"
)
_BEGINS = re.compile(r"[{\[]")
_TAGS = re.compile(r"<(style|script)\b.*?</\1\s*>|<[^<>]{0,500}>", re.DOTALL)


@dataclass(frozen=True)
class Complaint:
    """``status``: HTTP's, or the one inside the body that says more. ``names``: what the body calls a
    parameter; ``keys``: what it files its texts under; ``text``: all that it says. In lower case."""

    status: int
    names: tuple[str, ...] = ()
    codes: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    text: str = ""
    page: bool = False  # HTML, which is no API's answer

    @property
    def too_long(self) -> bool:
        """Whether the request is longer than the model's context."""
        return self.status == 413 or _CONTEXT.search(self._all) is not None

    @property
    def filtered(self) -> bool:
        """Whether a content filter has stopped it."""
        return not self.page and _FILTER.search(self._all) is not None

    @property
    def too_large(self) -> bool:
        """Whether it says that a number is too large, and not that its parameter is unknown."""
        return bool(_TOO_LARGE.search(self.text)) and not _UNKNOWN.search(self._all)

    def blames(self, parameters: Mapping[str, str]) -> str | None:
        """Which of the parameters is refused. ``parameters``: a regular expression for each that was sent and
        can be left out, in the order of the search. What is named comes first, then what is spoken of."""
        if self.status >= 500 and not _REFUSES.search(self._all):
            return None
        for named in (self.names, (self.text,), self.keys):
            for said in named:
                found = {name: re.search(pattern, said) for name, pattern in parameters.items()}
                places = {name: match.start() for name, match in found.items() if match}
                if places:
                    return min(places, key=lambda name: places[name])
        return None

    @property
    def blames_some(self) -> bool:
        """Whether it speaks of parameters without a name that says which."""
        needed = any(re.search("messages|model", name) for name in self.names)
        return bool(not needed and _ANY_PARAMETER.search(self.text) and _REFUSES.search(self._all))

    @property
    def _all(self) -> str:
        return " ".join((self.text, *self.codes))


def complaint(status: int, body: bytes | str | Any) -> Complaint:
    """``body``: an error's, as bytes or text or as the value that it was read to."""
    if isinstance(body, bytes):
        body = body[:LONGEST_READ].decode("utf-8", "replace")
    names, codes, keys, texts = list[str](), list[str](), list[str](), list[str]()
    inner = None
    for key, value in _values(body):
        if isinstance(value, int) and key in CODES | {"status_code", "http_status"}:
            inner = value if value in (400, 413, 422, 429) or 500 <= value < 600 else inner
        if not isinstance(value, str) or not value.strip():
            keys += [key] if value is None and key not in NAMING | CODES | TEXTS else []
            continue
        said = value[:LONGEST_TOLD].lower()
        if key in NAMING:
            names.append(said)
        elif key in CODES:
            codes.append(said)
        else:
            texts.append(_TAGS.sub(" ", said) if "<" in said else said)
    text = " ".join(texts)
    if inner is None and status >= 500 and (found := _INNER.search(text)):
        inner = int(found.group(1))
    if status in (401, 403, 404, 407, 408, 429):  # these say enough
        inner = None
    page = isinstance(body, str) and body.lstrip()[:1] == "<"
    return Complaint(inner or status, tuple(names), tuple(codes), tuple(keys), text, page)


def _values(body: Any) -> Iterator[tuple[str, Any]]:
    """Every (key, text or number) in a value, those inside its texts included, in their order; and (key,
    None) for a key by itself. Members of a list stand under the list's key."""
    waiting: list[tuple[str, Any, int]] = [("", body, 0)]
    for _ in range(MOST_VALUES):
        if not waiting:
            return
        key, value, depth = waiting.pop()
        inside: list[tuple[str, Any, int]] = []
        if isinstance(value, dict):
            for name, one in value.items():
                name = str(name)[:100].lower()
                if name not in ECHOES:
                    yield name, None
                    inside.append((name, one, depth + 1))
        elif isinstance(value, (list, tuple)):
            inside = [(key, one, depth + 1) for one in value[:MOST_VALUES]]
        elif isinstance(value, str):
            found, rest = _inside(value)
            inside = [(key, one, depth + 1) for one in found]
            yield key, rest
        else:
            yield key, 0 if value is None else value
        if depth < DEEPEST:
            waiting += reversed(inside)


def _inside(text: str) -> tuple[list[Any], str]:
    """The JSON objects and lists that a text holds, and the text around them."""
    reader, place, text = json.JSONDecoder(), 0, text[:LONGEST_READ]
    found, around = list[Any](), list[str]()
    if text.lstrip().startswith('"'):  # a text that is JSON's spelling of one
        with contextlib.suppress(ValueError):
            return [json.loads(text)], ""
    for begins in itertools.islice(_BEGINS.finditer(text), MOST_INSIDE):
        if begins.start() < place:
            continue
        try:
            value, end = reader.raw_decode(text, begins.start())
        except (ValueError, RecursionError):
            continue
        if value:
            found.append(value)
            around.append(text[place : begins.start()])
            place = end
    return found, " ".join((*around, text[place:]))
