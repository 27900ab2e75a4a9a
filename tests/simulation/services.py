"""The services: consumers and a producer, as a user of mqauth writes them, and their handler."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count
from typing import TYPE_CHECKING, Any, Final

import aio_pika
from aio_pika.exceptions import AMQPError
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mqauth import MemoryReplayStore, Pipeline, RetryLater, Verified
from mqauth.brokers.rabbitmq import Consumer, DeadLetters, Producer, declare_source
from mqauth.clock import Clock
from mqauth.judging.verifier import Issuer
from mqauth.testing.forge import ISSUER, NEIGHBOUR, SUBJECT, Forge
from mqauth.wire.keys import Key
from tests.simulation import facilities
from tests.simulation.ledger import Handling, Sent
from tests.simulation.process import Process
from tests.simulation.settings import Settings
from tests.simulation.world import DEAD, SOURCE, World

if TYPE_CHECKING:
    from tests.simulation.process import Process


class Abort(BaseException):
    """A ``BaseException`` that a handler must not raise, and does."""


class HandlerError(Exception):
    """An exception that a handler may raise."""


@dataclass(slots=True)
class Behaviour:
    """What the handler does with one order.

    Args:
        how: ``retry``, ``later``, ``fail``, ``flaky``, ``reject``, ``slow``, ``block``, ``abort``, ``cancel`` or
            ``reply``; which of them, is for the simulation to draw.
        until: virtual seconds until which it asks for another time.
        seconds: how long it works or blocks.
        left: how often it still misbehaves.
    """

    how: str
    until: float = 0.0
    seconds: float = 0.0
    left: int = 1


@dataclass
class Handlers:
    """Makes the handler of each process, all with the same behaviour.

    Args:
        work: seconds of work, at least and at most; none where both are 0.
        asynchronous: whether the handler is a coroutine function.
        cleaning: seconds that its clean-up takes when it is cancelled.
    """

    work: tuple[float, float]
    asynchronous: bool
    cleaning: float
    behaviours: dict[int, Behaviour] = field(default_factory=dict)

    def of(self, process: Process) -> Callable[[Verified], Any]:
        """Return the handler of a process."""
        if self.asynchronous:
            return lambda verified: self._handle(process, verified)
        return lambda verified: self._handle_at_once(process, verified)

    async def _handle(self, process: Process, verified: Verified) -> None:
        """Handle a message; clean up when cancelled."""
        handling, behaviour = self._begun(process, verified)
        try:
            await self._work(process, verified, behaviour)
        except asyncio.CancelledError:
            handling.how = "cancelled"
            handling.cleaning = True
            process.world.note(process.name, f"handler cancelled {handling.label!r}")
            await asyncio.sleep(self.cleaning)
            handling.cleaning = False
            raise
        except BaseException as error:
            handling.how = type(error).__name__
            process.world.note(
                process.name, f"handler raises {handling.how} {handling.label!r}"
            )
            raise
        self._ended(process, handling)

    async def _work(
        self, process: Process, verified: Verified, behaviour: Behaviour | None
    ) -> None:
        """Work as the order's behaviour says."""
        if behaviour is not None:
            if behaviour.how == "slow":
                await asyncio.sleep(behaviour.seconds)
            else:
                self._misbehave(process, behaviour)
        if self.work[1]:
            await asyncio.sleep(process.world.pace.uniform(*self.work))
        if behaviour is not None and behaviour.how == "reply":
            await verified.reply(b"done")

    def _handle_at_once(self, process: Process, verified: Verified) -> None:
        """Handle a message without waiting for anything."""
        handling, behaviour = self._begun(process, verified)
        try:
            if behaviour is not None:
                self._misbehave(process, behaviour)
        except BaseException as error:
            handling.how = type(error).__name__
            process.world.note(
                process.name, f"handler raises {handling.how} {handling.label!r}"
            )
            raise
        self._ended(process, handling)

    def _misbehave(self, process: Process, behaviour: Behaviour) -> None:
        """Do what the order's behaviour says."""
        if behaviour.how == "retry" and process.world.agenda.now < behaviour.until:
            raise RetryLater("the database is away")
        if behaviour.how == "fail":
            raise HandlerError("this order cannot be handled")
        if behaviour.left <= 0:
            return
        behaviour.left -= 1
        if behaviour.how == "block":
            process.block(behaviour.seconds)
        elif behaviour.how == "flaky":
            raise HandlerError("once more, please")
        elif behaviour.how == "abort":
            raise Abort("this must not be raised")
        elif behaviour.how == "cancel":
            raise asyncio.CancelledError

    def _begun(
        self, process: Process, verified: Verified
    ) -> tuple[Handling, Behaviour | None]:
        """Note that a message is being handled."""
        world, label = process.world, verified.body or b""
        handling = Handling(label, process.name, process.time())
        world.ledger.handlings[label].append(handling)
        world.note(process.name, f"handles {label!r}")
        return handling, self.behaviours.get(order_of(label))

    def _ended(self, process: Process, handling: Handling) -> None:
        """Note that a message was handled."""
        handling.ended, handling.how = process.time(), "handled"
        process.world.note(process.name, f"handled {handling.label!r}")


