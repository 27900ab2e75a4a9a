"""The question whether a RabbitMQ overwrites append times: what counts as a proof, and how often it is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from pamqp.decode import embedded_value
from pika.data import decode_value

from mqauth.brokers.amqp_messages import APPEND_HEADER, append_time
from mqauth.brokers.queue import client as interceptor
from mqauth.brokers.queue.client import FALSE_STAMP, UnansweredError, is_proved, prove
from mqauth.errors import ConfigurationError
from mqauth.judging.token import Times

TIMES = Times(at="append", max_queue_age=60, append_evidence="interceptor")


class Long(int):
    """A long as pika reads it."""


class Connection:
    """A client's connection."""


class Broker:
    """Answers with headers, or never."""

    def __init__(self, *answers: Mapping[str, Any] | None) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[Mapping[str, Any], bytes]] = []

    async def ask(
        self, _connection: object, headers: dict[str, Any], body: bytes
    ) -> Mapping[str, Any]:
        """Take the next answer."""
        self.asked.append((headers, body))
        answer = self.answers.pop(0)
        if answer is None:
            await asyncio.Event().wait()
        return answer or {}


@pytest.mark.parametrize("stamp", [1_700_000_000_000, Long(1_700_000_000_000)])
async def test_another_stamp_is_a_proof_once_a_connection(stamp: int) -> None:
    """Several deliveries of a connection ask once, and a new connection asks anew."""
    broker, connection = (
        Broker({APPEND_HEADER: stamp}, {APPEND_HEADER: stamp}),
        Connection(),
    )
    await asyncio.gather(*(prove(TIMES, connection, broker.ask) for _ in range(3)))
    assert is_proved(TIMES, connection)
    await prove(TIMES, Connection(), broker.ask)
    assert [headers for headers, _ in broker.asked] == [{APPEND_HEADER: FALSE_STAMP}] * 2
    assert len({body for _, body in broker.asked}) == 2


@pytest.mark.parametrize(
    "stamp", [FALSE_STAMP, Long(FALSE_STAMP), None, "1700000000000", True, -1]
)
async def test_anything_else_is_none(stamp: object) -> None:
    """The false stamp, none, or no number: the error says what to set, and the next delivery asks again."""
    broker, connection = Broker(*[{APPEND_HEADER: stamp}] * 2), Connection()
    for _ in range(2):
        with pytest.raises(
            ConfigurationError, match=r"overwrite = true on each of its nodes"
        ):
            await prove(TIMES, connection, broker.ask)
    assert not is_proved(TIMES, connection)


async def test_no_answer_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the limit an error says so, and the broker may be asked again."""
    monkeypatch.setattr(interceptor, "WITHIN", 0.01)
    broker, connection = Broker(None, {APPEND_HEADER: 1_700_000_000_000}), Connection()
    with pytest.raises(UnansweredError, match="short of memory"):
        await prove(TIMES, connection, broker.ask)
    await prove(TIMES, connection, broker.ask)
    assert is_proved(TIMES, connection)


async def test_nobody_is_asked_in_vain(caplog: pytest.LogCaptureFixture) -> None:
    """Not where append times do not count, and not where the proof is gone without, which is said once."""
    broker, connection = Broker(), Connection()
    for times in (Times(), Times(at="append", max_queue_age=60)):
        await prove(times, connection, broker.ask)
    unsafe = Times(
        at="append",
        max_queue_age=60,
        append_evidence="interceptor",
        unsafe_append_evidence=True,
    )
    for _ in range(2):
        await prove(unsafe, connection, broker.ask)
    said = [
        record.levelname
        for record in caplog.records
        if getattr(record, "event", "") == "client.append_unproved"
    ]
    assert (broker.asked, said) == ([], ["WARNING"])


def test_unsafe_goes_with_evidence() -> None:
    """Alone it would say nothing."""
    with pytest.raises(
        ConfigurationError, match="unsafe_append_evidence goes with append_evidence"
    ):
        Times(unsafe_append_evidence=True)


def by_pika(raw: bytes) -> object:
    """Return a field value as pika reads it."""
    return decode_value(raw, 0)[0]


def by_pamqp(raw: bytes) -> object:
    """Return it as aio-pika's decoder does."""
    return embedded_value(raw)[1]


@pytest.mark.parametrize("read", [by_pika, by_pamqp])
@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        (b"l" + (7).to_bytes(8, "big"), 7), (b"L" + (7).to_bytes(8, "big"), 7), (b"I" + (7).to_bytes(4, "big"), 7),
        (b"i" + (7).to_bytes(4, "big"), 7), (b"s" + (7).to_bytes(2, "big"), 7), (b"u" + (7).to_bytes(2, "big"), 7),
        (b"b\7", 7), (b"B\7", 7), (b"l" + b"\xff" * 8, None), (b"t\1", None), (b"V", None),
        (b"S" + (1).to_bytes(4, "big") + b"7", None), (b"x" + (1).to_bytes(4, "big") + b"7", None),
        (b"T" + (7).to_bytes(8, "big"), None), (b"D\0" + (7).to_bytes(4, "big"), None),
        (b"A" + bytes(4), None), (b"F" + bytes(4), None),
    ],
    ids=lambda raw: raw[:1].decode() if isinstance(raw, bytes) else str(raw),
)  # fmt: skip
def test_the_stamp_of_each_client(read: Any, raw: bytes, wanted: int | None) -> None:
    """Integers of every width are plain times, also pika's own kind of them; nothing else is a time."""
    found = append_time({APPEND_HEADER: read(raw)})
    assert (found, type(found)) == (wanted, type(wanted))
