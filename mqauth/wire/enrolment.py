"""The credential of a producer that has a keystore and no platform to vouch for it: a JWT by its own key.

An authority takes it for a grant of that producer's name, and answers with an identity. It lives for minutes and
names one authority. It says nothing about a message, so it is no token: its ``typ`` is another one.

Whoever asks for an identity shows by a DPoP proof that it holds the key (RFC 9449). An authority remembers no
proof: a repeated request gets a WIT that only the holder of the key can use.
"""

from __future__ import annotations

from typing import Final

from mqauth.clock import Clock, Randomness
from mqauth.errors import require
from mqauth.wire import base64url, claims, jws, strict_json
from mqauth.wire.jws import LocalSigningKey
from mqauth.wire.keys import Key, SigningKey, public_members

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


PROOF_TYPE: Final = "dpop+jwt"
"""``typ`` of a proof (section 4.2)."""
HEADER: Final = frozenset(("typ", "alg", "jwk"))
"""The members of a proof's header, exactly."""


def proof(
    key: Key, *, method: str, url: str, clock: Clock, randomness: Randomness, credential: str | None = None
) -> str:
    """Return the ``DPoP`` header of one request: a proof by a key, of the credential beside it.

    Args:
        key: the key that is to be vouched for, with its private half; RSA is of no identity.
        method: of the request, ``htm``.
        url: of the request; ``htu`` is without its query and fragment.
        clock: gives ``iat``.
        randomness: makes ``jti``.
        credential: the token that stands in ``Authorization``; ``ath`` is its digest (section 4.3). A token
            endpoint is asked for a token, and gets none.

    Raises:
        ConfigurationError: the key has no private half.
    """
    require(key.private, "a public key proves nothing")
    header = {"typ": PROOF_TYPE, "alg": key.algorithm, "jwk": public_members(key.public)}
    claims = {
        "htm": method, "htu": url.partition("#")[0].partition("?")[0], "iat": int(clock.now()),
        "jti": base64url.encode(randomness(16)).decode("ascii"),
    } | ({} if credential is None else {"ath": base64url.digest(credential.encode())})  # fmt: skip
    signing_input = b".".join(base64url.encode(strict_json.dumps(part)) for part in (header, claims))
    signature = base64url.encode(LocalSigningKey(key).sign(signing_input))
    return (signing_input + b"." + signature).decode("ascii")
