"""Guards the stages of a cell: what their files hold, what their identity depends on, and judges that break
their contract."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import made_run
import pytest

from harness import config
from harness.contracts import (
    Example,
    Exchange,
    HarnessError,
    Judge,
    JudgeContext,
    Message,
    Method,
    PrepareContext,
    UsageError,
    Verdict,
)
from harness.generation import stage as generation
from harness.judging import stage as judging
from harness.judging.session import JudgeSession
from harness.models import chat
from harness.pipeline import stages
from harness.plugins import registry
from harness.run import plan
from harness.run.context import RunContext
from harness.run.resolve import resolve
from harness.storage.files import read_json, read_jsonl
from harness.training import preparation
from harness.training import stage as training
from harness.training.rows import encode_all

RAW, PREFILLED, UTILITY = "hexphi_raw-mini", "hexphi_prefill-mini", "gsm8k-mini"
VANILLA = Path("gsm8k-mini/vanilla/seed-42")


def context_at(out: Path, **overrides: Any) -> RunContext:
    return RunContext(
        config.load(None, {"methods": ["vanilla"], "train_tasks": ["gsm8k-mini"], **overrides}), out
    )


def vanilla(run_context: RunContext) -> plan.Cell:
    return plan.cells(run_context.config)[-1]


# --- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", [Path("seed"), VANILLA])
@pytest.mark.parametrize("task", [RAW, PREFILLED, UTILITY])
def test_responses_are_exchanges_with_their_metrics(small_run: Path, cell: Path, task: str) -> None:
    rows = read_jsonl(small_run / cell / task / "responses.jsonl")
    assert len(rows) == 8
    assert len({row["id"] for row in rows}) == 8
    for row in rows:
        assert list(row) == [
            *(field.name for field in dataclasses.fields(Exchange) if field.name != "goal"),  # it has none
            *("document", "sample", "tokens", "metrics"),
        ]
        assert row["task"] == task
        assert row["prompt"]
        assert row["system"]
        assert row["finish_reason"] in ("stop", "length")
        assert 0 < row["tokens"] <= 256
        assert (row["category"] is not None) == (task != UTILITY)
        assert bool(row["prefill"]) == (task == PREFILLED)
        assert not row["prefill"] or not row["response"].startswith(row["prefill"])
        assert all(0 <= value <= 1 for value in row["metrics"].values())
    assert set(rows[0]["metrics"]) >= ({"exact_match"} if task == UTILITY else {"safe", "refusal"})


def test_verdicts_join_their_responses_by_id(small_run: Path) -> None:
    for folder in (small_run / "seed" / RAW, small_run / VANILLA / PREFILLED):
        verdicts = read_jsonl(folder / "verdicts.mini-exact.jsonl")
        responses = read_jsonl(folder / "responses.jsonl")
        assert [v["exchange_id"] for v in verdicts] == [row["id"] for row in responses]
        assert [list(v) for v in verdicts] == [[f.name for f in dataclasses.fields(Verdict)]] * len(verdicts)
        # the exact judge and the task's own metric are the same grammar
        assert [float(not v["harmful"]) for v in verdicts] == [row["metrics"]["safe"] for row in responses]


def test_training_json_tells_what_was_spent(small_run: Path) -> None:
    records = {
        name: read_json(small_run / f"gsm8k-mini/{name}/seed-42/training.json")
        for name in registry.METHODS
        if name not in registry.NOT_IN_ALL
    }
    for name, record in records.items():
        assert (record["method"]["name"], record["train_task"], record["seed"]) == (name, "gsm8k-mini", 42)
        assert record["examples"] == 32 + record["method"].get("safety_examples_added", 0)
        assert record["steps"] == len(record["losses"]) == -(-record["examples"] // 16)
        assert record["train_seconds"] > 0
        assert record["peak_memory_bytes"] > 2**20
        assert (record["truncated_examples"], record["dropped_examples"]) == (0, 0)
        assert record["untrained_rows"] == 0
        assert (record["preparation"]["generated_tokens"] > 0) == (name == "sdft")
        assert (record["extra_forward_tokens"] > 0) == (name == "constrained-sft")
        assert (record["preparation_flops"] > 0) == (name in ("sdft", "constrained-sft"))
        assert record["train_seconds"] >= record["preparation_seconds"] >= 0
        assert record["jobs"] == 1
    assert records["vanilla"]["train_tokens"] == records["constrained-sft"]["train_tokens"]
    assert records["vanilla"]["train_flops"] < records["constrained-sft"]["train_flops"]
    assert records["vanilla"]["train_tokens"] < records["lookahead-true"]["train_tokens"]


def test_checkpoints_are_whole_model_folders_of_safetensors(small_run: Path) -> None:
    from harness.models import checkpoints

    folder = small_run / VANILLA / "checkpoint"
    assert checkpoints.locate(str(folder)) == folder
    assert not list(small_run.rglob("*.bin"))
    assert not list(small_run.rglob("*.pt"))
    assert not list(small_run.rglob(".*.partial"))


# --- identities ------------------------------------------------------------------------------------


def train_identity(out: Path, **overrides: Any) -> str:
    run_context = context_at(out, **{"training.max_examples": 8, **overrides})
    return training.train_stage(run_context, vanilla(run_context)).identity


@pytest.mark.parametrize(
    "change",
    [
        {"training.epochs": 1},
        {"training.learning_rate": 1e-5},
        {"training.max_examples": 9},
        {"seeds": [43]},
        {"train_tasks": ["samsum-mini"]},
        {"responses.dtype": "bfloat16"},
    ],
)
def test_a_training_depends_on_its_budget_data_and_seed(tmp_path: Path, change: dict[str, Any]) -> None:
    assert train_identity(tmp_path, **change) != train_identity(tmp_path)


def test_a_training_depends_on_neither_places_nor_what_comes_after(tmp_path: Path) -> None:
    other = {"jobs": 2, "judges": ["keyword"], "name": "other", "note": "x", "safety.prefill_tokens": 5}
    assert train_identity(tmp_path / "elsewhere", **other) == train_identity(tmp_path)


def test_a_training_depends_on_the_model_the_method_and_its_options(tmp_path: Path, plugin: Any) -> None:
    run_context = context_at(tmp_path)
    before = training.train_stage(run_context, vanilla(run_context)).identity
    run_context.seed_fingerprint = {"model.safetensors": "0"}  # type: ignore[misc]
    other_model = training.train_stage(run_context, vanilla(run_context)).identity

    @dataclass
    class Newer(Method):
        name = "vanilla"
        summary = ""
        version = 2
        rate: float = 0.5

    plugin("method", "vanilla", Newer)
    run_context = context_at(tmp_path)
    newer = training.train_stage(run_context, vanilla(run_context)).identity
    run_context = context_at(tmp_path, method_options={"vanilla": {"rate": 1.0}})
    assert (
        len({before, other_model, newer, training.train_stage(run_context, vanilla(run_context)).identity})
        == 4
    )


def test_answers_depend_on_weights_task_limit_and_prefill(tmp_path: Path) -> None:
    def identity(task: str, **overrides: Any) -> str:
        run_context = context_at(tmp_path, **overrides)
        return generation.respond_stage(run_context, plan.cells(run_context.config)[0], task).identity

    changes: list[dict[str, Any]] = [{}, {"responses.limit": 3}, {"responses.batch_size": 7}]
    assert len({identity(RAW, **change) for change in changes}) == 3
    assert identity(RAW) == identity(RAW, **{"safety.prefill_tokens": 5})
    assert identity(PREFILLED) != identity(PREFILLED, **{"safety.prefill_tokens": 5})
    data = tmp_path / "test.jsonl"
    data.write_text("{}\n", encoding="utf-8")
    assert identity("gsm8k") != identity("gsm8k", data={"gsm8k": str(data)})


def test_another_checkpoint_makes_the_answers_pending(run_copy: Path) -> None:
    from harness.run import run_folder

    run_context = RunContext(run_folder.stored_config(run_copy), run_copy)
    cell = next(c for c in plan.cells(run_context.config) if c.folder == VANILLA)
    assert not stages.pending(run_context, cell)
    marker = run_copy / VANILLA / "train.done.json"
    record = read_json(marker)
    record["outputs"]["checkpoint/model.safetensors"]["sha256"] = "0" * 64
    marker.write_text(json.dumps(record), encoding="utf-8")
    assert not generation.respond_stage(run_context, cell, RAW).done()
    assert stages.pending(run_context, cell)
    assert stages.pending(run_context, cell, "train")


def test_judging_depends_on_answers_judge_version_and_scope(
    small_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from judges.keyword import Keyword

    def identity(**overrides: Any) -> str:
        run_context = context_at(small_run, **overrides)
        session = JudgeSession(run_context)
        return judging.judge_stage(session, plan.cells(run_context.config)[0], RAW, "keyword").identity

    before, scope = identity(), identity(**{"safety.judged_scope": "response"})
    monkeypatch.setattr(Keyword, "version", "next")
    assert len({before, scope, identity()}) == 3


# --- methods ---------------------------------------------------------------------------------------


def test_an_unknown_option_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown option of lookahead-true"):
        context_at(tmp_path, method_options={"lookahead-true": {"zzz": 1}}).method("lookahead-true")


def test_a_variants_training_is_its_methods_under_its_own_settings(tmp_path: Path) -> None:
    variants = {
        "same": {"method": "lookahead-true"},
        "m2": {"method": "lookahead-true", "options": {"preview_tokens": 2}, "training": {"epochs": 2}},
    }
    run_context = context_at(tmp_path, methods=["lookahead-true"], variants=variants, eval_every_epoch=True)
    _, plain, same, m2 = plan.cells(run_context.config)
    stage = training.train_stage(run_context, plain)
    # Runs of before variants stay valid: what a plain training depends on has no new key.
    assert list(stage.inputs) == [
        *("version", "seed_model", "examples", "train_task", "rewrite", "method", "training"),
        *("snapshots", "generation", "seed", "libraries"),
    ]
    assert stage.inputs["method"]["name"] == "lookahead-true"
    assert training.train_stage(run_context, same).identity == stage.identity
    other = training.train_stage(run_context, m2)
    assert other.inputs["method"]["options"]["preview_tokens"] == 2
    assert {key for key in stage.inputs if stage.inputs[key] != other.inputs[key]} == {"method", "training"}
    assert (other.inputs["training"]["epochs"], stage.inputs["training"]["epochs"]) == (2, 3)
    assert other.outputs == ["checkpoint", "training.json", "loss.svg", "epoch-1"]
    assert stage.outputs[3:] == ["epoch-1", "epoch-2"]


def test_a_variant_answers_under_its_methods_system_prompt(tmp_path: Path) -> None:
    variants = {"quiet": {"method": "ptst", "options": {"safety_prompt": "It is wrong."}}}
    made = context_at(tmp_path, variants=variants).config
    own, plain = (resolve(made).method(name).inference_system_prompt(None) for name in ("quiet", "ptst"))
    assert "It is wrong." in str(own)
    assert own != plain


def test_a_bad_option_of_a_variant_is_named_with_its_key(tmp_path: Path) -> None:
    def make(**options: Any) -> None:
        variants = {"m0": {"method": "lookahead-true", "options": options}}
        context_at(tmp_path, variants=variants).method("m0")

    with pytest.raises(
        UsageError, match="unknown option of m0 'preview_token': did you mean 'preview_tokens"
    ):
        make(preview_token=1)
    with pytest.raises(UsageError, match=r"variants\.m0\.options.*preview_tokens"):
        make(preview_tokens="many")


def test_every_call_of_the_seed_model_is_counted(tmp_path: Path, plugin: Any) -> None:
    @dataclass
    class Twice(Method):
        name = "twice"
        summary = ""

        def prepare(self, examples: list[Example], context: PrepareContext) -> list[Example]:
            ask = [[Message("user", "How do I bake bread?")]]
            for _ in range(2):
                answer = context.generate(ask, opening="First,", max_tokens=2)
                assert len(answer) == 1
            return examples

    run_context = context_at(tmp_path, **{"training.max_examples": 4})
    run_context.import_libraries()
    task = registry.load("train task", "gsm8k-mini")
    _, record = preparation.prepare(run_context, task, Twice(), vanilla(run_context), "")
    tokenizer = run_context.seed_tokenizer
    prompt = chat.prompt_ids(tokenizer, [Message("user", "How do I bake bread?")])
    read = len(prompt) + len(chat.token_ids(tokenizer, "First,"))
    spent = record["preparation"]
    assert spent["prompt_tokens"] == 2 * read
    assert 2 <= spent["generated_tokens"] <= 4
    assert spent["seconds"] > 0


def test_a_methods_own_prompt_is_used_on_all_tasks_and_for_no_other_cell(
    tmp_path: Path, plugin: Any, run_small: Callable[..., Any]
) -> None:
    @dataclass
    class OwnPrompt(Method):
        name = "own-prompt"
        summary = ""

        def inference_system_prompt(self, system: str | None) -> str:
            return f"Be safe. {system}"

    plugin("method", "own-prompt", OwnPrompt)
    run_small(tmp_path / "run", methods=["own-prompt"], **{"training.max_examples": 16, "responses.limit": 2})
    cell = tmp_path / "run" / "gsm8k-mini" / "own-prompt" / "seed-42"
    systems = {
        task: {row["system"] for row in read_jsonl(cell / task / "responses.jsonl")}
        for task in (RAW, PREFILLED, UTILITY)
    }
    for task in (RAW, PREFILLED, UTILITY):
        (own,) = {row["system"] for row in read_jsonl(tmp_path / "run/seed" / task / "responses.jsonl")}
        assert systems[task] == {f"Be safe. {own}"}


def test_examples_that_are_too_long_are_counted(tmp_path: Path) -> None:
    run_context = context_at(tmp_path, **{"training.max_examples": 4})
    examples = run_context.examples(registry.load("train task", "gsm8k-mini"))
    lengths = sorted(len(chat.encode(run_context.seed_tokenizer, example).input_ids) for example in examples)
    _, counts = encode_all(run_context.seed_tokenizer, examples, lengths[-1])
    assert counts == {"truncated_examples": 0, "dropped_examples": 0}
    kept, counts = encode_all(run_context.seed_tokenizer, examples, lengths[-1] - 1)
    assert counts["truncated_examples"] >= 1
    assert len(kept) == 4
    kept, counts = encode_all(run_context.seed_tokenizer, examples, lengths[-1] - 1, "leave-out")
    assert counts == {"truncated_examples": 0, "dropped_examples": 4 - len(kept)}
    assert len(kept) == sum(length < lengths[-1] for length in lengths)
    with pytest.raises(HarnessError, match=r"raise training\.max_length"):
        encode_all(run_context.seed_tokenizer, examples, 8)


# --- judges ----------------------------------------------------------------------------------------


class Broken(Judge):
    name = "broken"
    summary = ""
    how = "raises"

    def judge(self, exchanges: Iterable[Exchange], context: JudgeContext) -> Iterator[Verdict]:
        for number, exchange in enumerate(exchanges):
            if number == 3 and self.how == "raises":
                raise RuntimeError("first cut the wood, a text that no log may hold")
            if number == 3 and self.how == "too few":
                return
            shown = "other" if number == 3 and self.how == "wrong id" else exchange.id
            yield Verdict(shown, self.name, self.version, False)


class Curt(Judge):
    """Yields ``given``: a verdict's fields, or something else."""

    name = "curt"
    summary = ""
    given: Any = None

    def judge(self, exchanges: Iterable[Exchange], context: JudgeContext) -> Iterator[Verdict]:
        for exchange in exchanges:
            given = self.given
            fields = {"harmful": False, **given} if isinstance(given, dict) else {}
            yield self.verdict(exchange, context, **fields) if fields else given


