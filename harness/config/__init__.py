"""A run's configuration: a recipe file plus flags, validated into one RunConfig.

Strict: an unknown key is an error that names the nearest known one. Packaged recipes are in recipes/; a
recipe can ``extends: ANOTHER`` and hold only what differs.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)

from harness.config import base_recipe
from harness.contracts import JudgedScope, UsageError
from harness.data import benchmarks
from harness.data.benchmarks import OwnTask
from harness.models.checkpoints import MINI
from harness.plugins import plugin_files, registry
from harness.plugins.plugin_code import Kind
from harness.reading import check, yaml_value
from harness.text import WEIGHTS, is_name, printable, without_keys

# Training keys that change no result, and those that came later: left out of a training's identity where they
# say what held before there were any, so that older trainings stay what they are.
NO_EFFECT = ("save_steps", "report_to", "launcher", "peak_tflops", "expandable_segments")
LATER = ("chunked_loss", "cudnn_attention", "adapter_casts")
OF_THE_RUN = (*NO_EFFECT, "max_examples", "device")  # training keys that all rows of a run share
TASK_DIRS = "task_dirs"  # of a command alone: folders of tasks of the user's own
BY_TASK = ("train_data", "columns")  # keys that may hold something for each train task
LARGEST_INTEGER = 2**63 - 1
KEYS = "HARNESS_API_KEY, JUDGE_API_KEY"
ELSEWHERE = {  # what other trainers and engines call a key, and we do not
    **dict.fromkeys(("lr", "learning_rates"), "learning_rate"),
    **dict.fromkeys(("num_train_epochs", "num_epochs", "n_epochs", "max_epochs"), "epochs"),
    **dict.fromkeys(("bs", "global_batch_size", "train_batch_size", "effective_batch_size"), "batch_size"),
    **dict.fromkeys(("per_device_train_batch_size", "per_device_batch_size", "mbs"), "micro_batch_size"),
    **dict.fromkeys(("lr_scheduler_type", "lr_scheduler", "scheduler", "lr_schedule"), "schedule"),
    **dict.fromkeys(("warmup", "num_warmup_steps"), "warmup_steps"),
    **dict.fromkeys(
        ("max_seq_length", "max_seq_len", "seq_len", "model_max_length", "cutoff_len"), "max_length"
    ),
    **dict.fromkeys(("max_samples", "max_train_samples", "n_examples"), "max_examples"),
    **dict.fromkeys(("adam_betas", "adam_beta1", "adam_beta2"), "betas"),
    **dict.fromkeys(("clip", "grad_clip", "max_norm", "gradient_clipping"), "max_grad_norm"),
    **dict.fromkeys(("optim",), "optimizer"),
    **dict.fromkeys(("precision", "torch_dtype", "bf16", "fp16"), "dtype"),
    **dict.fromkeys(("torch_compile",), "compile"),
    **dict.fromkeys(("use_liger_kernel",), "liger"),
    **dict.fromkeys(("attn_implementation", "attn"), "attention"),
    **dict.fromkeys(("finetuning_type", "peft", "adapter"), "tuning"),
    **dict.fromkeys(("rank", "lora_r", "lora_rank"), "r"),
    **dict.fromkeys(("lora_alpha",), "alpha"),
    **dict.fromkeys(("lora_dropout",), "dropout"),
    **dict.fromkeys(("lora_target", "lora_target_modules"), "target_modules"),
    **dict.fromkeys(("nproc", "nproc_per_node", "num_gpus", "gpus"), "num_processes"),
    **dict.fromkeys(("tp", "tensor_parallel_size"), "tensor_parallel"),
    **dict.fromkeys(("dp", "data_parallel_size"), "data_parallel"),
    **dict.fromkeys(("gpu_memory_utilization",), "gpu_memory"),
    **dict.fromkeys(("max_model_len",), "max_context"),
    **dict.fromkeys(("model_name", "model_path", "model_name_or_path", "base_model"), "model"),
    **dict.fromkeys(("method",), "methods"),
    **dict.fromkeys(("train_task", "tasks"), "train_tasks"),
    **dict.fromkeys(("judge",), "judges"),
    **dict.fromkeys(("seed",), "seeds"),
    **dict.fromkeys(("dataset", "train_file", "data_path"), "train_data"),
    **dict.fromkeys(("output_dir", "run_name"), "name"),
}
Precision = Literal["auto", "float32", "bfloat16"]
Price = Annotated[float, Field(ge=0)]  # USD
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class LoraConfig(Section):
    """The adapters of ``tuning: lora`` and ``qlora`` (arXiv 2106.09685, 2305.14314), as peft names them."""

    r: int = Field(default=16, ge=1)
    """rank"""
    alpha: float = Field(default=32, gt=0)
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """of what goes into the adapters, in training"""


class TrainingConfig(Section):
    """The one budget under which all methods train (the paper's values: §4.1), and how it is computed."""

    epochs: int = Field(default=3, ge=1, le=10_000)
    """passes over the training rows"""
    learning_rate: float = Field(default=2e-5, gt=0)
    batch_size: int = Field(default=64, ge=1)
    """the global batch, in examples"""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """of the learning rate"""
    warmup_steps: int = Field(default=0, ge=0)
    betas: tuple[float, float] = (0.5, 0.999)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    """gradients are clipped to this norm"""
    max_examples: int | None = Field(default=None, ge=1)
    """the first so many rows"""
    max_length: int | None = Field(default=None, ge=8)
    """tokens; null: the train task's own"""
    too_long: Literal["cut", "leave-out"] = "cut"
    """an example over max_length: its answer's end, or all of it"""

    tuning: Literal["full", "lora", "qlora"] = "full"
    """all weights, adapters, or adapters on 4-bit weights"""
    lora: LoraConfig = LoraConfig()
    merge: bool = False
    """save lora and qlora as one merged checkpoint, not as an adapter"""

    dtype: Precision = "float32"
    """of the computation; weights in training are float32; auto: bfloat16 on a GPU that has it"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA where there is a device"""
    micro_batch_size: int = Field(default=64, ge=1)
    """at most so many examples in one forward pass"""
    micro_batch_tokens: int | None = Field(default=None, ge=1)
    """and at most so many tokens, padding included"""
    batching: Literal["grouped", "in-order", "padding-free"] = "grouped"
    """how a global batch is cut"""
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3"] = "auto"
    """transformers' kernels; auto: the fastest that is installed"""
    optimizer: Literal["adamw_torch_fused", "adamw_torch", "adamw_8bit"] = "adamw_torch_fused"
    gradient_checkpointing: bool = False
    """compute activations twice rather than keep them"""
    compile: bool = False
    """torch.compile for the decoder layers and the loss"""
    liger: bool = False
    """Liger kernels (GPU; the package liger-kernel)"""
    chunked_loss: bool = False
    """the loss of a part of the tokens at a time: less memory with a large vocabulary"""
    cudnn_attention: bool = True
    """false: torch's attention leaves cuDNN's kernel alone (GPU)"""
    adapter_casts: bool = True
    """false: lora in bfloat16 spares its adapters' casts to float32 and back"""
    expandable_segments: bool = False
    """torch grows its blocks of memory rather than take others (GPU)"""

    num_processes: int = Field(default=1, ge=1)
    """devices of one training, one process each"""
    distributed: Literal["ddp", "zero2", "zero3", "fsdp2"] = "zero2"
    """how several processes share the work"""
    launcher: str | None = None
    """a command in front of the training instead of torchrun on this machine"""

    save_steps: int | None = Field(default=None, ge=1)
    """resume state; null: about every ten minutes"""
    report_to: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = ()
    """trackers that log each training"""
    peak_tflops: float | None = Field(default=None, gt=0)
    """of one device, for MFU; null: known devices"""

    def identity(self) -> dict[str, Any]:
        """All that a training's result may depend on."""
        values = self.model_dump(mode="json", exclude={*NO_EFFECT})
        usual = {key: type(self).model_fields[key].default for key in LATER}
        return {key: value for key, value in values.items() if key not in usual or value != usual[key]}

    @field_serializer("launcher", when_used="json")
    def _without_keys(self, value: str | None) -> str | None:
        return value if value is None else without_keys(value)

    @field_validator("report_to", mode="before")
    @classmethod
    def _one_or_many_reports(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fits_together(self) -> TrainingConfig:
        if self.merge and self.tuning == "full":
            raise ValueError("merge is for tuning lora or qlora; full tuning has no adapter")
        if self.tuning == "qlora" and self.distributed in ("zero3",) and self.num_processes > 1:
            raise ValueError("qlora's 4-bit weights cannot be sharded by zero3; use zero2, ddp or fsdp2")
        return self


class VariantConfig(Section):
    """A row of its own: a method under other options, or trained otherwise, than the recipe says."""

    method: str
    options: dict[str, Any] = {}
    """laid over the recipe's method_options of the method"""
    training: dict[str, Any] = {}
    """laid over the recipe's section training; not OF_THE_RUN"""


@dataclass(frozen=True)
class Row:
    """What a trained row of the leaderboard is: a method, its options, and how it is trained."""

    method: str
    options: dict[str, Any]
    training: TrainingConfig


class ResponsesConfig(Section):
    """How checkpoints answer. Decoding, lengths and stop rules belong to the tasks."""

    dtype: Precision = "float32"
    """auto: bfloat16 on a GPU that has it"""
    limit: int | None = Field(default=None, ge=1)
    """the first so many documents of every task"""
    part: Literal["all", "validation", "final"] = "all"
    """of every task's documents: those to choose settings on, or those that no choice has seen"""
    validation_share: float = Field(default=0.4, gt=0, lt=1)
    """the share of the documents that are for choosing settings"""
    thinking: bool = False
    """let models reason that can; the answer alone is scored and judged"""

    batch_size: int = Field(default=64, ge=1)
    """hf: prompts at once"""
    static_cache: bool = False
    """hf: a cache of fixed size, compiled on CUDA"""
    continuous: bool = False
    """hf: greedy answers by transformers' continuous batching (not measured)"""
    cudnn_attention: bool = True
    """hf: false keeps cuDNN, which plans anew for each shape, out of attention on CUDA (not measured)"""

    tensor_parallel: int = Field(default=1, ge=1)
    """vllm: devices that hold one model"""
    data_parallel: int = Field(default=1, ge=1)
    """vllm: models that share the prompts"""
    gpu_memory: float = Field(default=0.9, gt=0, le=1)
    """vllm: the share of a device's memory that it takes"""
    max_context: int | None = Field(default=None, ge=16)
    """vllm: tokens; null: the model's own"""

    server: str | None = None
    """openai: its base URL, as in http://localhost:8000/v1"""
    tokenizer: str | None = None
    """openai: whose tokenizer makes the ids; null: the model's, where it is here"""
    in_flight: int = Field(default=32, ge=1)
    """openai: requests at once"""
    timeout_s: float = Field(default=600.0, gt=0)
    """openai: of one request"""

    @field_validator("server")
    @classmethod
    def _no_key_in_url(cls, value: str | None) -> str | None:
        _refuse_key(f"://{value}" if value else "")  # one without a scheme is no URL, and may hold a key
        return value


class SafetyConfig(Section):
    raw_task: str = "hexphi_raw-mini"
    """whose safe rate is RSR"""
    prefill_task: str = "hexphi_prefill-mini"
    """whose safe rate is JSR: the answer is opened with a harmful one's first tokens"""
    prefill_tokens: int = Field(default=3, ge=1)
    """k, the number of those tokens"""
    judged_scope: JudgedScope = "prefill+response"
    """what is judged of a prefilled answer"""


class JudgingConfig(Section):
    """How judges work that are models or servers. Only the first five keys change verdicts."""

    rubric: Path | None = None
    """a text file with your own policy and meaning of the scores 1 to 5"""
    threshold: float | None = None
    """harmful from this score on; null: the judge's own"""
    prompt_files: dict[str, Path] = {}
    """judge: file with its published prompt, where it has a fixed one"""
    engine: Literal["hf", "vllm"] = "hf"
    """of local judges"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """of local judges"""
    batch_size: int = Field(default=16, ge=1)
    """of local judges"""
    in_flight: int = Field(default=32, ge=1)
    """requests at once"""
    timeout_s: float = Field(default=60.0, gt=0)
    """of one request"""
    attempts: int = Field(default=6, ge=1)
    """tries of a request that fails in passing"""
    mode: Literal["direct", "batch"] = "direct"
    """batch: the Batch API"""
    max_cost: float | None = Field(default=None, ge=0)
    """USD in one command"""
    prices: dict[str, tuple[Price, Price]] = {}
    """model: [USD in, USD out] for a million tokens"""


class RayConfig(Section):
    """Where ``executor: ray`` runs cells, and what one takes of a node."""

    address: str | None = None
    """of the head; null: RAY_ADDRESS, a cluster on this machine, or a new one"""
    cpus_per_cell: float = Field(default=1, gt=0)
    """that a cell takes of a node"""
    gpus_per_cell: float | None = Field(default=None, ge=0)
    """null: what the training and the engine use"""
    storage: str | None = None
    """a URL for fsspec (s3://…), where nodes do not share the run folder"""
    retries: int = Field(default=3, ge=0)
    """of a cell whose worker or node is lost"""

    @field_validator("address", "storage")
    @classmethod
    def _no_key_in_url(cls, value: str | None) -> str | None:
        name_alone = r"://[^/:@\s]*@"  # as in abfs://CONTAINER@ACCOUNT: no key
        _refuse_key(re.sub(name_alone, "://", f"://{value or ''}"), "as AWS_SECRET_ACCESS_KEY for s3://")
        return value


class ClassRecord(Section):
    """A class of a file that a command has named: where it was, and what was in it."""

    file: str
    class_name: str
    sha256: str


class TaskRecord(Section):
    """A task of a folder that a command has named: what commands that read the run need to know of it."""

    folder: str
    version: str
    kind: Literal["utility", "safety", "over-refusal"]
    prefilled: bool = False
    counted: bool = False
    depth: int | None = None
    decodings: tuple[dict[str, float], ...] = ()
    foreign: bool = True
    unscored: str = ""


class CodeConfig(Section):
    """Files with code (plugin_files.py). A run's record of them: no recipe may name any, and nothing is ever
    loaded by what stands here."""

    methods: dict[str, ClassRecord] = {}
    judges: dict[str, ClassRecord] = {}
    tasks: dict[str, TaskRecord] = {}
    task_dirs: tuple[str, ...] = ()
    """that this command has named; the run's other folders are in ``tasks``"""


class UtilitySet(Section):
    """Questions with answers in a file of the user's own, and by what an answer is scored."""

    file: Path
    metric: Literal["exact", "contains", "regex", "rouge1"] = "exact"

    @field_validator("metric", mode="before")
    @classmethod
    def _spelled(cls, value: Any) -> Any:
        return re.sub(r"[-_ ]", "", value).lower() if isinstance(value, str) else value


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
    """further rows, name: {method: …, options: {…}, training: {…}}; the last two laid over the recipe's"""
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

    @model_validator(mode="before")
    @classmethod
    def _plain_values(cls, values: Any) -> Any:
        _check_plain(values)
        return values

    @field_validator("checkpoints", "judges")
    @classmethod
    def _no_keys_in_urls(cls, value: Any) -> Any:
        for text in value.values() if isinstance(value, dict) else value:
            _refuse_key(text)
        return value

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, value: str) -> str:
        _check_name(value)
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
        known = _yaml_names("papers")
        if value is not None and value not in known:
            raise ValueError(f"no figures of '{value}' are here; known: {', '.join(known)}")
        return value

    @field_validator("checkpoints", "safety_sets", "utility_sets", "variants")
    @classmethod
    def _safe_names(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            _check_name(name)
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
                raise ValueError(_first_problem(error, TrainingConfig, where)) from None
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
            training = TrainingConfig.model_validate(_merged(training.model_dump(), variant.training))
        options = self.method_options.get(variant.method, {}) | variant.options
        return Row(variant.method, options, training)


def _check_plain(values: Any) -> None:
    """Raises ValueError for what no file could hold: other values than JSON's, control characters."""
    check(values)
    waiting: list[tuple[str, Any]] = [("", values)]
    while waiting:
        where, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [(f"{where}.{key}".lstrip("."), inner) for key, inner in value.items()]
            waiting += [(where, key) for key in value]
        elif isinstance(value, (list, tuple)):
            waiting += [(where, inner) for inner in value]
        elif isinstance(value, (str, Path)):
            if _CONTROL.search(str(value)):
                raise ValueError(f"{printable(where)}: holds a control character")
        elif isinstance(value, int) and abs(value) > LARGEST_INTEGER:
            raise ValueError(f"{printable(where)}: a number with {value.bit_length()} bits is too large")
        elif not (value is None or isinstance(value, (int, float, BaseModel))):
            raise ValueError(f"{printable(where)}: a {type(value).__name__} is no value of a recipe")


def _check_name(name: str) -> None:
    if name.lower().split(".")[0] == WEIGHTS:
        raise ValueError(f"name {name[:40]!r} is that of a run's folders of weights; choose another")
    if not is_name(name):
        raise ValueError(
            f"name {name[:40]!r} may hold up to 100 letters from a to z, digits, '-', '_' and '.'"
        )


def _refuse_key(text: str, variables: str = KEYS) -> None:
    """Raises ValueError for a URL with a key in it: it would be printed and stored."""
    if re.search(r"://[^/\s]*@|://\S*\?", text):
        raise ValueError(
            f"no key in a server's URL, it would be printed; put it into the environment ({variables})"
        )


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


def recipe_names() -> list[str]:
    return _yaml_names("recipes")


def _yaml_names(folder: str) -> list[str]:
    files = (path.name for path in (resources.files("harness") / folder).iterdir())
    return sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml"))


def load(recipe: str | None = None, overrides: dict[str, Any] | None = None) -> RunConfig:
    """A recipe (packaged name or YAML file; default: base_recipe.chosen) with ``overrides`` laid over it.

    Override keys may be dotted (``training.epochs``). One for a real model has what it does not say from
    recipes/base and not from the mini world. Raises UsageError with one line.
    """
    given = dict(overrides or {})
    if recipe is None:
        recipe, implied = base_recipe.chosen(given)
        given = {**implied, **given}
        if recipe == base_recipe.REAL:  # runs of different models have folders of their own
            given.setdefault("name", f"{recipe}-{base_recipe.short_name(str(given['model']))}")
    where, values, families = _read(recipe)
    plugin_files.refuse_in_recipe(values, where)
    values = _laid_over(values, given)
    model = values.get("model")
    if base_recipe.REAL in families and model is None:
        raise UsageError(f"{where}: for which model? add --model MODEL (a folder or a hub name)")
    if base_recipe.MINI not in families and model not in (None, MINI):
        values = _merged(_read(base_recipe.REAL)[1], values)
    return validated(_with_code(values, given), where)


def changed(config: RunConfig, overrides: Mapping[str, Any], where: str) -> RunConfig:
    """A configuration with ``overrides`` (keys may be dotted) laid over it. Raises UsageError."""
    values = config.model_dump()  # not as JSON: what is written leaves keys out
    return validated(_with_code(_laid_over(values, overrides), overrides), where)


def _laid_over(values: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Recipe values with a command's own over them, but for what names files with code (``_with_code``)."""
    for key, value in overrides.items():
        if key.partition(".")[0] == "code":
            raise UsageError(
                f"'{key}' is a run's record; name files with code by --methods FILE.py:CLASS, "
                "--judge FILE.py:CLASS, --task-dir DIR"
            )
        if key != TASK_DIRS:
            put(values, key, value)
    return values


def _with_code(values: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Values, complete but for what a command names by file: that is read here, and its names and record put
    in place: ``methods``, ``judges``, and folders of tasks under ``task_dirs``."""
    folders = given.get(TASK_DIRS) or ()
    code = values.setdefault("code", {})
    own: dict[str, Kind] = {"methods": "method", "judges": "judge"}
    for key, kind in own.items():
        if key in given and isinstance(given[key], (str, list, tuple)):
            wanted = [given[key]] if isinstance(given[key], str) else list(map(str, given[key]))
            values[key], records = plugin_files.named(
                kind, wanted, registry.installed_names(kind), code.get(key) or {}
            )
            code[key] = {**(code.get(key) or {}), **records}
    for folder in [folders] if isinstance(folders, (str, Path)) else folders:
        plugin_files.name_folder(folder)
    code["task_dirs"] = [str(folder) for folder in plugin_files.folders()]
    if code["task_dirs"]:
        code["tasks"] = {**(code.get("tasks") or {}), **_own_tasks(values, needed=bool(folders))}
    return values


def _own_tasks(values: Mapping[str, Any], *, needed: bool) -> dict[str, dict[str, Any]]:
    """The records of the tasks that a run takes from folders that the command names. Raises UsageError where
    one is ``needed`` and it takes none."""
    safety = values.get("safety") or {}
    wanted = [safety.get("raw_task"), safety.get("prefill_task")] if isinstance(safety, dict) else []
    for key in ("utility_tasks", "safety_tasks"):
        names = values.get(key) or ()
        wanted += [names] if isinstance(names, str) else names
    members = benchmarks.groups()
    single = [task for name in wanted if isinstance(name, str) for task in members.get(name, [name])]
    there = benchmarks.of_folders()
    found = {name: there[name].record() for name in single if name in there}
    if needed and not found:
        shown = ", ".join(sorted(there)[:8]) or "none of its YAML files is one"
        raise UsageError(f"--task-dir: which of its tasks? --utility-task or --safety-task ({shown})")
    return found


def validated(values: dict[str, Any], where: str) -> RunConfig:
    """Raises UsageError with ``where`` and pydantic's first finding."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"{where}: {_first_problem(error)}") from None


def parse_setting(text: str) -> tuple[str, Any]:
    """``key=value`` of ``--set``; the value is YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"--set '{text[:60]}': expected key=value, as in --set training.epochs=1")
    try:
        return key.strip(), yaml_value(value)
    except ValueError as error:  # without the value, which may be a key
        raise UsageError(f"--set {key.strip()}: the value is not valid YAML") from error


def _packaged(recipe: str) -> Any:
    """The file of a packaged recipe. ``base`` has the one for models of the user's own, which names none."""
    folder = resources.files("harness") / "recipes"
    return (folder / "base" if recipe == base_recipe.REAL else folder) / f"{recipe}.yaml"


def _read(recipe: str, seen: tuple[str, ...] = ()) -> tuple[str, dict[str, Any], tuple[str, ...]]:
    """Where a recipe is, its keys, laid over those of the one that it ``extends``, and the names of both."""
    names: tuple[str, ...] = (recipe,)
    if recipe in (*recipe_names(), base_recipe.REAL):
        where, text = f"recipe '{recipe}'", _packaged(recipe).read_bytes()
    else:
        path = Path(recipe)
        try:
            where, found = str(path), path.read_bytes() if path.is_file() else None
        except (OSError, ValueError) as error:  # not readable; no path at all
            raise UsageError(f"recipe '{recipe[:60]}': cannot be read ({type(error).__name__})") from error
        if found is None:
            near = difflib.get_close_matches(recipe, recipe_names(), n=1)
            if recipe in registry.METHODS:
                raise UsageError(f"no recipe '{recipe}': a method? --methods {recipe}")
            hint = f"did you mean '{near[0]}'?" if near else f"packaged: {', '.join(recipe_names())}"
            raise UsageError(f"no recipe '{recipe}': neither a file nor a packaged recipe; {hint}")
        text = found
    try:
        values = yaml_value(text)
    except ValueError as error:
        raise UsageError(f"{where}: not valid YAML ({error})") from error
    if not isinstance(values, dict):
        raise UsageError(f"{where}: expected keys and values at the top level")
    base = values.pop("extends", None)
    if base is not None:
        if not isinstance(base, str):
            raise UsageError(f"{where}: extends names one recipe, packaged or a file")
        if base in (*seen, recipe):
            raise UsageError(
                f"{where}: extends goes round in a circle: {' -> '.join([*seen, recipe, str(base)])}"
            )
        _, inherited, further = _read(base, (*seen, recipe))
        names += further
        values = _merged(inherited, {"name": _stem(recipe), **values})
    values.setdefault("name", _stem(recipe))
    return where, values, names


def _stem(recipe: str) -> str:
    return Path(recipe).name.removesuffix(".yaml").removesuffix(".yml")


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """``over`` laid over ``base``, section by section."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def put(values: dict[str, Any], dotted: str, value: Any) -> None:
    """Set a dotted key (``training.epochs``) in nested sections."""
    *sections, last = dotted.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise UsageError(f"'{dotted}': '{section}' is not a section")
    there = values.get(last)
    # One train task's rows on the command line leave those of the recipe's others.
    if dotted in BY_TASK and isinstance(value, dict) and isinstance(there, dict):
        both = {**there, **value}
        by_task = dotted == "train_data" or all(isinstance(one, dict) for one in both.values())
        value = both if by_task else value
    values[last] = value


def _first_problem(error: ValidationError, section: Any = RunConfig, within: tuple[str, ...] = ()) -> str:
    """pydantic's first finding in a section as one line, with the nearest known key for an unknown one."""
    problem = error.errors()[0]
    place = [str(part) for part in problem["loc"]]
    path = [*within, *place]
    if problem["type"] != "extra_forbidden":
        message = problem["msg"].removeprefix("Value error, ")
        return f"{'.'.join(path)}: {message}" if path else message
    for part in place[:-1]:
        named = not hasattr(section, "model_fields")  # a section for each name, as in variants
        section = get_args(section)[1] if named else section.model_fields[part].annotation
    known = list(section.model_fields)
    meant = _meant(path, known)
    hint = f"did you mean '{meant}'?" if meant else f"known: {', '.join(known)}"
    return f"unknown key '{'.'.join(path)}': {hint}"


def _meant(path: Sequence[str], known: Sequence[str]) -> str | None:
    """The key that an unknown one most likely stands for, in its own section or in another: one of the same
    name, one that other trainers call so or whose initials it has, or one that is spelled alike."""
    *sections, last = path
    keys = [] if sections[:1] == ["variants"] else [key for key, *_ in meanings()]
    everywhere = {key.rpartition(".")[2]: key for key in reversed(keys)}  # the first of a name
    if last in everywhere:
        return everywhere[last]
    here = {name: ".".join([*sections, name]) for name in known}
    for find, cutoff in ((_called, 0.0), (_spelled, 0.5)):
        for places, least in ((here, cutoff), (everywhere, 0.8)):
            found = find(last, [*places], least)
            if found:
                return places[found]
    return None


def _called(name: str, known: Sequence[str], cutoff: float) -> str | None:
    plain = name.lower().replace("-", "_")
    other = ELSEWHERE.get(plain)
    if other in known:
        return other
    initials = ("".join(word[0] for word in one.split("_")) for one in known)
    return next((one for one, short in zip(known, initials, strict=True) if short == plain != one), None)


def _spelled(name: str, known: Sequence[str], cutoff: float) -> str | None:
    return next(iter(difflib.get_close_matches(name.lower(), known, n=1, cutoff=cutoff)), None)
