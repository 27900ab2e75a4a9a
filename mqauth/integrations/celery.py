"""Celery on RabbitMQ: a worker decodes and runs only tasks that were verified, and all that is sent is signed.

``protect`` gives an application a sender of tasks that signs, and a task consumer that gives a message to Celery
once it is accepted, and confirms its claim where Celery acks it, early or late. Rejected tasks are dead-lettered
before that, undecoded. Verdicts are reached in the worker's main process, in its event loop; the children of a
prefork pool use nothing of the pipeline, and sign what their tasks send.

What else a worker obeys is switched off (mingle, gossip) or refused at its start (remote control).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, Final, TypeVar

from mqauth.errors import StaleDelivery, needs_extra, require

with needs_extra("celery"):
    from celery import Celery, bootsteps, signals
    from celery.utils.imports import symbol_by_name
    from celery.worker import state
    from celery.worker.consumer.agent import Agent
    from celery.worker.consumer.control import Control
    from celery.worker.consumer.mingle import Mingle
    from kombu.connection import maybe_channel
    from kombu.messaging import Consumer
    from kombu.transport import pyamqp

from mqauth.brokers.amqp_messages import DEFAULT_MAX_BODY
from mqauth.brokers.queue.client import is_proved, prove
from mqauth.delivery.queue_work import QueueLeases
from mqauth.delivery.slot import Slot
from mqauth.flow import run
from mqauth.integrations.celery_kombu import (
    LOST,
    Letters,
    Signing,
    Task,
    answers,
    echoed,
    ended,
    read,
    read_all_headers,
    refuse_results,
)
from mqauth.integrations.task_queues import Held, worker_guard
from mqauth.judging.pipeline import Delivery, Pipeline
from mqauth.judging.selftest import starting
from mqauth.logs import emit, harmless
from mqauth.signer import Signer

__all__ = ["protect"]
A = TypeVar("A", bound=Celery)
_POOLS: Final = ("celery.concurrency.prefork", "celery.concurrency.thread")
_DOORS: Final = (Agent, Control, Mingle, bootsteps.ConsumerStep)
"""Steps of a worker by which it obeys messages that are no tasks; gossip is a ``ConsumerStep``."""
_LOOK: Final = 0.5
"""Seconds between two looks at what waits."""


def protect(
    app: A,
    *,
    signer: Signer,
    guard: Callable[[], Pipeline] | None = None,
    dead_letters: str | None = None,
    max_body: int = DEFAULT_MAX_BODY,
) -> A:
    """Have an application run only tasks that were verified, and sign what it sends; call it at its making.

    A deferred task holds a place of the worker's prefetch. What is sent is confirmed by the broker, unless
    ``broker_transport_options`` say otherwise.

    Args:
        app: a ``celery.Celery`` with its broker at RabbitMQ, by py-amqp; it is changed, and returned.
        signer: signs tasks, also those that a worker sends.
        guard: makes the pipeline, in a worker's main process. Its plug-ins must not be asynchronous.
        dead_letters: the queue that rejected tasks go to; a worker declares it.
        max_body: bytes of body the broker takes, its ``max_message_size``: a larger task is refused alone.

    Raises:
        ConfigurationError: it is no ``Celery``, or is protected already. From a worker's start, and the first task
            that is sent: results are kept where others can have them decoded. From a worker's start: there is no
            guard or no ``dead_letters``, the pipeline has no audit or no replay store that outlives it, remote
            control is on, or a step of the worker, its broker, its pool or a queue cannot be protected.
    """
    protected: Any = app
    require(isinstance(app, Celery), "protect takes a celery.Celery")
    require(not hasattr(protected, "_mqauth"), "the application is protected already")
    protected._mqauth = Protection(protected, guard, signer, dead_letters, max_body)
    protected.amqp_cls = _protected(symbol_by_name(protected.amqp_cls))
    protected.__dict__.pop("amqp", None)
    protected.steps["worker"].add(Guarding)
    signals.worker_init.connect(_close_doors, weak=False)
    signals.task_received.connect(_received, weak=False)
    return app


def _protected(kind: Any) -> type:
    """Return a class of ``app.amqp`` that signs what is sent and judges what a worker consumes."""

    class Protected(kind):  # type: ignore[misc]
        Consumer = Judging

        def Connection(self, *arguments: Any, **named: Any) -> Any:
            # Without confirms a broker that dies takes along what ``delay()`` has said was sent.
            named["transport_options"] = {"confirm_publish": True} | (
                named.get("transport_options") or {}
            )
            return super().Connection(*arguments, **named)

        def _create_task_sender(self) -> Any:
            refuse_results(self.app)
            send, protection = super()._create_task_sender(), self.app._mqauth

            def send_signed(
                producer: Any, name: str, message: Any, **options: Any
            ) -> Any:
                signing = Signing(producer, protection.signer, protection.max_body)
                return send(signing, name, message, **options)

            return send_signed

        def TaskConsumer(self, *arguments: Any, **named: Any) -> Any:
            consumer = super().TaskConsumer(*arguments, **named)
            self.app._mqauth.connected(consumer)
            return consumer

    return Protected


def _close_doors(sender: Any, **_: Any) -> None:
    """Switch off what a worker would learn from other workers, unsigned."""
    if hasattr(sender.app, "_mqauth"):
        sender.options.update(without_mingle=True, without_gossip=True)


def _tell_lost(app: Any) -> None:
    """Tell which tasks Celery acks, late as they are acked, where the pool's child that runs them is killed."""
    lost = sorted(
        name
        for name, task in app.tasks.items()
        if task.acks_late
        and not (task.reject_on_worker_lost or task.retry_on_worker_lost)
        and not name.startswith("celery.")
    )
    if lost:
        emit(
            "worker.loses_tasks",
            "a child of the pool that is killed loses its task although it is acked late: %s and %d more;"
            " set task_reject_on_worker_lost = True",
            harmless(lost[0]),
            len(lost) - 1,
        )


