"""``harness compare``: the walk from configuration to leaderboard. Every step can be repeated at no cost."""

from __future__ import annotations

import contextlib
import os
import time
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape

from harness import config as configuration
from harness.config import ClassRecord, RunConfig, trust
from harness.console.progress import Display, Reporter
from harness.contracts import Budget, HarnessError, JudgePendingError, NotFetchedError, UsageError
from harness.data import benchmarks, loading
from harness.engines import select
from harness.generation import lm_tasks
from harness.generation import stage as generation
from harness.judging import stage as judging
from harness.leaderboard import publish
from harness.models import checkpoints
from harness.pipeline import answer_memory, estimate, forecast, needs, stages, workers
from harness.pipeline.stages import Step
from harness.plugins import plugin_files, registry
from harness.run import plan, run_folder
from harness.run.context import CLOCK, Workshop, quiet
from harness.run.plan import Cell
from harness.storage import disk, files
from harness.training import stage as training
from harness.training.measure import TreeMemory

RUNS = Path("results/runs")


class CellsFailedError(HarnessError):
    """Some cells or judges failed; the others' results stand and the leaderboard is written."""


def compare(
    config: RunConfig,
    out: Path,
    console: Console,
    *,
    dry_run: bool = False,
    show_config: bool = False,
    debug: bool = False,
    until: Step = "leaderboard",
    kinds: Collection[str] = ("seed", "checkpoint", "trained"),
    rows: Collection[str] = (),
    only: Collection[str] = (),
    budget: Budget | None = None,
    intervals: bool = False,
) -> None:
    """Do what is not done yet of a comparison into ``out``, then write and print its leaderboard.

    ``dry_run`` prints the plan alone, and ``show_config`` the whole configuration before it.
    ``until`` stops after that step; ``kinds`` and ``rows`` (names of methods, checkpoints) limit the cells,
    ``only`` their tasks: the subcommands are parts of this walk. ``budget``: of the judges, where one command
    makes several comparisons; ``intervals``: print these, too.
    Raises HarnessError (nothing was done) or CellsFailedError (the others were tried first).
    """
    quiet()  # before a library is imported
    if dry_run:
        fetch_nothing()
    config = _with_stored_engine(config, out)
    shop = Workshop(config, out)
    if until == "leaderboard":
        _check_judges(config, out)
    planned = [
        cell for cell in plan.cells(config) if cell.kind in kinds and (not rows or cell.method in rows)
    ]
    run_folder.check_named(out, config, planned, answered=until != "train")
    if dry_run:
        if show_config:
            settings = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
            console.print(settings, highlight=False, markup=False, soft_wrap=True)
        _dry_run(shop, until, console, kinds)
        return
    if config.executor == "ray":
        from harness.pipeline import ray_cluster

        config = ray_cluster.settled(config)
        shop = Workshop(config, out)
    answering = [plan.limited(cell, only) for cell in planned]
    _check(shop, kinds, until, answering=answering)
    with run_folder.lock(out):
        config = run_folder.join(shop, _taken(until))
        shop = Workshop(config, out)
        files.sweep(out)
        training.sweep(out)
        bench = judging.Bench(shop)
        bench.budget = budget or bench.budget
        cells = [
            plan.limited(cell, only)
            for cell in plan.cells(config)
            if cell.kind in kinds and (not rows or cell.method in rows)
        ]
        run_folder.check_named(out, config, cells, answered=until != "train")
        start = time.perf_counter()
        failures: dict[Path, str] = {}
        judged = judging.Judged()
        clock: dict[str, float] = defaultdict(float)
        unanswered = [cell for cell in cells if stages.pending(shop, cell, until)]
        needs.try_out(shop, unanswered)
        if until != "train":
            lm_tasks.check_documents(shop, dict.fromkeys(t for cell in unanswered for t in cell.tasks))
        todo = _todo(bench, cells, unanswered, until)
        if todo:
            for line in bench.check([*config.judges]) if until == "leaderboard" else ():
                console.print(escape(line), highlight=False, soft_wrap=True)
            estimate.show(bench, cells, todo, console, judged=until == "leaderboard")
        else:
            console.print(
                f"Nothing to do: all {len(cells)} cell{'s' * (len(cells) != 1)} of {escape(str(out))} "
                f"{'are' if len(cells) != 1 else 'is'} done.",
                highlight=False,
                soft_wrap=True,
            )
        with TreeMemory() as memory:
            available = time.perf_counter() - start
            for step, parts in _phases(shop, unanswered, until):
                parts = [part for part in parts if part.folder not in failures]
                if not parts:
                    continue
                begun, jobs = time.perf_counter(), _jobs(shop, step, parts)
                cells_run = workers.run_cells(config, out, parts, step, console, debug, jobs)
                with contextlib.closing(cells_run) as outcomes:
                    for outcome in outcomes:
                        for name, seconds in outcome.clock.items():
                            clock[name] += seconds
                        if outcome.stops:
                            raise HarnessError(outcome.failure)
                        if outcome.failure:
                            failures[outcome.cell.folder] = outcome.failure
                            line = (
                                f"[red]{escape(outcome.cell.label)}  failed:[/red] {escape(outcome.failure)}"
                            )
                            console.print(line, highlight=False, soft_wrap=True)
                available += (time.perf_counter() - begun) * jobs
            if until == "leaderboard" and todo:
                begun = time.perf_counter()
                judged = _judge(bench, [c for c in cells if c.folder not in failures], config.judges, console)
                clock["judging"] += time.perf_counter() - begun
                available += clock["judging"]
        if todo:
            run_folder.update(out, **run_folder.outcome(out, cells, failures))
        if until == "leaderboard":
            table(config, out, console, intervals=intervals)
        if todo:
            _cost(out, clock, available, memory)
    if failures:
        raise CellsFailedError(
            f"{len(failures)} of {len(cells)} cell{'s' * (len(cells) > 1)} failed"
            f"{'; the others are done' * (len(cells) > len(failures) and not _unfinished(judged))}. "
            + "".join(f"{line}. " for line in _unfinished(judged))
            + "The same command tries the failed ones again."
        )
    _complete(judged)


