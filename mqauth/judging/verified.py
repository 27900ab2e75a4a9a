"""What handlers get: the verified message, a type of its own, which only the verifier can make.

Below ``enforce`` another handler gets an ``Unverified``, of which nothing proved who sent it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from copy import deepcopy
from dataclasses import InitVar, dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, NoReturn, TypeAlias

from mqauth.errors import Cause, Reason, RejectNow, Verdict, require
from mqauth.letters.release import Release
from mqauth.wire.claims import Claims
from mqauth.wire.identity import Identity
from mqauth.wire.message import (
    NEW_OBJECT,
    NEW_TUPLE,
    PROTECTED_PROPERTIES,
    HeaderPair,
    HeaderValue,
    Message,
    Origin,
)

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    # The type of the value; whoever writes ``Verified`` alone leaves it open (PEP 696).
    V = TypeVar("V", default=Any)
    V_co = TypeVar("V_co", default=Any, covariant=True)
else:
    from typing import TypeVar

    V = TypeVar("V")
    V_co = TypeVar("V_co", covariant=True)
Responder = Callable[["Verified", bytes], Awaitable[Any] | Any]
Decode: TypeAlias = Callable[[bytes], V] | Callable[[bytes, "Verified"], V]
"""Makes the value of a body; where it requires a second argument, that is the ``Verified``, with its headers."""
_MAKER: Final = object()


class _Facts(NamedTuple):
    """What a ``Verified`` shows."""

    message: Message
    claims: Claims
    kid: str
    key_set: str
    received: float
    release: Release | None = None
    place: int | None = None
    value: Any = None
    responder: Responder | None = None
    identity: Identity | None = None


class Verified(Generic[V_co]):
    """A message whose token holds, as a handler sees it: only what is covered; the rest is in ``native``."""

    __slots__ = ("_facts",)

    _facts: _Facts

    def __init__(self, maker: object, facts: _Facts, /) -> None:
        require(
            maker is _MAKER,
            "only a verifier makes a Verified; mqauth.testing.verified() seals one",
        )
        _SET_FACTS(self, facts)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("a Verified cannot be changed")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError("a Verified cannot be changed")

    def __repr__(self) -> str:
        return f"Verified({self.destination!r}, issuer={self.issuer!r}, subject={self.subject!r})"

    @property
    def body(self) -> bytes | None:
        """The raw bytes; ``None`` for a Kafka tombstone."""
        return self._facts.message.body

    @property
    def key(self) -> bytes | None:
        """The Kafka record key, or ``None``."""
        return self._facts.message.key

    @property
    def headers(self) -> tuple[HeaderPair, ...]:
        """The covered application headers, in order; the others are in ``native``, and not verified."""
        covered = set(self._facts.claims.mqa.hdr)
        return tuple(pair for pair in self._facts.message.headers if pair[0] in covered)

    @property
    def destination(self) -> str:
        """The destination in its canonical form; broker and token agree on it."""
        return self._facts.message.destination

    @property
    def claims(self) -> Claims:
        """The verified claim set; what its caller changes in it, nobody else sees."""
        # The siblings of a batch share one claim set.
        claims = self._facts.claims
        return (
            claims if not claims.extra else claims._replace(extra=deepcopy(claims.extra))
        )

    @property
    def kid(self) -> str:
        """The id of the key that signed; in the identity form that of the authority, which vouched for the key."""
        return self._facts.kid

    @property
    def identity(self) -> Identity | None:
        """What the authority of a trust domain says of the producer; ``None`` in the direct form.

        What its caller changes in the claims, nobody else sees.
        """
        # Messages share what is remembered of their WIT.
        identity = self._facts.identity
        if identity is None or not any(
            isinstance(value, dict | list) for value in identity.claims.values()
        ):
            return identity
        return identity._replace(claims=deepcopy(dict(identity.claims)))

    @property
    def index(self) -> int | None:
        """The message's place in its batch; ``None`` if it has a token of its own."""
        return self._facts.place

    @property
    def key_set(self) -> str:
        """The version of the key set it was judged by."""
        return self._facts.key_set

    @property
    def received(self) -> float:
        """UTC seconds at which this process first received the delivery."""
        return self._facts.received

    @property
    def origin(self) -> Origin:
        """What the broker says of the delivery."""
        return self._facts.message.origin

    @property
    def native(self) -> Any:
        """The message of the client library; only what the token covers is verified in it."""
        return self._facts.message.native

    @property
    def value(self) -> V_co:
        """What ``decode=`` of the consumer made of the body; ``None`` without it, and of a tombstone."""
        value: V_co = self._facts.value
        return value

    @property
    def payload(self) -> bytes:
        """The raw bytes, where there are some: on RabbitMQ always, on Kafka of every record but a tombstone.

        Raises:
            RejectNow: it is a tombstone. Raised out of a handler, that dead-letters it as ``handler_failed``.
        """
        if (body := self.body) is None:
            raise RejectNow("a tombstone has no payload")
        return body

    @property
    def release(self) -> Release | None:
        """The release by which a reviewer let a dead letter come back; else ``None``."""
        return self._facts.release

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
        """The id of the token; messages of a batch share it, and each has an ``index``."""
        return self.claims.jti

    @property
    def properties(self) -> dict[str, str]:
        """The seven protected properties that are present, as text."""
        pairs = (
            (name, self._facts.message.text_property(name))
            for name in PROTECTED_PROPERTIES
        )
        return {name: value for name, value in pairs if value is not None}

    def header(self, name: str) -> HeaderValue:
        """Return the last value of a covered header, ``None`` if it is absent."""
        values = [value for header, value in self.headers if header == name]
        return values[-1] if values else None

    def reply(self, body: bytes) -> Awaitable[Any] | Any:
        """Publish a signed answer to the reply-to of the message, with its correlation id.

        Returns:
            What ``publish`` of the broker wrapper returns; on RabbitMQ an awaitable.

        Raises:
            RetryLater: connection, broker or signing key are out of reach; the message is handled again later.
                It is raised on RabbitMQ when the result is awaited, and on Kafka also by its ``get``.
            ConfigurationError: the consumer has no ``replies`` signer.
        """
        answer = require(
            self._facts.responder,
            "give the consumer a producer as replies= to answer messages",
        )
        return answer(self, body)


