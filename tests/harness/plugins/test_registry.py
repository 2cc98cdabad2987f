"""Names before code; a third party's package is found by its entry points, and a broken one fails loudly.

``tests/plugin`` is a real package. pip installs it with hatchling where that is there; the other tests write
the same metadata by hand, so that they run offline with the [test] extra alone.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path

import pytest

from harness import __version__, config
from harness.contracts import HarnessError, Judge, Method, TrainTask, UsageError
from harness.plugins import registry
from harness.run import run_folder
from harness.run.context import RunContext

PLUGIN = Path(__file__).parents[2] / "plugin"
HARNESS = [sys.executable, "-m", "harness.cli"]


def install(site: Path, name: str, entry_points: Mapping[str, Mapping[str, str]], **modules: str) -> None:
    """A distribution as pip leaves it: its modules, and a dist-info with its entry points."""
    info = site / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "".join(
            f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in entries.items())
            for group, entries in entry_points.items()
        )
    )
    for module, text in modules.items():
        (site / f"{module}.py").write_text(text)


def install_plugin(site: Path) -> None:
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    shutil.copytree(
        PLUGIN / "harness_example_plugin",
        site / "harness_example_plugin",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    install(site, project["name"], project["entry-points"])


def environment(site: Path) -> dict[str, str]:
    paths = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def run(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*HARNESS, *arguments],
        capture_output=True,
        text=True,
        env=environment(site),
        cwd=site,
        timeout=500,
    )


def listed(site: Path, command: str) -> dict[str, dict[str, str]]:
    done = run(site, command, "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    return {next(iter(row.values())): row for row in rows}


def refused(site: Path, *arguments: str) -> str:
    """The one line with which a command ends, exit code 1."""
    done = run(site, *arguments)
    assert done.returncode == 1, done.stdout
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.rstrip("\n")


# --- whose the import names are --------------------------------------------------------------------

ROOT = Path(registry.__file__).parents[2]


def package(site: Path, name: str, *files: str, version: str = "1.0", record: bool = True) -> None:
    """A distribution as pip leaves it, with files that may be ours by name."""
    info = site / f"{name.replace('-', '_').lower()}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    for file in files:
        (site / file).parent.mkdir(parents=True, exist_ok=True)
        (site / file).touch()
    listed = "".join(f"{file},sha256=x,0\n" for file in files)
    tops = "".join(f"{name}\n" for name in dict.fromkeys(file.split("/")[0] for file in files))
    (info / ("RECORD" if record else "top_level.txt")).write_text(listed if record else tops)


def ours(site: Path) -> None:
    """The four packages in a folder."""
    site.mkdir(parents=True, exist_ok=True)
    for name in registry.IMPORT_NAMES:
        (site / name).symlink_to(ROOT / name)


def zipped(path: Path) -> None:
    """The four packages in a zip file: of the harness what looking imports, of the others that they are."""
    with zipfile.ZipFile(path, "w") as archive:
        plugins = ("plugins/__init__", "plugins/plugin_code", "plugins/plugin_files", "plugins/registry")
        contracts = [f"contracts/{name}" for name in ("__init__", "data", "errors", "judge", "method")]
        for file in ("__init__", "version", *contracts, "finish", "text", *plugins):
            archive.write(ROOT / "harness" / f"{file}.py", f"harness/{file}.py")
        for name in registry.IMPORT_NAMES[1:]:
            archive.writestr(f"{name}/__init__.py", "")


def looked_at(*path: Path, cwd: Path) -> list[tuple[str, str]]:
    """What ``foreign_packages`` finds in an interpreter of its own, which has this path alone."""
    code = "import json; from harness.plugins import registry; print(json.dumps(registry.foreign_packages()))"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0, done.stderr
    return [(what, mend) for what, mend in json.loads(done.stdout)]


def test_ours_alone_is_fine_however_it_is_installed(tmp_path: Path) -> None:
    tree, wheel, editable, archive = (tmp_path / name for name in ("tree", "wheel", "editable", "our.zip"))
    ours(tree)
    assert looked_at(tree, cwd=tmp_path) == []  # a source tree on PYTHONPATH
    ours(wheel)
    package(wheel, "safetune-harness")
    info = wheel / "safetune_harness-1.0.dist-info"
    (info / "RECORD").write_text("".join(f"{name}/__init__.py,,\n" for name in registry.IMPORT_NAMES))
    assert looked_at(wheel, wheel, cwd=tmp_path) == []
    package(editable, "safetune-harness", "_editable_impl_safetune_harness.pth")
    assert looked_at(tree, editable, cwd=tmp_path) == []
    zipped(archive)
    assert looked_at(archive, cwd=tmp_path) == []
    package(editable, "other", "other/__init__.py", "judges_of_men.py", "tasks.libs/x.so", "tasks-2/x.py")
    assert looked_at(tree, editable, wheel / "..", cwd=tmp_path) == []


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("judges/a.py", "judges"),
        ("tasks.py", "tasks"),
        ("backends.cpython-311-x86_64-linux-gnu.so", "backends"),
    ],
)
@pytest.mark.parametrize("record", [True, False], ids=["wheel", "egg"])
def test_another_package_under_our_names_is_found(
    file: str, name: str, record: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not record and "/" not in file:
        file = f"{name}/__init__.py"
    package(tmp_path, "Other.Thing", file, record=record)
    if not file.endswith(".py"):
        (tmp_path / name).mkdir()  # a folder, since the module fits one Python alone
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    assert registry.foreign_packages() == [
        (
            f"the package 'Other.Thing' also installs '{name}'",
            "use an environment of its own for safetune-harness, or: pip uninstall Other.Thing",
        )
    ]


def test_a_packages_name_is_no_part_of_a_command_unless_it_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(tmp_path, "evil", "judges/x.py")
    metadata_file = tmp_path / "evil-1.0.dist-info" / "METADATA"
    for text in ("Name: x;rm$IFS-rf\nVersion: 1\n", "Name: \n", "", "\0\xff"):
        metadata_file.write_text(text, encoding="latin-1")
        monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
        ((what, mend),) = registry.foreign_packages()
        assert what.endswith("also installs 'judges'")
        assert "uninstall" not in mend
    metadata_file.unlink()
    (tmp_path / "evil-1.0.dist-info" / "RECORD").write_bytes(b"\xff\xfejudges/x.py\n")
    assert registry.foreign_packages() == []


def test_a_second_package_of_our_name_is_found(tmp_path: Path) -> None:
    tree, one, two = tmp_path / "tree", tmp_path / "one", tmp_path / "two"
    ours(tree)
    package(one, "safetune-harness", "x.pth")
    package(two, "Safetune.Harness", "y.pth", version="2.0")
    ((what, mend),) = looked_at(tree, one, two, cwd=tmp_path)
    assert what == (
        f"2 packages call themselves safetune-harness (safetune-harness 1.0 in {one}, "
        f"Safetune.Harness 2.0 in {two})"
    )
    assert mend == "pip uninstall safetune-harness until none is left, and install it again"


def test_a_copy_that_is_not_the_code_at_work_is_found(tmp_path: Path) -> None:
    tree, stale = tmp_path / "tree", tmp_path / "stale"
    ours(tree)
    package(stale, "safetune-harness", *(f"{name}/__init__.py" for name in registry.IMPORT_NAMES))
    assert looked_at(tree, stale, cwd=tmp_path) == [
        (
            f"safetune-harness is installed in {stale}, but the code at work is in {tree}",
            f"pip uninstall safetune-harness, or take {tree} off PYTHONPATH",
        )
    ]
    hidden = tmp_path / "hidden"  # one that calls its folder otherwise
    package(hidden, "nothing", "tasks/__init__.py")
    (hidden / "nothing-1.0.dist-info" / "METADATA").write_text("Name: safetune_harness\nVersion: 3\n")
    ((what, _),) = looked_at(tree, hidden, cwd=tmp_path)
    assert what == f"safetune-harness is installed in {hidden}, but the code at work is in {tree}"


@pytest.mark.parametrize("file", ["tasks.py", "judges/__init__.py", "backends/deep/x.py"])
def test_what_shadows_one_of_our_names_is_named(file: str, tmp_path: Path) -> None:
    tree, stray = tmp_path / "tree", tmp_path / "stray"
    ours(tree)
    (stray / file).parent.mkdir(parents=True, exist_ok=True)
    (stray / file).touch()
    name = file.partition("/")[0].removesuffix(".py")
    found = looked_at(tree, cwd=stray)  # as ``python -m``: the current folder comes first
    if "deep" in file:  # a folder without __init__.py gives way to a package
        assert found == []
        (tree / name).unlink()
        found = looked_at(tree, cwd=stray)
    ((what, mend),) = found
    shown = stray / file if "deep" not in file else stray / name
    assert what == f"'{name}' is imported from {shown} and not from {tree / name}"
    assert mend.startswith("rename it, or run from elsewhere")


def test_a_name_of_ours_that_is_missing_is_named(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    ours(tree)
    (tree / "tasks").unlink()
    assert looked_at(tree, cwd=tmp_path) == [
        (f"the package 'tasks' is missing in {tree}", "install safetune-harness again")
    ]


def test_a_run_of_a_source_tree_records_the_version_of_the_code_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = metadata.version

    def none_of_ours(name: str) -> str:
        if name == registry.DISTRIBUTION:
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", none_of_ours)
    run_folder.join(RunContext(config.load(None, {}), tmp_path))
    assert json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))["harness"] == __version__


# --- the tables ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("method", ["vanilla", "sdft", "constrained-sft", "lookahead-true", "lookahead-virtual"]),
        ("train task", ["gsm8k", "gsm8k-mini", "samsum-mini"]),
        ("judge", ["mini-exact", "keyword"]),
        ("engine", ["vllm", "hf", "openai"]),
    ],
)
def test_built_in_names_come_first_and_in_order(kind: str, expected: list[str]) -> None:
    assert [name for name in registry.names(kind) if name in expected] == expected
    assert registry.names(kind)[0] == expected[0]


@pytest.mark.parametrize("name", list(registry.METHODS))
def test_every_method_loads_under_its_own_name(name: str) -> None:
    loaded = registry.load("method", name)
    assert issubclass(loaded, Method)
    assert loaded.name == name
    assert loaded.summary


@pytest.mark.parametrize("name", list(registry.TRAIN_TASKS))
def test_every_train_task_loads_under_its_own_name(name: str) -> None:
    loaded = registry.load("train task", name)
    assert isinstance(loaded, TrainTask)
    assert loaded.name == name


@pytest.mark.parametrize("name", list(registry.JUDGES))
def test_every_judge_loads_under_its_own_name(name: str) -> None:
    loaded = registry.load("judge", name)
    assert issubclass(loaded, Judge)
    assert loaded.name == name


def test_an_unknown_name_meets_the_nearest() -> None:
    with pytest.raises(
        UsageError, match=r"^unknown method 'lookahead-tru': did you mean 'lookahead-true'\?$"
    ):
        registry.load("method", "lookahead-tru")
    with pytest.raises(UsageError, match=r"^unknown judge 'xyz': known: .*keyword.*mini-exact"):
        registry.load("judge", "xyz")


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("no_such_module_here:X", r"ModuleNotFoundError: No module named 'no_such_module_here'"),
        ("harness.contracts:Nothing", r"AttributeError: .*Nothing"),
    ],
)
def test_what_cannot_be_loaded_says_why(target: str, reason: str) -> None:
    with pytest.raises(HarnessError, match=rf"^plugin '{target}' cannot be loaded: {reason}"):
        registry.load_object(target)


@pytest.mark.parametrize(
    ("kind", "table", "target", "promise"),
    [
        ("method", registry.METHODS, "harness.contracts:Judge", "Method dataclass"),
        ("method", registry.METHODS, "harness.contracts:Method", "Method dataclass"),
        ("judge", registry.JUDGES, "backends.vanilla:Vanilla", "Judge class"),
        ("train task", registry.TRAIN_TASKS, "harness.contracts:TrainTask", "TrainTask"),
        ("train task", registry.TRAIN_TASKS, "tasks.gsm8k.train", "TrainTask"),
    ],
)
def test_what_is_not_of_its_kind_is_refused(
    kind: str, table: dict[str, str], target: str, promise: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(table, "odd", target)
    with pytest.raises(
        HarnessError, match=rf"^{kind} 'odd': '{target}' is no {promise} of harness.contracts$"
    ):
        registry.load(kind, "odd")


# --- folders with lm-eval tasks --------------------------------------------------------------------


@pytest.fixture
def entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Path]]:
    """(harness.tasks entry points) -> the folders below ``tmp_path``; packages and a lone module."""
    for folder in ("zz_outer", "zz_outer/inner", "zz_other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text("")
        (tmp_path / folder / "train.py").write_text("TASK = None\n")
    (tmp_path / "zz_lone.py").write_text("TASK = None\n")
    monkeypatch.syspath_prepend(tmp_path)
    for module in [name for name in sys.modules if name.startswith("zz_")]:  # an earlier test's folder
        del sys.modules[module]

    def folders(*values: str) -> list[Path]:
        found = [metadata.EntryPoint(f"t{i}", value, "harness.tasks") for i, value in enumerate(values)]
        monkeypatch.setattr(registry, "_entry_points", lambda group: found)
        ours, *others = registry.task_folders()
        assert ours.name == "tasks"
        return [other.relative_to(tmp_path) for other in others]

    return folders


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((), []),
        (("zz_outer",), ["zz_outer"]),
        (("zz_outer.inner.train:TASK",), ["zz_outer/inner"]),
        (("zz_outer.train:TASK", "zz_outer"), ["zz_outer"]),  # once
        (("zz_outer.inner.train:TASK", "zz_outer"), ["zz_outer"]),  # the outer one holds the inner's files
        (("zz_outer", "zz_other.train:TASK"), ["zz_outer", "zz_other"]),
        (("zz_lone:TASK",), []),  # else all of site-packages would be searched
    ],
)
def test_task_folders(
    values: tuple[str, ...], expected: list[str], entries: Callable[..., list[Path]]
) -> None:
    assert entries(*values) == [Path(name) for name in expected]


def test_a_task_package_that_fails_is_named(entries: Callable[..., list[Path]]) -> None:
    with pytest.raises(
        HarnessError, match=r"plugin 'zz_missing\.train' cannot be loaded: ModuleNotFoundError"
    ):
        entries("zz_missing.train:TASK")


# --- a third party's package -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder on PYTHONPATH with the package installed."""
    folder = tmp_path_factory.mktemp("site")
    install_plugin(folder)
    return folder