def label_of(order: int, attempt: int) -> bytes:
    """Return the body of one attempt to publish an order."""
    return json.dumps({"order": order, "attempt": attempt}).encode()


def order_of(label: bytes) -> int:
    """Return the order's number, or -1 if the body is not an order's."""
    try:
        return int(json.loads(label)["order"])
    except (ValueError, KeyError, TypeError):
        return -1


def forge_of(clock: Clock, lifetime: int) -> Forge:
    """Return the keys, the same in every run."""
    forge = Forge(clock, lifetime=lifetime)
    forge.key, forge.neighbour, forge.stranger = (
        _key(number, subject)
        for number, subject in ((1, SUBJECT), (2, NEIGHBOUR), (3, SUBJECT))
    )
    return forge


@lru_cache
def _key(number: int, subject: str) -> Key:
    """Return a fixed key."""
    return Key.from_private(
        Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32), subjects=[subject]
    )


EXCHANGE: Final = "shop"
ROUTING_KEY: Final = "orders.created"
ANSWERS: Final = "answers"
DESTINATION: Final = f"rabbitmq:{EXCHANGE}/{ROUTING_KEY}"
STOP_LIMIT: Final = 240.0
"""Seconds beyond its grace within which a stop must end: letters and stores have time limits of their own."""
CONNECT_TIMEOUT: Final = 10.0
"""Seconds that a connection may take to open; without a limit one that is cut in its handshake waits for ever."""
ON_ITS_WAY: Final = 2.0
"""Seconds within which a request comes to a store that is in reach, on the slowest network."""
_PROBE_EVERY: Final = 10.0
_UNWELL_PROBES: Final = 24
_AGAIN_AFTER: Final = 2.0
_PUBLISH_TIMEOUT: Final = 10.0


def url(settings: Settings) -> str:
    """Return where the broker is."""
    return f"amqp://guest:guest@rabbitmq:5672/?heartbeat={settings.heartbeat}&reconnect_interval=1"


