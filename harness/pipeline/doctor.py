"""``harness doctor``: whether this machine can do what a recipe asks, each finding with its mend.

It reads and asks; it trains nothing, downloads nothing and never shows a key.
"""

from __future__ import annotations

import os
import platform
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.config import RunConfig
from harness.contracts import HarnessError
from harness.data import loading
from harness.engines import select
from harness.generation import lm_tasks
from harness.generation import stage as generation
from harness.judging import session
from harness.models import checkpoints
from harness.pipeline import estimate, needs, other_models
from harness.plugins import registry
from harness.run import plan
from harness.run.context import RunContext
from harness.servers import http_client

REACH_S = 10.0  # how long a server or the hub may take to answer
SPARE_BYTES = 2 * 2**30  # free disk beyond what the checkpoints take
HOST_SHARE = 2.5  # of the weights: what loading and a training's start hold in memory
STYLES = {"pass": "green", "warn": "yellow", "fail": "red"}


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, how it is, and, unless it passes, what to do about it."""

    status: Literal["pass", "warn", "fail"]
    about: str
    found: str
    mend: str = ""


def examine(config: RunConfig, out: Path) -> list[Finding]:
    """Everything that a run of ``config`` into ``out`` needs. A check that itself breaks is a finding."""
    shop = RunContext(config, out)
    checks: tuple[Callable[[RunContext], Iterator[Finding]], ...] = (
        _packages,
        _names,
        _plan,
        _needs,
        _device,
        _packing,
        _memory,
        _disk,
        _model,
        _data,
        _rows,
        _engine,
        _judges,
    )
    found: list[Finding] = []
    for check in checks:
        try:
            found += check(shop)
        except HarnessError as error:
            found.append(Finding("fail", check.__name__.strip("_"), str(error)))
        except Exception as error:
            what = f"could not be looked at ({type(error).__name__})"
            found.append(Finding("warn", check.__name__.strip("_"), what, "harness --debug doctor shows why"))
    return found


# --- the installation ------------------------------------------------------------------------------


def _packages(shop: RunContext) -> Iterator[Finding]:
    yield Finding("pass", "python", f"{platform.python_version()} ({sys.executable})")
    try:
        needed = metadata.requires(registry.DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        needed, what = _needed_by_tree(), f"{registry.DISTRIBUTION} is not installed"
        tree = Path(registry.__file__).parents[2]
        what += f": it runs from {tree}" if needed else ", and what it needs cannot be looked up"
        yield Finding("warn", "installation", what, "pip install -c constraints.txt -e .")
    wrong = []
    for text in needed:
        wanted = Requirement(text)
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{wanted.name} is missing")
            continue
        if not wanted.specifier.contains(version, prereleases=True):
            wrong.append(f"{wanted.name} {version}, needs {wanted.specifier}")
    mend = "install again into an environment of its own: pip install -c constraints.txt -e ."
    if wrong:
        yield Finding("fail", "packages", "; ".join(wrong), mend)
    else:
        shown = ", ".join(f"{name} {version}" for name, version in shop.libraries.items())
        yield Finding("pass", "packages", shown)


def _needed_by_tree() -> list[str]:
    """What a source tree says that it needs; [] where there is no tree."""
    try:
        text = (Path(registry.__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
        return list(tomllib.loads(text)["project"]["dependencies"])
    except (OSError, ValueError, KeyError):
        return []


def _names(shop: RunContext) -> Iterator[Finding]:
    foreign = registry.foreign_packages()
    for what, mend in foreign:
        yield Finding("fail", "import names", what, mend)
    if not foreign:
        home = Path(registry.__file__).parents[2]
        names = ", ".join(registry.IMPORT_NAMES)
        yield Finding("pass", "import names", f"{names} are ours alone, all in {home}")


# --- the recipe on this machine ----------------------------------------------------------------------


def _plan(shop: RunContext) -> Iterator[Finding]:
    cells = shop.cells()
    plan.check_judges(shop.config.judges)
    yield Finding("pass", "recipe", f"{shop.config.name}: {len(cells)} checkpoints to score")


def _needs(shop: RunContext) -> Iterator[Finding]:
    """Packages of trackers, tunings and judges' engines; the options and the own code of each method."""
    missing = needs.missing(shop.config)
    for what, mend in missing:
        yield Finding("fail", what.partition(":")[0].partition(" is ")[0], what, mend)
    if not missing:
        yield Finding("pass", "needed packages", "trackers, tunings and engines have theirs")
    needs.check_methods(shop, plan.methods(shop.config))
    if checkpoints.is_here(shop.config.model) and not any(map(_of_hub, _sources(shop.config))):
        needs.try_out(shop, shop.cells())


