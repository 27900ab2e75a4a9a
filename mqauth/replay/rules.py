"""Replay told from redelivery: the claim table, in one place, and what a store of claims promises.

A claim is a lease on (scope, id). Held or done, it remembers where the broker put the delivery:

=====================  =======================  ==============================================
store says             exact place (Kafka)      no exact place (RabbitMQ)
=====================  =======================  ==============================================
unseen                 FRESH                    FRESH
held, same owner       FRESH                    FRESH
held, same place       FRESH                    -
held, other place      REPLAYED                 redelivered: HELD until the lease is over, then
                                                FRESH; else REPLAYED
done, same place       REREAD                   -
done, other place      REPLAYED                 redelivered: DUPLICATE; else REPLAYED
=====================  =======================  ==============================================

The same owner may claim again: a store's answer that was lost on the way must not turn an honest message
into a replay of itself. A renewal makes the owner's lease longer (FRESH), or changes nothing (LOST).
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple, Protocol

from mqauth.wire.memo import Memo
from mqauth.wire.message import Place

DEFAULT_LEASE: Final = 60.0
_NO_MESSAGE: Final = bytes(4)  # where a message's id has the length of its issuer, which is never empty


class ClaimStatus(Enum):
    """What a claim found; compared by identity."""

    FRESH = "fresh"
    REREAD = "reread"
    HELD = "held"
    DUPLICATE = "duplicate"
    REPLAYED = "replayed"
    LOST = "lost"


_FRESH: Final = ClaimStatus.FRESH  # Python 3.11 takes its time to look a member up
_LOST: Final = ClaimStatus.LOST


@dataclass(slots=True)
class ClaimRequest:
    """A wish to handle one message; not frozen, since one is built for each message, but never changed.

    Args:
        scope: consumer group or queue; each scope may handle a message once.
        id: ``claim_id``, in a batch ``batch_id``, or ``release_id``: digests, never the token's text.
        index: the message's place in its batch, also the last two bytes of ``id``; ``None`` for a single token.
        owner: a nonce of this delivery; only it may claim again, renew, confirm or release.
        place: exact coordinates of the delivery, or ``None``.
        redelivered: the broker's hint, used only without a place.
        lease: seconds the claim holds unless confirmed.
        expires: UTC seconds after which no copy can be accepted any more.
        renew: not a new claim, but a longer lease for its owner.
    """

    scope: str
    id: bytes
    owner: str
    place: Place | None
    redelivered: bool
    lease: float
    expires: float
    renew: bool = False
    index: int | None = None


class Entry(NamedTuple):
    """What a store knows of one id.

    Args:
        owner: of the delivery that holds it; ``None`` once it is done.
        place: exact coordinates of that delivery, or ``None``.
        lease_ends: seconds by the clock that the store counts leases by.
    """

    owner: str | None
    place: Place | None
    lease_ends: float


class ReplayStore(Protocol):
    """Remembers claims atomically, in this process or for all consumers; either colour."""

    def claim(self, request: ClaimRequest, /) -> ClaimStatus | Awaitable[ClaimStatus]:
        """Take the lease where the table allows it, and say what was found.

        Raises:
            Unavailable: ``replay_store_unavailable`` or ``replay_store_full``.
        """
        ...

    def confirm(self, request: ClaimRequest, /) -> Awaitable[None] | None:
        """Make the claim done; a former owner changes nothing."""
        ...

    def release(self, request: ClaimRequest, /) -> Awaitable[None] | None:
        """Forget the claim; a former owner changes nothing."""
        ...


class BatchReplayStore(Protocol):
    """A store that answers many wishes in one round trip; each counts as if it came alone, in order.

    One whose ``in_process`` is true answers at once, and is asked for some of a poll at a time: it has no round
    trips to save.
    """

    def claim_many(self, requests: Sequence[ClaimRequest], /) -> list[ClaimStatus] | Awaitable[list[ClaimStatus]]:
        """Claim each; where it raises, some may be claimed, and the same owners may claim again.

        Raises:
            Unavailable: ``replay_store_unavailable`` or ``replay_store_full``.
        """
        ...


def judge(entry: Entry | None, request: ClaimRequest, now: float) -> ClaimStatus:
    """Return what the table of this module says.

    Args:
        entry: what the store knows, ``None`` where the id is unseen.
        request: the claim.
        now: the clock the lease is counted by, seconds.
    """
    if entry is None:
        return _LOST if request.renew else _FRESH
    if entry.owner == request.owner:
        return _FRESH
    if request.renew:
        return _LOST
    if request.place is not None:
        if entry.place != request.place:
            return ClaimStatus.REPLAYED
        return ClaimStatus.REREAD if entry.owner is None else _FRESH
    if not request.redelivered:
        return ClaimStatus.REPLAYED
    if entry.owner is None:
        return ClaimStatus.DUPLICATE
    return _FRESH if entry.lease_ends <= now else ClaimStatus.HELD


def batch_id(token: bytes, index: int) -> bytes:
    """Return the 18-byte id of a message of a batch: its token's id and its index, big-endian."""
    return token + index.to_bytes(2, "big")


def claim_id(issuer: str, subject: str, jti: str) -> bytes:
    """Return the 16-byte id of a token (wire profile 1, section 8): no producer can make that of another's."""
    return hashlib.sha256(_PRODUCERS[issuer, subject] + jti.encode("utf-8", "surrogatepass")).digest()[:16]


def release_id(authority: str, letter: str) -> bytes:
    """Return the 16-byte id of a release (wire profile 1, section 12): no message has it, whatever its names."""
    return hashlib.sha256(_NO_MESSAGE + _sized(authority) + letter.encode("utf-8", "surrogatepass")).digest()[:16]


def _sized(text: str) -> bytes:
    """Return a text in UTF-8 behind its length in 4 bytes; lone surrogates do not raise."""
    raw = text.encode("utf-8", "surrogatepass")
    return len(raw).to_bytes(4, "big") + raw


_PRODUCERS: Final = Memo[tuple[str, str], bytes](lambda names: _sized(names[0]) + _sized(names[1]))
"""What stands before the ``jti`` of each message, by issuer and subject."""
