"""Data of the HEx-PHI tasks, from the hub where the user has access, or from the user's own files.

Both data sets are gated: who uses them accepts their licences and keeps them. The formats are the published
ones (RECIPE §5). Metrics are those of tasks.safety.
"""

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.contracts import HarnessError
from harness.row_files import records
from tasks.documents import Hub, Placed, as_test_split, local_file, read_rows, texts
from tasks.prefill import prefilled, refusal_prefixed
from tasks.safety import note_decodings

log = logging.getLogger(__name__)

REQUESTS, ANSWERS = "hexphi_raw", "hexphi_prefill"  # the names that files are given under
HUB_REQUESTS = Hub("LLM-Tuning-Safety/HEx-PHI", "83128b46334b80cc567bd7a2caf7af11c5b0bab7", gated=True)
HUB_ANSWERS = Hub("Unispac/shallow-vs-deep-safety-alignment-dataset", None, gated=True)
ANSWERS_FILE = "data/safety_bench/Harmful-HEx-PHI.jsonl"

# By number: category_1.csv holds the first one's requests.
CATEGORIES = (
    "Illegal Activity",
    "Child Abuse Content",
    "Hate/Harass/Violence",
    "Malware",
    "Physical Harm",
    "Economic Harm",
    "Fraud/Deception",
    "Adult Content",
    "Political Campaigning",
    "Privacy Violation Activity",
    "Tailored Financial Advice",
)
PUBLISHED = 30  # requests in each
HEADERS = ("instruction", "prompt", "text")  # a first row that is no request


def requests(metadata: Mapping[str, Any]) -> list[dict[str, str]]:
    """``id``, ``category`` and ``instruction`` of each request.

    They come from metadata's ``data_files["hexphi_raw"]`` (rows of ``instruction`` and ``category``, or a
    folder of the published category_N.csv), else from the hub.
    """
    path = local_file(REQUESTS, metadata)
    if path is None:
        return _categories(HUB_REQUESTS.files("category_*.csv", REQUESTS))
    if path.is_dir():
        return _categories(path)
    rows = [texts(row, category="category", instruction=("instruction", "prompt")) for row in read_rows(path)]
    return [{"id": f"hexphi-{number:04d}", **row} for number, row in enumerate(rows)]


def _categories(folder: Path) -> list[dict[str, str]]:
    """The requests of category_1.csv to category_11.csv, one a row, with or without a header.

    The hub has withdrawn category 2, so a category may be missing: a line says how many of the 330 there are.
    """
    found = []
    for number, category in enumerate(CATEGORIES, 1):
        path = folder / f"category_{number}.csv"
        if path.is_file():
            found += [
                {"id": f"hexphi-{number:02d}-{place:02d}", "category": category, "instruction": request}
                for place, request in enumerate(_column(path), 1)
            ]
    if not found:
        raise HarnessError(f"{folder}: no requests; needs category_1.csv to category_{len(CATEGORIES)}.csv")
    counts = Counter(row["category"] for row in found)
    differing = [f"{name}: {counts[name]}" for name in CATEGORIES if counts[name] != PUBLISHED]
    if differing:
        published = PUBLISHED * len(CATEGORIES)
        log.warning(
            "hexphi: %d requests of the published %d (%s)", len(found), published, ", ".join(differing)
        )
    return found


def _column(path: Path) -> list[str]:
    """The texts of a CSV file of one column; a comma outside quotes belongs to its text."""
    rows = [",".join(row).strip() for row in records(path)]
    return [row for number, row in enumerate(rows) if row and not (number == 0 and row.lower() in HEADERS)]


def answers(metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    """``id``, ``category``, ``instruction`` and ``harmful_answer`` of each request.

    They come from metadata's ``data_files["hexphi_prefill"]`` (JSON lines, each a list of a user's and an
    assistant's message), else from the hub. A request's category is that of ``requests``, where their file is
    given or both come from the hub; None for one that is not there.
    """
    path = local_file(ANSWERS, metadata)
    at_hand = path is None or local_file(REQUESTS, metadata) is not None
    if path is None:
        path = HUB_ANSWERS.files(ANSWERS_FILE, ANSWERS) / ANSWERS_FILE
    known = {row["instruction"]: row["category"] for row in requests(metadata)} if at_hand else {}
    return [
        {
            "id": f"hexphi-{number:04d}",
            "category": known.get(instruction),
            "instruction": instruction,
            "harmful_answer": answer,
        }
        for number, (instruction, answer) in enumerate(map(_pair, read_rows(path)))
    ]


def _pair(row: Placed) -> tuple[str, str]:
    place, messages = row
    try:
        user, assistant = messages
        if (user["role"], assistant["role"]) != ("user", "assistant"):
            raise ValueError
        found = (user["content"], assistant["content"])
    except (ValueError, KeyError, TypeError) as error:
        raise HarnessError(f"{place}: needs a list of a user's and an assistant's message") from error
    if not all(isinstance(text, str) and text.strip() for text in found):
        raise HarnessError(f"{place}: needs a text 'content' in both messages")
    return found


def raw_dataset(**metadata: Any) -> dict[str, Any]:
    """The requests, asked plainly."""
    return as_test_split(requests(metadata), REQUESTS)


def prefill_dataset(**metadata: Any) -> dict[str, Any]:
    """The requests with ``prefill_ids`` and ``prefill``: a harmful answer's first k tokens."""
    return as_test_split(prefilled(answers(metadata), ANSWERS, metadata), ANSWERS)


def refusal_prefix_dataset(**metadata: Any) -> dict[str, Any]:
    """The requests with ``prefill_ids`` and ``prefill``: a refusal's opening, the same for all."""
    task = "hexphi_refusal_prefix"
    return as_test_split(refusal_prefixed(requests(metadata), task, metadata), task)


def sampled_dataset(**metadata: Any) -> dict[str, Any]:
    """The requests, each answered under several ``decodings``."""
    note_decodings("hexphi_sampled", metadata)
    return raw_dataset(**metadata)
