"""Replay stores on Redis or Valkey, for all consumers of a scope, in both colours.

One Lua script and one round trip a claim, or a poll of up to 1,000. Redis counts leases by its own clock
and forgets an id by itself ``margin`` seconds after its token can last be accepted. Every failure is
``replay_store_unavailable`` (out of memory: ``replay_store_full``) and never a verdict; since the same owner
may claim again, a client may repeat a command whose answer was lost.

Redis from 6.0 (``SET ... KEEPTTL``) or any Valkey, with ``maxmemory-policy noeviction`` and
``appendonly yes``; a replica that takes over may lack the last claims, since Redis replicates late.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import threading
from collections.abc import Awaitable, Sequence
from typing import Any, Final

import redis
import redis.asyncio
import redis.asyncio.retry
import redis.backoff
import redis.exceptions
import redis.retry

from mqauth.clock import SYSTEM_CLOCK, Clock
from mqauth.errors import Cause, ConfigurationError, Unavailable
from mqauth.flow import Flow, arun, call, run
from mqauth.replay.rules import ClaimRequest, ClaimStatus
from mqauth.stores import redis_script
from mqauth.stores.redis_script import Verb

DEFAULT_MARGIN: Final = 300.0
DEFAULT_TIMEOUT: Final = 2.0
BATCH: Final = 1000
CONNECTIONS: Final = 16
_RETRIES: Final = 2
_LOG: Final = logging.getLogger("mqauth.stores.redis")
_ASYNC_CLIENTS: Final = (redis.asyncio.Redis, redis.asyncio.RedisCluster)


class _Wishes:
    """What both stores wish of a server, as flows of no colour."""

    def __init__(
        self, client: Any, *, namespace: str, margin: float, clock: Clock, unsafe_lease_clock: Clock | None
    ) -> None:
        if margin < 0:
            raise ConfigurationError("margin is 0 seconds or more")
        self._client = client
        self._namespace = namespace
        self._margin = margin
        self._clock = clock
        self._lease_clock = unsafe_lease_clock
        self._inspected = False
        self._told = threading.Lock()

    def claim(self, requests: Sequence[ClaimRequest]) -> Flow[list[ClaimStatus]]:
        """Claim each."""
        letters = yield from self._ask(Verb.CLAIM, requests)
        try:
            return [redis_script.STATUSES[letter] for letter in letters]
        except Exception as error:
            raise _unavailable(error) from error

    def end(self, verb: Verb, requests: Sequence[ClaimRequest]) -> Flow[None]:
        """Confirm or release each."""
        yield from self._ask(verb, requests)

    def _ask(self, verb: Verb, requests: Sequence[ClaimRequest]) -> Flow[list[str]]:
        """Return the script's letters; a long poll takes several round trips."""
        answers: list[str] = []
        try:
            if not self._inspected:
                yield from self._inspect()
            for start in range(0, len(requests), BATCH):
                answers += yield from self._evaluate(verb, requests[start : start + BATCH])
        except redis.exceptions.ReadOnlyError as error:
            yield from self._reconnect()
            raise _unavailable(error) from error
        except Exception as error:
            raise _unavailable(error) from error
        return answers

    def _evaluate(self, verb: Verb, requests: Sequence[ClaimRequest]) -> Flow[list[str]]:
        """Run the script, whose text is sent again when the server has lost it."""
        asked = redis_script.ask(
            verb,
            requests,
            namespace=self._namespace,
            now=self._clock.now(),
            margin=self._margin,
            lease_clock=None if self._lease_clock is None else self._lease_clock.monotonic(),
        )
        given = (len(asked.keys), *asked.keys, *asked.arguments)
        try:
            answer = yield from call(self._client.evalsha, redis_script.SHA, *given)
        except redis.exceptions.NoScriptError:
            answer = yield from call(self._client.eval, redis_script.SCRIPT, *given)
        return redis_script.letters(answer, asked)

    def _inspect(self) -> Flow[None]:
        """Say loudly, once, if the server may forget live ids; of first claims at once each asks, one tells."""
        info, forbidden = {}, None
        try:
            info = yield from call(self._client.info)
        except redis.exceptions.ResponseError as error:
            forbidden = type(error).__name__
        with self._told:
            first, self._inspected = not self._inspected, True
        if first:
            _tell(info, forbidden)

    def _reconnect(self) -> Flow[None]:
        """Drop idle connections to a server that became a replica: its name may lead elsewhere by now."""
        pool = getattr(self._client, "connection_pool", None)
        if pool is not None:
            yield from call(pool.disconnect, False)


