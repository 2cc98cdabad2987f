"""A tokenizer from outside: what breaks off in it is one line, and its chat template cannot take for ever.

The Rust library panics at a damaged file, and at a regular expression that gives up on a text. Its panic is
no Exception: it would pass every handler and end the command. A chat template is a program; it gets
``RENDER_S`` seconds (in the main thread) and ``RENDER_BYTES`` of memory (on Linux).
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from harness.contracts import HarnessError
from harness.text import shortened

RENDER_S = 20.0  # for one conversation; the longest take milliseconds
RENDER_BYTES = 4 * 2**30
_METHODS = (
    "__call__", "encode", "decode", "batch_decode", "tokenize", "apply_chat_template", "save_pretrained",
    "convert_ids_to_tokens", "convert_tokens_to_ids", "convert_tokens_to_string",
)  # fmt: skip


@contextlib.contextmanager
def panics_told(where: str) -> Iterator[None]:
    """Turns a panic of the tokenizers library into a HarnessError in one line."""
    try:
        yield
    except (Exception, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise HarnessError(
            f"{where}: its tokenizer breaks off ({shortened(error, 200)}); use another tokenizer.json"
        ) from error


def guarded(tokenizer: Any) -> Any:
    """The tokenizer itself, of a class that raises HarnessError where its own would panic or not end."""
    own = type(tokenizer)
    methods = {name: _told(getattr(own, name)) for name in _METHODS if hasattr(own, name)}
    methods["apply_chat_template"] = _held(methods["apply_chat_template"])
    # By the name of its own class: tokenizer_config.json has it.
    tokenizer.__class__ = type(own.__name__, (own,), {**methods, "__module__": own.__module__})
    return tokenizer


def _told(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def told(self: Any, *given: Any, **named: Any) -> Any:
        with panics_told(str(self.name_or_path)):
            return method(self, *given, **named)

    return told


def _held(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def held(self: Any, *given: Any, **named: Any) -> Any:
        try:
            with _time(RENDER_S), _memory(RENDER_BYTES):
                return method(self, *given, **named)
        except TimeoutError as error:
            raise HarnessError(f"{self.name_or_path}: its chat template takes over {RENDER_S:g} s") from error
        except MemoryError as error:
            raise HarnessError(
                f"{self.name_or_path}: its chat template takes over {RENDER_BYTES // 2**30} GiB of memory"
            ) from error

    return held


@contextlib.contextmanager
def _time(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in what takes longer."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def late(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    left = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *left)
        signal.signal(signal.SIGALRM, before or signal.SIG_DFL)


@contextlib.contextmanager
def _memory(most: int) -> Iterator[None]:
    """Raises MemoryError in what takes so many bytes more than there are in use."""
    try:
        import resource

        file = os.open("/proc/self/statm", os.O_RDONLY)  # not open(): this is done for each conversation
        used = int(os.read(file, 64).split()[0]) * os.sysconf("SC_PAGE_SIZE")
        os.close(file)
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        wanted = used + most
        narrower = soft == resource.RLIM_INFINITY or soft > wanted
        if narrower:
            resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
    except (ImportError, OSError, ValueError):
        yield
        return
    try:
        yield
    finally:
        if narrower:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
