"""The Batch API: half the price, within a day. Submit, leave, come back in another process, collect.

What was submitted is remembered beside the verdicts before it is sent, so that a kill at any point costs no
second batch: a batch that was made and not written down is found again by its label.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import crash
from harness.contracts import Exchange, HarnessError, JudgeContext, JudgePendingError, Verdict
from harness.reading import json_value
from judges import prices

if TYPE_CHECKING:
    from judges.openai_api import OpenAIJudge

ENDPOINT = "/v1/chat/completions"
LABEL = "safetune_harness"
RUNNING = ("validating", "in_progress", "finalizing", "cancelling")


def judge(judge: OpenAIJudge, exchanges: Sequence[Exchange], context: JudgeContext) -> Iterator[Verdict]:
    """Verdicts of a finished batch. Raises JudgePendingError where it is submitted or still at work, and
    HarnessError where it failed as a whole."""
    import openai

    if not exchanges:
        return
    if context.folder is None:
        raise HarnessError(f"judge '{judge.name}': no folder to remember a batch in")
    memory = context.folder / "batch.json"
    try:
        with openai.OpenAI(**judge.connection()) as client:
            batch = _known(client, memory)
            if batch is None:
                batch = _submit(judge, client, exchanges, context, memory)
                raise JudgePendingError(f"batch {batch.id} of {len(exchanges):,} exchanges is submitted")
            if batch.status in RUNNING:
                done = f" ({batch.request_counts.completed:,} done)" if batch.request_counts else ""
                raise JudgePendingError(
                    f"batch {batch.id} of {len(exchanges):,} exchanges is {batch.status}{done}"
                )
            if batch.status == "failed":
                _forget(memory)
                codes = (
                    ", ".join(str(error.code) for error in (batch.errors.data or [])) if batch.errors else ""
                )
                raise HarnessError(
                    f"judge '{judge.name}': batch {batch.id} failed ({codes or 'no reason given'})"
                )
            found = _results(client, batch)
    except openai.APIConnectionError as error:
        raise HarnessError(f"judge '{judge.name}': no answer from the Batch API; try again later") from error
    except openai.APIStatusError as error:
        if error.status_code == 404:
            raise HarnessError(
                f"judge '{judge.name}': the server has no Batch API or no such batch; use --judge-mode direct"
            ) from error
        raise judge.refused(error) from error
    for exchange in exchanges:
        yield _verdict(judge, exchange, context, found.get(exchange.id), batch.status)
    _forget(memory)


def _known(client: Any, memory: Path) -> Any:
    """The batch that was submitted for these exchanges, or None."""
    if not memory.is_file():
        return None
    try:
        kept = json_value(memory.read_text(encoding="utf-8"))
        label = kept["label"]
    except (ValueError, KeyError, TypeError):
        raise HarnessError(
            f"{memory}: damaged; look for the batch at the server, and remove the file"
        ) from None
    if kept.get("id"):
        return client.batches.retrieve(kept["id"])
    for batch in client.batches.list(limit=100):  # submitted, and killed before it could be written down
        if (batch.metadata or {}).get(LABEL) == label:
            _remember(memory, label, batch.id)
            return batch
    return None


def _submit(
    judge: OpenAIJudge, client: Any, exchanges: Sequence[Exchange], context: JudgeContext, memory: Path
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
    file = client.files.create(file=("exchanges.jsonl", content), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h", metadata={LABEL: label}
    )
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
        for line in client.files.content(file).text.split("\n") if file else ():
            try:
                row = json_value(line)
                found[str(row["custom_id"])] = row
            except (ValueError, KeyError, TypeError):
                continue
    return found


def _verdict(
    judge: OpenAIJudge, exchange: Exchange, context: JudgeContext, row: dict[str, Any] | None, status: str
) -> Verdict:
    from openai.types.chat import ChatCompletion

    from judges.openai_api import Spent

    if row is None:
        return judge.unjudged(exchange, context, f"the batch ({status}) holds no reply to it")
    spent = Spent()
    price = prices.batched(judge.price)
    try:
        reply = row.get("response") or {}
        if row.get("error") or reply.get("status_code") != 200:
            code = (row.get("error") or {}).get("code") or f"HTTP {reply.get('status_code')}"
            return judge.unjudged(exchange, context, f"the batch's request failed ({code})")
        completion = ChatCompletion.model_validate(reply["body"])
        if not completion.choices:
            return judge.unjudged(exchange, context, "the server's reply holds no choice")
        context.budget.spent_usd += spent.add(completion.usage, price)
        return judge.read(completion, exchange, context, spent, price)
    except (ValueError, KeyError, TypeError, AttributeError):
        return judge.unjudged(exchange, context, "the server's reply is no chat completion")
