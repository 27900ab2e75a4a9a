"""A message's token before it is believed: where it stands, what it claims, and what is remembered of both.

A ``Shape`` is what follows from the names of a message alone. Names are anybody's, so shapes are remembered
within a bound of bytes; of the values nothing is. A ``Token`` is one token taken apart. That of a batch is
remembered, so that its siblings need a proof only, but not before a trusted key has signed it and a policy has
permitted it: a flood of forgeries then neither grows this memory nor pushes anything out. What is remembered
says nothing about key, clock, audience or subject *now*; the verifier asks again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from mqauth.errors import Reason, Rejection
from mqauth.letters.release import is_release
from mqauth.wire import base64url, envelope
from mqauth.wire.batch import Proof, Proven
from mqauth.wire.claims import Batch, Claims
from mqauth.wire.destination import is_kafka
from mqauth.wire.envelope import Encoder
from mqauth.wire.jws import Opened
from mqauth.wire.keys import Key, KeySet
from mqauth.wire.memo import size_of
from mqauth.wire.message import Form
from mqauth.wire.template import Reader

CAPACITY: Final = 16 * 1024 * 1024
"""Bytes of all remembered shapes, and of all remembered tokens."""
LEAF: Final = 1024
"""Bytes a remembered token takes for each message of its batch, once all of them were proven; measured."""
_CHARACTER: Final = 16
"""Bytes a token takes for each of its characters, with claims made to take as much as they can; measured."""


class Shape:
    """What messages of one form have in common.

    Args:
        form: of the messages.
        charge: counts bytes that are about to be kept in the shape, and tells whether they may be.

    Attributes:
        place: where among the headers the token is.
        fault: why there is not exactly one token.
        on_kafka: the broker is Kafka.
        released: one of the names is a release, in whatever spelling.
        encoders: what encodes messages of this form, by the names that their token covers.
        readers: what reads a payload, by kid and length, once one like it was accepted with this form.
    """

    __slots__ = ("_charge", "_form", "encoders", "fault", "on_kafka", "place", "readers", "released")

    def __init__(self, form: Form, charge: Callable[[int], bool]) -> None:
        self._charge = charge
        self._form = form
        self.encoders: dict[tuple[str, ...], Encoder] = {}
        self.readers: dict[tuple[str, int], Reader] = {}
        self.on_kafka = is_kafka(form[0])
        self.place = 0
        self.fault: tuple[Reason, str] | None = None
        self.released = any(map(is_release, form[1]))
        try:
            self.place = envelope.place_of_token(form[1])
        except Rejection as rejection:
            self.fault = rejection.reason, rejection.detail

    def encoder(self, names: tuple[str, ...]) -> Encoder:
        """Return what encodes messages of this form whose token covers these names, and remember it."""
        encoder = envelope.checked_encoder(self._form, names)
        if self._charge(size_of((self._form[1], names))):
            self.encoders[names] = encoder
        return encoder

    def learn(self, kid: str, reader: Reader) -> None:
        """Remember what reads payloads like one that was accepted; the next of its key and length replaces it."""
        if (kid, reader.length) in self.readers or self._charge(size_of(kid) + reader.size):
            self.readers[kid, reader.length] = reader


class Standing(NamedTuple):
    """By which key set, from when and until when (UTC seconds of receipt) steps 6 to 10 hold for a token."""

    keys: KeySet
    since: float
    until: float


class Token:
    """A token of one message, or of a batch and maybe remembered.

    Args:
        text: the bytes of its JWS.
        opened: the same taken apart.
        claims: what it claims.

    Attributes:
        key: under which the signature held; under another object it is checked again.
        proven: of a batch, its root and what was proven under it.
        standing: of a batch, for how long its steps 6 to 10 hold.
        id: the id it is claimed by, empty until it was computed.
    """

    __slots__ = ("claims", "id", "key", "opened", "proven", "standing", "text")

    def __init__(self, text: bytes, opened: Opened, claims: Claims) -> None:
        self.text = text
        self.opened = opened
        self.claims = claims
        self.id = b""
        self.key: Key | None = None
        self.standing: Standing | None = None
        self.proven: Proven | None = None
        if isinstance(claims.mqa, Batch):
            self.proven = Proven(base64url.decode(claims.mqa.root.encode("ascii")), claims.mqa.size)

    def __repr__(self) -> str:
        return f"Token({self.opened!r})"

    @property
    def size(self) -> int:
        """Bytes it takes at most once all its messages were proven."""
        return _CHARACTER * len(self.text) + LEAF * (1 if self.proven is None else self.proven.size)


class Candidate(NamedTuple):
    """A token whose claims are parsed and not yet believed: the outcome of steps 1 to 4.

    Args:
        token: taken apart; one of a batch may be remembered.
        proof: in a batch, what came behind the token.
        shape: of its message.
        learnt: there is nothing to remember of the token that is not remembered already.
    """

    token: Token
    proof: Proof | None
    shape: Shape
    learnt: bool
