"""What a task may import, and what a train task costs to import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

TASKS = Path(__file__).parents[2] / "tasks"


@pytest.mark.parametrize("path", sorted(TASKS.rglob("*.py")), ids=lambda path: str(path.relative_to(TASKS)))
def test_only_contracts_and_the_mini_world(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports fail in a file that lm-eval loads by path"
            names = [node.module or ""]
        for name in names:
            assert not name.startswith(("backends", "judges")), name
            if name.startswith("harness"):
                allowed = (
                    "harness.contracts",
                    "harness.finish",
                    "harness.keywords",
                    "harness.mini",
                    "harness.storage.parquet",
                    "harness.reading",
                    "harness.row_files",
                    "harness.rows",
                    "harness.text",
                    "harness.tokenizer_files",
                    "harness.tokenizing",
                    "harness.turns",
                )
                assert name in allowed, name


def test_train_tasks_are_light() -> None:
    code = (
        "import sys, tasks.gsm8k.train, tasks.gsm8k_mini.train, tasks.samsum_mini.train;"
        "heavy = ('torch', 'transformers', 'lm_eval', 'datasets', 'rouge_score');"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=TASKS.parent
    )
    assert done.stdout.strip() == "[]"
