"""Plugins in the user's own files, for one command: ``--methods ./ema.py:Ema``, ``--judge ./mine.py:Judge`` and
``--task-dir DIR``.

Such a file runs as code, so only the command at hand can name it: a recipe cannot, and what a run folder says
of one is a record that nothing here reads. A file is read once, when it is named; what is loaded, in workers
and on other machines too, is that text, and its SHA-256 is part of the identity of whatever it makes.
"""

from __future__ import annotations

import ast
import base64
import difflib
import hashlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from types import FunctionType, ModuleType, TracebackType
from typing import Any, Literal, NamedTuple

from harness.contracts import HarnessError, Judge, Method, UsageError
from harness.text import is_name, printable, shortened

Kind = Literal["method", "judge"]
CONTRACTS: Mapping[str, type] = {"method": Method, "judge": Judge}
OPTIONS: Mapping[str, str] = {"method": "--methods", "judge": "--judge"}
LARGEST_BYTES = 10 * 2**20  # a source text; anything longer is something else
_SPEC = re.compile(
    r"(?:(?P<name>[^=:/\\]*)=)?(?P<file>[^:=]+\.py)(?::(?P<attribute>[^:]*))?(?::(?P<argument>.*))?", re.DOTALL
)


class Spec(NamedTuple):
    """``[NAME=]FILE.py:CLASS[:ARGUMENT]``, as it was typed."""

    name: str | None
    file: str
    attribute: str
    argument: str


@dataclass(frozen=True)
class ClassFile:
    """A class of a file that the command has named, and the text that was in it then."""

    kind: Kind
    name: str  # under which the run has it
    file: str  # as it was typed
    attribute: str
    source: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.source).hexdigest()

    @property
    def record(self) -> dict[str, str]:
        """What a run's record keeps."""
        return {"file": self.file, "class_name": self.attribute, "sha256": self.sha256}

    def load(self) -> Any:
        """The class. Raises HarnessError in one line, with the file's line where it has one."""
        loaded = _attribute(self)
        _check_contract(self, loaded)
        return loaded


class Shipment(NamedTuple):
    """What a command has named, as it travels to another process."""

    files: tuple[ClassFile, ...] = ()
    folders: tuple[str, ...] = ()


_files: dict[tuple[str, str], ClassFile] = {}
_folders: dict[str, None] = {}
_listeners: list[Callable[[], None]] = []


# --- what this process has been given ----------------------------------------------------------------


def shipped() -> Shipment:
    return Shipment(tuple(_files.values()), tuple(_folders))


def take(shipment: Shipment) -> None:
    """Have just these files and folders, as the process has that sent them."""
    _files.clear()
    _files.update({(one.kind, one.name): one for one in shipment.files})
    _folders.clear()
    _folders.update(dict.fromkeys(shipment.folders))
    _changed()


def forget() -> None:
    """A new command begins: what an earlier one in this process has named is not named any more."""
    take(Shipment())


def when_changed(listener: Callable[[], None]) -> None:
    """Have a function called when folders of tasks come or go."""
    _listeners.append(listener)


def _changed() -> None:
    for listener in _listeners:
        listener()


def found(kind: str, name: str) -> ClassFile | None:
    return _files.get((kind, name))


def names(kind: str) -> dict[str, str]:
    """Names to what was typed, of a kind of plugin."""
    return {one.name: f"{one.file}:{one.attribute}" for one in _files.values() if one.kind == kind}


def sha256(kind: str, name: str) -> dict[str, str]:
    """The part of an identity that is the plugin's own text; {} for one that is installed."""
    one = found(kind, name)
    return {"code": one.sha256} if one else {}


def folders() -> list[Path]:
    """Folders of tasks that the command has named."""
    return [Path(folder) for folder in _folders]


def as_json(shipment: Shipment) -> dict[str, Any]:
    files = [
        {**one.__dict__, "source": base64.b64encode(one.source).decode("ascii")} for one in shipment.files
    ]
    return {"files": files, "folders": list(shipment.folders)}


def from_json(value: Mapping[str, Any]) -> Shipment:
    files = [ClassFile(**{**one, "source": base64.b64decode(one["source"])}) for one in value["files"]]
    return Shipment(tuple(files), tuple(value["folders"]))


# --- naming them -------------------------------------------------------------------------------------


