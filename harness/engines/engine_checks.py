"""Whether an engine keeps its contract: its class when it is named, what it opens, plans and generates.

An engine that breaks it ends in one line that says what to write instead, before a wrong answer is stored.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

from harness.contracts import HarnessError
from harness.engines import replies
from harness.engines.base import Engine

_LARGEST_ID = 2**31 - 1  # what tokenizers take
_SAID_OF_ITSELF = ("settings", "settings_if_set", "packages", "needs", "device_kinds")
_HAS = {"tokenizer": "", "context_tokens": " (int)", "stop_ids": " (set of token ids)"}


def check_class(name: str, kind: type[Engine]) -> None:
    """Raises HarnessError for a class that lacks a method, has one that cannot be called as the harness
    calls it, or says of itself what cannot be read."""
    lacking = sorted(kind.__abstractmethods__)
    if lacking:
        raise HarnessError(f"engine '{name}' lacks {', '.join(map(_as_written, lacking))}")
    for attribute in _SAID_OF_ITSELF:
        found = getattr(kind, attribute)
        if not isinstance(found, tuple):
            raise HarnessError(f"engine '{name}': {attribute} must be a tuple, as in {attribute} = (\"…\",)")
    for method in ("open", "generate", "logprobs", "plan", "use", "close"):
        asked = len(inspect.signature(getattr(Engine, method)).parameters)
        bound = inspect.ismethod(getattr(Engine, method))
        own = getattr(kind, method)
        try:
            inspect.signature(own).bind(*range(asked))
        except TypeError as error:
            above = "@classmethod " if bound else ""
            raise HarnessError(
                f"engine '{name}': {method} must take ({', '.join(_parameters(method))}): "
                f"{above}def {_as_written(method)}"
            ) from error


def _parameters(method: str) -> list[str]:
    return [one for one in inspect.signature(getattr(Engine, method)).parameters if one != "self"]


def _as_written(method: str) -> str:
    first = "cls" if inspect.ismethod(getattr(Engine, method)) else "self"
    return f"{method}({', '.join([first, *_parameters(method)])})"


def check_opened(name: str, opened: Any) -> None:
    """Raises HarnessError for what ``open`` returned where it is no engine, or one without what it has to
    have."""
    if not isinstance(opened, Engine):
        raise HarnessError(f"engine '{name}': open must return an engine, not {type(opened).__name__}")
    for attribute, kind in _HAS.items():
        if opened.takes_ids and not hasattr(opened, attribute):
            raise HarnessError(
                f"engine '{name}' has no {attribute} when it is open: set self.{attribute}{kind}"
            )


def planned(engine: Engine, prompts: Sequence[list[int]]) -> list[list[int]]:
    """The engine's batches. Raises HarnessError where they do not have each prompt once."""
    batches = engine.plan(prompts)
    try:
        places = sorted(place for batch in batches for place in batch)
    except TypeError as error:
        raise HarnessError(
            f"engine {type(engine).__name__}: plan must return lists of the prompts' places, not "
            f"{type(batches).__name__}"
        ) from error
    if places != list(range(len(prompts))):
        raise HarnessError(
            f"engine {type(engine).__name__}: the batches of plan must have the place of each of the "
            f"{len(prompts)} prompts (0, 1, …) once"
        )
    return batches


def check_answers(engine: Engine, made: Any, prompts: int) -> None:
    """Raises HarnessError for what ``generate`` returned, where it is not a list of ids for each prompt."""
    who = f"engine {type(engine).__name__}: generate"
    _check_list(who, made, "token ids for each prompt", prompts, ("answers", "prompts"))
    for ids in made:
        if not isinstance(ids, list):
            raise HarnessError(f"{who} must return each answer as a list of token ids, not as {_named(ids)}")
        wrong = next((one for one in ids if type(one) is not int), None)
        if wrong is not None:
            raise HarnessError(f"{who}: token ids must be int, not {type(wrong).__name__}")
        if ids[:1] != [replies.WRITTEN] and not all(0 <= one <= _LARGEST_ID for one in ids):
            raise HarnessError(f"{who} returned a token id that no vocabulary has")


def check_scores(engine: Engine, scored: Any, pairs: int) -> None:
    """Raises HarnessError for what ``logprobs`` returned, where it is not a log-probability and a bool for
    each pair: not a number would make one choice the best by chance."""
    who = f"engine {type(engine).__name__}: logprobs"
    _check_list(who, scored, "(log-probability, bool)", pairs, ("results", "pairs"))
    for one in scored:
        if not (isinstance(one, tuple) and len(one) == 2 and isinstance(one[0], int | float)):
            raise HarnessError(f"{who} must return (log-probability, bool) for each pair, not {_named(one)}")
        if math.isnan(one[0]):
            raise HarnessError(f"{who} returned a log-probability that is not a number (NaN)")


def _check_list(who: str, found: Any, of: str, number: int, called: tuple[str, str]) -> None:
    """Raises HarnessError where ``found`` is no list, or not of one entry for each that was asked."""
    if not isinstance(found, list):
        raise HarnessError(f"{who} must return a list of {of}, not {_named(found)}")
    if len(found) != number:
        raise HarnessError(f"{who} returned {len(found)} {called[0]} for {number} {called[1]}")


def _named(value: Any) -> str:
    return "text" if isinstance(value, str) else type(value).__name__
