"""A second writing of the acks in ``mqauth.brokers.queue.client``, with tasks that take turns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqauth.delivery.slot import DeliveryTags
from mqauth.judging.pipeline import Delivery
from tests.simulation.queue_model import Channel
from tests.simulation.queue_tasks import Steps, at_once

if TYPE_CHECKING:
    from tests.simulation.queue_subscription import Subscription


class Acks:
    """The acks of one channel."""

    def __init__(self, runner: Subscription, channel: Channel, window: int) -> None:
        self.runner = runner
        self.channel = channel
        self.window = window
        self.ledger = DeliveryTags()
        self.timed = self.sending = self.closed = False

    def settle(self, tag: int, delivery: Delivery) -> None:
        """Have a delivery acked soon."""
        self.ledger.settled(tag, delivery)
        if self.closed:
            self.runner.work.lost(self.ledger.drop())
        elif self.ledger.presses(self.window):
            self.send_now()
        else:
            self.timed = True

    def close(self) -> None:
        """Give up: the channel is gone."""
        self.closed = True
        if dropped := self.ledger.drop():
            self.runner.work.lost(dropped)

    def ring(self) -> None:
        """Ack what there is when the time is up."""
        self.timed = False
        if self.ledger.waiting:
            self.send_now()

    def send_now(self) -> None:
        """Begin a task that sends, once other tasks have had a turn."""
        if not self.sending:
            self.sending = True
            self.runner.loop.run(self._send(), "acks")

    def _send(self) -> Steps[None]:
        """Send acks until none presses."""
        try:
            while True:
                for ack in self.ledger.take():
                    if self.channel.ended:
                        self.runner.work.lost(ack.deliveries)
                    else:
                        self.runner.play.acks(self.channel, ack.deliveries)
                        self.runner.play.broker.ack(self.channel, ack.tag, multiple=ack.multiple)
                        yield at_once
                if not self.ledger.waiting or not self.ledger.presses(self.window):
                    break
        finally:
            self.sending = False
        self.timed = self.timed or self.ledger.waiting > 0

    def finish(self) -> Steps[None]:
        """Ack everything settled, and return when it was sent."""
        if self.ledger.waiting:
            self.send_now()
        while self.sending:
            yield lambda: not self.sending
            if self.ledger.waiting:
                self.send_now()
