"""An engine as lm-eval sees it: a task's requests become token ids here, one way for all engines.

lm-eval hands a model a rendered string and would tokenize it again; that changes a prefilled answer's ids
and may double the BOS. So the "rendered" prompt is the conversation itself as JSON, and the ids are made
once: chat template with its generation prompt, then the document's prefill ids. How long an answer may be,
and with which decoding and seed it is made, is decided here too.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, cast

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from harness.contracts import HarnessError, Message
from harness.engines import engine_checks, replies
from harness.engines.base import DEFAULT_TOKENS, Completion, Engine, Request, stopped
from harness.models import chat, model_limits

SAMPLE_SEED = 1234  # of sampled decodings, with the sample's number


class Decoding(NamedTuple):
    """How a prompt is continued: ``temperature`` 0 is greedy."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Asking:
    """How some documents of a task are asked.

    ``system_prompt`` may change the task's own; ``decodings``: of a document's samples, in their order;
    ``takes_messages``: a document's own conversation is sent as it stands; ``thinking``: models that can
    think do; ``known``: the answers of an interrupted run, by request, and ``came_down_to`` its steps down
    for want of memory (Request). The listeners are Request's; ``on_answers`` gets each batch's answers by
    request.
    """

    system_prompt: Callable[[str | None], str | None] = lambda own: own
    decodings: Sequence[Mapping[str, float]] = ()
    takes_messages: bool = True
    thinking: bool = False
    known: Mapping[int, list[int]] = field(default_factory=dict)
    came_down_to: tuple[int, ...] = ()
    on_progress: Callable[[int], object] = lambda prompts: None
    on_fewer: Callable[[int], object] = lambda prompts: None
    on_note: Callable[[str], object] = lambda line: None
    on_answers: Callable[[dict[int, list[int]]], object] = lambda answers: None


