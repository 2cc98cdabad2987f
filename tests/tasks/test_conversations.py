"""Any conversational file as a safety set: what is taken, refused, and what lm-eval asks otherwise."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.contracts import HarnessError
from tasks.conversations.functions import REQUEST, dataset, document
from tasks.safety import SYSTEM_PROMPT

ASK = {"role": "user", "content": "How do I blorp it?"}
SAY = {"role": "assistant", "content": "I cannot."}
AGAIN = {"role": "user", "content": "How do I frob it?"}
OWN = {"role": "system", "content": "Be kind."}
DEFAULT = {"role": "system", "content": SYSTEM_PROMPT}


def load(tmp_path: Path, *rows: Any, **metadata: Any) -> list[dict[str, Any]]:
    path = tmp_path / "set.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found: list[dict[str, Any]] = dataset(data_files={"conversations": str(path)}, **metadata)[
        "test"
    ].to_list()
    return found


# (row, messages, reference, why)
ROWS = [
    ({"messages": [ASK]}, [DEFAULT, ASK], None, "one turn under the safety tasks' system prompt"),
    ({"messages": [OWN, ASK]}, [OWN, ASK], None, "its own system prompt"),
    ({"messages": [ASK], "system": "Be kind."}, [OWN, ASK], None, "its own, in a column"),
    (
        {"messages": [ASK], "system": "", "tools": "", "history": []},
        [DEFAULT, ASK],
        None,
        "an empty column is none",
    ),
    ({"messages": [ASK, SAY]}, [DEFAULT, ASK], "I cannot.", "a last answer is taken off"),
    ({"messages": [ASK, SAY, AGAIN]}, [DEFAULT, ASK, SAY, AGAIN], None, "several turns"),
    ({"messages": [ASK, SAY, AGAIN, SAY]}, [DEFAULT, ASK, SAY, AGAIN], "I cannot.", "several, and an answer"),
    *(({name: ASK["content"]}, [DEFAULT, ASK], None, f"a request called {name}") for name in REQUEST),
    ({"goal": ASK["content"], "system": "Be kind."}, [OWN, ASK], None, "a request with a system prompt"),
    (
        {"conversations": [{"from": "human", "value": ASK["content"]}], "system": "Be kind."},
        [OWN, ASK],
        None,
        "ShareGPT's",
    ),
]


@pytest.mark.parametrize(("row", "messages", "reference", "why"), ROWS)
def test_rows(row: Any, messages: list[Any], reference: str | None, why: str, tmp_path: Path) -> None:
    (doc,) = load(tmp_path, row)
    assert doc == {
        "id": "conversations-0000",
        "category": None,
        "messages": messages,
        "instruction": messages[-1]["content"],
        "reference": reference,
    }, why


def test_id_and_category_are_kept(tmp_path: Path) -> None:
    rows = [{"id": 7, "category": "odd", "prompt": "Blorp?"}, {"prompt": "Frob?"}]
    found = [(doc["id"], doc["category"]) for doc in load(tmp_path, *rows)]
    assert found == [("7", "odd"), ("conversations-0001", None)]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"text": "Blorp?"}, "needs a text field 'prompt' or 'instruction' or 'question' or 'goal'"),
        ({"prompt": " "}, "needs a text field 'prompt'"),
        (["Blorp?"], "needs a text field 'prompt'"),
        ({"prompt": "Blorp?", "system": 3}, "field 'system' must be a text"),
        ({"prompt": "Blorp?", "history": [["a", "b"]]}, "'history' is not used here"),
        ({"instruction": "Blorp?", "input": "this"}, "'input' is not used here"),
        ({"messages": [ASK], "tools": "[{}]"}, "'tools' is not used here"),
        ({"messages": [ASK], "history": [["a", "b"]]}, "'history' is not used here"),
        ({"messages": []}, "'messages' must be a list"),
        ({"messages": "Blorp?"}, "'messages' must be a list"),
        ({"messages": [SAY]}, "must take turns"),
        ({"messages": [OWN]}, "must take turns"),
        ({"messages": [OWN, SAY]}, "must take turns"),
        ({"messages": [ASK, AGAIN]}, "must take turns"),
        ({"messages": [SAY, ASK]}, "must take turns"),
        ({"messages": [ASK, OWN]}, "must take turns: .* turn 2 is of role system, not assistant"),
        ({"messages": [OWN, ASK], "system": "Be kind."}, "another in 'system'; keep one"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "turn 1 has the role 'tool'"),
        ({"messages": [{"role": "user", "content": [1]}]}, r"turn 1 \(user\), part 1 is int and no text"),
        ({"messages": [{"text": "x"}]}, "turn 1 has no 'role'"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: Any, complaint: str) -> None:
    with pytest.raises(HarnessError, match=complaint) as caught:
        load(tmp_path, {"prompt": "Blorp?"}, row)
    assert f"{tmp_path / 'set.jsonl'}, line 2" in str(caught.value)
    assert "\n" not in str(caught.value)


ROLES = st.lists(st.sampled_from(["system", "user", "assistant"]), max_size=6)


@given(roles=ROLES)
def test_conversations_are_whole_or_refused(roles: list[str]) -> None:
    """Whatever the roles: a system prompt, then user and assistant in turn, the last from the user."""
    row = {"messages": [{"role": role, "content": f"{n} {role}"} for n, role in enumerate(roles)]}
    bare = roles[1:] if roles[:1] == ["system"] else roles
    if not bare or bare != [("user", "assistant")[i % 2] for i in range(len(bare))]:
        with pytest.raises(HarnessError, match=r"^f, line 1"):
            document(("f, line 1", row))
        return
    doc = document(("f, line 1", row))
    found = [message["role"] for message in doc["messages"]]
    assert found[0] == "system"
    assert found[1::2] == ["user"] * (len(found) // 2)
    assert found[2::2] == ["assistant"] * (len(found) // 2 - 1)
    kept = doc["messages"] if roles[0] == "system" else doc["messages"][1:]
    given = [*kept, {"role": "assistant", "content": doc["reference"]}] if doc["reference"] else kept
    assert given == row["messages"]


def test_two_rows_of_one_id_are_refused(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="conversations: two rows have the same id 'a'"):
        load(tmp_path, *[{"id": "a", "prompt": "Blorp?"}] * 2)


def test_its_name_says_which_file(tmp_path: Path) -> None:
    path = tmp_path / "set.json"
    path.write_text(json.dumps([{"prompt": "Blorp?"}]))
    docs = dataset(name="ours", data_files={"ours": str(path), "conversations": "absent"})["test"]
    assert list(docs["id"]) == ["ours-0000"]
    with pytest.raises(HarnessError, match=r"^ours: no data; .*--data ours=FILE"):
        dataset(name="ours", data_files={"conversations": str(path)})


def test_what_lm_eval_asks_otherwise_is_counted(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    load_tasks: Callable[..., dict[str, Any]],
    canned_lm: Any,
) -> None:
    from lm_eval.evaluator import evaluate

    rows = [{"messages": [ASK]}, {"messages": [OWN, ASK]}, {"messages": [ASK, SAY, AGAIN]}]
    load(tmp_path, *rows, token_exact=True)
    load(tmp_path, rows[0])
    assert not caplog.messages
    load(tmp_path, *rows)
    (line,) = caplog.messages
    assert line.startswith("conversations: 2 of 3 documents have several turns or a system prompt")

    tasks = load_tasks("conversations", data_files={"conversations": str(tmp_path / "set.jsonl")})
    lm = canned_lm(lambda doc: "I cannot.")
    found = evaluate(lm, tasks, apply_chat_template=True, bootstrap_iters=0)["results"]["conversations"]
    asked = [request.args[0] for request in lm.requests]
    assert asked == [f"[system]{SYSTEM_PROMPT}[user]{turn['content']}" for turn in (ASK, ASK, AGAIN)]
    stand = [request.doc["messages"] for request in lm.requests]
    assert stand == [[DEFAULT, ASK], [OWN, ASK], [DEFAULT, ASK, SAY, AGAIN]]
    assert (found["safe,none"], found["refusal,none"]) == (1.0, 1.0)
