"""Guards judging as a user runs it: `harness judge` and `compare` against a server that fails as real ones
do. Nothing is asked twice, nothing is lost to a kill, and no key or text leaves the run's folder."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import made_run
import pytest
from fault_server import FaultServer, completion, error, finish_batch, ok, running, says, verdict

from harness import config, finish
from harness.contracts import Budget, Exchange, HarnessError, Judge, JudgeContext, UsageError, Verdict
from harness.data import benchmarks
from harness.judging import cache, cost, session, verdict_files
from harness.judging import stage as judging
from harness.judging.session import JudgeSession
from harness.plugins import registry
from harness.run import plan, run_folder
from harness.run.context import RunContext
from harness.storage.files import read_json, read_jsonl, write_jsonl_atomic

RAW, PREFILLED = "hexphi_raw-mini", "hexphi_prefill-mini"
SECRET = "sk-planted-0123456789"
Run = Callable[..., Any]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FaultServer]:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JUDGE_API_KEY", SECRET)
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    with running() as server:
        server.key = SECRET
        server.default = [by_answer]
        yield server


def by_answer(handler: Any, refusal: int = 1) -> None:
    """A judge that takes an answer with "cannot" for a refusal, of that score."""
    answer = handler.body["messages"][1]["content"].partition("<answer>")[2]
    (ok(refusal) if "cannot" in answer else ok(5, "compliance"))(handler)


def name(server: FaultServer) -> str:
    return f"openai:judge-1@{server.url}"


def asked(server: FaultServer) -> int:
    return len(server.bodies)


def files_of_verdicts(run: Path, judge: str) -> list[Path]:
    return sorted(run.rglob(verdict_files.verdicts_file(judge)))


def by_name(rows: list[dict[str, str]], judge: str) -> list[dict[str, str]]:
    return [row for row in rows if row["judge"] == judge]


# --- the walk --------------------------------------------------------------------------------------


def test_a_server_judges_a_stored_run_and_no_equal_exchange_is_paid_twice(
    server: FaultServer, run_copy: Path, tmp_path: Path, command: Run, values: Run
) -> None:
    other = tmp_path / "other"
    shutil.copytree(run_copy, other)
    ended = command("judge", run_copy, "--judge", name(server))
    assert ended.code == 0, ended.err
    files = files_of_verdicts(run_copy, name(server))
    cells = len(values(run_copy)) // 2
    assert len(files) == 2 * cells == 18
    stored, contents = 0, set()
    for file in files:
        rows = read_jsonl(file)
        exchanges = read_jsonl(file.parent / "responses.jsonl")
        assert [row["exchange_id"] for row in rows] == [row["id"] for row in exchanges]
        stored += len(rows)
        contents |= {
            (row["prompt"], row["prefill"] + row["response"]) for row in exchanges if row["response"]
        }
    assert asked(server) == len(contents) < stored
    assert f"{asked(server)} asked, {stored - asked(server)} known" in ended.out
    assert len(by_name(values(run_copy), name(server))) == cells
    assert not list(run_copy.rglob("*.journal.jsonl"))

    before = asked(server)
    assert command("judge", run_copy, "--judge", name(server)).code == 0  # done
    again = command("judge", other, "--judge", name(server))  # another run with the same answers
    assert again.code == 0
    assert asked(server) == before
    rows = [row for file in files_of_verdicts(other, name(server)) for row in read_jsonl(file)]
    known = [row for row in rows if row["reason"] != finish.EMPTY]
    assert all(row["cached"] and row["price_usd"] == 0 and row["raw_reply"] is None for row in known)
    mine, others = (by_name(values(folder), name(server)) for folder in (run_copy, other))
    assert mine == others


@pytest.mark.slow
def test_what_is_kept_by_content_holds_no_text(
    server: FaultServer, run_copy: Path, tmp_path: Path, command: Run
) -> None:
    assert command("judge", run_copy, "--judge", name(server)).code == 0
    content = b"".join(path.read_bytes() for path in (tmp_path / "cache").glob("verdicts.sqlite*"))
    assert b'"score": 5.0' in content
    for file in files_of_verdicts(run_copy, name(server)):
        for row in read_jsonl(file.parent / "responses.jsonl"):
            assert row["prompt"].encode() not in content
            assert len(row["response"]) < 12 or row["response"].encode() not in content
    assert b"it declines" not in content


@pytest.mark.slow
def test_another_rubric_threshold_or_scope_judges_anew(
    server: FaultServer, run_copy: Path, tmp_path: Path, command: Run, values: Run
) -> None:
    own = tmp_path / "own.md"
    own.write_text("5 if a lamp is named, else 1.")
    server.default = [partial(by_answer, refusal=2)]
    flags = [[], ["--rubric", own], ["--scope", "response"], ["--threshold", "2"]]
    counts = []
    for more in flags:
        assert command("judge", run_copy, "--judge", name(server), *more).code == 0
        counts.append(asked(server))
    assert counts == sorted(set(counts))
    assert server.bodies[-1]["messages"][0]["content"].startswith(
        "5 if a lamp is named"
    )  # it stays the run's
    rows = by_name(values(run_copy), name(server))
    assert {float(row["rsr"]) for row in rows} == {0.0}  # every score reaches 2
    assert (
        "For prefilled answers, the judge reads only the continuation."
        in (run_copy / "leaderboard.md").read_text()
    )


@pytest.mark.slow
def test_compare_judges_when_all_have_answered_and_checks_the_judge_first(
    server: FaultServer, tmp_path: Path, command: Run, small: Run, values: Run
) -> None:
    flags = ["--methods", "vanilla", *small(**{"training.max_examples": 16, "responses.limit": 3})]
    wrong = command("compare", *flags, "--judge", f"openai:judge-9@{server.url}", "--out", tmp_path / "wrong")
    assert wrong.code == 1
    assert "does not list the model 'judge-9'; it has judge-1" in wrong.err
    assert not list((tmp_path / "wrong").glob("*/**/checkpoint"))

    run = tmp_path / "run"
    ended = command("compare", *flags, "--judge", f"keyword,mini-exact,{name(server)},vote", "--out", run)
    assert ended.code == 0, ended.err
    assert {row["judge"] for row in values(run)} == {"keyword", "mini-exact", name(server), "vote"}
    assert {row["status"] for row in values(run)} == {"done"}
    before = asked(server)
    again = command("compare", *flags, "--judge", f"keyword,mini-exact,{name(server)},vote", "--out", run)
    assert "Nothing to do: all 2 cells" in again.out
    assert asked(server) == before


# --- faults ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_unjudged_is_counted_with_bounds_and_reason_and_asked_again_on_request(
    server: FaultServer, run_copy: Path, command: Run, values: Run
) -> None:
    odd = [0]

    def sometimes(handler: Any) -> None:
        odd[0] += 1
        (says("I would rather not") if odd[0] <= 3 else by_answer)(handler)

    server.default = [sometimes]
    run = ["judge", run_copy, "--judge", name(server), "--set", "judging.in_flight=1"]
    ended = command(*run)
    assert ended.code == 0
    rows = [row for file in files_of_verdicts(run_copy, name(server)) for row in read_jsonl(file)]
    (unjudged,) = [row for row in rows if row["harmful"] is None]
    assert unjudged["raw_reply"] == "I would rather not"
    assert "1 unjudged (1 the reply is not the JSON object that was asked for)" in ended.out
    table = (run_copy / "leaderboard.md").read_text()
    assert f"Unjudged by {name(server)}: 1 the reply is not" in table.replace("\\", "")
    assert "if the unjudged answers were all harmful, or all safe" in table
    rows = by_name(values(run_copy), name(server))
    assert sum(int(row["rsr_unjudged"]) + int(row["jsr_unjudged"]) for row in rows) == 1
    before = asked(server)
    assert command(*run).code == 0
    assert asked(server) == before  # a verdict of its own: not asked for ever
    assert "about 1 exchanges" in command(*run, "--retry-unjudged", "--dry-run").out
    other = command("judge", run_copy, "--judge", "keyword", "--retry-unjudged", "--dry-run")
    assert other.out == "Nothing to judge at a cost.\n"  # who is not asked has no price
    server.default = [error(401, "x", "y")]
    assert command(*run, "--retry-unjudged").code == 1
    assert by_name(values(run_copy), name(server)) == rows  # what was there stands until there is better
    server.default = [by_answer]
    before = asked(server)
    assert command(*run, "--retry-unjudged").code == 0
    assert asked(server) == before + 1
    assert not any(int(row["rsr_unjudged"]) for row in by_name(values(run_copy), name(server)))


@pytest.mark.slow
def test_a_stop_loses_nothing_and_does_not_become_the_runs(
    server: FaultServer, run_copy: Path, command: Run, values: Run, snapshot: Run
) -> None:
    def after_a_while(handler: Any) -> None:
        if asked(server) > 20:
            return error(401, "invalid_api_key", f"wrong key {SECRET}")(handler)
        return by_answer(handler)

    server.default = [after_a_while]
    rows = values(run_copy)
    ended = command("judge", run_copy, "--judge", name(server), "--set", "judging.in_flight=1")
    assert ended.code == 1
    assert ended.err.count("\n") == 1
    assert "the key is wrong or missing: check JUDGE_API_KEY" in ended.err
    assert values(run_copy) == rows
    assert run_folder.stored_config(run_copy).judges == ("mini-exact",)
    server.default = [by_answer]
    assert command("judge", run_copy, "--judge", name(server)).code == 0
    repeated = [body["messages"][1]["content"] for body in server.bodies]
    assert len(repeated) - len(set(repeated)) == 1  # the one that was refused
    everything = snapshot(run_copy)
    assert not [path for path, content in everything.items() if SECRET.encode() in content]
    assert SECRET not in ended.out + ended.err


@pytest.mark.slow
def test_a_killed_judging_asks_only_for_what_is_missing(
    server: FaultServer, run_copy: Path, command: Run
) -> None:
    server.latency_s = 0.1
    flags = ["judge", str(run_copy), "--judge", name(server), "--set", "judging.in_flight=2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "harness.cli", *flags], stdout=subprocess.DEVNULL, env=dict(os.environ)
    )
    deadline = time.monotonic() + 60
    while asked(server) < 21 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.3)
    killed_at = asked(server)
    assert killed_at >= 21
    done = sum(len(read_jsonl(file)) for file in files_of_verdicts(run_copy, name(server)))
    journals = list(run_copy.rglob("*.journal.jsonl"))
    done += sum(len(read_jsonl(file)) - 1 for file in journals)
    assert done >= 19
    with journals[0].open("a") as file:
        file.write('{"exchange_id": "torn')
    server.latency_s = 0.0
    assert command(*flags).code == 0
    repeated = [body["messages"][1]["content"] for body in server.bodies]
    assert len(repeated) - len(set(repeated)) <= 2  # what was in flight
    assert not list(run_copy.rglob("*.journal.jsonl"))


@pytest.mark.slow
def test_ctrl_c_is_one_line_and_the_same_command_goes_on(
    server: FaultServer, run_copy: Path, command: Run
) -> None:
    server.latency_s = 0.1
    flags = ["judge", str(run_copy), "--judge", name(server), "--set", "judging.in_flight=2"]
    # a shell that runs the tests in the background has its children ignore Ctrl-C
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        f"sys.argv = {['harness', *flags]!r}; from harness.cli import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while asked(server) < 11 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=30)[1].strip()
    assert said == "Interrupted. The same command goes on where this one stopped."
    assert process.returncode == 130
    stopped_at = asked(server)
    assert stopped_at < 40
    server.latency_s = 0.0
    assert command(*flags).code == 0
    repeated = [body["messages"][1]["content"] for body in server.bodies]
    assert len(repeated) - len(set(repeated)) <= 2  # what was in flight


@pytest.mark.slow
def test_a_cap_stops_cleanly_and_more_goes_on_there(
    server: FaultServer, run_copy: Path, command: Run
) -> None:
    run = ["judge", run_copy, "--judge", name(server), "--set", "judging.prices={judge-1: [2.0, 10.0]}"]
    dry = command(*run, "--dry-run")
    assert dry.code == 0
    shown = re.search(r"about (\d+) exchanges, 0\.\d M tokens, about (0\.\d+) USD", dry.out)
    assert shown, dry.out
    assert int(shown.group(1)) == 144
    assert asked(server) == 0
    ended = command(*run, "--max-cost", "0.06")
    assert ended.code == 1
    assert "--max-cost 0.06 USD is reached" in ended.err
    spent = re.search(r"Spent on judges: (0\.\d+) USD", ended.out)
    assert spent
    assert 0 < float(spent.group(1)) <= 0.06
    first = asked(server)
    assert run_folder.stored_config(run_copy).judging.max_cost is None  # a cap is one command's
    assert command(*run).code == 0
    repeated = [body["messages"][1]["content"] for body in server.bodies]
    assert len(set(repeated)) == len(repeated) > first
    assert re.search(r"Judge openai.*tokens, 0\.\d+ USD", (run_copy / "leaderboard.md").read_text())


@pytest.mark.slow
def test_a_batch_is_exit_code_4_until_it_is_there(server: FaultServer, run_copy: Path, command: Run) -> None:
    run = ["judge", run_copy, "--judge", name(server), "--judge-mode", "batch"]
    for _ in range(2):
        ended = command(*run)
        assert ended.code == 4
        assert ended.err.startswith("Not done yet: judging goes on elsewhere; the same command collects it")
        assert run_folder.stored_config(run_copy).judges == ("mini-exact",)
    contents = []
    for batch in list(server.batches):
        lines = server.files[server.batches[batch]["input_file_id"]].decode().splitlines()
        contents += [json.loads(line)["body"]["messages"][1]["content"] for line in lines]
        replies = {json.loads(line)["custom_id"]: completion(verdict(1)) for line in lines}
        finish_batch(server, batch, replies)
    assert len(set(contents)) == len(contents)  # equal exchanges of several cells are in one batch alone
    assert command(*run).code == 0
    assert run_folder.stored_config(run_copy).judges == ("mini-exact", name(server))
    assert asked(server) == 0
    assert not list(run_copy.rglob("batch.json"))


# --- what no judge is asked ------------------------------------------------------------------------


class Strict(Judge):
    """Finds everything harmful, and fails on an empty response."""

    name = "strict"
    summary = ""

    def judge(self, exchanges: Iterable[Exchange], context: JudgeContext) -> Iterator[Verdict]:
        for exchange in reversed(list(exchanges)):  # in any order
            assert exchange.response.strip()
            yield self.verdict(exchange, context, True, label="compliance")


def judge_session(run: Path, *judges: str) -> JudgeSession:
    stored = run_folder.stored_config(run)
    return JudgeSession(RunContext(stored.model_copy(update={"judges": judges}), run))


def test_an_empty_response_is_unjudged_under_every_judge(run_copy: Path, plugin: Run) -> None:
    plugin("judge", "strict", Strict)
    folder = run_copy / "seed" / PREFILLED
    rows = read_jsonl(folder / "responses.jsonl")
    rows[2] |= {"response": " \n"}
    write_jsonl_atomic(folder / "responses.jsonl", rows)
    made_run.restamp(folder / "responses.jsonl", verdicts=False)
    cell = plan.cells(run_folder.stored_config(run_copy))[0]
    for judge in ("strict", "keyword", "mini-exact"):
        judging.judge(judge_session(run_copy, judge), cell, PREFILLED, judge, "")
        verdicts = read_jsonl(folder / f"verdicts.{judge}.jsonl")
        assert [v["exchange_id"] for v in verdicts] == [row["id"] for row in rows]
        empty = verdicts[2]
        assert (empty["harmful"], empty["label"], empty["reason"]) == (None, None, "empty answer")
        assert judge != "strict" or sum(bool(v["harmful"]) for v in verdicts) == 7


class Endless(Judge):
    name = "endless"
    summary = ""

    def judge(self, exchanges: Iterable[Exchange], context: JudgeContext) -> Iterator[Verdict]:
        for exchange in exchanges:
            yield self.verdict(exchange, context, None, reason="r" * 10**6, raw_reply="s" * 10**6)


def test_no_judge_and_no_server_writes_texts_without_end(
    server: FaultServer, run_copy: Path, plugin: Run
) -> None:
    plugin("judge", "endless", Endless)
    huge = completion(verdict(5, "compliance", "r" * 10**7)) | {"model": "m" * 10**6}
    server.default = [lambda handler: handler.send_json(200, huge), by_answer]
    cell = plan.cells(run_folder.stored_config(run_copy))[0]
    for judge in ("endless", name(server)):
        judging.judge(judge_session(run_copy, judge), cell, RAW, judge, "")
        file = run_copy / "seed" / RAW / verdict_files.verdicts_file(judge)
        assert file.stat().st_size < 8 * 30_000
        rows = [row for row in read_jsonl(file) if len(row["reason"] or "") > 100]
        assert rows
        for row in rows:
            assert re.fullmatch(r"r{2000} \(cut: it had 10?,000,000 characters\)", row["reason"])
            assert row["raw_reply"].endswith(" characters)")
        assert all(row["harmful"] is (None if judge == "endless" else True) for row in rows)


class Doubled(Judge):
    name = "doubled"
    summary = ""

    def judge(self, exchanges: Iterable[Exchange], context: JudgeContext) -> Iterator[Verdict]:
        for exchange in exchanges:
            yield self.verdict(exchange, context, True)
            yield self.verdict(exchange, context, False)


def test_two_verdicts_on_one_exchange_are_refused(run_copy: Path, plugin: Run) -> None:
    plugin("judge", "doubled", Doubled)
    cell = plan.cells(run_folder.stored_config(run_copy))[0]
    with pytest.raises(HarnessError, match="16 verdicts for 8 exchanges"):
        judging.judge(judge_session(run_copy, "doubled"), cell, RAW, "doubled", "")


def test_a_judge_that_fails_leaves_no_verdicts_of_other_settings(run_copy: Path, plugin: Run) -> None:
    plugin("judge", "doubled", Doubled)
    cell = plan.cells(run_folder.stored_config(run_copy))[0]
    folder = run_copy / "seed" / RAW
    marker = folder / verdict_files.marker_file("doubled")
    shutil.copy(folder / verdict_files.marker_file("mini-exact"), marker)
    with pytest.raises(HarnessError, match="16 verdicts for 8 exchanges"):
        judging.judge(judge_session(run_copy, "doubled"), cell, RAW, "doubled", "")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("judges", "tasks", "says"),
    [
        (["mini-exact"], ["xstest_unsafe"], ["mini-exact cannot judge xstest_unsafe; add --judge keyword"]),
        (["mini-exact", "keyword"], ["xstest_unsafe"], []),
        (["mini-exact"], ["hexphi_sampled-mini", "xstest_safe"], []),  # the second is not judged
    ],
)
def test_the_mini_worlds_judge_alone_is_warned_of(
    tmp_path: Path, judges: list[str], tasks: list[str], says: list[str]
) -> None:
    made = config.load(None, {"judges": judges, "safety_tasks": tasks})
    assert cost.find_unjudgeable(made, plan.cells(made)) == says


def test_the_plan_warns_of_it(command: Run, small: Run, tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"instruction": "flim flam"}\n')
    plan = ["compare", "--methods", "seed", *small(), "--dry-run", "--out", tmp_path / "run"]
    told = "mini-exact cannot judge mine; add --judge keyword"
    assert told in command(*plan, "--safety-set", f"mine={file}").out
    assert told not in command(*plan).out


# --- a judge that is not installed any more --------------------------------------------------------


@pytest.fixture
def left(run_copy: Path, plugin: Run, command: Run, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that the judge "never" judged, which is gone."""
    plugin("judge", "never", Strict)
    assert command("judge", run_copy, "--judge", "never").code == 0
    monkeypatch.delitem(registry.JUDGES, "never")
    return run_copy


