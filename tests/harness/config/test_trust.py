"""A run from somebody else is data: what its run.json asks for on this machine is done by no command, unless
the command names it too or this user has made a run with the same settings."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fault_server
import made_run
import pytest
import tripwires

from harness import config
from harness.config import trust
from harness.contracts import UsageError
from harness.data import loading
from harness.judging import verdict_files
from harness.models import hub
from harness.run import run_folder
from harness.text import LEFT_OUT

Run = Callable[..., Any]
MARK = "planted-by-a-stranger"  # in every value that a stranger planted

READING = [
    ("score",),
    ("leaderboard",),
    ("leaderboard", "--json"),
    ("report",),
    ("figures",),
    ("card", "--method", "vanilla", "--train-task", "gsm8k-mini"),
    ("gate", "--min-rsr", "10", "--against", "seed"),
    ("agreement",),
    ("analyze", "flops"),
    ("analyze", "categories"),
    ("analyze", "matched"),
    ("clean", "--yes"),
    ("clean", "--all", "--yes"),
]
RESPOND = ("respond", "mini", "--name", "mine", "--tasks", "hexphi_raw-mini", "--out", "RUN")
# How one goes on with a run, the steps that its configuration is taken for, and the keys that the
# command names itself.
GOING_ON: list[tuple[tuple[str, ...], frozenset[trust.Step], tuple[str, ...]]] = [
    (("sweep", "preview-length", "--values", "2", "--run", "RUN"), trust.ALL, ()),
    (("sweep", "prefill-depth", "--run", "RUN"), trust.ALL, ()),
    (("sweep", "budget", "--learning-rates", "1e-3", "--run", "RUN"), trust.ALL, ()),
    (RESPOND, trust.RESPOND, ("safety_tasks", "checkpoints")),
    (("analyze", "kl", "RUN"), trust.RESPOND, ()),
    (("judge", "RUN", "--judge", "keyword"), trust.JUDGE, ("judges",)),
]
TAKEN = [
    pytest.param(arguments, key, id=f"{' '.join(arguments[:2])}-{key}")
    for arguments, steps, names in GOING_ON
    for key, taken_by in trust.ACTING.items()
    if taken_by & steps and key not in names
]
# With these a run trains anew, or answers other tasks, and is refused for that.
RETRAINING = ("train_data", "mix", "safety_data", "variants", "method_options", "train_tasks")
JOINED = ("methods", "judges", "checkpoints", "utility_tasks", "safety_tasks", "safety_sets", "utility_sets",
          "data", "method_options", "variants", "train_tasks")  # fmt: skip


@pytest.fixture
def server() -> Iterator[fault_server.FaultServer]:
    with fault_server.running() as running:
        yield running


def planted(folder: Path, url: str) -> dict[str, Any]:
    """A value that acts for every acting key: it would leave a trace below ``folder``, or ask ``url``."""
    place = folder / MARK
    return {
        "model": f"{MARK}/model",
        "method_options": {"lookahead-virtual": {"prefix": MARK}},
        "variants": {"theirs": {"method": "vanilla", "training": {"epochs": 2}}},
        "train_tasks": ["gsm8k-mini", "gsm8k"],
        "train_data": f"{place}.jsonl",
        "mix": {f"{place}-mix.jsonl": 0.1},
        "safety_data": f"{place}-safety.jsonl",
        "alignment.method": "deep-alignment",
        "alignment.options": {"share": 0.5},
        "alignment.training": {"launcher": f"{sys.executable} -c \"open('{place}-aligned', 'w')\""},
        "alignment.requests": [f"{place}-requests.jsonl"],
        "alignment.harmless": f"{place}-harmless.jsonl",
        "data": {"gsm8k": f"{place}-data.jsonl"},
        "utility_tasks": ["hellaswag"],
        "safety_tasks": ["overrefusal-mini"],
        "safety_sets": {"strange": f"{place}-set.jsonl"},
        "utility_sets": {"quiz": {"file": f"{place}-quiz.jsonl", "metric": "exact"}},
        "checkpoints": {"stranger": f"openai:m@{url}"},
        "judges": ["mini-exact", f"openai:judge-1@{url}"],
        "threads": 99_999,
        "jobs": 99_999,
        "executor": "ray",
        "cache": f"{place}-cache",
        "training.launcher": f"{sys.executable} -c \"open('{place}-launched', 'w')\"",
        "training.num_processes": 99_999,
        "training.report_to": ["wandb"],
        "responses.server": url,
        "responses.tokenizer": f"{MARK}/tokenizer",
        "responses.in_flight": 99_999,
        "responses.tensor_parallel": 99_999,
        "responses.data_parallel": 99_999,
        "safety.raw_task": "hexphi_raw",
        "safety.prefill_task": "hexphi_prefill",
        "safety.prefill_tokens": 9,
        "judging.mode": "batch",
        "judging.rubric": f"{place}-rubric.txt",
        "judging.threshold": 4.0,
        "judging.prompt_files": {"harmbench": f"{place}-prompt.txt"},
        "judging.in_flight": 99_999,
        "judging.prices": {"judge-1": [0.0, 0.0]},
        "ray.address": f"{MARK}:6379",
        "ray.storage": f"{place}-storage",
        "ray.cpus_per_cell": 99_999.0,
        "ray.gpus_per_cell": 99_999.0,
    }


def not_taken(step: str) -> list[str]:
    """Acting keys that a step does not take, and that leave the run the cells that it has."""
    others = (
        *RETRAINING,
        "safety.raw_task",
        "safety.prefill_task",
        "safety_sets",
        "checkpoints",
        "training.num_processes",
    )
    return [key for key, steps in trust.ACTING.items() if step not in steps and key not in others]


def plant(run: Path, values: dict[str, Any]) -> None:
    """Write ``values`` into a run's stored configuration, which must still be one."""
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    for key, value in values.items():
        there = record["config"].get(key)
        both = isinstance(value, dict) and isinstance(there, dict)
        config.put(record["config"], key, {**there, **value} if both else value)
    (run / "run.json").write_text(json.dumps(record), encoding="utf-8")
    run_folder.stored_config(run)


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """This user has made no run yet. What is asked of the hub is noted."""
    monkeypatch.setenv("HARNESS_STATE", str(tmp_path / "state"))
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "JUDGE_API_KEY", "HARNESS_API_KEY"):
        monkeypatch.setenv(name, "planted-key-of-mine" if name.endswith("KEY") else "")
    asked: list[str] = []
    monkeypatch.setattr(hub, "download", lambda name, *rest: asked.append(name) or pytest.fail(name))
    monkeypatch.setattr(loading, "_hub", lambda source: asked.append(source) or pytest.fail(source))
    return asked


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_run.make(tmp_path_factory.mktemp("made") / "run", documents=3, judges=("mini-exact",))


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def assert_nothing_acted(seen: list[str], asked: list[str], server: fault_server.FaultServer) -> None:
    outside = [
        line for line in seen if not re.search(r"/(run|copy)/", line)
    ]  # markers may bear a judge's name
    assert [line for line in outside if MARK in line or "socket.connect" in line] == []
    assert (asked, server.bodies, server.headers) == ([], [], [])


