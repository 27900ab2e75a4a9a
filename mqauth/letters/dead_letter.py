"""Dead letters: a rejected message and the reason, in a form that nobody can take for a valid message.

Body and headers stay byte for byte; only the token moves to ``mqauth-dead-token``. Properties and headers that
would have an effect when the letter is sent (``user-id``, ``expiration``, ``CC``, ``BCC``, ``x-delay``,
``reply-to``), and headers that the client cannot encode again, are kept as metadata. Headers in mqauth's own names
on the rejected message were written by its sender: they are removed and counted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Any, Final, Literal, Protocol, TypeAlias

from mqauth.audit.record import iso_time
from mqauth.errors import Cause, MalformedMessage, Rejection, Unavailable, require
from mqauth.letters.release import NO_PAST, Release
from mqauth.logs import harmless
from mqauth.wire import base64url, destination, envelope, json_form, strict_json
from mqauth.wire.message import (
    NO_PROPERTIES,
    TOKEN_HEADER,
    HeaderPair,
    HeaderValue,
    Message,
    fold,
)

PREFIX: Final = "mqauth-dead-"
LIVE_PROPERTIES: Final = frozenset(
    (
        "user-id",
        "expiration",
        "reply-to",
        "message-id",
        "delivery-mode",
        "cluster-id",
        "timestamp",
    )
)
"""Properties that act on a letter itself, or that RabbitMQ's interceptor overwrites on it; those of the original
are in the letter's metadata."""
WRITTEN_ON_LETTERS: Final = frozenset(
    ("timestamp_in_ms", "x-delivery-count", "x-acquired-count")
)
"""Headers that RabbitMQ writes on a letter, so that a reader cannot tell those of the original."""
LIVE_HEADERS: Final = frozenset(("CC", "BCC", "x-delay", "reply-to", "timestamp_in_ms"))
"""Headers that route, delay or answer a letter; the broker overwrites the last one."""
_MAX_KEY: Final = 1024
MAX_HEADERS: Final = 1000
"""Most headers of a message that a letter keeps."""
_ONCE: Final = (1).to_bytes(4, "big")
_OF_RECORDS: Final = frozenset((bytes, type(None)))
Carries = Callable[[str, HeaderValue], bool]
Oversize: TypeAlias = Literal["reference", "stop"]
"""What happens to a message that fits no other form: a letter that only names it, or no letter, so that the
message is deferred."""


