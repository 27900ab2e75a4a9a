"""Merkle trees held against RFC 9162 as it is written: hashes, paths, verification, and what is remembered."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqauth.testing.batchforge import leaf_hash
from mqauth.wire.batch import HASH_BYTES, Proven, Tree
from mqauth.wire.claims import MAX_BATCH
from tests.conftest import together


def mth(data: Sequence[bytes]) -> bytes:
    """Merkle Tree Hash (RFC 9162, 2.1.1): by recursion over the largest power of two below the size."""
    if len(data) == 1:
        return hashlib.sha256(b"\x00" + data[0]).digest()
    k = _split(len(data))
    return hashlib.sha256(b"\x01" + mth(data[:k]) + mth(data[k:])).digest()


def inclusion(m: int, data: Sequence[bytes]) -> list[bytes]:
    """PATH(m, D_n) (RFC 9162, 2.1.3.1)."""
    if len(data) == 1:
        return []
    k = _split(len(data))
    if m < k:
        return [*inclusion(m, data[:k]), mth(data[k:])]
    return [*inclusion(m - k, data[k:]), mth(data[:k])]


def _split(n: int) -> int:
    """Return the largest power of two smaller than n."""
    return 1 << (n - 1).bit_length() - 1


def rfc_verifies(
    leaf: bytes, index: int, size: int, path: list[bytes], root: bytes
) -> bool:
    """Verify an inclusion proof by the steps of RFC 9162, 2.1.3.2."""
    if index >= size:
        return False
    fn, sn, r = index, size - 1, leaf
    for p in path:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            r = hashlib.sha256(b"\x01" + p + r).digest()
            if not fn & 1:
                while fn and not fn & 1:
                    fn, sn = fn >> 1, sn >> 1
        else:
            r = hashlib.sha256(b"\x01" + r + p).digest()
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and r == root


def data_of(size: int) -> list[bytes]:
    """Return leaf inputs, all different."""
    return [b"%d" % number for number in range(size)]


def tree_of(size: int) -> Tree:
    """Return the tree over ``data_of``."""
    return Tree([leaf_hash(data) for data in data_of(size)])


def hashes(path: bytes) -> list[bytes]:
    """Return the hashes of a path."""
    return [path[at : at + HASH_BYTES] for at in range(0, len(path), HASH_BYTES)]


def path_length(index: int, size: int) -> int:
    """Return how many hashes prove a leaf: on its way up each node has one but a last one on the left."""
    count, last = 0, size - 1
    while last:
        count += index & 1 or index < last
        index, last = index >> 1, last >> 1
    return count


@given(st.integers(1, 70), st.data())
def test_remembering_changes_no_answer(size: int, data: st.DataObject) -> None:
    """Proofs honest and bent, in any order: with one memory, with none, and by the RFC's steps alike."""
    leaves, tree = data_of(size), tree_of(size)
    warm = Proven(tree.root, size)
    for _ in range(data.draw(st.integers(1, 12))):
        index = data.draw(st.integers(0, size - 1))
        leaf, path = leaf_hash(leaves[index]), bytearray(tree.paths()[index])
        bend = data.draw(
            st.sampled_from(["none", "none", "bit", "leaf", "other", "swap"])
        )
        if bend == "bit" and path:
            path[data.draw(st.integers(0, len(path) - 1))] ^= 1 << data.draw(
                st.integers(0, 7)
            )
        elif bend == "leaf":
            leaf = leaf_hash(leaves[data.draw(st.integers(0, size - 1))])
        elif bend == "other":
            other = tree.paths()[data.draw(st.integers(0, size - 1))]
            path = bytearray(other) if len(other) == len(path) else path
        elif bend == "swap" and len(path) >= 2 * HASH_BYTES:
            path[:HASH_BYTES], path[-HASH_BYTES:] = path[-HASH_BYTES:], path[:HASH_BYTES]
        expected = rfc_verifies(leaf, index, size, hashes(bytes(path)), tree.root)
        assert warm.proves(leaf, index, bytes(path)) is expected
        assert Proven(tree.root, size).proves(leaf, index, bytes(path)) is expected


@pytest.mark.parametrize("size", [0, MAX_BATCH + 1])
def test_a_tree_has_its_limits(size: int) -> None:
    """A tree of nothing has no root, and one over the limit no consumer would take."""
    with pytest.raises(ValueError, match="1 to 1024"):
        Tree([bytes(HASH_BYTES)] * size)


def test_a_size_that_is_a_lie_is_told_by_the_paths_length_or_means_the_same() -> None:
    """For one place no two sizes have paths of one length and hash them otherwise."""
    for index in range(40):
        folds: dict[int, list[bool]] = {}
        for size in range(index + 1, 80):
            at, last, fold = index, size - 1, []
            while last:
                if at & 1 or at < last:
                    fold.append(bool(at & 1))
                at, last = at >> 1, last >> 1
            assert len(fold) == path_length(index, size)
            assert folds.setdefault(len(fold), fold) == fold


def test_threads_share_a_memory() -> None:
    """Proofs good and bad from several threads at once get the answers they get alone."""
    size = 64
    data, tree = data_of(size), tree_of(size)
    proven, wrong = Proven(tree.root, size), []

    def prove(seed: int) -> None:
        for index in random.Random(seed).choices(range(size), k=400):
            good = proven.proves(leaf_hash(data[index]), index, tree.paths()[index])
            bad = proven.proves(leaf_hash(data[index]), index, tree.paths()[index ^ 1])
            if not good or bad:
                wrong.append(index)

    together(prove, range(4))
    assert wrong == []
