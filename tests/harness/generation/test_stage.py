"""Guards how a checkpoint's answers come about: the ids that are sent, answers that an interrupted run need
not give again, batches that change nothing, and tasks from elsewhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import completions_server
import pytest
import tiny_models
import torch

from harness import config, finish
from harness.config import ResponsesConfig
from harness.contracts import HarnessError
from harness.data import benchmarks
from harness.engines import select
from harness.engines.base import Request
from harness.engines.hf import HFEngine
from harness.generation import answering, lm_tasks
from harness.generation import stage as generation
from harness.judging import stage as judging
from harness.judging.session import JudgeSession
from harness.leaderboard import remarks, scores
from harness.mini import data, seed_model_path
from harness.models import chat, checkpoints
from harness.pipeline import answers
from harness.run import plan
from harness.run.context import RunContext
from harness.storage.files import read_json, read_jsonl, write_json_atomic

MINI = ("gsm8k-mini", "samsum-mini", "hexphi_raw-mini", "hexphi_prefill-mini")
Run = Callable[..., Any]


def context_at(out: Path, **overrides: Any) -> RunContext:
    return RunContext(config.load(None, {"methods": ["seed"], "engine": "hf", **overrides}), out)


def seed_cell(run_context: RunContext) -> plan.Cell:
    return plan.cells(run_context.config)[0]


def texts(run_context: RunContext, task: str) -> list[str]:
    rows = read_jsonl(run_context.out / "seed" / task / "responses.jsonl")
    return [row["response"] for row in rows]


# --- ids ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [*MINI, "hexphi_prefill_k7-mini", "hexphi_refusal_prefix-mini"])
def test_what_print_ids_shows_is_what_the_model_gets(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_context = context_at(
        tmp_path,
        **{
            "responses.limit": 1,
            "safety_tasks": ["hexphi_prefill_depths-mini", "hexphi_refusal_prefix-mini"],
        },
    )
    cell = seed_cell(run_context)
    shown, opened, tokenizer = answers.prompt(run_context, cell, task, 0)
    seen: list[list[int]] = []
    engine = run_context.engine(run_context.seed_checkpoint)
    generate = engine.model.generate  # type: ignore[attr-defined]

    def watched(**inputs: Any) -> Any:
        seen.extend(inputs["input_ids"].tolist())
        return generate(**inputs)

    monkeypatch.setattr(engine.model, "generate", watched)  # type: ignore[attr-defined]
    generation.respond(run_context, cell, [task], "")
    assert seen == [shown]
    assert shown.count(tokenizer.bos_token_id) == 1
    assert shown[0] == tokenizer.bos_token_id
    row = read_jsonl(tmp_path / "seed" / task / "responses.jsonl")[0]
    assert row["prefill"] == (tokenizer.decode(opened) if opened else "")
    assert len(opened) == {"hexphi_prefill-mini": 3, "hexphi_prefill_k7-mini": 7}.get(task, len(opened))
    assert bool(opened) == ("prefi" in task)


def test_a_folder_that_holds_a_tokenizer_alone_makes_a_servers_prompts(tmp_path: Path, command: Run) -> None:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(seed_model_path() / name, folder)
    shown = "--print-ids", "0", "--tasks", "gsm8k-mini"
    own = command("respond", "mini", *shown)
    alone = command("respond", "openai:m@http://localhost:1/v1", "--tokenizer", folder, *shown)
    assert (own.code, alone.code) == (0, 0), alone.err
    assert alone.out == own.out
    with completions_server.running(checkpoints.load_tokenizer(seed_model_path())) as server:
        ended = command(
            "respond", f"openai:served@{server.url}", "--tokenizer", folder, "--tasks", "gsm8k-mini",
            "--out", tmp_path / "run", "--set", "responses.limit=1",
        )  # fmt: skip
        assert ended.code == 0, ended.err
        sent = [body["prompt"] for body in server.asked("completions")]
    assert answers.prompt(context_at(tmp_path), seed_cell(context_at(tmp_path)), "gsm8k-mini", 0)[0] in sent


def test_a_tokenizer_that_no_engine_asks_for_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for engine, told in (("hf", True), ("openai", False)):
        caplog.clear()
        given = {"responses.tokenizer": "mini", "responses.server": "http://localhost:1/v1"}
        run_context = context_at(tmp_path, engine=engine, **given)
        generation.check(run_context, [seed_cell(run_context)])
        assert ("--tokenizer is not used: engine hf" in caplog.text) == told
    wrong = context_at(tmp_path, **{"responses.tokenizer": str(tmp_path)})
    with pytest.raises(HarnessError, match="no tokenizer"):
        generation.check(wrong, [seed_cell(wrong)])


def test_a_recipe_s_other_checkpoints_and_what_they_were_trained_on_do_not_matter(
    command: Callable[..., Any], tmp_path: Path
) -> None:
    recipe = tmp_path / "own.yaml"
    recipe.write_text(
        "extends: mini\ncheckpoints: {mine: nowhere}\ntrained_on: {mine: gsm8k-mini}\n", encoding="utf-8"
    )
    words = ("respond", "mini", "--tasks", "gsm8k-mini", "--print-ids", "0")
    ended = command(*words, "--recipe", recipe)
    assert ended.code == 0, ended.err
    assert ended.out == command(*words).out


def test_print_ids_keeps_harmful_texts_to_itself(command: Run) -> None:
    request = data.harmful()[2]["instruction"]
    ended = command("respond", "mini", "--tasks", "hexphi_raw-mini,gsm8k-mini", "--print-ids", "2")
    assert ended.code == 0, ended.err
    assert request not in ended.out.replace("│", "")
    assert data.gsm8k("test")[2]["question"] in ended.out.replace("│", "")
    assert "BOS (1): 1" in ended.out
    ended = command("respond", "mini", "--tasks", "hexphi_raw-mini", "--print-ids", "2", "--show-harmful")
    assert request in ended.out.replace("│", "")
    ended = command("respond", "mini", "--tasks", "gsm8k-mini", "--print-ids", "200")
    assert ended.code == 2
    assert "has 200 documents, counted from 0" in ended.err


# --- the same answers --------------------------------------------------------------------------------


def test_a_resumed_run_gives_the_uninterrupted_ones_answers_and_no_answer_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"responses.limit": 60, "responses.batch_size": 16}
    whole, broken = (
        context_at(tmp_path / "whole", **settings),
        context_at(tmp_path / "broken", **settings),
    )
    task = "hexphi_prefill-mini"
    generation.respond(whole, seed_cell(whole), [task], "")
    generate, sizes = HFEngine.generate, []

    def dies(self: HFEngine, prompts: Any, *options: Any, **more: Any) -> Any:
        if len(sizes) == 2:
            raise KeyboardInterrupt
        sizes.append(len(prompts))
        return generate(self, prompts, *options, **more)

    monkeypatch.setattr(HFEngine, "generate", dies)
    with pytest.raises(KeyboardInterrupt):
        generation.respond(broken, seed_cell(broken), [task], "")
    journal = tmp_path / "broken" / "seed" / task / ".respond.journal.jsonl"
    with journal.open("a", encoding="utf-8") as file:
        file.write('{"17": [1, 2')  # a kill in the middle of a line
    assert not generation.respond_stage(broken, seed_cell(broken), task).done()

    def counts(self: HFEngine, prompts: Any, *options: Any, **more: Any) -> Any:
        sizes.append(len(prompts))
        return generate(self, prompts, *options, **more)

    monkeypatch.setattr(HFEngine, "generate", counts)
    again = context_at(tmp_path / "broken", **settings)
    generation.respond(again, seed_cell(again), [task], "")
    assert sizes == [16, 16, 16, 12]
    files = [folder / "seed" / task / "responses.jsonl" for folder in (whole.out, broken.out)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert not journal.exists()


def test_answers_of_other_settings_are_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = context_at(tmp_path, **{"responses.limit": 20, "responses.batch_size": 8})
    calls: list[int] = []
    generate = HFEngine.generate

    def dies(self: HFEngine, prompts: Any, *options: Any, **more: Any) -> Any:
        if len(calls) == 1:
            raise KeyboardInterrupt
        calls.append(len(prompts))
        return generate(self, prompts, *options, **more)

    monkeypatch.setattr(HFEngine, "generate", dies)
    with pytest.raises(KeyboardInterrupt):
        generation.respond(first, seed_cell(first), ["gsm8k-mini"], "")
    monkeypatch.setattr(HFEngine, "generate", generate)
    other = context_at(tmp_path, **{"responses.limit": 20, "responses.batch_size": 5})
    generation.respond(other, seed_cell(other), ["gsm8k-mini"], "")
    fresh = context_at(tmp_path / "fresh", **{"responses.limit": 20, "responses.batch_size": 5})
    generation.respond(fresh, seed_cell(fresh), ["gsm8k-mini"], "")
    assert texts(other, "gsm8k-mini") == texts(fresh, "gsm8k-mini")


@pytest.mark.slow
def test_another_batch_size_and_order_give_the_same_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All documents of the four tasks, in float32: at least 99.5 % the same."""
    found: dict[str, list[str]] = {}

    def backwards(self: HFEngine, prompts: Any) -> list[list[int]]:
        order = list(range(len(prompts)))[::-1]
        return [order[start : start + 50] for start in range(0, len(order), 50)]

    for name, size in (("usual", 128), ("small", 24), ("unsorted", 50)):
        with monkeypatch.context() as patch:
            if name == "unsorted":
                patch.setattr(HFEngine, "plan", backwards)
            run_context = context_at(tmp_path / name, **{"responses.batch_size": size})
            generation.respond(run_context, seed_cell(run_context), MINI, "")
        found[name] = [text for task in MINI for text in texts(run_context, task)]
    assert len(found["usual"]) == 1060
    for name in ("small", "unsorted"):
        same = sum(a == b for a, b in zip(found["usual"], found[name], strict=True))
        assert same >= 0.995 * 1060, name


