"""Tokens, and the batch tokens that are remembered so that their siblings need only a proof.

Only what a trusted key has signed and a policy has permitted gets in, so that a flood of forgeries neither grows
this memory nor pushes anything out. What is remembered says nothing about key, clock, audience or subject now: the
verifier asks again.
"""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from mqauth.wire import base64url
from mqauth.wire.claims import Batch, Claims
from mqauth.wire.jws import Opened
from mqauth.wire.keys import Key, KeySet
from mqauth.wire.merkle import Proven

CAPACITY: Final = 16 * 1024 * 1024
"""Bytes of all remembered tokens."""
LEAF: Final = 1024
"""Bytes a remembered token takes for each message of its batch, once all of them were proven; measured."""


class Standing(NamedTuple):
    """By which key set, from when and until when (UTC seconds of receipt) a token was found right."""

    keys: KeySet
    since: float
    until: float


class Token:
    """A token: of one message, or of a batch and maybe remembered.

    Args:
        text: the bytes of its JWS.
        opened: the same taken apart.
        claims: what it claims.

    Attributes:
        key: under which the signature held; under another object it is checked again.
        proven: in a batch, its root and what was proven under it.
        standing: in a batch, what all but the message was found right by.
        id: what it is claimed by, empty until it was made.
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
        leaves = 1 if self.proven is None else self.proven.size
        return 4 * len(self.text) + _held(self.claims) + LEAF * leaves


class Tokens:
    """The newest batch tokens, by the bytes of their JWS; bounded in bytes, and by their lives.

    Args:
        capacity: bytes of all remembered tokens together.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._held = 0
        self._tokens: OrderedDict[bytes, Token] = OrderedDict()
        self.get: Callable[[bytes], Token | None] = self._tokens.get
        """Return a remembered token, found by its exact bytes."""
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._tokens)

    def add(self, token: Token, ended: float) -> None:
        """Remember a token; the oldest go to make room, and those that ended before ``ended``, UTC seconds.

        One that ended itself is not remembered: old tokens that somebody kept push nothing out.
        """
        if token.claims.exp < ended:
            return
        with self._lock:
            kept = self._tokens.pop(token.text, None)
            self._held += token.size - (0 if kept is None else kept.size)
            self._tokens[token.text] = token
            while len(self._tokens) > 1 and self._is_over(ended):
                self._held -= self._tokens.popitem(last=False)[1].size

    def _is_over(self, ended: float) -> bool:
        """Tell whether the oldest token has to go."""
        return self._held > self._capacity or next(iter(self._tokens.values())).claims.exp < ended


def _held(value: Any) -> int:
    """Return the bytes a value takes with all it holds; claims are not deep, and of few values."""
    inner: Any = ()
    if isinstance(value, Mapping):
        inner = (*value, *value.values())
    elif isinstance(value, list | tuple):
        inner = value
    return sys.getsizeof(value) + sum(map(_held, inner))
