"""What the base model writes for a method is kept by content, goes on after a kill, and is charged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import config
from harness.plugins import registry
from harness.run import plan
from harness.run.context import RunContext
from harness.run.resolve import resolve
from harness.storage.files import read_jsonl
from harness.training import preparation


@pytest.fixture
def ctx(tmp_path: Path) -> Callable[..., RunContext]:
    def make(**overrides: Any) -> RunContext:
        values = {"responses.batch_size": 4, "training.max_examples": 12, "cache": str(tmp_path / "cache")}
        run_context = RunContext(config.load("mini", {**values, **overrides}), tmp_path / "run")
        run_context.import_libraries()
        return run_context

    return make


def distil(run_context: RunContext, **options: Any) -> tuple[list[str], dict[str, Any]]:
    task = registry.load("train task", "gsm8k-mini")
    cell = next(cell for cell in plan.cells(run_context.config) if cell.method == "sdft")
    changed = run_context.config.model_copy(update={"method_options": {"sdft": options}})
    method = resolve(changed).make_method("sdft")
    examples, record = preparation.prepare(run_context, task, method, cell, "")
    return [example.answer for example in examples], record


class KilledError(BaseException):
    """Stands for a kill: nothing catches it."""


def test_a_second_run_reads_what_the_first_wrote_and_is_charged_the_same(
    ctx: Callable[..., RunContext],
) -> None:
    first, cold = distil(ctx())
    second, warm = distil(ctx())
    assert second == first
    assert (cold["preparation"]["from_cache"], warm["preparation"]["from_cache"]) == (False, True)
    for name in ("prompt_tokens", "generated_tokens", "seconds", "peak_memory_bytes"):
        assert warm["preparation"][name] == cold["preparation"][name] > 0
    assert warm["rewrites_kept"] + sum(warm["rewrites_rejected"].values()) == 12


@pytest.mark.slow
def test_a_killed_distillation_goes_on_where_it_stopped(
    ctx: Callable[..., RunContext], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.engines.hf import HFEngine

    batches: list[int] = []
    generate = HFEngine.generate

    def counted(self: Any, prompts: Any, *args: Any, **options: Any) -> Any:
        if len(batches) == 2:
            raise KilledError
        batches.append(len(prompts))
        return generate(self, prompts, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(HFEngine, "generate", counted)
        with pytest.raises(KilledError):
            distil(ctx())
    (partial,) = (tmp_path / "cache" / "generated").glob("*/.generated.journal.jsonl")
    with partial.open("a") as file:
        file.write('{"texts": {"3": "to')  # a line that the kill tore
    batches.clear()
    with monkeypatch.context() as patch:
        patch.setattr(HFEngine, "generate", counted)
        resumed, record = distil(ctx())
    assert batches == [4]  # the third batch alone
    assert not partial.exists()
    assert record["preparation"]["from_cache"] is False
    whole, _ = distil(ctx(cache=str(tmp_path / "other")))
    assert resumed == whole


@pytest.mark.slow
def test_sampling_is_seeded_and_kept_apart(ctx: Callable[..., RunContext], tmp_path: Path) -> None:
    import torch

    greedy, _ = distil(ctx())
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    sampled, record = distil(ctx(), temperature=1.5, top_p=1.0)
    assert torch.equal(torch.rand(3), expected)  # no other draw of the process is disturbed
    assert record["preparation"]["from_cache"] is False
    assert sampled != greedy
    again, _ = distil(ctx(cache=str(tmp_path / "other")), temperature=1.5, top_p=1.0)
    assert again == sampled
    other, _ = distil(ctx(seeds=[7]), temperature=1.5, top_p=1.0)
    assert other != sampled


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", [{"responses.batch_size": 6}, {"training.max_examples": 11}, {"responses.dtype": "bfloat16"}]
)
def test_what_it_depends_on_makes_an_entry_of_its_own(change: Any, ctx: Callable[..., RunContext]) -> None:
    distil(ctx())
    assert distil(ctx(**change))[1]["preparation"]["from_cache"] is False


def test_line_separators_in_a_text_tear_no_row(
    ctx: Callable[..., RunContext], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """U+2028 and U+0085 end a line for ``str.splitlines``, and a model may write them."""
    from harness.engines.base import Completion
    from harness.engines.hf import HFEngine

    odd = Completion("a\u2028b\u0085c", 1, "stop")
    monkeypatch.setattr(HFEngine, "completion", lambda self, ids, prefill: odd)
    task = registry.load("train task", "samsum-mini")
    cell = next(cell for cell in plan.cells(ctx().config) if cell.method == "sdft")
    for _ in range(2):
        run_context = ctx()
        method = resolve(run_context.config).make_method("sdft")
        examples, _ = preparation.prepare(run_context, task, method, cell, "")
        assert {example.answer for example in examples} == {odd.text}
    rows = read_jsonl(next((tmp_path / "cache" / "generated").glob("*/continuations.jsonl")))
    assert [len(row["texts"]) for row in rows] == [4, 4, 4]


def test_the_marker_does_not_repeat_the_prompts(ctx: Callable[..., RunContext], tmp_path: Path) -> None:
    distil(ctx())
    (marker,) = (tmp_path / "cache" / "generated").glob("*/*.done.json")
    assert marker.stat().st_size < 5_000


def test_a_damaged_entry_is_made_again(ctx: Callable[..., RunContext], tmp_path: Path) -> None:
    first, _ = distil(ctx())
    (file,) = (tmp_path / "cache" / "generated").glob("*/continuations.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows[:-1]))
    second, record = distil(ctx())
    assert second == first
    assert record["preparation"]["from_cache"] is False
