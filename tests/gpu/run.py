"""Everything that is measured on a GPU, in one go of under ten minutes: started by run.sh.

Checks (gpu/checks.py), training and answering benchmarks (tests/bench), and a comparison where a model's
folder is given. Each part is a process under a time limit of its own. After each figure report.json and
report.md in the output folder are up to date, so that a kill loses the part that was running and no more.
Needed are python, torch and transformers; what a part needs besides is listed first, and a part without it is
skipped by name.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gpu import table

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "tests" / "bench"
TOTAL_S = 585.0  # of all parts; run.sh ends everything a little later
RESERVE_S = 5.0  # to end a part and to write
GROUPS = ("checks", "train", "answer", "compare")  # "large" only where it is asked for
# What may be missing beside python, torch and transformers: name to install, wheel in MB (about, its own).
WHEELS = {
    "accelerate": ("accelerate", 0.4), "psutil": ("psutil", 0.2), "pydantic": ("pydantic", 0.5),
    "pydantic_core": ("pydantic-core", 2.2), "peft": ("peft", 0.8), "filelock": ("filelock", 0.2),
    "lm_eval": ("lm-eval", 6.1), "datasets": ("datasets", 0.6), "pyarrow": ("pyarrow", 54),
    "pandas": ("pandas", 12), "scipy": ("scipy", 35), "sklearn": ("scikit-learn", 9),
    "statsmodels": ("statsmodels", 12), "matplotlib": ("matplotlib", 10), "nltk": ("nltk", 1.7),
    "rouge_score": ("rouge-score", 0.1), "krippendorff": ("krippendorff", 0.1), "openai": ("openai", 2.1),
    "tenacity": ("tenacity", 0.1), "click": ("click", 0.1), "rich": ("rich", 0.3), "trl": ("trl", 0.9),
    "liger_kernel": ("liger-kernel", 0.3), "bitsandbytes": ("bitsandbytes", 60),
    "deepspeed": ("deepspeed", 2), "vllm": ("vllm", 450), "flash_attn": ("flash-attn", 250),
    "pytest": ("pytest", 0.4), "hypothesis": ("hypothesis", 1.1),
}  # fmt: skip
TRAINING = ("accelerate", "psutil", "pydantic", "filelock")
WHOLE = (
    *TRAINING, "lm_eval", "datasets", "pandas", "scipy", "statsmodels", "matplotlib", "tenacity", "click",
    "rich", "rouge_score", "krippendorff", "openai", "peft",
)  # fmt: skip
FOR = {
    "checks": (*TRAINING, "peft", "lm_eval", "liger_kernel", "bitsandbytes", "deepspeed", "vllm"),
    "train": (*TRAINING, "trl", "datasets", "liger_kernel", "flash_attn"),
    "answer": WHOLE,
    "compare": WHOLE,
    "large": TRAINING,
}
COLUMNS = ("method", "utility", "rsr", "jsr", "train_seconds", "peak_memory_bytes", "tokens_per_second",
           "mfu", "status")  # fmt: skip


@dataclass(frozen=True)
class Part:
    """A command that prints its figures as lines of ``RESULT`` and JSON. ``needs``: importable names without
    which it is skipped; ``after``: further figures, from what it leaves."""

    group: str
    name: str
    command: Sequence[str]
    limit_s: float
    needs: Sequence[str] = ()
    after: Callable[[], Iterable[dict[str, Any]]] = tuple


@dataclass
class Report:
    """What is known so far, as two files in ``folder``."""

    folder: Path
    facts: dict[str, Any]
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    _writing: threading.Lock = field(default_factory=threading.Lock)

    def write(self) -> None:
        with self._writing:
            self._write()

    def _write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        found = {**self.facts, "parts": self.parts}
        for name, text in (
            ("report.json", json.dumps(found, indent=1) + "\n"),
            ("report.md", table.markdown(found)),
        ):
            scratch = self.folder / f".{name}.new"
            scratch.write_text(text, encoding="utf-8")
            os.replace(scratch, self.folder / name)


# --- the machine -------------------------------------------------------------------------------------------

ASK = """
import json, torch
found = {"cuda": torch.version.cuda, "devices": []}
if torch.cuda.is_available():
    for number in range(torch.cuda.device_count()):
        one = torch.cuda.get_device_properties(number)
        found["devices"].append({"name": one.name, "memory_bytes": one.total_memory})
