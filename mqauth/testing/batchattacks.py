"""Attacks on batches: one signature stands for many messages, and no other message may borrow it.

Like ``ATTACKS``, each turns an honest, unsigned message into the message that is published in its place. Whoever
may write to the broker can write any proof, but only somebody who holds a key can sign a tree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from mqauth.errors import Reason
from mqauth.testing.batchforge import (
    PLACE,
    SIZE,
    ForgedBatch,
    forge_batch,
    leaf_of,
    siblings,
)
from mqauth.testing.forge import REMOVED, Forge, with_token
from mqauth.testing.token_attacks import Attack, changed_header
from mqauth.wire import base64url, envelope
from mqauth.wire.batch import HASH_BYTES
from mqauth.wire.claims import MAX_BATCH
from mqauth.wire.message import Message, form_of

_LAST: Final = SIZE - 1
_OTHER: Final = PLACE + 1
Mount = Callable[[Forge, Message], Message]
Edit = Callable[[Message], Message]


def _around(
    forge: Forge, message: Message, number: int = PLACE, **bends: Any
) -> ForgedBatch:
    return forge_batch(forge, siblings(message, SIZE, number), **bends)


def _attack(
    name: str, story: str, bend: Callable[[ForgedBatch], Message], **other: Any
) -> Attack:
    """Return an attack on the proof behind an honest token, or on its message."""
    settings: dict[str, Any] = {"reason": Reason.PROOF_INVALID, **other}
    return Attack(
        name=name,
        story=story,
        mount=lambda forge, message: bend(_around(forge, message)),
        **settings,
    )


def _index(name: str, story: str, number: str, **other: Any) -> Attack:
    """Return an attack that writes another index."""
    return _attack(name, story, lambda batch: batch.seal(PLACE, number=number), **other)


def _path(name: str, story: str, bend: Callable[[bytes], bytes]) -> Attack:
    """Return an attack that changes the path."""
    return _attack(
        name,
        story,
        lambda batch: batch.seal(
            PLACE, proof=batch.proof(PLACE, path=bend(batch.tree.paths()[PLACE]))
        ),
    )


def _text(name: str, story: str, bend: Callable[[str], str]) -> Attack:
    """Return an attack on the path's text, at the last place, whose text has unused bits."""
    return _attack(
        name,
        story,
        lambda batch: batch.seal(
            _LAST, proof=bend(base64url.encode(batch.proof(_LAST)).decode("ascii"))
        ),
    )


def _claim(name: str, story: str, **mqa: Any) -> Attack:
    """Return an attack that signs another ``mqa``."""
    return Attack(
        name=name,
        story=story,
        reason=Reason.CLAIMS_MALFORMED,
        mount=lambda forge, message: _around(forge, message, mqa=mqa).seal(PLACE),
    )


def _tree(
    name: str, story: str, reason: Reason = Reason.CLAIMS_MALFORMED, **tree: Any
) -> Attack:
    """Return an attack that signs another ``tree``, around the last message in it."""
    return Attack(
        name=name,
        story=story,
        reason=reason,
        mount=lambda forge, message: _around(forge, message, _LAST, tree=tree).seal(
            _LAST
        ),
    )


def _lie(
    part: str,
    sent: Edit = lambda message: message,
    signed: Edit = lambda message: message,
    **other: Any,
) -> Attack:
    """Return an attack whose proof has the twelve bytes of the message that is sent, not of the signed one."""

    def mount(forge: Forge, message: Message) -> Message:
        batch, edited = _around(forge, signed(message)), sent(message)
        shorts = leaf_of(edited, batch.names).shorts
        return batch.seal(PLACE, edited, proof=batch.proof(PLACE, shorts=shorts))

    return Attack(
        name=f"lying-about-{part}",
        story=f"the {part} edited, and the proof told so",
        reason=Reason.PROOF_INVALID,
        mount=mount,
        **other,
    )


def _hashed(name: str, story: str, leaf: bytes, node: bytes) -> Attack:
    """Return an attack that signs the root of two leaves that were hashed with other prefixes."""

    def mount(forge: Forge, message: Message) -> Message:
        pair = siblings(message, 2, 0)
        left, right = (
            _sha(leaf + member.data) for member in forge_batch(forge, pair).leaves
        )
        bent = forge_batch(forge, pair, tree={"root": _b64(_sha(node + left + right))})
        return bent.seal(0, proof=bent.proof(0, path=right))

    return Attack(name=name, story=story, reason=Reason.PROOF_INVALID, mount=mount)


def _other_tree(forge: Forge, message: Message) -> Message:
    """Use the proof that the same message has in another batch."""
    stranger = replace(message, body=b"of another batch")
    other = forge_batch(forge, [stranger, stranger, message, stranger, stranger])
    return _around(forge, message).seal(PLACE, proof=other.proof(PLACE))


def _node_as_leaf(batch: ForgedBatch) -> Message:
    """Send the bytes under an inner node as a message, with the node's own, shorter path."""
    body = batch.leaves[0].hash + batch.leaves[1].hash
    return batch.seal(
        0,
        replace(batch.messages[0], body=body),
        proof=batch.proof(0, path=batch.tree.paths()[0][HASH_BYTES:]),
    )