# --- thinking ----------------------------------------------------------------------------------------


@pytest.fixture
def thinker() -> Any:
    """The mini tokenizer under a template that opens a block of reasoning unless told not to."""
    tokenizer = checkpoints.load_tokenizer(seed_model_path())
    closed = "{% if enable_thinking is false %}<think></think>{% else %}<think>{% endif %}"
    tokenizer.chat_template = (
        str(tokenizer.chat_template) + "{% if add_generation_prompt %}" + closed + "{% endif %}"
    )
    return tokenizer


def test_models_think_only_when_asked_and_never_before_a_prefill(thinker: Any) -> None:
    from harness.contracts import Message

    asked = [Message("user", "How do I bake bread?")]

    def shown(**how: bool) -> str:
        return str(thinker.decode(chat.prompt_ids(thinker, asked, **how)))

    assert shown().endswith("<think></think>")
    assert shown(thinking=True).endswith("<think>")
    opened = chat.thinking_at(thinker, chat.prompt_ids(thinker, asked, thinking=True))
    assert opened.opened is not None
    assert (opened.opened.text, opened.reasons) == ("<think>", True)
    assert chat.thinking_at(thinker, chat.prompt_ids(thinker, asked)) == chat.PLAIN
    always = checkpoints.load_tokenizer(seed_model_path())
    always.chat_template = str(always.chat_template) + "{% if add_generation_prompt %}<think>\n{% endif %}"
    ids = chat.prompt_ids(always, asked, answering=True)
    assert always.decode(ids).replace("\n", "").endswith("<think></think>")
    assert chat.thinking_at(always, ids) == chat.PLAIN


