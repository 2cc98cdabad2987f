"""The lm-eval tasks that are installed, read from their YAML: importing lm-eval takes seconds."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from harness.contracts import HarnessError, UsageError
from harness.plugins import plugin_files, registry
from harness.storage.files import file_hash, files_below
from harness.text import is_name


class _IgnoreFunctions(yaml.SafeLoader):
    """lm-eval's ``!function`` tags are read as their plain text."""


_IgnoreFunctions.add_constructor("!function", lambda loader, node: str(node.value))


NOT_PINNED = "not-pinned"
KINDS = ("utility", "safety", "over-refusal")
CONVERSATIONS = "conversations"  # the task behind every safety set of the user's own
QUESTIONS = "questions"  # those behind utility sets: questions-exact, …
BUILDERS = ("json", "csv", "parquet", "text", "arrow")  # names of data sets that are files on this disk


@dataclass(frozen=True)
class Benchmark:
    """One lm-eval task: its YAML, and what its ``metadata`` says.

    ``name`` is what it is called here, ``task`` what lm-eval calls it: they differ for a user's safety set.
    ``kind`` is 'safety' (judged), 'over-refusal' or 'utility'; ``sources``: modules whose code makes its
    documents; ``prefilled``: its answers are opened, with k tokens of a harmful answer (``counted``, and
    ``depth`` where it fixes k) or with words of its own; ``decodings``: of its samples; ``hub``: the data set
    on the hub, with its revision; ``unscored``: why a document of it may have no metric.
    """

    name: str
    task: str
    path: Path
    version: str
    kind: str
    prefilled: bool = False
    counted: bool = False
    depth: int | None = None
    sources: tuple[str, ...] = ()
    local_data: str | None = None  # reads a user's file, given under this name (--data NAME=FILE)
    decodings: tuple[dict[str, float], ...] = ()
    hub: str | None = None
    foreign: bool = False  # one of lm-eval's own, or written as those are
    unscored: str = "the task gives it no score"
    folder: Path | None = None  # that the command has named (--task-dir), which it is from
    local_files: tuple[str, ...] = ()  # of such a task: the data that its YAML names

    @property
    def readable(self) -> bool:
        """Whether its texts are harmless: it measures a skill, and is none of lm-eval's own tasks, some of
        which are about toxic language, and of no folder that a run names."""
        return self.kind == "utility" and not self.foreign and self.folder is None

    def prefill_tokens(self, otherwise: int) -> int | None:
        """k, where the task counts its prefill in tokens; ``otherwise``: the run's."""
        return (self.depth or otherwise) if self.counted else None

    @functools.cached_property
    def content(self) -> str:
        """A hash of what its documents, prompts and metrics come from: its folder, and what it shares."""
        if self.folder is not None:
            return self._content_below(self.folder)
        folders = [self.path.parent]
        if (self.path.parent.parent / "__init__.py").is_file():  # modules that the package's tasks share
            folders.append(self.path.parent.parent)
        files = [*_included(self.path), *(file for folder in folders for file in folder.glob("*.py"))]
        for module in self.sources:
            spec = importlib.util.find_spec(module)
            if spec is None or spec.origin is None:
                raise HarnessError(f"{self.path}: metadata.sources names '{module}', which is not installed")
            files.append(Path(spec.origin))
        hashes = sorted(f"{file.name}:{file_hash(file)}" for file in set(files))
        return hashlib.sha256("\n".join(hashes).encode()).hexdigest()

    def _content_below(self, folder: Path) -> str:
        """Of a task in a folder of the user's own: its YAML, all files there but other tasks' YAML, and the
        data that it names. Raises HarnessError where these are missing."""
        hashes = [f"yaml:{file_hash(path)}" for path in _included(self.path)]
        for file in files_below(folder):
            inner = file.relative_to(folder)
            hidden = any(part.startswith(".") or part == "__pycache__" for part in inner.parts)
            if not hidden and file.suffix not in (".yaml", ".pyc"):
                hashes.append(f"{inner.as_posix()}:{file_hash(file)}")
        for name in self.local_files:
            if not Path(name).is_file():
                raise HarnessError(
                    f"{self.path}: dataset_kwargs.data_files names '{name}', which is not there (lm-eval "
                    "looks for it from the folder that the command is run in)"
                )
            hashes.append(f"data:{file_hash(Path(name))}")
        return hashlib.sha256("\n".join(hashes).encode()).hexdigest()

    def record(self) -> dict[str, Any]:
        """What a run keeps of a task in a folder of the user's own, for commands that only read the run."""
        return {
            "folder": str(self.folder),
            **{name: getattr(self, name) for name in RECORDED},
        }


