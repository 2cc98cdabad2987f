"""The report's page: what it shows, gathered from the run's files, and the one HTML file made of it.

Everything variable goes through Jinja's escaping; data for the script is JSON whose angle brackets are
escaped; figures are images, in which nothing runs. The page's own policy (Content-Security-Policy) lets
nothing but its one style sheet and its one script in, and no request out.
"""

from __future__ import annotations

import base64
import hashlib
import re
import shlex
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import yaml

from harness.analyses import agreement, flops
from harness.config import RunConfig
from harness.contracts import HarnessError
from harness.leaderboard import publish, tables
from harness.leaderboard.bottom_line import bottom_lines
from harness.leaderboard.findings import Conclusion, conclude
from harness.leaderboard.tables import grouped
from harness.plugins import registry
from harness.report import exchanges, pictures
from harness.report.disagreement import RULE, disagreements
from harness.report.tables import agreement_tables, category_tables, cost_tables, leaderboard_tables
from harness.run import run_folder
from harness.run.plan import SEED
from harness.storage import records
from harness.storage.files import write_text_atomic
from harness.text import whole, without_keys

STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def write(run: Path, out: Path | None = None, *, show_harmful: bool = False) -> Path:
    """The report of a run, in ``out`` (the run's ``report.html``): its path.

    Raises HarnessError where ``run`` is no run with a leaderboard, or ``out`` cannot be written.
    """
    path = out or run / publish.REPORT
    page = render(run, show_harmful=show_harmful)
    try:
        write_text_atomic(path, page)
    except OSError as error:
        raise HarnessError(f"{path}: cannot be written ({error.strerror}); choose another --out") from error
    return path


def render(run: Path, *, show_harmful: bool = False) -> str:
    """The page itself. The same run gives the same bytes."""
    config = run_folder.stored_config(run)
    table, record = tables.record(run), records.run(run)
    rows = [{**row, "status": public(row["status"])} for row in table["rows"]]
    style, script = _read("report.css"), _read("report.js")
    costs, agreed = _costs(run), _agreement(run, config)
    lines = bottom_lines(rows)
    text = _template().render(
        title=f"Safety after fine-tuning: {public(config.base_model)}",
        about=_about(config, record, rows),
        policy=_policy(style, script),
        style=style,
        script=script,
        openings=pictures.openings(rows, lines),
        judge=rows[0]["judge"] if rows else "",
        several_judges=len({row["judge"] for row in rows}) > 1,
        disagreements=disagreements(rows, lines, agreed),
        rule=RULE,
        verdicts=_draw_conclusions(rows),
        notes=[public(note) for note in table["notes"]],
        leaderboard=leaderboard_tables(rows, timed=not (costs and costs["side_by_side"])),
        elsewhere=any(row["train_task"] == tables.UNTRAINED for row in rows),
        pictures=pictures.images(run),
        missing=pictures.missing(run),
        categories=category_tables(run, rows),
        agreement=agreement_tables(agreed),
        costs=costs,
        data=exchanges.collect(run, config, show_harmful=show_harmful),
        show_harmful=show_harmful,
        command=command(record),
        commit=record.get("commit"),
        facts=_facts(record),
        settings=yaml.safe_dump(_public(record["config"]), sort_keys=False, allow_unicode=True),
    )
    return STEERING.sub(" ", whole(text))


def _template() -> jinja2.Template:
    """What it is given is escaped, and a name that it is not given is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(str(_asset("."))),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.jinja")


# --- parts -----------------------------------------------------------------------------------------


def _draw_conclusions(rows: Sequence[dict[str, Any]]) -> list[Conclusion]:
    return [conclude(group) for group in grouped(rows, "model", "train_task", "judge")]


def _about(config: RunConfig, record: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    methods, seeds = len({row["method"] for row in rows} - {SEED}), len(config.seeds)
    parts = [
        f"{methods} method{'s' * (methods != 1)} and the base model",
        f"trained on {', '.join(map(public, config.train_tasks))}",
        f"{seeds} training seed{'s' * (seeds != 1)}",
        f"judged by {', '.join(map(public, config.judges))}",
        f"run of {str(record.get('started', ''))[:10]}",
    ]
    return " · ".join(parts)


def _costs(run: Path) -> dict[str, Any] | None:
    try:
        record = flops.flops(run)
    except HarnessError:  # nothing is trained in it
        return None
    about = {name: record[name] for name in ("notes", "side_by_side")}
    return {"tables": cost_tables(record), "no_seconds": flops.NO_SECONDS, **about}


def _agreement(run: Path, config: RunConfig) -> dict[str, Any] | None:
    """How far the judges agree; None where there is but one, or nothing that two of them judged."""
    if sum(not registry.combines(name) for name in config.judges) < 2:
        return None
    try:
        record = agreement.analyse(run)
    except HarnessError:  # verdicts that cannot be read: the leaderboard's status says so
        return None
    return record if record["pairs"] else None


def _facts(record: dict[str, Any]) -> list[tuple[str, str]]:
    """Versions and hardware; measured time."""
    hardware, libraries = record.get("hardware", {}), record.get("libraries", {})
    facts = [
        ("harness", str(record.get("harness", ""))),
        ("commit", str(record.get("commit") or "not known")),
        ("started", str(record.get("started", ""))),
        ("Python", str(record.get("python", ""))),
        ("machine", " ".join(str(hardware.get(name, "")) for name in ("system", "machine"))),
        ("cores", str(hardware.get("cores", ""))),
    ]
    facts += [(name, str(version)) for name, version in libraries.items()]
    for task, source in record.get("data", {}).items():
        facts.append((f"data of {task}", f"{source['documents']} documents, {public(source['source'])}"))
    return facts


def command(record: dict[str, Any]) -> str:
    """The command line that made the run, without its folder names and secrets."""
    return public(shlex.join(["harness", *map(str, record.get("command", ["harness"])[1:])]))


def public(text: str) -> str:
    """A text for a file that is passed on: no keys, and of absolute paths their last part alone."""
    return re.sub(r"(?<![\w:/.~])[~.]?(?:/[\w.@+-]+)+/([\w.@+-]+)", r"…/\1", without_keys(text))


def _public(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _public(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_public(inner) for inner in value]
    return public(value) if isinstance(value, str) else value


# --- the file --------------------------------------------------------------------------------------


def _policy(style: str, script: str) -> str:
    return (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; "
        f"script-src '{_digest(script)}'; base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _asset(name: str) -> Path:
    return Path(str(resources.files("harness.report"))) / name


def _read(name: str) -> str:
    return _asset(name).read_text(encoding="utf-8")