def _device(shop: RunContext) -> Iterator[Finding]:
    import torch

    wanted, count = shop.config.training.device, torch.cuda.device_count()
    names = ", ".join(
        f"{torch.cuda.get_device_name(i)} ({torch.cuda.get_device_properties(i).total_memory / 1e9:.0f} GB)"
        for i in range(count)
    )
    cores = f"{os.cpu_count()} CPU cores, torch {torch.__version__}"
    if wanted == "cuda" and not count:
        mend = "a CUDA build of torch and its driver (nvidia-smi), or --set training.device=cpu"
        yield Finding("fail", "device", f"the recipe wants CUDA and torch sees none ({cores})", mend)
        return
    needed = shop.config.training.num_processes
    if count and needed > count:
        mend = f"--num-processes {count}, or --launcher for several machines"
        yield Finding("fail", "device", f"the recipe wants {needed} devices; here: {names}", mend)
        return
    if count and shop.config.training.dtype == "bfloat16" and not torch.cuda.is_bf16_supported():
        yield Finding("fail", "bfloat16", f"{names}: no bfloat16", "--set training.dtype=float32")
    yield Finding("pass", "device", names or cores)


def _packing(shop: RunContext) -> Iterator[Finding]:
    """Where rows are to be packed on a GPU, whether its kernel takes them: else they are padded."""
    trained = [cell for cell in shop.cells() if cell.kind == "trained"]
    rows = [shop.config.row(cell.method).training for cell in trained]
    packed = {row.dtype for row in rows if row.batching == "padding-free" and row.attention == "auto"}
    if not packed or not estimate.on_cuda(shop):
        return
    no_kernel = registry.load_object("harness.training.attention:no_kernel")
    for dtype in sorted(packed):
        reason = no_kernel(shop.device, dtype, _language_part(shop))
        if reason:
            line = f"padding-free becomes grouped here, which is slower: {reason}"
            mend = "--set training.dtype=bfloat16, or a torch whose kernel takes this model on this device"
            yield Finding("warn", "batching", line, mend)
        else:
            yield Finding("pass", "batching", "padding-free: the device's kernel takes packed rows")


def _language_part(shop: RunContext) -> Any:
    """The model's configuration, as far as it reads text; None where it is not here."""
    if not checkpoints.is_here(shop.config.model):
        return None
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(shop.seed_folder, trust_remote_code=False).get_text_config()


def _memory(shop: RunContext) -> Iterator[Finding]:
    import psutil

    known = estimate.architecture(shop)
    if known is None:
        what = f"the size of {shop.config.model} is not known yet"
        yield Finding("warn", "memory", what, "fetch the model first")
        return
    trained = estimate.training_memory(shop, shop.cells(), known)
    if trained is None:
        return
    needed, free = trained.together, estimate.free_memory(shop)
    many = f"{trained.jobs} trainings side by side take" if trained.jobs > 1 else "training takes"
    line = f"{many} at most about {needed / 1e9:.1f} GB a device, {free / 1e9:.1f} GB are free"
    if needed > free:
        mend = "--tuning lora, gradient_checkpointing, a smaller micro_batch_size, or --num-processes"
        mend = f"fewer --jobs, {mend}" if trained.jobs > 1 else mend
        yield Finding("fail" if needed > 1.2 * free else "warn", "memory", line, mend)
    else:
        yield Finding("pass", "memory", line)
    largest = max((other_models.size(shop, row) for row in plan.methods(shop.config)), default=0)
    host = HOST_SHARE * 4 * known.parameters + largest
    if estimate.on_cuda(shop) and host > psutil.virtual_memory().available:
        yield Finding("warn", "host memory", f"about {host / 1e9:.0f} GB to load and save", "free some")


