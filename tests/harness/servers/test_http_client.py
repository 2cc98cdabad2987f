"""Guards the clients to servers of models: every request ends, no reply fills the memory, no request and no
header goes where it does not belong."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fault_server
import openai
import pytest
import tls_server
from fault_server import FaultServer

from harness.contracts import HarnessError, UsageError
from harness.servers import http_client

KEY = "the-key"
BODY: dict[str, Any] = {"model": "judge-1", "messages": [{"role": "user", "content": "case-a"}]}
REPLY = json.dumps(fault_server.completion("hello")).encode()
CAP = 2**20
Post = Callable[..., Any]


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with fault_server.running() as server:
        yield server


@pytest.fixture(params=["sync", "async"])
def post(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Post:
    """``post(server, timeout_s=..., own=...)``: a chat completion by either client."""
    monkeypatch.setattr(http_client, "MOST_BYTES", CAP)

    def sync(server: FaultServer, timeout_s: float = 30.0, own: bool = False) -> Any:
        with http_client.sync_openai(server.url, KEY, timeout_s, own=own) as client:
            return client.chat.completions.create(**BODY)

    async def awaited(server: FaultServer, timeout_s: float, own: bool) -> Any:
        async with http_client.async_openai(server.url, KEY, timeout_s, own=own) as client:
            return await client.chat.completions.create(**BODY)

    def by_loop(server: FaultServer, timeout_s: float = 30.0, own: bool = False) -> Any:
        return asyncio.run(awaited(server, timeout_s, own))

    return sync if request.param == "sync" else by_loop


# --- an end ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["hang", "drip", "dripped_headers", "for_ever_soon"])
def test_a_request_ends_at_its_deadline_whatever_comes(server: FaultServer, post: Post, step: str) -> None:
    server.default = [getattr(fault_server, step)]
    start = time.monotonic()
    with pytest.raises(openai.APITimeoutError):
        post(server, timeout_s=0.3)
    assert 0.25 < time.monotonic() - start < 2


def test_more_than_is_read_is_not_read(server: FaultServer, post: Post) -> None:
    server.default = [fault_server.endless]
    with pytest.raises(http_client.TooLargeError, match=r"^a reply of more than 1 MiB$"):
        post(server)
    server.default = [fault_server.raw(REPLY + b" " * (CAP - len(REPLY)))]  # just as much
    assert post(server).choices[0].message.content == "hello"


def test_headers_without_end_are_an_error(server: FaultServer, post: Post) -> None:
    server.default = [fault_server.many_headers]
    with pytest.raises(openai.APIConnectionError):
        post(server)


BOMB = bytes(48 * CAP)


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        (gzip.compress(BOMB, 1), "gzip"),
        (zlib.compress(BOMB, 1), "deflate"),
        (gzip.compress(gzip.compress(BOMB, 1), 1), "gzip, gzip"),
    ],
    ids=["gzip", "deflate", "gzip in gzip"],
)
def test_what_unpacks_without_end_is_never_unpacked_whole(
    server: FaultServer, post: Post, body: bytes, encoding: str
) -> None:
    server.default = [fault_server.packed(body, encoding)]
    tracemalloc.start()
    try:
        with pytest.raises(http_client.TooLargeError):
            post(server)
        assert tracemalloc.get_traced_memory()[1] < 12 * CAP
    finally:
        tracemalloc.stop()


def test_an_honest_packed_reply_is_read(server: FaultServer, post: Post) -> None:
    server.default = [fault_server.packed(gzip.compress(REPLY), "gzip")]
    assert post(server).choices[0].message.content == "hello"


def test_no_charset_unpacks_a_reply(server: FaultServer, post: Post) -> None:
    server.default = [fault_server.raw(zlib.compress(BOMB, 1), "text/plain; charset=zip", 400)]
    tracemalloc.start()
    try:
        with pytest.raises(openai.BadRequestError):
            post(server)
        assert tracemalloc.get_traced_memory()[1] < 12 * CAP
    finally:
        tracemalloc.stop()


def test_closing_ends_what_is_under_way(server: FaultServer) -> None:
    server.default = [fault_server.hang]
    client, ended = http_client.sync_openai(server.url, KEY, 60.0, own=False), threading.Event()

    def ask() -> None:
        with pytest.raises(BaseException):  # noqa: B017, PT011
            client.chat.completions.create(**BODY)
        ended.set()

    threading.Thread(target=ask, daemon=True).start()
    while not server.in_flight:
        time.sleep(0.01)
    client.close()
    client.close()
    assert ended.wait(10)
    assert not client._client._transport._thread.is_alive()


# --- redirects -------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "form", ["http://127.0.0.1:{}/v1", "//127.0.0.1:{}/v1", "http://me:pw@localhost:{}/"]
)
def test_a_redirect_to_another_server_reaches_nobody(
    server: FaultServer, post: Post, code: int, form: str
) -> None:
    with fault_server.running() as other:
        place = form.format(other.server_address[1])
        server.default, server.on_get = (
            [fault_server.redirect(code, place)],
            fault_server.redirect(code, place),
        )
        with pytest.raises(openai.APIStatusError) as told:
            post(server)
        assert told.value.status_code == code
        with (
            http_client.sync_openai(server.url, KEY, 30.0, own=False) as client,
            pytest.raises(openai.APIStatusError),
        ):
            client.models.list()
        assert http_client.status(f"{server.url}/models", 30.0) == code
        assert (other.connections, other.got) == (0, [])


@pytest.mark.parametrize(
    "place", ["https://127.0.0.1:{}/v1", "http://[::1", "ftp://127.0.0.1:{}/", "\x00", ""]
)
def test_a_redirect_that_leads_nowhere_is_its_status(server: FaultServer, post: Post, place: str) -> None:
    server.default = [fault_server.redirect(307, place.format(server.server_address[1]))]
    with pytest.raises(openai.APIError):
        post(server)
    assert sum(server.asked.values()) <= 1 + http_client.MOST_REDIRECTS


def test_on_the_same_server_the_same_request_is_sent_on(server: FaultServer, post: Post) -> None:
    server.steps["case-a"] = [fault_server.redirect(307, "/v1/chat/completions/?x=1"), fault_server.ok(1)]
    post(server)
    (first, sent), (second, again) = server.got
    assert (first, second) == ("/v1/chat/completions", "/v1/chat/completions/?x=1")
    assert server.bodies[0] == server.bodies[1] == BODY
    assert sent == again


def test_no_redirect_turns_a_post_into_another_request(server: FaultServer, post: Post) -> None:
    server.default = [fault_server.redirect(303, "/v1/models")]
    with pytest.raises(openai.APIStatusError):
        post(server)
    assert len(server.got) == 1


def test_redirects_in_a_circle_end(server: FaultServer, post: Post) -> None:
    server.default = [fault_server.redirect(308, "/v1/chat/completions")]
    with pytest.raises(openai.APIStatusError):
        post(server)
    assert len(server.got) == 1 + http_client.MOST_REDIRECTS


# --- what is sent ----------------------------------------------------------------------------------

ALWAYS = {"host", "accept", "accept-encoding", "user-agent", "authorization"}
WITH_BODY = ALWAYS | {"content-type", "content-length"}


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Every variable that the installed openai's source names has a value, and so has .netrc."""
    folder = Path(openai.__file__).parent
    text = "".join(path.read_text(encoding="utf-8") for path in folder.rglob("*.py"))
    names = set(re.findall(r"[\"'](OPENAI_[A-Z_]+)[\"']", text)) - {"OPENAI_BASE_URL", "OPENAI_LOG"}
    assert names >= {"OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"}
    values = [f"planted-{place}" for place, _ in enumerate(sorted(names))]
    for name, value in zip(sorted(names), values, strict=True):
        monkeypatch.setenv(name, value)
    custom = ("X-Mine", "Authorization", "Cookie", "Host", "Accept", "User-Agent", "Content-Type")
    lines = [f"{name}: planted-custom" for name in (*custom, "Content-Length", "OpenAI-Project")]
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "\n".join(lines))
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login planted-login password planted-password", encoding="utf-8")
    monkeypatch.setenv("NETRC", str(netrc))
    return [*values, "planted"]


