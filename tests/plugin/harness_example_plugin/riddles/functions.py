"""The riddles that are asked, and how an answer is scored."""

from typing import Any


def dataset(**metadata: Any) -> dict[str, Any]:
    import datasets

    rows = [{"id": "riddle-0", "riddle": "What has hands and cannot clap?", "solution": "clock"}]
    return {"test": datasets.Dataset.from_list(rows)}


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    return {"solved": float(doc["solution"] in results[0].lower())}
