"""``confluent.AIOConsumer``: what it takes and refuses, and its thread, on clients of our own making."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading
from typing import Any

import confluent_kafka
import pytest
from confluent_kafka.aio import AIOConsumer

from mqauth import ConfigurationError, MemoryReplayStore, Message, Origin, Pipeline, Verdict
from mqauth.brokers import confluent
from mqauth.brokers.confluent.consumer import AIOPoller
from mqauth.brokers.confluent.poller import Poller
from mqauth.brokers.confluent.positions import Place
from mqauth.clock import SYSTEM_CLOCK
from mqauth.delivery.assignment import Assignment
from mqauth.delivery.start import Committed
from mqauth.testing import Forge
from tests.conftest import KAFKA
from tests.log_leaves import Sink, forge, guard
from tests.test_confluent import SAFE, Partition

__all__ = ["forge", "guard"]
WHERE = Place("orders", 0)


def wrapper(client: Any, letters: Any = None, **settings: Any) -> confluent.AIOConsumer:
    """Return a consumer around a client."""
    forge = Forge()
    guard = Pipeline(
        verifier=forge.verifier(), policy=forge.policy(KAFKA), replay=MemoryReplayStore(), audit=Sink(),
    )  # fmt: skip
    letters = letters or Sink()
    wanted = {"config": SAFE, "topics": ["orders"], "dead_letters": letters} | settings
    return confluent.AIOConsumer(client, guard, print, **wanted)


async def test_the_client_holds_a_consumer() -> None:
    """The client's ``Consumer`` is where it is looked for, and its settings are checked."""
    async with AIOConsumer(dict(SAFE)) as client:
        assert isinstance(client._consumer, confluent_kafka.Consumer)
        wrapper(client)
    async with AIOConsumer({"group.id": "billing", "log_level": 0}) as client:
        with pytest.raises(ConfigurationError, match="offset"):
            wrapper(client)


async def test_another_client_is_refused() -> None:
    """A synchronous client is refused by name."""
    client = confluent_kafka.Consumer(SAFE)
    with pytest.raises(ConfigurationError, match="an AIOConsumer is needed, not Consumer"):
        wrapper(client)
    client.close()


@pytest.fixture
def poller() -> AIOPoller:
    """A poller that has its partition."""
    client = Partition()
    found = AIOPoller(client, Assignment(SYSTEM_CLOCK), SAFE, replies=None)
    found.listen(["orders"], lambda: None)
    client.on_assign(client, [confluent_kafka.TopicPartition("orders", 0)])
    return found


async def test_calls_are_made_on_one_thread(poller: AIOPoller, monkeypatch: pytest.MonkeyPatch) -> None:
    """All calls that may wait are made on one thread, which is not the event loop's."""
    threads: list[int] = []

    def called(*_: Any) -> dict[Any, Any]:
        threads.append(threading.get_ident())
        return {}

    for name in ("fetch", "send_commit", "committed", "places", "position", "bounds"):
        monkeypatch.setattr(Poller, name, called)
    poller.given = {WHERE: 7}
    await poller.fetch(0.2, joins=False)
    for work, *arguments in (
        (poller.send_commit, {WHERE: Committed(1, "")}), (poller.committed, [WHERE]), (poller.places, "orders"),
        (poller.position, WHERE), (poller.bounds, [WHERE], False),
    ):  # fmt: skip
        await poller.here(work, *arguments)
    assert len(threads) == 6
    assert len(set(threads)) == 1
    assert threading.get_ident() not in threads
    poller.close()


