"""Forged batches: messages under one signature with any mistake, and a forge that seals in batches only."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

from mqauth.errors import MalformedMessage
from mqauth.signer import Prepared, Signer
from mqauth.testing.forge import Forge, bent, with_token
from mqauth.wire import base64url, batch, envelope
from mqauth.wire.batch import Tree
from mqauth.wire.message import Message, form_of

SIZE: Final = 5
PLACE: Final = 2
"""Size of a forged batch and the place of the message in it: between siblings, three hashes below the root."""


class Leaf(NamedTuple):
    """The parts of a message that a leaf binds (wire profile, section 13)."""

    destination: bytes
    key: bytes
    body: bytes
    headers: bytes

    @property
    def data(self) -> bytes:
        """The bytes over which the leaf's hash is taken."""
        return b"".join(hashlib.sha256(part).digest() for part in self[:3]) + self[3]

    @property
    def hash(self) -> bytes:
        """The leaf's hash."""
        return leaf_hash(self.data)

    @property
    def shorts(self) -> bytes:
        """The first three bytes of each part's digest."""
        return b"".join(hashlib.sha256(part).digest()[:3] for part in self)


def leaf_hash(data: bytes) -> bytes:
    """Return the hash of a leaf of these data (RFC 9162, section 2.1.1)."""
    return hashlib.sha256(b"\x00" + data).digest()


def leaf_of(message: Message, names: Sequence[str]) -> Leaf:
    """Return the leaf of a message, computed independently of the code that signs and judges.

    Args:
        message: as it is sent or was delivered.
        names: the covered application headers, in the batch's order.
    """
    return Leaf(
        b"mqauth-leaf-1" + _octets(b"d", message.destination.encode("utf-8")),
        _octets(b"k", message.key),
        _octets(b"b", message.body),
        _octets(b"h", envelope.headers_input(message, names)),
    )


def _octets(letter: bytes, value: bytes | None) -> bytes:
    return (
        letter + b"n"
        if value is None
        else letter + b"v" + len(value).to_bytes(8, "big") + value
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgedBatch:
    """Messages under one signature, and anything that may stand behind it.

    Args:
        jws: the token without a proof.
        messages: unsigned, in order.
        leaves: the leaf of each message.
        tree: the tree over the leaves.
        names: names of the covered headers, in order.
    """

    jws: str
    messages: tuple[Message, ...]
    leaves: tuple[Leaf, ...]
    tree: Tree
    names: tuple[str, ...]

    def proof(
        self, index: int, *, shorts: bytes | None = None, path: bytes | None = None
    ) -> bytes:
        """Return the bytes behind the index; parts that are not given are honest."""
        honest = self.tree.paths()[index] if path is None else path
        return (self.leaves[index].shorts if shorts is None else shorts) + honest

    def header(
        self, place: int, *, number: str | None = None, proof: bytes | str | None = None
    ) -> str:
        """Return the token header of one message.

        Args:
            place: its place in the batch.
            number: the index as text, in place of the honest one.
            proof: what stands behind the index, as bytes or as text that is encoded already.
        """
        raw = self.proof(place) if proof is None else proof
        text = raw if isinstance(raw, str) else base64url.encode(raw).decode("ascii")
        return f"{self.jws}~{place if number is None else number}.{text}"

    def seal(self, place: int, message: Message | None = None, **changes: Any) -> Message:
        """Return a message, by default the place's own, with the header of that place; see ``header``."""
        bare = self.messages[place] if message is None else message
        return with_token(bare, self.header(place, **changes))


def forge_batch(
    forge: Forge,
    messages: Sequence[Message],
    *,
    cover: Iterable[str] | None = None,
    mqa: Mapping[str, Any] | None = None,
    tree: Mapping[str, Any] | None = None,
    **bends: Any,
) -> ForgedBatch:
    """Return messages under one signature.

    Args:
        forge: signs, whatever form its own tokens have.
        messages: unsigned, in order.
        cover: names of the headers to cover; by default the application headers of the first message.
        mqa: members of ``mqa`` in place of the honest ones.
        tree: members of its ``tree`` in place of the honest ones.
        **bends: as ``Forge.jws`` takes them.
    """
    names = _names(messages[0], cover)
    leaves = tuple(leaf_of(message, names) for message in messages)
    built = Tree([leaf.hash for leaf in leaves])
    claim = batch_claim(built, len(leaves), names)
    claim["tree"] = bent(claim["tree"], tree)
    claims = {"mqa": bent(claim, mqa)} | dict(bends.pop("claims", None) or {})
    jws = forge.jws(messages[0], claims=claims, **bends)
    return ForgedBatch(
        jws=jws, messages=tuple(messages), leaves=leaves, tree=built, names=tuple(names)
    )


def batch_claim(tree: Tree, size: int, names: Sequence[str]) -> dict[str, Any]:
    """Return the honest ``mqa`` of a batch."""
    claim: dict[str, Any] = {
        "v": 1,
        "tree": {"root": base64url.encode(tree.root).decode("ascii"), "size": size},
    }
    return claim | ({"hdr": list(names)} if names else {})


def siblings(message: Message, size: int = SIZE, place: int = PLACE) -> list[Message]:
    """Return a batch around a message; the other messages differ from it in their bodies only."""
    others = [replace(message, body=b"sibling %d" % number) for number in range(size - 1)]
    return [*others[:place], message, *others[place:]]


class BatchForge(Forge):
    """A forge that seals each message as one of a batch; changes are made to the batch's token."""

    def mqa(self, message: Message, cover: Iterable[str] | None = None) -> dict[str, Any]:
        """Return the honest ``mqa`` of the batch around a message."""
        names = _names(message, cover)
        return batch_claim(_tree(message, names), SIZE, names)

    def token(self, message: Message, **bends: Any) -> str:
        """Return the batch's token with the message's proof behind it."""
        names = _names(message, bends.get("cover"))
        shorts = leaf_of(message, names).shorts
        proof = batch.proof_text(PLACE, shorts, _tree(message, names).paths()[PLACE])
        return self.jws(message, **bends) + proof

    def signer(self, **settings: Any) -> Signer:
        """Return the honest producer's signer, which seals each message in a batch of its own."""
        return _BatchSigner(**self.identity(**settings))


class _BatchSigner(Signer):
    """Seals every message together with siblings that are not sent."""

    def sign(self, message: Message) -> Message:
        """Return the message, sealed as one of a batch."""
        return self.seal([self.prepare(message)])[0]

    def tokens(self, prepared: Sequence[Prepared]) -> list[str | MalformedMessage]:
        """Return each message's token of a batch of its own."""
        batches = (
            [self.prepare(each) for each in siblings(member.message)]
            for member in prepared
        )
        return [super(_BatchSigner, self).tokens(member)[PLACE] for member in batches]


def _names(message: Message, cover: Iterable[str] | None) -> list[str]:
    return sorted(
        envelope.application_headers(form_of(message)) if cover is None else set(cover)
    )


def _tree(message: Message, names: Sequence[str]) -> Tree:
    return Tree([leaf_of(sibling, names).hash for sibling in siblings(message)])