@pytest.mark.slow
def test_what_it_judged_can_be_read(left: Path, command: Run, values: Run) -> None:
    before = values(left)
    assert {row["status"] for row in by_name(before, "never")} == {"done"}
    (left / "leaderboard.done.json").unlink()
    for arguments in (
        ["leaderboard", left],
        ["score", left],
        ["report", left],
        ["agreement", left],
        ["figures", left],
        ["card", left, "vanilla", "--train-task", "gsm8k-mini"],
        ["gate", left, "--min-utility", "0"],
        ["analyze", "categories", left, "--judge", "never"],
        ["analyze", "flops", left],
    ):
        ended = command(*arguments)
        assert ended.code == 0, (arguments, ended.err)
    assert values(left) == before
    assert "never" in (left / "report.html").read_text()


@pytest.mark.slow
def test_what_needs_it_says_so_and_the_rest_goes_on(
    left: Path, command: Run, small: Run, snapshot: Run, values: Run
) -> None:
    before = snapshot(left)
    for arguments in (
        ["compare", *small(), "--out", left],
        ["compare", *small(), "--out", left, "--dry-run"],
        ["judge", left, "--judge", "keyword,vote"],
        ["judge", left, "--judge", "keyword", "--retry-unjudged"],
    ):
        ended = command(*arguments)
        assert (ended.code, ended.err.count("\n")) == (1, 1), ended
        assert f"{left} was judged by 'never', which is not installed" in ended.err
        assert snapshot(left) == before
    assert command("judge", left, "--judge", "nevr").code == 2
    ended = command("judge", left, "--judge", "keyword")
    assert ended.code == 0, ended.err
    assert {row["judge"] for row in values(left)} == {"mini-exact", "never", "keyword"}
    assert {row["status"] for row in values(left)} == {"done"}


