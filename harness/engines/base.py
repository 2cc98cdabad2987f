"""What every engine is: a class whose attributes say what its answers depend on and what it needs, and whose
objects continue token ids for one checkpoint.

A plan asks the class, so a module with an engine imports its libraries inside functions. What a response is
(stop tokens, ends of turns, reasoning) is decided here, once for all engines; how lm-eval's requests become
ids stands in lm.py.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any, ClassVar, NamedTuple

from harness import finish
from harness.config import ResponsesConfig
from harness.contracts import HarnessError, Message
from harness.engines import replies
from harness.models import chat, model_limits, reasoning
from harness.models.checkpoints import Checkpoint

DEFAULT_TOKENS = 256  # of an answer whose length nobody says: lm-eval's own default


@dataclass(frozen=True, slots=True)
class Completion:
    """A generated continuation: the answer's text without special tokens, the reasoning before it, its token
    count (both) and why it ended, in the engine's or server's own word (harness/finish.py)."""

    text: str
    tokens: int
    finish_reason: str | None
    reasoning: str | None = None  # of a thinking model; not scored, not judged
    unavailable: str | None = None  # why there is no answer, where the engine knows; quotes nothing


@dataclass(frozen=True, slots=True)
class Request:
    """How one call's prompts are continued, and who hears of it. ``temperature`` 0 is greedy; above it each
    token is drawn from the ``top_p`` nucleus, the same for the same prompts and ``seed``.

    ``thinking``: whether models that can think do, where a server builds the prompts. ``came_down_to``: to
    how many prompts at once the work that this call belongs to has had to come down for want of memory, so
    that what is left of it is batched as it would have been. ``on_progress`` hears of prompts that are done,
    ``on_fewer`` of a further step down, ``on_note`` of lines for the user.
    """

    max_new_tokens: int = DEFAULT_TOKENS
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    thinking: bool = False
    came_down_to: tuple[int, ...] = ()
    on_progress: Callable[[int], object] = lambda prompts: None
    on_fewer: Callable[[int], object] = lambda prompts: None
    on_note: Callable[[str], object] = lambda line: None


class Package(NamedTuple):
    """A package that an engine imports: its module, its name in words, and the command that installs it."""

    module: str
    name: str
    install: str


class Engine(ABC):
    """One way to answer. The class attributes and class methods are asked before anything is loaded."""

    settings: ClassVar[tuple[str, ...]] = ()
    """of the recipe's ``responses``: those that answers depend on, besides select.ALWAYS"""
    settings_if_set: ClassVar[tuple[str, ...]] = ()
    """the same, part of an identity only where they are not the default: settings that came later"""
    packages: ClassVar[tuple[str, ...]] = ()
    """distributions whose versions answers depend on, besides the libraries that all engines share"""
    needs: ClassVar[tuple[Package, ...]] = ()
    """packages that it cannot work without"""
    device_kinds: ClassVar[tuple[str, ...]] = ("cpu", "cuda")
    """the kinds of device that it works on; none: it uses no device of this machine"""
    remote: ClassVar[bool] = False
    """whether a server has the model: one that the user has started, and which may need a tokenizer's name"""
    serves_all: ClassVar[bool] = False
    """whether it is started once and then answers as one checkpoint after the other, the device to itself"""
    like_transformers: ClassVar[bool] = False
    """whether its speed and memory are those of transformers with one batch at a time, which are forecast"""
    takes_ids: ClassVar[bool] = True
    """whether prompts go as token ids; False where something else builds them"""

    tokenizer: Any
    context_tokens: int  # the longest prompt and answer together
    stop_ids: set[int]  # every token that ends an answer
    rows: int = model_limits.UNBOUNDED  # of the model's embedding: token ids that it knows

    # --- what the class is asked -------------------------------------------------------------------

    @classmethod
    def missing(cls) -> list[Package]:
        """What it needs and is not installed."""
        return [package for package in cls.needs if not is_here(package.module)]

    @classmethod
    def check(cls, name: str, settings: ResponsesConfig, device: str) -> None:
        """Raises HarnessError where it cannot work, before anything is spent. ``name``: how it is called."""
        for package in cls.missing():
            raise HarnessError(f"{package.name} is not installed: {package.install}")
        if cls.packages and not any(distribution_is_here(package) for package in cls.packages):
            raise HarnessError(
                f"engine {name} names {' and '.join(cls.packages)} in packages, and no such distribution is "
                "installed: write the name that pip shows for it, so that its version counts"
            )
        if cls.device_kinds and device not in cls.device_kinds:
            raise HarnessError(
                f"engine {name} works on {' or '.join(cls.device_kinds)} and not on {device}: "
                "another --engine, or another --set training.device=…"
            )

    @classmethod
    def devices(cls, settings: ResponsesConfig) -> int:
        """How many GPUs it takes, where the run's device is one."""
        return 1 if cls.device_kinds else 0

    @classmethod
    def suits(cls, settings: ResponsesConfig, device: str, weights: Callable[[], int | None]) -> bool:
        """Whether ``engine: auto`` is this one, where none before it is. ``weights``: the base model's bytes,
        None where they are not here yet."""
        return False

    @classmethod  # noqa: B027 (an engine may have nothing to import)
    def import_libraries(cls) -> None:
        """Import what it works with, so that the seconds are counted in one place."""

    @classmethod
    @abstractmethod
    def open(cls, checkpoint: Checkpoint, settings: ResponsesConfig, device: str) -> Engine:
        """An engine that answers as ``checkpoint``. Raises HarnessError where it cannot be had."""

    # --- what an engine does -----------------------------------------------------------------------

    @abstractmethod
    def generate(self, prompts: Sequence[list[int]], request: Request) -> list[list[int]]:
        """Continuations, end-of-turn token included where one came, in the order of the prompts. One that is
        more than ids, such as how a server says that it ended, is a ``replies.Reply``, packed. No other
        random draw of the process is disturbed."""

    def plan(self, prompts: Sequence[list[int]]) -> list[list[int]]:
        """The prompts' places, in the batches in which they are to be generated: fixed by the prompts, so
        that a resumed run generates as an uninterrupted one does. Here all at once."""
        return [list(range(len(prompts)))] if prompts else []

    @abstractmethod
    def logprobs(
        self, pairs: Sequence[tuple[list[int], list[int]]], request: Request
    ) -> list[tuple[float, bool]]:
        """For each (context ids, continuation ids): the continuation's log-probability, and whether greedy
        decoding would give it. Of ``request`` the memory and the listeners count."""

    def use(self, checkpoint: Checkpoint) -> bool:
        """Answer as another checkpoint from now on, tokenizer and stop tokens included, where that is cheaper
        than a new engine; False where it is not, and nothing has changed then."""
        return False

    def close(self) -> None:  # noqa: B027 (nor anything to give back)
        """Give the device's memory back."""

    # --- prompts and answers -----------------------------------------------------------------------

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path)

    def prompt_ids(
        self, turns: Sequence[Message], prefill: Sequence[int] = (), *, thinking: bool = False, task: str = ""
    ) -> list[int]:
        """The ids that the model continues: the conversation's, then those that open the answer. ``task``:
        whose, for errors."""
        ids = chat.prompt_ids(
            self.tokenizer, turns, thinking=thinking and not prefill, answering=bool(prefill)
        )
        return ids + list(prefill)

    def pair_ids(
        self, turns: Sequence[Message], opened: str, continuation: str
    ) -> tuple[list[int], list[int]]:
        """Ids of a conversation with its ``opened`` answer, and of its continuation, split as lm-eval splits
        them: what the continuation adds to the context's ids, white space at the context's end counted to the
        continuation."""
        text = chat.render(self.tokenizer, turns, generation_prompt=True) + opened
        blanks = len(text) - len(text.rstrip())
        if blanks:
            text, continuation = text[:-blanks], text[-blanks:] + continuation
        before = chat.token_ids(self.tokenizer, text)
        return before, chat.token_ids(self.tokenizer, text + continuation)[len(before) :]

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
        return self.answered(made if len(kept) == len(ids) else stopped(made), thinking)

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
        return kept if answer == found.answer else stopped(kept)


def is_here(module: str) -> bool:
    """Whether a package could be imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # a part of a package that is not there; a module that is a stand-in
        return False


def distribution_is_here(name: str) -> bool:
    """Whether a distribution is installed, by the name that pip has for it."""
    return next(iter(metadata.distributions(name=name)), None) is not None


def stopped(made: Completion) -> Completion:
    """An answer that ends before its limit cut it off."""
    return replace(made, finish_reason="stop") if finish.cut_off(made.finish_reason) else made