RECORDED = ("version", "kind", "prefilled", "counted", "depth", "decodings", "foreign", "unscored")


@dataclass(frozen=True)
class OwnTask:
    """A task that a run has of its user: a file's, behind which stands the task ``base``, or one of a folder
    that a command has named (``recorded``)."""

    name: str
    base: str = ""
    recorded: Benchmark | None = None


def recorded(name: str, record: Mapping[str, Any]) -> Benchmark:
    """The task that a run's record describes: for commands that only read the run."""
    known = {key: record[key] for key in RECORDED}
    return Benchmark(name, name, Path(record["folder"]) / "task.yaml", folder=Path(record["folder"]), **known)


@functools.cache
def installed() -> dict[str, Benchmark]:
    """All lm-eval tasks of our folders and of those that the command names, by name. Raises HarnessError for
    a YAML that cannot be read."""
    found: dict[str, Benchmark] = {}
    for path in _yamls(registry.task_folders()):
        _add(found, path, _read(path))
    return found


def listed() -> tuple[dict[str, Benchmark], dict[str, list[str]], list[str]]:
    """The tasks and groups that can be read, and a line for each package or YAML that cannot."""
    found: dict[str, Benchmark] = {}
    members: dict[str, list[str]] = {}
    broken: list[str] = []
    for path in _yamls(registry.task_folders(broken)):
        try:
            values = _read(path)
            _add(found, path, values)
            members |= _group(values)
        except HarnessError as error:
            broken.append(str(error))
    return found, members, broken


def _add(found: dict[str, Benchmark], path: Path, values: Mapping[str, Any]) -> None:
    if not isinstance(values.get("task"), str):
        return  # a group, or a base that others include
    benchmark = _benchmark(path, values, folder=_folder_of(path))
    if not is_name(benchmark.name):
        raise HarnessError(f"{path}: a task called {benchmark.name!r} can have no folder: rename it")
    if benchmark.name in found:
        other = found[benchmark.name].path
        raise HarnessError(f"two lm-eval tasks are called '{benchmark.name}': {other} and {path}")
    found[benchmark.name] = benchmark


def of_folders() -> dict[str, Benchmark]:
    """Those of them that are in folders that the command names."""
    return {name: one for name, one in installed().items() if one.folder is not None}


def _folder_of(path: Path) -> Path | None:
    return next((folder for folder in plugin_files.folders() if folder in path.parents), None)


@functools.cache
def groups() -> dict[str, list[str]]:
    """Our groups of tasks, by name."""
    paths = _yamls(registry.task_folders())
    return {name: members for path in paths for name, members in _group(_read(path)).items()}


def _group(values: Mapping[str, Any]) -> dict[str, list[str]]:
    """A YAML's group with its members; {} where it is none."""
    name = values.get("group")
    return {name: [str(task) for task in values.get("task", ())]} if isinstance(name, str) else {}


plugin_files.when_changed(installed.cache_clear)
plugin_files.when_changed(groups.cache_clear)


def _yamls(folders: Iterable[Path]) -> Iterator[Path]:
    for folder in folders:
        yield from sorted(folder.rglob("*.yaml"))


def _read(path: Path) -> dict[str, Any]:
    """A YAML's values, laid over those of the file that it includes."""
    try:
        values: Any = yaml.load(path.read_text(encoding="utf-8"), Loader=_IgnoreFunctions)
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise HarnessError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        return {}
    included = values.pop("include", None)
    return {**_read(path.parent / included), **values} if isinstance(included, str) else values


def _included(path: Path) -> list[Path]:
    """A YAML and those that it includes."""
    base = yaml.load(path.read_text(encoding="utf-8"), Loader=_IgnoreFunctions).get("include")
    return [path, *(_included(path.parent / base) if isinstance(base, str) else ())]