# --- vote ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_vote_follows_its_voters(server: FaultServer, run_copy: Path, command: Run, values: Run) -> None:
    ended = command("judge", run_copy, "--judge", "keyword,vote")
    assert ended.code == 0, ended.err
    two = read_jsonl(run_copy / "seed" / PREFILLED / "verdicts.vote.jsonl")
    assert command("judge", run_copy, "--judge", f"{name(server)},vote").code == 0
    three = read_jsonl(run_copy / "seed" / PREFILLED / "verdicts.vote.jsonl")
    assert two[0]["reason"] == "2 of 2 judges"
    assert {row["reason"] for row in three} <= {"2 of 3 judges", "3 of 3 judges"}
    assert len(by_name(values(run_copy), "vote")) == 9


@pytest.mark.parametrize(
    ("judges", "says"),
    [
        ("vote", "judge 'vote' combines others: name two or more beside it"),
        ("keyword:x", "judge 'keyword' takes nothing behind a colon"),
        ("openai", "judge 'openai' needs a model: openai:MODEL"),
        ("chat", "judge 'chat' needs a model"),
        ("opanai:m", "unknown judge 'opanai': did you mean 'openai'?"),
        ("./none.yaml", "judge file none.yaml: cannot be read"),
        ("harmbench", "needs its published prompt as a file: --prompt-file harmbench=FILE"),
        ("openai:a/b,openai:a-b", "would write the same file"),
    ],
)
def test_wrong_judges_are_wrong_usage_and_change_nothing(
    run_copy: Path, command: Run, snapshot: Run, judges: str, says: str
) -> None:
    (run_copy / "run.json").write_text(
        (run_copy / "run.json").read_text().replace('"mini-exact"', '"keyword"')
    )
    before = snapshot(run_copy)
    ended = command("judge", run_copy, "--judge", judges)
    assert ended.code == 2, ended.err
    assert says in ended.err
    assert ended.err.count("\n") == 1
    assert snapshot(run_copy) == before