_SET_FACTS: Final[Callable[[Verified, _Facts], None]] = vars(Verified)["_facts"].__set__


def make_verified(  # noqa: PLR0917 - one is made for every message
    message: Message,
    claims: Claims,
    kid: str,
    key_set: str,
    received: float,
    release: Release | None,
    index: int | None,
    identity: Identity | None,
) -> Verified:
    """Return the verified view of a message; for the verifier alone."""
    verified: Verified = NEW_OBJECT(Verified)
    _SET_FACTS(
        verified,
        NEW_TUPLE(
            _Facts,
            (
                message,
                claims,
                kid,
                key_set,
                received,
                release,
                index,
                None,
                None,
                identity,
            ),
        ),
    )
    return verified


producer_and_place: Final[Callable[[Verified], tuple[str, str, str]]] = attrgetter(
    "_facts.claims.iss", "_facts.claims.sub", "_facts.message.destination"
)
"""Return issuer, subject and destination of a message in one call: what most rules ask for."""


def scope_of(origin: Origin, configured: str | None) -> str:
    """Return on whose behalf a delivery is handled: the consumer group or queue, unless it was configured."""
    return configured or origin.scope or origin.queue or "default"


def equip(
    verified: Verified, *, responder: Responder | None = None, value: Any = None
) -> Verified:
    """Return a verified message that has a way to reply and a decoded value; for broker wrappers."""
    if responder is None and value is None:
        return verified
    return Verified(_MAKER, verified._facts._replace(responder=responder, value=value))


class Would(NamedTuple):
    """What ``enforce`` would have said of a message.

    Args:
        verdict: ``REJECTED``, ``DEFERRED`` or ``DUPLICATE``.
        reason: why it would have been rejected.
        cause: why it would have been deferred.
        detail: one line for people.
    """

    verdict: Verdict
    reason: Reason | None = None
    cause: Cause | None = None
    detail: str | None = None

    @property
    def code(self) -> str:
        """The reason or cause, or ``duplicate``: what reports count by."""
        return (self.reason or self.cause or self.verdict).value


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Unverified:
    """A message below ``enforce``, or exempt: anybody who may write to the broker can have made it.

    It has no issuer, subject, claims, value or reply: nobody can authorise by it. It is no ``Verified``, and has
    no base in common with one.
    """

    maker: InitVar[object]
    _message: Message
    _would: Would | None
    _kind: str | None

    def __post_init__(self, maker: object) -> None:
        require(
            maker is _MAKER,
            "only the pipeline makes an Unverified; mqauth.testing.unverified() makes one",
        )

    def __repr__(self) -> str:
        return f"Unverified({self.destination!r}, would={None if self.would is None else self.would.code!r})"

    @property
    def would(self) -> Would | None:
        """What ``enforce`` would have said; ``None`` at ``off``, where nothing is judged."""
        return self._would

    @property
    def body(self) -> bytes | None:
        """The raw bytes; ``None`` for a Kafka tombstone."""
        return self._message.body

    @property
    def payload(self) -> bytes:
        """The raw bytes, where there are some, as ``Verified.payload``.

        Raises:
            RejectNow: it is a tombstone.
        """
        if self._message.body is None:
            raise RejectNow("a tombstone has no payload")
        return self._message.body

    @property
    def key(self) -> bytes | None:
        """The Kafka record key, or ``None``."""
        return self._message.key

    @property
    def headers(self) -> tuple[HeaderPair, ...]:
        """All headers, in order."""
        return self._message.headers

    @property
    def destination(self) -> str:
        """The destination in its canonical form, as the broker says it."""
        return self._message.destination

    @property
    def origin(self) -> Origin:
        """What the broker says of the delivery."""
        return self._message.origin

    @property
    def native(self) -> Any:
        """The message of the client library."""
        return self._message.native


UnverifiedHandler = Callable[[Unverified], Any]
Unverifieds = UnverifiedHandler | Mapping[str, UnverifiedHandler]
"""A handler of ``Unverified``; or one for each kind of an exemption, and under ``"*"`` one for the rest."""


def listed(unverified: Unverifieds | None) -> dict[str, UnverifiedHandler]:
    """Return the handlers by kind; one without kinds stands under ``"*"``."""
    if unverified is None:
        return {}
    return dict(unverified) if isinstance(unverified, Mapping) else {"*": unverified}


def make_unverified(
    message: Message, would: Would | None, kind: str | None = None
) -> Unverified:
    """Return the view of a message that nothing proved; for the pipeline and for tests."""
    return Unverified(_MAKER, message, would, kind)


def kind_of(unverified: Unverified) -> str | None:
    """Return the kind whose exemption let a message pass; ``None`` where a kind was not asked for."""
    return unverified._kind
