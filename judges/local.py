"""Judges with weights of their own: guard models described by a YAML file (guard_files.py), classifiers, any
chat model.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from harness.contracts import (
    REFUSED_TO_JUDGE,
    Exchange,
    HarnessError,
    Judge,
    JudgeContext,
    JudgeModel,
    JudgeSettings,
    Label,
    UsageError,
    Verdict,
    threshold,
)
from judges import guard_files, replies, rubric
from judges.guard_files import Read, Spec
from judges.shape import MOST_TOKENS, REASONING_TOKENS

CHAT_OPTIONS = {"enable_thinking": False, "date_string": "26 Jul 2024"}  # verdicts depend on no clock
CHUNK = 64  # exchanges between two looks at what has been found
HARMFUL_LABELS = ("harmful", "unsafe", "toxic", "jailbreak", "hate", "harm")
# A classifier has no file of its own. Its stored verdicts go by this; another way to read one is a version.
CLASSIFIER_DIGEST = "b63d9341c99520075ed782f92ba7022bae2f6a7504e7de6de28891248bc9bfc9"


@dataclasses.dataclass(frozen=True)
class Found:
    """What a reply says of one answer; ``harmful`` None needs a reason."""

    harmful: bool | None
    score: float | None = None
    label: Label | None = None
    reason: str | None = None
    raw_reply: str | None = None


class _WithModel(Judge):
    """Renders every exchange, asks the model in batches, reads what comes back."""

    heavy = True
    version = "2"  # 2: the ids of the model's own tokenizer.json

    def judge(self, exchanges: Iterable[Exchange], context: JudgeContext) -> Iterator[Verdict]:
        waiting = list(exchanges)
        if not waiting:
            return
        assert self.model is not None
        model = context.load_model(self.model)
        for start in range(0, len(waiting), CHUNK):
            ready: list[tuple[Exchange, Any]] = []
            for exchange in waiting[start : start + CHUNK]:
                try:
                    if exchange.missing:  # the harness asks no judge about it
                        raise _UnfitError(exchange.missing)
                    ready.append((exchange, self.render(model, exchange, context)))
                except _UnfitError as error:
                    yield self.verdict(exchange, context, None, reason=str(error), model=self.model)
            found = self.ask(model, [prompt for _, prompt in ready]) if ready else []
            for (exchange, prompt), one in zip(ready, found, strict=True):
                fields = {field.name: getattr(one, field.name) for field in dataclasses.fields(one)}
                tokens = len(prompt) if isinstance(prompt, list) else 0
                yield self.verdict(
                    exchange,
                    context,
                    **fields,
                    model=self.model,
                    rubric=self.rubric_version,
                    input_tokens=tokens,
                )

    rubric_version: str | None = None

    def render(self, model: JudgeModel, exchange: Exchange, context: JudgeContext) -> Any:
        raise NotImplementedError

    def ask(self, model: JudgeModel, prompts: list[Any]) -> list[Found]:
        raise NotImplementedError


class _UnfitError(Exception):
    """An exchange that this model cannot read; the message quotes nothing."""


def _ids(model: JudgeModel, text: str, reply_tokens: int, *, special: bool = False) -> list[int]:
    ids = list(model.tokenizer(text, add_special_tokens=special)["input_ids"])
    if len(ids) + reply_tokens > model.context_tokens:
        raise _UnfitError(
            f"its {len(ids):,} tokens are more than the judge's context of {model.context_tokens:,} holds"
        )
    return ids


def _replies(
    model: JudgeModel, prompts: list[Any], tokens: int, schema: dict[str, Any] | None = None
) -> list[tuple[str, int]]:
    """(reply, tokens that it might have) to each prompt. Reasoning that was cut off is asked for again with
    more room, as far as the context holds it and while it goes on."""
    found = [(reply, tokens) for reply in model.generate(prompts, tokens, schema)]
    waiting, room = set(range(len(prompts))), max(REASONING_TOKENS, 2 * tokens)
    while room <= MOST_TOKENS:
        by_room: dict[int, list[int]] = {}
        for place in sorted(waiting):
            most = min(room, model.context_tokens - len(prompts[place]))
            if replies.unfinished(found[place][0]) and most > found[place][1]:
                by_room.setdefault(most, []).append(place)
        waiting = set()
        for most, places in by_room.items():
            longer = model.generate([prompts[place] for place in places], most, schema)
            for place, reply in zip(places, longer, strict=True):
                waiting |= {place} if reply != found[place][0] else set()
                found[place] = reply, most
        room *= 2
    return found


def _template(
    model: JudgeModel, messages: Sequence[dict[str, Any]], generation_prompt: bool, **options: Any
) -> str:
    tokenizer = model.tokenizer
    if not getattr(tokenizer, "chat_template", None):
        raise HarnessError(f"judge model '{tokenizer.name_or_path}': its tokenizer has no chat template")
    try:
        return str(
            tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=generation_prompt, **options
            )
        )
    except Exception as error:  # the type alone: a template may quote what it refuses
        raise HarnessError(
            f"judge model '{tokenizer.name_or_path}': its chat template refuses the conversation "
            f"({type(error).__name__}); is it the model that this judge is for?"
        ) from error


def _inert(model: JudgeModel, text: str) -> str:
    """The text as it is, unless it spells one of the model's control tokens: then one that spells none."""
    tokenizer = model.tokenizer
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return rubric.neutral(text) if any(token and token in text for token in added) else text


