"""What the tokens of one producer, for messages of one form, have in common, to the byte.

Two payloads of claims that mqauth builds differ in ``iat``, ``exp``, ``jti`` and three digests. Where the rest is
the same bytes it has the same meaning: it was parsed once. A payload that is the template with six values of their
form is read without a parser; any other one is for ``claims.parse``.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from typing import Final, NamedTuple, TypeAlias

from mqauth.wire import claims as claim_set
from mqauth.wire.claims import NO_EXTRA, Binding, Claims

Digests: TypeAlias = tuple[str | None, str | None, str]
_TIME: Final = 10  # digits, from 2001 to 2286
_TEXT: Final = bytes(range(ord("0"), ord("9") + 1)) + bytes(range(ord("A"), ord("Z") + 1)) + b"_-" + bytes(
    range(ord("a"), ord("z") + 1)
)  # fmt: skip
_DIGEST: Final = 43  # characters
_LAST: Final = b"AEIMQUYcgkosw048"  # a canonical digest ends so
_ZERO: Final = ord("0")
_TUPLE: Final = tuple.__new__
_NAMES: Final = (b',"iat":', b',"exp":', b',"jti":"', b'"bod":', b',"key":', b',"hds":')


class Template(NamedTuple):
    """A payload without the six values that change.

    Args:
        claims: of the payload it was cut from.
        binding: their ``mqa``.
        pieces: what stands before, between and behind ``iat``, ``exp``, ``jti`` and the digests.
    """

    claims: Claims
    binding: Binding
    pieces: tuple[bytes, bytes, bytes, bytes, bytes, bytes, bytes]


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
    made = Template(claims, binding, (first, second, third, fourth, fifth, sixth, rest))
    return made if Reader(made, payload).read(payload) == claims else None


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


class Reader:
    """Reads payloads that differ from another one in six values alone, each of the length it has there.

    Args:
        template: of the other.
        payload: the other.
    """

    __slots__ = ("_claims", "_fixed", "_values", "length")

    def __init__(self, template: Template, payload: bytes) -> None:
        before, between, before_jti, before_bod, before_key, before_hds, tail = template.pieces
        (bod, after_bod), (key, after_key) = map(_around, (template.binding.bod, template.binding.key))
        self._claims = template.claims, template.binding
        self._fixed = (
            before, between, before_jti, before_bod + bod, after_bod + before_key + key,
            after_key + before_hds + b'"', b'"' + tail,
        )  # fmt: skip
        jti = len(template.claims.jti)
        sizes = (_TIME, _TIME, jti, _DIGEST * bool(after_bod), _DIGEST * bool(after_key), _DIGEST)
        places, at = list[slice](), 0
        for fixed, size in zip(self._fixed, sizes, strict=False):
            places.append(slice(at + len(fixed), at + len(fixed) + size))
            at += len(fixed) + size
        self._values: Callable[[bytes], tuple[bytes, ...]] = itemgetter(*places)
        self.length = len(payload)

    @property
    def size(self) -> int:
        """Bytes it takes, about."""
        return 4 * self.length

    def read(self, payload: bytes) -> Claims | None:
        """Return the claims of a payload, as ``claims.parse`` does; ``None`` where it differs in anything else."""
        iat, exp, jti, bod, key, hds = self._values(payload)
        one, two, three, four, five, six, seven = self._fixed
        if b"".join((one, iat, two, exp, three, jti, four, bod, five, key, six, hds, seven)) != payload:
            return None
        if not (iat + exp).isdigit() or iat[0] == _ZERO or exp[0] == _ZERO:
            return None
        # a text of base64url's characters means in JSON what it is
        if (jti + bod + key + hds).translate(None, _TEXT):
            return None
        if hds[-1] not in _LAST or (bod and bod[-1] not in _LAST) or (key and key[-1] not in _LAST):
            return None
        like, of = self._claims
        texts = bod.decode("ascii") if bod else None, key.decode("ascii") if key else None
        binding = _TUPLE(Binding, (of.dst, *texts, of.hdr, hds.decode("ascii")))
        return _TUPLE(
            Claims,
            (like.iss, like.sub, like.aud, int(iat), int(exp), jti.decode("ascii"), binding, None, NO_EXTRA),
        )


def reader_of(payload: bytes, claims: Claims) -> Reader | None:
    """Return what reads payloads like one, ``None`` where mqauth would not have built it so.

    Args:
        payload: parsed and verified.
        claims: what it was parsed to.
    """
    template = template_of(payload, claims)
    return None if template is None else Reader(template, payload)


def _around(digest: str | None) -> tuple[bytes, bytes]:
    """Return what stands in JSON before a digest's text and behind it."""
    return (b"null", b"") if digest is None else (b'"', b'"')


def _quoted(digest: str | None) -> bytes:
    """Return a digest as it stands in JSON."""
    return b"null" if digest is None else b'"' + digest.encode("ascii") + b'"'
