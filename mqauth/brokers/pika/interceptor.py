"""pika's calls for the question whether RabbitMQ overwrites append times (``brokers.queue.interceptor``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pika import BasicProperties
from pika.exceptions import AMQPChannelError

from mqauth.brokers.pika.link import LOST, Link
from mqauth.brokers.queue.interceptor import UnansweredError, refused


async def echoed(link: Link, headers: dict[str, Any], body: bytes) -> Mapping[str, Any]:
    """Send a message to an exclusive queue of a connection, and return the headers that it comes back with.

    Raises:
        ConfigurationError: the broker refuses.
        UnansweredError: the connection was lost.
    """
    try:
        line = await link.channel()
        try:
            answer = line.awaited()
            # where an earlier call is refused, nobody waits for it
            answer.add_done_callback(lambda done: done.cancelled() or done.exception())

            def take(_channel: object, _method: object, properties: BasicProperties, found: bytes) -> None:
                # whoever knows the queue's name may send to it, too
                if found == body and not answer.done():
                    answer.set_result(properties.headers or {})

            declared = await line.ask(line.native.queue_declare, "", exclusive=True, auto_delete=True)
            name = declared.method.queue
            await line.ask(line.native.basic_consume, name, take, auto_ack=True)
            line.native.basic_publish("", name, body, BasicProperties(headers=headers))
            found: Mapping[str, Any] = await answer
            return found
        finally:
            # the queue goes with its consumer
            if line.is_open:
                line.native.close()
    except AMQPChannelError as error:
        raise refused(error) from error
    except LOST as error:
        raise UnansweredError(f"the broker was not asked: {error or type(error).__name__}") from error
