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

from harness import config
from harness.contracts import HarnessError
from harness.data import benchmarks
from harness.pipeline import cluster_storage, ray_cluster, stages
from harness.plugins import plugin_files
from harness.run.plan import Cell, cells


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
    assert ray_cluster.needs(recipe(**overrides)) == {"CPU": 1, "GPU": gpus}


def test_capacity_counts_what_fits_on_each_node(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"CPU": 8.0, "GPU": 3.0}, {"CPU": 2.0, "GPU": 4.0}, {"CPU": 64.0}]
    monkeypatch.setattr(ray_cluster, "connect", lambda config: None)
    monkeypatch.setattr(ray_cluster, "_list_nodes", lambda ray: nodes)
    assert ray_cluster.capacity(recipe()) == 8 + 2 + 64
    assert ray_cluster.capacity(recipe(**{"training.device": "cuda"})) == 3 + 2
    assert ray_cluster.capacity(recipe(**{"training.device": "cuda", "training.num_processes": 2})) == 1 + 2
    assert ray_cluster.capacity(recipe(**{"ray.cpus_per_cell": 4})) == 2 + 0 + 16


def test_the_engine_that_a_node_chooses_must_fit_too(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = MagicMock(get=lambda asked: "vllm")
    monkeypatch.setattr(ray_cluster, "connect", lambda config: ray)
    monkeypatch.setattr(ray_cluster, "_list_nodes", lambda ray: [{"CPU": 8.0, "GPU": 2.0}] * 2)
    wide = {"engine": "auto", "training.device": "auto", "responses.tensor_parallel": 2}
    assert ray_cluster.settle(recipe(**wide)).engine == "vllm"
    with pytest.raises(HarnessError, match=r"no node of the Ray cluster has the 1 CPU and 4 GPU"):
        ray_cluster.settle(recipe(**{**wide, "responses.tensor_parallel": 4}))


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


def order(out: Path, seen: str, **overrides: Any) -> ray_cluster.Order:
    named = plugin_files.Shipment()
    return ray_cluster.Order(recipe(**overrides), out, "train", False, out, {}, seen, {}, named)


def test_a_node_that_does_not_see_the_run_folder_says_so(tmp_path: Path) -> None:
    cell = cells(recipe())[0]
    with (
        pytest.raises(HarnessError, match=r"does not see .*--set ray.storage"),
        ray_cluster._open_place(order(tmp_path, ".cluster-x"), cell),
    ):
        pass


def test_a_node_with_other_versions_says_which() -> None:
    ray_cluster._check_versions({"torch": "2.0", "more": "1"}, {"torch": "2.0"})
    with pytest.raises(HarnessError, match=r"has torch 2\.1, not 2\.0; vllm None, not 0\.11: install"):
        ray_cluster._check_versions({"torch": "2.1"}, {"torch": "2.0", "vllm": "0.11"})


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_folders_travel_whole_and_markers_last(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = cluster_storage.Storage(f"{scheme}://{tmp_path / 'store'}")
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
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "capitals.yaml").write_text("task: capitals\ndoc_to_text: x\n", encoding="utf-8")
    (tasks / "functions.py").write_text("NAMED = 1\n", encoding="utf-8")
    model = run_copy / "gsm8k-mini/vanilla/seed-42/checkpoint"
    given = recipe(
        train_data=str(rows),
        train_tasks="gsm8k-mini",
        mix={str(mixed): 0.5},
        checkpoints={"mine": str(model)},
        safety_sets={"own": str(rows)},
        utility_sets={"quiz": {"file": str(rows), "metric": "contains"}},
        task_dirs=[str(tasks)],
        utility_tasks=["capitals"],
    )
    storage = cluster_storage.Storage(f"file://{tmp_path / 'store'}")
    there, content = storage.take_in(given), benchmarks.get("capitals").content
    plugin_files.forget()  # as on a node
    brought = storage.bring(given, there)
    (folder,) = plugin_files.folders()
    assert folder != tasks
    assert benchmarks.get("capitals").path == folder / "capitals.yaml"
    assert benchmarks.get("capitals").content == content
    assert brought.utility_sets["quiz"].file.read_bytes() == rows.read_bytes()
    assert brought.utility_sets["quiz"].file != rows
    plugin_files.forget()
    assert brought.model == "mini"
    assert Path(brought.train_data or "").name == "rows.jsonl"
    assert Path(brought.train_data or "") != rows
    assert Path(brought.train_data or "").read_bytes() == rows.read_bytes()
    assert list(brought.mix.values()) == [0.5]
    assert (Path(brought.checkpoints["mine"]) / "model.safetensors").read_bytes() == (
        model / "model.safetensors"
    ).read_bytes()
    from harness.run.context import RunContext
    from harness.training import stage as training

    identities = [
        training.train_stage(RunContext(one, tmp_path), cells(one)[-1]).identity for one in (given, brought)
    ]
    assert identities[0] == identities[1]


def test_a_storage_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    for url in ("nosuch://bucket/x?key=secret", f"file://{tmp_path / 'file'}"):
        with pytest.raises(HarnessError, match=r"ray\.storage .*cannot be used") as caught:
            cluster_storage.Storage(url)
        assert "secret" not in str(caught.value)


def test_a_storage_that_fails_on_the_way_is_one_line_without_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = cluster_storage.Storage(f"file://{tmp_path / 'store'}")
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


# --- what others may put into a storage ----------------------------------------------------------------


class Listed:
    """A file system with the keys that somebody gave it; each is a file that holds "planted"."""

    def __init__(self, *keys: str):
        self.keys, self.fetched = keys, list[str]()

    def invalidate_cache(self) -> None: ...

    def exists(self, place: str) -> bool:
        return True

    isdir = exists

    def find(self, prefix: str) -> list[str]:
        return [*self.keys]

    def get_file(self, place: str, target: str) -> None:
        self.fetched.append(place)
        Path(target).write_text("planted", encoding="utf-8")


def listing(tmp_path: Path, *keys: str) -> cluster_storage.Storage:
    """A storage in which a cell's folder seems to hold these keys."""
    storage = cluster_storage.Storage("memory://runs")
    storage.files = Listed(*keys)
    return storage


LEADING_OUT = ["../x", "a/../../x", "..", ".", "", "/x", "//x", "a//x", "./x", "a/./x", "a\\b", "..\\x",
               "C:x", "C:/x", "\\\\host\\x", "a\0b", "a\nb", "\x1b[2J", "a\u202eb", "x" * 256, "é" * 128,
               " ", " ..", ".training/state.pt", "\ud800"]  # fmt: skip


@pytest.mark.parametrize("key", LEADING_OUT, ids=lambda key: ascii(key)[:20])
def test_no_key_of_a_storage_leads_out_of_a_cells_folder(key: str, tmp_path: Path) -> None:
    out = tmp_path / "run" / "cell"
    storage = listing(tmp_path, "/runs/cell/a.json", f"/runs/cell/{key}", "/runs/cell/train.done.json")
    if key == "":  # how some object stores keep an empty folder
        storage.get("cell", out)
        assert sorted(path.name for path in out.iterdir()) == ["a.json", "train.done.json"]
        return
    with pytest.raises(
        HarnessError, match=r"^ray\.storage memory://runs: '.*' is refused, since it is no"
    ) as told:
        storage.get("cell", out)
    assert str(told.value).isprintable()
    assert len(str(told.value)) < 400
    assert storage.files.fetched == []
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    "key", ["/runs/other/x", "runs/cell/x", "/etc/x", "x", "/runs/cell", "/runs/cellx/x"]
)
def test_a_key_that_was_not_asked_for_is_refused(key: str, tmp_path: Path) -> None:
    storage = listing(tmp_path, "/runs/cell/a.json", key)
    with pytest.raises(HarnessError, match="since it is not in the folder that was asked for"):
        storage.get("cell", tmp_path / "cell")
    assert [*tmp_path.iterdir()] == []


