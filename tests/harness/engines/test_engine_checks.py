"""An engine that breaks its contract ends in one line that says what to write instead."""

from __future__ import annotations

from typing import Any

import pytest
import table_engine
from asking import asking
from lm_eval.api.instance import Instance

from harness.contracts import HarnessError
from harness.engines import base, engine_checks, replies, select
from harness.engines.base import Engine
from harness.engines.hf import HFEngine
from harness.engines.openai import OpenAIEngine
from harness.engines.vllm import VLLMEngine
from harness.mini import seed_model_path
from harness.plugins import registry

NONE = float("nan")


def refused(call: Any, *arguments: Any) -> str:
    with pytest.raises(HarnessError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def table(**changed: Any) -> type[Engine]:
    """The table's class with other attributes, as another file would have them."""
    return type("Mine", (table_engine.TableEngine,), {"__module__": "mine", **changed})


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"logprobs": Engine.logprobs}, "engine 'mine' lacks logprobs(self, pairs, request)"),
        (
            {"open": classmethod(lambda cls, folder: cls(folder))},
            "open must take (checkpoint, settings, device): "
            "@classmethod def open(cls, checkpoint, settings, device)",
        ),
        ({"generate": lambda self, prompts: []}, "generate must take (prompts, request): def generate(self,"),
        ({"plan": lambda self: []}, "plan must take (prompts): def plan(self, prompts)"),
        ({"settings": "max_context"}, 'settings must be a tuple, as in settings = ("…",)'),
        ({"packages": "table-engine"}, "packages must be a tuple"),
        ({"device_kinds": ["cpu"]}, "device_kinds must be a tuple"),
        ({"setings": ("max_context",)}, "nothing calls or reads its 'setings': did you mean 'settings'?"),
    ],
)
def test_a_class_that_cannot_be_asked_is_refused(
    changed: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "load", lambda kind, name: table(**changed))
    assert says in refused(select.engine_class, "mine")


@pytest.mark.parametrize("kind", [HFEngine, OpenAIEngine, VLLMEngine, table_engine.TableEngine])
def test_ours_and_the_tables_class_are_fine(kind: type[Engine]) -> None:
    engine_checks.check_class("ours", kind)


def test_a_package_that_is_not_installed_would_leave_its_version_out() -> None:
    wrong = table(packages=("tabel-engine",), needs=())
    says = refused(wrong.check, "mine", None, "cpu")
    assert says.startswith(
        "engine mine names tabel-engine in packages, and no such distribution is installed"
    )
    assert base.distribution_is_here("torch")
    table(packages=("torch", "one-of-two"), needs=()).check("mine", None, "cpu")  # type: ignore[arg-type]


def test_what_is_opened_must_be_an_engine_with_what_it_has_to_have() -> None:
    assert refused(engine_checks.check_opened, "mine", None) == (
        "engine 'mine': open must return an engine, not NoneType"
    )
    bare = table(__init__=lambda self: None)()
    assert "engine 'mine' has no tokenizer when it is open" in refused(
        engine_checks.check_opened, "mine", bare
    )
    engine_checks.check_opened("mine", table_engine.TableEngine(seed_model_path()))


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (None, "must return a list of token ids for each prompt, not NoneType"),
        ([[5]], "returned 1 answers for 2 prompts"),
        (["I am sorry", "No."], "must return each answer as a list of token ids, not as text"),
        ([(5, 6), (5, 6)], "must return each answer as a list of token ids, not as tuple"),
        ([[5], [5.0]], "token ids must be int, not float"),
        ([[5], [True]], "token ids must be int, not bool"),
        ([[5], [-5, 1]], "returned a token id that no vocabulary has"),
        ([[5], [2**31]], "returned a token id that no vocabulary has"),
    ],
)
def test_answers_that_are_no_ids_are_refused_before_they_are_kept(made: Any, says: str) -> None:
    kind = table(generate=lambda self, prompts, request: made)
    task = asking(kind(seed_model_path()))  # type: ignore[call-arg]
    history = '[{"role": "user", "content": "How?"}]'
    asked = [
        Instance("generate_until", doc={}, arguments=(history, {"until": []}), idx=0, metadata=("t", n, 1))
        for n in range(2)
    ]
    assert (
        refused(task.generate_until, asked) == f"engine Mine: generate{':' * says.startswith('token')} {says}"
    )


def test_an_answer_that_could_not_be_had_is_an_answer() -> None:
    made = [[1, 2], [], replies.Reply(unavailable="why").packed()]
    engine_checks.check_answers(table_engine.TableEngine(seed_model_path()), made, 3)


@pytest.mark.parametrize("batches", [[[0]], [[0, 0, 1]], [[0], [2]], [[0, 1, 2]], [], None, [0, 1]])
def test_a_plan_has_each_prompt_once(batches: Any) -> None:
    engine = table(plan=lambda self, prompts: batches)(seed_model_path())  # type: ignore[call-arg]
    assert "engine Mine: " in refused(engine_checks.planned, engine, [[5], [6]])


@pytest.mark.parametrize(
    ("scored", "says"),
    [
        (None, "not NoneType"),
        ([(-1.0, True)], "1 results for 2 pairs"),
        ([(-1.0, True), -1.0], "not float"),
        ([(-1.0, True), (NONE, True)], "NaN"),
    ],
)
def test_scores_are_numbers_for_each_pair(scored: Any, says: str) -> None:
    engine = table_engine.TableEngine(seed_model_path())
    assert says in refused(engine_checks.check_scores, engine, scored, 2)
    engine_checks.check_scores(engine, [(-1.0, True), (-2, False)], 2)
