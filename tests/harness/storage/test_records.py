"""Guards the one place where a run's files are checked: what the harness writes passes, anything else is one
line with file, line and key."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import made_run
import pytest

from harness.contracts import HarnessError, Verdict
from harness.storage import records
from harness.storage.files import read_jsonl, write_json_atomic, write_jsonl_atomic

TASK = Path("gsm8k-mini/vanilla/seed-42/hexphi_raw-mini")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_run.make(tmp_path_factory.mktemp("records") / "run", documents=3, judges=("keyword",))


def test_a_runs_own_files_pass(run: Path) -> None:
    rows = read_jsonl(run / TASK / "responses.jsonl")
    assert records.responses(run / TASK) == rows
    assert list(records.each_verdict(run / TASK, "judge-keyword", "verdicts.keyword.jsonl"))
    assert records.run(run)["config"]["model"] == "mini"
    assert records.marker(run / TASK / "respond.done.json")["outputs"].keys() == {"responses.jsonl"}
    assert records.training((run / TASK).parent)["steps"] == 30


def test_every_file_of_a_real_run_passes(small_run: Path) -> None:
    for path in small_run.rglob("*"):
        if path.name == "responses.jsonl":
            assert records.responses(path.parent)
            assert records.documents(path.parent)
        elif path.name.startswith("verdicts."):
            stage = path.name.replace("verdicts.", "judge-").removesuffix(".jsonl")
            assert [*records.each_verdict(path.parent, stage, path.name)] == read_jsonl(path) != []
        elif path.name == "training.json":
            assert records.training(path.parent)
        elif path.name.endswith(".done.json"):
            assert records.marker(path)
    assert records.run(small_run)


def test_each_field_of_a_verdict_is_known() -> None:
    fields = {field.name for field in dataclasses.fields(Verdict)}
    assert set(records.VerdictRow.model_fields) == fields


def test_texts_of_a_verdict_are_cut_and_say_so() -> None:
    short = {name: "x" * most for name, most in records.LONGEST.items()}
    verdict = Verdict("e", "j", "1", True, "compliance", 5.0, **short)
    assert records.bounded(verdict) == verdict
    assert records.bounded(Verdict("e", "j", "1", None)) == Verdict("e", "j", "1", None)
    found = records.bounded(dataclasses.replace(verdict, **dict.fromkeys(short, "x" * 10**7)))
    for name, most in records.LONGEST.items():
        assert getattr(found, name) == "x" * most + " (cut: it had 10,000,000 characters)"
    assert dataclasses.replace(found, **short) == verdict  # nothing else has changed


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"harmful": "yes"}, "harmful: Input should be a valid boolean"),
        ({"harmful": 0}, "harmful: "),
        ({"label": "fine"}, "label: Input should be 'refusal'"),
        ({"score": "5"}, "score: Input should be a valid number"),
        ({"reason": ["x"]}, "reason: Input should be a valid string"),
        ({"input_tokens": -5}, "input_tokens: "),
        ({"price_usd": float("nan")}, "price_usd: Input should be a finite number"),
        ({"exchange_id": None}, "exchange_id: "),
        ({"further": 1}, "further: Extra inputs are not permitted"),
    ],
)
def test_what_is_no_verdict_is_named(change: dict[str, Any], says: str, run: Path, tmp_path: Path) -> None:
    path = shutil.copytree(run / TASK, tmp_path / "task") / "verdicts.keyword.jsonl"
    good = read_jsonl(path)
    write_jsonl_atomic(path, [good[0], good[1] | change])
    made_run.restamp(path)
    with pytest.raises(HarnessError) as error:
        list(records.each_verdict(path.parent, "judge-keyword", path.name))
    assert str(error.value).startswith(f"{path}, line 2: not what the harness writes there ({says}")
    assert records.verdict_rows([good[0], good[1] | change]) == [good[0]]


@pytest.mark.parametrize("value", [None, [], "x", 1, {}, {"identity": 1}, {"identity": "x", "inputs": []}])
def test_what_is_no_record_is_named(value: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.done.json"
    write_json_atomic(path, value)
    with pytest.raises(HarnessError, match=r"x\.done\.json: not what the harness writes there"):
        records.marker(path)


def test_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=r"no run\.json; not a run folder"):
        records.run(tmp_path)
