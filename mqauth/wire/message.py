"""The message that deliveries of every broker are translated to: raw bytes, header pairs in order, and an origin.

Nothing here interprets what a sender wrote. ``destination`` and ``Origin`` are what the broker says.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from operator import itemgetter
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias

from mqauth.errors import require

HeaderValue: TypeAlias = (
    None
    | bool
    | int
    | float
    | str
    | bytes
    | datetime
    | Decimal
    | tuple["HeaderValue", ...]
    | Mapping[str, "HeaderValue"]
)
HeaderPair: TypeAlias = tuple[str, HeaderValue]
TimestampType: TypeAlias = Literal["append", "create"]
Place: TypeAlias = tuple[str, str, int, int]
"""Cluster, topic with its id, partition and offset: the exact place of a record in a Kafka log."""
Form: TypeAlias = tuple[str, tuple[str, ...], tuple[str, ...]]
"""Destination, names of headers, names of properties: what messages of one kind have in common, and no values."""

TOKEN_HEADER: Final = "mqauth-token"
PROTECTED_PROPERTIES: Final = (
    "content-type",
    "content-encoding",
    "type",
    "message-id",
    "correlation-id",
    "reply-to",
    "app-id",
)
"""The seven properties that change a message's meaning; always covered, on Kafka as headers of these names."""