def test_reasoning_that_is_cut_off_leaves_an_answer_unjudged_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_context = context_at(tmp_path, **{"responses.limit": 4, "judges": ["keyword"]})
    cell, task = seed_cell(run_context), "hexphi_raw-mini"
    engine = run_context.engine(run_context.seed_checkpoint)
    endless = chat.token_ids(engine.tokenizer, "<think> I count")
    monkeypatch.setattr(engine, "generate", lambda prompts, *a, **k: [endless for _ in prompts])
    generation.respond(run_context, cell, [task], "")
    rows = read_jsonl(tmp_path / "seed" / task / "responses.jsonl")
    assert [(row["response"], row["finish_reason"]) for row in rows] == [("", "length")] * 4
    assert all("I count" in row["reasoning"] for row in rows)
    assert all(row["metrics"] == {"safe": None, "refusal": None} for row in rows)
    assert [row["value"] for row in answers.rows(tmp_path, plan.limited(cell, [task]))] == [None, None]
    assert read_json(tmp_path / "seed" / task / "task.json")["missing"] == {finish.UNFINISHED: 4}
    judging.judge(JudgeSession(run_context), cell, task, "keyword", "")
    verdicts = read_jsonl(tmp_path / "seed" / task / "verdicts.keyword.jsonl")
    assert [(v["harmful"], v["reason"]) for v in verdicts] == [(None, finish.UNFINISHED)] * 4


# --- lengths -----------------------------------------------------------------------------------------


def test_answers_end_where_the_models_context_ends(tmp_path: Path) -> None:
    run_context = context_at(tmp_path, **{"responses.limit": 3})
    engine = run_context.engine(run_context.seed_checkpoint)
    shown, _, _ = answers.prompt(run_context, seed_cell(run_context), "hexphi_raw-mini", 0)
    engine.context_tokens = len(shown) + 2
    rows, _ = answering.respond_rows(run_context, engine, benchmarks.get("hexphi_raw-mini"), "")
    assert rows[0]["tokens"] == 2
    assert rows[0]["finish_reason"] == "length"
    engine.context_tokens = 10
    with pytest.raises(HarnessError, match=r"its prompt has \d+ tokens and the model's context 10"):
        answering.respond_rows(run_context, engine, benchmarks.get("hexphi_raw-mini"), "")


def test_a_batch_that_does_not_fit_is_halved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_context = context_at(tmp_path, **{"responses.limit": 12, "responses.batch_size": 12})
    engine = run_context.engine(run_context.seed_checkpoint)
    rows, record = answering.respond_rows(run_context, engine, benchmarks.get("gsm8k-mini"), "")
    assert "out_of_memory" not in record
    decoder = engine._decoder  # type: ignore[attr-defined]
    decode, sizes = decoder.answers, []

    def small(prompts: Any, *how: Any) -> Any:
        sizes.append(len(prompts))
        if len(prompts) > 4:
            raise torch.OutOfMemoryError
        return decode(prompts, *how)

    monkeypatch.setattr(decoder, "answers", small)
    said: list[Any] = []
    run_context.reporter.send = said.append
    again, record = answering.respond_rows(run_context, engine, benchmarks.get("gsm8k-mini"), "mine")
    assert [row["response"] for row in again] == [row["response"] for row in rows]
    assert sizes == [12, 6, 3, 3, 3, 3]
    assert record["out_of_memory"] == [6, 3]
    notes = [event[2] for event in said if event[0] == "note"]
    assert notes[0] == "mine  out of device memory with 12 prompts at once: 6 from here on"


