"""Guards what a run does when something beside it dies in the middle: a server of models, a judge's server,
an engine. One line, the other cells go on, and the same command asks for what is missing and no more."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import completions_server
import fault_server
import pytest

from harness.config import load
from harness.contracts import HarnessError
from harness.engines import service
from harness.engines.base import Engine, Request
from harness.mini import seed_model_path
from harness.models import checkpoints
from harness.models.checkpoints import Checkpoint
from harness.pipeline import stages
from harness.run import plan
from harness.run.context import RunContext
from harness.storage.files import read_jsonl

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(service, "FIRST_WAIT_S", 0.01)
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "HARNESS_API_KEY", "JUDGE_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return checkpoints.load_tokenizer(seed_model_path())


@pytest.fixture
def served(tokenizer: Any) -> Iterator[completions_server.CompletionsServer]:
    with completions_server.running(tokenizer) as server:
        yield server


@pytest.mark.slow
def test_a_server_of_models_that_dies_costs_its_cell_alone(
    served: completions_server.CompletionsServer, tokenizer: Any, tmp_path: Path, command: Run, small: Run
) -> None:
    lock, answers, dies_after = threading.Lock(), [0], [3]

    def answer(prompt: list[int]) -> completions_server.Answer:
        with lock:
            answers[0] += 1
            if answers[0] > dies_after[0]:
                raise ConnectionResetError  # the handler drops the connection, as a server does that dies
        return [*tokenizer.encode("x", add_special_tokens=False), tokenizer.eos_token_id], "stop"

    served.answer = answer
    arguments = ["compare", "--methods", "vanilla", "--checkpoint", f"mine=openai:served@{served.url}",
                 "--tokenizer", "mini", "--out", tmp_path, *small(**{"responses.in_flight": 1})]  # fmt: skip
    ended = command(*arguments)
    assert ended.code == 1
    assert ended.err.count("\n") == 1
    assert "1 of 3 cells failed; the others are done." in ended.err
    line = next(line for line in ended.out.splitlines() if "failed:" in line)
    assert "no connection" in line
    assert "traceback" not in ended.out
    assert (tmp_path / "gsm8k-mini/vanilla/seed-42/hexphi_prefill-mini/respond.done.json").exists()
    assert (tmp_path / "report.html").exists()
    answers[0], dies_after[0] = 0, 10**6
    served.bodies.clear()
    assert command(*arguments).code == 0
    asked = [tuple(body["prompt"]) for body in served.asked("completions")]
    documents = sum(len(read_jsonl(path)) for path in tmp_path.glob("mine/*/responses.jsonl"))
    assert len(set(asked)) >= documents - 3  # what had been answered is not asked again
    assert "Nothing to do" in command(*arguments).out


def test_a_judges_server_that_dies_loses_no_verdict_and_no_table(
    tmp_path: Path, command: Run, small: Run, values: Run
) -> None:
    with fault_server.running() as server:
        alive = server.default

        def dies(handler: Any) -> None:
            (alive[0] if len(server.bodies) <= 4 else fault_server.reset)(handler)

        server.default = [dies]
        judges = f"mini-exact,openai:judge-1@{server.url}"
        more = {"judging.in_flight": 1, "judging.attempts": 1}
        arguments = ["compare", "--methods", "seed", "--judge", judges, "--out", tmp_path, *small(**more)]
        ended = command(*arguments)
        assert ended.code == 0  # what it did not judge is a value of its own
        assert "unjudged" in ended.out
        rows = values(tmp_path)
        assert {row["judge"] for row in rows if row["rsr"]} >= {"mini-exact"}
        assert (tmp_path / "report.html").exists()
        before = len(server.bodies)
        server.default = alive
        again = command("judge", tmp_path, "--judge", judges.partition(",")[2], "--retry-unjudged")
        assert again.code == 0, again.err
        contents = [body["messages"][1]["content"] for body in server.bodies]
        assert not {*contents[:4]} & {*contents[before:]}  # what was judged is not asked again
        found = [row for path in tmp_path.rglob("verdicts.openai*.jsonl") for row in read_jsonl(path)]
        assert len(found) == 16
        assert all(row["harmful"] is not None for row in found)


def test_an_engine_that_dies_is_not_given_to_the_next_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dying(Engine):
        opened: list[Any] = []
        takes_ids = False

        def __init__(self) -> None:
            self.dead = False
            self.opened.append(self)

        @classmethod
        def suits(cls, *about: Any) -> bool:
            return True

        @classmethod
        def open(cls, *about: Any) -> Any:
            return cls()

        def generate(self, prompts: Any, request: Request) -> Any: ...

        def logprobs(self, pairs: Any, request: Request) -> Any: ...

        def use(self, checkpoint: Checkpoint) -> bool:
            return True

        def close(self) -> None:
            self.dead = True

    ctx = RunContext(load(), tmp_path)
    one = plan.cells(ctx.config)[0]
    monkeypatch.setattr("harness.plugins.registry.load", lambda kind, name: Dying)
    monkeypatch.setattr(ctx, "import_libraries", lambda **what: None)
    fails = [True, False]

    def run_cell(ctx: RunContext, *about: Any) -> None:
        engine: Any = ctx.engine(ctx.seed_checkpoint)
        assert not engine.dead
        if fails.pop(0):
            raise HarnessError("vLLM was killed (out of memory?)")

    monkeypatch.setattr(stages, "run_cell", run_cell)
    assert stages.attempt(ctx, one, "", "leaderboard", False).failure == "vLLM was killed (out of memory?)"
    assert stages.attempt(ctx, one, "", "leaderboard", False).failure is None
    assert [engine.dead for engine in Dying.opened] == [True, False]
