"""Signed answers: ``Verified.reply`` on aiokafka."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from aiokafka.errors import KafkaError, KafkaTimeoutError, UnknownTopicOrPartitionError

from mqauth.brokers.aiokafka.producer import Producer
from mqauth.brokers.log.errors import ProducerFatalError
from mqauth.brokers.log.records import NativeHeaders
from mqauth.brokers.log.replies import TopicReplies, later
from mqauth.errors import Unavailable
from mqauth.judging.verified import Verified

PATIENCE: Final = 10.0
"""Most seconds that an answer waits for the broker."""


class Replies(TopicReplies):
    """Sends signed answers to the topic in reply-to, each to be awaited."""

    _producer: Producer

    async def send(self, _verified: Verified, topic: str, body: bytes, headers: NativeHeaders) -> Any:
        """Send an answer, and return its metadata once the broker has acknowledged it.

        Raises:
            RetryLater: it cannot be sent now.
            aiokafka.errors.KafkaError: the broker refuses it, or the topic does not exist.
        """
        try:
            async with asyncio.timeout(PATIENCE):
                return await self._producer.send_and_wait(topic, body, headers=headers)
        except UnknownTopicOrPartitionError:
            raise
        except (ProducerFatalError, Unavailable, KafkaTimeoutError, TimeoutError) as error:
            raise later(type(error).__name__) from error
        except KafkaError as error:
            if not error.retriable:
                raise
            raise later(type(error).__name__) from error
