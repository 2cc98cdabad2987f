"""The shape of a request to a server judge: what it sends beside the messages, and what it leaves out once a
server has refused it."""

from __future__ import annotations

import dataclasses
import re

from harness.servers.server_errors import Complaint

REASONING_TOKENS = 4_000  # models that think before they reply need room for it
MOST_TOKENS = 16_000  # to which that is doubled, where reasoning was cut off
FEWEST_TOKENS = 100  # a verdict needs about 60
LIMITS = ("max_tokens", "max_completion_tokens")  # the old name first: most servers know it
_SCHEMA = (
    r"response.?(format|schema|mime)|json.?(schema|mode|object)|schema|structured|guided|grammar|strict"
    r"|max_?length|additional_?properties"
)
_LIMIT = r"max.{0,2}(completion|output|new|gen)?.{0,2}tokens"


@dataclasses.dataclass(frozen=True)
class Shape:
    """What the server takes beside the messages."""

    schema: bool = True
    bounded: bool = True  # a limit on the reason's length in the schema; OpenAI itself refuses one
    temperature: bool = True
    limit: str | None = LIMITS[0]  # the name of the limit on a reply's tokens
    most_tokens: int = MOST_TOKENS

    def is_blamed(self, against: Complaint, asked: int) -> bool:
        """Whether a complaint is about the request, so that another may pass: in another shape, or for
        another exchange. ``asked``: the tokens that the reply might have had."""
        if against.status in (401, 407, 408, 409, 429) or against.status < 400:
            return False
        one_alone = against.status != 404 and (against.too_long or against.filtered)
        return one_alone or self.without(against, asked) is not None

    def without(self, against: Complaint, asked: int = MOST_TOKENS) -> tuple[Shape, str] | None:
        """The next simpler shape after a request was refused, and in words what is left out. None where
        nothing that can be left out is to blame. ``asked``: the tokens that the reply might have had."""
        sent = {"limit": _LIMIT} if self.limit else {}
        sent |= {"temperature": "temperature"} if self.temperature else {}
        sent |= {"schema": _SCHEMA} if self.schema else {}
        blamed = against.blames(sent)
        if blamed is None and sent and against.blames_some:  # what changes verdicts least is left out first
            blamed = [*sent][-1]
        if blamed == "schema":
            return self._without_schema(against)
        if blamed == "temperature":
            words = (
                "no temperature of 0: its verdicts are sampled, and may differ from one request to the next"
            )
            return dataclasses.replace(self, temperature=False), words
        return self._without_limit(against, asked) if blamed else None

    def _without_schema(self, against: Complaint) -> tuple[Shape, str]:
        if self.bounded and re.search("max_?length", against.text):
            return dataclasses.replace(
                self, bounded=False
            ), "no limit on the reason's length in response_format"
        words = "no response_format: the same JSON is asked for in words alone"
        return dataclasses.replace(self, schema=False), words

    def _without_limit(self, against: Complaint, asked: int) -> tuple[Shape, str] | None:
        if against.too_large:
            fewer = min(self.most_tokens, asked) // 2
            words = f"fewer tokens a reply: {fewer:,} at most are asked for"
            return (dataclasses.replace(self, most_tokens=fewer), words) if fewer >= FEWEST_TOKENS else None
        if self.limit == LIMITS[0]:
            words = f"no {LIMITS[0]}: {LIMITS[1]} is sent in its place"
            return dataclasses.replace(self, limit=LIMITS[1]), words
        return dataclasses.replace(self, limit=None), "no limit on a reply's tokens"
