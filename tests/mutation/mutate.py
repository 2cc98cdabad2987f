"""Change formulas one by one and see whether a test notices: `make mutation` (cosmic-ray).

    python tests/mutation/mutate.py                    # all modules below; goes on where it stopped
    python tests/mutation/mutate.py judges/rubric.py   # one of them

Works on a copy of the tree in .mutation/, so that a kill leaves no changed formula behind. Each change is
tested in a fork of a process that has imported torch and lm-eval already: a second each, not ten. Prints each
module's share of changes that a test found, and those that none did. Exit code 1 below 95 %, less those that
the table EQUIVALENT argues are no change at all.

A module that has changed begins anew. Where only its tests have, the changes that none of them noticed are
tried again and the others are not: what a test has noticed stays noticed, because tests are added and seldom
taken away. After taking one away, remove .mutation/.
"""

from __future__ import annotations

import ast
import gc
import importlib
import json
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / ".mutation"
FAST = Path("/dev/shm")  # a file system in memory, which waits for no disk
WANTED = 0.95
TIMEOUT_S = 300.0  # of the tests of one change, which may have to share the machine
CPU_S = 20  # of the same: a loop without end is noticed, a busy machine is not
MEMORY_BYTES = 8 << 30
WARM = (
    *("torch", "transformers.trainer", "transformers.models.llama.modeling_llama", "peft", "accelerate"),
    *("deepspeed", "datasets", "lm_eval.evaluator", "hypothesis", "pandas", "scipy.stats", "pydantic"),
    *("statsmodels.stats.proportion", "statsmodels.stats.contingency_tables", "jsonschema", "rich.console"),
    *(
        "harness.config",
        "harness.plugins.registry",
        "harness.models.chat",
        "harness.storage.files",
        "harness.mini.data",
    ),
    *("harness.run.plan", "harness.pipeline.compare", "harness.leaderboard.build", "harness.run.run_folder"),
    *("_hypothesis_pytestplugin", "anyio.pytest_plugin", "pytest_timeout", "xdist.looponfail"),
)
# Module -> the tests that are to notice. RECIPE's formulas come first; the list grows with the issues.
MODULES = {
    "judges/rubric.py": "tests/judges/test_rubric.py",
    "tasks/gsm8k_scoring.py": "tests/tasks/test_gsm8k_scoring.py",
    "tasks/rewriting.py": "tests/tasks/test_rewriting.py",
    "tasks/numbers.py": "tests/tasks/test_numbers.py",
    "tasks/rouge.py": "tests/tasks/test_rouge.py",
    "backends/lookahead.py": "tests/backends/test_lookahead.py",
    "harness/training/batching.py": "tests/harness/training/test_batching.py",
    "harness/training/logprobs.py": "tests/harness/training/test_logprobs.py",
    "harness/training/attention.py": "tests/harness/training/test_attention.py "
    "tests/harness/training/test_packed_kernel.py",
    "backends/sdft.py": "tests/backends/test_sdft.py",
    "backends/constrained_sft.py": "tests/backends/test_constrained_sft.py",
    "backends/lisa.py": "tests/backends/test_lisa.py",
    "backends/safety_mixing.py": "tests/backends/test_safety_mixing.py",
    "harness/leaderboard/scores.py": "tests/harness/leaderboard/test_scores_of_files.py",
    "harness/leaderboard/collect.py": "tests/harness/leaderboard/test_scores_of_files.py",
    "harness/leaderboard/spread.py": "tests/harness/leaderboard/test_statistics.py",
    "harness/leaderboard/statistics.py": "tests/harness/leaderboard/test_statistics.py",
    "harness/leaderboard/detectable.py": "tests/harness/leaderboard/test_detectable.py",
}
# Of these, what others of WARM's modules import: they come first, before those are.
EARLY = (
    "harness/leaderboard/spread.py",
    "harness/leaderboard/statistics.py",
    "harness/leaderboard/detectable.py",
)
# (module, line's text, cosmic-ray's operator) -> why no test can tell the change
EQUIVALENT: dict[tuple[str, str, str], str] = {
    (
        "harness/leaderboard/collect.py",
        'return dataclasses.replace(found, binary=found.binary and kinds.get(task, "rate") == "rate")',
        "core/ReplaceComparisonOperator_Eq_GtE 5",
    ): "the two kinds are 'rate' and 'mean', which is the lesser",
    (
        "harness/leaderboard/scores.py",
        'return dataclasses.replace(found, binary=kind == "rate")',
        "core/ReplaceComparisonOperator_Eq_GtE 1",
    ): "the two kinds are 'rate' and 'mean', which is the lesser",
    (
        "harness/leaderboard/collect.py",
        'if cell.kind == "trained" and not (out / cell.folder / "training.json").exists():',
        "core/ReplaceComparisonOperator_Eq_GtE 1",
    ): "of the four kinds, 'trained' is the last in the alphabet",
    (
        "harness/leaderboard/collect.py",
        'trained = self.cell.kind == "trained"',
        "core/ReplaceComparisonOperator_Eq_GtE 3",
    ): "of the four kinds, 'trained' is the last in the alphabet",
    (
        "harness/leaderboard/scores.py",
        'place = f"{folder.name}/checkpoint/" if cell.kind == "epoch" else "checkpoint/"',
        "core/ReplaceComparisonOperator_Eq_LtE 2",
    ): "what stands before 'epoch' in the alphabet, 'checkpoint', has no train task",
    (
        "harness/leaderboard/scores.py",
        'trained = folder.parent if cell.kind == "epoch" else folder',
        "core/ReplaceComparisonOperator_Eq_LtE 3",
    ): "what stands before 'epoch' in the alphabet, 'checkpoint', has no train task",
    (
        "harness/leaderboard/collect.py",
        "def _score(outcome: TaskOutcome, judge: str | None, *, meaningful: bool = True) -> dict[str, Any]:",
        "core/ReplaceBinaryOperator_Mul_Div 0",
    ): "its two callers, which are here, give the first two by place and the third by name",
    (
        "judges/rubric.py",
        "if len({key for key, _ in pairs}) < len(pairs):",
        "core/ReplaceComparisonOperator_Lt_NotEq 0",
    ): "a set of keys is no larger than the list of them",
    (
        "harness/training/attention.py",
        'asked |= {"is_causal"} if kwargs.get("is_causal") is False else set()',
        "core/ReplaceComparisonOperator_Is_Eq 0",
    ): "what a layer says of itself is True, False or None",
    **{
        ("harness/training/attention.py", "if window is not None and length > window:", f"core/{operator}"): (
            "in a window as wide as the row, or wider, a token sees all before it, as it does without a mask"
        )
        for operator in ("ReplaceComparisonOperator_Gt_GtE 0", "ReplaceComparisonOperator_Gt_NotEq 0")
    },
    (
        "harness/training/attention.py",
        "gqa = query.shape[1] != key.shape[1]",
        "core/ReplaceComparisonOperator_NotEq_Gt 0",
    ): "there is no attention whose queries have fewer heads than its keys",
    (
        "harness/training/attention.py",
        "gqa = query.shape[1] != key.shape[1]",
        "core/ReplaceComparisonOperator_NotEq_IsNot 0",
    ): "one number is two objects only above 256, and there groups of one head each change nothing",
    (
        "harness/training/attention.py",
        "examples = zip(*(states.split(lengths, dim=2) for states in (query, key, value)), strict=True)",
        "core/ReplaceTrueWithFalse 0",
    ): "all three are split by the same lengths",
    (
        "harness/training/attention.py",
        "mask = (distance >= 0) & (distance < window)",
        "core/ReplaceBinaryOperator_BitAnd_Mul 0",
    ): "the product of two truth values is true where both are",
    (
        "harness/training/batching.py",
        "widest = max(cut, key=lambda micro: _computed(micro, batching) if len(micro) > 1 else 0)",
        "core/ReplaceComparisonOperator_Gt_NotEq 1",
    ): "none is empty before the empty ones are added",
    (
        "harness/training/batching.py",
        'ordered = batch if batching == "in-order" else sorted(batch, key=lambda e: -len(e.input_ids))',
        "core/ReplaceUnaryOperator_USub_Invert 0",
    ): "~x is -x - 1, which sorts alike",
    (
        "harness/training/batching.py",
        "while len(cut) % devices and any(len(micro) > 1 for micro in cut):"
        "  # no device idle: halve the largest",
        "core/ReplaceComparisonOperator_Gt_NotEq 0",
    ): "none is empty before the empty ones are added",
    (
        "harness/training/batching.py",
        'idle = collate([Encoded("", batch[0].input_ids[:2], [False, False])], pad_id, packed)',
        "core/ReplaceFalseWithTrue 2",
    ): "a first token is never predicted, whatever is said of it",
    (
        "harness/training/batching.py",
        'idle = collate([Encoded("", batch[0].input_ids[:2], [False, False])], pad_id, packed)',
        "core/NumberReplacer 33",
    ): "whichever row's tokens stand in, they carry no loss",
    **{
        (
            "harness/training/batching.py",
            'return sum(lengths) if batching == "padding-free" else max(lengths, default=0) * len(lengths)',
            f"core/NumberReplacer {number}",
        ): "what stands for the longest of no rows is taken times 0"
        for number in (22, 23)
    },
    **{
        (
            "harness/training/batching.py",
            "widest = max(cut, key=lambda micro: _computed(micro, batching) if len(micro) > 1 else 0)",
            f"core/NumberReplacer {number}",
        ): "two rows or more, of which there are some here, have at least two tokens"
        for number in (14, 15)
    },
    (
        "harness/training/batching.py",
        'return sum(lengths) if batching == "padding-free" else max(lengths, default=0) * len(lengths)',
        "core/ReplaceComparisonOperator_Eq_GtE 1",
    ): "of the three batchings, 'padding-free' is the last in the alphabet",
    (
        "harness/training/batching.py",
        "if devices > 1:",
        "core/ReplaceComparisonOperator_Gt_NotEq 2",
    ): "with less than one device the lines before it fail",
    (
        "harness/training/batching.py",
        "cut.sort(key=lambda micro: -_computed(micro, batching))",
        "core/ReplaceUnaryOperator_USub_Invert 4",
    ): "~x is -x - 1, which sorts alike",
    **{
        (
            "backends/constrained_sft.py",
            "[values + [0.0] * (width - len(values)) for values in stored], dtype=inputs.logp.dtype",
            f"core/NumberReplacer {number}",
        ): "behind a row's last answer token the mask takes whatever stands there out of the loss"
        for number in (18, 19)
    },
    (
        "backends/constrained_sft.py",
        "ref_logp = padded.view(rows, width).to(inputs.logp.device, non_blocking=True)",
        "core/ReplaceTrueWithFalse 1",
    ): "a copy that is waited for holds the same values",
    (
        "backends/lisa.py",
        "while len(stream) < size:",
        "core/ReplaceComparisonOperator_Lt_LtE 1",
    ): "rows are drawn a batch earlier, in the same order; nothing else draws from a method's random numbers",
    (
        "backends/lisa.py",
        "if self.on_safety_data(step) != self.on_safety_data(step - 1):  # the next step begins a phase",
        "core/ReplaceComparisonOperator_NotEq_IsNot 0",
    ): "both are what a comparison gives, True or False, and there is one of each",
    (
        "backends/lisa.py",
        'self.anchor = {name.removeprefix("anchor."): w for name, w in tensors.items() if name != "done"}',
        "core/ReplaceComparisonOperator_NotEq_Lt 1",
    ): "every other name begins with 'anchor.', which is less than 'done'",
    (
        "harness/training/logprobs.py",
        "if logits.shape[:2] != (1, len(micro.targets)):"
        "  # N is less than T: nothing foretells a first token",
        "core/ReplaceComparisonOperator_NotEq_Gt 0",
    ): "a shape that differs is greater: more rows than one, or one with T above N",
    (
        "harness/training/logprobs.py",
        'packed = settings.batching == "padding-free"',
        "core/ReplaceComparisonOperator_Eq_GtE 0",
    ): "of the three batchings, 'padding-free' is the last in the alphabet",
    (
        "harness/training/logprobs.py",
        "if len(examples_here) == 1:",
        "core/ReplaceComparisonOperator_Eq_LtE 1",
    ): "no micro-batch is empty: deal() cuts none for one device, and of two rows or more each half has one",
    (
        "harness/training/logprobs.py",
        'with torch.autocast(model.device.type, torch.bfloat16, enabled=settings.dtype == "bfloat16"):',
        "core/ReplaceComparisonOperator_Eq_LtE 2",
    ): "a configuration's dtype is 'bfloat16' or 'float32', which is the greater",
    (
        "backends/safety_mixing.py",
        "if len(added) < wanted:",
        "core/ReplaceComparisonOperator_Lt_NotEq 2",
    ): "added is a sample of min(wanted, ...) rows, never more than are wanted",
    (
        "tasks/rouge.py",
        "@cache",
        "core/RemoveDecorator 0",
    ): "a scorer has no state: making it anew takes longer",
}


