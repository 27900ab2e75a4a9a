"""Messages out of arbitrary bytes, and back: what a mutated input still means, whatever it is.

Reading never fails. Where bytes are missing, zero and empty are read. ``Pack`` writes what ``Draw`` reads, so that
the vectors' messages become seeds.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, Final

from mqauth.wire import destination
from mqauth.wire.json_form import PROPERTIES
from mqauth.wire.message import HeaderPair, HeaderValue, Message, Origin

NAMES: Final = (
    "mqauth-token", "MQAUTH-Token", "mqauth-release", "mqauth-dead-token", "mqauth-dead-metadata",
    "mqauth-dead-form", "x-death", "X-Death", "x-delivery-count", "BCC", "CC", "bcc", "x-delay", "timestamp_in_ms",
    "content-type", "Content-Type", "type", "message-id", "reply-to", "traceparent", "tenant", "Tenant", "a", "A",
    "",
)  # fmt: skip
"""Header names that mean something to some reader."""
DEPTH: Final = 34
"""Two more levels than a header value may have."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_CENTURIES: Final = 200_000_000_000


class Draw:
    """Reads values from bytes.

    Args:
        raw: anything.
    """

    def __init__(self, raw: bytes) -> None:
        self._raw, self._at = raw, 0

    def octets(self, size: int) -> bytes:
        """Return the next bytes, fewer at the end."""
        self._at += size
        return self._raw[self._at - size : self._at]

    def rest(self) -> bytes:
        """Return all that is left."""
        return self.octets(len(self._raw))

    def number(self, size: int = 1) -> int:
        """Return an unsigned integer of some bytes."""
        return int.from_bytes(self.octets(size), "big")

    def some(self) -> bytes:
        """Return bytes whose length stands before them: one byte, or 255 and two more."""
        size = self.number()
        return self.octets(self.number(2) if size == 255 else size)

    def text(self) -> str:
        """Return text; bytes that are not UTF-8 become lone surrogates."""
        return self.some().decode("utf-8", "surrogateescape")

    def _sendable(self, otherwise: str) -> str:
        """Return text that has a UTF-8 form and is not empty, as names of brokers are."""
        text = self.text()
        return (
            text
            if text and not any("\ud800" <= char <= "\udfff" for char in text)
            else otherwise
        )

    def name(self) -> str:
        """Return a header name: one that means something, or any text."""
        place = self.number()
        return NAMES[place] if place < len(NAMES) else self.text()

    def value(self, depth: int = DEPTH) -> Any:
        """Return a header value, of foreign types too."""
        return _VALUES[self.number() % len(_VALUES)](self, depth)

    def listed(self, read: Callable[[], Any]) -> list[Any]:
        """Return as many as one byte says, but none once the bytes are at their end."""
        return [read() for _ in range(self.number()) if self._at < len(self._raw)]

    def message(self) -> Message:
        """Return a message, on Kafka if the first byte is odd."""
        on_kafka = self.number() % 2
        pairs: list[HeaderPair] = self.listed(lambda: (self.name(), self.value()))
        exchange = "" if on_kafka else self._sendable("")
        name = self._sendable("t")
        if on_kafka:
            headers = [
                (name, value)
                for name, value in pairs
                if value is None or isinstance(value, bytes)
            ]
            key, has_body = (
                (self.some() if self.number() % 2 else None),
                self.number() % 2,
            )
            return Message(
                destination=destination.kafka(name), headers=tuple(headers), key=key,
                body=self.rest() if has_body else None,
                origin=Origin(topic=name, partition=0, offset=7, scope="s"),
            )  # fmt: skip
        found = dict(
            self.listed(
                lambda: (PROPERTIES[self.number() % len(PROPERTIES)], self.text())
            )
        )
        return Message(
            destination=destination.rabbitmq(exchange, name), headers=tuple(dict(pairs).items()), properties=found,
            body=self.rest(), origin=Origin(queue="q", scope="s", exchange=exchange, routing_key=name),
        )  # fmt: skip


