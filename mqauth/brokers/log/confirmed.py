"""Dead letters and audit records on topics, each durable once the broker has confirmed it, for every client."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from mqauth.audit.record import AuditRecord
from mqauth.brokers.dead_letters import Errors, Unconfirmed, first_taken
from mqauth.brokers.log.records import dead_letter_headers, record_size
from mqauth.errors import Cause, Unavailable, require
from mqauth.flow import Flow, call, run
from mqauth.letters.dead_letter import Carries, DeadLetter, Oversize, check_oversize
from mqauth.wire import strict_json
from mqauth.wire.message import Message

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
    carries: Carries
    too_large: Errors
    failed: Errors
    name: Callable[[BaseException], str] = lambda error: type(error).__name__


class Confirmed:
    """Sends records to one topic and waits for the broker's confirm; several threads may do so at once.

    Args:
        client: its calls.
        topic: the topic.
        timeout: seconds to wait for a confirm.
        cause: of the ``Unavailable`` that is raised without one.

    Raises:
        ConfigurationError: a setting is wrong.
    """

    def __init__(self, client: ConfirmingClient, topic: str, timeout: float, cause: Cause) -> None:
        require(timeout > 0 and topic, "a topic must be named, and timeout must be above 0 seconds")
        self._client = client
        self._topic = topic
        self._timeout = timeout
        self._cause = cause
        self._unconfirmed = Unconfirmed()

    def sending(self, name: str, *, passing: Errors = (), **record: Any) -> Flow[None]:
        """Send a record, and return once the broker has confirmed it.

        Args:
            name: the record's id.
            passing: errors of the client that are raised as they are.
            record: keywords of the client's send: ``value``, ``key`` and ``headers``.

        Raises:
            Unavailable: there is no confirm; without one a record does not exist.
        """
        try:
            yield from self._waiting(name, record)
        except passing:
            raise
        except self._client.failed as error:
            raise Unavailable(self._cause, self._client.name(error)) from error

    def _waiting(self, name: str, record: dict[str, Any]) -> Flow[None]:
        # The client keeps trying after our timeout. So a record that is still open is waited for again: sending it
        # twice would write it twice.
        client, sent = self._client, self._unconfirmed.take(name)
        if sent is None:
            sent = yield from call(partial(client.send, self._topic, **record))
        try:
            yield from call(client.wait, sent, self._timeout)
        finally:
            if not client.over(sent):
                self._unconfirmed.keep(name, sent, record_size(**record))


class TopicLetters:
    """What ``DeadLetters`` of every client is: a sink of dead letters on one topic.

    Args:
        native: the client, as the user gave it to us.
        client: its calls.
        topic: the dead-letter topic.
        timeout: seconds to wait for the confirm.
        oversize: what becomes of a message that fits in no other form.

    Attributes:
        exists: returns whether the broker has the topic, as far as it tells; on an event loop to be awaited.

    Raises:
        ConfigurationError: a setting is unknown.
    """

    def __init__(
        self, native: Any, client: ConfirmingClient, topic: str, timeout: float, oversize: Oversize
    ) -> None:
        check_oversize(oversize)
        self.client = native
        self.name = topic
        self.exists = partial(client.has, topic)
        self._calls = client
        self._records = Confirmed(client, topic, timeout, Cause.DEAD_LETTER_UNAVAILABLE)
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
        return first_taken(
            letter, partial(self._send, letter.id), calls.carries, can_exist, calls.too_large, self._oversize
        )

    def _send(self, name: str, form: Message) -> Flow[None]:
        headers = dead_letter_headers(form.headers)
        return self._records.sending(
            name, passing=self._calls.too_large, value=form.body, key=form.key, headers=headers
        )


class TopicAudit:
    """What ``AuditTopic`` of every client is: a sink of audit records on one topic.

    Args:
        native: the client, as the user gave it to us.
        client: its calls.
        topic: the audit topic.
        timeout: seconds to wait for the confirm.

    Attributes:
        exists: as those of dead letters have it.
    """

    def __init__(self, native: Any, client: ConfirmingClient, topic: str, timeout: float) -> None:
        self.client = native
        self.name = topic
        self.exists = partial(client.has, topic)
        self._records = Confirmed(client, topic, timeout, Cause.AUDIT_UNAVAILABLE)

    def write(self, record: AuditRecord, /) -> Any:
        """Send one record and return once the broker has confirmed it.

        Raises:
            Unavailable: ``audit_unavailable``: refused, timed out or not reachable.
        """
        return run(self.writing(record))

    def writing(self, record: AuditRecord) -> Flow[None]:
        """Return ``write`` as a flow."""
        key = record.instance.encode("utf-8", "replace")
        return self._records.sending(record.id, value=strict_json.dumps(record.as_dict()), key=key)


def can_exist(form: Message) -> bool:
    """Return whether a form can be sent: a record must have a key or a value."""
    return form.body is not None or form.key is not None