def test_its_method_judge_and_tasks_are_listed(site: Path) -> None:
    methods = listed(site, "methods")
    assert methods["answer-mask"]["what it does"] == "leaves each answer's first tokens without loss"
    assert methods["answer-mask"]["options"] == {"tokens": 2}
    assert "vanilla" in methods
    assert listed(site, "judges")["apology"]["how it judges"] == "takes an apology for safe"
    tasks = listed(site, "tasks")
    assert tasks["riddles"]["kind"] == "train"
    assert tasks["riddles-test"]["kind"] == "utility"
    assert tasks["quizzes"]["kind"] == "utility"  # behind an entry point that names a package alone
    assert "gsm8k-mini" in tasks


@pytest.mark.slow
def test_its_method_works_on_its_task(site: Path) -> None:
    """``data show`` walks through plan, task, method and encoding: of "A piano." two tokens are masked."""
    from transformers import AutoTokenizer

    from harness.mini import seed_model_path

    tokenizer = AutoTokenizer.from_pretrained(seed_model_path())
    answer = tokenizer("A piano.", add_special_tokens=False)["input_ids"]
    done = run(site, "data", "show", "--train-task", "riddles", "--method", "answer-mask")
    assert done.returncode == 0, done.stderr
    assert "<|system|>You solve riddles.<|end|>" in done.stdout
    assert "{" + tokenizer.decode(answer[2:]) + "<|end|>}" in done.stdout
    assert f"{{trained}} {len(answer) - 1} tokens" in done.stdout


