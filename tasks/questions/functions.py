"""Data and metrics of the lm-eval tasks ``questions-exact``, ``-contains``, ``-regex`` and ``-rouge1``:
questions and answers of the user's own."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import regex as expressions  # as the standard library's, and it can be given a limit of time

from harness.contracts import HarnessError
from harness.rows import CONTEXT, SYSTEM, check_changing, own_system
from harness.text import shortened
from harness.turns import absent
from tasks.documents import Placed, as_test_split, local_file, read_rows, texts
from tasks.rouge import rouge1 as rouge

log = logging.getLogger(__name__)

SYSTEM_PROMPT = "You are a helpful assistant."
QUESTION = ("prompt", "question", "instruction")
INPUT = "input"  # the question, where there is none under another name
UNASKED = (CONTEXT, "choices", "options")  # what belongs to a question, and is not shown
REFERENCE = ("answer", "reference", "target", "completion", "output", "answers", "references")
LONGEST_S = 5.0  # of one expression on one answer: some never end


def dataset(metric: str, **metadata: Any) -> dict[str, Any]:
    """The rows of metadata's ``data_files[name]``, ``name`` being metadata too, as documents.

    A row has a question and its answer, each under one of several names, the answer a text or a list of texts
    that are all right; it may have ``id``, ``category`` and ``system``. A document has ``id``, ``category``,
    ``messages``, ``instruction`` and ``references``. Raises HarnessError naming file and line.
    """
    name = str(metadata.get("name", "questions"))
    path = local_file(name, metadata)
    if path is None:
        raise HarnessError(
            f"{name}: no data; give a file of questions and answers: --data {name}=FILE "
            "(lm-eval: --metadata, see tasks/LM_EVAL.md)"
        )
    documents = [document(row, metric) for row in read_rows(path)]
    differing = sum(doc["messages"][0]["content"] != SYSTEM_PROMPT for doc in documents)
    if differing and not metadata.get("token_exact"):
        log.warning(
            "%s: %d of %d documents have a system prompt of their own, which lm-eval does not show",
            name,
            differing,
            len(documents),
        )
    return as_test_split(documents, name)


def exact_dataset(**metadata: Any) -> dict[str, Any]:
    return dataset("exact", **metadata)


def contains_dataset(**metadata: Any) -> dict[str, Any]:
    return dataset("contains", **metadata)


def regex_dataset(**metadata: Any) -> dict[str, Any]:
    return dataset("regex", **metadata)


def rouge1_dataset(**metadata: Any) -> dict[str, Any]:
    return dataset("rouge1", **metadata)


def document(row: Placed, metric: str) -> dict[str, Any]:
    """A row as a document. Raises HarnessError naming its place."""
    place, values = row
    values = values if isinstance(values, Mapping) else {}
    bare = {name: value for name, value in values.items() if name not in SYSTEM}
    if all(absent(bare.get(name)) for name in QUESTION):
        bare["question"] = bare.pop(INPUT, None)
    check_changing(bare, place, UNASKED)
    question = texts((place, bare), question=QUESTION)["question"]
    messages = [
        {"role": "system", "content": own_system(values, place) or SYSTEM_PROMPT},
        {"role": "user", "content": question},
    ]
    found = {
        "category": None if values.get("category") is None else str(values["category"]),
        "messages": messages,
        "instruction": question,
        "references": references(values, place, metric),
    }
    return found if values.get("id") is None else {"id": values["id"], **found}


def references(values: Mapping[str, Any], place: str, metric: str) -> list[str]:
    """A row's right answers. Raises HarnessError where there are none, and for an expression that is none."""
    given = next((values[name] for name in REFERENCE if values.get(name) is not None), None)
    found = list(given) if isinstance(given, (list, tuple)) else [given]
    spelled = [str(one) if type(one) is int else one for one in found]
    many = [one for one in spelled if isinstance(one, str) and one.strip()]
    if not many or len(many) < len(found):
        hint = " (in quotes: is it 4 or 4.0?)" if any(isinstance(one, float) for one in found) else ""
        raise HarnessError(
            f"{place}: needs an answer, a text or a list of texts, under {_either(REFERENCE)}{hint}"
        )
    if metric == "regex":
        for one in many:
            try:
                compiled(one)
            except expressions.error as error:
                why = shortened(error, 100)
                raise HarnessError(f"{place}: its answer is no regular expression ({why})") from error
    return many


def _either(names: Sequence[str]) -> str:
    return " or ".join(f"'{name}'" for name in names)


@cache
def compiled(pattern: str) -> Any:
    return expressions.compile(pattern)


def exact(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether the answer is a reference; white space around both does not count."""
    return {"exact": float(results[0].strip() in {one.strip() for one in doc["references"]})}


def contains(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether a reference stands in the answer, letter by letter."""
    return {"contains": float(any(one.strip() in results[0] for one in doc["references"]))}


def regex(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether a reference, an expression, is found in the answer. Raises HarnessError for one that does not
    come to an end."""
    try:
        found = any(compiled(one).search(results[0], timeout=LONGEST_S) for one in doc["references"])
    except TimeoutError as error:
        raise HarnessError(
            f"document '{doc['id']}': its regular expression is still searching an answer after "
            f"{LONGEST_S:g} seconds; write it without repeats inside repeats"
        ) from error
    return {"regex": float(found)}


def rouge1(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """ROUGE-1 of the reference that the answer is nearest to; nothing where ROUGE-1 can read none of them."""
    return best(rouge(one, results[0]) for one in doc["references"])


def best(scores: Iterable[float | None]) -> dict[str, float]:
    known = [score for score in scores if score is not None]
    return {"rouge1": max(known)} if known else {}
