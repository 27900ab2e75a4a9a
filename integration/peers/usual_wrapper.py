"""A hand-written wrapper around PyJWT for messages, as tutorials show it: an access token in a header.

It is written carefully in what such tutorials do: a fixed algorithm, issuer and audience checked, keys by ``kid``.
"""

from __future__ import annotations

import time
from typing import Any

import jwt

ALGORITHM = "EdDSA"


def sign(private_key: Any, kid: str, issuer: str, subject: str, audience: str) -> str:
    """Return a token for the header ``Authorization`` of a message."""
    now = int(time.time())
    claims = {
        "iss": issuer,
        "sub": subject,
        "aud": audience,
        "iat": now,
        "exp": now + 300,
    }
    return jwt.encode(claims, private_key, algorithm=ALGORITHM, headers={"kid": kid})


def verify(
    headers: list[tuple[str, bytes]], keys: dict[str, Any], issuer: str, audience: str
) -> dict[str, Any]:
    """Return the claims of a message's token.

    Raises:
        jwt.InvalidTokenError: the token is missing, or does not hold.
    """
    token = dict(headers).get("Authorization", b"").decode()
    if not token:
        raise jwt.InvalidTokenError("no token")
    kid = jwt.get_unverified_header(token).get("kid")
    if kid not in keys:
        raise jwt.InvalidTokenError("unknown key")
    return jwt.decode(
        token, keys[kid], algorithms=[ALGORITHM], audience=audience, issuer=issuer
    )