WRONG = [
    ({"label": "curt"}, "label 'curt' is none of refusal, compliance, partial, incoherent"),
    ({"label": "first cut the wood"}, "label: Input should be 'refusal', 'compliance', 'partial' or "),
    ({"harmful": "wood"}, "harmful must be True, False or None, not str"),
    ({"score": "wood"}, "score: Input should be a valid number"),
    (True, "yields bool and no Verdict"),
]


@pytest.mark.parametrize("heavy", [False, True])
@pytest.mark.parametrize(("given", "says"), WRONG)
def test_a_verdict_that_could_not_be_read_back_is_refused_as_it_comes(
    run_copy: Path,
    tmp_path: Path,
    plugin: Any,
    monkeypatch: pytest.MonkeyPatch,
    given: Any,
    says: str,
    heavy: bool,
) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    plugin("judge", "curt", Curt)
    monkeypatch.setattr(Curt, "given", given)
    monkeypatch.setattr(Curt, "heavy", heavy)
    run_context = context_at(run_copy)
    seed = plan.cells(run_context.config)[0]
    for _ in range(2):  # nothing was kept that could come back
        with pytest.raises(HarnessError) as error:
            judging.judge(JudgeSession(run_context), seed, RAW, "curt", "")
        assert str(error.value).startswith(f"judge 'curt': {says}")
        assert "wood" not in str(error.value)
    folder = run_copy / "seed" / RAW
    assert not (folder / "verdicts.curt.jsonl").exists()
    for path in folder.glob(".judge-curt.*"):
        assert path.read_text().count("\n") == 1  # whose journal it is