def test_more_files_than_a_run_can_have_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_storage, "MOST_FILES", 3)
    storage = listing(tmp_path, *(f"/runs/cell/{number}" for number in range(4)))
    with pytest.raises(HarnessError, match="4 files in cell, which holds far fewer"):
        storage.get("cell", tmp_path / "cell")
    assert [*tmp_path.iterdir()] == []


def test_a_key_that_is_a_file_and_a_folder_is_one_line(tmp_path: Path) -> None:
    storage = listing(tmp_path, "/runs/cell/a", "/runs/cell/a/b")
    with pytest.raises(HarnessError, match=r"cannot be written or read"):
        storage.get("cell", tmp_path / "cell")


@pytest.mark.parametrize("place", ["file", "folder", "elsewhere in the cell"])
def test_nothing_is_written_through_a_link_here(place: str, tmp_path: Path) -> None:
    mine, out = tmp_path / "mine", tmp_path / "run" / "cell"
    mine.mkdir()
    (mine / "x.json").write_text("mine")
    out.mkdir(parents=True)
    if place == "file":
        (out / "x.json").symlink_to(mine / "x.json")
    elif place == "folder":
        (out / "deep").symlink_to(mine)
    else:
        (out / "x.json").symlink_to(out / "a.json")
    key = "deep/x.json" if place == "folder" else "x.json"
    storage = listing(tmp_path, "/runs/cell/a.json", f"/runs/cell/{key}")
    with pytest.raises(HarnessError, match=f"'{key}' is refused, since a link stands in its way"):
        storage.get("cell", out)
    assert storage.files.fetched == []
    assert (mine / "x.json").read_text() == "mine"


