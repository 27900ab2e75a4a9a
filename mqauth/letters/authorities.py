"""Release authorities: whose releases a consumer accepts, and how a reviewer signs one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from mqauth.clock import SYSTEM_CLOCK, SYSTEM_RANDOMNESS, Clock, Randomness
from mqauth.errors import (
    MalformedMessage,
    Reason,
    Rejection,
    Unavailable,
    refusing,
    require,
)
from mqauth.letters.release import (
    MAX_LIFETIME,
    NO_PAST,
    RELEASE_HEADER,
    RELEASE_TYPE,
    WAIVABLE,
    OpenedRelease,
    Past,
    Release,
    covered_names,
    expect,
    invalid,
    open_release,
    without_release,
)
from mqauth.wire import base64url, claims, destination, envelope, jws, strict_json
from mqauth.wire.keys import Key, KeySet, KeySource, SigningKey
from mqauth.wire.message import Message, form_of

DEFAULT_LIFETIME: Final = 3600
"""Seconds that a release lives by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """One release authority: where its keys come from, and what its releases may waive.

    Args:
        keys: the source of its keys. A key that names subjects may sign for those reviewers only; a key that
            names none may sign for every reviewer of the authority.
        waive: out of ``WAIVABLE``.

    Raises:
        ConfigurationError: ``waive`` has a reason that no release may waive.
    """

    keys: KeySource
    waive: frozenset[Reason] = field(default_factory=frozenset)

    def __post_init__(self) -> None:
        require(
            set(self.waive) <= set(WAIVABLE),
            f"an authority may waive {', '.join(WAIVABLE)}",
        )


class ReleaseAuthorities:
    """Decides which releases a consumer accepts.

    Args:
        authorities: issuer to ``Authority``.
        max_lifetime: longest ``exp - iat`` that is accepted, seconds.
        leeway: seconds of clock difference that are allowed.

    Raises:
        ConfigurationError: there is no authority, or a name or setting is out of its limits.
    """

    def __init__(
        self,
        authorities: Mapping[str, Authority],
        *,
        max_lifetime: int = MAX_LIFETIME,
        leeway: int = 5,
    ) -> None:
        require(
            isinstance(authorities, Mapping) and authorities,
            "release authorities are a table of issuer to Authority, not empty",
        )
        require(
            all(claims.is_name(name) for name in authorities),
            f"an issuer is text of 1 to {claims.MAX_NAME} characters",
        )
        require(
            1 <= max_lifetime <= MAX_LIFETIME and 0 <= leeway <= 60,
            f"max_lifetime is 1 to {MAX_LIFETIME} seconds, leeway 0 to 60",
        )
        self.authorities = dict(authorities)
        self._max_lifetime = max_lifetime
        self._leeway = leeway

    def source(self, opened: OpenedRelease) -> KeySource:
        """Return the source of the keys of the authority that a release names.

        Raises:
            Rejection: ``release_invalid``, no such authority is configured.
        """
        return self._authority(opened.release).keys

    def verify(
        self, message: Message, opened: OpenedRelease, keys: KeySet, received: float
    ) -> Release:
        """Verify a release against the message it came with.

        Args:
            message: as the broker delivered it.
            opened: the result of ``open_release`` for this message.
            keys: the key set of its authority.
            received: UTC seconds at which this process first received the delivery.

        Raises:
            Rejection: ``release_invalid``, whatever is wrong with it.
        """
        release = _signed(opened, keys, received)
        # Always by the time of receipt, also where the consumer judges tokens by the time of append: the release
        # was made for this very delivery.
        expect(
            release.iat <= received + self._leeway, "the release is issued in the future"
        )
        expect(
            release.exp + self._leeway > received and release.exp > release.iat,
            "the release has expired",
        )
        expect(
            release.exp - release.iat <= self._max_lifetime,
            f"the release lives longer than {self._max_lifetime} s",
        )
        expect(
            release.waive <= self._authority(release).waive,
            "it waives what this authority may not waive",
        )
        _check_bindings(message, release)
        return release

    def past(self, message: Message, now: float) -> Past:
        """Return the earlier dead letters that the release on a message proves, or ``NO_PAST``.

        Args:
            message: the original of a dead letter.
            now: UTC seconds.
        """
        # The lifetime and the waived reasons are not checked: this release has been used already, and only what
        # it says of the past counts.
        try:
            opened = open_release(message)
            release = _signed(opened, self.source(opened).key_set(), now)
            _check_bindings(message, release)
        except (Rejection, Unavailable):
            return NO_PAST
        return release.lineage

    def _authority(self, release: Release) -> Authority:
        return require(
            self.authorities.get(release.iss),
            "no such release authority is configured",
            invalid,
        )