def test_exactly_these_headers_go_to_a_named_server(
    server: FaultServer, post: Post, planted: list[str]
) -> None:
    post(server)
    with http_client.sync_openai(server.url, KEY, 30.0, own=False) as client:
        client.models.list()
        client.files.create(file=("x.jsonl", b"{}"), purpose="batch")
    http_client.status(f"{server.url}/models", 30.0)
    posted, listed, uploaded, probed = (headers for _, headers in server.got)
    assert set(posted) == set(uploaded) == WITH_BODY
    assert set(listed) == ALWAYS
    assert set(probed) == ALWAYS - {"authorization"}
    assert not [value for value in planted if value in str(server.got)]
    sent = {
        "host": f"127.0.0.1:{server.server_address[1]}",
        "accept": "*/*",
        "accept-encoding": "identity",
        "user-agent": "safetune-harness",
        "authorization": f"Bearer {KEY}",
    }
    assert listed == sent
    assert posted == sent | {"content-type": "application/json", "content-length": posted["content-length"]}
    assert re.fullmatch(r"multipart/form-data; boundary=[0-9a-f]{32}", uploaded["content-type"])


def test_where_openais_key_goes_organisation_and_project_go(
    server: FaultServer, post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project-1")
    post(server, own=True)
    headers = server.got[0][1]
    assert set(headers) == WITH_BODY | {name.lower() for name in http_client.OPENAI_OWN}
    assert (headers["openai-organization"], headers["openai-project"]) == ("org-1", "project-1")


def test_a_servers_cookie_is_not_kept(server: FaultServer) -> None:
    server.on_get = lambda handler: handler.send(200, b'{"data": []}', Set_Cookie="id=1")
    with http_client.sync_openai(server.url, KEY, 30.0, own=False) as client:
        client.models.list()
        client.models.list()
    assert [set(headers) for _, headers in server.got] == [ALWAYS, ALWAYS]


def test_the_environments_proxy_is_used_but_not_to_reach_this_machine(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "NO_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with fault_server.running() as proxy:
        monkeypatch.setenv("http_proxy", f"127.0.0.1:{proxy.server_address[1]}")
        assert http_client.status(f"{server.url}/models", 30.0) == 200
        assert not proxy.connections
        assert http_client.status("http://models.invalid/v1/models", 30.0) == 404  # by the proxy
        assert [path for path, _ in proxy.got] == ["http://models.invalid/v1/models"]
        monkeypatch.setenv("no_proxy", "models.invalid")
        assert http_client._proxy("http://models.invalid/v1") is None


@pytest.mark.parametrize(
    ("variable", "value"), [("http_proxy", "gopher://me:secret@h"), ("http_proxy", "http://h:secret"),
                            ("SSL_CERT_FILE", "/nowhere/secret.pem")],
)  # fmt: skip
def test_an_environment_that_leads_nowhere_is_one_line(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(
        HarnessError, match=r"no way to http://models\.invalid/v1 with this .*NO_PROXY"
    ) as told:
        http_client.sync_openai("http://models.invalid/v1", KEY, 1.0, own=False)
    assert "secret" not in str(told.value)


@pytest.mark.parametrize("key", ["a\nb", "a\r\nX-Mine: b", "kéy", "\x1b"])
def test_a_key_that_is_none_is_one_line_without_it(key: str) -> None:
    with pytest.raises(HarnessError, match="holds a character that no key has") as told:
        http_client.sync_openai("http://127.0.0.1:9/v1", key, 1.0, own=False)
    assert key not in str(told.value)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://h/v1", "http://", "http://[::1", "http://h:99999",
                                 "http://h:0/v1", "http://h/\n", ""])  # fmt: skip
def test_a_url_that_is_none_is_wrong_usage(url: str) -> None:
    with pytest.raises(UsageError, match="no server's base URL"):
        http_client.host_of(url)


# --- whose server, whose key -------------------------------------------------------------------------

OFFICIAL = [
    "https://api.openai.com/v1",
    "https://api.openai.com/v1/",
    "HTTPS://API.OpenAI.com:443/v1",
    " https://api.openai.com ",
]


@pytest.fixture
def base_url(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], None]:
    def set_to(value: str | None) -> None:
        monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
        if value is not None:
            monkeypatch.setenv("OPENAI_BASE_URL", value)

    return set_to


