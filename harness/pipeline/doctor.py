"""``harness doctor``: whether this machine can do what a recipe asks, each finding with its mend.

It reads and asks; it trains nothing, downloads nothing and never shows a key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.config import RunConfig
from harness.contracts import HarnessError
from harness.pipeline import align
from harness.pipeline.checkup import inputs, installation, machine, requirements, services
from harness.pipeline.checkup.finding import Finding
from harness.run.context import RunContext

STYLES = {"pass": "green", "warn": "yellow", "fail": "red"}
CHECKS: dict[str, Callable[[RunContext], Iterator[Finding]]] = {
    "packages": installation.check_packages,
    "names": installation.check_import_names,
    "plan": requirements.check_plan,
    "needs": requirements.check_needs,
    "device": machine.check_device,
    "packing": machine.check_packing,
    "memory": machine.check_memory,
    "disk": machine.check_disk,
    "model": inputs.check_models,
    "data": inputs.check_documents,
    "rows": inputs.check_rows,
    "engine": services.check_engine,
    "judges": services.check_judges,
}


def examine(config: RunConfig, out: Path) -> list[Finding]:
    """Everything that a run of ``config`` into ``out`` needs. A check that itself breaks is a finding."""
    try:
        with align.stand_in(config, out) as (plan, _):
            return _examine(RunContext(plan, out))
    except HarnessError as error:  # a check's own are findings of it
        return [Finding("fail", "alignment", str(error))]


def _examine(ctx: RunContext) -> list[Finding]:
    found: list[Finding] = []
    for about, check in CHECKS.items():
        try:
            found += check(ctx)
        except HarnessError as error:
            found.append(Finding("fail", about, str(error)))
        except Exception as error:
            what = f"could not be looked at ({type(error).__name__})"
            found.append(Finding("warn", about, what, "harness --debug doctor shows why"))
    return found


def show(findings: list[Finding], console: Console) -> None:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold", max_width=34)
    table.add_column(overflow="fold")
    for finding in findings:
        text = Text(_flatten(finding.found))
        if finding.mend:
            text.append(f"\n→ {_flatten(finding.mend)}", style="bold")
        table.add_row(Text(finding.status, style=STYLES[finding.status]), Text(_flatten(finding.about)), text)
    console.print(table)
    counts = {status: sum(f.status == status for f in findings) for status in STYLES}
    console.print(", ".join(f"{count} {status}" for status, count in counts.items()), highlight=False)


def _flatten(text: Any) -> str:
    return "".join(sign if sign.isprintable() else " " for sign in " ".join(str(text).split()))