def main() -> None:
    chosen = sys.argv[1:] or list(MODULES)
    unknown = [name for name in chosen if name not in MODULES]
    if unknown:
        sys.exit(f"{unknown[0]}: not in the list of modules: {', '.join(MODULES)}")
    copied()
    shares: list[float] = []
    with TemporaryDirectory(dir=FAST if FAST.is_dir() else None) as folder:
        os.environ["PYTEST_DEBUG_TEMPROOT"] = folder  # where tests put their files
        for early in (True, False):
            modules = [module for module in chosen if (module in EARLY) == early]
            if modules:
                warm_up([name for name in WARM if not (early and name.startswith("harness."))], modules)
                shares += [share(module) for module in modules]
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
    from cosmic_ray.work_db import WorkDB, use_db  # type: ignore[import-not-found]

    stem, tests = module.removesuffix(".py").replace("/", "."), MODULES[module].split()
    config, session = WORK / f"{stem}.toml", WORK / f"{stem}.sqlite"
    known, tried = WORK / f"{stem}.of", WORK / f"{stem}.tests"  # what the session is about, and its tests
    source = (WORK / "tree" / module).read_bytes()
    asked = b"".join((WORK / "tree" / name).read_bytes() for name in tests)
    begun = session.is_file() and holds(known, source)
    if not begun or not holds(tried, asked):
        if not passes(tests):  # they would notice everything
            sys.exit(f"{module}: its tests fail without any change; {WORK / 'output.txt'} shows it")
        if begun:
            forget_unnoticed(session)
        else:
            begin(module, config, session)
        known.write_bytes(source)
        tried.write_bytes(asked)
    text = (WORK / "tree" / module).read_text(encoding="utf-8")
    unseen = unevaluated(text) + without_effect(text)
    with use_db(str(session), WorkDB.Mode.open) as database:
        for item in list(database.pending_work_items):
            (mutation,) = item.mutations
            database.set_result(item.job_id, tested(mutation, tests if is_seen(mutation, unseen) else []))
    rows = list(results(session))
    unnoticed = [row for row in rows if not row["killed"]]
    alive = [row for row in unnoticed if row["key"] not in EQUIVALENT and is_seen(row["mutation"], unseen)]
    counted = len(rows) - len(unnoticed) + len(alive)
    found = (counted - len(alive)) / counted if counted else 1.0
    print(f"{module}: {counted - len(alive)} of {counted} changes noticed ({found:.1%})", flush=True)
    for row in alive:
        print(f"  line {row['line']}: {row['key'][1]}  [{row['key'][2]}]")
    return found


