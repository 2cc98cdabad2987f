"""What tests of models' folders share."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from harness.mini import seed_model_path
from harness.models import load_notes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(seed_model_path(), tmp_path / "model"))


@pytest.fixture(autouse=True)
def _untold() -> None:
    load_notes._told.clear()


@pytest.fixture
def no_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test in which anything is loaded."""
    import peft
    import transformers

    def reached(*_: Any, **__: Any) -> None:
        raise AssertionError("a library was given the folder")

    for kind in (transformers.AutoConfig, transformers.AutoModelForCausalLM, peft.PeftModel):
        monkeypatch.setattr(kind, "from_pretrained", reached)