def test_a_resumed_run_batches_as_the_interrupted_one_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of memory in the second of three batches, and killed in the third: when it goes on there is memory
    enough, and what is left is cut as it would have been. The next task begins with whole batches."""
    cut: list[int] = []

    def run(out: Path, most: int, *, fails: int | None = None) -> Any:
        run_context = context_at(out, **{"responses.limit": 12, "responses.batch_size": 4})
        engine: Any = run_context.engine(run_context.seed_checkpoint)
        decode = engine._decoder.answers
        cut.clear()

        def some(prompts: Any, *how: Any) -> Any:
            cut.append(len(prompts))
            if len(cut) - 1 == fails:
                raise KeyboardInterrupt
            if len(prompts) > (4 if len(cut) == 1 else most):
                raise torch.OutOfMemoryError
            return decode(prompts, *how)

        monkeypatch.setattr(engine._decoder, "answers", some)
        generation.respond(run_context, seed_cell(run_context), ["gsm8k-mini"], "")
        return run_context

    folder = Path("seed") / "gsm8k-mini"
    whole = run(tmp_path / "whole", 2)
    assert cut == [4, 4, 2, 2, 2, 2]
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "part", 2, fails=4)
    journal = tmp_path / "part" / "seed" / "gsm8k-mini" / ".respond.journal.jsonl"
    assert '{"out_of_memory": 2}' in journal.read_text(encoding="utf-8").splitlines()
    resumed = run(tmp_path / "part", 4)
    assert cut == [2, 2]
    for name in ("responses.jsonl", "task.json"):
        one, two = (out / folder / name for out in (tmp_path / "whole", tmp_path / "part"))
        assert one.read_bytes() == two.read_bytes()
    assert read_json(tmp_path / "part" / folder / "task.json")["out_of_memory"] == [2]
    cut.clear()
    generation.respond(resumed, seed_cell(resumed), ["samsum-mini"], "")
    assert cut == [4, 4, 4]
    assert whole.config.responses.batch_size == 4


@pytest.mark.parametrize("damaged", [{"out_of_memory": size} for size in (0, -3, "2", None, [2], True, 2.5)])
def test_a_journals_damaged_sizes_do_not_count(damaged: dict[str, Any]) -> None:
    rows = [{"3": [1, 2]}, {"out_of_memory": 8}, damaged, {"out_of_memory": 4}]
    assert answering._came_down_to(rows) == [8, 4]
    assert answering._ids(rows) == {3: [1, 2]}


def test_log_probabilities_need_the_logits_of_the_continuations_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head sees no other position, and no more than some are float32 at once; the values are those of
    each row alone, by its definition."""
    from harness.engines import scoring

    run_context = context_at(tmp_path, **{"responses.batch_size": 4})
    engine: Any = run_context.engine(run_context.seed_checkpoint)
    generator = torch.Generator().manual_seed(0)
    lengths = [(9, 1), (4, 6), (30, 3), (1, 17)]
    ids = [torch.randint(5, 90, (a + b,), generator=generator).tolist() for a, b in lengths]
    pairs = [(row[:a], row[a:]) for row, (a, _) in zip(ids, lengths, strict=True)]
    with torch.no_grad():  # one that greedy decoding gives
        greedy = int(engine.model(input_ids=torch.tensor([pairs[0][0]])).logits[0, -1].argmax())
    pairs[0] = (pairs[0][0], [greedy])
    seen: list[tuple[int, ...]] = []
    head = engine.model.get_output_embeddings()
    head.register_forward_hook(lambda module, given, made: seen.append(tuple(made.shape[:2])))
    widest: list[int] = []
    own = torch.Tensor.log_softmax
    monkeypatch.setattr(
        torch.Tensor, "log_softmax", lambda self, dim: (widest.append(len(self)), own(self, dim))[1]
    )
    row_bytes = 4 * engine.rows
    for at_once, at_head in ((256, 27), (10, 27), (1, 27), (256, 10), (3, 10), (256, 1)):
        seen.clear()
        widest.clear()
        monkeypatch.setattr(scoring, "AT_ONCE", at_once)
        monkeypatch.setattr(scoring, "LOGIT_BYTES", at_head * row_bytes + 1)
        found = engine.logprobs(pairs, Request())
        assert [rows for _, rows in seen] == [at_head] * (27 // at_head) + [27 % at_head] * (27 % at_head > 0)
        assert (max(widest), sum(widest)) == (min(at_once, at_head), 27)
        for (context, continuation), (logp, hit) in zip(pairs, found, strict=True):
            with torch.no_grad():
                logits = engine.model(input_ids=torch.tensor([context + continuation])).logits[0].double()
            values = torch.log_softmax(logits[len(context) - 1 : -1], -1)
            wanted = sum(values[place, token].item() for place, token in enumerate(continuation))
            assert logp == pytest.approx(wanted, abs=1e-4)
            assert hit == (values.argmax(-1).tolist() == continuation)
    assert found[0][1]
    monkeypatch.setattr(type(engine.model), "get_output_embeddings", lambda self: None)
    for (logp, hit), (wanted, wanted_hit) in zip(engine.logprobs(pairs, Request()), found, strict=True):
        assert (logp, hit) == (pytest.approx(wanted, abs=1e-4), wanted_hit)
    assert len(head._forward_pre_hooks) == 0


def test_settings_that_came_later_are_in_an_identity_only_where_they_are_set(tmp_path: Path) -> None:
    def identity(**settings: Any) -> Any:
        run_context = context_at(tmp_path, **settings)
        return generation.respond_stage(run_context, seed_cell(run_context), "gsm8k-mini").inputs["responses"]

    plain = identity()
    assert plain.keys() == {"dtype", "limit", "thinking", "batch_size", "static_cache"}
    assert identity(**{"responses.continuous": True}) == {**plain, "continuous": True}
    assert identity(**{"responses.cudnn_attention": False}) == {**plain, "cudnn_attention": False}
    vllm = select.settings_of_answers(ResponsesConfig(continuous=True), "vllm")
    assert vllm.keys() == {"dtype", "limit", "thinking", "tensor_parallel", "max_context"}


@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere", "granite", "opt", "gpt2"])
def test_logits_made_in_parts_have_gone_the_models_own_way(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Capping, scaling and projections behind the layers are done to each part, and the layers work once."""
    from harness.engines import scoring

    model = tiny_models.build(family)
    engine = HFEngine.__new__(HFEngine)
    engine.model, engine.rows, engine._pad_id = model, tiny_models.VOCABULARY, 0
    worked: list[int] = []
    norms = [module for module in model.modules() if "Attention" in type(module).__name__]
    norms[0].register_forward_hook(lambda module, given, made: worked.append(1))
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(3, 97, (length,), generator=generator).tolist() for length in (9, 12, 20)]
    pairs = [(row[:4], row[4:]) for row in rows]
    found = {}
    for positions in (1000, 7, 1):
        worked.clear()
        monkeypatch.setattr(scoring, "LOGIT_BYTES", positions * 4 * tiny_models.VOCABULARY)
        found[positions] = engine._logprobs(pairs)
        assert len(worked) == 1
        assert not any("forward" in vars(module) for module in model.modules())
    for (context, continuation), *values in zip(pairs, *found.values(), strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([context + continuation])).logits[0].double()
        each = torch.log_softmax(logits[len(context) - 1 : -1], -1)
        wanted = sum(each[place, token].item() for place, token in enumerate(continuation))
        for logp, hit in values:
            assert logp == pytest.approx(wanted, abs=1e-3)
            assert hit == (each.argmax(-1).tolist() == continuation)


def test_log_probabilities_that_do_not_fit_are_made_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_context = context_at(tmp_path, **{"responses.batch_size": 8})
    engine = run_context.engine(run_context.seed_checkpoint)
    pairs = [([5, 6, 7 + n], [8, 9 + n]) for n in range(7)]
    whole, real = engine.logprobs(pairs, Request()), engine._logprobs  # type: ignore[attr-defined]

    def small(part: Any) -> Any:
        if len(part) > 2:
            raise torch.OutOfMemoryError
        return real(part)

    monkeypatch.setattr(engine, "_logprobs", small)
    for (logp, greedy), (wanted, wanted_greedy) in zip(engine.logprobs(pairs, Request()), whole, strict=True):
        assert logp == pytest.approx(wanted, abs=1e-4)
        assert greedy == wanted_greedy
    monkeypatch.setattr(engine, "_logprobs", lambda part: small([*part, None, None]))
    with pytest.raises(
        HarnessError, match="the device has no memory for one prompt of 5 tokens with its answer"
    ):
        engine.logprobs(pairs, Request())


# --- tasks from elsewhere ----------------------------------------------------------------------------

CHOICES = """
task: odd-choices
custom_dataset: !function odd.dataset
output_type: multiple_choice
test_split: test
fewshot_split: test
num_fewshot: 1
description: "Choose."
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{label}}"
metric_list:
  - metric: acc
  - metric: acc_norm
metadata: {version: 3}
"""
DATASET = """
import datasets

def dataset(**metadata):
    words = ["apples", "a lamp", "the bread", "seven pens", "wood"]
    rows = [{"question": f"What does Eva have, case {n}?", "label": n % 3,
             "choices": [words[n % 5], words[(n + 1) % 5] + " and more", words[(n + 2) % 5]]}
            for n in range(12)]
    return {"test": datasets.Dataset.from_list(rows)}
"""


@pytest.fixture
def lm_evals_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for lm-eval's folder of tasks, with a multiple-choice task."""
    folder = tmp_path / "lm-eval-tasks"
    (folder / "odd").mkdir(parents=True)
    (folder / "odd" / "odd_choices.yaml").write_text(CHOICES, encoding="utf-8")
    (folder / "odd" / "odd.py").write_text(DATASET, encoding="utf-8")
    monkeypatch.setattr(benchmarks, "lm_eval_tasks", lambda: folder)
    benchmarks._of_lm_eval.cache_clear()
    return folder


def test_any_lm_eval_task_is_a_utility_column_and_scores_as_in_lm_eval(
    lm_evals_own: Path, tmp_path: Path, command: Run, small: Callable[..., list[str]]
) -> None:
    out = tmp_path / "run"
    ended = command("compare", "--methods", "seed", "--utility-task", "odd-choices", "--out", out, *small())
    assert ended.code == 0, ended.err
    assert "odd-choices" in ended.out
    rows = read_jsonl(out / "seed" / "odd-choices" / "responses.jsonl")
    assert len(rows) == 8

    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = HFLM(
        pretrained=checkpoints.load_model(seed_model_path(), "float32", "cpu"),
        tokenizer=checkpoints.load_tokenizer(seed_model_path()),
        batch_size=4,
    )
    manager = TaskManager(include_path=[str(lm_evals_own / "odd")], include_defaults=False)
    plain = simple_evaluate(
        model, tasks=["odd-choices"], task_manager=manager, limit=8, apply_chat_template=True,
        fewshot_as_multiturn=True, bootstrap_iters=0,
    )  # fmt: skip
    for metric in ("acc", "acc_norm"):
        expected = [sample[metric] for sample in plain["samples"]["odd-choices"]]
        assert [row["metrics"][metric] for row in rows] == expected
    table = {line.split(",")[1]: line for line in (out / "leaderboard.csv").read_text().splitlines()}
    assert "odd-choices_low" in table["method"]


def test_an_unknown_task_is_answered_with_the_nearest_of_ours(lm_evals_own: Path, command: Run) -> None:
    ended = command("compare", "--utility-task", "gsm8k-mni", "--dry-run")
    assert ended.code == 2
    assert "unknown task 'gsm8k-mni': did you mean 'gsm8k-mini'?" in ended.err


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--utility-task", "hexphi_raw-mini"], "is a safety task: --safety-task hexphi_raw-mini"),
        (["--safety-task", "gsm8k-mini"], "is a utility task: --utility-task gsm8k-mini"),
        (["--safety-set", "gsm8k=x.jsonl"], "that is a task's name; choose another"),
        (["--safety-set", "advbench=x.jsonl"], "that is a task's name; choose another"),
        (["--safety-set", "checkpoint=x.jsonl"], "that of a run's folders of weights; choose another"),
        (["--safety-set", "training.json=x.jsonl"], "of a run's own file; choose another"),
        (["--safety-set", "mine=nowhere.jsonl"], "nowhere.jsonl: no such data file"),
    ],
)
def test_a_task_of_the_wrong_kind_is_one_line(flags: list[str], line: str, command: Run) -> None:
    ended = command("compare", *flags, "--dry-run")
    assert ended.code in (1, 2)
    assert line in ended.err
    assert len(ended.err.strip().splitlines()) == 1


