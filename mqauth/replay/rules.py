"""The rules that tell a replay from a redelivery, and what a store of claims promises.

Brokers deliver the honest message again, after a crash, a rebalance or a lost ack; a copy that somebody else
publishes looks the same. A *claim* is a lease on (scope, id) that remembers where the broker put the delivery.
While its handler runs it is *held*, and afterwards *done*. What another delivery with that id is told:

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

The same owner may claim again, since a store's answer that was lost on the way must not turn an honest message
into a replay of itself. A renewal extends the owner's lease (FRESH), or changes nothing (LOST).

For example, the record at offset 7 is being handled when its consumer dies. Another consumer gets offset 7
again: the same place, so it is FRESH, and handled at once. A copy at offset 9 is REPLAYED. On RabbitMQ there is
no place: the redelivery is HELD, and deferred, until the lease of the dead consumer is over, and then FRESH.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple, Protocol

from mqauth.logs import emit
from mqauth.wire import memo, message

DEFAULT_LEASE: Final = 60.0
_NO_MESSAGE: Final = bytes(
    4
)  # a message's id has the length of its issuer there, which is never empty


class ClaimStatus(Enum):
    """What a claim found; compared by identity."""

    FRESH = "fresh"
    REREAD = "reread"
    HELD = "held"
    DUPLICATE = "duplicate"
    REPLAYED = "replayed"
    LOST = "lost"


_FRESH: Final = (
    ClaimStatus.FRESH
)  # Python 3.11 takes its time to look a member of an enum up
_LOST: Final = ClaimStatus.LOST


@dataclass(slots=True)
class ClaimRequest:
    """A request to handle one message. It is never changed; frozen it would cost more, and every message has one.

    Args:
        scope: the consumer group or queue; each scope may handle a message once.
        id: ``claim_id``, in a batch ``batch_id``, or ``release_id``: digests, and never the token's text.
        owner: random text of this delivery; only its owner may claim again, renew, confirm or release.
        place: the exact place of the delivery in a log, or ``None``.
        redelivered: the broker's hint, used only without a place.
        lease: seconds the claim holds unless it is confirmed.
        expires: UTC seconds after which no copy can be accepted any more.
        renew: this is no new claim; it extends the lease of its owner.
        index: the message's place in its batch, also the last two bytes of ``id``; ``None`` for a single token.
    """

    scope: str
    id: bytes
    owner: str
    place: message.Place | None
    redelivered: bool
    lease: float
    expires: float
    renew: bool = False
    index: int | None = None


class Entry(NamedTuple):
    """What a store knows of one id.

    Args:
        owner: of the delivery that holds it; ``None`` once it is done.
        place: the exact place of that delivery, or ``None``.
        lease_ends: seconds, by the clock that the store counts leases by.
    """

    owner: str | None
    place: message.Place | None
    lease_ends: float


FORGOT: Final = (
    "%s has lost its memory: %s; copies of those messages may be handled again"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLost:
    """That a store has lost what it knew of messages: copies of them cannot be told.

    Args:
        where: the store.
        why: one line for people.
        scope: of the messages; ``None`` for all that the store knew.
        since: UTC seconds from which on they were claimed; ``None`` for all that the store knew.
        until: UTC seconds at which that was noticed.
    """

    where: str
    why: str
    scope: str | None
    since: float | None
    until: float


class ReplayStore(Protocol):
    """Remembers claims atomically, in this process or for all consumers; its methods may be asynchronous.

    A store may have a fourth method, ``claim_many(requests)``, that makes many claims in one round trip. It
    answers as if each came alone, in order; if it raises, some may be claimed, and the same owners may claim
    again. With ``confirm_many(requests)`` it ends many in one round trip. A store whose ``in_process`` is true has
    no round trips to save: it is asked for a part of a poll at a time. With ``first_place(request)`` it also says
    where the first delivery was, for the detail of a rejection. With ``at_start()`` it is told that a consumer
    starts, and raises ``ConfigurationError`` if it cannot serve it.

    A store that may lose its memory has ``lost``: a ``MemoryLost`` once that was noticed, else ``None``. Until
    ``recorded(lost)`` says that it is on record, all claims are ``replay_store_unavailable``.
    """

    def claim(self, request: ClaimRequest, /) -> ClaimStatus | Awaitable[ClaimStatus]:
        """Take or renew the lease if the table allows it, and tell what was found.

        Raises:
            Unavailable: ``replay_store_unavailable`` or ``replay_store_full``.
        """

    def confirm(self, request: ClaimRequest, /) -> Awaitable[None] | None:
        """Make the claim done; whoever is its owner no more changes nothing."""

    def release(self, request: ClaimRequest, /) -> Awaitable[None] | None:
        """Forget the claim; whoever is its owner no more changes nothing."""


class NoReplayStore:
    """Remembers nothing: what stands in for a store where every copy may be handled."""

    in_process: Final = True

    def at_start(self) -> None:
        """Say at each start what is missing."""
        emit(
            "replay.off",
            "replay is off: a copy of a message is handled as often as it is sent",
        )

    def claim(self, request: ClaimRequest, /) -> ClaimStatus:
        """Take every claim for a first one."""
        return _FRESH

    def confirm(self, request: ClaimRequest, /) -> None:
        """Do nothing."""

    def release(self, request: ClaimRequest, /) -> None:
        """Do nothing."""


def judge(entry: Entry | None, request: ClaimRequest, now: float) -> ClaimStatus:
    """Return what the table of this module says of a claim.

    Args:
        entry: what the store knows, ``None`` if the id is unseen.
        request: the claim.
        now: seconds, by the clock that leases are counted by.
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


def first_seen(store: ReplayStore, request: ClaimRequest) -> str:
    """Return in words where a replayed message was first, as far as a store in this process knows."""
    if request.place is None:
        return "handled before, or being handled, as another delivery"
    # It explains a verdict that stands: a store that cannot say it must not keep the message from being buried.
    with suppress(Exception):
        _, topic, partition, offset = store.first_place(request)  # type: ignore[attr-defined]
        return f"first at {topic}/{partition}/{offset}"
    return "first at another place"


def batch_id(token: bytes, index: int) -> bytes:
    """Return the 18-byte id of a message of a batch: its token's id and its index, big-endian."""
    return token + index.to_bytes(2, "big")


def claim_id(issuer: str, subject: str, jti: str) -> bytes:
    """Return the 16-byte id of a token (wire profile, section 8); no producer can make the id of another's."""
    return hashlib.sha256(
        _PRODUCERS[issuer, subject] + jti.encode("utf-8", "surrogatepass")
    ).digest()[:16]


def release_id(authority: str, letter: str) -> bytes:
    """Return the 16-byte id of a release (wire profile, section 12); no message has such an id."""
    return hashlib.sha256(
        _NO_MESSAGE + _sized(authority) + letter.encode("utf-8", "surrogatepass")
    ).digest()[:16]


def _sized(text: str) -> bytes:
    """Return text in UTF-8 after its length in 4 bytes; a lone surrogate, which has no UTF-8, does not raise."""
    raw = text.encode("utf-8", "surrogatepass")
    return len(raw).to_bytes(4, "big") + raw


_PRODUCERS: Final = memo.Memo[tuple[str, str], bytes](
    lambda names: _sized(names[0]) + _sized(names[1])
)
"""What stands before the ``jti`` of each message, by issuer and subject."""
