"""The one way to a server of models: HTTP clients that keep to these rules, whatever the server does.

- A request has one deadline, the client's ``timeout``, from its start to the last byte of the reply.
- A reply is read up to ``MOST_BYTES``, counted as it unpacks; of its headers only ``KEPT`` are looked at.
- A redirect is followed to the same scheme, host and port alone, and never changes what is sent.
- ``Host``, ``Accept``, ``Accept-Encoding``, ``User-Agent``, ``Authorization`` are sent, with a body
  ``Content-Type`` and ``Content-Length``, and no other header. Only where OpenAI's own key goes,
  ``OPENAI_OWN`` go too, if the environment sets them. What else openai's library takes from there stays here.
- The environment's proxy is used as usual (HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY), but not to reach
  this machine itself. No cookie is kept and no .netrc is read.
"""

from __future__ import annotations

import asyncio
import importlib
import ipaddress
import os
import re
import socket
import ssl
import threading
from collections.abc import Container
from typing import Any
from urllib.parse import urlsplit

from harness.contracts import HarnessError, UsageError
from harness.text import cut, one_line

OPENAI_URL = "https://api.openai.com/v1"
OPENAI_HOST = "api.openai.com"
MOST_BYTES = 32 * 2**20  # of a reply: a prompt of 100,000 tokens echoed with log-probabilities takes 20 MiB
MOST_REDIRECTS = 3
KEPT_OPEN = 100  # connections; how many are in use is for the callers to bound
KEPT = ("retry-after", "retry-after-ms", "date", "x-should-retry")  # and the media type
OPENAI_OWN = ("OpenAI-Organization", "OpenAI-Project")
ELSEWHERE = "it redirects to another place, where nothing is sent: give the URL of the server that answers"
ODD_SHAPE = (ValueError, TypeError, AttributeError, LookupError, OverflowError, RecursionError)
"""What reading a reply raises that is not of the shape that the API promises."""


class TooLargeError(Exception):
    """A reply of more bytes than are read."""


def sync_openai(
    url: str | None,
    key: str,
    timeout_s: float,
    *,
    own: bool,
    retries: int = 0,
    most_bytes: int | None = None,
) -> Any:
    """An openai.OpenAI client. ``url`` None is OpenAI's own; ``own``: so is the key. ``most_bytes``: of a
    reply, where that is not MOST_BYTES.

    Raises UsageError for a URL that is none, HarnessError for a key that no header takes. Its requests raise
    what openai's do, and TooLargeError.
    """
    import openai

    transport = _InThread(_Transport(url or OPENAI_URL, key, own, most_bytes))
    client = _httpx().Client(transport=transport, timeout=timeout_s, trust_env=False)
    return openai.OpenAI(
        base_url=url or OPENAI_URL, api_key=key, timeout=timeout_s, max_retries=retries, http_client=client
    )


def async_openai(url: str | None, key: str, timeout_s: float, *, own: bool) -> Any:
    """An openai.AsyncOpenAI client, without retries; as ``sync_openai``."""
    import openai

    transport = _Transport(url or OPENAI_URL, key, own)
    client = _httpx().AsyncClient(transport=transport, timeout=timeout_s, trust_env=False)
    return openai.AsyncOpenAI(
        base_url=url or OPENAI_URL, api_key=key, timeout=timeout_s, max_retries=0, http_client=client
    )


def status(url: str, timeout_s: float) -> int:
    """The HTTP status that a GET without a key is answered with. Raises an httpx error or TooLargeError where
    there is no answer."""
    transport = _InThread(_Transport(url, None, False))
    client = _httpx().Client(transport=transport, timeout=timeout_s, trust_env=False)
    try:
        return int(client.get(url).status_code)
    finally:
        client.close()


# --- whose server, whose key ------------------------------------------------------------------------


def is_openai(url: str) -> bool:
    """Whether a base URL is OpenAI's own, however it is spelled. Raises UsageError for what is no URL."""
    host, parts = host_of(url), urlsplit(url)
    return parts.scheme == "https" and host.rstrip(".") == OPENAI_HOST and parts.port in (None, 443)


def server_url(url: str | None) -> str | None:
    """``url``, or what OPENAI_BASE_URL names in its place; None for OpenAI's own API, as where that variable
    is empty. Raises UsageError for a text that is no URL."""
    found = (url or os.environ.get("OPENAI_BASE_URL", "")).strip()
    if not found or (is_openai(found) and urlsplit(found).path.strip("/") in ("", "v1")):
        return None
    return found


def takes_openai_key(url: str | None) -> bool:
    """Whether OPENAI_API_KEY goes there: to OpenAI (None), and to what OPENAI_BASE_URL names."""
    if url is None or is_openai(url):
        return True
    named = server_url(None)
    return named is not None and url.rstrip("/") == named.rstrip("/")


