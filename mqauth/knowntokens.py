"""Batch tokens whose signature held, remembered so that their siblings need only a proof.

Only what a trusted key has signed gets in, so that a flood of forgeries neither grows this memory nor pushes
anything out. What is remembered says nothing about key, clock, audience or subject now: the verifier asks again.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, NamedTuple

from mqauth.claims import Claims
from mqauth.jws import Opened
from mqauth.keys import Key, KeySet
from mqauth.merkle import Proven

CAPACITY: Final = 16_384


class Standing(NamedTuple):
    """By which key set, from when and until when (UTC seconds of receipt) a token was found right."""

    keys: KeySet
    since: float
    until: float


@dataclass(slots=True)
class KnownToken:
    """A batch token whose signature held.

    Args:
        opened: the token, taken apart.
        claims: what it claims.
        key: under which the signature held; under another object it is checked again.
        proven: its root, and what was proven under it.
        standing: what all but the message was found right by.
    """

    opened: Opened
    claims: Claims
    key: Key
    proven: Proven
    standing: Standing | None = None

    def stands(self, keys: KeySet, received: float) -> bool:
        """Tell whether all but the message is known to be right by this very key set, and at this time."""
        found = self.standing
        return found is not None and found.keys is keys and found.since <= received < found.until


class KnownTokens:
    """The newest tokens, by the bytes of their JWS; bounded by the messages they stand for, and by their lives.

    Args:
        capacity: leaves of all remembered trees together.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._leaves = 0
        self._tokens: OrderedDict[bytes, KnownToken] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._tokens)

    def get(self, token: bytes) -> KnownToken | None:
        """Return what is remembered of a token, found by its exact bytes."""
        return self._tokens.get(token)

    def add(self, token: bytes, known: KnownToken, ended: float) -> None:
        """Remember a token; the oldest go to make room, and those that ended before ``ended``, UTC seconds.

        One that ended itself is not remembered: old tokens that somebody kept push nothing out.
        """
        if known.claims.exp < ended:
            return
        with self._lock:
            kept = self._tokens.pop(token, None)
            self._leaves += known.proven.size - (0 if kept is None else kept.proven.size)
            self._tokens[token] = known
            while len(self._tokens) > 1 and self._is_over(ended):
                self._leaves -= self._tokens.popitem(last=False)[1].proven.size

    def _is_over(self, ended: float) -> bool:
        """Tell whether the oldest token has to go."""
        return self._leaves > self._capacity or next(iter(self._tokens.values())).claims.exp < ended
