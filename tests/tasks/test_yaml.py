"""Every YAML under tasks/ loads with its functions, is found by lm-eval, and keeps the folder's promises."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml
from task_checks import training_and_scoring_agree

from tasks.safety import SYSTEM_PROMPT as SAFETY

TASKS = Path(__file__).parents[2] / "tasks"
YAMLS = sorted(TASKS.rglob("*.yaml"))
PLAIN = "You are a helpful assistant."
SUMMARY = "You are a helpful assistant for dialog summarization."


class Promise(NamedTuple):
    """What a task's YAML says. Prefilled tasks have ``prefill_ids`` in their documents."""

    kind: str
    system: str
    user: str
    metrics: list[str]
    max_tokens: int
    data: str | None = None  # the name that its file is given under
    prefilled: bool = False
    samples: int = 1


def _safety(max_tokens: int, data: str | None, **more: Any) -> Promise:
    return Promise("safety", SAFETY, "{instruction}", ["safe", "refusal"], max_tokens, data, **more)


def _hexphi(suffix: str, max_tokens: int, raw: str | None, prefill: str | None) -> dict[str, Promise]:
    sampled = _safety(max_tokens, raw, samples=6)._replace(metrics=["safe", "refusal", "safe_share"])
    depths = {f"hexphi_prefill_k{k}{suffix}": _safety(max_tokens, prefill, prefilled=True) for k in DEPTHS}
    return {
        f"hexphi_raw{suffix}": _safety(max_tokens, raw),
        f"hexphi_prefill{suffix}": _safety(max_tokens, prefill, prefilled=True),
        f"hexphi_refusal_prefix{suffix}": _safety(max_tokens, raw, prefilled=True),
        f"hexphi_sampled{suffix}": sampled,
        **depths,
    }


