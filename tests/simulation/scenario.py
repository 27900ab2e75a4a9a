"""One seed: services start, faults happen, everything is healed, and the services must come to rest."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from typing import Final

from mqauth.wire.json_form import from_form
from tests.simulation.amqp_broker import Queue, Stored
from tests.simulation.faults import Attacker, Fault, play
from tests.simulation.network import Connection
from tests.simulation.process import Process
from tests.simulation.services import (
    ON_ITS_WAY,
    ConsumerService,
    Deployment,
    Handlers,
    forge_of,
)
from tests.simulation.settings import Settings
from tests.simulation.world import DEAD, SOURCE, World

REST_LIMIT: Final = 900.0
"""Virtual seconds after the last fault within which everything must be at rest."""
PRODUCER_LIMIT: Final = 180.0
"""Virtual seconds after the last fault within which a producer must have sent everything."""
MAX_TURNS: Final = 400_000
_LOOKS_EVERY: Final = 5.0
_CALM: Final = 3
"""Looks in a row at which everything must be at rest."""


class Scenario:
    """One seed.

    Args:
        seed: decides what the plan leaves open.
        settings: how the deployment is set up.
        faults: what goes wrong.
        tell: takes each line of the trace.
    """

    def __init__(
        self,
        seed: int,
        settings: Settings,
        faults: Sequence[Fault],
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self.settings = settings
        self.world = World(seed, tell)
        self.handlers = Handlers(settings.work, settings.asynchronous, settings.cleaning)
        self.forge = forge_of(self.world.clock, settings.lifetime)
        self.deployment = Deployment(
            self.world, settings, self.handlers, self.forge, _service(settings.client)
        )
        self.at_rest = False
        self._ends: list[Callable[[], object]] = []
        self._calm = 0
        self._done = False
        longest = max((fault.at + fault.seconds for fault in faults), default=0.0)
        self._healed_at = max(settings.spread + 5, longest) + 5
        for fault in faults:
            play(fault, self)
        attacker = Attacker(self.world, self.forge, seed)
        for number in range(settings.hostile):
            when = 3 + settings.spread * (number + 1) / (settings.hostile + 1)
            self.world.agenda.at(when, functools.partial(attacker.strike, number))

    def run(self) -> None:
        """Play it to its end."""
        self.deployment.start()
        self.world.agenda.at(self._healed_at, self._heal)
        while (
            not self._done and self.world.turns < MAX_TURNS and self.world.agenda.step()
        ):
            pass

    # asked by faults

    def process(self, service: object) -> Process | None:
        """Return the running process of a service."""
        found = self.world.processes.get(str(service))
        return found if found is not None and found.alive else None

    def running_name(self, service: object) -> str:
        """Return the name of a service's running process."""
        found = self.process(service)
        return "" if found is None else found.name

    def wires_of(self, service: str) -> list[Connection]:
        """Return the open connections of a service."""
        process = self.process(service)
        return [
            wire
            for wire in self.world.network.connections
            if wire.process is process and wire.server_open
        ]

    def at_end_of(self, fault: Fault, action: Callable[[], object]) -> None:
        """Schedule an action for the end of a fault, or for the healing if that is earlier."""
        once = _Once(action)
        self._ends.append(once)
        self.world.agenda.after(fault.seconds, once)

    # the end

    def _heal(self) -> None:
        """End all faults."""
        self.world.note("fault", "everything is healed")
        for end in self._ends:
            end()
        self.world.agenda.after(PRODUCER_LIMIT, self._help_producer)
        self._look()

    def _help_producer(self) -> None:
        """Restart a producer that cannot send although everything is healed, and report it."""
        process = self.process("producer")
        if not self.deployment.all_sent and process is not None:
            self.world.ledger.problem(
                "a producer goes on", f"{self.deployment.unsent} orders cannot be sent"
            )
            process.kill()

    def _look(self) -> None:
        """Check whether everything is at rest, and give up after ``REST_LIMIT``."""
        self._calm = self._calm + 1 if self._is_at_rest() else 0
        if self._calm >= _CALM:
            self.at_rest = True
            self._stop_all()
        elif self.world.agenda.now > self._healed_at + REST_LIMIT:
            self._stop_all()
        else:
            self.world.agenda.after(_LOOKS_EVERY, self._look)

    def _is_at_rest(self) -> bool:
        """Tell whether nothing is left to be done."""
        return self.deployment.all_sent and not self.unrest()

    def unrest(self) -> list[str]:
        """Return what is not at rest."""
        found = [] if self.deployment.all_sent else ["not everything could be sent"]
        for queue in self.queues(SOURCE):
            if queue.ready:
                found.append(f"{len(queue.ready)} messages wait in {queue.name}")
            if queue.unacked:
                found.append(f"{len(queue.unacked)} messages of {queue.name} are unacked")
        for name, service in self.deployment.consumers.items():
            health = None if service.consumer is None else service.consumer.health()
            if health is None or not health.consuming or health.in_flight:
                found.append(f"{name} does not consume: {health}")
        return found

    def queues(self, *names: str) -> list[Queue]:
        """Return queues by name."""
        return self.world.broker.found_queues(names)

    def letters(self) -> list[tuple[bytes, str]]:
        """Return the body of the message that each dead letter is of, and its reason."""
        found = []
        for queue in self.queues(DEAD):
            for message in queue.ready:
                headers = message.properties.headers or {}
                found.append(
                    (rejected_body(message), str(headers.get("mqauth-dead-reason")))
                )
        return found

    def _stop_all(self) -> None:
        """Stop all consumers, and end once they have stopped or had the time to."""
        self.left = self.unrest()
        self.world.note("fault", "everything is stopped")
        self.deployment.finishing = True
        for name, service in self.deployment.consumers.items():
            if (process := self.process(name)) is not None:
                service.ask_to_stop(process)
        self._wait_for_stops(self.world.agenda.now + self.settings.grace + 300)

    def _end(self) -> None:
        """End the simulation, once requests on their way have arrived at the store."""
        self._done = True

    def _wait_for_stops(self, until: float) -> None:
        """End once every consumer has ended."""
        running = any(
            self.process(name) is not None for name in self.deployment.consumers
        )
        if not running or self.world.agenda.now > until:
            self.world.agenda.after(ON_ITS_WAY, self._end)
        else:
            self.world.agenda.after(1, lambda: self._wait_for_stops(until))


def _service(client: str) -> Callable[[Deployment], ConsumerService]:
    """Return what makes a consuming service on a client."""
    if client == "aio-pika":
        return ConsumerService
    # Here, since the code of another checkout may have no such leaf.
    from tests.simulation.pika_service import PikaConsumerService

    return PikaConsumerService


class _Once:
    """Calls something at most once."""

    def __init__(self, action: Callable[[], object]) -> None:
        self._action: Callable[[], object] | None = action

    def __call__(self) -> None:
        action, self._action = self._action, None
        if action is not None:
            action()


def rejected_body(letter: Stored) -> bytes:
    """Return the body of the message that a letter is of: the letter's own, or the one in its JSON form.

    Where the channel is closed by ``PRECONDITION_FAILED`` while a letter's confirm is awaited, the letter may have
    been too large for the broker, and is sent in the JSON form next. One by reference has no body of the message.
    """
    if (letter.properties.headers or {}).get("mqauth-dead-form") != "json":
        return letter.body
    return from_form(json.loads(letter.body)).body or b""
