"""Files of a run: atomic writes, JSON lines, content hashes, and stages with their markers.

A stage's identity is a hash of all that its result depends on. Its marker, ``<stage>.done.json``, holds that
identity with the size and SHA-256 of each output, and is written last: a crash at any point leaves a stage
that is run again, never a half result that is believed.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from harness.contracts import HarnessError
from harness.reading import json_value
from harness.storage import crash

HASH_UP_TO_BYTES = 64 * 2**20  # larger outputs are checked by size alone when a stage is looked up


@contextlib.contextmanager
def held(folder: Path, busy: str) -> Iterator[None]:
    """Hold a folder, made where it is missing. Raises HarnessError with ``busy`` where another process does,
    and where it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _unlinked(folder / ".lock")
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise HarnessError(f"{folder}: {busy}") from None
    except OSError as error:
        raise HarnessError(f"{folder}: cannot be written ({error.strerror}); choose another --out") from error
    try:
        yield
    finally:
        lock.release()


def _unlinked(path: Path) -> None:
    """Remove a lock file that is a link: opening it would create or change what it leads to. (A lock that is
    held must keep its file, or a second process could lock another.)"""
    with contextlib.suppress(OSError):
        if path.is_symlink() or path.stat().st_nlink > 1:
            path.unlink()


def fresh(path: Path) -> Path:
    """A path to write to, with its folder and without a file, which a kill may have left: opening one that is
    there would write through a link, a hard link too, into a file elsewhere."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    return path


def write_text_atomic(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old content or the new, never a part."""
    _write(path, [text])