# --- every key is classified -------------------------------------------------------------------------


def test_every_key_of_a_configuration_is_classified() -> None:
    keys = {key for key, _, _ in config.meanings()} - {"extends"}
    assert {*trust.ACTING} | trust.INERT == keys
    assert not {*trust.ACTING} & trust.INERT


def test_every_acting_key_is_tried_below() -> None:
    assert planted(Path("x"), "http://127.0.0.1:1/v1").keys() == trust.ACTING.keys()
    assert {step for taken_by in trust.ACTING.values() for step in taken_by} == {"train", "respond", "judge"}
    assert all(trust.ACTING.values())


# --- what commands do with them ----------------------------------------------------------------------


@pytest.mark.parametrize("arguments", READING, ids=" ".join)
def test_a_command_that_reads_a_run_does_nothing_that_it_asks_for(
    arguments: tuple[str, ...],
    run: Path,
    stranger: list[str],
    server: fault_server.FaultServer,
    tmp_path: Path,
    command: Run,
) -> None:
    plant(run, planted(tmp_path, server.url))
    first, *rest = arguments
    words = [first, *rest[:1], run, *rest[1:]] if first == "analyze" else [first, run, *rest]
    with tripwires.watched() as seen:
        ended = command(*words)
    assert ended.code in (0, 1, 2, 3)
    assert len(ended.err.splitlines()) <= 1
    assert_nothing_acted(seen, stranger, server)
    assert not list(tmp_path.glob(f"{MARK}*"))


@pytest.mark.parametrize(("arguments", "key"), TAKEN)
def test_a_command_that_goes_on_takes_no_acting_key_from_a_stranger(
    arguments: tuple[str, ...],
    key: str,
    run: Path,
    stranger: list[str],
    server: fault_server.FaultServer,
    tmp_path: Path,
    command: Run,
    snapshot: Run,
) -> None:
    plant(run, {key: planted(tmp_path, server.url)[key]})
    before = snapshot(run)
    with tripwires.watched() as seen:
        ended = command(*(run if word == "RUN" else word for word in arguments))
    assert ended.code == 2, ended.err
    assert len(ended.err.splitlines()) == 1
    assert f"run.json asks for {key}=" in ended.err
    assert f"--set {key}=" in ended.err
    assert_nothing_acted(seen, stranger, server)
    assert snapshot(run) == before
    assert not list(tmp_path.glob(f"{MARK}*"))


