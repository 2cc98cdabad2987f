"""``--executor ray``: the cells of a run over a Ray cluster, with the outcomes that workers here would have.

Each cell is a Ray task that asks for the devices that its training or engine needs. Ray runs it again on
another node when its own is lost, and there it goes on from what its folder holds. The nodes see the run
folder at the same path, or ``ray.storage`` names a place that all of them reach through fsspec: then a cell's
files travel through it, and so do the files that the recipe names.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import platform
import tempfile
import uuid
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.config import RunConfig, changed
from harness.console.progress import Display, Event, Reporter
from harness.contracts import HarnessError
from harness.engines import select
from harness.pipeline.cluster_storage import Storage
from harness.pipeline.stages import Outcome, Step, attempt
from harness.plugins import plugin_files
from harness.run.context import AUTO, RunContext, choose_engine
from harness.run.plan import Cell
from harness.storage import disk
from harness.storage.files import write_text_atomic
from harness.text import shortened
from harness.training.job import settle_allocator

LOOK_S = 0.2  # between two looks at what the cells say
BEGUN = "begun"  # the event with which a cell begins on a node


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


def settle(config: RunConfig) -> RunConfig:
    """The configuration with what a run would find on its own machine, device and engine, as they are on the
    cluster's. Raises HarnessError where no node can hold a cell."""
    ray = connect(config)
    if config.training.device == AUTO:
        device = "cuda" if any(node.get("GPU") for node in _list_nodes(ray)) else "cpu"
        config = changed(config, {"training.device": device}, "the cluster")
    _check_room(ray, config)
    if not select.is_named(config.engine):
        on_gpus = config.training.device == "cuda"  # a CPU's choice is the same on every machine
        there = _make_task(ray, config, _choose_engine)
        engine = ray.get(there.remote(config)) if on_gpus else _choose_engine(config)
        config = config.model_copy(update={"engine": engine})
        _check_room(ray, config)  # the engine may want more than was counted
    return config


def _check_room(ray: Any, config: RunConfig) -> None:
    """Raises HarnessError where no node can hold a cell."""
    if not capacity(config):
        wanted = " and ".join(f"{count:g} {kind}" for kind, count in needs(config).items() if count)
        found = [
            ", ".join(f"{node.get(kind, 0):g} {kind}" for kind in ("CPU", "GPU")) for node in _list_nodes(ray)
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
            for node in _list_nodes(connect(config))
        )
    )


def _list_nodes(ray: Any) -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _make_task(ray: Any, config: RunConfig, function: Callable[..., Any]) -> Any:
    wanted = needs(config)
    return ray.remote(function).options(
        num_cpus=wanted["CPU"], num_gpus=wanted["GPU"], max_retries=config.ray.retries
    )


def _choose_engine(config: RunConfig) -> str:
    """On a node: the engine that a run there would choose."""
    return choose_engine(RunContext(config, Path()))


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
    versions = _list_versions(RunContext(config, out))
    order = Order(
        config, out.absolute(), until, debug, Path.cwd(), versions, seen, inputs, plugin_files.shipped()
    )
    tasks = Tasks(ray, order, out, storage, todo, labels)
    try:
        if seen:
            write_text_atomic(out / seen, "")
        while tasks.waiting or tasks.running:
            tasks.submit()
            done = tasks.wait()
            tasks.show_events(display)
            for one in done:
                yield tasks.fetch(one)
    finally:
        tasks.stop()
        if seen:
            (out / seen).unlink(missing_ok=True)


class Tasks:
    """A run's cells as Ray's tasks: those that wait to be submitted, and those that run."""

    def __init__(
        self,
        ray: Any,
        order: Order,
        out: Path,
        storage: Storage | None,
        todo: Sequence[Cell],
        labels: Mapping[Path, str],
    ):
        self.waiting, self.running = deque(enumerate(todo)), dict[Any, Cell]()
        self._ray, self._config, self._out, self._storage = ray, order.config, out, storage
        self._labels = [labels[cell.folder] for cell in todo]
        self._mailbox = open_mailbox(ray)
        self._task, self._order = _make_task(ray, order.config, _run_cell), ray.put(order)
        self._begun: dict[int, str] = {}  # where a cell runs, by its number

    def submit(self) -> None:
        """As many of those that wait as may run at once."""
        while self.waiting and (self._config.jobs is None or len(self.running) < self._config.jobs):
            number, cell = self.waiting.popleft()
            if self._storage:
                self._storage.put_cell(cell, self._out)
            task = self._task.remote(self._order, cell, self._labels[number], self._mailbox, number)
            self.running[task] = cell

    def wait(self) -> list[Any]:
        """Those that are done, within a moment."""
        done: list[Any]
        done, _ = self._ray.wait(list(self.running), num_returns=len(self.running), timeout=LOOK_S)
        return done

    def show_events(self, display: Display) -> None:
        """Show what the cells have said since."""
        for number, event in self._ray.get(self._mailbox.take.remote()):
            _show_event(display, self._labels[number], number, event, self._begun)

    def fetch(self, task: Any) -> Outcome:
        """The outcome of a task that is done, and with a storage the cell's files."""
        cell, errors = self.running.pop(task), self._ray.exceptions
        try:
            outcome: Outcome = self._ray.get(task)
            if self._storage:
                self._storage.get_cell(cell, self._out)
        except HarnessError as error:
            return _refuse(cell, error)
        except errors.RayTaskError as error:
            why = shortened(error.cause, 200)
            return Outcome(cell, f"failed on its node: {type(error.cause).__name__}: {why}")
        except errors.RayError as error:
            return Outcome(cell, _describe_loss(error, self._config))
        return outcome

    def stop(self) -> None:
        """Cancel what still runs."""
        for task in self.running:
            self._ray.cancel(task, force=True)
        self._ray.kill(self._mailbox)


def _refuse(cell: Cell, error: HarnessError) -> Outcome:
    return Outcome(cell, str(error), isinstance(error, disk.DiskFullError))


def _describe_loss(error: Exception, config: RunConfig) -> str:
    why = shortened(error, 200)
    return (
        f"its worker on the cluster was lost, {config.ray.retries + 1} times ({type(error).__name__}: {why})"
    )


def _show_event(display: Display, label: str, number: int, event: Event, begun: dict[int, str]) -> None:
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


def _run_cell(order: Order, cell: Cell, label: str, mailbox: Any, number: int) -> Outcome:
    """On a node: one cell, as a worker of the local executor runs it."""

    def send(event: Event) -> None:
        mailbox.put.remote(number, event)

    send((BEGUN, f"{platform.node()}, process {os.getpid()}"))
    try:
        with _open_place(order, cell) as (config, out):
            settle_allocator(config.training)
            ctx = RunContext(config, out, Reporter(send))
            _check_versions(_list_versions(ctx), order.libraries)
            try:
                return attempt(ctx, cell, label, order.until, order.debug)
            finally:
                ctx.release()
    except HarnessError as error:
        return _refuse(cell, error)


@contextlib.contextmanager
def _open_place(order: Order, cell: Cell) -> Iterator[tuple[RunConfig, Path]]:
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


def _list_versions(ctx: RunContext) -> dict[str, str]:
    return {**ctx.libraries, **select.versions(ctx.engine_name)}


def _check_versions(there: Mapping[str, str], here: Mapping[str, str]) -> None:
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
