"""The producer's side: a message in, the same message with a signed token out. Each call seals anew."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from mqauth import base64url, claims, destination, envelope, jws
from mqauth.claims import Claims
from mqauth.clock import SYSTEM_CLOCK, SYSTEM_RANDOMNESS, Clock, Randomness
from mqauth.errors import Cause, ConfigurationError, KeyChanged, MalformedMessage, Unavailable
from mqauth.keys import ALGORITHMS, MAX_KID, Key, SigningKey, SigningKeySource
from mqauth.message import Message

MAX_LIFETIME: Final = 86_400
_JTI_BYTES: Final = 16
_ATTEMPTS: Final = 3


class Signer:
    """Signs messages as one producer.

    Args:
        key: a private ``Key``, any ``SigningKey``, or a ``SigningKeySource`` that follows rotation, such as
            ``mqauth.ActiveKey``.
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
        key: Key | SigningKey | SigningKeySource,
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
        if isinstance(cover, str):
            raise ConfigurationError("cover is a list of names: a text would cover its letters")
        self._source = _source(key)
        self._checked: SigningKey | None = None
        self.issuer = issuer
        self.subject = subject
        self.lifetime = lifetime
        self._audience = audience
        self._audiences = _check_audiences(audiences or {})
        self._cover = None if cover is None else tuple(cover)
        self._clock = clock
        self._randomness = randomness
        with suppress(Unavailable):  # it may come up later
            self._signing_key()

    def sign(self, message: Message) -> Message:
        """Return the message with a fresh token in its headers.

        Raises:
            MalformedMessage: the message has a token already, or cannot exist on its broker.
            ConfigurationError: no key may sign now, or it does not speak for the subject.
            Unavailable: ``keys_unavailable``, whoever holds the key cannot be reached.
        """
        if message.malformed is not None:
            raise MalformedMessage(message.malformed)
        destination.check(message.destination)
        token = self._token(claims.build(self._claims(message)))
        return replace(message, headers=envelope.attach(message, token))

    def _token(self, payload: bytes) -> str:
        """Return the token, made by one key from head to signature."""
        for _ in range(_ATTEMPTS):
            with suppress(KeyChanged):
                return jws.compact(payload, self._signing_key())
        raise Unavailable(Cause.KEYS_UNAVAILABLE, "the key changes faster than it signs")

    def _signing_key(self) -> SigningKey:
        """Return the key that signs now; one not seen before must speak for the subject."""
        key = self._source.signing_key()
        if key is not self._checked:
            _check_key(key, self.subject)
            self._checked = key
        return key

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


@dataclass(frozen=True, slots=True)
class _Fixed:
    """The source of one key that never changes."""

    key: SigningKey

    def signing_key(self) -> SigningKey:
        """Return the key."""
        return self.key


def _source(key: Key | SigningKey | SigningKeySource) -> SigningKeySource:
    """Return any of them as a source."""
    if isinstance(key, Key):
        return _Fixed(jws.LocalSigningKey(key))
    return key if isinstance(key, SigningKeySource) else _Fixed(key)


def _check_key(key: SigningKey, subject: str) -> None:
    """Refuse what cannot sign, whose tokens nobody could accept, and a key that names other subjects only."""
    if not callable(getattr(key, "sign", None)):
        raise ConfigurationError("the key cannot sign: for a keystore folder use mqauth.ActiveKey")
    if getattr(key, "algorithm", None) not in ALGORITHMS:
        raise ConfigurationError(f"the key's algorithm is none of {', '.join(ALGORITHMS)}")
    if not claims.is_name(getattr(key, "kid", None), 1, MAX_KID):
        raise ConfigurationError(f"the key's kid is text of 1 to {MAX_KID} characters")
    subjects = getattr(key, "subjects", None)
    if subjects is not None and subject not in subjects:
        raise ConfigurationError("the key does not speak for this subject")


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