print(json.dumps(found))
"""


DRIVER = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")


def facts(arguments: Sequence[str], cpu: bool) -> dict[str, Any]:
    """Card, driver, versions, command and commit."""
    names = ("torch", "transformers", *(name for name, _ in WHEELS.values()), "triton", "numpy")
    versions = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    asked = _said([sys.executable, "-c", ASK])
    return {
        "started": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "command": shlex.join(["tests/gpu/run.sh", *arguments]),
        "commit": commit(),
        "device": "cpu" if cpu else "cuda",
        "machine": {
            "driver": _said(DRIVER),
            "torch sees": json.loads(asked.splitlines()[-1]) if asked else None,
            "cpus": os.cpu_count(),
            "system": platform.platform(),
            "python": platform.python_version(),
        },
        "versions": versions,
        "missing": {group: missing(FOR[group]) for group in FOR},
    }  # fmt: skip


def _said(command: Sequence[str]) -> str:
    """A short command's output; nothing where there is no such command."""
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return ended.stdout.strip() if ended.returncode == 0 else ""


def commit() -> str:
    """COMMIT, the checkout's own (marked where files differ from it), or "unknown"."""
    if os.environ.get("COMMIT"):
        return os.environ["COMMIT"]
    if not (ROOT / ".git").exists():
        return "unknown"
    found = _said(["git", "-C", str(ROOT), "rev-parse", "HEAD"])
    changed = found and _said(["git", "-C", str(ROOT), "status", "--porcelain"])
    return (found + (" with changes" if changed else "")) or "unknown"


def missing(names: Iterable[str]) -> list[str]:
    return [name for name in names if find_spec(name) is None]


def told(names: Iterable[str]) -> str:
    """Packages by the names to install, with the sizes of their wheels."""
    return ", ".join(f"{WHEELS[name][0]} ({WHEELS[name][1]:g} MB)" for name in names)


# --- parts -------------------------------------------------------------------------------------------------


def parts(options: argparse.Namespace) -> list[Part]:
    """What is to be run, the figures that matter most first. ``options.memory``: bytes of the card."""
    device = "cpu" if options.cpu else "cuda"
    checks = [sys.executable, "-m", "gpu.runner", "--device", device]
    limit = 60.0 if options.cpu else 225.0
    checks += ["--deadline", f"{limit - 5:.0f}", *(["--quick", "--workers", "1"] if options.cpu else [])]
    found = [Part("checks", "checks", checks, limit, TRAINING)]
    trainings = training(device, options.memory)
    answers = answering(device, options.out)
    found += [*trainings[:3], *answers[:3]]
    if options.model:
        found.append(comparison(device, options.model, options.out))
    found += [*trainings[3:], *answers[3:], *([] if options.cpu else large())]
    wanted = options.parts or GROUPS
    limits = dict(options.limit)
    return [
        Part(one.group, one.name, one.command, limits.get(one.name, one.limit_s), one.needs, one.after)
        for one in found
        if one.group in wanted
    ]


def training(device: str, memory: int) -> list[Part]:
    """Ours and TRL's two settings, then each setting of ours on and off."""
    if device == "cpu":
        sizes = "--size tiny --rows 12 --batch 4 --threads 1 --warm-up 1"
        small, large, wide = "2", "4", "2"
    else:
        sizes = "--size 1b --rows 1280 --batch 64 --warm-up 5 --dtype bfloat16"
        small, large, wide = "16", "64", "32" if memory > 100e9 else "16"  # TRL makes logits of all tokens

    def part(name: str, arguments: str, limit: float, needs: Sequence[str] = TRAINING) -> Part:
        command = [sys.executable, str(BENCH / "train_speed.py"), "--device", device, *shlex.split(sizes)]
        return Part("train", f"train {name}", [*command, *shlex.split(arguments)], limit, needs)

    ours, trl = "--contender ours --batching", (*TRAINING, "trl", "datasets")
    packed, padded = f"{ours} padding-free --micro-batch {large}", f"{ours} grouped --micro-batch {small}"
    found = [
        part("ours padding-free", packed, 55),
        part("trl padded", f"--contender 'trl padded' --micro-batch {wide}", 65, trl),
    ]
    if device != "cpu":
        few = "--rows 640"  # ten steps for each setting, half of them timed
        found += [
            part("trl packing", f"--contender 'trl packing' --micro-batch {wide}", 65, trl),
            part("settings", f"{packed} {few} {each('', 'chunked_loss=true', 'compile=true')}", 90),
            part("settings grouped", f"{padded} {few} {each('', 'cudnn_attention=false')}", 60),
            part(
                "settings lora",
                f"{packed} {few} --tuning lora "
                + each("", "adapter_casts=false", "adapter_casts=false compile=true"),
                90,
                (*TRAINING, "peft"),
            ),
            part("settings memory", f"{packed} {few} --set expandable_segments=true", 45),
            part("ours with Liger", f"{packed} {few} --set liger=true", 50, (*TRAINING, "liger_kernel")),
            part("ours padded", f"{ours} in-order --micro-batch {wide} {few}", 50),
        ]
    return found


