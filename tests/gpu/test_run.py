"""run.sh writes as it goes, and nothing that a part does stops the others."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from gpu import run, table

from harness.config import LATER

ROOT = Path(__file__).parents[2]
FACTS: dict[str, Any] = {
    "started": "2026-11-26 10:00:00 UTC", "command": "tests/gpu/run.sh", "commit": "abc", "device": "cuda",
    "machine": {
        "driver": "NVIDIA H200, 570.1, 143771 MiB", "cpus": 16, "system": "Linux", "python": "3.12",
        "torch sees": {"cuda": "13.0", "devices": [{"name": "NVIDIA H200", "memory_bytes": 150_000_000_000}]},
    },
    "versions": {"torch": "2.11.0"}, "missing": {},
}  # fmt: skip


def part(name: str, code: str, limit_s: float = 30.0, **fields: Any) -> run.Part:
    return run.Part("checks", name, [sys.executable, "-c", code], limit_s, **fields)


def at_work(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def read(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return found


def test_each_part_ends_in_its_own_way_and_stops_no_other(tmp_path: Path) -> None:
    """Done; failed, with its last line; over its limit, with what it had printed and without what it had
    started; a failed check; no result left; a package that is missing; no time left."""
    hangs = (
        "import subprocess, sys, time; child = subprocess.Popen([sys.executable, '-c', "
        "'import time; time.sleep(600)']); print('RESULT {\"child\": %d}' % child.pid, flush=True); "
        "time.sleep(600)"
    )
    report = run.Report(tmp_path, FACTS)
    parts = [
        part("good", "print('words'); print('RESULT {\"a\": 1}'); print('RESULT no json')"),
        part("bad", "import sys; print('RESULT {\"b\": 2}'); sys.exit('no memory for it')"),
        part("late", hangs, 3.0),
        part("check", 'print(\'RESULT {"check": "x", "outcome": "failed", "seconds": 1, "reason": "r"}\')'),
        part("empty", "pass", after=lambda: [json.loads("")]),
        part("poor", "print('never')", needs=("no_such_module",)),
        part("after", "print('RESULT {\"c\": 3}')", after=lambda: [{"d": 4}]),
    ]
    run.WHEELS["no_such_module"] = ("no-such-module", 7)
    try:
        run.run(parts, report, 60.0)
    finally:
        del run.WHEELS["no_such_module"]
    found = read(tmp_path)["parts"]
    assert {name: one["outcome"] for name, one in found.items()} == {
        "good": "done", "bad": "failed", "late": "over its limit", "check": "failed", "empty": "failed",
        "poor": "skipped", "after": "done",
    }  # fmt: skip
    assert found["good"]["results"] == [{"a": 1}]
    assert found["bad"]["results"] == [{"b": 2}]
    assert found["bad"]["reason"] == "ended with 1: no memory for it"
    assert found["late"]["reason"] == "stopped after 3 s"
    assert not at_work(found["late"]["results"][0]["child"])
    assert found["check"]["reason"] == "1 of 1 checks: x"
    assert found["empty"]["reason"].startswith("left no result: JSONDecodeError")
    assert found["poor"]["reason"] == "not installed: no-such-module (7 MB)"
    assert found["after"]["results"] == [{"c": 3}, {"d": 4}]
    assert "words" in (tmp_path / "logs" / "good.log").read_text()
    text = (tmp_path / "report.md").read_text()
    assert "| late | over its limit |" in text
    assert not list(tmp_path.glob(".report*"))


@pytest.mark.slow
def test_checks_that_are_stopped_leave_no_process(tmp_path: Path) -> None:
    """The check that runs is in a session of its own."""
    code = (
        "import os, sys; sys.path[:0] = sys.argv[1:]\n"
        "import json, time\n"
        "from gpu import checks, runner\n"
        "def endless(place):\n"
        "    print('RESULT', json.dumps({'child': os.getpid()}), flush=True)\n"
        "    time.sleep(600)\n"
        "checks.CHECKS['endless'] = checks.Check(endless, limit_s=500)\n"
        "sys.argv = ['runner', '--device', 'cpu', '--only', 'endless', '--deadline', '500']\n"
        "runner.main()\n"
    )
    command = [sys.executable, "-c", code, str(ROOT / "tests"), str(ROOT)]
    report = run.Report(tmp_path, FACTS)
    run.run([run.Part("checks", "stopped", command, 40.0)], report, 60.0)
    assert report.parts["stopped"]["outcome"] == "over its limit"
    assert not at_work(report.parts["stopped"]["results"][0]["child"])


def test_no_part_begins_without_time(tmp_path: Path) -> None:
    report = run.Report(tmp_path, FACTS)
    run.run([part("one", "print('RESULT {}')")], report, run.RESERVE_S)
    assert report.parts["one"]["outcome"] == "skipped"
    assert report.parts["one"]["reason"] == "no time left"
    begun = time.monotonic()
    run.run([part("one", "import time; time.sleep(600)", 600)], report, run.RESERVE_S + 2)
    assert report.parts["one"]["outcome"] == "over its limit"
    assert time.monotonic() - begun < 30


def test_what_is_known_is_on_disk_while_a_part_runs(tmp_path: Path) -> None:
    """A kill loses the part that runs: the report has the finished one whole, and this one's first figure."""
    program = (
        "import sys; sys.path[:0] = sys.argv[1:3]\n"
        "from pathlib import Path\n"
        "from gpu import run, test_run as t\n"
        "report = run.Report(Path(sys.argv[3]), t.FACTS)\n"
        "first, hang = 'print(\\'RESULT {\"n\": 1}\\', flush=True)', '; import time; time.sleep(600)'\n"
        "run.run([t.part('first', first), t.part('second', first + hang, 600)], report, 600)\n"
    )
    command = [sys.executable, "-c", program, str(ROOT / "tests"), str(ROOT), str(tmp_path)]
    whole = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        for _ in range(600):
            time.sleep(0.1)
            if (tmp_path / "report.json").exists() and read(tmp_path)["parts"].get("second", {}).get(
                "results"
            ):
                break
    finally:
        children = psutil.Process(whole.pid).children(recursive=True)
        os.kill(whole.pid, signal.SIGKILL)
        whole.wait()
        for child in children:
            child.kill()
    found = read(tmp_path)["parts"]
    assert (found["first"]["outcome"], found["second"]["outcome"]) == ("done", "running")
    assert found["first"]["results"] == found["second"]["results"] == [{"n": 1}]
    assert "| second | running |" in (tmp_path / "report.md").read_text()