class Releaser:
    """Signs releases as one reviewer.

    Args:
        key: the reviewer's private ``Key``, or any ``SigningKey``; never a producer's.
        issuer: ``iss``, the release authority that consumers are configured with.
        reviewer: ``sub``, the person who decides.
        lifetime: seconds a release lives, 1 to 604,800; the consumer must get to the message within them.

    Raises:
        ConfigurationError: an argument is out of its limits, or the key cannot sign or may not sign for the
            reviewer.
    """

    def __init__(
        self,
        *,
        key: Key | SigningKey,
        issuer: str,
        reviewer: str,
        lifetime: int = DEFAULT_LIFETIME,
        clock: Clock = SYSTEM_CLOCK,
        randomness: Randomness = SYSTEM_RANDOMNESS,
    ) -> None:
        require(
            claims.is_name(issuer) and claims.is_name(reviewer),
            f"issuer and reviewer are text of 1 to {claims.MAX_NAME} characters",
        )
        require(
            type(lifetime) is int and 1 <= lifetime <= MAX_LIFETIME,
            f"lifetime is 1 to {MAX_LIFETIME} whole seconds",
        )
        subjects = getattr(key, "subjects", None)
        require(
            subjects is None or reviewer in subjects,
            f"the key does not speak for {reviewer}, but for {', '.join(sorted(subjects or ()))}",
        )
        self._key: SigningKey = jws.LocalSigningKey(key) if isinstance(key, Key) else key
        self.issuer = issuer
        self.reviewer = reviewer
        self.lifetime = lifetime
        self._clock = clock
        self._randomness = randomness

    def release(
        self,
        message: Message,
        *,
        letter: str,
        scope: str,
        reason: str,
        waive: Iterable[Reason] = (),
        past: Past | None = None,
    ) -> tuple[Message, Release]:
        """Return the message with a release in its headers, which replaces an older one, and the release.

        Args:
            message: the original, with the producer's token in its place.
            letter: id of its dead letter.
            scope: the consumer group or queue that is to handle it.
            reason: why it is released, one line of 1 to 256 characters.
            waive: out of ``WAIVABLE``.
            past: the dead letters of the message so far, this one the last; reduced to their number where the
                release would be too large for a token.

        Raises:
            ConfigurationError: scope, reason or ``waive`` is not in its form.
            MalformedMessage: the message has no token that can be parsed, or it cannot be bound.
        """
        require(
            claims.is_name(reason) and claims.is_name(scope),
            f"reason and scope are one line of 1 to {claims.MAX_NAME} characters",
        )
        waived = frozenset(waive)
        require(waived <= set(WAIVABLE), f"a release may waive {', '.join(WAIVABLE)}")
        bare, now = without_release(message), int(self._clock.now())
        what = "only a message with a whole token can be released"
        with refusing(
            Rejection, lambda error: f"{what}: {error.reason}", MalformedMessage
        ):
            token = envelope.token_of(bare)
            covered = covered_names(token)
        release = Release(
            iss=self.issuer,
            sub=self.reviewer,
            reason=reason,
            letter=letter,
            tok=base64url.digest(token),
            mqa=envelope.bind(bare, covered),
            waive=waived,
            scope=scope,
            iat=now,
            exp=now + self.lifetime,
            jti=base64url.encode(self._randomness(16)).decode("ascii"),
            past=past,
        )
        signed = jws.compact(
            strict_json.dumps(release.as_dict()), self._key, typ=RELEASE_TYPE
        )
        if len(signed) > jws.MAX_TOKEN and past is not None and past.hops:
            return self.release(
                message,
                letter=letter,
                scope=scope,
                reason=reason,
                waive=waived,
                past=Past(count=past.count),
            )
        require(
            len(signed) <= jws.MAX_TOKEN,
            f"the release is over {jws.MAX_TOKEN} bytes",
            MalformedMessage,
        )
        header = (
            RELEASE_HEADER,
            signed.encode("ascii")
            if destination.is_kafka(message.destination)
            else signed,
        )
        return replace(bare, headers=(*bare.headers, header)), release


def _signed(opened: OpenedRelease, keys: KeySet, received: float) -> Release:
    """Return a release once one of the authority's keys is found to have signed it."""
    key, release = (
        require(keys.get(opened.opened.kid), "the authority has no such key", invalid),
        opened.release,
    )
    revocation, expires, subjects = key.revocation, key.expires, key.subjects
    expect(
        revocation is None or revocation.revoked_at > received,
        "the authority's key is revoked",
    )
    expect(
        not (expires is not None and release.iat >= expires),
        "the authority's key had retired before the release was made",
    )
    expect(
        subjects is None or release.sub in subjects,
        "the authority's key does not speak for this reviewer",
    )
    with refusing(
        Rejection, lambda error: f"the release itself: {error.reason.value}", invalid
    ):
        jws.verify(opened.opened, key)
    return release


def _check_bindings(message: Message, release: Release) -> None:
    """Check that a release is about this message and about the producer's token on it."""
    with refusing(
        Rejection,
        lambda error: f"the release is of another message: {error.reason.value}",
        invalid,
    ):
        token = envelope.token_of(message)
        envelope.check(
            message,
            release.mqa,
            envelope.checked_encoder(form_of(message), release.mqa.hdr),
        )
        covered = covered_names(token)
    expect(release.tok == base64url.digest(token), "the release is of another token")
    expect(
        release.mqa.hdr == covered,
        "the release covers other headers than the producer's token",
    )