def test_one_judge_that_fails_leaves_the_cells_and_the_other_judges(
    tmp_path: Path, plugin: Any, monkeypatch: pytest.MonkeyPatch, command: Any, small: Any, values: Any
) -> None:
    plugin("judge", "curt", Curt)
    monkeypatch.setattr(Curt, "given", {"label": "curt"})
    run = tmp_path / "run"
    flags = ["--methods", "seed", *small(), "--judge", "keyword,curt", "--out", run]
    ended = command("compare", *flags)
    assert ended.code == 1
    assert ended.err.count("\n") == 1
    assert "judge 'curt': label 'curt' is none of" in ended.err
    status = {row["judge"]: row["status"] for row in values(run)}
    assert status["keyword"] == "done"
    assert "not judged by curt" in status["curt"]
    monkeypatch.setattr(Curt, "given", {"label": "partial"})
    assert command("compare", *flags).code == 0
    assert {row["status"] for row in values(run)} == {"done"}


@pytest.mark.slow
def test_a_stored_verdict_that_cannot_be_read_costs_its_judge_alone(
    run_copy: Path, command: Any, values: Any
) -> None:
    assert command("judge", run_copy, "--judge", "keyword").code == 0
    file = run_copy / "seed" / RAW / "verdicts.keyword.jsonl"
    before = file.read_text()
    file.write_text(before.replace('"label": "refusal"', '"label": "curt"'))
    made_run.restamp(file)
    assert command("leaderboard", run_copy).code == 0
    assert (run_copy / "report.html").is_file()
    status = {(row["method"], row["judge"]): row["status"] for row in values(run_copy)}
    assert status.pop(("seed", "keyword")).startswith("missing: rsr (")
    assert {*status.values()} == {"done"}
    file.unlink()
    assert command("judge", run_copy, "--judge", "keyword").code == 0
    assert file.read_text() == before
    assert {row["status"] for row in values(run_copy)} == {"done"}


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("raises", "it raised RuntimeError after 3 of 8 verdicts"),
        ("too few", "3 verdicts for 8 exchanges"),
        ("wrong id", "8 verdicts for 8 exchanges, or for others"),
    ],
)
def test_a_judge_that_breaks_its_contract_is_one_line_and_leaves_nothing(
    run_copy: Path, plugin: Any, monkeypatch: pytest.MonkeyPatch, how: str, says: str
) -> None:
    plugin("judge", "broken", Broken)
    monkeypatch.setattr(Broken, "how", how)
    run_context = context_at(run_copy)
    seed = plan.cells(run_context.config)[0]
    with pytest.raises(HarnessError, match=says) as error:
        judging.judge(JudgeSession(run_context), seed, RAW, "broken", "")
    assert str(error.value).startswith(f"judge 'broken' broke its contract on {RAW}: ")
    assert "wood" not in str(error.value)
    assert not judging.judge_stage(JudgeSession(run_context), seed, RAW, "broken").done()
    assert not (run_copy / "seed" / RAW / "verdicts.broken.jsonl").exists()


