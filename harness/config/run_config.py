"""A run's configuration, validated: all sections, and what follows from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import (
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from harness.config.problems import first_problem
from harness.config.sections import (
    OF_THE_RUN,
    AlignmentConfig,
    CodeConfig,
    JudgingConfig,
    RayConfig,
    ResponsesConfig,
    SafetyConfig,
    Section,
    TrainingConfig,
    UtilitySet,
    VariantConfig,
    check_name,
    check_plain,
    refuse_key,
)
from harness.config.values import lay_over, yaml_names
from harness.data import benchmarks
from harness.data.benchmarks import OwnTask


@dataclass(frozen=True)
class Row:
    """What a trained row of the leaderboard is: a method, its options, and how it is trained."""

    method: str
    options: dict[str, Any]
    training: TrainingConfig
    model: str | None = None  # its base model, where that is not the run's


class RunConfig(Section):
    name: str = "run"
    """of the run: its folder under results/runs"""
    model: str = "mini"
    """"mini": the embedded base model; else a folder or a hub name"""
    methods: tuple[str, ...] = ("all",)
    """all, or some (harness methods)"""
    method_options: dict[str, dict[str, Any]] = {}
    """method: its options (harness methods)"""
    variants: dict[str, VariantConfig] = {}
    """further rows, name: {method: …, options: {…}, training: {…}}, laid over the recipe's; model: … or
    alignment: {…} gives one a base model of its own"""
    train_tasks: tuple[str, ...] = ("gsm8k-mini", "samsum-mini")
    """what is fine-tuned for (harness tasks)"""
    train_data: str | dict[str, str] | None = None
    """a file (JSONL, JSON, CSV, Parquet) or hub data set for a train task's rows; several: {task: file}"""
    columns: dict[str, str | dict[str, str]] = {}
    """train_data's columns: {prompt: question, answer: response}; or {task: {prompt: …}}"""
    mix: dict[str, float] = {}
    """further rows: file -> share of the training rows that come from it"""
    safety_data: str | None = None
    """refused harmful requests for methods that train on them; mini: the mini world's"""
    data: dict[str, Path] = {}
    """evaluation task -> local file in the task's published format"""
    utility_tasks: tuple[str, ...] = ()
    """further utility columns: of ours, or any lm-eval task"""
    safety_tasks: tuple[str, ...] = ()
    """further safety columns, over-refusal included"""
    safety_sets: dict[str, Path] = {}
    """the same from conversations of the user's own: name -> file"""
    utility_sets: dict[str, UtilitySet] = {}
    """utility columns from questions of the user's own: name -> {file: …, metric: exact | contains | regex |
    rouge1}"""
    checkpoints: dict[str, str] = {}
    """further rows: the user's own checkpoints"""
    trained_on: dict[str, str] = {}
    """checkpoint -> the train task of the run that it was trained on: it is then compared with vanilla"""
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] = (42,)
    """of the trainings"""
    judges: tuple[str, ...] = ("mini-exact",)
    """who judges the answers to harmful requests (harness judges)"""
    engine: str = "auto"
    """of the answers; auto: vllm where it is installed and the model fits, else hf"""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of one job; null: torch's choice"""
    jobs: int | None = Field(default=None, ge=1)
    """cells side by side; null: one; on a CPU with threads, as the cores hold; ray: as the cluster holds"""
    executor: Literal["local", "ray"] = "local"
    """cells on this machine, or over a Ray cluster"""
    cross_tasks: bool = False
    """score every checkpoint on the other utilities too"""
    eval_every_epoch: bool = False
    """score each epoch's checkpoint too"""
    cache: Path | None = None
    """rewrites, reference values and judges' verdicts by content; null: HARNESS_CACHE, else results/cache"""
    alignment: AlignmentConfig = AlignmentConfig()
    training: TrainingConfig = TrainingConfig()
    responses: ResponsesConfig = ResponsesConfig()
    safety: SafetyConfig = SafetyConfig()
    judging: JudgingConfig = JudgingConfig()
    ray: RayConfig = RayConfig()
    code: CodeConfig = CodeConfig()
    paper: str | None = None
    """whose published figures stand beside this setting's: lookahead-tuning"""
    note: str | None = None
    """printed in every table's heading"""
    aligned: str | None = None
    """a run's record: what its base model is, where an alignment made it"""

    @model_validator(mode="before")
    @classmethod
    def _plain_values(cls, values: Any) -> Any:
        check_plain(values)
        return values

    @field_validator("checkpoints", "judges")
    @classmethod
    def _no_keys_in_urls(cls, value: Any) -> Any:
        for text in value.values() if isinstance(value, dict) else value:
            refuse_key(text)
        return value

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, value: str) -> str:
        check_name(value)
        return value

    @field_validator("train_data", mode="before")
    @classmethod
    def _path_or_name(cls, value: Any) -> Any:
        if isinstance(value, dict):  # of a task null: its own rows
            found = {name: cls._path_or_name(source) for name, source in value.items() if source is not None}
            return found or None
        return str(value) if isinstance(value, Path) else value

    @field_validator("columns")
    @classmethod
    def _of_one_or_by_task(cls, value: dict[str, Any]) -> dict[str, Any]:
        if len({isinstance(inner, dict) for inner in value.values()}) > 1:
            raise ValueError("either {prompt: …, answer: …} for all, or by train task {task: {prompt: …}}")
        return value

    @field_validator(
        "methods", "train_tasks", "judges", "seeds", "utility_tasks", "safety_tasks", mode="before"
    )
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, (str, int)) else value

    @field_validator("methods", "train_tasks", "judges", "seeds")
    @classmethod
    def _some_without_repeats(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if not value:
            raise ValueError("must not be empty")
        return tuple(dict.fromkeys(value))

    @field_validator("utility_tasks", "safety_tasks")
    @classmethod
    def _without_repeats(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(dict.fromkeys(value))

    @field_validator("paper")
    @classmethod
    def _known_paper(cls, value: str | None) -> str | None:
        known = yaml_names("papers")
        if value is not None and value not in known:
            raise ValueError(f"no figures of '{value}' are here; known: {', '.join(known)}")
        return value

    @field_validator("checkpoints", "safety_sets", "utility_sets", "variants")
    @classmethod
    def _safe_names(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            check_name(name)
            if name.lower().startswith("epoch-") or name.lower().endswith((".json", ".svg")):
                raise ValueError(f"name {name!r} is that of a run's own file; choose another")
        if len({name.lower() for name in value}) < len(value):  # one folder where a disk knows no capitals
            raise ValueError("two names differ in capitals alone; choose others")
        return value

    @model_validator(mode="after")
    def _variants_can_be_trained(self) -> RunConfig:
        for name, variant in self.variants.items():
            for key in variant.training:
                if key in OF_THE_RUN:
                    raise ValueError(
                        f"variants.{name}.training.{key}: all rows share it; set training.{key} for the run"
                    )
            try:
                self.row(name)
            except ValidationError as error:
                where = ("variants", name, "training")
                raise ValueError(first_problem(error, TrainingConfig, where)) from None
        return self

    def train_source(self, train_task: str) -> str | None:
        """The file or data set that a train task learns from; None: its own rows."""
        if isinstance(self.train_data, dict):
            return self.train_data.get(train_task)
        return self.train_data

    def columns_of(self, train_task: str) -> dict[str, str]:
        """What of ``train_source`` is the prompt and what the answer, where the recipe says so."""
        by_task: dict[str, dict[str, str]] = {
            name: columns for name, columns in self.columns.items() if isinstance(columns, dict)
        }
        if by_task:
            return by_task.get(train_task, {})
        return {name: column for name, column in self.columns.items() if isinstance(column, str)}

    @model_validator(mode="after")
    def _sets_have_names_of_their_own(self) -> RunConfig:
        both = {*map(str.lower, self.safety_sets)} & {*map(str.lower, self.utility_sets)}
        if both:
            raise ValueError(f"utility_sets.{min(both)}: a safety set has that name; choose another")
        return self

    @property
    def base_model(self) -> str:
        """What people read for ``model``."""
        return self.aligned or self.model

    @property
    def set_files(self) -> dict[str, Path]:
        """The files of the user's own sets, by name."""
        return {**self.safety_sets, **{name: one.file for name, one in self.utility_sets.items()}}

    @property
    def own_tasks(self) -> tuple[OwnTask, ...]:
        """The tasks of the run's user: sets in files, and those of folders that a command names."""
        sets = [OwnTask(name, benchmarks.CONVERSATIONS) for name in self.safety_sets]
        sets += [
            OwnTask(name, f"{benchmarks.QUESTIONS}-{one.metric}") for name, one in self.utility_sets.items()
        ]
        folders = [
            OwnTask(name, recorded=benchmarks.recorded(name, record.model_dump()))
            for name, record in self.code.tasks.items()
        ]
        return (*sets, *folders)

    def row(self, name: str) -> Row:
        """What stands behind the name of a trained row: a variant's or a method's."""
        variant = self.variants.get(name, VariantConfig(method=name))
        training = self.training
        if variant.training:
            training = TrainingConfig.model_validate(lay_over(training.model_dump(), variant.training))
        options = self.method_options.get(variant.method, {}) | variant.options
        return Row(variant.method, options, training, variant.model)


def meanings(section: type[Section] | None = None, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """(key, default, meaning) of all that a recipe may hold; keys of sections are dotted."""
    if section is None:
        yield "extends", None, "the recipe that this one is laid over: a packaged one, or a file"
    for name, field in (section or RunConfig).model_fields.items():
        if isinstance(field.default, CodeConfig):
            continue  # no recipe may hold it
        if isinstance(field.default, Section):
            yield from meanings(type(field.default), f"{prefix}{name}.")
            continue
        values = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
        meaning = (field.description or "", " | ".join(map(str, values)))
        yield f"{prefix}{name}", field.default, "; ".join(filter(None, meaning))
