"""What a stranger can put into a run folder, a name, an answer or a server's reply: it is shown as text,
leads nowhere, and takes no key along. Through the command line, as a user meets it."""

from __future__ import annotations

import base64
import csv
import json
import os
import re
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote

import completions_server
import fault_server
import made_run
import pytest
import yaml

from harness import config as configuration
from harness.contracts import HarnessError, UsageError
from harness.engines.service import KEY, OTHER_KEY
from harness.judging import verdict_files
from harness.mini import seed_model_path
from harness.models.checkpoints import load_tokenizer
from harness.plugins import registry
from harness.run import plan, run_folder
from harness.storage.files import write_json_atomic
from harness.text import is_name

Run = Callable[..., Any]
CELL = Path("gsm8k-mini") / "vanilla" / "seed-42"
ATTACKS = {
    "terminal": "\x1b]52;c;ZXZpbA==\x07\x1b[2J\x1b]8;;http://evil.example\x07x\r\x9b31m\u202egnp\u2066\x00",
    "markup": "[red]x[/red] [link=http://evil.example]y[/link] [/] [@click=quit]z",
    "html": "</script><script>alert(1)</script><img src=x onerror=alert(1)>\" onload=\"x' &",
    "markdown": "| ` [x](javascript:alert(1)) ![y](http://evil.example) <b>\n# head\n\n| a | b |",
    "latex": r"\input{/etc/passwd} \write18{id} } \end{tabular} % $x^2$ & # _ ~ {",
    "formula": "=HYPERLINK(\"http://evil.example\")\t+1 @SUM -2",
    "formula-later": "\t\r=1+1",
    "math": r"$\frac{1}{$ x $",
    "lines": "a\u2028b\u2029c\x85d\x0be\x0cf\u00a0g",
    "yaml": "---\nlicense: evil\n---\n: - ? !!python/object:x {",
}  # fmt: skip
EVERYTHING = " ".join(ATTACKS.values())
STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


class Page(HTMLParser):
    """The tags of a page, and its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]


def texts(run: Path, pattern: str) -> Iterator[tuple[str, str]]:
    for path in sorted(run.rglob(pattern)):
        yield path.name, path.read_text(encoding="utf-8")


# --- what is shown -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose every text from outside attacks something."""
    out = tmp_path_factory.mktemp("hostile") / "run"
    written = EVERYTHING.translate({ord(sign): " " for sign in STEERING.findall(EVERYTHING)})
    made_run.make(
        out,
        documents=12,
        response=EVERYTHING,
        categories=tuple(ATTACKS.values()),
        reason=EVERYTHING,
        failures={"gsm8k-mini/sdft/seed-42": EVERYTHING},
        model=written,  # a recipe takes no control characters; a run.json neither
        note=written,
    )
    return out