def each(*settings: str) -> str:
    """Arguments that have ours train under each of these in turn; "": as a recipe has it."""
    return " ".join(f"--each {shlex.quote(one)}" for one in settings)


def answering(device: str, out: Path) -> list[Part]:
    """Ours, lm-eval's and ours as it was, then ours under settings that have not been measured."""
    command = [sys.executable, str(BENCH / "respond_speed.py"), "--device", device, "--once"]
    if device == "cpu":
        sizes, batches = "--size mini --limit 2", "2"
    else:
        sizes, batches = "--size 1b --limit 64 --dtype bfloat16 --batch-size 128", "64"
        command += ["--keep", str(out / "scratch" / "model")]
    contenders = [("ours", "--only ours"), ("lm-eval", f"--only plain --plain-batches {batches}")]
    if device != "cpu":
        others = ("before", "static", "no-cudnn", "continuous")
        contenders += [(f"ours, {name}", f"--only {name}") for name in others]
    return [
        Part("answer", f"answer {name}", [*command, *shlex.split(f"{sizes} {arguments}")], 75, WHOLE)
        for name, arguments in contenders
    ]


def comparison(device: str, model: Path, out: Path) -> Part:
    """The mini world's tasks on a model of somebody's own: it runs, and what it takes."""
    run = out / "scratch" / "compare"
    command = [sys.executable, "-m", "harness", "compare", "mini", "--model", str(model), "--engine", "hf"]
    command += ["--methods", "vanilla,constrained-sft", "--train-tasks", "gsm8k-mini", "--out", str(run)]
    settings = {"training.device": device, "training.epochs": 1, "jobs": 1}
    if device == "cpu":
        settings |= {"training.max_examples": 16, "responses.limit": 4, "training.batch_size": 8}
    else:
        settings |= {"training.max_examples": 256, "responses.limit": 32, "training.batch_size": 64}
        settings |= {"training.dtype": "bfloat16", "responses.dtype": "bfloat16"}
    for key, value in settings.items():
        command += ["--set", f"{key}={value}"]

    def rows() -> Iterable[dict[str, Any]]:
        with (run / "leaderboard.csv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                yield {name: row.get(name, "") for name in COLUMNS}
        yield {"timing": json.loads((run / "run.json").read_text(encoding="utf-8")).get("timing")}

    return Part("compare", "compare", command, 120.0, WHOLE, rows)


def large() -> list[Part]:
    """Whole sizes, random weights: adapters on Llama-3.1-8B's (80 GB), all of Llama-2-7B's (141 GB)."""
    command = [sys.executable, str(BENCH / "train_speed.py"), "--device", "cuda", "--dtype", "bfloat16"]
    command += shlex.split("--contender ours --batching padding-free --warm-up 3")
    sizes = "--rows 256 --batch 32"
    return [
        Part("large", f"large {name}", [*command, *shlex.split(arguments)], 250, needs)
        for name, arguments, needs in (
            ("8b lora", f"--size 8b --tuning lora {sizes} --micro-batch 32", (*TRAINING, "peft")),
            ("7b full", f"--size 7b {sizes} --micro-batch 16 --checkpointing", TRAINING),
        )
    ]  # fmt: skip


def run_part(part: Part, limit_s: float, report: Report) -> None:
    """Run one, its figures into the report as they come. Nothing that it does ends this process."""
    entry: dict[str, Any] = {
        "group": part.group,
        "outcome": "running",
        "limit_s": round(limit_s, 1),
        "command": shlex.join(part.command),
        "results": [],
    }
    report.parts[part.name] = entry
    report.write()
    begun = time.monotonic()
    log = report.folder / "logs" / f"{part.name.replace(' ', '-')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as said:
        child = subprocess.Popen(
            part.command, stdout=subprocess.PIPE, stderr=said, text=True, errors="replace",
            start_new_session=True, cwd=ROOT,
        )  # fmt: skip

        def read() -> None:
            assert child.stdout is not None
            for line in child.stdout:
                try:
                    figures = json.loads(line.removeprefix("RESULT ")) if line.startswith("RESULT ") else None
                except ValueError:
                    figures = None
                if figures is not None:  # not into the log, where it could end up amid a line of stderr
                    entry["results"].append(figures)
                    report.write()
                    continue
                said.write(line)
                said.flush()

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        code: int | None = None
        try:
            code = child.wait(limit_s)
        except subprocess.TimeoutExpired:
            pass
        except SystemExit:
            entry |= {"outcome": "stopped", "reason": "the whole was ended from outside"}
            report.write()
            raise
        finally:
            _end(child)  # and what it has started
            reader.join(5)
    entry["seconds"] = round(time.monotonic() - begun, 1)
    _conclude(part, entry, code, log)
    report.write()


def _end(child: subprocess.Popen[str]) -> None:
    """End a part and what it has started. It is asked first: the checks end processes of their own then."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(3)


def _conclude(part: Part, entry: dict[str, Any], code: int | None, log: Path) -> None:
    """How a part has ended, and why where it has not done what it should."""
    bad = [one["check"] for one in entry["results"] if one.get("outcome") in ("failed", "over its limit")]
    if code is None:
        entry |= {"outcome": "over its limit", "reason": f"stopped after {entry['limit_s']:g} s"}
    elif bad:
        entry |= {
            "outcome": "failed",
            "reason": f"{len(bad)} of {len(entry['results'])} checks: {', '.join(bad)}",
        }
    elif code:
        lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
        last = next((line for line in reversed(lines) if line), "no output")
        entry |= {"outcome": "failed", "reason": f"ended with {code}: {last[:300]}"}
    else:
        try:
            entry["results"] += part.after()
        except (OSError, ValueError, KeyError) as error:
            entry |= {"outcome": "failed", "reason": f"left no result: {type(error).__name__}: {error}"[:300]}
        else:
            entry |= {"outcome": "done", "reason": ""}


def run(wanted: Sequence[Part], report: Report, total_s: float) -> None:
    """Every part in turn, each under its own limit and all under ``total_s``."""
    ends = time.monotonic() + total_s
    for part in wanted:
        lacking, left = missing(part.needs), ends - time.monotonic() - RESERVE_S
        limit = min(part.limit_s, left)
        if lacking or limit < 1:
            reason = f"not installed: {told(lacking)}" if lacking else "no time left"
            report.parts[part.name] = {
                "group": part.group, "outcome": "skipped", "reason": reason, "seconds": 0.0,
                "limit_s": part.limit_s, "command": shlex.join(part.command), "results": [],
            }  # fmt: skip
            report.write()
        else:
            print(f"{part.name}: at most {limit:.0f} s", flush=True)
            run_part(part, limit, report)
        entry = report.parts[part.name]
        print(f"{part.name}: {entry['outcome']} in {entry['seconds']:g} s  {entry['reason']}", flush=True)


def _limit(text: str) -> tuple[str, float]:
    name, _, seconds = text.rpartition("=")
    return name, float(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, help="a model's folder, for a comparison")
    parser.add_argument("--out", type=Path, help="where the report goes (default: $OUT, else gpu-report)")
    parser.add_argument("--cpu", action="store_true", help="tiny sizes on a CPU, to try the script")
    parser.add_argument(
        "--parts", nargs="+", choices=(*GROUPS, "large"),
        help='these alone; "large" (7B all weights, 8B adapters; random weights) runs only when it is named',
    )  # fmt: skip
    parser.add_argument("--limit", action="append", type=_limit, default=[], metavar="PART=SECONDS")
    parser.add_argument("--total", type=float, default=TOTAL_S, help="seconds for all parts")
    options = parser.parse_intermixed_args()
    options.out = (options.out or Path(os.environ.get("OUT") or "gpu-report")).resolve()
    if options.model:
        options.model = options.model.resolve()
    begun = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))  # and the part that runs with it
    os.environ["HARNESS_CACHE"] = str(options.out / "scratch" / "cache")  # nothing is known from before
    os.environ["HARNESS_STATE"] = str(options.out / "scratch" / "state")
    shutil.rmtree(options.out / "scratch", ignore_errors=True)
    report = Report(options.out, facts(sys.argv[1:], options.cpu))
    report.write()
    for group, lacking in report.facts["missing"].items():
        if lacking:
            print(f"{group}: not installed: {told(lacking)}", flush=True)
    if not options.cpu and not (report.facts["machine"]["torch sees"] or {}).get("devices"):
        sys.exit("torch sees no CUDA device here (tests/gpu/run.sh --cpu tries the script on a CPU)")
    devices = (report.facts["machine"]["torch sees"] or {}).get("devices", [])
    options.memory = devices[0]["memory_bytes"] if devices else 0
    run(parts(options), report, options.total - (time.monotonic() - begun))
    print((options.out / "report.md").read_text(encoding="utf-8"))
    shutil.rmtree(options.out / "scratch", ignore_errors=True)
    wrong = [one for one in report.parts.values() if one["outcome"] in ("failed", "over its limit")]
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