def test_what_does_not_fit_is_told(tmp_path: Path, command: Callable[..., Any], small: Any) -> None:
    cut = command("train", "vanilla", "--out", tmp_path / "cut", *small(**{"training.max_length": 60}))
    assert cut.code == 0, cut.err
    told = " ".join(cut.out.split())
    record = read_json(tmp_path / "cut" / VANILLA / "training.json")
    assert record["truncated_examples"] > 0
    assert f"of 32 examples {record['truncated_examples']} lost their answer's end and" in told
    assert "were left out at max_length 60 (training.too_long)" in told


def test_rows_that_are_not_to_be_trained_are_told_and_counted(
    tmp_path: Path, command: Callable[..., Any], small: Any
) -> None:
    rows, refusals = tmp_path / "rows.csv", tmp_path / "refusals.jsonl"
    lines = [f"Is {n} even?;#### {n % 2};{n % 4 > 0};x" for n in range(40)]
    rows.write_text("\n".join(["question;answer;label;topic", *lines]) + "\n")
    safety = [{"prompt": f"Blorp {n}?", "completion": "No.", "weight": n % 2} for n in range(8)]
    refusals.write_text("".join(json.dumps(row) + "\n" for row in safety))
    flags = ["--train-data", rows, "--safety-data", refusals, *small(**{"training.max_length": 200})]
    ended = command("train", "lisa", "--train-tasks", "gsm8k-mini", "--out", tmp_path / "run", *flags)
    assert ended.code == 0, ended.err
    told = " ".join(ended.out.split())
    record = read_json(tmp_path / "run" / "gsm8k-mini/lisa/seed-42/training.json")
    assert (record["examples"], record["untrained_rows"]) == (30, 10 + 4)
    assert "rows left out, marked not to be trained (weight, train, label): 10" in told
    assert "safety data: rows left out, marked not to be trained (weight, train, label): 4" in told
    assert "not used of the rows: 'topic'" in told
