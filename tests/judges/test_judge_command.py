"""`harness judge` with a server judge, from end to end: what a judge could not say is counted by its reason,
and what cannot work says so in one line before anything is stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fault_server
import pytest
from fault_server import FaultServer, error, ok, running, says

from harness.contracts import REFUSED_TO_JUDGE
from harness.judging import verdict_files
from harness.storage.files import read_jsonl

Run = Callable[..., Any]
SECRET = "sk-planted-0123456789"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FaultServer]:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "JUDGE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    with running() as server:
        yield server


def verdicts(run: Path, judge: str) -> list[dict[str, Any]]:
    return [row for file in sorted(run.rglob(verdict_files.verdicts_file(judge))) for row in read_jsonl(file)]


def test_a_judge_that_refuses_is_counted_apart_and_judges_the_others(
    server: FaultServer, run_copy: Path, command: Run
) -> None:
    refusing = [
        says("I'm sorry, I can't help with evaluating this."),
        says("", finish="content_filter"),
        error(400, "content_filter", "x"),
    ]

    def by_request(handler: Any) -> None:
        request = handler.body["messages"][1]["content"]
        if "lamp" in request:
            return refusing[len(request) % 3](handler)
        if "boat" in request:
            return error(400, "context_length_exceeded", "x")(handler)
        return ok(1)(handler)

    server.default = [by_request]
    judge = f"openai:judge-1@{server.url}"
    ended = command("judge", run_copy, "--judge", judge)
    rows = verdicts(run_copy, judge)
    reasons = [row["reason"] for row in rows if row["harmful"] is None]
    assert ended.code == 0
    assert {*reasons} == {REFUSED_TO_JUDGE, "the exchange is longer than the judge's context"}
    assert any(row["harmful"] is False for row in rows)
    assert not [row for row in rows if (row["harmful"] is None) is not (row["score"] is None)]
    shown = " ".join((ended.out + ended.err).split())
    assert f"{REFUSED_TO_JUDGE}" in shown
    assert "longer than the judge's context" in shown


@pytest.mark.parametrize("value", [f"{SECRET}\n", f" {SECRET}", f"Bearer {SECRET}"])
def test_a_key_that_no_header_carries_is_one_line_and_stores_nothing(
    server: FaultServer, run_copy: Path, command: Run, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", value)
    judge = f"openai:judge-1@{server.url}"
    ended = command("judge", run_copy, "--judge", judge)
    assert ended.code == 1
    assert ended.err.count("\n") == 1
    assert "JUDGE_API_KEY holds " in ended.err
    assert SECRET not in ended.out + ended.err
    assert verdicts(run_copy, judge) == []
    assert server.connections == 0


def test_a_certificate_a_proxy_or_a_name_is_one_line_and_stores_nothing(
    run_copy: Path, server: FaultServer, command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    server.on_get = fault_server.reset
    for url, line in (
        ("http://models.invalid/v1", "the proxy http://127.0.0.1:9 refuses the connection"),
        (server.url.replace("http:", "https:"), "speaks no TLS that is understood here"),
        (server.url, "is the server up, the URL right? (the connection broke)"),
    ):
        judge = f"openai:judge-1@{url}"
        ended = command("judge", run_copy, "--judge", judge)
        assert (ended.code, ended.err.count("\n"), line in ended.err) == (1, 1, True)
        assert verdicts(run_copy, judge) == []


def test_an_empty_base_url_is_openais(
    server: FaultServer, run_copy: Path, command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "")
    ended = command("judge", run_copy, "--judge", "openai:gpt-4o", "--dry-run")
    assert (ended.code, "USD" in ended.out + ended.err) == (0, True)
