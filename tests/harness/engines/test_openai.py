"""Guards the engine of servers: exact ids there and back, what happens where a server takes less, retries,
and errors in one line that quote neither key nor prompt."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import completions_server
import fault_server
import pytest
from asking import asking
from completions_server import Answer, CompletionsServer
from lm_eval.api.instance import Instance

from harness import finish
from harness.config import ResponsesConfig
from harness.contracts import HarnessError, Message
from harness.engines import openai
from harness.engines.base import Request
from harness.engines.openai import ChatEngine, OpenAIEngine
from harness.engines.service import ATTEMPTS, RefusedError, Service, _retry_after_s
from harness.mini import seed_model_path
from harness.models import chat, checkpoints
from harness.models.checkpoints import Checkpoint, Server
from harness.servers import http_client

ASK = [("system", "Be brief."), ("user", "How do I bake bread?")]
Open = Callable[..., OpenAIEngine]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return checkpoints.load_tokenizer(seed_model_path())


@pytest.fixture
def server(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[CompletionsServer]:
    monkeypatch.setattr("harness.engines.service.FIRST_WAIT_S", 0.01)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "HARNESS_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with completions_server.running(tokenizer) as server:
        yield server


@pytest.fixture
def opened(server: CompletionsServer) -> Iterator[Open]:
    """``opened(tokenizer=None)``: an engine for the server's model, the mini tokenizer by default."""
    engines: list[OpenAIEngine] = []

    def open_(model: str = "served", **settings: Any) -> OpenAIEngine:
        given = ResponsesConfig(**{"tokenizer": "mini", "in_flight": 4, **settings})
        engines.append(OpenAIEngine.open(Checkpoint(None, server=Server(model, server.url)), given, "cpu"))
        server.bodies.clear()  # the probe's
        server.headers.clear()
        return engines[-1]

    yield open_
    for engine in engines:
        engine.close()


def request(turns: list[tuple[str, str]] = ASK, index: int = 0, doc: Any = None, **options: Any) -> Instance:
    history = [{"role": role, "content": content} for role, content in turns]
    options = {"max_gen_toks": 24, "until": [], "do_sample": False, **options}
    return Instance("generate_until", doc=doc or {}, arguments=(json.dumps(history), options), idx=0,
                    metadata=("some-task", index, 1))  # fmt: skip


# --- ids -------------------------------------------------------------------------------------------


def test_ids_arrive_as_they_are_with_one_bos(server: CompletionsServer, opened: Open, tokenizer: Any) -> None:
    engine = opened()
    odd = [5, 5, 7]  # what no text would be tokenized to
    asking(engine).generate_until([request(), request(index=1, doc={"prefill_ids": odd})])
    prompt = chat.prompt_ids(tokenizer, [Message(role, text) for role, text in ASK])  # type: ignore[arg-type]
    sent = sorted((body["prompt"] for body in server.asked("completions")), key=len)
    assert sent == [prompt, prompt + odd]
    assert prompt.count(tokenizer.bos_token_id) == 1
    for body in server.asked("completions"):
        assert body["add_special_tokens"] is False
        assert body["return_token_ids"] is True
        assert body["stop_token_ids"] == sorted(engine.stop_ids) == [tokenizer.eos_token_id]
        assert (body["temperature"], body["top_k"], body["repetition_penalty"]) == (0, -1, 1)
        assert body["max_tokens"] == 24


@pytest.mark.parametrize("extras", ["taken", "ignored", "refused"])
def test_answers_are_the_servers_ids_or_its_exact_text(
    server: CompletionsServer, opened: Open, tokenizer: Any, extras: Any, caplog: pytest.LogCaptureFixture
) -> None:
    server.extras = extras
    ids = chat.token_ids(tokenizer, "first cut the wood , then mix the glue")
    prefill, rest = ids[:3], ids[3:]
    answers = [
        ([*rest, tokenizer.eos_token_id], "stop"),
        (rest[:2], "length"),
        ([tokenizer.eos_token_id], "stop"),
    ]
    engine = opened()
    for answer, text in zip(answers, (rest, rest[:2], []), strict=True):
        server.answer = lambda prompt, answer=answer: answer
        found = asking(engine).generate_until([request(doc={"prefill_ids": prefill})])
        completion = asking(engine).completions["some-task", 0, 0]
        assert completion.finish_reason == answer[1]
        assert completion.tokens == len(answer[0])
        assert found == [completion.text]
        # ids read on after their prefill; a text is as the server gives it
        expected = tokenizer.decode(prefill + text)[len(tokenizer.decode(prefill)) :]
        assert completion.text == (expected if extras == "taken" else tokenizer.decode(text))
        if extras == "taken":
            assert engine.generate([prefill], Request(24)) == [answer[0]]
    known = sum("takes no sampling settings" in line for line in caplog.messages)
    assert known == (extras == "refused")
    refused = [body for body in server.asked("completions") if "top_k" in body]
    assert bool(refused) == (extras != "refused")  # found out by the probe, and not tried again


def test_a_stop_token_that_only_the_server_knows_ends_an_answer(
    server: CompletionsServer, opened: Open, tokenizer: Any
) -> None:
    ids = chat.token_ids(tokenizer, "mix the glue")
    server.answer = lambda prompt: (ids, "stop")
    engine = opened()
    assert engine.generate([[1, 5]], Request(9)) == [[*ids, tokenizer.eos_token_id]]
    asking(engine).generate_until([request()])
    assert asking(engine).completions["some-task", 0, 0].finish_reason == "stop"


