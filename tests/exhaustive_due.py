"""Which parts of the exhaustive tests are due: those whose files have changed since they last passed.

    python tests/exhaustive_due.py            # a line for each part that is due, and why
    python tests/exhaustive_due.py --passed kills,fuzzing    # the lines to put into results/LOG.md

`.ci/run` prints this and never runs those tests. What passed, and at which commit, stands in the table of
results/LOG.md whose rows begin with "exhaustive:". Python's standard library alone, so that it runs anywhere.
"""

from __future__ import annotations

import argparse
import datetime
import re
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOG = Path("results/LOG.md")
NOTED = re.compile(r"\|\s*exhaustive: (?P<part>[a-z-]+)\s*\|\s*`?(?P<commit>[0-9a-f]{7,40})`?\s*\|")
SHOWN = 3  # files in a line

# Part -> (its make target, the files that it covers, folders whole)
PARTS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "kills": (
        "test-kills",
        (
            "harness/storage/crash.py",
            "harness/storage/files.py",
            "harness/run/run_folder.py",
            "harness/pipeline/compare.py",
            "harness/pipeline/stages.py",
            "harness/pipeline/workers.py",
            "harness/training/stage.py",
            "harness/training/job.py",
            "harness/generation/stage.py",
            "harness/judging/stage.py",
            "harness/judging/cache.py",
            "harness/judging/verdict_files.py",
            "harness/training/trainer.py",
            "harness/training/loop.py",
            "harness/training/resume.py",
            "judges/batch.py",
            "tests/harness/test_random_kills.py",
            "tests/harness/test_crash_points.py",
        ),
    ),
    "properties": (
        "test-properties",
        (
            "harness/mini",
            "harness/recipes/mini.yaml",
            "backends",
            "harness/training",
            "tasks/gsm8k_mini",
            "tasks/samsum_mini",
            "tasks/hexphi_mini",
            "judges/mini_exact.py",
            "tests/harness/studies/test_mini_properties.py",
        ),
    ),
    "fuzzing": (
        "fuzz",
        (
            "harness/reading.py",
            "harness/storage/records.py",
            "harness/config",
            "harness/data/loading.py",
            "harness/row_files.py",
            "harness/rows.py",
            "harness/turns.py",
            "harness/text.py",
            "harness/models/checkpoints.py",
            "harness/models/transformers_models.py",
            "harness/engines/openai.py",
            "harness/engines/service.py",
            "harness/engines/replies.py",
            "judges/openai_api.py",
            "judges/chat_server.py",
            "judges/rubric.py",
            "judges/local.py",
            "judges/guard_files.py",
            "tasks/documents.py",
            "tests/support/fuzz_targets.py",
            "tests/fuzz",
        ),
    ),
    "mutation": (
        "mutation",
        (
            "judges/rubric.py",
            "tasks/gsm8k_scoring.py",
            "tasks/rewriting.py",
            "tasks/numbers.py",
            "tasks/rouge.py",
            "backends/lookahead.py",
            "harness/training/batching.py",
            "harness/training/logprobs.py",
            "harness/training/attention.py",
            "backends/sdft.py",
            "backends/constrained_sft.py",
            "backends/lisa.py",
            "backends/safety_mixing.py",
            "harness/leaderboard/scores.py",
            "harness/leaderboard/collect.py",
            "harness/leaderboard/spread.py",
            "harness/leaderboard/statistics.py",
            "harness/leaderboard/detectable.py",
            "tests/judges/test_rubric.py",
            "tests/tasks/test_gsm8k_scoring.py",
            "tests/tasks/test_rewriting.py",
            "tests/tasks/test_numbers.py",
            "tests/tasks/test_rouge.py",
            "tests/backends/test_lookahead.py",
            "tests/harness/training/test_batching.py",
            "tests/harness/training/test_logprobs.py",
            "tests/harness/training/test_attention.py",
            "tests/harness/training/test_packed_kernel.py",
            "tests/backends/test_sdft.py",
            "tests/backends/test_constrained_sft.py",
            "tests/backends/test_lisa.py",
            "tests/backends/test_safety_mixing.py",
            "tests/harness/leaderboard/test_scores_of_files.py",
            "tests/harness/leaderboard/test_statistics.py",
            "tests/harness/leaderboard/test_detectable.py",
            "tests/mutation",
        ),
    ),
}


def due(parts: Mapping[str, Iterable[str]], log: str, root: Path = ROOT) -> list[str]:
    """A line for each part (with the files that it covers) that is due."""
    passed = {found["part"]: found["commit"] for found in NOTED.finditer(log)}
    lines = []
    for part, files in parts.items():
        commit = passed.get(part)
        if commit is None:
            lines.append(f"{part}: has not passed yet, as far as {LOG} says")
            continue
        changed = _changed(commit, files, root)
        if changed is None:
            lines.append(f"{part}: passed at {commit}, which is no commit of this clone")
        elif changed:
            more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
            lines.append(f"{part}: since it passed at {commit}, {', '.join(changed[:SHOWN])}{more} changed")
    return lines


def _changed(commit: str, files: Iterable[str], root: Path) -> list[str] | None:
    """Files that differ from a commit's; None where git does not know it."""
    command = ["git", "-C", str(root), "diff", "--name-only", f"{commit}^{{commit}}", "--", *files]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    return None if told.returncode else told.stdout.split()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--passed", metavar="A,B", help="print what to note of parts that have passed")
    passed = arguments.parse_args().passed
    if passed:
        head = ["git", "-C", str(ROOT), "rev-parse", "--short=10", "HEAD"]
        commit = subprocess.run(head, capture_output=True, text=True, check=True).stdout.strip()
        for part in passed.split(","):
            print(f"| exhaustive: {part} | `{commit}` | {datetime.date.today()} |")
        return
    lines = due({part: files for part, (_, files) in PARTS.items()}, (ROOT / LOG).read_text(encoding="utf-8"))
    for line in lines:
        print(f"exhaustive tests are due: {line} (make {PARTS[line.partition(':')[0]][0]})")
    if not lines:
        print("exhaustive tests: none is due")


if __name__ == "__main__":
    main()
