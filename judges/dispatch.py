"""Many requests at once, as many as a server takes: bounded, slower after a 429, retried with jitter."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import TypeVar

import tenacity

from harness.contracts import HarnessError

Item = TypeVar("Item")
Result = TypeVar("Result")
LONGEST_WAIT_S = 120.0


class TransientError(Exception):
    """A failure that may pass; ``retry_after_s`` is what the server asked for. The message quotes nothing."""

    def __init__(self, reason: str, retry_after_s: float = 0.0, overloaded: bool = False):
        super().__init__(reason)
        self.retry_after_s, self.overloaded = min(retry_after_s, LONGEST_WAIT_S), overloaded


class Gate:
    """At most ``most`` requests in flight: half as many after a 429, one more after each round of successes
    (additive increase, multiplicative decrease); nobody passes before the time that a server asked for."""

    def __init__(self, most: int):
        self._most, self.limit, self._in_flight = float(most), float(most), 0
        self._changed = asyncio.Condition()
        self._closed_until = self._halved_at = 0.0

    async def __aenter__(self) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._in_flight < int(self.limit))
            self._in_flight += 1
        clock = asyncio.get_running_loop().time
        while (pause := self._closed_until - clock()) > 0:
            await asyncio.sleep(pause)

    async def __aexit__(self, *error: object) -> None:
        async with self._changed:
            self._in_flight -= 1
            self._changed.notify_all()

    def succeeded(self) -> None:
        self.limit = min(self._most, self.limit + 1 / self.limit)

    def overloaded(self, retry_after_s: float) -> None:
        now = asyncio.get_running_loop().time()
        if now > self._halved_at + 1.0:  # once for all the requests that were refused together
            self.limit, self._halved_at = max(1.0, self.limit / 2), now
        self._closed_until = max(self._closed_until, now + retry_after_s)


class Dispatcher:
    """``ask`` for every item, at most ``in_flight`` at once, each up to ``attempts`` times."""

    def __init__(self, in_flight: int, attempts: int, first_wait_s: float = 0.5):
        self._in_flight, self._attempts, self._first_wait_s = in_flight, attempts, first_wait_s
        self._stopping = False

    async def run(
        self, items: Iterable[Item], ask: Callable[[Item], Awaitable[Result]]
    ) -> AsyncIterator[tuple[Item, Result | str]]:
        """(item, result or the reason why there is none), as they come. TransientError is tried again; a
        HarnessError ends it all, once what is in flight has ended and been yielded."""
        gate, todo, running = Gate(self._in_flight), iter(items), dict[asyncio.Task[Result | str], Item]()
        stop: HarnessError | None = None
        try:
            while True:
                while stop is None and len(running) < self._in_flight:
                    try:
                        item = next(todo)
                    except StopIteration:
                        break
                    running[asyncio.ensure_future(self._attempt(gate, item, ask))] = item
                if not running:
                    break
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    item = running.pop(task)
                    try:
                        result = task.result()
                    except HarnessError as error:
                        stop, self._stopping = stop or error, True
                        continue
                    yield item, result
            if stop:
                raise stop
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _attempt(
        self, gate: Gate, item: Item, ask: Callable[[Item], Awaitable[Result]]
    ) -> Result | str:
        jitter = tenacity.wait_random_exponential(multiplier=self._first_wait_s, max=LONGEST_WAIT_S / 2)

        def wait(state: tenacity.RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            asked_for = error.retry_after_s if isinstance(error, TransientError) else 0.0
            return asked_for + jitter(state)

        try:
            async for attempt in tenacity.AsyncRetrying(
                stop=tenacity.stop_after_attempt(self._attempts),
                wait=wait,
                retry=tenacity.retry_if_exception(
                    lambda error: isinstance(error, TransientError) and not self._stopping
                ),
                reraise=True,
            ):
                with attempt:
                    async with gate:
                        try:
                            result = await ask(item)
                        except TransientError as error:
                            if error.overloaded:
                                gate.overloaded(error.retry_after_s)
                            raise
                    gate.succeeded()
                    return result
        except TransientError as error:
            if self._stopping:
                raise HarnessError("stopped") from error  # unasked, not unjudged: the next run asks it
            return f"{error} (tried {self._attempts} times)"
        raise AssertionError("unreachable")