def _taken(until: Step) -> Collection[trust.Step]:
    """The steps whose settings this command takes."""
    return {"train": trust.TRAIN, "respond": trust.WORK}.get(until, trust.ALL)


def _with_stored_engine(config: RunConfig, out: Path) -> RunConfig:
    """A run goes on with the engine that it began with, unless told otherwise."""
    if select.is_named(config.engine) or not (out / "run.json").is_file():
        return config
    return config.model_copy(update={"engine": run_folder.stored_config(out).engine})


def _phases(shop: Workshop, cells: Sequence[Cell], until: Step) -> list[tuple[Step, list[Cell]]]:
    """What workers do one after the other. An engine that is started once serves all checkpoints, so that
    trainings, which want the device for themselves, come first, and the cells of one base stand together.
    On a cluster each cell has an engine of its own."""
    if (
        not select.engine_class(shop.engine_name).serves_all
        or until == "train"
        or shop.config.executor == "ray"
    ):
        return [(until, [part for cell in cells for part in stages.parts(shop, cell)])]
    trained = [cell for cell in cells if cell.kind == "trained" and stages.pending(shop, cell, "train")]
    # Adapters first: an engine that was started for them serves their base too.
    return [("train", trained), (until, sorted(cells, key=lambda cell: cell.kind != "trained"))]


def _jobs(shop: Workshop, step: Step, parts: Sequence[Cell]) -> int:
    """How many workers. An engine that serves all cells is one, for answers and rewrites alike."""
    if shop.config.executor == "ray":
        from harness.pipeline import ray_cluster

        return max(1, min(len(parts), shop.config.jobs or ray_cluster.capacity(shop.config)))
    rows = {shop.config.row(part.method).method for part in parts if part.kind == "trained"}
    generates = step != "train" or any(registry.load("method", m).prepares_with == "rewrites" for m in rows)
    alone = generates and select.engine_class(shop.engine_name).serves_all
    return 1 if alone else plan.job_count(shop.config, len(parts))


def _todo(bench: judging.Bench, cells: Sequence[Cell], unanswered: Sequence[Cell], until: Step) -> list[Cell]:
    """The cells with something left to do, judging included."""
    judge = until == "leaderboard"
    return [cell for cell in cells if cell in unanswered or (judge and stages.unjudged(bench, cell))]


