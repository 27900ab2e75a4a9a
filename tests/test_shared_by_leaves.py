"""What leaves share, used as the leaf of another client would: pika's properties, and senders of a test's."""

from __future__ import annotations

import asyncio
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import pytest

from mqauth.brokers import amqp_messages, amqp_values
from mqauth.brokers.dead_letters import first_taken, in_time
from mqauth.errors import Cause, MalformedMessage, Reason, Rejection, Unavailable
from mqauth.flow import arun, call, run
from mqauth.letters.dead_letter import DeadLetter, Oversize
from mqauth.wire.message import HeaderValue, Message


def number(value: object) -> int | None:
    """Read a number property as pika has it: an integer, or its text."""
    return int(str(value))


NUMBERS = (
    ("priority", "priority", amqp_messages.whole), ("delivery-mode", "delivery_mode", amqp_messages.whole),
    ("timestamp", "timestamp", number), ("expiration", "expiration", number),
)  # fmt: skip


def pika(**parts: Any) -> Any:
    """Return properties as pika's ``BasicProperties`` has them."""
    names = (*amqp_messages.SHORT_STRINGS.values(), "headers", "delivery_mode", "priority", "timestamp",
             "expiration", "cluster_id")  # fmt: skip
    return SimpleNamespace(**(dict.fromkeys(names) | parts))


def doubles(value: object) -> HeaderValue:
    """Return a scalar as pika sends it: octets as bytes, floats with 64 bits."""
    return value if isinstance(value, float | bytes) else amqp_values.plain_scalar(value)


def test_what_another_client_publishes_is_what_it_reads() -> None:
    """A message bound for pika's wire is the message of what pika reads, floats and octets included."""
    headers = {
        "f": 0.1,
        "raw": b"\xff",
        "list": [1, {"a": None}],
        "time": datetime(2024, 1, 1),
    }
    sent = pika(headers=headers, content_type="text/plain", message_id="m", reply_to="")
    bound = amqp_messages.published(
        sent,
        headers,
        b"x",
        exchange="shop",
        routing_key="k",
        scalar=doubles,
        message_id="other",
    )
    faults: list[str] = []
    read = amqp_messages.delivered(
        pika(headers=amqp_values.value_out(dict(bound.headers), bytes), content_type="text/plain", message_id="m"),
        NUMBERS, b"x", exchange="shop", routing_key="k", redelivered=False, queue="q", scope="q", native=None,
        faults=faults,
    )  # fmt: skip
    assert (read.destination, read.body, read.properties, read.headers) == (
        bound.destination, bound.body, bound.properties, bound.headers,
    )  # fmt: skip
    assert faults == []


def test_numbers_of_another_client() -> None:
    """A time in seconds and an expiration in milliseconds are read as the client has them."""
    found = pika(headers={}, timestamp=7, expiration="1500", priority=3, delivery_mode=2)
    message = amqp_messages.delivered(
        found, NUMBERS, b"", exchange=None, routing_key="q", redelivered=True, queue="q", scope="s", native=None,
        faults=[],
    )  # fmt: skip
    assert message.properties == {
        "timestamp": "7",
        "expiration": "1500",
        "priority": "3",
        "delivery-mode": "2",
    }


@pytest.mark.parametrize(
    ("value", "carried"),
    [(0.1, True), (b"x", True), (1 << 63, False), ((b"x", 0.1), True)],
)
def test_what_another_client_carries(value: Any, carried: bool) -> None:
    """Whether a header arrives as it was is a matter of the client that sends it."""
    assert (
        amqp_values.arrives("x", value, amqp_values.value_out(value, bytes), doubles)
        is carried
    )


class TooLargeError(Exception):
    """The broker's word for a size over its own."""


class Broker:
    """Takes forms of at most so many bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken: list[Message] = []

    def send(self, form: Message) -> None:
        """Take a form."""
        if len(form.body or b"") > self.limit:
            raise TooLargeError
        self.taken.append(form)

    async def asend(self, form: Message) -> None:
        """Take a form, later."""
        await asyncio.sleep(0)
        self.send(form)


def letter(body: bytes = b"x" * 5000) -> DeadLetter:
    """Return a letter."""
    message = Message(destination="kafka:orders", body=body)
    return DeadLetter(
        message=message, rejection=Rejection(Reason.EXPIRED), scope="s", time=0, audit="a"
    )


def attempt(broker: Broker, send: Any, oversize: Oversize = "reference") -> Any:
    """Return the flow of a letter to a broker."""

    def sending(form: Message) -> Any:
        return call(send, form)

    return first_taken(
        letter(),
        sending,
        lambda _name, _value: True,
        lambda _form: True,
        TooLargeError,
        oversize,
    )


async def test_a_letter_goes_in_the_first_form_the_broker_takes() -> None:
    """A form that the broker finds too large is followed by the next, awaited or not."""
    broker = Broker(1000)
    run(attempt(broker, broker.send))
    await arun(attempt(broker, broker.asend))
    assert [dict(form.headers).get("mqauth-dead-form") for form in broker.taken] == [
        "reference"
    ] * 2


def test_a_letter_that_no_broker_takes() -> None:
    """Where no form is taken, or only one that may not be, the message waits; other errors stay what they are."""
    for broker, oversize in ((Broker(10), "reference"), (Broker(1000), "stop")):
        with pytest.raises(Unavailable) as caught:
            run(attempt(broker, broker.send, oversize))  # type: ignore[arg-type]
        assert (caught.value.cause, broker.taken) == (Cause.DEAD_LETTER_UNAVAILABLE, [])
        assert isinstance(caught.value.__cause__, TooLargeError)

    def gone(_form: Message) -> None:
        raise Unavailable(Cause.DEAD_LETTER_UNAVAILABLE, "gone")

    with pytest.raises(Unavailable, match="gone"):
        run(attempt(Broker(0), gone))


@pytest.mark.parametrize(
    ("error", "detail"),
    [(TooLargeError(), "TooLargeError"), (TimeoutError(), "no confirm within 60 s")],
)
async def test_what_keeps_a_message_from_the_broker(
    error: Exception, detail: str
) -> None:
    """A loss and the end of the time are named by the cause that was given."""
    with pytest.raises(Unavailable, match=detail) as caught:
        async with in_time(60, Cause.AUDIT_UNAVAILABLE, TooLargeError):
            raise error
    assert caught.value.cause is Cause.AUDIT_UNAVAILABLE
    with pytest.raises(MalformedMessage):
        async with in_time(60, Cause.AUDIT_UNAVAILABLE, TooLargeError):
            raise MalformedMessage("ours")
