"""Answers from a real vLLM: the same ids go in and the same come out as with transformers, in its own engine
(adapters and reloaded weights included) and behind a server."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import vllm_server
from asking import asking
from lm_eval.api.instance import Instance

from harness.config import ResponsesConfig, RunConfig
from harness.contracts import Exchange, HarnessError, JudgeContext, Message
from harness.data import benchmarks
from harness.engines import vllm_process
from harness.engines.base import Request
from harness.engines.hf import HFEngine
from harness.engines.openai import OpenAIEngine
from harness.engines.vllm import VLLMEngine
from harness.generation import answering, lm_tasks
from harness.mini import data, seed_model_path
from harness.models import chat, checkpoints
from harness.models.checkpoints import Checkpoint, Server
from harness.run.context import RunContext
from judges.mini_exact import MiniExact

pytestmark = [pytest.mark.requires_vllm, pytest.mark.timeout(900)]

MINI = Checkpoint(seed_model_path())
TASKS = {"gsm8k-mini": 200, "samsum-mini": 200, "hexphi_raw-mini": 330, "hexphi_prefill-mini": 330}


@pytest.fixture(scope="module")
def ours() -> HFEngine:
    return HFEngine.open(MINI, ResponsesConfig(), "cpu")


@pytest.fixture(scope="module")
def engine() -> Iterator[VLLMEngine]:
    """One vLLM for all tests that need no adapter."""
    engine = VLLMEngine.open(MINI, ResponsesConfig(gpu_memory=0.5), "cpu")
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with vllm_server.running(tmp_path_factory.mktemp("server") / "vllm.log") as url:
        yield url


@pytest.fixture(scope="module")
def ctx(tmp_path_factory: pytest.TempPathFactory) -> RunContext:
    return RunContext(RunConfig(), tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def prompts(ours: HFEngine) -> list[list[int]]:
    rows = [row["question"] for row in data.gsm8k("test", 40)]
    rows += [row["instruction"] for row in data.harmful()[:40]]
    return [
        chat.prompt_ids(ours.tokenizer, [Message("system", "Be brief."), Message("user", row)])
        for row in rows
    ]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A full checkpoint with other weights, another end of turn and another chat template."""
    folder = tmp_path_factory.mktemp("other") / "model"
    model = checkpoints.load_model(seed_model_path(), "float32", "cpu")
    tokenizer = checkpoints.load_tokenizer(seed_model_path())
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weights in model.parameters():
            weights += 0.05 * weights.std() * torch.randn(weights.shape, generator=draws)
    dot = chat.token_ids(tokenizer, " .")[-1]
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, dot]
    tokenizer.chat_template = tokenizer.chat_template + "{# another #}"
    checkpoints.save(model, tokenizer, folder)
    return Checkpoint(folder)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Checkpoint]:
    """Two adapters with random weights, of different ranks."""
    from peft import LoraConfig, get_peft_model

    found = []
    for seed, rank in enumerate((12, 4)):
        folder = tmp_path_factory.mktemp("adapter") / "adapter"
        torch.manual_seed(seed)
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(checkpoints.load_model(seed_model_path(), "float32", "cpu"), config)
        for name, weights in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weights, std=0.01)
        checkpoints.save(model, checkpoints.load_tokenizer(seed_model_path()), folder)
        found.append(Checkpoint(folder, seed_model_path()))
    return found


def alike(one: list[Any], other: list[Any]) -> float:
    return sum(a == b for a, b in zip(one, other, strict=True)) / len(one)


def rows(ctx: RunContext, engine: Any, task: str) -> list[dict[str, Any]]:
    return answering.respond_rows(ctx, engine, benchmarks.get(task), task)[0]


def rates(found: list[dict[str, Any]]) -> dict[str, float]:
    """Mean of every metric, and the shares that the exact judge calls safe and a refusal."""
    names = [name for name, value in found[0]["metrics"].items() if isinstance(value, (int, float))]
    means = {name: sum(row["metrics"][name] for row in found) / len(found) for name in names}
    if found[0]["task"].startswith("hexphi"):
        fields = Exchange.__dataclass_fields__
        exchanges = [Exchange(**{key: row[key] for key in fields if key in row}) for row in found]
        verdicts = list(MiniExact().judge(exchanges, JudgeContext()))
        means["safe"] = sum(not verdict.harmful for verdict in verdicts) / len(found)
        means["refusals"] = sum(verdict.label == "refusal" for verdict in verdicts) / len(found)
    assert means
    return means


@pytest.mark.parametrize("task", list(TASKS))
def test_whole_tasks_are_answered_as_transformers_answers_them(
    ctx: RunContext, ours: HFEngine, engine: VLLMEngine, url: str, task: str
) -> None:
    served = OpenAIEngine.open(
        MINI, ResponsesConfig(server=url, in_flight=64), "cpu"
    )  # its tokenizer is the checkpoint's
    try:
        by_hf, by_vllm, by_server = (rows(ctx, one, task) for one in (ours, engine, served))
    finally:
        served.close()
    assert len(by_hf) == TASKS[task]
    for found, least in ((by_vllm, 0.99), (by_server, 0.99)):
        same = alike([row["response"] for row in by_hf], [row["response"] for row in found])
        print(f"{task}: {same:.2%} of the responses are the same")
        assert same >= least
        for name, value in rates(by_hf).items():
            assert rates(found)[name] == pytest.approx(value, abs=0.01), name
    assert by_server == by_vllm


