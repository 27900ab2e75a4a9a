"""The producer's side: a message in, the same message with a signed token out. Each call seals anew."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

from mqauth import base64url, claims, destination, envelope, jws
from mqauth.claims import Claims
from mqauth.clock import SYSTEM_CLOCK, SYSTEM_RANDOMNESS, Clock, Randomness
from mqauth.errors import ConfigurationError, MalformedMessage
from mqauth.keys import Key, SigningKey
from mqauth.message import Message

MAX_LIFETIME: Final = 86_400
_JTI_BYTES: Final = 16


class Signer:
    """Signs messages as one producer.

    Args:
        key: a private ``Key``, or any ``SigningKey``.
        issuer: ``iss``, whom consumers trust for this key.
        subject: ``sub``, the producer's name.
        audience: ``aud``, the service or stream the messages are meant for.
        audiences: another audience by canonical destination.
        lifetime: seconds a token lives, 1 to 86,400; consumers accept 3,600 unless told otherwise.
        cover: names of the headers to cover; by default every application header present.

    Raises:
        ConfigurationError: an argument is out of its limits, or the key cannot sign.
    """

    def __init__(
        self,
        *,
        key: Key | SigningKey,
        issuer: str,
        subject: str,
        audience: str,
        audiences: Mapping[str, str] | None = None,
        lifetime: int = 60,
        cover: Iterable[str] | None = None,
        clock: Clock = SYSTEM_CLOCK,
        randomness: Randomness = SYSTEM_RANDOMNESS,
    ) -> None:
        _check_names(issuer=issuer, subject=subject, audience=audience)
        if type(lifetime) is not int or not 1 <= lifetime <= MAX_LIFETIME:
            raise ConfigurationError(f"lifetime is 1 to {MAX_LIFETIME} whole seconds")
        if isinstance(key, Key) and key.subjects is not None and subject not in key.subjects:
            raise ConfigurationError("the key does not speak for this subject")
        if isinstance(cover, str):
            raise ConfigurationError("cover is a list of names: a text would cover its letters")
        self._key: SigningKey = jws.LocalSigningKey(key) if isinstance(key, Key) else key
        self.issuer = issuer
        self.subject = subject
        self.lifetime = lifetime
        self._audience = audience
        self._audiences = _check_audiences(audiences or {})
        self._cover = None if cover is None else tuple(cover)
        self._clock = clock
        self._randomness = randomness

    def sign(self, message: Message) -> Message:
        """Return the message with a fresh token in its headers.

        Raises:
            MalformedMessage: the message has a token already, or cannot exist on its broker.
        """
        if message.malformed is not None:
            raise MalformedMessage(message.malformed)
        destination.check(message.destination)
        token = jws.compact(claims.build(self._claims(message)), self._key)
        return replace(message, headers=envelope.attach(message, token))

    def _claims(self, message: Message) -> Claims:
        """Return the claims for one message, valid from now."""
        now = int(self._clock.now())
        return Claims(
            iss=self.issuer,
            sub=self.subject,
            aud=self._audiences.get(message.destination, self._audience),
            iat=now,
            exp=now + self.lifetime,
            jti=base64url.encode(self._randomness(_JTI_BYTES)).decode("ascii"),
            mqa=envelope.bind(message, self._cover),
        )


def _check_names(**names: object) -> None:
    """Refuse a claim text out of its limits."""
    for name, value in names.items():
        if not claims.is_name(value):
            raise ConfigurationError(f"{name} is text of 1 to {claims.MAX_NAME} characters")


def _check_audiences(audiences: Mapping[str, str]) -> dict[str, str]:
    """Return the audiences by destination, each destination canonical."""
    for place, audience in audiences.items():
        _check_names(audience=audience)
        try:
            destination.parse(place)
        except MalformedMessage as error:
            raise ConfigurationError(f"audiences: {place!r}: {error}") from error
    return dict(audiences)