def test_answers_keep_the_order_and_come_in_parallel(
    server: CompletionsServer, opened: Open, tokenizer: Any
) -> None:
    together = threading.Barrier(4)  # the first four are answered when all of them are there

    def answer(prompt: list[int]) -> tuple[list[int], str]:
        if prompt[-1] in range(10, 14) and len(prompt) == 2:
            together.wait(30)
        time.sleep(0.02 * (prompt[-1] % 3))
        return [prompt[-1]], "length"

    server.answer = answer
    engine, done = opened(), list[int]()
    prompts = [[1, number] for number in range(10, 40)]
    assert engine.generate(prompts, Request(1, on_progress=done.append)) == [
        [number] for number in range(10, 40)
    ]
    assert sum(done) == len(prompts)
    assert server.most_in_flight == 4
    assert engine.plan(prompts) == [list(range(16)), list(range(16, 30))]
    assert engine.generate([], Request(1)) == []


def test_sampling_draws_each_prompt_apart_and_repeats(server: CompletionsServer, opened: Open) -> None:
    engine = opened()
    for _ in range(2):
        engine.generate([[1, 2], [1, 2]], Request(4, temperature=0.7, top_p=0.9, seed=40))
        drawn = server.asked("completions")
        assert sorted(body["seed"] for body in drawn) == [40, 41]
        assert {(body["temperature"], body["top_p"]) for body in drawn} == {(0.7, 0.9)}
        server.bodies.clear()


def test_log_probabilities_come_from_the_echo(server: CompletionsServer, opened: Open) -> None:
    engine = opened()
    pairs = [([1, 3, 5], [4, 6]), ([1, 3], [4, 7, 8])]
    assert engine.logprobs(pairs, Request()) == [(-2.0, True), (-4.0, False)]
    server.answer = lambda prompt: ([2], "stop")
    server.refused = {"echo"}
    with pytest.raises(HarnessError, match="no log-probabilities of a prompt"):
        engine.logprobs(pairs, Request())


# --- which model, which tokenizer ------------------------------------------------------------------


def test_the_context_is_what_the_server_says_or_the_models(server: CompletionsServer, opened: Open) -> None:
    assert opened().context_tokens == 512
    with pytest.raises(HarnessError, match="its prompt has"):
        asking(opened()).generate_until([request([("user", "bread " * 600)])])
    server.models = [{"id": "served"}]
    assert opened().context_tokens == 4096


def test_a_folders_model_is_found_by_its_path(
    server: CompletionsServer, tokenizer: Any, tmp_path: Path
) -> None:
    checkpoint = Checkpoint(seed_model_path())
    link = tmp_path / "link"
    link.symlink_to(seed_model_path())
    for entry in ({"id": "mine", "root": str(link)}, {"id": str(seed_model_path())}):
        server.models = [{"id": "other", "root": "/elsewhere"}, entry]
        engine = OpenAIEngine.open(checkpoint, ResponsesConfig(server=server.url), "cpu")
        assert engine.takes_ids  # with the folder's own tokenizer
        engine.generate([[1, 5]], Request(2))
        assert server.bodies[-1][1]["model"] == entry["id"]
        engine.close()
    server.models = [{"id": "other", "root": "/elsewhere"}, {"id": "third"}]
    with pytest.raises(HarnessError, match=r"does not serve .*; it has other, third"):
        OpenAIEngine.open(checkpoint, ResponsesConfig(server=server.url), "cpu")
    with pytest.raises(HarnessError, match=r"which server.*--server"):
        OpenAIEngine.open(checkpoint, ResponsesConfig(), "cpu")