def _write(path: Path, parts: Iterable[str]) -> None:
    temporary = fresh(path.with_name(f".{path.name}.new"))
    try:
        with temporary.open("x", encoding="utf-8", newline="") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        crash.point("text.written", path)
        os.replace(temporary, path)
        crash.point("text.replaced", path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json_atomic(path: Path, value: Any) -> None:
    write_text_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_jsonl_atomic(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    _write(path, map(json_line, rows))


def json_line(row: Mapping[str, Any]) -> str:
    """A row of a JSON lines file."""
    return json.dumps(row, ensure_ascii=False) + "\n"


def read_json(path: Path) -> Any:
    """Raises HarnessError with the file's name where it is missing or not JSON."""
    try:
        return json_value(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise HarnessError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise HarnessError(f"{path}: cannot be read as JSON ({error})") from error


def jsonl_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of each line that is not blank. Raises HarnessError with file and line."""
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    row = json_value(line)
                except ValueError as error:
                    raise HarnessError(f"{path}, line {number}: not valid JSON ({error})") from error
                if not isinstance(row, dict):
                    raise HarnessError(
                        f"{path}, line {number}: expected a JSON object, found {type(row).__name__}"
                    )
                yield number, row
    except FileNotFoundError:
        raise HarnessError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # the second: not UTF-8, or no path at all
        raise HarnessError(f"{path}: cannot be read ({error})") from error


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in jsonl_lines(path)]


def content_hash(value: Any) -> str:
    """SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(_canonical(value)).hexdigest()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


class ListHash:
    """``content_hash`` of a list whose values come one by one."""

    def __init__(self) -> None:
        self._hash, self._between = hashlib.sha256(b"["), b""

    def add(self, value: Any) -> None:
        self._hash.update(self._between + _canonical(value))
        self._between = b","

    def hexdigest(self) -> str:
        whole = self._hash.copy()
        whole.update(b"]")
        return whole.hexdigest()


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def odd_below(folder: Path) -> list[Path]:
    """What in a folder is neither a plain file nor a folder: links, whatever they lead to; pipes, which hold
    a reader for ever; devices."""
    plain = (stat.S_IFREG, stat.S_IFDIR)
    return sorted(
        Path(place, name)
        for place, *names in os.walk(folder)  # which follows no link
        for name in itertools.chain(*names)
        if stat.S_IFMT(os.lstat(os.path.join(place, name)).st_mode) not in plain
    )


def remove(path: Path) -> None:
    """Remove a file or a folder; of a link the link alone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def files_below(path: Path) -> list[Path]:
    """The files in a folder, sorted; a file itself."""
    if not path.is_dir():
        return [path]
    found = (os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names)
    return [Path(file) for file in sorted(filter(os.path.isfile, found))]


class Stage:
    """One step of the walk, with its outputs in ``folder`` and its marker beside them.

    ``inputs`` is everything that the result depends on, as JSON values; ``outputs`` names the files or
    folders that ``work`` makes. Measured values (seconds, bytes) belong in outputs, never in inputs.
    """

    def __init__(self, folder: Path, name: str, inputs: Mapping[str, Any], outputs: Iterable[str]):
        self.folder, self.name, self.inputs, self.outputs = folder, name, dict(inputs), list(outputs)
        self.identity = content_hash(self.inputs)
        self.marker = folder / f"{name}.done.json"

    def done(self) -> bool:
        """True when the marker is there, has this identity, and every output is as it was written."""
        try:
            marker = json_value(self.marker.read_text(encoding="utf-8"))
            records = marker["outputs"]
            return (
                marker["identity"] == self.identity == content_hash(marker["inputs"])
                and {name.split("/")[0] for name in self.outputs} <= {name.split("/")[0] for name in records}
                and all(self._unchanged(self.folder / name, record) for name, record in records.items())
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False

    def run(self, work: Callable[[Path], None]) -> None:
        """As ``writing``, for work that is a function."""
        with self.writing() as scratch:
            work(scratch)

    @contextlib.contextmanager
    def writing(self) -> Iterator[Path]:
        """A scratch folder for the outputs, which are then moved into place; last the marker is written."""
        self.marker.unlink(missing_ok=True)
        crash.point("stage.unmarked", self.marker)
        scratch = self.folder / f".{self.name}.partial"
        remove(scratch)
        scratch.mkdir(parents=True)
        yield scratch
        records = {
            str(file.relative_to(scratch)): {"bytes": file.stat().st_size, "sha256": file_hash(file)}
            for output in self.outputs
            for file in files_below(scratch / output)
        }
        crash.point("stage.worked", self.marker)
        for output in self.outputs:
            target = self.folder / output
            if target.is_dir() or (scratch / output).is_dir():  # os.replace puts files over files alone
                remove(target)
                crash.point("stage.cleared", self.marker)
            os.replace(scratch / output, target)
            crash.point("stage.moved", self.marker)
        shutil.rmtree(scratch)
        crash.point("stage.collected", self.marker)
        write_json_atomic(self.marker, {"identity": self.identity, "inputs": self.inputs, "outputs": records})

    def output_hashes(self) -> dict[str, str]:
        """SHA-256 by output file, of a stage that is done."""
        return {name: record["sha256"] for name, record in read_json(self.marker)["outputs"].items()}

    @staticmethod
    def _unchanged(path: Path, record: Mapping[str, Any]) -> bool:
        if not path.is_file() or path.stat().st_size != record["bytes"]:
            return False
        return bool(record["bytes"] > HASH_UP_TO_BYTES or file_hash(path) == record["sha256"])


class Journal:
    """A stage under way: rows written down as they come, under the identity of what they belong to, so that
    an interrupted stage goes on there."""

    def __init__(self, stage: Stage):
        self.path = stage.folder / f".{stage.name}.journal.jsonl"
        self._identity = {"identity": stage.identity}

    def rows(self) -> list[dict[str, Any]]:
        """What an interrupted stage has written; [] where it was another one's. A torn end is left out."""
        found: list[dict[str, Any]] = []
        try:
            # splitlines would also end a line at U+2028, which a text may hold
            lines = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
        except OSError:
            return found
        with contextlib.suppress(ValueError, TypeError):
            if lines and json_value(lines[0]) == self._identity:
                found.extend(row for line in lines[1:] if line and isinstance(row := json_value(line), dict))
        return found

    @contextlib.contextmanager
    def writing(self, known: Iterable[Mapping[str, Any]]) -> Iterator[Callable[[Mapping[str, Any]], None]]:
        """Begin with the ``known`` rows; the function that is yielded adds one."""
        write_jsonl_atomic(self.path, [self._identity, *known])
        with self.path.open("a", encoding="utf-8") as file:

            def write(row: Mapping[str, Any]) -> None:
                file.write(json_line(row))
                file.flush()
                crash.point("journal.row", self.path)

            yield write

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        crash.point("journal.removed", self.path)


def sweep(folder: Path) -> None:
    """Remove the journals of stages that are done: a kill between a marker and the clean-up leaves them."""
    for path in folder.rglob(".*.journal.jsonl"):
        stage = path.name.removeprefix(".").removesuffix(".journal.jsonl")
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            marker = json_value((path.parent / f"{stage}.done.json").read_text(encoding="utf-8"))
            with path.open(encoding="utf-8") as journal:
                owner = json_value(journal.readline())
            if owner["identity"] == marker["identity"]:
                path.unlink()
                crash.point("journal.removed", path)


class Cache:
    """Results kept by content over runs: ``<folder>/<kind>/<identity>/``, each a stage with its marker.

    Two processes that want the same entry make it once: the second waits for the first.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def entry(self, kind: str, inputs: Mapping[str, Any], outputs: Iterable[str]) -> Stage:
        return Stage(self.folder / kind / content_hash(inputs)[:32], kind, inputs, outputs)

    def fetch(
        self, kind: str, inputs: Mapping[str, Any], outputs: Iterable[str], work: Callable[[Path], None]
    ) -> tuple[Path, bool]:
        """The entry's folder, made by ``work`` (as in ``Stage.run``) where it is missing or damaged, and
        whether it was there."""
        stage = self.entry(kind, inputs, outputs)
        stage.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(stage.folder / ".lock"):
            found = stage.done()
            if not found:
                stage.run(work)
        return stage.folder, found
