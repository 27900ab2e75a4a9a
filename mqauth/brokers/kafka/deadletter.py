"""Kafka dead letters: sent by a producer of their own, and waited for until the broker has confirmed them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from kafka.errors import KafkaError, MessageSizeTooLargeError

from mqauth.brokers.kafka.confirm import Confirmed
from mqauth.brokers.kafka.translate import carries
from mqauth.brokers.letters import first_taken
from mqauth.brokers.log.records import dead_letter_headers
from mqauth.flow import run
from mqauth.letters.dead_letter import DeadLetter, Oversize, check_oversize, undelivered
from mqauth.wire.message import Message

if TYPE_CHECKING:
    from kafka import KafkaProducer


class DeadLetters:
    """Sends dead letters to one topic and waits for the broker's confirm.

    Args:
        client: a ``KafkaProducer(acks="all", enable_idempotence=False)`` for dead letters alone: an idempotent
            one is poisoned for good by one refused letter. Its ``max_block_ms`` is lowered to 5 s at most.
            Give it ``allow_auto_create_topics=False`` unless the broker may create the topic.
        topic: the dead-letter topic; let its ``max.message.bytes`` be above the source's.
        timeout: seconds to wait for the confirm.
        oversize_letters: a message that fits in no other form is dead-lettered by ``"reference"``
            (coordinates, digest, sizes) or deferred, ``"stop"``.

    Raises:
        ConfigurationError: the client is set up otherwise, or a setting is unknown.
    """

    def __init__(
        self,
        client: KafkaProducer,
        topic: str,
        timeout: float = 30,
        *,
        oversize_letters: Oversize = "reference",
    ) -> None:
        check_oversize(oversize_letters)
        self.client: Any = client
        self._records = Confirmed(client, topic, timeout)
        self.name = topic
        self._oversize = oversize_letters

    def publish(self, letter: DeadLetter, /) -> None:
        """Send a letter in the first of its forms that fits, and return once the broker has confirmed it.

        Raises:
            Unavailable: ``dead_letter_unavailable``: refused, timed out or not reachable.
        """
        send = partial(self._send, letter.id)
        run(first_taken(letter, send, carries, can_exist, MessageSizeTooLargeError, self._oversize))

    def _send(self, letter: str, form: Message) -> None:
        """Send one form; only a confirmed record is a dead letter."""
        headers = dead_letter_headers(form.headers)
        try:
            self._records.send(letter, value=form.body, key=form.key, headers=headers)
        except MessageSizeTooLargeError:
            raise
        except (KafkaError, ValueError, TypeError, OSError) as error:
            raise undelivered(type(error).__name__) from error


def can_exist(form: Message) -> bool:
    """Tell whether kafka-python sends such a record: it refuses one without key and value."""
    return form.body is not None or form.key is not None