class DeadLetterSink(Protocol):
    """A queue or topic for dead letters; ``publish`` returns only once the broker has confirmed the letter."""

    @property
    def name(self) -> str:
        """The queue or topic."""

    def publish(self, letter: DeadLetter, /) -> Any:
        """Publish one letter in the first of its forms that fits, and wait for the confirm.

        Raises:
            Unavailable: ``dead_letter_unavailable``: unroutable, refused, timed out or not reachable.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """One rejected message with its history; ``forms`` turns it into messages that a broker can carry.

    Args:
        message: as it was rejected.
        rejection: why.
        scope: the consumer group or queue that rejected it.
        time: UTC seconds of the verdict.
        audit: id of the audit record, which is durable before the letter is published.
        release: the verified release that the message came with; earlier letters are believed from it alone.
        digest: SHA-256 over body and headers, without what brokers add on delivery; computed unless given.
        error: the error id of a handler's failure.
        rung: the rung of its destination, if the message was handled without a proof of who sent it.

    Attributes:
        id: SHA-256 over scope, source and content: the same for a copy that is made after a crash.
    """

    message: Message
    rejection: Rejection
    scope: str
    time: float
    audit: str
    release: Release | None = None
    digest: str = ""
    error: str | None = None
    rung: str | None = None
    id: str = field(init=False)

    def __post_init__(self) -> None:
        digest = self.digest or content_digest(self.message)
        object.__setattr__(self, "digest", digest)
        object.__setattr__(self, "id", letter_id(self.message, self.scope, digest=digest))

    def whole(self, carries: Carries) -> Message:
        """Return the letter with the original body, and the headers as headers.

        Args:
            carries: tells which header names and values the client can send again.
        """
        message = self.message
        # The headers that stay headers; the others are metadata, with their places among all headers. Places do
        # not count what RabbitMQ may have written: a reader takes that off the letter first.
        kept: list[HeaderPair] = []
        metadata: dict[str, Any] = {"headers": [], "places": [], "stripped": 0}
        written = (
            frozenset[str]()
            if destination.is_kafka(message.destination)
            else WRITTEN_ON_LETTERS
        )
        moved, position = False, 0
        for name, value in message.headers:
            lowered = fold(name)
            # One token stays a header. A second one is kept as evidence only.
            token = name == TOKEN_HEADER and not moved
            if lowered.startswith(PREFIX):
                metadata["stripped"] += 1
            elif (
                name in LIVE_HEADERS
                or not carries(name, value)
                or (lowered == TOKEN_HEADER and not token)
            ):
                metadata["places"].append(position)
                metadata["headers"].append(
                    [json_form.writable(name), json_form.value_to_form(value)]
                )
                position += 1
            else:
                kept.append((f"{PREFIX}token" if token else name, value))
                moved = moved or token
                position += name not in written
        metadata["properties"] = {
            name: json_form.writable(value)
            for name, value in message.properties.items()
            if name in LIVE_PROPERTIES
        }
        return replace(
            message,
            properties={
                name: value
                for name, value in message.properties.items()
                if name not in LIVE_PROPERTIES
            },
            headers=(*kept, *self._lineage(metadata)),
            native=None,
        )

    def in_body(self) -> Message:
        """Return the letter with the whole message in its body, in the JSON form."""
        return self._bare(
            strict_json.dumps(json_form.to_form(replace(self.message, malformed=None))),
            "json",
        )

    def reference(self) -> Message:
        """Return a letter that only names the message: its place, its digest and its sizes."""
        message = self.message
        size = None if message.key is None else len(message.key)
        letter = self._bare(
            strict_json.dumps(
                {
                    "destination": message.destination,
                    "source": json_form.writable(message.origin.source),
                    "digest": self.digest,
                    "body_size": None if message.body is None else len(message.body),
                    "key_size": size,
                    "headers": len(message.headers),
                }
            ),
            "reference",
        )
        # A long record key is left out, or no form of a message that is nearly all key would fit.
        return letter if size is None or size <= _MAX_KEY else replace(letter, key=None)

    def forms(
        self,
        carries: Carries,
        fits: Callable[[Message], bool],
        oversize: Oversize = "reference",
    ) -> Iterator[Message]:
        """Yield the forms of the letter that fit, the most complete first; each is made only when it is asked for.

        Args:
            carries: tells which header names and values the client can send again.
            fits: tells whether a message is within the broker's limits.
            oversize: whether the reference is among the forms.
        """
        # Of a message with more headers there is only the reference: one with 330,000 of them would take seconds
        # of the consumer's time.
        complete = (
            (lambda: self.whole(carries), self.in_body)
            if len(self.message.headers) <= MAX_HEADERS
            else ()
        )
        yield from filter(
            fits,
            (
                make()
                for make in (
                    *complete,
                    *((self.reference,) if oversize == "reference" else ()),
                )
            ),
        )

    def _bare(self, body: bytes, form: str) -> Message:
        """Return a letter whose only headers are mqauth's own."""
        return replace(
            self.message,
            body=body,
            properties=NO_PROPERTIES,
            headers=(*self._lineage({}), (f"{PREFIX}form", form)),
            native=None,
            malformed=None,
        )

    def _lineage(self, metadata: Mapping[str, Any]) -> tuple[HeaderPair, ...]:
        """Return mqauth's headers on a letter, all of them text."""
        message = self.message
        key = (
            None
            if message.key is None or len(message.key) > _MAX_KEY
            else base64url.encode(message.key)
        )
        kept = {name: value for name, value in metadata.items() if value}
        past = NO_PAST if self.release is None else self.release.lineage
        return tuple(
            (PREFIX + name, value)
            for name, value in {
                "id": self.id,
                "reason": self.rejection.reason.value,
                "detail": harmless(self.rejection.sentence(whole=False)),
                "error": self.error,
                "time": iso_time(self.time),
                # As they are, for the letter's id is of both; whoever shows them makes them harmless.
                "scope": json_form.writable(self.scope),
                "destination": message.destination,
                "source": json_form.writable(message.origin.source),
                "audit": self.audit,
                "digest": self.digest,
                "count": str(past.count + 1),
                "history": strict_json.dumps(
                    [
                        {
                            "id": hop.letter,
                            "reason": hop.reason,
                            "released": iso_time(hop.time),
                        }
                        for hop in past.hops
                    ]
                ).decode("ascii"),
                "rung": self.rung,
                "key": None if key is None else key.decode("ascii"),
                "metadata": strict_json.dumps(kept).decode("utf-8") if kept else None,
            }.items()
            if value is not None
        )


