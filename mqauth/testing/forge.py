"""Forged tokens: a set of keys, and a forge that makes tokens which are wrong in exactly one way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from mqauth.clock import SYSTEM_CLOCK, SYSTEM_RANDOMNESS, Clock
from mqauth.judging.policy import Allow
from mqauth.judging.verifier import Issuer, Verifier
from mqauth.signer import Signer
from mqauth.wire import base64url, envelope
from mqauth.wire import strict_json as strictjson
from mqauth.wire.jws import TOKEN_TYPE, LocalSigningKey
from mqauth.wire.keys import Key, KeySet, Revocation
from mqauth.wire.message import TOKEN_HEADER, HeaderValue, Message, fold

ISSUER: Final = "https://auth.example"
SUBJECT: Final = "orders-api"
NEIGHBOUR: Final = "stock-api"
AUDIENCE: Final = "billing"
REMOVED: Final = object()
"""In place of a value: the member is left out."""


class Forge:
    """An honest producer, its neighbour of the same issuer, and every key that an attacker might hold.

    Args:
        clock: gives the times of tokens.
        lifetime: seconds that an honest token lives.
        algorithm: of every key.
        issuer: of every key but the stranger's.
        subject: the honest producer's name.
        neighbour_subject: the neighbour's name, which no policy admits.
        audience: of honest tokens.
    """

    def __init__(
        self,
        clock: Clock = SYSTEM_CLOCK,
        *,
        lifetime: int = 60,
        algorithm: str = "EdDSA",
        issuer: str = ISSUER,
        subject: str = SUBJECT,
        neighbour_subject: str = NEIGHBOUR,
        audience: str = AUDIENCE,
    ) -> None:
        self.clock = clock
        self.lifetime = lifetime
        self.issuer, self.subject, self.audience = issuer, subject, audience
        self.neighbour_subject = neighbour_subject
        self.key = Key.generate(algorithm, subjects=[subject])
        self.neighbour = Key.generate(algorithm, subjects=[neighbour_subject])
        self.stranger = Key.generate(algorithm, subjects=[subject])
        self.retired = replace(
            Key.generate(algorithm, subjects=[subject]), expires=int(clock.now()) - 3600
        )
        self.revoked = replace(
            Key.generate(algorithm, subjects=[subject]),
            revocation=Revocation(reason="stolen"),
        )

    @property
    def keys(self) -> KeySet:
        """The key set that a consumer knows: every key but the stranger's."""
        return KeySet([self.key, self.neighbour, self.retired, self.revoked])

    def signer(self, **settings: Any) -> Signer:
        """Return the honest producer's signer."""
        return Signer(**self.identity(**settings))

    def identity(self, **settings: Any) -> dict[str, Any]:
        """Return the arguments of the honest producer's signer."""
        return {
            "key": self.key,
            "issuer": self.issuer,
            "subject": self.subject,
            "audience": self.audience,
            "lifetime": self.lifetime,
            "clock": self.clock,
        } | settings

    def verifier(self, **settings: Any) -> Verifier:
        """Return a verifier that trusts the issuer and its known keys."""
        wanted: dict[str, Any] = {
            "keys": {self.issuer: Issuer(keys=self.keys)},
            "audience": self.audience,
        }
        return Verifier(**(wanted | settings))

    def policy(self, *destinations: str) -> Allow:
        """Return a policy that lets only the honest producer publish, to these destinations."""
        return Allow({self.subject: destinations})

    def claims(
        self, message: Message, *, cover: Iterable[str] | None = None
    ) -> dict[str, Any]:
        """Return honest claims for a message, which can then be changed."""
        now = int(self.clock.now())
        return {
            "iss": self.issuer,
            "sub": self.subject,
            "aud": self.audience,
            "iat": now,
            "exp": now + self.lifetime,
            "jti": base64url.encode(SYSTEM_RANDOMNESS(16)).decode(),
            "mqa": self.mqa(message, cover),
        }

    def mqa(self, message: Message, cover: Iterable[str] | None = None) -> dict[str, Any]:
        """Return the honest ``mqa`` for a message."""
        return envelope.bind(message, cover).as_dict()

    def token(self, message: Message, **bends: Any) -> str:
        """Return the token for a message's header; ``jws`` has the changes that can be made."""
        return self.jws(message, **bends)

    def jws(
        self,
        message: Message,
        *,
        key: Key | None = None,
        header: Mapping[str, Any] | None = None,
        claims: Mapping[str, Any] | None = None,
        binding: Mapping[str, Any] | None = None,
        payload: bytes | None = None,
        signature: bytes | None = None,
        cover: Iterable[str] | None = None,
    ) -> str:
        """Return a signed compact JWS for a message, with the given parts in place of the honest ones.

        Args:
            message: the message that the token binds.
            key: signs; by default the honest producer's.
            header: JOSE parameters to set, or to leave out with ``REMOVED``.
            claims: claims to set, or to leave out with ``REMOVED``.
            binding: members of ``mqa`` to set, or to leave out with ``REMOVED``.
            payload: the bytes of the payload, in place of the claims.
            signature: in place of the key's.
            cover: names of the headers to cover.
        """
        key = key or self.key
        members = self.claims(message, cover=cover)
        members["mqa"] = bent(members["mqa"], binding)
        parameters = bent(
            {"alg": key.algorithm, "typ": TOKEN_TYPE, "kid": key.kid}, header
        )
        raw = strictjson.dumps(bent(members, claims)) if payload is None else payload
        signing_input = (
            base64url.encode(strictjson.dumps(parameters)) + b"." + base64url.encode(raw)
        )
        signed = (
            LocalSigningKey(key).sign(signing_input) if signature is None else signature
        )
        return (signing_input + b"." + base64url.encode(signed)).decode("ascii")

    def seal(self, message: Message, **bends: Any) -> Message:
        """Return the message with the token that ``token`` makes for it."""
        return with_token(message, self.token(message, **bends))


def with_token(message: Message, token: str, *, name: str = TOKEN_HEADER) -> Message:
    """Return a message with one more token header, in the type its broker carries."""
    on_kafka = message.destination.startswith("kafka:")
    value: HeaderValue = token.encode("utf-8") if on_kafka else token
    return replace(message, headers=(*message.headers, (name, value)))


def without_token(message: Message) -> Message:
    """Return a message without its token headers."""
    kept = tuple(pair for pair in message.headers if fold(pair[0]) != TOKEN_HEADER)
    return replace(message, headers=kept)


def bent(members: dict[str, Any], changes: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the members with changes; ``REMOVED`` leaves a member out."""
    return {
        name: value
        for name, value in (members | dict(changes or {})).items()
        if value is not REMOVED
    }
