"""``harness judge``: judges judge a run's stored answers, without its models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from harness import config as configuration
from harness.config import ClassRecord, RunConfig, trust
from harness.contracts import UsageError
from harness.judging import cost
from harness.judging import stage as judging
from harness.judging.session import JudgeSession, find_changed
from harness.pipeline import check, table
from harness.pipeline.outcome import judge_with_progress, raise_unfinished
from harness.plugins import plugin_files, registry
from harness.run import plan, run_folder
from harness.run.context import RunContext
from harness.run.resolve import resolve
from harness.storage import files


@dataclass(frozen=True)
class _Request:
    """Who is to judge what. ``stored``: the run's configuration; ``config``: the same with what the command
    changes; ``judges``: those that it names; ``asked``: those that judge; ``own``: whether this machine made
    the run."""

    out: Path
    stored: RunConfig
    config: RunConfig
    judges: Sequence[str]
    asked: Sequence[str]
    own: bool


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
    request = _read(out, judges, overrides or {}, others_wanted=retry_unjudged, anew=anew)
    session = JudgeSession(RunContext(_heard(request), out))
    session.retry_unjudged, session.anew = retry_unjudged, anew
    _check_others(request, session)
    cells = resolve(request.config).cells()
    lines = cost.forecast(session, cells, request.asked)
    if dry_run:
        console.print(
            "\n".join(map(escape, lines)) or "Nothing to judge at a cost.", highlight=False, soft_wrap=True
        )
        return
    with run_folder.lock(out):
        if not retry_unjudged:  # that goes on in the journal of a stage that is done
            files.sweep(out)
        for line in [*session.check(request.asked), *lines]:
            console.print(escape(line), highlight=False, soft_wrap=True)
        judged = judge_with_progress(session, cells, request.asked, console)
        config = _kept(request, judged)
        trust.remember(config, out, request.stored)
        run_folder.update(out, config=config.model_dump(mode="json"))
        table.present(config, out, console)
    raise_unfinished(judged)


def _read(
    out: Path, judges: Sequence[str], overrides: Mapping[str, Any], *, others_wanted: bool, anew: bool
) -> _Request:
    """What is asked of whom, checked. ``others_wanted``: the verdicts of all the run's judges are needed."""
    given = {"judges": None, **overrides}  # the run's own are not asked unless they are named
    stored = run_folder.stored_config(out)
    config = configuration.changed(stored, overrides, f"{out / 'run.json'}")
    if anew and config.judging.mode == "batch":
        raise UsageError("--anew would forget a batch that is under way: add --judge-mode direct")
    trust.check(config, stored, out, given, trust.JUDGE)
    own = trust.owned(stored)
    config, names = _with_judges(config, stored, judges)
    plan.check_judges(
        [name for name in config.judges if name not in stored.judges or registry.is_judge(name)]
    )
    if others_wanted or any(map(registry.combines, config.judges)):
        check.check_installed(out, config)
    # Of the run's own judges only those that need nobody: a folder from elsewhere may name any server.
    at_hand = [
        name
        for name in filter(registry.is_judge, stored.judges)
        if (own and registry.judge_class(name).combines) or not registry.judge_class(name).heavy
    ]
    asked = [name for name in config.judges if name in {*names, *at_hand}]
    return _Request(out, stored, config, names, asked, own)


def _with_judges(config: RunConfig, stored: RunConfig, judges: Sequence[str]) -> tuple[RunConfig, list[str]]:
    """The configuration with further judges, and their names; of those named by file, what the run keeps."""
    before = stored.code.model_dump()["judges"]
    names, records = plugin_files.named("judge", judges, registry.installed_names("judge"), before)
    code = stored.code.model_copy(
        update={"judges": stored.code.judges | {n: ClassRecord(**record) for n, record in records.items()}}
    )
    both = tuple(dict.fromkeys([*stored.judges, *names]))
    return config.model_copy(update={"judges": both, "code": code}), names


def _heard(request: _Request) -> RunConfig:
    """Who has a voice in a vote: in a run of somebody else's only judges that work here and now."""
    asked, config = request.asked, request.config
    heard = config if request.own else config.model_copy(update={"judges": tuple(asked)})
    plan.check_judges(heard.judges if any(map(registry.combines, asked)) else ())
    return heard


def _check_others(request: _Request, session: JudgeSession) -> None:
    """Raises UsageError where the settings change what a judge of the run would say that is not asked."""
    stored = request.stored
    others = [name for name in filter(registry.is_judge, stored.judges) if name not in request.asked]
    if request.config.judging == stored.judging and request.config.safety == stored.safety:
        changed = []
    elif request.own:
        changed = find_changed(JudgeSession(RunContext(stored, request.out)), session, others)
    else:  # to compare them they would have to be made, and may read what the run's record names
        changed = others
    if changed:
        raise UsageError(
            f"these settings change what {', '.join(changed)} would say, too: name all judges that are to "
            f"judge by them (--judge {','.join(dict.fromkeys([*request.judges, *changed]))})"
        )


def _kept(request: _Request, judged: judging.Judged) -> RunConfig:
    """The run's configuration from now on: without a new judge that failed, nor what this one command may
    spend."""
    stored, config = request.stored, request.config
    left = {*judged.failed, *judged.waiting} - {*stored.judges}
    kept = tuple(name for name in config.judges if name not in left)
    once = {name: getattr(stored.judging, name) for name in ("max_cost", "mode")}
    section = config.judging.model_copy(update=once)
    return config.model_copy(update={"judges": kept, "judging": section})
