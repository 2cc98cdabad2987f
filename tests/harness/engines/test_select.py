"""Guards that an engine is asked through its class: what its answers depend on, what it needs, which devices
it takes; and that one in a file of a third party's does all that ours do, with nothing else told about it."""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import table_engine
from table_engine import COMPLIES, RIGHT, TableEngine

from harness import config
from harness.config import ResponsesConfig
from harness.contracts import HarnessError, Message, UsageError
from harness.engines import base, engine_checks, select
from harness.engines.base import Engine, Package, Request
from harness.engines.openai import OpenAIEngine
from harness.engines.vllm import VLLMEngine
from harness.generation import stage as generation
from harness.mini import seed_model_path
from harness.models.checkpoints import Checkpoint
from harness.pipeline import answer_memory, compare, doctor, needs, ray_cluster
from harness.plugins import registry
from harness.run import plan
from harness.run.context import RunContext, choose_engine
from harness.storage.files import read_json, read_jsonl

SERVER = "http://127.0.0.1:9/v1"


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> type[Engine]:
    """The engine of table_engine.py, registered as ``table`` in this process."""
    entry = metadata.EntryPoint("table", "table_engine:TableEngine", "harness.engines")
    monkeypatch.setattr(registry, "_entry_points", lambda group: (entry,) if group == entry.group else ())
    here = base.distribution_is_here
    monkeypatch.setattr(base, "distribution_is_here", lambda name: name == "table-engine" or here(name))
    return TableEngine


def context_at(out: Path, **overrides: Any) -> RunContext:
    return RunContext(config.load(None, {"methods": ["seed"], **overrides}), out)


def seed_cell(run_context: RunContext) -> plan.Cell:
    return plan.cells(run_context.config)[0]


# --- what the classes say -----------------------------------------------------------------------------


def test_asking_every_engine_brings_no_heavy_library() -> None:
    """A plan asks the classes: it must not wait for torch."""
    code = (
        "import sys; from harness.engines import select; from harness.plugins import registry; "
        "[select.engine_class(name) for name in registry.names('engine')]; "
        "print([name for name in ('torch', 'transformers', 'lm_eval', 'openai') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.stdout == "[]\n", done.stderr


def test_what_our_engines_say_of_themselves() -> None:
    kinds = {name: select.engine_class(name) for name in registry.ENGINES}
    assert [*kinds] == ["vllm", "hf", "openai"]  # the order in which auto asks them
    assert {name for name, kind in kinds.items() if kind.remote} == {"openai"}
    assert {name for name, kind in kinds.items() if kind.serves_all} == {"vllm"}
    assert {name for name, kind in kinds.items() if kind.like_transformers} == {"hf"}
    assert {name for name, kind in kinds.items() if kind.packages} == {"vllm"}
    wide = ResponsesConfig(tensor_parallel=2, data_parallel=3)
    assert {name: select.devices(name, wide) for name in kinds} == {"vllm": 6, "hf": 1, "openai": 0}
    assert select.devices("auto", wide) == 1


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"engine": "hf"}, {"batch_size", "static_cache"}),
        ({"engine": "vllm", "responses.continuous": True}, {"tensor_parallel", "max_context"}),
        ({"engine": "openai", "responses.server": SERVER}, {"server"}),
        ({"engine": "table", "responses.continuous": True}, {"max_context"}),
    ],
)
def test_the_settings_of_an_identity_are_the_engines(
    settings: dict[str, Any], names: set[str], tmp_path: Path, table: Any
) -> None:
    run_context = context_at(tmp_path, **settings)
    inputs = generation.respond_stage(run_context, seed_cell(run_context), "gsm8k-mini").inputs
    assert inputs["responses"].keys() == {"dtype", "limit", "thinking", *names}
    assert inputs["engine"]["name"] == settings["engine"]


