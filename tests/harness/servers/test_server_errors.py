"""Guards how a server's complaint is read: what it blames is found however it is wrapped, and nothing that a
server can send breaks the reader."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.servers.server_errors import LONGEST_READ, complaint

SENT = {"limit": "max_tokens", "temperature": "temperature", "schema": "response_format"}
SAID = "Unsupported parameter: 'temperature' is not supported with this model."
OPENAI = {
    "message": SAID,
    "type": "invalid_request_error",
    "param": "temperature",
    "code": "unsupported_parameter",
}
FASTAPI = [{"type": "extra_forbidden", "loc": ["body", "temperature"], "msg": "Extra inputs are not taken",
            "input": {"max_tokens": 400, "response_format": {"type": "json_schema"}}}]  # fmt: skip

SHAPES: dict[str, Any] = {
    "OpenAI": {"error": OPENAI},
    "without error": OPENAI,
    "FastAPI": {"detail": FASTAPI},
    "a text": {"error": SAID},
    "a detail": {"detail": SAID},
    "a list of errors": {"errors": [{"message": "one or more are refused"}, {"message": SAID}]},
    "a list of texts": [SAID],
    "JSON in a text": {"error": {"message": json.dumps({"error": OPENAI}), "code": 400}},
    "JSON behind words": {"error": {"message": f"BadRequestError: {json.dumps({'error': OPENAI})}"}},
    "raw metadata": {"error": {"message": "Provider returned error", "code": 400,
                               "metadata": {"raw": json.dumps({"error": OPENAI}), "provider_name": "X"}}},
    "JSON in JSON in JSON": {"error": json.dumps({"error": json.dumps({"error": OPENAI})})},
    "a text that is JSON's spelling of one": json.dumps(json.dumps({"error": OPENAI})),
    "Python's spelling": f"Error code: 400 - {{'error': {OPENAI}}}",
    "bytes in a text": {"error": f"b'{json.dumps(OPENAI)}'"},
    "by field": {"errors": {"temperature": ["Unsupported value."]}},
    "a pointer": {"errors": [{"source": {"pointer": "/temperature"}, "title": "Invalid Attribute"}]},
    "plain text": SAID,
    "a page": f"<html><head><style>a {{}}</style></head><body><h1>400</h1>{SAID}</body></html>",
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("status", [400, 422, 500])
def test_a_parameter_is_found_in_any_shape(shape: str, status: int) -> None:
    body = SHAPES[shape]
    text = body if isinstance(body, str) else json.dumps(body)
    assert complaint(status, text.encode()).blames(SENT) == "temperature"
    assert complaint(status, body).blames(SENT) == "temperature"
    assert complaint(status, text).blames({"schema": "response_format"}) is None


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"null", b"Bad Request", b'{"error": "bad"}', b"<html>Bad</html>"]
)
def test_who_names_nothing_blames_nothing(body: bytes) -> None:
    found = complaint(400, body)
    assert (found.blames(SENT), found.blames_some, found.too_long, found.filtered) == (
        None,
        False,
        False,
        False,
    )


def test_what_was_sent_is_no_blame_when_it_comes_back() -> None:
    echoed = {
        "type": "missing",
        "loc": ["body", "prompt"],
        "msg": "Field required",
        "input": dict.fromkeys(SENT, 1),
    }
    assert complaint(422, {"detail": [echoed]}).blames(SENT) is None


def test_what_is_named_comes_before_what_is_spoken_of() -> None:
    said = {"message": "with response_format only 1 is allowed", "param": "temperature"}
    assert complaint(400, {"error": said}).blames(SENT) == "temperature"
    assert complaint(400, {"error": "max_tokens is unknown, temperature is known"}).blames(SENT) == "limit"


def test_some_parameter_is_one_without_a_name() -> None:
    none = {"error": {"message": "No endpoints found that support the requested parameters: unsupported"}}
    assert complaint(400, none).blames_some
    assert not complaint(400, {"error": {"message": "invalid parameter", "param": "messages"}}).blames_some
    assert not complaint(400, "we know all parameters").blames_some


@pytest.mark.parametrize(
    ("status", "body", "inner"),
    [
        (500, {"error": {"code": 400, "message": "x"}}, 400),
        (500, "litellm: Error code: 422 - refused", 422),
        (502, {"error": {"message": "Upstream error", "metadata": {"raw": '{"status": 400}'}}}, 400),
        (400, {"error": {"code": 429}}, 429),
        (400, {"error": {"code": 401}}, 400),
        (429, {"error": {"code": 400}}, 429),
        (500, {"error": {"code": True, "message": "400 wrong"}}, 500),
        (400, {"code": "400"}, 400),
    ],
)  # fmt: skip
def test_the_status_inside_says_more(status: int, body: Any, inner: int) -> None:
    assert complaint(status, body).status == inner


def test_a_broken_server_blames_nothing_by_the_way() -> None:
    assert complaint(500, "GPU temperature is high").blames(SENT) is None
    assert complaint(500, "temperature is not supported").blames(SENT) == "temperature"


LONG = [
    "This model's maximum context length is 8192 tokens. However, you requested 9000 tokens",
    "'max_tokens' is too large: 400. This model's maximum context length is 256 tokens",
    "prompt is too long: 200001 tokens > 199999 maximum",
    "Please reduce the length of the messages or completion.",
    "the request exceeds the available context size",
    "`inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000",
    "The input token count (40000) exceeds the maximum number of tokens allowed",
    "too many tokens: size limit exceeded",
]
FILTERED = [
    {"error": {"message": "The request was filtered.", "code": "content_filter", "param": "prompt"}},
    {"error": {"innererror": {"code": "ResponsibleAIPolicyViolation"}, "message": "x"}},
    {"error": {"message": "Your prompt was flagged as potentially violating our usage policy"}},
    {"error": json.dumps({"error": {"message": "blocked by our content management policy"}})},
    {"error": {"message": "Output data may contain inappropriate content", "code": "data_inspection_failed"}},
]


@pytest.mark.parametrize("said", LONG)
def test_a_request_that_is_too_long(said: str) -> None:
    assert complaint(400, {"error": {"message": said}}).too_long
    assert complaint(413, "").too_long
    assert not complaint(400, {"error": said}).filtered


@pytest.mark.parametrize("body", FILTERED)
def test_a_request_that_a_filter_stops(body: Any) -> None:
    assert complaint(400, body).filtered
    assert not complaint(400, body).too_long


def test_a_proxys_page_is_no_models_filter() -> None:
    assert not complaint(403, "<html>blocked by the content filter of your company</html>").filtered


def test_a_number_that_is_too_large_is_not_an_unknown_name() -> None:
    assert complaint(400, "max_tokens is too large: 4000. At most 2048 completion tokens").too_large
    assert not complaint(400, "max_tokens is too large: 4000. At most 2048 completion tokens").too_long
    assert not complaint(400, "max_tokens is not supported, use at most one limit").too_large


KEYS = st.sampled_from(["error", "message", "param", "code", "status", "loc", "detail", "input", "x"])
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner) | inner.map(json.dumps)
)


@given(VALUES, st.integers(100, 999))
def test_no_body_breaks_the_reader(body: Any, status: int) -> None:
    for shape in (body, json.dumps(body), json.dumps(body).encode()):
        found = complaint(status, shape)
        assert found.blames(SENT) in {None, *SENT}
        assert all(isinstance(flag, bool) for flag in (found.too_long, found.filtered, found.too_large))


@given(st.binary())
def test_no_bytes_break_the_reader(body: bytes) -> None:
    assert complaint(400, body).blames(SENT) in {None, *SENT}


WRAPPERS = [
    lambda inner: {"error": inner},
    lambda inner: {"detail": [inner]},
    lambda inner: {"error": {"metadata": {"raw": inner}}},
    lambda inner: [inner],
    lambda inner: json.dumps(inner),
    lambda inner: {"message": f"upstream said: {json.dumps(inner)}"},
    lambda inner: {"message": json.dumps(inner), "code": 400},
]


@given(
    st.sampled_from(sorted(SENT)),
    st.lists(st.sampled_from(WRAPPERS), max_size=6),
    st.sampled_from(["param", "text"]),
)
def test_a_parameter_is_found_however_deep(name: str, wrappers: list[Any], how: str) -> None:
    word = SENT[name]
    body: Any = {"param": word, "message": "no"} if how == "param" else f"Unsupported parameter: '{word}'"
    for wrap in wrappers:
        body = wrap(body)
    assert complaint(400, json.dumps(body).encode()).blames(SENT) == name


@pytest.mark.parametrize(
    "body",
    [b"[" * 10**6, b'{"a":' * 10**5, b'["' * 10**5, b"<style>" * 10**5, b"{" * 10**6, b"temperature " * 10**5,
     b'"' * 10**6, b"context " * 10**5, b"not " * 10**5],
)  # fmt: skip
def test_a_hostile_body_takes_no_time(body: bytes) -> None:
    start = time.monotonic()
    found = complaint(400, body)
    assert (found.too_long, found.filtered) == (False, False)
    found.blames(SENT)
    assert time.monotonic() - start < 2
    assert len(found.text) <= LONGEST_READ