def key_from(variable: str) -> str | None:
    """The key in a variable of the environment, None where it is unset or empty. Raises HarnessError for a
    value that no header carries, or that is more than the key; it is never quoted."""
    key = os.environ.get(variable)
    if not key:
        return None
    problem = next(
        (name for name, pattern in _NO_KEY.items() if re.search(pattern, key, re.IGNORECASE)), None
    )
    if problem:
        raise HarnessError(f"{variable} holds {problem}, which no key has: set it anew, to the key alone")
    return key


_NO_KEY = {
    "a line break": r"[\r\n]",
    'the word "Bearer"': r"^\s*bearer\b",
    "a blank": r"\s",
    "a character that is not ASCII": r"[^\x00-\x7f]",
    "a control character": r"[\x00-\x1f\x7f]",
    "quotation marks": r"^[\"']|[\"']$",
}


def listed_as(model: str, served: Container[str]) -> str | None:
    """The name under which a server lists a model, or None. Ollama lists ``x`` as ``x:latest``."""
    latest = f"{model}:latest"
    return model if model in served else latest if ":" not in model and latest in served else None


# --- why there is no reply --------------------------------------------------------------------------


def lasting(error: BaseException) -> bool:
    """Whether a request failed by what no retry mends: a certificate, or a proxy that refuses to go there."""
    return any(
        isinstance(cause, ssl.SSLCertVerificationError)
        or (type(cause).__name__ == "ProxyError" and str(cause)[:3] in ("403", "407"))
        for cause in _causes(error)
    )


def no_answer(error: BaseException, url: str | None) -> str:
    """What follows "no answer from URL" in a line: the cause, or where to look."""
    why = trouble(error, url)
    return f"; is the server up, the URL right? ({why})" if why in PLAIN else f": {why}"


PLAIN = ("connection refused", "no reply in time", "the connection broke")


def trouble(error: BaseException, url: str | None) -> str:
    """Why a request got no reply, as far as its error tells, and how to fix that: a clause in our words."""
    url = url or OPENAI_URL
    host, proxy = host_of(url), proxy_of(url)
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLError):
            return _tls(cause, f"{host} (through the proxy {proxy})" if proxy else host)
        if told := _of_proxy(cause, proxy) if proxy else _of_server(cause, host):
            around = f"; look at HTTPS_PROXY, HTTP_PROXY and ALL_PROXY; NO_PROXY={host} goes around it"
            return told + (around if proxy else "")
    return f"the connection broke (through the proxy {proxy})" if proxy else "the connection broke"


def _tls(error: ssl.SSLError, host: str) -> str:
    if not isinstance(error, ssl.SSLCertVerificationError):
        return f"{host} speaks no TLS that is understood here: is it http:// instead of https://?"
    why = cut(one_line(error.verify_message or "not trusted"), 100).rstrip(".")
    return (
        f"the certificate of {host} is refused ({why}): correct it there, or name the file of an authority "
        "that you trust in SSL_CERT_FILE"
    )


def _of_proxy(error: BaseException, proxy: str) -> str | None:
    if type(error).__name__ == "ProxyError":  # its answer to CONNECT
        status = re.match(r"\d{3}\b", str(error))
        wants = "; it wants a name and a password in the proxy's URL" if str(error)[:3] == "407" else ""
        return f"the proxy {proxy} {f'answers {status.group()}' if status else 'lets nothing through'}{wants}"
    if isinstance(error, socket.gaierror):
        return f"the name of the proxy {proxy} is not known"
    if isinstance(error, ConnectionRefusedError):
        return f"the proxy {proxy} refuses the connection"
    return f"no reply in time through the proxy {proxy}" if _is_timeout(error) else None


def _of_server(error: BaseException, host: str) -> str | None:
    if isinstance(error, socket.gaierror):
        return f"the host name '{host}' is not known"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    return "no reply in time" if _is_timeout(error) else None


def _is_timeout(error: BaseException) -> bool:
    return isinstance(error, TimeoutError) or type(error).__name__.endswith(("Timeout", "TimeoutError"))


def _causes(error: BaseException) -> list[BaseException]:
    """An error and what it was raised from, outermost first."""
    found: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in found:
        found.append(cause)
        if isinstance(cause, BaseExceptionGroup):  # one for each address that was tried
            found += cause.exceptions
        cause = cause.__cause__ or cause.__context__
    return found


def proxy_of(url: str | None) -> str | None:
    """The proxy by which a server is reached, without its name and password; None where there is none."""
    proxy = _proxy(url or OPENAI_URL)
    if proxy is None:
        return None
    return cut(one_line(f"{proxy.partition('://')[0]}://{proxy.partition('://')[2].rpartition('@')[2]}"), 200)


