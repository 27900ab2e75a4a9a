"""What SPIRE mints, in its exact shape: a WIT-SVID, and the SPIFFE bundle with the key that signed it.

``integration/test_spire.py`` compares both with those of SPIRE 1.15.1. Its bundles do not have the key for WITs
yet; here it has the form of the SPIFFE documents WIT-SVID (section 6) and Trust Domain and Bundle (section 4).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec

from mqauth.testing.identity import BatchIdentityForge
from mqauth.wire import base64url, identity, jws
from mqauth.wire.keys import Key, KeySet, public_members
from mqauth.wire.message import Message
from tests.vectors.identities import Case, FixedIdentityForge
from tests.vectors.world import FORGE, KAFKA, NOW, curve, kafka, seed

DOMAIN: Final = "spiffe://example.org"
SUBJECT: Final = f"{DOMAIN}/shop/orders-api"
BUNDLE: Final = "SPIRE bundle"
NOT_DIRECT: Final = "a bundle in the direct form"
# Self-signed by the key of ``X509``, once: its signature is another one each time.
_CERTIFICATE: Final = (
    "MIIBbzCCARWgAwIBAgIBBzAKBggqhkjOPQQDAjAeMQswCQYDVQQGEwJVUzEPMA0GA1UECgwGU1BJRkZFMB4XDTMwMDMxNzE3MDAwMFoXDTMw"
    "MDMxODE3MDAwMFowHjELMAkGA1UEBhMCVVMxDzANBgNVBAoMBlNQSUZGRTBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABCx7iAE1SCBvIIab"
    "bejrAN9o476CEb9Nu0ZGcJeUS3qiGrsznmvxsNad9OCkLdm5IHRXWDzaQx1ucShqhGOKFMKjRDBCMA8GA1UdEwEB/wQFMAMBAf8wDgYDVR0P"
    "AQH/BAQDAgEGMB8GA1UdEQQYMBaGFHNwaWZmZTovL2V4YW1wbGUub3JnMAoGCCqGSM49BAMCA0gAMEUCIQD7vHUriBuDFXkrfsGW0M2T+icW"
    "HBWMQdCHGWUy3NmCmgIgD5/LdIaQHpyG+GcGhqcfTx26IL8DWQ0M0ucI4tHmRac="
)


def _key(name: str) -> Key:
    found = curve(name, ec.SECP256R1())
    return replace(
        found, kid=base64url.encode(seed(f"kid {name}", 24)).decode(), subjects=None
    )


X509: Final = _key("x509 authority")
JWT: Final = _key("jwt authority")
WIT: Final = _key("wit authority")
WORKLOAD: Final = _key("spire workload")


def _members(key: Key, **more: str) -> dict[str, Any]:
    """Return the members of a JWK, in the order in which SPIRE writes them."""
    found = public_members(key.public) | more
    return {
        name: found[name]
        for name in ("use", "kty", "kid", "crv", "alg", "x", "y")
        if name in found
    }


def bundle() -> dict[str, Any]:
    """Return the bundle of a trust domain as SPIRE publishes it: keys of all SVIDs, none with ``alg``."""
    return {
        "keys": [
            {**_members(X509, use="x509-svid"), "x5c": [_CERTIFICATE]},
            _members(JWT, use="jwt-svid", kid=JWT.kid),
            _members(WIT, use="wit-svid", kid=WIT.kid),
        ],
        "spiffe_sequence": 12, "spiffe_refresh_hint": 300,
    }  # fmt: skip


class SpireForge(FixedIdentityForge):
    """The forge of a workload that SPIRE gave a WIT-SVID."""

    def __init__(self) -> None:
        super().__init__()
        self.issuer, self.subject, self.key = DOMAIN, SUBJECT, WORKLOAD
        self.authority.key = WIT

    @property
    def keys(self) -> KeySet:
        """The key that signs WIT-SVIDs."""
        return KeySet([WIT])

    def wit(self, **bends: Any) -> str:
        """Return a WIT-SVID: header and claims in the order of their names, the workload's key in its own."""
        said = {
            "cnf": {"jwk": _members(self.key, alg="ES256")}, "exp": NOW + 3600, "iat": NOW, "sub": self.subject,
        }  # fmt: skip
        header = {"alg": "ES256", "kid": WIT.kid, "typ": identity.WIT_TYPE} | bends.get(
            "header", {}
        )
        return self.authority.jws(
            _json(header), _json(said | bends.get("claims", {})), bends.get("key") or WIT
        )


class SpireBatchForge(SpireForge, BatchIdentityForge):
    """The same, each message in a batch."""


def _json(members: dict[str, Any]) -> bytes:
    return json.dumps(dict(sorted(members.items())), separators=(",", ":")).encode()


def with_spire(file: dict[str, Any]) -> dict[str, Any]:
    """Return the vectors of the identity form with those of SPIRE behind them."""
    return file | {
        "consumers": file["consumers"] | settings(), "key_sets": file["key_sets"] | {BUNDLE: bundle()},
        "vectors": [*file["vectors"], *(case.form() for case in cases())],
    }  # fmt: skip


def settings() -> dict[str, Any]:
    """Return the consumers: one that trusts the domain, and one that was given its bundle as a direct issuer's."""
    rules = [{"subject": SUBJECT, "issuer": DOMAIN, "destinations": [KAFKA]}]
    return {
        BUNDLE: {"trust_domain": DOMAIN, "allow": rules},
        NOT_DIRECT: {
            "issuer": DOMAIN,
            "jwks": bundle(),
            "trust_domain": None,
            "allow": rules,
        },
    }


def cases() -> Iterator[Case]:
    """Yield what the workload sends, and what a thief of another key of the bundle would."""
    for forge in (SpireForge(), SpireBatchForge()):
        yield _case(forge, "a WIT-SVID", forge.seal(kafka()), None)
        signed = {"key": JWT, "header": {"kid": JWT.kid}}
        yield _case(
            forge,
            "the key of JWT-SVIDs signs a WIT",
            forge.seal(kafka(), wit=forge.wit(**signed)),
            "key_unknown",
        )
        signed["header"] = {"kid": WIT.kid}
        yield _case(
            forge, "the key of JWT-SVIDs under the kid of the other",
            forge.seal(kafka(), wit=forge.wit(**signed)), "signature_invalid",
        )  # fmt: skip
        other = forge.wit(claims={"sub": SUBJECT.replace("spiffe", "wimse")})
        yield _case(
            forge,
            "the same name under the other scheme",
            forge.seal(kafka(), wit=other),
            "issuer_untrusted",
        )
    claims = FORGE.claims(kafka()) | {"iss": DOMAIN, "sub": SUBJECT}
    header = {"alg": "ES256", "typ": jws.TOKEN_TYPE, "kid": WIT.kid}
    # Signed by ``signed``, whose ECDSA is the same each time.
    forged = FORGE.signed(kafka(), _json(header), _json(claims), WIT)
    yield Case("SPIRE: its key signs a direct token", forged, "key_unknown", NOT_DIRECT)


def _case(forge: SpireForge, name: str, message: Message, reason: str | None) -> Case:
    return Case(f"{forge.form}: SPIRE, {name}", message, reason, BUNDLE, key_set=BUNDLE)