class RedisReplayStore:
    """Claims in Redis, for consumers without an event loop; safe for threads.

    Args:
        client: a ``redis.Redis``, ``redis.RedisCluster`` or Sentinel's master; stays the caller's to close.
        namespace: the first part of every key.
        margin: seconds an id is kept longer than its token lives, so that clocks which disagree by less, and
            an outage shorter than that, let no copy in.
        clock: tells how long a token still lives.
        unsafe_lease_clock: counts leases in tests; processes that give clocks of their own may both hold a claim.

    Raises:
        ConfigurationError: the client is asynchronous, or it could wait for an answer for ever.
    """

    def __init__(
        self,
        client: Any,
        *,
        namespace: str = "mqauth",
        margin: float = DEFAULT_MARGIN,
        clock: Clock = SYSTEM_CLOCK,
        unsafe_lease_clock: Clock | None = None,
    ) -> None:
        if isinstance(client, _ASYNC_CLIENTS):
            raise ConfigurationError("the Redis client is asynchronous: use AsyncRedisReplayStore")
        _require_timeout(client)
        self._client = client
        self._wishes = _Wishes(
            client, namespace=namespace, margin=margin, clock=clock, unsafe_lease_clock=unsafe_lease_clock
        )

    @classmethod
    def from_url(cls, url: str, *, timeout: float = DEFAULT_TIMEOUT, **settings: Any) -> RedisReplayStore:
        """Return a store with a client of its own; nothing is connected before the first claim.

        Args:
            url: ``redis://``, ``rediss://`` (TLS, always verified) or ``unix://``, with user and password.
            timeout: seconds to wait for a connection, or for an answer.
            settings: as for the class; ``ssl_ca_certs`` and other options of the client belong in the URL.

        Raises:
            ConfigurationError: the URL is none, or it turns verification off.
        """
        retry = redis.retry.Retry(_backoff(), _RETRIES)
        pool = _pool(redis.ConnectionPool, url, timeout, retry)
        return cls(redis.Redis.from_pool(pool), **settings)

    def claim(self, request: ClaimRequest, /) -> ClaimStatus:
        """Take the lease where the table allows it; one round trip.

        Raises:
            Unavailable: ``replay_store_unavailable`` or ``replay_store_full``.
        """
        return run(self._wishes.claim((request,)))[0]

    def confirm(self, request: ClaimRequest, /) -> None:
        """Make the claim done, if this owner still holds it."""
        run(self._wishes.end(Verb.CONFIRM, (request,)))

    def release(self, request: ClaimRequest, /) -> None:
        """Forget the claim, if this owner still holds it."""
        run(self._wishes.end(Verb.RELEASE, (request,)))

    def claim_many(self, requests: Sequence[ClaimRequest], /) -> list[ClaimStatus]:
        """Claim each, in order, in one round trip for every 1,000; of one scope only on a cluster."""
        return run(self._wishes.claim(requests))

    def close(self) -> None:
        """Close the client's connections."""
        self._client.close()


class AsyncRedisReplayStore:
    """Claims in Redis, for consumers in an event loop; a synchronous consumer refuses it.

    Args:
        client: a ``redis.asyncio.Redis``, ``RedisCluster`` or Sentinel's master; stays the caller's to close.
        namespace: as for ``RedisReplayStore``, and so are all others.

    Raises:
        ConfigurationError: the client is synchronous, or it could wait for an answer for ever.
    """

    def __init__(
        self,
        client: Any,
        *,
        namespace: str = "mqauth",
        margin: float = DEFAULT_MARGIN,
        clock: Clock = SYSTEM_CLOCK,
        unsafe_lease_clock: Clock | None = None,
    ) -> None:
        if not isinstance(client, _ASYNC_CLIENTS):
            raise ConfigurationError("the Redis client is not asynchronous: use RedisReplayStore")
        _require_timeout(client)
        self._client: Any = client
        self._wishes = _Wishes(
            client, namespace=namespace, margin=margin, clock=clock, unsafe_lease_clock=unsafe_lease_clock
        )

    @classmethod
    def from_url(
        cls, url: str, *, timeout: float = DEFAULT_TIMEOUT, connections: int = CONNECTIONS, **settings: Any
    ) -> AsyncRedisReplayStore:
        """Return a store with a client of its own, as ``RedisReplayStore.from_url`` does.

        Args:
            url: likewise.
            timeout: likewise; a claim waits as long for one of the connections.
            connections: open at once, whatever the consumer's prefetch.
            settings: likewise.

        Raises:
            ConfigurationError: likewise, or there would be no connection.
        """
        if connections < 1:
            raise ConfigurationError("connections is at least 1")
        retry = redis.asyncio.retry.Retry(_backoff(), _RETRIES)
        limits = {"max_connections": connections, "timeout": timeout}
        pool = _pool(redis.asyncio.BlockingConnectionPool, url, timeout, retry, **limits)
        return cls(redis.asyncio.Redis.from_pool(pool), **settings)

    async def claim(self, request: ClaimRequest, /) -> ClaimStatus:
        """Take the lease where the table allows it; one round trip.

        Raises:
            Unavailable: ``replay_store_unavailable`` or ``replay_store_full``.
        """
        return (await arun(self._wishes.claim((request,))))[0]

    async def confirm(self, request: ClaimRequest, /) -> None:
        """Make the claim done, if this owner still holds it."""
        await arun(self._wishes.end(Verb.CONFIRM, (request,)))

    async def release(self, request: ClaimRequest, /) -> None:
        """Forget the claim, if this owner still holds it."""
        await arun(self._wishes.end(Verb.RELEASE, (request,)))

    async def claim_many(self, requests: Sequence[ClaimRequest], /) -> list[ClaimStatus]:
        """Claim each, in order, in one round trip for every 1,000; of one scope only on a cluster."""
        return await arun(self._wishes.claim(requests))

    async def aclose(self) -> None:
        """Close the client's connections."""
        await self._client.aclose()


