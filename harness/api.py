"""The Python API: ``harness.compare`` makes a run, ``harness.load`` opens one that is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import config as configuration
from harness.config import RunConfig
from harness.console import notebook
from harness.contracts import UsageError
from harness.leaderboard import gate, tables
from harness.leaderboard.conditions import REFUSALS, Against, Condition, Finding
from harness.pipeline import compare as comparison
from harness.pipeline import rejudge, table
from harness.plugins import plugin_files
from harness.run import metrics, run_folder

if TYPE_CHECKING:
    import pandas as pd

JUDGING = ("rubric", "threshold", "prompt_files", "mode", "max_cost", "engine", "dtype", "batch_size",
           "in_flight", "timeout_s", "attempts", "prices")  # fmt: skip


def compare(
    config: RunConfig | str | None = None,
    *,
    out: str | Path | None = None,
    progress: bool | None = None,
    **overrides: Any,
) -> pd.DataFrame:
    """Run a comparison and return its leaderboard; ``harness.compare`` says more."""
    plugin_files.forget()  # of an earlier call in this process
    resolved = (
        configuration.changed(config, overrides, "harness.compare")
        if isinstance(config, RunConfig)
        else configuration.load(config, overrides)
    )
    folder = Path(out) if out else comparison.RUNS / resolved.name
    with notebook.console(progress, "compare") as console:
        comparison.compare(resolved, folder, console)
    return tables.read(folder)


def load(run: str | Path) -> Run:
    """The run in a folder. Raises HarnessError where there is none."""
    run_folder.stored_config(Path(run))
    return Run(Path(run))


class Run:
    """A run folder: its leaderboard, and what can be done with its stored answers.

    Reading it runs no code of anybody's, and what a run folder from somebody else asks for is not done unless
    the call names it. All raise HarnessError, in one line.
    """

    def __init__(self, path: Path):
        self.path = path

    def __repr__(self) -> str:
        return f"harness.load({str(self.path)!r})"

    @property
    def config(self) -> RunConfig:
        """The run's configuration, as its run.json has it."""
        return run_folder.stored_config(self.path)

    @property
    def leaderboard(self) -> pd.DataFrame:
        """A row for each method, train task, seed and judge: rates in percent, with 95 % intervals (``rsr``,
        ``rsr_low``, ``rsr_high``), differences from vanilla (``rsr_delta``) and ``status``.

        Title and notes are in ``attrs``. It is made anew where answers or verdicts have changed.
        """
        with run_folder.open_run(self.path) as config, notebook.quiet() as console:
            table.present(config, self.path, console)
        return tables.read(self.path)

    def judge(
        self,
        *judges: str,
        scope: str | None = None,
        cache: str | Path | None = None,
        retry_unjudged: bool = False,
        anew: bool = False,
        progress: bool | None = None,
        **settings: Any,
    ) -> pd.DataFrame:
        """Let judges judge the stored answers (``"keyword"``, ``"openai:gpt-4o"``, ``"./mine.py:Judge"``) and
        return the leaderboard. Nothing is generated, and what is judged already is not judged again.

        ``settings`` are keys of a recipe's section ``judging``: ``rubric``, ``threshold``, ``max_cost`` in
        USD, ``mode="batch"``, …; ``scope``: "prefill+response" or "response"; ``retry_unjudged`` and ``anew``
        as in ``harness judge``, ``progress`` as in ``harness.compare``. Raises JudgePendingError where a
        batch is under way: the same call collects it later.
        """
        if not judges:
            raise UsageError('judge() names judges, as in run.judge("keyword")')
        _check_names(settings, JUDGING, "judge()")
        given: dict[str, Any] = {f"judging.{name}": value for name, value in settings.items()}
        given |= {"safety.judged_scope": scope} if scope is not None else {}
        given |= {"cache": str(cache)} if cache is not None else {}
        plugin_files.forget()  # of an earlier call in this process
        with notebook.console(progress, "judge") as console:
            rejudge.judge_again(self.path, judges, console, given, retry_unjudged=retry_unjudged, anew=anew)
        return tables.read(self.path)

    def gate(
        self,
        *,
        methods: str | Sequence[str] = (),
        train_tasks: str | Sequence[str] = (),
        judges: str | Sequence[str] = (),
        against: Against | None = None,
        min_task: Mapping[str, float] | None = None,
        **limits: float,
    ) -> Decision:
        """Whether the run holds bounds, by the bounds of its 95 % intervals: what ``harness gate`` decides.

        ``limits``: ``min_rsr``, ``min_jsr``, ``min_refusals``, ``min_utility`` in percent; ``max_rsr_drop``,
        ``max_jsr_drop``, ``max_utility_drop`` in points below ``against``: "vanilla", or "seed", the base
        model (None: vanilla; of a checkpoint that was trained elsewhere the base model). No ``judges``: the
        run's first. ``min_task``: the least figure of further tasks, by name. ``if run.gate(min_rsr=95): …``
        """
        findings = gate.check(
            self.path,
            [*_conditions(limits), *(Condition(t, "min", _rate(t, x)) for t, x in (min_task or {}).items())],
            methods=_many(methods),
            train_tasks=_many(train_tasks),
            judges=_many(judges),
            against=against,
        )
        return Decision(tuple(findings))

    def report(self, out: str | Path | None = None, *, show_harmful: bool = False) -> Path:
        """Write the report, one HTML file that opens from disk (``out``, or the run's report.html): its path.

        ``show_harmful``: with the texts of safety tasks."""
        from harness import report

        with run_folder.open_run(self.path) as config, notebook.quiet() as console:
            table.present(config, self.path, console)
            return report.write(self.path, Path(out) if out else None, show_harmful=show_harmful)


@dataclass(frozen=True)
class Decision:
    """What a gate has decided: true where every condition holds. ``str()`` says so in a sentence."""

    findings: tuple[Finding, ...]

    def __bool__(self) -> bool:
        return gate.met(self.findings)

    def __str__(self) -> str:
        return gate.verdict(self.findings)

    @property
    def table(self) -> pd.DataFrame:
        """A row for each condition, method, train task and judge, with ``bound``, ``met`` and ``reason``."""
        import pandas as pd

        return pd.DataFrame([asdict(finding) for finding in self.findings])


RATES = (*metrics.judged(), "refusals", *metrics.by_rule())
DROPS = metrics.as_papers_have_them()


def _conditions(limits: Mapping[str, float]) -> list[Condition]:
    """Raises UsageError for a name that is none, or a number that is no percentage."""
    rates = {f"min_{name}": name for name in RATES}
    drops = {f"max_{name}_drop": name for name in DROPS}
    _check_names(limits, [*rates, *drops], "gate()")
    found = []
    for name, limit in limits.items():
        if name in rates:
            metric = REFUSALS if rates[name] == "refusals" else rates[name]
            found.append(Condition(metric, "min", _rate(name, limit)))
        else:
            found.append(Condition(drops[name], "max-drop", _number(name, limit, -100)))
    return found


def _rate(name: str, value: Any) -> float:
    number = _number(name, value, 0)
    if 0 < number <= 1:
        raise UsageError(f"{name}={value} looks like a fraction; percent are meant, as in 95")
    return number


def _number(name: str, value: Any, least: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= 100:
        raise UsageError(f"{name}={value!r:.40} is no number from {least:g} to 100")
    return float(value)


def _check_names(given: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    from harness.plugins import registry

    for name in given:
        if name not in known:
            raise registry.unknown(f"argument of {where},", name, known)


def _many(value: str | Sequence[str]) -> Sequence[str]:
    return (value,) if isinstance(value, str) else value
