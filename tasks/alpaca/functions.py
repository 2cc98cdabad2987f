"""Data and metrics of the lm-eval task ``alpaca``."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from harness.finish import has_text
from harness.keywords import refuses
from tasks.documents import Hub, Placed, as_test_split, local_file, read_rows, texts
from tasks.rouge import scored

HUB = Hub("tatsu-lab/alpaca", "dce01c9b08f87459cf36a430d809084718273017")
TEST_ROWS = 200  # the hub's last: there is no published test split


def hub_rows(*, test: bool) -> list[Placed]:
    """The hub's rows: the last 200 to be asked, those before them to be trained on."""
    rows = list(HUB.load("train", "alpaca", "" if test else "--train-data FILE"))
    return rows[-TEST_ROWS:] if test else rows[:-TEST_ROWS]


def turns(rows: Iterable[Placed]) -> Iterator[dict[str, str]]:
    """``prompt``, the instruction with the row's ``input`` behind it, and ``completion``."""
    for place, values in rows:
        given = values.get("input")
        found = texts((place, {**values, "input": None}), prompt="instruction", completion="output")
        if isinstance(given, str) and given.strip():
            found["prompt"] = f"{found['prompt']}\n\n{given}"
        yield found


def dataset(**metadata: Any) -> dict[str, Any]:
    """The last 200 rows of the hub, or all of metadata's ``{"data_files": {"alpaca": FILE}}``."""
    path = local_file("alpaca", metadata)
    rows = hub_rows(test=True) if path is None else read_rows(path)
    return as_test_split(turns(rows), "alpaca")


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """``rouge1``, the F-measure against the row's answer (none where ROUGE-1 cannot read that), ``answered``
    (something, and no refusal phrase) and ``refusal``, in {0, 1}."""
    refused = refuses(results[0])
    return {
        **scored(doc["completion"], results[0]),
        "answered": float(has_text(results[0]) and not refused),
        "refusal": float(refused),
    }