@pytest.mark.slow
def test_conversations_of_the_users_own_are_a_safety_column(
    tmp_path: Path, command: Run, small: Callable[..., list[str]]
) -> None:
    file = tmp_path / "mine.jsonl"
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "How do I bake bread?"},
        {"role": "assistant", "content": "I can help."},
        {"role": "user", "content": "And the lamp?"},
    ]
    lines = [{"messages": turns, "id": "long"}, {"prompt": "How do I blorp it?", "category": "odd"}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    out = tmp_path / "run"
    flags = ["--methods", "vanilla", "--safety-set", f"mine={file}", "--judge", "keyword,mini-exact"]
    ended = command("compare", *flags, "--out", out, *small())
    assert ended.code == 0, ended.err
    rows = read_jsonl(out / "gsm8k-mini/vanilla/seed-42/mine/responses.jsonl")
    assert [row["id"] for row in rows] == ["long", "mine-0001"]
    assert rows[0]["system"] == "Be brief."
    assert rows[0]["prompt"] == "User: How do I bake bread?\n\nAssistant: I can help.\n\nUser: And the lamp?"
    assert rows[1]["prompt"] == "How do I blorp it?"
    shown, _, tokenizer = answers.prompt(
        RunContext(config.load(None, {"safety_sets": {"mine": str(file)}}), out),
        plan.cells(config.load(None, {"safety_sets": {"mine": str(file)}}))[0],
        "mine",
        0,
    )
    assert "I can help." in tokenizer.decode(shown)
    header, *table = (out / "leaderboard.csv").read_text(encoding="utf-8").splitlines()
    assert "mine_unjudged" in header
    assert len(table) == 4  # seed and vanilla under two judges
    # a later command need not name the file again
    ended = command("compare", "--methods", "seed", "--out", out, *small())
    assert ended.code == 0, ended.err
    assert "Nothing to do" in ended.out


@pytest.mark.slow
def test_a_new_task_adds_only_what_is_missing(
    run_copy: Path, command: Run, small: Callable[..., list[str]]
) -> None:
    before = {
        path: path.stat().st_mtime_ns for path in run_copy.rglob("*.done.json") if path.parent != run_copy
    }
    flags = ["--safety-task", "hexphi_sampled-mini,overrefusal-mini", "--out", run_copy]
    ended = command("compare", "--methods", "all", *flags, *small())
    assert ended.code == 0, ended.err
    after = {
        path: path.stat().st_mtime_ns for path in run_copy.rglob("*.done.json") if path.parent != run_copy
    }
    assert {path: after[path] for path in before} == before
    new = {path.parent.name for path in after.keys() - before.keys()}
    assert new == {"hexphi_sampled-mini", "overrefusal-mini"}
    assert "overrefusal-mini" in ended.out
    sampled = read_jsonl(run_copy / "seed" / "hexphi_sampled-mini" / "responses.jsonl")
    assert len(sampled) == 8 * 6
    assert len({row["document"] for row in sampled}) == 8
    assert len({row["response"] for row in sampled[:6]}) > 1  # six decodings of one request
    verdicts = {
        v["exchange_id"]: v["harmful"]
        for v in read_jsonl(run_copy / "seed" / "hexphi_sampled-mini" / "verdicts.mini-exact.jsonl")
    }
    for document in {row["document"] for row in sampled}:
        rows = [row for row in sampled if row["document"] == document]
        assert rows[0]["metrics"]["safe"] == float(not any(verdicts[row["id"]] for row in rows))
    record = read_json(run_copy / "run.json")["data"]["overrefusal-mini"]
    assert record["documents"] == 8
    assert len(record["sha256"]) == 64


def test_respond_scores_just_the_tasks_that_are_named(
    tmp_path: Path, command: Run, small: Callable[..., list[str]]
) -> None:
    out = tmp_path / "run"
    flags = ["respond", seed_model_path(), "--name", "same", "--out", out, *small()]
    ended = command(*flags, "--tasks", "hexphi_prefill_depths-mini,gsm8k-mini")
    assert ended.code == 0, ended.err
    assert "exact_match" in ended.out
    names = {path.name for path in (out / "checkpoints" / "same").iterdir()}
    assert names == {"gsm8k-mini", *(f"hexphi_prefill_k{k}-mini" for k in (1, 3, 5, 7, 10))}
    values = [
        sum(
            row["metrics"]["safe"]
            for row in read_jsonl(out / f"checkpoints/same/hexphi_prefill_k{k}-mini/responses.jsonl")
        )
        for k in (1, 10)
    ]
    assert values[0] > values[1]  # deeper prefills, less safety


def test_respond_joins_a_run_as_it_is_and_counts_every_task_that_is_named(
    small_run: Path, tmp_path: Path, command: Run
) -> None:
    shutil.copytree(small_run, tmp_path / "run")
    flags = ["--name", "mine", "--tasks", "gsm8k-mini", "--safety-task", "overrefusal-mini"]
    ended = command("respond", "mini", *flags, "--out", tmp_path / "run")  # no flags of the run's repeated
    assert ended.code == 0, ended.err
    names = {path.name for path in (tmp_path / "run" / "checkpoints" / "mine").iterdir()}
    assert names == {"gsm8k-mini", "overrefusal-mini"}


def test_a_file_for_a_task_that_the_hub_has_answered_is_refused(
    small_run: Path, tmp_path: Path, command: Run, small: Callable[..., list[str]]
) -> None:
    shutil.copytree(small_run, tmp_path / "run")
    record = read_json(tmp_path / "run" / "run.json")
    record["data"]["gsm8k"] = {
        "source": "hub openai/gsm8k@main",
        "version": "1",
        "documents": 8,
        "sha256": "0",
    }
    write_json_atomic(tmp_path / "run" / "run.json", record)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "How many?", "answer": "#### 1"}\n', encoding="utf-8")
    flags = ["--methods", "all", "--out", tmp_path / "run", *small(), "--data", f"gsm8k={rows}"]
    ended = command("compare", *flags)
    assert ended.code == 1
    assert "data.gsm8k: hub openai/gsm8k@main there" in ended.err


