"""The two parts of the documents: disjoint, covering, stable, and the same for all forms of a request."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.config import ResponsesConfig
from harness.contracts import HarnessError
from harness.data import benchmarks
from harness.generation import splits
from harness.storage.files import read_json, read_jsonl

MINI = benchmarks.get("hexphi_raw-mini")
DOCUMENTS = [{"id": f"d{number}", "instruction": f"request {number}"} for number in range(500)]


def settings(part: str, share: float = 0.4, limit: int | None = None) -> ResponsesConfig:
    return ResponsesConfig(part=part, validation_share=share, limit=limit)  # type: ignore[arg-type]


def test_the_parts_are_disjoint_and_cover_the_documents() -> None:
    validation = splits.choose_places(DOCUMENTS, MINI, settings("validation"))
    final = splits.choose_places(DOCUMENTS, MINI, settings("final"))
    assert validation
    assert final
    assert sorted(validation + final) == list(range(500))
    assert splits.count_parts(DOCUMENTS, MINI, settings("final")) == {
        "validation": len(validation),
        "final": len(final),
    }
    assert len(validation) / 500 == pytest.approx(0.4, abs=0.05)


def test_all_documents_are_no_part_and_change_no_identity() -> None:
    assert splits.choose_places(DOCUMENTS, MINI, settings("all")) is None
    assert splits.identity(settings("all", share=0.1)) == {}
    assert splits.note(settings("all")) is None
    one, other = (splits.identity(settings("final", share=share)) for share in (0.4, 0.5))
    assert one != other
    assert one != splits.identity(settings("validation"))


def test_a_limit_takes_the_first_of_the_part() -> None:
    whole = splits.choose_places(DOCUMENTS, MINI, settings("final"))
    assert whole
    assert splits.choose_places(DOCUMENTS, MINI, settings("final", limit=7)) == whole[:7]


def test_the_rule_is_stable() -> None:
    """A part that moved would mix documents that settings were chosen on into later final scores."""
    digest = hashlib.sha256(b"safetune-harness documents 1\nid d0").digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    assert splits.assign_part("id d0", place) == "final"
    assert splits.assign_part("id d0", place + 1e-9) == "validation"
    known = {"id gsm8k-mini-test-0000": "validation", "id gsm8k-mini-test-0001": "final"}
    assert {key: splits.assign_part(key, 0.4) for key in known} == known


def test_forms_of_one_request_share_a_part() -> None:
    """Real HEx-PHI counts its raw and its prefilled requests apart: the request's text is what they share."""
    raw = {"id": "hexphi-01-03", "instruction": "the same request"}
    prefilled = {"id": "hexphi-0002", "instruction": "the same request", "prefill": "x"}
    assert splits.find_key(raw, 2, MINI) == splits.find_key(
        prefilled, 9, benchmarks.get("hexphi_prefill-mini")
    )
    assert splits.find_key({"id": "a"}, 0, MINI) != splits.find_key({"id": "b"}, 0, MINI)
    foreign = benchmarks.get("hellaswag")
    assert splits.find_key(raw, 2, foreign) == "hellaswag 2"


def test_a_part_without_documents_is_said() -> None:
    other = {"validation": "final", "final": "validation"}[splits.assign_part("instruction request 0", 0.4)]
    with pytest.raises(HarnessError, match=f"none of its 1 documents is in the part '{other}'"):
        splits.choose_places(DOCUMENTS[:1], MINI, settings(other))


@pytest.mark.slow
def test_a_run_answers_its_part_alone(
    tmp_path: Path, command: Callable[..., Any], small: Callable[..., list[str]]
) -> None:
    ids: dict[str, dict[str, set[str]]] = {}
    for part in ("validation", "final"):
        flags = ["compare", "--methods", "seed", "--out", tmp_path / part]
        flags += ["--safety-task", "hexphi_prefill_k1-mini"]
        flags += small(**{"responses.part": part, "responses.limit": 6})
        ended = command(*flags)
        assert ended.code == 0, ended.err
        assert f"Over the {part} documents alone" in ended.out
        for task in ("gsm8k-mini", "hexphi_raw-mini", "hexphi_prefill-mini", "hexphi_prefill_k1-mini"):
            record = read_json(tmp_path / part / "seed" / task / "task.json")
            rows = read_jsonl(tmp_path / part / "seed" / task / "responses.jsonl")
            assert len(rows) == 6 == record["documents"]
            assert record["part"] == part
            whole = 200 if task == "gsm8k-mini" else 330
            assert sum(record["parts"].values()) == whole
            assert record["parts"]["validation"] / whole == pytest.approx(0.4, abs=0.1)
            ids.setdefault(part, {})[task] = {row["id"] for row in rows}
    for task, answered in ids["validation"].items():
        assert not answered & ids["final"][task]
    for found in ids.values():
        assert found["hexphi_raw-mini"] == found["hexphi_prefill-mini"] == found["hexphi_prefill_k1-mini"]
    other = command("compare", "--methods", "seed", "--out", tmp_path / "final", *small())
    assert other.code == 1
    assert "responses.part: final there, all here" in other.err


def test_a_run_from_before_parts_goes_on(
    run_copy: Path, command: Callable[..., Any], small: Callable[..., list[str]]
) -> None:
    from harness.storage.files import write_json_atomic

    record = read_json(run_copy / "run.json")
    del record["fixed"]["responses.part"], record["config"]["responses"]["part"]
    write_json_atomic(run_copy / "run.json", record)
    marker = (run_copy / "seed/gsm8k-mini/respond.done.json").read_bytes()
    ended = command("compare", "--methods", "all", "--out", run_copy, *small())
    assert ended.code == 0, ended.err
    assert "Nothing to do" in ended.out
    assert (run_copy / "seed/gsm8k-mini/respond.done.json").read_bytes() == marker
    assert "part" not in read_json(run_copy / "seed/gsm8k-mini/task.json")