def holds(file: Path, content: bytes) -> bool:
    return file.is_file() and file.read_bytes() == content


def begin(module: str, config: Path, session: Path) -> None:
    """A session with all changes of a module, none of them tried."""
    session.unlink(missing_ok=True)
    config.write_text(
        f"[cosmic-ray]\nmodule-path = {json.dumps(module)}\ntimeout = {TIMEOUT_S}\n"
        'excluded-modules = []\ntest-command = ""\n[cosmic-ray.distributor]\nname = "local"\n',
        encoding="utf-8",
    )
    tool = Path(sys.executable).with_name("cosmic-ray")
    subprocess.run([tool, "init", config, session], cwd=WORK / "tree", check=True)


def forget_unnoticed(session: Path) -> None:
    """Leave a session with the results of those changes that a test noticed; the others are to be tried."""
    with closing(sqlite3.connect(session)) as database, database:
        database.execute("DELETE FROM work_results WHERE test_outcome IS NOT 'KILLED'")


@dataclass(frozen=True)
class Span:
    """A stretch of source: (line, column) of its first and behind its last character."""

    start: tuple[int, int]
    end: tuple[int, int]

    def __contains__(self, place: tuple[int, int]) -> bool:
        return self.start <= place < self.end


def unevaluated(source: str) -> list[Span]:
    """The annotations of functions, of their variables and of named tuples, where a module postpones them:
    nothing evaluates those, so that no test can tell a change in them. (Those of a dataclass's fields are, by
    pydantic.)"""
    tree = ast.parse(source)
    if not any(isinstance(one, ast.ImportFrom) and one.module == "__future__" for one in tree.body):
        return []
    found: list[ast.expr | None] = []
    for part in ast.walk(tree):
        if isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef)):
            found.append(part.returns)
            found += [one.annotation for one in ast.walk(part.args) if isinstance(one, ast.arg)]
            found += [one.annotation for one in ast.walk(part) if isinstance(one, ast.AnnAssign)]
        elif isinstance(part, ast.ClassDef) and "NamedTuple" in map(ast.unparse, part.bases):
            found += [one.annotation for one in part.body if isinstance(one, ast.AnnAssign)]
    return [_span(one) for one in found if one is not None]


