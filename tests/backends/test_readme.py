"""The README's example method, written to a file, registered and trained; its tables and links hold."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import backends
from harness import config
from harness.contracts import Encoded, Method
from harness.plugins import registry
from harness.run.resolve import resolve

BACKENDS = Path(__file__).parents[2] / "backends"
README = (BACKENDS / "README.md").read_text(encoding="utf-8")
HOOKS = [name for name in vars(Method) if not name.startswith("_") and callable(getattr(Method, name))]


@pytest.fixture
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The example in a file of the package ``backends``, under the table entry that the README gives."""
    ((name, text),) = re.findall(r"```python\n# backends/(\S+)\n(.*?)```", README, re.DOTALL)
    (tmp_path / name).write_text(text)
    monkeypatch.setattr(backends, "__path__", [*backends.__path__, str(tmp_path)])
    ((method, target),) = re.findall(r'\(`"(\S+)": "(\S+)"`\)', README)
    monkeypatch.setitem(registry.METHODS, method, target)
    yield method
    sys.modules.pop(f"backends.{Path(name).stem}", None)


def test_example_trains(
    registered: str,
    make_model: Callable[..., Any],
    train: Callable[..., dict[str, Any]],
    encoded: list[Encoded],
) -> None:
    (setting,) = re.findall(r"--set (method_options\.\S+=[0-9.]+)", README)
    key, value = config.parse_setting(setting)
    moved = {}
    for strength in (0.0, value):
        resolved = config.load("mini", {"methods": [registered], key: strength})
        method = resolve(resolved).make_method(registered)
        assert method.name == registered
        model = make_model()
        start = [weight.detach().clone() for weight in model.parameters()]
        record = train(model, encoded[:16], method, micro_batch_size=4, epochs=2)
        assert record["steps"] == 4
        assert record["method"] == {"strength": strength}
        moved[strength] = sum(
            float((a - b).detach().norm() ** 2) for a, b in zip(model.parameters(), start, strict=True)
        )
        assert moved[strength] > 0
        assert all(torch.isfinite(weight).all() for weight in model.parameters())
    assert moved[value] < moved[0.0]


def test_the_entry_point_names_the_same_class() -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    entries = tomllib.loads(text)["project"]["entry-points"]
    assert entries == {"harness.backends": {"stay-near": "my_package.stay_near:StayNear"}}
    assert registry._GROUPS["method"] in entries


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README) + re.findall(r"`(tests/\S+\.py)`", README)
    for target in targets:
        folder = BACKENDS.parent if target.startswith("tests/") else BACKENDS
        assert (folder / target).exists(), target


@pytest.mark.parametrize("name", list(registry.METHODS))
def test_every_method_is_in_the_table_with_its_hooks(name: str) -> None:
    method = registry.load("method", name)
    overridden = [hook for hook in HOOKS if getattr(method, hook) is not getattr(Method, hook)]
    file = f"{method.__module__.rpartition('.')[2]}.py"
    hooks = ", ".join(f"`{hook}`" for hook in overridden) or "none"
    assert f"| `{name}` | [{file}]({file}) | {hooks} |" in README


def test_every_hook_is_in_the_table() -> None:
    for hook in HOOKS:
        assert re.search(rf"^\| `{hook}[(`]", README, re.MULTILINE), hook
