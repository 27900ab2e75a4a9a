"""What a replay store is asked: the wish to handle one message."""

from __future__ import annotations

from dataclasses import dataclass

from mqauth.message import Place


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
