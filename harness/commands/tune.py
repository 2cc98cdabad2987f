"""``harness tune``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from harness.commands.configured import resolve
from harness.commands.help_texts import Sectioned, example
from harness.commands.options import (
    NOT_MET,
    judging_options,
    listed,
    method_option,
    recipe_argument,
    run_options,
)
from harness.commands.printing import console, print_json
from harness.contracts import UsageError


@click.command(
    cls=Sectioned,
    epilog=example(
        "harness tune --train-task gsm8k-mini --utility-floor 40 --out results/runs/tuned",
        "harness tune my-recipe.yaml --utility-drop 3 --confident --trials 12 --prefix 'Let us see. '",
    ),
)
@recipe_argument
@click.option("--utility-floor", type=click.FloatRange(0, 100), metavar="X",
              help="Least utility of the setting that is chosen, in percent.")  # fmt: skip
@click.option("--utility-drop", type=click.FloatRange(0, 100), metavar="X",
              help="The same, as points below vanilla.")  # fmt: skip
@click.option("--confident", is_flag=True, help="By the lower bound of its 95 % interval, not by its figure.")
@click.option("--objective", type=click.Choice(["jsr", "rsr"]), default="jsr", show_default=True,
              help="The safe rate to raise beside utility.")  # fmt: skip
@click.option("--trials", type=click.IntRange(min=1), default=20, show_default=True, metavar="N",
              help="Settings to train and score.")  # fmt: skip
@method_option("Of lookahead-true and lookahead-virtual (default: both).", metavar="A,B")
@click.option("--max-preview", type=click.IntRange(min=1), default=16, show_default=True, metavar="M",
              help="lookahead-true: the longest preview, in tokens.")  # fmt: skip
@click.option("--prefix", "prefixes", multiple=True, metavar="TEXT",
              help="lookahead-virtual: a further prefix, as it stands. Repeatable.")  # fmt: skip
@click.option("--prefixes", "prefix_file", type=click.Path(path_type=Path), metavar="FILE",
              help="The same, one a line.")  # fmt: skip
@click.option("--search-seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N",
              help="Of Optuna's proposals.")  # fmt: skip
@listed("--judge", "--judges", "judges",
        help="Judges (harness judges); the first one's verdicts are tuned on.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
@judging_options
@run_options
@click.pass_context
def tune(
    ctx: click.Context,
    /,
    recipe: str | None,
    out: Path | None,
    utility_floor: float | None,
    utility_drop: float | None,
    confident: bool,
    objective: Any,
    trials: int,
    methods: list[str] | None,
    max_preview: int,
    prefixes: tuple[str, ...],
    prefix_file: Path | None,
    search_seed: int,
    as_json: bool,
    **flags: Any,
) -> None:
    """Find the preview length and prefix with the most safety for a utility floor.

    Settings are tried on the validation documents of every task (a fixed share of them); the one that is
    chosen is scored on the others, beside the base model, vanilla and the methods' defaults. Where there are
    trials for all settings all are tried, else Optuna proposes. The same command goes on after a kill;
    another floor on the same folder trains nothing anew. Exit code 3: no setting holds the floor.
    """
    from harness.pipeline.compare import RUNS
    from harness.studies import search, search_trials

    config = resolve(recipe, **flags)
    floor = search_trials.Floor(utility_floor, utility_drop, confident)
    space = search_trials.space(methods, max_preview, [*prefixes, *_read_lines(prefix_file)])
    folder = out if out is not None else RUNS / f"{config.name}-tune"
    record = search.tune(
        config,
        folder,
        console(stderr=as_json),
        space=space,
        floor=floor,
        objective=objective,
        trials=trials,
        seed=search_seed,
        debug=ctx.obj["debug"],
    )
    _show(record, folder, as_json)


def _show(record: dict[str, Any], folder: Path, as_json: bool) -> None:
    """Print what the search has found. Exits with 3 where no setting holds the floor."""
    from harness.studies import search_report

    if as_json:
        print_json(record)
    else:
        search_report.show(record, folder, console())
    if record["chosen"] is None:
        raise SystemExit(NOT_MET)


def _read_lines(path: Path | None) -> list[str]:
    """A prefix a line, blanks at its ends included. Raises UsageError where there is no such file."""
    if path is None:
        return []
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--prefixes {path}: cannot be read ({error})") from None
    return [line for line in text.split("\n") if line.strip()]
