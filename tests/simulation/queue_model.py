"""A model of a queue and its broker: channels, delivery tags, prefetch, returns and the delivery limit.

A channel ends at the broker first, and its client may hear of it much later. What was unacked on it is ready again
at once, flagged as redelivered and counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

from mqauth.wire.message import Message, Origin
from tests.simulation.log_facilities import CLAIMS, OPENED, PLAIN

QUEUE: Final = "orders"


class Parcel:
    """A message in the queue; it is its own token, and knows what the verifier says of it.

    Args:
        number: which of all it is.
        content: the number of what it says; a copy has its original's.
        kind: how it is to be taken, ``honest`` for example.
        misbehaves: how often its handler misbehaves.
    """

    __slots__ = (
        "acked",
        "content",
        "expires",
        "first",
        "handled",
        "id",
        "kind",
        "letters",
        "misbehaves",
        "number",
        "returns",
    )
    shape, opened, claims, proof, index, learnt, wit = (
        PLAIN,
        OPENED,
        CLAIMS,
        None,
        None,
        True,
        None,
    )
    destination = "amqp:orders"

    def __init__(self, number: int, content: int, kind: str, misbehaves: int) -> None:
        self.number = number
        self.content = content
        self.kind = kind
        self.misbehaves = misbehaves
        self.id = content.to_bytes(16, "big")
        self.returns = self.handled = self.letters = 0
        self.acked = False
        self.expires = math.inf
        self.first: tuple[Any, float] | None = None

    @property
    def token(self) -> Parcel:
        """Itself."""
        return self

    def __repr__(self) -> str:
        return f"{self.number} {self.kind}"


class Native:
    """A delivery, as a client gives it.

    Args:
        channel: it came on.
        tag: its number there.
        consumer: the tag of the consumer it came to.
        parcel: what it brings.
    """

    __slots__ = (
        "channel",
        "consumer",
        "goes_on",
        "message",
        "parcel",
        "received",
        "returns",
        "sent",
        "settled",
        "tag",
        "verdict",
    )
    shape, opened, claims, proof, index, learnt, wit = (
        PLAIN,
        OPENED,
        CLAIMS,
        None,
        None,
        True,
        None,
    )
    destination = "amqp:orders"

    def __init__(
        self, channel: Channel, tag: int, consumer: str, parcel: Parcel, sent: float
    ) -> None:
        self.channel = channel
        self.tag = tag
        self.consumer = consumer
        self.parcel = parcel
        self.returns = parcel.returns
        self.sent = self.received = sent
        self.settled = self.goes_on = False
        self.verdict = 0
        origin = Origin(queue=QUEUE, redelivered=parcel.returns > 0)
        self.message = Message(
            destination=self.destination, body=parcel.id, origin=origin, native=self
        )

    @property
    def token(self) -> Native:
        """Itself."""
        return self

    @property
    def id(self) -> bytes:
        """The id of its claim."""
        return self.parcel.id

    def __repr__(self) -> str:
        return f"{self.parcel} as {self.channel.number}/{self.tag}"


class Channel:
    """A channel, at both ends.

    Args:
        number: which of all it is.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.alive = True
        self.ended = False
        self.tags = 0
        self.unacked: dict[int, Native] = {}
        self.consumers: dict[str, int] = {}
        self.transit: list[Native] = []
        self.proven = 0


class Broker:
    """The queue.

    Args:
        limit: how often a message may be returned; negative for any number.
        broken: called with an invariant and what breaks it.
        now: monotonic seconds.
    """

    def __init__(
        self, limit: int, broken: Callable[[str, str], None], now: Callable[[], float]
    ) -> None:
        self.limit = limit
        self.ready: list[Parcel] = []
        self.put_away: list[Parcel] = []
        self.channels: list[Channel] = []
        self._broken = broken
        self._now = now
        self._consumers = 0

    def open(self) -> Channel:
        """Open a channel."""
        channel = Channel(len(self.channels) + 1)
        self.channels.append(channel)
        return channel

    def consume(self, channel: Channel, prefetch: int) -> str:
        """Begin to send messages on a channel, at most so many unacked; return the consumer's tag."""
        self._consumers += 1
        tag = f"c{self._consumers}"
        channel.consumers[tag] = prefetch
        self.send()
        return tag

    def cancel(self, channel: Channel, consumer: str) -> None:
        """Send no more to a consumer."""
        channel.consumers.pop(consumer, None)

    def send(self) -> None:
        """Send messages to the consumers with room."""
        for channel in self.channels[-2:]:
            for consumer, prefetch in channel.consumers.items():
                if channel.alive:
                    self._send_to(channel, consumer, prefetch)

    def _send_to(self, channel: Channel, consumer: str, prefetch: int) -> None:
        """Send to one consumer."""
        unacked = sum(each.consumer == consumer for each in channel.unacked.values())
        while self.ready and unacked < prefetch:
            channel.tags += 1
            found = Native(
                channel, channel.tags, consumer, self.ready.pop(0), self._now()
            )
            channel.unacked[found.tag] = found
            channel.transit.append(found)
            unacked += 1

    def ack(self, channel: Channel, tag: int, *, multiple: bool) -> None:
        """Take an ack; it is lost if the channel has ended."""
        if not channel.alive:
            return
        if tag not in channel.unacked:
            self._broken("only what is unacked is acked", f"{channel.number}/{tag}")
        tags = [each for each in channel.unacked if each <= tag] if multiple else [tag]
        for each in tags:
            found = channel.unacked.pop(each)
            if not found.settled:
                self._broken("only what is settled is acked", f"{found} by {tag}")
            found.parcel.acked = True
        self.send()

    def requeue(self, native: Native) -> None:
        """Take a delivery back."""
        channel = native.channel
        if native.settled:
            self._broken("what is settled is not given back", str(native))
        if not channel.alive:
            return
        if channel.unacked.pop(native.tag, None) is None:
            self._broken("given back once", str(native))
        if 0 <= self.limit <= native.returns:
            self._broken("the last delivery is not given back", str(native))
        self._return(native)
        self.send()

    def end(self, channel: Channel) -> None:
        """End a channel; its client does not know."""
        channel.alive = False
        channel.consumers.clear()
        unacked, channel.unacked = list(channel.unacked.values()), {}
        for each in reversed(unacked):
            self._return(each)

    def _return(self, native: Native) -> None:
        """Make a message ready again, or put it away where it was returned too often."""
        native.parcel.returns += 1
        if 0 <= self.limit < native.parcel.returns:
            self.put_away.append(native.parcel)
        else:
            self.ready.insert(0, native.parcel)


class Calls:
    """The client's answers about its deliveries, as ``Slot`` asks for them."""

    queue = QUEUE

    def ended(self, native: Any, /) -> bool:
        """Tell whether its channel ended, as far as the client knows."""
        return bool(native.channel.ended)

    def consumer(self, native: Any, /) -> str:
        """Return the tag of the consumer it came to."""
        return str(native.consumer)

    def size(self, native: Any, /) -> int:
        """Return the bytes of its body."""
        return len(native.id)

    def returns(self, native: Any, /) -> int:
        """Return how often its message was returned."""
        return int(native.returns)