def test_links_in_a_folder_that_is_a_storage_are_not_followed(tmp_path: Path) -> None:
    store, mine, here = tmp_path / "store", tmp_path / "mine", tmp_path / "here"
    for folder in (store / "one", store / "three", mine, here):
        folder.mkdir(parents=True)
    (mine / "x.json").write_text("mine")
    (here / "x.json").write_text("new")
    (store / "one" / "x.json").symlink_to(mine / "x.json")
    (store / "two").symlink_to(mine)
    (store / "three" / "x.json").symlink_to("/dev/zero")
    storage = cluster_storage.Storage(f"file://{store}")
    for name in ("one", "two", "three"):
        with pytest.raises(HarnessError, match="is refused, since a link stands in its way"):
            storage.get(name, tmp_path / "out")
        with pytest.raises(HarnessError, match="is refused, since a link stands in its way"):
            storage.put(here, name)
    assert (mine / "x.json").read_text() == "mine"
    assert not (tmp_path / "out").exists()


def test_a_link_beside_the_command_is_nothing_to_an_object_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cell").symlink_to("/")
    listing(tmp_path, "/runs/cell/x").get("cell", tmp_path / "out")
    assert (tmp_path / "out" / "x").read_text() == "planted"


@pytest.mark.usefixtures("ray_here")
def test_a_storage_that_leads_out_is_a_cells_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    part, _ = parts_of_the_seed()
    answers(out, part).write_text("one")
    local = "fsspec.implementations.local.LocalFileSystem.find"
    monkeypatch.setattr(local, lambda self, prefix: [f"{prefix}../../../stolen"])
    (found,) = outcomes(out, [part], tmp_path / "store")
    assert "/../../../stolen' is refused, since it is no plain path" in (found.failure or "")
    assert not [*tmp_path.rglob("stolen")]


# --- what a node keeps of the recipe's files -----------------------------------------------------------


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node's folder for temporary files."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(ray_cluster.tempfile, "tempdir", str(folder))
    return folder


