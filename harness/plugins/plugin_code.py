"""Code from the user's own files: a class loaded from the text that was read, held against its contract, and
what goes wrong in it told with file and line."""

from __future__ import annotations

import ast
import difflib
import hashlib
import inspect
import os
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from types import CodeType, FunctionType, ModuleType, TracebackType
from typing import Any, Literal

from harness.contracts import HarnessError, Judge, Method, UsageError
from harness.text import printable, shortened

Kind = Literal["method", "judge"]
CONTRACTS: Mapping[Kind, Any] = {"method": Method, "judge": Judge}
PREFIX = "harness_plugin_"  # of the names of their modules
_FOREIGN_HOOK = re.compile(
    "on_|(?:compute_loss|training_step|get_train_dataloader)$"
)  # other trainers' names

_at_work: set[str] = set()  # files whose code has been run, as tracebacks name them


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
    def shown(self) -> str:
        return f"{self.file}:{self.attribute}"

    @property
    def record(self) -> dict[str, str]:
        """What a run's record keeps."""
        return {"file": self.file, "class_name": self.attribute, "sha256": self.sha256}

    def load(self) -> Any:
        """The class. Raises HarnessError in one line, with the file's line where it has one."""
        loaded = _attribute(self)
        _check_contract(self, loaded)
        return loaded


def own_name(one: ClassFile) -> str:
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


