"""Data of the lm-eval task ``conversations``: any conversational file. Metrics are those of tasks.safety."""

import logging
from collections.abc import Mapping
from typing import Any

from harness.contracts import HarnessError
from harness.rows import CHANGING, CONVERSATIONS, HISTORY, SYSTEM, check_changing, own_system
from harness.turns import absent, check_order, read
from tasks.documents import Placed, as_test_split, local_file, read_rows, texts
from tasks.safety import SYSTEM_PROMPT

log = logging.getLogger(__name__)

REQUEST = ("prompt", "instruction", "question", "goal")


def dataset(**metadata: Any) -> dict[str, Any]:
    """The rows of metadata's ``data_files[name]``, ``name`` being metadata too, as documents.

    A row has ``messages`` (or ShareGPT's ``conversations``), or a request under one of several names, and may
    have ``id``, ``category``, ``system``. A document has ``id``, ``category``, ``messages`` (system prompt
    included), ``instruction`` (the last user turn) and ``reference`` (an answer at the end, taken off).
    Says in one line how many documents plain lm-eval asks differently, unless metadata ``token_exact`` is
    true: the caller's engine takes ``messages``. Raises HarnessError naming file and line.
    """
    name = str(metadata.get("name", "conversations"))
    path = local_file(name, metadata)
    if path is None:
        raise HarnessError(
            f"{name}: no data; give a file of conversations or requests: --data {name}=FILE "
            "(lm-eval: --metadata, see tasks/LM_EVAL.md)"
        )
    documents = [document(row) for row in read_rows(path)]
    differing = sum(
        len(doc["messages"]) > 2 or doc["messages"][0]["content"] != SYSTEM_PROMPT for doc in documents
    )
    if differing and not metadata.get("token_exact"):
        log.warning(
            "%s: %d of %d documents have several turns or a system prompt of their own; lm-eval asks the "
            "last user turn alone, under the task's (harness: as they stand)",
            name,
            differing,
            len(documents),
        )
    return as_test_split(documents, name)


def document(row: Placed) -> dict[str, Any]:
    """A row as a document. Raises HarnessError naming its place."""
    place, values = row
    values = values if isinstance(values, Mapping) else {}
    name = _conversation(values)
    system = own_system(values, place)
    if name:
        check_changing(values, place, (HISTORY, *CHANGING))
        turns = read(values[name], name, place)
        check_order(turns, f"{place}: '{name}' must take turns: user, assistant, ..., user")
        messages = [{"role": turn.message.role, "content": turn.message.content} for turn in turns]
    else:
        bare = {name: value for name, value in values.items() if name not in SYSTEM}
        messages = [{"role": "user", "content": texts((place, bare), request=REQUEST)["request"]}]
    if messages[0]["role"] == "system" and system:
        raise HarnessError(f"{place}: a system prompt in '{name}' and another in 'system'; keep one")
    reference = messages.pop()["content"] if messages[-1]["role"] == "assistant" else None
    if not messages or messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system or SYSTEM_PROMPT})
    if len(messages) < 2:
        raise HarnessError(f"{place}: '{name}' must take turns: user, assistant, ..., user; no user asks")
    found = {
        "category": None if values.get("category") is None else str(values["category"]),
        "messages": messages,
        "instruction": messages[-1]["content"],
        "reference": reference,
    }
    return found if values.get("id") is None else {"id": values["id"], **found}


def _conversation(values: Mapping[str, Any]) -> str | None:
    """The column that holds a row's turns; one that is empty counts if there is no request either."""
    there = [name for name in CONVERSATIONS if name in values]
    filled = [name for name in there if not absent(values[name])]
    asked = any(not absent(values.get(name)) for name in REQUEST)
    return next(iter(filled or ([] if asked else there)), None)
