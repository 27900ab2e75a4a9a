"""The batching producer without a broker: when it seals, and that what concerns one message concerns no other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import aio_pika
import aiormq.abc
import pytest
from aio_pika import exceptions
from hypothesis import example, given
from hypothesis import strategies as st
from pamqp import commands

from mqauth import (
    Cause,
    ConfigurationError,
    MalformedMessage,
    Message,
    Signer,
    Unavailable,
)
from mqauth.brokers import rabbitmq
from mqauth.brokers.rabbitmq.channel import ClosedByOwnerError, is_untouched
from mqauth.brokers.rabbitmq.producer import DirectPath, ExchangePath
from mqauth.brokers.rabbitmq.translate import to_message
from mqauth.brokers.sealing import Sealing
from mqauth.testing import Forge
from tests.conftest import turns
from tests.sealing_calls import Calls, closed

PLACE = "rabbitmq:shop/orders.created"


class Counting(Signer):
    """A signer that remembers how many it sealed at once, and may be out of reach."""

    def __init__(self, forge: Forge) -> None:
        made = forge.signer()
        self.__dict__.update(made.__dict__)
        self.sizes: list[int] = []
        self.down = False

    def seal(self, prepared: Any) -> list[Message]:
        """Seal, and remember."""
        if self.down:
            raise Unavailable(Cause.KEYS_UNAVAILABLE, "down")
        self.sizes.append(len(prepared))
        return super().seal(prepared)


class Alarm:
    """A timer that rings when told."""

    def __init__(self) -> None:
        self.set: list[tuple[float, Callable[[], None]]] = []

    def __call__(self, seconds: float, function: Callable[[], None]) -> None:
        self.set.append((seconds, function))


class Table(Calls):
    """Sealing on a clock and a timer of the test's."""

    def __init__(self, batch: int = 64, linger: float = 0) -> None:
        self.alarm, self.signer = Alarm(), Counting(Forge())
        super().__init__(Sealing(self.signer, batch, linger, closed, timer=self.alarm))

    async def busy(self, count: int) -> None:
        """Leave so many messages unconfirmed."""
        await asyncio.gather(*self.start(*messages(count)))
        self.signer.sizes.clear()
        self.alarm.set.clear()


def messages(count: int, **fields: Any) -> list[Message]:
    """Return messages of one destination."""
    return [
        Message(destination=PLACE, body=b"%d" % number, **fields)
        for number in range(count)
    ]


@pytest.fixture
def table() -> Table:
    """A signer whose calls are counted."""
    return Table()


@pytest.mark.parametrize(
    ("batch", "linger"), [(0, 0.1), (1025, 0.1), (True, 0.1), (2, -1), (2, 11)]
)
def test_refused_settings(batch: int, linger: float) -> None:
    """A batch is 1 to 1,024, linger 0 to 10 seconds."""
    with pytest.raises(ConfigurationError, match="batch is 1 to 1024"):
        Sealing(Forge().signer(), batch, linger, closed)


@pytest.mark.parametrize("kind", [aio_pika.Channel, aio_pika.RobustConnection])
def test_a_channel_is_no_exchange(kind: Any) -> None:
    """Who gives a producer the channel or the connection is told at once what it takes."""
    with pytest.raises(
        ConfigurationError, match=f"takes an exchange of aio-pika, not {kind.__name__}"
    ):
        rabbitmq.Producer(kind.__new__(kind), Forge().signer())


async def test_as_it_comes(table: Table) -> None:
    """Without any setting, what is published before the loop turns shares a token, each destination another."""
    await table.busy(100)
    elsewhere = [
        Message(destination="rabbitmq:shop/refunds", body=b"x") for _ in range(2)
    ]
    tasks = table.start(*messages(3), *elsewhere)
    heads = [
        str((await task).occurrences("mqauth-token")[0]).partition("~")[0]
        for task in tasks
    ]
    assert [heads.index(head) for head in heads] == [0, 0, 0, 3, 3]
    assert table.alarm.set == []


