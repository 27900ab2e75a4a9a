"""The replay stores on a real Redis, both colours: the contract, and every way the server can be missed."""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis as client_library
import redis.asyncio
import redis.backoff
import redis.retry
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from integration.keyserver import Authority
from integration.review.tunnel import Tunnel
from integration.scale import nightly
from integration.services import Redis
from mqauth.audit.record import AuditRecord
from mqauth.errors import Cause, Unavailable, Verdict
from mqauth.flow import arun, run
from mqauth.judging.pipeline import Pipeline
from mqauth.replay.rules import ClaimRequest
from mqauth.stores.redis import RedisReplayStore
from mqauth.testing import Forge
from mqauth.testing.clock import START, FakeClock
from mqauth.testing.store_blocking import Blocking
from mqauth.testing.store_contract import (
    DUPLICATE,
    FRESH,
    HELD,
    HERE,
    REPLAYED,
    BatchStoreContract,
    sibling,
    wish,
)
from mqauth.testing.token_attacks import honest_message
from tests.kit.store_machine import machine

STEPS = settings(
    max_examples=nightly(60, otherwise=20),
    stateful_step_count=30,
    deadline=None,
    database=None,
)
RUN = secrets.token_hex(4)
_numbers = itertools.count()

OpenStore = Callable[..., Any]


class LossyConnection(client_library.Connection):
    """A connection that breaks once, after the server did what it was told and before its answer is read."""

    armed = False

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        """Read an answer, and lose it where the class is armed."""
        answer = super().read_response(*args, **kwargs)
        if LossyConnection.armed:
            LossyConnection.armed = False
            self.disconnect()
            raise client_library.ConnectionError("lost on the way")
        return answer


def namespace() -> str:
    """Return a name no other test uses."""
    return f"mqauth-test-{RUN}-{next(_numbers)}"


@pytest.fixture
def clock() -> FakeClock:
    """A clock that moves only when told."""
    return FakeClock()


@pytest.fixture(scope="module")
def own(own_redis: Redis) -> Redis:
    """A Redis that may be stopped and set up anew."""
    return own_redis


@pytest.fixture
def admin(own: Redis) -> Iterator[Any]:
    """A client that sets the server up; what it changed is put back."""
    with client_library.Redis.from_url(own.url) as client:
        before = client.config_get("maxmemory*")
        yield client
        for name in ("maxmemory", "maxmemory-policy"):
            client.config_set(name, before[name])


@pytest.fixture(params=["sync", "async"])
def open_store(request: pytest.FixtureRequest) -> Iterator[OpenStore]:
    """Open stores of either colour on a URL, all driven in plain calls, and close them."""
    opened: list[RedisReplayStore] = []
    awaited: list[RedisReplayStore] = []
    with asyncio.Runner() as runner:

        def make(url: str, **wanted: Any) -> Any:
            wanted = {"namespace": namespace(), "timeout": 0.3} | wanted
            if request.param == "sync":
                opened.append(RedisReplayStore.from_url(url, **wanted))
                return opened[-1]
            awaited.append(RedisReplayStore.from_url(url, **wanted))
            return Blocking(awaited[-1], runner)

        yield make
        for store in opened:
            store.close()
        for asynchronous in awaited:
            runner.run(asynchronous.aclose())


class TestRedis(BatchStoreContract):
    """The contract on Redis, in both colours."""

    @pytest.fixture
    def store(self, redis: Redis, open_store: OpenStore, clock: FakeClock) -> Any:
        """A store that counts leases by the test's clock."""
        return open_store(redis.url, timeout=5, clock=clock, unsafe_lease_clock=clock)


def test_machine(redis: Redis, open_store: OpenStore) -> None:
    """Redis answers as the pure table does, whatever the order of calls."""
    first = open_store(redis.url, timeout=5)
    template = first._store if isinstance(first, Blocking) else first

    def fresh(clock: FakeClock) -> Any:
        wanted = {"namespace": namespace(), "clock": clock, "unsafe_lease_clock": clock}
        store = type(template)(
            template._awaited if template is not first else template._plain, **wanted
        )
        return Blocking(store, first._runner) if isinstance(first, Blocking) else store

    run_state_machine_as_test(machine(fresh), settings=STEPS)


@pytest.fixture
def live(clock: FakeClock) -> Callable[..., ClaimRequest]:
    """A maker of claims that live an hour of the fake clock."""
    return lambda owner="first", **changes: wish(
        owner, **({"expires": START + 3600} | changes)
    )


