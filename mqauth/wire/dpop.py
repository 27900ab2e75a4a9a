"""DPoP proofs: whoever asks an authority for an identity shows that it holds the key. Source: RFC 9449.

This is the asking side. An authority remembers no proof: a repeated request gets a WIT that only the holder of the
key can use.
"""

from __future__ import annotations

from typing import Final

from mqauth.clock import Clock, Randomness
from mqauth.errors import require
from mqauth.wire import base64url, strict_json
from mqauth.wire.jws import LocalSigningKey
from mqauth.wire.keys import Key, public_members

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