def classes(source: bytes) -> list[str]:
    """The classes of a file, which is not run for it."""
    try:
        return [node.name for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []


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
    name = f"{PREFIX}{content[:24]}"
    if name in sys.modules:
        return sys.modules[name]
    there = {*sys.modules}
    module = sys.modules[name] = ModuleType(name)
    module.__file__ = one.file
    _at_work.add(one.file)
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


def _check_alone(one: ClassFile, before: Collection[str]) -> None:
    """Raises HarnessError where a file imports one beside it: its text is in no identity, and stays here."""
    beside = os.path.dirname(os.path.realpath(os.path.expanduser(one.file)))
    for name in [name for name in sys.modules if name not in before]:
        file = getattr(sys.modules.get(name), "__file__", None)
        if not file or file == one.file or name.startswith(PREFIX):
            continue
        if os.path.dirname(os.path.realpath(file)) == beside:
            del sys.modules[name]
            raise HarnessError(
                f"{one.kind} '{one.file}' imports {os.path.basename(file)} beside it: a plugin is one file "
                "(its content says what is trained or judged anew); put both into it, or install a package"
            )


def _check_contract(one: ClassFile, found: Any) -> None:
    """Raises HarnessError where a class is not what its kind promises."""
    contract: Any = CONTRACTS[one.kind]
    place = f"{one.kind} '{one.shown}'"
    if not isinstance(found, type) or not issubclass(found, contract) or found is contract:
        raise HarnessError(
            f"{place} is no subclass of harness.contracts.{contract.__name__}: "
            f"class {one.attribute}({contract.__name__}): …"
        )
    loaded: Any = found
    undecorated = "__annotations__" in loaded.__dict__ and "__dataclass_fields__" not in loaded.__dict__
    if one.kind == "method" and (undecorated or not is_dataclass(loaded)):
        raise HarnessError(f"{place} is no dataclass: put @dataclass above it")
    lacking = _lacking(loaded)
    if lacking:
        raise HarnessError(f"{place} lacks the method {lacking}")
    check_names(place, loaded)
    for name, promised, own in _overridden(loaded):
        if not callable(own):
            raise HarnessError(f"{place}: '{name}' must be a method, and is {type(own).__name__}")
        if isinstance(own, FunctionType) and not _takes(own, promised):
            asked = ", ".join(inspect.signature(promised).parameters)
            line = own.__code__.co_firstlineno
            raise HarnessError(f"{one.kind} {one.file}, line {line}: {name} must take ({asked})")


def check_names(place: str, loaded: type) -> None:
    """Raises HarnessError for a class with a name that is nearly one of its contract's and that nothing in
    its module uses: a misspelt hook is never called, and its method would be vanilla's under another name.
    Also for one with half of what a resumed training needs."""
    promised = {name for base in loaded.__mro__ if not _is_own(base, loaded) for name in vars(base)}
    public = [name for name in promised if not name.startswith("_")]
    used = _names_used(loaded) | promised
    for name in _own_names(loaded):
        near = difflib.get_close_matches(name, public, n=1, cutoff=0.75)
        foreign = issubclass(loaded, Method) and _FOREIGN_HOOK.match(name)
        if name not in used and (near or foreign):
            hint = f"did you mean '{near[0]}'?" if near else "the hooks are those of harness.contracts.Method"
            raise HarnessError(f"{place}: nothing calls or reads its '{name}': {hint}")
    if issubclass(loaded, Method):
        _check_resumes(place, loaded)


def _check_resumes(place: str, loaded: type[Method]) -> None:
    own = [name for name in ("state", "load_state") if getattr(loaded, name) is not getattr(Method, name)]
    if len(own) == 1:
        other = "load_state(self, tensors)" if own == ["state"] else "state(self)"
        raise HarnessError(f"{place} has {own[0]} and no {other}: a training that is resumed needs both")


def _is_own(base: type, loaded: type) -> bool:
    """Whether a class or a base of it is the plugin's own: of the same file or package."""
    package = loaded.__module__.partition(".")[0]
    return base is loaded or (package != "harness" and base.__module__.partition(".")[0] == package)


def _own_names(loaded: type) -> list[str]:
    bases = [base for base in loaded.__mro__ if _is_own(base, loaded)]
    names = [name for base in bases for name in (*vars(base), *vars(base).get("__annotations__", ()))]
    return [name for name in dict.fromkeys(names) if not name.startswith("_")]


def _names_used(loaded: type) -> set[str]:
    """All names that the functions of a class's module, and of its own bases, mention."""
    module = sys.modules.get(loaded.__module__)
    values = [*vars(module).values()] if module else []
    owners = [one for one in values if isinstance(one, type) and one.__module__ == loaded.__module__]
    for one in {*owners, *(base for base in loaded.__mro__ if _is_own(base, loaded))}:
        values += vars(one).values()
    functions = [getattr(one, "fget", None) or getattr(one, "__func__", one) for one in values]
    codes = [one.__code__ for one in functions if isinstance(one, FunctionType)]
    names: set[str] = set()
    while codes:
        code = codes.pop()
        if code.co_filename != "<string>":  # what @dataclass writes mentions every field
            names.update(code.co_names)
            codes += [one for one in code.co_consts if isinstance(one, CodeType)]
    return names


def _lacking(loaded: Any) -> str | None:
    """The first method that a base class leaves to this one and that is not there, as it is to be written."""
    for name in dir(loaded):
        own = inspect.getattr_static(loaded, name, None)
        promised = isinstance(own, FunctionType) and own.__code__.co_names == ("NotImplementedError",)
        if promised or name in getattr(loaded, "__abstractmethods__", ()):
            arguments = ", ".join(inspect.signature(own).parameters) if callable(own) else "…"
            return f"{name}({arguments})"
    return None


def _overridden(loaded: type) -> Iterator[tuple[str, FunctionType, Any]]:
    """A class's methods that stand for one of a base class from elsewhere, with the nearest such one."""
    promised: dict[str, FunctionType] = {}
    for base in reversed([base for base in loaded.__mro__ if not _is_own(base, loaded)]):
        promised |= {name: one for name, one in vars(base).items() if isinstance(one, FunctionType)}
    for name, one in promised.items():
        own = inspect.getattr_static(loaded, name)
        if not name.startswith("_") and own is not one:
            yield name, one, own


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
        if isinstance(seen, SyntaxError) and seen.filename in _at_work and seen.lineno:
            return f"{seen.filename}, line {seen.lineno}"
        lines = [(file, line) for file, line in _frames(seen.__traceback__) if file in _at_work]
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