@pytest.fixture
def store(own: Redis, open_store: OpenStore, clock: FakeClock) -> Any:
    """A store that counts leases by the server's clock."""
    return open_store(own.url, clock=clock)


@pytest.mark.parametrize("wrong", [-86_400.0, 0.0, 86_400.0])
def test_lease_by_server_clock(
    own: Redis, open_store: OpenStore, admin: Any, wrong: float
) -> None:
    """The lease ends by the server's clock, however wrong the consumer's is."""
    name = namespace()
    store = open_store(own.url, namespace=name, clock=FakeClock(START + wrong))
    before = _milliseconds(admin)
    assert store.claim(wish(lease=30.0)) is FRESH
    after = _milliseconds(admin)
    ends = int(admin.get(_key(name)).split()[0][1:])
    assert before + 30_000 <= ends <= after + 30_000


def test_lease_of_no_length(store: Any, live: Any) -> None:
    """A lease that is over by the server's clock goes to the redelivery; a longer one holds."""
    assert store.claim(live(lease=0.0)) is FRESH
    assert store.claim(live("second", redelivered=True, lease=60.0)) is FRESH
    assert store.claim(live("third", redelivered=True)) is HELD


@pytest.mark.parametrize("remaining", [-3600.0, 0.0, 60.0, 3600.0, 1e15])
def test_forgotten_by_key_expiry(
    own: Redis, open_store: OpenStore, admin: Any, remaining: float
) -> None:
    """A key outlives its token by the margin, held and done, and is bounded."""
    name = namespace()
    store = open_store(own.url, namespace=name, clock=FakeClock(START), margin=300.0)
    request = wish(expires=START + remaining)
    store.claim(request)
    held = admin.pttl(_key(name)) / 1000
    store.confirm(request)
    done = admin.pttl(_key(name)) / 1000
    wanted = min(max(remaining, 0.0) + 300.0, 10 * 366 * 86_400)
    assert wanted - 60 < done <= held <= wanted + 1


def test_a_batch_lives_with_its_longest(
    own: Redis, open_store: OpenStore, admin: Any
) -> None:
    """The key of a batch outlives each of its tokens' claims, and no confirm or shorter sibling changes that."""
    name = namespace()
    store = open_store(own.url, namespace=name, clock=FakeClock(START), margin=300.0)
    batch = [
        sibling(n, expires=START + life)
        for n, life in enumerate((60.0, 600.0, 3600.0, 30.0))
    ]
    store.claim(batch[0])
    assert 300_000 < admin.pttl(_batch_key(name)) <= 361_000
    store.claim_many(batch[1:3])
    store.claim(batch[3])
    for request in batch:
        store.confirm(request)
    assert 3_840_000 < admin.pttl(_batch_key(name)) <= 3_901_000
    assert _ids(admin, name) == [_batch_key(name)]


def test_a_released_batch_leaves_no_key(
    own: Redis, open_store: OpenStore, admin: Any
) -> None:
    """With the last message of a batch its key goes."""
    name = namespace()
    store = open_store(own.url, namespace=name)
    store.claim_many([sibling(1), sibling(2)])
    store.release(sibling(1))
    assert admin.hkeys(_batch_key(name)) == [b"2"]
    store.release(sibling(2))
    assert _ids(admin, name) == []


def test_takeover_never_shortens(own: Redis, open_store: OpenStore, admin: Any) -> None:
    """A takeover by a consumer whose clock is ahead leaves the key its longer life; a renewal may lengthen it."""
    name = namespace()
    right = open_store(own.url, namespace=name, clock=FakeClock(START))
    ahead = open_store(own.url, namespace=name, clock=FakeClock(START + 3000))
    right.claim(wish(place=HERE))
    ahead.claim(wish("second", place=HERE))
    assert admin.pttl(_key(name)) > 3600 * 1000
    right.claim(wish("second", place=HERE, renew=True, expires=START + 7200))
    assert admin.pttl(_key(name)) > 7200 * 1000


def test_forgets_by_itself(own: Redis, open_store: OpenStore, admin: Any) -> None:
    """A released key is gone, and a claim leaves exactly one key beside its scope's mark."""
    name = namespace()
    store = open_store(own.url, namespace=name)
    store.claim(wish())
    assert len(_ids(admin, name)) == 1
    store.release(wish())
    assert _ids(admin, name) == []