def test_its_judge_and_tasks_enter_a_plan(site: Path) -> None:
    """lm-eval loads and scores its documents from the folder that the entry point names."""
    code = (
        "from pathlib import Path\n"
        "from harness import config; from harness.run import plan; from harness.plugins import registry\n"
        "from harness.run.context import RunContext\n"
        "made = config.load('mini', {'methods': ['answer-mask'], 'train_tasks': ['riddles'],"
        " 'judges': ['apology']})\n"
        "cells = plan.cells(made)\n"
        "assert cells[-1].tasks[0] == 'riddles-test', cells\n"
        "for name, answer in {'riddles-test': 'A clock.', 'quizzes': 'It has 8.'}.items():\n"
        "    task = RunContext(made, Path()).load_task(name, None)\n"
        "    doc = task.eval_docs[0]\n"
        "    print(doc['id'], task.process_results(doc, [answer]), task.process_results(doc, ['No.']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment(site),
        cwd=site,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "riddle-0 {'solved': 1.0} {'solved': 0.0}",
        "quiz-0 {'right': 1.0} {'right': 0.0}",
    ]


def test_the_folder_of_a_task_is_printed_for_lm_eval(site: Path) -> None:
    plugin = site / "harness_example_plugin"
    for name, folder in {"riddles-test": plugin / "riddles", "quizzes": plugin / "quizzes"}.items():
        assert run(site, "tasks", "--path", name).stdout == f"{folder}\n"
    assert run(site, "tasks", "--path").stdout == f"{registry.task_folders()[0]}\n"
    wrong = run(site, "tasks", "--path", "quizes")
    assert (wrong.returncode, wrong.stderr) == (
        2,
        "Error: unknown task 'quizes': did you mean 'quizzes'?\n",
    )


