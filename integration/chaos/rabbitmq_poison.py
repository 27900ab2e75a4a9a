"""Messages that kill the connection of any aio-pika consumer before code of ours runs."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, Final

from aio_pika.abc import AbstractChannel
from pamqp import commands

_DEPTH: Final = 3000
_MODE_AND_ID: Final = b"\x02\x06poison"


def _short(raw: bytes) -> bytes:
    """Return AMQP's short string."""
    return bytes([len(raw)]) + raw


def _table(raw: bytes) -> bytes:
    """Return AMQP's table around fields."""
    return struct.pack(">I", len(raw)) + raw


def _deep() -> bytes:
    """Return a table in a table in a table."""
    raw = _table(b"")
    for _ in range(_DEPTH):
        raw = _table(_short(b"t") + b"F" + raw)
    return raw


POISONS: Final[Mapping[str, tuple[tuple[str, ...], bytes]]] = {
    "absurd timestamp": (("timestamp",), _MODE_AND_ID + b"\xff" * 8),
    "header name no UTF-8": (("headers",), _table(_short(b"\xff\xfe") + b"t\x01") + _MODE_AND_ID),
    "content type no UTF-8": (("content_type",), _short(b"\xff\xfe") + _MODE_AND_ID),
    "deep table": (("headers",), _deep() + _MODE_AND_ID),
}
"""By name: the properties that are set beside delivery mode and message id, and all of them as bytes."""


class _Raw(commands.Basic.Properties):
    """Properties that go out as they are given."""

    raw: tuple[tuple[str, ...], bytes]

    def marshal(self) -> bytes:
        """Return the flags and the bytes."""
        names, raw = self.raw
        flags = sum(self.flags[name] for name in ("delivery_mode", "message_id", *names))
        return struct.pack(">H", flags) + raw


async def publish_poison(channel: AbstractChannel, queue: str, kind: str) -> None:
    """Publish one poison message of a kind, confirmed."""
    properties = _Raw(message_id="poison", delivery_mode=2)
    properties.raw = POISONS[kind]
    underlay: Any = await channel.get_underlay_channel()
    await underlay.basic_publish(b"poison", routing_key=queue, properties=properties)
