"""``harness card``: a checkpoint's README.md for the Hugging Face hub, with its scores as ``model-index``.

What the run's records say of one checkpoint: how it was made, what was measured, by whom judged, and what was
not measured. Names and figures alone; no answer and no request.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from harness.config import RunConfig
from harness.contracts import HarnessError, UsageError
from harness.judging import verdict_files
from harness.leaderboard import publish, tables
from harness.leaderboard.health import NOT_MEANINGFUL
from harness.leaderboard.markdown import escaped
from harness.leaderboard.outcomes import SAFE
from harness.leaderboard.tables import BASELINE, DONE, Row
from harness.models import checkpoints
from harness.plugins import registry
from harness.run import metrics, run_folder
from harness.run.metrics import Metric
from harness.run.plan import SEED, Cell
from harness.run.resolve import resolve
from harness.storage import records

TASK_TYPE = "text-generation"
IDENTITY = ("version", "model", "rubric", "threshold", "spec")  # of a judge; not its server or its folders
BESIDE = ("refusals", "delta", "delta_low", "delta_high", "p")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Figure:
    """One score of the checkpoint, in percent, with where it comes from."""

    task: str
    metric: str
    headline: Metric | None  # that it is, of those with a task of their own
    judge_name: str  # "" for what is scored by rule
    judge: Row  # its identity
    scope: str
    system_prompt: str | None  # the method's own, where it answers under one
    k: int | None
    documents: Row  # task.json
    value: float | None
    low: float | None
    high: float | None
    n: int
    unjudged: int
    seed_value: float | None  # the base model's
    beside: Row  # what else the leaderboard says: refusals, and the difference from vanilla

    @property
    def is_meaningless(self) -> bool:
        """Whether it is the safe rate of a checkpoint that hardly answers."""
        return self.value is None and self.n > 0

    @property
    def name(self) -> str:
        opened = f", k = {self.k}" if self.k is not None else ""
        if self.headline is not None:
            return (self.headline.on_card or self.headline.in_full) + opened
        return ("safe rate" if self.metric == SAFE else self.metric) + opened

    def result(self) -> EvalResult:
        """As the hub's ``model-index`` has it; the interval and the judge are the metric's arguments."""
        source = self.documents["source"]
        path, _, revision = source.removeprefix("hub ").partition("@")
        hub = source.startswith("hub ")
        figures = {
            "judge": self.judge_name or None,
            **{f"judge_{name}": value for name, value in self.judge.items()},
            "judged": self.scope or None,
            "prefill_tokens": self.k,
            "interval_95": None if self.low is None else [self.low, self.high],
            "n": self.n,
            "unjudged": self.unjudged,
            "refusals": self.beside.get("refusals"),
        }
        return EvalResult(
            task_type=TASK_TYPE,
            task_name=self.task,
            dataset_type=path if hub else self.task,
            dataset_name=self.task if hub else f"{self.task} ({source})",
            dataset_config=self.task,
            dataset_revision=revision or None,
            dataset_args={name: self.documents[name] for name in ("version", "documents", "sha256")},
            metric_type="safe_rate" if self.metric in (SAFE, *metrics.judged()) else self.metric,
            metric_name=f"{self.name}{f', judged by {self.judge_name}' if self.judge_name else ''}",
            metric_value=self.value,
            metric_args={name: value for name, value in figures.items() if value is not None},
        )


def card(run: Path, method: str, *, train_task: str | None = None, seed: int | None = None) -> str:
    """The README.md of the checkpoint that a run has of ``method``: metadata and Markdown.

    ``train_task`` and ``seed`` may be left out where the run has one. Raises UsageError for a checkpoint that
    it does not have, HarnessError for one that failed or is not scored.
    """
    config = run_folder.stored_config(run)
    cell = _cell(config, method, train_task, seed)
    with run_folder.lock(run):
        publish.publish(config, run)
        record = records.run(run)
        frame = tables.read(run)
        rows = [row for row in tables.records(frame) if _is(row, cell, config)]
        failed = next((row["status"] for row in rows if row["status"] != DONE), None)
        if failed or not rows:
            raise HarnessError(f"{run}: no card for {cell.label}, which is {failed or 'not scored'}")
        figures = list(_figures(config, run, cell, rows))
        training = records.training(run / cell.folder) if cell.kind == "trained" else None
    name = "-".join(dict.fromkeys(part for part in (_base(config), cell.train_task, method) if part))
    name = name.replace("/", "-")
    folder = run / cell.folder / "checkpoint"
    if cell.kind == "checkpoint":
        folder = Path(config.checkpoints[method])
    data = ModelCardData(
        model_name=name,
        base_model=_hub_name(config.model) if cell.kind == "trained" else None,
        datasets=_hub_name((_source(config, cell) or "").partition(":")[0].partition("@")[0]),
        library_name="peft" if checkpoints.is_adapter(folder) else "transformers",
        pipeline_tag=TASK_TYPE,
        tags=["safety", "safetune-harness", *([method] if cell.kind == "trained" else [])],
        eval_results=[figure.result() for figure in figures if figure.value is not None],
    )
    whole = [f"{line}." for line in (tables.health(rows[:1]), tables.unhealthy(rows[0])) if line]
    body = _body(config, cell, name, record, figures, training, [*whole, *frame.attrs["notes"]])
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}"))  # which reads and checks the metadata


# --- the checkpoint and its scores -----------------------------------------------------------------


def _cell(config: RunConfig, method: str, train_task: str | None, seed: int | None) -> Cell:
    """The one cell that is meant."""
    cells = resolve(config).cells()
    found = [cell for cell in cells if cell.method == method]
    if not found:
        raise registry.unknown("method of this run", method, {cell.method for cell in cells})
    for flag, wanted, value in (("--train-task", train_task, "train_task"), ("--seed", seed, "seed")):
        there = list(dict.fromkeys(getattr(cell, value) for cell in found))
        if there == [None]:
            continue
        if wanted is None and len(there) > 1:
            raise UsageError(f"the run has {method} {len(there)} times: add {flag} {there[0]} (or another)")
        if wanted is not None and wanted not in there:
            raise UsageError(f"{flag} {wanted}: the run has {method} with {', '.join(map(str, there))}")
        found = [cell for cell in found if getattr(cell, value) == (there[0] if wanted is None else wanted)]
    return found[0]


def _is(row: Row, cell: Cell, config: RunConfig) -> bool:
    """Whether a row is the cell's. One that is not trained here has one for every train task and seed."""
    seeds = (str(config.seeds[0]), "") if cell.seed is None else (str(cell.seed),)  # "": trained elsewhere
    same = row["method"] == cell.method and row["seed"] in seeds
    return same and cell.train_task in (None, row["train_task"])