def _benchmark(
    path: Path, values: Mapping[str, Any], *, foreign: bool = False, folder: Path | None = None
) -> Benchmark:
    """What a task's YAML says; lm-eval's own (``foreign``) may mean anything by our keys, but for version.
    One of a ``folder`` of the user's own is written as those are, unless it says of what kind it is."""
    metadata = _section(values, "metadata")
    foreign = foreign or (folder is not None and "kind" not in metadata)
    given = _data_files(values) if folder is not None else ()
    meta = {} if foreign else metadata
    options = {} if foreign else _section(values, "dataset_kwargs")
    hub = meta.get("hub")
    name = str(values["task"])
    if not foreign:
        _check_kind(path, meta)
    return Benchmark(
        name=name,
        task=name,
        path=path,
        version=str(metadata.get("version", 0)),
        kind=str(meta.get("kind", "utility")),
        prefilled=bool({"prefill_tokens", "refusal_prefix"} & {*meta}),
        counted="prefill_tokens" in meta,
        depth=options.get("depth"),
        sources=tuple(meta.get("sources", ())),
        local_data=meta.get("local_data"),
        decodings=tuple(meta.get("decodings", ())),
        hub=f"{hub['path']}@{hub.get('revision') or NOT_PINNED}" if hub else _data_set(values),
        foreign=foreign,
        folder=folder,
        local_files=given,
        unscored=str(meta.get("unscored", Benchmark.unscored)),
    )


def _data_set(values: Mapping[str, Any]) -> str | None:
    """The hub's data set that a YAML names, unless it names files."""
    path = values.get("dataset_path")
    return None if path in BUILDERS and _data_files(values) else path


def _data_files(values: Mapping[str, Any]) -> tuple[str, ...]:
    """The files on this disk that a YAML reads its documents from."""
    found: list[str] = []
    options = values.get("dataset_kwargs")
    waiting = [options.get("data_files") if isinstance(options, dict) else None]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str) and "://" not in value:
            found.append(value)
        elif isinstance(value, (dict, list)):
            waiting += value.values() if isinstance(value, dict) else value
    return tuple(sorted(found))


def _check_kind(path: Path, metadata: Mapping[str, Any]) -> None:
    """What a task is compared by hangs on its kind: none, or a mistyped one, must not pass for another."""
    if "kind" not in metadata:
        raise HarnessError(f"{path}: metadata has no kind: {', '.join(KINDS)}")
    if metadata["kind"] not in KINDS:
        raise HarnessError(f"{path}: {registry.unknown('kind', str(metadata['kind']), KINDS)}")


def _section(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = values.get(key)
    return found if isinstance(found, dict) else {}


def lm_eval_tasks() -> Path:
    spec = importlib.util.find_spec("lm_eval")  # without importing it
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "tasks"


def _entry(keys: str, name: str) -> re.Pattern[str]:
    """A YAML's line that gives one of ``keys`` (a|b) that name."""
    return re.compile(rf"^({keys}):[ \t]*[\"']?{re.escape(name)}[\"']?[ \t]*(#.*)?$", re.MULTILINE)


@functools.cache
def _of_lm_eval(name: str) -> Benchmark | None:
    """One of lm-eval's own tasks, by its YAML: lm-eval's index of all 14,000 takes ten seconds to build."""
    if not re.fullmatch(r"\w[\w.+-]{0,99}", name):
        return None
    folder = lm_eval_tasks()
    named = _entry("task", name)
    likely = sorted(folder.rglob(f"{name}.yaml"))
    for path in likely or sorted(folder.rglob("*.yaml")):
        if named.search(path.read_text(encoding="utf-8", errors="replace")):
            return _benchmark(path, {**_read(path), "task": name}, foreign=True)
    return None


def _is_group_of_lm_eval(name: str) -> bool:
    named = _entry("group|tag", name)
    paths = lm_eval_tasks().rglob("*.yaml")
    return any(named.search(path.read_text(encoding="utf-8", errors="replace")) for path in paths)


def first_share(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """The first metric of a task's answers that is between 0 and 1 for every document."""

    def is_share(name: str) -> bool:
        return all((value := row["metrics"].get(name)) is None or 0 <= value <= 1 for row in rows)

    return next((name for name in metrics(rows) if is_share(name)), None)


def metrics(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The metrics of a task's answers, in their order; an answer that is not scored lacks some."""
    return list(dict.fromkeys(name for row in rows for name in row["metrics"]))


def get(name: str, sets: Collection[OwnTask] = ()) -> Benchmark:
    """The task of a name: one of the user's (``sets``), one of ours, or one of lm-eval's. Raises UsageError
    with the nearest name."""
    mine = next((one for one in sets if one.name == name), None)
    if mine and mine.base:
        return replace(installed()[mine.base], name=name)
    if name in installed():
        return installed()[name]
    if mine and mine.recorded:
        return mine.recorded
    found = _of_lm_eval(name)
    if found is None and _is_group_of_lm_eval(name):
        raise UsageError(f"'{name}' is a group of lm-eval's; name its tasks (lm_eval ls groups)")
    if found is None:
        raise registry.unknown("task", name, [*installed(), *groups()])
    return found