def _judge(
    bench: judging.Bench, cells: Sequence[Cell], judges: Sequence[str], console: Console
) -> judging.Judged:
    """Let the judges work through all answers, and say what that took."""
    with Display(console, None, "judging") as display:
        bench.shop.reporter = Reporter(display.show)
        judged = judging.judge_all(bench, cells, judges)
    for line in judging.summary(bench):
        console.print(escape(line), highlight=False, soft_wrap=True)
    return judged


def _complete(judged: judging.Judged) -> None:
    """Raises CellsFailedError or JudgePendingError where judges have not finished."""
    if judged.failed:
        raise CellsFailedError("; ".join(_unfinished(judged)))
    if judged.waiting:
        raise JudgePendingError("; ".join(_unfinished(judged)))


def _unfinished(judged: judging.Judged) -> list[str]:
    """A line for each judge that failed, and one for what has been handed on."""
    lines = [f"{name}: {line}" for name, lines in judged.waiting.items() for line in lines]
    elsewhere = f"judging goes on elsewhere; the same command collects it later. {'; '.join(lines)}"
    return [*judged.failed.values(), *([elsewhere] if lines else [])]


def fetch_nothing() -> None:
    """Let nothing be fetched in this process. Before the libraries that fetch are imported."""
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"


def _dry_run(shop: Workshop, until: Step, console: Console, kinds: Collection[str]) -> None:
    """Print the plan. Nothing is fetched: what is not here is said to be missing."""
    config = shop.config
    cells, bench = plan.cells(config), judging.Bench(shop)
    absent: list[str] = []  # what a run would fetch
    if checkpoints.is_here(config.model):
        _check(shop, kinds, until, absent)
    else:
        checkpoints.check_hub_name(config.model)
        _check_apart(shop, absent)
        absent.append(f"Model {config.model} is not here yet: a run fetches it, and then forecasts its time.")
    missing = [f"Missing here: {line}" for line in needs.lines(config)]
    if absent:
        estimate.show(bench, cells, cells, console, judged=until == "leaderboard")
        for line in dict.fromkeys([*missing, *absent]):
            console.print(line, highlight=False, soft_wrap=True, markup=False)
        return
    unanswered = [cell for cell in cells if stages.pending(shop, cell, until)]
    needs.try_out(shop, unanswered)
    for task in dict.fromkeys(task for cell in unanswered for task in cell.tasks if until != "train"):
        lm_tasks.check_functions(benchmarks.get(task, config.own_tasks))
    todo = _todo(bench, cells, unanswered, until)
    estimate.show(bench, cells, todo, console, judged=until == "leaderboard")
    side_by_side = answer_memory.line(shop, unanswered) if until != "train" else None
    for line in [*([side_by_side] if side_by_side else []), *missing]:
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    if unanswered:
        parts = [part for cell in unanswered for part in stages.parts(shop, cell)]
        jobs = plan.job_count(config, len(parts))
        expected = forecast.forecast(shop, parts, jobs, until)
        for line in expected.lines(shop, unanswered):
            console.print(escape(line), highlight=False, soft_wrap=True)


