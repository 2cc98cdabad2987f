"""Which methods, train tasks, judges and engines there are: names first, code only when one is used.

The tables are plain strings, to be found with grep. Other packages add theirs through the entry points
``harness.backends`` (a Method class), ``harness.judges`` (a Judge class), ``harness.engines`` (an Engine
class) and ``harness.tasks`` (a TrainTask, or a package whose folder holds lm-eval YAML files). A command can
name files of its own besides (plugin_files.py). A duplicate name or a plugin that fails to load raises.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import is_dataclass
from importlib import metadata, resources
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from harness.contracts import HarnessError, Judge, JudgeSettings, Method, TrainTask, UsageError
from harness.plugins import plugin_code, plugin_files
from harness.text import is_name, shortened

METHODS = {
    "vanilla": "backends.vanilla:Vanilla",
    "sdft": "backends.sdft:SDFT",
    "constrained-sft": "backends.constrained_sft:ConstrainedSFT",
    "lookahead-true": "backends.lookahead:LookAheadTrue",
    "lookahead-virtual": "backends.lookahead:LookAheadVirtual",
    "ptst": "backends.ptst:PTST",
    "safety-mixing": "backends.safety_mixing:SafetyMixing",
    "lisa": "backends.lisa:Lisa",
    "deep-alignment": "backends.deep_alignment:DeepAlignment",
}
NOT_IN_ALL = ("deep-alignment",)  # made for the alignment stage: named, or not trained
TRAIN_TASKS = {
    "gsm8k": "tasks.gsm8k.train:TRAIN_TASK",
    "gsm8k-mini": "tasks.gsm8k_mini.train:TRAIN_TASK",
    "gsm8k-sdft": "tasks.gsm8k.train:SDFT_TRAIN_TASK",
    "samsum": "tasks.samsum.train:TRAIN_TASK",
    "samsum-mini": "tasks.samsum_mini.train:TRAIN_TASK",
    "alpaca": "tasks.alpaca.train:TRAIN_TASK",
}
JUDGES = {
    "mini-exact": "judges.mini_exact:MiniExact",
    "keyword": "judges.keyword:Keyword",
    "structure": "judges.structure:Structure",
    "keyword-published": "judges.keyword_published:KeywordPublished",
    "openai": "judges.openai_api:OpenAIJudge",
    "chat": "judges.local:ChatJudge",
    "classifier": "judges.local:Classifier",
    "vote": "judges.vote:Vote",
}
LOCAL_JUDGE = "judges.local:LocalJudge"  # what is behind each judges/*.yaml
ENGINES = {  # in the order in which ``engine: auto`` asks them
    "vllm": "harness.engines.vllm:VLLMEngine",
    "hf": "harness.engines.hf:HFEngine",
    "openai": "harness.engines.openai:OpenAIEngine",
}

DISTRIBUTION = "safetune-harness"
IMPORT_NAMES = ("harness", "backends", "judges", "tasks")

_HOME = Path(__file__).parents[2]  # where the four packages lie
_OUR_FILES = re.compile(
    rf"\n({'|'.join(IMPORT_NAMES)})(?:/|$|\.(?:[\w-]+\.)?(?:pyc?|so|pyd)\b)", re.MULTILINE
)  # in a list of installed files: a folder, or a module; ten times as fast as with ^
_OPENAI_MODEL = re.compile(r"(chat)?gpt-|o\d\b")  # a judge's name that is a model's
RESERVED = ("seed", "all")
_GROUPS = {
    "method": "harness.backends",
    "train task": "harness.tasks",
    "judge": "harness.judges",
    "engine": "harness.engines",
}
_PROMISES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "method": (
        "Method dataclass",
        lambda loaded: isinstance(loaded, type) and issubclass(loaded, Method) and is_dataclass(loaded),
    ),
    "train task": ("TrainTask", lambda loaded: isinstance(loaded, TrainTask)),
    "judge": ("Judge class", lambda loaded: isinstance(loaded, type) and issubclass(loaded, Judge)),
}
_TABLES = {"method": METHODS, "train task": TRAIN_TASKS, "judge": JUDGES, "engine": ENGINES}


def unknown(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """The one line for a name that does not exist, with the nearest that does."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(names)}"
    if not near and kind in plugin_files.OPTIONS:
        hint += "; a class in a file of yours is FILE.py:CLASS"
    if kind == "engine" and plugin_files.parse(name):
        hint += "; an engine is named by an installed package (entry point harness.engines), not by its file"
    return UsageError(f"unknown {kind} '{name}': {hint}")