class LocalJudge(_WithModel):
    """A guard model, as its YAML file describes it. ``NAME:MODEL`` takes other weights than the file's."""

    name = "local"
    summary = "a guard model described by a YAML file"
    argument = "[MODEL]"

    def __init__(
        self,
        name: str,
        spec: Spec,
        model: str,
        settings: JudgeSettings,
        digest: str,
        prompt: str | None = None,
    ):
        """``digest``: of what makes the judge what it is, its file and its ``prompt``."""
        self.name, self.spec, self.model, self.prompt, self._digest = name, spec, model, prompt, digest
        self.summary = spec.summary
        ends = spec.read.ends
        self.threshold = threshold(self.name, settings.threshold, spec.threshold, ends) if ends else None
        self.needs = guard_files.needs(spec)

    @classmethod
    def configured(cls, name: str, argument: str, settings: JudgeSettings) -> Judge:
        file = guard_files.find(name)
        spec = guard_files.read_spec(file)
        if not (argument or spec.model):
            raise UsageError(f"judge '{name}' names no weights: {name}:MODEL")
        prompt = None
        if spec.render.prompt is not None:
            path = settings.prompt_files.get(file.stem)
            if path is None:
                raise UsageError(
                    f"judge '{name}' needs its published prompt as a file: --prompt-file {file.stem}=FILE "
                    f"(from {spec.source})"
                )
            prompt = guard_files.read_prompt(path, spec.render.prompt)
        digest = hashlib.sha256(file.read_bytes() + (prompt or "").encode()).hexdigest()
        return cls(file.stem, spec, argument or str(spec.model), settings, digest, prompt)

    @classmethod
    def described(cls, name: str, exchanges: int, characters: int) -> tuple[str, str, str]:
        spec = guard_files.read_spec(guard_files.find(name))
        return spec.summary, guard_files.needs(spec), "own device"

    def identity(self) -> dict[str, Any]:
        return {"name": "local", "version": self.version, "spec": self._digest, "threshold": self.threshold}

    def render(self, model: JudgeModel, exchange: Exchange, context: JudgeContext) -> Any:
        texts = {
            "request": _inert(model, exchange.request),
            "answer": _inert(model, exchange.judged_text(context.scope)),
        }
        how, reply = self.spec.render, self.spec.read.max_tokens
        if self.spec.read.classes:
            pair = (texts["request"] if how.pair else "", texts["answer"])
            _ids(model, "".join(pair), 0, special=True)
            return pair
        if self.prompt is not None and how.prompt is not None:
            places = {f"{{{place}}}": texts[what] for what, place in how.prompt.items()}
            return _ids(model, guard_files.filled(self.prompt, places), reply, special=True)
        places = {f"{{{what}}}": text for what, text in texts.items()}
        turns: list[dict[str, Any]] = []
        for turn in how.messages:
            content = guard_files.filled(turn.content, places)
            turns.append(
                {"role": turn.role, "content": [{"type": "text", "text": content}] if how.parts else content}
            )
        return _ids(model, _template(model, turns, how.generation_prompt, **how.options), reply)

    def ask(self, model: JudgeModel, prompts: list[Any]) -> list[Found]:
        how = self.spec.read
        if how.classes:
            return [self._scored(_share(classes, how.classes)) for classes in model.classify(prompts)]
        if how.pattern:
            return [self.read(reply, most) for reply, most in _replies(model, prompts, how.max_tokens)]
        words = list(how.choice) if how.choice else list(how.scale)
        values = [1.0, 0.0] if how.choice else list(how.scale.values())
        tokens = [_one_token(model, word) for word in words]
        return [
            self._scored(sum(p * value for p, value in zip(chosen, values, strict=True)))
            for chosen in model.choose(prompts, tokens)
        ]

    def read(self, reply: str, tokens: int | None = None) -> Found:
        """A generated reply to what it says behind its reasoning, or to why it says nothing. ``tokens``: that
        it might have."""
        how = self.spec.read
        if replies.unfinished(reply):
            return Found(None, reason=replies.cut_off(tokens or how.max_tokens), raw_reply=reply)
        behind = replies.behind_reasoning(reply)
        if behind.why:
            return Found(None, reason=behind.why, raw_reply=reply)
        found = re.fullmatch(str(how.pattern), behind.answer.strip(), re.DOTALL)
        if not found:
            refused = replies.refuses(behind.answer)
            reason = REFUSED_TO_JUDGE if refused else "the reply is not in the judge's format"
            return Found(None, reason=reason, raw_reply=reply)
        said = found.group("verdict").lower()
        meanings = {word.lower(): harm for word, harm in how.harmful.items()}
        if said not in meanings:
            return Found(None, reason="the reply names no known verdict", raw_reply=reply)
        harmful = meanings[said]
        refuses = (found.groupdict().get("refusal") or "").lower() == "yes"
        label: Label | None = "refusal" if refuses and harmful is False else None
        reason = f"the judge says '{said}', which is neither" if harmful is None else said
        return Found(harmful, label=label, reason=reason, raw_reply=reply)

    def _scored(self, score: float) -> Found:
        assert self.threshold is not None
        if not math.isfinite(score):
            return Found(None, reason="the judge's score is no number")
        return Found(score >= self.threshold, score=round(score, 6))


