"""What the tokens of one producer, for messages of one form, have in common, to the byte.

Two payloads of claims that mqauth builds differ in six values: ``iat``, ``exp``, ``jti`` and the digests of
body, record key and headers. The seven *pieces* around them are the same bytes, and so they mean the same. A
signer fills six values in. A consumer that has parsed and verified one payload reads the next one by comparing
the pieces; a payload that differs anywhere else is for ``claims.parse``.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from typing import Final, TypeAlias

from mqauth.wire.claims import NO_EXTRA, Binding, Claims, build

Pieces: TypeAlias = tuple[bytes, ...]
_TIME: Final = 10  # digits, from 2001 to 2286
_TEXT: Final = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_-abcdefghijklmnopqrstuvwxyz"
_DIGEST: Final = 43  # characters
_LAST: Final = b"AEIMQUYcgkosw048"  # a canonical digest ends so
_ZERO: Final = ord("0")
_TUPLE: Final = tuple.__new__
_NAMES: Final = (b',"iat":', b',"exp":', b',"jti":"', b'"bod":', b',"key":', b',"hds":')
"""What stands before the six values. Text inside a payload is none of these, since its quotes are escaped."""


def pieces_of(
    claims: Claims, binding: Binding, made: Callable[[Claims], bytes] = build
) -> Pieces:
    """Return what stands before, between and behind the six values in the payload of these claims.

    Args:
        claims: of the payload.
        binding: its ``mqa``.
        made: makes the payload.
    """
    values = (
        str(claims.iat),
        str(claims.exp),
        claims.jti,
        *map(_quoted, (binding.bod, binding.key, binding.hds)),
    )
    pieces, rest = list[bytes](), made(claims)
    for name, value in zip(_NAMES, values, strict=True):
        before, mark, rest = rest.partition(name)
        pieces.append(before + mark)
        rest = rest[len(value) :]
    return (*pieces, rest)


def fill(
    pieces: Pieces,
    iat: bytes,
    exp: bytes,
    jti: bytes,
    digests: tuple[str | None, str | None, str],
) -> bytes:
    """Return a payload.

    Args:
        pieces: of another payload of its form.
        iat: UTC seconds in digits.
        exp: likewise.
        jti: of base64url's characters.
        digests: of body, record key, and properties with headers; ``None`` for no body and for no key.
    """
    before, between, before_jti, before_bod, before_key, before_hds, tail = pieces
    bod, key, hds = digests
    return b"".join(
        (
            before,
            iat,
            between,
            exp,
            before_jti,
            jti,
            before_bod,
            _quoted(bod),
            before_key,
            _quoted(key),
            before_hds,
            _quoted(hds),
            tail,
        )
    )


class Reader:
    """Reads payloads that differ from another one in the six values alone, each of the length it has there.

    Args:
        claims: of the other.
        binding: its ``mqa``.
        length: of the other, in bytes.
        made: makes the payload.
    """

    __slots__ = ("_claims", "_fixed", "_values", "length")

    def __init__(
        self,
        claims: Claims,
        binding: Binding,
        length: int,
        made: Callable[[Claims], bytes],
    ) -> None:
        before, between, before_jti, before_bod, before_key, before_hds, tail = pieces_of(
            claims, binding, made
        )
        # What stands in JSON before the text of a digest and behind it.
        (bod, after_bod), (key, after_key) = (
            (b"null", b"") if digest is None else (b'"', b'"')
            for digest in (binding.bod, binding.key)
        )
        self._claims = claims, binding
        self._fixed = (
            before,
            between,
            before_jti,
            before_bod + bod,
            after_bod + before_key + key,
            after_key + before_hds + b'"',
            b'"' + tail,
        )
        sizes = (
            _TIME,
            _TIME,
            len(claims.jti),
            _DIGEST * bool(after_bod),
            _DIGEST * bool(after_key),
            _DIGEST,
        )
        places, at = list[slice](), 0
        for fixed, size in zip(self._fixed, sizes, strict=False):
            places.append(slice(at + len(fixed), at + len(fixed) + size))
            at += len(fixed) + size
        self._values: Callable[[bytes], tuple[bytes, ...]] = itemgetter(*places)
        self.length = length

    @property
    def size(self) -> int:
        """Bytes it takes, about."""
        return 4 * self.length

    def read(self, payload: bytes) -> Claims | None:
        """Return the claims of a payload, as ``claims.parse`` does; ``None`` if it differs in anything else."""
        iat, exp, jti, bod, key, hds = self._values(payload)
        one, two, three, four, five, six, seven = self._fixed
        if (
            b"".join(
                (one, iat, two, exp, three, jti, four, bod, five, key, six, hds, seven)
            )
            != payload
        ):
            return None
        # JSON knows no leading zero, and the parser would refuse one
        if not (iat + exp).isdigit() or iat[0] == _ZERO or exp[0] == _ZERO:
            return None
        # characters of base64url stand for themselves in JSON: no escape can hide among them
        if (jti + bod + key + hds).translate(None, _TEXT):
            return None
        if (
            hds[-1] not in _LAST
            or (bod and bod[-1] not in _LAST)
            or (key and key[-1] not in _LAST)
        ):
            return None
        like, of = self._claims
        texts = bod.decode("ascii") if bod else None, key.decode("ascii") if key else None
        binding = _TUPLE(Binding, (of.dst, *texts, of.hdr, hds.decode("ascii")))
        return _TUPLE(
            Claims,
            (
                like.iss,
                like.sub,
                like.aud,
                int(iat),
                int(exp),
                jti.decode("ascii"),
                binding,
                None,
                NO_EXTRA,
            ),
        )


def reader_of(
    payload: bytes, claims: Claims, made: Callable[[Claims], bytes] = build
) -> Reader | None:
    """Return a reader of payloads like one, ``None`` if mqauth would not have built that one so.

    Args:
        payload: parsed and verified.
        claims: what it was parsed to.
        made: makes the payload.
    """
    binding = claims.mqa
    if (
        not isinstance(binding, Binding)
        or claims.nbf is not None
        or claims.extra
        or made(claims) != payload
    ):
        return None
    reader = Reader(claims, binding, len(payload), made)
    return reader if reader.read(payload) == claims else None


def _quoted(digest: str | None) -> bytes:
    """Return a digest as it stands in JSON."""
    return b"null" if digest is None else b'"' + digest.encode("ascii") + b'"'