def test_a_tokenizer_needs_no_weights(server: CompletionsServer, opened: Open, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(seed_model_path() / name, tmp_path)
    assert opened(tokenizer=str(tmp_path)).takes_ids
    server.models = [{"id": "served", "root": str(tmp_path)}]
    assert opened(tokenizer=None).takes_ids  # the server's own, as it lies on this machine
    with pytest.raises(HarnessError, match="no tokenizer"):
        opened(tokenizer=str(tmp_path / "nothing"))


def test_another_models_tokenizer_is_noticed(server: CompletionsServer, opened: Open, tmp_path: Path) -> None:
    shutil.copytree(seed_model_path(), tmp_path / "shifted")
    file = tmp_path / "shifted" / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    names = sorted(vocabulary, key=vocabulary.get)
    shifted = [*names[:20], *reversed(names[20:])]
    content["model"]["vocab"] = {name: number for number, name in enumerate(shifted)}
    file.write_text(json.dumps(content))
    with pytest.raises(HarnessError, match="is not the tokenizer of 'served'"):
        opened(tokenizer=str(tmp_path / "shifted"))


# --- chats -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("why", ["no tokenizer", "no ids", "changed ids", "no completions"])
def test_a_server_that_takes_no_ids_gets_the_conversation(
    server: CompletionsServer, opened: Open, tokenizer: Any, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    server.takes_ids, server.completes = why != "no ids", why != "no completions"
    server.added_ids = int(why == "changed ids")
    server.answer = lambda asked: (chat.token_ids(tokenizer, "mix the glue"), "stop")
    with caplog.at_level(logging.WARNING):
        engine = opened(tokenizer=None if why == "no tokenizer" else "mini")
    assert isinstance(engine, ChatEngine)
    assert not engine.takes_ids
    assert sum("it builds the prompts" in line for line in caplog.messages) == (why != "no tokenizer")
    asking(engine, system_prompt=lambda own: f"{own} Be safe.")
    asked = [
        request(),
        request([("user", "Grüße, 水?"), ("assistant", "Hi."), ("user", 'a "b" \\n')], index=1),
    ]
    assert asking(engine).generate_until(asked) == ["mix the glue"] * 2
    assert asking(engine).completions["some-task", 0, 0].tokens == len(server.answer(None)[0])
    sent = [body["messages"] for body in server.asked("chat/completions")]
    expected = [
        [{"role": "system", "content": "Be brief. Be safe."}, {"role": "user", "content": ASK[1][1]}],
        [
            {"role": "system", "content": "None Be safe."},
            {"role": "user", "content": "Grüße, 水?"},
            {"role": "assistant", "content": "Hi."},
            {"role": "user", "content": 'a "b" \\n'},
        ],
    ]
    assert sorted(sent, key=len) == expected
    assert server.asked("chat/completions")[0]["chat_template_kwargs"] == {"enable_thinking": False}


def test_a_chat_opens_no_answers(server: CompletionsServer, opened: Open) -> None:
    engine = opened(tokenizer=None)
    for asked in (request(doc={"prefill_ids": [5]}), request([*ASK, ("assistant", "Sure, first")])):
        with pytest.raises(HarnessError, match=r"opens answers with exact tokens.*--tokenizer"):
            asking(engine).generate_until([asked])
    with pytest.raises(HarnessError, match="no log-probabilities"):
        asking(engine).loglikelihood([request()])
    assert not server.bodies


def test_what_a_chat_model_reasons_is_kept_apart(
    server: CompletionsServer, opened: Open, tokenizer: Any
) -> None:
    engine = opened(tokenizer=None)
    server.answer = lambda asked: (chat.token_ids(tokenizer, "mix the glue"), "stop")
    server.message = {"reasoning_content": "let me think"}
    assert asking(engine).generate_until([request()]) == ["mix the glue"]
    assert asking(engine).completions["some-task", 0, 0].reasoning == "let me think"
    server.message = {"reasoning": "let me", "content": None}
    server.answer = lambda asked: ([5, 6], "length")
    assert asking(engine).generate_until([request()]) == [""]
    assert asking(engine).completions["some-task", 0, 0].reasoning == "let me"
    server.message = {"content": None, "refusal": "No."}
    assert asking(engine).generate_until([request()]) == ["No."]
    # a field of its own and marks in the text are both reasoning
    server.message = {"reasoning": "let me", "content": "\ufeff<thought>think</thought>mix the glue"}
    assert asking(engine).generate_until([request()]) == ["mix the glue"]
    assert asking(engine).completions["some-task", 0, 0].reasoning == "let me\n\nthink"
    server.message = {"content": "mix <think> the glue"}
    asking(engine).generate_until([request()])
    assert asking(engine).completions["some-task", 0, 0].unavailable == finish.UNTOLD
    server.message = {"content": "mix</think>the glue"}
    asking(engine).generate_until([request()])
    assert asking(engine).completions["some-task", 0, 0].unavailable == finish.UNTOLD
    server.usage = {"completion_tokens_details": {"reasoning_tokens": 2}}
    asking(engine).generate_until([request()])  # hidden reasoning is none of what it shows
    assert asking(engine).completions["some-task", 0, 0].unavailable == finish.UNTOLD
    server.message = {"content": "mix</think>the glue", "reasoning": "let me"}
    asking(engine).generate_until([request()])
    assert asking(engine).completions["some-task", 0, 0].unavailable == finish.UNTOLD


def test_models_that_take_neither_temperature_nor_the_old_limit(
    server: CompletionsServer, opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    server.extras, server.refused = "refused", {"max_tokens", "temperature"}
    engine = opened(tokenizer=None)
    asking(engine).generate_until([request()])
    assert asking(engine).generate_until([request()]) == [""]
    last = server.asked("chat/completions")[-1]
    assert set(last) == {"model", "messages", "max_completion_tokens"}
    assert any("takes no temperature" in line for line in caplog.messages)


REASONS: list[Any] = [
    "stop", "length", None, "eos_token", "content_filter", "abort", "error", "who_knows", {"type": "length"},
]  # fmt: skip


@pytest.mark.parametrize("reason", REASONS, ids=str)
@pytest.mark.parametrize("how", ["ids", "text", "chat"])
def test_how_an_answer_ended_is_kept_as_it_came(
    server: CompletionsServer, opened: Open, tokenizer: Any, reason: Any, how: str
) -> None:
    ids = chat.token_ids(tokenizer, "mix the glue")
    server.answer = lambda asked: (ids, reason)
    server.extras = "taken" if how == "ids" else "ignored"
    engine = opened(tokenizer=None if how == "chat" else "mini")
    assert asking(engine).generate_until([request()]) == ["mix the glue"]
    found = asking(engine).completions["some-task", 0, 0]
    assert found.finish_reason == ("length" if isinstance(reason, dict) else reason)
    usable = reason in ("stop", "length", None, "eos_token", {"type": "length"})
    missing = finish.missing(found.text, found.finish_reason, found.reasoning, found.unavailable)
    assert (missing is None) == usable


@pytest.mark.parametrize("how", ["ids", "chat"])
def test_a_stop_string_makes_no_answer_of_what_was_withheld(
    server: CompletionsServer, opened: Open, tokenizer: Any, how: str
) -> None:
    engine = opened(tokenizer=None if how == "chat" else "mini")
    for reason, kept in (("content_filter", "content_filter"), ("length", "stop"), ("eos", "eos")):
        server.answer = lambda asked, reason=reason: (chat.token_ids(tokenizer, "mix the glue"), reason)
        assert asking(engine).generate_until([request(until=[" the"])]) == ["mix"]
        assert asking(engine).completions["some-task", 0, 0].finish_reason == kept


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"content": None}, finish.EMPTY),
        ({"content": [{"type": "image_url", "image_url": {"url": "x"}}]}, finish.UNREADABLE),
        ({"content": '<tool_call>{"name": "f", "arguments": {}}</tool_call>'}, finish.CALLED_TOOL),
        ({"content": "<|im_end|>"}, finish.EMPTY),
        ({"content": "Let me look.", "tool_calls": [{"id": "x", "type": "function",
          "function": {"name": "f", "arguments": "{}"}}]}, finish.CALLED_TOOL),
        ({"content": "<thought>I am sorry"}, finish.UNTOLD),
        ({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "7"}]}]}, finish.EMPTY),
    ],
    ids=str,
)  # fmt: skip
def test_a_message_without_an_answer(
    server: CompletionsServer, opened: Open, message: dict[str, Any], says: str
) -> None:
    engine = opened(tokenizer=None)
    server.message = message
    asking(engine).generate_until([request()])
    found = asking(engine).completions["some-task", 0, 0]
    assert finish.missing(found.text, found.finish_reason, found.reasoning, found.unavailable) == says


