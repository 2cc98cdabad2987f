"""``--executor ray``: the cells of a run over a Ray cluster, with the outcomes that workers here would have.

Each cell is a Ray task that asks for the devices that its training or engine needs. Ray runs it again on
another node when its own is lost, and there it goes on from what its folder holds. The nodes see the run
folder at the same path, or ``ray.storage`` names a place that all of them reach through fsspec: then a cell's
files travel through it, and so do the files that the recipe names.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
import platform
import stat
import tempfile
import uuid
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any, TypeVar, cast

from harness.config import RunConfig, changed
from harness.console.progress import Display, Event, Reporter
from harness.contracts import HarnessError
from harness.engines import select
from harness.models import checkpoints
from harness.pipeline import other_models
from harness.pipeline.stages import Outcome, Step, attempt
from harness.plugins import plugin_files
from harness.run.context import AUTO, Workshop, choose_engine
from harness.run.plan import Cell
from harness.storage import disk
from harness.storage.files import content_hash, file_hash, files_below, write_text_atomic
from harness.text import printable, shortened
from harness.training.job import settle_allocator

Method = TypeVar("Method", bound=Callable[..., Any])

LOOK_S = 0.2  # between two looks at what the cells say
BEGUN = "begun"  # the event with which a cell begins on a node
INPUTS = "inputs"  # the storage's folder for what the recipe names
TRAINING = ".training"  # a folder that stays where it is: what a training needs for a restart
LONGEST_NAME = 255  # bytes, of a part of a path
MOST_FILES = 100_000  # in a folder of the storage: a checkpoint has tens


@dataclasses.dataclass(frozen=True)
class Order:
    """What all cells of a run share, as it travels to the nodes."""

    config: RunConfig
    out: Path
    until: Step
    debug: bool
    here: Path  # the folder that relative paths are relative to
    libraries: Mapping[str, str]
    seen: str  # the file in the run folder that a node must see; "" with a storage
    inputs: Mapping[str, str]  # local path -> its name in the storage
    named: plugin_files.Shipment  # files with code, by their text


# --- the cluster -------------------------------------------------------------------------------------


def connect(config: RunConfig) -> Any:
    """Ray, connected to the recipe's cluster. Raises HarnessError where it cannot be."""
    try:
        import ray
    except ImportError:
        raise HarnessError(
            "Ray is not installed: pip install 'safetune-harness[ray]', or --executor local"
        ) from None
    if not ray.is_initialized():
        try:
            ray.init(
                config.ray.address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False
            )
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            where = config.ray.address or os.environ.get("RAY_ADDRESS") or "a cluster of its own"
            why = shortened(error, 200)
            raise HarnessError(
                f"Ray: no connection to {where} ({why}); is its head up (ray status), ray.address right?"
            ) from error
    return ray


def settled(config: RunConfig) -> RunConfig:
    """The configuration with what a run would find on its own machine, device and engine, as they are on the
    cluster's. Raises HarnessError where no node can hold a cell."""
    ray = connect(config)
    if config.training.device == AUTO:
        device = "cuda" if any(node.get("GPU") for node in _nodes(ray)) else "cpu"
        config = changed(config, {"training.device": device}, "the cluster")
    _check_room(ray, config)
    if not select.is_named(config.engine):
        on_gpus = config.training.device == "cuda"  # a CPU's choice is the same on every machine
        engine = ray.get(_task(ray, config, _engine).remote(config)) if on_gpus else _engine(config)
        config = config.model_copy(update={"engine": engine})
        _check_room(ray, config)  # the engine may want more than was counted
    return config


def _check_room(ray: Any, config: RunConfig) -> None:
    """Raises HarnessError where no node can hold a cell."""
    if not capacity(config):
        wanted = " and ".join(f"{count:g} {kind}" for kind, count in needs(config).items() if count)
        found = [
            ", ".join(f"{node.get(kind, 0):g} {kind}" for kind in ("CPU", "GPU")) for node in _nodes(ray)
        ]
        raise HarnessError(
            f"no node of the Ray cluster has the {wanted} that a cell needs (nodes: {'; '.join(found)}); "
            "--set ray.cpus_per_cell=…, ray.gpus_per_cell=…, or start a larger node"
        )


