"""The Batch API: half the price, within a day. Submit, leave, come back in another process, collect.

What was submitted is remembered beside the verdicts before it is sent, so that a kill at any point costs no
second batch: a batch that was made and not written down is found again by its label.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from harness.contracts import (
    REFUSED_TO_JUDGE,
    Exchange,
    HarnessError,
    JudgeContext,
    JudgePendingError,
    JudgeSettings,
    Verdict,
)
from harness.reading import json_value
from harness.servers import http_client, server_errors
from harness.storage import crash
from harness.text import is_name, is_word, shown_words
from judges import prices, replies
from judges.chat_server import ChatServer
from judges.shape import Shape
from judges.spending import TOO_LONG, Spent

ENDPOINT = "/v1/chat/completions"
LABEL = "safetune_harness"
RUNNING = ("validating", "in_progress", "finalizing", "cancelling")
ENDED = ("completed", "expired", "cancelled")
RETRIES = 3
FILE_S = 600.0  # for a file of exchanges or replies to be sent or fetched
MOST_BYTES = (
    512 * 2**20
)  # of a file of replies: 50,000, the most that OpenAI takes in a batch, of 10 KiB each
MOST_PAGES = 20  # of an account's batches, a hundred each, the latest first, that are looked through


class ChatModelJudge(Protocol):
    """What a judge that is a chat model does for each of its requests, sent one by one or as a batch."""

    name: str
    settings: JudgeSettings
    price: prices.Price | None
    shape: Shape
    server: ChatServer

    def body(self, exchange: Exchange, context: JudgeContext) -> dict[str, Any]: ...

    def most_usd(self, body: dict[str, Any]) -> float: ...

    def read(
        self,
        completion: Any,
        exchange: Exchange,
        context: JudgeContext,
        spent: Spent,
        price: prices.Price | None,
    ) -> Verdict: ...

    def unjudged(self, exchange: Exchange, context: JudgeContext, reason: str) -> Verdict: ...


def judge(judge: ChatModelJudge, exchanges: Sequence[Exchange], context: JudgeContext) -> Iterator[Verdict]:
    """Verdicts of a finished batch. Raises JudgePendingError where it is submitted or still at work, and
    HarnessError where it failed as a whole."""
    if not exchanges:
        return
    if context.folder is None:
        raise HarnessError(f"judge '{judge.name}': no folder to remember a batch in")
    memory = context.folder / "batch.json"
    with (
        _in_one_line(judge),
        judge.server.client(judge.settings.timeout_s, RETRIES, MOST_BYTES) as client,
    ):
        batch = _finished(judge, client, exchanges, context, memory)
        found = _results(client, batch)
    for exchange in exchanges:
        yield _verdict(judge, exchange, context, found.get(exchange.id), batch.status)
    _forget(memory)


def _finished(
    judge: ChatModelJudge, client: Any, exchanges: Sequence[Exchange], context: JudgeContext, memory: Path
) -> Any:
    """The batch of these exchanges, once it has ended; it is submitted where there is none."""
    batch = _known(client, memory)
    if batch is None:
        batch = _submit(judge, client, exchanges, context, memory)
        raise JudgePendingError(f"batch {batch.id} of {len(exchanges):,} exchanges is submitted")
    if batch.status == "failed":
        told = (batch.errors.data or ()) if batch.errors else ()
        codes = shown_words(error.code for error in told) or "no reason given"
        _forget(memory)
        raise HarnessError(f"judge '{judge.name}': batch {batch.id} failed ({codes})")
    if batch.status not in ENDED:
        raise JudgePendingError(f"batch {batch.id} of {len(exchanges):,} exchanges is {_progress(batch)}")
    return batch


@contextlib.contextmanager
def _in_one_line(judge: ChatModelJudge) -> Iterator[None]:
    """Whatever fails on the way to the Batch API and back as a HarnessError."""
    import openai

    try:
        yield
    except openai.APIConnectionError as error:
        why = http_client.trouble(error, judge.server.url)
        raise HarnessError(
            f"judge '{judge.name}': no answer from the Batch API; try again later ({why})"
        ) from error
    except openai.APIStatusError as error:
        if error.status_code == 404:
            raise HarnessError(
                f"judge '{judge.name}': the server has no Batch API or no such batch; use --judge-mode direct"
            ) from error
        raise judge.server.refused(error) from error
    except http_client.TooLargeError as error:
        raise HarnessError(
            f"judge '{judge.name}': the Batch API sends {error}; judge fewer at once"
        ) from error
    except (openai.APIError, *http_client.ODD_SHAPE) as error:
        raise HarnessError(
            f"judge '{judge.name}': what the server sends is no batch; use --judge-mode direct"
        ) from error


def _progress(batch: Any) -> str:
    """How far a batch is, in words that may be shown."""
    state = batch.status if batch.status in RUNNING else "in a state that is not known here"
    done = getattr(batch.request_counts, "completed", None)
    return f"{state} ({done:,} done)" if isinstance(done, int) else state


def _known(client: Any, memory: Path) -> Any:
    """The batch that was submitted for these exchanges, or None."""
    if not memory.is_file():
        return None
    try:
        kept = json_value(memory.read_text(encoding="utf-8"))
        label, name = kept["label"], kept["id"]
    except (ValueError, KeyError, TypeError):
        name = label = None
    if not is_word(label) or not (name is None or _is_id(name)):
        raise HarnessError(f"{memory}: damaged; look for the batch at the server, and remove the file")
    if name:
        batch = _checked(client.batches.retrieve(name))
        if not isinstance(batch.metadata, dict) or batch.metadata.get(LABEL) != label:
            raise HarnessError(f"{memory}: batch {name} is not the one that was submitted; remove the file")
        return batch
    # Submitted, and killed before it could be written down.
    for page in itertools.islice(client.batches.list(limit=100).iter_pages(), MOST_PAGES):
        for batch in page.data or ():
            if isinstance(batch.metadata, dict) and batch.metadata.get(LABEL) == label:
                _remember(memory, label, _checked(batch).id)
                return batch
    return None


def _checked(batch: Any) -> Any:
    """A batch whose ids are names: they are shown, kept, and become part of a URL. Raises ValueError."""
    files = (batch.output_file_id, batch.error_file_id)
    if not _is_id(batch.id) or not all(file is None or _is_id(file) for file in files):
        raise ValueError("no usable id")
    return batch


def _is_id(value: Any) -> bool:
    return isinstance(value, str) and is_name(value)


def _submit(
    judge: ChatModelJudge, client: Any, exchanges: Sequence[Exchange], context: JudgeContext, memory: Path
) -> Any:
    bodies = {exchange.id: judge.body(exchange, context) for exchange in exchanges}
    most = prices.BATCH_SHARE * sum(map(judge.most_usd, bodies.values()))
    if not context.budget.reserve(most):
        raise HarnessError(
            f"judge '{judge.name}': the batch may cost {most:.2f} USD, more than --max-cost leaves"
        )
    lines = [
        json.dumps({"custom_id": name, "method": "POST", "url": ENDPOINT, "body": body}, ensure_ascii=False)
        for name, body in bodies.items()
    ]
    content = ("\n".join(lines) + "\n").encode()
    label = sha256(content + str(context.folder).encode()).hexdigest()[:48]
    _remember(memory, label, None)
    file = client.files.create(file=("exchanges.jsonl", content), purpose="batch", timeout=FILE_S)
    batch = client.batches.create(
        input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h", metadata={LABEL: label}
    )
    _checked(batch)
    _remember(memory, label, batch.id)
    return batch


def _remember(memory: Path, label: str, batch: str | None) -> None:
    memory.parent.mkdir(parents=True, exist_ok=True)
    part = memory.with_suffix(".partial")
    part.write_text(json.dumps({"label": label, "id": batch}), encoding="utf-8")
    crash.point("batch.written", memory)
    os.replace(part, memory)
    crash.point("batch.remembered", memory)


def _forget(memory: Path) -> None:
    memory.unlink()
    crash.point("batch.forgotten", memory)


def _results(client: Any, batch: Any) -> dict[str, dict[str, Any]]:
    """Each line of the batch's output and error files, by exchange id; what cannot be read is missing."""
    found: dict[str, dict[str, Any]] = {}
    for file in (batch.output_file_id, batch.error_file_id):
        for line in client.files.content(file, timeout=FILE_S).text.split("\n") if file else ():
            try:
                row = json_value(line)
                found[str(row["custom_id"])] = row
            except (ValueError, KeyError, TypeError):
                continue
    return found