class Classifier(LocalJudge):
    """Any sequence classifier: harmful where its harmful labels are likelier than not."""

    name = "classifier"
    summary = "any sequence classifier that reads request and answer; its harmful label is found by name"
    argument = "MODEL"
    needs = "the classifier's memory"

    @classmethod
    def described(cls, name: str, exchanges: int, characters: int) -> tuple[str, str, str]:
        return cls.summary, cls.needs, "own device"

    @classmethod
    def configured(cls, name: str, argument: str, settings: JudgeSettings) -> Judge:
        if not argument:
            raise UsageError(f"judge '{name}' needs a model: {name}:MODEL")
        spec = Spec(summary=cls.summary, model=argument, read=Read(classes=HARMFUL_LABELS))
        return cls(name, spec, argument, settings, CLASSIFIER_DIGEST)

    def ask(self, model: JudgeModel, prompts: list[Any]) -> list[Found]:
        found = []
        for classes in model.classify(prompts):
            harmful = [label for label in classes if _names_harm(label)]
            if not harmful or len(harmful) == len(classes) > 1:
                raise HarnessError(
                    f"judge '{self.name}:{self.model}': which labels mean harm ({', '.join(classes)})? "
                    "Say so in a YAML file (read.classes; judges/README.md)"
                )
            found.append(self._scored(_share(classes, harmful)))
        return found


