"""Event loops and signers that may block: sealed on a thread, in their order, while the loop goes on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mqauth import (
    Cause,
    ConfigurationError,
    MalformedMessage,
    Message,
    Signer,
    Unavailable,
)
from mqauth.brokers import aiokafka
from mqauth.brokers.event_loop import signed
from mqauth.brokers.sealing import Sealing
from mqauth.keystore import ActiveKey, Keystore
from mqauth.keystore.disk import ring
from mqauth.testing.clock import FakeClock
from mqauth.testing.forge import AUDIENCE, ISSUER, SUBJECT, Forge
from mqauth.testing.signing_contract import RotationContract, SigningContract, accepted
from mqauth.wire.envelope import token_of
from mqauth.wire.jws import LocalSigningKey
from mqauth.wire.keys import ALGORITHMS, Key, SigningKey
from tests.log_leaves import AioClient as Client
from tests.sealing_calls import Calls, closed

PLACE = "rabbitmq:/orders"
FORGE = Forge()


class Slow(LocalSigningKey):
    """A key that waits for the test before it signs, and notes in which threads it did."""

    blocking = True

    def __init__(self) -> None:
        super().__init__(FORGE.key)
        self.threads: list[threading.Thread] = []
        self.may = threading.Semaphore(0)
        self.error: Exception | None = None

    def sign(self, data: bytes, /) -> bytes:
        assert self.may.acquire(timeout=30)
        self.threads.append(threading.current_thread())
        if self.error is not None:
            raise self.error
        return super().sign(data)


@pytest.fixture
def key() -> Iterator[Slow]:
    found = Slow()
    yield found
    found.may.release(1000)


@pytest.fixture
def signer(key: Slow) -> Signer:
    return Signer(key=key, issuer=ISSUER, subject=SUBJECT, audience=AUDIENCE)


def messages(count: int, **more: Any) -> list[Message]:
    return [
        Message(destination=PLACE, body=b"%d" % number, **more) for number in range(count)
    ]


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until a condition holds; the test's time limit is the loop's."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - what is waited for sets no event
            await asyncio.sleep(0)


async def test_the_loop_goes_on(key: Slow, signer: Signer) -> None:
    """While a key is waited for the event loop turns, and the signature is made on another thread."""
    task = asyncio.create_task(signed(signer, signer.sign, *messages(1)))
    turns = 0
    while turns < 100:
        await asyncio.sleep(0)
        turns += 1
    assert not task.done()
    key.may.release()
    assert accepted(await task, FORGE.key) == FORGE.key.kid
    assert threading.current_thread() not in key.threads


async def test_a_local_key_signs_at_once() -> None:
    """A key that does not block signs on the loop's own thread, before anything else runs."""
    threads: list[threading.Thread] = []

    def sign() -> None:
        threads.append(threading.current_thread())

    await signed(FORGE.signer(), sign)
    assert threads == [threading.current_thread()]


async def test_order_is_kept(key: Slow, signer: Signer) -> None:
    """Messages that are signed at the same time come out in the order in which they came."""
    done: list[bytes | None] = []

    async def one(message: Message) -> None:
        done.append((await signed(signer, signer.sign, message)).body)

    tasks = [asyncio.create_task(one(message)) for message in messages(20)]
    await asyncio.sleep(0)
    key.may.release(20)
    await asyncio.gather(*tasks)
    assert done == [b"%d" % number for number in range(20)]
    assert len(set(key.threads)) == 1


async def test_single_messages(key: Slow, signer: Signer) -> None:
    """Sealing without batches waits for the key, and sends then."""
    sent: list[Message] = []

    async def send(message: Message) -> int:
        sent.append(message)
        return 7

    task = asyncio.create_task(
        Sealing(signer, 1, 0, closed).publish(messages(1)[0], send)
    )
    await asyncio.sleep(0)
    assert not sent
    key.may.release()
    assert await task == 7
    assert accepted(sent[0], FORGE.key)


def table_of(signer: Signer) -> Calls:
    """Return calls that seal batches of four."""
    return Calls(Sealing(signer, 4, 0, closed))


async def test_a_batch_is_one_signature(key: Slow, signer: Signer) -> None:
    """A batch is sealed under one signature on the thread, and its calls run until they are confirmed."""
    table = table_of(signer)
    tasks = table.start(*messages(4))
    await until(lambda: len(table.sealing.calls) == 4)
    key.may.release()
    sealed = await asyncio.gather(*tasks)
    assert [message.body for message in sealed] == [b"0", b"1", b"2", b"3"]
    assert (len(key.threads), len(table.sealing.calls)) == (1, 4)
    assert len({token_of(message).split(b"~")[0] for message in sealed}) == 1