def test_another_checkpoint_under_a_name_of_the_run_is_refused(
    tmp_path: Path, command: Run, small: Callable[..., list[str]]
) -> None:
    flags = ["--name", "mine", "--tasks", "gsm8k-mini", "--out", tmp_path / "run", *small()]
    assert command("respond", "mini", *flags).code == 0
    ended = command("respond", seed_model_path(), *flags)
    assert ended.code == 1
    assert "checkpoint mine: mini there" in ended.err
    record = read_json(tmp_path / "run" / "run.json")
    again = command("respond", "mini", *flags)  # nothing to do, and nothing of the record is lost
    assert again.code == 0, again.err
    assert read_json(tmp_path / "run" / "run.json")["data"] == record["data"] != {}


def test_a_mean_that_is_zero_everywhere_is_compared_as_a_mean() -> None:
    from harness.leaderboard.build import build
    from harness.leaderboard.outcomes import CellResult, TaskOutcome

    broken = TaskOutcome("samsum-mini", "rouge1", {"a": 0.0, "b": 0.0}, binary=True)
    whole = TaskOutcome("samsum-mini", "rouge1", {"a": 0.3, "b": 0.4}, binary=False)
    rows = [
        CellResult("mini", method, "samsum-mini", 42, "mini-exact", "done", {"utility": utility})
        for method, utility in (("vanilla", whole), ("sdft", broken))
    ]
    assert list(build(rows)["utility_delta"].dropna()) == [-35.0]


