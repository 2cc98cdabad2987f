"""What a server's headers and failures mean to a judge that is a chat model."""

from __future__ import annotations

from email.utils import formatdate

import pytest

from judges.chat_server import retry_after_s


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 0.0),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after": "soon"}, 0.0),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": f"Mon, 01 Jan {10**20} 00:00:00 GMT"}, 0.0),
        (
            {"retry-after": formatdate(1_000_030, usegmt=True), "date": formatdate(1_000_000, usegmt=True)},
            30.0,
        ),
    ],
)
def test_retry_after_is_seconds_or_a_date(headers: dict[str, str], seconds: float) -> None:
    class Error:
        response = type("Response", (), {"headers": headers})

    assert retry_after_s(Error) == seconds