async def test_while_a_key_signs_others_gather(key: Slow, signer: Signer) -> None:
    """What is published while the key is waited for shares its next signature, whenever each of them came."""
    table = table_of(signer)
    first = table.start(*messages(1))
    await until(lambda: len(table.sealing.calls) == 1)
    tasks = []
    for message in messages(3):
        tasks += table.start(message)
        for _ in range(3):
            await asyncio.sleep(0)
    key.may.release(2)
    await asyncio.gather(*first, *tasks)
    assert len(key.threads) == 2


async def test_a_caller_that_is_cancelled_meanwhile(key: Slow, signer: Signer) -> None:
    """Who is cancelled while the key is waited for costs the others nothing, and runs no more."""
    table = table_of(signer)
    tasks = table.start(*messages(4))
    await until(lambda: len(table.sealing.calls) == 4)
    tasks[1].cancel()
    key.may.release()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(one) for one in found] == [
        Message,
        asyncio.CancelledError,
        Message,
        Message,
    ]
    assert len(table.sealing.calls) == 3


@pytest.mark.parametrize(
    "error",
    [
        Unavailable(Cause.KEYS_UNAVAILABLE, "token 'prod': gone"),
        ConfigurationError("wrong PIN"),
    ],
)
async def test_everybody_hears_of_a_failure(
    key: Slow, signer: Signer, error: Exception
) -> None:
    """Each caller of a batch is told why the key does not sign; none of the calls runs on."""
    table = table_of(signer)
    tasks = table.start(*messages(4))
    key.error = error
    key.may.release()
    assert await asyncio.gather(*tasks, return_exceptions=True) == [error] * 4
    assert len(table.sealing.calls) == 0


async def test_a_token_that_is_too_large(key: Slow, signer: Signer) -> None:
    """Where the token of a batch would be too large, each message is sealed by itself."""
    headers = tuple((f"header-{'x' * 200}-{number}", "v") for number in range(60))
    table = table_of(signer)
    tasks = table.start(*messages(4, headers=headers))
    key.may.release(8)
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(one) for one in found] == [MalformedMessage] * 4
    assert len(table.sealing.calls) == 0


async def test_a_source_that_has_no_key(
    signer: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody can say whether the key blocks, each caller is told so."""

    def none() -> Any:
        raise Unavailable(Cause.KEYS_UNAVAILABLE, "no key")

    monkeypatch.setattr(signer, "_key_now", none)
    monkeypatch.setattr(signer, "_blocks", False)
    table = table_of(signer)
    found = await asyncio.gather(*table.start(*messages(4)), return_exceptions=True)
    assert [str(one) for one in found] == ["keys_unavailable: no key"] * 4
    assert len(table.sealing.calls) == 0


def test_each_loop_has_a_thread_of_its_own(key: Slow, signer: Signer) -> None:
    """Two event loops share a signer; each one's signatures are made on its own thread."""
    key.may.release(2)
    for _ in range(2):
        asyncio.run(signed(signer, signer.sign, *messages(1)))
    assert len(set(key.threads)) == 2


@pytest.mark.parametrize("batch", [1, 4])
async def test_a_producer_of_a_log(key: Slow, signer: Signer, batch: int) -> None:
    """Records that an aiokafka producer is given at the same time are sealed on the thread, and sent in order."""
    client = Client()
    producer = aiokafka.Producer(client, signer, batch=batch, linger=0)
    key.may.release(100)
    tasks = [
        asyncio.create_task(producer.send("orders", b"%d" % number))
        for number in range(8)
    ]
    await asyncio.gather(*tasks)
    await producer.flush()
    assert [record["value"] for record in client.sent] == [
        b"%d" % number for number in range(8)
    ]
    assert threading.current_thread() not in key.threads


# The signing contract: a local key of each algorithm, and a folder's active key.


@pytest.fixture(scope="module", params=ALGORITHMS)
def local(request: pytest.FixtureRequest) -> Key:
    return Key.generate(request.param)


class TestLocalKey(SigningContract):
    """A private key in memory, of each algorithm."""

    @pytest.fixture
    def signing_key(self, local: Key) -> SigningKey:
        return LocalSigningKey(local)

    @pytest.fixture
    def public(self, local: Key) -> Key:
        return local.public_only


class Rotating:
    """A folder on a fake clock with a key that follows it."""

    def __init__(self, folder: Path) -> None:
        self.clock = FakeClock()
        self.store = Keystore(folder=folder, clock=self.clock)
        self.store.create(publish_delay=10, subjects=[SUBJECT])
        self.active = ActiveKey(folder, clock=self.clock)

    def rotate(self) -> Key:
        made = self.store.create()
        self.clock.advance(10)
        self.store.change(ring.rotate)
        self.clock.advance(10)
        return made.key


@pytest.fixture
def rotating(tmp_path: Path) -> Rotating:
    return Rotating(tmp_path / "keys")


class TestActiveKeyRotates(RotationContract):
    """The active key of a folder."""

    @pytest.fixture
    def source(self, rotating: Rotating) -> ActiveKey:
        return rotating.active

    @pytest.fixture
    def rotate(self, rotating: Rotating) -> Callable[[], Key]:
        return rotating.rotate
