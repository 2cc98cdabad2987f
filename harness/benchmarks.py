"""The lm-eval tasks that are installed, read from their YAML: importing lm-eval takes seconds."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from harness import registry
from harness.contracts import HarnessError
from harness.store import file_hash


class _IgnoreFunctions(yaml.SafeLoader):
    """lm-eval's ``!function`` tags are read as their plain text."""


_IgnoreFunctions.add_constructor("!function", lambda loader, node: str(node.value))


@dataclass(frozen=True)
class Benchmark:
    """One lm-eval task: its name, YAML, and what its ``metadata`` says.

    ``kind`` is 'safety' or 'utility'; ``sources``: modules whose code makes its documents.
    """

    name: str
    path: Path
    version: str
    kind: str
    prefilled: bool
    sources: tuple[str, ...]
    local_data: bool  # reads a user's file (--data TASK=FILE)

    def content(self) -> str:
        """A hash of what its documents, prompts and metrics come from: its folder, and what it shares."""
        folders = [self.path.parent]
        if (self.path.parent.parent / "__init__.py").is_file():  # modules that the package's tasks share
            folders.append(self.path.parent.parent)
        files = [self.path, *(file for folder in folders for file in folder.glob("*.py"))]
        for module in self.sources:
            spec = importlib.util.find_spec(module)
            if spec is None or spec.origin is None:
                raise HarnessError(f"{self.path}: metadata.sources names '{module}', which is not installed")
            files.append(Path(spec.origin))
        hashes = sorted(f"{file.name}:{file_hash(file)}" for file in set(files))
        return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


@functools.cache
def installed() -> dict[str, Benchmark]:
    """All lm-eval tasks of our folders, by name. Raises HarnessError for a YAML that cannot be read."""
    found: dict[str, Benchmark] = {}
    for folder in registry.task_folders():
        for path in sorted(folder.rglob("*.yaml")):
            try:
                values: Any = yaml.load(path.read_text(encoding="utf-8"), Loader=_IgnoreFunctions)
            except yaml.YAMLError as error:
                raise HarnessError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
            if not isinstance(values, dict) or not isinstance(values.get("task"), str):
                continue  # a group, or a base that others include
            meta = values.get("metadata") or {}
            name = values["task"]
            if name in found:
                raise HarnessError(f"two lm-eval tasks are called '{name}': {found[name].path} and {path}")
            found[name] = Benchmark(
                name=name,
                path=path,
                version=str(meta.get("version", 0)),
                kind=str(meta.get("kind", "utility")),
                prefilled="prefill_tokens" in meta,
                sources=tuple(meta.get("sources", ())),
                local_data=bool(meta.get("local_data", False)),
            )
    return found


def get(name: str) -> Benchmark:
    """Raises UsageError with the nearest name."""
    if name not in installed():
        raise registry.unknown("task", name, installed())
    return installed()[name]