def test_content_in_parts(server: CompletionsServer, opened: Open) -> None:
    engine = opened(tokenizer=None)
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "7 and 5"}]}
    server.message = {"content": [thinking, {"type": "text", "text": "7 + 5 = 12\n#### 12"}]}
    assert asking(engine).generate_until([request()]) == ["7 + 5 = 12\n#### 12"]
    assert asking(engine).completions["some-task", 0, 0].reasoning == "7 and 5"


@pytest.mark.parametrize("odd", [[999_999], [True, 5], [5, -1], [5, 2.0], ["5"], [None], {"a": 1}], ids=str)
def test_ids_that_are_none_are_one_line(server: CompletionsServer, opened: Open, odd: Any) -> None:
    engine = opened()
    server.changed = lambda reply: reply | {"choices": [reply["choices"][0] | {"token_ids": odd}]}
    with pytest.raises(HarnessError, match=r"answers with token ids that are none$"):
        engine.generate([[1, 5]], Request(9))


def test_every_id_of_the_tokenizer_is_one(server: CompletionsServer, opened: Open, tokenizer: Any) -> None:
    highest, engine = max(tokenizer.get_vocab().values()), opened()
    server.answer = lambda prompt: ([highest, 0], "length")
    assert engine.generate([[1, 5]], Request(9)) in ([[highest, 0]], [[highest]])
    server.answer = lambda prompt: ([highest + 1], "length")
    with pytest.raises(HarnessError, match="token ids that are none"):
        engine.generate([[1, 5]], Request(9))


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("from_the_end", [0, 220])
def test_a_server_that_returns_the_prompt_is_one_line(
    server: CompletionsServer, opened: Open, tokenizer: Any, special: bool, from_the_end: int
) -> None:
    server.extras, engine = "ignored", opened()
    server.answer = lambda prompt: (chat.token_ids(tokenizer, "mix the glue"), "stop")

    def repeated(reply: Any) -> Any:
        prompt = server.asked("completions")[-1]["prompt"]
        text = tokenizer.decode(prompt, skip_special_tokens=not special)[-from_the_end:]
        return reply | {"choices": [reply["choices"][0] | {"text": text + reply["choices"][0]["text"]}]}

    asked = request([("user", "How do I bake bread? " * 20)])
    assert asking(engine).generate_until([asked]) == ["mix the glue"]
    server.changed = repeated
    with pytest.raises(HarnessError, match=r"returns the prompt with its answers; .*\(return_full_text\)$"):
        asking(engine).generate_until([asked])


def test_ids_with_their_prompt_in_front_are_one_line(server: CompletionsServer, opened: Open) -> None:
    engine = opened()
    server.answer = lambda prompt: ([*prompt, 5, 7], "length")
    with pytest.raises(HarnessError, match="returns the prompt with its answers"):
        asking(engine).generate_until([request()])


def test_a_model_that_repeats_its_prompt_has_answered(
    server: CompletionsServer, opened: Open, tokenizer: Any
) -> None:
    server.extras, engine = "ignored", opened()

    def reply(reply: Any) -> Any:
        body = server.asked("completions")[-1]
        text = tokenizer.decode(body["prompt"], skip_special_tokens=True) if body["max_tokens"] > 1 else "How"
        return reply | {"choices": [reply["choices"][0] | {"text": f"{text} Well."}]}

    server.changed = reply
    assert asking(engine).generate_until([request()])[0].endswith("How do I bake bread? Well.")
    assert len(server.asked("completions")) == 2


def test_a_message_that_is_null_is_one_document_without_an_answer(
    server: CompletionsServer, opened: Open
) -> None:
    engine = opened(tokenizer=None)
    choice = {"index": 0, "message": None, "finish_reason": "content_filter: PROHIBITED_CONTENT"}
    server.changed = lambda reply: reply | {"choices": [choice]}
    asking(engine).generate_until([request()])
    found = asking(engine).completions["some-task", 0, 0]
    says = finish.missing(found.text, found.finish_reason, found.reasoning, found.unavailable)
    assert says == f"{finish.WITHHELD_ANSWER} (content_filter)"