def names(kind: str) -> list[str]:
    """All names of a kind ('method', 'train task', 'judge', 'engine'), built-in ones first, those of files
    that the command names last."""
    return list(_table(kind))


def installed_names(kind: str) -> list[str]:
    """The names of a kind that are there for every command, with those that no plugin can have."""
    own = plugin_files.names(kind)
    return [*(name for name in _table(kind) if name not in own), *RESERVED]


def load(kind: str, name: str) -> Any:
    """The class or object behind a name. Raises UsageError for an unknown name, HarnessError where what
    loads is not what its kind promises."""
    table = _table(kind)
    if name not in table:
        raise unknown(kind, name, table)
    own = plugin_files.found(kind, name)
    loaded = own.load() if own else load_object(table[name])
    if kind in _PROMISES:
        promise, kept = _PROMISES[kind]
        if not kept(loaded):
            forgotten = kind == "method" and isinstance(loaded, type) and issubclass(loaded, Method)
            mend = "; put @dataclass above it" if forgotten and loaded is not Method else ""
            raise HarnessError(f"{kind} '{name}': '{table[name]}' is no {promise} of harness.contracts{mend}")
        if not own and isinstance(loaded, type):
            plugin_code.check_names(f"{kind} '{name}'", loaded)
    return loaded


def judge_class(spec: str) -> type[Judge]:
    """The class behind ``NAME``, ``NAME:ARGUMENT`` or ``FILE.yaml``. UsageError where there is none."""
    name = judge_parts(spec)[0]
    loaded: type[Judge] = load_object(LOCAL_JUDGE) if _is_file(name) else load("judge", name)
    return loaded


def is_judge(spec: str) -> bool:
    """Whether there is a judge of that name: one that has judged a run need not be installed any more."""
    name = spec.partition(":")[0]
    return _is_file(name) or name in _table("judge")


def combines(spec: str) -> bool:
    """Whether a judge goes by other judges' verdicts; one that is not installed any more does not."""
    return is_judge(spec) and judge_class(spec).combines


def make_judge(spec: str, settings: JudgeSettings) -> Judge:
    """A judge ready to work. Raises UsageError for a name or argument that cannot be."""
    name, argument = judge_parts(spec)
    try:
        judge = judge_class(spec).configured(name, argument, settings)
    except HarnessError:
        raise
    except Exception as error:
        own = plugin_files.found("judge", name)
        if own is None:
            raise
        place = plugin_code.line_of(error) or f"'{own.file}:{own.attribute}'"
        raise HarnessError(
            f"judge {place} cannot be made: {type(error).__name__}: {shortened(error)}"
        ) from error
    judge.name = spec
    return judge


def judge_parts(spec: str) -> tuple[str, str]:
    """A judge's name (or YAML file), and what stands behind the colon. UsageError for an unknown name."""
    name, _, argument = spec.partition(":")
    if not (_is_file(name) or name in _table("judge")):
        if _OPENAI_MODEL.match(spec):
            raise UsageError(f"unknown judge '{spec}': did you mean 'openai:{spec}'?")
        raise unknown("judge", name, _table("judge"))
    return name, argument


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def load_object(target: str) -> Any:
    """What ``module:attribute`` names."""
    module, _, attribute = target.partition(":")
    try:
        loaded = importlib.import_module(module)
        return getattr(loaded, attribute) if attribute else loaded
    except Exception as error:
        reason = " ".join(str(error).split())
        raise HarnessError(f"plugin '{target}' cannot be loaded: {type(error).__name__}: {reason}") from error


def foreign_packages() -> list[tuple[str, str]]:
    """(what, how to mend it) for all that stands in the way of our four import names. PyPI has packages that
    install under one of them, and installing or removing such a one breaks ours; a copy of ours that is not
    the code at work is as bad; and a stray ``tasks.py`` on the path is imported in place of our tasks."""
    return [*_copies(), *_strangers(), *_shadows()]


def _copies() -> Iterator[tuple[str, str]]:
    """More than one package of our name, each with its own files and metadata."""
    found = {
        (os.path.realpath(str(one.locate_file(""))), _called(one)): one
        for one in metadata.distributions(name=DISTRIBUTION)
    }
    if len(found) > 1:
        shown = ", ".join(f"{called} in {place}" for place, called in found)
        mend = f"pip uninstall {DISTRIBUTION} until none is left, and install it again"
        yield f"{len(found)} packages call themselves {DISTRIBUTION} ({shown})", mend


