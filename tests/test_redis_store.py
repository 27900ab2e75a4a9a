"""The Redis stores without a server: which clients and URLs they take, and what they send and understand."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import redis
import redis.asyncio

from mqauth.errors import Cause, ConfigurationError, Unavailable
from mqauth.flow import arun, call, is_async, refuse_async, run
from mqauth.replay import ClaimStatus
from mqauth.stores import redisscript
from mqauth.stores.redis import AsyncRedisReplayStore, RedisReplayStore
from mqauth.stores.rediseither import EitherRedisReplayStore
from mqauth.testing.clock import START
from mqauth.testing.store_contract import wish

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


def test_colours() -> None:
    """A client of the other colour is a mistake at construction, in both classes."""
    with pytest.raises(ConfigurationError, match="AsyncRedisReplayStore"):
        RedisReplayStore(redis.asyncio.Redis())
    with pytest.raises(ConfigurationError, match="use RedisReplayStore"):
        AsyncRedisReplayStore(redis.Redis())


def test_async_store_refused_by_sync_consumers() -> None:
    """The asynchronous store is seen to be one, and the synchronous store not."""
    assert not is_async(RedisReplayStore.from_url(NOWHERE).claim)
    with pytest.raises(ConfigurationError, match="store is asynchronous"):
        refuse_async(store=AsyncRedisReplayStore.from_url(NOWHERE).claim)


@pytest.mark.parametrize(
    ("store", "client"),
    [(RedisReplayStore, redis.Redis), (AsyncRedisReplayStore, redis.asyncio.Redis)],
)
def test_timeout_needed(store: Any, client: Any) -> None:
    """A client that could wait for ever is refused."""
    with pytest.raises(ConfigurationError, match="socket_timeout"):
        store(client(socket_timeout=None))


def test_margin() -> None:
    """A negative margin would forget ids too soon."""
    with pytest.raises(ConfigurationError, match="margin"):
        RedisReplayStore.from_url(NOWHERE, margin=-1)


@pytest.mark.parametrize(
    "store", [RedisReplayStore.from_url, AsyncRedisReplayStore.from_url, EitherRedisReplayStore]
)
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
def test_urls_refused(store: Any, url: str) -> None:
    """A URL that is none, or that turns verification off, is refused without being repeated."""
    with pytest.raises(ConfigurationError) as caught:
        store(url)
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
    [], [b"fresh", b"fresh"], [b"done"], [b""], [b"\xff"], [None], [1], None, 7, b"fresh", {"a": 1},
    ValueError("odd"), redis.ResponseError("odd"), redis.RedisError(), OSError(),
])  # fmt: skip
def test_odd_answers(answer: Any) -> None:
    """An answer that is not the script's is the world's fault, never a verdict."""
    with pytest.raises(Unavailable) as caught:
        RedisReplayStore(Pool(answer)).claim(wish())
    assert caught.value.cause is Cause.REPLAY_STORE_UNAVAILABLE


@pytest.mark.parametrize("word", ["fresh", b"fresh"])
def test_answers_understood(word: Any) -> None:
    """An answer is understood whether or not the client decodes it."""
    assert RedisReplayStore(Pool([word])).claim(wish()) is ClaimStatus.FRESH


def test_either_colour() -> None:
    """The store of a configuration file is plain without an event loop and awaited inside one."""
    store = EitherRedisReplayStore(NOWHERE)
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
    assert len(redisscript.doubts(fields)) == count


@pytest.mark.parametrize("behind", [-3600.0, 0.0, 3600.0])
def test_key_life(behind: float) -> None:
    """A key lives for what the consumer's clock says is left, at least nothing, and the margin."""
    verb = redisscript.Verb.CLAIM
    given = redisscript.arguments(verb, [wish(expires=START + behind)], now=START, margin=300.0, lease_clock=None)
    assert given[0] == ""
    assert given[-1] == int((max(behind, 0) + 300) * 1000) + 1


def test_places_are_small() -> None:
    """A place of any length is sent as 12 bytes, none as none."""
    verb = redisscript.Verb.CLAIM
    for place, size in (("a" * 1000, 12), ("", 12), (None, 0)):
        given = redisscript.arguments(verb, [wish(place=place)], now=START, margin=0, lease_clock=1.0)
        assert isinstance(given[3], bytes)
        assert len(given[3]) == size
