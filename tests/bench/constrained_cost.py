"""What Constrained SFT costs beside vanilla: wall time with a cold and a warm store, and peak memory.

    make bench
    python tests/bench/constrained_cost.py --size 110m --rows 24

Each training runs in a process of its own over three epochs. Wall time is that of the whole training call,
the reference values included; processor time beside it tells where other work disturbed. Memory is the
process's peak less what it held after the imports.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import train_speed

RUNS = ("vanilla", "constrained-sft cold", "constrained-sft warm")


def memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024


def measure(options: argparse.Namespace) -> None:
    import torch

    from backends.constrained_sft import ConstrainedSFT
    from backends.vanilla import Vanilla
    from harness.config import TrainingConfig
    from harness.contracts import Encoded
    from harness.storage.files import Cache
    from harness.training import trainer

    if options.threads:
        torch.set_num_threads(options.threads)
    data = train_speed.rows(options.dataset, options.rows, 32_000)
    examples = [
        Encoded(str(n), ids, [False] * prompt + [True] * (len(ids) - prompt))
        for n, (ids, prompt) in enumerate(data)
    ]
    settings = TrainingConfig.model_validate(
        {"epochs": 3, "batch_size": 8, "micro_batch_size": 4, "learning_rate": 1e-5, "device": "cpu"}
    )
    baseline = memory("VmRSS")
    model = train_speed.model_of(options)
    folder = Path(options.folder)
    place = folder / options.run.replace(" ", "-")
    method: Any = Vanilla() if options.run == "vanilla" else ConstrainedSFT()
    start, cpu_start = time.perf_counter(), time.process_time()
    record = trainer.train(
        model, train_speed.Tokenizer(), examples, method, settings, 0, lambda step, steps: None,
        places=trainer.Places(place / "output", place / "state", place / "reports"),
        cache=Cache(folder / "cache"), identity={"size": options.size},
    )  # fmt: skip
    seconds = time.perf_counter() - start
    cpu_seconds = time.process_time() - cpu_start
    found = {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "memory": memory("VmHWM") - baseline,
        "parameters": record["parameters"],
        "from_cache": record["extra_forward_from_cache"],
    }
    print("RESULT " + json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=train_speed.SIZES, default="110m")
    parser.add_argument("--dataset", choices=train_speed.LENGTHS, default="gsm8k")
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--device", choices=["cpu"], default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--run", choices=RUNS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        measure(options)
        return
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for run in RUNS:
            command = [sys.executable, __file__, *sys.argv[1:], "--run", run, "--folder", folder]
            done = subprocess.run(command, capture_output=True, text=True)
            lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
            if not lines:
                sys.exit(f"{run}: {(done.stderr.strip().splitlines() or ['no output'])[-1]}")
            found[run] = json.loads(lines[-1].removeprefix("RESULT "))
    base = found["vanilla"]
    print(f"\nLlama {options.size} ({base['parameters'] / 1e6:.0f} M parameters), {options.rows} rows of "
          f"{options.dataset}'s lengths, 3 epochs, float32 on the CPU")  # fmt: skip
    for run, figures in found.items():
        print(
            f"  {run:22s} {figures['seconds']:7.1f} s "
            f"({figures['seconds'] / base['seconds']:.3f} x vanilla; of the processor "
            f"{figures['cpu_seconds'] / base['cpu_seconds']:.3f} x)   "
            f"peak memory {figures['memory'] / 1e9:.2f} GB ({figures['memory'] / base['memory']:.3f} x)"
        )


if __name__ == "__main__":
    main()