class TaskModel(LM):
    """lm-eval's model for some documents of one task: ``engine``, asked as ``asking`` says.

    ``completions`` keeps what lm-eval's result does not carry, by (task, document index, sample);
    ``seconds``: spent generating; ``came_down_to``: to how many prompts at once the engine has had to come
    down so far.
    """

    def __init__(self, engine: Engine, asking: Asking | None = None) -> None:
        super().__init__()
        self._engine, self._asking = engine, asking or Asking()
        self.completions: dict[tuple[str, int, int], Completion] = {}
        self.seconds = 0.0
        self.came_down_to = self._asking.came_down_to

    # --- prompts -----------------------------------------------------------------------------------

    @property
    def tokenizer_name(self) -> str:
        return self._engine.tokenizer_name

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        return json.dumps(chat_history, ensure_ascii=False)

    def conversation(self, request: Instance) -> list[Message]:
        """The turns that a request shows, the system prompt as the method under test has it."""
        whole = self._asking.takes_messages and isinstance(request.doc, Mapping)
        shown = request.doc.get("messages") if whole else None
        turns = [Message(turn["role"], turn["content"]) for turn in (shown or json.loads(request.args[0]))]
        if turns[-1].role == "assistant":  # lm-eval's gen_prefix; its ids are the prefill
            turns = turns[:-1]
        own, rest = (turns[0].content, turns[1:]) if turns[0].role == "system" else (None, turns)
        system = self._asking.system_prompt(own)
        return [Message("system", system), *rest] if system else rest

    def prefill_ids(self, request: Instance) -> list[int]:
        """The ids with which the answer is opened: the document's, or those of the task's own gen_prefix."""
        if "prefill_ids" in request.doc:
            return list(request.doc["prefill_ids"] or ())
        last = json.loads(request.args[0])[-1]
        return chat.token_ids(self._engine.tokenizer, last["content"]) if last["role"] == "assistant" else []

    def prompt_ids(self, request: Instance) -> list[int]:
        """The ids that the model continues for one request: prompt, then prefill."""
        ids = self._engine.prompt_ids(
            self.conversation(request),
            self.prefill_ids(request),
            thinking=self._asking.thinking,
            task=request.task_name or "",
        )
        return self._known_ids(ids, request)

    def pair(self, request: Instance) -> tuple[list[int], list[int]]:
        """Ids of context and continuation."""
        context, continuation = cast(tuple[str, str], request.args)
        last = json.loads(context)[-1]
        opened = last["content"] if last["role"] == "assistant" else ""
        before, rest = self._engine.pair_ids(self.conversation(request), opened, continuation)
        whole = self._known_ids(before + rest, request)
        if len(whole) > self._engine.context_tokens:
            raise HarnessError(
                f"task '{request.task_name}', document {request.doc_id}: it has {len(whole):,} tokens "
                f"and the model's context {self._engine.context_tokens:,}"
            )
        return before, rest

    def _known_ids(self, ids: list[int], request: Instance) -> list[int]:
        """The ids of a request. Raises HarnessError for one that the model has not."""
        where = f"task '{request.task_name}', document {request.doc_id}"
        model_limits.check_ids(self._engine.tokenizer, ids, self._engine.rows, where)
        return ids

    # --- lm-eval's three questions -----------------------------------------------------------------

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        samples = list(_samples(requests))
        prompts = [self.prompt_ids(request) for request in requests]
        groups: dict[Decoding, list[int]] = {}
        for index, request in enumerate(requests):
            decoding = self._decoding(request, samples[index], len(prompts[index]))
            groups.setdefault(decoding, []).append(index)
        texts = [""] * len(requests)
        for index, ids in self._answers(prompts, groups):
            request = requests[index]
            completion = self._completion(request, prompts[index], ids)
            texts[index] = completion.text
            self.completions[request.task_name or "", request.doc_id or 0, samples[index]] = completion
        return texts

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        pairs = [self.pair(request) for request in requests]
        found: dict[int, tuple[float, bool]] = {}
        start = time.perf_counter()
        for batch in engine_checks.planned(
            self._engine, [context + continuation for context, continuation in pairs]
        ):
            scored = self._engine.logprobs([pairs[index] for index in batch], self._request())
            engine_checks.check_scores(self._engine, scored, len(batch))
            found |= zip(batch, scored, strict=True)
            self._asking.on_progress(len(batch))
        self.seconds += time.perf_counter() - start
        return [found[index] for index in range(len(requests))]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> Any:
        raise HarnessError(
            f"task '{requests[0].task_name}' measures perplexity, which is no rate and no utility column"
        )

    # --- answers -----------------------------------------------------------------------------------

    def _decoding(self, request: Instance, sample: int, prompt_tokens: int) -> Decoding:
        options = request.args[1]
        temperature, top_p = float(options.get("temperature") or 0), float(options.get("top_p") or 1)
        if not options.get("do_sample", temperature > 0):
            temperature = 0.0
        if self._asking.decodings:
            chosen = self._asking.decodings[sample % len(self._asking.decodings)]
            temperature, top_p = float(chosen.get("temperature", 1.0)), float(chosen.get("top_p", 1.0))
        wanted = int(options.get("max_gen_toks") or options.get("max_new_tokens") or DEFAULT_TOKENS)
        room = self._engine.context_tokens - prompt_tokens
        if room < 1:
            raise HarnessError(
                f"task '{request.task_name}', document {request.doc_id}: its prompt has "
                f"{prompt_tokens:,} tokens and the model's context {self._engine.context_tokens:,}"
            )
        seed = SAMPLE_SEED + sample if temperature else 0
        return Decoding(min(wanted, room), temperature, top_p if temperature else 1.0, seed)

    def _request(self, decoding: Decoding | None = None) -> Request:
        asking = self._asking
        return Request(
            *(decoding or Decoding(DEFAULT_TOKENS)),
            thinking=asking.thinking,
            came_down_to=self.came_down_to,
            on_progress=asking.on_progress,
            on_fewer=self._came_down,
            on_note=asking.on_note,
        )

    def _came_down(self, prompts: int) -> None:
        self.came_down_to = (*self.came_down_to, prompts)
        self._asking.on_fewer(prompts)

    def _answers(
        self, prompts: Sequence[list[int]], groups: Mapping[Decoding, Sequence[int]]
    ) -> Iterator[tuple[int, list[int]]]:
        """(request, ids) of each answer, batch by batch; those that are known are not generated again."""
        known = self._asking.known
        for decoding, indices in groups.items():
            for batch in engine_checks.planned(self._engine, [prompts[index] for index in indices]):
                places = [indices[place] for place in batch]
                if all(replies.is_readable(known.get(index, (replies.WRITTEN,))) for index in places):
                    found = {index: known[index] for index in places}
                    self._asking.on_progress(len(places))
                else:
                    drawn = decoding._replace(seed=decoding.seed * 100_003 + batch[0])  # batches draw apart
                    start = time.perf_counter()
                    made = self._engine.generate([prompts[index] for index in places], self._request(drawn))
                    self.seconds += time.perf_counter() - start
                    engine_checks.check_answers(self._engine, made, len(places))
                    found = dict(zip(places, made, strict=True))
                    self._asking.on_answers(found)
                yield from found.items()

    def _completion(self, request: Instance, prompt: list[int], ids: list[int]) -> Completion:
        """An answer up to the first of its request's stop strings."""
        prefill = self.prefill_ids(request)
        thinking = chat.thinking_at(self._engine.tokenizer, prompt, answering=bool(prefill))
        completion = self._engine.completion(ids, prefill, thinking)
        until = request.args[1].get("until") or ()
        for stop in [until] if isinstance(until, str) else until:
            if stop and stop in completion.text:
                completion = stopped(replace(completion, text=completion.text.split(stop)[0]))
        return completion


def _samples(requests: Sequence[Instance]) -> Iterator[int]:
    """Which sample of its document each request is, from 0: lm-eval repeats the same object."""
    seen: Counter[int] = Counter()
    for request in requests:
        yield seen[id(request)]
        seen[id(request)] += 1
