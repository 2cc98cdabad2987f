"""What every engine shares: lm-eval's requests become token ids here, one way for all engines.

lm-eval hands an engine a rendered string and would tokenize it again; that changes a prefilled answer's ids
and may double the BOS. So the "rendered" prompt is the conversation itself as JSON, and the ids are made
once: chat template with its generation prompt, then the document's prefill ids. What a response is (stop
tokens, stop strings, ends of turns, reasoning, lengths) is decided here too; an engine only continues ids.
"""

from __future__ import annotations

import json
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from harness import finish
from harness.config import ResponsesConfig
from harness.contracts import HarnessError, Message
from harness.engines import replies
from harness.models import chat, model_limits, reasoning
from harness.models.checkpoints import Checkpoint

DEFAULT_TOKENS = 256  # of an lm-eval task that sets no max_gen_toks: lm-eval's own default
SAMPLE_SEED = 1234  # of sampled decodings, with the sample's number


@dataclass(frozen=True, slots=True)
class Completion:
    """A generated continuation: the answer's text without special tokens, the reasoning before it, its token
    count (both) and why it ended, in the engine's or server's own word (harness/finish.py)."""

    text: str
    tokens: int
    finish_reason: str | None
    reasoning: str | None = None  # of a thinking model; not scored, not judged
    unavailable: str | None = None  # why there is no answer, where the engine knows; quotes nothing