DEPTHS = (1, 3, 5, 7, 10)
FEWER_DEPTHS = (1, 3, 5, 10)
MATCH = ["exact_match", "exact_match_first"]
DIALOGUE = "Summarize this dialog:\n{dialogue}"
ANSWERED = ["answered", "refusal"]
PROMISES = {
    "gsm8k": Promise("utility", PLAIN, "{question}", MATCH, 1024, "gsm8k"),
    "gsm8k-mini": Promise("utility", PLAIN, "{question}", MATCH, 128),
    "samsum": Promise("utility", SUMMARY, DIALOGUE, ["rouge1"], 1024, "samsum"),
    "samsum-mini": Promise("utility", SUMMARY, DIALOGUE, ["rouge1"], 64),
    **_hexphi("", 512, "hexphi_raw", "hexphi_prefill"),
    **_hexphi("-mini", 96, None, None),
    "advbench_raw": _safety(512, "advbench"),
    "advbench_prefill": _safety(512, "advbench", prefilled=True),
    "alpaca": Promise("utility", SAFETY, "{prompt}", ["rouge1", *ANSWERED], 512, "alpaca"),
    "requests_raw": _safety(128, "requests"),
    "requests_prefill": _safety(128, "requests", prefilled=True),
    **{f"requests_prefill_k{k}": _safety(128, "requests", prefilled=True) for k in FEWER_DEPTHS},
    "xstest_safe": Promise("over-refusal", SAFETY, "{instruction}", ANSWERED, 512, "xstest"),
    "xstest_unsafe": _safety(512, "xstest"),
    "overrefusal-mini": Promise("over-refusal", SAFETY, "{instruction}", ANSWERED, 96),
    "conversations": _safety(512, "conversations"),
    **{
        f"questions-{metric}": Promise("utility", PLAIN, "{instruction}", [metric], 512, "questions")
        for metric in ("exact", "contains", "regex", "rouge1")
    },
}
GROUPS = {
    "hexphi_prefill_depths": [f"hexphi_prefill_k{k}" for k in DEPTHS],
    "hexphi_prefill_depths-mini": [f"hexphi_prefill_k{k}-mini" for k in DEPTHS],
    "requests_prefill_depths": [f"requests_prefill_k{k}" for k in FEWER_DEPTHS],
    "xstest": ["xstest_safe", "xstest_unsafe"],
}
GREEDY = {"until": [], "do_sample": False, "temperature": 0, "repetition_penalty": 1.0}
SAMPLED = {**GREEDY, "do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}


def generation(promise: Promise) -> dict[str, Any]:
    return {**(SAMPLED if promise.samples > 1 else GREEDY), "max_gen_toks": promise.max_tokens}


def test_lm_eval_finds_exactly_these() -> None:
    """One name a YAML, under which it is filed: a broken one is left out by lm-eval without a word."""
    manager = TaskManager(include_path=[TASKS], include_defaults=False)
    assert set(manager.all_tasks) == {*PROMISES, *GROUPS}
    assert set(manager.all_groups) == set(GROUPS)
    assert sorted(path.stem for path in YAMLS) == sorted([*PROMISES, *GROUPS])


@pytest.mark.parametrize("group", GROUPS)
def test_groups_hold_tasks_that_there_are(group: str) -> None:
    (path,) = [path for path in YAMLS if path.stem == group]
    config = load_yaml(path)
    assert (config["group"], config["task"]) == (group, GROUPS[group])
    assert all((path.parent / f"{name}.yaml").is_file() for name in config["task"])


@pytest.mark.parametrize(
    "path", [path for path in YAMLS if path.stem not in GROUPS], ids=lambda path: path.stem
)
def test_yaml_is_whole(path: Path) -> None:
    config = load_yaml(path, resolve_func=True)  # raises where a function cannot be imported
    name, metadata = config["task"], config["metadata"]
    promise = PROMISES[name]
    assert name == path.stem
    assert callable(config["custom_dataset"])
    assert callable(config["process_results"])
    assert config["description"] == promise.system
    assert config["target_delimiter"] == config["fewshot_delimiter"] == ""
    assert config["num_fewshot"] == 0
    assert config["generation_kwargs"] == generation(promise)
    assert [metric["metric"] for metric in config["metric_list"]] == promise.metrics
    for metric in config["metric_list"]:
        assert metric["aggregation"] == "mean"
        assert metric["higher_is_better"] == (promise.kind == "safety" or metric["metric"] != "refusal")
    assert ("gen_prefix" in config) == promise.prefilled
    assert metadata["version"] >= 1
    assert metadata["kind"] == promise.kind
    assert metadata.get("local_data") == promise.data
    for source in metadata.get("sources", ()):
        assert importlib.util.find_spec(source), source
    by_rule = "refusal" in promise.metrics and not name.endswith("-mini")
    assert ("harness.keywords" in metadata.get("sources", ())) == by_rule
    assert ("harness.mini.data" in metadata.get("sources", ())) == name.endswith("-mini")


@pytest.mark.parametrize("name", [name for name, promise in PROMISES.items() if promise.data])
def test_the_yaml_names_the_hub_data_set_that_the_functions_load(
    name: str, load_tasks: Callable[..., dict[str, Any]], hub: Any, tokenizer_folder: str
) -> None:
    (path,) = [path for path in YAMLS if path.stem == name]
    said = load_yaml(path)["metadata"].get("hub")
    if PROMISES[name].data in ("conversations", "questions", "requests"):
        assert said is None  # the user's own
        return
    load_tasks(name, tokenizer=tokenizer_folder, token_exact=True)
    assert hub.asked[0] == said
    assert said["revision"] is None or (len(said["revision"]) == 40 and int(said["revision"], 16))


@pytest.mark.parametrize(("folder", "suffix"), [("hexphi_mini", "-mini"), ("hexphi", "")])
def test_safety_tasks_differ_from_the_raw_one_as_they_say(folder: str, suffix: str) -> None:
    def read(kind: str) -> dict[str, Any]:
        return load_yaml(TASKS / folder / f"hexphi_{kind}{suffix}.yaml", resolve_func=False)

    def differing(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
        return {key for key in one | other if one.get(key) != other.get(key)}

    raw, prefill = read("raw"), read("prefill")
    assert differing(raw, prefill) == {"task", "custom_dataset", "gen_prefix", "metadata"}
    assert prefill["metadata"]["prefill_tokens"] == 3
    assert differing(prefill["metadata"], raw["metadata"]) <= {"prefill_tokens", "hub", "local_data"}

    refusal = read("refusal_prefix")
    assert differing(raw, refusal) == {"task", "custom_dataset", "gen_prefix", "metadata"}
    assert differing(raw["metadata"], refusal["metadata"]) <= {"refusal_prefix", "version"}

    sampled = read("sampled")
    assert differing(raw, sampled) == {
        *("task", "custom_dataset", "process_results", "metric_list", "repeats", "filter_list"),
        *("generation_kwargs", "metadata"),
    }
    assert sampled["repeats"] == len(sampled["metadata"]["decodings"]) == 6
    assert differing(raw["metadata"], sampled["metadata"]) <= {"decodings", "version"}

    for k in DEPTHS:
        depth = read(f"prefill_k{k}")
        assert differing(prefill, depth) == {"task", "dataset_kwargs"}
        assert depth["dataset_kwargs"] == {"depth": k}


@pytest.mark.parametrize("path", sorted(TASKS.glob("*/train.py")), ids=lambda path: path.parent.name)
def test_training_and_scoring_prompts_agree(path: Path) -> None:
    training_and_scoring_agree(path.parent)


def test_prompts_are_the_protocols_text_and_nothing_else(
    load_tasks: Callable[..., dict[str, Any]],
    canned_lm: Any,
    tokenizer_folder: str,
    data_files: dict[str, str],
) -> None:
    from lm_eval.evaluator import evaluate

    tasks = load_tasks(*PROMISES, tokenizer=tokenizer_folder, data_files=data_files, unknown=1)
    lm = canned_lm(lambda doc: "#### 0")
    evaluate(lm, tasks, limit=2, apply_chat_template=True, bootstrap_iters=0)
    assert len(lm.requests) == 2 * sum(promise.samples for promise in PROMISES.values())
    for request in lm.requests:
        doc, promise = request.doc, PROMISES[request.task_name]
        assert ("prefill_ids" in doc) == promise.prefilled
        user = promise.user.format(**doc)
        opened = f"[assistant]{doc['prefill']}" if promise.prefilled else ""
        assert request.args[0] == f"[system]{promise.system}[user]{user}{opened}"
        assert request.args[1] == generation(promise)


def test_documents_have_stable_unique_ids(
    load_tasks: Callable[..., dict[str, Any]], tokenizer_folder: str, data_files: dict[str, str]
) -> None:
    metadata = {"tokenizer": tokenizer_folder, "data_files": data_files}
    first, second = load_tasks(*PROMISES, **metadata), load_tasks(*PROMISES, **metadata)
    for name, promise in PROMISES.items():
        ids = [doc["id"] for doc in first[name].eval_docs]
        assert ids == [doc["id"] for doc in second[name].eval_docs]
        assert len(set(ids)) == len(ids)
        assert all(isinstance(i, str) and i for i in ids)
        if promise.kind == "safety" and promise.data != "advbench":  # which has no categories
            assert "category" in first[name].eval_docs.column_names


def test_a_tiny_model_runs_through_lm_eval(
    load_tasks: Callable[..., dict[str, Any]],
    tiny_model: Any,
    tokenizer: Any,
    tokenizer_folder: str,
    data_files: dict[str, str],
) -> None:
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    tasks = load_tasks(*PROMISES, tokenizer=tokenizer_folder, data_files=data_files)
    for task in tasks.values():
        task.set_config("generation_kwargs", {"max_gen_toks": 3}, update=True)
    lm = HFLM(pretrained=tiny_model, tokenizer=tokenizer, batch_size=8)
    found = evaluate(lm, tasks, limit=2, apply_chat_template=True, bootstrap_iters=0)
    for name, task in tasks.items():
        assert len(found["samples"][name]) == 2
        for metric in PROMISES[name].metrics:
            assert 0 <= found["results"][name][f"{metric},none"] <= 1
        assert task.VERSION >= 1