def test_the_versions_of_an_identity_are_those_of_the_engines_packages(
    tmp_path: Path, table: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert select.versions("hf") == {}
    info = tmp_path / "table_engine-2.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: table-engine\nVersion: 2.5\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert select.versions("table") == {"table-engine": "2.5"}
    run_context = context_at(tmp_path / "run", engine="table")
    inputs = generation.respond_stage(run_context, seed_cell(run_context), "gsm8k-mini").inputs
    assert inputs["engine"] == {"name": "table", "table-engine": "2.5"}


# --- who is chosen ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "installed", "weights", "expected"),
    [
        ("cuda", True, 1, "vllm"),
        ("cuda", True, None, "vllm"),  # the model is not here yet: a plan alone
        ("cuda", True, 10**9, "hf"),  # it leaves no room
        ("cuda", False, 1, "hf"),
        ("cpu", True, 1, "hf"),
    ],
)
def test_auto_is_the_first_engine_that_suits(
    device: str, installed: bool, weights: int | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(VLLMEngine, "missing", lambda: [] if installed else [VLLMEngine.needs[0]])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    gpu = type("Properties", (), {"total_memory": 1000})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: gpu)
    assert select.chosen(ResponsesConfig(), device, lambda: weights) == expected


def test_the_room_for_weights_is_what_the_settings_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(VLLMEngine, "missing", list)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    gpu = type("Properties", (), {"total_memory": 1000})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: gpu)
    two = ResponsesConfig(gpu_memory=0.5, tensor_parallel=2)
    assert VLLMEngine.suits(two, "cuda", lambda: 799)
    assert not VLLMEngine.suits(two, "cuda", lambda: 800)


def test_the_weights_that_are_looked_at_are_the_base_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_context, seen = context_at(tmp_path, engine="auto"), list[int | None]()

    def suits(settings: Any, device: str, weights: Any) -> bool:
        seen.append(weights())
        return False

    monkeypatch.setattr(VLLMEngine, "suits", suits)
    assert choose_engine(run_context) == "hf"
    assert seen == [sum(file.stat().st_size for file in run_context.seed_folder.glob("*.safetensors"))]
    assert seen[0]
    monkeypatch.setattr("harness.models.checkpoints.is_here", lambda name: False)
    assert choose_engine(run_context) == "hf"
    assert seen[1] is None