class Deployment:
    """The services of a simulation; each is started again when it ends, until the end.

    Args:
        world: where they run.
        settings: how they are set up.
        handlers: what handles the messages.
        forge: has the keys.
        service: makes a consuming service.
    """

    def __init__(
        self, world: World, settings: Settings, handlers: Handlers, forge: Forge,
        service: Callable[[Deployment], ConsumerService],
    ) -> None:  # fmt: skip
        self._service = service
        self.world = world
        self.settings = settings
        self.handlers = handlers
        self.forge = forge
        self.core = MemoryReplayStore(clock=world.clock)
        self.consumers: dict[str, ConsumerService] = {}
        self.finishing = False
        self._incarnations: dict[str, int] = {}
        self._held_back: dict[str, float] = {}
        self._unsent: list[tuple[float, int]] = []
        self._attempts: dict[int, int] = {}

    def start(self) -> None:
        """Declare what is needed, then start everything."""
        Process(self.world, "operator#1", self._declare, lambda _: self._start_services())

    async def _declare(self, _process: Process) -> None:
        connection = await aio_pika.connect_robust(
            url(self.settings), timeout=CONNECT_TIMEOUT
        )
        channel = await connection.channel()
        exchange = await channel.declare_exchange(EXCHANGE, "topic", durable=True)
        source = await declare_source(channel, SOURCE)
        await source.bind(exchange, ROUTING_KEY)
        await DeadLetters(channel, DEAD).declare()
        await channel.declare_queue(
            ANSWERS, durable=True, arguments={"x-queue-type": "quorum"}
        )
        await connection.close()

    def _start_services(self) -> None:
        for number in range(self.settings.consumers):
            self.start_service(f"consumer{number + 1}")
        step = self.settings.spread / self.settings.orders
        begins = self.world.agenda.now + 1
        self._unsent = [
            (begins + number * step, number) for number in range(self.settings.orders)
        ]
        self.start_service("producer")

    def start_service(self, name: str) -> None:
        """Start a service, unless it runs."""
        running = self.world.processes.get(name)
        if self.finishing or (running is not None and running.alive):
            return
        self._incarnations[name] = self._incarnations.get(name, 0) + 1
        main: Callable[[Process], Coroutine[Any, Any, None]]
        if name == "producer":
            main = self._produce
        else:
            service = self.consumers[name] = self._service(self)
            main = service.main
        process = Process(
            self.world, f"{name}#{self._incarnations[name]}", main, self._ended
        )
        self.world.processes[name] = process

    def hold_back(self, name: str, seconds: float) -> None:
        """Do not start a service again for so many seconds."""
        self._held_back[name] = self.world.agenda.now + seconds

    def _ended(self, process: Process) -> None:
        """Start a service again after a while."""
        name = process.name.partition("#")[0]
        service = self.consumers.get(name)
        if service is not None:
            service.over(process)
        if name == "producer" and not self._unsent:
            return
        due = max(self.world.agenda.now + _AGAIN_AFTER, self._held_back.get(name, 0))
        self.world.agenda.at(due, lambda: self.start_service(name))

    @property
    def unsent(self) -> int:
        """How many orders the broker has not confirmed."""
        return len(self._unsent)

    @property
    def all_sent(self) -> bool:
        """Whether the broker confirmed each order."""
        return not self._unsent

    async def _produce(self, process: Process) -> None:
        """Publish each order until the broker confirms it; each time with another body and token."""
        connection = await aio_pika.connect_robust(
            url(self.settings), timeout=CONNECT_TIMEOUT
        )
        channel = await connection.channel()
        exchange = await channel.get_exchange(EXCHANGE, ensure=False)
        signer = self.forge.signer(clock=process.clock)
        producer = Producer(exchange, signer, batch=self.settings.batch)
        await asyncio.gather(
            *(self._publish(producer, when, order) for when, order in tuple(self._unsent))
        )
        await producer.close()
        await connection.close()

    async def _publish(self, producer: Producer, when: float, order: int) -> None:
        """Publish one order, when its time has come."""
        ledger, loop = self.world.ledger, asyncio.get_running_loop()
        await asyncio.sleep(max(0.0, when - loop.time()))
        for attempt in count(self._attempts.get(order, 0)):
            self._attempts[order] = attempt + 1
            sent = Sent(order, label_of(order, attempt))
            ledger.sent[sent.label] = sent
            message = aio_pika.Message(
                sent.label, headers={"tenant": "acme"}, content_type="application/json"
            )
            if (
                behaviour := self.handlers.behaviours.get(order)
            ) is not None and behaviour.how == "reply":
                message.reply_to = ANSWERS
            try:
                await producer.publish(message, ROUTING_KEY, timeout=_PUBLISH_TIMEOUT)
            except Exception as error:
                self.world.note("producer", f"{type(error).__name__} {sent.label!r}")
                await asyncio.sleep(min(1 + attempt / 4, 10))
                continue
            sent.confirmed = True
            self.world.note("producer", f"confirmed {sent.label!r}")
            self._unsent.remove((when, order))
            return


