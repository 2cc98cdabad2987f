"""Change formulas one by one and see whether a test notices: `make mutation` (cosmic-ray).

    python tests/mutation/mutate.py                    # all modules below; goes on where it stopped
    python tests/mutation/mutate.py judges/rubric.py   # one of them

Works on a copy of the tree in .mutation/, so that a kill leaves no changed formula behind. Prints each
module's share of changes that a test found, and those that none did. Exit code 1 below 95 %, less those that
the table EQUIVALENT argues are no change at all.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / ".mutation"
WANTED = 0.95
TIMEOUT_S = 120.0  # of the tests of one change
# Module -> the tests that are to notice. RECIPE's formulas come first; the list grows with the issues.
MODULES = {
    "judges/rubric.py": "tests/judges/test_rubric.py",
    "tasks/gsm8k_scoring.py": "tests/tasks/test_gsm8k_scoring.py",
    "tasks/rewriting.py": "tests/tasks/test_rewriting.py",
    "tasks/numbers.py": "tests/tasks/test_numbers.py",
    "tasks/rouge.py": "tests/tasks/test_rouge.py",
    "backends/lookahead.py": "tests/backends/test_lookahead.py",
    "backends/sdft.py": "tests/backends/test_sdft.py",
    "backends/constrained_sft.py": "tests/backends/test_constrained_sft.py",
    "backends/lisa.py": "tests/backends/test_lisa.py",
    "backends/safety_mixing.py": "tests/backends/test_safety_mixing.py",
    "harness/scores.py": "tests/harness/test_scores_of_files.py",
}
# (module, line's text, cosmic-ray's operator) -> why no test can tell the change
EQUIVALENT: dict[tuple[str, str, str], str] = {}


def main() -> None:
    chosen = sys.argv[1:] or list(MODULES)
    unknown = [name for name in chosen if name not in MODULES]
    if unknown:
        sys.exit(f"{unknown[0]}: not in the list of modules: {', '.join(MODULES)}")
    copied()
    shares = [share(module) for module in chosen]
    sys.exit(min(shares) < WANTED)


def copied() -> None:
    """The tree as it is now, in a folder of its own."""
    shutil.rmtree(WORK / "tree", ignore_errors=True)
    told = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, told.decode().split("\0")):
        if (ROOT / name).is_file():
            (WORK / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, WORK / "tree" / name)


def share(module: str) -> float:
    """The share of a module's changes that its tests notice, printed with those that none does."""
    stem = module.removesuffix(".py").replace("/", ".")
    config, session = WORK / f"{stem}.toml", WORK / f"{stem}.sqlite"
    tests = " ".join(shlex.quote(f"{WORK / 'tree' / one}") for one in MODULES[module].split())
    command = f"{shlex.quote(sys.executable)} -m pytest -x -q -p no:cacheprovider {tests}"
    written = (
        f"[cosmic-ray]\nmodule-path = {json.dumps(module)}\ntimeout = {TIMEOUT_S}\nexcluded-modules = []\n"
        f'test-command = {json.dumps(command)}\n[cosmic-ray.distributor]\nname = "local"\n'
    )
    sources = b"".join((WORK / "tree" / name).read_bytes() for name in (module, *MODULES[module].split()))
    known = WORK / f"{stem}.of"  # what the session is about
    if not (session.is_file() and known.is_file() and known.read_bytes() == sources):
        session.unlink(missing_ok=True)
        config.write_text(written, encoding="utf-8")
        cosmic_ray("baseline", config)  # tests that fail anyway would notice everything
        cosmic_ray("init", config, session)
        known.write_bytes(sources)
    cosmic_ray("exec", config, session)
    rows = list(results(session))
    alive = [row for row in rows if not row["killed"] and row["key"] not in EQUIVALENT]
    counted = len(rows) - sum(row["key"] in EQUIVALENT and not row["killed"] for row in rows)
    found = (counted - len(alive)) / counted if counted else 1.0
    print(f"{module}: {counted - len(alive)} of {counted} changes noticed ({found:.1%})", flush=True)
    for row in alive:
        print(f"  line {row['line']}: {row['key'][1]}  [{row['key'][2]}]")
    return found


def cosmic_ray(verb: str, *files: Path) -> None:
    tool = Path(sys.executable).with_name("cosmic-ray")
    here = {**os.environ, "PYTHONPATH": str(WORK / "tree"), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([tool, verb, *files], cwd=WORK / "tree", env=here, check=True)


def results(session: Path) -> Iterator[dict[str, Any]]:
    """What became of each change: its place, whether a test noticed, and its key in EQUIVALENT."""
    from cosmic_ray.work_db import WorkDB, use_db  # type: ignore[import-not-found]

    with use_db(str(session), WorkDB.Mode.open) as database:
        for item, result in database.completed_work_items:
            (mutation,) = item.mutations
            module = str(mutation.module_path)
            line = mutation.start_pos[0]
            text = (WORK / "tree" / module).read_text(encoding="utf-8").splitlines()[line - 1].strip()
            yield {
                "killed": result.is_killed,
                "line": line,
                "key": (module, text, f"{mutation.operator_name} {mutation.occurrence}"),
            }


if __name__ == "__main__":
    main()
