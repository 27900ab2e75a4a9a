"""Many messages under one signature: the leaf that a message is, the tree over leaves, the proof behind a token.

A leaf is the digests of a message's destination, record key and body, and its headers. The leaves of a batch make
a Merkle tree, and its root is what is signed. Leaves and nodes are hashed with different prefixes, so that neither
passes for the other, and a node without a sibling moves up as it is (RFC 9162, sections 2.1.1 and 2.1.3). Nodes
that were proven are remembered with their root, so that the next proof is a comparison, or one hash.

The header is ``<jws>~<index>.<path>``. ``path`` is base64url of twelve bytes, three for each part of the message
(destination, record key, body, headers), and of the hashes that lead from its leaf to the signed root. The twelve
bytes prove nothing: once a proof has failed they tell which part differs. The wire profile, section 13, fixes
every byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256 as _sha256
from typing import Final, NamedTuple, TypeAlias

from mqauth.errors import MalformedMessage, Reason, Rejection, require
from mqauth.wire import base64url, envelope, memo
from mqauth.wire.claims import MAX_BATCH, Batch, Claims
from mqauth.wire.message import NEW_TUPLE, Message

SEPARATOR: Final = b"~"
"""What stands between the token of a batch and the proof of one message."""
HASH_BYTES: Final = 32
_ROW: Final = MAX_BATCH
_LEAF: Final = b"\x00"
_NODE: Final = b"\x01"
_DOMAIN: Final = b"mqauth-leaf-1"
_SHORT: Final = 3
_NO_KEY: Final = _sha256(b"kn").digest()
_NO_BODY: Final = _sha256(b"bn").digest()
Leaf: TypeAlias = tuple[bytes, bytes, bytes, bytes]
"""SHA-256 of destination, of record key and of body, and the headers as they are."""
_SHORTS: Final = 4 * _SHORT
_DIFFERS: Final = (
    (Reason.DESTINATION_MISMATCH, "signed for another destination"),
    (Reason.RECORD_KEY_MISMATCH, "signed with another record key"),
    (Reason.BODY_MISMATCH, "signed with another body"),
    (Reason.HEADERS_MISMATCH, "signed with other properties or headers"),
)
_INDEXES: Final = {str(index).encode("ascii"): index for index in range(MAX_BATCH)}


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of two children: SHA-256 over 0x01, left and right."""
    return _sha256(_NODE + left + right).digest()


class Tree:
    """A tree over leaf hashes, with the proof of each leaf.

    Args:
        leaves: 1 to 1,024 leaf hashes, in order.

    Raises:
        ValueError: there are none, or too many.
    """

    def __init__(self, leaves: Sequence[bytes]) -> None:
        require(1 <= len(leaves) <= MAX_BATCH, "a tree has 1 to 1024 leaves", ValueError)
        self._levels = [list(leaves)]
        while len(self._levels[-1]) > 1:
            # An odd last node moves up.
            level = self._levels[-1]
            pairs = [
                node_hash(level[at], level[at + 1]) for at in range(0, len(level) - 1, 2)
            ]
            self._levels.append(pairs + level[len(pairs) * 2 :])

    @property
    def root(self) -> bytes:
        """The hash at the top, which stands for all leaves."""
        return self._levels[-1][0]

    def paths(self) -> list[bytes]:
        """Return, of every leaf in order, the hashes that lead to the root, joined, from below."""
        paths = [b""]
        for level in reversed(self._levels[:-1]):
            # Of each node the sibling, then the parent's path; an odd last node has the parent's path alone.
            above, paths = paths, []
            for at in range(0, len(level) - 1, 2):
                rest = above[at >> 1]
                paths += level[at + 1] + rest, level[at] + rest
            paths += above[len(paths) >> 1 :]
        return paths


class Proven:
    """The root of a batch, and the nodes that were proven under it.

    A node is kept with the rest of its path, so that a proof is either right to its last byte or refused,
    whatever is remembered.

    Args:
        root: the root's hash.
        size: leaves of the tree.
    """

    __slots__ = ("_known", "size")

    def __init__(self, root: bytes, size: int) -> None:
        self.size = size
        self._known: dict[int, tuple[bytes, bytes]] = {
            (size - 1).bit_length() * _ROW: (root, b"")
        }

    def proves(self, leaf: bytes, index: int, path: bytes) -> bool:
        """Tell whether a path leads from the leaf at an index to the root, and remember its nodes.

        Args:
            leaf: the leaf's hash.
            index: its place, 0 to ``size`` - 1.
            path: the hashes, joined, from below.
        """
        known, last, row, node, rest = self._known, self.size - 1, 0, leaf, path
        if not 0 <= index <= last:
            return False
        proven: dict[int, tuple[bytes, bytes]] = {}
        while True:
            met = known.get(row + index)
            if met is not None:
                if met[0] != node or met[1] != rest:
                    return False
                known.update(proven)
                return True
            if index & 1 or index < last:
                if row:  # the leaf itself is not asked for again
                    proven[row + index] = node, rest
                sibling, rest = rest[:HASH_BYTES], rest[HASH_BYTES:]
                proven[row + (index ^ 1)] = sibling, node + rest
                node = _sha256(
                    _NODE + (sibling + node if index & 1 else node + sibling)
                ).digest()
            index, last, row = index >> 1, last >> 1, row + _ROW


