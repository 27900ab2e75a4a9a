"""The plan of a seed: a list of faults, an attacker among them, any part of which can be played."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from pamqp import commands

from mqauth.testing.forge import Forge
from mqauth.testing.token_attacks import ATTACKS, honest_message
from mqauth.wire.message import Message
from tests.simulation.amqp_broker import PRECONDITION_FAILED, ChannelError, Stored
from tests.simulation.services import DESTINATION, EXCHANGE, ROUTING_KEY, Behaviour
from tests.simulation.world import DEAD, SOURCE, World

_COPIES: Final = 0.4
"""How many of the hostile messages are copies."""


class Attacker:
    """Writes hostile messages into the broker.

    Args:
        world: where.
        forge: has everything an attacker may have got hold of.
        seed: decides what is written.
    """

    def __init__(self, world: World, forge: Forge, seed: int) -> None:
        self._world = world
        self._forge = forge
        self._draw = random.Random(f"attacker {seed}")
        self._attacks = [attack for attack in ATTACKS if attack.fits(DESTINATION)]

    def strike(self, number: int) -> None:
        """Write one hostile message."""
        known = [
            message for message in self._seen() if message.body in self._world.ledger.sent
        ]
        if known and self._draw.random() < _COPIES:
            self._copy(self._draw.choice(known))
        else:
            self._forge_one(number)

    def _seen(self) -> list[Stored]:
        """Return the messages that the attacker has read so far: those in the queue, and earlier ones."""
        for queue in self._world.broker.found_queues([SOURCE]):
            for message in (*queue.ready, *queue.unacked.values()):
                self._world.published.setdefault(message.body, message)
        return list(self._world.published.values())

    def _copy(self, message: Stored) -> None:
        """Publish a copy of an honest message."""
        stored = self._world.broker.put(
            message.exchange, message.routing_key, message.properties, message.body
        )
        self._world.ledger.copies[message.body] += len(stored)
        self._world.note("attacker", f"copies {message.body!r}")

    def _forge_one(self, number: int) -> None:
        """Write a forgery."""
        attack = self._draw.choice(self._attacks)
        message = attack.mount(
            self._forge, honest_message(DESTINATION, 1_000_000 + number)
        )
        stored = self._world.broker.put(
            EXCHANGE, ROUTING_KEY, _properties(message), message.body or b""
        )
        self._world.ledger.forged.extend((attack.name, found.body) for found in stored)
        self._world.note("attacker", f"{attack.name} {message.body!r}")


def _properties(message: Message) -> commands.Basic.Properties:
    """Return a message's properties as AMQP has them."""
    values: dict[str, Any] = {
        name.replace("-", "_"): value for name, value in message.properties.items()
    }
    return commands.Basic.Properties(
        headers=dict(message.headers), delivery_mode=2, **values
    )


if TYPE_CHECKING:
    from tests.simulation.scenario import Scenario
    from tests.simulation.settings import Settings

SLOW: Final = (0.05, 1.5)
"""Seconds of one packet in a slow network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that goes wrong.

    Args:
        kind: what; a key of ``KINDS``.
        at: virtual seconds at which it begins.
        seconds: how long it lasts, or how long it makes something last.
        target: the service, or the number of the order, that it concerns.
        how: which form of it.
    """

    kind: str
    at: float
    seconds: float = 0.0
    target: str | int | None = None
    how: str = ""

    def __str__(self) -> str:
        words = [
            f"{self.at:8.3f} s",
            self.kind,
            self.how,
            str(self.target if self.target is not None else ""),
        ]
        return " ".join(word for word in words if word) + (
            f" for {self.seconds:.2f} s" if self.seconds else ""
        )

    def as_dict(self) -> dict[str, Any]:
        """Return it for a plan's file."""
        return asdict(self)


