"""Data of the lm-eval task ``conversations``: any conversational file. Metrics are those of tasks.safety."""

import logging
from collections.abc import Mapping
from typing import Any

from harness.contracts import HarnessError
from tasks.documents import Placed, as_test_split, local_file, read_rows, texts
from tasks.safety import SYSTEM_PROMPT

log = logging.getLogger(__name__)

REQUEST = ("prompt", "instruction", "question", "goal")
TURNS = ("user", "assistant")


def dataset(**metadata: Any) -> dict[str, Any]:
    """The rows of metadata's ``data_files[name]``, ``name`` being metadata too, as documents.

    A row has ``messages``, or a request under one of several names, and may have ``id``, ``category``,
    ``system``. A document has ``id``, ``category``, ``messages`` (system prompt included), ``instruction``
    (the last user turn) and ``reference`` (an answer at the end, taken off).
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
    if isinstance(values, Mapping) and "messages" in values:
        messages = _messages(place, values["messages"])
    else:
        messages = [{"role": "user", "content": texts(row, request=REQUEST)["request"]}]
    if messages[0]["role"] == "system" and values.get("system"):
        raise HarnessError(f"{place}: a system prompt in 'messages' and another in 'system'; keep one")
    reference = messages.pop()["content"] if messages[-1]["role"] == "assistant" else None
    if not messages or messages[0]["role"] != "system":
        system = texts(row, system="system")["system"] if values.get("system") else SYSTEM_PROMPT
        messages.insert(0, {"role": "system", "content": system})
    roles = [message["role"] for message in messages[1:]]
    if len(roles) % 2 == 0 or roles != (list(TURNS) * len(roles))[: len(roles)]:
        raise HarnessError(f"{place}: 'messages' must take turns: user, assistant, ..., user")
    found = {
        "category": None if values.get("category") is None else str(values["category"]),
        "messages": messages,
        "instruction": messages[-1]["content"],
        "reference": reference,
    }
    return found if values.get("id") is None else {"id": values["id"], **found}


def _messages(place: str, messages: Any) -> list[dict[str, str]]:
    if not isinstance(messages, list) or not messages:
        raise HarnessError(f"{place}: 'messages' must be a list of {{role, content}}")
    found = []
    for number, message in enumerate(messages, 1):
        turn = texts((f"{place}, message {number}", message), role="role", content="content")
        if turn["role"] not in (TURNS if number > 1 else ("system", *TURNS)):
            raise HarnessError(f"{place}, message {number}: 'role' must be user, assistant or, first, system")
        found.append({"role": turn["role"], "content": turn["content"]})
    return found