def test_a_third_partys_engine_is_not_chosen_unless_it_says_so(
    tmp_path: Path, table: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert registry.names("engine") == ["vllm", "hf", "openai", "table"]
    assert context_at(tmp_path, engine="auto").engine_name == "hf"
    assert context_at(tmp_path, engine="table").engine_name == "table"


def test_a_servers_model_is_answered_by_an_engine_of_servers(tmp_path: Path, table: Any) -> None:
    run_context = context_at(tmp_path, engine="table", checkpoints={"mine": f"openai:m@{SERVER}"})
    seed, mine = plan.cells(run_context.config)
    assert [generation.engine_name(run_context, cell) for cell in (seed, mine)] == ["table", "openai"]


# --- what is refused ------------------------------------------------------------------------------------


def test_an_unknown_engine_is_told_with_those_that_there_are(tmp_path: Path, table: Any) -> None:
    with pytest.raises(UsageError, match="unknown engine 'tabel': did you mean 'table'"):
        plan.cells(config.load(None, {"engine": "tabel"}))


@pytest.mark.parametrize(
    ("target", "error"),
    [
        ("table_engine:TABLE", "engine 'odd' is no Engine class of harness.engines.base"),
        ("harness.config:RunConfig", "engine 'odd' is no Engine class of harness.engines.base"),
        ("table_engine:Nothing", "plugin 'table_engine:Nothing' cannot be loaded: AttributeError"),
        ("no_such_module:Engine", "plugin 'no_such_module:Engine' cannot be loaded: ModuleNotFoundError"),
    ],
)
def test_what_is_no_engine_is_refused(target: str, error: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.ENGINES, "odd", target)
    with pytest.raises(HarnessError, match=error):
        select.engine_class("odd")


def test_an_engine_of_a_setting_that_there_is_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for where in ("settings", "settings_if_set"):
        monkeypatch.setattr(TableEngine, where, ("max_contxt",))
        monkeypatch.setitem(registry.ENGINES, "odd", "table_engine:TableEngine")
        with pytest.raises(HarnessError, match="engine 'odd' depends on 'max_contxt', which is no setting"):
            select.settings_of_answers(ResponsesConfig(), "odd")


@pytest.mark.parametrize("name", ["auto", "all", "seed", "a b"])
def test_no_engine_has_such_a_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = metadata.EntryPoint(name, "table_engine:TableEngine", "harness.engines")
    monkeypatch.setattr(registry, "_entry_points", lambda group: (entry,))
    with pytest.raises(HarnessError, match="no plugin can be called"):
        registry.names("engine")


def test_two_engines_of_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = metadata.EntryPoint("hf", "table_engine:TableEngine", "harness.engines")
    monkeypatch.setattr(registry, "_entry_points", lambda group: (entry,))
    with pytest.raises(HarnessError, match="two plugins are called engine 'hf'"):
        registry.names("engine")


def test_an_engines_needs_are_looked_for_before_anything_is_spent(
    tmp_path: Path, table: type[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_context = context_at(tmp_path, engine="table")
    generation.check(run_context, [seed_cell(run_context)])
    monkeypatch.setattr(table, "needs", (Package("no_such_module", "A thing", "pip install a-thing"),))
    with pytest.raises(HarnessError, match=r"^A thing is not installed: pip install a-thing$"):
        generation.check(run_context, [seed_cell(run_context)])
    found = [finding for finding in doctor.examine(run_context.config, tmp_path) if finding.about == "engine"]
    assert [(finding.status, finding.found) for finding in found] == [
        ("fail", "A thing is not installed: pip install a-thing")
    ]


def test_an_engine_is_not_taken_where_it_does_not_work(
    tmp_path: Path, table: type[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "device_kinds", ("cuda",))
    run_context = context_at(tmp_path, engine="table", **{"training.device": "cpu"})
    with pytest.raises(HarnessError, match="engine table works on cuda and not on cpu: another --engine"):
        generation.check(run_context, [seed_cell(run_context)])
    OpenAIEngine.check("openai", ResponsesConfig(server=SERVER), "cpu")  # it uses none of this machine's
    with pytest.raises(UsageError, match="engine openai: which server"):
        OpenAIEngine.check("openai", ResponsesConfig(), "cpu")


# --- who asks -------------------------------------------------------------------------------------------


def test_a_plan_asks_a_third_partys_engine_like_ours(
    tmp_path: Path, table: type[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_context = context_at(tmp_path, engine="table", jobs=2)
    cells = plan.cells(run_context.config)
    assert compare._jobs(run_context, "leaderboard", cells * 2) == 2
    assert len(compare._phases(run_context, cells, "leaderboard")) == 1
    monkeypatch.setattr(table, "serves_all", True)
    assert compare._jobs(run_context, "leaderboard", cells * 2) == 1
    assert [step for step, _ in compare._phases(run_context, cells, "leaderboard")] == [
        "train",
        "leaderboard",
    ]


def test_a_cluster_gives_an_engine_the_devices_that_it_takes(
    table: type[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = config.load(None, {"engine": "table", "training.device": "cuda"})
    assert ray_cluster.needs(recipe)["GPU"] == 1
    monkeypatch.setattr(table, "devices", lambda settings: 3)
    assert ray_cluster.needs(recipe)["GPU"] == 3


def test_only_an_engine_like_transformers_has_its_memory_told(
    tmp_path: Path, table: type[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_context = context_at(tmp_path, engine="table")
    cells = plan.cells(run_context.config)
    assert answer_memory._sizes(run_context, cells) == []
    monkeypatch.setattr(table, "like_transformers", True)
    assert len(answer_memory._sizes(run_context, cells)) == 1


def test_a_judges_engine_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs, "is_here", lambda module: False)
    monkeypatch.setattr(VLLMEngine, "needs", (Package("vllm", "vLLM", "pip install vllm"),))
    settings = config.load(None, {"judges": ["llama-guard-3"], "judging.engine": "vllm"})
    wanted = ("judging.engine vllm: vLLM is not installed", "pip install vllm, or --set judging.engine=hf")
    assert needs.missing(settings) == [wanted]


# --- the whole walk --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder on PYTHONPATH with the engine's package installed: one file, and its entry point."""
    folder = tmp_path_factory.mktemp("site")
    info = folder / "table_engine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: table-engine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[harness.engines]\ntable = table_engine:TableEngine\n")
    source = Path(table_engine.__file__).read_text(encoding="utf-8")
    (folder / "table_engine.py").write_text(source, encoding="utf-8")
    return folder


def run(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    settings = ("--set", "responses.limit=8", "--set", "training.device=cpu")
    return subprocess.run(
        [sys.executable, "-m", "harness", *arguments, "--engine", "table", *settings],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        cwd=site,
        timeout=500,
    )


def test_an_engine_in_one_file_answers_is_scored_planned_and_examined(site: Path) -> None:
    planned = run(site, "compare", "--methods", "seed", "--out", "run", "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert "device cpu; engine table; precision float32" in planned.stdout
    examined = run(site, "doctor", "--out", "run", "--json")
    assert ["pass", "table"] in [[row["status"], row["found"]] for row in json.loads(examined.stdout)]
    done = run(site, "compare", "--methods", "seed", "--out", "run")
    assert done.returncode == 0, done.stdout + done.stderr
    seed = site / "run" / "seed"
    rows = read_jsonl(seed / "hexphi_raw-mini" / "responses.jsonl")
    refused = [row["response"] == table_engine.REFUSAL for row in rows]
    assert refused == [number >= COMPLIES for number in range(8)]
    assert read_json(seed / "gsm8k-mini" / "respond.done.json")["inputs"]["engine"] == {
        "name": "table",
        "table-engine": "1.0",
    }
    (table,) = [
        row
        for row in read_json(site / "run" / "leaderboard.json")["rows"]
        if row["train_task"] == "gsm8k-mini"
    ]
    assert table["utility"] == pytest.approx(100 * RIGHT / 8)
    assert table["rsr"] == pytest.approx(100 * (8 - COMPLIES) / 8)


def compared(source: str) -> set[str]:
    """The engines' names, and ``auto`` as one, that a module compares something with."""
    names = {*registry.ENGINES, "vllm-cpu"}
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            parts = [one for side in (node.left, *node.comparators) for one in ast.walk(side)]
            found |= {one.value for one in parts if isinstance(one, ast.Constant) and one.value in names}
            auto = {one.id for one in parts if isinstance(one, ast.Name) and one.id == "AUTO"}
            if any(isinstance(one, ast.Attribute) and one.attr == "engine" for one in parts):
                found |= auto
    return found


def test_no_module_but_an_engines_own_compares_its_name() -> None:
    assert compared('if ctx.engine_name != "vllm" or name in ("hf", "x"): pass') == {"vllm", "hf"}
    assert compared("if config.engine != AUTO: pass") == {"AUTO"}
    home = Path(config.__file__).parents[1]
    modules = {str(file.relative_to(home)): file.read_text(encoding="utf-8") for file in home.rglob("*.py")}
    found = {name: compared(text) for name, text in modules.items() if not name.startswith("engines")}
    assert len(found) > 100
    assert {name: names for name, names in found.items() if names} == {}


def test_the_engine_of_the_folders_readme_answers() -> None:
    page = (Path(select.__file__).parent / "README.md").read_text(encoding="utf-8")
    ((module, code),) = re.findall(r"```python\n# (\w+)\.py\n(.*?)```", page, re.DOTALL)
    made: dict[str, Any] = {}
    exec(code, made)
    ((_, text),) = re.findall(r"```toml\n# (pyproject.toml)\n(.*?)```", page, re.DOTALL)
    project = tomllib.loads(text)["project"]
    assert project["entry-points"] == {"harness.engines": {"table": f"{module}:TableEngine"}}
    assert made["TableEngine"].packages == (project["name"],)
    engine_checks.check_class("table", made["TableEngine"])
    engine = made["TableEngine"].open(Checkpoint(seed_model_path()), ResponsesConfig(), "cpu")
    engine_checks.check_opened("table", engine)
    assert engine.context_tokens == 4096
    prompts = [engine.prompt_ids([Message("user", asked)]) for asked in ("How are you?", "Who?")]
    answers = [engine.completion(ids, []) for ids in engine.generate(prompts, Request())]
    assert [(answer.text, answer.finish_reason) for answer in answers] == [
        ("I am fine.", "stop"),
        ("No.", "stop"),
    ]
    cut = [engine.completion(ids, []) for ids in engine.generate(prompts, Request(max_new_tokens=1))]
    assert [(answer.tokens, answer.finish_reason) for answer in cut] == [(1, "length"), (1, "length")]


def test_the_readme_has_what_an_engine_does_with_its_arguments() -> None:
    page = (Path(select.__file__).parent / "README.md").read_text(encoding="utf-8")
    for name in ("open", "generate", "logprobs", "plan", "use", "close"):
        arguments = [one for one in inspect.signature(getattr(Engine, name)).parameters if one != "self"]
        assert f"\n| `{name}({', '.join(arguments)})` |" in page
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", page):
        assert (Path(select.__file__).parent / target).exists(), target
