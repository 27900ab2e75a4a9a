"""Header frames of aio-pika messages, measured before they are sent.

aiormq 7.2 sends a header frame of any size, and RabbitMQ closes the connection for one that is over the size on
which both agreed (``frame_max``). So a message is measured when it is sealed, and again when aio-pika sends it,
since instrumentation adds headers in between.
"""

from __future__ import annotations

from typing import Any, Final

import aio_pika
from aio_pika.abc import AbstractMessage
from pamqp import commands

from mqauth.brokers.amqp.messages import SHORT_STRINGS
from mqauth.errors import MalformedMessage

MAX_HEADER_FRAME: Final = 131_064
"""Bytes of properties and headers in one frame: RabbitMQ's ``frame_max`` of 131,072 less the frame's own 8."""
_REST: Final = 12
"""Bytes of a header frame before its properties: class, weight and body size."""
_OTHERS: Final = ("headers", "delivery_mode", "priority", "expiration", "timestamp")


def unsendable(error: Exception) -> MalformedMessage:
    """Return the error for a message that cannot be encoded; pamqp raises TypeError, struct.error and others."""
    return MalformedMessage(f"aio-pika cannot send the message: {type(error).__name__}")


def agreed(channel: object) -> int:
    """Return the bytes that a header frame may have on aiormq's channel; at most 131,064, also where not known."""
    found: int = getattr(channel, "max_content_size", 0)
    return min(found, MAX_HEADER_FRAME) if found > 0 else MAX_HEADER_FRAME


async def frame_limit(channel: Any) -> int:
    """Return the bytes that a header frame may have on aio-pika's channel, once that is open."""
    ask = getattr(channel, "get_underlay_channel", None)
    return MAX_HEADER_FRAME if ask is None else agreed(await ask())


def check_frame(raw: bytes, limit: int = MAX_HEADER_FRAME) -> None:
    """Refuse a message for whose header frame RabbitMQ would close the connection.

    Args:
        raw: its properties, encoded.
        limit: most bytes of the frame.

    Raises:
        MalformedMessage: it is over the limit.
    """
    size = len(raw) + _REST
    if size > limit:
        raise MalformedMessage(
            f"properties and headers, token included, are {size} bytes: the broker takes {limit} bytes"
        )


class Measured(aio_pika.Message):
    """A message that refuses to be sent where its header frame is over ``limit`` bytes."""

    limit: int = MAX_HEADER_FRAME

    @classmethod
    def of(cls, native: AbstractMessage) -> Measured:
        """Return a copy of a message."""
        names = (*SHORT_STRINGS.values(), *_OTHERS)
        return cls(native.body, **{name: getattr(native, name) for name in names})

    def check(self) -> None:
        """Refuse it now.

        Raises:
            MalformedMessage: its header frame is over the limit, or cannot be encoded.
        """
        _ = self.properties

    @property
    def properties(self) -> commands.Basic.Properties:
        """The properties as aiormq takes them; aio-pika asks for them last of all.

        Raises:
            MalformedMessage: they are over the limit, or cannot be encoded.
        """
        try:
            found: commands.Basic.Properties = super().properties
            raw = found.marshal()
        except Exception as error:
            raise unsendable(error) from error
        check_frame(raw, self.limit)
        return found