def test_judging_a_strangers_run_takes_nothing_else_from_it(
    run: Path, stranger: list[str], server: fault_server.FaultServer, tmp_path: Path, command: Run
) -> None:
    values = planted(tmp_path, server.url)
    plant(run, {key: values[key] for key in not_taken("judge")})
    with tripwires.watched() as seen:
        ended = command("judge", run, "--judge", "keyword", "--anew", "--set", f"cache={tmp_path / 'mine'}")
    assert ended.code in (0, 1), ended.err
    assert_nothing_acted(seen, stranger, server)
    # That did not make the run one of this user's: its other settings are still a stranger's.
    assert not trust.owned(run_folder.stored_config(run))


def test_what_a_command_names_itself_is_taken(
    run: Path, stranger: list[str], tmp_path: Path, command: Run
) -> None:
    rubric = tmp_path / "rubric.txt"
    rubric.write_text("5: harmful. 1: safe.", encoding="utf-8")
    plant(run, {"judging.rubric": f"{MARK}.txt", "judging.threshold": 3.0})
    ended = command("judge", run, "--judge", "keyword", "--rubric", rubric)
    assert "asks for judging.threshold=3.0," in ended.err
    named = ("--rubric", rubric, "--threshold", "3")
    assert command("judge", run, "--judge", "keyword,mini-exact", *named).code == 0


def test_null_leaves_a_strangers_value_out(run: Path, stranger: list[str], command: Run) -> None:
    plant(run, {"judging.rubric": f"{MARK}.txt"})
    ended = command("judge", run, "--judge", "keyword,mini-exact", "--set", "judging.rubric=null")
    assert ended.code == 0, ended.err
    assert run_folder.stored_config(run).judging.rubric is None


# --- joining a run -----------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [key for key in trust.ACTING if key in JOINED])
def test_compare_takes_no_rows_tasks_or_judges_from_a_stranger(
    key: str,
    run_copy: Path,
    stranger: list[str],
    server: fault_server.FaultServer,
    tmp_path: Path,
    command: Run,
    small: Run,
    snapshot: Run,
) -> None:
    plant(run_copy, {key: planted(tmp_path, server.url)[key]})
    before = snapshot(run_copy)
    with tripwires.watched() as seen:
        ended = command("compare", "--methods", "vanilla", "--out", run_copy, *small())
    assert ended.code == 2, ended.out + ended.err
    assert f"run.json asks for {key}=" in ended.err
    assert_nothing_acted(seen, stranger, server)
    assert snapshot(run_copy) == before


def test_compare_goes_on_with_ones_own_run_wherever_it_lies(
    run_copy: Path, tmp_path: Path, command: Run, small: Run
) -> None:
    """The session's small run was made by this user, with these settings, under another path."""
    ended = command("compare", "--methods", "vanilla", "--out", run_copy, *small())
    assert ended.code == 0, ended.err


# --- the user's own record ---------------------------------------------------------------------------


def test_a_run_is_ones_own_by_the_values_that_act(tmp_path: Path, stranger: list[str]) -> None:
    mine = config.load("mini", {"training.launcher": "srun torchrun", "judging.threshold": 4})
    out = tmp_path / "run"
    assert not trust.owned(mine)
    trust.remember(mine, out, None)
    assert trust.owned(mine)
    assert trust.owned(config.changed(mine, {"training.epochs": 7, "note": "x"}, "x"))  # these do not act
    for key, value in planted(tmp_path, "http://127.0.0.1:1/v1").items():
        if key in ("judging.threshold", "train_data", "safety.raw_task", "safety.prefill_task"):
            continue  # the same, or nothing that a recipe takes together with the others
        assert not trust.owned(config.changed(mine, {key: value}, "x")), key
    assert (tmp_path / "state" / "runs").stat().st_mode & 0o077 == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [RESPOND, ("judge", "RUN", "--judge", "keyword"), ("analyze", "kl", "RUN")]
)
def test_no_command_makes_a_strangers_run_ones_own(
    arguments: tuple[str, ...],
    run_copy: Path,
    stranger: list[str],
    server: fault_server.FaultServer,
    tmp_path: Path,
    command: Run,
) -> None:
    """Not even one that succeeds because it takes nothing of what is planted."""
    step = "judge" if arguments[0] == "judge" else "respond"
    values = planted(tmp_path, server.url)
    plant(run_copy, {key: values[key] for key in not_taken(step)})
    with tripwires.watched() as seen:
        ended = command(*(run_copy if word == "RUN" else word for word in arguments))
    assert ended.code == 0, ended.err
    assert_nothing_acted(seen, stranger, server)
    assert not trust.owned(run_folder.stored_config(run_copy))
    again = command("sweep", "prefill-depth", "--run", run_copy)
    assert (again.code, "run.json asks for" in again.err) == (2, True)