class _Transport:
    """An httpx.AsyncBaseTransport, but for the base class: httpx takes long to import."""

    def __init__(self, url: str, key: str | None, own: bool, most_bytes: int | None = None):
        if key is not None and not (key.isascii() and key.isprintable()):
            raise HarnessError(
                f"the key for {url} holds a character that no key has (a line break?): set its variable anew"
            )
        self._key, self._own, self._most_bytes = key, own, most_bytes or MOST_BYTES
        self._httpx = _httpx()
        proxy = _proxy(url)
        try:
            limits = self._httpx.Limits(max_connections=None, max_keepalive_connections=KEPT_OPEN)
            self._inner = self._httpx.AsyncHTTPTransport(limits=limits, proxy=proxy)
        except (ImportError, OSError, ValueError, self._httpx.InvalidURL) as error:
            raise HarnessError(
                f"no way to {url} with this environment's proxy and certificates ({type(error).__name__}): "
                "look at HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY, SSL_CERT_FILE and SSL_CERT_DIR"
            ) from None

    async def handle_async_request(self, request: Any) -> Any:
        deadline_s = request.extensions["timeout"]["read"]
        try:
            async with asyncio.timeout(deadline_s):
                return await self._reply(request)
        except TimeoutError:
            raise self._httpx.ReadTimeout(f"no whole reply within {deadline_s:g} s") from None

    async def _reply(self, request: Any) -> Any:
        url, headers = request.url, self._headers(request)
        body = await request.aread()  # after the headers: a form's stream is gone then
        for _ in range(MOST_REDIRECTS + 1):
            sent = self._httpx.Request(
                request.method, url, headers=headers, content=body, extensions=request.extensions
            )
            response = await self._inner.handle_async_request(sent)
            try:
                target = self._redirect(sent, response)
                if target is None:
                    return await self._whole(response)
            finally:
                await response.aclose()
            url = target
        return self._httpx.Response(response.status_code)

    def _headers(self, request: Any) -> dict[str, str]:
        """All that is sent, but for what httpx adds by itself: Host and Content-Length."""
        headers = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "safetune-harness"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        if request.method != "GET":  # a form's stream has its own type
            headers["Content-Type"] = getattr(request.stream, "content_type", "application/json")
        if self._own:
            headers |= {name: request.headers[name] for name in OPENAI_OWN if name in request.headers}
        return headers

    def _redirect(self, sent: Any, response: Any) -> Any:
        """Where a reply sends the same request on, on the same server; None for any other reply."""
        keeps = response.status_code in (307, 308) or (
            sent.method == "GET" and response.status_code in (301, 302, 303)
        )
        if not keeps or "location" not in response.headers:
            return None
        try:
            target = sent.url.join(response.headers["location"])
        except (ValueError, self._httpx.InvalidURL):
            return None
        return target if _origin(target) == _origin(sent.url) else None

    async def _whole(self, response: Any) -> Any:
        """The reply with its whole body, unpacked."""
        body = bytearray()
        async for piece in response.aiter_bytes():
            body += piece
            if len(body) > self._most_bytes:
                raise TooLargeError(f"a reply of more than {self._most_bytes / 2**20:g} MiB")
        headers = {name: response.headers[name] for name in KEPT if name in response.headers}
        # Without its charset: one may name a codec that unpacks.
        media = response.headers.get("content-type", "").partition(";")[0]
        return self._httpx.Response(
            response.status_code, headers=headers | {"content-type": media}, content=bytes(body)
        )

    async def aclose(self) -> None:
        await self._inner.aclose()


class _InThread:
    """The same for httpx.Client: on a loop in a thread, as nothing else ends a request at any point."""

    def __init__(self, inner: _Transport):
        self._inner, self._loop = inner, asyncio.new_event_loop()
        self._under_way: set[asyncio.Task[Any] | None] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="http-client", daemon=True)
        self._thread.start()

    def handle_request(self, request: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(self._request(request), self._loop).result()

    async def _request(self, request: Any) -> Any:
        task = asyncio.current_task()
        self._under_way.add(task)
        try:
            return await self._inner.handle_async_request(request)
        finally:
            self._under_way.discard(task)

    def close(self) -> None:
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        under_way = [task for task in self._under_way if task]
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        await self._inner.aclose()


def _httpx() -> Any:
    """The HTTP library that the installed openai is built on: httpx2, or httpx before it."""
    import openai

    return importlib.import_module(openai.DefaultHttpxClient.__bases__[0].__module__.partition(".")[0])


def _origin(url: Any) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}.get(url.scheme)


def host_of(url: str) -> str:
    """The host of a server's base URL. Raises UsageError for a text that is no such URL."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.port != 0 and url.isprintable()
        host = parts.hostname if usable else None
    except ValueError:
        host = None
    if not host:
        raise UsageError(f"'{url}' is no server's base URL, such as http://localhost:8000/v1")
    return host


def _proxy(url: str) -> str | None:
    """The proxy that the environment names for a server. Raises UsageError for a URL that is none."""
    from urllib.request import getproxies, proxy_bypass

    host, named = host_of(url), getproxies()
    proxy = named.get(urlsplit(url).scheme) or named.get("all")
    if not proxy or _is_this_machine(host) or proxy_bypass(host):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _is_this_machine(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