def _node_as_sibling(batch: ForgedBatch) -> Message:
    """Send the bytes under an inner node as a message, in the place of its left leaf, with the full path."""
    body = batch.leaves[0].hash + batch.leaves[1].hash
    edited = replace(batch.messages[0], body=body)
    return batch.seal(
        0, edited, proof=batch.proof(0, shorts=leaf_of(edited, batch.names).shorts)
    )


def _single(forge: Forge, message: Message) -> Message:
    """Put the proof of a batch behind the token of a single message."""
    jws = forge.jws(message, claims={"mqa": envelope.bind(message).as_dict()})
    alone = forge_batch(forge, [message])
    return with_token(message, jws + alone.header(0).removeprefix(alone.jws))


def _sha(raw: bytes) -> bytes:
    return hashlib.sha256(raw).digest()


def _b64(raw: bytes) -> str:
    return base64url.encode(raw).decode("ascii")


def _shorts(message: Message) -> bytes:
    """Return the twelve bytes of a message, without a path."""
    return leaf_of(message, envelope.application_headers(form_of(message))).shorts


def _flipped(raw: bytes, position: int) -> bytes:
    bent = bytearray(raw)
    bent[position] ^= 1
    return bytes(bent)


PROOF_ATTACKS: Final = (
    _attack(
        "tree-without-proof",
        "a batch token that says nothing of the message",
        lambda found: with_token(found.messages[PLACE], found.jws),
    ),
    _attack(
        "tree-with-empty-proof",
        "a tilde and nothing behind it",
        lambda found: with_token(found.messages[PLACE], found.jws + "~"),
    ),
    Attack(
        name="proof-without-tree",
        story="a proof behind the token of one message",
        reason=Reason.PROOF_INVALID,
        mount=_single,
    ),
    _attack(
        "two-tildes",
        "a second proof behind the first",
        lambda found: with_token(found.messages[PLACE], found.header(PLACE) + "~2.AAAA"),
    ),
    _index("another-index", "the own path under another place's number", str(_OTHER)),
    _attack(
        "proof-of-another",
        "the proof of another place, number and all",
        lambda found: found.seal(
            _OTHER,
            found.messages[PLACE],
            proof=found.proof(_OTHER, shorts=found.leaves[PLACE].shorts),
        ),
    ),
    _attack(
        "path-of-another",
        "the path of another place under the own number",
        lambda found: found.seal(
            PLACE, proof=found.proof(PLACE, path=found.tree.paths()[_OTHER])
        ),
    ),
    Attack(
        name="another-tree",
        story="the proof the message has in another batch",
        reason=Reason.PROOF_INVALID,
        mount=_other_tree,
    ),
    _index("index-beyond-size", "a place behind the last one", str(SIZE)),
    _index("index-beyond-all", "a place that no batch has", str(MAX_BATCH)),
    _attack(
        "index-with-high-bit",
        "a place behind the last one whose path is as long, to be handled twice",
        lambda found: found.seal(_LAST, number=str(_LAST + 8)),
    ),
    _index("index-empty", "no number", ""),
    _index("index-with-zero", "a leading zero", f"0{PLACE}"),
    _index("index-with-plus", "a sign", f"+{PLACE}"),
    _index("index-with-space", "a space", f" {PLACE}"),
    _index("index-with-newline", "a line break", f"{PLACE}\n"),
    _index("index-negative", "a place from the end", f"-{SIZE - PLACE}"),
    _index("index-in-hex", "another base", f"0x{PLACE}"),
    _index("index-with-fraction", "a number that is no integer", f"{PLACE}.0"),
    _index("index-in-other-digits", "digits of another script", "\u0662", scheme="kafka"),
    _index(
        "index-not-ascii",
        "digits of another script",
        "\u0662",
        scheme="rabbitmq",
        reason=Reason.TOKEN_MALFORMED,
    ),
    _path("path-too-short", "a hash less", lambda path: path[:-HASH_BYTES]),
    _path("path-too-long", "a hash more", lambda path: path + path[-HASH_BYTES:]),
    _path("path-cut", "a byte less", lambda path: path[:-1]),
    _path("path-empty", "the twelve bytes alone", lambda path: b""),
    _path("path-head-altered", "its first bit changed", lambda path: _flipped(path, 0)),
    _path("path-tail-altered", "its last bit changed", lambda path: _flipped(path, -1)),
    _path(
        "path-reversed",
        "its hashes in the other order",
        lambda path: b"".join(
            path[at : at + HASH_BYTES] for at in (2 * HASH_BYTES, HASH_BYTES, 0)
        ),
    ),
    _attack(
        "shorts-missing",
        "the path without the twelve bytes before it",
        lambda found: found.seal(PLACE, proof=found.tree.paths()[PLACE]),
    ),
    _text("path-padded", "padding behind the path", lambda text: text + "="),
    _text(
        "path-not-canonical",
        "bits that no canonical text has",
        lambda text: text[:-1] + "-",
    ),
    _text("path-in-base64", "the other alphabet", lambda text: "+/" + text[2:]),
    _text(
        "path-with-newline",
        "a line break in the path",
        lambda text: text[:20] + "\n" + text[20:],
    ),
    _attack(
        "path-without-dot",
        "a number and nothing behind it",
        lambda found: with_token(found.messages[PLACE], f"{found.jws}~{PLACE}"),
    ),
    _attack(
        "node-as-leaf", "an inner node as a message, under its own path", _node_as_leaf
    ),
    _attack(
        "node-for-leaf",
        "an inner node as a message, in its leaf's place",
        _node_as_sibling,
    ),
    _path("leaf-as-node", "a leaf below a leaf", lambda path: _sha(b"below") + path),
    _attack(
        "sibling-header",
        "the headers of two siblings exchanged",
        lambda found: found.seal(_OTHER, found.messages[PLACE]),
        reason=Reason.BODY_MISMATCH,
    ),
    _attack(
        "sibling-body",
        "the body of a sibling under the own proof",
        lambda found: found.seal(PLACE, found.messages[_OTHER]),
        reason=Reason.BODY_MISMATCH,
    ),
    _lie("body", lambda message: replace(message, body=b'{"amount": 1000000}')),
    _lie("header", lambda message: changed_header(message, "evil")),
    _lie("record-key", lambda message: replace(message, key=b"another"), scheme="kafka"),
    _lie(
        "destination",
        signed=lambda message: replace(
            message, destination=message.destination.replace("orders", "refunds")
        ),
    ),
)
"""Attacks that need no key: all on what stands behind an honest token."""

