"""Whether a RabbitMQ overwrites the append time that a sender writes: asked before any such time is believed.

With ``append_evidence`` a consumer takes ``timestamp_in_ms`` for the broker's word. Without the interceptor a
sender writes it himself, and a thief of a revoked key dates his messages back. So one message with a false stamp
goes to a queue of its own, and must come back with another one. The client's module makes the calls (``Ask``);
what is asked, for how long, and what follows from the answer stands here, once.

The answer holds for the node of this connection. Every node of a cluster needs the same configuration.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from weakref import WeakKeyDictionary

from mqauth.brokers.amqp_messages import APPEND_HEADER, append_time
from mqauth.errors import ConfigurationError, MqauthError, refusing, require
from mqauth.judging.token import Times
from mqauth.logs import emit

FALSE_STAMP: Final = 1
"""Milliseconds that the message claims; an interceptor that overwrites leaves nothing of it."""
WITHIN: Final = 10.0
"""Seconds for an answer; a broker that is short of memory reads nothing from who publishes."""
SETTING: Final = "message_interceptors.incoming.set_header_timestamp.overwrite = true"
Ask = Callable[[Any, dict[str, Any], bytes], Awaitable[Mapping[str, Any]]]
"""Sends, on a connection, a message with headers and a body to an exclusive queue, which is deleted after, and
returns the headers with which the message of that body comes back.

It raises ``refused(...)`` where the broker refuses one of the calls, and ``UnansweredError`` where the connection
is lost.
"""


class UnansweredError(MqauthError, ConnectionError):
    """The broker did not answer: that is an outage, to be tried again."""

    code = "unanswered"


@dataclass(slots=True)
class _Proof:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    held: bool = False


_PROOFS: Final[WeakKeyDictionary[Any, _Proof]] = WeakKeyDictionary()


def is_proved(times: Times, connection: object) -> bool:
    """Return whether nothing is to be asked on a connection, or it was asked already."""
    return times.append_evidence is None or (connection in _PROOFS and _PROOFS[connection].held)


async def prove(times: Times, connection: Any, ask: Ask) -> None:
    """Return once the broker behind a connection has proved that it overwrites a sender's append time.

    It is asked once a connection, and not where ``unsafe_append_evidence`` goes without; that is said each time.

    Args:
        times: of the verifier.
        connection: the client's.
        ask: asks on it.

    Raises:
        ConfigurationError: the broker leaves the stamp as it is, or refuses the question.
        UnansweredError: no answer came.
    """
    if is_proved(times, connection):
        return
    proof = _PROOFS.setdefault(connection, _Proof())
    async with proof.lock:
        # another delivery of this connection may have asked meanwhile
        if proof.held:
            return
        if times.unsafe_append_evidence:
            emit(
                "client.append_unproved",
                "append times are believed and nobody has proved them: whoever may publish may have written them",
            )
        else:
            await question(connection, ask)
        proof.held = True


async def question(connection: Any, ask: Ask) -> None:
    """Ask a broker whether it overwrites a sender's append time.

    Raises:
        ConfigurationError: it does not, or refuses the question.
        UnansweredError: no answer came within ``WITHIN`` seconds.
    """
    with refusing(
        TimeoutError,
        "the broker did not say whether it overwrites append times; is it short of memory or disk?",
        UnansweredError,
    ):
        async with asyncio.timeout(WITHIN):
            headers = await ask(connection, {APPEND_HEADER: FALSE_STAMP}, os.urandom(16))
    require(
        append_time(headers) not in (None, FALSE_STAMP),
        f"append_evidence: RabbitMQ leaves the {APPEND_HEADER} of a sender as it is: set {SETTING} on each of"
        ' its nodes, or at = "consume"',
    )


def refused(why: object) -> ConfigurationError:
    """Return the error for a broker that refuses the question.

    Args:
        why: its own text.
    """
    return ConfigurationError(
        f"append_evidence cannot be proved, for RabbitMQ refuses: {why}. The account needs the permissions"
        ' configure and read for "amq.gen-.*", and write for "amq.default"; unsafe_append_evidence goes without'
    )
