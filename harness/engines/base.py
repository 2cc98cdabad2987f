"""What every engine shares: lm-eval's requests become token ids here, one way for all engines.

lm-eval hands an engine a rendered string and would tokenize it again; that changes a prefilled answer's ids
and may double the BOS. So the "rendered" prompt is the conversation itself as JSON, and the ids are made
once: chat template with its generation prompt, then the document's prefill ids.
"""

from __future__ import annotations

import json
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from harness import chat
from harness.contracts import HarnessError, Message


@dataclass(frozen=True, slots=True)
class Completion:
    """A generated continuation: text without special tokens, its token count and why it ended."""

    text: str
    tokens: int
    finish_reason: Literal["stop", "length"]


class IdEngine(LM):
    """An lm-eval model whose subclasses only generate from ids.

    ``completions`` keeps what lm-eval's result does not carry, by (task, document index).
    """

    tokenizer: Any

    def __init__(self) -> None:
        super().__init__()
        self.completions: dict[tuple[str, int], Completion] = {}
        self.system_prompt: Callable[[str | None], str | None] = lambda own: own  # may change the task's own
        self.seconds = 0.0  # spent generating
        self.on_progress: Callable[[int], None] = lambda done: None

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
        """Continuations, end-of-turn token included where one came, in the order of the prompts.

        ``temperature`` 0 is greedy; above it each token is drawn from the ``top_p`` nucleus, the same for the
        same prompts and ``seed``, and no other random draw of the process is disturbed.
        """

    @property
    @abstractmethod
    def stop_ids(self) -> set[int]: ...

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        return json.dumps(chat_history, ensure_ascii=False)

    def prompt_ids(self, request: Instance) -> list[int]:
        """The ids that the model continues for one request: prompt, then prefill."""
        turns = [Message(turn["role"], turn["content"]) for turn in json.loads(request.args[0])]
        if turns[-1].role == "assistant":  # lm-eval's gen_prefix; its ids come from the document
            if "prefill_ids" not in request.doc:
                raise HarnessError(
                    f"task '{request.task_name}' prefills text (gen_prefix) without 'prefill_ids': "
                    "see tasks/prefill.py"
                )
            turns = turns[:-1]
        own, rest = (turns[0].content, turns[1:]) if turns[0].role == "system" else (None, turns)
        system = self.system_prompt(own)
        turns = [Message("system", system), *rest] if system else rest
        return chat.prompt_ids(self.tokenizer, turns) + list(request.doc.get("prefill_ids") or ())

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        for request in requests:
            options = request.args[1]
            if options.get("do_sample") or float(options.get("temperature") or 0) > 0:
                raise HarnessError(
                    f"task '{request.task_name}' asks for sampling; this engine decodes greedily"
                )
            if "max_gen_toks" not in options:
                raise HarnessError(f"task '{request.task_name}' sets no generation_kwargs.max_gen_toks")
        by_length: dict[int, list[int]] = {}
        for index, request in enumerate(requests):
            by_length.setdefault(int(request.args[1]["max_gen_toks"]), []).append(index)
        texts = [""] * len(requests)
        for max_new_tokens, indices in by_length.items():
            prompts = [self.prompt_ids(requests[index]) for index in indices]
            start = time.perf_counter()
            continuations = self.generate(prompts, max_new_tokens)
            self.seconds += time.perf_counter() - start
            for index, ids in zip(indices, continuations, strict=True):
                request = requests[index]
                completion = self.completion(ids, list(request.doc.get("prefill_ids") or ()))
                for stop in request.args[1].get("until") or ():
                    if stop and stop in completion.text:
                        completion = Completion(completion.text.split(stop)[0], completion.tokens, "stop")
                texts[index] = completion.text
                self.completions[request.task_name or "", request.doc_id or 0] = completion
        return texts

    def completion(self, ids: list[int], prefill: list[int]) -> Completion:
        """Decode a continuation as it reads after its prefill (a leading space would be lost alone)."""
        ended = bool(ids) and ids[-1] in self.stop_ids
        body = ids[:-1] if ended else ids
        before = self.tokenizer.decode(prefill, skip_special_tokens=True) if prefill else ""
        whole = self.tokenizer.decode(prefill + body, skip_special_tokens=True)
        text = (
            whole[len(before) :]
            if whole.startswith(before)
            else self.tokenizer.decode(body, skip_special_tokens=True)
        )
        return Completion(text.rstrip("\N{REPLACEMENT CHARACTER}"), len(ids), "stop" if ended else "length")

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> Any:
        raise HarnessError("this engine scores generated answers only; pick a generate_until task")

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> Any:
        raise HarnessError("this engine scores generated answers only; pick a generate_until task")
