"""Many messages under one signature: the leaf a message is, and the proof that travels behind the token.

The header is ``<jws>~<index>.<path>``; ``path`` is base64url of twelve bytes that tell what a message was
sealed as, three each of destination, record key, body and headers, and of the hashes that lead to the root.
The twelve prove nothing: they name what differs once the proof has failed. The wire profile fixes the bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from mqauth.errors import MalformedMessage, Reason, Rejection
from mqauth.wire import base64url, envelope
from mqauth.wire.claims import MAX_BATCH, Batch, Claims
from mqauth.wire.envelope import Cover
from mqauth.wire.merkle import HASH_BYTES, Proven, leaf_hash, leaf_hasher, path_length
from mqauth.wire.message import Message

_DOMAIN: Final = b"mqauth-leaf-1"
SEPARATOR: Final = b"~"
"""What stands between the token of a batch and the proof of one message."""
_SHORT: Final = 3
_SHORTS: Final = 4 * _SHORT
_DIFFERS: Final = (
    (Reason.DESTINATION_MISMATCH, "signed for another destination"),
    (Reason.RECORD_KEY_MISMATCH, "signed with another record key"),
    (Reason.BODY_MISMATCH, "signed with another body"),
    (Reason.HEADERS_MISMATCH, "signed with other properties or headers"),
)
_TUPLE: Final = tuple.__new__
_INDEXES: Final = {str(index).encode("ascii"): index for index in range(MAX_BATCH)}


class Proof(NamedTuple):
    """Where a message stands in its batch, and what shows it; nothing in it is proven yet."""

    place: int
    shorts: bytes
    path: bytes


class Leaf(NamedTuple):
    """What is bound of a message: the four parts its leaf is made of, each unambiguous."""

    destination: bytes
    key: bytes
    body: bytes
    headers: bytes

    @property
    def hash(self) -> bytes:
        """The leaf's hash."""
        return leaf_hash(*self)

    @property
    def shorts(self) -> bytes:
        """The first bytes of each part's digest."""
        destination, key, body, headers = self
        return _often(destination) + (_NO_KEY if key == b"kn" else _short(key)) + _short(body) + _short(headers)


def leaf_of(message: Message, names: Sequence[str]) -> Leaf:
    """Return the leaf of a message.

    Args:
        message: as it is sent or was delivered.
        names: the covered application headers, in the batch's order; absent ones are covered as absent.

    Raises:
        MalformedMessage: two names differ in case only, or a value has no form on the wire.
    """
    envelope.refuse_case_twins(message, names)
    return leaf_with(message, envelope.headers_input(message, names))


def leaf_with(message: Message, headers: bytes) -> Leaf:
    """Return the leaf of a message whose properties and covered headers are encoded already."""
    return Leaf(
        _destination(message.destination),
        _part(b"k", message.key),
        _part(b"b", message.body),
        _part(b"h", headers),
    )


def split(token: bytes) -> tuple[bytes, bytes | None]:
    """Return the JWS of a token header, and what follows it; ``None`` where it stands alone."""
    jws, tilde, proof = token.partition(SEPARATOR)
    return (jws, proof) if tilde else (token, None)


def proof_of(text: bytes | None, claims: Claims) -> Proof | None:
    """Return the proof behind a batch token, of the length its place asks for; a single token has none: step 4.

    Args:
        text: what follows the tilde, ``None`` where there is none.
        claims: the token's.

    Raises:
        Rejection: ``proof_invalid``.
    """
    batch = claims.mqa
    if not isinstance(batch, Batch):
        if text is not None:
            raise _invalid("a proof behind a token of one message")
        return None
    if text is None:
        raise _invalid("a batch token without its proof")
    number, _, path = text.partition(b".")
    index, size = _INDEXES.get(number), batch.size
    if index is None or index >= size:
        raise _invalid("no place in the batch")
    try:
        raw = base64url.decode(path)
    except ValueError as error:
        raise _invalid("the path is not canonical base64url") from error
    if len(raw) != _SHORTS + HASH_BYTES * path_length(index, size):
        raise _invalid("the path has not the length of its place")
    return _TUPLE(Proof, (index, raw[:_SHORTS], raw[_SHORTS:]))


def proof_text(index: int, shorts: bytes, path: bytes) -> str:
    """Return what follows the token of a batch in the header of one message."""
    return f"~{index}.{base64url.encode(shorts + path).decode('ascii')}"


def check(message: Message, proof: Proof, proven: Proven, cover: Cover) -> None:
    """Hold a verified root against one message; step 11 of the verdict.

    Args:
        message: as the broker delivered it.
        proof: what came behind its token.
        proven: the root, and what was proven under it.
        cover: of messages with its names and of the names that the batch covers.

    Raises:
        Rejection: ``destination_mismatch``, ``record_key_mismatch``, ``body_mismatch``,
            ``headers_mismatch`` or ``proof_invalid``.
    """
    try:
        headers = cover(message)
    except MalformedMessage as error:
        raise Rejection(Reason.HEADERS_MISMATCH, str(error)) from error
    key, body, hasher = message.key, message.body, _hasher(message.destination).copy()
    before = b"kn" if key is None else _part(b"k", key)
    if body is None:
        hasher.update(before + b"bn")
    else:
        # not joined with the rest: a body may be large, and is hashed where it lies
        hasher.update(before + b"bv" + len(body).to_bytes(8, "big"))
        hasher.update(body)
    hasher.update(b"hv" + len(headers).to_bytes(8, "big") + headers)
    if not proven.proves(hasher.digest(), proof.place, proof.path):
        raise _difference(leaf_with(message, headers).shorts, proof.shorts)


def _difference(found: bytes, signed: bytes) -> Rejection:
    """Return what a failed proof says: the first part that is not what was sealed, else the proof itself."""
    for place, (reason, detail) in enumerate(_DIFFERS):
        at = slice(place * _SHORT, (place + 1) * _SHORT)
        if found[at] != signed[at]:
            return Rejection(reason, detail)
    return _invalid("the path does not lead to the signed root")


def _part(letter: bytes, value: bytes | None) -> bytes:
    """Return a part of a leaf: its letter, whether there is anything, how much, and what."""
    return letter + b"n" if value is None else letter + b"v" + len(value).to_bytes(8, "big") + value


@lru_cache(maxsize=1024)
def _hasher(destination: str) -> hashlib._Hash:
    """Return a hasher that has taken the first part of a leaf."""
    return leaf_hasher(_destination(destination))


@lru_cache(maxsize=1024)
def _destination(destination: str) -> bytes:
    """Return the first part of a leaf."""
    return _DOMAIN + _part(b"d", destination.encode("utf-8"))


def _short(part: bytes) -> bytes:
    """Return the first bytes of a part's digest."""
    return hashlib.sha256(part).digest()[:_SHORT]


@lru_cache(maxsize=1024)
def _often(part: bytes) -> bytes:
    """Return ``_short`` of a part that many messages have."""
    return _short(part)


_NO_KEY: Final = _short(b"kn")


def _invalid(detail: str) -> Rejection:
    """Return the rejection of a proof that does not hold."""
    return Rejection(Reason.PROOF_INVALID, detail)