def test_script_lost(store: Any, live: Any, admin: Any) -> None:
    """A server that lost the script, as after a restart or a failover, gets it again."""
    assert store.claim(live()) is FRESH
    admin.script_flush()
    assert store.claim(live("second")) is REPLAYED
    admin.script_flush()
    store.confirm(live())
    assert store.claim(live("second", redelivered=True)) is DUPLICATE


@pytest.mark.parametrize("retries", [0, 2], ids=["raised", "repeated by the client"])
def test_answer_lost(own: Redis, retries: int) -> None:
    """A claim that was done while its answer was lost is made again by its owner, and no replay of itself."""
    pool = client_library.ConnectionPool.from_url(
        own.url,
        connection_class=LossyConnection,
        socket_timeout=5,
        retry=redis.retry.Retry(redis.backoff.NoBackoff(), retries),
        # Before redis-py 6 a client repeats after the errors that are named here, and no others.
        retry_on_error=[redis.ConnectionError],
    )
    store = RedisReplayStore(
        client_library.Redis(connection_pool=pool), namespace=namespace()
    )
    store.claim(wish(id=b"\xee" * 16))
    LossyConnection.armed = True
    if not retries:
        with pytest.raises(Unavailable):
            store.claim(wish())
    assert store.claim(wish()) is FRESH
    assert not LossyConnection.armed
    assert store.claim(wish("second")) is REPLAYED
    pool.disconnect()


@pytest.mark.parametrize("fault", ["stop", "kill"])
def test_down_and_back(own: Redis, store: Any, live: Any, fault: str) -> None:
    """While the server is down all is deferred; when it is back it knows what it knew, also after a crash."""
    store.claim(live())
    store.claim(live(id=b"\x01" * 16))
    store.confirm(live())
    getattr(own, fault)()
    for action in (store.claim, store.confirm, store.release):
        assert (
            _cause(lambda action=action: action(live(id=b"\x01" * 16)))
            is Cause.REPLAY_STORE_UNAVAILABLE
        )
    own.start()
    assert store.claim(live("second")) is REPLAYED
    assert store.claim(live("second", id=b"\x01" * 16, redelivered=True)) is HELD
    store.confirm(live(id=b"\x01" * 16))
    assert store.claim(live("second", id=b"\x01" * 16, redelivered=True)) is DUPLICATE


def test_restart_between_claims(own: Redis, store: Any, live: Any) -> None:
    """A restart between two claims is not noticed: the dead connection is replaced within the call."""
    store.claim(live())
    own.restart()
    assert store.claim(live("second")) is REPLAYED


def test_silent_server(own: Redis, store: Any, live: Any) -> None:
    """A server that answers nothing defers within the timeout, and nothing is mixed up when it answers again."""
    store.claim(live())
    own.pause()
    assert (
        _cause(lambda: store.claim(live(id=b"\x01" * 16)))
        is Cause.REPLAY_STORE_UNAVAILABLE
    )
    own.resume()
    assert store.claim(live("second")) is REPLAYED
    assert store.claim(live(id=b"\x01" * 16)) is FRESH


def test_cancelled_claim(own: Redis) -> None:
    """A claim cancelled while it waits leaves no answer behind for the next one to take as its own."""

    async def story() -> list[Any]:
        store = RedisReplayStore.from_url(own.url, namespace=namespace(), timeout=30)
        first = await store.claim(wish())
        own.pause()
        waiting = asyncio.create_task(store.claim(wish("second")))
        for _ in range(20):
            await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.to_thread(own.resume)
        fresh = [await store.claim(wish(id=bytes([n]) * 16)) for n in range(1, 5)]
        await store.aclose()
        return [first, *fresh]

    assert asyncio.run(story()) == [FRESH] * 5


def test_connections_are_bounded(own: Redis, admin: Any) -> None:
    """Two hundred claims at once wait for the connections there may be, and each gets its answer."""

    async def story() -> tuple[list[Any], int]:
        store = RedisReplayStore.from_url(
            own.url, namespace=namespace(), timeout=30, connections=4
        )
        before = len(admin.client_list())
        found = await asyncio.gather(
            *(store.claim(wish(id=bytes([n]) * 16)) for n in range(200))
        )
        opened = len(admin.client_list()) - before
        await store.aclose()
        return found, opened

    found, opened = asyncio.run(story())
    assert found == [FRESH] * 200
    assert 0 < opened <= 4


def test_out_of_memory(store: Any, live: Any, admin: Any) -> None:
    """A server without memory is a full store: no live id is given up, and claims work when there is room."""
    store.claim(live())
    admin.config_set("maxmemory-policy", "noeviction")
    admin.config_set("maxmemory", "1")
    assert _cause(lambda: store.claim(live(id=b"\x01" * 16))) is Cause.REPLAY_STORE_FULL
    admin.config_set("maxmemory", "0")
    assert store.claim(live("second")) is REPLAYED
    assert store.claim(live(id=b"\x01" * 16)) is FRESH