def test_the_table_has_ratios_and_both_counts() -> None:
    def training(name: str, seconds: float) -> dict[str, Any]:
        result = {
            "contender": name, "setting": f"{name}, micro-batch 4", "seconds": seconds, "steps": 10,
            "tokens": 1000, "mfu": 0.298, "mfu_by_n": 0.36, "peak_memory_bytes": 11_100_000_000,
            "whole": {"tokens": 1200, "seconds": seconds * 2, "mfu": 0.15, "mfu_by_n": 0.18},
        }  # fmt: skip
        return {"group": "train", "outcome": "done", "limit_s": 9, "seconds": 1, "results": [result]}

    def answers(name: str, seconds: float) -> dict[str, Any]:
        result = {"contender": name, "whole_s": seconds, "generation_s": seconds / 2, "answers": 64}
        return {"group": "answer", "outcome": "done", "limit_s": 9, "seconds": 1, "results": [result]}

    compared = [
        {"method": "vanilla", "utility": "40.0", "status": "done | whole"},
        {"timing": {"training": 1.25}},
    ]
    text = table.markdown(
        {
            **FACTS,
            "parts": {
                "train ours": training("ours", 2.0),
                "train trl padded": training("trl padded", 8.0),
                "train trl packing": training("trl packing", 4.0),
                "train settings": {
                    **training("settings", 1.0),
                    "results": [
                        one
                        for name, seconds in (("settings", 1.0), ("other", 4.0))
                        for one in training(name, seconds)["results"]
                    ],
                },
                "answer ours": answers("ours, hf", 10.0),
                "answer lm-eval": answers("lm-eval hf, batch 64", 30.0),
                "compare": {"group": "compare", "outcome": "done", "limit_s": 9, "results": compared},
            },
        }
    )
    assert "# Measured on NVIDIA H200, 150 GB" in text
    line = "| ours | ours, micro-batch 4 | 500 | 200 | 29.8% | 36.0% | 300 | 15.0% | 18.0% "
    assert f"{line}| 11.1 | 4.00x | 2.00x | 10 |" in text
    assert "| settings | settings, micro-batch 4 | 1,000 |" in text
    assert "| settings | other, micro-batch 4 | 250 |" in text
    assert "| lm-eval hf, batch 64 | 64 | 30.0 | 15.0 | 3.00x | 3.00x |" in text
    assert "| vanilla | 40.0 | done \\| whole |" in text
    assert "Seconds by stage: training 1.2" in text
    assert "570.1" in text
    assert "| commit | abc |" in text


def test_the_commit_may_come_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMMIT", "0123abc")
    assert run.commit() == "0123abc"
    monkeypatch.delenv("COMMIT")
    monkeypatch.setattr(run, "ROOT", tmp_path)
    assert run.commit() == "unknown"


def test_every_package_that_may_be_missing_has_its_size() -> None:
    named = {name for names in run.FOR.values() for name in names}
    needed = {name for one in run.parts(planned(model=Path("/model"))) for name in one.needs}
    assert named | needed <= {*run.WHEELS}
    assert needed <= named


