"""What a producer needs for the identity form: a key that a WIT vouches for, and proofs made with it.

The form itself is in ``mqauth.wire.identity``.
"""

from __future__ import annotations

from typing import ClassVar

from mqauth.errors import Rejection, refusing, require
from mqauth.wire import base64url, identity, strict_json
from mqauth.wire.claims import Claims
from mqauth.wire.keys import PublicKey, SigningKey, public_members


class WorkloadKey:
    """A workload's key with the WIT that vouches for it: a ``SigningKey`` that signs proofs.

    Args:
        wit: from the authority.
        key: signs with its private half.
        public: its public half.
        host: of the authority, where it is known, for errors.

    Attributes:
        kid: of the authority's key: the one that consumers look up.
        algorithm: of the workload's key.
        subjects: the one subject it speaks for.
        sign: returns the raw JWS signature over some bytes.

    Raises:
        ConfigurationError: this is no WIT, or it vouches for another key.
    """

    is_identity: ClassVar[bool] = True

    def __init__(
        self, wit: str, key: SigningKey, public: PublicKey, host: str = ""
    ) -> None:
        with refusing(
            (Rejection, UnicodeEncodeError),
            lambda error: f"no WIT: {getattr(error, 'detail', 'not ASCII')}",
        ):
            require(identity.is_wit(wit.encode("ascii")), "it is no wit+jwt")
            parsed = identity.parse_wit(wit.encode("ascii"))
        require(
            {name: parsed.jwk.get(name) for name in public_members(public)}
            == public_members(public),
            "the identity vouches for another key",
        )
        self.host = host
        self.identity = parsed.identity
        self.kid = parsed.identity.kid
        self.algorithm = key.algorithm
        self.sign = key.sign
        self.subjects = frozenset((parsed.identity.subject,))
        self.prefix = parsed.text + identity.SEPARATOR
        self.before = (
            base64url.encode(
                strict_json.dumps({"alg": parsed.jwk["alg"], "typ": identity.PROOF_TYPE})
            )
            + b"."
        )
        self.wth = _with(parsed.digest)

    def __repr__(self) -> str:
        return f"WorkloadKey({self.identity.subject!r})"


def build(claims: Claims) -> bytes:
    """Return the payload of a proof but its ``wth``, which ``compact`` adds."""
    members = claims.as_dict()
    return strict_json.dumps(
        {name: value for name, value in members.items() if name not in ("iss", "sub")}
    )


def payload(claims: Claims, wth: str) -> bytes:
    """Return the payload of a proof as ``compact`` signs it.

    Args:
        claims: its claims.
        wth: the digest of its WIT.
    """
    return build(claims)[:-1] + _with(wth)


def _with(wth: str) -> bytes:
    return b',"wth":"' + wth.encode("ascii") + b'"}'


def compact(payload: bytes, key: WorkloadKey) -> str:
    """Return a WIT with a proof behind it.

    Args:
        payload: as ``build`` makes it.
        key: signs, and has the WIT.
    """
    signing_input = key.before + base64url.encode(payload[:-1] + key.wth)
    return (
        key.prefix + signing_input + b"." + base64url.encode(key.sign(signing_input))
    ).decode("ascii")
