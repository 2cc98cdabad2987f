"""A checkpoint's card: read back through huggingface_hub, equal to the leaderboard, and without texts."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_run
import pytest
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

from harness.leaderboard import tables
from harness.report import model_card
from harness.storage.files import read_json, read_jsonl, write_json_atomic

Command = Callable[..., Any]


@pytest.fixture(scope="module")
def text(small_run: Path) -> str:
    return model_card.card(small_run, "lookahead-true")


@pytest.fixture
def row(small_run: Path) -> dict[str, Any]:
    return next(r for r in tables.records(tables.read(small_run)) if r["method"] == "lookahead-true")


def test_its_scores_can_be_read_back(text: str, row: dict[str, Any], small_run: Path, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    data = ModelCard.load(tmp_path / "README.md").data.to_dict()
    name, results = model_index_to_eval_results(data["model-index"])
    assert name == "mini-gsm8k-mini-lookahead-true"
    found = {result.dataset_config: result for result in results}
    assert [*found] == ["gsm8k-mini", "hexphi_raw-mini", "hexphi_prefill-mini"]
    for task, column in zip(found, ("utility", "rsr", "jsr"), strict=True):
        result = found[task]
        assert result.metric_value == row[column]
        assert result.metric_args["interval_95"] == [row[f"{column}_low"], row[f"{column}_high"]]
        assert (result.metric_args["n"], result.metric_args["unjudged"]) == (8, 0)
        documents = read_json(small_run / "gsm8k-mini/lookahead-true/seed-42" / task / "task.json")
        assert result.dataset_args == {name: documents[name] for name in ("version", "documents", "sha256")}
        assert (result.task_type, result.dataset_type) == ("text-generation", task)
    assert found["gsm8k-mini"].metric_type == "exact_match"
    assert "judge" not in found["gsm8k-mini"].metric_args
    jsr = found["hexphi_prefill-mini"]
    assert jsr.metric_type == "safe_rate"
    assert jsr.metric_args["prefill_tokens"] == 3
    assert jsr.metric_args["judge"] == "mini-exact"
    assert jsr.metric_args["judge_version"].startswith("1-")
    assert jsr.metric_args["refusals"] == row["jsr_refusals"]
    assert "prefill_tokens" not in found["hexphi_raw-mini"].metric_args
    assert data["library_name"] == "transformers"
    assert "license" not in data
    assert "base_model" not in data  # 'mini' is no name on the hub


def test_the_text_says_how_it_was_made_and_measured(text: str, row: dict[str, Any]) -> None:
    body = text.split("---\n", 2)[2]
    table = next(line for line in body.splitlines() if "(JSR), k = 3" in line)
    assert f"{row['jsr']:.2f} [{row['jsr_low']:.2f}, {row['jsr_high']:.2f}] | 8 | 0 |" in table
    assert f"{row['jsr_delta']:+.2f} [{row['jsr_delta_low']:+.2f}, {row['jsr_delta_high']:+.2f}]" in table
    for words in (
        "Method: lookahead-true: ",
        "gsm8k-mini, the train task's own rows, 32 examples.",
        "epochs 1, learning rate 0.0005 (linear), 16 examples a step, full tuning, float32; seed 42.",
        "hexphi\\_raw-mini: version 2, 8 documents (generated; SHA-256 ".replace("\\_", "_"),
        "Judge mini-exact: version 1-",
        "reads prefill+response of an opened answer",
        "Over-refusal: whether harmless requests are answered.",
        "More than the first 8 documents of each task.",
        "Other training seeds",
        "## Licence",
        "Mini world",
    ):
        assert words in body, words


def test_it_holds_no_request_and_no_answer(text: str, small_run: Path) -> None:
    for path in (small_run / "gsm8k-mini/lookahead-true/seed-42").glob("*/responses.jsonl"):
        for answer in read_jsonl(path):
            assert answer["prompt"] not in text
            assert answer["response"].strip() not in text or len(answer["response"].strip()) < 8


def test_a_method_that_needs_its_system_prompt_says_so(small_run: Path) -> None:
    text = model_card.card(small_run, "ptst")
    assert "Under the method's own system prompt, without which this is another model: It is wrong" in text
    assert "own system prompt" not in model_card.card(small_run, "vanilla")


def test_the_seed_model_has_a_card_of_scores_alone(small_run: Path) -> None:
    text = model_card.card(small_run, "seed")
    assert "Not trained by safetune-harness" in text
    assert "Budget" not in text
    assert "Other training seeds" not in text


def test_a_checkpoint_that_was_trained_elsewhere_has_a_card(small_run: Path, tmp_path: Path) -> None:
    shutil.copytree(small_run, tmp_path / "run")
    shutil.copytree(small_run / "seed", tmp_path / "run/checkpoints/mine")
    record = read_json(tmp_path / "run/run.json")
    record["config"]["checkpoints"] = {"mine": str(tmp_path / "weights")}
    write_json_atomic(tmp_path / "run/run.json", record)
    text = model_card.card(tmp_path / "run", "mine")
    base = model_card.card(tmp_path / "run", "seed")
    for card in (text, base):  # the base model stands in the run twice, and on its card once
        assert card.count("| safe rate, answers opened (JSR), k = 3 |") == 1
    assert "| Δ the base model |" in text
    assert "Δ: points against the base model, paired." in text
    assert "| Δ vanilla |" in base
    assert "Δ: points against vanilla fine-tuning, paired." in base


def test_paths_and_servers_stay_private() -> None:
    assert model_card._shown("/home/me/models/base") == "base"
    assert model_card._shown("meta-llama/Llama-2-7b-chat-hf") == "meta-llama/Llama-2-7b-chat-hf"
    assert model_card._hub_name("meta-llama/Llama-2-7b-chat-hf") == "meta-llama/Llama-2-7b-chat-hf"
    assert model_card._hub_name("mini") is None
    assert model_card._hub_name("./a/b") is None
    assert model_card._public("openai:m@http://10.0.0.1:8000/v1") == "openai:m"
    assert model_card._public("/home/me/my-guard.yaml") == "my-guard.yaml"
    assert model_card._public("keyword") == "keyword"


def test_a_hub_data_set_keeps_its_name_and_revision(run_copy: Path) -> None:
    for path in run_copy.glob("**/hexphi_raw-mini/task.json"):
        write_json_atomic(path, {**read_json(path), "source": "hub owner/data@abc123"})
        made_run.restamp(path)
    text = model_card.card(run_copy, "vanilla")
    _, results = model_index_to_eval_results(ModelCard(text).data.to_dict()["model-index"])
    raw = next(result for result in results if result.dataset_config == "hexphi_raw-mini")
    assert (raw.dataset_type, raw.dataset_revision) == ("owner/data", "abc123")


def test_hostile_names_are_text_in_metadata_and_body(run_copy: Path) -> None:
    hostile = "x'\"--- : [a](javascript:b) <script> {{ | # & *c !!set"
    record = read_json(run_copy / "run.json")
    record["config"] |= {"model": hostile, "note": hostile}
    write_json_atomic(run_copy / "run.json", record)
    for path in run_copy.glob("**/task.json"):
        write_json_atomic(path, {**read_json(path), "source": f"file {hostile}\nlicense: evil"})
        made_run.restamp(path)
    text = model_card.card(run_copy, "vanilla")
    metadata = ModelCard(text).data.to_dict()
    assert not {"license", "base_model", "datasets"} & {*metadata}
    assert metadata["model-index"][0]["name"].startswith("x'\"--- : [a](javascript:b) <script>")
    body = text.split("\n---\n", 1)[1]
    assert not re.search(r"(?<!\\)<script|(?<!\\)\]\(javascript|^license", body, re.MULTILINE)


def test_unjudged_answers_are_counted_with_their_bounds(run_copy: Path) -> None:
    verdicts = run_copy / "gsm8k-mini/vanilla/seed-42/hexphi_raw-mini/verdicts.mini-exact.jsonl"
    first, *others = verdicts.read_text(encoding="utf-8").splitlines(keepends=True)
    assert '"harmful": false' in first
    verdicts.write_text("".join([first.replace('"harmful": false', '"harmful": null'), *others]))
    made_run.restamp(verdicts)
    text = model_card.card(run_copy, "vanilla")
    assert "1 answers could not be judged; were all of them harmful, or all safe: 87.5 to 100.0." in text
    _, results = model_index_to_eval_results(ModelCard(text).data.to_dict()["model-index"])
    raw = next(result for result in results if result.dataset_config == "hexphi_raw-mini")
    assert (raw.metric_args["n"], raw.metric_args["unjudged"]) == (7, 1)


def test_the_command_writes_a_file_and_replaces_none(
    command: Command, small_run: Path, text: str, tmp_path: Path
) -> None:
    out = tmp_path / "card" / "README.md"
    assert command("card", small_run, "lookahead-true").out == text
    assert command("card", small_run, "lookahead-true", "--out", out).code == 0
    assert out.read_text(encoding="utf-8") == text
    again = command("card", small_run, "sdft", "--out", out)
    assert (again.code, len(again.err.splitlines())) == (2, 1)
    assert out.read_text(encoding="utf-8") == text
    assert command("card", small_run, "sdft", "--out", out, "--force").code == 0
    assert "lookahead-true" not in out.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["sdtf"], 2, "did you mean 'sdft'"),
        (["sdft", "--seed", "7"], 2, "--seed 7: the run has sdft with 42"),
        (
            ["sdft", "--train-task", "samsum-mini"],
            2,
            "--train-task samsum-mini: the run has sdft with gsm8k-mini",
        ),
    ],
)
def test_a_checkpoint_that_is_not_there_is_one_line(
    command: Command, small_run: Path, arguments: list[str], code: int, words: str
) -> None:
    ended = command("card", small_run, *arguments)
    assert (ended.code, ended.out) == (code, "")
    assert words in ended.err


def test_of_several_seeds_one_is_named(command: Command, run_copy: Path) -> None:
    record = read_json(run_copy / "run.json")
    record["config"]["seeds"] = [42, 43]
    write_json_atomic(run_copy / "run.json", record)
    shutil.rmtree(run_copy / "gsm8k-mini" / "lisa")
    asked = command("card", run_copy, "sdft")
    assert (asked.code, "the run has sdft 2 times: add --seed 42" in asked.err) == (2, True)
    assert command("card", run_copy, "sdft", "--seed", "42").code == 0
    missing = command("card", run_copy, "lisa", "--seed", "42")
    assert missing.code == 1
    assert "no card for gsm8k-mini · lisa · seed 42, which is missing" in missing.err
