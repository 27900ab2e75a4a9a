"""The Redis stores without a server: which clients and URLs they take, and what they send and understand."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import redis
import redis.asyncio

from mqauth.errors import Cause, ConfigurationError, Unavailable
from mqauth.flow import arun, call, refuse_async, run
from mqauth.replay.rules import ClaimRequest, ClaimStatus
from mqauth.stores import redis_script
from mqauth.stores.redis import RedisReplayStore
from mqauth.testing.clock import START
from mqauth.testing.store_contract import sibling, wish
from mqauth.wire.message import Place

NOWHERE = "redis://user:hunter2@127.0.0.1:1/0"


class Pool:
    """A client that answers what it is told, without a server."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def get_connection_kwargs(self) -> dict[str, Any]:
        return {"socket_timeout": 1}

    def info(self) -> dict[str, Any]:
        return {}

    def evalsha(self, *given: Any) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Slow(redis.asyncio.Redis):
    """A client without a server, whose INFO comes only after all have asked for it."""

    def __init__(self) -> None:
        super().__init__(socket_timeout=1)
        self.asked = asyncio.Barrier(5)

    async def info(self, *_: Any, **__: Any) -> dict[str, Any]:
        await self.asked.wait()
        return {"aof_enabled": 0}

    async def evalsha(self, *_: Any) -> Any:
        return b"f"


async def test_first_claims_at_once_tell_once(caplog: pytest.LogCaptureFixture) -> None:
    """First claims of five scopes at once find the server unsafe, and one of them says so."""
    store: Any = RedisReplayStore(Slow())
    await asyncio.gather(
        *(store.claim(wish(scope=f"scope {number}")) for number in range(5))
    )
    assert [record.getMessage() for record in caplog.records] == [
        "the replay store is not safe: it keeps no append-only file and forgets claims when it restarts; set"
        " appendonly yes"
    ]
    await store.aclose()


class Counting(redis.asyncio.Redis):
    """A client without a server, which keeps what it is asked and answers each request with the next letter."""

    def __init__(self, *answers: Any) -> None:
        super().__init__(socket_timeout=1)
        self.answers = [*answers]
        self.keys: list[tuple[Any, ...]] = []
        self.known: list[Any] = []
        self.held = asyncio.Event()
        self._late: asyncio.Event | None = None

    def hold_next(self) -> asyncio.Event:
        """Keep the answer of the next call back until the event that is returned is set."""
        self._late = asyncio.Event()
        return self._late

    async def info(self, *_: Any, **__: Any) -> dict[str, Any]:
        return {}

    async def evalsha(self, _sha: Any, count: int, *given: Any) -> Any:
        self.keys.append(given[:count])
        self.known.append(given[count])
        answer = self.answers.pop(0)
        late, self._late = self._late, None
        if late is not None:
            self.held.set()
            await late.wait()
        if isinstance(answer, Exception):
            raise answer
        return answer


def own(number: int, **changes: Any) -> ClaimRequest:
    """Return a claim of another id for each number."""
    return wish(id=bytes([number]) * 16, **changes)


@pytest.mark.parametrize(
    "factory",
    [None, getattr(asyncio, "eager_task_factory", None)],
    ids=["plain", "eager"],
)
async def test_one_turn_is_one_round_trip(factory: Any) -> None:
    """What a loop asks in one turn is one call for each verb, and each who asked gets its own answer."""
    asyncio.get_running_loop().set_task_factory(factory)
    client = Counting(b"frhdp", b"---", b"f")
    store: Any = RedisReplayStore(client)
    claims = await asyncio.gather(*(store.claim(own(number)) for number in range(5)))
    assert [status.value for status in claims] == [
        "fresh",
        "reread",
        "held",
        "duplicate",
        "replayed",
    ]
    assert (
        await asyncio.gather(*(store.confirm(own(number)) for number in range(3)))
        == [None] * 3
    )
    assert await store.claim(own(0)) is ClaimStatus.FRESH
    # A claim looks at the mark of the scope besides.
    assert [len(keys) for keys in client.keys] == [6, 3, 2]
    await store.aclose()


