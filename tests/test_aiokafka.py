"""``mqauth.brokers.aiokafka``: what it takes and refuses, on aiokafka's own classes without a broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.consumer.fetcher import (
    Fetcher,
    FetchResult,
    OffsetResetStrategy,
    PartitionRecords,
)
from aiokafka.errors import (
    CommitFailedError,
    GroupLoadInProgressError,
    IllegalStateError,
    KafkaConnectionError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)
from aiokafka.protocol.commit import OffsetFetchRequest
from aiokafka.protocol.transaction import TxnOffsetCommitRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c
from aiokafka.structs import OffsetAndMetadata

from mqauth import ConfigurationError, Pipeline, Verified
from mqauth.brokers import aiokafka
from mqauth.brokers.aiokafka import client as aiokafka_client
from mqauth.brokers.aiokafka import consumer as offsets
from mqauth.brokers.aiokafka import membership
from mqauth.brokers.aiokafka.client import lacking
from mqauth.brokers.aiokafka.consumer import Poller
from mqauth.brokers.aiokafka.membership import Membership
from mqauth.brokers.log import event_loop
from mqauth.brokers.log.event_loop import breathing
from mqauth.brokers.log.offsets import step_over
from mqauth.delivery.assignment import Assignment
from mqauth.delivery.log_work import LogWork
from mqauth.delivery.partition import Partition
from mqauth.delivery.start import Committed, Start
from mqauth.flow import arun
from mqauth.testing import FakeClock, Forge
from tests.log_leaves import AioClient as Client
from tests.log_leaves import Sink, forge, guard, letter
from tests.log_leaves import aiokafka_record as record

__all__ = ["forge", "guard"]

SAFE: dict[str, Any] = {
    "group_id": "billing",
    "enable_auto_commit": False,
    "auto_offset_reset": "earliest",
}
PLACE, OTHER = TopicPartition("orders", 0), TopicPartition("orders", 1)
METADATA = "mqauth partitions=2"


@pytest.fixture
async def client() -> Client:
    """A producer's client."""
    return Client()


def started(*topics: str, **settings: Any) -> Any:
    """Return a client as if it were started."""
    client: Any = AIOKafkaConsumer(*topics, **(SAFE | settings))
    client._closed = True
    client._coordinator = SimpleNamespace(generation=3)
    client._fetcher = SimpleNamespace(
        seek_to=client._subscription.seek,
        _default_reset_strategy=OffsetResetStrategy.EARLIEST,
    )
    client._client = SimpleNamespace(get_random_node=lambda: 0, send=answering("cluster"))
    return client


def answering(cluster: str) -> Any:
    """Return a client's ``send`` that tells the cluster's id."""

    async def send(_node: int, _request: Any) -> Any:
        return SimpleNamespace(cluster_id=cluster)

    return send


# What is taken


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"enable_auto_commit": True}, "enable_auto_commit=False"), ({"group_id": None}, "group_id"),
        ({"value_deserializer": bytes.decode}, "value_deserializer"), ({"key_deserializer": bytes}, "key_des"),
    ],
    ids=["commits", "no group", "value", "key"],
)  # fmt: skip
async def test_consumers_refused(
    settings: dict[str, Any], said: str, guard: Pipeline
) -> None:
    """A client that commits by itself, deserializes before verification, or has no group is refused."""
    with pytest.raises(ConfigurationError, match=said):
        aiokafka.Consumer(
            started("orders", **settings), guard, print, dead_letters=Sink()
        )


async def test_not_subscribed_refused(guard: Pipeline) -> None:
    """A client that is not subscribed, or not started, is refused."""
    unstarted: Any = started("orders")
    unstarted._coordinator = None
    for wrong in (started(), unstarted):
        with pytest.raises(
            ConfigurationError,
            match="subscribe the AIOKafkaConsumer to a topic and start it",
        ):
            aiokafka.Consumer(wrong, guard, print, dead_letters=Sink())


