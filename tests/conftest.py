"""What all tests share: no network, one thread, named skips, the command line in this process, and one small
run of the real thing (base model and all five methods on one task) that many tests read or copy."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
from filelock import FileLock
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before huggingface_hub is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported, which some test modules do
settings.register_profile("ours", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ours")  # before the test modules, whose @settings change it

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"
SMALL = {
    "train_tasks": ["gsm8k-mini"],
    "training.max_examples": 32,
    "training.epochs": 1,
    "training.batch_size": 16,
    "training.micro_batch_size": 16,
    "responses.limit": 8,
    "jobs": 1,
}


LONG = ("test_random_kills.py", "test_mini_properties.py", "test_job.py")  # begun last, the others would wait
SHARED_RUN = "small_run"  # half a minute to make: while one worker does, the other has what needs none


def pytest_itemcollected(item: pytest.Item) -> None:
    """Say to which tier a test belongs, and what it must share a worker with."""
    if _file(item).startswith("tests/extras/"):
        item.add_marker("extras")
    if _shares_a_fixture(item):
        item.add_marker(pytest.mark.xdist_group(_file(item)))  # others go to whichever worker is free


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the tests, and skip by name what cannot run here."""
    users = [item for item in items if SHARED_RUN in getattr(item, "fixturenames", ())]
    first = dict(reversed([(_tier(item), item) for item in users])).values()
    later = {*users}.difference(first)
    items.sort(key=lambda item: (item not in first, item in later, not _file(item).endswith(LONG)))
    for item in items:
        if item.get_closest_marker("requires_shared_data") and not SHARED_DATA.is_dir():
            item.add_marker(pytest.mark.skip(reason=f"requires_shared_data: {SHARED_DATA} is not there"))
        if item.get_closest_marker("requires_ray") and find_spec("ray") is None:
            item.add_marker(pytest.mark.skip(reason="requires_ray: Ray is not installed (make test-extras)"))
        if item.get_closest_marker("requires_vllm") and find_spec("vllm") is None:
            item.add_marker(
                pytest.mark.skip(reason="requires_vllm: vLLM is not installed (make test-extras)")
            )
        if item.get_closest_marker("requires_chromium") and not (
            find_spec("playwright") and shutil.which("chromium")
        ):
            item.add_marker(pytest.mark.skip(reason="requires_chromium: no browser here (make test-extras)"))
        if item.get_closest_marker("requires_gpu") and not _cuda():
            item.add_marker(pytest.mark.skip(reason="requires_gpu: no CUDA device"))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Groups that are not kept would make what files share many times over, and nobody would see why."""
    if getattr(session.config.option, "loadgroup", False):
        lost = [
            one for one in session.items if one.get_closest_marker("xdist_group") and "@" not in one.nodeid
        ]
        assert not lost, (
            f"pytest-xdist does not keep {lost[0].nodeid} in its group: which pytest is installed?"
        )


def _file(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]


def _tier(item: pytest.Item) -> str:
    """Tests of one tier run together."""
    return next(filter(item.get_closest_marker, ("extras", "exhaustive", "slow")), "quick")


def _shares_a_fixture(item: pytest.Item) -> bool:
    """Whether a test uses what its file makes once, and would be made anew by each worker."""
    definitions = item._fixtureinfo.name2fixturedefs.values()  # type: ignore[attr-defined]
    return any(one.scope in ("module", "class") for found in definitions for one in found)


def _cuda() -> bool:
    import torch

    return bool(torch.cuda.is_available())


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """``command("compare", "--out", folder)`` runs the command line in this process."""
    from harness import cli

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["harness", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        code = ended.value.code
        return Ended(code if isinstance(code, int) else 1, captured.out, captured.err)

    return run


def small_flags(**changes: Any) -> list[str]:
    """The small configuration as ``--set`` flags."""
    flags = []
    for key, value in ({**SMALL, **changes}).items():
        flags += ["--set", f"{key}={value}"]
    return flags


@pytest.fixture(scope="session")
def small_settings() -> dict[str, Any]:
    return SMALL


@pytest.fixture
def small() -> Callable[..., list[str]]:
    return small_flags


@pytest.fixture
def run_small() -> Callable[..., Any]:
    """``run_small(out, methods=[...], **overrides)`` -> leaderboard, through the Python API."""
    import harness

    def run(out: Path, **overrides: Any) -> Any:
        return harness.compare(out=out, **{**SMALL, **overrides})

    return run


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A finished run folder, made once and copied for each xdist worker: commands lock it. Read only: copy it
    to change it."""
    base = tmp_path_factory.getbasetemp()
    made = (base if worker_id == "master" else base.parent) / "small-run"
    with FileLock(f"{made}.lock"):
        if not (made / "leaderboard.done.json").exists():
            import harness

            harness.compare(out=made, methods=["all"], **SMALL)
        return Path(shutil.copytree(made, base / "own-small-run"))