@pytest.mark.parametrize("named", [None, "", " ", "\n", *OFFICIAL])
def test_no_base_url_an_empty_one_and_the_official_one_are_openais(
    named: str | None, base_url: Callable[[str | None], None]
) -> None:
    base_url(named)
    assert http_client.server_url(None) is None
    assert http_client.takes_openai_key(None)
    assert http_client.takes_openai_key("https://api.openai.com/v1/")
    assert not http_client.takes_openai_key("http://localhost:8000/v1")


@pytest.mark.parametrize(
    "other",
    ["http://api.openai.com/v1", "https://api.openai.com:8443/v1", "https://api.openai.com.evil.org/v1",
     "https://evil.org/api.openai.com/v1", "https://api.openai.com@evil.org/v1"],
)  # fmt: skip
def test_what_only_looks_like_openais_gets_no_key_of_it(
    other: str, base_url: Callable[[str | None], None]
) -> None:
    base_url(None)
    assert not http_client.is_openai(other)
    assert not http_client.takes_openai_key(other)
    base_url(other)  # but where the variable points, it goes
    assert http_client.server_url(None) == other
    assert http_client.takes_openai_key(f"{other}/")


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("sk-abc\n", "a line break"),
        ("sk-abc\r", "a line break"),
        ("sk-\nabc", "a line break"),
        (" sk-abc", "a blank"),
        ("sk-abc ", "a blank"),
        ("sk abc", "a blank"),
        ("sk\tabc", "a blank"),
        ("sk\u00a0abc", "a blank"),
        ("   ", "a blank"),
        ("sk-äbc", "a character that is not ASCII"),
        ("sk-abc\u200b", "a character that is not ASCII"),
        ("sk-\udcffabc", "a character that is not ASCII"),
        ("sk-\x1babc", "a control character"),
        ("sk-\x7fabc", "a control character"),
        ("Bearer sk-abc", 'the word "Bearer"'),
        ("bearer  sk-abc", 'the word "Bearer"'),
        ("'sk-abc'", "quotation marks"),
        ('"sk-abc"', "quotation marks"),
    ],
)
def test_a_key_that_no_header_carries_is_told_by_its_variable(
    value: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_KEY", value)
    with pytest.raises(HarnessError, match=rf"^A_KEY holds {says}.*, which no key has: set it anew") as told:
        http_client.key_from("A_KEY")
    assert "sk" not in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(("value", "key"), [(None, None), ("", None), ("sk-a_b.c=/+", "sk-a_b.c=/+")])
def test_a_key_is_taken_as_it_is(value: str | None, key: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("A_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("A_KEY", value)
    assert http_client.key_from("A_KEY") == key


def test_ollamas_latest_is_the_model_without_a_tag() -> None:
    assert http_client.listed_as("llama3", ["llama3:latest", "x"]) == "llama3:latest"
    assert http_client.listed_as("llama3", ["llama3", "llama3:latest"]) == "llama3"
    assert http_client.listed_as("llama3:latest", ["llama3:latest"]) == "llama3:latest"
    assert http_client.listed_as("llama3:8b", ["llama3:latest", "llama3:8b:latest"]) is None
    assert http_client.listed_as("llama", ["llama3:latest"]) is None


# --- why there is no reply ----------------------------------------------------------------------------


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch


def failure(url: str, timeout_s: float = 10.0) -> openai.APIConnectionError:
    with (
        http_client.sync_openai(url, KEY, timeout_s, own=False) as client,
        pytest.raises(openai.APIConnectionError) as told,
    ):
        client.models.list()
    return told.value


@pytest.mark.parametrize(
    ("certificate", "host", "trusted", "says"),
    [
        (
            tls_server.GOOD,
            "localhost",
            False,
            "certificate of localhost is refused (self-signed certificate)",
        ),
        (
            tls_server.EXPIRED,
            "localhost",
            True,
            "certificate of localhost is refused (certificate has expired)",
        ),
        (tls_server.GOOD, "127.0.0.1", True, "certificate of 127.0.0.1 is refused (IP address mismatch"),
    ],
)
def test_a_certificate_is_told_as_what_it_is(
    certificate: str, host: str, trusted: bool, says: str, no_proxy: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if trusted:
        (tmp_path / "ca.pem").write_text(certificate, encoding="utf-8")
        no_proxy.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    with tls_server.running(certificate) as server:
        url = server.url_at(host)
        error = failure(url)
        assert (server.got, http_client.lasting(error)) == ([], True)
    assert says in http_client.trouble(error, url)
    assert "SSL_CERT_FILE" in http_client.trouble(error, url)
    assert http_client.no_answer(error, url).startswith(": the certificate")


def test_an_authority_of_ones_own_is_trusted_by_its_file(
    no_proxy: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "ca.pem").write_text(tls_server.GOOD, encoding="utf-8")
    no_proxy.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    with tls_server.running(tls_server.GOOD) as server:
        assert http_client.status(f"{server.url_at('localhost')}/models", 30.0) == 200


def test_no_reply_is_told_as_what_it_is(server: FaultServer, no_proxy: pytest.MonkeyPatch) -> None:
    def told(url: str, timeout_s: float = 10.0) -> str:
        error = failure(url, timeout_s)
        assert not http_client.lasting(error)
        return http_client.no_answer(error, url)

    plain = "; is the server up, the URL right? ({})"
    assert told("http://127.0.0.1:9/v1") == plain.format("connection refused")
    assert told("http://no.such.invalid/v1") == ": the host name 'no.such.invalid' is not known"
    assert "speaks no TLS" in told(server.url.replace("http:", "https:"))
    server.on_get = fault_server.reset
    assert told(server.url) == plain.format("the connection broke")
    server.on_get = fault_server.hang
    assert told(server.url, 0.2) == plain.format("no reply in time")


def tunnel(status: int) -> Any:
    return lambda handler: handler.send(status, b"<html>no</html>", "text/html")


@pytest.mark.parametrize(
    ("status", "says", "lasting"),
    [
        (407, "answers 407; it wants a name and a password in the proxy's URL", True),
        (403, "answers 403", True),
        (502, "answers 502", False),
    ],
)
def test_a_proxy_that_lets_nothing_through_is_named(
    status: int, says: str, lasting: bool, no_proxy: pytest.MonkeyPatch
) -> None:
    with fault_server.running() as proxy:
        proxy.on_connect = tunnel(status)
        place = f"127.0.0.1:{proxy.server_address[1]}"
        no_proxy.setenv("https_proxy", f"http://me:planted@{place}")
        error = failure("https://models.invalid/v1")
    line = http_client.no_answer(error, "https://models.invalid/v1")
    assert line.startswith(f": the proxy http://{place} {says}")
    assert "NO_PROXY=models.invalid" in line
    assert "planted" not in line
    assert http_client.lasting(error) is lasting


@pytest.mark.parametrize(
    ("proxy", "says"),
    [("http://127.0.0.1:9", "the proxy http://127.0.0.1:9 refuses the connection"),
     ("http://no.such.invalid:3128", "the name of the proxy http://no.such.invalid:3128 is not known")],
)  # fmt: skip
@pytest.mark.parametrize("variable", ["https_proxy", "all_proxy"])
def test_a_proxy_that_is_not_there_is_named(
    variable: str, proxy: str, says: str, no_proxy: pytest.MonkeyPatch
) -> None:
    no_proxy.setenv(variable, proxy)
    assert says in http_client.no_answer(failure("https://models.invalid/v1"), "https://models.invalid/v1")