def planned(**changes: Any) -> argparse.Namespace:
    plain = {"cpu": False, "out": Path("/out"), "model": None, "parts": None, "limit": [], "memory": 150e9}
    return argparse.Namespace(**plain | changes)


def test_what_matters_most_is_run_first() -> None:
    """ "large" only by name, a comparison with a model alone."""
    plain = run.parts(planned(limit=[("checks", 9.0)]))
    assert [one.name for one in plain][:6] == [
        "checks", "train ours padding-free", "train trl padded", "train trl packing", "answer ours",
        "answer lm-eval",
    ]  # fmt: skip
    assert {one.group for one in plain} == {"checks", "train", "answer"}
    assert plain[0].limit_s == 9.0
    assert max(one.limit_s for one in run.parts(planned())) < 240
    named = run.parts(planned(model=Path("/m"), parts=["large", "compare"]))
    assert [one.name for one in named] == ["compare", "large 8b lora", "large 7b full"]


def test_each_setting_for_speed_is_run_on_and_off() -> None:
    """In one process, but the one that torch reads when it starts, which "ours padding-free" has off."""
    commands = {one.name: list(one.command) for one in run.parts(planned()) if one.group == "train"}

    def settings(name: str) -> list[str]:
        words = commands[f"train {name}"]
        return [words[place + 1] for place, word in enumerate(words) if word == "--each"]

    assert settings("settings") == ["", "chunked_loss=true", "compile=true"]
    assert settings("settings grouped") == ["", "cudnn_attention=false"]
    assert settings("settings lora") == ["", "adapter_casts=false", "adapter_casts=false compile=true"]
    assert commands["train settings memory"][-1] == "expandable_segments=true"
    assert commands["train settings memory"][-2] == "--set"
    tried = {one.partition("=")[0] for name in commands for one in " ".join(commands[name]).split()}
    assert {*LATER, "expandable_segments", "compile", "liger"} <= tried
    assert sum(one.limit_s for one in run.parts(planned(parts=["train"]))) <= run.TOTAL_S


def test_trl_takes_what_the_card_holds() -> None:
    for memory, size in ((150e9, "32"), (85e9, "16")):
        padded = next(one for one in run.parts(planned(memory=memory)) if one.name == "train trl padded")
        assert padded.command[-1] == size


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_script_on_a_cpu(tmp_path: Path) -> None:
    """Every part at a tiny size from the shell script, one of them stopped at its limit and one failing."""
    environment = {**os.environ, "PYTHON": sys.executable, "OUT": str(tmp_path / "out"), "TOTAL_S": "800"}
    environment["COMMIT"] = "of the test"
    # Beside other tests everything takes its time: limits are for a quiet machine.
    more = ["--limit", "checks=200", "--limit", "answer ours=200", "--limit", "train ours padding-free=200"]
    arguments = ["--cpu", "--total", "780", "--limit", "answer lm-eval=1", *more, str(tmp_path / "no-model")]
    ended = subprocess.run(
        [ROOT / "tests" / "gpu" / "run.sh", *arguments],
        capture_output=True, text=True, env=environment, cwd=tmp_path,
    )  # fmt: skip
    assert ended.returncode == 1, ended.stderr
    report = read(tmp_path / "out")
    assert (report["commit"], report["device"]) == ("of the test", "cpu")
    assert report["versions"]["torch"]
    assert report["command"].startswith("tests/gpu/run.sh --cpu")
    outcomes = {name: one["outcome"] for name, one in report["parts"].items()}
    assert outcomes.pop("train trl padded") in ("done", "over its limit")
    assert outcomes == {
        "checks": "done", "train ours padding-free": "done", "answer ours": "done",
        "answer lm-eval": "over its limit", "compare": "failed",
    }  # fmt: skip
    assert "no-model" in report["parts"]["compare"]["reason"]
    checked = report["parts"]["checks"]["results"]
    assert {one["outcome"] for one in checked} == {"passed"}
    (trained,) = report["parts"]["train ours padding-free"]["results"]
    assert trained["steps"] == 2
    assert trained["tokens"] / trained["seconds"] > 0
    (answered,) = report["parts"]["answer ours"]["results"]
    assert answered["answers"] == 8
    text = (tmp_path / "out" / "report.md").read_text()
    assert text in ended.stdout
    assert "| ours padding-free | padding-free, micro-batch 4 |" in text
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["logs", "report.json", "report.md"]


@pytest.mark.slow
def test_without_a_gpu_the_script_says_so(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    environment = {**os.environ, "PYTHON": sys.executable, "OUT": str(tmp_path / "out")}
    ended = subprocess.run(
        [ROOT / "tests" / "gpu" / "run.sh"], capture_output=True, text=True, env=environment
    )
    assert ended.returncode == 1
    assert ended.stderr.strip() == (
        "torch sees no CUDA device here (tests/gpu/run.sh --cpu tries the script on a CPU)"
    )
