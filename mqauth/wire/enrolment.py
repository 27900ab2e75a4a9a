"""The credential of a producer that has a keystore and no platform to vouch for it: a JWT by its own key.

An authority takes it for a grant of that producer's name, and answers with an identity. It lives for minutes and
names one authority. It says nothing about a message, so it is no token: its ``typ`` is another one.
"""

from __future__ import annotations

from typing import Final

from mqauth.clock import Clock, Randomness
from mqauth.errors import require
from mqauth.wire import base64url, claims, jws, strict_json
from mqauth.wire.keys import SigningKey

CREDENTIAL_TYPE: Final = "mqauth-enrol+jwt"
"""``typ`` of such a credential; neither a message token nor a WIT has it."""
MAX_LIFETIME: Final = 300
"""Seconds between ``iat`` and ``exp``, at most."""
LIFETIME: Final = 60


def credential(
    key: SigningKey, *, issuer: str, subject: str, authority: str, jkt: str, clock: Clock, randomness: Randomness,
    lifetime: int = LIFETIME,
) -> str:  # fmt: skip
    """Return a credential for one request; its header is exactly ``typ``, ``alg`` and ``kid``.

    Args:
        key: the producer's own key; the authority's set names it.
        issuer: ``iss``, as the authority has it for this kind of credential.
        subject: ``sub``, the producer's name; one of ``mqauth_sub`` of its key.
        authority: ``aud``, the authority's url.
        jkt: thumbprint of the new key, so that whoever intercepts the credential can do nothing with it (RFC 9449,
            section 6.1).
        clock: gives ``iat``, and ``exp`` with ``lifetime``.
        randomness: makes ``jti``.
        lifetime: seconds, 1 to 300.

    Raises:
        ConfigurationError: the key does not speak for the subject, or a name or the lifetime is out of its limits.
        KeyChanged, Unavailable: as ``SigningKey.sign``.
    """
    require(1 <= lifetime <= MAX_LIFETIME, f"a credential lives 1 to {MAX_LIFETIME} seconds")
    require(all(map(claims.is_name, (issuer, subject, authority))), "issuer, subject and authority are names")
    subjects = getattr(key, "subjects", None)
    require(subjects is None or subject in subjects, "the key does not speak for this subject")
    now = int(clock.now())
    members = {
        "iss": issuer, "sub": subject, "aud": authority, "iat": now, "exp": now + lifetime,
        "jti": base64url.encode(randomness(16)).decode("ascii"), "cnf": {"jkt": jkt},
    }  # fmt: skip
    return jws.compact(strict_json.dumps(members), key, typ=CREDENTIAL_TYPE)
