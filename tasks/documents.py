"""Rows to lm-eval documents: hub data sets, local files, their schema, ids, and the test split."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.contracts import HarnessError, NotFetchedError
from harness.reading import check_size
from harness.row_files import read
from harness.rows import CHANGING, HISTORY, SYSTEM, check_changing
from harness.text import cut, printable
from harness.turns import absent

log = logging.getLogger(__name__)
Placed = tuple[str, Any]  # where a row stands ("test.csv, row 3"), for messages, and the row
UNASKED = (*SYSTEM, HISTORY, "input", *CHANGING)  # columns that change what is asked, which no task shows


@dataclass(frozen=True)
class Hub:
    """A data set on the Hugging Face hub, at the commit ``revision``.

    ``revision`` None: no public text tells a commit; what the hub has today is taken, and a line says so.
    ``gated``: its licence has to be accepted on its page first. A task's YAML repeats path, config and
    revision under ``metadata.hub``, for who reads it without importing this.
    """

    path: str
    revision: str | None
    config: str | None = None
    gated: bool = False

    def load(self, split: str, task: str, flag: str = "") -> Iterator[Placed]:
        """The rows of a split, numbered from 1. Raises HarnessError in one line that says what to do."""
        import datasets

        with self._told(task, flag):
            rows = datasets.load_dataset(self.path, self.config, revision=self.revision, split=split)
        return ((f"{self.path}, row {number}", row) for number, row in enumerate(rows, 1))

    def files(self, pattern: str, task: str) -> Path:
        """A folder with the data set's files that match, as they are. Raises HarnessError as ``load``."""
        import huggingface_hub

        with self._told(task, ""):
            folder = huggingface_hub.snapshot_download(
                self.path, repo_type="dataset", revision=self.revision, allow_patterns=pattern
            )
        return Path(folder)

    @contextmanager
    def _told(self, task: str, flag: str) -> Iterator[None]:
        if self.revision is None:
            log.warning("%s: %s is not pinned to a commit: the hub's newest files are read", task, self.path)
        try:
            yield
        except Exception as error:
            cause = " ".join(str(error).strip().split("\n")[0].split())[:200] or type(error).__name__
            page = f"https://huggingface.co/datasets/{self.path}"
            accept = f"accept its licence at {page} and log in (hf auth login), or " if self.gated else ""
            how = flag or f"--data {task}=FILE (lm-eval: --metadata, see tasks/LM_EVAL.md)"
            raise NotFetchedError(
                f"{task}: the hub data set {self.path} cannot be loaded ({cause}); "
                f"{accept}give a local copy: {how}"
            ) from error


def as_test_split(rows: Iterable[Mapping[str, Any]], prefix: str) -> dict[str, Any]:
    """The rows as lm-eval's test split; a row without an ``id`` (or with a blank one, as tables have it) gets
    ``<prefix>-<its number from 0>``.

    Raises HarnessError where two rows share an id, since responses and verdicts are joined by it.
    """
    import datasets  # takes a second, and a train task never needs it

    documents = [
        {"id": None, **row} | {"id": f"{prefix}-{i:04d}" if absent(row.get("id")) else str(row["id"])}
        for i, row in enumerate(rows)
    ]
    seen = set()
    for document in documents:
        if document["id"] in seen:
            raise HarnessError(
                f"{prefix}: two rows have the same id '{cut(printable(document['id']), 80)}'; "
                "make ids unique, or leave them out"
            )
        seen.add(document["id"])
    if not documents:
        raise HarnessError(f"{prefix}: no rows to evaluate")
    return {"test": datasets.Dataset.from_list(documents)}


def local_file(task: str, metadata: Mapping[str, Any]) -> Path | None:
    """The file that metadata names for a task, ``{"data_files": {TASK: PATH}}``, or None."""
    files = metadata.get("data_files") or {}
    if not isinstance(files, Mapping):
        raise HarnessError(f"metadata 'data_files' must map a task to its file, not {files!r}")
    return Path(files[task]).expanduser() if task in files else None


def read_rows(path: Path) -> list[Placed]:
    """The rows of a file, each with its place, read as training reads them (``row_files``). Raises
    HarnessError with file and line or row.
    """
    try:
        check_size(path)
    except (OSError, ValueError) as error:  # the second: too large, or no path at all
        raise HarnessError(f"{path}: cannot be read: {error}") from error
    unit, values = read(path)
    rows = [(f"{path}, {unit} {number}", row) for number, row in values]
    if not rows:
        raise HarnessError(f"{path}: no rows to evaluate")
    return rows


def texts(row: Placed, **names: str | Sequence[str]) -> dict[str, str]:
    """A row's texts under our names; in the row each has one name, or one of several (the first there is).

    Its ``id`` is kept where it has one that is not blank. Raises HarnessError naming place and field; a blank
    text is none, and a column that changes what is asked is refused unless it is one of ours.
    """
    place, values = row
    values = values if isinstance(values, Mapping) else {}
    check_changing(values, place, UNASKED, tuple(names))
    found = {} if absent(values.get("id")) else {"id": str(values["id"])}
    for ours, theirs in names.items():
        known = (theirs,) if isinstance(theirs, str) else theirs
        text = next((values[name] for name in known if values.get(name) is not None), None)
        if not isinstance(text, str) or not text.strip():
            raise HarnessError(f"{place}: needs a text field " + " or ".join(f"'{name}'" for name in known))
        found[ours] = text
    return found