class Plan:
    """Draws the faults of a seed: a random third of the kinds, each a few times.

    Args:
        seed: decides.
        settings: of the deployment.
    """

    def __init__(self, seed: int, settings: Settings) -> None:
        self._draw = random.Random(f"faults {seed}")
        self._settings = settings

    def faults(self) -> list[Fault]:
        """Return the faults in the order of time."""
        kinds = [kind for kind in KINDS if self._draw.random() < 1 / 3]
        found = [
            self._fault(kind)
            for kind in kinds
            for _ in range(self._draw.choice((1, 1, 2, 3)))
        ]
        if self._draw.random() < 0.35:
            found += self._beside(found)
        return sorted(found, key=lambda fault: (fault.at, fault.kind))

    def _beside(self, faults: list[Fault]) -> list[Fault]:
        """Return cuts close to the ends of other faults, where faults interact."""
        ends = [
            fault.at + fault.seconds
            for fault in faults
            if fault.seconds and fault.kind in _OUTAGES
        ]
        return [
            Fault(
                kind="cut",
                at=max(1.0, end + self._draw.uniform(-1.0, 1.0)),
                target=self._consumer(),
                how=self._cut(),
            )
            for end in ends[:3]
        ]

    def _fault(self, kind: str) -> Fault:
        draw, beat = self._draw, self._settings.heartbeat
        at = round(draw.uniform(1.5, self._settings.spread + 5), 3)
        if kind == "handler":
            how = draw.choice(
                (
                    "retry",
                    "retry",
                    "fail",
                    "flaky",
                    "slow",
                    "block",
                    "abort",
                    "cancel",
                    "reply",
                )
            )
            seconds = {
                "retry": draw.choice((3.0, 30.0, 120.0)), "slow": draw.choice((5.0, 40.0, 100.0)),
                "block": draw.choice((0.5, beat * 2.0, beat * 4.2)),
            }.get(how, 0.0)  # fmt: skip
            return Fault(
                kind=kind,
                at=0,
                seconds=seconds,
                target=draw.randrange(self._settings.orders),
                how=how,
            )
        seconds = round(draw.choice((0.3, 3.0, 12.0, 45.0)) * draw.uniform(0.7, 1.3), 3)
        if kind == "pause":
            seconds = round(
                draw.choice((beat * 0.8, beat * 3.2, beat * 4.5, beat * 15.0))
                * draw.uniform(0.9, 1.2),
                3,
            )
        how = self._how(kind)
        target = (
            self._consumer()
            if kind in _OF_CONSUMERS
            else self._anyone()
            if kind in _OF_ANYONE
            else None
        )
        if kind in ("store", "audit", "policy", "keys") and draw.random() < 0.3:
            target = self._consumer()
        return Fault(
            kind=kind,
            at=at,
            seconds=0.0 if kind in _MOMENTS else seconds,
            target=target,
            how=how,
        )

    def _how(self, kind: str) -> str:
        """Draw the form of a fault."""
        if kind == "cut":
            return self._cut()
        forms = {
            "store": ("refused", "silent", "answer lost"), "dead letters": ("missing", "full"),
            "confirms": ("late", "lost", "publish lost"), "restart": ("orderly", "crash"),
            "connection closed": ("all", "first", "last"),
        }.get(kind, ("",))  # fmt: skip
        return self._draw.choice(forms)

    def _cut(self) -> str:
        return self._draw.choice(("reset", "end of stream", "half-open"))

    def _consumer(self) -> str:
        return f"consumer{self._draw.randint(1, self._settings.consumers)}"

    def _anyone(self) -> str:
        return self._draw.choice((self._consumer(), self._consumer(), "producer"))


def play(fault: Fault, scenario: Scenario) -> None:
    """Arrange for a fault to happen."""

    def happen() -> None:
        scenario.world.note("fault", str(fault))
        KINDS[fault.kind](fault, scenario)

    scenario.world.agenda.at(fault.at, happen)


def _handler(fault: Fault, scenario: Scenario) -> None:
    left = 2 if fault.how == "flaky" else 1
    for order in _orders_of(fault, scenario.settings.orders):
        behaviour = Behaviour(
            fault.how, until=fault.seconds, seconds=fault.seconds, left=left
        )
        scenario.handlers.behaviours.setdefault(order, behaviour)


def _orders_of(fault: Fault, orders: int) -> Iterable[int]:
    """Return the orders that a handler's fault concerns: one, or every third for replies."""
    target = int(fault.target or 0)
    return range(target % 3, orders, 3) if fault.how == "reply" else (target,)


def _later(fault: Fault, scenario: Scenario, action: Callable[[], object]) -> None:
    """Schedule the end of a fault."""
    scenario.at_end_of(fault, action)


def _cut(fault: Fault, scenario: Scenario) -> None:
    for wire in scenario.wires_of(str(fault.target)):
        if fault.how == "reset":
            wire.break_off()
        elif fault.how == "end of stream":
            wire.end_of_stream()
        else:
            wire.cut = True


def _stall(fault: Fault, scenario: Scenario) -> None:
    for wire in scenario.wires_of(str(fault.target)):
        wire.stall(fault.seconds)


def _pause(fault: Fault, scenario: Scenario) -> None:
    if (process := scenario.process(fault.target)) is not None:
        process.pause(fault.seconds)


def _kill(fault: Fault, scenario: Scenario) -> None:
    if (process := scenario.process(fault.target)) is not None:
        scenario.deployment.hold_back(str(fault.target), fault.seconds)
        process.kill()