def test_replica(store: Any, live: Any, admin: Any) -> None:
    """A server that became a replica defers, and works when it is a primary again."""
    store.claim(live())
    admin.replicaof("127.0.0.1", "1")
    try:
        assert (
            _cause(lambda: store.claim(live(id=b"\x01" * 16)))
            is Cause.REPLAY_STORE_UNAVAILABLE
        )
    finally:
        admin.replicaof("NO", "ONE")
    assert store.claim(live("second")) is REPLAYED
    assert store.claim(live(id=b"\x01" * 16)) is FRESH


def _emptied(_own: Redis, admin: Any) -> None:
    admin.flushall()


def _evicted(_own: Redis, admin: Any) -> None:
    """Leave the server no memory, and let it forget whatever it likes."""
    admin.config_set("maxmemory-policy", "allkeys-random")
    admin.config_set("maxmemory", "1")
    for _ in range(1000):
        with suppress(client_library.ResponseError):
            admin.set("room", "")
    admin.config_set("maxmemory", "0")


def _folder(admin: Any) -> Path:
    """Return where the server's file is."""
    folder = Path(admin.config_get("dir")["dir"])
    if not (folder / "appendonlydir").exists():
        pytest.skip("the server's disk is another one")
    return folder


def _file_deleted(own: Redis, admin: Any) -> None:
    folder = _folder(admin)
    own.kill()
    shutil.rmtree(folder / "appendonlydir")
    own.start()


def _file_old(own: Redis, admin: Any) -> None:
    """Let the server begin with the file as it was before the message was handled, as from a backup."""
    folder = _folder(admin)
    own.kill()
    shutil.rmtree(folder / "appendonlydir")
    (folder / "old").rename(folder / "appendonlydir")
    own.start()


LOSSES = pytest.mark.parametrize(
    "lose", [_emptied, _evicted, _file_deleted, _file_old], ids=lambda each: each.__name__
)


def _handle(store: Any, admin: Any, name: str, number: int) -> None:
    """Claim and confirm a message after a copy of the server's file, and claim others until the mark is moved."""
    store.claim(wish(id=b"\x7e" * 16))
    folder = Path(admin.config_get("dir")["dir"])
    shutil.rmtree(folder / "old", ignore_errors=True)
    with suppress(FileNotFoundError):
        shutil.copytree(folder / "appendonlydir", folder / "old")
    before = admin.get(_mark(name))
    request = wish(id=bytes([number]) * 16)
    store.claim(request)
    store.confirm(request)
    while admin.get(_mark(name)) == before:
        store.claim(wish(id=b"\x7f" * 16))


@LOSSES
def test_memory_lost(
    own: Redis,
    open_store: OpenStore,
    admin: Any,
    caplog: pytest.LogCaptureFixture,
    lose: Callable[[Redis, Any], None],
) -> None:
    """All who knew what the server has lost claim nothing until that is on record; each says so once."""
    name, copy = namespace(), wish("second", id=b"\x01" * 16)
    stores = [open_store(own.url, namespace=name) for _ in range(3)]
    _handle(stores[0], admin, name, 1)
    assert stores[1].claim(copy) is REPLAYED
    began = int(admin.get(_mark(name)).split()[0]) / 1_000_000
    lose(own, admin)
    caplog.clear()
    for store in stores[:2]:
        for _ in range(2):
            assert _cause(lambda store=store: store.claim(copy)) is (
                Cause.REPLAY_STORE_UNAVAILABLE
            )
        lost = _inner(store).lost
        assert (lost.scope, lost.since >= began - 1e-6) == ("billing", True)
        assert _inner(store).losses == 1
        assert _ids(admin, name).count(b"%s:{billing}:%s" % (name.encode(), copy.id)) == 0
    told = [record.levelname for record in caplog.records if "lost its" in record.msg]
    assert told == ["CRITICAL"] * 2
    for store in stores[:2]:
        _inner(store).recorded(_inner(store).lost)
    # Whoever begins only now knows of nothing that is gone.
    assert [store.claim(copy) for store in stores] == [FRESH] * 3
    assert stores[0].claim(wish("third", id=copy.id)) is REPLAYED
    assert [_inner(store).losses for store in stores] == [1, 1, 0]