def _figures(config: RunConfig, run: Path, cell: Cell, rows: Sequence[Row]) -> Iterator[Figure]:
    """Each score over all of a task's documents."""
    everything = [row for row in tables.records(tables.read_scores(run)) if not row["category"]]
    seeds = {(row["task"], row["metric"], row["judge"]): row for row in everything if row["method"] == SEED}
    seen = set()
    for row in everything:
        key = (row["task"], row["metric"], row["judge"])
        if not _is(row, cell, config) or key in seen:
            continue
        seen.add(key)
        folder = run / cell.folder / row["task"]
        judged = (
            records.marker(folder / verdict_files.marker_file(row["judge"]))["inputs"] if row["judge"] else {}
        )
        asked = records.marker(folder / "respond.done.json")["inputs"]
        yield Figure(
            task=row["task"],
            metric=row["metric"],
            headline=(headline := metrics.of_score(config, row["task"], row["metric"])),
            judge_name=_public(row["judge"]),
            judge={
                name: v for name, v in judged.get("judge", {}).items() if name in IDENTITY and v is not None
            },
            scope=judged.get("scope", ""),
            system_prompt=asked.get("inference_system_prompt", [None])[0],
            k=asked.get("prefill_tokens"),
            documents=records.documents(folder),
            **{name: row[name] for name in ("value", "low", "high", "n", "unjudged")},
            seed_value=seeds.get(key, {}).get("value") if cell.method != SEED else None,
            beside=_beside(rows, row, headline),
        )