def _verdict(
    judge: ChatModelJudge, exchange: Exchange, context: JudgeContext, row: dict[str, Any] | None, status: str
) -> Verdict:
    if row is None:
        return judge.unjudged(exchange, context, f"the batch ({status}) holds no reply to it")
    spent = Spent()
    price = prices.batched(judge.price)
    try:
        reply = row.get("response") or {}
        if row.get("error") or reply.get("status_code") != 200:
            return judge.unjudged(exchange, context, _failure(judge, row, reply))
        completion = reply["body"]
        if not isinstance(completion, dict) or not isinstance(completion.get("choices"), list):
            raise ValueError("no chat completion")
        if replies.choice_of(completion) is None:
            return judge.unjudged(exchange, context, "the server's reply holds no choice")
        context.budget.spent_usd += spent.add(completion.get("usage"), price)
        return judge.read(completion, exchange, context, spent, price)
    except http_client.ODD_SHAPE:
        return judge.unjudged(exchange, context, "the server's reply is no chat completion")


def _failure(judge: ChatModelJudge, row: dict[str, Any], reply: dict[str, Any]) -> str:
    """Why a request of a batch has no reply."""
    number, told = reply.get("status_code"), row.get("error") or {}
    against = server_errors.complaint(number if isinstance(number, int) else 500, [told, reply.get("body")])
    simpler = judge.shape.without(against)
    if against.too_long:
        return TOO_LONG
    if against.filtered:
        return REFUSED_TO_JUDGE
    if simpler:
        return f"the judge takes {simpler[1].partition(':')[0]}: use --judge-mode direct"
    http = f"HTTP {number}" if isinstance(number, int) else "no status"
    return f"the batch's request failed ({shown_words([told.get('code')]) or http})"