def named(tmp_path: Path) -> tuple[cluster_storage.Storage, config.RunConfig, dict[str, str]]:
    """A storage with a recipe's file in it, and its name there."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "a", "answer": "b"}\n', encoding="utf-8")
    given = recipe(train_data=str(rows), train_tasks="gsm8k-mini")
    storage = cluster_storage.Storage(f"file://{tmp_path / 'store'}")
    return storage, given, storage.take_in(given)


@pytest.mark.parametrize("how", ["open to all", "a link", "a file", "another's"])
def test_a_folder_for_copies_that_another_may_have_made_is_refused(
    how: str, node: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, given, inputs = named(tmp_path)
    theirs = node / f"harness-{os.getuid()}"
    if how == "open to all":
        theirs.mkdir()
        theirs.chmod(0o777)
    elif how == "a link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        theirs.symlink_to(tmp_path / "elsewhere")
    elif how == "a file":
        theirs.touch(mode=0o700)
    else:
        theirs = node / f"harness-{os.getuid() + 1}"
        theirs.mkdir(mode=0o700)
        another = os.getuid() + 1
        monkeypatch.setattr(os, "getuid", lambda: another)
    with pytest.raises(HarnessError, match=r"harness-\d+ is not a folder that you alone can use .*TMPDIR"):
        storage.bring(given, inputs)
    assert theirs.is_file() or [*theirs.iterdir()] == []


def test_a_kept_copy_is_made_once_and_again_when_it_is_damaged(
    node: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, given, inputs = named(tmp_path)
    copy = Path(storage.bring(given, inputs).train_data or "")
    assert copy.is_relative_to(node)
    assert (node / f"harness-{os.getuid()}").stat().st_mode & 0o777 == 0o700
    before = copy.stat().st_ino
    assert storage.bring(given, inputs).train_data == str(copy)
    assert copy.stat().st_ino == before
    copy.write_text("half", encoding="utf-8")
    storage.bring(given, inputs)
    assert copy.read_bytes() == (tmp_path / "rows.jsonl").read_bytes()
    assert [path.name for path in (node / f"harness-{os.getuid()}").iterdir()] == ["inputs"]


def test_a_folder_is_kept_whole_and_taken_in_by_what_it_holds(
    node: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "a model"
    for name in ("config.json", "deep/weights", ".training/state"):
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_text(name)
    monkeypatch.chdir(model / "deep")
    storage = cluster_storage.Storage(f"file://{tmp_path / 'store'}")
    for given in (recipe(checkpoints={"mine": str(model)}), recipe(checkpoints={"mine": ".."})):
        inputs = storage.take_in(given)
        assert [name.rpartition("/")[2] for name in inputs.values()] == ["a model"]
        copy = Path(storage.bring(given, inputs).checkpoints["mine"])
        (copy / "deep" / "weights").write_text("changed")
        copy = Path(storage.bring(given, inputs).checkpoints["mine"])
        assert (copy / "deep" / "weights").read_text() == "deep/weights"
        assert not (copy / ".training").exists()


@pytest.mark.parametrize("change", ["changed", "more", "gone"])
def test_what_was_changed_in_the_storage_is_not_used(change: str, node: Path, tmp_path: Path) -> None:
    storage, given, inputs = named(tmp_path)
    (name,) = inputs.values()
    there = tmp_path / "store" / name
    if change == "changed":
        there.write_text('{"question": "a", "answer": "planted"}\n')
    else:
        there.unlink()
    if change == "more":
        there.mkdir()
        (there / "x").write_text("planted")
    with pytest.raises(HarnessError, match=r"is not what was sent|cannot be copied|No such file"):
        storage.bring(given, inputs)
    assert [path.name for path in node.rglob("*") if path.is_file()] == []


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
    monkeypatch.setattr(ray_cluster, "connect", lambda config: ray)
    monkeypatch.setattr(ray_cluster, "Mailbox", MagicMock)
    monkeypatch.setattr(ray_cluster, "_list_versions", lambda ctx: {})
    monkeypatch.setattr(ray_cluster, "attempt", lambda ctx, cell, *given: stages.Outcome(cell))


def parts_of_the_seed() -> list[Cell]:
    whole = cells(recipe())[0]
    return [replace(whole, tasks=(task,)) for task in whole.tasks[:2]]


def answers(run: Path, part: Cell) -> Path:
    path = run / part.folder / part.tasks[0] / "responses.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def outcomes(out: Path, todo: list[Cell], store: Path) -> list[stages.Outcome]:
    labels = {cell.folder: cell.label for cell in todo}
    config = recipe(**{"ray.storage": f"file://{store}"})
    return [*ray_cluster.run_cells(config, out, todo, labels, "respond", False, MagicMock())]


def test_parts_of_a_cell_leave_each_others_answers_alone(tmp_path: Path) -> None:
    store = tmp_path / "store"
    one, two = parts_of_the_seed()
    for part in (one, two):
        answers(store, part).write_text("stale")
    given = order(tmp_path, "", **{"ray.storage": f"file://{store}"})
    with (
        ray_cluster._open_place(given, one) as (_, first),
        ray_cluster._open_place(given, two) as (_, second),
    ):
        for part, out in ((one, first), (two, second)):
            assert answers(out, part).read_text() == "stale"
            answers(out, part).write_text("fresh")
    assert [answers(store, part).read_text() for part in (one, two)] == ["fresh", "fresh"]
    (trained,) = cells(recipe())[-1:]
    (store / trained.folder).mkdir(parents=True)
    (store / trained.folder / "train.done.json").write_text("m")
    cluster_storage.Storage(f"file://{store}").get_cell(trained, tmp_path / "there")
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
    copy = getattr(cluster_storage.Storage, step)

    def full(storage: cluster_storage.Storage, *given: Any) -> None:
        (folder,) = (path for path in given if isinstance(path, Path))
        if folder.is_relative_to(out) == (on == "the driver"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        copy(storage, *given)

    monkeypatch.setattr(cluster_storage.Storage, step, cluster_storage._in_one_line(full))
    (found,) = outcomes(out, [part], store)
    assert found.stops
    assert (found.failure or "").startswith("no space left on the disk")