def _received(request: Any, **_: Any) -> None:
    """Note what Celery made of a message."""
    if isinstance(request.message, Task):
        request.message.held.request = request


class Protection:
    """What protects one application; in a worker also the deliveries that are in flight.

    All of it, but the signer, belongs to the main thread of the worker's main process.

    Args:
        app: the application.
        make: makes the pipeline.
        signer: signs.
        dead_letters: the queue.
        max_body: bytes of body that the broker takes.
    """

    def __init__(
        self,
        app: Any,
        make: Callable[[], Pipeline] | None,
        signer: Signer,
        dead_letters: str | None,
        max_body: int,
    ) -> None:
        self._app = app
        self._make = make
        self._dead_letters = dead_letters
        self.signer = signer
        self.max_body = max_body
        self.guard: Any = None
        self.letters: Any = None
        self._leases: Any = None
        self._forks = False
        self._looked = 0.0
        self._busy = False
        self._stops = False
        self._arrived: deque[Judged] = deque()
        self._waiting: list[Judged] = []
        self._running: set[Judged] = set()

    def admit(self, worker: Any) -> None:
        """Refuse a worker that cannot be protected, before it has forked.

        Raises:
            ConfigurationError: as ``protect`` says.
        """
        app, pool = self._app, worker.pool_cls.__module__
        transport = app.connection_for_read().transport
        require(
            isinstance(transport, pyamqp.Transport),
            "broker_url: RabbitMQ by py-amqp, amqp:// or pyamqp://",
        )
        # Others run tasks in the thread that renews the claims, or leave it no event loop.
        require(
            pool in _POOLS and worker.use_eventloop, "worker_pool: prefork or threads"
        )
        pidbox = "workers obey whoever may send to the broker's pidbox: set worker_enable_remote_control = False"
        require(not app.conf.worker_enable_remote_control, pidbox)
        refuse_results(app)
        for name, queue in app.amqp.queues.consume_from.items():
            lost = f"queue {name!r}: without acks a task that has to wait is lost: no_ack=False"
            require(not queue.no_ack, lost)
        self._forks = pool == _POOLS[0]
        if self._forks:
            _tell_lost(app)

    def start(self, worker: Any) -> None:
        """Make the pipeline of a worker, which has forked, and consumes nothing yet.

        Raises:
            ConfigurationError: as ``protect`` says.
        """
        for step in worker.consumer.steps:
            door = f"step {step.alias}: the worker would obey messages that nobody has judged; switch it off"
            require(not isinstance(step, _DOORS), door)
        self.guard = worker_guard(self._make, self._dead_letters)
        self.letters = Letters(
            lambda: self._app.connection_for_write(
                heartbeat=0, transport_options={"confirm_publish": True}
            ),
            self._dead_letters or "",
        )
        self.letters.declare()
        read_all_headers()
        run(starting(self.guard))
        self._leases = QueueLeases(self.guard.lease)
        worker.hub.timer.call_repeatedly(_LOOK, self._tick)

    def connected(self, consumer: Any) -> None:
        """Judge what a new consumer gets; the one before it has lost its connection.

        Raises:
            ConfigurationError: append times are believed, and the broker does not prove them.
            UnansweredError: it did not say whether it overwrites them.
        """
        require(self.guard, "a protected application consumes tasks in a worker alone")
        self.let_go()
        connection, times = consumer.channel.connection, self.guard.verifier.times
        if not is_proved(times, connection):
            asyncio.run(prove(times, connection, echoed))
        consumer.protection = self

    def arrived(self, consumer: Any, frame: Any) -> None:
        """Judge a delivery."""
        self._arrived.append(Judged(self.guard, self.letters, frame, consumer))
        self._work()

    def after(self, consume: Callable[[], object]) -> None:
        """Do something, and judge what arrives meanwhile in the end."""
        self._busy = True
        try:
            consume()
        finally:
            self._busy = False
        self._work()

    def settle(self, held: Judged, by: Callable[[], object]) -> None:
        """Confirm the claim of a task, and settle its message after that; until the store is there that waits.

        Args:
            held: its delivery.
            by: settles.
        """
        held.settle = by
        self._running.discard(held)
        self._leases.remove(held.delivery)
        self._arrived.append(held)
        self._work()

    def give_back(self, held: Judged) -> None:
        """Release the claim of a task that comes again, or was not begun."""
        held.release()
        self._running.discard(held)
        self._leases.remove(held.delivery)

    def let_go(self) -> None:
        """Release the claims of tasks that Celery has forgotten: their connection is lost, or soon will be."""
        for held in tuple(self._running):
            pooled = held.request is not None and held.request._apply_result is not None
            if not pooled:
                self.give_back(held)
            elif self._forks and held.request not in state.active_requests:
                # A prefork pool drops it, unless a child begins it at this moment: its claim runs out by itself.
                self._leases.remove(held.delivery)

    def stop(self) -> None:
        """Begin no task any more: the consumer is cancelled, the pool ends what it has begun."""
        self._stops = True
        self.let_go()

    def close(self) -> None:
        """Try once more to settle what has run, and release the rest, while the broker still holds it back."""
        self._arrived.extend(self._waiting)
        self._waiting = []
        self._work()

        # A pool that was stopped has told of each task that it began. One that was killed may not have.
        if self._stops:
            for held in tuple(self._running):
                if held.request is None or held.request.time_start is None:
                    self.give_back(held)
        self.letters.close()

    def _work(self) -> None:
        """Take each delivery as far as possible now.

        A round trip reads what else the broker has sent, so that this is called within itself.
        """
        if self._busy:
            return
        self._busy = True
        try:
            while self._arrived:
                self._take(self._arrived.popleft())
        finally:
            self._busy = False

    def _take(self, held: Judged) -> None:
        try:
            if held.delivery is None:
                held.receive()
            accepted = held.go_on()
        except StaleDelivery:
            # The broker delivers it again.
            return
        if accepted and self._stops:
            held.release()
        elif accepted:
            self._leases.add(held.delivery, self.guard.clock.monotonic())
            self._running.add(held)
            held.give_to_celery()
        elif held.again:
            self._waiting.append(held)
        else:
            # The loop notices that the connection is lost. The next delivery of it is a duplicate.
            with suppress(*LOST):
                held.settle()

    def _tick(self) -> None:
        """Take up what waits, renew the claims of tasks that wait or run for long, and tell what a rollout has."""
        now = self.guard.clock.monotonic()
        self._arrived.extend(each for each in self._waiting if each.again <= now)
        self._waiting = [each for each in self._waiting if each.again > now]
        self._work()
        if now < self._looked + self._leases.every:
            return
        self._looked = now
        run(self._leases.renewing(self.guard))
        run(self.guard.tick())


