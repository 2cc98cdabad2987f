"""A run's configuration: a recipe file plus flags, validated into one RunConfig.

Strict: an unknown key is an error that names the nearest known one. Packaged recipes are in recipes/.
"""

from __future__ import annotations

import difflib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from harness.contracts import JudgedScope, UsageError


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TrainingConfig(Section):
    """The one budget under which all methods train (the paper's values: §4.1)."""

    epochs: int = Field(default=3, ge=1)
    learning_rate: float = Field(default=2e-5, gt=0)
    batch_size: int = Field(default=64, ge=1)  # the global batch, in examples
    micro_batch_size: int = Field(default=64, ge=1)  # examples in one forward pass of one device
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: int = Field(default=0, ge=0)
    betas: tuple[float, float] = (0.5, 0.999)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    gradient_checkpointing: bool = False
    max_examples: int | None = Field(default=None, ge=1)  # the first so many rows
    max_length: int | None = Field(default=None, ge=8)  # tokens; None: the train task's own

    @model_validator(mode="after")
    def _whole_micro_batches(self) -> TrainingConfig:
        if self.batch_size % self.micro_batch_size:
            raise ValueError("batch_size must be a multiple of micro_batch_size")
        return self


class ResponsesConfig(Section):
    """How checkpoints answer. Greedy decoding; lengths and stop rules belong to the tasks."""

    batch_size: int = Field(default=64, ge=1)
    dtype: Literal["float32", "bfloat16"] = "float32"
    limit: int | None = Field(default=None, ge=1)  # the first so many documents of every task


class SafetyConfig(Section):
    raw_task: str = "hexphi_raw-mini"
    prefill_task: str = "hexphi_prefill-mini"
    prefill_tokens: int = Field(default=3, ge=1)  # k
    judged_scope: JudgedScope = "prefill+response"


class RunConfig(Section):
    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    model: str = "mini"  # "mini": the embedded seed model; else a folder or a hub name
    methods: tuple[str, ...] = ("all",)
    method_options: dict[str, dict[str, Any]] = {}
    train_tasks: tuple[str, ...] = ("gsm8k-mini", "samsum-mini")
    train_data: Path | None = None  # JSON lines that replace the train tasks' own rows
    data: dict[str, Path] = {}  # evaluation task -> local file in the task's published format
    checkpoints: dict[str, str] = {}  # further rows: the user's own checkpoints
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] = (42,)
    judges: tuple[str, ...] = ("mini-exact",)
    engine: str = "hf"
    threads: int | None = Field(default=None, ge=1)  # CPU threads of one job; None: torch's choice
    jobs: int | None = Field(default=None, ge=1)  # cells side by side; None: as many as the cores hold
    cross_tasks: bool = False  # score every checkpoint on the other utilities too
    training: TrainingConfig = TrainingConfig()
    responses: ResponsesConfig = ResponsesConfig()
    safety: SafetyConfig = SafetyConfig()
    note: str | None = None  # printed in every table's heading

    @field_validator("methods", "train_tasks", "judges", "seeds", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, (str, int)) else value

    @field_validator("methods", "train_tasks", "judges", "seeds")
    @classmethod
    def _some_without_repeats(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if not value:
            raise ValueError("must not be empty")
        return tuple(dict.fromkeys(value))

    @field_validator("checkpoints")
    @classmethod
    def _safe_names(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if not name.replace("-", "").replace("_", "").replace(".", "").isalnum() or name[0] in ".-":
                raise ValueError(f"checkpoint name {name!r} may hold letters, digits, '-', '_' and '.'")
        return value


def recipe_names() -> list[str]:
    return sorted(p.name.removesuffix(".yaml") for p in _packaged().iterdir() if p.name.endswith(".yaml"))


def load(recipe: str | None = None, overrides: dict[str, Any] | None = None) -> RunConfig:
    """A recipe (packaged name or YAML file; default: mini) with ``overrides`` laid over it.

    Override keys may be dotted (``training.epochs``). Raises UsageError with one line.
    """
    where, values = _read(recipe or "mini")
    for key, value in (overrides or {}).items():
        _put(values, key, value)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"{where}: {_first_problem(error)}") from None


def parse_setting(text: str) -> tuple[str, Any]:
    """``key=value`` of ``--set``; the value is YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"--set '{text}': expected key=value, as in --set training.epochs=1")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UsageError(f"--set '{text}': the value is not valid YAML") from error


def _packaged() -> Any:
    return resources.files("harness") / "recipes"


def _read(recipe: str) -> tuple[str, dict[str, Any]]:
    if recipe in recipe_names():
        where, text = f"recipe '{recipe}'", (_packaged() / f"{recipe}.yaml").read_bytes()
    else:
        path = Path(recipe)
        if not path.is_file():
            near = difflib.get_close_matches(recipe, recipe_names(), n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"packaged: {', '.join(recipe_names())}"
            raise UsageError(f"no recipe '{recipe}': neither a file nor a packaged recipe; {hint}")
        where, text = str(path), path.read_bytes()
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{where}: not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise UsageError(f"{where}: expected keys and values at the top level")
    values.setdefault("name", Path(recipe).stem)
    return where, values


def _put(values: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, last = dotted.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise UsageError(f"'{dotted}': '{section}' is not a section")
    values[last] = value


def _first_problem(error: ValidationError) -> str:
    """pydantic's first finding as one line, with the nearest known key for an unknown one."""
    problem = error.errors()[0]
    path = [str(part) for part in problem["loc"]]
    if problem["type"] != "extra_forbidden":
        return f"{'.'.join(path)}: {problem['msg'].removeprefix('Value error, ')}"
    section: Any = RunConfig
    for part in path[:-1]:
        section = section.model_fields[part].annotation
    known = list(section.model_fields)
    near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
    suggestion = ".".join([*path[:-1], *near])
    hint = f"did you mean '{suggestion}'?" if near else f"known: {', '.join(known)}"
    return f"unknown key '{'.'.join(path)}': {hint}"
