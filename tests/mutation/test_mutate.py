"""Which changes no test can notice, and that the table of the others names what is there."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import exhaustive_due
from mutation import mutate

SOURCE = """\
from __future__ import annotations

class C:
    field: int | None = None

    def f(self, a: int | str, *b: int | str, c: int = 1 | 2) -> int | str:
        d: int | str = 3 | 4
        return d

class N(NamedTuple):
    item: int | None = 1 | 2

class Other:
    item: int | None
"""


def bars(source: str) -> list[tuple[int, int]]:
    return [
        (number, column)
        for number, line in enumerate(source.split("\n"), 1)
        for column, character in enumerate(line)
        if character == "|"
    ]


def test_annotations_of_functions_are_not_evaluated() -> None:
    """A dataclass's field's is, and so are defaults and values; without the import from __future__ all are.
    A named tuple's is not."""
    places = bars(SOURCE)
    seen = [mutate.is_seen(SimpleNamespace(start_pos=place), mutate.unevaluated(SOURCE)) for place in places]
    assert seen == [True, False, False, True, False, False, True, False, True, True]
    assert mutate.unevaluated(SOURCE.replace("from __future__ import annotations\n", "")) == []


def test_a_cache_and_frozen_fields_change_no_result() -> None:
    source = """\
@lru_cache(1 | 2)
def f(): return 1 | 2

@dataclass(frozen=1 | 2, order=1 | 2)
class C: pass
"""
    places = [(1, 0), *bars(source)]
    seen = [mutate.is_seen(SimpleNamespace(start_pos=p), mutate.without_effect(source)) for p in places]
    assert seen == [False, False, True, False, True]


def test_only_what_was_not_noticed_is_tried_again(tmp_path: Path) -> None:
    """In cosmic-ray's own table: a result of another kind, such as one without an outcome, goes too."""
    session = tmp_path / "session.sqlite"
    with closing(sqlite3.connect(session)) as database, database:
        database.execute("CREATE TABLE work_results (job_id TEXT, test_outcome TEXT)")
        rows = [("a", "KILLED"), ("b", "SURVIVED"), ("c", None), ("d", "KILLED"), ("e", "INCOMPETENT")]
        database.executemany("INSERT INTO work_results VALUES (?, ?)", rows)
    mutate.forget_unnoticed(session)
    with closing(sqlite3.connect(session)) as database:
        left = database.execute("SELECT job_id FROM work_results ORDER BY job_id").fetchall()
    assert left == [("a",), ("d",)]


def test_its_modules_and_tests_are_there() -> None:
    for module, tests in mutate.MODULES.items():
        for name in (module, *tests.split()):
            assert (mutate.ROOT / name).is_file(), name
            assert name in exhaustive_due.PARTS["mutation"][1], name  # a change of it makes the tier due


def test_what_is_argued_stands_in_the_source() -> None:
    for (module, text, _), why in mutate.EQUIVALENT.items():
        lines = (mutate.ROOT / module).read_text(encoding="utf-8").splitlines()
        assert text in map(str.strip, lines), (module, text)
        assert why