def _time(draw: Draw, _depth: int) -> datetime:
    seconds = draw.number(8) % (2 * _CENTURIES) - _CENTURIES
    moment = _EPOCH + timedelta(
        seconds=max(-62_000_000_000, seconds), microseconds=draw.number()
    )
    zone = draw.number()
    return (
        moment.replace(tzinfo=None)
        if zone == 1
        else moment.astimezone(timezone(timedelta(minutes=zone)))
    )


def _decimal(draw: Draw, _depth: int) -> Decimal:
    digits, exponent = draw.number(5) - 2**39, draw.number(2) - 2**15
    return Decimal(digits).scaleb(exponent) if draw.number() else Decimal("NaN")


def _list(draw: Draw, depth: int) -> HeaderValue:
    return tuple(draw.listed(lambda: draw.value(depth - 1))) if depth else ()


def _table(draw: Draw, depth: int) -> HeaderValue:
    return (
        dict(draw.listed(lambda: (draw.text(), draw.value(depth - 1)))) if depth else {}
    )


_VALUES: Final[tuple[Callable[[Draw, int], Any], ...]] = (
    lambda draw, _: draw.some(),
    lambda draw, _: draw.text(),
    lambda draw, _: None,
    lambda draw, _: draw.number() % 2 == 1,
    lambda draw, _: int.from_bytes(draw.octets(9), "big", signed=True),
    lambda draw, _: struct.unpack(">d", draw.octets(8).rjust(8, b"\0"))[0],
    _list,
    _table,
    _time,
    _decimal,
    lambda draw, _: {1, 2},
)
"""What reads a value, by its tag."""


def packed(value: Any) -> bytes:
    """Return bytes that ``Draw.value`` reads as a value."""
    if isinstance(value, Mapping):
        items = b"".join(sized(name) + packed(item) for name, item in value.items())
        return bytes((7, len(value))) + items
    if isinstance(value, tuple):
        return bytes((6, len(value))) + b"".join(map(packed, value))
    if isinstance(value, datetime):
        return (
            b"\x08" + (int(value.timestamp()) + _CENTURIES).to_bytes(8, "big") + b"\0\0"
        )
    if isinstance(value, Decimal):
        _, digits, exponent = value.as_tuple()
        number = int("".join(map(str, digits))) * (-1 if value < 0 else 1)
        # one of more digits than a draw has becomes the largest that there is
        number = max(-(2**39), min(number, 2**39 - 1))
        return (
            b"\x09"
            + (number + 2**39).to_bytes(5, "big")
            + (int(exponent) + 2**15).to_bytes(2, "big")
            + b"\1"
        )
    return next(write(value) for kind, write in _WRITERS if isinstance(value, kind))


_WRITERS: Final[tuple[tuple[type, Callable[[Any], bytes]], ...]] = (
    (bytes, lambda value: b"\0" + sized(value)),
    (str, lambda value: b"\1" + sized(value)),
    (type(None), lambda value: b"\2"),
    (bool, lambda value: bytes((3, value))),
    (int, lambda value: b"\4" + value.to_bytes(9, "big", signed=True)),
    (float, lambda value: b"\5" + struct.pack(">d", value)),
)


def sized(value: bytes | str) -> bytes:
    """Return bytes that ``Draw.some`` or ``Draw.text`` reads."""
    raw = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
    return (
        bytes((len(raw),)) if len(raw) < 255 else b"\xff" + len(raw).to_bytes(2, "big")
    ) + raw


def packed_message(message: Message) -> bytes:
    """Return bytes that ``Draw.message`` reads as a message, without its origin."""
    scheme, *places = destination.parse(message.destination)
    on_kafka = scheme == destination.KAFKA
    parts = [bytes((on_kafka, len(message.headers)))]
    for name, value in message.headers:
        parts += (
            bytes((NAMES.index(name),)) if name in NAMES else b"\xff" + sized(name),
            packed(value),
        )
    parts += map(sized, places)
    if on_kafka:
        parts.append(b"\0" if message.key is None else b"\1" + sized(message.key))
        return b"".join((*parts, b"\0" if message.body is None else b"\1" + message.body))
    parts.append(bytes((len(message.properties),)))
    parts += (
        bytes((PROPERTIES.index(name),)) + sized(text)
        for name, text in message.properties.items()
    )
    return b"".join((*parts, message.body or b""))