def test_kept_answers_are_read_again(server: CompletionsServer, opened: Open, tokenizer: Any) -> None:
    server.answer = lambda asked: (chat.token_ids(tokenizer, "mix the glue"), "stop")
    engine, kept = opened(tokenizer=None), dict[int, list[int]]()
    asking(engine, on_answers=kept.update)
    server.message = {"reasoning": "let me </think> think"}
    first = asking(engine).generate_until([request()]), dict(asking(engine).completions)
    asking(engine, known={int(index): ids for index, ids in json.loads(json.dumps(kept)).items()})
    server.bodies.clear()
    assert (asking(engine).generate_until([request()]), asking(engine).completions) == first
    assert asking(engine).completions["some-task", 0, 0].reasoning == "let me </think> think"
    assert not server.bodies
    asking(engine, known={0: [-1, 3, 1, *map(ord, "of an older layout")]})
    assert (asking(engine).generate_until([request()]), asking(engine).completions) == first
    assert server.bodies


# --- failures --------------------------------------------------------------------------------------


def test_failures_that_pass_are_tried_again(server: CompletionsServer, opened: Open) -> None:
    engine = opened()
    server.faults = [(429, {"Retry-After": "0.3"}), (500, {}), (503, {"Retry-After": "soon"})]
    start = time.monotonic()
    assert engine.generate([[1, 5]], Request(4)) == [[2]]
    assert time.monotonic() - start >= 0.3
    assert len(server.bodies) == 4


def test_a_server_that_stays_down_ends_in_one_line(
    server: CompletionsServer, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = opened()
    server.faults = [(503, {})] * 100
    with pytest.raises(HarnessError, match=r"HTTP 503, 8 times; is the server up") as told:
        engine.generate([[1, 5]] * 20, Request(4))
    assert "secret" not in str(told.value)
    assert len(server.bodies) < 8 * 8  # the others are not asked any more
    with pytest.raises(HarnessError, match=r"no connection \(connection refused\), 3 times"):
        OpenAIEngine.open(
            Checkpoint(None, server=Server("served", "http://127.0.0.1:9/v1")), ResponsesConfig(), "cpu"
        )


def test_a_slow_server_is_not_waited_for_without_end(server: CompletionsServer, opened: Open) -> None:
    engine, over = opened(), threading.Event()
    engine._service = Service(server.url, ResponsesConfig(timeout_s=0.1))

    def answer(prompt: Any) -> Answer:
        over.wait(120)
        return [1], "stop"

    server.answer = answer
    with pytest.raises(HarnessError, match=r"no reply within 0\.1 s"):
        engine.generate([[1, 5]], Request(4))
    over.set()


def test_an_interruption_waits_for_no_reply(server: CompletionsServer, opened: Open, ctrl_c: None) -> None:
    engine, asked, answered = opened(timeout_s=300), threading.Event(), threading.Event()

    def answer(prompt: Any) -> Answer:
        asked.set()
        answered.wait(120)
        return [1], "stop"

    def interrupt() -> None:
        asked.wait(60)
        os.kill(os.getpid(), signal.SIGINT)

    server.answer = answer
    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        engine.generate([[1, 2, 3]] * 6, Request(4))
    assert server.in_flight  # not one reply was sent
    answered.set()


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Python's own handler, which a process in the background does not have."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_wrong_model_is_one_line_with_what_there_is(server: CompletionsServer, opened: Open) -> None:
    with pytest.raises(HarnessError, match="has no model 'absent'; it has served"):
        opened("absent")
    engine = opened()
    server.models = [{"id": "another"}]
    with pytest.raises(HarnessError, match="has no model 'served', or its URL is wrong"):
        engine.generate([[1, 5]], Request(4))
    assert len(server.bodies) == 1  # no retry mends it


def test_what_a_server_refuses_is_told_without_its_words(server: CompletionsServer, opened: Open) -> None:
    engine = opened()
    server.faults = [(400, {})] * 9
    with pytest.raises(HarnessError, match=r"refuses a request for 'served': HTTP 400$"):
        engine.generate([[1, 5]], Request(4))


# --- requests that are refused ---------------------------------------------------------------------

LONG = "This model's maximum context length is 512 tokens, however you requested 700 tokens."
FILTERED: Any = {"error": {"message": "The request was filtered.", "type": None, "param": "prompt",
                           "code": "content_filter", "status": 400}}  # fmt: skip


WRAPPED = {"error": {"message": "litellm.BadRequestError: ContentPolicyViolation content_filter",
                     "code": "500"}}  # fmt: skip


def lamps(status: int, body: Any) -> Any:
    return lambda asked: (status, body) if "lamp" in json.dumps(asked.get("messages", "")) else None


def asked_of_lamps(engine: OpenAIEngine) -> list[str | None]:
    asking(engine).generate_until([request([("user", f"Where is the {what}?")], index)
                           for index, what in enumerate(["door", "lamp", "roof"])])  # fmt: skip
    return [asking(engine).completions["some-task", index, 0].unavailable for index in range(3)]


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (400, FILTERED, "the server refused the request (content_filter)"),
        (403, FILTERED, "the server refused the request (content_filter)"),
        (422, FILTERED["error"], "the server refused the request (content_filter)"),
        (200, FILTERED, "the server refused the request (content_filter)"),
        (400, {"error": {"code": "400", "innererror": {"code": "ResponsibleAIPolicyViolation"}}},
         "the server refused the request (ResponsibleAIPolicyViolation)"),
        (400, {"error": {"message": "x", "code": "invalid_prompt"}},
         "the server refused the request (invalid_prompt)"),
        (400, {"error": "content_filter"}, "the server refused the request (content_filter)"),
        (403, {"error": {"code": 403, "message": "Your input was flagged by moderation"}},
         "the server refused the request (content filter)"),
        (451, {}, "the server refused the request (HTTP 451)"),
        (400, {"error": {"message": LONG, "type": "invalid", "code": "context_length_exceeded"}},
         finish.TOO_LONG),
        (400, {"object": "error", "message": LONG, "code": 400}, finish.TOO_LONG),
        (400, {"error": {"code": 400, "message": "x", "type": "exceed_context_size_error"}}, finish.TOO_LONG),
        (400, {"detail": LONG}, finish.TOO_LONG),
        (413, "<html>", finish.TOO_LONG),
        (400, {"error": {"message": "an odd sign", "code": "odd_sign"}},
         "the server refused the request (HTTP 400 (odd_sign))"),
        (422, {"detail": [{"type": "string_type", "msg": "x"}]}, "the server refused the request (HTTP 422)"),
        (200, {"choices": []}, finish.NO_CHOICE),
        (200, {"choices": None}, finish.NO_CHOICE),
        (500, WRAPPED, "the server refused the request (content filter)"),
        (503, {"error": {"message": WRAPPED["error"]["message"], "code": "content_filter"}},
         "the server refused the request (content_filter)"),
        (500, {"error": {"message": LONG, "code": "500"}}, finish.TOO_LONG),
        (200, {"error": {"message": LONG, "code": 500}}, finish.TOO_LONG),
        (200, {"choices": [], "prompt_filter_results": [{"a": 1}]},
         "the server refused the request (content filter)"),
        (200, {"choices": [{"finish_reason": "error", "error": {"code": 400, "message": "flagged"},
                            "message": {"content": "Su"}}]},
         "the server refused the request (content filter)"),
    ],
)  # fmt: skip
def test_one_refused_request_is_one_document_that_could_not_be_had(
    server: CompletionsServer, opened: Open, status: int, body: Any, says: str
) -> None:
    engine = opened(tokenizer=None)
    server.refusal = lamps(status, body)
    assert asked_of_lamps(engine) == [None, says, None]
    assert finish.missing("", None, None, says) == says