_LOWER: Final = {ord(letter): letter.lower() for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}
_RECORD: Final = re.compile(
    r"([^/]+)/([0-9]{1,10})/([0-9]{1,20})(?:@(.{0,64}?)(?:/([A-Za-z0-9_-]{22}))?)?"
)
NO_PROPERTIES: Final[Mapping[str, str]] = MappingProxyType({})
_NAME: Final = itemgetter(0)
_NO_NAMES: Final[tuple[str, ...]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What the broker, and never the sender, says of a delivery.

    Args:
        scope: the consumer group or queue on whose behalf the message was received.
        cluster: the id of the Kafka cluster.
        topic, partition, offset: where Kafka put the record; it is exact, so a redelivery can be told from a copy.
        topic_id: the id of the topic (KIP-516); it changes if the topic is deleted and made anew.
        queue, exchange, routing_key: where RabbitMQ took the message from.
        redelivered: RabbitMQ's hint that this may have been delivered before.
        timestamp_ms: UTC milliseconds; evidence of the append time only if ``timestamp_type`` is ``append``.
    """

    scope: str | None = None
    cluster: str | None = None
    topic: str | None = None
    partition: int | None = None
    offset: int | None = None
    queue: str | None = None
    exchange: str | None = None
    routing_key: str | None = None
    redelivered: bool = False
    timestamp_ms: int | None = None
    timestamp_type: TimestampType | None = None
    topic_id: str | None = None

    @property
    def coordinates(self) -> Place | None:
        """The exact place in a Kafka log, or ``None`` if the broker gives none."""
        if self.topic is None or self.partition is None or self.offset is None:
            return None
        log = self.topic if self.topic_id is None else f"{self.topic}:{self.topic_id}"
        return self.cluster or "", log, self.partition, self.offset

    @property
    def source(self) -> str:
        """The queue that a delivery came from, or ``topic/partition/offset@cluster/topic_id``."""
        if self.topic is None:
            return self.queue or ""
        position = f"{self.topic}/{self.partition}/{self.offset}"
        if self.cluster is None and self.topic_id is None:
            return position
        return f"{position}@{self.cluster or ''}" + (
            f"/{self.topic_id}" if self.topic_id else ""
        )

    @classmethod
    def of_record(cls, source: str, *, scope: str | None) -> Origin | None:
        """Return the origin of the Kafka record that a ``source`` names, ``None`` if it names none.

        Args:
            source: text in the form of the property ``source``; it may be anything.
            scope: the consumer group.
        """
        match = _RECORD.fullmatch(source)
        if match is None:
            return None
        return cls(
            scope=scope,
            topic=match[1],
            partition=int(match[2]),
            offset=int(match[3]),
            cluster=match[4] or None,
            topic_id=match[5],
        )


NO_ORIGIN: Final = Origin()
NEW_OBJECT: Final = object.__new__
NEW_TUPLE: Final = tuple.__new__
"""Makes a ``NamedTuple`` at a third of the price of a call, where one is made for every message."""


def _draft(kind: type) -> type:
    """Return a class for the instances of a frozen class that are being made: their slots are plainly assigned.

    The last assignment is that of ``__class__``: from then on the instance is as frozen as any other. ``__init__``
    of a frozen class makes a call for each slot.
    """
    # both: the interpreter asks them through one function, which is a slow one unless both are of ``object``
    plain = {"__setattr__": object.__setattr__, "__delattr__": object.__delattr__}
    return type(f"{kind.__name__}Draft", (kind,), {"__slots__": (), **plain})


_ORIGIN_DRAFT: Final = _draft(Origin)


def kafka_origin(  # noqa: PLR0917 - by name would cost what it saves
    scope: str,
    topic: str | None,
    partition: int | None,
    offset: int | None,
    timestamp_ms: int | None,
    timestamp_type: TimestampType,
    cluster: str | None,
    topic_id: str | None,
) -> Origin:
    """Return the ``Origin`` of a Kafka record, in a tenth of the time of the class: every record has one."""
    origin: Any = NEW_OBJECT(_ORIGIN_DRAFT)
    origin.scope, origin.cluster, origin.topic, origin.topic_id = (
        scope,
        cluster,
        topic,
        topic_id,
    )
    origin.partition, origin.offset = partition, offset
    origin.queue = origin.exchange = origin.routing_key = None
    origin.redelivered = False
    origin.timestamp_ms, origin.timestamp_type = timestamp_ms, timestamp_type
    origin.__class__ = Origin
    return origin  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Message:
    """One message, as raw as the broker gave it; ``repr`` shows neither its body nor its headers.

    Args:
        destination: where the broker delivered it, in its canonical form (``mqauth.wire.destination``).
        body: the raw bytes; ``None`` is a Kafka tombstone.
        key: the Kafka record key, or ``None``.
        properties: AMQP properties by their hyphenated names; empty on Kafka.
        headers: pairs in order; names may repeat.
        origin: what the broker says of the delivery.
        native: the object of the client library.
        malformed: why the native message could not be represented, if it could not.
    """

    destination: str
    body: bytes | None
    key: bytes | None = None
    properties: Mapping[str, str] = field(default_factory=lambda: NO_PROPERTIES)
    headers: tuple[HeaderPair, ...] = ()
    origin: Origin = NO_ORIGIN
    native: object = field(default=None, compare=False)
    malformed: str | None = None

    def __repr__(self) -> str:
        size = None if self.body is None else len(self.body)
        return f"Message({self.destination!r}, {size} bytes, {len(self.headers)} headers)"

    def occurrences(self, name: str) -> tuple[HeaderValue, ...]:
        """Return the values of a header, in order; names are case-sensitive."""
        return tuple(value for header, value in self.headers if header == name)

    def property_values(self, name: str) -> tuple[HeaderValue, ...]:
        """Return the values of one of the seven protected properties; at most one on RabbitMQ.

        Args:
            name: one of ``PROTECTED_PROPERTIES``.
        """
        if self.destination.startswith("kafka:"):
            return self.occurrences(name)
        value = self.properties.get(name)
        return () if value is None else (value,)

    def text_property(self, name: str) -> str | None:
        """Return a protected property as text, ``None`` unless it stands exactly once."""
        values = self.property_values(name)
        value = values[0] if len(values) == 1 else None
        if isinstance(value, bytes):
            return value.decode("utf-8", "replace")
        return value if isinstance(value, str) else None


_MESSAGE_DRAFT: Final = _draft(Message)


def message_of(  # noqa: PLR0917 - as above
    destination: str,
    body: bytes | None,
    key: bytes | None,
    properties: Mapping[str, str],
    headers: tuple[HeaderPair, ...],
    origin: Origin,
    native: object,
    malformed: str | None,
) -> Message:
    """Return a ``Message``, in a tenth of the time of the class: broker wrappers make one for each delivery."""
    message: Any = NEW_OBJECT(_MESSAGE_DRAFT)
    message.destination, message.body, message.key, message.properties = (
        destination,
        body,
        key,
        properties,
    )
    message.headers, message.origin, message.native, message.malformed = (
        headers,
        origin,
        native,
        malformed,
    )
    message.__class__ = Message
    return message  # type: ignore[no-any-return]


def fold(name: str) -> str:
    """Return a header name with its ASCII letters in lower case; names that are then equal differ in case only.

    Other letters stay, since what their lower case is depends on the reader's version of Unicode.
    """
    return name.lower() if name.isascii() else name.translate(_LOWER)


def form_of(message: Message) -> Form:
    """Return the form of a message: all that follows from its names is worked out once for it."""
    names, properties = tuple(map(_NAME, message.headers)), message.properties
    return (
        message.destination,
        names,
        _NO_NAMES if properties is NO_PROPERTIES else tuple(properties),
    )


MIN_PREFIX: Final = 4
"""Fewest characters before the ``*``: ``x-*`` would be most names there are."""


class HeaderNames:
    """Names, or beginnings of names and a ``*``, in any case.

    Args:
        setting: what they are called, for refusals.
        names: exact, or at least 4 characters and a ``*``.
        required: names that may not be among them.

    Attributes:
        names: all of them, folded.

    Raises:
        ConfigurationError: one is neither; or it is a protected property, mqauth's own, or required.
    """

    def __init__(
        self, setting: str, names: Iterable[str], required: Iterable[str] = ()
    ) -> None:
        require(
            not isinstance(names, str),
            f"{setting} is a list of names: a text would name its letters",
        )
        folded = tuple(fold(name) for name in names)
        self.names = frozenset(folded)
        self._exact = frozenset(name for name in folded if not name.endswith("*"))
        self._prefixes = tuple(name[:-1] for name in folded if name.endswith("*"))
        require(
            all(self._exact)
            and not any("*" in name for name in (*self._exact, *self._prefixes)),
            f"{setting}: a name is not empty, and a * stands at its end alone",
        )
        require(
            all(len(prefix) >= MIN_PREFIX for prefix in self._prefixes),
            f"{setting}: at least {MIN_PREFIX} characters stand before a *",
        )
        own = any(name.startswith("mqauth-") for name in (*self._exact, *self._prefixes))
        for name in (*PROTECTED_PROPERTIES, TOKEN_HEADER, *required):
            require(
                name not in self and not own,
                f"{setting} may not hold {TOKEN_HEADER if own else name}",
            )

    def __contains__(self, name: str) -> bool:
        folded = fold(name)
        return folded in self._exact or folded.startswith(self._prefixes)

    @property
    def broad(self) -> tuple[str, ...]:
        """The beginnings that end within a word, and so may be those of other names too."""
        return tuple(
            f"{prefix}*"
            for prefix in self._prefixes
            if not prefix.endswith(("-", "_", "."))
        )

    def without(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return the names that are none of these."""
        return tuple(name for name in names if name not in self)
