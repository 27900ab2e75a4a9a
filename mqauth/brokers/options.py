"""The options of consumers, once for every client: what a ``Consumer`` takes beside its client and its handler.

A name that is none of these is refused: by a type checker, and by ``TypeError`` when the consumer is made.
"""

from __future__ import annotations

from typing import Generic, TypedDict

from mqauth.brokers.event_loop import Sleep
from mqauth.clock import Backoff
from mqauth.judging.verified import Decode, Unverifieds, V


class HandlingOptions(TypedDict, Generic[V], total=False):
    """Options of every consumer.

    Attributes:
        decode: makes ``Verified.value`` of the body, after verification. What it raises dead-letters the message
            as ``handler_failed``, at once. It is not called where there is no body, as in a tombstone of Kafka.
        unverified: takes an ``Unverified``, where a rung below ``enforce`` or an exemption lets such messages
            pass; or a table of handlers by kind. It is another function than the handler.
    """

    decode: Decode[V] | None
    unverified: Unverifieds | None


class DeliveryOptions(HandlingOptions[V], total=False):
    """Options of every consumer of a queue, and of ``guarded``.

    Attributes:
        consumer_timeout: seconds after which the broker closes a channel for a delivery that is not acked, by
            default 1,800, as it is set there (``consumer_timeout``). What is held goes back a tenth before.
        delivery_limit: of the queue; by default as it was declared by the client's object, else RabbitMQ's 20.
            Negative for none. A message at its last delivery is not given back.
    """

    consumer_timeout: float
    delivery_limit: int | None


class QueueOptions(DeliveryOptions[V], total=False):
    """Options of a consumer of a queue.

    Attributes:
        prefetch: deliveries at once, 1 to 65,535, by default 10. Their handlers run concurrently, so that 1
            keeps the order.
        coalesce_acks: whether to ack many deliveries in one frame, at most 10 ms late, as by default. That needs a
            channel that is the consumer's alone. Without it each is acked by itself as soon as it is settled.
        grace: seconds that running handlers may take at ``stop``, by default 30.
        hold: seconds of a cause that concerns everyone after which the queue is suspended, at least 1 and by
            default 60. The held deliveries go back to the broker then, but for those that were handled and wait
            for their confirm. What waits for a cause of its own, or of one issuer, is held in any case.
        max_held: deliveries held beside the window, by default ten times ``prefetch`` and at most 1,000, and 16
            MiB of their bodies. Beyond it the queue waits for all.
        sleep: waits so many seconds; for tests.
    """

    prefetch: int
    coalesce_acks: bool
    grace: float
    hold: float
    max_held: int | None
    sleep: Sleep


class LogOptions(HandlingOptions[V], total=False):
    """Options of a consumer of a log.

    Attributes:
        grace: seconds that a running handler may take to finish after ``stop``, and before a rebalance, by default
            30. Before a rebalance it is at most half of what the group waits for us, where the client tells that.
        workers: how many handlers run at once, by default 1, each for a partition of its own, which stays in
            order. On a blocking client they are threads. With 0 handlers run on the thread of ``run``, and each
            must be done well within the client's longest time between two polls.
        commit_interval: longest time between commits while records are settled, seconds, by default 5.
        backoff: how long a deferred partition waits.
    """

    grace: float
    workers: int
    commit_interval: float
    backoff: Backoff