@pytest.fixture
def run_copy(small_run: Path, tmp_path: Path) -> Path:
    """A copy of the small run that a test may change."""
    folder = tmp_path / "copy"
    shutil.copytree(small_run, folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def _own_places(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> None:
    """What is kept by content, and which runs are one's own, is kept for this session alone."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent
    os.environ["HARNESS_CACHE"], os.environ["HARNESS_STATE"] = str(shared / "cache"), str(shared / "state")


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, Any], None]:
    """``plugin("judge", "strict", StrictJudge)`` installs an object under a name for one test."""
    from harness.plugins import registry

    tables = {
        "method": registry.METHODS,
        "train task": registry.TRAIN_TASKS,
        "judge": registry.JUDGES,
        "engine": registry.ENGINES,
    }

    def install(kind: str, name: str, thing: Any) -> None:
        module = ModuleType(f"plugin_{name.replace('-', '_')}")
        module.thing = thing  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(tables[kind], name, f"{module.__name__}:thing")

    return install


CAPITALS = """\
task: capitals
custom_dataset: !function functions.dataset
output_type: generate_until
test_split: test
doc_to_text: "What is the capital of {{country}}?"
doc_to_target: capital
process_results: !function functions.process_results
metric_list:
  - {metric: named, aggregation: mean, higher_is_better: true}
generation_kwargs: {until: [], max_gen_toks: 8, do_sample: false, temperature: 0, repetition_penalty: 1.0}
metadata: {version: 1, kind: utility}
"""
FUNCTIONS = """\
from tasks.documents import as_test_split

def dataset(**metadata):
    rows = [{"country": "France", "capital": "Paris"}, {"country": "Italy", "capital": "Rome"}]
    return as_test_split(rows, "capital")

def process_results(doc, results):
    return {"named": float(doc["capital"] in results[0])}
"""


@pytest.fixture
def own_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """``own_task(kind="safety")`` installs a task ``capitals`` of somebody's own, its YAML's words replaced;
    its folder comes back."""
    from harness.data import benchmarks
    from harness.plugins import registry

    def install(**replaced: str) -> Path:
        folder = tmp_path / "own-tasks"
        folder.mkdir()
        text = CAPITALS
        for old, new in replaced.items():
            assert old in text
            text = text.replace(old, new)
        (folder / "capitals.yaml").write_text(text, encoding="utf-8")
        (folder / "functions.py").write_text(FUNCTIONS, encoding="utf-8")
        ours = registry.task_folders()
        monkeypatch.setattr(registry, "task_folders", lambda: [*ours, folder])
        benchmarks.installed.cache_clear()
        return folder

    yield install
    monkeypatch.undo()
    benchmarks.installed.cache_clear()


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content (the lock left out)."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


@pytest.fixture
def snapshot() -> Callable[[Path], dict[str, bytes]]:
    return tree


@pytest.fixture
def values() -> Callable[[Path], list[dict[str, str]]]:
    """A run's leaderboard.csv without the measured columns."""
    import csv

    def read(folder: Path) -> list[dict[str, str]]:
        with (folder / "leaderboard.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            for measured in ("train_seconds", "peak_memory_bytes", "tokens_per_second", "mfu"):
                del row[measured]
        return rows

    return read