def test_all_that_a_filter_refuses_is_unjudged(server: CompletionsServer, opened: Open) -> None:
    for tokenizer in (None, "mini"):
        engine = opened(tokenizer=tokenizer)
        server.refusal = lambda asked: (400, FILTERED)
        assert asked_of_lamps(engine) == ["the server refused the request (content_filter)"] * 3
        server.refusal = lambda asked: None


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (400, {"error": {"message": "no such field", "code": "unknown_parameter", "param": "top_k"}},
         r"refuses a request for 'served': HTTP 400 \(unknown_parameter, top_k\)$"),
        (400, {"error": {"message": LONG}}, r"refuses a request for 'served': HTTP 400$"),
        (422, {"detail": [{"type": "extra_forbidden"}]}, r"refuses a request for 'served': HTTP 422$"),
        (404, {"error": {"message": "no model"}}, "has no model 'served', or its URL is wrong"),
        (401, {"error": {"message": "flagged"}}, "answers 401: the key in HARNESS_API_KEY is wrong"),
        (403, {"error": {"message": "no entry"}}, "answers 403: the key in HARNESS_API_KEY is wrong"),
        (402, {}, "answers 402: the account has no credit left"),
        (400, {"error": {"code": "billing_hard_limit_reached"}}, "answers 400: the account has no"),
        (200, {"error": {"message": "no", "code": 401}}, "answers 401: the key in HARNESS_API_KEY is wrong"),
        (200, {"choices": []}, r"refuses a request for 'served': the server's reply holds no answer$"),
        (200, {"choices": None}, r"refuses a request for 'served': the server's reply holds no answer$"),
        (500, WRAPPED, r"refuses a request for 'served': HTTP 500$"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("named", [None, "mini"])
def test_what_is_refused_of_every_request_is_one_line_and_no_unjudged_answers(
    server: CompletionsServer, opened: Open, status: int, body: Any, says: str, named: str | None
) -> None:
    engine = opened(tokenizer=named)
    assert asked_of_lamps(engine) == [None] * 3
    server.refusal = lambda asked: (status, body)  # from here on
    with pytest.raises(HarnessError, match=says):
        asked_of_lamps(engine)


def test_a_role_that_no_request_may_have_is_one_line(server: CompletionsServer, opened: Open) -> None:
    engine = opened(tokenizer=None)
    server.refusal = lambda asked: (
        (400, {"error": {"message": "no system role"}}) if asked["messages"][0]["role"] == "system" else None
    )
    with pytest.raises(HarnessError, match=r"refuses a request for 'served': HTTP 400$"):
        asking(engine).generate_until([request()])


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"code": 502, "message": "upstream"}},
        {"error": {"code": "rate_limit_exceeded", "message": "wait"}},
        {"choices": [{"finish_reason": "error", "error": {"code": 429}, "message": {"content": "Su"}}]},
    ],
    ids=str,
)
def test_an_error_in_a_success_that_may_pass_is_tried_again(
    server: CompletionsServer, opened: Open, body: Any
) -> None:
    engine, left = opened(tokenizer=None), [(200, body)] * 3
    server.refusal = lambda asked: left.pop() if left else None
    assert asked_of_lamps(engine) == [None] * 3
    assert not left


