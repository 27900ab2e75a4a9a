"""The message: raw, ordered, and silent about what it carries."""

from __future__ import annotations

from dataclasses import replace

from mqauth.wire.message import Message

OLD, NEW = "dAuV3yR2SqOqyRXx7m3ZkA", "f5zTnBvXQ5mYxPqV2a0hLw"
RABBIT = Message(destination="rabbitmq:shop/orders", body=b"secret-body", properties={"content-type": "a"})
KAFKA = Message(
    destination="kafka:orders",
    body=None,
    headers=(
        ("content-type", b"a\xff"),
        ("tag", b"1"),
        ("Tag", b"2"),
        ("tag", None),
        ("type", b"x"),
        ("type", b"y"),
    ),
)


def test_repr_shows_neither_body_nor_headers() -> None:
    """A message can be logged: repr gives destination, size and count only."""
    assert repr(RABBIT) == "Message('rabbitmq:shop/orders', 11 bytes, 0 headers)"
    assert repr(KAFKA) == "Message('kafka:orders', None bytes, 6 headers)"


def test_native_objects_do_not_take_part_in_equality() -> None:
    """Two messages are equal by what they say, whatever client object they came from."""
    assert replace(RABBIT, native=object()) == replace(RABBIT, native=object())
