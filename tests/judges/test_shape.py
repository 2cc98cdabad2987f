"""Guards what a request leaves out once a server has refused it: what was sent, one thing after another."""

from __future__ import annotations

import pytest

from harness.servers.server_errors import complaint
from judges.shape import FEWEST_TOKENS, MOST_TOKENS, Shape


def after(shape: Shape, said: str, asked: int = 400) -> Shape | None:
    found = shape.without(complaint(400, {"error": {"message": said}}), asked)
    return found[0] if found else None


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ("'temperature' does not support 0 with this model. Only the default (1) value is supported.",
         Shape(temperature=False)),
        ("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.",
         Shape(limit="max_completion_tokens")),
        ("response_format of type json_schema is unknown", Shape(schema=False)),
        ("guided decoding is not supported", Shape(schema=False)),
        ("failed to parse grammar", Shape(schema=False)),
        ("Invalid schema for response_format: 'maxLength' is not permitted", Shape(bounded=False)),
        ("max_tokens is too large: 400. At most 256", Shape(most_tokens=200)),
        ("Unsupported parameters", Shape(schema=False)),
        ("no", None),
        ("seed is not supported", None),
    ],
)  # fmt: skip
def test_what_is_blamed_is_left_out(said: str, left: Shape | None) -> None:
    assert after(Shape(), said) == left


def test_what_was_not_sent_is_not_left_out() -> None:
    least = Shape(schema=False, temperature=False, limit=None)
    for said in (
        "temperature is not supported",
        "max_tokens is unknown",
        "response_format",
        "bad parameters",
    ):
        assert after(least, said) is None
    assert after(Shape(temperature=False), "temperature is not supported") is None


def test_nameless_complaints_end() -> None:
    shapes: list[Shape] = [Shape()]
    while (found := after(shapes[-1], "unsupported parameters")) is not None:
        shapes.append(found)
    assert shapes == [
        Shape(),
        Shape(schema=False),
        Shape(schema=False, temperature=False),
        Shape(schema=False, temperature=False, limit="max_completion_tokens"),
        Shape(schema=False, temperature=False, limit=None),
    ]


def test_room_is_halved_down_to_what_a_verdict_needs() -> None:
    shape: Shape | None = Shape()
    rooms = []
    while shape is not None:
        rooms.append(shape.most_tokens)
        shape = after(shape, "max_tokens is too large", asked=MOST_TOKENS)
    assert rooms == [16_000, 8_000, 4_000, 2_000, 1_000, 500, 250, 125]
    assert rooms[-1] // 2 < FEWEST_TOKENS <= rooms[-1]
