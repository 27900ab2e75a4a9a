"""What the tokens of one producer, for messages of one form, have in common, to the byte.

Two payloads of claims that mqauth builds differ in ``iat``, ``exp``, ``jti`` and three digests. Where the rest is
the same bytes it has the same meaning: it was parsed once. The digests are not read but made of the message, and
what the payload must then be is compared with what it is.
"""

from __future__ import annotations

from typing import Final, NamedTuple, TypeAlias

from mqauth import claims as claim_set
from mqauth.claims import Binding, Claims

Digests: TypeAlias = tuple[str | None, str | None, str]
_TIME: Final = 10  # digits, from 2001 to 2286
_TEXT: Final = bytes(range(ord("0"), ord("9") + 1)) + bytes(range(ord("A"), ord("Z") + 1)) + b"_-" + bytes(
    range(ord("a"), ord("z") + 1)
)  # fmt: skip
_NAMES: Final = (b',"iat":', b',"exp":', b',"jti":"', b'"bod":', b',"key":', b',"hds":')


class Template(NamedTuple):
    """A payload without the six values that change.

    Args:
        claims: of the payload it was cut from.
        pieces: what stands before, between and behind ``iat``, ``exp``, ``jti`` and the digests.
    """

    claims: Claims
    pieces: tuple[bytes, bytes, bytes, bytes, bytes, bytes, bytes]


class Own(NamedTuple):
    """What a payload says of its own: times in UTC seconds, and the token's id."""

    iat: int
    exp: int
    jti: str


def template_of(payload: bytes, claims: Claims) -> Template | None:
    """Return the template of a payload, ``None`` where mqauth would not have built it so.

    Args:
        payload: parsed and verified.
        claims: what it was parsed to.
    """
    binding = claims.mqa
    if not isinstance(binding, Binding) or claims.nbf is not None or claims.extra:
        return None
    if claim_set.build(claims) != payload:
        return None
    pieces, rest = list[bytes](), payload
    values = (str(claims.iat), str(claims.exp), claims.jti, *map(_quoted, (binding.bod, binding.key, binding.hds)))
    for name, value in zip(_NAMES, values, strict=True):
        before, found, rest = rest.partition(name)
        pieces.append(before + found)
        rest = rest[len(value) :]
    first, second, third, fourth, fifth, sixth = pieces
    made = Template(claims, (first, second, third, fourth, fifth, sixth, rest))
    read = own(made, payload, (binding.bod, binding.key, binding.hds))
    return made if read == (claims.iat, claims.exp, claims.jti) else None


def fill(template: Template, iat: bytes, exp: bytes, jti: bytes, digests: Digests) -> bytes:
    """Return a payload of a template.

    Args:
        template: of another payload.
        iat: UTC seconds in ten digits.
        exp: likewise.
        jti: of base64url's characters.
        digests: of body, record key, and properties with headers; ``None`` for no body and for no key.
    """
    before, between, before_jti, before_bod, before_key, before_hds, tail = template.pieces
    bod, key, hds = digests
    return b"".join((
        before, iat, between, exp, before_jti, jti, before_bod, _quoted(bod), before_key, _quoted(key), before_hds,
        _quoted(hds), tail,
    ))  # fmt: skip


def own(template: Template, payload: bytes, digests: Digests) -> Own | None:
    """Return what a payload says of its own, ``None`` unless it is the template with these digests.

    Args:
        template: of another payload.
        payload: of a token.
        digests: as of ``fill``, of the message the token is with.
    """
    before, between, before_jti, *_ = template.pieces
    at = len(before)
    iat = payload[at : at + _TIME]
    at += _TIME + len(between)
    exp = payload[at : at + _TIME]
    at += _TIME + len(before_jti)
    jti = payload[at : at + len(template.claims.jti)]
    filled = fill(template, iat, exp, jti, digests)
    if filled != payload or not (_is_time(iat) and _is_time(exp) and _plain(jti)):
        return None
    return Own(int(iat), int(exp), jti.decode("ascii"))


def _quoted(digest: str | None) -> bytes:
    """Return a digest as it stands in JSON."""
    return b"null" if digest is None else b'"' + digest.encode("ascii") + b'"'


def _is_time(text: bytes) -> bool:
    """Tell whether ten characters are a JSON integer."""
    return text.isdigit() and text[:1] != b"0"


def _plain(text: bytes) -> bool:
    """Tell whether a text means in JSON what it is, and is of base64url's characters."""
    return not text.translate(None, _TEXT)