def without_effect(source: str) -> list[Span]:
    """What changes no result: caches, and that a dataclass cannot be assigned to (which mypy sees to)."""
    found: list[Span] = []
    for part in ast.walk(ast.parse(source)):
        for decorator in getattr(part, "decorator_list", []):
            name = ast.unparse(decorator)
            if name.startswith(("lru_cache", "cache")):
                found.append(_span(decorator, before=1))  # with its "@"
            elif name.startswith("dataclass") and isinstance(decorator, ast.Call):
                named = [one for one in decorator.keywords if one.arg in ("frozen", "slots")]
                found += [_span(one.value) for one in named]
    return found


def _span(one: ast.expr, before: int = 0) -> Span:
    return Span((one.lineno, one.col_offset - before), (one.end_lineno or 0, one.end_col_offset or 0))


def is_seen(mutation: Any, unseen: list[Span]) -> bool:
    return not any(mutation.start_pos in span for span in unseen)


def warm_up(names: Iterable[str], modules: Iterable[str]) -> None:
    """Import what takes long and is not changed; the tests and modules are those of the copy."""
    os.chdir(WORK / "tree")
    if str(WORK / "tree") not in sys.path:
        sys.path.insert(0, str(WORK / "tree"))
    sys.dont_write_bytecode = True
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    for name in names:
        importlib.import_module(name)
    early = [name for name in modules if name.removesuffix(".py").replace("/", ".") in sys.modules]
    assert not early, f"{early[0]} is imported before it is changed"
    gc.freeze()  # or each fork would look through all of it, several times