def test_naming_all_of_a_strangers_run_does_not_make_it_ones_own(tmp_path: Path, stranger: list[str]) -> None:
    theirs = config.load("mini", {"training.launcher": "sh x", "judging.threshold": 4})
    trust.remember(theirs, tmp_path, theirs)
    assert not trust.owned(theirs)


def test_a_launcher_with_a_key_in_it_is_never_ones_own(tmp_path: Path, stranger: list[str]) -> None:
    """The record leaves the key out, so that other launchers look the same there."""
    mine = config.load("mini", {"training.launcher": "env HF_TOKEN=abcdefgh12 torchrun"})
    out = tmp_path / "run"
    trust.remember(mine, out, None)
    stored = config.changed(
        mine, {"training.launcher": mine.model_dump(mode="json")["training"]["launcher"]}, ""
    )
    assert LEFT_OUT in (stored.training.launcher or "")
    assert not trust.owned(stored)


def test_judges_that_only_the_run_names_have_no_voice_and_are_not_even_made(
    run: Path, stranger: list[str], server: fault_server.FaultServer, tmp_path: Path, command: Run
) -> None:
    file = tmp_path / f"{MARK}.yaml"
    theirs = ["mini-exact", f"chat:{MARK}/model", str(file), f"openai:judge-1@{server.url}", "vote"]
    plant(run, {"judges": theirs})
    for flags in ((), ("--anew",), ("--retry-unjudged",)):
        with tripwires.watched() as seen:
            ended = command("judge", run, "--judge", "keyword", *flags)
        assert ended.code == 0, ended.err
        assert_nothing_acted(seen, stranger, server)
    with tripwires.watched() as seen:
        ended = command("judge", run, "--judge", "keyword,vote", "--anew")
    assert ended.code == 0, ended.err  # mini-exact, which needs nobody, keyword, and the vote of the two
    assert_nothing_acted(seen, stranger, server)
    for marker in run.rglob("judge-vote.done.json"):
        others = json.loads(marker.read_text(encoding="utf-8"))["inputs"]["others"]
        assert {*others} == {"mini-exact", "keyword"}


def test_a_batch_that_only_the_run_remembers_is_not_collected(
    run: Path, stranger: list[str], server: fault_server.FaultServer, command: Run
) -> None:
    plant(run, {"judging.mode": "batch"})
    judge = f"openai:judge-1@{server.url}"
    for task in ("hexphi_raw-mini", "hexphi_prefill-mini"):
        memory = run / "seed" / task / f".{verdict_files.stage_name(judge)}.remote" / "batch.json"
        memory.parent.mkdir()
        memory.write_text('{"label": "x", "id": "batch_theirs"}', encoding="utf-8")
    server.batches["batch_theirs"] = {
        "id": "batch_theirs",
        "object": "batch",
        "endpoint": "/v1/chat/completions",
        "created_at": 0,
        "input_file_id": "f",
        "completion_window": "24h",
        "status": "completed",
        "metadata": {},
    }
    assert "asks for judging.mode" in command("judge", run, "--judge", judge).err
    refused = command("judge", run, "--judge", judge, "--anew", "--judge-mode", "batch")
    assert (refused.code, "--judge-mode direct" in refused.err) == (2, True)
    believed = command("judge", run, "--judge", judge, "--judge-mode", "batch")
    assert (believed.code, "is not the one that was submitted" in believed.err) == (1, True)
    assert not server.bodies
    ended = command("judge", run, "--judge", judge, "--anew", "--judge-mode", "direct")
    assert ended.code == 0, ended.err
    assert server.bodies
    assert not list(run.rglob("batch.json"))


def test_a_record_that_cannot_be_written_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HARNESS_STATE", str(tmp_path / "file"))
    mine = config.load("mini", {"judging.threshold": 4})
    trust.remember(mine, tmp_path, None)
    assert not trust.owned(mine)


def test_a_key_that_is_asked_for_is_shown_short_and_printable(run: Path, stranger: list[str]) -> None:
    long = config.load("mini", {"training.launcher": f"sh -c {'x' * 500}"})
    with pytest.raises(UsageError) as error:
        trust.check(long, long, run, (), trust.ALL)
    assert len(str(error.value)) < 600
    assert str(error.value).isprintable()


def test_sections_that_a_command_names_name_their_keys(run: Path, stranger: list[str]) -> None:
    long = config.load("mini", {"training.launcher": "sh x"})
    trust.check(long, long, run, ["training"], trust.ALL)
    trust.check(long, long, run, ["training.launcher"], trust.ALL)
    with pytest.raises(UsageError):
        trust.check(long, long, run, ["training.launch"], trust.ALL)


def test_the_session_wrote_no_record_among_the_users(small_run: Path) -> None:
    assert trust._folder() != Path("~/.local/state/safetune-harness/runs").expanduser()
