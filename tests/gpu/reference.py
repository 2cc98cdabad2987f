"""The losses that a CPU gives in float32 for each training of ``checks.py``, in reference.json.

    PYTHONPATH=.:tests python -m gpu.reference --write

What a GPU gives is compared with these (``checks.py`` says how closely), and tests/gpu/test_checks.py holds
the CPU itself to them.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from gpu import small

FILE = Path(__file__).with_name("reference.json")
NAMES = (
    *(f"{family} {tuning}" for family in small.FAMILIES for tuning in small.TUNINGS),
    *small.METHODS,
)


def losses(name: str, place: small.Place) -> list[float]:
    """Of the training called ``name``, in float32 and length-grouped."""
    family, _, tuning = name.partition(" ")
    if tuning:
        record = small.train(place, family, **small.TUNINGS[tuning])
    else:
        record = small.train(place, method=name)
    return [float(loss) for loss in record["losses"]]


def read() -> dict[str, list[float]]:
    found: dict[str, list[float]] = json.loads(FILE.read_text(encoding="utf-8"))["losses"]
    return found


def write() -> None:
    import torch
    import transformers

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        found = {name: losses(name, small.Place("cpu", Path(scratch))) for name in NAMES}
    made_by = {"torch": torch.__version__, "transformers": transformers.__version__}
    rounded = {name: [round(loss, 6) for loss in values] for name, values in found.items()}
    lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(values)}" for name, values in rounded.items())
    FILE.write_text(
        f'{{\n  "made by": {json.dumps(made_by)},\n  "losses": {{\n{lines}\n  }}\n}}\n', encoding="utf-8"
    )


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(f"{__doc__}")
    write()