def tested(mutation: Any, tests: list[str]) -> Any:
    """cosmic-ray's result for one change: killed where one of the tests, if any, fails or takes too long."""
    from cosmic_ray import plugins
    from cosmic_ray.mutating import use_mutation  # type: ignore[import-not-found]
    from cosmic_ray.work_item import (  # type: ignore[import-not-found]
        TestOutcome,
        WorkerOutcome,
        WorkResult,
    )

    operator = plugins.get_operator(mutation.operator_name)(**mutation.operator_args)
    with use_mutation(mutation.module_path, operator, mutation.occurrence) as (_, changed):
        if changed is None:
            return WorkResult(worker_outcome=WorkerOutcome.NO_TEST)
        outcome = TestOutcome.SURVIVED if not tests or passes(tests) else TestOutcome.KILLED
        return WorkResult(worker_outcome=WorkerOutcome.NORMAL, test_outcome=outcome)


def passes(tests: list[str]) -> bool:
    """Whether tests pass in time, in a fork: what this process has imported need not be imported again."""
    child = os.fork()
    if child == 0:
        with (WORK / "output.txt").open("w") as file:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            os._exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests], [LikeliestFirst()])))
    end = time.monotonic() + TIMEOUT_S
    while (found := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return False
        time.sleep(0.02)
    return found[1] == 0


class LikeliestFirst:
    """A plugin of pytest's: tests run in the order of how many changes they have noticed, for their time."""

    def __init__(self) -> None:
        self.file = WORK / "tests.json"
        known = json.loads(self.file.read_text()) if self.file.is_file() else {}
        self.noticed: Counter[str] = Counter(known.get("noticed"))
        self.seconds: dict[str, float] = known.get("seconds", {})
        self.taken: Counter[str] = Counter()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda one: self.seconds.get(one.nodeid, 0.0) / (1 + self.noticed[one.nodeid]))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.taken[report.nodeid] += report.duration
        self.noticed[report.nodeid] += report.failed

    def pytest_sessionfinish(self) -> None:
        known = {"noticed": self.noticed, "seconds": self.seconds | self.taken}
        self.file.write_text(json.dumps(known))


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
                "mutation": mutation,
                "key": (module, text, f"{mutation.operator_name} {mutation.occurrence}"),
            }


if __name__ == "__main__":
    main()