async def test_one_alone_does_not_wait(table: Table) -> None:
    """With nothing unconfirmed a message is sealed at once, in the single form, and no timer is set."""
    (sealed,) = await asyncio.gather(*table.start(*messages(1)))
    assert (table.signer.sizes, table.alarm.set) == ([1], [])
    assert "~" not in str(sealed.occurrences("mqauth-token")[0])


async def test_concurrent_ones_are_sealed_together(table: Table) -> None:
    """What comes in one turn of the loop shares a signature, each its own message back, at most a batch."""
    wanted = messages(100)
    found = await asyncio.gather(*table.start(*wanted))
    assert table.signer.sizes == [64, 36]
    assert [sealed.body for sealed in found] == [message.body for message in wanted]
    assert len({str(sealed.occurrences("mqauth-token")[0]) for sealed in found}) == 100


class Threaded(Signer):
    """A signer whose key may block."""

    blocking = True

    def __init__(self, forge: Forge) -> None:
        self.__dict__.update(forge.signer().__dict__)


@pytest.mark.parametrize(
    "signer", [Forge().signer(), Threaded(Forge())], ids=["local", "threaded"]
)
@given(
    calls=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 2), st.integers(0, 30)), max_size=20),
    batch=st.sampled_from([1, 2, 4, 64]),
    linger=st.integers(0, 9),
)  # fmt: skip
@example(
    calls=[(0, 0, 30), (0, 0, 30), (1, 0, 0), (2, 0, 0), (3, 0, 0)], batch=4, linger=9
)
def test_all_go_in_the_order_of_their_calls(
    signer: Signer, calls: list[tuple[int, int, int]], batch: int, linger: int
) -> None:
    """Messages leave in the order of their calls, whatever their destinations, and whichever was sealed first."""
    called: list[int] = []
    sent: list[int] = []
    lingering: set[asyncio.Task[None]] = set()

    async def ring_later(ring: Callable[[], None]) -> None:
        await turns(linger)
        ring()

    def timer(_seconds: float, ring: Callable[[], None]) -> None:
        lingering.add(asyncio.create_task(ring_later(ring)))

    async def publish() -> None:
        sealing = Sealing(signer, batch, linger, closed, timer=timer)

        async def one(number: int, begins: int, place: int, confirmed: int) -> None:
            async def send(_sealed: Message) -> None:
                sent.append(number)
                await turns(confirmed)

            await turns(begins)
            called.append(number)
            message = Message(destination=f"rabbitmq:shop/{place}", body=b"x")
            await sealing.publish(message, send)

        await asyncio.gather(*[one(number, *call) for number, call in enumerate(calls)])

    asyncio.run(publish())
    assert sent == called


async def test_nobody_overtakes_who_waits_for_the_channel() -> None:
    """Messages that come as a channel has just opened leave behind those that waited for it."""
    opened = asyncio.Event()
    sent: list[bytes | None] = []

    async def send(sealed: Message) -> None:
        sent.append(sealed.body)

    sealing = Sealing(Forge().signer(), 1, 0, closed, ready=opened.wait)
    early = [asyncio.create_task(sealing.publish(each, send)) for each in messages(4)]
    await turns()
    late = [asyncio.create_task(sealing.publish(each, send)) for each in messages(8)[4:]]
    opened.set()
    await asyncio.gather(*early, *late)
    assert sent == [b"%d" % number for number in range(8)]


async def test_held_while_many_are_unconfirmed() -> None:
    """While many are unconfirmed a message waits for others, for linger and not longer, timed from the first."""
    table = Table(linger=0.002)
    await table.busy(50)
    early = table.start(*messages(2))
    await turns()
    later = table.start(*messages(3))
    await turns()
    assert (table.signer.sizes, [seconds for seconds, _ in table.alarm.set]) == (
        [],
        [0.002],
    )
    table.alarm.set[0][1]()
    await asyncio.gather(*early, *later)
    assert table.signer.sizes == [5]


