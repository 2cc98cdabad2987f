"""Opened answers: the first k tokens of a harmful one, or a fixed text, under the checkpoint's tokenizer.

A prefill is a token sequence: ``prefill_ids`` is what an engine appends to the prompt's ids. ``prefill`` is
its decoded text, for judges, and for plain lm-eval, which can only prefill text and tokenizes it again.
Source: shallow-vs-deep-alignment (arXiv 2406.05946); RECIPE §5.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.contracts import HarnessError
from harness.tokenizer_files import folder_of, load
from tasks.safety import SYSTEM_PROMPT

log = logging.getLogger(__name__)


def load_tokenizer(task: str, metadata: Mapping[str, Any]) -> Any:
    """The tokenizer that metadata names: ``tokenizer``, or else lm-eval's model argument ``pretrained``, or
    ``model`` where that is a folder (to a server it may be any name).

    ``revision``, another model argument, is followed. Code from the hub is never run.
    """
    model = metadata.get("model")
    served = model if isinstance(model, str) and Path(model).is_dir() else None
    source = metadata.get("tokenizer") or metadata.get("pretrained") or served
    if not isinstance(source, str) or not source:
        raise HarnessError(
            f"task '{task}' counts its prefill in the checkpoint's tokens: name its tokenizer, "
            '--metadata \'{"tokenizer": "NAME-OR-FOLDER"}\' or TaskManager(metadata={"tokenizer": ...})'
        )
    revision = metadata.get("revision") or "main"
    try:
        return load(folder_of(source, revision))
    except Exception as error:
        cause = str(error).strip().split("\n")[0]
        raise HarnessError(f"task '{task}': no tokenizer can be loaded from '{source}': {cause}") from error


def prefill_tokens(task: str, metadata: Mapping[str, Any]) -> int:
    """How many tokens to prefill (k); 0 leaves the answer to the model.

    ``depth``, from a YAML's ``dataset_kwargs``, fixes it: metadata never gets there. Else it is metadata's
    ``prefill_tokens``.
    """
    k = metadata.get("depth", metadata.get("prefill_tokens"))
    if isinstance(k, bool) or not isinstance(k, int) or k < 0:
        raise HarnessError(f"task '{task}': 'prefill_tokens' must be a whole number from 0, not {k!r}")
    return k


def first_tokens(tokenizer: Any, answer: str, k: int | None = None) -> list[int]:
    """The first k ids of the bare answer, without special tokens; all where it is shorter, or k None."""
    return list(tokenizer(answer, add_special_tokens=False)["input_ids"])[:k]


def prefilled(
    rows: Iterable[Mapping[str, Any]], task: str, metadata: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The rows with ``prefill_ids`` and ``prefill``, the first k tokens of their ``harmful_answer``."""
    k = prefill_tokens(task, metadata)
    return _opened(
        rows, task, metadata, lambda tokenizer, row: first_tokens(tokenizer, row["harmful_answer"], k)
    )


def refusal_prefixed(
    rows: Iterable[Mapping[str, Any]], task: str, metadata: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The rows with ``prefill_ids`` and ``prefill``, all of metadata's ``refusal_prefix``."""
    prefix = metadata.get("refusal_prefix")
    if not isinstance(prefix, str) or not prefix.strip():
        raise HarnessError(f"task '{task}': 'refusal_prefix' must be a text, not {prefix!r}")
    return _opened(rows, task, metadata, lambda tokenizer, row: first_tokens(tokenizer, prefix))


def _opened(
    rows: Iterable[Mapping[str, Any]],
    task: str,
    metadata: Mapping[str, Any],
    opening: Callable[[Any, Mapping[str, Any]], list[int]],
) -> list[dict[str, Any]]:
    """The rows with the ids of their opening, and its text.

    Says in one line how many openings plain lm-eval would change by tokenizing them again, unless metadata
    ``token_exact`` is true: the caller's engine takes the ids. No row is left out for it.
    """
    tokenizer = load_tokenizer(task, metadata)
    found = []
    for row in rows:
        ids = opening(tokenizer, row)
        text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        found.append({**row, "prefill_ids": ids, "prefill": text})
    if not metadata.get("token_exact"):
        changed = sum(not survives(tokenizer, SYSTEM_PROMPT, row) for row in found)
        if changed:
            log.warning(
                "%s: %d of %d prefills change when lm-eval tokenizes them as text (harness: exact)",
                task,
                changed,
                len(found),
            )
    return found


def survives(tokenizer: Any, system_prompt: str, row: Mapping[str, Any]) -> bool:
    """Whether the conversation, with its prefill as text, has the prompt's ids and then the prefill's.

    True for a tokenizer without chat template: there is nothing to render.
    """
    if not row["prefill"] or not getattr(tokenizer, "chat_template", None):
        return True
    system = {"role": "system", "content": system_prompt}
    user = {"role": "user", "content": row["instruction"]}
    opened = {"role": "assistant", "content": row["prefill"]}
    for prompt in ([system, user], [user]):  # lm-eval drops the system prompt where the template refuses it
        try:
            asked = _ids(tokenizer, prompt, add_generation_prompt=True)
            begun = _ids(tokenizer, [*prompt, opened], continue_final_message=True)
        except Exception:
            continue
        return begun == asked + list(row["prefill_ids"])
    return False


def _ids(tokenizer: Any, messages: Sequence[Mapping[str, str]], **how: bool) -> list[int]:
    text = tokenizer.apply_chat_template(list(messages), tokenize=False, **how)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
