"""Guards what a cluster is asked for and what travels to its nodes (a real one: tests/extras/test_ray.py)."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from harness import cluster, config, workers
from harness.contracts import HarnessError
from harness.plan import Cell, cells


def recipe(**overrides: Any) -> config.RunConfig:
    return config.load(None, {"executor": "ray", **overrides})


@pytest.mark.parametrize(
    ("overrides", "gpus"),
    [
        ({}, 0),  # the mini recipe trains on the CPU
        ({"training.device": "cuda"}, 1),
        ({"training.device": "cuda", "training.num_processes": 8}, 8),
        ({"training.device": "cuda", "engine": "vllm", "responses.tensor_parallel": 2}, 2),
        (
            {
                "training.device": "cuda",
                "engine": "vllm",
                "responses.tensor_parallel": 2,
                "responses.data_parallel": 2,
            },
            4,
        ),
        ({"training.device": "cuda", "training.num_processes": 8, "ray.gpus_per_cell": 0.5}, 0.5),
        (
            {
                "training.device": "cuda",
                "variants.wide": {"method": "vanilla", "training": {"num_processes": 4}},
            },
            4,
        ),
    ],
)
def test_a_cell_takes_the_gpus_that_the_recipe_uses(overrides: dict[str, Any], gpus: float) -> None:
    assert cluster.needs(recipe(**overrides)) == {"CPU": 1, "GPU": gpus}


def test_capacity_counts_what_fits_on_each_node(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"CPU": 8.0, "GPU": 3.0}, {"CPU": 2.0, "GPU": 4.0}, {"CPU": 64.0}]
    monkeypatch.setattr(cluster, "connect", lambda config: None)
    monkeypatch.setattr(cluster, "_nodes", lambda ray: nodes)
    assert cluster.capacity(recipe()) == 8 + 2 + 64
    assert cluster.capacity(recipe(**{"training.device": "cuda"})) == 3 + 2
    assert cluster.capacity(recipe(**{"training.device": "cuda", "training.num_processes": 2})) == 1 + 2
    assert cluster.capacity(recipe(**{"ray.cpus_per_cell": 4})) == 2 + 0 + 16


def test_the_engine_that_a_node_chooses_must_fit_too(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = MagicMock(get=lambda asked: "vllm")
    monkeypatch.setattr(cluster, "connect", lambda config: ray)
    monkeypatch.setattr(cluster, "_nodes", lambda ray: [{"CPU": 8.0, "GPU": 2.0}] * 2)
    wide = {"engine": "auto", "training.device": "auto", "responses.tensor_parallel": 2}
    assert cluster.settled(recipe(**wide)).engine == "vllm"
    with pytest.raises(HarnessError, match=r"no node of the Ray cluster has the 1 CPU and 4 GPU"):
        cluster.settled(recipe(**{**wide, "responses.tensor_parallel": 4}))


def test_without_ray_one_line_says_what_to_install(
    command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    ended = command("compare", "--executor", "ray", "--out", tmp_path / "run")
    assert ended.code == 1
    assert ended.err == (
        "Error: Ray is not installed: pip install 'safetune-harness[ray]', or --executor local\n"
    )
    assert not (tmp_path / "run").exists()


def order(out: Path, seen: str, **overrides: Any) -> cluster.Order:
    return cluster.Order(recipe(**overrides), out, "train", False, out, {}, seen, {})


def test_a_node_that_does_not_see_the_run_folder_says_so(tmp_path: Path) -> None:
    cell = cells(recipe())[0]
    with (
        pytest.raises(HarnessError, match=r"does not see .*--set ray.storage"),
        cluster._place(order(tmp_path, ".cluster-x"), cell),
    ):
        pass


def test_a_node_with_other_versions_says_which() -> None:
    cluster._same({"torch": "2.0", "more": "1"}, {"torch": "2.0"})
    with pytest.raises(HarnessError, match=r"has torch 2\.1, not 2\.0; vllm None, not 0\.11: install"):
        cluster._same({"torch": "2.1"}, {"torch": "2.0", "vllm": "0.11"})


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_folders_travel_whole_and_markers_last(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = cluster.Storage(f"{scheme}://{tmp_path / 'store'}")
    files = {"train.done.json": "m", "checkpoint/model.safetensors": "w", "a task/responses.jsonl": "é\n"}
    here = tmp_path / "here"
    for name, text in {**files, ".training/state/x": "left behind"}.items():
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(text, encoding="utf-8")
    sent: list[str] = []
    put_file = storage.files.put_file
    monkeypatch.setattr(
        storage.files, "put_file", lambda local, place: (sent.append(place), put_file(local, place))
    )
    storage.put(here, "cell")
    assert sent[-1].endswith("train.done.json")
    there = tmp_path / "there"
    storage.get("cell", there)
    found = {
        str(file.relative_to(there)): file.read_text("utf-8") for file in there.rglob("*") if file.is_file()
    }
    assert found == files
    storage.get("another cell", tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_what_the_recipe_names_travels_and_identities_stay(tmp_path: Path, run_copy: Path) -> None:
    rows, mixed = tmp_path / "rows.jsonl", tmp_path / "mixed.jsonl"
    rows.write_text('{"question": "a", "answer": "b"}\n', encoding="utf-8")
    mixed.write_text('{"prompt": "c", "completion": "d"}\n', encoding="utf-8")
    model = run_copy / "gsm8k-mini/vanilla/seed-42/checkpoint"
    given = recipe(
        train_data=str(rows),
        train_tasks="gsm8k-mini",
        mix={str(mixed): 0.5},
        checkpoints={"mine": str(model)},
        safety_sets={"own": str(rows)},
    )
    storage = cluster.Storage(f"file://{tmp_path / 'store'}")
    brought = storage.bring(given, storage.take_in(given))
    assert brought.model == "mini"
    assert Path(brought.train_data or "").name == "rows.jsonl"
    assert Path(brought.train_data or "") != rows
    assert Path(brought.train_data or "").read_bytes() == rows.read_bytes()
    assert list(brought.mix.values()) == [0.5]
    assert (Path(brought.checkpoints["mine"]) / "model.safetensors").read_bytes() == (
        model / "model.safetensors"
    ).read_bytes()
    from harness import training
    from harness.workshop import Workshop

    identities = [
        training.train_stage(Workshop(one, tmp_path), cells(one)[-1]).identity for one in (given, brought)
    ]
    assert identities[0] == identities[1]


def test_a_storage_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    for url in ("nosuch://bucket/x?key=secret", f"file://{tmp_path / 'file'}"):
        with pytest.raises(HarnessError, match=r"ray\.storage .*cannot be used") as caught:
            cluster.Storage(url)
        assert "secret" not in str(caught.value)


def test_a_storage_that_fails_on_the_way_is_one_line_without_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = cluster.Storage(f"file://{tmp_path / 'store'}")
    (tmp_path / "cell").mkdir()
    (tmp_path / "cell" / "training.json").write_text("{}")

    def refuse(*given: Any) -> None:
        raise RuntimeError("403 for key=SECRET")

    monkeypatch.setattr(storage.files, "put_file", refuse)
    with pytest.raises(
        HarnessError, match=r"ray\.storage file://.*store: its files cannot be copied .*RuntimeError"
    ) as told:
        storage.put(tmp_path / "cell", "cell")
    assert "SECRET" not in str(told.value)


# --- cells through a storage -------------------------------------------------------------------------


@pytest.fixture
def ray_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray in this process: a task runs when its outcome is asked for, and does nothing."""

    def remote(function: Callable[..., Any]) -> Any:
        def begin(*given: Any) -> Any:
            return partial(function, *given) if given else function()  # the latter: the mailbox

        return SimpleNamespace(options=lambda **wanted: SimpleNamespace(remote=begin))

    ray = MagicMock(
        remote=remote,
        put=lambda value: value,
        get=lambda asked: asked() if callable(asked) else asked,
        wait=lambda running, **wanted: (running, []),
    )
    monkeypatch.setattr(cluster, "connect", lambda config: ray)
    monkeypatch.setattr(cluster, "Mailbox", MagicMock)
    monkeypatch.setattr(cluster, "_versions", lambda shop: {})
    monkeypatch.setattr(cluster, "attempt", lambda shop, cell, *given: workers.Outcome(cell))


