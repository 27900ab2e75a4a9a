"""A message's token: what it is before it is believed, what is remembered of it, and the rules of time, step (9).

A ``Shape`` is what follows from the names of a message alone. Names are anybody's, so shapes are remembered
within a bound of bytes; of the values nothing is. A ``Token`` is one token taken apart. That of a batch is
remembered, so that its siblings need a proof only, but not before a trusted key has signed it and a policy has
permitted it: a flood of forgeries then neither grows this memory nor pushes anything out. What is remembered
says nothing about key, clock, audience or subject *now*; the verifier asks again.

A token is judged by one moment: when this process first received its message, or when the broker appended that.
Never by the moment of judging, or an honest message that waits for an outage of ours would expire meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal, NamedTuple

from mqauth.errors import Cause, Reason, Rejection, Unavailable, require
from mqauth.judging.rollout import WithoutEvidence
from mqauth.letters.release import is_release
from mqauth.wire import (
    base64url,
    batch,
    destination,
    envelope,
    jws,
    memo,
    template,
    workload,
)
from mqauth.wire.claims import Batch, Claims, build
from mqauth.wire.identity import Wit
from mqauth.wire.keys import Key, KeySet
from mqauth.wire.message import Form, Message

CAPACITY: Final = 16 * 1024 * 1024
"""Bytes of all remembered shapes, and of all remembered tokens."""
LEAF: Final = 1024
"""Bytes a remembered token takes for each message of its batch, once all of them were proven; measured."""
_CHARACTER: Final = 16
"""Bytes a token takes for each of its characters, with claims made to take as much as they can; measured."""
MAX_LEEWAY: Final = 60
BACKLOG: Final = 86_400
"""Seconds that messages should be able to wait while their consumer is stopped: it outlasts a night."""
At = Literal["consume", "append"]
NOTHING: Final = frozenset[Reason]()
Readers = dict[tuple[str | bytes, int], template.Reader]
"""What reads a payload of a length, by the kid of a key or the digest of a WIT; a kid is text, so never that."""


class Shape:
    """What messages of one form have in common.

    Args:
        form: of the messages.
        charge: counts bytes that are about to be kept in the shape, and tells whether they may be.

    Attributes:
        place: where among the headers the token is.
        fault: why there is not exactly one token.
        on_kafka: the broker is Kafka.
        released: one of the names is a release, in whatever spelling.
        encoders: what encodes messages of this form, by the names that their token covers.
        readers: what reads a payload, once one like it was accepted with this form.
    """

    __slots__ = (
        "_charge",
        "_form",
        "encoders",
        "fault",
        "on_kafka",
        "place",
        "readers",
        "released",
    )

    def __init__(self, form: Form, charge: Callable[[int], bool]) -> None:
        self._charge = charge
        self._form = form
        self.encoders: dict[tuple[str, ...], envelope.Encoder] = {}
        self.readers: Readers = {}
        self.on_kafka = destination.is_kafka(form[0])
        self.place = 0
        self.fault: tuple[Reason, str] | None = None
        # Of names that repeat, as a hostile record's do, each is asked once.
        self.released = any(map(is_release, set(form[1])))
        try:
            self.place = envelope.place_of_token(form[1])
        except Rejection as rejection:
            self.fault = rejection.reason, rejection.detail

    def encoder(self, names: tuple[str, ...]) -> envelope.Encoder:
        """Return what encodes messages of this form whose token covers these names, and remember it."""
        encoder = envelope.checked_encoder(self._form, names)
        if self._charge(memo.size_of((self._form[1], names))):
            self.encoders[names] = encoder
        return encoder

    def learn(self, token: Token) -> None:
        """Remember what reads payloads like one that was accepted; the next of its key and length replaces it."""
        wit, kid = token.wit, token.opened.kid
        made = build if wit is None else partial(workload.payload, wth=wit.digest)
        by = kid if wit is None else wit.digest.encode("ascii")
        reader = template.reader_of(token.opened.payload, token.claims, made)
        if reader is None:
            return
        if (by, reader.length) in self.readers or self._charge(
            memo.size_of(by) + reader.size
        ):
            self.readers[by, reader.length] = reader


class Validity(NamedTuple):
    """By which key set, from when and until when (UTC seconds of receipt) steps 6 to 10 hold for a token."""

    keys: KeySet
    since: float
    until: float


class Token:
    """A token of one message, or of a batch and maybe remembered.

    Args:
        text: the bytes of its JWS, in the identity form with the WIT before it.
        opened: the same taken apart.
        claims: what it claims; in the identity form trust domain and subject of the WIT are ``iss`` and ``sub``.
        wit: of the identity form, the WIT; ``opened`` is then the proof, with the kid of the authority's key.

    Attributes:
        key: under which the signature held; under another object it is checked again.
        proven: of a batch, its root and what was proven under it.
        validity: of a batch, for how long its steps 6 to 10 hold.
        id: the id it is claimed by, empty until it was computed.
    """

    __slots__ = ("claims", "id", "key", "opened", "proven", "text", "validity", "wit")

    def __init__(
        self, text: bytes, opened: jws.Opened, claims: Claims, wit: Wit | None = None
    ) -> None:
        self.wit = wit
        self.text = text
        self.opened = opened
        self.claims = claims
        self.id = b""
        self.key: Key | None = None
        self.validity: Validity | None = None
        self.proven: batch.Proven | None = None
        if isinstance(claims.mqa, Batch):
            self.proven = batch.Proven(
                base64url.decode(claims.mqa.root.encode("ascii")), claims.mqa.size
            )

    def __repr__(self) -> str:
        return f"Token({self.opened!r})"

    @property
    def size(self) -> int:
        """Bytes it takes at most once all its messages were proven."""
        return _CHARACTER * len(self.text) + LEAF * (
            1 if self.proven is None else self.proven.size
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """The settings of time, which ``Verifier`` describes, and the rules that follow from them."""

    max_lifetime: int = 3600
    leeway: int = 5
    at: At = "consume"
    max_queue_age: int | None = None
    append_evidence: Literal["interceptor"] | None = None
    unsafe_append_evidence: bool = False
    backlog: Literal["expires"] | None = None
    without_evidence: tuple[WithoutEvidence, ...] = ()

    def __post_init__(self) -> None:
        require(self.backlog in (None, "expires"), 'backlog is "expires"')
        require(
            self.at == "append" or not self.without_evidence,
            'without_evidence is for at = "append"',
        )
        require(self.at in ("consume", "append"), 'at is "consume" or "append"')
        require(
            self.append_evidence in (None, "interceptor"),
            'append_evidence is "interceptor"',
        )
        require(
            self.append_evidence is not None or not self.unsafe_append_evidence,
            "unsafe_append_evidence goes with append_evidence",
        )
        require(
            (self.at == "append") == (self.max_queue_age is not None),
            'at = "append" and max_queue_age go together',
        )
        _check_seconds("max_lifetime", self.max_lifetime, 1, None)
        _check_seconds("leeway", self.leeway, 0, MAX_LEEWAY)
        _check_seconds(
            "max_queue_age",
            1 if self.max_queue_age is None else self.max_queue_age,
            1,
            None,
        )

    def evidence(self, message: Message) -> float | None:
        """Return when the broker says it appended a message, UTC seconds; ``None`` if it may not be believed."""
        origin = message.origin
        # a producer writes a timestamp of another type itself, and on RabbitMQ any header
        if (
            self.at == "consume"
            or origin.timestamp_ms is None
            or origin.timestamp_type != "append"
        ):
            return None
        if (
            not destination.is_kafka(message.destination)
            and self.append_evidence != "interceptor"
        ):
            return None
        return origin.timestamp_ms / 1000

    def moment(
        self, message: Message, issued: int, received: float, waived: frozenset[Reason]
    ) -> tuple[float, frozenset[Reason]]:
        """Return the moment by which a message is judged, UTC seconds, and the reasons that are waived then.

        Args:
            message: as the broker delivered it.
            issued: UTC seconds, ``iat`` of its verified token.
            received: UTC seconds at which this process first received the delivery.
            waived: the reasons that a release waives.

        Raises:
            Rejection: ``append_time_missing``, of a message that the operator named.
            Unavailable: ``append_time_unavailable``.
        """
        moment = received if self.at == "consume" else self.evidence(message)
        if moment is not None:
            return moment, waived
        if Reason.APPEND_TIME_MISSING in waived:
            # A reviewer has let it through although nobody knows how long it waited.
            return received, waived | {Reason.EXPIRED}
        if any(entry.names(message, issued) for entry in self.without_evidence):
            raise Rejection(
                Reason.APPEND_TIME_MISSING,
                "the broker did not say when it took the message",
            )
        raise Unavailable(
            Cause.APPEND_TIME_UNAVAILABLE, "the broker gives no evidence of append time"
        )

    def ends(self, claims: Claims, key: Key) -> float:
        """Return until when the outcome of ``check`` at ``"consume"`` stays as it is, UTC seconds of receipt."""
        until = float(claims.exp + self.leeway)
        return (
            until
            if key.revocation is None
            else min(until, float(key.revocation.revoked_at))
        )

    def check(
        self,
        claims: Claims,
        retires: int | None,
        message: Message,
        received: float,
        waived: frozenset[Reason] = NOTHING,
    ) -> None:
        """Judge the end of the key, ``iat``, ``nbf``, ``exp``, lifetime and age in the queue, in that order.

        Args:
            claims: of the token.
            retires: UTC seconds from which its key signs nothing new.
            message: as the broker delivered it.
            received: UTC seconds at which this process first received the delivery.
            waived: the reasons that a release waives.

        Raises:
            Rejection: the reason of the first rule that is broken, unless it is waived; ``append_time_missing``.
            Unavailable: ``append_time_unavailable``.
        """
        if retires is not None and Reason.KEY_EXPIRED not in waived:
            # whoever has a retired key can write any ``iat``; the append time is the broker's word
            appended = self.evidence(message)
            if (claims.iat if appended is None else appended) >= retires:
                raise Rejection(
                    Reason.KEY_EXPIRED, "the key had retired before the token was made"
                )
        moment, waived = self.moment(message, claims.iat, received, waived)
        if claims.iat > moment + self.leeway:
            raise Rejection(Reason.ISSUED_IN_FUTURE, "issued in the future")
        if claims.nbf is not None and claims.nbf > moment + self.leeway:
            raise Rejection(Reason.NOT_YET_VALID, "not valid yet")
        if (
            claims.exp + self.leeway <= moment or claims.exp <= claims.iat
        ) and Reason.EXPIRED not in waived:
            if claims.exp <= claims.iat:
                raise Rejection(Reason.EXPIRED, "expires before it was issued")
            # for how long it had waited, and which setting would have kept it
            until, kept = (
                ("received", 'at = "append"')
                if self.at == "consume"
                else ("appended", "a longer lifetime")
            )
            waited, lifetime = (
                f"{moment - claims.iat:.0f} s",
                f"{claims.exp - claims.iat} s",
            )
            why = f"{until} {waited} after it was signed, with a token of {lifetime}; {kept} would have kept it"
            raise Rejection(Reason.EXPIRED, why)
        if (
            claims.exp - claims.iat > self.max_lifetime
            and Reason.LIFETIME_EXCESSIVE not in waived
        ):
            raise Rejection(Reason.LIFETIME_EXCESSIVE, "lives longer than the limit")
        if (
            self.max_queue_age is not None
            and received - moment > self.max_queue_age
            and Reason.QUEUE_AGE_EXCEEDED not in waived
        ):
            waited = f"waited {received - moment:.0f} s, longer than max_queue_age = {self.max_queue_age}"
            raise Rejection(Reason.QUEUE_AGE_EXCEEDED, waited)


def longest_wait(
    max_queue_age: int | None,
    lifetimes: Iterable[int],
    identity_lifetimes: Iterable[int] = (),
) -> int:
    """Return for how many seconds a message may wait in its queue before it is rejected for that alone.

    Args:
        max_queue_age: of a consumer that judges by the append time; ``None`` of one that does not.
        lifetimes: seconds that tokens live.
        identity_lifetimes: seconds that the WITs of trust domains live.
    """
    if max_queue_age is not None:
        return max_queue_age
    # A token ends with its WIT, and a producer asks for the next WIT when half of its life is over.
    return min([*lifetimes, *(lifetime // 2 for lifetime in identity_lifetimes)])


def is_revoked(key: Key, appended: float | None, received: float) -> bool:
    """Tell whether the revocation of a key counts for a message."""
    revocation = key.revocation
    # only the append time proves that a message is older than the revocation: its signer may have been the thief
    return (
        revocation is not None
        and revocation.revoked_at <= received
        and (appended is None or appended >= revocation.revoked_at)
    )


def _check_seconds(name: str, value: int, low: int, high: int | None) -> None:
    bounds = f"at least {low}" if high is None else f"{low} to {high}"
    require(
        type(value) is int and value >= low and (high is None or value <= high),
        f"{name} is {bounds} whole seconds",
    )
