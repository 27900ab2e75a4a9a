"""Dead letters and offsets in one Kafka transaction (KIP-98, KIP-447): the side of the broker.

kafka-python waits in a transaction without a time limit, and after a failed one it keeps offsets that it would add
to the next. So each transaction runs on a thread of its own, and a producer that failed is thrown away.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kafka import KafkaProducer
from kafka.errors import MessageSizeTooLargeError, ProducerFencedError

from mqauth.brokers.kafka import repair as kafka_repair
from mqauth.brokers.kafka.client import producer_settings
from mqauth.brokers.kafka.confirmed import MAX_BLOCK, can_exist
from mqauth.brokers.kafka.translate import carries
from mqauth.brokers.log.records import dead_letter_headers, record_size
from mqauth.clock import Clock
from mqauth.errors import ConfigurationError
from mqauth.letters.dead_letter import DeadLetter, undelivered
from mqauth.wire.message import Message


class TransactionalDeadLetters:
    """Dead letters that are written if and only if the offsets of their records are committed.

    Give it to a ``kafka.Consumer`` whose client has ``isolation_level="read_committed"``, and read the dead
    letters with that too. Once audited, a letter waits in memory; with the next commit it is written, in order and
    in the first of its forms that fits, together with the offsets. A transaction that fails is made again with
    the same letters; meanwhile their partitions are paused, and nothing of them is committed.

    Args:
        make_client: makes a connected ``KafkaProducer(transactional_id=...)`` for these letters alone; called at
            once, and after each failed transaction. The id is one for each running consumer and the same after
            its restart: a second instance with it shuts the first one out. Its clients are closed in the end.
        topic: the dead-letter topic; its ``max.message.bytes`` should be above the source's.
        timeout: seconds to wait for the broker to take the letters; longer ones are shown as stalled.

    Attributes:
        longest: seconds after which the broker ends an open transaction itself.

    Raises:
        ConfigurationError: the client has no ``transactional_id``, or a setting is out of its limits.
    """

    def __init__(self, make_client: Callable[[], KafkaProducer], topic: str, timeout: float = 30) -> None:
        if not callable(make_client):
            raise ConfigurationError(
                "make_client must be a function that makes a KafkaProducer, since a failed one is replaced"
            )
        if timeout <= 0 or not topic:
            raise ConfigurationError("a topic must be named, and timeout must be above 0 seconds")
        self.name = topic
        self.timeout = timeout
        self._make = make_client
        # The smallest size that the broker has refused since the last commit.
        self._limit = math.inf
        self._ready = False
        self._client: Any = self._checked()
        self.longest: float = self._client.config["transaction_timeout_ms"] / 1000

    def publish(self, _letter: DeadLetter, /) -> None:
        """Refuse a letter without its offset.

        Raises:
            ConfigurationError: always; only a ``kafka.Consumer`` can commit both.
        """
        raise ConfigurationError("transactional dead letters are for kafka.Consumer: it commits the offsets")

    def prepare(self) -> None:
        """Have a producer that can begin; a transaction that its predecessor left open is ended first."""
        if self._client is None:
            self._client = self._checked()
        if not self._ready:
            self._client.init_transactions()
            self._ready = True

    def write(self, content: TransactionContent) -> None:
        """Begin a transaction with letters, each confirmed by the broker, and offsets; it is not committed yet."""
        # Nothing may be in flight when it is committed: a record that fails then makes kafka-python drop the
        # transaction and report success.
        self._client.begin_transaction()
        sent = [self._send(letter) for letter in content.letters]
        for form, future in sent:
            try:
                future.get(timeout=self.timeout)
            except MessageSizeTooLargeError:
                self._limit = min(self._limit, _size(form))
                raise
        self._client.send_offsets_to_transaction(dict(content.offsets), content.group)

    def commit(self) -> None:
        """Commit; where this raises, whether it was committed is not known."""
        self._client.commit_transaction()
        self._limit = math.inf

    def fenced(self) -> bool:
        """Return whether another producer has taken over the id, or the broker has ended a long transaction."""
        manager = getattr(self._client, "_transaction_manager", None)
        return isinstance(getattr(manager, "last_error", None), ProducerFencedError)

    def discard(self) -> None:
        """Throw the client away; the next one ends a transaction that it left open."""
        client, self._client, self._ready = self._client, None, False
        if client is not None:
            kafka_repair.close_producer(client)

    def _send(self, letter: DeadLetter) -> tuple[Message, Any]:
        """Send the best form that is smaller than what was refused."""
        for form in letter.forms(carries, lambda form: can_exist(form) and _size(form) < self._limit):
            headers = dead_letter_headers(form.headers)
            try:
                return form, self._client.send(self.name, value=form.body, key=form.key, headers=headers)
            except MessageSizeTooLargeError:
                self._limit = min(self._limit, _size(form))
        # The broker's limit may be raised meanwhile, so the next attempt begins with the whole letter.
        self._limit = math.inf
        raise undelivered("no form of the letter fits the broker")

    def _checked(self) -> Any:
        """Return a new client, with the settings that it must have."""
        client: Any = self._make()
        config = producer_settings(client)
        if not config["transactional_id"]:
            raise ConfigurationError("transactional dead letters need a KafkaProducer(transactional_id=...)")
        config["max_block_ms"] = min(config["max_block_ms"], int(min(self.timeout, MAX_BLOCK) * 1000))
        return client


@dataclass(frozen=True, slots=True, kw_only=True)
class TransactionContent:
    """The content of one transaction.

    Args:
        letters: in the order of their partitions.
        offsets: ``OffsetAndMetadata`` by partition.
        group: the consumer's ``group_metadata()``, by which the broker refuses a former member (KIP-447).
    """

    letters: Sequence[DeadLetter] = ()
    offsets: Mapping[Any, Any] = field(default_factory=dict)
    group: Any = None


class TransactionAttempt:
    """One transaction on a thread of its own; without content it only starts a producer.

    Attributes:
        over: set at its end.
        committed: true, false, or ``None`` where that is not known.
        fenced: whether another producer has its transactional id.
        error: what ended it.
        began: monotonic seconds of its start.
    """

    def __init__(self, letters: TransactionalDeadLetters, content: TransactionContent, clock: Clock) -> None:
        self._letters = letters
        self._content = content
        self._clock = clock
        self.began = clock.monotonic()
        self.over = threading.Event()
        self.committed: bool | None = False
        self.fenced = False
        self.error: BaseException | None = None
        threading.Thread(target=self._run, name="mqauth-kafka-transaction", daemon=True).start()

    def _run(self) -> None:
        try:
            self._letters.prepare()
            if self._content.offsets:
                self._letters.write(self._content)
                self.committed = None
                self._letters.commit()
            self.committed = True
        except BaseException as error:
            self.error = error
            # The broker fences a producer whose transaction took too long as well; that one is made again.
            long = self._clock.monotonic() - self.began >= self._letters.longest
            self.fenced = self._letters.fenced() and not long
            self._letters.discard()
        finally:
            self.over.set()


def _size(form: Message) -> int:
    return record_size(form.body, form.key, dead_letter_headers(form.headers))
