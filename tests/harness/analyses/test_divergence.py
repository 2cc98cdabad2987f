"""KL over a run's checkpoints: each is asked as it is scored, and only what is missing is measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax

from harness.analyses import divergence
from harness.analyses.divergence import Settings
from harness.contracts import HarnessError
from harness.mini import seed_model_path
from harness.models import chat, checkpoints
from harness.run import run_folder
from harness.run.resolve import resolve
from harness.storage.files import read_json, read_jsonl


def measure(out: Path, settings: Settings, size: int = 8) -> tuple[dict[str, Any], dict[str, str]]:
    ctx = divergence.make_run_context(run_folder.stored_config(out), out, settings)
    found, missing = divergence.measure(ctx, settings, size)
    return {cell.method: one for cell, one in found.items()}, {c.method: why for c, why in missing.items()}


SHORT = Settings(tokens=6)


@pytest.mark.slow
def test_a_checkpoint_is_asked_as_it_is_scored(run_copy: Path) -> None:
    """Every value of two methods by hand, from the task's documents and the checkpoints on disk."""
    found, missing = measure(run_copy, SHORT)
    assert missing == {}
    assert set(found) == {
        "vanilla", "sdft", "constrained-sft", "lookahead-true", "lookahead-virtual", "ptst",
        "safety-mixing", "lisa",
    }  # fmt: skip
    config = run_folder.stored_config(run_copy)
    from harness.mini import data
    from tasks.safety import SYSTEM_PROMPT

    tokenizer = checkpoints.load_tokenizer(seed_model_path())
    seed = checkpoints.load_model(seed_model_path(), "float32", "cpu")
    for method in ("vanilla", "ptst"):
        checkpoint = run_copy / f"gsm8k-mini/{method}/seed-42/checkpoint"
        tuned = checkpoints.load_model(checkpoint, "float32", "cpu")
        own = resolve(config).make_method(method).inference_system_prompt(SYSTEM_PROMPT)
        values = divergence.read_divergences(found[method])
        assert list(values) == [row["id"] for row in data.harmful()[:8]]
        for row in data.harmful()[:2]:
            answer = chat.token_ids(tokenizer, row["harmful_answer"])[:6]
            prompts = [
                tokenizer.apply_chat_template(
                    [{"role": "system", "content": system}, {"role": "user", "content": row["instruction"]}],
                    add_generation_prompt=True,
                    return_dict=False,
                )
                for system in (SYSTEM_PROMPT, own)
            ]
            with torch.inference_mode():
                p, q = (
                    model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 :][:6].double().numpy()
                    for model, prompt in zip((seed, tuned), prompts, strict=True)
                )
            expected = rel_entr(softmax(p, axis=-1), softmax(q, axis=-1)).sum(-1)
            assert values[row["id"]] == pytest.approx(expected.tolist(), abs=1e-5)
    assert np.mean(list(divergence.read_divergences(found["ptst"]).values())) > 0