class Decoding(NamedTuple):
    """How a prompt is continued: ``temperature`` 0 is greedy."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


class IdEngine(LM):
    """An lm-eval model whose subclasses only work on ids.

    ``completions`` keeps what lm-eval's result does not carry, by (task, document index, sample).
    """

    tokenizer: Any
    context_tokens: int  # the longest prompt and answer together
    stop_ids: set[int]  # every token that ends an answer
    rows = model_limits.UNBOUNDED  # of the model's embedding: token ids that it knows
    takes_ids = True  # False: a server that builds prompts itself (engines/openai.py)

    def __init__(self) -> None:
        super().__init__()
        self.completions: dict[tuple[str, int, int], Completion] = {}
        self.system_prompt: Callable[[str | None], str | None] = lambda own: own  # may change the task's own
        self.decodings: Sequence[Mapping[str, float]] = ()  # of a task's samples, in their order
        self.takes_messages = True  # a document's own conversation is sent as it stands
        self.thinking = False  # models that can think do
        self.seconds = 0.0  # spent generating
        self.on_progress: Callable[[int], None] = lambda done: None
        self.known: Mapping[int, list[int]] = {}  # answers of an interrupted run, by request
        self.on_note: Callable[[str], None] = lambda line: None
        self.out_of_memory: list[int] = []  # to how many prompts at once an engine had to come down
        self.on_fewer: Callable[[int], None] = lambda prompts: None  # it has to, once more
        self.on_answers: Callable[[dict[int, list[int]]], None] = lambda answers: None

    # --- what an engine does -----------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def open(cls, checkpoint: Checkpoint, settings: ResponsesConfig, device: str) -> IdEngine:
        """An engine that answers as ``checkpoint``. Raises HarnessError where it cannot be had."""

    @abstractmethod
    def generate(
        self,
        prompts: Sequence[list[int]],
        max_new_tokens: int,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> list[list[int]]:
        """Continuations, end-of-turn token included where one came, in the order of the prompts. One that is
        more than ids, such as how a server says that it ended, is a ``replies.Reply``, packed.

        ``temperature`` 0 is greedy; above it each token is drawn from the ``top_p`` nucleus, the same for the
        same prompts and ``seed``, and no other random draw of the process is disturbed.
        """

    @abstractmethod
    def plan(self, prompts: Sequence[list[int]]) -> list[list[int]]:
        """The prompts' places, in the batches in which they are to be generated: fixed by the prompts, so
        that a resumed run generates as an uninterrupted one does."""

    @abstractmethod
    def logprobs(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """For each (context ids, continuation ids): the continuation's log-probability, and whether greedy
        decoding would give it."""

    def begin(self, out_of_memory: Sequence[int] = ()) -> None:
        """Begin with a task. ``out_of_memory``: to how many prompts at once an interrupted run of it had to
        come down, so that what is left is batched as it would have batched it."""
        self.out_of_memory = [*out_of_memory]

    def use(self, checkpoint: Checkpoint) -> bool:
        """Answer as another checkpoint from now on, tokenizer and stop tokens included, where that is cheaper
        than a new engine; False where it is not, and nothing has changed then."""
        return False

    def close(self) -> None:
        """Give the device's memory back."""

    # --- prompts -----------------------------------------------------------------------------------

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        return json.dumps(chat_history, ensure_ascii=False)

    def conversation(self, request: Instance) -> list[Message]:
        """The turns that a request shows, the system prompt as the method under test has it."""
        whole = self.takes_messages and isinstance(request.doc, Mapping)
        shown = request.doc.get("messages") if whole else None
        turns = [Message(turn["role"], turn["content"]) for turn in (shown or json.loads(request.args[0]))]
        if turns[-1].role == "assistant":  # lm-eval's gen_prefix; its ids are the prefill
            turns = turns[:-1]
        own, rest = (turns[0].content, turns[1:]) if turns[0].role == "system" else (None, turns)
        system = self.system_prompt(own)
        return [Message("system", system), *rest] if system else rest

    def prefill_ids(self, request: Instance) -> list[int]:
        """The ids with which the answer is opened: the document's, or those of the task's own gen_prefix."""
        if "prefill_ids" in request.doc:
            return list(request.doc["prefill_ids"] or ())
        last = json.loads(request.args[0])[-1]
        return chat.token_ids(self.tokenizer, last["content"]) if last["role"] == "assistant" else []

    def prompt_ids(self, request: Instance) -> list[int]:
        """The ids that the model continues for one request: prompt, then prefill."""
        prefill = self.prefill_ids(request)
        turns = self.conversation(request)
        thinking = self.thinking and not prefill
        ids = chat.prompt_ids(self.tokenizer, turns, thinking=thinking, answering=bool(prefill)) + prefill
        return self._known(ids, request)

    def _known(self, ids: list[int], request: Instance) -> list[int]:
        """The ids of a request. Raises HarnessError for one that the model has not."""
        where = f"task '{request.task_name}', document {request.doc_id}"
        model_limits.check_ids(self.tokenizer, ids, self.rows, where)
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
            request, prefill = requests[index], self.prefill_ids(requests[index])
            thinking = chat.thinking_at(self.tokenizer, prompts[index], answering=bool(prefill))
            completion = self.completion(ids, prefill, thinking)
            until = request.args[1].get("until") or ()
            for stop in [until] if isinstance(until, str) else until:
                if stop and stop in completion.text:
                    cut = completion.text.split(stop)[0]
                    completion = _ended(replace(completion, text=cut))
            texts[index] = completion.text
            self.completions[request.task_name or "", request.doc_id or 0, samples[index]] = completion
        return texts

    def _decoding(self, request: Instance, sample: int, prompt_tokens: int) -> Decoding:
        options = request.args[1]
        temperature, top_p = float(options.get("temperature") or 0), float(options.get("top_p") or 1)
        if not options.get("do_sample", temperature > 0):
            temperature = 0.0
        if self.decodings:
            chosen = self.decodings[sample % len(self.decodings)]
            temperature, top_p = float(chosen.get("temperature", 1.0)), float(chosen.get("top_p", 1.0))
        wanted = int(options.get("max_gen_toks") or options.get("max_new_tokens") or DEFAULT_TOKENS)
        room = self.context_tokens - prompt_tokens
        if room < 1:
            raise HarnessError(
                f"task '{request.task_name}', document {request.doc_id}: its prompt has "
                f"{prompt_tokens:,} tokens and the model's context {self.context_tokens:,}"
            )
        seed = SAMPLE_SEED + sample if temperature else 0
        return Decoding(min(wanted, room), temperature, top_p if temperature else 1.0, seed)

    def _answers(
        self, prompts: Sequence[list[int]], groups: Mapping[Decoding, Sequence[int]]
    ) -> Iterator[tuple[int, list[int]]]:
        """(request, ids) of each answer, batch by batch; those that are known are not generated again."""
        for decoding, indices in groups.items():
            for batch in self.plan([prompts[index] for index in indices]):
                places = [indices[place] for place in batch]
                if all(replies.is_readable(self.known.get(index, (replies.WRITTEN,))) for index in places):
                    found = {index: self.known[index] for index in places}
                    self.on_progress(len(places))
                else:
                    start = time.perf_counter()
                    made = self.generate(
                        [prompts[index] for index in places],
                        decoding.max_new_tokens,
                        temperature=decoding.temperature,
                        top_p=decoding.top_p,
                        seed=decoding.seed * 100_003 + batch[0],  # batches draw apart
                    )
                    self.seconds += time.perf_counter() - start
                    found = dict(zip(places, made, strict=True))
                    self.on_answers(found)
                yield from found.items()

    def completion(
        self, ids: list[int], prefill: list[int], thinking: chat.Thinking = chat.PLAIN
    ) -> Completion:
        """Decode a continuation as it reads after its prefill (a leading space would be lost alone).
        ``thinking``: how its prompt left the model."""
        reply = replies.unpacked(ids)
        if reply is not None and reply.ids is None:
            made = Completion(
                reply.text, reply.tokens, reply.finish_reason, reply.reasoning, reply.unavailable
            )
            return self.answered(made, thinking)
        ids = ids if reply is None else list(reply.ids or ())
        kept = self.to_stop(ids)
        ended = bool(kept) and kept[-1] in self.stop_ids
        reason = ("stop" if ended else "length") if reply is None else reply.finish_reason
        text = self._continued(kept[:-1] if ended else kept, prefill).rstrip("\N{REPLACEMENT CHARACTER}")
        called = finish.CALLED_TOOL if self._calls(kept, prefill, thinking) else None
        made = Completion(text, len(kept), reason, unavailable=called)
        return self.answered(made if len(kept) == len(ids) else _ended(made), thinking)

    def _calls(self, ids: list[int], prefill: list[int], thinking: chat.Thinking) -> bool:
        """Whether an answer begins with a control token of a tool call, which its text does not show."""
        special, name = chat.special_ids(self.tokenizer), self.tokenizer.convert_ids_to_tokens
        calls = {one for one in special.intersection(ids) if replies.begins_with_call(str(name(one)))}
        place = next((place for place, token in enumerate(ids) if token in calls), None)
        if place is None:
            return False
        before = Completion(self._continued(ids[:place], prefill), place, "stop")
        said = self.answered(before, thinking)
        return said.unavailable is None and not finish.has_text(said.text)

    def to_stop(self, ids: list[int]) -> list[int]:
        """Generated ids up to the first that ends an answer, itself included."""
        end = next((place for place, token in enumerate(ids) if token in self.stop_ids), len(ids))
        return ids[: end + 1]

    def _continued(self, ids: list[int], prefill: list[int]) -> str:
        before = chat.text_of(self.tokenizer, prefill) if prefill else ""
        whole = chat.text_of(self.tokenizer, prefill + ids)
        return whole[len(before) :] if whole.startswith(before) else chat.text_of(self.tokenizer, ids)

    def answered(self, made: Completion, thinking: chat.Thinking) -> Completion:
        """What was generated, its whole text in ``made.text``, with reasoning and answer apart and the answer
        up to the end of its turn. Reasoning that ``made`` has already comes before that in the text."""
        found = reasoning.split(made.text, opened=thinking.opened, reasons=thinking.reasons)
        thoughts = [part for part in (made.reasoning, found.reasoning) if part is not None]
        form = chat.format_of(self.tokenizer) if getattr(self.tokenizer, "chat_template", None) else None
        answer = chat.to_end(found.answer, form)
        called = finish.CALLED_TOOL if replies.begins_with_call(answer) else None
        kept = replace(
            made,
            text=answer,
            reasoning="\n\n".join(filter(None, thoughts)) if thoughts else None,
            unavailable=made.unavailable or called or found.unavailable(made.finish_reason),
        )
        return kept if answer == found.answer else _ended(kept)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        pairs = [self.pair(request) for request in requests]
        found: dict[int, tuple[float, bool]] = {}
        start = time.perf_counter()
        for batch in self.plan([context + continuation for context, continuation in pairs]):
            found |= zip(batch, self.logprobs([pairs[index] for index in batch]), strict=True)
            self.on_progress(len(batch))
        self.seconds += time.perf_counter() - start
        return [found[index] for index in range(len(requests))]

    def pair(self, request: Instance) -> tuple[list[int], list[int]]:
        """Ids of context and continuation, split as lm-eval splits them: what the continuation adds to the
        context's ids, white space at the context's end counted to the continuation."""
        context, continuation = cast(tuple[str, str], request.args)
        turns = json.loads(context)
        opened = turns[-1]["content"] if turns[-1]["role"] == "assistant" else ""
        text = chat.render(self.tokenizer, self.conversation(request), generation_prompt=True) + opened
        blanks = len(text) - len(text.rstrip())
        if blanks:
            text, continuation = text[:-blanks], text[-blanks:] + continuation
        before = chat.token_ids(self.tokenizer, text)
        whole = self._known(chat.token_ids(self.tokenizer, text + continuation), request)
        if len(whole) > self.context_tokens:
            raise HarnessError(
                f"task '{request.task_name}', document {request.doc_id}: it has {len(whole):,} tokens "
                f"and the model's context {self.context_tokens:,}"
            )
        return before, whole[len(before) :]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> Any:
        raise HarnessError(
            f"task '{requests[0].task_name}' measures perplexity, which is no rate and no utility column"
        )


def _ended(made: Completion) -> Completion:
    """An answer that ends before its limit cut it off."""
    return replace(made, finish_reason="stop") if finish.cut_off(made.finish_reason) else made


def _samples(requests: Sequence[Instance]) -> Iterator[int]:
    """Which sample of its document each request is, from 0: lm-eval repeats the same object."""
    seen: Counter[int] = Counter()
    for request in requests:
        yield seen[id(request)]
        seen[id(request)] += 1
