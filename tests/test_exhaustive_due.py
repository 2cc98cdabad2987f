"""What is due of the exhaustive tests, by the files that have changed since they passed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import exhaustive_due
import pytest

COVERED = {"kills": ["harness/store.py", "tests/kills"]}


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    (tmp_path / "harness").mkdir()
    (tmp_path / "harness" / "store.py").write_text("1\n", encoding="utf-8")
    (tmp_path / "README.md").write_text("1\n", encoding="utf-8")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "-c", "user.name=x", "-c", "user.email=x@example.com", "commit", "-qm", "first")
    return tmp_path


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def noted(commit: str) -> str:
    return f"# Log\n\n| exhaustive: kills | `{commit}` | 2026-11-26 |\n"


def test_nothing_is_due_where_nothing_that_is_covered_has_changed(clone: Path) -> None:
    log = noted(git(clone, "rev-parse", "--short=10", "HEAD"))
    (clone / "README.md").write_text("2\n", encoding="utf-8")
    assert exhaustive_due.due(COVERED, log, clone) == []


def test_a_part_is_due_with_the_files_that_changed(clone: Path) -> None:
    commit = git(clone, "rev-parse", "HEAD")
    (clone / "harness" / "store.py").write_text("2\n", encoding="utf-8")
    (line,) = exhaustive_due.due(COVERED, noted(commit), clone)
    assert line == f"kills: since it passed at {commit}, harness/store.py changed"


@pytest.mark.parametrize(
    ("log", "why"),
    [
        ("# Log\n", "has not passed yet"),
        (noted("0" * 40), "is no commit of this clone"),
        (noted("abcdef1234"), "is no commit of this clone"),
    ],
)
def test_a_part_is_due_where_nothing_is_known_of_it(log: str, why: str, clone: Path) -> None:
    (line,) = exhaustive_due.due(COVERED, log, clone)
    assert why in line


def test_what_is_to_be_noted_is_read_again(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:  # type: ignore[no-untyped-def]
    parts = ",".join(exhaustive_due.PARTS)
    monkeypatch.setattr("sys.argv", ["exhaustive_due.py", "--passed", parts])
    exhaustive_due.main()
    found = {row["part"] for row in exhaustive_due.NOTED.finditer(capsys.readouterr().out)}
    assert found == {*exhaustive_due.PARTS}


def test_each_part_covers_files_that_there_are_and_has_a_target() -> None:
    makefile = (exhaustive_due.ROOT / "Makefile").read_text(encoding="utf-8")
    for target, files in exhaustive_due.PARTS.values():
        assert f"\n{target}:" in makefile
        assert files
        for name in files:
            assert (exhaustive_due.ROOT / name).exists(), name


def test_every_exhaustive_test_belongs_to_a_part() -> None:
    for path in (exhaustive_due.ROOT / "tests").rglob("test_*.py"):
        for line in path.read_text(encoding="utf-8").splitlines():
            if "pytest.mark.exhaustive(" in line and path != Path(__file__):
                part = line.partition('exhaustive("')[2].partition('"')[0]
                assert path.relative_to(exhaustive_due.ROOT).as_posix() in exhaustive_due.PARTS[part][1]