def test_a_loss_is_on_record_before_a_copy_is_handled(
    own: Redis, open_store: OpenStore, admin: Any
) -> None:
    """After a loss a copy of what was handled is handled only once the audit says that none can be told."""
    forge, records, handled = Forge(), list[AuditRecord](), list[Any]()
    place, name = "rabbitmq:shop/orders", namespace()
    store = open_store(own.url, namespace=name)
    guard = Pipeline(
        verifier=forge.verifier(),
        policy=forge.policy(place),
        replay=_inner(store),
        audit=type("Sink", (), {"write": staticmethod(records.append)})(),
        scope="billing",
    )
    message = forge.signer().sign(honest_message(place, 1))

    def deliver(delivery: Any) -> Any:
        flow = guard.process(delivery, handled.append, None)
        return store._runner.run(arun(flow)) if isinstance(store, Blocking) else run(flow)

    assert deliver(guard.receive(message)).verdict is Verdict.ACCEPTED
    admin.flushall()
    copy = guard.receive(message)
    assert deliver(copy).cause is Cause.REPLAY_STORE_UNAVAILABLE
    assert len(handled) == 1
    (record,) = records
    assert record.verdict == "replay_memory_lost"
    span = record.extra["replay_memory_lost"]
    assert span["since"] <= span["until"]
    assert deliver(copy).verdict is Verdict.ACCEPTED


def test_the_mark_never_goes_back(own: Redis, open_store: OpenStore, admin: Any) -> None:
    """A mark that is far ahead, since the server's clock was set back, is moved on and is no loss."""
    name = namespace()
    store = open_store(own.url, namespace=name)
    store.claim(wish())
    made, moved = map(int, admin.get(_mark(name)).split())
    admin.set(_mark(name), f"{made} {moved + 3_600_000_000}")
    for number in range(3):
        assert store.claim(wish(id=bytes([number]) * 16)) is FRESH
    assert admin.get(_mark(name)) == f"{made} {moved + 3_600_000_003}".encode()


def test_the_mark_is_moved_once_a_second(
    own: Redis, open_store: OpenStore, admin: Any
) -> None:
    """Claims write it only when a second has passed by the server's clock."""
    name, moves = namespace(), set()
    store = open_store(own.url, namespace=name)
    for number in range(200):
        store.claim(wish(id=bytes([number]) * 16))
        moves.add(int(admin.get(_mark(name)).split()[1]))
    assert all(b - a >= 1_000_000 for a, b in itertools.pairwise(sorted(moves)))


def _inner(store: Any) -> Any:
    """Return the store itself."""
    return store._store if isinstance(store, Blocking) else store


@pytest.mark.parametrize(
    "value", [b"", b"x", b"h1", b"h1 9 short", b"hx 1 a", b"h1 1 ab", b"dx"]
)
def test_damaged_value(
    own: Redis, open_store: OpenStore, admin: Any, value: bytes
) -> None:
    """A value that is not ours is a fault of the store and never a verdict."""
    name = namespace()
    store = open_store(own.url, namespace=name)
    admin.set(_key(name), value)
    assert (
        _cause(lambda: store.claim(wish(redelivered=True)))
        is Cause.REPLAY_STORE_UNAVAILABLE
    )


def test_damaged_batch(own: Redis, open_store: OpenStore, admin: Any) -> None:
    """A damaged field of a batch, and a batch's key of another type, are faults of the store too."""
    name = namespace()
    store = open_store(own.url, namespace=name)
    store.claim(sibling(0))
    admin.hset(_batch_key(name), "1", "x")
    assert (
        _cause(lambda: store.claim(sibling(1, redelivered=True)))
        is Cause.REPLAY_STORE_UNAVAILABLE
    )
    assert store.claim(sibling(0, "second")) is REPLAYED
    admin.set(_batch_key(name), "x")
    assert (
        _cause(lambda: store.claim(sibling(0, redelivered=True)))
        is Cause.REPLAY_STORE_UNAVAILABLE
    )


@pytest.mark.parametrize("case", [
    ("allkeys-lru", "1gb", [logging.ERROR]), ("volatile-ttl", "1gb", [logging.ERROR]),
    ("noeviction", "1gb", []), ("allkeys-lru", "0", []),
])  # fmt: skip
def test_eviction_told(
    store: Any, admin: Any, caplog: pytest.LogCaptureFixture, case: Any
) -> None:
    """A server that would evict live ids is told of once, as an error, at the first claim."""
    policy, limit, levels = case
    admin.config_set("maxmemory-policy", policy)
    admin.config_set("maxmemory", limit)
    store.claim(wish())
    store.claim(wish())
    told = [
        record.levelno
        for record in caplog.records
        if "maxmemory-policy" in record.getMessage()
    ]
    assert told == levels