async def test_a_fetch_beside_handlers_waits_for_one_to_end(
    poller: AIOPoller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While handlers run the next fetch begins once one has ended."""
    fetched = threading.Event()

    def called(*_: Any) -> dict[Any, Any]:
        fetched.set()
        return {}

    monkeypatch.setattr(Poller, "fetch", called)
    monkeypatch.setattr("mqauth.brokers.confluent.consumer.BESIDE", 60)
    running = asyncio.create_task(poller.fetch(0.0, joins=False))
    await asyncio.sleep(0)
    assert not fetched.is_set()
    poller.wake()
    await running
    assert fetched.is_set()
    poller.close()


async def test_what_is_read_after_a_stop_is_sought_back(
    poller: AIOPoller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fetch that is cancelled ends once the call has ended, and ``close`` goes back to what it read."""
    begun, may_end = threading.Event(), threading.Event()
    message = Message(destination=KAFKA, body=b"", origin=Origin(topic="orders", partition=0, offset=7))

    def called(*_: Any) -> dict[Any, Any]:
        begun.set()
        may_end.wait(30)
        return {WHERE: [message]}

    monkeypatch.setattr(Poller, "fetch", called)
    running = asyncio.create_task(poller.fetch(0.2, joins=False))
    await asyncio.to_thread(begun.wait, 30)
    running.cancel()
    await asyncio.sleep(0)
    assert not running.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    poller.close()
    await poller.closed()
    assert ("seek", 0, 7) in poller._client.asked


async def test_nothing_is_called_after_the_end(poller: AIOPoller) -> None:
    """A call after ``close`` is refused: it would never be made."""
    poller.close()
    with pytest.raises(RuntimeError, match="no call can be made any more"):
        await poller.here(poller.send_commit, {WHERE: 1})


async def test_a_transaction_keeps_no_event_loop_waiting(
    poller: AIOPoller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wait for a transaction and a look at committed offsets are made on threads, in a callback at once."""
    threads: list[int] = []
    monkeypatch.setattr(Poller, "committed", lambda *_: threads.append(threading.get_ident()))
    over = threading.Event()
    waiting = asyncio.ensure_future(poller.wait(over, 30))
    await asyncio.sleep(0)
    over.set()
    await waiting
    await poller.here(poller.committed, WHERE)
    assert threads != [threading.get_ident()]
    assert await asyncio.to_thread(poller.here, poller.committed, WHERE) is None
    assert await asyncio.to_thread(poller.wait, over, 30)
    poller.close()
    await poller.closed()


async def test_an_error_is_not_judged(guard: Pipeline) -> None:
    """A record that is an error of the client is refused, and a plain sink of letters is called on a thread."""
    threads = list[int]()

    class Letters(Sink):
        def publish(self, letter: Any, /) -> None:
            threads.append(threading.get_ident())

    failed = confluent_kafka.Message(topic="orders", partition=0, error=confluent_kafka.KafkaError(-191))
    with pytest.raises(ConfigurationError, match="look at error"):
        await confluent.ajudge(guard, failed, scope="billing")
    unsigned = confluent_kafka.Message(topic="orders", partition=0, offset=1, value=b"", timestamp=(1, 1))
    judgement = await confluent.ajudge(guard, unsigned, scope="billing")
    assert (await judgement.dead_letter(Letters())).verdict is Verdict.REJECTED
    assert threads
    assert threads != [threading.get_ident()]


STUCK = """
    import asyncio, threading
    from confluent_kafka import Consumer
    from mqauth.brokers.confluent.consumer import AIOPoller
    from mqauth.brokers.confluent.poller import Poller
    from mqauth.clock import SYSTEM_CLOCK
    from mqauth.delivery.assignment import Assignment

    def stuck(*_):
        begun.set()
        threading.Event().wait()

    async def main():
        Poller.send_commit = stuck
        poller = AIOPoller(Consumer({"group.id": "billing"}), Assignment(SYSTEM_CLOCK), {}, replies=None)
        committing = asyncio.ensure_future(poller.here(poller.send_commit, {}))
        await asyncio.to_thread(begun.wait)
        # The first one waits for the call.
        for _ in range(2):
            committing.cancel()
            await asyncio.sleep(0)
        await asyncio.wait((committing,))

    begun = threading.Event()
    asyncio.run(main())
    print("ended")
"""


def test_a_call_that_never_returns_holds_no_process() -> None:
    """An interpreter ends although a commit of the client never returns, as where others closed the client."""
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(STUCK)], capture_output=True, text=True, timeout=60, check=True
    )
    assert found.stdout == "ended\n"


async def test_a_rebalance_does_not_wait_for_a_loop_that_stands_still() -> None:
    """A revocation goes on after the grace time where the event loop does not answer: its call has an end."""
    async with AIOConsumer(dict(SAFE)) as client:
        wrapped = wrapper(client, grace=0)
        served = threading.Thread(target=wrapped.calls._settle, daemon=True)
        served.start()
        # It blocks the event loop on purpose.
        served.join(30)
        assert not served.is_alive()
