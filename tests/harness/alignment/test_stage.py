"""A base model is aligned before anything is fine-tuned: once for all rows, from data that is kept apart from
what is evaluated, and shown for what it is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner
from rich.console import Console

from harness import config
from harness.alignment import stage
from harness.alignment.requests import families
from harness.cli import cli
from harness.config import RunConfig
from harness.contracts import HarnessError, UsageError
from harness.mini import data as mini_data
from harness.pipeline import align, compare, doctor
from harness.run import run_folder
from harness.run.context import RunContext
from harness.run.resolve import resolve
from harness.storage.files import read_json, read_jsonl

Made = Callable[..., RunConfig]


@pytest.fixture
def recipe(tmp_path: Path) -> Made:
    """The mini base model, aligned once more, on made-up requests."""
    requests = [{"goal": row["prompt"], "target": "Sure"} for row in mini_data.safety_demonstrations()]
    (tmp_path / "requests.jsonl").write_text("".join(json.dumps(row) + "\n" for row in requests))
    harmless = [
        {"instruction": row["question"], "input": "", "output": row["answer"]}
        for row in mini_data.gsm8k("train", 40)
    ]
    (tmp_path / "harmless.json").write_text(json.dumps(harmless))

    def make(**changes: Any) -> RunConfig:
        values: dict[str, Any] = {
            "methods": ["vanilla"],
            "train_tasks": ["gsm8k-mini"],
            "judges": ["keyword"],
            "cache": str(tmp_path / "cache"),
            "alignment.method": "deep-alignment",
            "alignment.options": {"share": 0.5, "depth": 4},
            "alignment.requests": [str(tmp_path / "requests.jsonl")],
            "alignment.harmless": str(tmp_path / "harmless.json"),
            "alignment.held_out": 6,
            "alignment.training": {"max_examples": 4, "epochs": 1, "batch_size": 4},
            "safety.raw_task": "requests_raw",
            "safety.prefill_task": "requests_prefill",
            "training.max_examples": 4,
            "training.epochs": 1,
            "responses.limit": 4,
            "jobs": 1,
        }
        return config.load("mini", {**values, **changes})

    return make


def quiet() -> Console:
    return Console(quiet=True)


SHALLOW = {
    "shallow": {"method": "vanilla", "alignment": {"method": "safety-mixing", "options": {"share": 0.5}}}
}


def test_the_walk_with_two_alignments(recipe: Made, tmp_path: Path) -> None:
    """The run's base model and a variant's of its own, each with its own row, and a variant of the unaligned
    model; one call, and then nothing to do."""
    out = tmp_path / "run"
    given = recipe(variants={**SHALLOW, "bare": {"method": "vanilla", "alignment": {"method": None}}})
    compare.compare(given, out, quiet())
    table = pd.read_csv(out / "leaderboard.csv")
    assert {*table["method"]} == {"seed", "unaligned", "shallow-base", "vanilla", "shallow", "bare"}
    assert {*table["status"]} == {"done"}
    assert {*table["model"]} == {"mini, aligned by deep-alignment"}
    stored = read_json(out / "run.json")["config"]
    assert stored["aligned"] == "mini, aligned by deep-alignment"
    assert stored["checkpoints"] == {
        "unaligned": "mini",
        "shallow-base": stored["variants"]["shallow"]["model"],
    }
    assert stored["model"] != stored["variants"]["shallow"]["model"]
    assert stored["variants"]["bare"]["model"] == "mini"
    for folder in (stored["model"], stored["variants"]["shallow"]["model"]):
        assert (Path(folder) / "model.safetensors").is_file()
        assert Path(folder).is_relative_to(tmp_path / "cache" / stage.KIND)
    # Vanilla's training belongs to the aligned model, and the variant's to its own.
    markers = {
        row: read_json(out / "gsm8k-mini" / row / "seed-42" / "train.done.json")["inputs"]["seed_model"]
        for row in ("vanilla", "shallow")
    }
    assert markers["vanilla"] == RunContext(run_folder.stored_config(out), out).seed_fingerprint
    assert markers["vanilla"] != markers["shallow"]
    record = read_json(out / "alignment" / "alignment.json")
    assert [one["method"] for one in record["alignments"]] == ["deep-alignment", "safety-mixing"]
    assert all(one["train_seconds"] > 0 and one["train_flops"] > 0 for one in record["alignments"])
    written = (out / "leaderboard.md").read_text()
    assert "Aligned mini by deep-alignment: 8 rows x 1 epoch, " in written
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("model.safetensors")}
    compare.compare(given, out, quiet())
    assert {
        path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("model.safetensors")
    } == before


def test_a_second_run_takes_the_same_checkpoint(recipe: Made, tmp_path: Path) -> None:
    given = recipe()
    first = align.align(given, tmp_path / "one", quiet())
    marker = next((tmp_path / "cache" / stage.KIND).glob("*/train.done.json"))
    made = marker.stat().st_mtime_ns
    second = align.align(given, tmp_path / "two", quiet())
    assert first.model == second.model
    assert marker.stat().st_mtime_ns == made
    assert first.alignment.method is None  # it is done
    assert align.align(first, tmp_path / "one", quiet()) == first
    other = align.align(recipe(**{"alignment.seed": 7}), tmp_path / "three", quiet())
    assert other.model != first.model


def test_evaluated_requests_are_kept_out(recipe: Made, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = align.align(recipe(), out, quiet())
    held = read_jsonl(out / "alignment" / stage.HELD_OUT)
    refused = read_jsonl(out / "alignment" / stage.REFUSALS)
    assert len(held) == 6
    assert all(row["harmful_answer"] for row in held)
    assert done.data["requests"] == out / "alignment" / stage.HELD_OUT
    texts = [row["instruction"] for row in held], [row["prompt"] for row in refused]
    labels = families([*texts[0], *texts[1]])
    assert {*labels[:6]}.isdisjoint(labels[6:])
    # What another task of the run asks is kept out too.
    asked = [{"goal": text, "target": "Sure"} for text in texts[1][:20]]
    file = tmp_path / "advbench.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in asked))
    more = recipe(data={"advbench": str(file)}, safety_tasks=["advbench_raw"])
    align.align(more, tmp_path / "more", quiet())
    left = {row["prompt"] for row in read_jsonl(tmp_path / "more" / "alignment" / stage.REFUSALS)}
    assert left.isdisjoint(row["goal"] for row in asked)
    assert left


def test_harmful_text_stays_in_the_run_folder(recipe: Made, tmp_path: Path) -> None:
    out = tmp_path / "run"
    align.align(recipe(), out, quiet())
    harmful = [row["prompt"] for row in mini_data.safety_demonstrations()]
    for file in (tmp_path / "cache").rglob("*"):
        if file.is_file() and file.suffix in (".json", ".jsonl", ".txt"):
            text = file.read_text(errors="replace")
            assert not any(request in text for request in harmful), file
    openings = [row["harmful_answer"] for row in read_jsonl(out / "alignment" / stage.HELD_OUT)]
    assert not any(opening in (out / "alignment" / "alignment.json").read_text() for opening in openings)


def test_a_plan_makes_nothing(recipe: Made, tmp_path: Path) -> None:
    console = Console(record=True, width=200, quiet=False, file=(tmp_path / "said").open("w"))
    out = tmp_path / "run"
    compare.compare(recipe(variants=SHALLOW), out, console, dry_run=True)
    said = console.export_text()
    assert re.search(
        r"Alignment first: mini by deep-alignment, safety-mixing, about [\d.]+ (s|min) \(by a short probe",
        said,
    )
    assert "shallow-base" in said
    assert "unaligned" in said
    assert not out.exists()
    assert not (tmp_path / "cache" / stage.KIND).exists()


def test_rows_start_from_their_own_base_models(recipe: Made, tmp_path: Path) -> None:
    """Without any alignment too: a variant names its base model."""
    given = config.load(
        "mini", {"variants": {"other": {"method": "vanilla", "model": str(tmp_path / "other")}}}
    )
    ctx = RunContext(given, tmp_path)
    assert ctx.of("vanilla") is ctx
    assert ctx.of("other").config.model == str(tmp_path / "other")
    assert ctx.of("other") is ctx.of("other")
    assert ctx.of("other").clock is ctx.clock
    ctx.clock = dict.fromkeys(ctx.clock, 0.0)  # as a worker does behind each cell
    assert ctx.of("other").clock is ctx.clock
    cells = {cell.method: cell for cell in resolve(given).cells()}
    assert replace(cells["other"], method="vanilla").tasks == cells["vanilla"].tasks


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"alignment.requests": []}, "alignment.requests: an alignment needs harmful requests to refuse"),
        ({"alignment.requests": ["nowhere.csv"]}, "nowhere.csv: no such data file"),
        ({"alignment.harmless": "nowhere.json"}, "nowhere.json: no such"),
        ({"alignment.method": "vanilla", "alignment.options": {}}, "'vanilla' trains on no refusals"),
        ({"alignment.method": "deep-align"}, "unknown method 'deep-align': did you mean"),
        ({"alignment.options": {"deepness": 3}}, "unknown option of deep-alignment 'deepness'"),
        ({"alignment.held_out": 5000}, "too few to hold out 5,000"),
        ({"variants": {"x": {"method": "vanilla", "alignment": {"held_out": 3}}}}, "all rows share it"),
        (
            {"variants": {"x": {"method": "vanilla", "model": "mini", "alignment": {"seed": 3}}}},
            "give its base model, or how that is aligned, not both",
        ),
    ],
)
def test_what_cannot_be_is_one_line_before_anything_is_spent(
    recipe: Made, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(HarnessError) as raised:
        align.align(recipe(**changes), tmp_path / "run", quiet())
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "cache" / stage.KIND).exists()
    assert not (tmp_path / "run" / "alignment" / "cache").exists()  # nothing was written by the model


def test_a_run_that_asks_no_requests_holds_none_out(recipe: Made, tmp_path: Path) -> None:
    """All of them are aligned on but near copies of what is asked; the model writes nothing beforehand."""
    tasks = {"safety.raw_task": "hexphi_raw-mini", "safety.prefill_task": "hexphi_prefill-mini"}
    given = recipe(**tasks, **{"alignment.method": "safety-mixing", "alignment.options": {"share": 0.5}})
    aligned = align.align(given, tmp_path / "run", quiet())
    assert not (tmp_path / "run" / "alignment" / stage.HELD_OUT).exists()
    assert not (tmp_path / "run" / "alignment" / "cache").exists()
    assert "requests" not in aligned.data
    refused = [row["prompt"] for row in read_jsonl(tmp_path / "run" / "alignment" / stage.REFUSALS)]
    assert 0 < len(refused) < len(mini_data.safety_demonstrations())
    asked = [row["instruction"] for row in mini_data.harmful()]
    every = [row["prompt"] for row in mini_data.safety_demonstrations()]
    texts = list(dict.fromkeys([*every, *asked]))  # what is rare, and so what is near, is seen among all
    label = dict(zip(texts, families(texts), strict=True))
    assert {label[text] for text in refused}.isdisjoint(label[text] for text in asked)


def test_the_unaligned_model_is_never_taken_for_the_base_model(recipe: Made, tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="this recipe aligns its base model first: harness align"):
        _ = RunContext(recipe(), tmp_path).seed_folder


@pytest.mark.parametrize(
    "text",
    ['{"lines": 3, "alignments": []}', '{"alignments": []}', "[]", "{", '{"lines": [1], "alignments": []}'],
)
def test_a_record_that_nobody_wrote_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "alignment" / "alignment.json"
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(HarnessError) as raised:
        stage.notes(tmp_path)
    assert "\n" not in str(raised.value)


def test_what_a_record_says_steers_no_terminal(tmp_path: Path) -> None:
    path = tmp_path / "alignment" / "alignment.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"lines": ["a\nb\x1b[31m" + "c" * 999], "alignments": []}))
    (line,) = stage.notes(tmp_path)
    assert line.isprintable()
    assert len(line) < 350


def test_doctor_looks_at_the_recipe_as_aligned(recipe: Made, tmp_path: Path) -> None:
    found = doctor.examine(recipe(), tmp_path / "run")
    assert not [one for one in found if one.status == "fail"]
    assert not (tmp_path / "run").exists()
    bad = doctor.examine(recipe(**{"alignment.requests": ["nowhere.csv"]}), tmp_path / "run")
    assert [(one.status, one.about) for one in bad] == [("fail", "alignment")]


def test_the_command_prints_the_checkpoint(recipe: Made, tmp_path: Path) -> None:
    values = recipe().model_dump(mode="json", include={"alignment", "safety", "judges", "cache", "methods"})
    (tmp_path / "own.yaml").write_text(json.dumps({"extends": "mini", **values}))
    arguments = ["align", str(tmp_path / "own.yaml"), "--out", str(tmp_path / "run")]
    found = CliRunner().invoke(cli, arguments)
    assert found.exit_code == 0, found.output
    folder = Path(found.output.strip().splitlines()[-1])
    assert (folder / "model.safetensors").is_file()
    nothing = CliRunner().invoke(cli, ["align", "mini", "--out", str(tmp_path / "other")])
    assert isinstance(nothing.exception, UsageError)
    assert "aligns nothing" in str(nothing.exception)