def needs(config: RunConfig) -> dict[str, float]:
    """What one cell asks of a node, by Ray's names: as many GPUs as its training or its engine uses."""
    gpus = config.ray.gpus_per_cell
    if gpus is None:
        engine = select.devices(config.engine, config.responses)
        trainings = [config.training, *(config.row(name).training for name in config.variants)]
        processes = max(training.num_processes for training in trainings)
        gpus = max(processes, engine) if config.training.device == "cuda" else 0
    return {"CPU": config.ray.cpus_per_cell, "GPU": gpus}


def capacity(config: RunConfig) -> int:
    """How many cells the cluster holds at once."""
    wanted = {kind: count for kind, count in needs(config).items() if count}
    return int(
        sum(
            min((node.get(kind, 0) // count for kind, count in wanted.items()), default=1)
            for node in _nodes(connect(config))
        )
    )


def _nodes(ray: Any) -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _task(ray: Any, config: RunConfig, function: Callable[..., Any]) -> Any:
    wanted = needs(config)
    return ray.remote(function).options(
        num_cpus=wanted["CPU"], num_gpus=wanted["GPU"], max_retries=config.ray.retries
    )


def _engine(config: RunConfig) -> str:
    """On a node: the engine that a run there would choose."""
    return choose_engine(Workshop(config, Path()))


# --- the cells ---------------------------------------------------------------------------------------


class Mailbox:
    """Where the cells on all nodes leave their events."""

    def __init__(self) -> None:
        self.events: list[tuple[int, Event]] = []

    def put(self, number: int, event: Event) -> None:
        self.events.append((number, event))

    def take(self) -> list[tuple[int, Event]]:
        taken, self.events = self.events, []
        return taken


def open_mailbox(ray: Any) -> Any:
    """A mailbox on this process's own node: no other node's loss may take it."""
    node = ray.get_runtime_context().get_node_id()
    # A soft affinity lets Ray put it elsewhere now and then, and that node's loss then ends the run.
    own = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(Mailbox).options(num_cpus=0, scheduling_strategy=own).remote()


def run_cells(
    config: RunConfig,
    out: Path,
    todo: Sequence[Cell],
    labels: Mapping[Path, str],
    until: Step,
    debug: bool,
    display: Display,
) -> Generator[Outcome, None, None]:
    """The outcomes of the cells as they come."""
    ray = connect(config)
    storage = Storage(config.ray.storage) if config.ray.storage else None
    seen = "" if storage else f".cluster-{uuid.uuid4().hex}"
    inputs = storage.take_in(config) if storage else {}
    versions = _versions(Workshop(config, out))
    order = Order(
        config, out.absolute(), until, debug, Path.cwd(), versions, seen, inputs, plugin_files.shipped()
    )
    mailbox = open_mailbox(ray)
    task, shared = _task(ray, config, _work), ray.put(order)
    waiting, running, begun = deque(enumerate(todo)), dict[Any, Cell](), dict[int, str]()
    try:
        if seen:
            write_text_atomic(out / seen, "")
        while waiting or running:
            while waiting and (config.jobs is None or len(running) < config.jobs):
                number, cell = waiting.popleft()
                if storage:
                    storage.put_cell(cell, out)
                running[task.remote(shared, cell, labels[cell.folder], mailbox, number)] = cell
            done, _ = ray.wait(list(running), num_returns=len(running), timeout=LOOK_S)
            for number, event in ray.get(mailbox.take.remote()):
                _show(display, labels[todo[number].folder], number, event, begun)
            for one in done:
                cell = running.pop(one)
                try:
                    outcome: Outcome = ray.get(one)
                    if storage:
                        storage.get_cell(cell, out)
                except HarnessError as error:
                    outcome = _refused(cell, error)
                except ray.exceptions.RayTaskError as error:
                    why = shortened(error.cause, 200)
                    outcome = Outcome(cell, f"failed on its node: {type(error.cause).__name__}: {why}")
                except ray.exceptions.RayError as error:
                    outcome = Outcome(cell, _lost(error, config))
                yield outcome
    finally:
        for one in running:
            ray.cancel(one, force=True)
        ray.kill(mailbox)
        if seen:
            (out / seen).unlink(missing_ok=True)


def _refused(cell: Cell, error: HarnessError) -> Outcome:
    return Outcome(cell, str(error), isinstance(error, disk.DiskFullError))


def _lost(error: Exception, config: RunConfig) -> str:
    why = shortened(error, 200)
    return (
        f"its worker on the cluster was lost, {config.ray.retries + 1} times ({type(error).__name__}: {why})"
    )


def _show(display: Display, label: str, number: int, event: Event, begun: dict[int, str]) -> None:
    """Show an event; that a cell begins once more is one."""
    kind, *rest = event
    if kind != BEGUN:
        with contextlib.suppress(KeyError):  # a lost worker's last words
            display.show((kind, (number, rest[0]), *rest[1:]))
        return
    if begun.get(number, rest[0]) != rest[0]:
        display.forget(number)
        note = f"{label}: its worker on {begun[number]} was lost; it goes on, on {rest[0]}"
        display.show(("note", None, note))
    begun[number] = rest[0]


def _work(order: Order, cell: Cell, label: str, mailbox: Any, number: int) -> Outcome:
    """On a node: one cell, as a worker of the local executor runs it."""

    def send(event: Event) -> None:
        mailbox.put.remote(number, event)

    send((BEGUN, f"{platform.node()}, process {os.getpid()}"))
    try:
        with _place(order, cell) as (config, out):
            settle_allocator(config.training)
            shop = Workshop(config, out, Reporter(send))
            _same(_versions(shop), order.libraries)
            try:
                return attempt(shop, cell, label, order.until, order.debug)
            finally:
                shop.release()
    except HarnessError as error:
        return _refused(cell, error)


@contextlib.contextmanager
def _place(order: Order, cell: Cell) -> Iterator[tuple[RunConfig, Path]]:
    """The run folder as this node has it, and the configuration with its paths."""
    url = order.config.ray.storage
    if url is None:
        if not (order.here.is_dir() and (order.out / order.seen).exists()):
            raise HarnessError(
                f"node {platform.node()} does not see {order.out}: put the run on a file system that all "
                "nodes share, or name a place that they reach: --set ray.storage=s3://BUCKET/FOLDER"
            )
        os.chdir(order.here)
        plugin_files.take(order.named)
        yield order.config, order.out
        return
    storage = Storage(url)
    plugin_files.take(order.named._replace(folders=()))  # they get other places here
    with tempfile.TemporaryDirectory(prefix="harness-") as scratch:
        out = Path(scratch) / "run"
        config = storage.bring(order.config, order.inputs)
        config = config.model_copy(update={"cache": Path(scratch) / "cache"})
        storage.get_cell(cell, out)
        yield config, out
        storage.put_cell(cell, out)


def _versions(shop: Workshop) -> dict[str, str]:
    return {**shop.libraries, **select.versions(shop.engine_name)}


def _same(there: Mapping[str, str], here: Mapping[str, str]) -> None:
    """Results depend on the versions of these libraries. Raises HarnessError where a node has others."""
    other = [
        f"{name} {there.get(name)}, not {version}"
        for name, version in here.items()
        if there.get(name) != version
    ]
    if other:
        raise HarnessError(
            f"node {platform.node()} has {'; '.join(other)}: install the same versions on all nodes"
        )


# --- what travels ------------------------------------------------------------------------------------


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
