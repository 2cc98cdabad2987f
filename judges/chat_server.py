"""The server behind a judge that is a chat model: its URL and key, its clients, what its failures mean."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from harness.contracts import HarnessError
from harness.servers import http_client
from harness.text import shown_words

REFUSED = "the request itself is refused"
KEY = "OPENAI_API_KEY"
OTHER_KEY = "JUDGE_API_KEY"  # for servers named in the judge's name, which never get the first


@dataclass(frozen=True)
class ChatServer:
    """OpenAI's own API, or a server that speaks it (``base_url``). ``judge``: whose name errors begin with;
    ``model``: as the server knows it."""

    judge: str
    model: str
    base_url: str | None

    @property
    def url(self) -> str | None:
        """The server's base URL, None for OpenAI's own API."""
        return http_client.server_url(self.base_url)

    @property
    def own(self) -> bool:
        """Whether OpenAI's key goes there."""
        return not self.base_url or http_client.is_openai(self.base_url)

    @property
    def host(self) -> str | None:
        """The host of a server that is not OpenAI's."""
        url = self.url
        return None if url is None or http_client.is_openai(url) else http_client.host_of(url)

    @property
    def where(self) -> str:
        return self.url or "the OpenAI API"

    def key(self) -> str:
        """Raises HarnessError where there is none and OpenAI wants one."""
        key = http_client.key_from(KEY) if self.own else http_client.key_from(OTHER_KEY) or "none"
        if not key:
            raise HarnessError(f"judge '{self.judge}' needs a key: set {KEY} in the environment")
        return key

    def client(self, timeout_s: float, retries: int, most_bytes: int | None = None) -> Any:
        """A client for one request after another."""
        return http_client.sync_openai(
            self.url, self.key(), timeout_s, own=self.own, retries=retries, most_bytes=most_bytes
        )

    def async_client(self, timeout_s: float) -> Any:
        """A client for many requests at once."""
        return http_client.async_openai(self.url, self.key(), timeout_s, own=self.own)

    def refused(self, error: Any) -> HarnessError:
        """One line for what no retry mends. Never the server's text: it may quote request or key."""
        key = KEY if self.own else OTHER_KEY
        mends = {
            401: f"the key is wrong or missing: check {key}",
            403: f"the key in {key} may not use this model",
            407: "the proxy wants a name and a password in its URL (HTTPS_PROXY, HTTP_PROXY)",
            404: f"there is no model '{self.model}', or the URL is wrong",
            429: "the account has no credit left",
        }
        told = shown_words((error.code, error.param))
        redirected = error.status_code < 400
        mend = http_client.ELSEWHERE if redirected else mends.get(error.status_code, REFUSED)
        proxy = http_client.proxy_of(self.url)
        if proxy and error.status_code != 407 and error.response.content.lstrip()[:1] == b"<":
            mend = f"it is a page and no API's reply: the proxy {proxy} may have sent it"
        return HarnessError(
            f"judge '{self.judge}': {self.where} answers {error.status_code}"
            f"{f' ({told})' if told else ''}: {mend}"
        )

    def unreached(self, error: Exception) -> HarnessError:
        why = http_client.no_answer(error, self.url)
        return HarnessError(f"judge '{self.judge}': no answer from {self.where}{why}")


def retry_after_s(error: Any) -> float:
    """The Retry-After header: seconds, or a date. 0 where there is none that can be read."""
    from email.utils import parsedate_to_datetime

    headers = error.response.headers
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        value = headers.get("retry-after", "")
        if re.fullmatch(r"\d+(\.\d+)?", value):
            return float(value)
        when = parsedate_to_datetime(value)
        sent = parsedate_to_datetime(headers["date"]) if "date" in headers else None
        from datetime import UTC, datetime

        return max(0.0, (when - (sent or datetime.now(UTC))).total_seconds())
    except (ValueError, TypeError, KeyError, OverflowError):
        return 0.0
