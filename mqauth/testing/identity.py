"""Identities for tests: an authority that signs WITs with any mistake, and forges of the identity form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from mqauth.clock import SYSTEM_CLOCK, Clock
from mqauth.judging.identities import TrustDomain
from mqauth.judging.policy import Allow, Rule
from mqauth.judging.verifier import Verifier
from mqauth.keystore.identity.identity_key import WITKey
from mqauth.testing.batchforge import PLACE, BatchForge
from mqauth.testing.forge import AUDIENCE, Forge, bent
from mqauth.wire import base64url, identity, strict_json
from mqauth.wire.jws import LocalSigningKey
from mqauth.wire.keys import Key, KeySet, public_members
from mqauth.wire.message import Message

TRUST_DOMAIN: Final = "wimse://prod.example"
WORKLOAD: Final = f"{TRUST_DOMAIN}/shop/orders-api"
OTHER_WORKLOAD: Final = f"{TRUST_DOMAIN}/shop/stock-api"


class WITSigner:
    """An authority in memory: says whose a key is.

    Args:
        key: signs; consumers have its public half.
        clock: gives the times.
        lifetime: seconds that a WIT lives.
    """

    def __init__(
        self, key: Key | None = None, *, clock: Clock = SYSTEM_CLOCK, lifetime: int = 3600
    ) -> None:
        self.key = key or Key.generate()
        self.clock = clock
        self.lifetime = lifetime

    @property
    def keys(self) -> KeySet:
        """The key set that consumers have of this authority."""
        return KeySet([self.key])

    def issue(self, subject: str, workload: Key, **bends: Any) -> WITKey:
        """Return a workload's key with a WIT for it; ``wit`` has the changes that can be made."""
        return WITKey(self.wit(subject, workload, **bends), workload, clock=self.clock)

    def wit(
        self,
        subject: str,
        workload: Key,
        *,
        key: Key | None = None,
        header: Mapping[str, Any] | None = None,
        claims: Mapping[str, Any] | None = None,
        jwk: Mapping[str, Any] | None = None,
        payload: bytes | None = None,
        signature: bytes | None = None,
    ) -> str:
        """Return a WIT.

        Args:
            subject: whose the key is.
            workload: the key that the WIT vouches for.
            key: signs in place of the authority's; the header names it, unless ``header`` does.
            header: changes of the JOSE header.
            claims: changes of the claims.
            jwk: changes of the workload's JWK.
            payload: in place of the claims.
            signature: in place of the key's.
        """
        key = key or self.key
        now = int(self.clock.now())
        members = {
            "sub": subject,
            "iat": now,
            "exp": now + self.lifetime,
            "cnf": {
                "jwk": bent(
                    public_members(workload.public) | {"alg": workload.algorithm}, jwk
                )
            },
        }
        parameters = bent(
            {"typ": identity.WIT_TYPE, "alg": key.algorithm, "kid": key.kid}, header
        )
        raw = strict_json.dumps(bent(members, claims)) if payload is None else payload
        return self.jws(strict_json.dumps(parameters), raw, key, signature)

    def jws(
        self, header: bytes, payload: bytes, key: Key, signature: bytes | None = None
    ) -> str:
        """Return a JWS of exactly these bytes."""
        data = base64url.encode(header) + b"." + base64url.encode(payload)
        signed = LocalSigningKey(key).sign(data) if signature is None else signature
        return (data + b"." + base64url.encode(signed)).decode("ascii")


class IdentityForge(Forge):
    """A forge of the identity form: an honest workload, a neighbour of the same domain, and an authority.

    Args:
        clock: gives the times of WITs and proofs.
        lifetime: seconds that an honest proof lives.
        algorithm: of every key.
    """

    def __init__(
        self, clock: Clock = SYSTEM_CLOCK, *, lifetime: int = 60, algorithm: str = "EdDSA"
    ) -> None:
        super().__init__(
            clock,
            lifetime=lifetime,
            algorithm=algorithm,
            issuer=TRUST_DOMAIN,
            subject=WORKLOAD,
            neighbour_subject=OTHER_WORKLOAD,
            audience=AUDIENCE,
        )
        self.authority = WITSigner(Key.generate(algorithm), clock=clock)

    @property
    def keys(self) -> KeySet:
        """The key set that a consumer knows: the authority's."""
        return self.authority.keys

    def wit(self, **bends: Any) -> str:
        """Return the honest workload's WIT, with the changes that ``WITSigner.wit`` takes."""
        return self.authority.wit(self.subject, self.key, **bends)

    def identity(self, **settings: Any) -> dict[str, Any]:
        """Return the arguments of the honest workload's signer."""
        held = WITKey(self.wit(), self.key, clock=self.clock)
        return super().identity(**({"key": held} | settings))

    def verifier(self, **settings: Any) -> Verifier:
        """Return a verifier that trusts the trust domain and its authority's key."""
        wanted: dict[str, Any] = {
            "keys": {self.issuer: TrustDomain(keys=self.keys)},
            "audience": self.audience,
        }
        return Verifier(**(wanted | settings))

    def policy(self, *destinations: str) -> Allow:
        """Return a policy that lets only the honest workload publish, to these destinations."""
        return Allow(
            [Rule(subject=self.subject, destinations=destinations, issuer=self.issuer)]
        )

    def claims(
        self, message: Message, *, cover: Iterable[str] | None = None
    ) -> dict[str, Any]:
        """Return the honest claims of a proof but its ``wth``."""
        claims = super().claims(message, cover=cover)
        return {
            name: value for name, value in claims.items() if name not in ("iss", "sub")
        }

    def proof(
        self,
        message: Message,
        *,
        wit: str,
        key: Key | None = None,
        header: Mapping[str, Any] | None = None,
        claims: Mapping[str, Any] | None = None,
        signature: bytes | None = None,
        cover: Iterable[str] | None = None,
    ) -> str:
        """Return a proof that belongs to a WIT, with any mistake.

        Args:
            message: what it binds.
            wit: what it belongs to.
            key: signs in place of the workload's.
            header: changes of the JOSE header.
            claims: changes of the claims.
            signature: in place of the key's.
            cover: names of the headers to cover.
        """
        key = key or self.key
        members = self.claims(message, cover=cover) | {
            "wth": base64url.digest(wit.encode())
        }
        parameters = bent({"alg": key.algorithm, "typ": identity.PROOF_TYPE}, header)
        return self.authority.jws(
            strict_json.dumps(parameters),
            strict_json.dumps(bent(members, claims)),
            key,
            signature,
        )

    def jws(
        self,
        message: Message,
        *,
        wit: str | None = None,
        shown: str | None = None,
        **bends: Any,
    ) -> str:
        """Return WIT and proof.

        Args:
            message: what it binds.
            wit: the WIT that the proof belongs to, by default an honest one.
            shown: the WIT that stands before it, by default the same.
            **bends: as ``proof`` takes them.
        """
        wit = self.wit() if wit is None else wit
        return (
            f"{wit if shown is None else shown}~{self.proof(message, wit=wit, **bends)}"
        )


class BatchIdentityForge(IdentityForge, BatchForge):
    """The same, each message in a batch of its own."""


__all__ = [
    "OTHER_WORKLOAD",
    "PLACE",
    "TRUST_DOMAIN",
    "WORKLOAD",
    "BatchIdentityForge",
    "IdentityForge",
    "WITSigner",
]
