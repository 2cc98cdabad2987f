"""A class of a user's file is loaded from its text, held against its contract, and its errors have a line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from harness.contracts import HarnessError, UsageError
from harness.plugins import plugin_code
from harness.plugins.plugin_code import ClassFile, Kind

JUDGE = "from harness.contracts import Judge\n\n\nclass Mine(Judge):\n"
METHOD = "from dataclasses import dataclass\nfrom harness.contracts import Method\n\n\n"
ONE_BY_ONE = "from judges.one_by_one import OneByOne\nclass Mine(OneByOne):\n"
METHOD += "@dataclass\nclass Mine(Method):\n"


def of(kind: Kind, text: str, file: str = "./mine.py", attribute: str = "Mine") -> ClassFile:
    return ClassFile(kind, "mine", file, attribute, text.encode())


def refusal(kind: Kind, text: str, **more: str) -> str:
    with pytest.raises(HarnessError) as caught:
        of(kind, text, **more).load()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_class_is_the_one_of_the_text_and_each_text_has_its_own() -> None:
    first = of("method", METHOD + "    decay: float = 0.5\n").load()
    second = of("method", METHOD + "    decay: float = 0.9\n").load()
    assert (first().decay, second().decay) == (0.5, 0.9)
    assert of("method", METHOD + "    decay: float = 0.5\n").load() is first
    assert of("method", METHOD + "    decay: float = 0.5\n", file="./other.py").load() is not first


def test_annotations_that_are_read_later_are_understood() -> None:
    """pydantic reads them through the module, which must be known under its name."""
    from pydantic import TypeAdapter

    loaded = of("method", f"from __future__ import annotations\n{METHOD}    decay: float = 0.5\n").load()
    assert TypeAdapter(loaded).validate_python({"decay": "0.25"}).decay == 0.25


@pytest.mark.parametrize(
    ("kind", "text", "says"),
    [
        (
            "judge",
            "import nothere\n",
            "judge ./mine.py, line 1: ModuleNotFoundError: No module named 'nothere'",
        ),
        ("judge", "x = 1\nx = (\n", "judge ./mine.py, line 2: SyntaxError: '(' was never closed"),
        ("judge", "\n\n1 / 0\n", "judge ./mine.py, line 3: ZeroDivisionError: division by zero"),
        ("method", "import sys\nsys.exit(0)\n", "method ./mine.py, line 2: SystemExit: 0"),
        ("method", "def f():\n    raise KeyError('k')\nf()\n", "method ./mine.py, line 2: KeyError: 'k'"),
        ("judge", "class Mein:\n    pass\n", "judge './mine.py' has no class 'Mine': did you mean 'Mein'?"),
        ("judge", "class Ours:\n    pass\n", "judge './mine.py' has no class 'Mine': it has Ours"),
        ("judge", "x = 1\n", "judge './mine.py' has no class 'Mine': it has no class"),
        (
            "judge",
            "class Mine:\n    pass\n",
            "judge './mine.py:Mine' is no subclass of harness.contracts.Judge: class Mine(Judge): …",
        ),
        ("judge", "Mine = 3\n", "judge './mine.py:Mine' is no subclass of harness.contracts.Judge"),
        (
            "judge",
            "from harness.contracts import Judge as Mine\n",
            "is no subclass of harness.contracts.Judge",
        ),
        ("judge", METHOD + "    pass\n", "is no subclass of harness.contracts.Judge"),
        (
            "judge",
            JUDGE + "    version = '2'\n",
            "judge './mine.py:Mine' lacks the method judge(self, exchanges, context)",
        ),
        (
            "judge",
            "from judges.one_by_one import OneByOne\nclass Mine(OneByOne):\n    pass\n",
            "judge './mine.py:Mine' lacks the method find(self, exchange, answer)",
        ),
        (
            "judge",
            f"import abc\n{JUDGE.replace('(Judge)', '(Judge, abc.ABC)')}"
            "    def judge(self, exchanges, context): ...\n"
            "    @abc.abstractmethod\n    def rate(self, text): ...\n",
            "judge './mine.py:Mine' lacks the method rate(self, text)",
        ),
        (
            "judge",
            JUDGE + "    def judge(self, exchanges):\n        yield\n",
            "judge ./mine.py, line 5: judge must take (self, exchanges, context)",
        ),
        ("judge", JUDGE + "    judge = 3\n", "judge './mine.py:Mine': 'judge' must be a method, and is int"),
        (
            "method",
            METHOD.replace("@dataclass\n", "") + "    pass\n",
            "method './mine.py:Mine' is no dataclass: put @dataclass above it",
        ),
        (
            "method",
            "from backends.vanilla import Vanilla\nclass Mine(Vanilla):\n    decay: float = 0.5\n",
            "method './mine.py:Mine' is no dataclass: put @dataclass above it",
        ),
        (
            "method",
            METHOD + "    decay: float = 1.0\n\n    def loss(self):\n        return 0\n",
            "method ./mine.py, line 9: loss must take (self, inputs)",
        ),
        (
            "judge",
            ONE_BY_ONE + "    def find(self, answer): ...\n",
            "judge ./mine.py, line 3: find must take (self, exchange, answer)",
        ),
        (
            "method",
            METHOD + "    def after_steps(self, model, step): ...\n",
            "method './mine.py:Mine': nothing calls or reads its 'after_steps': did you mean 'after_step'?",
        ),
        (
            "method",
            METHOD + "    use_weights = True\n",
            "nothing calls or reads its 'use_weights': did you mean 'uses_weights'?",
        ),
        ("method", METHOD + "    versoin: int = 2\n", "did you mean 'version'?"),
        (
            "method",
            METHOD + "    def on_step_end(self, model, step): ...\n",
            "nothing calls or reads its 'on_step_end': the hooks are those of harness.contracts.Method",
        ),
        ("judge", JUDGE + "    versoin = '2'\n    def judge(self, exchanges, context): ...\n", "'version'?"),
        (
            "method",
            METHOD + "    def state(self): return {}\n",
            "has state and no load_state(self, tensors): a training that is resumed needs both",
        ),
        ("method", METHOD + "    def load_state(self, tensors): ...\n", "has load_state and no state(self)"),
    ],
)
def test_what_is_no_plugin_is_refused_in_one_line(kind: Kind, text: str, says: str) -> None:
    assert says in refusal(kind, text)


@pytest.mark.parametrize(
    "body",
    [
        "    def batch(self): ...\n    def loss(self, inputs): return self.batch()\n",
        "    losses: int = 3\n    def loss(self, inputs): return (lambda: self.losses)()\n",
        "    steps: int = 3\n    decay: float = 0.5\n",
        "    def _after_steps(self): ...\n",
        "    @property\n    def models(self): return 1\n    def loss(self, inputs): return self.models\n",
    ],
)
def test_names_of_ones_own_are_fine_where_something_uses_them(body: str) -> None:
    assert of("method", METHOD + body).load()


def test_a_hook_of_a_class_that_it_builds_on_is_no_misspelt_one() -> None:
    text = METHOD.replace("(Method)", "(Lisa)") + "    def loss(self, inputs): return super().loss(inputs)\n"
    text = f"from backends.lisa import Lisa\n{text}"
    assert of("method", text).load()
    assert "did you mean 'load_state'" in refusal("method", text + "    def load_stat(self, tensors): ...\n")


def test_what_takes_more_than_it_must_is_fine() -> None:
    text = JUDGE + "    def judge(self, exchanges, context, *, loud=False):\n        yield from ()\n"
    assert of("judge", text).load()
    text = METHOD + "    def loss(self, *everything):\n        return 0\n"
    assert of("method", text).load()
    assert of("method", "from backends.vanilla import Vanilla\nclass Mine(Vanilla):\n    pass\n").load()


def test_a_file_that_fails_leaves_no_module_and_is_tried_again() -> None:
    there = {*sys.modules}
    text = "import os\nif os.environ.get('PLUGIN_READY') != '1':\n    raise ValueError('not yet')\n"
    for _ in range(2):
        assert "line 3: ValueError: not yet" in refusal("judge", text)
    assert not [name for name in {*sys.modules} - there if name.startswith(plugin_code.PREFIX)]


def test_a_plugins_own_line_of_refusal_stands() -> None:
    text = "from harness.contracts import UsageError\n"
    text += "raise UsageError('needs the package flim: pip install it')\n"
    with pytest.raises(UsageError, match=r"^needs the package flim: pip install it$"):
        of("judge", text).load()


def test_a_file_beside_it_is_not_taken_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its text would be in no identity: a change of it would leave old results standing."""
    (tmp_path / "helper_of_mine.py").write_text("X = 1\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    for _ in range(2):  # the second time it must not pass because the module is known
        line = refusal("judge", f"import helper_of_mine\n{JUDGE}    pass\n", file=str(tmp_path / "mine.py"))
        assert "imports helper_of_mine.py beside it: a plugin is one file" in line
    assert "helper_of_mine" not in sys.modules


def test_the_name_is_the_class_s_own_or_made_of_its_name() -> None:
    judge = "    def judge(self, exchanges, context):\n        yield\n"
    assert plugin_code.own_name(of("judge", JUDGE + "    name = 'strict'\n" + judge)) == "strict"
    assert plugin_code.own_name(of("judge", JUDGE + judge)) == "mine"
    long = (JUDGE + judge).replace("class Mine", "class MyVeryOwn2Judge")
    assert plugin_code.own_name(of("judge", long, attribute="MyVeryOwn2Judge")) == "my-very-own2-judge"
    bare = "import harness.contracts as c\nclass Judge(c.Judge):\n" + judge
    assert plugin_code.own_name(of("judge", bare, "a/no_flim.py", "Judge")) == "no-flim"
    inherited = "from backends.vanilla import Vanilla\nclass Mine(Vanilla):\n    pass\n"
    assert plugin_code.own_name(of("method", inherited)) == "mine"  # not vanilla


def raised(function: Any, *given: Any) -> BaseException:
    with pytest.raises(Exception) as caught:  # noqa: PT011 (whatever it is)
        function(*given)
    return caught.value


def test_an_error_is_told_with_the_plugin_s_last_line() -> None:
    body = "    def loss(self, inputs):\n        return self.deep(inputs)\n\n    def deep(self, inputs):\n"
    loaded = of("method", METHOD + body + "        return int(inputs)\n").load()
    assert (
        plugin_code.told(raised(loaded().loss, "x"))
        == "plugin ./mine.py, line 11: ValueError: invalid literal for int() with base 10: 'x'"
    )

    def trainer() -> None:
        try:
            loaded().loss("y")
        except ValueError as error:
            raise RuntimeError("the trainer's") from error

    assert plugin_code.line_of(raised(trainer)) == "./mine.py, line 11"
    assert plugin_code.told(raised(int, "x")) is None
    assert plugin_code.line_of(ValueError("never raised")) is None


def test_an_error_shows_no_key_and_stays_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLIM_API_KEY", "abcdefgh12345678")
    loaded = of("method", METHOD + "    def loss(self, inputs):\n        raise ValueError(inputs)\n").load()
    told = plugin_code.told(raised(loaded().loss, "a\nb abcdefgh12345678 \x1b[31m" + "z" * 999))
    assert told is not None
    assert "abcdefgh12345678" not in told
    assert told.isprintable()
    assert len(told) < 300


def test_classes_are_listed_without_running_the_file() -> None:
    assert plugin_code.classes(b"raise SystemExit\nclass A: pass\nclass B(A): pass\n") == ["A", "B"]
    assert plugin_code.classes(b"class (") == []
    assert plugin_code.classes(b"\x00") == []
