"""Fuzzing with coverage (atheris, ``make fuzz``): without a name it lists the targets, with one it runs it.

    python tests/fuzz/fuzz.py recipe -max_total_time=60

Further options are libFuzzer's. It begins with a good input and those that have broken readers, keeps what it
finds in .fuzz/NAME, and leaves an input that breaks the target there as crash-*.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
os.environ["HF_HUB_OFFLINE"] = "1"
with atheris.instrument_imports(include=["harness", "judges", "tasks", "yaml"]):
    import fuzz_targets


def main() -> None:
    if len(sys.argv) == 1:
        print("\n".join(fuzz_targets.TARGETS))
        return
    name = sys.argv.pop(1)
    logging.disable()
    found = Path(".fuzz") / name
    found.mkdir(parents=True, exist_ok=True)
    for place, content in enumerate([fuzz_targets.good()[name], *fuzz_targets.HOSTILE]):
        if len(content) < 10_000:  # the largest are for the property tests
            (found / f"seed-{place}").write_bytes(content)
    options = [f"-artifact_prefix={found}/", "-max_len=20000", "-timeout=20", "-rss_limit_mb=4096"]
    atheris.Setup(
        [sys.argv[0], str(found), *options, *sys.argv[1:]], lambda data: fuzz_targets.run(name, data)
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
