"""The sections of a recipe, each key with its type, its limits and what it means."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    field_serializer,
    field_validator,
    model_validator,
)

from harness.contracts import JudgedScope
from harness.reading import check
from harness.text import WEIGHTS, is_name, printable, without_keys

# Training keys that change no result, and those that came later: left out of a training's identity where they
# say what held before there were any, so that older trainings stay what they are.
NO_EFFECT = ("save_steps", "report_to", "launcher", "peak_tflops", "expandable_segments")
LATER = ("chunked_loss", "cudnn_attention", "adapter_casts")
OF_THE_RUN = (*NO_EFFECT, "max_examples", "device")  # training keys that all rows of a run share
LARGEST_INTEGER = 2**63 - 1
KEYS = "HARNESS_API_KEY, JUDGE_API_KEY"
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
    """A row of its own: a method under other options, trained otherwise, or from another base model, than the
    recipe says."""

    method: str
    options: dict[str, Any] = {}
    """laid over the recipe's method_options of the method"""
    training: dict[str, Any] = {}
    """laid over the recipe's section training; not OF_THE_RUN"""
    model: str | None = None
    """its base model; null: the run's"""
    alignment: dict[str, Any] = {}
    """of its base model: laid over the recipe's section alignment (method, options, training, seed)"""

    @model_validator(mode="after")
    def _one_base_model(self) -> VariantConfig:
        if self.model is not None and self.alignment:
            raise ValueError("give its base model, or how that is aligned, not both")
        unknown = sorted(self.alignment.keys() - {"method", "options", "training", "seed"})
        if unknown:
            raise ValueError(f"alignment.{unknown[0]}: all rows share it; set alignment.{unknown[0]}")
        return self


class AlignmentConfig(Section):
    """How ``model`` is made safe before anything is fine-tuned; the result is the run's base model."""

    method: str | None = None
    """any method that trains on safety data; null: the model is taken as it is"""
    options: dict[str, Any] = {}
    """of that method"""
    requests: tuple[str, ...] = ()
    """files of harmful requests: some to refuse in alignment, the others to evaluate"""
    held_out: int = Field(default=150, ge=1)
    """so many requests are evaluated; no near copy of them is aligned on"""
    harmless: str | None = None
    """harmless rows beside the refusals: a file or hub data set; null: Alpaca, from the hub"""
    training: dict[str, Any] = {}
    """laid over the recipe's section training"""
    seed: int = Field(default=42, ge=0, lt=2**32)
    """of the split of the requests, and of the training"""

    @field_validator("requests", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (str(value),) if isinstance(value, str | Path) else value


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
        refuse_key(f"://{value}" if value else "")  # one without a scheme is no URL, and may hold a key
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
        refuse_key(re.sub(name_alone, "://", f"://{value or ''}"), "as AWS_SECRET_ACCESS_KEY for s3://")
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


def check_plain(values: Any) -> None:
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


def check_name(name: str) -> None:
    if name.lower().split(".")[0] == WEIGHTS:
        raise ValueError(f"name {name[:40]!r} is that of a run's folders of weights; choose another")
    if not is_name(name):
        raise ValueError(
            f"name {name[:40]!r} may hold up to 100 letters from a to z, digits, '-', '_' and '.'"
        )


def refuse_key(text: str, variables: str = KEYS) -> None:
    """Raises ValueError for a URL with a key in it: it would be printed and stored."""
    if re.search(r"://[^/\s]*@|://\S*\?", text):
        raise ValueError(
            f"no key in a server's URL, it would be printed; put it into the environment ({variables})"
        )