@pytest.mark.skipif(importlib.util.find_spec("hatchling") is None, reason="hatchling is not installed")
def test_pip_installs_it_with_the_entry_points_that_the_tests_use(site: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    shutil.copytree(PLUGIN, source, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation",
         "--disable-pip-version-check", "--target", str(target), str(source)],
        check=True,
        env={**os.environ, "PIP_CONFIG_FILE": os.devnull},
    )  # fmt: skip
    found = []
    for folder in (site, target):
        (distribution,) = metadata.distributions(path=[str(folder)])
        found.append(sorted((e.group, e.name, e.value) for e in distribution.entry_points))
    assert found[0] == found[1]
    assert len(found[0]) == 4
    assert (target / "harness_example_plugin" / "riddles" / "riddles.yaml").is_file()
    assert "answer-mask" in listed(target, "methods")


# --- plugins that are in the way -------------------------------------------------------------------

METHOD = (
    "from dataclasses import dataclass\nfrom harness.contracts import Method\n"
    "@dataclass\nclass Other(Method):\n    name = 'other'\n    summary = 'another'\n"
)


def test_a_duplicate_of_a_built_in_name(tmp_path: Path) -> None:
    install(tmp_path, "other", {"harness.backends": {"vanilla": "other:Other"}}, other=METHOD)
    assert refused(tmp_path, "methods", "--json") == (
        "Error: two plugins are called method 'vanilla': backends.vanilla:Vanilla and other:Other; "
        "uninstall or rename one"
    )
    assert run(tmp_path, "judges", "--json").returncode == 0  # the other kinds are as they were