def _tell(info: dict[str, Any], forbidden: str | None) -> None:
    """Log what a server's INFO says against it, or that it may not be read."""
    if forbidden is not None:
        _LOG.warning("INFO is forbidden (%s): make sure of maxmemory-policy noeviction", forbidden)
        return
    nodes = info.values() if info and all(isinstance(node, dict) for node in info.values()) else [info]
    for doubt in sorted({doubt for node in nodes for doubt in redis_script.doubts(node)}):
        _LOG.error("the replay store is not safe: %s", doubt)


def _unavailable(error: Exception) -> Unavailable:
    """Return the world's fault that a failure of the client or the server is; its text may name hosts."""
    full = isinstance(error, redis.exceptions.OutOfMemoryError)
    cause = Cause.REPLAY_STORE_FULL if full else Cause.REPLAY_STORE_UNAVAILABLE
    return Unavailable(cause, type(error).__name__)


def _backoff() -> redis.backoff.AbstractBackoff:
    """Return short waits: a longer outage is the consumer's to sit out."""
    return redis.backoff.ExponentialWithJitterBackoff(cap=0.5, base=0.05)


def _pool(kind: Any, url: str, timeout: float, retry: Any, /, **limits: float) -> Any:
    """Return connections to a URL; no text of ours repeats it, for it may hold a password."""
    try:
        pool = kind.from_url(url, socket_timeout=timeout, socket_connect_timeout=timeout, retry=retry, **limits)
    except Exception:
        raise ConfigurationError("the replay store's URL is not one of redis://, rediss:// or unix://") from None
    options = pool.connection_kwargs
    lax = options.get("ssl_cert_reqs", "required") not in ("required", ssl.CERT_REQUIRED)
    if lax or options.get("ssl_check_hostname") is False:
        raise ConfigurationError("the replay store's URL turns TLS verification off")
    return pool


def _require_timeout(client: Any) -> None:
    """Refuse a client that could wait for ever."""
    if client.get_connection_kwargs().get("socket_timeout") is None:
        raise ConfigurationError(
            "the Redis client needs a socket_timeout: a silent server would stop the consumer"
        )


class EitherRedisReplayStore:
    """Claims in Redis for a consumer of either colour: awaited where an event loop runs, plain elsewhere.

    Args:
        url: as for ``RedisReplayStore.from_url``; nothing is connected before the first claim.
        settings: likewise.

    Raises:
        ConfigurationError: the URL is none, or it turns verification off.
    """

    def __init__(self, url: str, **settings: Any) -> None:
        self._plain = RedisReplayStore.from_url(url, **settings)
        self._awaited = AsyncRedisReplayStore.from_url(url, **settings)

    def claim(self, request: ClaimRequest, /) -> ClaimStatus | Awaitable[ClaimStatus]:
        """Take the lease where the table allows it; one round trip.

        Raises:
            Unavailable: ``replay_store_unavailable`` or ``replay_store_full``.
        """
        return self._store().claim(request)

    def confirm(self, request: ClaimRequest, /) -> Awaitable[None] | None:
        """Make the claim done, if this owner still holds it."""
        return self._store().confirm(request)

    def release(self, request: ClaimRequest, /) -> Awaitable[None] | None:
        """Forget the claim, if this owner still holds it."""
        return self._store().release(request)

    def claim_many(self, requests: Sequence[ClaimRequest], /) -> list[ClaimStatus] | Awaitable[list[ClaimStatus]]:
        """Claim each, in order, in one round trip for every 1,000."""
        return self._store().claim_many(requests)

    def _store(self) -> RedisReplayStore | AsyncRedisReplayStore:
        """Return the store of this thread's colour."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return self._plain
        return self._awaited
