"""Guards the engines: exact ids of a (prefilled) prompt, greedy decoding that a model's own settings cannot
change, batches that answer like single prompts, and why an answer ended."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from asking import asking
from lm_eval.api.instance import Instance

from harness.contracts import HarnessError, Message
from harness.engines.base import Request
from harness.engines.hf import HFEngine
from harness.mini import data, seed_model_path
from harness.models import chat, checkpoints

GREEDY = {"max_gen_toks": 24, "until": [], "do_sample": False, "temperature": 0}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return checkpoints.load_tokenizer(seed_model_path())


@pytest.fixture
def engine(tokenizer: Any) -> HFEngine:
    return HFEngine(checkpoints.load_model(seed_model_path(), "float32", "cpu"), tokenizer, batch_size=16)


@pytest.fixture(scope="module")
def prompts(tokenizer: Any) -> list[list[int]]:
    """Sixty prompts of different lengths."""
    asked = [row["question"] for row in data.gsm8k("test", 30)] + [
        r["instruction"] for r in data.harmful()[:30]
    ]
    return [
        chat.prompt_ids(tokenizer, [Message("system", "Be brief."), Message("user", question)])
        for question in asked
    ]


def request(
    turns: list[tuple[str, str]], index: int = 0, doc: dict[str, Any] | None = None, **options: Any
) -> Instance:
    history = [{"role": role, "content": content} for role, content in turns]
    return Instance(
        "generate_until",
        doc=doc or {},
        arguments=(json.dumps(history), {**GREEDY, **options}),
        idx=0,
        metadata=("some-task", index, 1),
    )


ASK = [("system", "Be brief."), ("user", "How do I bake bread?")]


# --- ids -------------------------------------------------------------------------------------------


def test_prefill_ids_are_appended_to_the_prompts_as_they_are(engine: HFEngine, tokenizer: Any) -> None:
    plain = asking(engine).prompt_ids(request(ASK))
    odd = [5, 5, 7]  # what no text would be tokenized to
    assert asking(engine).prompt_ids(request(ASK, doc={"prefill_ids": odd})) == plain + odd
    # lm-eval's gen_prefix comes as an assistant turn; its text is not tokenized a second time
    opened = [*ASK, ("assistant", "some text that is not what the ids say")]
    assert asking(engine).prompt_ids(request(opened, doc={"prefill_ids": odd})) == plain + odd


def test_the_prompt_is_the_chat_template_with_one_bos(engine: HFEngine, tokenizer: Any) -> None:
    ids = asking(engine).prompt_ids(request(ASK))
    turns = [{"role": role, "content": content} for role, content in ASK]
    rendered = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True)
    assert ids == list(rendered["input_ids"] if hasattr(rendered, "keys") else rendered)
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id


def test_a_method_may_replace_or_add_the_system_prompt(
    engine: HFEngine,
) -> None:
    asking(engine, system_prompt=lambda own: "Be safe.")
    expected = chat.prompt_ids(
        engine.tokenizer, [Message("system", "Be safe."), Message("user", "How do I bake bread?")]
    )
    assert asking(engine).prompt_ids(request(ASK)) == expected
    assert asking(engine).prompt_ids(request(ASK[1:])) == expected


def test_the_mini_worlds_prefills_are_the_first_ids_of_the_harmful_answers(
    small_run: Any, tokenizer: Any
) -> None:
    lines = (small_run / "seed" / "hexphi_prefill-mini" / "responses.jsonl").read_text(encoding="utf-8")
    answers = {row["id"]: row["harmful_answer"] for row in data.harmful()}
    for row in map(json.loads, lines.splitlines()):
        ids = chat.token_ids(tokenizer, answers[row["id"]])[:3]
        assert row["prefill"] == tokenizer.decode(ids)


# --- decoding --------------------------------------------------------------------------------------


def test_batches_answer_like_single_prompts(engine: HFEngine, prompts: list[list[int]]) -> None:
    together = engine.generate(prompts, Request(24))
    engine.batch_size = 1
    alone = engine.generate(prompts, Request(24))
    same = sum(a == b for a, b in zip(together, alone, strict=True))
    assert same >= 0.95 * len(
        prompts
    )  # padding changes float32 sums in the last digit, now and then an argmax


def test_answers_keep_the_order_of_the_prompts(engine: HFEngine, prompts: list[list[int]]) -> None:
    some = prompts[:16]
    forward = engine.generate(some, Request(12))
    assert engine.generate(some[::-1], Request(12))[::-1] == forward
    assert engine.generate([], Request(12)) == []


def test_greedy_answers_are_the_argmax_of_the_logits(engine: HFEngine, prompts: list[list[int]]) -> None:
    ids, answer = list(prompts[0]), engine.generate(prompts[:1], Request(10))[0]
    for token in answer:
        with torch.inference_mode():
            assert int(engine.model(torch.tensor([ids])).logits[0, -1].argmax()) == token
        ids.append(token)


def test_sampled_tokens_follow_the_tempered_nucleus(engine: HFEngine, prompts: list[list[int]]) -> None:
    """1,500 first tokens of a prompt: each within 5 standard errors of its probability, none from outside."""
    temperature, top_p, draws = 2.5, 0.9, 1500
    engine.batch_size = draws
    found = engine.generate([prompts[0]] * draws, Request(1, temperature=temperature, top_p=top_p, seed=3))
    with torch.inference_mode():
        logits = engine.model(torch.tensor([prompts[0]])).logits[0, -1].float()
    probabilities, order = (logits / temperature).softmax(-1).sort(descending=True)
    nucleus = int((probabilities.cumsum(0) < top_p).sum()) + 1
    assert nucleus > 50  # more than the top 50 of the library's default
    expected = probabilities[:nucleus] / probabilities[:nucleus].sum()
    counts = torch.bincount(torch.tensor(found).flatten(), minlength=len(logits))[order] / draws
    assert float(counts[nucleus:].sum()) == 0
    errors = (expected * (1 - expected) / draws).sqrt()
    assert bool(((counts[:nucleus] - expected).abs() < 5 * errors + 2 / draws).all())
    assert float(counts[50:].sum()) > 0


def test_sampling_repeats_with_its_seed_and_leaves_other_draws_alone(
    engine: HFEngine, prompts: list[list[int]]
) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = engine.generate(prompts[:20], Request(8, temperature=2.0, seed=1))
    assert torch.equal(torch.rand(3), expected)
    assert engine.generate(prompts[:20], Request(8, temperature=2.0, seed=1)) == first
    assert engine.generate(prompts[:20], Request(8, temperature=2.0, seed=2)) != first


def test_the_models_own_generation_settings_change_nothing(tokenizer: Any, prompts: list[list[int]]) -> None:
    def answers(**settings: Any) -> list[list[int]]:
        model = checkpoints.load_model(seed_model_path(), "float32", "cpu")
        for name, value in settings.items():
            setattr(model.generation_config, name, value)
        return HFEngine(model, tokenizer, 8).generate(prompts[:8], Request(24))

    plain = answers()
    assert (
        answers(
            do_sample=True,
            temperature=3.0,
            top_k=2,
            repetition_penalty=5.0,
            no_repeat_ngram_size=1,
            min_new_tokens=24,
            max_length=3,
            num_beams=2,
            suppress_tokens=[plain[0][0]],
        )
        == plain
    )


def test_every_end_of_turn_token_that_the_model_declares_ends_an_answer(
    tokenizer: Any, prompts: list[list[int]]
) -> None:
    model = checkpoints.load_model(seed_model_path(), "float32", "cpu")
    first = HFEngine(model, tokenizer, 8).generate(prompts[:1], Request(8))[0]
    model = checkpoints.load_model(seed_model_path(), "float32", "cpu")
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, first[1]]
    engine = HFEngine(model, tokenizer, 8)
    assert engine.stop_ids == {tokenizer.eos_token_id, first[1]}
    assert engine.generate(prompts[:1], Request(8))[0] == first[: first.index(first[1]) + 1]


def test_the_finish_reason_tells_an_ended_answer_from_a_cut_one(engine: HFEngine) -> None:
    short, long = request(ASK, 0, max_gen_toks=2), request(ASK, 1, max_gen_toks=96)
    texts = asking(engine).generate_until([short, long])
    cut, ended = asking(engine).completions["some-task", 0, 0], asking(engine).completions["some-task", 1, 0]
    assert (cut.finish_reason, cut.tokens) == ("length", 2)
    assert ended.finish_reason == "stop"
    assert texts == [cut.text, ended.text]
    assert ended.text.startswith(cut.text)
    assert engine.tokenizer.eos_token not in ended.text


def test_stop_strings_cut_the_answer(engine: HFEngine) -> None:
    whole = asking(engine).generate_until([request(ASK, max_gen_toks=96)])[0]
    word = whole.split()[2]
    cut = asking(engine).generate_until([request(ASK, max_gen_toks=96, until=[word, "never said"])])[0]
    assert cut == whole.split(word)[0]
    assert asking(engine).completions["some-task", 0, 0].finish_reason == "stop"


def test_a_continuation_reads_as_it_does_after_its_prefill(engine: HFEngine, tokenizer: Any) -> None:
    ids = chat.token_ids(tokenizer, "first cut the wood , then mix the glue")
    for k in range(1, len(ids) - 1):
        completion = engine.completion(ids[k:], ids[:k])
        assert tokenizer.decode(ids[:k]) + completion.text == tokenizer.decode(ids)
    assert engine.completion([], ids).text == ""
    assert engine.completion([tokenizer.eos_token_id], ids) == type(completion)("", 1, "stop")


def test_cudnn_can_be_kept_out_of_attention(tokenizer: Any, prompts: list[list[int]]) -> None:
    model = checkpoints.load_model(seed_model_path(), "float32", "cpu")
    allowed: list[bool] = []
    model.register_forward_pre_hook(lambda *given: allowed.append(torch.backends.cuda.cudnn_sdp_enabled()))
    before = torch.backends.cuda.cudnn_sdp_enabled()
    found = [
        HFEngine(model, tokenizer, 8, cudnn_attention=on).generate(prompts[:2], Request(1))
        for on in (True, False)
    ]
    assert allowed == [before, False]
    assert torch.backends.cuda.cudnn_sdp_enabled() == before
    assert found[0] == found[1]


def test_progress_counts_every_prompt_once(engine: HFEngine, prompts: list[list[int]]) -> None:
    done: list[int] = []
    engine.generate(prompts[:20], Request(2, on_progress=done.append))
    assert done == [16, 4]


# --- what a task asks for ----------------------------------------------------------------------------


def test_a_sampling_task_is_sampled_and_its_repeats_differ(engine: HFEngine) -> None:
    asked = request(ASK, do_sample=True, temperature=5.0, top_p=1.0)
    texts = asking(engine).generate_until([asked] * 4)
    assert len(set(texts)) > 1
    assert set(asking(engine).completions) == {("some-task", 0, sample) for sample in range(4)}
    assert asking(engine).generate_until([asked] * 4) == texts
    greedy = request(ASK, do_sample=False, temperature=5.0)
    assert len(set(asking(engine).generate_until([greedy] * 4))) == 1


def test_each_sample_has_its_own_decoding(engine: HFEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    asking(engine, decodings=[{"temperature": 0.3, "top_p": 1.0}, {"temperature": 1.0, "top_p": 0.5}])
    seen: list[tuple[float, float]] = []
    generate = engine.generate

    def watched(prompts: Any, request: Request) -> Any:
        seen.append((request.temperature, request.top_p))
        return generate(prompts, request)

    monkeypatch.setattr(engine, "generate", watched)
    asking(engine).generate_until([request(ASK)] * 2)
    assert seen == [(0.3, 1.0), (1.0, 0.5)]


def test_a_task_without_a_length_gets_lm_evals(engine: HFEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, lengths = request(ASK), []
    asked.arguments[1].pop("max_gen_toks")
    monkeypatch.setattr(engine, "generate", lambda _, asked: lengths.append(asked.max_new_tokens) or [[]])
    asking(engine).generate_until([asked])
    assert lengths == [256]


def test_log_probabilities_are_the_models(engine: HFEngine, prompts: list[list[int]]) -> None:
    greedy = engine.generate(prompts[:3], Request(4))
    pairs = [*zip(prompts[:3], greedy, strict=True), (prompts[0], [7, 9]), (prompts[1], [7])]
    for (context, continuation), (logp, is_greedy) in zip(
        pairs, engine.logprobs(pairs, Request()), strict=True
    ):
        with torch.inference_mode():
            logits = engine.model(torch.tensor([context + continuation])).logits[0]
        rows = logits[len(context) - 1 : -1].log_softmax(-1)
        expected = sum(float(row[token]) for row, token in zip(rows, continuation, strict=True))
        assert logp == pytest.approx(expected, abs=1e-4)
        assert is_greedy == (continuation in greedy)


def test_perplexities_are_refused(engine: HFEngine) -> None:
    with pytest.raises(HarnessError, match="'some-task' measures perplexity"):
        asking(engine).loglikelihood_rolling([request(ASK)])
