"""The reviewer's side of releases: signing them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from mqauth.clock import SYSTEM_CLOCK, SYSTEM_RANDOMNESS, Clock, Randomness
from mqauth.errors import ConfigurationError, MalformedMessage, Reason, Rejection
from mqauth.letters.lineage import Past
from mqauth.letters.release import (
    MAX_LIFETIME,
    RELEASE_HEADER,
    RELEASE_TYPE,
    WAIVABLE,
    Release,
    covered_names,
    without_release,
)
from mqauth.wire import base64url, claims, envelope, jws
from mqauth.wire import strict_json as strictjson
from mqauth.wire.destination import is_kafka
from mqauth.wire.keys import Key, SigningKey
from mqauth.wire.message import HeaderValue, Message

DEFAULT_LIFETIME: Final = 3600
"""Seconds a release lives unless told."""
_JTI_BYTES: Final = 16


class Releaser:
    """Signs releases as one reviewer.

    Args:
        key: the reviewer's private ``Key``, or any ``SigningKey``; never a producer's.
        issuer: ``iss``, the release authority consumers are configured with.
        reviewer: ``sub``, who decided.
        lifetime: seconds a release lives, 1 to 604,800: let the consumer have got to the message by then.

    Raises:
        ConfigurationError: an argument is out of its limits, or the key cannot sign or speak for the reviewer.
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
        if not claims.is_name(issuer) or not claims.is_name(reviewer):
            raise ConfigurationError(f"issuer and reviewer are text of 1 to {claims.MAX_NAME} characters")
        if type(lifetime) is not int or not 1 <= lifetime <= MAX_LIFETIME:
            raise ConfigurationError(f"lifetime is 1 to {MAX_LIFETIME} whole seconds")
        if isinstance(key, Key) and key.subjects is not None and reviewer not in key.subjects:
            raise ConfigurationError("the key does not speak for this reviewer")
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
        """Return the message with a release in its headers, in place of an older one, and the release.

        Args:
            message: the original, with the producer's token in its place.
            letter: id of its dead letter.
            scope: the consumer group or queue that is to handle it.
            reason: why, one line of 1 to 256 characters.
            waive: of ``WAIVABLE``.
            past: the dead letters of the message so far, this one the last; only counted where more does not fit.

        Raises:
            ConfigurationError: scope, reason or ``waive`` is not in its form.
            MalformedMessage: the message has no token that could be parsed, or cannot be bound.
        """
        if not claims.is_name(reason) or not claims.is_name(scope):
            raise ConfigurationError(f"reason and scope are one line of 1 to {claims.MAX_NAME} characters")
        waived = frozenset(waive)
        if not waived <= set(WAIVABLE):
            raise ConfigurationError(f"a release may waive {', '.join(WAIVABLE)}")
        bare = without_release(message)
        release = replace(self._made(bare, letter=letter, scope=scope, reason=reason, waive=waived), past=past)
        token = jws.compact(strictjson.dumps(release.as_dict()), self._key, typ=RELEASE_TYPE)
        if len(token) > jws.MAX_TOKEN and past is not None and past.hops:
            counted = Past(count=past.count)
            return self.release(message, letter=letter, scope=scope, reason=reason, waive=waived, past=counted)
        if len(token) > jws.MAX_TOKEN:
            raise MalformedMessage(f"the release is over {jws.MAX_TOKEN} bytes")
        value: HeaderValue = token.encode("ascii") if is_kafka(message.destination) else token
        return replace(bare, headers=(*bare.headers, (RELEASE_HEADER, value))), release

    def _made(
        self, message: Message, *, letter: str, scope: str, reason: str, waive: frozenset[Reason]
    ) -> Release:
        """Return the claims of a release, valid from now."""
        now = int(self._clock.now())
        try:
            token = envelope.token_of(message)
            covered = covered_names(token)
        except Rejection as error:
            raise MalformedMessage(f"only a message with a whole token can be released: {error.reason}") from error
        return Release(
            iss=self.issuer, sub=self.reviewer, reason=reason, letter=letter, tok=base64url.digest(token),
            mqa=envelope.bind(message, covered), waive=waive, scope=scope, iat=now, exp=now + self.lifetime,
            jti=base64url.encode(self._randomness(_JTI_BYTES)).decode("ascii"),
        )  # fmt: skip
