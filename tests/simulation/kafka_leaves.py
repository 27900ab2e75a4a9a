"""The leaves that the Kafka simulation plays: each one's client, how it is made, and what stands in for what."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import _base as futures
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final
from unittest import mock

from aiokafka.errors import TopicAuthorizationFailedError
from confluent_kafka import KafkaError, KafkaException

with warnings.catch_warnings():  # kafka-python reads its schemas by a deprecated function
    warnings.simplefilter("ignore", DeprecationWarning)
    import mqauth.threads as daemon_threads
    from mqauth.brokers import aiokafka, confluent, kafka
    from mqauth.brokers.confluent import confirmed as confluent_confirmed
    from mqauth.brokers.confluent import poller as confluent_poller
    from mqauth.brokers.kafka import client as kafka_client
    from mqauth.brokers.kafka import sealing as kafka_sealing
    from mqauth.brokers.log import confirmed as log_confirmed
    from mqauth.brokers.log import consumer as log_consumer
    from mqauth.brokers.log import event_loop as log_event_loop
    from mqauth.brokers.log.records import OffsetsRefusedError
    from mqauth.delivery import assignment
    from mqauth.judging.pipeline import Pipeline
    from tests.simulation import aiokafka_client, confluent_client, kafka_broker
    from tests.simulation.kafka_broker import DEAD, TOPIC, Broker
    from tests.simulation.threads import Process, Threads, stand_ins

TIMEOUT: Final = 5.0
"""Seconds that a dead letter waits for its confirm."""
Handler = Callable[[Any], Any]


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """One leaf.

    Args:
        name: the client's, for people and for the command.
        client: makes a consumer of the client's, for a broker, a process, and records of one poll.
        consumer: makes mqauth's consumer, of that client, a broker, a process, a pipeline, a handler, settings.
        is_final: tells whether an error that ended it is a refusal for good.
        on_loop: whether it runs on an event loop.
        modules: in which ``threading``, ``queue`` and ``time`` are replaced, where they have them.
    """

    name: str
    client: Callable[[Broker, Process, int], Any]
    consumer: Callable[..., Any]
    is_final: Callable[[BaseException], bool]
    modules: Sequence[Any]
    on_loop: bool = False

    def workers(self, wished: int) -> int:
        """Return how many workers it has: on an event loop at least one."""
        return max(wished, 1) if self.on_loop else wished

    @contextmanager
    def in_virtual_time(self, threads: Threads) -> Iterator[None]:
        """Replace what the modules have of threads, queues and time within a ``with`` block."""
        threading, queue = stand_ins(threads)
        clock = SimpleNamespace(monotonic=lambda: threads.agenda.now)
        found = {
            "threading": threading,
            "queue": queue,
            "time": clock,
            "SimpleQueue": queue.SimpleQueue,
        }
        with ExitStack() as stack:
            # A process that was killed awaits nothing any more.
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings(
                "ignore", "coroutine .* was never awaited", RuntimeWarning
            )
            for module in self.modules:
                for name, stand_in in found.items():
                    if hasattr(module, name):
                        stack.enter_context(mock.patch.object(module, name, stand_in))
            yield


def _kafka(
    client: Any,
    broker: Broker,
    process: Process,
    guard: Pipeline,
    handle: Handler,
    **settings: Any,
) -> Any:
    letters: Any = kafka_broker.LetterClient(broker, process)
    return kafka.Consumer(
        client,
        guard,
        handle,
        dead_letters=kafka.DeadLetters(letters, DEAD, timeout=TIMEOUT),
        **settings,
    )


def _confluent(
    client: Any,
    broker: Broker,
    process: Process,
    guard: Pipeline,
    handle: Handler,
    **settings: Any,
) -> Any:
    letters = confluent_client.LetterClient(broker, process)
    return confluent.Consumer(
        client, guard, handle, config=client.settings, topics=[TOPIC], **settings,
        dead_letters=confluent.DeadLetters(letters, DEAD, timeout=TIMEOUT, config={}),
    )  # fmt: skip


def _confluent_aio(
    client: Any,
    broker: Broker,
    process: Process,
    guard: Pipeline,
    handle: Handler,
    **settings: Any,
) -> Any:
    letters = confluent_client.LetterClient(broker, process)
    return confluent.AIOConsumer(
        confluent_client.AIOClient(client), guard, handle, config=client.settings, topics=[TOPIC], **settings,
        dead_letters=confluent.DeadLetters(letters, DEAD, timeout=TIMEOUT, config={}),
    )  # fmt: skip


def _aiokafka(
    client: Any,
    broker: Broker,
    process: Process,
    guard: Pipeline,
    handle: Handler,
    **settings: Any,
) -> Any:
    letters = aiokafka.DeadLetters(
        aiokafka_client.LetterClient(broker, process), DEAD, timeout=TIMEOUT
    )
    return aiokafka.Consumer(client, guard, handle, dead_letters=letters, **settings)


def _is_final(error: BaseException) -> bool:
    """Tell whether a client's broker has refused for good, as it says itself or as mqauth says for it."""
    error = (
        (error.__cause__ or error) if isinstance(error, OffsetsRefusedError) else error
    )
    if isinstance(error, KafkaException):
        return bool(error.args[0].code() == KafkaError.TOPIC_AUTHORIZATION_FAILED)
    return isinstance(
        error, kafka_broker.TopicAuthorizationFailedError | TopicAuthorizationFailedError
    )


LEAVES: Final = {
    leaf.name: leaf
    for leaf in (
        Leaf(
            name="kafka-python", client=kafka_broker.Client, consumer=_kafka,
            is_final=_is_final,
            modules=(
                log_consumer, kafka_client, kafka_sealing, log_confirmed, assignment, daemon_threads, futures,
            ),
        ),
        Leaf(
            name="confluent", client=confluent_client.Client, consumer=_confluent, is_final=_is_final,
            modules=(
                log_consumer, log_confirmed, assignment, confluent_poller, confluent_confirmed, daemon_threads,
                futures,
            ),
        ),
        Leaf(
            name="confluent-aio", client=confluent_client.Client, consumer=_confluent_aio, is_final=_is_final,
            on_loop=True,
            modules=(
                log_event_loop, daemon_threads, futures, log_confirmed, assignment, confluent_poller,
                confluent_confirmed,
            ),
        ),
        Leaf(
            name="aiokafka", client=aiokafka_client.Client, consumer=_aiokafka, on_loop=True,
            is_final=_is_final,
            modules=(log_event_loop, log_confirmed, assignment),
        ),
    )
}  # fmt: skip