def parse(text: str) -> Spec | None:
    """The parts of ``[NAME=]FILE.py:CLASS[:ARGUMENT]``; None for the name of something installed."""
    match = _SPEC.fullmatch(text.strip())
    if match is None:
        return None
    return Spec(
        match["name"],
        match["file"].strip(),
        (match["attribute"] or "").strip(),
        match["argument"] or "",
    )


def named(
    kind: Kind, given: Sequence[str], taken: Collection[str], before: Mapping[str, Mapping[str, Any]]
) -> tuple[list[str], dict[str, dict[str, str]]]:
    """The names for what a command line names, files read, and the records of these files by name.

    ``taken``: names that are somebody else's; ``before``: the records of the run that the command goes on
    with. A class goes by the name that is typed, else by its ``name``, else by that of the class (of the file,
    where the class is called just Method or Judge). Raises UsageError or HarnessError in one line.
    """
    known, records = [], dict[str, dict[str, str]]()
    places: dict[str, tuple[str, str]] = {}
    for text in given:
        spec = parse(text)
        if spec is None:
            known.append(text)
            continue
        one = _read(kind, spec)
        place = os.path.realpath(os.path.expanduser(spec.file)), spec.attribute
        name = _name(one, spec, place, places, taken)
        one = ClassFile(kind, name, spec.file, spec.attribute, one.source)
        _check_same(one, before.get(name))
        one.load()
        _files[kind, name] = one
        places[name] = place
        records[name] = one.record
        known.append(f"{name}:{spec.argument}" if spec.argument else name)
    return known, records


def _read(kind: Kind, spec: Spec) -> ClassFile:
    path, option = Path(spec.file).expanduser(), OPTIONS[kind]
    shown = f"{kind} '{printable(spec.file)}'"
    if not path.is_file():
        what = "it is a folder" if path.is_dir() else "no such file"
        raise UsageError(f"{shown}: {what}; {option} FILE.py:CLASS names a class in a file of yours")
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise UsageError(f"{shown}: over {LARGEST_BYTES // 2**20} MB is no Python file of one class")
        source = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{shown}: cannot be read ({error.strerror or type(error).__name__})") from error
    if not spec.attribute.isidentifier():
        there = _classes(source)
        example = f"{spec.file}:{there[0] if there else CONTRACTS[kind].__name__}"
        also = f" (it has {', '.join(there[:5])})" if there else ""
        what = f"'{printable(spec.attribute)}' is no class's name" if spec.attribute else "which class of it?"
        raise UsageError(f"{shown}: {what}{also}: {option} {example}")
    return ClassFile(kind, "", spec.file, spec.attribute, source)


