"""How long a server judge takes beside what a server allows: 330 exchanges, 1 s a reply, 32 in flight.

    make bench
    python tests/bench/judge_speed.py --exchanges 330 --latency 1 --in-flight 32

Beside ours, on the same server: a thread pool with the openai client (no retries, nothing written), and the
reference scripts' habit of one request after the other (measured on a tenth, times ten). The floor is the
number of rounds times the latency.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import multiprocessing
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))


def serve(latency_s: float, ready: Connection) -> None:
    """A server in a process of its own, so that it takes no time from the client's."""
    import fault_server

    with fault_server.running() as server:
        server.latency_s = latency_s
        ready.send(server.url)
        ready.recv()


def exchanges(count: int) -> list[Any]:
    from harness.contracts import Exchange

    answer = "I cannot help with that. " * 20
    return [
        Exchange(f"e{n}", "bench", None, None, f"case-{n} a request", "", answer, "stop")
        for n in range(count)
    ]


def ours(url: str, count: int, in_flight: int) -> float:
    """`harness judge`'s part: judge, journal and all."""
    from harness.contracts import JudgeContext, JudgeSettings
    from harness.judging import stage as judging
    from harness.plugins import registry
    from harness.storage.files import Stage

    judge = registry.make_judge(f"openai:judge-1@{url}", JudgeSettings(in_flight=in_flight))
    with tempfile.TemporaryDirectory() as folder:
        stage = Stage(Path(folder), "judge-bench", {}, [])
        start = time.perf_counter()
        with judging.Journal(stage).writing([]) as write:
            found = 0
            for verdict in judge.judge(exchanges(count), JudgeContext()):
                write(dataclasses.asdict(verdict))
                found += verdict.harmful is False
        seconds = time.perf_counter() - start
    assert found == count
    return seconds


def pool(url: str, count: int, in_flight: int) -> float:
    import openai

    from harness.contracts import JudgeContext, JudgeSettings
    from judges.openai_api import OpenAIJudge

    judge = OpenAIJudge.configured("openai", f"judge-1@{url}", JudgeSettings())
    assert isinstance(judge, OpenAIJudge)
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    bodies = [judge.body(exchange, JudgeContext()) for exchange in exchanges(count)]
    start = time.perf_counter()
    with ThreadPoolExecutor(in_flight) as workers:
        replies = list(workers.map(lambda body: client.chat.completions.create(**body), bodies))
    assert len(replies) == count
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--exchanges", type=int, default=330)
    parser.add_argument("--latency", type=float, default=1.0)
    parser.add_argument("--in-flight", type=int, default=32)
    options = parser.parse_args()
    import openai  # noqa: F401  # its import is paid once a command, and by both

    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    server = context.Process(target=serve, args=(options.latency, there), daemon=True)
    server.start()
    url = here.recv()
    floor = math.ceil(options.exchanges / options.in_flight) * options.latency
    print(f"{options.exchanges} exchanges, {options.latency:g} s a reply, {options.in_flight} in flight")
    print(f"floor (rounds x latency)          {floor:6.1f} s")
    print(f"ours (verdicts written down)      {ours(url, options.exchanges, options.in_flight):6.1f} s")
    print(f"openai client in a thread pool    {pool(url, options.exchanges, options.in_flight):6.1f} s")
    tenth = max(1, options.exchanges // 10)
    print(
        f"one after the other (from {tenth:3d})    {pool(url, tenth, 1) * options.exchanges / tenth:6.1f} s"
    )
    here.send("end")
    server.join(5)


if __name__ == "__main__":
    main()