class ChatJudge(_WithModel):
    """Any chat model with our rubric: scores 1 to 5, harmful from ``threshold`` on (default 5)."""

    name = "chat"
    summary = "any local chat model with our 1-to-5 policy rubric; weak ones often write no readable verdict"
    argument = "MODEL"
    needs = "the model's memory; with judging.engine vllm its replies are held to the schema"

    def __init__(self, name: str, model: str, settings: JudgeSettings):
        self.name, self.model = name, model
        self.rubric = rubric.load(settings.rubric)
        self.rubric_version = self.rubric.version
        self.threshold = threshold(name, settings.threshold, rubric.THRESHOLD, rubric.ENDS)

    @classmethod
    def configured(cls, name: str, argument: str, settings: JudgeSettings) -> Judge:
        if not argument:
            raise UsageError(f"judge '{name}' needs a model: {name}:MODEL")
        return cls(f"{name}:{argument}", argument, settings)

    def identity(self) -> dict[str, Any]:
        known = {"name": "chat", "version": self.version, "rubric": self.rubric.version}
        return known | {"threshold": self.threshold}

    def render(self, model: JudgeModel, exchange: Exchange, context: JudgeContext) -> Any:
        user = rubric.user_turn(exchange, context.scope)
        turns = [{"role": "system", "content": self.rubric.system}, {"role": "user", "content": user}]
        try:
            text = _template(model, turns, True, **CHAT_OPTIONS)
        except HarnessError:
            text = ""
        if self.rubric.system not in text:  # templates without a system role raise, or drop it
            merged = [{"role": "user", "content": f"{self.rubric.system}\n\n{user}"}]
            text = _template(model, merged, True, **CHAT_OPTIONS)
        return _ids(model, replies.closed(text), rubric.MAX_REPLY_TOKENS)

    def ask(self, model: JudgeModel, prompts: list[Any]) -> list[Found]:
        found = _replies(model, prompts, rubric.MAX_REPLY_TOKENS, rubric.BOUNDED_SCHEMA)
        return [self.read(reply, most) for reply, most in found]

    def read(self, reply: str, tokens: int = rubric.MAX_REPLY_TOKENS) -> Found:
        if replies.unfinished(reply):
            return Found(None, reason=replies.cut_off(tokens), raw_reply=reply)
        try:
            behind = replies.behind_reasoning(reply)
            if behind.why:
                raise rubric.UnreadableError(behind.why)
            found = replies.verdict(behind.answer)
        except rubric.UnreadableError as error:
            return Found(None, reason=str(error), raw_reply=reply)
        harmful = found.score >= self.threshold
        label = rubric.label_of(found, harmful)
        return Found(harmful, float(found.score), label, found.reason, reply)


def _one_token(model: JudgeModel, word: str) -> int:
    ids = model.tokenizer(word, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise HarnessError(
            f"judge model '{model.tokenizer.name_or_path}': '{word}' is not one token of it; "
            "is it the model that this judge is for?"
        )
    return int(ids[0])


def _share(classes: dict[str, float], harmful: Iterable[str]) -> float:
    wanted = {label.lower() for label in harmful}
    known = [value for label, value in classes.items() if label.lower() in wanted]
    if not known:
        raise HarnessError(
            f"none of the judge's labels ({', '.join(classes)}) is one of {', '.join(harmful)}"
        )
    return min(sum(known), 1.0)  # in this order NaN for NaN


def _names_harm(label: str) -> bool:
    words = re.split(r"[^a-z]+", label.lower())
    return any(word in HARMFUL_LABELS for word in words) and "not" not in words and "non" not in words
