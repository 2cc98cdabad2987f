"""``harness leaderboard``, and ``harness card`` for one of its rows."""

from __future__ import annotations

from pathlib import Path

import click

from harness.commands.help_texts import example
from harness.commands.options import INTERVALS
from harness.commands.printing import console, print_json

FORMATS = {"markdown": "leaderboard.md", "csv": "leaderboard.csv", "json": "leaderboard.json",
           "latex": "leaderboard.tex"}  # fmt: skip


@click.command(
    epilog=example(
        "harness leaderboard results/runs/mini",
        "harness leaderboard results/runs/llama results/runs/qwen --out results/both",
        "harness leaderboard results/runs/mini --format latex --intervals > table.tex",
    )
)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
              help="Write leaderboard.{md,csv,json,tex} and scores.csv there.")  # fmt: skip
@click.option("--format", "kind", type=click.Choice([*FORMATS]), help="Print it so, not as for a terminal.")
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@INTERVALS
@click.option("--columns", metavar="NAMES", help="LaTeX: the metrics to show, as in rsr,jsr,utility.")
@click.option("--allow-mixed", is_flag=True,
              help="Merge runs that were not measured alike, and say what differs.")  # fmt: skip
def leaderboard(
    runs: tuple[Path, ...],
    out: Path | None,
    kind: str | None,
    as_json: bool,
    intervals: bool,
    columns: str | None,
    allow_mixed: bool,
) -> None:
    """Print the leaderboard of a RUN, or of several as one.

    Several are merged only where their columns mean the same: tasks of one version, documents, prompts and k,
    judges of one identity, answers made in one way. Differences from vanilla stay within each run.
    """
    import tempfile

    from harness.leaderboard import merge, show
    from harness.pipeline import table
    from harness.run import run_folder

    kind = "json" if as_json else kind
    if len(runs) > 1 or kind or out:
        merged = merge.merge(runs, allow_mixed=allow_mixed)
        with tempfile.TemporaryDirectory() as scratch:
            folder = out or Path(scratch)
            chosen = [name.strip() for name in (columns or "").split(",") if name.strip()]
            merge.write(merged, folder, intervals=intervals, columns=chosen)
            if kind:
                _print_file(folder, kind)
    if kind:
        return
    if len(runs) == 1:
        with run_folder.open_run(runs[0]) as config:
            table.present(config, runs[0], console(), intervals=intervals)
    else:
        show.render(merged.frame, console(), title=merged.title, notes=merged.notes, intervals=intervals)
        show.render_verdict(merged.frame, console())
    if out:
        click.echo(f"\nFiles: {', '.join(str(out / name) for name in FORMATS.values())}")


def _print_file(folder: Path, kind: str) -> None:
    from harness.storage.files import read_json

    if kind == "json":
        print_json(read_json(folder / FORMATS[kind]))
    else:
        click.echo((folder / FORMATS[kind]).read_text(encoding="utf-8"), nl=False)


@click.command(
    epilog=example(
        "harness card results/runs/mini lookahead-true --train-task gsm8k-mini",
        "harness card RUN vanilla --train-task gsm8k --seed 42 --out README.md",
    )
)
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("method")
@click.option("--train-task", metavar="NAME", help="Needed where the run has several.")
@click.option("--seed", type=int, help="Needed where the run has several.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Write it there instead of printing it.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace a FILE that is there.")
def card(
    run: Path, method: str, train_task: str | None, seed: int | None, out: Path | None, force: bool
) -> None:
    """Write the Hugging Face model card of one checkpoint: a RUN's METHOD, or a checkpoint's name.

    Its scores stand in the metadata (model-index) and in the text, with judge, k, interval, n and unjudged
    answers; how it was made and what was not measured, too. The licence is left to you.
    """
    from harness.contracts import UsageError
    from harness.report import model_card
    from harness.storage.files import write_text_atomic

    if out is not None and out.exists() and not force:
        raise UsageError(f"{out} is there already; --force replaces it")
    text = model_card.card(run, method, train_task=train_task, seed=seed)
    if out is None:
        click.echo(text, nl=False)
    else:
        write_text_atomic(out, text)
        click.echo(out)