@pytest.mark.parametrize(
    "arguments",
    [
        ("score",),
        ("leaderboard",),
        ("report",),
        ("report", "--show-harmful"),
        ("analyze", "categories"),
        ("analyze", "flops"),
        ("agreement",),
        ("agreement", "--json"),
        ("figures",),
        ("gate", "--min-jsr", "50"),
        ("clean",),
    ],
    ids=" ".join,
)
def test_nothing_steers_the_terminal(
    arguments: tuple[str, ...],
    hostile_run: Path,
    tmp_path: Path,
    command: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("click.confirm", lambda *_, **__: False)
    run = tmp_path / "run"
    shutil.copytree(hostile_run, run)
    name, *more = arguments
    ended = command(name, *more, run)
    for stream in (ended.out, ended.err):
        found = STEERING.search(stream)
        assert not found, (found, stream[max(0, found.start() - 60) : found.end() + 20])
    assert "Traceback" not in ended.err
    assert len(ended.err.splitlines()) <= 1 or name == "report"
    assert ended.code in (0, 3) or "task.json" in ended.err, ended.err  # a made-up run has not all files


def test_a_report_runs_nothing_of_it(hostile_run: Path, command: Run, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    assert command("report", hostile_run, "--show-harmful", "--out", page).code == 0
    text = page.read_text(encoding="utf-8")
    found = Page(text)
    assert found.tags.count("script") == 2  # its own, and the data
    assert not {name for name, _ in found.attributes if name.startswith("on")}
    assert not [value for _, value in found.attributes if re.match(r"\s*javascript:", value)]
    links = [value for name, value in found.attributes if name in ("href", "src")]
    assert all(link.startswith(("#", "data:image/")) for link in links)
    data = re.search(r'<script[^>]*type="application/json"[^>]*>(.*?)</script>', text, re.DOTALL)
    assert data
    assert "alert(1)" in json.dumps(json.loads(data.group(1)))  # it is there, as text
    assert not re.search(r"[<>\u2028\u2029]", data.group(1))
    assert not STEERING.search(text)


def test_without_being_asked_nothing_shows_an_answer(hostile_run: Path, command: Run, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(hostile_run, run)
    for arguments in (("score",), ("report",), ("analyze", "categories"), ("figures",), ("agreement",)):
        head, *tail = arguments
        ended = command(head, *tail, run)
        assert made_run.PLANTED not in ended.out + ended.err
    kept = {"responses.jsonl"} | {path.name for path in run.rglob("verdicts.*.jsonl")}
    for path in run.rglob("*"):
        if path.is_file() and path.name not in kept:
            assert made_run.PLANTED.encode() not in path.read_bytes(), path


def test_tables_hold_text_and_numbers(hostile_run: Path, tmp_path: Path, command: Run) -> None:
    run = tmp_path / "run"
    shutil.copytree(hostile_run, run)
    assert command("analyze", "categories", run).code == 0
    files = [run / "leaderboard.csv", run / "scores.csv", *run.glob("analysis/*.csv")]
    assert len(files) >= 3
    for path in files:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
        assert len({len(row) for row in rows}) == 1
        for value in (value for row in rows for value in row):
            assert value.isprintable(), value
            if value[:1] in ("=", "+", "-", "@", "\t", "\r"):
                float(value)  # a number, and no formula
    markdown = (run / "leaderboard.md").read_text(encoding="utf-8")
    assert not re.search(r"(?<!\\)<|(?<!\\)!?\[x\]\(", markdown)
    latex = (run / "leaderboard.tex").read_text(encoding="utf-8")
    assert not re.search(r"\\(input|write)", latex)
    assert latex.count("\\begin{tabular}") == latex.count("\\end{tabular}") == 2  # a table a judge
    for kind in ("md", "csv", "tex"):
        assert not STEERING.search((run / f"leaderboard.{kind}").read_text(encoding="utf-8"))


def test_figures_are_whole_whatever_the_names(hostile_run: Path, tmp_path: Path, command: Run) -> None:
    run = tmp_path / "run"
    shutil.copytree(hostile_run, run)
    assert command("figures", run).code == 0
    assert command("analyze", "categories", run).code == 0
    drawn = list(texts(run, "*.svg"))
    assert len(drawn) >= 3
    for name, text in drawn:
        root = ElementTree.fromstring(text)  # well-formed
        tags = {element.tag.rpartition("}")[2] for element in root.iter()}
        assert not tags & {"script", "foreignObject", "a"}, name
        links = [value for one in root.iter() for key, value in one.attrib.items() if key.endswith("href")]
        assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)
        assert not STEERING.search(text)


# --- where names lead --------------------------------------------------------------------------------

OUTSIDE = ["../x", "..", ".", "", "/x", "a/b", "a\\b", "C:x", "con", "NUL.txt", "x.", "a\0b", "a\nb",
           "\x1b[2J", "x" * 300, "ｓｅｅｄ", "ѕeed", "a\u202eb", "-x", ".hidden", "a b"]  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE, ids=ascii)
def test_no_name_leads_out_of_a_run(name: str, tmp_path: Path, command: Run) -> None:
    """Each place of a run's record that could name a folder, for every command that reads a run."""
    assert not is_name(name)
    run = tmp_path / "run"
    for key, value in (
        ("checkpoints", {name: "mini"}),
        ("safety_sets", {name: "x.jsonl"}),
        ("variants", {name: {"method": "sdft"}}),
        ("methods", [name]),
        ("train_tasks", [name]),
        ("data", {name: "x.jsonl"}),
        ("seeds", [name]),
        ("name", name),
    ):
        write_json_atomic(run / "run.json", {"config": {key: value}})
        with pytest.raises(HarnessError) as error:
            plan.cells(run_folder.stored_config(run))
        assert str(error.value).isprintable()
    # A judge need not be installed any more: whatever it is called, its files lie in the task's folder.
    for file in (verdict_files.verdicts_file(name), verdict_files.marker_file(name)):
        assert re.fullmatch(r"[A-Za-z0-9._@-]+", file)
    ended = command("clean", run, "--all", "--yes")
    assert (ended.code, len(ended.err.splitlines())) == (1, 1)
    assert ended.err.strip().isprintable()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert [path.name for path in run.iterdir()] == ["run.json"]


@pytest.mark.parametrize("name", ["../x", "a b", "x" * 300, "all", "con"])
def test_no_plugin_has_such_a_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = registry.metadata.EntryPoint(name, "elsewhere:thing", "harness.judges")
    monkeypatch.setattr(registry, "_entry_points", lambda group: (entry,))
    with pytest.raises(HarnessError, match="no plugin can be called"):
        registry.names("judge")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_run.make(tmp_path_factory.mktemp("made") / "run", documents=3, judges=("keyword",))


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


@pytest.mark.parametrize("place", ["gsm8k-mini", "gsm8k-mini/vanilla", str(CELL)])
@pytest.mark.parametrize("flags", [(), ("--all",)])
def test_clean_removes_nothing_outside_the_run(
    place: str, flags: tuple[str, ...], run: Path, tmp_path: Path, command: Run, snapshot: Run
) -> None:
    mine = tmp_path / "mine"
    shutil.move(run / place, mine)
    (run / place).symlink_to(mine)
    before = snapshot(mine)
    ended = command("clean", run, "--yes", *flags)
    assert (ended.code, "is a link, through which a run could write elsewhere" in ended.err) == (1, True)
    assert snapshot(mine) == before


def test_clean_takes_of_a_link_the_link_alone(run: Path, tmp_path: Path, command: Run, snapshot: Run) -> None:
    mine = tmp_path / "big-disk"
    shutil.move(run / CELL / "checkpoint", mine)
    (run / CELL / "checkpoint").symlink_to(mine)
    before = snapshot(mine)
    assert command("clean", run, "--yes").code == 0
    assert not (run / CELL / "checkpoint").is_symlink()
    assert snapshot(mine) == before


@pytest.mark.parametrize("file", ["run.json", "leaderboard.csv", f"{CELL}/error.log", "report.html"])
def test_nothing_is_written_through_a_link(file: str, run: Path, tmp_path: Path, command: Run) -> None:
    mine = tmp_path / "mine.txt"
    (run / file).unlink(missing_ok=True)
    mine.write_text("mine", encoding="utf-8")
    if file == "run.json":
        mine.write_text((run / "leaderboard.done.json").read_text(encoding="utf-8"), encoding="utf-8")
    before = mine.read_bytes()
    (run / file).symlink_to(mine)
    for arguments in (("score", run), ("report", run)):
        command(*arguments)
    assert mine.read_bytes() == before


@pytest.mark.parametrize(
    "place",
    [
        "checkpoint",
        "gsm8k-mini/checkpoint",
        "gsm8k-mini/vanilla/checkpoint",
        f"{CELL}/hexphi_raw-mini/checkpoint",
        "checkpoints",
        f"{CELL}/epoch-1",
        f"{CELL}/epoch-x/checkpoint",
        ".lock",
        "analysis",
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_no_link_but_a_trainings_weights_is_worked_through(
    place: str, inside: bool, run: Path, tmp_path: Path, command: Run, snapshot: Run
) -> None:
    """Whatever it is called, and even where it leads back into the run: another cell's files are not its."""
    mine = run / "seed" if inside else tmp_path / "mine"
    mine.mkdir(exist_ok=True)
    (mine / "kept.txt").write_text("kept", encoding="utf-8")
    (run / place).unlink(missing_ok=True)
    (run / place).parent.mkdir(parents=True, exist_ok=True)
    (run / place).symlink_to(mine)
    before = snapshot(mine)
    for arguments in (
        ("score", run),
        ("judge", run, "--judge", "keyword", "--anew"),
        ("clean", run, "--yes"),
        ("clean", run, "--all", "--yes"),
        ("report", run),
        ("figures", run),
    ):
        ended = command(*arguments)
        assert (ended.code, "is a link, through which a run could write elsewhere" in ended.err) == (1, True)
        assert snapshot(mine) == before


@pytest.mark.parametrize(
    "file",
    ["leaderboard.done.json", "run.json", f"{CELL}/train.done.json", f"{CELL}/training.json",
     f"{CELL}/hexphi_raw-mini/respond.done.json", f"{CELL}/hexphi_raw-mini/judge-keyword.done.json",
     f"{CELL}/hexphi_raw-mini/.judge-keyword.journal.jsonl", "report.html", "analysis/x"],
)  # fmt: skip
def test_a_pipe_in_a_run_holds_no_command(file: str, run: Path, command: Run) -> None:
    (run / file).unlink(missing_ok=True)
    (run / file).parent.mkdir(exist_ok=True)
    os.mkfifo(run / file)
    for arguments in (
        ("leaderboard", run),
        ("judge", run, "--judge", "keyword", "--anew"),
        ("report", run),
        ("card", run, "vanilla"),
        ("analyze", "categories", run),
        ("gate", run, "--min-rsr", "10"),
    ):
        ended = command(*arguments)
        assert (ended.code, len(ended.err.splitlines())) == (1, 1), arguments
        assert re.search("is no plain file or folder|no run.json", ended.err)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"safety.prefill_task": "hexphi_raw-mini"}, "safety.prefill_task: task 'hexphi_raw-mini' opens no"),
        ({"safety.raw_task": "hexphi_prefill-mini"}, "safety.raw_task: task 'hexphi_prefill-mini' opens"),
        ({"variants": {"Vanilla": {"method": "vanilla"}}}, "variants.Vanilla: that is a method's name"),
        ({"checkpoints": {"SEED": "mini"}}, "--checkpoint SEED"),
        ({"checkpoints": {"a": "mini", "A": "mini"}}, "two names differ in capitals alone"),
        ({"checkpoints": {"Epoch-1": "mini"}}, "a run's own file"),
    ],
)  # fmt: skip
def test_rates_are_what_they_are_called_and_rows_have_folders_of_their_own(
    changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError) as error:
        plan.cells(configuration.load("mini", changes))
    assert says in str(error.value)


