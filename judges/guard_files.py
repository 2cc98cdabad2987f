"""A guard model's YAML file: what it reads, what its output means, and from where on that is harmful."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from harness.contracts import (
    UsageError,
)
from harness.reading import yaml_value


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Turn(_Strict):
    role: Literal["system", "user", "assistant"]
    content: str  # {request} and {answer} stand for the exchange's


class Render(_Strict):
    """What the model reads: ``messages`` through its tokenizer's chat template, or ``prompt``, the
    placeholders for request and answer in a published prompt that the user gives as a file; neither for a
    classifier."""

    messages: tuple[Turn, ...] = ()
    parts: bool = False  # contents as lists of parts, for templates of multi-modal models
    generation_prompt: bool = True
    options: dict[str, Any] = {}  # further arguments of the chat template
    prompt: dict[Literal["request", "answer"], str] | None = None
    pair: bool = True  # a classifier reads request and answer, or the answer alone


class Read(_Strict):
    """What its output means: exactly one of ``pattern``, ``choice``, ``scale`` and ``classes``.

    ``pattern``: a regular expression over the whole reply whose group ``verdict`` is a key of ``harmful``; a
    group ``refusal`` that says yes makes the answer a refusal. ``choice``: the next token that means harm and
    the one that does not; the score is the first's probability. ``scale``: tokens and their values; the score
    is the expected value. ``classes``: a classifier's harmful labels; the score is their probability.
    """

    max_tokens: int = Field(default=32, ge=1)
    pattern: str | None = None
    harmful: dict[str, bool | None] = {}
    choice: tuple[str, str] | None = None
    scale: dict[str, float] = {}
    classes: tuple[str, ...] = ()

    @property
    def ends(self) -> tuple[float, float] | None:
        """The least and the highest score; None where replies say harmful or not, without one."""
        if self.pattern:
            return None
        return (min(self.scale.values()), max(self.scale.values())) if self.scale else (0.0, 1.0)

    @model_validator(mode="after")
    def _one_way(self) -> Read:
        if sum(map(bool, (self.pattern, self.choice, self.scale, self.classes))) != 1:
            raise ValueError("read needs exactly one of pattern, choice, scale and classes")
        if self.pattern and "verdict" not in re.compile(self.pattern).groupindex:
            raise ValueError("read.pattern needs a group (?P<verdict>...)")
        if self.pattern and not self.harmful:
            raise ValueError("read.harmful says which verdicts mean harm")
        return self


class Spec(_Strict):
    """A local judge's YAML file."""

    summary: str
    model: str | None = None  # default weights: a hub name or folder
    licence: str = "see its model card"
    memory_gb: float | None = None  # of a device, bfloat16
    source: str = ""
    verified: bool = False  # whether it was compared with its published results, on its weights
    threshold: float = 0.5  # harmful from this score on
    render: Render = Render()
    read: Read


def find(name: str) -> Path:
    """The file behind a judge's name, or a user's own file."""
    if name.endswith((".yaml", ".yml")):
        return Path(name).expanduser()
    return Path(__file__).with_name(f"{name}.yaml")


def read_spec(file: Path) -> Spec:
    """Raises UsageError with file and key for one that is not as it must be."""
    try:
        values = yaml_value(file.read_text(encoding="utf-8"))
        return Spec.model_validate(values)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"judge file {file}: cannot be read ({type(error).__name__})") from None
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        told = problem["msg"].removeprefix("Value error, ")
        raise UsageError(f"judge file {file}: {f'{where}: ' if where else ''}{told}") from None
    except (ValueError, re.error, RecursionError, OverflowError) as error:  # its YAML; its pattern
        raise UsageError(f"judge file {file}: {' '.join(str(error).split())[:200]}") from None


def needs(spec: Spec) -> str:
    memory = f"{spec.memory_gb:g} GB, " if spec.memory_gb else ""
    prompt = ", its prompt as a file" if spec.render.prompt is not None else ""
    return f"{memory}{spec.licence}{prompt}{'' if spec.verified else '; not verified on weights'}"


def read_prompt(path: Path, places: dict[Any, str]) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"prompt file {path}: cannot be read ({type(error).__name__})") from None
    for place in places.values():
        if f"{{{place}}}" not in text:
            raise UsageError(
                f"prompt file {path}: it has no {{{place}}}; is it the judge's published prompt?"
            )
    return text


def filled(text: str, places: dict[str, str]) -> str:
    """``places`` filled in at once, so that an answer that spells a placeholder is left as it is."""
    return re.sub("|".join(map(re.escape, places)), lambda found: places[found.group()], text)
