"""Guards ``--executor ray`` on a real cluster on this machine, a head and two nodes: a local run's values
with a node killed in the middle, and through a storage where nodes share no folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness.mini import seed_model_path

pytestmark = pytest.mark.requires_ray
FLAGS = ["compare", "mini", "--methods", "vanilla,lookahead-true", "--executor", "ray"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """The head runs no cell, each node one."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        made.add_node(num_cpus=1)
    yield made
    made.shutdown()


@pytest.fixture
def start(cluster: Any, small: Callable[..., list[str]]) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """The small recipe over the cluster, ``start(out, *flags)``."""
    started = []

    def run(out: Path, *flags: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "harness.cli", *FLAGS, "--out", str(out), *small(jobs=2), *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "RAY_ADDRESS": cluster.address},
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()


def check_same(out: Path, local: Path) -> None:
    """The answers and verdicts of a local run, to the byte."""
    found = {
        path.relative_to(out): path.read_bytes()
        for pattern in ("responses.jsonl", "verdicts.*.jsonl")
        for path in out.rglob(pattern)
    }
    assert len(found) == 9 + 6
    assert found == {path: (local / path).read_bytes() for path in found}


def busy_node(cluster: Any) -> Any:
    """A node with a cell in the middle."""
    for node in cluster.worker_nodes:
        (raylet,) = node.all_processes["raylet"]
        for child in psutil.Process(raylet.process.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
                if "ray::_run_cell" in " ".join(child.cmdline()):
                    return node
    return None


def is_training(out: Path) -> bool:
    return any(".train.partial" in folders for _, folders, _ in os.walk(out))  # others are writing there


def test_a_node_killed_in_the_middle_costs_no_cell(
    cluster: Any, start: Callable[..., subprocess.Popen[str]], tmp_path: Path, small_run: Path
) -> None:
    out = tmp_path / "run"
    process = start(out)
    while not (is_training(out) and (node := busy_node(cluster))):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    cluster.remove_node(node, allow_graceful=False)
    shown, errors = process.communicate(timeout=300)
    cluster.add_node(num_cpus=1)
    assert process.returncode == 0, (shown, errors)
    assert "was lost; it goes on" in shown
    check_same(out, small_run)
    assert not list(out.glob(".cluster-*"))
    shown, errors = start(out).communicate(timeout=120)
    assert "Nothing to do" in shown, (shown, errors)


def test_what_cells_say_is_kept_on_the_own_node(cluster: Any) -> None:
    script = """
import ray
from harness.pipeline import ray_cluster as cluster

ray.init(log_to_driver=False)

def node(*_):
    return ray.get_runtime_context().get_node_id()

print([ray.get(cluster.open_mailbox(ray).__ray_call__.remote(node)) == node() for _ in range(12)])
"""
    shown = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "RAY_ADDRESS": cluster.address},
        timeout=120,
    )
    assert shown.stdout.strip() == str([True] * 12), shown.stderr


def test_cells_come_back_through_a_storage_and_go_on_from_what_is_there(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path, small_run: Path
) -> None:
    out, url = tmp_path / "run", f"file://{tmp_path / 'store'}"
    model = shutil.copytree(seed_model_path(), tmp_path / "a model")  # a local folder travels too
    flags = ["--set", f"ray.storage={url}", "--model", str(model)]
    process = start(out, *flags)
    shown, errors = process.communicate(timeout=300)
    assert process.returncode == 0, (shown, errors)
    check_same(out, small_run)
    checkpoint = Path("gsm8k-mini/vanilla/seed-42/checkpoint/model.safetensors")
    assert (out / checkpoint).read_bytes() == (small_run / checkpoint).read_bytes()
    (out / "gsm8k-mini/vanilla/seed-42/gsm8k-mini/responses.jsonl").unlink()
    shown, errors = start(out, *flags).communicate(timeout=300)
    assert "1 of 3 cells to do" in shown, (shown, errors)
    assert "steps in" not in shown  # its weights were there
    check_same(out, small_run)
    damaged = [*(out / "seed").rglob("responses.jsonl")]
    for path in damaged:  # whose parts run at the same time, and must not hand on each other's damage
        path.write_text("{}\n", encoding="utf-8")
    shown, errors = start(out, *flags).communicate(timeout=300)
    assert "1 of 3 cells to do" in shown, (shown, errors)
    assert len(damaged) == 3
    check_same(out, small_run)


def test_what_no_node_has_is_said_before_anything_is_done(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = start(tmp_path / "run", "--set", "ray.gpus_per_cell=2")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert errors.startswith("Error: no node of the Ray cluster has the 1 CPU and 2 GPU that a cell needs")
    assert errors.count("\n") == 1
    assert not (tmp_path / "run").exists()
