"""``harness doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from harness.commands.configured import out_folder, resolve
from harness.commands.help_texts import Sectioned, example
from harness.commands.options import compare_options
from harness.commands.printing import console
from harness.contracts import HarnessError


@click.command(
    cls=Sectioned,
    epilog=example("harness doctor", "harness doctor llama2-7b-paper --judge openai:gpt-4o --json"),
)
@compare_options
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(recipe: str | None, out: Path | None, as_json: bool, **flags: Any) -> None:
    """Look whether this machine can run a RECIPE: packages, device, memory, disk, keys, data, servers.

    It takes what harness compare takes. Nothing is trained, fetched or paid, and no key is shown. Exit code 1
    where something fails.
    """
    import dataclasses
    import json

    from harness.run.context import quiet

    quiet()
    from harness.pipeline import doctor as examination

    config = resolve(recipe, **flags)
    findings = examination.examine(config, out_folder(config, out))
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
    else:
        examination.show(findings, console())
    failed = [finding.about for finding in findings if finding.status == "fail"]
    if failed:
        raise HarnessError(f"this machine is not ready: {', '.join(failed)}")