class ConsumerService:
    """One consuming service, from its start to its end.

    Args:
        deployment: of which it is a part.
    """

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._world = deployment.world
        self.consumer: Consumer | None = None
        self._asked: asyncio.Event = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self._stopping_since: float | None = None

    async def main(self, process: Process) -> None:
        """Connect, consume until asked to stop, then leave nothing behind."""
        try:
            await self._consume(process)
        finally:
            me = asyncio.current_task()
            left = [task for task in asyncio.all_tasks() if task is not me]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    async def _consume(self, process: Process) -> None:
        settings = self._deployment.settings
        connection = await aio_pika.connect_robust(url(settings), timeout=CONNECT_TIMEOUT)
        async with connection:
            letters_connection = await aio_pika.connect_robust(
                url(settings), timeout=CONNECT_TIMEOUT
            )
            async with letters_connection:
                await self._consume_from(process, connection, letters_connection)

    async def _consume_from(
        self, process: Process, connection: Any, letters_connection: Any
    ) -> None:
        settings = self._deployment.settings
        channel = await connection.channel()
        letters = DeadLetters(await letters_connection.channel(), DEAD)
        queue = await (
            declare_source(channel, SOURCE)
            if settings.declares
            else channel.get_queue(SOURCE)
        )
        replies = Producer(
            letters.channel.default_exchange,
            self._deployment.forge.signer(clock=process.clock),
        )
        self.consumer = Consumer(
            queue, self._pipeline(process), self._deployment.handlers.of(process), dead_letters=letters,
            prefetch=settings.prefetch, coalesce_acks=settings.coalesce, grace=settings.grace, hold=settings.hold,
            replies=replies,
        )  # fmt: skip
        await self._run_until_asked(process)

    async def _run_until_asked(self, process: Process) -> None:
        """Run the consumer, and stop it in the way that the settings say."""
        assert self.consumer is not None
        way, entered = self._deployment.settings.stop, True
        try:
            if way == "leave":
                entered = False
                async with self.consumer:
                    entered = True
                    await self._until_asked_or_unwell()
                if not self._asked.is_set():
                    self._world.ledger.problem(
                        "all comes to rest",
                        f"{process.name} stands still without a cause",
                    )
                return
            running = self._running = asyncio.create_task(self.consumer.run())
            asked = asyncio.create_task(self._asked.wait())
            await asyncio.wait((running, asked), return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                await running
            if way == "stop":
                await asyncio.gather(self.consumer.stop(), running)
            else:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
        except Exception as error:
            self._world.note(process.name, f"the consumer ends: {error!r}")
            # The broker may have begun to deliver to one that never heard so.
            started = entered and process.name in self._world.consumed
            # ``run`` fails, as it may, where the broker is out of reach before the first message.
            may_fail = not started and isinstance(error, (AMQPError, OSError))
            if not self._deployment.finishing and not may_fail:
                self._world.ledger.problem(
                    "no consumer dies", f"{process.name}: {error!r}"
                )
            raise

    async def _until_asked_or_unwell(self) -> None:
        """Wait for a request to stop, or until a liveness probe fails: not consuming, without a cause."""
        assert self.consumer is not None
        unwell = 0
        while not self._asked.is_set() and unwell < _UNWELL_PROBES:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._asked.wait(), _PROBE_EVERY)
            health = self.consumer.health()
            unwell = 0 if health.consuming or health.cause is not None else unwell + 1

    def _pipeline(self, process: Process) -> Pipeline:
        """Return the pipeline of a process."""
        settings, forge = self._deployment.settings, self._deployment.forge
        store: Any
        if settings.shared:
            store = facilities.SharedStore(process, self._deployment.core)
        else:
            store = facilities.OwnStore(process)
        keys = facilities.Keys(process, forge.keys)
        audit = (
            facilities.SlowAudit(process)
            if settings.asynchronous
            else facilities.Audit(process)
        )
        rules = facilities.Rules(
            process, forge.policy(DESTINATION), asynchronous=settings.asynchronous
        )
        return Pipeline(
            verifier=forge.verifier(keys={ISSUER: Issuer(keys=keys)}), policy=rules, replay=store, audit=audit,
            lease=settings.lease, clock=process.clock, instance=process.name,
        )  # fmt: skip

    def ask_to_stop(self, process: Process) -> None:
        """Stop the service in order."""
        if self._stopping_since is not None or not process.alive:
            return
        self._stopping_since = self._world.agenda.now
        self._world.note(process.name, "asked to stop")
        process.loop.call_soon(self._asked.set)
        limit = STOP_LIMIT + self._deployment.settings.grace
        self._world.agenda.after(limit, lambda: self._check_ended(process))

    def over(self, process: Process) -> None:
        """Check what a service has left behind."""
        world, ledger = self._world, self._world.ledger
        failed = process.failure
        if self._stopping_since is None or failed is not None:
            ledger.deaths[process.name] = world.agenda.now
            return
        if not process.task.done():
            ledger.deaths[process.name] = world.agenda.now
            return
        ledger.stops.append((process.name, self._stopping_since, world.agenda.now))
        if self._deployment.settings.shared:
            ended = world.agenda.now
            world.agenda.after(ON_ITS_WAY, lambda: self._look_for_claims(process, ended))

    def _look_for_claims(self, process: Process, ended: float) -> None:
        """Check that a stop left no claim, once requests on their way have arrived at the store.

        A claim may stay whose release was asked for while the store was out of reach, at the stop or before it.
        """
        ledger, outages = self._world.ledger, self._world.outages
        for claim in ledger.claims_of(process.name):
            if not outages.between("store", process.name, claim.since, ended):
                ledger.problem(
                    "a stop leaves no claim",
                    f"{process.name}: a claim since {claim.since:.3f}",
                )

    def _check_ended(self, process: Process) -> None:
        """Check that a stop has ended, unless the process was paused."""
        if process.alive and not process.pauses:
            self._world.ledger.problem("a stop ends", f"{process.name} still runs")
