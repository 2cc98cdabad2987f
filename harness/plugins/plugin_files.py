"""Plugins in the user's own files, for one command: ``--methods ./ema.py:Ema``, ``--judge ./mine.py:Judge``
and ``--task-dir DIR``.

Such a file runs as code, so only the command at hand can name it: a recipe cannot, and what a run folder
says of one is a record that nothing is loaded by. A file is read once, when it is named; what is loaded (in
workers and on other machines too) is that text, and its SHA-256 is part of the identity of what it makes.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from harness.contracts import UsageError
from harness.plugins.plugin_code import CONTRACTS, ClassFile, Kind, classes, own_name
from harness.text import is_name, printable

OPTIONS: Mapping[str, str] = {"method": "--methods", "judge": "--judge"}
LARGEST_BYTES = 10 * 2**20  # a source text; anything longer is something else
_SPEC = re.compile(
    r"(?:(?P<name>[^=:/\\]*)=)?(?P<file>[^:=]+\.py)(?::(?P<attribute>[^:]*))?(?::(?P<argument>.*))?",
    re.DOTALL,
)


class Spec(NamedTuple):
    """``[NAME=]FILE.py:CLASS[:ARGUMENT]``, as it was typed."""

    name: str | None
    file: str
    attribute: str
    argument: str


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
    """Have a function called when files or folders come or go."""
    _listeners.append(listener)


def _changed() -> None:
    for listener in _listeners:
        listener()


def found(kind: str, name: str) -> ClassFile | None:
    return _files.get((kind, name))


def names(kind: str) -> dict[str, str]:
    """Names to what was typed, of a kind of plugin."""
    return {one.name: one.shown for one in _files.values() if one.kind == kind}


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
    with. A class goes by the name that is typed, else by its ``name``, else by that of the class, or of the
    file where the class is called just Method or Judge. Raises UsageError or HarnessError in one line.
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
        _changed()
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
        there = classes(source)
        example = f"{spec.file}:{there[0] if there else CONTRACTS[kind].__name__}"
        also = f" (it has {', '.join(there[:5])})" if there else ""
        what = f"'{printable(spec.attribute)}' is no class's name" if spec.attribute else "which class of it?"
        raise UsageError(f"{shown}: {what}{also}: {option} {example}")
    return ClassFile(kind, "", spec.file, spec.attribute, source)


def _name(
    one: ClassFile,
    spec: Spec,
    place: tuple[str, str],
    places: Mapping[str, tuple[str, str]],
    taken: Collection[str],
) -> str:
    """Under which name a run has a class: two of one name are told apart by a number."""
    wish = spec.name if spec.name is not None else own_name(one)
    again = f"{OPTIONS[one.kind]} NAME={spec.file}:{spec.attribute}"
    if not is_name(wish):
        shown = printable(wish)[:60]
        raise UsageError(f"no {one.kind} can be called '{shown}': choose a name, as in {again}")
    if wish.lower() in {name.lower() for name in taken}:
        raise UsageError(f"{one.kind} '{one.shown}': '{wish}' is the name of another; choose one: {again}")
    name, number = wish, 1
    while _place_of(name, places) not in (None, place):
        if spec.name is not None:
            raise UsageError(f"two {one.kind}s are called '{wish}'; choose another name: {again}")
        number += 1
        name = f"{wish}-{number}"
    return name


def _place_of(name: str, places: Mapping[str, tuple[str, str]]) -> tuple[str, str] | None:
    return next((place for other, place in places.items() if other.lower() == name.lower()), None)


def _check_same(one: ClassFile, before: Mapping[str, Any] | None) -> None:
    """Raises UsageError where a run has another file's class under that name: a changed file is the same
    plugin, trained or asked anew, but two files must not share one row."""
    if before is not None and differs(before, one.record):
        raise UsageError(
            f"'{one.name}' is {before['file']}:{before['class_name']} in that run, and other code than "
            f"{one.shown}; give it another name: {OPTIONS[one.kind]} NAME={one.shown}"
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