def _disk(shop: RunContext) -> Iterator[Finding]:
    place, free = estimate.disk_at(shop.out)
    if not os.access(place, os.W_OK):
        yield Finding("fail", "run folder", f"{place} cannot be written", "another --out")
        return
    known = estimate.architecture(shop)
    if known is None:
        yield Finding("pass", "disk", f"{free / 1e9:.0f} GB free at {place}")
        return
    cells = shop.cells()
    whole = estimate.checkpoints_bytes(shop, cells, known) + estimate.state_bytes(known) + SPARE_BYTES
    count = sum(cell.kind == "trained" for cell in cells)
    spare = estimate.gigabytes(SPARE_BYTES)
    line = f"a run takes about {estimate.gigabytes(whole)} ({count} checkpoints, {spare} to spare), "
    line += f"{estimate.gigabytes(free)} are free at {place}"
    if whole > free:
        yield Finding("fail", "disk", line, "another --out, or harness clean on old runs")
    else:
        yield Finding("pass", "disk", line)


# --- what comes from elsewhere -----------------------------------------------------------------------


def _model(shop: RunContext) -> Iterator[Finding]:
    config = shop.config
    for name in dict.fromkeys([config.model, *config.checkpoints.values(), *other_models.named(config)]):
        if not (name.startswith(checkpoints.SERVER) or checkpoints.is_here(name)):
            yield _on_hub(name, "model")
        elif not name.startswith(checkpoints.SERVER):
            yield _whole(name)


def _whole(name: str) -> Finding:
    """Whether a folder's tensors are its model's, or an adapter's its base's, by their names and shapes."""
    try:
        checkpoint = checkpoints.checkpoint(name)
        assert checkpoint.folder is not None
        found = checkpoints.fit(checkpoint)
        stops = checkpoints.declared_stops(checkpoint.base or checkpoint.folder)
        rows = {"rows": found.rows} if found else {}
        checkpoints.stop_ids(stops, checkpoints.load_tokenizer(checkpoint.folder), **rows)
    except HarnessError as error:
        return Finding("fail", "model", str(error), "give a whole model, or save it again")
    notes = "; ".join(found.notes) if found else "its weights are looked at only when they are loaded"
    if notes:
        return Finding("warn", "model", notes, "look whether that is what you want to measure")
    return Finding("pass", "model", f"{name} is here and whole: {checkpoint.folder}")


def _data(shop: RunContext) -> Iterator[Finding]:
    """Local files are read (by line); data sets of the hub are asked for."""
    tasks = dict.fromkeys(task for cell in shop.cells() for task in cell.tasks)
    asked: dict[str, Finding] = {}
    for task in tasks:
        benchmark = shop.benchmark(task)
        if lm_tasks.files(shop, benchmark) and checkpoints.is_here(shop.config.model):
            shop.load_task(task, str(shop.seed_folder))
        elif benchmark.hub:
            path = benchmark.hub.partition("@")[0]
            asked.setdefault(path, _on_hub(path, "dataset", benchmark.local_data))
    yield from asked.values()
    if not any(finding.status != "pass" for finding in asked.values()):
        yield Finding("pass", "evaluation data", f"{len(tasks)} tasks have theirs, or can fetch it")


def _rows(shop: RunContext) -> Iterator[Finding]:
    """What is trained on: files are read, by line and column; data sets of the hub are asked for."""
    config = shop.config
    methods = [shop.method(name) for name in plan.methods(config)]
    if not methods:
        return
    sources = _sources(config)
    for one in dict.fromkeys(filter(None, sources)):
        named = loading.HUB_NAME.fullmatch(one) if _of_hub(one) else None
        if named:
            yield _on_hub(named["name"], "dataset")
    for task in config.train_tasks:
        train_task = shop.train_task(task)
        source = config.train_source(task)
        if (source and not _of_hub(source)) or config.columns_of(task):
            yield Finding("pass", f"rows of {task}", f"{len(shop.examples(train_task)):,} from {source}")
        if any(method.needs_safety_data for method in methods) and not _of_hub(config.safety_data):
            shop.safety_examples(train_task)