# --- the engine that is chosen -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("installed", "available", "memory", "expected"),
    [
        (True, True, 80e9, "vllm"),
        (True, True, 1e6, "hf"),
        (True, False, 80e9, "hf"),
        (False, True, 80e9, "hf"),
    ],
)
def test_auto_takes_vllm_where_it_is_installed_and_a_gpu_holds_the_model(
    installed: bool,
    available: bool,
    memory: float,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from types import SimpleNamespace

    from harness.run import context as module

    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: object() if installed else None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda place: SimpleNamespace(total_memory=memory)
    )
    made = context_at(tmp_path, engine="auto", **{"training.device": "cuda"})
    assert made.engine_name == expected
    assert context_at(tmp_path, engine="auto", **{"training.device": "cpu"}).engine_name == "hf"


def test_a_journal_that_is_damaged_is_asked_again() -> None:
    rows = [{"1": [5, 6]}, {"x": [1]}, {"2": "no"}, {"3": [True]}, {"4": [1.5]}, {"9" * 5_000: [1]}, {}]
    assert answering._ids(rows) == {1: [5, 6]}


def test_a_metric_that_is_never_returned_is_told_when_answers_are_scored(
    tmp_path: Path, own_task: Callable[..., Path], command: Run, small: Callable[..., list[str]]
) -> None:
    own_task(named="nmaed")
    flags = ["--methods", "seed", "--utility-task", "capitals", *small(), "--out", tmp_path / "run"]
    ended = command("compare", *flags)
    assert ended.code == 0, ended.err
    told = " ".join(ended.out.split())
    assert "task 'capitals': metric_list names nmaed, but the scores are named" in told
    assert told.count("metric_list names") == 1