def judge_again(
    out: Path,
    judges: Sequence[str],
    console: Console,
    overrides: Mapping[str, Any] | None = None,
    *,
    retry_unjudged: bool = False,
    anew: bool = False,
    dry_run: bool = False,
) -> None:
    """Let judges judge a run's stored responses, without its models, and print the leaderboard.

    ``overrides``: keys of the section ``judging``, ``safety.judged_scope``, and ``cache``. ``anew``: nothing
    that is known of their verdicts counts. Raises UsageError where they would change what a judge says that
    is not asked, CellsFailedError where a judge could not go on, JudgePendingError where one has handed its
    work on.
    """
    given = {"judges": None, **(overrides or {})}  # the run's own are not asked unless they are named
    stored = run_folder.stored_config(out)
    config = configuration.changed(stored, overrides or {}, f"{out / 'run.json'}")
    if anew and config.judging.mode == "batch":
        raise UsageError("--anew would forget a batch that is under way: add --judge-mode direct")
    trust.check(config, stored, out, given, trust.JUDGE)
    own = trust.owned(stored)
    config, judges = _with_judges(config, stored, judges)
    plan.check_judges(
        [name for name in config.judges if name not in stored.judges or registry.is_judge(name)]
    )
    if retry_unjudged or any(map(registry.combines, config.judges)):  # all others' verdicts are wanted
        _check_installed(out, config)
    cells = plan.cells(config)
    # Of the run's own judges only those that need nobody: a folder from elsewhere may name any server.
    at_hand = [
        name
        for name in filter(registry.is_judge, stored.judges)
        if (own and registry.judge_class(name).combines) or not registry.judge_class(name).heavy
    ]
    asked = [name for name in config.judges if name in {*judges, *at_hand}]
    # In a run of somebody else's, only judges that work here and now have a voice in a vote.
    heard = config if own else config.model_copy(update={"judges": tuple(asked)})
    plan.check_judges(heard.judges if any(map(registry.combines, asked)) else ())
    bench = judging.Bench(Workshop(heard, out))
    bench.retry_unjudged, bench.anew = retry_unjudged, anew
    others = [name for name in filter(registry.is_judge, stored.judges) if name not in asked]
    if config.judging == stored.judging and config.safety == stored.safety:
        changed = []
    elif own:
        changed = judging.otherwise(judging.Bench(Workshop(stored, out)), bench, others)
    else:  # to compare them they would have to be made, and may read what the run's record names
        changed = others
    if changed:
        raise UsageError(
            f"these settings change what {', '.join(changed)} would say, too: name all judges that are to "
            f"judge by them (--judge {','.join(dict.fromkeys([*judges, *changed]))})"
        )
    lines = judging.forecast(bench, cells, asked)
    if dry_run:
        console.print(
            "\n".join(map(escape, lines)) or "Nothing to judge at a cost.", highlight=False, soft_wrap=True
        )
        return
    with run_folder.lock(out):
        if not retry_unjudged:  # that goes on in the journal of a stage that is done
            files.sweep(out)
        for line in [*bench.check(asked), *lines]:
            console.print(escape(line), highlight=False, soft_wrap=True)
        judged = _judge(bench, cells, asked, console)
        # A judge that failed must not become one of the run's.
        left = {*judged.failed, *judged.waiting} - {*stored.judges}
        kept = tuple(name for name in config.judges if name not in left)
        # Nor must what this one command may spend.
        once = {name: getattr(stored.judging, name) for name in ("max_cost", "mode")}
        section = config.judging.model_copy(update=once)
        config = config.model_copy(update={"judges": kept, "judging": section})
        trust.remember(config, out, stored)
        run_folder.update(out, config=config.model_dump(mode="json"))
        table(config, out, console)
    _complete(judged)


def _with_judges(config: RunConfig, stored: RunConfig, judges: Sequence[str]) -> tuple[RunConfig, list[str]]:
    """The configuration with further judges, and their names; of those named by file, what the run keeps."""
    before = stored.code.model_dump()["judges"]
    names, records = plugin_files.named("judge", judges, registry.installed_names("judge"), before)
    code = stored.code.model_copy(
        update={"judges": stored.code.judges | {n: ClassRecord(**record) for n, record in records.items()}}
    )
    both = tuple(dict.fromkeys([*stored.judges, *names]))
    return config.model_copy(update={"judges": both, "code": code}), names


def _check(
    shop: Workshop,
    kinds: Collection[str],
    until: Step,
    absent: list[str] | None = None,
    answering: Sequence[Cell] | None = None,
) -> None:
    """Names, options, packages, data, folders and what answers, before anything is spent. ``absent`` collects
    what a run would fetch, which raises without it; ``answering``: the cells with the tasks that are asked
    for, where these are not all."""
    cells = plan.cells(shop.config)
    if any(cell.kind == "trained" for cell in cells):
        disk.check_writable(shop.cache.folder, "name another cache: --set cache=DIR, or HARNESS_CACHE")
    _check_apart(shop, absent)
    asked = cells if answering is None else answering
    for task in dict.fromkeys(task for cell in asked for task in cell.tasks):
        if lm_tasks.files(shop, benchmarks.get(task, shop.config.own_tasks)):
            shop.load_task(task, str(shop.seed_folder))  # reads the file, and complains by line
    for cell in cells:
        if cell.kind == "trained" and not absent and _is_here(shop.config, cell.method):
            training.train_stage(shop, cell)
        generation.checkpoint_of(shop, cell)
    generation.check(shop, [cell for cell in cells if cell.kind in kinds])