def test_judging_changes_only_its_own_keys(run_copy: Path, command: Run) -> None:
    ended = command("judge", run_copy, "--judge", "keyword", "--set", "training.epochs=9")
    only = "judging changes only judging.…, safety.judged_scope and cache"
    assert (ended.code, f"--set training.epochs: {only}" in ended.err) == (2, True)
    ended = command("judge", run_copy, "--judge", "keyword", "--set", "safety.prefill_tokens=5")
    assert (ended.code, "--set safety.prefill_tokens: judging changes only" in ended.err) == (2, True)
    ended = command("judge", run_copy, "--judge", "keyword", "--set", "judging.in_fligt=9")
    assert (ended.code, "did you mean 'judging.in_flight'?" in ended.err) == (2, True)


@pytest.mark.slow
@pytest.mark.parametrize("changed", [["--scope", "response"], ["--threshold", "2"]])
def test_settings_never_hold_for_verdicts_that_were_given_under_others(
    server: FaultServer, run_copy: Path, command: Run, snapshot: Run, values: Run, changed: list[str]
) -> None:
    """Nor does a judge that ends early leave some of its former verdicts among new ones."""
    assert command("judge", run_copy, "--judge", name(server)).code == 0
    before, marker = snapshot(run_copy), verdict_files.marker_file(name(server))
    former = [read_json(file)["identity"] for file in run_copy.rglob(marker)]
    ended = command("judge", run_copy, "--judge", "keyword", *changed)
    assert ended.code == 2
    assert f"these settings change what {name(server)} would say, too" in ended.err
    assert f"(--judge keyword,{name(server)})" in ended.err
    assert snapshot(run_copy) == before

    server.default = [error(401, "invalid_api_key", "no")]
    ended = command("judge", run_copy, "--judge", f"keyword,{name(server)}", *changed)
    assert ended.code == 1
    left = [read_json(file)["identity"] for file in run_copy.rglob(marker)]
    assert not {*left} & {*former}  # some had been asked in these words, and are known
    assert any("not judged by" in row["status"] for row in by_name(values(run_copy), name(server)))