async def test_a_late_timer_is_of_no_batch() -> None:
    """A timer that rings after its batch was sealed does not cut the next one short."""
    table = Table(batch=4, linger=0.002)
    await table.busy(52)
    full = table.start(*messages(4))
    await asyncio.gather(*full)
    waiting = table.start(*messages(1))
    await turns()
    table.alarm.set[0][1]()
    await turns()
    assert (table.signer.sizes, waiting[0].done()) == ([4], False)
    table.alarm.set[1][1]()
    await waiting[0]


async def test_confirms_clock_the_seals() -> None:
    """Confirms that come back have those sealed that wait, without a timer."""
    table = Table(linger=0.002)
    await table.busy(6)
    waiting = table.start(*messages(3))
    await turns()
    for _ in range(3):
        assert table.signer.sizes == []
        table.confirms.put_nowait(None)
        await turns()
    await asyncio.gather(*waiting)
    assert (table.signer.sizes, len(table.sealing.calls)) == ([3], 6)


async def test_what_cannot_be_signed_concerns_its_own_caller(table: Table) -> None:
    """A message with a token already, or in no form, raises to its own caller; the others are sealed."""
    good = messages(3)
    bad = [
        messages(1, headers=(("mqauth-token", "x"),))[0],
        Message(destination="nowhere", body=b""),
    ]
    found = await asyncio.gather(
        *table.start(good[0], bad[0], good[1], bad[1], good[2]), return_exceptions=True
    )
    assert [type(one) for one in found] == [
        Message,
        MalformedMessage,
        Message,
        MalformedMessage,
        Message,
    ]
    assert table.signer.sizes == [3]


async def test_a_group_too_large_concerns_no_other(table: Table) -> None:
    """Where a token is over its size only the messages that make it so are refused."""
    many = tuple((f"{number:03}" + "n" * 120, "v") for number in range(60))
    wanted = [*messages(2), *messages(2, headers=many)]
    found = await asyncio.gather(*table.start(*wanted), return_exceptions=True)
    assert [type(one) for one in found] == [
        Message,
        Message,
        MalformedMessage,
        MalformedMessage,
    ]
    assert len(table.sealing.calls) == 2


async def test_no_key_raises_to_all_that_wait(table: Table) -> None:
    """While nothing can sign each caller is told, and the next seal works once it can."""
    table.signer.down = True
    found = await asyncio.gather(*table.start(*messages(3)), return_exceptions=True)
    assert [type(one) for one in found] == [Unavailable] * 3
    table.signer.down = False
    await asyncio.gather(*table.start(*messages(3)))
    assert len(table.sealing.calls) == 3


async def test_cancelling_one_disturbs_no_other() -> None:
    """One cancelled while it waits is left out; one cancelled as it was sealed counts no longer."""
    table = Table(linger=0.002)
    await table.busy(50)
    waiting = table.start(*messages(3))
    await turns()
    waiting[1].cancel()
    await turns()
    table.sealing.seal_now()
    waiting[2].cancel()
    found = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(one) for one in found] == [
        Message,
        asyncio.CancelledError,
        asyncio.CancelledError,
    ]
    assert (table.signer.sizes, len(table.sealing.calls)) == ([2], 51)


async def test_who_gives_up_is_not_kept() -> None:
    """Calls that are cancelled before they were sealed leave nothing behind."""
    table = Table(linger=0.002)
    await table.busy(50)
    for waiting in table.start(*messages(2)):
        await turns()
        waiting.cancel()
    await turns()
    table.alarm.set[0][1]()
    assert (table.signer.sizes, len(table.sealing.calls)) == ([], 50)
    assert (len(table.sealing._order), len(table.sealing._outcomes)) == (0, 0)