class Guarding(bootsteps.StartStopStep):  # type: ignore[misc]
    """The step of a worker between its pool and its consumer."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, **options: Any) -> None:
        worker.app._mqauth.admit(worker)
        super().__init__(worker, **options)

    def start(self, worker: Any) -> None:
        """Make the pipeline."""
        worker.app._mqauth.start(worker)

    def stop(self, worker: Any) -> None:
        """Begin no task any more."""
        worker.app._mqauth.stop()

    def terminate(self, worker: Any) -> None:
        """Release what the pool was not given; it is about to be killed."""
        worker.app._mqauth.let_go()


class Judging(Consumer):  # type: ignore[misc]
    """The consumer of tasks: it gives a message to Celery once it is accepted."""

    protection: Protection

    def revive(self, channel: Any) -> None:
        """Have the channel leave bodies as they are."""
        maybe_channel(channel).auto_decode = False
        super().revive(channel)

    def consume(self, no_ack: bool | None = None) -> None:
        """Consume all queues; amid that, a round trip would read messages of a queue that has no callback yet.

        py-amqp gives such a message back, as often as it comes; a quorum queue drops it in the end.
        """
        consume = super().consume
        self.protection.after(lambda: consume(no_ack))

    def close(self) -> None:
        """Close the consumer: the worker has ended."""
        self.protection.close()
        super().close()

    def _receive_callback(self, frame: Any) -> None:
        self.protection.arrived(self, frame)


class Judged(Held):
    """A delivery to a worker.

    Args:
        guard: the pipeline.
        letters: where it goes if it is rejected.
        frame: py-amqp's message.
        consumer: took it.

    Attributes:
        request: what Celery made of it.
        settle: ends it at the broker.
    """

    def __init__(
        self, guard: Pipeline, letters: Letters, frame: Any, consumer: Any
    ) -> None:
        super().__init__(guard, letters, frame)
        self.request: Any = None
        self.settle: Callable[[], object] = lambda: frame.channel.basic_ack(
            frame.delivery_tag
        )
        self._consumer = consumer

    def receive(self) -> None:
        """Make the delivery that is judged.

        Raises:
            StaleDelivery: its consumer was cancelled, or its channel ended: the broker delivers it again.
        """
        frame, tag = self.native, self.native.delivery_info["consumer_tag"]
        queue = next(
            (name for name, of in self._consumer._active_tags.items() if of == tag), None
        )
        delivery = self._guard.receive(
            read(frame, require(queue, "its consumer was cancelled", StaleDelivery))
        )
        facts: Any = SimpleNamespace(ended=ended)
        slot = Slot(frame.channel, facts, self._guard.clock.monotonic())

        def fence(delivery: Delivery) -> None:
            unproven = slot.unproven(delivery)
            if unproven is not None:
                slot.answered(unproven, lives=answers(frame.channel))

        delivery.fence = fence
        self.delivery = delivery
        fence(delivery)

    def give_to_celery(self) -> None:
        """Have Celery run its task."""
        self._consumer.on_message(Task(self, self._consumer))
