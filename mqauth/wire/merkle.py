"""Merkle trees over a batch of messages, and proofs that a leaf belongs to a signed root.

Leaves and nodes are hashed with different prefixes, so that neither passes for the other, and a node without a
sibling moves up as it is (RFC 9162, sections 2.1.1 and 2.1.3). Nodes that were proven are remembered with their
root, so that the next proof is a comparison, or one hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from hashlib import sha256 as _sha256
from typing import Final

from mqauth.wire.claims import MAX_BATCH

HASH_BYTES: Final = 32
_ROW: Final = MAX_BATCH
_LEAF: Final = b"\x00"
_NODE: Final = b"\x01"


def leaf_hash(data: bytes) -> bytes:
    """Return the hash of a leaf: SHA-256 over 0x00 and its data."""
    return hashlib.sha256(_LEAF + data).digest()


def leaf_hasher(head: bytes) -> hashlib._Hash:
    """Return a hasher of leaves that has taken the beginning of their data, for leaves that begin alike."""
    return hashlib.sha256(_LEAF + head)


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of two children: SHA-256 over 0x01, left and right."""
    return hashlib.sha256(_NODE + left + right).digest()


class Tree:
    """A tree over leaf hashes, with the proof of each leaf.

    Args:
        leaves: 1 to 1,024 leaf hashes, in order.

    Raises:
        ValueError: there are none, or too many.
    """

    __slots__ = ("_levels",)

    def __init__(self, leaves: Sequence[bytes]) -> None:
        if not 1 <= len(leaves) <= MAX_BATCH:
            raise ValueError(f"a tree has 1 to {MAX_BATCH} leaves")
        self._levels = [list(leaves)]
        while len(self._levels[-1]) > 1:
            self._levels.append(_above(self._levels[-1]))

    @property
    def root(self) -> bytes:
        """The hash at the top, which stands for all leaves."""
        return self._levels[-1][0]

    def paths(self) -> list[bytes]:
        """Return, of every leaf in order, the hashes that lead to the root, joined, from below."""
        found = [b""]
        for level in reversed(self._levels[:-1]):
            found = _below(level, found)
        return found


class Proven:
    """A root whose signature holds, and the nodes that were proven under it.

    A node is kept with the rest of its path, so that a proof is either right to its last byte or refused,
    whatever is remembered.

    Args:
        root: the root's hash.
        size: leaves of the tree.
    """

    __slots__ = ("_known", "size")

    def __init__(self, root: bytes, size: int) -> None:
        self.size = size
        self._known: dict[int, tuple[bytes, bytes]] = {(size - 1).bit_length() * _ROW: (root, b"")}

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
        found: dict[int, tuple[bytes, bytes]] = {}
        while True:
            met = known.get(row + index)
            if met is not None:
                if met[0] != node or met[1] != rest:
                    return False
                known.update(found)
                return True
            if index & 1 or index < last:
                if row:  # the leaf itself is not asked for again
                    found[row + index] = node, rest
                sibling, rest = rest[:HASH_BYTES], rest[HASH_BYTES:]
                found[row + (index ^ 1)] = sibling, node + rest
                node = _sha256(_NODE + (sibling + node if index & 1 else node + sibling)).digest()
            index, last, row = index >> 1, last >> 1, row + _ROW


def _above(level: list[bytes]) -> list[bytes]:
    """Return the level above another; an odd last node moves up."""
    pairs = [node_hash(level[at], level[at + 1]) for at in range(0, len(level) - 1, 2)]
    return pairs + level[len(pairs) * 2 :]


def _below(level: list[bytes], above: list[bytes]) -> list[bytes]:
    """Return the paths of a level's nodes: sibling, then the parent's path; an odd last node has that alone."""
    found = []
    for at in range(0, len(level) - 1, 2):
        rest = above[at >> 1]
        found.append(level[at + 1] + rest)
        found.append(level[at] + rest)
    return found + above[len(found) >> 1 :]
