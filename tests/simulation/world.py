"""One simulation: its time, network, broker, processes, outages and trace."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tests.simulation.amqp_broker import Broker
from tests.simulation.clock import Agenda, ProcessClock
from tests.simulation.ledger import Ledger, Outages
from tests.simulation.network import Network

if TYPE_CHECKING:
    from tests.simulation.amqp_broker import (
        BrokerConnection,
        Channel,
        ChannelError,
        Queue,
        Stored,
        Subscription,
    )
    from tests.simulation.process import Process

SOURCE = "orders"
DEAD = "orders.dead"


class World:
    """The world of one seed.

    Args:
        seed: decides latencies and who runs next.
        tell: takes each line of the trace, as it comes.
    """

    def __init__(self, seed: int, tell: Callable[[str], None] | None = None) -> None:
        self.pace = random.Random(seed)
        self.agenda = Agenda()
        self.clock = ProcessClock(lambda: self.agenda.now)
        self.ledger = Ledger()
        self.records: list[dict[str, Any]] = []
        self.turns = 0
        self.consumed: set[str] = set()
        """The processes that have consumed."""
        self.processes: dict[str, Process] = {}
        """The last process of each service."""
        self.everyone: dict[str, Process] = {}
        """Every process that ever ran."""
        self.outages = Outages()
        self.published: dict[bytes, Stored] = {}
        self._tell = tell
        self._digest = hashlib.sha256()
        self.network = Network(self)
        self.broker = Broker(self)

    @property
    def digest(self) -> str:
        """A digest of the trace so far."""
        return self._digest.hexdigest()

    def note(self, who: str, what: str) -> None:
        """Add a line to the trace."""
        line = f"{self.agenda.now:12.6f} {who}: {what}"
        self._digest.update(line.encode())
        if self._tell is not None:
            self._tell(line)

    # facilities

    def outage(self, facility: str, process: str) -> str | None:
        """Return how a facility is out of reach of a process, ``None`` where it is not."""
        return self.outages.how(facility, process)

    def begin_outage(self, facility: str, service: str | None, mode: str) -> None:
        """Let a facility be out of reach, of one service or of all."""
        self.outages.begin(facility, service, mode, self.agenda.now)
        self.note(facility, f"{mode} for {service or 'all'}")

    def end_outage(self, facility: str, service: str | None) -> None:
        """Let a facility be in reach again."""
        if self.outages.end(facility, service, self.agenda.now):
            self.note(facility, f"back for {service or 'all'}")

    # told by the broker

    def delivered(
        self, channel: Channel, consumer: Subscription, message: Stored, tag: int
    ) -> None:
        """Note that a message was sent to a consumer."""
        process, again = (
            channel.connection.process,
            f" again ({message.returned})" if message.returned else "",
        )
        self.ledger.deliveries[message.body].append(
            (self.agenda.now, process, message.number)
        )
        self.note(
            "broker", f"{consumer.queue.name} -> {process} #{tag}{again} {message.body!r}"
        )

    def acked(self, channel: Channel, message: Stored) -> None:
        """Note that a message was acked."""
        process = channel.connection.process
        self.ledger.acks[message.body].append((self.agenda.now, process, message.number))
        self.note("broker", f"ack of {process} {message.body!r}")

    def lost(self, channel: Channel, message: Stored) -> None:
        """Note that a channel is over on which a message was unacked."""
        self.ledger.losses[message.body].append(
            (self.agenda.now, channel.connection.process)
        )

    def over_limit(self, queue: Queue, message: Stored) -> None:
        """Note that a message is over its delivery limit."""
        self.ledger.over_limit.append(message.body)
        self.note("broker", f"{queue.name}: over the limit {message.body!r}")

    def channel_failed(self, channel: Channel, error: ChannelError) -> None:
        """Note that the broker closes a channel."""
        process = channel.connection.process
        self.note("broker", f"closes channel {channel.number} of {process}: {error.text}")
        if "unknown delivery tag" in error.text:
            self.ledger.problem("no protocol error", f"{process}: {error.text}")

    def consuming(self, channel: Channel, consumer: Subscription) -> None:
        """Note that a consumer begins."""
        self.consumed.add(channel.connection.process)
        self.note(
            "broker",
            f"{channel.connection.process} consumes {consumer.queue.name} ({consumer.prefetch})",
        )

    def protocol_error(self, connection: BrokerConnection, text: str) -> None:
        """Report that a client broke the protocol."""
        self.note("broker", f"{connection.process}: {text}")
        self.ledger.problem("no protocol error", f"{connection.process}: {text}")

    # told by processes

    def unheard(self, process: Process, context: dict[str, Any]) -> None:
        """Report an exception that came to the event loop, since nobody awaited it."""
        error = context.get("exception")
        text = f"{context.get('message')} {type(error).__name__}: {error}"
        self.note(process.name, f"unheard: {text}")
        self.ledger.problem("no task dies unheard", f"{process.name}: {text}")