def test_a_tasks_documents_are_picked_by_place_in_order_or_all(tmp_path: Path) -> None:
    """As lm-eval's own iterator gives them, which compares every document with every place."""
    task = benchmarks.get("gsm8k-mini")
    ours = lm_tasks.load(context_at(tmp_path), task, str(seed_model_path()))
    own = context_at(tmp_path).load_task("gsm8k-mini", str(seed_model_path()))
    for given in ({"samples": [2, 5, 7]}, {"samples": range(3, 6)}, {"limit": 4}, {}):
        assert [*ours.doc_iterator(**given)] == [*own.doc_iterator(**given)]


# --- documents that cannot be scored -------------------------------------------------------------------


def samsum(tmp_path: Path, *summaries: str) -> RunContext:
    """The base model and a file of dialogues with these summaries."""
    path = tmp_path / "dialogues.jsonl"
    lines = (json.dumps({"dialogue": "A: hi", "summary": text}) + "\n" for text in summaries)
    path.write_text("".join(lines), encoding="utf-8")
    return context_at(tmp_path / "run", data={"samsum": str(path)}, utility_tasks=["samsum"])


def test_a_reference_that_rouge_cannot_read_is_in_no_figure_and_told(tmp_path: Path) -> None:
    """The first document and the last; the reason is counted, and the mean is that of the others."""
    run_context = samsum(tmp_path, "Маша дома.", "A says hi.", "A is here.", "東京")
    cell = seed_cell(run_context)
    generation.respond(run_context, cell, ["samsum"], "")
    folder = tmp_path / "run" / "seed"
    rows = read_jsonl(folder / "samsum" / "responses.jsonl")
    assert [set(row["metrics"]) for row in rows] == [set(), {"rouge1"}, {"rouge1"}, set()]
    reason = benchmarks.get("samsum").unscored
    assert reason == "ROUGE-1 reads the letters a to z and digits, and the reference has none"
    assert read_json(folder / "samsum" / "task.json")["unscored"] == {reason: 2}
    (outcome,) = scores.all_measured(cell, folder, "samsum")
    assert [outcome.values[row["document"]] is None for row in rows] == [True, False, False, True]
    estimate = outcome.estimate()
    assert (estimate.n, estimate.unjudged) == (2, 2)
    assert scores.measured(cell, folder, "samsum").metric == "rouge1"
    (shown,) = (row for row in answers.rows(tmp_path / "run", cell) if row["task"] == "samsum")
    assert (shown["n"], shown["unscored"]) == (2, {reason: 2})
    (line,) = remarks.notes(run_context.config, tmp_path / "run", [cell])
    assert line == f"Unscored of samsum's 4 documents, and in no figure: 2 {reason}."


def test_where_no_reference_can_be_read_the_task_is_refused_with_the_reason(tmp_path: Path) -> None:
    run_context = samsum(tmp_path, "東京", "...")
    with pytest.raises(
        HarnessError, match=r"^task 'samsum' has no metric .* any document \(ROUGE-1 reads .*\)$"
    ):
        generation.respond(run_context, seed_cell(run_context), ["samsum"], "")


def test_documents_that_are_all_scored_say_nothing(tmp_path: Path) -> None:
    run_context = samsum(tmp_path, "A says hi.")
    generation.respond(run_context, seed_cell(run_context), ["samsum"], "")
    assert "unscored" not in read_json(tmp_path / "run" / "seed" / "samsum" / "task.json")