def _check_apart(shop: Workshop, absent: list[str] | None) -> None:
    """What can be known without the model: packages, plugins, options, training rows and data files."""
    config = shop.config
    if absent is None:
        needs.check(config)
    for path in (*config.data.values(), *config.set_files.values()):
        loading.data_hash(path)
    rows = [name for name in plan.methods(config) if _is_here(config, name)]
    methods = [training.make_method(config, name) for name in rows]
    for task in config.train_tasks if methods else ():
        train_task = registry.load("train task", task)
        try:
            shop.examples(train_task)
        except NotFetchedError:
            if absent is None:
                raise
            own = f"--train-data {task}=FILE" if len(config.train_tasks) > 1 else "--train-data FILE"
            absent.append(
                f"The training rows of {task} are not here yet: a run fetches them; {own} takes a local copy."
            )
        if any(method.needs_safety_data for method in methods):
            shop.safety_examples(train_task)


def _is_here(config: RunConfig, row: str) -> bool:
    """Whether a row's method is at hand: not of a file that the run alone names, where nothing trains it."""
    return config.row(row).method in registry.names("method")


def _check_judges(config: RunConfig, out: Path) -> None:
    """Names and settings of the command's judges, and whether the run's are there."""
    if (out / "run.json").is_file():
        _check_installed(out, run_folder.stored_config(out))
    plan.check_judges(config.judges)
    for name in config.judges:
        registry.make_judge(name, judging.settings(config))


def _check_installed(out: Path, config: RunConfig) -> None:
    for name in config.judges:
        if not registry.is_judge(name):
            record = config.code.judges.get(name.partition(":")[0])
            mend = "which is not installed: install it"
            if record:
                again = plugin_files.option("judge", name.partition(":")[0], record.model_dump())
                mend = f"a file with code that only the command line may name: add {again}"
            raise HarnessError(f"{out} was judged by '{name}', {mend}, or choose another run")


# --- the table -------------------------------------------------------------------------------------


def table(config: RunConfig, out: Path, console: Console, *, intervals: bool = False) -> None:
    """Publish the leaderboard and write the report; print the first, and what it comes to."""
    from harness.leaderboard import epochs, show, tables

    fresh = publish.publish(config, out)
    written = tables.read(out)
    notes = written.attrs["notes"]
    show.render(written, console, title=publish.title(config), notes=notes, intervals=intervals)
    if epochs.asked(config):
        epochs.render(config, out, console)
    show.render_verdict(written, console)
    console.print()
    _report(out, console, anew=fresh)
    files = ", ".join(str(out / f"leaderboard.{kind}") for kind in ("md", "csv", "json", "tex"))
    console.print(f"Files: {escape(files)}", highlight=False, soft_wrap=True)


def _report(out: Path, console: Console, *, anew: bool) -> None:
    """Write the report where there is none of these figures, and say where it is."""
    from harness import report

    try:
        if anew or not (out / publish.REPORT).exists():
            report.write(out)
    except HarnessError as error:  # the leaderboard stands
        console.print(escape(f"No report: {error}"), style="yellow", highlight=False, soft_wrap=True)
    else:
        console.print(escape(f"Report: {out / publish.REPORT}"), highlight=False, soft_wrap=True)


def _cost(out: Path, clock: Mapping[str, float], available: float, memory: TreeMemory) -> None:
    """Keep in run.json where this command's seconds went.

    ``available``: wall time x jobs. What imports, training and generation leave of it is the harness's own,
    the probe and idle jobs included.
    """
    work = {name: clock[name] for name in (*CLOCK, "judging")}
    own = available - sum(work.values())
    timing = {
        name: round(seconds, 2) for name, seconds in {**work, "own": own, "available": available}.items()
    }
    run_folder.update(out, timing={**timing, "peak_memory_bytes": memory.peak_bytes})
