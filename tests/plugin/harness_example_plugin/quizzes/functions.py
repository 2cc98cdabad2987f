"""The questions of a quiz; there is nothing to train on."""

from typing import Any


def dataset(**metadata: Any) -> dict[str, Any]:
    import datasets

    rows = [{"id": "quiz-0", "question": "How many legs has a spider?", "answer": "8"}]
    return {"test": datasets.Dataset.from_list(rows)}


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    return {"right": float(doc["answer"] in results[0])}