async def test_scopes_are_asked_apart() -> None:
    """Two scopes in one turn are two calls: on a cluster they may be on different nodes."""
    client = Counting(b"ff", b"f")
    store: Any = RedisReplayStore(client)
    await asyncio.gather(
        *(store.claim(own(number, scope="ab"[number // 2])) for number in range(3))
    )
    assert [[b"{a}" in key for key in keys] for keys in client.keys] == [
        [True, True, True],
        [False, False],
    ]
    await store.aclose()


async def test_what_fails_together() -> None:
    """Where the call of a turn fails, each who asked is told, and the next turn asks anew."""
    store: Any = RedisReplayStore(Counting(redis.ConnectionError(), b"f"))
    failed = await asyncio.gather(
        *(store.claim(own(number)) for number in range(3)), return_exceptions=True
    )
    assert [getattr(error, "cause", None) for error in failed] == [
        Cause.REPLAY_STORE_UNAVAILABLE
    ] * 3
    assert await store.claim(own(0)) is ClaimStatus.FRESH
    await store.aclose()


async def test_one_of_a_turn_is_cancelled() -> None:
    """Who is cancelled takes nothing from those who asked in the same turn."""
    store: Any = RedisReplayStore(Counting(b"fr"))
    first, second = (asyncio.create_task(store.claim(own(number))) for number in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert await second is ClaimStatus.REREAD
    assert first.cancelled()
    await store.aclose()


async def test_a_turn_that_is_cancelled() -> None:
    """Where all tasks of a loop are cancelled before what they asked was sent, later ones ask anew."""
    store: Any = RedisReplayStore(Counting(b"f"))
    waiting = asyncio.create_task(store.claim(own(0)))
    await asyncio.sleep(0)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await asyncio.wait((waiting,))
    assert await store.claim(own(1)) is ClaimStatus.FRESH
    await store.aclose()


async def _start(store: RedisReplayStore) -> None:
    store.at_start()


def test_an_asynchronous_client_needs_a_loop() -> None:
    """A consumer without an event loop refuses it at its start; one with a loop takes every client."""
    asynchronous = RedisReplayStore(redis.asyncio.Redis(socket_timeout=1))
    others = [
        RedisReplayStore.from_url(NOWHERE),
        RedisReplayStore(redis.Redis(socket_timeout=1)),
    ]
    with pytest.raises(
        ConfigurationError, match=r"no event loop: give the store no redis\.asyncio"
    ):
        asynchronous.at_start()
    for store in others:
        store.at_start()
    for store in (asynchronous, *others):
        asyncio.run(_start(store))


@pytest.mark.parametrize("client", [redis.Redis, redis.asyncio.Redis])
def test_timeout_needed(client: Any) -> None:
    """A client that could wait for ever is refused."""
    with pytest.raises(ConfigurationError, match="socket_timeout"):
        RedisReplayStore(client(socket_timeout=None))


def test_margin() -> None:
    """A negative margin would forget ids too soon."""
    with pytest.raises(ConfigurationError, match="margin"):
        RedisReplayStore.from_url(NOWHERE, margin=-1)


@pytest.mark.parametrize(
    "url",
    [
        "hunter2",
        "http://user:hunter2@host",
        "redis://user:hunter2/x@host",
        "redis://user:hunter2@host:port",
        "rediss://user:hunter2@host?ssl_cert_reqs=none",
        "rediss://user:hunter2@host?ssl_cert_reqs=optional",
        "rediss://user:hunter2@host?ssl_check_hostname=no",
    ],
)
def test_urls_refused(url: str) -> None:
    """A URL that is none, or that turns verification off, is refused without being repeated."""
    with pytest.raises(ConfigurationError) as caught:
        RedisReplayStore.from_url(url)
    assert "hunter2" not in f"{caught.value}{caught.value.__cause__}"


def test_password_not_shown() -> None:
    """A store does not show the password it was given."""
    store = RedisReplayStore.from_url(NOWHERE)
    assert "hunter2" not in f"{store!r}{store}"


def test_unreachable() -> None:
    """A server that is not there is the world's fault, told without its password."""
    with pytest.raises(Unavailable) as caught:
        RedisReplayStore.from_url(NOWHERE).claim(wish())
    assert caught.value.cause is Cause.REPLAY_STORE_UNAVAILABLE
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("answer", [
    [], [b"f"], b"ff", b"-", b"", b"\xff", b"F", None, 7, b"fresh", {"a": 1}, {"f": 1},
    b"f ", b"f 1", b"f 1 x", b"f 1 2 3 4", b" 1 2", b"f  1 2",
    ValueError("odd"), redis.ResponseError("odd"), redis.RedisError(), OSError(),
])  # fmt: skip
def test_odd_answers(answer: Any) -> None:
    """An answer that is not the script's is the world's fault, never a verdict."""
    with pytest.raises(Unavailable) as caught:
        RedisReplayStore(Pool(answer)).claim(wish())
    assert caught.value.cause is Cause.REPLAY_STORE_UNAVAILABLE


@pytest.mark.parametrize("letter", ["f", b"f"])
def test_answers_understood(letter: Any) -> None:
    """An answer is understood whether or not the client decodes it."""
    assert RedisReplayStore(Pool(letter)).claim(wish()) is ClaimStatus.FRESH


async def test_a_loss_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """Calls that were under way together tell of one loss once, and nothing is asked until it is on record."""
    client = Counting(b"f 1000000 1000000", b" 7 7 1000000", b" 7 7 1000000", b"f")
    store: Any = RedisReplayStore(client)
    await store.claim(own(0))
    late = client.hold_next()
    first = asyncio.create_task(store.claim_many([own(1)]))
    await client.held.wait()
    for asking in (store.claim_many([own(2)]), first):
        with pytest.raises(Unavailable) as caught:
            await asking
        assert caught.value.cause is Cause.REPLAY_STORE_UNAVAILABLE
        late.set()
    told = [record for record in caplog.records if record.levelname == "CRITICAL"]
    assert [record.event for record in told] == ["store.forgot"]  # type: ignore[attr-defined]
    assert (store.losses, store.lost.since, store.lost.scope) == (1, 1.0, "billing")
    with pytest.raises(Unavailable, match="not on record"):
        await store.claim(own(3))
    assert len(client.answers) == 1
    store.recorded(store.lost)
    assert await store.claim(own(3)) is ClaimStatus.FRESH
    assert client.known == ["", "1000000 1000000", "1000000 1000000", "7 7"]
    await store.aclose()


async def test_an_older_answer_is_no_news() -> None:
    """What was known before a loss, and is answered after it, is not believed again."""
    client = Counting(b"f 1 1", b"f 1 2", b" 7 7 1", b"f")
    store: Any = RedisReplayStore(client)
    await store.claim(own(0))
    late = client.hold_next()
    older = asyncio.create_task(store.claim_many([own(1)]))
    await client.held.wait()
    with pytest.raises(Unavailable):
        await store.claim_many([own(2)])
    store.recorded(store.lost)
    late.set()
    assert await older == [ClaimStatus.FRESH]
    await store.claim(own(3))
    assert client.known == ["", "1 1", "1 1", "7 7"]
    await store.aclose()


def test_either_colour() -> None:
    """A store of a URL is plain without an event loop and awaited inside one."""
    store = RedisReplayStore.from_url(NOWHERE)
    refuse_async(store=store.claim)
    with pytest.raises(Unavailable):
        run(call(store.claim, wish()))
    with pytest.raises(Unavailable):
        asyncio.run(arun(call(store.claim, wish())))


@pytest.mark.parametrize(("fields", "count"), [
    ({}, 0),
    ({"maxmemory": 0, "maxmemory_policy": "allkeys-lru", "aof_enabled": 1}, 0),
    ({"maxmemory": 9, "maxmemory_policy": "noeviction", "aof_enabled": 1}, 0),
    ({"maxmemory": 9, "maxmemory_policy": "volatile-ttl", "aof_enabled": 1}, 1),
    ({"maxmemory": 9, "maxmemory_policy": "allkeys-lru", "aof_enabled": 0}, 2),
])  # fmt: skip
def test_doubts(fields: dict[str, Any], count: int) -> None:
    """Eviction with a limit and no append-only file are doubts; nothing else is."""
    assert len(redis_script.risks(fields)) == count


@pytest.mark.parametrize("behind", [-3600.0, 0.0, 3600.0])
def test_key_life(behind: float) -> None:
    """A key lives for what the consumer's clock says is left, at least nothing, and the margin."""
    verb = redis_script.Verb.CLAIM
    requests = [wish(expires=START + behind)]
    asked = redis_script.script_call(
        verb, requests, namespace="m", now=START, margin=300.0, lease_clock=None
    )
    assert asked.arguments[0] == ""
    assert asked.arguments[1:3] == [1, int((max(behind, 0) + 300) * 1000) + 1]


@pytest.mark.parametrize(
    ("place", "size"), [(("a" * 1000, "t", 0, 7), 12), (("", "", 0, 0), 12), (None, 0)]
)
def test_places_are_small(place: Place | None, size: int) -> None:
    """A place of any length is sent as 12 bytes, none as none."""
    assert len(_sent(wish(place=place)).removeprefix(b"claim  30000 5 first")) == size


def test_places_are_unambiguous() -> None:
    """Places whose texts run together differ still."""
    places = [
        ("a/b", "c", 0, 7),
        ("a", "b/c", 0, 7),
        ("", "a/b/c", 0, 7),
        ("a", "b/c/0", 0, 7),
    ]
    assert len({_sent(wish(place=place)) for place in places}) == len(places)


def _sent(request: ClaimRequest) -> bytes:
    """Return the argument a claim is sent as."""
    verb = redis_script.Verb.CLAIM
    asked = redis_script.script_call(
        verb, [request], namespace="m", now=START, margin=0, lease_clock=1.0
    )
    found = asked.arguments[-1]
    assert isinstance(found, bytes)
    return found


def test_siblings_are_asked_together() -> None:
    """The wishes of a poll on one token are one key, its life the longest of theirs, each in its order."""
    poll = [
        one
        for n in (3, 5, 4)
        for one in (
            sibling(n, expires=START + n),
            sibling(n, token=b"x" * 16),
            wish(id=bytes([n]) * 16),
        )
    ]
    asked = redis_script.script_call(
        redis_script.Verb.CLAIM,
        poll,
        namespace="m",
        now=START,
        margin=0.0,
        lease_clock=1.0,
    )
    assert len(asked.keys) == 5
    assert asked.keys[0] == b"m:{billing}:" + bytes(range(16)) + b"~"
    assert asked.arguments[1:3] == [3, 5001]
    assert asked.arguments[3:6] == [b"claim %d 30000 5 first" % n for n in (3, 5, 4)]
    assert redis_script.letters("036147258", asked) == list("012345678")


def test_connections() -> None:
    """A store without connections is a mistake."""
    with pytest.raises(ConfigurationError, match="connections"):
        RedisReplayStore.from_url(NOWHERE, connections=0)
