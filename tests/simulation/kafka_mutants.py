"""Mistakes in the engine and in the leaves of Kafka's clients that the simulation of the whole code must find."""

from __future__ import annotations

import warnings
from contextlib import suppress
from functools import partial
from typing import Any, Final
from unittest import mock

from mqauth.brokers.aiokafka import client as aiokafka_client
from mqauth.brokers.aiokafka import consumer as aiokafka_consumer
from mqauth.brokers.aiokafka.confirmed import DeadLetters
from mqauth.brokers.confluent import poller as confluent_poller
from mqauth.brokers.confluent import positions as confluent_offsets
from mqauth.brokers.log import poller as log_poller
from mqauth.brokers.log.confirmed import TopicLetters, TopicSink
from mqauth.brokers.log.consumer import LogConsumer
from mqauth.brokers.log.event_loop import AsyncLogConsumer
from mqauth.delivery.partition import Finished
from mqauth.errors import Unavailable
from mqauth.flow import call, run
from tests.simulation import engine_mutants
from tests.simulation.engine_mutants import Mutant, returning

with warnings.catch_warnings():  # kafka-python reads its schemas by a deprecated function
    warnings.simplefilter("ignore", DeprecationWarning)
    from mqauth.brokers.kafka import consumer as kafka_poller
    from mqauth.brokers.kafka import repair as kafka_repair
    from mqauth.brokers.kafka.consumer import Poller


def unwaited(_: Any) -> Any:
    """Send a record without waiting for its confirm."""

    def sending(sink: Any, _name: str, *, passing: Any = (), **record: Any) -> Any:
        yield from call(partial(sink._calls.send, sink.name, **record))

    return sending


def swallowing(original: Any) -> Any:
    """Drop a letter while its sink is down."""

    def publish(sink: Any, letter: Any) -> None:
        try:
            original(sink, letter)
        except Unavailable:
            return

    return publish


def nothing_sought(_: Any) -> Any:
    """Pause and resume as wished, and seek nothing."""

    def ask(poller: Any, wanted: Any) -> None:
        poller._client.pause(*wanted.pause)
        poller._client.resume(*wanted.resume)

    return ask


def waiting_for_nothing(_: Any) -> Any:
    """Take part in a rebalance without waiting for running handlers."""

    def turn(consumer: Any) -> None:
        consumer.calls.commit()
        run(consumer._work.renewing())
        consumer.calls.poll(joins=True)

    return turn


def settling_nothing(_: Any) -> Any:
    """Commit before a rebalance what is settled, without waiting for running handlers."""
    return lambda consumer: consumer.calls.commit()


def swallowing_on_loop(original: Any) -> Any:
    """Drop a letter while its sink is down, on an event loop."""

    async def publish(sink: Any, letter: Any) -> None:
        with suppress(Unavailable):
            await original(sink, letter)

    return publish


def settling_nothing_on_loop(_: Any) -> Any:
    """Commit before a rebalance what is settled, without waiting for running handlers, on an event loop."""
    return lambda consumer: consumer._commit(last=True)


def dying_of_commits(_: Any) -> Any:
    """Commit, and pass on whatever the client raises."""

    async def send_commit(poller: Any, offsets: Any) -> None:
        await poller._client.commit(dict(offsets))

    return send_commit


def resetting(_: Any) -> Any:
    """Let the client move positions by itself."""
    return lambda client: client._fetcher._default_reset_strategy


def left_paused(original: Any) -> Any:
    """Leave pauses at the client when partitions are revoked."""

    def drop(poller: Any, places: Any) -> None:
        client, poller._client = poller._client, mock.Mock()
        original(poller, places)
        poller._client = client

    return drop


ENGINE: Final = (
    *(found for found in engine_mutants.LOG if found.name in {
        "commits received, not settled", "takes what was put off for settled", "settles all with the first",
        "forgets what stands behind a deferral", "never resumes", "never commits",
        "runs a partition twice", "gives nothing back", "ignores a revoke", "ignores a loss", "ignores a stop",
    }),
    Mutant("waits for no confirm of a letter", TopicSink, "sending", unwaited),
    Mutant("begins without a commit", log_poller, "beginning", engine_mutants.uncommitted),
    Mutant("runs what was handled again", Finished, "settle", returning(0)),
)  # fmt: skip
"""Those of the log engine that show in the whole, and three of what all leaves share."""
OFTEN: Final = tuple(mutant for mutant in ENGINE if mutant.name != "ignores a stop")
"""Those that show on the leaves of other clients too: one that ignores a stop begins too little there."""
THREADS: Final = (
    Mutant("drops a letter while its sink is down", TopicLetters, "publish", swallowing),
)
"""Of the leaves on threads."""
MUTANTS: Final = {
    "kafka-python": (
        *ENGINE, *THREADS,
        Mutant("lets a rebalance wait for nothing", LogConsumer, "_poll_once", waiting_for_nothing),
        Mutant("seeks nothing", Poller, "ask", nothing_sought),
        Mutant("dies of a commit that failed", kafka_poller, "COMES_AGAIN", lambda _: ()),
        Mutant("goes to the end where it is out of range", kafka_repair, "reset_to_earliest", returning(None)),
    ),
    "confluent": (
        *OFTEN, *THREADS,
        Mutant("lets a rebalance wait for nothing", LogConsumer, "settle", settling_nothing),
        Mutant("seeks nothing", confluent_poller.Poller, "seek", returning(None)),
        Mutant("dies of a commit that failed", confluent_offsets, "PASSES", lambda _: frozenset()),
        Mutant("goes to the end where it is out of range", confluent_poller, "left_out", returning(None)),
        Mutant("takes records of a position that it left", confluent_poller.Poller, "_is_next", returning(True)),
        Mutant("leaves what is revoked paused", confluent_poller.Poller, "_drop", left_paused),
    ),
    "aiokafka": (
        # It tells of no loss: what did not come back is dropped when the next assignment is told.
        *(each for each in OFTEN if each.name != "ignores a loss"),
        Mutant("drops a letter while its sink is down", DeadLetters, "publish", swallowing_on_loop),
        Mutant("lets a rebalance wait for nothing", AsyncLogConsumer, "settle", settling_nothing_on_loop),
        Mutant("seeks nothing", aiokafka_consumer.Poller, "seek", returning(None)),
        Mutant("dies of a commit that failed", aiokafka_consumer.Poller, "send_commit", dying_of_commits),
        Mutant("goes to the end where it is out of range", aiokafka_client, "no_reset", resetting),
    ),
}  # fmt: skip
"""By client: those of the engine, and those of its leaf."""