def test_what_a_refused_document_says_changes_no_other_request(
    server: CompletionsServer, opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    engine = opened(tokenizer=None)
    words = {"message": "filtered: 'max_tokens and temperature of a lamp?'", "code": "odd_sign"}
    server.refusal = lamps(400, {"error": words})
    assert asked_of_lamps(engine)[1] == "the server refused the request (HTTP 400 (odd_sign))"
    server.bodies.clear()
    asked_of_lamps(engine)
    plain = [body for body in server.asked("chat/completions") if "lamp" not in json.dumps(body["messages"])]
    assert all(body["max_tokens"] == 24 and body["temperature"] == 0 for body in plain)
    assert not any("takes no temperature" in line for line in caplog.messages)


def test_of_several_choices_the_first_is_read(server: CompletionsServer, opened: Open) -> None:
    engine = opened(tokenizer=None)
    second = {"index": 1, "finish_reason": "length", "message": {"role": "assistant", "content": "no"}}
    server.message = {"content": "yes"}
    server.changed = lambda reply: reply | {"choices": [*reply["choices"], second]}
    assert asking(engine).generate_until([request()]) == ["yes"]


def test_keys_go_where_they_belong_and_are_never_shown(
    server: CompletionsServer, opened: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def sent() -> set[str]:
        opened().generate([[1, 5]], Request(2))
        return {headers["authorization"] for headers in server.headers}

    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai")
    assert sent() == {"Bearer none"}
    monkeypatch.setenv("HARNESS_API_KEY", "sk-mine")
    assert sent() == {"Bearer sk-mine"}
    monkeypatch.setenv("OPENAI_BASE_URL", f"{server.url}/")
    assert sent() == {"Bearer sk-openai"}
    server.key = "sk-right"
    with pytest.raises(HarnessError, match=r"answers 401: the key in OPENAI_API_KEY is wrong") as told:
        opened()
    assert "sk-" not in f"{told.value}{told.value.__context__}{caplog.text}"
    monkeypatch.delenv("OPENAI_BASE_URL")
    with pytest.raises(HarnessError, match="no key in a server's URL") as told:
        OpenAIEngine.open(
            Checkpoint(None, server=Server("served", "http://user:sk-url@localhost/v1")),
            ResponsesConfig(), "cpu",
        )  # fmt: skip
    assert "sk-url" not in str(told.value)
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(HarnessError, match="needs a key: set OPENAI_API_KEY"):
        OpenAIEngine.open(
            Checkpoint(None, server=Server("gpt-x", "https://api.openai.com/v1")), ResponsesConfig(), "cpu"
        )


# --- servers that mean no good ---------------------------------------------------------------------

STEERS = "\x1b[2Jevil"


@pytest.fixture
def bad(server: CompletionsServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[fault_server.FaultServer]:
    monkeypatch.setattr("harness.engines.service.FIRST_WAIT_S", 0.001)
    with fault_server.running() as bad:
        yield bad


def bad_service(bad: fault_server.FaultServer, **settings: Any) -> Service:
    return Service(bad.url, ResponsesConfig(**settings))


@pytest.mark.parametrize(
    ("step", "says"),
    [
        (fault_server.drip, "no reply within 0.2 s, 3 times; is the server up"),
        (fault_server.dripped_headers, "no reply within 0.2 s, 3 times"),
        (fault_server.many_headers, "no connection (the connection broke), 3 times"),
        (fault_server.raw(b" " * 2**17), "a reply of more than 0.0625 MiB, 3 times"),
        (fault_server.raw(b"[" * 50_000), "no reply of the OpenAI API, 3 times"),
        (fault_server.raw(b'{"data": null}'), "no reply of the OpenAI API, 3 times"),
        (fault_server.raw(b'{"data": [1, "x"]}'), "no reply of the OpenAI API, 3 times"),
        (fault_server.raw(b"<html>", "text/html"), "no reply of the OpenAI API, 3 times"),
        (fault_server.raw(b"{}", "application/json; charset=zip"), "no reply of the OpenAI API, 3 times"),
        (fault_server.redirect(307, "http://127.0.0.1:9/v1"), f"answers 307: {http_client.ELSEWHERE}"),
        (fault_server.redirect(301, "//localhost:9/"), f"answers 301: {http_client.ELSEWHERE}"),
    ],
)  # fmt: skip
def test_a_listing_of_any_kind_ends_in_one_line(
    step: Any, says: str, bad: fault_server.FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_client, "MOST_BYTES", 2**16)
    bad.on_get = step
    with pytest.raises(HarnessError) as told:
        bad_service(bad, timeout_s=0.2).listed()
    assert says in str(told.value)
    assert str(told.value).startswith(bad.url)


def test_an_answer_that_drips_is_given_up_after_all_attempts(bad: fault_server.FaultServer) -> None:
    bad.default = [fault_server.drip]
    service = bad_service(bad, timeout_s=0.05)
    body = {"model": "judge-1", "messages": [{"role": "user", "content": "case-a"}]}
    with pytest.raises(HarnessError, match=r"no reply within 0\.05 s, 8 times"):
        service.ask(service.client.chat.completions.create, body, {})
    assert bad.asked["case-a"] == ATTEMPTS


@pytest.mark.parametrize(
    "reply",
    [
        {"choices": {"a": 1}},
        {"choices": [1]},
        {"choices": ["x"]},
        {"choices": [{}]},
        {"choices": [{"finish_reason": "stop"}]},
        {},
        [],
        1,
    ],
    ids=str,
)
def test_a_reply_of_another_shape_is_no_reply(bad: fault_server.FaultServer, reply: Any) -> None:
    bad.default = [fault_server.raw(json.dumps(reply).encode())]
    service = bad_service(bad)
    body = {"model": "judge-1", "messages": [{"role": "user", "content": "case-a"}]}
    with pytest.raises(HarnessError, match="no reply of the OpenAI API, 8 times"):
        service.ask(service.client.chat.completions.create, body, {})


ODD_NAMES: list[Any] = [
    None,
    7,
    {"a": 1},
    ["x"],
    True,
    "x" * 10**5,
    STEERS,
    "\udc80",
    "",
    "~nobody-here",
    "a\0b",
]


def test_odd_names_of_models_are_passed_over(server: CompletionsServer, opened: Open) -> None:
    odd = [{"id": name, "root": root} for name in ODD_NAMES for root in ODD_NAMES]
    server.models = [*odd, {"id": "served", "root": STEERS, "parent": {"a": 1}, "max_model_len": "long"}]
    assert opened(tokenizer=None).takes_ids is False
    assert opened().context_tokens == 4096  # the tokenizer's model's own
    with pytest.raises(HarnessError) as told:
        opened("absent")
    assert str(told.value) == f"{server.url} has no model 'absent'; it has served"
    with pytest.raises(HarnessError, match=r"does not serve .*; it has served$"):
        OpenAIEngine.open(Checkpoint(seed_model_path()), ResponsesConfig(server=server.url), "cpu")
    server.models = odd
    with pytest.raises(HarnessError, match=r"has no model 'served'; it has odd names alone$"):
        opened()


def test_of_many_models_a_few_are_named(server: CompletionsServer, opened: Open) -> None:
    server.models = [{"id": f"m{number}"} for number in range(1_000)]
    with pytest.raises(HarnessError, match=r"it has m0, m1, m2, m3, m4$"):
        opened()


@pytest.mark.parametrize("odd", [f"{STEERS}", "two words", "x" * 300, {"a": STEERS}, ["x"], None])
def test_what_an_error_calls_itself_is_shown_only_as_a_word(bad: fault_server.FaultServer, odd: Any) -> None:
    bad.default = [fault_server.error(400, odd, STEERS, odd)]
    service = bad_service(bad)
    body = {"model": "judge-1", "messages": [{"role": "user", "content": "case-a"}]}
    with pytest.raises(RefusedError) as told:
        service.ask(service.client.chat.completions.create, body, {})
    assert str(told.value) == "HTTP 400"
    bad.default = [fault_server.error(400, "bad_value", STEERS, "messages[0].content")]
    with pytest.raises(RefusedError, match=r"^HTTP 400 \(bad_value, messages\[0\]\.content\)$"):
        service.ask(service.client.chat.completions.create, body, {})


def test_an_answer_longer_than_its_tokens_can_be_counts_as_cut_off(
    server: CompletionsServer, opened: Open, tokenizer: Any
) -> None:
    engine = opened()
    server.answer = lambda prompt: ([5] * 3_000 + [tokenizer.eos_token_id] * 9, "stop")
    assert engine.generate([[1, 5]], Request(24)) == [[5] * 24]
    asking(engine).generate_until([request()])
    assert asking(engine).completions["some-task", 0, 0].finish_reason == "length"
    server.answer = lambda prompt: ([5] * 20 + [tokenizer.eos_token_id] * 9, "stop")
    assert engine.generate([[1, 5]], Request(24)) == [[*[5] * 20, tokenizer.eos_token_id]]
    chats = opened(tokenizer=None)
    server.answer = lambda asked: ([5, tokenizer.eos_token_id], "stop")
    for message in ({"content": "x" * 10**7}, {"reasoning": "y" * 10**7}):
        server.message = message
        asking(chats).generate_until([request()])
        found = asking(chats).completions["some-task", 0, 0]
        assert found.finish_reason == "length"
        assert len(found.text + (found.reasoning or "")) <= 24 * openai.LONGEST_TOKEN
    server.message = {"content": "x" * 24 * openai.LONGEST_TOKEN}
    asking(chats).generate_until([request()])
    assert asking(chats).completions["some-task", 0, 0].finish_reason == "stop"


def test_a_date_beyond_all_years_is_no_time_to_wait() -> None:
    assert _retry_after_s({"retry-after": f"Mon, 01 Jan {10**20} 00:00:00 GMT"}) == 0.0


@pytest.mark.parametrize("score", [None, "x", float("nan"), {"a": 1}])
def test_odd_log_probabilities_are_none(server: CompletionsServer, opened: Open, score: Any) -> None:
    engine = opened()
    kept = completions_server.Handler.logprobs

    def logprobs(handler: Any, ids: list[int]) -> dict[str, Any]:
        found = kept(handler, ids)
        return found | {"token_logprobs": [*found["token_logprobs"][:-2], score, score]}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(completions_server.Handler, "logprobs", logprobs)
        with pytest.raises(HarnessError, match="gives no log-probabilities of a prompt"):
            engine.logprobs([([1, 3, 5], [4, 6])], Request())


def test_an_engine_that_does_not_open_leaves_nothing_running(server: CompletionsServer, opened: Open) -> None:
    def running() -> int:
        return sum(thread.name == "http-client" for thread in threading.enumerate())

    before = running()
    with pytest.raises(HarnessError):
        opened("absent")
    assert running() == before