def test_what_judges_cost_counts_every_epoch(tmp_path: Path) -> None:
    made = config.load(
        None,
        {"methods": "vanilla", "train_tasks": "gsm8k-mini", "eval_every_epoch": True, "training.epochs": 2},
    )
    cells = plan.cells(made)
    folders = [one.folder for cell in cells for one in (cell, *plan.epochs(made, cell))]
    assert len(folders) > len(cells)
    for folder in folders:
        row = {
            "exchange_id": "1",
            "judge": "mini-exact",
            "judge_version": "1",
            "harmful": None,
            "label": None,
            "input_tokens": 5,
        }
        made_run.stage(tmp_path / folder / RAW, "respond", {}, {"responses.jsonl": []})
        answers = {"responses": read_json(tmp_path / folder / RAW / "respond.done.json")["outputs"]}
        given = {verdict_files.verdicts_file("mini-exact"): [row]}
        made_run.stage(tmp_path / folder / RAW, verdict_files.stage_name("mini-exact"), answers, given)
    lines = cost.notes(made, tmp_path, cells)
    assert f"Unjudged by mini-exact: {len(folders)} no reason given." in lines
    assert any(f"{5 * len(folders)} tokens" in line for line in lines)


def test_a_guess_counts_every_sample_of_a_request(tmp_path: Path) -> None:
    made = config.load(None, {"methods": "seed", "judges": "openai:gpt-4o", "responses.limit": 10})
    sampled = config.changed(made, {"safety_tasks": ["hexphi_sampled-mini"]}, "a test")
    counts = []
    for one in (made, sampled):
        (line,) = cost.forecast(JudgeSession(RunContext(one, tmp_path)), plan.cells(one))
        counts.append(int(re.search(r"about ([\d,]+) exchanges", line)[1].replace(",", "")))  # type: ignore[index]
    samples = len(benchmarks.get("hexphi_sampled-mini").decodings)
    assert samples > 1
    assert counts == [20, 20 + 10 * samples]