def test_a_duplicate_between_two_packages(tmp_path: Path) -> None:
    install(tmp_path, "first", {"harness.judges": {"same": "first:J"}}, first="")
    install(tmp_path, "second", {"harness.judges": {"same": "second:J"}}, second="")
    assert re.fullmatch(
        r"Error: two plugins are called judge 'same': (first|second):J and (first|second):J; "
        r"uninstall or rename one",
        refused(tmp_path, "judges", "--json"),
    )


def test_two_lm_eval_tasks_of_one_name(tmp_path: Path) -> None:
    install(tmp_path, "twin", {"harness.tasks": {"twin": "twin"}})
    (tmp_path / "twin").mkdir()
    (tmp_path / "twin" / "__init__.py").write_text("")
    (tmp_path / "twin" / "mine.yaml").write_text("task: gsm8k-mini\nmetadata: {kind: utility}\n")
    line = refused(tmp_path, "tasks", "--json")
    assert line.startswith("Error: two lm-eval tasks are called 'gsm8k-mini': ")
    assert "mine.yaml" in line


@pytest.mark.parametrize(
    ("group", "command", "value"),
    [
        ("harness.backends", "methods", "broken:X"),
        ("harness.judges", "judges", "broken:X"),
        ("harness.tasks", "tasks", "broken:X"),
        ("harness.tasks", "tasks", "broken"),
    ],
)
def test_a_plugin_that_fails_to_import(group: str, command: str, value: str, tmp_path: Path) -> None:
    install(tmp_path, "broken", {group: {"odd": value}}, broken="raise RuntimeError('first\\nsecond')\n")
    done = run(tmp_path, command, "--json")
    assert done.returncode == 1
    assert done.stderr == f"Error: plugin '{value}' cannot be loaded: RuntimeError: first second\n"
    rows = json.loads(done.stdout)  # of all the others
    expected = {"methods": registry.METHODS, "judges": registry.JUDGES, "tasks": registry.TRAIN_TASKS}
    names = {next(iter(row.values())).partition(":")[0] for row in rows}
    assert names >= {*expected[command]}
    assert command != "tasks" or names >= {"gsm8k-mini", "xstest"}


def test_a_plugin_of_the_wrong_kind(tmp_path: Path) -> None:
    forgotten = METHOD.replace("@dataclass\n", "")
    install(tmp_path, "other", {"harness.backends": {"other": "other:Other"}}, other=forgotten)
    assert refused(tmp_path, "methods", "--json") == (
        "Error: method 'other': 'other:Other' is no Method dataclass of harness.contracts; "
        "put @dataclass above it"
    )