async def test_a_closing_waits_for_the_calls_under_way(table: Table) -> None:
    """What is under way ends first, what comes later is refused, and whoever asks is told of the one end."""
    await table.busy(2)
    ends = [asyncio.create_task(table.sealing.close(60)) for _ in range(2)]
    await turns()
    with pytest.raises(OSError, match="closed"):
        await asyncio.gather(*table.start(*messages(1)))
    ends[0].cancel()
    table.confirms.put_nowait(None)
    await turns()
    assert not ends[1].done()
    table.confirms.put_nowait(None)
    await ends[1]
    await table.sealing.close(60)


class FakeChannel:
    """A channel with confirms."""

    publisher_confirms = True


class FakeExchange:
    """An exchange that answers by the routing key, when it is told to."""

    name = "shop"

    def __init__(self) -> None:
        self.channel = FakeChannel()
        self.published: list[aio_pika.Message] = []
        self.in_flight: list[str] = []
        self.answers = asyncio.Event()

    async def publish(self, message: Any, routing_key: str, **_: Any) -> Any:
        """Answer."""
        assert message.message_id not in self.in_flight, "aiormq would swap the outcomes"
        self.in_flight.append(message.message_id)
        self.published.append(message)
        try:
            await self.answers.wait()
        finally:
            self.in_flight.remove(message.message_id)
        if routing_key == "refused":
            raise exceptions.DeliveryError(None, commands.Basic.Nack())
        if routing_key == "nobody":
            return aiormq.abc.DeliveredMessage(SimpleNamespace(), None, b"", None)  # type: ignore[arg-type]
        return commands.Basic.Ack()


def producer(
    exchange: FakeExchange, signer: Signer | None = None, **settings: Any
) -> rabbitmq.Producer:
    """Return a batching producer on a fake exchange."""
    given: Any = exchange
    return rabbitmq.Producer(
        given, signer or Counting(Forge()), **({"batch": 64} | settings)
    )


def start(*publishing: Coroutine[Any, Any, Any]) -> list[asyncio.Task[Any]]:
    """Publish, each in a task."""
    return [asyncio.create_task(one) for one in publishing]