class Proof(NamedTuple):
    """Where a message stands in its batch, and the hashes that are to show it; nothing of it is proven yet."""

    place: int
    shorts: bytes
    path: bytes


def leaf_of(message: Message, headers: bytes) -> Leaf:
    """Return the leaf that a message is.

    Args:
        message: as it is sent or was delivered.
        headers: its properties and covered headers, encoded.
    """
    key, body, of_body = message.key, message.body, _NO_BODY
    if body is not None:
        # a body may be large: it is hashed where it lies, and not joined with its length
        hasher = _sha256(b"bv" + len(body).to_bytes(8, "big"))
        hasher.update(body)
        of_body = hasher.digest()
    return (
        _DESTINATIONS[message.destination],
        _NO_KEY
        if key is None
        else _sha256(b"kv" + len(key).to_bytes(8, "big") + key).digest(),
        of_body,
        b"hv" + len(headers).to_bytes(8, "big") + headers,
    )


def leaf_hash(leaf: Leaf) -> bytes:
    """Return the hash of a leaf."""
    return _sha256(_LEAF + b"".join(leaf)).digest()


def shorts_of(leaf: Leaf) -> bytes:
    """Return the first three bytes of each part's digest, by which a failed proof tells which part differs."""
    destination, key, body, headers = leaf
    return (
        destination[:_SHORT]
        + key[:_SHORT]
        + body[:_SHORT]
        + _sha256(headers).digest()[:_SHORT]
    )


def proof_of(text: bytes | None, claims: Claims) -> Proof | None:
    """Return the proof behind a batch token: the end of step 4. A token of one message has none.

    Args:
        text: what follows the tilde, ``None`` if there is no tilde.
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
    # below the level where its way meets the last leaf's every node of the way has a sibling; above it the way is
    # the last node's, which has a sibling only on its left (RFC 9162, 2.1.3.1)
    below = (index ^ (size - 1)).bit_length()
    if len(raw) != _SHORTS + HASH_BYTES * (below + (index >> below).bit_count()):
        raise _invalid("the path has not the length of its place")
    return NEW_TUPLE(Proof, (index, raw[:_SHORTS], raw[_SHORTS:]))


def proof_text(index: int, shorts: bytes, path: bytes) -> str:
    """Return what follows the token of a batch in the header of one message."""
    return f"~{index}.{base64url.encode(shorts + path).decode('ascii')}"


def check(
    message: Message, proof: Proof, proven: Proven, encode: envelope.Encoder
) -> None:
    """Hold a verified root against one message: step 11 of the verdict.

    Args:
        message: as the broker delivered it.
        proof: what came behind its token.
        proven: the root, and what was proven under it before.
        encode: of the message's form and the names that the batch covers.

    Raises:
        Rejection: ``destination_mismatch``, ``record_key_mismatch``, ``body_mismatch``, ``headers_mismatch`` or
            ``proof_invalid``.
    """
    try:
        headers = encode(message)
    except MalformedMessage as error:
        raise Rejection(Reason.HEADERS_MISMATCH, str(error)) from error
    leaf = leaf_of(message, headers)
    if not proven.proves(leaf_hash(leaf), proof.place, proof.path):
        raise _difference(shorts_of(leaf), proof.shorts)


def is_for(destination: str, proof: Proof) -> bool:
    """Tell whether a message of a batch was sealed for a destination, as far as its proof says."""
    return _DESTINATIONS[destination][:_SHORT] == proof.shorts[:_SHORT]


def _difference(actual: bytes, signed: bytes) -> Rejection:
    """Return what a failed proof says: the first part that is not what was sealed, else the proof itself."""
    for position, (reason, detail) in enumerate(_DIFFERS):
        at = slice(position * _SHORT, (position + 1) * _SHORT)
        if actual[at] != signed[at]:
            return Rejection(reason, detail)
    return _invalid("the path does not lead to the signed root")


def _destination(destination: str) -> bytes:
    """Return the digest of the first part of a leaf."""
    raw = destination.encode("utf-8")
    return _sha256(_DOMAIN + b"dv" + len(raw).to_bytes(8, "big") + raw).digest()


_DESTINATIONS: Final = memo.Memo(_destination)


def _invalid(detail: str) -> Rejection:
    return Rejection(Reason.PROOF_INVALID, detail)
