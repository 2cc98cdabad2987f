"""What travels between the nodes of a cluster: cells, and what a recipe names, by a storage they all see."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import stat
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any, TypeVar, cast

from harness.config import RunConfig, changed
from harness.contracts import HarnessError
from harness.models import checkpoints
from harness.pipeline import other_models
from harness.run.plan import Cell
from harness.storage import disk
from harness.storage.files import content_hash, file_hash, files_below
from harness.text import printable

Method = TypeVar("Method", bound=Callable[..., Any])
INPUTS = "inputs"  # the storage's folder for what the recipe names
TRAINING = ".training"  # a folder that stays where it is: what a training needs for a restart
LONGEST_NAME = 255  # bytes, of a part of a path
MOST_FILES = 100_000  # in a folder of the storage: a checkpoint has tens


def _in_one_line(method: Method) -> Method:
    """Whatever a file system raises, as a HarnessError. It is not quoted: it may hold a key."""

    @functools.wraps(method)
    def told(storage: Storage, *given: Any) -> Any:
        try:
            return method(storage, *given)
        except HarnessError:
            raise
        except Exception as error:
            raise disk.refusal(error) or HarnessError(
                f"ray.storage {storage.shown}: its files cannot be copied ({type(error).__name__}); "
                "is it reachable from every node, and writable?"
            ) from error

    return cast(Method, told)


class Storage:
    """A folder that all nodes reach through fsspec: an object store, or any file system that it knows.

    Others may write there too: each of its keys is looked at before anything is copied, and what the recipe
    names is used if its content is what was sent. What a cell's files hold, they could change.
    """

    def __init__(self, url: str):
        import fsspec

        self.shown = url.partition("?")[0]
        try:
            self.files, root = fsspec.core.url_to_fs(url)
            self.files.makedirs(root, exist_ok=True)
        except Exception as error:  # each file system has errors of its own
            raise HarnessError(
                f"ray.storage {self.shown}: cannot be used ({type(error).__name__}); fsspec names "
                "what it needs, as s3fs for s3://"
            ) from error
        self.root = root.rstrip("/")
        local = isinstance(self.files, fsspec.implementations.local.LocalFileSystem)
        self.here = Path(root) if local else None

    @_in_one_line
    def put(self, folder: Path, name: str) -> None:
        """Copy a local folder into the storage, markers last, since they vouch for the other files. What a
        training needs for a restart stays."""
        files = _travelling(folder) if folder.is_dir() else []
        places = {file: self._place(f"{name}/{file.relative_to(folder).as_posix()}") for file in files}
        for file, place in sorted(places.items(), key=lambda copy: _is_marker(copy[1])):
            self._send(file, place)

    @_in_one_line
    def get(self, name: str, folder: Path) -> None:
        """Copy a folder of the storage here, markers last. Raises HarnessError before anything is copied
        where a key does not name a file in that folder."""
        self.files.invalidate_cache()
        prefix = f"{self.root}/{name}/"
        found = self.files.find(prefix) if self.files.exists(prefix.rstrip("/")) else []
        if len(found) > MOST_FILES:
            raise HarnessError(
                f"ray.storage {self.shown}: {len(found)} files in {name}, which holds far fewer"
            )
        copies = {place: self._target(place, prefix, folder) for place in found if not place.endswith("/")}
        for place, target in sorted(copies.items(), key=lambda copy: _is_marker(copy[0])):
            target.parent.mkdir(parents=True, exist_ok=True)
            self.files.get_file(place, str(target))

    def put_cell(self, cell: Cell, out: Path) -> None:
        for folder in _folders(cell):
            self.put(out / folder, folder.as_posix())

    def get_cell(self, cell: Cell, out: Path) -> None:
        for folder in _folders(cell):
            self.get(folder.as_posix(), out / folder)

    @_in_one_line
    def take_in(self, config: RunConfig) -> dict[str, str]:
        """Copy the files and folders that the recipe names; their names in the storage, by content."""
        found = {}
        for path in _paths(config):
            local = Path(os.path.abspath(Path(path).expanduser()))  # "." and ".." are no names
            found[path] = f"{INPUTS}/{_content(local)}/{local.name or 'input'}"
            if local.is_dir():
                self.put(local, found[path])
            else:
                self._send(local, self._place(found[path]))
        return found

    @_in_one_line
    def bring(self, config: RunConfig, inputs: Mapping[str, str]) -> RunConfig:
        """Copy those files to this node, once for all cells; the configuration that names the copies."""
        kept = _own_folder()
        return _moved(config, {path: str(self._kept(name, kept)) for path, name in inputs.items()})

    def _kept(self, name: str, kept: Path) -> Path:
        """This node's copy of an input, made where there is none with the content that its name tells. The
        whole of it is read each time: so does the cell, and a copy may be damaged."""
        target = self._checked(kept, name)
        content = target.parent.name
        if target.exists() and _content(target) == content:
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept) as scratch:
            copy = Path(scratch) / "copy"
            if self.files.isdir(f"{self.root}/{name}"):
                self.get(name, copy)
            else:
                self.files.get_file(self._place(name), str(copy))
            if not copy.exists() or _content(copy) != content:
                raise HarnessError(
                    f"ray.storage {self.shown}: {name} is not what was sent; who else can write there? "
                    "Remove it, and start the command again"
                )
            with contextlib.suppress(OSError):  # there was none
                target.rename(Path(scratch) / "damaged")
            with contextlib.suppress(OSError):  # another cell was first
                copy.rename(target)
        return target

    def _send(self, file: Path, place: str) -> None:
        self.files.makedirs(place.rpartition("/")[0], exist_ok=True)
        self.files.put_file(str(file), place)

    def _place(self, name: str) -> str:
        """The key of a file. In a folder of this machine no link may lead elsewhere."""
        self._checked(self.here, name)
        return f"{self.root}/{name}"

    def _target(self, place: str, prefix: str, folder: Path) -> Path:
        """Where in a folder the file behind a key goes."""
        if not place.startswith(prefix):
            raise self._refused(place, "it is not in the folder that was asked for")
        self._place(place.removeprefix(f"{self.root}/"))
        return self._checked(folder, place.removeprefix(prefix))

    def _checked(self, folder: Path | None, name: str) -> Path:
        """The file of a folder that a key names; None for the folder where the keys are no files here."""
        try:
            return _below(folder, name) if folder else Path(*_parts(name))
        except ValueError as error:
            raise self._refused(name, str(error)) from None

    def _refused(self, name: str, why: str) -> HarnessError:
        return HarnessError(
            f"ray.storage {self.shown}: '{printable(name)[:200]}' is refused, since {why}; "
            "remove or rename it, and look who can write there"
        )


def _below(folder: Path, name: str) -> Path:
    """The file in a folder that ``a/b.json`` names. Raises ValueError, with the reason, where that would be a
    file elsewhere, by its name or through a link."""
    target = folder.joinpath(*_parts(name))
    if target.is_symlink() or not target.parent.resolve().is_relative_to(folder.resolve()):
        raise ValueError("a link stands in its way")
    return target


def _parts(name: str) -> list[str]:
    parts = name.split("/")
    if not all(map(_is_plain, parts)):
        raise ValueError("it is no plain path in a folder")
    return parts


def _is_plain(part: str) -> bool:
    """Whether a part of a path names a file or folder in the one before it, on any system, and is none that
    stays on its node."""
    return (
        part.strip() not in ("", ".", "..", TRAINING)
        and part.isprintable()
        and len(part.encode()) <= LONGEST_NAME
        and "\\" not in part
        and not PureWindowsPath(part).drive
    )


def _is_marker(place: str) -> bool:
    return place.endswith(".done.json")


def _travelling(path: Path) -> list[Path]:
    """The files in a folder, or a file itself, without what a training needs for a restart."""
    return [file for file in files_below(path) if TRAINING not in file.relative_to(path).parts]


def _content(path: Path) -> str:
    """What a file or folder holds, as a hash."""
    files = {file.relative_to(path).as_posix(): file_hash(file) for file in _travelling(path)}
    return content_hash(files)[:32]


def _own_folder() -> Path:
    """This user's folder for copies on this node. Raises HarnessError where another could write into it:
    its name can be foretold, so anybody may have made it."""
    folder = Path(tempfile.gettempdir()) / f"harness-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise HarnessError(
            f"node {platform.node()}: {folder} is not a folder that you alone can use (mode 700), so "
            "another user may have filled it; remove it, or set TMPDIR on the node to a folder of your own"
        )
    return folder


def _folders(cell: Cell) -> list[Path]:
    """What travels of a cell: of one that is not trained its tasks alone, since nodes share it by tasks."""
    return [cell.folder] if cell.kind == "trained" else [cell.folder / task for task in cell.tasks]


def _paths(config: RunConfig) -> list[str]:
    """The local files and folders that a recipe names."""
    judging = config.judging
    named = [config.model, config.safety_data, config.responses.tokenizer, judging.rubric]
    named += config.train_data.values() if isinstance(config.train_data, dict) else [config.train_data]
    for group in (config.checkpoints, config.data, config.set_files, judging.prompt_files):
        named += group.values()
    named += [*config.mix, *config.code.task_dirs, *other_models.named(config)]
    here = dict.fromkeys(str(name) for name in named if name)
    return [name for name in here if name != checkpoints.MINI and Path(name).expanduser().exists()]


def _moved(config: RunConfig, places: Mapping[str, str]) -> RunConfig:
    """The configuration with each of those paths in its new place."""

    def there(name: Any) -> Any:
        return places.get(str(name), name)

    new: dict[str, Any] = {key: there(getattr(config, key)) for key in ("model", "safety_data")}
    rows = config.train_data
    by_task = {name: there(path) for name, path in rows.items()} if isinstance(rows, dict) else None
    new["train_data"] = by_task or there(rows)
    for key in ("checkpoints", "data", "safety_sets"):
        new[key] = {name: there(path) for name, path in getattr(config, key).items()}
    new["utility_sets"] = {
        name: {"file": there(one.file), "metric": one.metric} for name, one in config.utility_sets.items()
    }
    new["mix"] = {there(path): share for path, share in config.mix.items()}
    new["responses.tokenizer"] = there(config.responses.tokenizer)
    new["judging.rubric"] = there(config.judging.rubric)
    new["judging.prompt_files"] = {name: there(path) for name, path in config.judging.prompt_files.items()}
    new["task_dirs"] = [there(folder) for folder in config.code.task_dirs]
    return changed(config, {**new, **other_models.moved(config, places)}, "the recipe on a node")
