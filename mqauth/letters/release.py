"""Release tokens: a reviewer's signed word that one dead letter may be handled after all.

Header ``mqauth-release``, typ ``mqauth-release+jwt``. A release never stands in for the producer's token: it
binds that very token and the message, waives reasons of a closed list, and is meant for one scope. Source:
wire profile 1, *Releases*.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from mqauth.errors import ConfigurationError, Reason, Rejection, Unavailable
from mqauth.letters import lineage
from mqauth.letters.lineage import NO_PAST, Hop, Past
from mqauth.wire import base64url, batch, claims, envelope, jws
from mqauth.wire.claims import Binding
from mqauth.wire.destination import is_kafka
from mqauth.wire.keys import Key, KeySet, KeySource
from mqauth.wire.message import Message, form_of

RELEASE_HEADER: Final = "mqauth-release"
RELEASE_TYPE: Final = "mqauth-release+jwt"
WAIVABLE: Final = (
    Reason.EXPIRED, Reason.QUEUE_AGE_EXCEEDED, Reason.LIFETIME_EXCESSIVE, Reason.KEY_EXPIRED,
    Reason.PRODUCER_FORBIDDEN, Reason.REPLAYED,
)  # fmt: skip
"""The reasons a release may waive; a closed list."""
MAX_LIFETIME: Final = 7 * 86_400
"""Seconds a release may live: as long its claim is remembered by the consumer's replay store."""
_REQUIRED: Final = ("iss", "sub", "reason", "letter", "tok", "mqa", "waive", "scope", "iat", "exp", "jti")
_OPTIONAL: Final = ("past",)
_LETTER = re.compile(r"[0-9a-f]{64}")
_DIGEST = re.compile(r"[A-Za-z0-9\-_]{43}")
_LENGTH: Final = len(RELEASE_HEADER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A parsed release; what ``Verified.release`` shows a handler once it is verified.

    Args:
        iss: the release authority.
        sub: the reviewer.
        reason: why the reviewer let the message through, one line.
        letter: id of the dead letter, 64 hex digits.
        tok: base64url SHA-256 of the producer's token, as it stands in its header.
        mqa: the bindings, as in the producer's token.
        waive: what it waives, of ``WAIVABLE``; may be nothing.
        scope: the consumer group or queue it is meant for.
        iat, exp: UTC seconds.
        jti: its own id.
        past: the dead letters of the message so far, this one the last; ``None`` where it does not say.
    """

    iss: str
    sub: str
    reason: str
    letter: str
    tok: str
    mqa: Binding
    waive: frozenset[Reason]
    scope: str
    iat: int
    exp: int
    jti: str
    past: Past | None = None

    @property
    def lineage(self) -> Past:
        """The dead letters of the message so far, as far as the release tells; at least the one it releases."""
        return self.past or NO_PAST.and_then(Hop(letter=self.letter, reason=None, time=self.iat))

    def as_dict(self) -> dict[str, Any]:
        """Return the claims as they stand in the token."""
        found: dict[str, Any] = {
            "iss": self.iss, "sub": self.sub, "reason": self.reason, "letter": self.letter, "tok": self.tok,
            "waive": sorted(self.waive), "scope": self.scope, "iat": self.iat, "exp": self.exp, "jti": self.jti,
            "mqa": self.mqa.as_dict(),
        }  # fmt: skip
        return found if self.past is None else found | {"past": self.past.as_dict()}


@dataclass(frozen=True, slots=True)
class OpenedRelease:
    """A release taken apart; nothing in it is verified yet."""

    opened: jws.Opened
    release: Release


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """One release authority: where its keys come from, and what its releases may waive.

    Args:
        keys: the source of its keys. A key that names subjects speaks for these reviewers only; one that
            names none for all of the authority's.
        waive: of ``WAIVABLE``.

    Raises:
        ConfigurationError: a reason that no release may waive.
    """

    keys: KeySource
    waive: frozenset[Reason] = field(default_factory=frozenset)

    def __post_init__(self) -> None:
        if not set(self.waive) <= set(WAIVABLE):
            raise ConfigurationError(f"an authority may waive {', '.join(WAIVABLE)}")


class ReleaseAuthorities:
    """Who may release dead letters to this consumer.

    Args:
        authorities: issuer to ``Authority``.
        max_lifetime: longest ``exp - iat`` accepted, seconds.
        leeway: seconds of clock difference allowed.

    Raises:
        ConfigurationError: no authority, a bad name, or a setting out of its limits.
    """

    def __init__(
        self, authorities: Mapping[str, Authority], *, max_lifetime: int = MAX_LIFETIME, leeway: int = 5
    ) -> None:
        if not isinstance(authorities, Mapping) or not authorities:
            raise ConfigurationError("release authorities are a table of issuer to Authority, not empty")
        if not all(claims.is_name(name) for name in authorities):
            raise ConfigurationError(f"an issuer is text of 1 to {claims.MAX_NAME} characters")
        if not 1 <= max_lifetime <= MAX_LIFETIME or not 0 <= leeway <= 60:
            raise ConfigurationError(f"max_lifetime is 1 to {MAX_LIFETIME} seconds, leeway 0 to 60")
        self.authorities = dict(authorities)
        self._max_lifetime = max_lifetime
        self._leeway = leeway

    def source(self, found: OpenedRelease) -> KeySource:
        """Return where the keys of the claimed authority come from.

        Raises:
            Rejection: ``release_invalid``, no such authority is configured.
        """
        return self._authority(found.release).keys

    def verify(self, message: Message, found: OpenedRelease, keys: KeySet, received: float) -> Release:
        """Judge an opened release against the message it came with.

        Args:
            message: as the broker delivered it.
            found: what ``open_release`` returned for this message.
            keys: the key set of its authority.
            received: UTC seconds at which this process first received the delivery.

        Raises:
            Rejection: ``release_invalid``, whatever is wrong with it.
        """
        release = _signed(found, keys, received)
        self._check_times(release, received)
        if not release.waive <= self._authority(release).waive:
            raise _invalid("it waives what this authority may not waive")
        _check_bindings(message, release)
        return release

    def past(self, message: Message, now: float) -> Past:
        """Return what the release on a message proves of the times before; nothing where it proves nothing.

        Its own life and what it waives do not matter: it has been used.

        Args:
            message: a dead letter's original.
            now: UTC seconds.
        """
        try:
            found = open_release(message)
            release = _signed(found, self.source(found).key_set(), now)
            _check_bindings(message, release)
        except (Rejection, Unavailable):
            return NO_PAST
        return release.lineage

    def _authority(self, release: Release) -> Authority:
        """Return the configured authority of a release."""
        authority = self.authorities.get(release.iss)
        if authority is None:
            raise _invalid("no such release authority is configured")
        return authority

    def _check_times(self, release: Release, received: float) -> None:
        """Judge the release's own life, always at receipt: it was made for this very delivery."""
        if release.iat > received + self._leeway:
            raise _invalid("the release is issued in the future")
        if release.exp + self._leeway <= received or release.exp <= release.iat:
            raise _invalid("the release has expired")
        if release.exp - release.iat > self._max_lifetime:
            raise _invalid(f"the release lives longer than {self._max_lifetime} s")


def is_released(message: Message) -> bool:
    """Tell whether a message carries a release, in whatever spelling; cheap where it does not."""
    for name, _ in message.headers:  # noqa: SIM110 - on every message's way, and faster
        if is_release(name):
            return True
    return False


def without_release(message: Message) -> Message:
    """Return the message without any release, in whatever spelling."""
    return replace(message, headers=tuple(pair for pair in message.headers if not is_release(pair[0])))


def open_release(message: Message) -> OpenedRelease:
    """Take the one release of a message apart.

    Raises:
        Rejection: ``release_invalid``: repeated, misspelt, too large, of another type, or not strict.
    """
    try:
        opened = jws.take_apart(_value(message), typ=RELEASE_TYPE)
        return OpenedRelease(opened, parse(opened.payload))
    except Rejection as error:
        if error.reason is Reason.RELEASE_INVALID:
            raise
        raise _invalid(f"the release itself: {error.reason.value}") from error


def parse(raw: bytes) -> Release:
    """Parse the payload of a release: exactly its claims, each in its form.

    Raises:
        Rejection: ``release_invalid``, ``claims_malformed`` or ``claim_missing``.
    """
    found = claims.load(raw, _REQUIRED)
    if found.keys() - {*_REQUIRED, *_OPTIONAL}:
        raise _invalid("the release has an unknown claim")
    return Release(
        iss=claims.text_claim(found, "iss"),
        sub=claims.text_claim(found, "sub"),
        reason=claims.text_claim(found, "reason"),
        letter=_matching(found, "letter", _LETTER),
        tok=_matching(found, "tok", _DIGEST),
        mqa=claims.binding_claim(found["mqa"]),
        waive=_waived(found["waive"]),
        scope=claims.text_claim(found, "scope"),
        iat=claims.time_claim(found, "iat"),
        exp=claims.time_claim(found, "exp"),
        jti=claims.text_claim(found, "jti", claims.MIN_JTI, claims.MAX_JTI),
        past=lineage.parse(found["past"]) if "past" in found else None,
    )


def _value(message: Message) -> bytes:
    """Return the one release header's value, in the type its broker carries."""
    found = [(name, value) for name, value in message.headers if is_release(name)]
    if len(found) != 1 or found[0][0] != RELEASE_HEADER:
        raise _invalid("not exactly one release header")
    value = found[0][1]
    if is_kafka(message.destination) and isinstance(value, bytes):
        return value
    if not is_kafka(message.destination) and isinstance(value, str) and value.isascii():
        return value.encode("ascii")
    raise _invalid("the release header has another type")


def _signed(found: OpenedRelease, keys: KeySet, received: float) -> Release:
    """Return a release that one of its authority's keys has signed."""
    key = keys.get(found.opened.kid)
    if key is None:
        raise _invalid("the authority has no such key")
    _check_key(key, found.release, received)
    try:
        jws.verify(found.opened, key)
    except Rejection as error:
        raise _invalid(f"the release itself: {error.reason.value}") from error
    return found.release


def _check_key(key: Key, release: Release, received: float) -> None:
    """Refuse a key that is revoked, had retired, or does not speak for the reviewer."""
    if key.revocation is not None and key.revocation.revoked_at <= received:
        raise _invalid("the authority's key is revoked")
    if key.expires is not None and release.iat >= key.expires:
        raise _invalid("the authority's key had retired before the release was made")
    if key.subjects is not None and release.sub not in key.subjects:
        raise _invalid("the authority's key does not speak for this reviewer")


def covered_names(token: bytes) -> tuple[str, ...]:
    """Return the names a producer's token covers, ``hdr``.

    Args:
        token: as it stands in its header, a proof included.

    Raises:
        Rejection: it cannot be parsed.
    """
    return claims.parse(jws.take_apart(batch.split(token)[0]).payload).mqa.hdr


def _check_bindings(message: Message, release: Release) -> None:
    """Hold a release against the message and the producer's token it came with."""
    try:
        token = envelope.token_of(message)
        envelope.check(message, release.mqa, envelope.checked_encoder(form_of(message), release.mqa.hdr))
        covered = covered_names(token)
    except Rejection as error:
        raise _invalid(f"the release is of another message: {error.reason.value}") from error
    if release.tok != base64url.digest(token):
        raise _invalid("the release is of another token")
    if release.mqa.hdr != covered:
        raise _invalid("the release covers other headers than the producer's token")


def _waived(value: Any) -> frozenset[Reason]:
    """Return the waived reasons: a list of names from the closed list, none twice."""
    if type(value) is not list or not all(type(name) is str for name in value):
        raise _invalid("waive is no list of reasons")
    if len(set(value)) != len(value) or not set(value) <= {reason.value for reason in WAIVABLE}:
        raise _invalid("it waives what no release may waive")
    return frozenset(Reason(name) for name in value)


def _matching(found: Mapping[str, Any], name: str, pattern: re.Pattern[str]) -> str:
    """Return a text claim of an exact form."""
    value = found[name]
    if type(value) is not str or not pattern.fullmatch(value):
        raise _invalid(f"{name} is not in its form")
    return value


def is_release(name: str) -> bool:
    """Tell whether a header is a release, in any spelling."""
    return len(name) == _LENGTH and name.lower() == RELEASE_HEADER


def _invalid(detail: str) -> Rejection:
    """Return the rejection of a release."""
    return Rejection(Reason.RELEASE_INVALID, detail)