TREE_ATTACKS: Final = (
    _tree(
        "size-larger", "a size that the tree has not", Reason.PROOF_INVALID, size=SIZE + 1
    ),
    _tree(
        "size-smaller",
        "a size that leaves the message out",
        Reason.PROOF_INVALID,
        size=_LAST,
    ),
    Attack(
        name="size-of-one",
        story="a batch of one whose root is not the message",
        reason=Reason.PROOF_INVALID,
        mount=lambda forge, message: forge_batch(
            forge, siblings(message, SIZE, 0), tree={"size": 1}
        ).seal(0, proof=_shorts(message)),
    ),
    _tree("size-beyond-limit", "a batch over its size", size=MAX_BATCH + 1),
    _tree("size-zero", "a batch of nothing", size=0),
    _tree("size-negative", "a batch of less than nothing", size=-SIZE),
    _tree("size-boolean", "true, which is 1 in some languages", size=True),
    _tree("size-text", "digits as text", size=str(SIZE)),
    _tree("size-fraction", "a number that is no integer", size=SIZE + 0.5),
    _tree("size-null", "null", size=None),
    _tree("size-missing", "no size", size=REMOVED),
    _tree("root-missing", "no root", root=REMOVED),
    _tree("root-null", "null", root=None),
    _tree("root-short", "a root of 31 bytes", root=_b64(bytes(31))),
    _tree("root-long", "a root of 33 bytes", root=_b64(bytes(33))),
    _tree(
        "root-not-canonical",
        "bits that no canonical text has",
        root=_b64(bytes(32))[:-1] + "B",
    ),
    _tree("root-padded", "padding", root=_b64(bytes(32)) + "="),
    _tree("tree-with-more", "an unknown member", algorithm="sha-1"),
    _claim("tree-null", "null", tree=None),
    _claim("tree-list", "a list", tree=[]),
    _claim("tree-beside-binding", "both forms at once", bod=None),
    _claim("batch-of-version-2", "a profile to come", v=2),
    _claim("batch-without-version", "no profile", v=REMOVED),
    _claim("batch-covers-twice", "a covered name twice", hdr=["tenant", "tenant"]),
    _claim("batch-covers-empty-list", "an empty list, which is left out", hdr=[]),
    _claim("batch-covers-text", "a name that is no list", hdr="tenant"),
    _claim("batch-covers-number", "a name that is no text", hdr=[1]),
    Attack(
        name="batch-covers-its-token",
        story="the token's own header as a covered one",
        reason=Reason.HEADERS_MISMATCH,
        mount=lambda forge, message: _around(
            forge, message, mqa={"hdr": ["mqauth-token", "tenant"]}
        ).seal(PLACE),
    ),
    _hashed("leaf-without-prefix", "leaves hashed without their prefix", b"", b"\x01"),
    _hashed("leaf-as-node-hash", "leaves hashed as nodes", b"\x01", b"\x01"),
    _hashed("node-without-prefix", "nodes hashed without their prefix", b"\x00", b""),
    _hashed("node-as-leaf-hash", "nodes hashed as leaves", b"\x00", b"\x00"),
)
"""Attacks of somebody who holds the producer's key and signs what a batch may not be."""

BATCH_ATTACKS: Final = (*PROOF_ATTACKS, *TREE_ATTACKS)
"""Every attack on a batch but the replay."""