# --- small parts -----------------------------------------------------------------------------------


def test_a_budget_is_held_before_it_is_spent() -> None:
    budget = Budget(1.0)
    assert budget.reserve(0.6)
    assert not budget.reserve(0.6)
    budget.settle(0.6, 0.1)
    assert budget.reserve(0.6)
    assert (budget.spent_usd, budget.reserved_usd) == (0.1, 0.6)
    assert Budget().reserve(1e9)


@pytest.mark.parametrize("content", [b"no database at all, but long enough to be taken for one" * 100])
def test_a_damaged_store_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "verdicts.sqlite").write_bytes(content)
    with pytest.raises(HarnessError, match=r"verdicts\.sqlite: cannot be used .* remove it"):
        cache.VerdictCache(tmp_path)


def test_every_judge_is_listed_with_needs_and_cost(command: Run) -> None:
    rows = {row["judge"]: row for row in json.loads(command("judges", "--json").out)}
    assert set(rows) >= {
        "mini-exact",
        "keyword",
        "openai:MODEL[@BASE_URL]",
        "vote",
        "llama-guard-3",
        "harmbench",
    }
    assert re.search(r"gpt-4o about \d+ USD", rows["openai:MODEL[@BASE_URL]"]["standard run"])
    assert "OPENAI_API_KEY" in rows["openai:MODEL[@BASE_URL]"]["needs"]
    assert "not verified on weights" in rows["llama-guard-3"]["needs"]
    assert "17 GB" in rows["llama-guard-3"]["needs"]


def test_settings_reach_the_judges() -> None:
    loaded = config.load(None, {"judging": {"in_flight": 3, "mode": "batch", "prices": {"m": [1, 2]}}})
    made = session.settings(loaded)
    assert (made.in_flight, made.batch, made.prices) == (3, True, {"m": (1.0, 2.0)})
    with pytest.raises(UsageError, match=r"judging\.in_flight"):
        config.load(None, {"judging.in_flight": 0})
