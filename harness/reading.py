"""JSON and YAML from outside: a value, or a ValueError in one line, whatever the bytes are.

No depth, number, alias or half character gets through that something later would choke on, and YAML builds
no objects.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

DEEPEST = 64  # values within values
LARGEST_FILE = 2**30  # bytes of a file that is read whole
LARGEST_YAML = 256 * 2**10  # characters: a recipe is a page or two
MOST_NODES = 50_000  # of a YAML file, each alias counted as what it stands for
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")


def json_value(text: str | bytes, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """``pairs`` makes an object of its pairs, as json's ``object_pairs_hook``. Raises ValueError."""
    if isinstance(text, bytes):
        text = text.decode(json.detect_encoding(text))
    try:
        value = json.loads(text, object_pairs_hook=pairs)
        odd = "\\u" in text or not text.isascii()  # quick to see; most text is neither
        if text.count("[") + text.count("{") > DEEPEST or (odd and _HALF_PAIR.search(text)):
            check(value)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def check_size(path: Path, largest: int = LARGEST_FILE) -> None:
    """Raises ValueError for a file that would not be read whole: too large, or a device or pipe without end;
    FileNotFoundError where there is none."""
    if path.stat().st_size > largest:
        raise ValueError(f"larger than {largest // 2**20:,} MiB")
    if not path.is_file():
        raise ValueError("no plain file")


def yaml_value(text: str | bytes) -> Any:
    """Raises ValueError."""
    if len(text) > LARGEST_YAML:
        raise ValueError(f"larger than {LARGEST_YAML // 2**10} KiB")
    try:
        value = yaml.load(text, Loader=_Loader)
        check(value)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (AttributeError, KeyError, TypeError, OverflowError) as error:  # as in !!bool x
        raise ValueError("a value is not what its tag says") from error
    return value


def check(value: Any) -> None:
    """Raises ValueError for what is nested too deeply, and for half a surrogate pair, which no file takes."""
    level, depth = [value], 0
    while level:
        if depth > DEEPEST:
            raise ValueError("nested too deeply")
        for text in level:
            if isinstance(text, str) and not text.isascii():
                try:
                    text.encode()
                except UnicodeEncodeError:
                    raise ValueError("not valid Unicode (half a surrogate pair)") from None
        level, depth = [inner for one in level for inner in _inside(one)], depth + 1


def _inside(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value.keys()
        yield from value.values()
    elif isinstance(value, (list, tuple, set)):
        yield from value


class _Loader(yaml.SafeLoader):
    """Refuses a key given twice, aliases that grow without end, and depth before it costs time."""

    def fetch_flow_collection_start(self, token: Any) -> None:
        if self.flow_level > DEEPEST:
            raise ValueError("nested too deeply")
        super().fetch_flow_collection_start(token)  # type: ignore[misc]

    def add_indent(self, column: int) -> bool:
        if len(self.indents) > 2 * DEEPEST:
            raise ValueError("nested too deeply")
        return bool(super().add_indent(column))  # type: ignore[misc]

    def construct_document(self, node: yaml.Node) -> Any:
        _size(node, {})
        return super().construct_document(node)


def _size(node: yaml.Node, known: dict[yaml.Node, int]) -> int:
    """How many nodes there are, each alias counted as what it stands for."""
    if node not in known:
        known[node] = MOST_NODES  # until its own size is known: an alias within what it stands for
        if isinstance(node, yaml.MappingNode):
            names: set[tuple[str, str]] = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in names:
                    raise ValueError(f"key '{key.value}' is there twice{_line(key)}")
                names.add((key.tag, str(key.value)) if isinstance(key, yaml.ScalarNode) else ("", ""))
            children = [child for pair in node.value for child in pair]
        else:
            children = node.value if isinstance(node, yaml.SequenceNode) else []
        size = 1
        for child in children:
            size += _size(child, known)
            if size > MOST_NODES:
                raise ValueError(f"its aliases stand for more than can be read{_line(child)}")
        known[node] = size
    return known[node]


def _line(node: yaml.Node) -> str:
    return f" (line {node.start_mark.line + 1})" if node.start_mark else ""
