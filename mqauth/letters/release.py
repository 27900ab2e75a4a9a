"""Release tokens: a reviewer's signed permission to handle one dead letter after all.

A release travels in the header ``mqauth-release`` and has the type ``mqauth-release+jwt``. It never replaces the
producer's token: it names that token by its digest, binds the same message again, waives reasons from a closed
list, and is meant for one scope. It may also say how often the message was dead-lettered before; a consumer
believes such a past only from a release that it has verified, because anybody can write a header. Source: wire
profile 1, *Releases*.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Final

from mqauth.errors import Reason, Rejection, require
from mqauth.wire import claims, destination, envelope, identity, jws
from mqauth.wire.message import Message, fold

RELEASE_HEADER: Final = "mqauth-release"
RELEASE_TYPE: Final = "mqauth-release+jwt"
WAIVABLE: Final = (
    Reason.EXPIRED,
    Reason.QUEUE_AGE_EXCEEDED,
    Reason.LIFETIME_EXCESSIVE,
    Reason.KEY_EXPIRED,
    Reason.PRODUCER_FORBIDDEN,
    Reason.REPLAYED,
    Reason.APPEND_TIME_MISSING,
)
"""The reasons that a release may waive. The list is closed: a forged or altered message is never let through."""
MAX_LIFETIME: Final = 7 * 86_400
"""Most seconds a release may live; the consumer's replay store remembers its claim for as long."""
MAX_HOPS: Final = 8
"""Earlier dead letters that a release names; older ones are only counted."""
MAX_COUNT: Final = 1_000_000
_REQUIRED: Final = (
    "iss",
    "sub",
    "reason",
    "letter",
    "tok",
    "mqa",
    "waive",
    "scope",
    "iat",
    "exp",
    "jti",
)
_LETTER: Final = re.compile(r"[0-9a-f]{64}")
_DIGEST: Final = re.compile(r"[A-Za-z0-9\-_]{43}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hop:
    """One dead letter that was released.

    Args:
        letter: its id, 64 hex digits.
        reason: why the message had been rejected, according to the letter; ``None`` if the letter did not say.
        time: UTC seconds of the release.
    """

    letter: str
    reason: Reason | None
    time: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """The dead letters of a message so far.

    Args:
        count: how many there were, 0 to ``MAX_COUNT``.
        hops: the newest of them, at most ``MAX_HOPS``, the newest last.
    """

    count: int = 0
    hops: tuple[Hop, ...] = ()

    def and_then(self, hop: Hop) -> Past:
        """Return the past with one more letter."""
        return Past(
            count=min(self.count + 1, MAX_COUNT), hops=(*self.hops, hop)[-MAX_HOPS:]
        )


NO_PAST: Final = Past()


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A parsed release; a handler finds it in ``Verified.release`` once it is verified.

    Args:
        iss: the release authority.
        sub: the reviewer.
        reason: why the reviewer let the message through, one line.
        letter: id of the dead letter, 64 hex digits.
        tok: base64url SHA-256 of the producer's token, as it stands in its header.
        mqa: the bindings, as in the producer's token.
        waive: the reasons it waives, out of ``WAIVABLE``; may be empty.
        scope: the consumer group or queue it is meant for.
        iat, exp: UTC seconds.
        jti: its own id.
        past: the dead letters of the message so far, this one the last; ``None`` if the release does not say.
    """

    iss: str
    sub: str
    reason: str
    letter: str
    tok: str
    mqa: claims.Binding
    waive: frozenset[Reason]
    scope: str
    iat: int
    exp: int
    jti: str
    past: Past | None = None

    @property
    def lineage(self) -> Past:
        """The dead letters of the message so far, at least the one that this release lets through."""
        return self.past or NO_PAST.and_then(
            Hop(letter=self.letter, reason=None, time=self.iat)
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the claims as they stand in the token."""
        members: dict[str, Any] = {
            "iss": self.iss,
            "sub": self.sub,
            "reason": self.reason,
            "letter": self.letter,
            "tok": self.tok,
            "waive": sorted(self.waive),
            "scope": self.scope,
            "iat": self.iat,
            "exp": self.exp,
            "jti": self.jti,
            "mqa": self.mqa.as_dict(),
        }
        return members if self.past is None else members | {"past": asdict(self.past)}


@dataclass(frozen=True, slots=True)
class OpenedRelease:
    """A release that was parsed and not yet verified."""

    opened: jws.Opened
    release: Release


def is_release(name: str) -> bool:
    """Tell whether a header name is that of a release, in any spelling."""
    return len(name) == len(RELEASE_HEADER) and fold(name) == RELEASE_HEADER


def without_release(message: Message) -> Message:
    """Return the message without any release, in any spelling."""
    return replace(
        message,
        headers=tuple(pair for pair in message.headers if not is_release(pair[0])),
    )


def open_release(message: Message) -> OpenedRelease:
    """Parse the one release of a message.

    Raises:
        Rejection: ``release_invalid``: it is repeated, misspelt, too large, of another type, or not strict.
    """
    try:
        # The one release header has the form of a token header.
        headers = [(name, value) for name, value in message.headers if is_release(name)]
        expect(
            len(headers) == 1 and headers[0][0] == RELEASE_HEADER,
            "not exactly one release header",
        )
        token = envelope.token_of_value(
            headers[0][1], on_kafka=destination.is_kafka(message.destination)
        )
        opened = jws.take_apart(token, typ=RELEASE_TYPE)
        return OpenedRelease(opened, parse(opened.payload))
    except Rejection as error:
        if error.reason is Reason.RELEASE_INVALID:
            raise
        raise invalid(f"the release itself: {error}") from error


def parse(raw: bytes) -> Release:
    """Parse the payload of a release, which must hold exactly its claims, each in its form.

    Raises:
        Rejection: ``release_invalid``, ``claims_malformed`` or ``claim_missing``.
    """
    members = claims.load(raw, _REQUIRED)
    expect(not members.keys() - {*_REQUIRED, "past"}, "the release has an unknown claim")
    waived = members["waive"]
    expect(
        type(waived) is list and all(type(name) is str for name in waived),
        "waive is no list of reasons",
    )
    expect(
        len(set(waived)) == len(waived) and set(waived) <= set(WAIVABLE),
        "it waives what no release may waive",
    )
    return Release(
        iss=claims.text_claim(members, "iss"),
        sub=claims.text_claim(members, "sub"),
        reason=claims.text_claim(members, "reason"),
        letter=_matching(members, "letter", _LETTER),
        tok=_matching(members, "tok", _DIGEST),
        mqa=claims.binding_claim(members["mqa"]),
        waive=frozenset(map(Reason, waived)),
        scope=claims.text_claim(members, "scope"),
        iat=claims.time_claim(members, "iat"),
        exp=claims.time_claim(members, "exp"),
        jti=claims.text_claim(members, "jti", claims.MIN_JTI, claims.MAX_JTI),
        past=parse_past(members["past"]) if "past" in members else None,
    )


def parse_past(value: Any) -> Past:
    """Parse the ``past`` claim.

    Raises:
        Rejection: ``release_invalid``, it is not exactly in its form.
    """
    members = _members(value, "count", "hops")
    count, hops = members["count"], members["hops"]
    expect(
        type(count) is int
        and type(hops) is list
        and max(1, len(hops)) <= count <= MAX_COUNT
        and len(hops) <= MAX_HOPS,
        "past has no count and hops that fit together",
    )
    return Past(count=count, hops=tuple(_hop(hop) for hop in hops))


def covered_names(token: bytes) -> tuple[str, ...]:
    """Return the header names that a producer's token covers, its ``hdr``.

    Args:
        token: as it stands in its header, including a proof.

    Raises:
        Rejection: it cannot be parsed.
    """
    return identity.opened_token(token)[1].mqa.hdr


def invalid(detail: str) -> Rejection:
    """Return the rejection of a release."""
    return Rejection(Reason.RELEASE_INVALID, detail)


expect: Final = partial(require, error=invalid)
"""Reject a release unless a condition holds: ``release_invalid`` with the detail that is given."""


def _hop(value: Any) -> Hop:
    members = _members(value, "letter", "reason", "time")
    reason, time = members["reason"], members["time"]
    # The last second of the year 9999, beyond which a time cannot be written.
    expect(
        type(time) is int and 0 <= time <= 253_402_300_799,
        "a hop has no time in whole seconds",
    )
    expect(
        reason is None or (type(reason) is str and reason in set(Reason)),
        "a hop has an unknown reason",
    )
    return Hop(
        letter=_matching(members, "letter", _LETTER),
        reason=None if reason is None else Reason(reason),
        time=time,
    )


def _members(value: Any, *names: str) -> dict[str, Any]:
    """Return an object that must have exactly these members."""
    expect(
        type(value) is dict and value.keys() == set(names),
        f"past is not an object of {' and '.join(names)}",
    )
    return dict(value)


def _matching(members: Mapping[str, Any], name: str, pattern: re.Pattern[str]) -> str:
    value = members[name]
    expect(type(value) is str and pattern.fullmatch(value), f"{name} is not in its form")
    return str(value)