@pytest.mark.slow
def test_only_what_is_missing_is_measured(run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = measure(run_copy, SHORT)
    before = {name: one.marker.stat().st_mtime_ns for name, one in found.items()}
    found["lisa"].marker.unlink()  # as an interrupted command leaves it
    opened: list[str] = []
    real = divergence._open_engine
    monkeypatch.setattr(
        divergence,
        "_open_engine",
        lambda ctx, checkpoint: (opened.append(checkpoint.name), real(ctx, checkpoint))[1],
    )
    again, _ = measure(run_copy, SHORT, 3)
    assert [Path(name).parts[-3:-1] for name in opened[1:]] == [("lisa", "seed-42")]
    changed = [name for name, one in again.items() if one.marker.stat().st_mtime_ns != before[name]]
    assert changed == ["lisa"]
    opened.clear()
    measure(run_copy, SHORT)
    assert opened == []
    assert not list((run_copy / "analysis").glob(".*"))  # the base model's log-probabilities are gone
    marker = run_copy / "gsm8k-mini/vanilla/seed-42/train.done.json"
    record = json.loads(marker.read_text(encoding="utf-8"))
    record["outputs"]["checkpoint/model.safetensors"]["sha256"] = "another"
    marker.write_text(json.dumps(record), encoding="utf-8")
    measure(run_copy, SHORT)
    assert [Path(name).parts[-3] for name in opened[1:]] == ["vanilla"]


@pytest.mark.slow
@pytest.mark.parametrize("answers", ["harmful", "seed"])
def test_requests_are_those_of_the_runs_part(run_copy: Path, answers: Any) -> None:
    """The safe rates that KL is correlated with are of these documents."""
    from harness.generation import splits
    from harness.mini import data

    settings = Settings(answers=answers, tokens=2)
    ctx = divergence.make_run_context(run_folder.stored_config(run_copy), run_copy, settings)
    cell = divergence.list_cells(ctx.config)[0]
    assert "part" not in divergence.make_stage(ctx, cell, settings).inputs
    record = json.loads((run_copy / "run.json").read_text())
    record["config"]["responses"] |= {"part": "final", "limit": 5}
    (run_copy / "run.json").write_text(json.dumps(record))
    found, _ = measure(run_copy, settings)
    keys = {row["id"]: f"instruction {row['instruction']}" for row in data.harmful()}
    final = [name for name, key in keys.items() if splits.assign_part(key, 0.4) == "final"][:5]
    if answers == "seed":  # has answered the first 8 of all alone
        final = [name for name in final if name in [*keys][:8]]
    assert list(divergence.read_divergences(found["vanilla"])) == final
    assert (
        found["vanilla"].inputs["part"]
        == splits.identity(run_folder.stored_config(run_copy).responses)["part"]
    )


@pytest.mark.slow
def test_checkpoints_that_are_gone_or_foreign_are_named(run_copy: Path) -> None:
    import shutil

    shutil.rmtree(run_copy / "gsm8k-mini/lisa/seed-42/checkpoint")
    (run_copy / "gsm8k-mini/sdft/seed-42/train.done.json").unlink()
    other = run_copy / "gsm8k-mini/vanilla/seed-42/checkpoint"
    record = json.loads((run_copy / "run.json").read_text())
    foreign = run_copy.parent / "foreign"
    shutil.copytree(other, foreign)
    text = (foreign / "tokenizer.json").read_text()
    tokens = json.loads(text)["model"]["vocab"]
    longest = max((token for token in tokens if token.isalpha()), key=len)
    vocabulary = json.loads(text)
    vocabulary["model"]["vocab"] = {("zzzz" if t == longest else t): i for t, i in tokens.items()}
    vocabulary["model"]["merges"] = [
        pair for pair in vocabulary["model"]["merges"] if "".join(pair) != longest and longest not in pair
    ]
    (foreign / "tokenizer.json").write_text(json.dumps(vocabulary))
    record["config"]["checkpoints"] = {
        "mine": str(other),
        "foreign": str(foreign),
        "far": "openai:m@http://localhost:9/v1",
    }
    (run_copy / "run.json").write_text(json.dumps(record))
    found, missing = measure(run_copy, SHORT)
    assert set(missing) == {"lisa", "sdft", "foreign", "far"}
    assert "checkpoint is gone (harness clean?)" in missing["lisa"]
    assert missing["sdft"] == "not trained yet"
    assert missing["foreign"] == "its tokenizer is not the base model's: no KL between them"
    assert missing["far"].startswith("it is on a server")
    assert divergence.read_divergences(found["mine"]) == divergence.read_divergences(found["vanilla"])


@pytest.mark.slow
def test_the_seed_models_own_answers(run_copy: Path, small: Callable[..., list[str]]) -> None:
    settings = Settings(answers="seed", tokens=4)
    found, _ = measure(run_copy, settings)
    values = divergence.read_divergences(found["vanilla"])
    rows = read_jsonl(run_copy / "seed/hexphi_raw-mini/responses.jsonl")
    assert list(values) == [row["document"] for row in rows]
    assert {len(one) for one in values.values()} == {4}
    assert found["vanilla"].folder == run_copy / "analysis/kl-seed/gsm8k-mini/vanilla/seed-42"
    identity = read_json(found["vanilla"].marker)["inputs"]["answers"]
    assert identity == read_json(run_copy / "seed/hexphi_raw-mini/respond.done.json")["outputs"]


def test_a_task_without_harmful_answers_asks_for_the_seed_models() -> None:
    from harness import config

    other = config.load(None, {"safety.prefill_task": "hexphi_refusal_prefix-mini"})
    with pytest.raises(HarnessError, match="add --answers seed"):
        divergence.find_task(other, "harmful")
    assert divergence.find_task(other, "seed") == "hexphi_raw-mini"
