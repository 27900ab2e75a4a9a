"""JWTs of others, taken apart strictly: credentials and DPoP proofs. Sources: RFC 7515, RFC 7519, RFC 8725.

Their headers are not those of our tokens, so ``mqauth.wire.jws.take_apart`` does not read them. What is read here
is as strict otherwise: one form of base64url, one reading of JSON, and no ``crit``.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from mqauth.errors import require
from mqauth.wire import base64url, strict_json
from mqauth.wire.jws import ALLOWED, Opened

MAX_JWT: Final = 8192
"""Bytes of a credential or of a proof."""
_DEPTH: Final = 8
_SEGMENTS: Final = 3


class Jwt(NamedTuple):
    """A JWT taken apart; nothing in it is believed.

    Args:
        header: its JOSE header.
        claims: its claims.
        opened: the same for ``jws.verify``.
    """

    header: dict[str, Any]
    claims: dict[str, Any]
    opened: Opened

    def __repr__(self) -> str:
        return f"Jwt({self.header.get('typ')!r})"


def open_jwt(text: str) -> Jwt:
    """Take a JWT apart.

    Raises:
        ValueError: it is too large, in another form, or has an algorithm that is not on the list.
    """
    require(len(text) <= MAX_JWT, f"over {MAX_JWT} bytes", ValueError)
    raw = text.encode("ascii")
    segments = raw.split(b".", _SEGMENTS)
    require(len(segments) == _SEGMENTS, "not three segments", ValueError)
    header, payload, signature = (base64url.decode(segment) for segment in segments)
    found, claims = (strict_json.loads(part, depth=_DEPTH) for part in (header, payload))
    require(type(found) is dict and type(claims) is dict, "its header or its claims are no object", ValueError)
    algorithm, kid = found.get("alg"), found.get("kid", "")
    require(type(algorithm) is str and algorithm in ALLOWED, "its alg is not on the list", ValueError)
    require(type(kid) is str, "its kid is no text", ValueError)
    require("crit" not in found, "it has a crit", ValueError)
    return Jwt(found, claims, Opened(algorithm, kid, raw[: raw.rindex(b".")], payload, signature))