async def test_a_client_that_cannot_be_left_hides_no_error(
    guard: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ended a consumer is raised in the end, also where its client was closed by somebody and fails."""
    consumer = aiokafka.Consumer(started("orders"), guard, print, dead_letters=Sink())
    monkeypatch.setattr(
        consumer.calls, "close", mock.Mock(side_effect=RuntimeError("closed"))
    )
    consumer.fail(LookupError("first"))
    await consumer.stop()
    with pytest.raises(LookupError, match="first") as raised:
        await consumer.__aexit__(None, None, None)
    assert raised.value.__notes__ == ["and later: RuntimeError"]
    assert not consumer.health().consuming


# The producer


async def test_batch_in_order(client: Client, forge: Forge) -> None:
    """Records reach the client in the order of the calls: the first alone, the others once a batch is full."""
    producer = aiokafka.Producer(client, forge.signer(), batch=4, linger=10)
    client.deaf = True
    for number in range(6):
        await producer.send("orders", b"%d" % number)
    assert [sent["value"] for sent in client.sent] == [b"0", b"1", b"2", b"3", b"4"]
    await producer.flush()
    assert [sent["value"] for sent in client.sent] == [
        b"%d" % number for number in range(6)
    ]


async def test_batches_in_order(
    client: Client, forge: Forge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the client has no room for a batch, the next one waits behind it."""
    producer = aiokafka.Producer(client, forge.signer(), batch=2, linger=10)
    client.deaf = True
    await producer.send("orders", b"0")
    room, send = asyncio.Event(), client.send

    async def slow(topic: Any, value: Any = None, key: Any = None, **record: Any) -> Any:
        if value == b"1":
            await room.wait()
        return await send(topic, value, key, **record)

    monkeypatch.setattr(client, "send", slow)
    tasks = [
        asyncio.create_task(producer.send("orders", b"%d" % number))
        for number in range(1, 5)
    ]
    for _ in range(5):
        await asyncio.sleep(0)
    room.set()
    await asyncio.gather(*tasks)
    assert [sent["value"] for sent in client.sent] == [
        b"%d" % number for number in range(5)
    ]


async def test_one_alone_that_is_cancelled(
    client: Client, forge: Forge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record alone that is cancelled on its way to the client is in flight no more: the next is alone again."""
    producer = aiokafka.Producer(client, forge.signer())
    send, reached = client.send, asyncio.Event()

    async def hang(*_: Any, **__: Any) -> Any:
        reached.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(client, "send", hang)
    task = asyncio.create_task(producer.send("orders", b"0"))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)
    assert producer._sealing._in_flight == set()
    monkeypatch.setattr(client, "send", send)
    await (await producer.send("orders", b"1"))
    assert [sent["value"] for sent in client.sent] == [b"1"]
    assert b"~" not in client.sent[0]["headers"][-1][1]


async def test_lingers(client: Client, forge: Forge) -> None:
    """A batch that does not fill is sent after ``linger``."""
    producer = aiokafka.Producer(client, forge.signer(), batch=4, linger=0)
    client.deaf = True
    await producer.send("orders", b"0")
    await producer.send("orders", b"1")
    await asyncio.sleep(0)
    await producer._sealing.flush()
    assert [sent["value"] for sent in client.sent] == [b"0", b"1"]


async def test_unknown_topic_alone(client: Client, forge: Forge) -> None:
    """A topic that does not exist is its sender's affair: no batch waits for it."""
    producer = aiokafka.Producer(client, forge.signer(), batch=4, linger=10)
    with pytest.raises(UnknownTopicOrPartitionError):
        await producer.send("unknown", b"0")
    await producer.send("orders", b"1")
    assert [sent["value"] for sent in client.sent] == [b"1"]


async def test_sender_cancelled(client: Client, forge: Forge) -> None:
    """A sender that is cancelled while its batch is sent takes nobody's record with it."""
    producer = aiokafka.Producer(client, forge.signer(), batch=2, linger=10)
    client.deaf = True
    await producer.send("orders", b"0")
    waiting = await producer.send("orders", b"1")
    task = asyncio.create_task(producer.send("orders", b"2"))
    await asyncio.sleep(0)
    task.cancel()
    await producer.flush()
    assert [sent["value"] for sent in client.sent] == [b"0", b"1", b"2"]
    client.open[1].set_result("metadata")
    assert await waiting == "metadata"


# Transactional letters


async def test_transaction_unanswered() -> None:
    """A call that is not answered in time ends the attempt, and not the thread."""
    client = Client(transactional_id="a")
    sink = aiokafka.TransactionalDeadLetters(lambda: client, "dead", 0.01)  # type: ignore[arg-type, return-value]
    client.deaf = True
    content: Any = ([letter()], {PLACE: 4}, "billing")
    with pytest.raises(TimeoutError):
        await asyncio.to_thread(sink.write, *content)


def test_repairs_are_needed() -> None:
    """aiokafka still names no member in a transaction, and asks for no final offsets: else drop ``membership``."""
    assert max(each.API_VERSION for each in TxnOffsetCommitRequest._CLASSES) < 3
    assert max(each.API_VERSION for each in OffsetFetchRequest._CLASSES) < 7


@pytest.mark.parametrize(
    ("code", "error"), [(0, None), (22, CommitFailedError), (25, CommitFailedError)]
)
async def test_former_member(code: int, error: Any) -> None:
    """Offsets go with the member's generation; where the broker does not know it the transaction fails."""
    producer: Any = Client(transactional_id="a")
    state, asked = producer._txn_manager, []
    membership.fence(producer)

    async def send(_node: int, request: Any, **_: Any) -> Any:
        asked.append(request.prepare({28: (0, 3)}))
        answer = membership.TxnOffsetCommitResponse(
            0, [("orders", [(0, code, {})], {})], {}
        )
        return membership.TxnOffsetCommitResponse.decode(answer.encode())

    async def coordinator(_kind: Any, group: str) -> int:
        assert group == "billing"
        return 1

    producer._sender._find_coordinator, producer._sender.client = (
        coordinator,
        SimpleNamespace(send=send),
    )
    state.set_pid_and_epoch(7, 1)
    state.begin_transaction()
    offset = SimpleNamespace(offset=4, metadata="")
    future = state.add_offsets_to_txn({PLACE: offset}, Membership("billing", 3, "me"))
    await producer._sender._do_txn_offset_commit(
        {PLACE: offset}, Membership("billing", 3, "me")
    )
    (request,) = asked
    assert request.encode() == bytes.fromhex(
        "02610862696c6c696e67 0000000000000007 0001 00000003 036d65 00"
        "02 076f7264657273 02 00000000 0000000000000004 ffffffff 01 00 00 00"
    )
    assert (type(future.exception()) if error else future.result()) == error


async def test_final_offsets() -> None:
    """An offset of which a transaction is open is asked for again; other requests pass as they are."""
    client = started("orders")
    asked: list[Any] = []

    async def theirs(request: Any) -> Any:
        asked.append(request)
        found = [("orders", [(0, 4, -1, "", 0, {}), (1, -1, -1, "", 88, {})], {})]
        answer = membership.OffsetFetchResponse(0, found, 0, {})
        return membership.OffsetFetchResponse.decode(answer.encode())

    client._coordinator._send_req = theirs
    membership.require_stable(client)
    found = await client._coordinator._send_req(
        OffsetFetchRequest("billing", [("orders", [0, 1])])
    )
    assert found.topics == [
        ("orders", [(0, 4, "", 0), (1, -1, "", GroupLoadInProgressError.errno)])
    ]
    assert GroupLoadInProgressError.retriable
    sent = asked.pop().prepare({9: (0, 7)}).encode()
    assert sent == bytes.fromhex(
        "0862696c6c696e67 02 076f7264657273 03 00000000 00000001 00 01 00"
    )
    other = object()
    await client._coordinator._send_req(other)
    assert asked == [other]


# The poller


class Desk:
    """A poller on a client with two partitions, whose records are the test's.

    Attributes:
        found: what ``getmany`` returns next, or raises.
        asked: the partitions that it was asked for.
        happened: what the poller had others do.
    """

    def __init__(self, guard: Pipeline, *, skip: bool = False) -> None:
        self.client = started("orders")
        self.found: list[Any] = []
        self.asked: list[Any] = []
        self.happened: list[Any] = []
        self.asking = asyncio.Event()
        self.client.getmany = self.getmany
        self.clock = FakeClock()
        self.assignment = Assignment(self.clock)
        work = LogWork(guard, self.assignment, print, lambda _: Sink())
        policy = partial(
            step_over, work=work, guard=guard, scope="billing", skip=skip, lacking=lacking
        )
        self.poller = Poller(self.client, self.assignment, policy)
        self.poller.listen(
            self.settle, lambda error: self.happened.append(type(error).__name__)
        )
        self.assign({PLACE, OTHER})
        self.assignment.begin(
            dict.fromkeys((PLACE, OTHER), Start(0, Committed(0, METADATA), seek=False)),
            (),
        )

    @property
    def listener(self) -> Any:
        return self.client._subscription.listener

    def part(self, place: Any) -> Partition:
        """Return a partition, which must have been begun."""
        partition = self.assignment.partition(place)
        assert partition is not None
        return partition

    def assign(self, places: set[Any]) -> None:
        """Have the client take partitions, with their positions forgotten."""
        self.client._subscription.assign_from_subscribed(places)

    async def settle(self) -> None:
        self.happened.append("settled")

    async def getmany(self, *places: Any, timeout_ms: int = 0) -> Any:
        self.asked.append(set(places))
        self.asking.set()
        found = self.found.pop(0) if self.found else None
        if isinstance(found, Exception):
            raise found
        if found is None:
            await asyncio.sleep(timeout_ms / 1000)
        return found or {}

    async def rebalance(self, generation: int, places: set[Any]) -> None:
        """Have the group rebalanced."""
        await self.listener.on_partitions_revoked({PLACE, OTHER})
        self.client._coordinator.generation = generation
        self.assign(places)
        await self.listener.on_partitions_assigned(places)

    def position(self, place: Any) -> int | None:
        """Return what is read next; ``None`` where it is yet to be found out."""
        state = self.client._subscription.subscription.assignment.state_value(place)
        return state.position if state.has_valid_position else None  # type: ignore[no-any-return]


@pytest.fixture
async def desk(guard: Pipeline) -> Desk:
    """A desk."""
    return Desk(guard)


async def test_paused_not_asked_for(desk: Desk) -> None:
    """A paused partition is not asked for: aiokafka would drop what it has fetched of it."""
    desk.client.pause(PLACE)
    await desk.poller.fetch(0, False)
    desk.client.pause(OTHER)
    await desk.poller.fetch(0, False)
    assert desk.asked == [{OTHER}, {TopicPartition("", -1)}]


async def test_wake_ends_a_poll(desk: Desk) -> None:
    """A poll that waits ends as soon as something else is to be done; waking twice, or nobody, is nothing."""
    desk.poller.wake()
    task = asyncio.create_task(desk.poller.fetch(60, False))
    await desk.asking.wait()
    desk.poller.wake()
    desk.poller.wake()
    assert await task == {}


async def test_unknown_cluster(desk: Desk) -> None:
    """Nothing is polled before the cluster's id is known: it is a part of each record's place."""
    desk.client._client.send, known = (
        failing(KafkaConnectionError()),
        desk.client._client.send,
    )
    desk.found = [{PLACE: [record()]}]
    assert (await desk.poller.fetch(0, False), desk.asked) == ({}, [])
    desk.client._client.send = known
    (message,) = (await desk.poller.fetch(0, False))[PLACE]
    assert message.origin.cluster == "cluster"


def failing(error: Exception) -> Any:
    """Return an asynchronous function that raises."""

    async def fail(*_args: Any, **_settings: Any) -> Any:
        raise error

    return fail


async def test_poll_fails(desk: Desk) -> None:
    """What comes again is tried again; what the broker refuses for good ends the consumer."""
    desk.found = [KafkaConnectionError(), TopicAuthorizationFailedError("orders")]
    assert await desk.poller.fetch(0, False) == {}
    with pytest.raises(TopicAuthorizationFailedError):
        await desk.poller.fetch(0, False)


@pytest.mark.parametrize(
    ("error", "said"),
    [(None, None), (CommitFailedError(), "CommitFailedError"), (IllegalStateError("gone"), "IllegalStateError"),
     (KafkaConnectionError(), "KafkaConnectionError")],
    ids=str,
)  # fmt: skip
async def test_commit(error: Any, said: str | None, desk: Desk) -> None:
    """A commit that may succeed later is named; what is not ours any more is such a one."""
    desk.client.commit = failing(error) if error else lambda _: asyncio.sleep(0)
    assert await desk.poller.send_commit({PLACE: Committed(3, METADATA)}) == said


async def test_commit_refused(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit without rights ends the consumer; one that is not answered ends in time."""
    desk.client.commit = failing(TopicAuthorizationFailedError("orders"))
    with pytest.raises(TopicAuthorizationFailedError):
        await desk.poller.send_commit({PLACE: Committed(3, METADATA)})
    monkeypatch.setattr(offsets, "COMMIT_TIMEOUT", 0.01)
    desk.client.commit = lambda _: asyncio.sleep(60)
    assert (
        await desk.poller.send_commit({PLACE: Committed(3, METADATA)}) == "TimeoutError"
    )


@pytest.mark.parametrize(
    ("generation", "position"), [(4, 8), (5, None)], ids=["next", "not the next"]
)
async def test_positions_kept(generation: int, position: int | None, desk: Desk) -> None:
    """A partition that comes back is read on where it was, unless another member may have had it in between."""
    desk.found = [{PLACE: [record()]}]
    for place, messages in (await desk.poller.fetch(0, False)).items():
        desk.assignment.receive(place, messages)
    part = desk.part(PLACE)
    await desk.rebalance(generation, {PLACE})
    assert (desk.happened, desk.position(PLACE)) == (["settled"], position)
    assert (part.alive, part.suspended) == (position is not None, position is None)


async def test_seek_in_a_rebalance(desk: Desk) -> None:
    """A seek to be made while partitions are revoked is made with their assignment."""
    await desk.listener.on_partitions_revoked({PLACE, OTHER})
    desk.part(PLACE).seek = 5
    desk.client._coordinator.generation = 4
    desk.assign({PLACE})
    await desk.listener.on_partitions_assigned({PLACE})
    assert desk.position(PLACE) == 5


async def test_put_out_of_the_group(desk: Desk) -> None:
    """A member that was put out commits nothing, and drops all: its partitions are another's already."""
    desk.assignment.receive(PLACE, [aiokafka.from_native(record(), scope="billing")])
    part = desk.part(PLACE)
    desk.client._coordinator.generation = -1
    await desk.rebalance(9, {PLACE})
    assert (desk.happened, part.alive) == ([], False)


async def test_records_before_the_listener(desk: Desk) -> None:
    """Records of an assignment that we were not told of yet are read again, from where it says."""
    await desk.listener.on_partitions_revoked({PLACE, OTHER})
    desk.found = [{PLACE: [record(offset=7), record(offset=8)]}]
    assert await desk.poller.fetch(0, False) == {}
    assert desk.position(PLACE) == 7


async def test_error_in_the_listener(desk: Desk) -> None:
    """What settling raises ends the consumer, since aiokafka drops it; the rebalance goes on."""
    desk.poller._settle = failing(TopicAuthorizationFailedError("orders"))
    await desk.rebalance(4, {PLACE})
    assert desk.happened == ["TopicAuthorizationFailedError"]
    assert not desk.poller.rebalancing


async def test_client_stopped_in_the_listener(desk: Desk) -> None:
    """A client that is stopped while its listener waits gets its cancellation, and ends nobody by it."""
    waiting = asyncio.Event()

    async def settle() -> None:
        waiting.set()
        await asyncio.Event().wait()

    desk.poller._settle = settle
    desk.client._coordinator.generation = 1
    task = asyncio.create_task(desk.listener.on_partitions_revoked({PLACE}))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert desk.happened == []


class Theirs(ConsumerRebalanceListener):
    """A user's listener, of either colour."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def on_partitions_revoked(self, revoked: Any) -> None:
        self.told.append(("revoked", len(revoked)))

    async def on_partitions_assigned(self, assigned: Any) -> None:
        self.told.append(("assigned", len(assigned)))


async def test_their_listener(guard: Pipeline) -> None:
    """The client's own listener is still called, and is the client's alone again after the end."""
    desk, theirs = Desk(guard), Theirs()
    desk.poller._listener.theirs = theirs
    await desk.rebalance(4, {PLACE})
    assert theirs.told == [("revoked", 2), ("assigned", 1)]
    ours = desk.listener
    desk.poller.close()
    assert desk.listener is theirs
    await ours.on_partitions_revoked({PLACE})
    assert desk.happened == ["settled"]


async def test_membership(desk: Desk) -> None:
    """Letters are committed as the member of this generation; while there is none they wait."""
    desk.client._coordinator.member_id = "me"
    member: Any = desk.poller.membership()
    assert (member, member.generation, member.member) == ("billing", 3, "me")
    desk.client._coordinator.generation = -1
    assert desk.poller.membership() is None


def commits(desk: Desk, found: dict[Any, Any]) -> list[Any]:
    """Have the group's commits be these, its partitions not begun yet; return what is committed from now on."""
    made: list[Any] = []

    async def fetch_committed_offsets(places: list[Any]) -> dict[Any, Any]:
        return {
            place: OffsetAndMetadata(*found[place]) for place in places if place in found
        }

    async def commit(offsets: dict[Any, Any]) -> None:
        made.append(offsets)

    desk.client._coordinator.fetch_committed_offsets = fetch_committed_offsets
    desk.client.commit = commit
    desk.client.partitions_for_topic = lambda _: {0, 1}
    desk.assignment.lost({PLACE, OTHER})
    return made


async def bounds(desk: Desk, first: int, end: int) -> None:
    """Have all partitions begin and end there."""

    async def at(offset: int, places: list[Any]) -> dict[Any, int]:
        return dict.fromkeys(places, offset)

    desk.client.beginning_offsets, desk.client.end_offsets = (
        partial(at, first),
        partial(at, end),
    )


async def test_begins_at_final_offsets(desk: Desk) -> None:
    """Partitions that were assigned before transactions were looked at begin anew at their final offsets."""
    commits(desk, {PLACE: (5, METADATA), OTHER: (6, METADATA)})
    desk.client.seek(PLACE, 3)
    desk.client._coordinator._send_req = None
    desk.poller.require_stable()
    await arun(desk.poller.polling())
    assert (desk.position(PLACE), desk.position(OTHER)) == (5, 6)


@pytest.mark.parametrize(("reset", "offset"), [("latest", 9), ("earliest", 4)])
async def test_a_group_that_begins(desk: Desk, reset: str, offset: int) -> None:
    """A new group begins where its client was told to, and commits that; the client moves nothing by itself."""
    made = commits(desk, {})
    await bounds(desk, 4, 9)
    desk.poller.reset = reset
    await arun(desk.poller.polling())
    assert made == [{place: (offset, METADATA) for place in (PLACE, OTHER)}]
    assert (desk.position(PLACE), desk.client.paused()) == (offset, set())
    assert desk.client._fetcher._default_reset_strategy == OffsetResetStrategy.NONE
    desk.poller.close()
    assert desk.client._fetcher._default_reset_strategy == OffsetResetStrategy.EARLIEST


async def test_a_client_that_has_begun(desk: Desk) -> None:
    """Where the client has begun before it was given to us, that counts."""
    made = commits(desk, {})
    await bounds(desk, 4, 9)
    desk.client.seek(PLACE, 7)
    await arun(desk.poller.polling())
    assert made == [{PLACE: (7, METADATA), OTHER: (4, METADATA)}]


async def test_a_client_that_was_about_to_move(desk: Desk) -> None:
    """A client that found its offset out of range before it was given to us does not go to the end after it."""
    state = desk.client._subscription.subscription.assignment.state_value(PLACE)
    state.await_reset(OffsetResetStrategy.LATEST)
    desk.poller.listen(desk.settle, print)
    assert not state.awaiting_reset


async def test_a_rebalance_while_partitions_begin(desk: Desk) -> None:
    """What was asked before a rebalance is not committed after it: others may have got further."""
    made = commits(desk, {})
    await bounds(desk, 4, 9)
    asked = desk.client.beginning_offsets

    async def slowly(places: list[Any]) -> Any:
        desk.assignment.lost({PLACE, OTHER})
        return await asked(places)

    desk.client.beginning_offsets = slowly
    await arun(desk.poller.polling())
    assert (made, desk.assignment.partition(PLACE)) == ([], None)


@pytest.mark.parametrize(
    "error",
    [OffsetOutOfRangeError({PLACE: 2}), NoOffsetForPartitionError(PLACE)],
    ids=str,
)
async def test_out_of_range(
    desk: Desk, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the next offset is out of range, a partition is read on from the earliest one that is left."""
    await bounds(desk, 4, 9)
    desk.found = [error]
    await arun(desk.poller.polling())
    desk.poller.steer()
    assert (desk.position(PLACE), desk.position(OTHER)) == (4, None)
    assert (
        "offset 0 of orders-0 is out of range, its records are lost; it goes on at 4"
        in caplog.text
    )


async def test_out_of_range_without_reset(desk: Desk) -> None:
    """Whoever sets no reset gets the client's error."""
    desk.poller.reset = "none"
    desk.found = [OffsetOutOfRangeError({PLACE: 2})]
    with pytest.raises(OffsetOutOfRangeError):
        await arun(desk.poller.polling())


@pytest.mark.parametrize(
    ("told", "reset"), [("latest", "latest"), ("earliest", "earliest"), ("other", "none")]
)
async def test_reset(told: str, reset: str) -> None:
    """Where a client begins without an offset is one of three; aiokafka takes any other word for none."""
    assert aiokafka_client.reset_of(SimpleNamespace(_auto_offset_reset=told)) == reset


# Records that cannot be parsed


def batch(first: int, *names: bytes, broken: bool = False) -> bytes:
    """Return a batch of records with a header each, whose checksum is wrong if it is broken."""
    builder: Any = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 10_000)
    for number, name in enumerate(names):
        builder.append(number, 99, b"k", b"body", [(name.decode("latin-1"), b"1")])
    built = bytearray(builder.build())
    built[:8] = first.to_bytes(8, "big")
    if broken:
        built[-2] ^= 0xFF
    return bytes(built)


def fetched(desk: Desk, place: Any, data: bytes, offset: int) -> None:
    """Let the client have fetched a partition's bytes, from an offset on."""
    assignment = desk.client._subscription.subscription.assignment
    assignment.state_value(place).seek(offset)
    records: Any = PartitionRecords(
        place, MemoryRecords(data), [], offset, None, None, True, 0
    )
    desk.client._fetcher._records[place] = FetchResult(
        place, assignment=assignment, partition_records=records, backoff=0
    )


@pytest.fixture
async def rotten(guard: Pipeline, request: pytest.FixtureRequest) -> AsyncIterator[Desk]:
    """A desk on aiokafka's own fetcher, which fetches nothing by itself."""
    desk = Desk(guard, skip=getattr(request, "param", False))
    stub: Any = SimpleNamespace(
        _loop=asyncio.get_running_loop(), _metadata_max_age_ms=1000
    )
    fetcher = Fetcher(stub, desk.client._subscription)
    fetcher._fetch_task.cancel()
    desk.client._fetcher = fetcher
    del desk.client.getmany
    desk.client._closed = False
    desk.client._coordinator.check_errors = lambda: None
    yield desk
    desk.client._closed = True


async def test_poison_loses_nothing(rotten: Desk) -> None:
    """What was read before a batch that cannot be parsed is handed over, of its partition and of others."""
    fetched(rotten, OTHER, batch(20, b"a"), 20)
    fetched(rotten, PLACE, batch(0, b"a", b"b") + batch(2, b"c", broken=True), 0)
    found = await rotten.poller.fetch(0, False)
    assert {place: [each.origin.offset for each in messages] for place, messages in found.items()} == {
        OTHER: [20], PLACE: [0, 1],
    }  # fmt: skip
    assert (rotten.position(PLACE), rotten.position(OTHER)) == (2, 21)
    fetched(rotten, PLACE, batch(2, b"c", broken=True), 2)
    with pytest.raises(
        aiokafka.PoisonRecordError,
        match="orders-0: the batch from offset 2 to 2 cannot be parsed",
    ):
        await rotten.poller.fetch(0, False)


@pytest.mark.parametrize("rotten", [True], indirect=True)
async def test_poison_skipped(rotten: Desk, guard: Pipeline) -> None:
    """With ``on_poison="skip"`` the batch is audited by its range, and read behind."""
    fetched(rotten, PLACE, batch(5, b"a", b"b", broken=True), 5)
    assert await rotten.poller.fetch(0, False) == {}
    audit: Any = guard.audit
    (audited,) = audit.records
    assert (audited.reason, audited.broker["offset"], audited.broker["last_offset"]) == (
        "message_malformed",
        5,
        6,
    )
    rotten.poller.ask(rotten.assignment.client_calls(*rotten.poller.held()))
    assert rotten.position(PLACE) == 7


@pytest.mark.parametrize("rotten", [True], indirect=True)
async def test_a_codec_that_is_missing_here(
    rotten: Desk, guard: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records in a known codec that is not installed here are not skipped; those of an unknown one are."""
    monkeypatch.setattr("aiokafka.codec.has_zstd", lambda: False)
    audit: Any = guard.audit
    for codec, attributes in (("zstd", 4), ("unknown", 7)):
        data = bytearray(batch(5, b"a", b"b"))
        data[22] |= attributes
        data[17:21] = calc_crc32c(bytes(data[21:])).to_bytes(4, "big")
        fetched(rotten, PLACE, bytes(data), 5)
        if codec == "zstd":
            with pytest.raises(
                ConfigurationError, match=r"orders-0: .*offset 5 .*zstd.*cramjam"
            ):
                await rotten.poller.fetch(0, False)
        else:
            assert await rotten.poller.fetch(0, False) == {}
        assert len(audit.records) == (codec == "unknown")


async def test_name_that_is_not_utf8(rotten: Desk) -> None:
    """A header name that is not UTF-8, which anybody may send, cannot be parsed by aiokafka."""
    data = batch(0, b"\xff\xfe").replace(b"\xc3\xbf\xc3\xbe", b"\xff\xfeab")
    records: Any = PartitionRecords(
        PLACE, MemoryRecords(data), [], 0, None, None, False, 0
    )
    fetched(rotten, PLACE, b"", 0)
    rotten.client._fetcher._records[PLACE]._partition_records = records
    with pytest.raises(aiokafka.PoisonRecordError, match="UnicodeDecodeError"):
        await rotten.poller.fetch(0, False)


# The consumer


async def test_breathes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A synchronous handler lets other tasks run now and then, and costs no await in between."""
    monkeypatch.setattr(event_loop, "BREATH", 0.0)
    verified: Any = Verified
    handle: Any = breathing(lambda _: "done")
    ran: list[int] = []
    asyncio.get_running_loop().call_soon(ran.append, 1)
    assert (await handle(verified), ran) == ("done", [1])
    monkeypatch.setattr(event_loop, "BREATH", 60.0)
    assert handle(verified) == "done"


def test_private_parts() -> None:
    """The private attributes of aiokafka that are looked at are looked at in one module."""
    names = {name for name in vars(aiokafka_client) if not name.startswith("_")}
    assert {"generation_of", "listen", "read_before"} <= names
