"""What the browser of exchanges is given: verdicts in order, texts only where they may be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import made_run
import pytest

from harness.report import exchanges
from harness.run import run_folder
from harness.storage.files import read_jsonl

METHODS = ("seed", "vanilla", "sdft")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_run.make(tmp_path_factory.mktemp("made") / "run", methods=METHODS, seeds=(1, 2))


def collected(run: Path, **how: Any) -> dict[str, Any]:
    return exchanges.collect(run, run_folder.stored_config(run), **how)


def test_a_group_is_a_train_tasks_methods_of_one_seed(run: Path) -> None:
    data = collected(run)
    sides = [
        (group["train_task"], group["seed"], [data["cells"][place]["method"] for place in group["cells"]])
        for group in data["groups"]
    ]
    assert sides == [("gsm8k-mini", 1, [*METHODS]), ("gsm8k-mini", 2, [*METHODS])]
    places = [group["cells"] for group in data["groups"]]
    assert places[0][0] == places[1][0]
    assert not {*places[0][1:]} & {*places[1][1:]}


def test_verdicts_stand_in_the_order_of_the_ids(run: Path) -> None:
    data = collected(run)
    answers = data["cells"][1]["answers"]["hexphi_prefill-mini"]
    stored = read_jsonl(
        run / "gsm8k-mini" / "vanilla" / "seed-1" / "hexphi_prefill-mini" / "verdicts.keyword.jsonl"
    )
    letters = {True: "h", False: "s", None: "u"}
    assert answers["verdicts"]["keyword"] == "".join(letters[row["harmful"]] for row in stored)
    assert {"h", "s"} <= {*answers["verdicts"]["keyword"]}
    task = data["tasks"]["hexphi_prefill-mini"]
    assert task["ids"] == [row["exchange_id"] for row in stored]
    assert task["categories"] == [*made_run.CATEGORIES]
    assert [task["categories"][place] for place in task["category"][:4]] == [
        *made_run.CATEGORIES,
        made_run.CATEGORIES[0],
    ]


def test_no_safety_text_without_being_asked(run: Path) -> None:
    plain, full = collected(run), collected(run, show_harmful=True)
    assert made_run.PLANTED not in json.dumps(plain)
    assert made_run.PLANTED in json.dumps(full)
    assert plain["tasks"]["gsm8k-mini"]["texts"]
    assert not plain["tasks"]["hexphi_raw-mini"]["texts"]
    assert full["tasks"]["hexphi_raw-mini"]["texts"]
    assert not full["tasks"]["hexphi_raw-mini"]["readable"]


def test_a_text_is_kept_once(run: Path) -> None:
    data = collected(run)
    assert len({*data["texts"]}) == len(data["texts"])
    answers = data["cells"][0]["answers"]["gsm8k-mini"]
    assert data["texts"][answers["response"][3]] == "#### 4"
    assert data["texts"][answers["prompt"][3]] == "How many are 3 and 1?"


def test_an_exchange_that_one_cell_lacks_is_absent_there(run: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    folder = copy / "gsm8k-mini" / "sdft" / "seed-1" / "hexphi_raw-mini"
    for name in ("responses.jsonl", "verdicts.keyword.jsonl"):
        lines = (folder / name).read_text().splitlines(keepends=True)
        (folder / name).write_text("".join(lines[1:]))
        made_run.restamp(folder / name)
    answers = collected(copy)["cells"][3]["answers"]["hexphi_raw-mini"]
    assert answers["verdicts"]["keyword"][0] == " "
    assert answers["tokens"][0] is None
    assert answers["tokens"][1] == 6


def test_an_exchange_that_only_a_later_cell_has_is_absent_before(run: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    folder = copy / "seed" / "hexphi_raw-mini"
    for name in ("responses.jsonl", "verdicts.keyword.jsonl"):
        lines = (folder / name).read_text().splitlines(keepends=True)
        (folder / name).write_text("".join(lines[1:]))
        made_run.restamp(folder / name)
    data = collected(copy, show_harmful=True)
    first, last = (data["cells"][place]["answers"]["hexphi_raw-mini"] for place in (0, 3))
    ids = data["tasks"]["hexphi_raw-mini"]["ids"]
    assert ids[-1] == "hexphi_raw-mini-0"  # it came last
    assert first["verdicts"]["keyword"][-1] == first["labels"]["keyword"][-1] == " "
    assert last["verdicts"]["keyword"][-1] != " "
    for part in ("tokens", "characters", "response", "prompt"):
        assert first[part][-1] is None
        assert last[part][-1] is not None
    assert first["reasons"]["keyword"][-1] is None
    for answers in (first, last):
        assert {len(answers[part]) for part in ("tokens", "characters", "cut", "response")} == {len(ids)}


def test_verdicts_on_other_answers_are_not_shown(run: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    answered = copy / "seed" / "hexphi_raw-mini" / "responses.jsonl"
    answered.write_text(answered.read_text().replace(made_run.PLANTED, "OTHER"))
    made_run.restamp(answered, verdicts=False)
    answers = collected(copy)["cells"][0]["answers"]
    assert answers["hexphi_raw-mini"]["verdicts"] == {}
    assert answers["hexphi_prefill-mini"]["verdicts"]["keyword"]


def test_only_our_own_utility_tasks_are_readable(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = run_folder.stored_config(run)
    assert exchanges.readable("gsm8k-mini", config)
    assert not exchanges.readable("overrefusal-mini", config)
    assert not exchanges.readable("hexphi_raw-mini", config)
    assert not exchanges.readable("realtoxicityprompts", config)  # lm-eval's own


def test_signs_that_steer_are_shown_and_long_texts_are_cut() -> None:
    assert exchanges.visible("a\x1b[31mb\u202ec\nd\te\xa0f") == "a␛[31mb[U+202E]c\nd\te\xa0f"
    assert exchanges.visible("x" * 4_010).endswith("x … (10 more characters)")
    assert exchanges.visible("x" * 4_000) == "x" * 4_000
