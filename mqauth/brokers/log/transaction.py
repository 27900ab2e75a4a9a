"""Dead letters and offsets in one Kafka transaction (KIP-98, KIP-447): the side of the broker, for every client.

A client may wait in a transaction for long, and some are of no use after a failed one. So each transaction runs on
a thread of its own, and a producer that failed is thrown away.
"""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mqauth.brokers.dead_letters import Errors
from mqauth.brokers.log.confirmed import can_exist
from mqauth.brokers.log.records import dead_letter_headers, record_size
from mqauth.clock import Clock
from mqauth.delivery.start import Committed
from mqauth.errors import ConfigurationError, require
from mqauth.letters.dead_letter import Carries, DeadLetter, undelivered
from mqauth.wire.message import Message


class TransactionalLetters(ABC):
    """Dead letters that are written if and only if the offsets of their records are committed.

    Args:
        make_client: makes a connected producer with a transactional id; called at once, and after each failed
            transaction.
        topic: the dead-letter topic.
        timeout: seconds to wait for the broker to take the letters; longer ones are shown as stalled.

    Attributes:
        client: the producer, ``None`` after one was thrown away.
        longest: seconds after which the broker ends an open transaction itself.
        carries: returns whether the client can send a header again unchanged.
        too_large: errors of a record that is over a size of the client or the broker.

    Raises:
        ConfigurationError: the client is not as said, or a setting is out of its limits.
    """

    longest: float
    too_large: Errors
    carries: Carries

    def __init__(self, make_client: Callable[[], Any], topic: str, timeout: float) -> None:
        require(
            callable(make_client),
            "make_client must be a function that makes a producer, since a failed one is replaced",
        )
        require(timeout > 0 and topic, "a topic must be named, and timeout must be above 0 seconds")
        self.name = topic
        self.timeout = timeout
        self._make = make_client
        # The smallest size that the broker has refused since the last commit.
        self._limit = math.inf
        self._ready = False
        self.client: Any = self.checked(make_client())

    # Calls of the client, which a leaf makes

    @abstractmethod
    def checked(self, client: Any) -> Any:
        """Return a new client with the settings that it must have.

        Raises:
            ConfigurationError: it has others.
        """

    def start(self) -> None:
        """Start the client; a transaction that its predecessor left open is ended first."""
        self.client.init_transactions()

    def send(self, record: Mapping[str, Any]) -> Any:
        """Give a record to the client; return its future, whose ``get`` takes a timeout."""
        return self.client.send(self.name, **record)

    @abstractmethod
    def send_offsets(self, content: TransactionContent) -> None:
        """Add the offsets to the transaction."""

    @abstractmethod
    def fenced(self, error: BaseException) -> bool:
        """Return whether another producer has taken over the id, or the broker has ended a long transaction."""

    def closed(self) -> Any:
        """Return once all clients are closed; on an event loop a coroutine."""
        return None

    @abstractmethod
    def close_client(self, client: Any) -> None:
        """Close a client within seconds, whatever its state."""

    # What is the same for all

    def publish(self, _letter: DeadLetter, /) -> None:
        """Refuse a letter without its offset.

        Raises:
            ConfigurationError: always; only a consumer of mqauth can commit both.
        """
        raise ConfigurationError("transactional dead letters are for mqauth's Consumer: it commits the offsets")

    def prepare(self) -> None:
        """Have a producer that can begin."""
        if self.client is None:
            self.client = self.checked(self._make())
        if not self._ready:
            self.start()
            self._ready = True

    def write(self, content: TransactionContent) -> None:
        """Begin a transaction with letters, each confirmed by the broker, and offsets; it is not committed yet."""
        # Nothing may be in flight when it is committed: a record that fails then makes kafka-python drop the
        # transaction and report success.
        self.client.begin_transaction()
        sent = [self._send(letter) for letter in content.letters]
        refused: dict[int, Exception] = {}
        for form, future in sent:
            try:
                future.get(timeout=self.timeout)
            except self.too_large as error:
                refused[_size(form)] = error
        if refused:
            # Clients fail the letters beside the one that is too large with the same error.
            size = max(refused)
            self._limit = min(self._limit, size)
            raise refused[size]
        self.send_offsets(content)

    def commit(self) -> None:
        """Commit; where this raises, whether it was committed is not known."""
        self.client.commit_transaction()
        self._limit = math.inf

    def discard(self) -> None:
        """Throw the client away; the next one ends a transaction that it left open."""
        client, self.client, self._ready = self.client, None, False
        if client is not None:
            self.close_client(client)

    def _send(self, letter: DeadLetter) -> tuple[Message, Any]:
        """Send the best form that is smaller than what was refused."""
        for form in letter.forms(self.carries, lambda form: can_exist(form) and _size(form) < self._limit):
            headers = dead_letter_headers(form.headers)
            try:
                return form, self.send({"value": form.body, "key": form.key, "headers": headers})
            except self.too_large:
                self._limit = min(self._limit, _size(form))
        # The broker's limit may be raised meanwhile, so the next attempt begins with the whole letter.
        self._limit = math.inf
        raise undelivered("no form of the letter fits the broker")


@dataclass(frozen=True, slots=True, kw_only=True)
class TransactionContent:
    """The content of one transaction.

    Args:
        letters: in the order of their partitions.
        offsets: to commit, by partition.
        group: the consumer's membership as its client has it, by which the broker refuses a former member
            (KIP-447).
    """

    letters: Sequence[DeadLetter] = ()
    offsets: Mapping[Any, Committed] = field(default_factory=dict)
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

    def __init__(self, letters: TransactionalLetters, content: TransactionContent, clock: Clock) -> None:
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
            self.fenced = self._letters.fenced(error) and not long
            self._letters.discard()
        finally:
            self.over.set()


def _size(form: Message) -> int:
    return record_size(form.body, form.key, dead_letter_headers(form.headers))
