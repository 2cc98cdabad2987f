"""Guards that a run survives kill -9 at any moment: thirty of them, at random and by a fixed seed, over a
recipe that goes through every stage (rewrites, log-probabilities, trainings with resume states, answers, a
judge by rule, a judge on a server, leaderboard, report). After each, the same command ends in the values of a
run that no one has killed."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from fault_server import FaultServer, running
from forked import finish, start

from harness.storage.files import read_jsonl

Run = Callable[..., Any]
SEEDS, KILLS = range(6), 5
SETTINGS = {
    "training.max_examples": 12,
    "training.batch_size": 3,
    "training.micro_batch_size": 3,
    "training.save_steps": 2,
    "responses.limit": 2,
}


def file_count(folder: Path) -> int:
    return sum(len(files) + len(folders) for _, folders, files in os.walk(folder))  # others are writing there


class World(NamedTuple):
    """The server that judges, the uninterrupted run, and the command's arguments but for ``--out``."""

    server: FaultServer
    whole: Path
    arguments: list[str]

    def command(self, place: Path) -> dict[str, Any]:
        return {
            "arguments": [*self.arguments, "--out", str(place / "run")],
            "log": place / "log.txt",
            "environment": {"HARNESS_CACHE": str(place / "cache")},
        }


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, small_settings: dict[str, Any]) -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch, running() as server:
        for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "JUDGE_API_KEY"):
            patch.delenv(name, raising=False)
        judges = f"mini-exact,openai:judge-1@{server.url}"
        arguments = ["compare", "--methods", "sdft,constrained-sft,lisa", "--judge", judges]
        for key, value in {**small_settings, **SETTINGS}.items():
            arguments += ["--set", f"{key}={value}"]
        world = World(server, tmp_path_factory.mktemp("whole"), arguments)
        assert finish(**world.command(world.whole)) == 0, shown(world.whole)
        yield world


def shown(place: Path) -> str:
    return (place / "log.txt").read_text(encoding="utf-8")


def judged(run: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Every verdict, but for what a second asking may cost."""
    return {
        str(path.relative_to(run)): [
            (row["exchange_id"], row["harmful"], row["label"], row["score"]) for row in read_jsonl(path)
        ]
        for path in run.rglob("verdicts.*.jsonl")
    }


def made(run: Path) -> dict[str, bytes]:
    """Answers and weights, bit for bit."""
    names = ("responses.jsonl", "model.safetensors")
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.name in names}


@pytest.mark.exhaustive("kills")
@pytest.mark.parametrize("seed", SEEDS)
def test_killed_at_random_the_same_command_ends_in_the_same_values(
    seed: int, world: World, tmp_path: Path, values: Run
) -> None:
    """The run goes on after each kill; a copy of what the kill has left is brought to its end."""
    rng = random.Random(f"kill {seed}")
    whole, place = world.whole / "run", tmp_path / "killed"
    place.mkdir()
    ends = file_count(whole)
    killed = 0
    for number in range(KILLS):
        target = round(ends * (number + rng.random()) / KILLS * 0.9)
        pause = rng.uniform(0, 0.3)
        process = start(**world.command(place))
        while process.is_alive() and file_count(place / "run") < target:
            time.sleep(0.002)
        time.sleep(pause)
        process.kill()
        process.join(30)
        killed += process.exitcode == -9
        copy = tmp_path / f"after-{number}"
        shutil.copytree(place, copy)
        assert finish(**world.command(copy)) == 0, shown(copy)
        assert values(copy / "run") == values(whole)
        assert judged(copy / "run") == judged(whole)
        assert made(copy / "run") == made(whole)
        left = [path for path in (copy / "run").rglob(".*") if path.name != ".lock"]
        assert left == []
        shutil.rmtree(copy)
    assert killed >= KILLS - 1  # it did not simply run through