def test_info_forbidden(
    own: Redis, open_store: OpenStore, admin: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A user who may not read INFO can claim, and the log says what to make sure of."""
    admin.acl_setuser("mqauth", enabled=True, passwords=["+secret"], keys=["*"],
                      commands=["+evalsha", "+eval", "+get", "+set", "+del", "+pttl", "+time",
                                "+hmget", "+hset", "+hdel", "+pexpire"])  # fmt: skip
    store = open_store(_with(own.url, "mqauth:secret@"))
    assert store.claim(wish()) is FRESH
    batch = [sibling(n, place=HERE) for n in range(3)]
    assert store.claim_many(batch) == [FRESH] * 3
    store.confirm(batch[0])
    store.release(batch[1])
    assert [
        record.levelname
        for record in caplog.records
        if record.name == "mqauth.stores.redis"
    ] == ["WARNING"]
    admin.acl_deluser("mqauth")


def test_password_wrong(own: Redis, open_store: OpenStore, admin: Any) -> None:
    """A wrong password defers, and no text of ours holds it."""
    admin.acl_setuser(
        "mqauth", enabled=True, passwords=["+secret"], keys=["*"], commands=["+@all"]
    )
    with pytest.raises(Unavailable) as caught:
        open_store(_with(own.url, "mqauth:hunter2@")).claim(wish())
    assert caught.value.cause is Cause.REPLAY_STORE_UNAVAILABLE
    assert "hunter2" not in str(caught.value) + str(caught.value.__cause__)
    admin.acl_deluser("mqauth")


def test_tls(own: Redis, open_store: OpenStore, tmp_path: Path) -> None:
    """TLS with the right certificate works; an unknown issuer or another host's certificate defers."""
    authority, port = Authority(tmp_path), urlsplit(own.url).port or 0
    trusting = f"?ssl_ca_certs={authority.path}"
    with Tunnel(port, authority.issue()) as tunnel:
        url = f"rediss://127.0.0.1:{tunnel.port}/0"
        assert open_store(url + trusting, timeout=5).claim(wish()) is FRESH
        for trust in ("", f"?ssl_ca_certs={Authority(tmp_path).path}"):
            assert _cause(lambda trust=trust: open_store(url + trust).claim(wish())) is (
                Cause.REPLAY_STORE_UNAVAILABLE
            )
    with Tunnel(port, authority.issue(host="elsewhere.example")) as tunnel:
        wrong = open_store(f"rediss://127.0.0.1:{tunnel.port}/0{trusting}")
        assert _cause(lambda: wrong.claim(wish())) is Cause.REPLAY_STORE_UNAVAILABLE


def test_shared_by_both_colours(own: Redis) -> None:
    """A claim made in one colour is known in the other."""
    name = namespace()
    store = RedisReplayStore.from_url(own.url, namespace=name)
    store.claim(wish())

    async def story() -> list[Any]:
        other = RedisReplayStore.from_url(own.url, namespace=name)
        found = [
            await other.claim(wish("second")),
            await other.claim(replace(wish(), renew=True)),
        ]
        await other.aclose()
        return found

    assert asyncio.run(story()) == [REPLAYED, FRESH]
    store.close()


def _cause(action: Callable[[], object]) -> Cause:
    """Run what must be deferred, and return why."""
    with pytest.raises(Unavailable) as caught:
        action()
    return caught.value.cause


def _key(name: str) -> bytes:
    """Return the key of ``wish()``."""
    return f"{name}:{{billing}}:".encode() + bytes(range(16))


def _mark(name: str) -> bytes:
    """Return the key of the scope's mark."""
    return f"{name}:{{billing}}:mark".encode()


def _ids(admin: Any, name: str) -> list[bytes]:
    """Return all keys but the mark's."""
    return [key for key in admin.keys(f"{name}*") if key != _mark(name)]


def _batch_key(name: str) -> bytes:
    """Return the key of the batch ``sibling()`` is of."""
    return _key(name) + b"~"


def _milliseconds(admin: Any) -> int:
    """Return the server's time."""
    seconds, micros = admin.time()
    return int(seconds * 1000 + micros // 1000)


def _with(url: str, credentials: str) -> str:
    """Return a URL with user and password."""
    return url.replace("://", f"://{credentials}", 1)
