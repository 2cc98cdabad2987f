"""``harness gate``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from harness.commands.options import NOT_MET, console, example, names, print_json
from harness.run import metrics

if TYPE_CHECKING:
    from harness.leaderboard.conditions import Condition


Command = TypeVar("Command", bound=Callable[..., Any])


class Percent(click.FloatRange):
    """A finite number within a range."""

    name = "percent"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"'{value}' is no number to compare with", param, ctx)
        if self.min == 0 and 0 < number <= 1:
            self.fail(f"'{value}' looks like a fraction; percent are meant, as in 95", param, ctx)
        return number


RATE, DROP = Percent(0, 100), Percent(-100, 100)


def further(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, float]:
    found = {}
    for value in values:
        name, equals, limit = value.rpartition("=")
        if not (name and equals):
            raise click.BadParameter(f"'{value}': expected TASK=X, as in xstest_safe=90")
        found[name] = RATE.convert(limit, param, ctx)
    return found


def _least(names: Sequence[str]) -> Callable[[Command], Command]:
    """An option for the least figure of each headline metric."""

    def decorated(command: Command) -> Command:
        for name in reversed(names):
            told = f"Least {metrics.phrase(name)}, in percent."
            command = click.option(f"--min-{name}", f"min_{name}", type=RATE, metavar="X", help=told)(command)
        return command

    return decorated


def _most(names: Sequence[str]) -> Callable[[Command], Command]:
    """An option for how far each headline metric may fall."""

    def decorated(command: Command) -> Command:
        for name in reversed(names):
            option, told = f"--max-{name}-drop", f"{metrics.heading(name)} may fall by at most X points."
            command = click.option(option, f"max_{name}_drop", type=DROP, metavar="X", help=told)(command)
        return command

    return decorated


@click.command(
    epilog=example(
        "harness gate results/runs/mini --method lookahead-true --min-rsr 95 --max-utility-drop 5",
        "harness compare --model BASE --methods seed --checkpoint new=./out --out runs/new",
        "harness gate runs/new --min-rsr 95 --max-jsr-drop 3",
    )
)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--method", "methods", multiple=True, metavar="NAME",
              help="Method or checkpoint (default: all but seed and vanilla). Repeatable.")  # fmt: skip
@click.option("--train-task", "train_tasks", callback=names, metavar="A,B", help="Default: all of the run.")
@click.option("--judge", "judges", callback=names, metavar="A,B", help="Default: the run's first.")
@_least(metrics.judged())
@click.option("--min-refusals", type=RATE, metavar="X",
              help="Least share of raw requests that are refused: rubbish is safe, too.")  # fmt: skip
@_least(metrics.by_rule())
@click.option("--min-task", "tasks", callback=further, multiple=True, metavar="TASK=X",
              help="Least figure of a further task of the run. Repeatable.")  # fmt: skip
@_most(metrics.names())
@click.option("--against", type=click.Choice(["vanilla", "seed"]),
              help="What drops are measured from: vanilla, or seed, the base model (default: vanilla; for a "
              "checkpoint that was trained elsewhere the base model).")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the decision as JSON.")
def gate(
    run: Path,
    methods: tuple[str, ...],
    train_tasks: list[str] | None,
    judges: list[str] | None,
    against: Any,
    as_json: bool,
    **limits: Any,
) -> None:
    """Decide whether a RUN is good enough, for a training pipeline: exit code 0, or 3 where it is not.

    Every condition must hold for every method, train task and judge, by the bound of its 95 % interval and
    not by the figure itself: the lower one of a rate, the upper one of a drop; over several seeds, that of
    the mean. It must also hold if every unjudged answer was harmful. What is missing, failed, damaged or
    without an interval does not hold. The figures are the leaderboard's.

    The decision does not depend on what else the run holds: the intervals are each figure's own, not
    corrected for other rows as the table's star is, and one judge decides (the run's first, or those of
    --judge).

    A file that was changed after its stage was done is damaged. But a run's markers are no signatures: who
    writes a run folder can make it say anything. For a run from somebody else, judge its answers yourself
    (harness judge RUN --judge NAME --anew), or better, let the model answer again (harness respond).
    """
    from harness.leaderboard import gate

    findings = gate.check(
        run,
        _conditions(**limits),
        methods=methods,
        train_tasks=train_tasks or (),
        judges=judges or (),
        against=against,
    )
    if as_json:
        print_json(gate.record(run, findings))
    else:
        gate.show(findings, console())
    if not gate.met(findings):
        raise SystemExit(NOT_MET)


def _conditions(tasks: dict[str, float], **limits: float | None) -> list[Condition]:
    from harness.leaderboard.conditions import REFUSALS, Condition

    found = []
    for name, limit in limits.items():
        kind, _, metric = name.partition("_")
        if limit is None:
            continue
        if kind == "min":
            found.append(Condition(REFUSALS if metric == "refusals" else metric, "min", limit))
        else:
            found.append(Condition(metric.removesuffix("_drop"), "max-drop", limit))
    return [*found, *(Condition(task, "min", limit) for task, limit in tasks.items())]