def _beside(rows: Iterable[Row], score: Row, headline: Metric | None) -> Row:
    """What the leaderboard holds beside a score: refusals, difference from vanilla, its interval and p."""
    for row in rows:
        column = headline.name if headline else score["task"]
        for one in metrics.METRICS:
            source = (row.get(f"{one.name}_task"), row.get(f"{one.name}_metric"))
            if one.task is None and source == (score["task"], score["metric"]):
                column = one.name
        if score["judge"] in ("", row["judge"]):
            return {end: row.get(f"{column}_{end}") for end in BESIDE}
    return {}


def _shown(model: str) -> str:
    """A model's name for the public: of a folder the last part, since paths are nobody's business."""
    return _hub_name(model) or Path(model).name


def _base(config: RunConfig) -> str:
    return config.aligned or _shown(config.model)


def _public(judge: str) -> str:
    """A judge's name without a server's address or a file's folder."""
    name, _, server = judge.partition("@")
    return Path(name).name if name.endswith((".yaml", ".yml")) else name if "://" in server else judge


def _hub_name(name: str) -> str | None:
    """The name if it can be one on the hub, and is no folder here."""
    return name if HUB_NAME.fullmatch(name) and not Path(name).exists() else None


# --- the text --------------------------------------------------------------------------------------


def _body(
    config: RunConfig,
    cell: Cell,
    name: str,
    record: Row,
    figures: Sequence[Figure],
    training: Row | None,
    notes: Sequence[str],
) -> str:
    made = f"{_base(config)}, fine-tuned on {cell.train_task} with {cell.method}" if training else cell.method
    elsewhere = cell.kind == "checkpoint" and cell.method not in config.trained_on
    control = "the base model" if elsewhere else BASELINE
    parts = [
        f"# {escaped(name)}",
        escaped(f"{made}. How safe it is and how skilled, as safetune-harness measured it."),
        "## Safety and utility",
        _table(figures, control),
        _list([*_reading(figures, control), *notes]),
        "## How it was made",
        _list(_making(config, cell, training)),
        "## How it was measured",
        _list(_measuring(config, record, figures)),
        "## What was not measured",
        _list(_left_out(config, cell, figures)),
        "## Licence",
        "None is stated here. Who publishes this checkpoint adds `license` to the metadata above, as those "
        "of the base model and the data allow.",
    ]
    return "\n\n".join(parts) + "\n"


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {escaped(line)}" for line in lines)


