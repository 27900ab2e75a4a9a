"""The header frame of an aio-pika message, measured before it is sent.

aiormq 7.2 sends a header frame of any size; RabbitMQ closes the connection on one that is over its limit.
"""

from __future__ import annotations

from typing import Final

import aio_pika
from pamqp.header import ContentHeader

from mqauth.errors import MalformedMessage

MAX_HEADER_FRAME: Final = 131_064
"""Bytes of properties and headers in one frame: RabbitMQ's ``frame_max`` of 131,072 less the frame's own 8."""


def frame_size(native: aio_pika.Message) -> int:
    """Return the bytes of the header frame pamqp will send.

    Raises:
        MalformedMessage: pamqp cannot encode it.
    """
    try:
        return len(ContentHeader(body_size=len(native.body), properties=native.properties).marshal())
    except Exception as error:  # pamqp raises TypeError, struct.error, OverflowError and more
        raise MalformedMessage(f"aio-pika cannot send the message: {type(error).__name__}") from error


def check_frame(native: aio_pika.Message) -> None:
    """Refuse a message whose header frame RabbitMQ would answer by closing the connection.

    Raises:
        MalformedMessage: it is over 131,064 bytes, the token included, or cannot be encoded.
    """
    if frame_size(native) > MAX_HEADER_FRAME:
        raise MalformedMessage(f"properties and headers with the token are over {MAX_HEADER_FRAME} bytes")