def name_of(sink: DeadLetterSink) -> str:
    """Return the queue or topic of a sink.

    Raises:
        ConfigurationError: it has no name.
    """
    return str(
        require(
            getattr(sink, "name", None),
            "a sink of dead letters has a name, its queue or topic",
        )
    )


def check_oversize(oversize: Oversize) -> None:
    """Check the setting ``oversize_letters``.

    Raises:
        ConfigurationError: it is neither ``"reference"`` nor ``"stop"``.
    """
    require(
        oversize in ("reference", "stop"), 'oversize_letters is "reference" or "stop"'
    )


def undelivered(detail: str) -> Unavailable:
    """Return the error of a dead letter that could not be published yet."""
    return Unavailable(Cause.DEAD_LETTER_UNAVAILABLE, detail)


def content_digest(message: Message) -> str:
    """Return hex SHA-256 over destination, key, body, properties and headers, without those that brokers write."""
    parts: list[bytes] = [b"mqauth-letter-1"]
    envelope.add_named(parts, "destination", (message.destination,))
    envelope.add_named(parts, "key", (message.key,))
    envelope.add_named(parts, "body", (message.body,))
    for name in sorted(message.properties):
        _add_any(parts, name, str(message.properties[name]))
    # Sorted, because pamqp sorts the entries of a table when it sends them, and the letter's digest must be the
    # same.
    pairs = [
        pair
        for pair in sorted(message.headers, key=itemgetter(0))
        if not (pair[0].startswith("x-") and envelope.is_broker_written(pair[0]))
    ]
    # A record of 1 MB may have 330,000 of them: those of one kind, as all are on Kafka, are encoded in one go.
    if set(map(type, map(itemgetter(1), pairs))) <= _OF_RECORDS:
        with suppress(UnicodeEncodeError):
            octets = _of_record(pairs)
            return hashlib.sha256(b"".join(parts + octets)).hexdigest()
    for name, value in pairs:
        _add_any(parts, name, value)
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _of_record(pairs: Iterable[HeaderPair]) -> list[bytes]:
    """Return headers of octets and null, each as ``envelope.add_named`` encodes it."""
    return [
        b"h"
        + len(raw := name.encode()).to_bytes(4, "big")
        + raw
        + _ONCE
        + (b"n" if value is None else b"b" + len(value).to_bytes(4, "big") + value)  # type: ignore[arg-type,operator]
        for name, value in pairs
    ]


def letter_id(message: Message, scope: str, *, digest: str | None = None) -> str:
    """Return hex SHA-256 over scope, source and content digest.

    Args:
        message: as it was rejected.
        scope: the consumer group or queue that rejected it.
        digest: its content digest, if that is known already.
    """
    parts: list[bytes] = [b"mqauth-letter-id-1"]
    _add_any(parts, "scope", scope)
    _add_any(parts, "source", message.origin.source)
    _add_any(parts, "digest", content_digest(message) if digest is None else digest)
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _add_any(parts: list[bytes], name: str, value: HeaderValue) -> None:
    """Append a name and a value; one that has no encoding counts by its JSON form, so that this never fails."""
    size = len(parts)
    try:
        envelope.add_named(parts, name, (value,))
    except MalformedMessage:
        del parts[size:]
        raw = strict_json.dumps(
            [json_form.writable(name), json_form.value_to_form(value)]
        )
        parts.append(b"?" + len(raw).to_bytes(4, "big") + raw)
