"""The verified message: another type than ``Message``, which only the verifier can make."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, NoReturn

from mqauth.claims import Claims
from mqauth.errors import ConfigurationError, RejectNow, RetryLater
from mqauth.keys import Key
from mqauth.message import PROTECTED_PROPERTIES, HeaderPair, HeaderValue, Message, Origin
from mqauth.release import Release

Responder = Callable[["Verified", bytes], Awaitable[Any] | Any]
_MAKER: Final = object()


class Verified:
    """A message whose token holds, as a handler sees it: covered headers only, the rest through ``native``.

    Attributes:
        body: the raw bytes, ``None`` for a Kafka tombstone.
        key: the Kafka record key, or ``None``.
        headers: the covered application headers, in order.
        destination: canonical, as broker and token agree.
        claims: the verified claim set.
        kid: the key that signed.
        index: the message's place in its batch, ``None`` where it has a token of its own.
        key_set: version of the key set it was judged by.
        received: UTC seconds at which this process first received the delivery.
        origin: what the broker says of the delivery.
        native: the client library's own message; only what is covered in it is verified.
        value: the decoded body where the consumer was given ``decode=``, else ``None``.
        release: the reviewer's release by which a dead letter came back, else ``None``.
    """

    __slots__ = (
        "_message", "_responder", "body", "claims", "destination", "headers", "index", "key", "key_set", "kid",
        "native", "origin", "received", "release", "value",
    )  # fmt: skip

    body: bytes | None
    key: bytes | None
    headers: tuple[HeaderPair, ...]
    destination: str
    claims: Claims
    kid: str
    index: int | None
    key_set: str
    received: float
    origin: Origin
    native: Any
    value: Any
    release: Release | None
    _message: Message
    _responder: Responder | None

    def __init__(self, maker: object, /, **fields: Any) -> None:
        if maker is not _MAKER:
            raise ConfigurationError("only a verifier makes a Verified; mqauth.testing.verified() seals one")
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("a Verified cannot be changed")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError("a Verified cannot be changed")

    def __repr__(self) -> str:
        return f"Verified({self.destination!r}, issuer={self.issuer!r}, subject={self.subject!r})"

    @property
    def issuer(self) -> str:
        """The verified ``iss``."""
        return self.claims.iss

    @property
    def subject(self) -> str:
        """The verified ``sub``: the producer."""
        return self.claims.sub

    @property
    def audience(self) -> str:
        """The verified ``aud``."""
        return self.claims.aud

    @property
    def jti(self) -> str:
        """The token's id; the messages of a batch share it, and have each an ``index``."""
        return self.claims.jti

    @property
    def properties(self) -> dict[str, str]:
        """The seven protected properties that are present, as text."""
        found = ((name, self._message.text_property(name)) for name in PROTECTED_PROPERTIES)
        return {name: value for name, value in found if value is not None}

    def header(self, name: str) -> HeaderValue:
        """Return the last value of a covered header, ``None`` where it is absent."""
        found = [value for header, value in self.headers if header == name]
        return found[-1] if found else None

    def reply(self, body: bytes) -> Awaitable[Any] | Any:
        """Publish a signed answer to the message's reply-to, with its correlation id.

        Returns:
            What the broker wrapper's publish returns; on RabbitMQ an awaitable.

        Raises:
            ConfigurationError: the consumer was given no ``replies`` signer.
        """
        if self._responder is None:
            raise ConfigurationError("give the consumer replies=Signer(...) to answer messages")
        return self._responder(self, body)


def make_verified(
    message: Message,
    claims: Claims,
    *,
    key: Key,
    key_set: str,
    received: float,
    release: Release | None = None,
    index: int | None = None,
) -> Verified:
    """Return the verified view of a message; for the verifier alone."""
    covered = set(claims.mqa.hdr)
    return Verified(
        _MAKER,
        body=message.body,
        key=message.key,
        headers=tuple(pair for pair in message.headers if pair[0] in covered),
        destination=message.destination,
        claims=claims,
        kid=key.kid,
        index=index,
        key_set=key_set,
        received=received,
        origin=message.origin,
        native=message.native,
        value=None,
        release=release,
        _message=message,
        _responder=None,
    )


def equip(verified: Verified, *, responder: Responder | None = None, value: Any = None) -> Verified:
    """Return the verified message with a way to reply and a decoded value; for broker wrappers."""
    fields = {name: getattr(verified, name) for name in Verified.__slots__}
    return Verified(_MAKER, **(fields | {"_responder": responder, "value": value}))


def decoded(verified: Verified, decode: Callable[[bytes], Any] | None) -> Any:
    """Return a verified body's value, ``None`` for a tombstone or without ``decode``; for broker wrappers.

    Raises:
        RejectNow: ``decode`` failed: it would fail again. What it raised may quote the body, so its type alone
            is named. Its own ``RetryLater`` passes, of a schema registry out of reach for example.
    """
    if decode is None or verified.body is None:
        return None
    try:
        return decode(verified.body)
    except (RejectNow, RetryLater):
        raise
    except Exception as error:
        raise RejectNow(f"decode: {type(error).__name__}") from error
