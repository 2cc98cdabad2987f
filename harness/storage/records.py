"""What the files of a run hold, checked where they are read: a run folder may come from anybody.

Rows and records are handed on as they stand, JSON values in which these keys have these types; further keys
are nobody's business. Raises HarnessError with file, line and key for anything else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.contracts import HarnessError, Label, Verdict
from harness.storage.files import file_hash, jsonl_lines, read_json
from harness.text import cut, is_name

Row = dict[str, Any]
LONGEST = {"reason": 2_000, "raw_reply": 20_000, "model": 200, "rubric": 200}
"""Characters of a verdict's texts that are kept: a judge's model or server may send any number."""


class DamagedError(HarnessError):
    """An output that has changed since its stage was done."""


class _Kept(BaseModel):
    model_config = ConfigDict(strict=True)


class Response(_Kept):
    """A line of ``responses.jsonl``."""

    id: str
    document: str
    task: str
    category: str | None
    system: str | None
    prompt: str
    prefill: str
    response: str
    reasoning: str | None = None
    finish_reason: str | None
    unavailable: str | None = None
    goal: str | None = None
    tokens: int | None = None  # None: an answer that was chosen, not written
    metrics: dict[str, float | None]


class VerdictRow(_Kept):
    """A line of ``verdicts.<judge>.jsonl``: the fields of contracts.Verdict and no other."""

    model_config = ConfigDict(extra="forbid")

    exchange_id: str
    judge: str
    judge_version: str
    harmful: bool | None
    label: Label | None
    score: float | None = None
    reason: str | None = None
    scope: str = ""
    model: str | None = None
    rubric: str | None = None
    raw_reply: str | None = None
    input_tokens: int = Field(default=0, ge=0)
    output_tokens: int = Field(default=0, ge=0)
    price_usd: float | None = Field(default=0.0, ge=0, allow_inf_nan=False)
    cached: bool = False


class Output(_Kept):
    bytes: int
    sha256: str


class Marker(_Kept):
    """``<stage>.done.json``."""

    identity: str
    inputs: dict[str, Any]
    outputs: dict[str, Output]


class Documents(_Kept):
    """``task.json``: what was asked."""

    source: str
    version: str
    documents: int
    sha256: str
    missing: dict[str, int] = {}
    unscored: dict[str, int] = {}


class Training(_Kept):
    """``training.json``: what a training cost."""

    train_tokens: int | None = None
    answer_tokens: int | None = None
    examples: int | None = None
    train_flops: float | None = None
    preparation_flops: float | None = None
    train_seconds: float | None = None
    preparation_seconds: float | None = None
    jobs: int | None = None
    tokens_per_second: float | None = None
    mfu: float | None = None
    peak_tflops: float | None = None
    peak_memory_bytes: int | None = None
    processes: int | None = None
    device: str | None = None
    losses: list[float] = []


class Alignment(_Kept):
    """``alignment.json``: what was done, in lines for people, and each alignment's settings and cost."""

    lines: list[str]
    alignments: list[dict[str, Any]]


class Run(_Kept):
    """``run.json``; its configuration is config.RunConfig's to check."""

    config: dict[str, Any]
    fixed: dict[str, Any] = {}
    command: list[str] = []
    started: str = ""
    harness: str = ""
    commit: str | None = None
    python: str = ""
    libraries: dict[str, str] = {}
    hardware: dict[str, str | int | None] = {}
    failures: dict[str, str] = {}
    data: dict[str, Documents] = {}


def responses(folder: Path) -> list[Row]:
    """The answers to a task, in the task's folder."""
    return list(each_response(folder))


def each_response(folder: Path) -> Iterator[Row]:
    """The same, one at a time: a task may have very many. Raises DamagedError where the file is no more as
    its marker has it."""
    return _rows(_as_written(folder, "respond", "responses.jsonl"), Response)


def each_verdict(folder: Path, stage: str, name: str) -> Iterator[Row]:
    """A judge's verdicts, in the task's folder. Raises DamagedError as ``each_response`` does."""
    return _rows(_as_written(folder, stage, name), VerdictRow, "; remove it and judge again")


def verdict_rows(rows: list[Row]) -> list[Row]:
    """Those that are verdicts, of rows that need not be."""
    return [row for row in rows if _problem(row, VerdictRow) is None]


def verdict_problem(verdict: Any) -> str | None:
    """What keeps a judge's verdict from being written; a label is quoted where it is a name, and no text."""
    if not isinstance(verdict, Verdict):
        return f"yields {type(verdict).__name__} and no Verdict"
    label, known = verdict.label, get_args(Label)
    if isinstance(label, str) and label not in known and is_name(label):
        return f"label '{label}' is none of {', '.join(known)}; what else it has found goes into reason"
    if not isinstance(verdict.harmful, bool | None):
        return f"harmful must be True, False or None, not {type(verdict.harmful).__name__}"
    return _problem(asdict(verdict), VerdictRow)


def bounded(verdict: Verdict) -> Verdict:
    """The verdict with its texts cut at LONGEST, each with a mark that says so."""
    texts = {name: getattr(verdict, name) for name in LONGEST}
    kept: dict[str, Any] = {name: cut(text, LONGEST[name]) for name, text in texts.items() if text}
    return replace(verdict, **kept)


def marker(path: Path) -> Row:
    return _record(path, Marker)


def documents(folder: Path) -> Row:
    """What was asked of a task, in the task's folder."""
    return _record(_as_written(folder, "respond", "task.json"), Documents)


def training(folder: Path) -> Row:
    """A cell's training, in the cell's folder."""
    return _record(_as_written(folder, "train", "training.json"), Training)


def alignment(path: Path) -> Row:
    """What a run's tables say of its aligned base models."""
    return _record(path, Alignment)


def run(out: Path) -> Row:
    """A run folder's record. Raises HarnessError where there is none."""
    if not (out / "run.json").is_file():
        raise HarnessError(f"{out}: no run.json; not a run folder")
    return _record(out / "run.json", Run)


def _as_written(folder: Path, stage: str, name: str) -> Path:
    """A stage's output. Raises DamagedError where it has changed since its marker was written: somebody has
    edited it, or a disk has. (A marker is no signature: who edits both is not found out.)"""
    path, recorded = folder / name, marker(folder / f"{stage}.done.json")["outputs"].get(name)
    if recorded is None or not path.is_file() or file_hash(path) != recorded["sha256"]:
        raise DamagedError(f"{path} is not as its marker has it; the command that made it makes it anew")
    return path


def _rows(path: Path, kind: type[_Kept], mend: str = "") -> Iterator[Row]:
    for number, row in jsonl_lines(path):
        problem = _problem(row, kind)
        if problem:
            raise HarnessError(f"{path}, line {number}: not what the harness writes there ({problem}){mend}")
        yield row


def _record(path: Path, kind: type[_Kept]) -> Row:
    value = read_json(path)
    problem = _problem(value, kind)
    if problem:
        raise HarnessError(f"{path}: not what the harness writes there ({problem})")
    record: Row = value
    return record


def _problem(value: Any, kind: type[_Kept]) -> str | None:
    """The first thing that is not as it must be, without quoting it."""
    try:
        kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_input=False, include_context=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        return f"{where}: {first['msg']}" if where else first["msg"]
    return None
