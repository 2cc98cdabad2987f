"""The locks hold what the package needs to run and what builds it, at the versions of constraints.txt, each
with the hashes of its published files, and name no place to fetch from."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCKS = {
    "requirements.lock": [
        *PROJECT["project"]["dependencies"],
        *PROJECT["project"]["optional-dependencies"]["ray"],
    ],
    "requirements-build.lock": PROJECT["dependency-groups"]["build"],
}


def locked(name: str) -> dict[str, tuple[str, list[str]]]:
    """Package: its version and its hashes. Fails where a line is anything else."""
    text = re.sub(r"^#.*\n", "", (ROOT / name).read_text(encoding="utf-8"), flags=re.M)
    found = {}
    for entry in text.replace("\\\n", " ").splitlines():
        one = re.fullmatch(
            r"([a-z0-9-]+)==([\w.]+)(?: ; [^@:]+?)?((?:\s+--hash=sha256:[0-9a-f]{64})+)\s*", entry
        )
        assert one, entry
        assert one[1] not in found
        found[one[1]] = one[2], one[3].split()
    return found


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def closure(wanted: Iterable[str]) -> set[str]:
    """The names of what is wanted and of all that it needs on this machine, as far as it is installed."""
    todo, found = [(Requirement(text), "") for text in wanted], set[tuple[str, str]]()
    while todo:
        requirement, extra = todo.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) in found:
                continue
            found.add((name, extra))
            try:
                todo += [(Requirement(text), extra) for text in metadata.requires(name) or ()]
            except metadata.PackageNotFoundError:
                continue  # an extra that this environment lacks
    return {name for name, _ in found}


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_holds_all_that_is_needed_as_constrained_and_with_hashes(name: str) -> None:
    found, constrained = locked(name), constraints()
    assert closure(LOCKS[name]) - {*found} == set()
    assert {package: version for package, (version, _) in found.items()} == {
        package: constrained.get(package) for package in found
    }
    assert all(hashes and len(set(hashes)) == len(hashes) for _, hashes in found.values())


def test_the_lock_for_running_holds_nothing_that_only_tests_or_benches() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    others = {
        canonicalize_name(Requirement(text).name)
        for extra, texts in extras.items()
        if extra != "ray"
        for text in texts
    }
    assert len(others) > 20
    assert others & {*locked("requirements.lock")} == {"jsonschema"}  # which Ray needs too


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_says_how_it_is_made_and_names_no_place_to_fetch_from(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert f"--generate-hashes --no-annotate -o {name}\n" in text
    assert not re.search(r"://|index|find-links|trusted-host|\w\.(org|com|net|io|dev)\b", text)