def _sources(config: RunConfig) -> list[str | None]:
    """Where the rows of a run's trainings come from; None: a train task's own, which may be on the hub."""
    given = [config.train_source(task) for task in config.train_tasks]
    return [*given, *config.mix, *([config.safety_data] if config.safety_data else [])]


def _of_hub(source: str | None) -> bool:
    return source is not None and source != checkpoints.MINI and not loading.is_local(source)


def _on_hub(name: str, kind: Literal["model", "dataset"], local: str | None = None) -> Finding:
    """Whether the hub gives it to this user."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    page = f"https://huggingface.co/{'datasets/' * (kind == 'dataset')}{name}"
    own = f"--data {local}=FILE" if local else "a local folder for --model" if kind == "model" else ""
    or_own = f", or {own}" if own else ""
    try:
        HfApi().auth_check(name, repo_type=kind)
    except GatedRepoError:
        mend = f"accept its licence at {page}, then hf auth login{or_own}"
        return Finding("fail", f"{kind} {name}", "gated, and not open to you", mend)
    except RepositoryNotFoundError:
        mend = f"look whether the name is right, and hf auth login if it is private{or_own}"
        return Finding("fail", f"{kind} {name}", "not on the hub, or not for you", mend)
    except Exception as error:
        mend = f"look at the network (HF_HUB_OFFLINE?){or_own}"
        return Finding("warn", f"{kind} {name}", f"the hub could not be asked ({type(error).__name__})", mend)
    return Finding("pass", f"{kind} {name}", "the hub gives it to you")


def _engine(shop: RunContext) -> Iterator[Finding]:
    cells = shop.cells()
    generation.check(shop, cells)
    names = dict.fromkeys(generation.engine_name(shop, cell) for cell in cells)
    if not any(select.engine_class(name).remote for name in names):
        yield Finding("pass", "engine", ", ".join(names))
        return
    servers = {shop.config.responses.server} if select.engine_class(shop.engine_name).remote else set()
    for name in shop.config.checkpoints.values():
        server = checkpoints.checkpoint(name).server if name.startswith(checkpoints.SERVER) else None
        servers |= {server.base_url} if server else set()
    for url in sorted(filter(None, servers)):
        yield _reached(url)


def _reached(url: str) -> Finding:
    try:
        status = http_client.status(f"{url}/models", REACH_S)
    except HarnessError as error:  # no URL, no proxy
        return Finding("fail", f"server {url}", str(error), "give the server's base URL anew")
    except Exception as error:  # refused, too slow, too much, not HTTP
        too_large = isinstance(error, http_client.TooLargeError)
        what = f"no answer ({error if too_large else http_client.trouble(error, url)})"
        return Finding("fail", f"server {url}", what, "start it; is the URL right (many end in /v1)?")
    if 300 <= status < 400:
        return Finding("fail", f"server {url}", f"answers {status}", http_client.ELSEWHERE)
    if status >= 500:
        return Finding("fail", f"server {url}", f"answers {status}", "look at its log")
    # It is there; a key, say, is another finding.
    return Finding("pass", f"server {url}", "answers" if status < 300 else f"answers {status}")


def _judges(shop: RunContext) -> Iterator[Finding]:
    """Each judge's own check: its key (never shown), its server, its weights."""
    for name in shop.config.judges:
        try:
            line = registry.make_judge(name, session.settings(shop.config)).check()
        except HarnessError as error:
            yield Finding("fail", f"judge {name}", str(error), "or another --judge")
            continue
        yield Finding("pass", f"judge {name}", line or "ready")


# --- what is shown -----------------------------------------------------------------------------------


def show(findings: list[Finding], console: Console) -> None:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold", max_width=34)
    table.add_column(overflow="fold")
    for finding in findings:
        text = Text(_line(finding.found))
        if finding.mend:
            text.append(f"\n→ {_line(finding.mend)}", style="bold")
        table.add_row(Text(finding.status, style=STYLES[finding.status]), Text(_line(finding.about)), text)
    console.print(table)
    counts = {status: sum(f.status == status for f in findings) for status in STYLES}
    console.print(", ".join(f"{count} {status}" for status, count in counts.items()), highlight=False)


def _line(text: Any) -> str:
    return "".join(sign if sign.isprintable() else " " for sign in " ".join(str(text).split()))