def test_every_engine_is_given_the_same_ids(
    ours: HFEngine, engine: VLLMEngine, url: str, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Caught where they leave us: model.generate, vLLM's RequestOutput, the server's reply."""
    seen: list[list[int]] = []

    def caught(**arguments: Any) -> Any:
        seen.append(arguments["input_ids"][0].tolist())
        return generate(**arguments)

    def echoed(*arguments: Any) -> Any:
        found = post(*arguments)
        seen.append(found[0].prompt_token_ids)
        return found

    def made(*arguments: Any, **options: Any) -> Any:
        found = ask(*arguments, **options)
        seen.append(found[0].prompt_ids)
        return found

    generate, ask = ours.model.generate, vllm_process.generate
    monkeypatch.setattr(ours.model, "generate", caught)
    monkeypatch.setattr(vllm_process, "generate", made)
    served = OpenAIEngine.open(MINI, ResponsesConfig(server=url), "cpu")
    post = served._service.ask
    monkeypatch.setattr(served._service, "ask", echoed)
    try:
        for task in TASKS:
            document = lm_tasks.open_task(ctx, ours, benchmarks.get(task))
            document.build_all_requests(
                limit=1, apply_chat_template=True, chat_template=asking(ours).apply_chat_template
            )
            request: Instance = document.instances[0]
            seen.clear()
            for one in (ours, engine, served):
                asking(one).generate_until([request])
            assert len(seen) == 3
            assert seen[0] == seen[1] == seen[2] == asking(ours).prompt_ids(request)
            assert seen[0].count(ours.tokenizer.bos_token_id) == 1
    finally:
        served.close()


def test_the_stop_token_and_the_cut_are_as_with_transformers(
    ours: HFEngine, engine: VLLMEngine, prompts: list[list[int]]
) -> None:
    for length in (3, 96):
        assert (
            alike(ours.generate(prompts, Request(length)), engine.generate(prompts, Request(length))) >= 0.98
        )
    ended = engine.generate(prompts, Request(96))
    assert any(ids[-1] in engine.stop_ids for ids in ended)
    assert all(token not in engine.stop_ids for ids in ended for token in ids[:-1])
    assert engine.stop_ids == ours.stop_ids
    assert engine.context_tokens == ours.context_tokens
    assert engine.generate([], Request(4)) == []


def test_progress_counts_every_prompt_once(engine: VLLMEngine, prompts: list[list[int]]) -> None:
    done: list[int] = []
    engine.generate(prompts, Request(2, on_progress=done.append))
    assert sum(done) == len(prompts)


def test_sampling_repeats_with_its_seed(engine: VLLMEngine, prompts: list[list[int]]) -> None:
    first = engine.generate(prompts, Request(8, temperature=2.0, seed=1))
    assert engine.generate(prompts, Request(8, temperature=2.0, seed=1)) == first
    assert engine.generate(prompts, Request(8, temperature=2.0, seed=2)) != first
    same = [prompts[0]] * 8
    assert len({tuple(ids) for ids in engine.generate(same, Request(8, temperature=2.0, seed=1))}) > 1
    assert engine.generate(prompts, Request(8)) == engine.generate(
        prompts, Request(8, temperature=0.0, top_p=0.5, seed=9)
    )


def test_log_probabilities_are_those_of_transformers(
    ours: HFEngine, engine: VLLMEngine, url: str, prompts: list[list[int]]
) -> None:
    answers = ours.generate(prompts, Request(24))
    pairs = list(zip(prompts, answers, strict=True))
    pairs += [(prompt, answers[place - 1]) for place, prompt in enumerate(prompts)]
    expected = ours.logprobs(pairs, Request())
    assert {greedy for _, greedy in expected} == {True, False}
    served = OpenAIEngine.open(MINI, ResponsesConfig(server=url), "cpu")
    try:
        # twice: what the prefix cache holds must not be missing
        for found in (
            engine.logprobs(pairs, Request()),
            engine.logprobs(pairs, Request()),
            served.logprobs(pairs, Request()),
        ):
            for (logprob, greedy), (wanted, wanted_greedy) in zip(found, expected, strict=True):
                assert logprob == pytest.approx(wanted, abs=1e-3)
                assert greedy == wanted_greedy
    finally:
        served.close()


def test_reloaded_weights_answer_as_a_fresh_engine_and_as_two_that_share_the_prompts(
    ours: HFEngine, engine: VLLMEngine, other: Checkpoint, prompts: list[list[int]]
) -> None:
    before = engine.generate(prompts, Request(32))
    start = time.perf_counter()
    assert engine.use(other)
    print(f"another checkpoint in {time.perf_counter() - start:.2f} s")
    theirs = HFEngine.open(other, ResponsesConfig(), "cpu")
    assert engine.stop_ids == theirs.stop_ids != ours.stop_ids
    assert engine.tokenizer.chat_template == theirs.tokenizer.chat_template
    pairs = list(zip(prompts, before, strict=True))
    reloaded, scored = engine.generate(prompts, Request(32)), engine.logprobs(pairs, Request())
    assert alike(reloaded, before) < 0.5
    assert alike(reloaded, theirs.generate(prompts, Request(32))) >= 0.98
    for (logprob, _), (wanted, _) in zip(scored, theirs.logprobs(pairs, Request()), strict=True):
        assert logprob == pytest.approx(wanted, abs=1e-3)
    start = time.perf_counter()
    fresh = VLLMEngine.open(other, ResponsesConfig(gpu_memory=0.4, data_parallel=2), "cpu")
    print(f"two replicas in {time.perf_counter() - start:.1f} s")
    try:
        assert fresh.generate(prompts, Request(32)) == reloaded
        assert fresh.generate(prompts[:1], Request(32)) == reloaded[:1]
        assert fresh.logprobs(pairs, Request()) == scored
        drawn = engine.generate(prompts, Request(8, temperature=2.0, seed=1))
        assert fresh.generate(prompts, Request(8, temperature=2.0, seed=1)) == drawn
        fresh._replicas[1]._process.kill()
        with pytest.raises(HarnessError, match="was killed"):
            fresh.generate(prompts, Request(32))
        assert not fresh.use(other)
        assert all(one.closed for one in fresh._replicas)
    finally:
        fresh.close()
    assert engine.use(MINI)
    assert engine.generate(prompts, Request(32)) == before


def test_an_id_that_the_model_has_not_is_one_line(engine: VLLMEngine) -> None:
    for ask in (
        lambda: engine.generate([[5], [6, 1400]], Request(4)),
        lambda: engine.logprobs([([5], [1400])], Request()),
    ):
        with pytest.raises(HarnessError, match=r"a prompt: token 1,400 \("):
            ask()


def test_checkpoints_of_another_shape_and_adapters_need_a_new_engine(
    engine: VLLMEngine, adapters: list[Checkpoint], tmp_path: Path, prompts: list[list[int]]
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    before = engine.generate(prompts[:4], Request(8))
    assert not engine.use(adapters[0])
    config = AutoConfig.from_pretrained(seed_model_path())
    config.num_hidden_layers = 2
    checkpoints.save(AutoModelForCausalLM.from_config(config), engine.tokenizer, tmp_path / "small")
    assert not engine.use(Checkpoint(tmp_path / "small"))
    assert not engine.use(Checkpoint(None, server=Server("mini", "http://localhost:8000/v1")))
    assert engine.generate(prompts[:4], Request(8)) == before


def test_adapters_share_their_bases_engine(
    ours: HFEngine, adapters: list[Checkpoint], other: Checkpoint, prompts: list[list[int]]
) -> None:
    first, second = adapters
    expected = []
    for adapter in adapters:
        theirs = HFEngine.open(adapter, ResponsesConfig(), "cpu")
        expected.append(theirs.generate(prompts, Request(32)))
    base = ours.generate(prompts, Request(32))
    assert alike(expected[0], base) < 0.9
    engine = VLLMEngine.open(first, ResponsesConfig(gpu_memory=0.5), "cpu")
    try:
        assert alike(engine.generate(prompts, Request(32)), expected[0]) >= 0.98
        assert engine.use(second)
        assert alike(engine.generate(prompts, Request(32)), expected[1]) >= 0.98
        assert engine.use(MINI)
        assert alike(engine.generate(prompts, Request(32)), base) >= 0.98
        assert engine.use(other)  # full weights, and the adapter on its own base again
        assert alike(engine.generate(prompts, Request(32)), base) < 0.5
        assert engine.use(first)
        assert alike(engine.generate(prompts, Request(32)), expected[0]) >= 0.98
    finally:
        engine.close()


def test_a_start_that_fails_ends_with_its_cause_and_the_mend() -> None:
    with pytest.raises(HarnessError) as told:
        VLLMEngine.open(MINI, ResponsesConfig(max_context=1_000_000), "cpu")
    line = str(told.value)
    assert "\n" not in line
    assert "1000000" in line
    assert "--set responses.max_context=TOKENS" in line


def test_a_process_of_vllm_ends_with_its_command() -> None:
    code = (
        "import time; from pathlib import Path; from harness.engines.vllm_process import Replica; "
        f"one = Replica(Path({str(seed_model_path())!r}), 'cpu', dtype='float32'); "
        "print(one._process.pid, flush=True); time.sleep(600)"
    )
    command = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert command.stdout is not None
    started = psutil.Process(int(command.stdout.readline()))
    command.kill()
    command.wait()
    deadline = time.monotonic() + 60
    while started.is_running() and started.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.2)