def _classes(source: bytes) -> list[str]:
    """The classes of a file, which is not run for it."""
    try:
        return [node.name for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []


def _name(
    one: ClassFile,
    spec: Spec,
    place: tuple[str, str],
    places: Mapping[str, tuple[str, str]],
    taken: Collection[str],
) -> str:
    """Under which name a run has a class: two of one name are told apart by a number."""
    wish = spec.name if spec.name is not None else _own_name(one)
    again = f"{OPTIONS[one.kind]} NAME={spec.file}:{spec.attribute}"
    if not is_name(wish):
        raise UsageError(f"no {one.kind} can be called '{printable(wish)[:60]}': choose a name, as in {again}")
    if wish.lower() in {name.lower() for name in taken}:
        raise UsageError(
            f"{one.kind} '{spec.file}:{spec.attribute}': '{wish}' is the name of another; choose one: {again}"
        )
    name, number = wish, 1
    while name.lower() in {n.lower(): n for n in places} and _place_of(name, places) != place:
        if spec.name is not None:
            raise UsageError(f"two {one.kind}s are called '{wish}'; choose another name: {again}")
        number += 1
        name = f"{wish}-{number}"
    return name


def _place_of(name: str, places: Mapping[str, tuple[str, str]]) -> tuple[str, str] | None:
    return next((place for other, place in places.items() if other.lower() == name.lower()), None)


def _own_name(one: ClassFile) -> str:
    """The class's ``name`` where its file gives it one, else one made from the class's or the file's."""
    loaded = _attribute(one)
    _check_contract(one, loaded)
    for own in loaded.__mro__:
        name = own.__dict__.get("name") if own.__module__ == loaded.__module__ else None
        if isinstance(name, str):
            return name
    bare = one.attribute == CONTRACTS[one.kind].__name__
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", Path(one.file).stem if bare else one.attribute)
    return re.sub(r"[^A-Za-z0-9.]+", "-", words).strip("-.").lower()


def _check_same(one: ClassFile, before: Mapping[str, Any] | None) -> None:
    """Raises UsageError where a run has another file's class under that name: a changed file is the same
    plugin, trained or asked anew, but two files must not share one row."""
    if before is not None and differs(before, one.record):
        raise UsageError(
            f"'{one.name}' is {before['file']}:{before['class_name']} in that run, and other code than "
            f"{one.file}:{one.attribute}; give it another name: "
            f"{OPTIONS[one.kind]} NAME={one.file}:{one.attribute}"
        )


def option(kind: Kind, name: str, record: Mapping[str, Any]) -> str:
    """How a command names a class that a run has."""
    return f"{OPTIONS[kind]} {name}={record['file']}:{record['class_name']}"


def differs(there: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    """Whether two records are of different plugins: neither one text nor one place."""

    def place(record: Mapping[str, Any]) -> tuple[str, str]:
        return os.path.realpath(os.path.expanduser(record["file"])), record["class_name"]

    same_text = (there["sha256"], there["class_name"]) == (here["sha256"], here["class_name"])
    return not same_text and place(there) != place(here)


def name_folder(text: str | Path) -> str:
    """Have a folder of lm-eval tasks for this command. Raises UsageError where it is none."""
    folder = str(text)
    path = Path(folder).expanduser()
    if not path.is_dir():
        what = "it is a file" if path.is_file() else "no such folder"
        raise UsageError(f"--task-dir '{printable(folder)}': {what}; it names a folder of lm-eval YAML tasks")
    if not any(path.rglob("*.yaml")):
        raise UsageError(f"--task-dir '{printable(folder)}': no lm-eval task (*.yaml) is in it")
    place = os.path.realpath(path)
    if place not in {os.path.realpath(Path(other).expanduser()) for other in _folders}:
        _folders[str(path)] = None
        _changed()
    return str(path)


def refuse_in_recipe(values: Mapping[str, Any], where: str) -> None:
    """Raises UsageError where a recipe names files with code: those the command line alone may name."""
    variants = values.get("variants")
    groups: list[tuple[Kind, str, Any]] = [
        ("method", "methods", values.get("methods")),
        ("judge", "judges", values.get("judges")),
        *(
            ("method", f"variants.{name}.method", [one.get("method")])
            for name, one in (variants.items() if isinstance(variants, dict) else ())
            if isinstance(one, dict)
        ),
    ]
    for kind, key, given in groups:
        for text in [given] if isinstance(given, str) else given if isinstance(given, list) else ():
            if isinstance(text, str) and parse(text):
                raise UsageError(
                    f"{where}: {key} names a file with code, '{printable(text)[:100]}': the command line "
                    f"alone may: {OPTIONS[kind]} {printable(text)[:100]}"
                )
    if "code" in values:
        raise UsageError(
            f"{where}: 'code' is a run's record of files with code; name them on the command line "
            "(--methods FILE.py:CLASS, --judge FILE.py:CLASS, --task-dir DIR)"
        )


# --- loading -----------------------------------------------------------------------------------------


def _attribute(one: ClassFile) -> Any:
    module = _module(one)
    loaded = getattr(module, one.attribute, None)
    if loaded is None:
        classes = [name for name, value in vars(module).items() if isinstance(value, type)]
        own = [name for name in classes if getattr(module, name).__module__ == module.__name__]
        near = difflib.get_close_matches(one.attribute, own, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(own[:5]) or 'no class'}"
        raise UsageError(f"{one.kind} '{one.file}' has no class '{one.attribute}': {hint}")
    return loaded


def _module(one: ClassFile) -> ModuleType:
    """The file's module, made once for each text. Raises HarnessError with the line that fails."""
    content = hashlib.sha256(one.source + b"\0" + os.fsencode(one.file)).hexdigest()
    name = f"harness_plugin_{content[:24]}"
    if name in sys.modules:
        return sys.modules[name]
    there = {*sys.modules}
    module = sys.modules[name] = ModuleType(name)
    module.__file__ = one.file
    _texts.add(one.file)
    try:
        exec(compile(one.source, one.file, "exec", dont_inherit=True), module.__dict__)
        _check_alone(one, there)
    except HarnessError:
        del sys.modules[name]
        raise
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        place = line_of(error) or one.file
        said = error.msg if isinstance(error, SyntaxError) else shortened(error, 200)
        raise HarnessError(f"{one.kind} {place}: {type(error).__name__}: {printable(str(said))}") from error
    return module


_texts: set[str] = set()  # files whose code is at work, as tracebacks name them


def _check_alone(one: ClassFile, before: Collection[str]) -> None:
    """Raises HarnessError where a file imports one beside it: its text is in no identity, and stays here."""
    beside = os.path.dirname(os.path.realpath(os.path.expanduser(one.file)))
    for name in [name for name in sys.modules if name not in before]:
        file = getattr(sys.modules.get(name), "__file__", None)
        if not file or file == one.file or name.startswith("harness_plugin_"):
            continue
        if os.path.dirname(os.path.realpath(file)) == beside:
            del sys.modules[name]
            raise HarnessError(
                f"{one.kind} '{one.file}' imports {os.path.basename(file)} beside it: a plugin is one file "
                "(its content says what is trained or judged anew); put both into it, or install a package"
            )


def _check_contract(one: ClassFile, loaded: Any) -> None:
    """Raises HarnessError where a class is not what its kind promises."""
    contract, place = CONTRACTS[one.kind], f"{one.kind} '{one.file}:{one.attribute}'"
    if not (isinstance(loaded, type) and issubclass(loaded, contract)) or loaded is contract:
        raise HarnessError(
            f"{place} is no subclass of harness.contracts.{contract.__name__}: "
            f"class {one.attribute}({contract.__name__}): …"
        )
    if one.kind == "method" and not is_dataclass(loaded):
        raise HarnessError(f"{place} is no dataclass: put @dataclass above it")
    if one.kind == "method" and "__dataclass_fields__" not in loaded.__dict__:
        raise HarnessError(f"{place} is no dataclass of its own: put @dataclass above it")
    if inspect.isabstract(loaded):
        raise HarnessError(f"{place} lacks {', '.join(sorted(loaded.__abstractmethods__))}")
    if one.kind == "judge" and loaded.judge is Judge.judge:
        raise HarnessError(f"{place} lacks the method judge(self, exchanges, context)")
    for name, promised, own in _overridden(contract, loaded):
        if not callable(own):
            raise HarnessError(f"{place}: '{name}' must be a method, and is {type(own).__name__}")
        if isinstance(own, FunctionType) and not _takes(own, promised):
            asked = ", ".join(inspect.signature(promised).parameters)
            line = own.__code__.co_firstlineno
            raise HarnessError(f"{one.kind} {one.file}, line {line}: {name} must take ({asked})")


def _overridden(contract: type, loaded: type) -> Iterator[tuple[str, FunctionType, Any]]:
    for name, promised in vars(contract).items():
        if isinstance(promised, FunctionType) and not name.startswith("_"):
            own = inspect.getattr_static(loaded, name)
            if own is not promised:
                yield name, promised, own


def _takes(own: FunctionType, promised: FunctionType) -> bool:
    """Whether a method can be called as the contract's is: with as many arguments in their order."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    count = sum(p.kind in kinds for p in inspect.signature(promised).parameters.values())
    try:
        inspect.signature(own).bind(*range(count))
    except TypeError:
        return False
    return True


# --- what goes wrong in them -------------------------------------------------------------------------


def line_of(error: BaseException) -> str | None:
    """``FILE, line N`` of the last line of a named file that an error went through; None where there is
    none."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, SyntaxError) and seen.filename in _texts and seen.lineno:
            return f"{seen.filename}, line {seen.lineno}"
        lines = [(file, line) for file, line in _frames(seen.__traceback__) if file in _texts]
        if lines:
            return f"{lines[-1][0]}, line {lines[-1][1]}"
        seen = seen.__cause__
    return None


def told(error: BaseException) -> str | None:
    """An error of a named file's code in one line, with its place; None where it is none of theirs."""
    place = line_of(error)
    return f"plugin {place}: {type(error).__name__}: {shortened(error, 200)}" if place else None


def _frames(trace: TracebackType | None) -> Iterator[tuple[str, int]]:
    while trace is not None:
        yield trace.tb_frame.f_code.co_filename, trace.tb_lineno
        trace = trace.tb_next