def _strangers() -> Iterator[tuple[str, str]]:
    """Packages that install under our names: others', and one of ours whose files are not the code at work.
    Only folders of the path that hold such a name are looked at: all metadata takes a fifth of a second."""
    home = os.path.realpath(_HOME)
    for place in dict.fromkeys(os.path.realpath(entry) for entry in sys.path):
        if not any(PathFinder.find_spec(name, [place]) for name in IMPORT_NAMES):
            continue
        for one in metadata.distributions(path=[place]):
            names = dict.fromkeys(_OUR_FILES.findall(_listing(one)))
            if not names:
                continue
            owner = _called(one).partition(" ")[0]
            if re.sub(r"[-_.]+", "-", owner).lower() != DISTRIBUTION:
                mend = f"use an environment of its own for {DISTRIBUTION}"
                mend += f", or: pip uninstall {owner}" if is_name(owner) else ""
                yield from ((f"the package '{owner}' also installs '{name}'", mend) for name in names)
            elif place != home:
                what = f"{DISTRIBUTION} is installed in {place}, but the code at work is in {_HOME}"
                yield what, f"pip uninstall {DISTRIBUTION}, or take {_HOME} off PYTHONPATH"


def _shadows() -> Iterator[tuple[str, str]]:
    """Our names that are imported from elsewhere than beside this package, or from nowhere."""
    for name in IMPORT_NAMES:
        try:
            spec = importlib.util.find_spec(name)
        except ValueError:  # something that is no package was put in its place
            spec = None
        if spec is None:
            yield f"the package '{name}' is missing in {_HOME}", f"install {DISTRIBUTION} again"
            continue
        file = spec.origin or next(iter(spec.submodule_search_locations or ()), name)
        if os.path.realpath(os.path.dirname(file)) != os.path.realpath(_HOME / name):
            what = f"'{name}' is imported from {file} and not from {_HOME / name}"
            yield what, "rename it, or run from elsewhere and take the folder that it is in off PYTHONPATH"


def _called(package: metadata.Distribution) -> str:
    """A package's name and version, whatever state its metadata is in."""
    with contextlib.suppress(Exception):
        return f"{package.metadata['Name'] or '?'} {package.version}"
    return "?"


def _listing(package: metadata.Distribution) -> str:
    """The files that a package says it has installed, each after a line end; "" where it cannot be read."""
    with contextlib.suppress(Exception):
        return f"\n{package.read_text('RECORD') or package.read_text('top_level.txt') or ''}"
    return ""


def task_folders(broken: list[str] | None = None) -> list[Path]:
    """Folders with lm-eval YAML files: ours, and those of packages behind ``harness.tasks``.

    A train task in a module outside any package has no folder of its own. ``broken`` collects a line for
    each package that fails, which raises without it.
    """
    folders = [Path(str(resources.files("tasks")))]
    for entry in _entry_points(_GROUPS["train task"]):
        name = entry.value.partition(":")[0]
        try:
            module = load_object(name)
        except HarnessError as error:
            if broken is None:
                raise
            broken.append(str(error).replace(f"'{name}'", f"'{entry.value}'", 1))
            continue
        if module.__file__ is None:
            raise HarnessError(f"entry point '{entry.name}' of harness.tasks: '{entry.value}' has no folder")
        if module.__package__:
            folders.append(Path(module.__file__).parent)
    folders += plugin_files.folders()
    return [folder for folder in dict.fromkeys(folders) if not set(folder.parents) & set(folders)]


def _table(kind: str) -> dict[str, str]:
    table = dict(_TABLES[kind])
    if kind == "judge":
        folder = resources.files("judges")
        files = sorted(file.name for file in folder.iterdir() if _is_file(file.name))
        table |= {name.rpartition(".")[0]: LOCAL_JUDGE for name in files}
    for entry in _entry_points(_GROUPS[kind]):
        if kind == "train task" and ":" not in entry.value:
            continue  # a package of lm-eval tasks alone: see task_folders
        reserved = (*RESERVED, "auto") if kind == "engine" else RESERVED  # what the options say besides
        if entry.name in reserved or not is_name(entry.name):
            raise HarnessError(f"no plugin can be called '{entry.name}' ({entry.value}): rename it")
        if entry.name in table:
            raise HarnessError(
                f"two plugins are called {kind} '{entry.name}': {table[entry.name]} and {entry.value}; "
                "uninstall or rename one"
            )
        table[entry.name] = entry.value
    return table | plugin_files.names(kind)


@functools.cache  # reading every installed distribution's metadata takes milliseconds a time
def _entry_points(group: str) -> tuple[metadata.EntryPoint, ...]:
    return tuple(metadata.entry_points(group=group))