async def test_each_publish_has_its_own_outcome() -> None:
    """Acked, refused, returned: each publish of a batch resolves or raises by its own confirm."""
    exchange = FakeExchange()
    exchange.answers.set()
    sender = producer(exchange)
    keys = ("taken", "refused", "taken", "nobody")
    results = await asyncio.gather(
        *(sender.publish(aio_pika.Message(b"x"), key) for key in keys),
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [
        commands.Basic.Ack, exceptions.DeliveryError, commands.Basic.Ack, rabbitmq.UnroutableError,
    ]  # fmt: skip


async def test_one_id_twice_takes_turns_in_a_batch_too() -> None:
    """Publishes under one message id are never in flight together, and all come to their end."""
    exchange = FakeExchange()
    exchange.answers.set()
    sender = producer(exchange)
    await asyncio.gather(
        *(
            sender.publish(aio_pika.Message(b"x", message_id="same"), "taken")
            for _ in range(5)
        )
    )
    assert len(exchange.published) == 5


async def test_a_message_is_taken_as_it_was() -> None:
    """What the caller changes after calling publish is neither signed nor sent."""
    exchange = FakeExchange()
    exchange.answers.set()
    message = aio_pika.Message(b"before", headers={"a": "before"}, content_type="before")
    (publishing,) = start(producer(exchange).publish(message, "taken"))
    await asyncio.sleep(0)
    message.body, message.content_type = b"after", "after"
    message.headers["a"] = "after"
    await publishing
    (sent,) = exchange.published
    assert (sent.body, sent.headers["a"], sent.content_type) == (
        b"before",
        "before",
        "before",
    )
    assert message.message_id is None


async def test_close_seals_what_waits() -> None:
    """close() seals what is held, waits for the outcomes, and refuses what comes after."""
    exchange = FakeExchange()
    signer = Counting(Forge())
    sender = producer(exchange, signer, linger=10)
    first = start(*(sender.publish(aio_pika.Message(b"x"), "taken") for _ in range(8)))
    await turns()
    held = start(*(sender.publish(aio_pika.Message(b"x"), "taken") for _ in range(3)))
    await turns()
    assert signer.sizes == [8]
    closing = asyncio.create_task(sender.close())
    await turns()
    assert (signer.sizes, closing.done()) == ([8, 3], False)
    exchange.answers.set()
    await closing
    assert all(task.done() for task in (*first, *held))
    with pytest.raises(ClosedByOwnerError):
        await sender.publish(aio_pika.Message(b"x"), "taken")
    await sender.close()


async def test_a_timeout_ends_its_own_publish_only() -> None:
    """A publish that times out while it is held is not sent; the others of its batch are."""
    exchange = FakeExchange()
    exchange.answers.set()
    sender = producer(exchange)
    late, fine = start(
        sender.publish(aio_pika.Message(b"late"), "taken", timeout=0),
        sender.publish(aio_pika.Message(b"x"), "taken"),
    )
    with pytest.raises(TimeoutError):
        await late
    await fine
    assert [message.body for message in exchange.published] == [b"x"]


def real_exchange(kind: type[aio_pika.Exchange] = aio_pika.Exchange) -> Any:
    """Return an exchange of aio-pika's on no channel."""
    return kind(SimpleNamespace(), "shop")  # type: ignore[arg-type]


def test_instrumented_exchanges_are_not_gone_past(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """aio-pika's own publish is gone past; a subclass's, or one that was replaced, sees each message."""

    class Own(aio_pika.Exchange):
        async def publish(self, *args: Any, **kwargs: Any) -> Any:
            """See a message."""

    own = real_exchange()
    assert is_untouched(own, "publish")
    assert not is_untouched(real_exchange(Own), "publish")
    traced = real_exchange()
    traced.publish = print
    assert not is_untouched(traced, "publish")
    monkeypatch.setattr(aio_pika.Exchange, "publish", lambda *_args, **_kwargs: None)
    assert not is_untouched(own, "publish")


def test_both_ways_send_the_same_bytes() -> None:
    """Direct or through the exchange: the properties of a sealed message are the same bytes."""
    native = aio_pika.Message(
        b"x", headers={"a": [1, {"b": 2.5}], "c": None}, content_type="text/plain", priority=3, expiration=60,
        timestamp=1_700_000_000, delivery_mode=2, user_id="guest", reply_to="r", type="t",
    )  # fmt: skip
    wire = to_message(native, exchange="shop", routing_key="k", message_id="m" * 32)
    sealed = Forge().signer().sign(wire)
    direct, through = DirectPath(real_exchange()), ExchangePath(real_exchange())
    raw = direct.ready(direct.take(native), sealed)
    copied = through.ready(through.take(native), sealed)
    assert (raw.marshal(), raw.body) == (copied.properties.marshal(), copied.body)


@pytest.mark.parametrize("way", [DirectPath, ExchangePath])
def test_what_cannot_be_sent_is_refused_either_way(way: Any) -> None:
    """A header frame over its size, or a property pamqp cannot encode, is refused before anything is sent."""
    chosen = way(real_exchange())
    sealed = Message(destination=PLACE, body=b"", properties={"message-id": "m"})
    large = aio_pika.Message(b"", headers={"x": "a" * 131_000})
    with pytest.raises(MalformedMessage, match="131064"):
        chosen.ready(chosen.take(large), replace(sealed, headers=(("x", "a" * 131_064),)))
    odd = aio_pika.Message(b"", priority=3)
    odd.priority = 300
    with pytest.raises(MalformedMessage, match="cannot send"):
        chosen.ready(chosen.take(odd), sealed)
