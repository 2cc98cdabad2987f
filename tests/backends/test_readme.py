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
from harness.plugins import plugin_files, registry
from harness.run.resolve import resolve

BACKENDS = Path(__file__).parents[2] / "backends"
README = (BACKENDS / "README.md").read_text(encoding="utf-8")
HOOKS = [name for name in vars(Method) if not name.startswith("_") and callable(getattr(Method, name))]


@pytest.fixture
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The example in a file of the package ``backends``, under the table entry that the README gives."""
    ((name, text), _) = re.findall(r"```python\n# backends/(\S+)\n(.*?)```", README, re.DOTALL)
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
    (setting,) = set(re.findall(r"--set (method_options\.\S+=[0-9.]+)", README))
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


@pytest.fixture
def ema(tmp_path: Path) -> Iterator[type[Any]]:
    """The second example, from a file that the command names."""
    (text,) = re.findall(r"```python\n# backends/ema\.py\n(.*?)```", README, re.DOTALL)
    (tmp_path / "ema.py").write_text(text)
    try:
        (name,), _ = plugin_files.named("method", [f"{tmp_path}/ema.py:Ema"], (), {})
        yield registry.load("method", name)
    finally:
        plugin_files.forget()


def test_the_average_is_saved_and_a_stopped_training_ends_with_it(
    ema: type[Any],
    make_model: Callable[..., Any],
    train: Callable[..., dict[str, Any]],
    encoded: list[Encoded],
    tmp_path: Path,
) -> None:
    seen: list[dict[str, torch.Tensor]] = []

    class Watched(ema):
        def after_step(self, model: Any, step: int) -> None:
            super().after_step(model, step)
            seen.append({name: weight.detach().clone() for name, weight in model.named_parameters()})

    settings: dict[str, Any] = {"epochs": 2, "save_steps": 2}
    model = make_model()
    expected = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    train(model, encoded[:16], Watched(decay=0.75), **settings)
    assert len(seen) == 4
    for step in seen:
        expected = {name: 0.75 * old + 0.25 * step[name] for name, old in expected.items()}
    whole = dict(model.named_parameters())
    for name, weight in whole.items():
        torch.testing.assert_close(weight.detach(), expected[name], rtol=1e-5, atol=1e-6)
        assert not torch.equal(weight, seen[-1][name])

    def stop(step: int, steps: int) -> None:
        if step == 3:
            raise KeyboardInterrupt

    folder = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        train(make_model(), encoded[:16], ema(decay=0.75), folder=folder, on_step=stop, **settings)
    resumed = make_model()
    record = train(resumed, encoded[:16], ema(decay=0.75), folder=folder, **settings)
    assert record["resumed_at_step"] == 2
    for name, weight in resumed.named_parameters():
        assert torch.equal(weight, whole[name]), name


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
