"""Guards what a cluster is asked for and what travels to its nodes (a real one: tests/extras/test_ray.py)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import cluster, config
from harness.contracts import HarnessError
from harness.plan import cells


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