def _table(figures: Iterable[Figure], control: str) -> str:
    head = ["figure", "task", "judge", "value", "n", "unjudged", "refusals", "base model", f"Δ {control}"]
    lines = [head, ["---", "---", "---", *["---:"] * 6]]
    for figure in figures:
        texts = [figure.name, figure.task, figure.judge_name or "by rule"]
        lines.append(
            [
                *map(escaped, texts),
                NOT_MEANINGFUL if figure.is_meaningless else _figure(figure.value, figure.low, figure.high),
                str(figure.n),
                str(figure.unjudged),
                _figure(figure.beside.get("refusals")),
                _figure(figure.seed_value),
                _difference(figure.beside),
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _figure(value: float | None, low: float | None = None, high: float | None = None) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" + ("" if low is None or high is None else f" [{low:.2f}, {high:.2f}]")


def _difference(beside: Row) -> str:
    delta, low, high = (beside.get(name) for name in ("delta", "delta_low", "delta_high"))
    if delta is None:
        return ""
    return f"{delta:+.2f}" + ("" if low is None or high is None else f" [{low:+.2f}, {high:+.2f}]")


def _reading(figures: Sequence[Figure], control: str) -> list[str]:
    named = f"{control} fine-tuning" if control == BASELINE else control
    lines = [f"Percent, higher is better, with 95 % intervals; Δ: points against {named}, paired."]
    lines.append(
        "Safe: a judge found no harmful help in the answer, which may be a refusal or rubbish; "
        "refusals: the share of the judged answers that refuse."
    )
    for figure in figures:
        if figure.unjudged and not figure.is_meaningless:
            safe = round(figure.n * (figure.value or 0) / 100)
            total = figure.n + figure.unjudged
            low, high = 100 * safe / total, 100 * (safe + figure.unjudged) / total
            lines.append(
                f"{figure.name} by {figure.judge_name}: {figure.unjudged} answers could not be judged; were "
                f"all of them harmful, or all safe: {low:.1f} to {high:.1f}."
            )
    return lines


def _source(config: RunConfig, cell: Cell) -> str | None:
    """What a checkpoint was trained on here, beside its task's own rows."""
    return config.train_source(cell.train_task) if cell.train_task else None


def _making(config: RunConfig, cell: Cell, training: Row | None) -> list[str]:
    if training is None:
        return [f"Not trained by safetune-harness; compared with the base model {_base(config)}."]
    budget = config.training
    options = config.method_options.get(cell.method, {})
    chosen = f" ({', '.join(f'{key} = {value}' for key, value in options.items())})" if options else ""
    mixed = [f"{share:.0%} from {Path(source).name}" for source, share in config.mix.items()]
    source = _source(config, cell)
    rows = Path(source).name if source else "the train task's own rows"
    examples = ", ".join([f"{training['examples']} examples", *mixed])
    return [
        f"Base model: {_base(config)}.",
        f"Method: {cell.method}{chosen}: {_summary(config, config.row(cell.method).method)}.",
        f"Data: {cell.train_task}, {rows}, {examples}.",
        f"Budget: epochs {budget.epochs}, learning rate {budget.learning_rate:g} ({budget.schedule}), "
        f"{budget.batch_size} examples a step, {budget.tuning} tuning, {budget.dtype}; seed {cell.seed}.",
        f"Cost: {training['train_tokens']} tokens, {training['train_flops']:.3g} FLOPs, "
        f"{training['train_seconds']:.0f} s on {training['processes']} x {training['device']}.",
    ]


def _summary(config: RunConfig, method: str) -> str:
    """What a method is. One of a file of somebody's own is not loaded for it."""
    record = config.code.methods.get(method)
    if record is not None:
        return f"{record.class_name} of {Path(record.file).name} (SHA-256 {record.sha256[:16]}…)"
    summary: str = resolve(config).method_class(method).summary
    return summary


def _measuring(config: RunConfig, record: Row, figures: Iterable[Figure]) -> list[str]:
    found: dict[str, None] = {}
    for figure in figures:
        documents = figure.documents
        found[
            f"{figure.task}: version {documents['version']}, {documents['documents']} documents "
            f"({documents['source']}; SHA-256 {documents['sha256'][:16]}…)."
        ] = None
    for figure in figures:
        if figure.judge_name:
            identity = ", ".join(f"{name} {value}" for name, value in figure.judge.items())
            found[f"Judge {figure.judge_name}: {identity}; reads {figure.scope} of an opened answer."] = None
    for figure in figures:
        if figure.system_prompt is not None:
            found[
                "Under the method's own system prompt, without which this is another model: "
                f"{figure.system_prompt}"
            ] = None
    versions = ", ".join(f"{name} {version}" for name, version in record.get("libraries", {}).items())
    commit = f", commit {record['commit'][:12]}" if record.get("commit") else ""
    return [
        *found,
        f"Answers: engine {config.engine}, {config.responses.dtype}; decoding as the tasks say.",
        f"safetune-harness {record.get('harness')}{commit}; {versions}.",
    ]


def _left_out(config: RunConfig, cell: Cell, figures: Sequence[Figure]) -> list[str]:
    kinds = {resolve(config).benchmark(task).kind for task in cell.tasks}
    depths = sorted({figure.k for figure in figures if figure.k is not None})
    lines = [
        "Attacks other than the tasks above: jailbreak prompts, longer conversations, further fine-tuning"
        + (f", answers opened with other than {' or '.join(map(str, depths))} tokens." if depths else "."),
        "How often the judges err (harness agreement compares them with people's labels).",
        "Languages, domains and skills that the tasks above do not hold.",
    ]
    if "over-refusal" not in kinds:
        lines.insert(0, "Over-refusal: whether harmless requests are answered.")
    if config.responses.limit:
        lines.append(f"More than the first {config.responses.limit} documents of each task.")
    if cell.seed is not None:
        lines.append("Other training seeds: this is one checkpoint, not the method in general.")
    return lines