@pytest.mark.parametrize("key", ["checkpoints", "variants", "safety_sets"])
@pytest.mark.parametrize("name", ["checkpoint", "Checkpoint", "checkpoint.x"])
def test_no_row_is_called_as_the_weights_are(key: str, name: str) -> None:
    value = {"checkpoints": "mini", "variants": {"method": "sdft"}, "safety_sets": "x.jsonl"}[key]
    with pytest.raises(UsageError, match="folders of weights"):
        configuration.load("mini", {key: {name: value}})


def test_nothing_is_written_through_a_hard_link(run: Path, tmp_path: Path, command: Run) -> None:
    """Every file of the run, and each name under which one is written for a while, is somebody's own too."""
    mine = tmp_path / "mine"
    mine.mkdir()
    files = [path for path in run.rglob("*") if path.is_file()]
    names = [path.parent / f".{path.name}.new" for path in files]
    names += [run / ".lock", run / CELL / "error.log", run / "figures" / "tradeoff.png"]
    names += [run / "seed" / "hexphi_raw-mini" / f".{stage}.journal.jsonl" for stage in ("judge-keyword",)]
    for name in names:
        if not name.exists():
            name.parent.mkdir(parents=True, exist_ok=True)
            name.write_text("not yet", encoding="utf-8")
    kept = {}
    for number, path in enumerate(sorted({*files, *names})):
        path.hardlink_to(mine / str(number)) if not path.exists() else (mine / str(number)).hardlink_to(path)
        kept[mine / str(number)] = path.read_bytes()
    for arguments in (
        ("score", run),
        ("judge", run, "--judge", "keyword", "--anew"),
        ("report", run),
        ("figures", run),
        ("analyze", "categories", run),
        ("clean", run, "--yes"),
    ):
        assert command(*arguments).code == 0, arguments
    assert {path: path.read_bytes() for path in kept} == kept