def parts_of_the_seed() -> list[Cell]:
    whole = cells(recipe())[0]
    return [replace(whole, tasks=(task,)) for task in whole.tasks[:2]]


def answers(run: Path, part: Cell) -> Path:
    path = run / part.folder / part.tasks[0] / "responses.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def outcomes(out: Path, todo: list[Cell], store: Path) -> list[workers.Outcome]:
    labels = {cell.folder: cell.label for cell in todo}
    config = recipe(**{"ray.storage": f"file://{store}"})
    return [*cluster.run_cells(config, out, todo, labels, "respond", False, MagicMock())]


def test_parts_of_a_cell_leave_each_others_answers_alone(tmp_path: Path) -> None:
    store = tmp_path / "store"
    one, two = parts_of_the_seed()
    for part in (one, two):
        answers(store, part).write_text("stale")
    given = order(tmp_path, "", **{"ray.storage": f"file://{store}"})
    with cluster._place(given, one) as (_, first), cluster._place(given, two) as (_, second):
        for part, out in ((one, first), (two, second)):
            assert answers(out, part).read_text() == "stale"
            answers(out, part).write_text("fresh")
    assert [answers(store, part).read_text() for part in (one, two)] == ["fresh", "fresh"]
    (trained,) = cells(recipe())[-1:]
    (store / trained.folder).mkdir(parents=True)
    (store / trained.folder / "train.done.json").write_text("m")
    cluster.Storage(f"file://{store}").get_cell(trained, tmp_path / "there")
    assert (tmp_path / "there" / trained.folder / "train.done.json").exists()


@pytest.mark.usefixtures("ray_here")
def test_the_driver_sends_and_takes_a_parts_own_answers(tmp_path: Path) -> None:
    out, store = tmp_path / "run", tmp_path / "store"
    one, two = parts_of_the_seed()
    answers(out, one).write_text("one")
    answers(out, two).write_text("fresh")
    answers(store, two).write_text("stale")
    (found,) = outcomes(out, [one], store)
    assert found.failure is None
    assert answers(store, one).read_text() == "one"
    assert answers(store, two).read_text() == "stale"
    assert answers(out, two).read_text() == "fresh"


@pytest.mark.usefixtures("ray_here")
@pytest.mark.parametrize(("step", "on"), [("put", "a node"), ("get", "a node"), ("get", "the driver")])
def test_a_full_disk_under_a_storage_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, on: str
) -> None:
    out, store = tmp_path / "run", tmp_path / "store"
    (part, _) = parts_of_the_seed()
    copy = getattr(cluster.Storage, step)

    def full(storage: cluster.Storage, *given: Any) -> None:
        (folder,) = (path for path in given if isinstance(path, Path))
        if folder.is_relative_to(out) == (on == "the driver"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        copy(storage, *given)

    monkeypatch.setattr(cluster.Storage, step, cluster._in_one_line(full))
    (found,) = outcomes(out, [part], store)
    assert found.stops
    assert (found.failure or "").startswith("no space left on the disk")
