"""Dead letters and audit records on topics, each durable once the broker has confirmed it, for every client."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from mqauth.audit.record import AuditRecord
from mqauth.brokers.dead_letters import first_taken
from mqauth.brokers.log.records import carries, dead_letter_headers, record_size
from mqauth.errors import Cause, Errors, Unavailable, require
from mqauth.flow import Flow, call, run
from mqauth.letters.dead_letter import Carries, DeadLetter, Oversize, check_oversize
from mqauth.wire import memo, strict_json
from mqauth.wire.message import Message

MAX_UNCONFIRMED: Final = 1000
"""Records with an open outcome that are remembered at most."""
MAX_UNCONFIRMED_BYTES: Final = 16 * 1024 * 1024
"""Bytes of these records at most, but for the latest, which is always remembered."""
MAX_BLOCK: Final = 5.0
"""Most seconds that a record waits for metadata of its topic: a missing topic must not hold up the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmingClient:
    """The calls of a client by which a record is sent and confirmed; on an event loop both may be coroutines.

    Args:
        send: gives a record to the client, by the topic and the client's own keywords; returns what holds its
            outcome, which must not be awaitable itself.
        wait: waits for an outcome, at most so many seconds, and raises why the record was not confirmed.
        over: returns whether there is an outcome.
        has: returns whether the broker has a topic, or its awaitable does; ``None`` where that cannot be told.
        carries: returns whether the client can send a header again unchanged.
        too_large: errors of a record that is over a size of the client or the broker.
        failed: all errors of a record that was not confirmed, those included.
        name: names such an error.
    """

    send: Callable[..., Any]
    wait: Callable[[Any, float], Any]
    over: Callable[[Any], bool]
    has: Callable[[str], Any]
    too_large: Errors
    failed: Errors
    carries: Carries = carries
    name: Callable[[BaseException], str] = lambda error: type(error).__name__


class TopicSink:
    """Sends records to one topic and waits for the broker's confirm; several threads may do so at once.

    Args:
        native: the client, as the user gave it to us.
        calls: its calls.
        topic: the topic.
        timeout: seconds to wait for a confirm.

    Attributes:
        cause: of the ``Unavailable`` that is raised without a confirm.
        exists: returns whether the broker has the topic, as far as it tells; on an event loop to be awaited.

    Raises:
        ConfigurationError: a setting is wrong.
    """

    cause: Cause

    def __init__(
        self, native: Any, calls: ConfirmingClient, topic: str, timeout: float
    ) -> None:
        require(
            timeout > 0 and topic,
            "a topic must be named, and timeout must be above 0 seconds",
        )
        self.client = native
        self.name = topic
        self.exists = partial(calls.has, topic)
        self._calls = calls
        self._timeout = timeout
        # Records that were sent and not yet confirmed, by their id, with their size. A sender of bad messages
        # chooses that, so it is bounded; those that are forgotten may be sent twice, under the same id.
        self._unconfirmed = memo.Recent[str, tuple[Any, int]](
            MAX_UNCONFIRMED_BYTES,
            lambda _, kept: max(kept[1], MAX_UNCONFIRMED_BYTES // MAX_UNCONFIRMED),
        )
        self._lock = threading.Lock()

    def sending(self, name: str, *, passing: Errors = (), **record: Any) -> Flow[None]:
        """Send a record, and return once the broker has confirmed it.

        Args:
            name: the record's id.
            passing: errors of the client that are raised as they are.
            record: keywords of the client's send: ``value``, ``key`` and ``headers``.

        Raises:
            Unavailable: there is no confirm; without one a record does not exist.
        """
        calls = self._calls
        # The client keeps trying after our timeout. So a record that is still open is waited for again: sending it
        # twice would write it twice.
        with self._lock:
            sent, _ = self._unconfirmed.drop(name) or (None, 0)
        try:
            if sent is None:
                sent = yield from call(partial(calls.send, self.name, **record))
            try:
                yield from call(calls.wait, sent, self._timeout)
            finally:
                if not calls.over(sent):
                    with self._lock:
                        self._unconfirmed.keep(name, (sent, record_size(**record)))
        except passing:
            raise
        except calls.failed as error:
            raise Unavailable(self.cause, calls.name(error)) from error


class TopicLetters(TopicSink):
    """What ``DeadLetters`` of every client is: a sink of dead letters on one topic.

    Args:
        native, calls, topic, timeout: as ``TopicSink`` has them.
        oversize: what becomes of a message that fits in no other form.

    Raises:
        ConfigurationError: a setting is unknown.
    """

    cause = Cause.DEAD_LETTER_UNAVAILABLE

    def __init__(
        self,
        native: Any,
        calls: ConfirmingClient,
        topic: str,
        timeout: float,
        oversize: Oversize,
    ) -> None:
        check_oversize(oversize)
        super().__init__(native, calls, topic, timeout)
        self._oversize = oversize

    def publish(self, letter: DeadLetter, /) -> Any:
        """Send a letter in the first of its forms that fits, and return once the broker has confirmed it.

        Raises:
            Unavailable: ``dead_letter_unavailable``: refused, timed out or not reachable.
        """
        return run(self.publishing(letter))

    def publishing(self, letter: DeadLetter) -> Flow[None]:
        """Return ``publish`` as a flow."""
        calls = self._calls

        def send(form: Message) -> Flow[None]:
            headers = dead_letter_headers(form.headers)
            return self.sending(
                letter.id,
                passing=calls.too_large,
                value=form.body,
                key=form.key,
                headers=headers,
            )

        return first_taken(
            letter, send, calls.carries, can_exist, calls.too_large, self._oversize
        )


class TopicAudit(TopicSink):
    """What ``AuditTopic`` of every client is: a sink of audit records on one topic."""

    cause = Cause.AUDIT_UNAVAILABLE

    def write(self, record: AuditRecord, /) -> Any:
        """Send one record and return once the broker has confirmed it.

        Raises:
            Unavailable: ``audit_unavailable``: refused, timed out or not reachable.
        """
        return run(self.writing(record))

    def writing(self, record: AuditRecord) -> Flow[None]:
        """Return ``write`` as a flow."""
        key = record.instance.encode("utf-8", "replace")
        return self.sending(record.id, value=strict_json.dumps(record.as_dict()), key=key)


def can_exist(form: Message) -> bool:
    """Return whether a form can be sent: a record must have a key or a value."""
    return form.body is not None or form.key is not None
