"""The command line. Imports stay light here: ``harness --help`` answers before torch could be loaded."""

from __future__ import annotations

import sys
from typing import NoReturn

import click

from harness.commands import (
    agreement,
    analyze,
    data,
    doctor,
    folder,
    gate,
    leaderboard,
    listings,
    matched,
    mini,
    report,
    run,
    simulate,
    sweep,
    tune,
)
from harness.commands.help_texts import Commands, show_defaults
from harness.contracts import HarnessError, JudgePendingError, UsageError
from harness.plugins import plugin_code, plugin_files, registry
from harness.storage import disk
from harness.text import one_line, shortened, shown_traceback, without_keys
from harness.version import __version__


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="harness")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """How much safety does fine-tuning cost, and which method keeps it without giving up the skill?

    \b
    Example:
      harness compare --methods all          # the embedded mini world, a few minutes on a CPU
      harness compare --dry-run              # the plan and the time it would take
      harness compare my-recipe.yaml --model ./my-chat-model --judge keyword
    """
    ctx.ensure_object(dict)["debug"] = debug


for command in (
    *(run.compare, run.align, run.train, run.respond, run.judge, folder.score),
    *(leaderboard.leaderboard, report.report, report.figures, leaderboard.card, gate.gate),
    *(analyze.analyze, sweep.sweep, tune.tune, agreement.agreement),
    *(folder.clean, data.data, doctor.doctor, simulate.simulate),
    *(listings.methods, listings.tasks, listings.judges, listings.recipes, mini.mini),
):
    cli.add_command(command)
analyze.analyze.add_command(matched.matched)
show_defaults(cli)


def check_import_names() -> None:
    """Raises HarnessError where what would be imported under one of our names may not be ours."""
    for what, mend in registry.foreign_packages():
        raise HarnessError(f"{what}: {mend}")


def main() -> NoReturn:
    """Run the command line. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 gate not met, 4 not ready yet."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    plugin_files.forget()
    try:
        if not {"-h", "--help", "--version"} & set(sys.argv[1:]):
            check_import_names()
        cli.main(args=(["--debug"] if debug else []) + sys.argv[1:], standalone_mode=False)
        sys.exit(0)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(2)
    except click.ClickException as error:
        hint = (
            f" (see {error.ctx.command_path} --help)"
            if isinstance(error, click.UsageError) and error.ctx
            else ""
        )
        click.echo(f"Error: {one_line(without_keys(error.format_message()))}{hint}", err=True)
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted. The same command goes on where this one stopped.", err=True)
        sys.exit(130)
    except JudgePendingError as error:
        click.echo(f"Not done yet: {error}", err=True)
        sys.exit(4)
    except HarnessError as error:
        _tell(str(error), debug)
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except Exception as error:
        refused = disk.refusal(error)
        if refused:
            _tell(str(refused), debug)
            sys.exit(1)
        message = plugin_code.told(error) or f"{type(error).__name__}: {shortened(error)}"
        _tell(f"{message} (--debug shows the traceback)", debug)
        sys.exit(1)


def _tell(line: str, debug: bool) -> None:
    """An error's line, or with --debug where it comes from; neither holds a key."""
    click.echo(shown_traceback() if debug else f"Error: {line}", err=True)


if __name__ == "__main__":
    main()