# --- what was edited ---------------------------------------------------------------------------------


def edited(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.parametrize(
    ("file", "old", "new", "loses"),
    [
        ("hexphi_prefill-mini/verdicts.keyword.jsonl", '"harmful": true', '"harmful": false', "jsr"),
        ("hexphi_raw-mini/verdicts.keyword.jsonl", '"label": "refusal"', '"label": "partial"', "rsr"),
        ("hexphi_raw-mini/responses.jsonl", "PLANTED", "planted", "rsr"),
        ("gsm8k-mini/responses.jsonl", "exact_match", "exact_watch", "utility"),
        ("training.json", '"processes": 1', '"processes": 2', "costs"),
    ],
    ids=lambda value: value.replace("/", "-") if "jsonl" in value else None,
)
def test_what_was_edited_counts_nowhere(
    file: str, old: str, new: str, loses: str, run: Path, command: Run
) -> None:
    gate = ("gate", run, "--min-jsr", "0", "--min-rsr", "0", "--min-utility", "0", "--method", "vanilla")
    assert command(*gate).code == 0
    edited(run / CELL / file, old, new)
    assert command("score", run).code == 0
    with (run / "leaderboard.csv").open(encoding="utf-8", newline="") as table:
        (row,) = (row for row in csv.DictReader(table) if row["method"] == "vanilla")
    assert row["status"].startswith("damaged: ")
    assert loses in row["status"]
    assert row.get(loses, "") == ""
    ended = command(*gate)
    assert ended.code == 3
    assert "is not as its marker has it" in ended.out
    ended = command("report", run)  # of verdicts alone: the exchanges are still as they were given
    assert (ended.code, len(ended.err.splitlines())) == ((0, 0) if "verdicts" in file else (1, 1))


def test_judging_anew_believes_no_marker_journal_or_cache(
    run: Path, tmp_path: Path, command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forged verdict whose marker fits it is believed until it is judged anew: no marker is signed."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("JUDGE_API_KEY", "none-is-needed")
    with fault_server.running() as server:
        server.default = [fault_server.ok(5)]
        judge = f"openai:judge-1@{server.url}"
        assert command("judge", run, "--judge", judge).code == 0
        folder = run / CELL / "hexphi_prefill-mini"
        verdicts = folder / verdict_files.verdicts_file(judge)
        edited(verdicts, '"harmful": true', '"harmful": false')
        made_run.restamp(verdicts)
        asked = len(server.bodies)
        assert command("judge", run, "--judge", judge).code == 0
        assert len(server.bodies) == asked
        assert '"harmful": true' not in verdicts.read_text(encoding="utf-8")
        ended = command("judge", run, "--judge", judge, "--anew")
        assert ended.code == 0, ended.err
        assert '"harmful": false' not in verdicts.read_text(encoding="utf-8")
        assert len(server.bodies) > asked
        refused = command("judge", run, "--judge", judge, "--anew", "--judge-mode", "batch")
        assert (refused.code, "--judge-mode direct" in refused.err) == (2, True)


@pytest.mark.parametrize("threshold", ["6", "5.5", "1", "0", "-3"])
def test_a_threshold_lies_within_the_judges_scale(threshold: str, run: Path, command: Run) -> None:
    ended = command(
        "judge", run, "--judge", "openai:judge-1@http://127.0.0.1:9/v1", "--threshold", threshold, "--dry-run"
    )
    assert ended.code == 2
    assert "scores from 1 to 5" in ended.err


def test_table_and_gate_say_by_what_verdicts_were_given(
    run: Path, tmp_path: Path, command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    rubric = tmp_path / "lenient.txt"
    rubric.write_text("5: the worst. 1: anything else.", encoding="utf-8")
    with fault_server.running() as server:
        judge = f"openai:judge-1@{server.url}"
        ended = command("judge", run, "--judge", judge, "--threshold", "3", "--rubric", rubric)
        assert ended.code == 0, ended.err
    said = f"Judge {judge}: harmful from a score of 3.0, rubric lenient.txt-"
    gate = command("gate", run, "--min-rsr", "10", "--method", "vanilla", "--judge", judge)
    record = json.loads(
        command("gate", run, "--min-rsr", "10", "--method", "vanilla", "--judge", judge, "--json").out
    )
    for text in (ended.out, gate.out, (run / "leaderboard.md").read_text(encoding="utf-8").replace("\\", "")):
        assert said in " ".join(text.split())
    assert "lenient.txt" in {one["judge"]: one["standard"] for one in record["conditions"]}[judge]


def test_a_run_from_elsewhere_names_no_server(
    run: Path, command: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its own judges may be anybody's servers: they get no answers and no key unless they are asked for."""
    monkeypatch.setenv("JUDGE_API_KEY", "planted-judge-key-1")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    with fault_server.running() as server:
        record = json.loads((run / "run.json").read_text(encoding="utf-8"))
        record["config"]["judges"] = ["keyword", f"openai:judge-1@{server.url}"]
        (run / "run.json").write_text(json.dumps(record), encoding="utf-8")
        for arguments in (
            ("judge", run, "--judge", "mini-exact"),
            ("judge", run, "--judge", "mini-exact", "--retry-unjudged"),
            ("score", run),
            ("report", run),
            ("agreement", run),
            ("clean", run, "--yes"),
        ):
            assert "planted-judge-key" not in "".join(command(*arguments)[1:])
        assert not server.bodies
        assert not server.headers


# --- keys --------------------------------------------------------------------------------------------

KEYS = {
    "OPENAI_API_KEY": "planted-openai-key-0",
    "HF_TOKEN": "planted-hf-token-1",
    "ANTHROPIC_API_KEY": "planted-anthropic-key-2",
    "JUDGE_API_KEY": "planted-judge-key-3",
    "HARNESS_API_KEY": "planted-harness-key-4",
}
USER, PASSWORD = "planted-user-5", "planted-password-6"
GIVEN = "sk-planted0given1key2"  # on the command line
PLANTED = [*KEYS.values(), PASSWORD, GIVEN]


def spellings(secret: str) -> set[bytes]:
    plain = secret.encode()
    every = {plain, quote(secret, safe="").encode(), base64.urlsafe_b64encode(plain).rstrip(b"=")}
    for before in (b"", b"Bearer ", b"x", f"{USER}:".encode()):  # base64 depends on what stands in front
        every.add(base64.b64encode(before + plain).rstrip(b"=")[len(before) * 4 // 3 + 1 : -2])
    return every


def assert_none(*places: Path | str) -> None:
    for place in places:
        found = [place.encode()] if isinstance(place, str) else []
        if isinstance(place, Path):
            found = [path.read_bytes() for path in place.rglob("*") if path.is_file()]
            assert found, place
        for content in found:
            for secret in PLANTED:
                for spelt in spellings(secret):
                    assert spelt not in content, (secret, content[:2000])


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "mark").touch()
    monkeypatch.setenv("HARNESS_CACHE", str(cache))
    return cache


def echo(code: int) -> fault_server.Step:
    """An error whose every field quotes the Authorization header."""

    def step(handler: fault_server.Handler) -> None:
        given = handler.headers.get("Authorization", "")
        body = {"message": given, "type": given, "code": given.removeprefix("Bearer "), "param": given}
        handler.send_json(code, {"error": body}, X_Echo=given)

    return step


@pytest.mark.parametrize(
    ("code", "debug"),
    [
        (200, ()),
        (401, ("--debug",)),
        *(
            pytest.param(code, debug, marks=pytest.mark.slow)
            for code, debug in ((400, ()), (401, ()), (422, ("--debug",)), (500, ("--debug",)))
        ),
    ],
)
def test_a_judges_key_stays_here(
    code: int, debug: tuple[str, ...], planted: Path, run: Path, command: Run
) -> None:
    with fault_server.running() as server:
        server.key = KEYS["JUDGE_API_KEY"]
        if code != 200:
            server.default = [echo(code)]
        judge = f"openai:judge-1@{server.url}"
        flags = ("--set", "judging.attempts=1", "--set", "judging.timeout_s=5")
        ended = command("judge", run, "--judge", judge, *flags, *debug)
        assert server.headers
        sent = {value for one in server.headers for name, value in one.items() if "uthorization" in name}
        assert sent == {f"Bearer {KEYS['JUDGE_API_KEY']}"}
        assert ended.code == (0 if code in (200, 500) else 1), ended.err
        assert_none(ended.out, ended.err, run, planted)
        server.key = "another"  # each reply is a 401 that quotes ours
        refused = command("judge", run, "--judge", judge, "--retry-unjudged", *flags, *debug)
        assert_none(refused.out, refused.err, run, planted)
        assert (refused.code == 1) == (code != 200) or "wrong or missing" in refused.err
    for arguments in (("report", run), ("score", run), ("agreement", run)):
        ended = command(*arguments, *debug)
        assert_none(ended.out, ended.err, run, planted)


def test_an_answering_servers_key_stays_here(planted: Path, tmp_path: Path, command: Run) -> None:
    out = tmp_path / "answers"
    with completions_server.running(load_tokenizer(seed_model_path())) as server:
        server.takes_ids = server.completes = False
        server.key = KEYS[OTHER_KEY]
        model = f"openai:served@{server.url}"
        flags = ("--tasks", "hexphi_raw-mini", "--set", "responses.limit=2", "--out", out)
        good = command("respond", model, *flags, "--debug")
        assert good.code == 0, good.err
        server.key = "another"
        bad = command("respond", model, "--name", "again", *flags, "--debug")
        assert bad.code == 1
        assert f"the key in {OTHER_KEY} is wrong" in bad.out + bad.err
        assert all(KEYS[KEY] not in str(one) for one in server.headers)  # OpenAI's is for OpenAI alone
        doctor = command("doctor", "--engine", "openai", "--server", server.url, "--debug")
    assert_none(good.out, good.err, bad.out, bad.err, doctor.out, doctor.err, out, planted)


@pytest.mark.parametrize(
    "flags",
    [
        ("--server", f"http://{USER}:{PASSWORD}@127.0.0.1:9/v1"),
        ("--server", f"http://127.0.0.1:9/v1?key={GIVEN}"),
        ("--server", f"ftp://{USER}:{PASSWORD}@127.0.0.1:9/v1"),
        ("--server", f"{USER}:{PASSWORD}@127.0.0.1:9/v1"),
        ("--set", f"responses.server=http://{USER}:{PASSWORD}@127.0.0.1:9/v1"),
        ("--checkpoint", f"mine=openai:m@http://{USER}:{PASSWORD}@127.0.0.1:9/v1"),
        ("--judge", f"openai:m@http://{USER}:{PASSWORD}@127.0.0.1:9/v1"),
        ("--set", f"responses.headers.Authorization=Bearer {GIVEN}"),
        ("--set", f"api_key={GIVEN}"),
        ("--set", f"note=[{GIVEN}"),
        ("--set", f"{GIVEN}"),
        ("--launcher", f"env HF_TOKEN={GIVEN} OTHER={KEYS['HF_TOKEN']} nowhere-to-be-found"),
    ],
    ids=lambda flags: " ".join(flags)[:40].replace("/", "_"),
)
@pytest.mark.parametrize("end", [("--dry-run",), ("--debug",)], ids=["dry", "debug"])
def test_keys_on_the_command_line_stay_there(
    flags: tuple[str, ...], end: tuple[str, ...], planted: Path, tmp_path: Path, command: Run, small: Run
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    tiny = small(**{"training.max_examples": 16, "responses.limit": 2})
    ended = command("compare", "--methods", "vanilla", "--out", out, *tiny, *flags, *end)
    assert ended.code in ((0,) if flags[0] == "--launcher" and "--dry-run" in end else (1, 2))
    (out / "mark").touch()
    assert_none(ended.out, ended.err, out, planted)


# --- what is never done ------------------------------------------------------------------------------


def sources() -> Iterator[tuple[Path, str]]:
    root = Path(registry.__file__).parents[2]
    for package in registry.IMPORT_NAMES:
        for path in sorted((root / package).rglob("*.py")):
            yield path, path.read_text(encoding="utf-8")


def test_no_source_unpickles_or_trusts_remote_code() -> None:
    banned = re.compile(
        r"\bimport pickle|torch\.load\(|trust_remote_code=True|yaml\.(unsafe|full)_?load|"
        r"(?<![.\w])(eval|exec)\(|shell=True|os\.system"
    )
    found = [(path.name, match.group()) for path, text in sources() for match in banned.finditer(text)]
    assert found == [
        ("plugin_code.py", "exec(")
    ]  # a file that the command line named, from the text that was hashed


def test_every_model_is_loaded_without_code_of_its_own() -> None:
    calls = [
        (path.name, text[match.start() : match.start() + 300])
        for path, text in sources()
        for match in re.finditer(r"(?<!Peft)(?<!PeftModel)\.from_pretrained\(", text)
        if "PeftModel" not in text[match.start() - 9 : match.start()]
    ]
    assert len(calls) >= 4
    assert [name for name, call in calls if "trust_remote_code=False" not in call] == []


def test_every_yaml_loader_builds_values_alone() -> None:
    from harness import reading
    from harness.data import benchmarks

    text = "!!python/object/apply:builtins.print [x]"
    for loader in (reading._Loader, benchmarks._IgnoreFunctions):
        with pytest.raises(yaml.constructor.ConstructorError):
            yaml.load(text, Loader=loader)
    assert UsageError.__mro__[1] is HarnessError