def _stop(fault: Fault, scenario: Scenario) -> None:
    process, service = (
        scenario.process(fault.target),
        scenario.deployment.consumers.get(str(fault.target)),
    )
    if process is not None and service is not None and service.consumer is not None:
        scenario.deployment.hold_back(str(fault.target), fault.seconds)
        service.ask_to_stop(process)


def _queue_missing(fault: Fault, scenario: Scenario) -> None:
    for queue in scenario.world.broker.found_queues([SOURCE]):
        queue.hide()
        _later(fault, scenario, queue.show)


def _exchange_missing(fault: Fault, scenario: Scenario) -> None:
    scenario.world.broker.hide_exchange("shop")
    _later(fault, scenario, lambda: scenario.world.broker.show_exchange("shop"))


def _consumer_cancelled(_fault: Fault, scenario: Scenario) -> None:
    for queue in scenario.world.broker.found_queues([SOURCE]):
        queue.cancel_consumers()


def _channel_closed(fault: Fault, scenario: Scenario) -> None:
    for connection in scenario.world.broker.connections_of(
        scenario.running_name(fault.target)
    ):
        for channel in tuple(connection.channels.values()):
            channel.fail(
                ChannelError(
                    PRECONDITION_FAILED, "PRECONDITION_FAILED - closed by an operator"
                )
            )


def _connection_closed(fault: Fault, scenario: Scenario) -> None:
    found = scenario.world.broker.connections_of(scenario.running_name(fault.target))
    for connection in {"first": found[:1], "last": found[-1:]}.get(fault.how, found):
        connection.end(320, "CONNECTION_FORCED - Closed via management plugin")


def _facility(fault: Fault, scenario: Scenario) -> None:
    target = None if fault.target is None else str(fault.target)
    scenario.world.begin_outage(fault.kind, target, fault.how or "away")
    _later(fault, scenario, lambda: scenario.world.end_outage(fault.kind, target))


def _dead_letters(fault: Fault, scenario: Scenario) -> None:
    for queue in scenario.world.broker.found_queues([DEAD]):
        if fault.how == "missing":
            queue.hide()
            _later(fault, scenario, queue.show)
        else:
            queue.full = True
            _later(fault, scenario, lambda full=queue: setattr(full, "full", False))


def _alarm(fault: Fault, scenario: Scenario) -> None:
    scenario.world.broker.set_alarm(True)
    _later(fault, scenario, lambda: scenario.world.broker.set_alarm(False))


def _confirms(fault: Fault, scenario: Scenario) -> None:
    broker = scenario.world.broker
    if fault.how == "late":
        usual, broker.confirm_delay = (0.001, 0.008), (1.0, 40.0)
        _later(fault, scenario, lambda: setattr(broker, "confirm_delay", usual))
        return
    name = "confirms_lost" if fault.how == "lost" else "publishes_lost"
    setattr(broker, name, True)

    def found_again() -> None:
        setattr(broker, name, False)
        broker.end_unconfirmed()

    _later(fault, scenario, found_again)


def _restart(fault: Fault, scenario: Scenario) -> None:
    scenario.world.broker.stop(orderly=fault.how == "orderly")
    _later(fault, scenario, scenario.world.broker.start)


def _slow(fault: Fault, scenario: Scenario) -> None:
    usual, scenario.world.network.latency = (0.0002, 0.002), SLOW
    _later(fault, scenario, lambda: setattr(scenario.world.network, "latency", usual))


def _clock(fault: Fault, scenario: Scenario) -> None:
    if (process := scenario.process(fault.target)) is not None:
        process.clock.offset = 2.0 if fault.seconds > 5 else -2.0


KINDS: Final[dict[str, Callable[[Fault, Scenario], None]]] = {
    "cut": _cut, "stall": _stall, "pause": _pause, "kill": _kill, "stop": _stop, "queue missing": _queue_missing,
    "exchange missing": _exchange_missing, "consumer cancelled": _consumer_cancelled,
    "channel closed": _channel_closed, "connection closed": _connection_closed, "store": _facility,
    "audit": _facility, "policy": _facility, "keys": _facility, "dead letters": _dead_letters, "alarm": _alarm,
    "confirms": _confirms, "restart": _restart, "slow network": _slow, "clock": _clock, "handler": _handler,
}  # fmt: skip
"""Each kind of fault, and what makes it happen."""
_OUTAGES: Final = (
    "store",
    "audit",
    "policy",
    "keys",
    "dead letters",
    "pause",
    "queue missing",
)
_MOMENTS: Final = ("cut", "consumer cancelled", "channel closed", "connection closed")
_OF_CONSUMERS: Final = ("stop", "pause", "clock")
_OF_ANYONE: Final = ("cut", "stall", "kill", "channel closed", "connection closed")
