"""Whether the packages that the harness needs are installed, and its import names are its own."""

from __future__ import annotations

import platform
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from harness.pipeline.checkup.finding import Finding
from harness.plugins import registry
from harness.run.context import RunContext


def check_packages(ctx: RunContext) -> Iterator[Finding]:
    yield Finding("pass", "python", f"{platform.python_version()} ({sys.executable})")
    try:
        needed = metadata.requires(registry.DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        needed, what = read_dependencies(), f"{registry.DISTRIBUTION} is not installed"
        tree = Path(registry.__file__).parents[2]
        what += f": it runs from {tree}" if needed else ", and what it needs cannot be looked up"
        yield Finding("warn", "installation", what, "pip install -c constraints.txt -e .")
    wrong = []
    for text in needed:
        wanted = Requirement(text)
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{wanted.name} is missing")
            continue
        if not wanted.specifier.contains(version, prereleases=True):
            wrong.append(f"{wanted.name} {version}, needs {wanted.specifier}")
    mend = "install again into an environment of its own: pip install -c constraints.txt -e ."
    if wrong:
        yield Finding("fail", "packages", "; ".join(wrong), mend)
    else:
        shown = ", ".join(f"{name} {version}" for name, version in ctx.libraries.items())
        yield Finding("pass", "packages", shown)


def read_dependencies() -> list[str]:
    """What a source tree says that it needs; [] where there is no tree."""
    try:
        text = (Path(registry.__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
        return list(tomllib.loads(text)["project"]["dependencies"])
    except (OSError, ValueError, KeyError):
        return []


def check_import_names(ctx: RunContext) -> Iterator[Finding]:
    foreign = registry.foreign_packages()
    for what, mend in foreign:
        yield Finding("fail", "import names", what, mend)
    if not foreign:
        home = Path(registry.__file__).parents[2]
        names = ", ".join(registry.IMPORT_NAMES)
        yield Finding("pass", "import names", f"{names} are ours alone, all in {home}")
