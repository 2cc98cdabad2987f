"""Which changes no test can notice, and that the table of the others names what is there."""

from __future__ import annotations

from types import SimpleNamespace

from mutation import mutate

SOURCE = """\
from __future__ import annotations

class C:
    field: int | None = None

    def f(self, a: int | str, *b: int | str, c: int = 1 | 2) -> int | str:
        d: int | str = 3 | 4
        return d
"""


def bars(source: str) -> list[tuple[int, int]]:
    return [
        (number, column)
        for number, line in enumerate(source.split("\n"), 1)
        for column, character in enumerate(line)
        if character == "|"
    ]


def test_annotations_of_functions_are_not_evaluated() -> None:
    """A field's is, and so are defaults and values; without the import from __future__ all are."""
    places = bars(SOURCE)
    seen = [mutate.is_seen(SimpleNamespace(start_pos=place), mutate.unevaluated(SOURCE)) for place in places]
    assert seen == [True, False, False, True, False, False, True]
    assert mutate.unevaluated(SOURCE.replace("from __future__ import annotations\n", "")) == []


def test_its_modules_and_tests_are_there() -> None:
    for module, tests in mutate.MODULES.items():
        for name in (module, *tests.split()):
            assert (mutate.ROOT / name).is_file(), name


def test_what_is_argued_stands_in_the_source() -> None:
    for (module, text, _), why in mutate.EQUIVALENT.items():
        lines = (mutate.ROOT / module).read_text(encoding="utf-8").splitlines()
        assert text in map(str.strip, lines), (module, text)
        assert why
