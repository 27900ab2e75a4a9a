"""Replay stores on Redis or Valkey, which all consumers of a scope share; one for each kind of client.

A claim is one Lua script and one round trip; so are up to 1,000 claims together. Redis counts leases by its own
clock, and forgets an id by itself ``margin`` seconds after its token can last be accepted. Every failure is
``replay_store_unavailable`` (``replay_store_full`` where Redis is out of memory), never a verdict. A client may
repeat a command whose answer was lost, because an owner that claims again gets the same answer.

The server is Redis 6.0 or newer (``SET ... KEEPTTL``) or Valkey, with ``maxmemory-policy noeviction`` and
``appendonly yes``. Redis replicates asynchronously: a replica that takes over may lack the last claims.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Awaitable, Sequence
from typing import Any, ClassVar, Final

from mqauth.clock import SYSTEM_CLOCK, Clock
from mqauth.errors import Cause, ConfigurationError, Unavailable, needs_extra, require
from mqauth.flow import Flow, arun, call, run
from mqauth.logs import emit
from mqauth.replay.rules import ClaimRequest, ClaimStatus
from mqauth.stores import redis_script

with needs_extra("redis"):
    import redis.asyncio.retry

DEFAULT_TIMEOUT: Final = 2.0
BATCH: Final = 1000
_RETRIES: Final = 2


class _RedisClaims:
    """What both stores do, as flows, which serve synchronous and asynchronous clients alike."""

    _asynchronous: ClassVar[bool]

    def __init__(
        self,
        client: Any,
        *,
        namespace: str = "mqauth",
        margin: float = 300.0,
        clock: Clock = SYSTEM_CLOCK,
        unsafe_lease_clock: Clock | None = None,
    ) -> None:
        asynchronous = isinstance(client, redis.asyncio.Redis | redis.asyncio.RedisCluster)
        if asynchronous is not self._asynchronous:
            kind, other = ("asynchronous", "Async") if asynchronous else ("synchronous", "")
            raise ConfigurationError(f"the Redis client is {kind}: use {other}RedisReplayStore")
        require(
            client.get_connection_kwargs().get("socket_timeout") is not None,
            "the Redis client needs a socket_timeout: a silent server would stop the consumer",
        )
        require(margin >= 0, f"margin is 0 seconds or more, not {margin}")
        self._client = client
        self._namespace = namespace
        self._margin = margin
        self._clock = clock
        self._lease_clock = unsafe_lease_clock
        # Host, port and database, or the socket; never user or password.
        settings = client.get_connection_kwargs()
        host = settings.get("path") or f"{settings.get('host', type(client).__name__)}:{settings.get('port', '')}"
        self.where = f"redis {host}/{settings.get('db', 0)}"
        self._inspected = False
        self._inspecting = threading.Lock()

    def _claim(self, requests: Sequence[ClaimRequest]) -> Flow[list[ClaimStatus]]:
        letters = yield from self._send(redis_script.Verb.CLAIM, requests)
        try:
            return [redis_script.STATUSES[letter] for letter in letters]
        except Exception as error:
            raise self._unavailable(error) from error

    def _send(self, verb: redis_script.Verb, requests: Sequence[ClaimRequest]) -> Flow[list[str]]:
        """Return the letter that the script answers to each request; it takes a round trip for every 1,000."""
        answers: list[str] = []
        try:
            if not self._inspected:
                info, forbidden = dict[str, Any](), None
                try:
                    info = yield from call(self._client.info)
                except redis.exceptions.ResponseError as error:
                    forbidden = type(error).__name__
                # Several first claims at once all ask the server; only one of them logs what it may forget.
                with self._inspecting:
                    first, self._inspected = not self._inspected, True
                if first and forbidden is not None:
                    emit(
                        "store.unchecked",
                        "INFO is forbidden (%s): make sure of maxmemory-policy noeviction",
                        forbidden,
                    )
                # A cluster answers with a dict for each of its nodes.
                cluster = info and all(isinstance(node, dict) for node in info.values())
                nodes = info.values() if cluster else [info]
                risks = {risk for node in nodes for risk in redis_script.risks(node)} if first else set[str]()
                for risk in sorted(risks):
                    emit("store.unsafe", "the replay store is not safe: %s", risk)
            for start in range(0, len(requests), BATCH):
                asked = redis_script.script_call(
                    verb,
                    requests[start : start + BATCH],
                    namespace=self._namespace,
                    now=self._clock.now(),
                    margin=self._margin,
                    lease_clock=None if self._lease_clock is None else self._lease_clock.monotonic(),
                )
                given = (len(asked.keys), *asked.keys, *asked.arguments)
                try:
                    answer = yield from call(self._client.evalsha, redis_script.SHA, *given)
                # A server forgets its scripts when it restarts, or when another one takes over.
                except redis.exceptions.NoScriptError:
                    answer = yield from call(self._client.eval, redis_script.SCRIPT, *given)
                answers += redis_script.letters(answer, asked)
        except redis.exceptions.ReadOnlyError as error:
            # The server has become a replica. Its name may lead to the new master by now, on a new connection.
            pool = getattr(self._client, "connection_pool", None)
            if pool is not None:
                yield from call(pool.disconnect, False)
            raise self._unavailable(error) from error
        except Exception as error:
            raise self._unavailable(error) from error
        return answers

    def _unavailable(self, error: Exception) -> Unavailable:
        """Return the deferral for a failure of the client or the server."""
        full = isinstance(error, redis.exceptions.OutOfMemoryError)
        cause = Cause.REPLAY_STORE_FULL if full else Cause.REPLAY_STORE_UNAVAILABLE
        # The type alone: the text of a client's error may name users.
        return Unavailable(cause, f"{type(error).__name__} ({self.where})")


class RedisReplayStore(_RedisClaims):
    """Claims in Redis, for consumers without an event loop. Threads may share it.

    Args:
        client: a ``redis.Redis``, a ``redis.RedisCluster`` or a Sentinel's master. The caller closes it.
        namespace: the first part of every key.
        margin: seconds for which an id is kept after its token has expired. No copy gets in where clocks differ
            by less than that, or after an outage that is shorter.
        clock: tells how long a token still lives.
        unsafe_lease_clock: counts leases in tests. Processes with clocks of their own may hold one claim at once.

    Raises:
        ConfigurationError: the client is asynchronous, it could wait for an answer for ever, or the margin is
            negative.
    """

    _asynchronous = False

    @classmethod
    def from_url(cls, url: str, *, timeout: float = DEFAULT_TIMEOUT, **settings: Any) -> RedisReplayStore:
        """Return a store with a client of its own, which connects with the first claim.

        Args:
            url: ``redis://``, ``rediss://`` (TLS, always verified) or ``unix://``, with user and password.
            timeout: seconds to wait for a connection, and for an answer.
            settings: as for the class. ``ssl_ca_certs`` and other options of the client belong in the URL.

        Raises:
            ConfigurationError: the URL is not valid, or turns off the verification of TLS.
        """
        return cls(
            redis.Redis.from_pool(
                _pool(redis.ConnectionPool, url, timeout, redis.retry.Retry(_backoff(), _RETRIES))
            ),
            **settings,
        )

    def claim(self, request: ClaimRequest, /) -> ClaimStatus:
        """Take the lease where the rules allow it, in one round trip.

        Raises:
            Unavailable: ``replay_store_unavailable`` or ``replay_store_full``.
        """
        return run(self._claim((request,)))[0]

    def confirm(self, request: ClaimRequest, /) -> None:
        """Mark the claim as done, if this owner still holds it."""
        run(self._send(redis_script.Verb.CONFIRM, (request,)))

    def release(self, request: ClaimRequest, /) -> None:
        """Forget the claim, if this owner still holds it."""
        run(self._send(redis_script.Verb.RELEASE, (request,)))

    def claim_many(self, requests: Sequence[ClaimRequest], /) -> list[ClaimStatus]:
        """Claim each, in order, in one round trip for every 1,000. On a cluster all must be of one scope."""
        return run(self._claim(requests))

    def close(self) -> None:
        """Close the client's connections."""
        self._client.close()


class AsyncRedisReplayStore(_RedisClaims):
    """Claims in Redis, for consumers in an event loop; synchronous consumers refuse it.

    Args:
        client: a ``redis.asyncio.Redis``, ``RedisCluster`` or a Sentinel's master. The caller closes it.
        namespace: as for ``RedisReplayStore``, and so are all others.

    Raises:
        ConfigurationError: the client is synchronous, it could wait for an answer for ever, or the margin is
            negative.
    """

    _asynchronous = True

    @classmethod
    def from_url(
        cls, url: str, *, timeout: float = DEFAULT_TIMEOUT, connections: int = 16, **settings: Any
    ) -> AsyncRedisReplayStore:
        """Return a store with a client of its own, which connects with the first claim.

        Args:
            url: as for ``RedisReplayStore.from_url``.
            timeout: seconds to wait for a connection, for an answer, and for a free one of the connections.
            connections: the most connections open at once, whatever the consumer's prefetch.
            settings: as for the class.

        Raises:
            ConfigurationError: the URL is not valid or turns off the verification of TLS, or ``connections`` is
                below 1.
        """
        require(connections >= 1, f"connections is at least 1, not {connections}")
        retry = redis.asyncio.retry.Retry(_backoff(), _RETRIES)
        pool = _pool(
            redis.asyncio.BlockingConnectionPool, url, timeout, retry, max_connections=connections, timeout=timeout
        )
        return cls(redis.asyncio.Redis.from_pool(pool), **settings)

    async def claim(self, request: ClaimRequest, /) -> ClaimStatus:
        """Take the lease where the rules allow it, in one round trip.

        Raises:
            Unavailable: ``replay_store_unavailable`` or ``replay_store_full``.
        """
        return (await arun(self._claim((request,))))[0]

    async def confirm(self, request: ClaimRequest, /) -> None:
        """Mark the claim as done, if this owner still holds it."""
        await arun(self._send(redis_script.Verb.CONFIRM, (request,)))

    async def release(self, request: ClaimRequest, /) -> None:
        """Forget the claim, if this owner still holds it."""
        await arun(self._send(redis_script.Verb.RELEASE, (request,)))

    async def claim_many(self, requests: Sequence[ClaimRequest], /) -> list[ClaimStatus]:
        """Claim each, in order, in one round trip for every 1,000. On a cluster all must be of one scope."""
        return await arun(self._claim(requests))

    async def aclose(self) -> None:
        """Close the client's connections."""
        await self._client.aclose()


class EitherRedisReplayStore:
    """Claims in Redis for any consumer: awaitable where an event loop runs in the thread, plain elsewhere.

    A configuration file names a URL, and does not say whether its consumer is asynchronous.

    Args:
        url: as for ``RedisReplayStore.from_url``.
        settings: as for ``RedisReplayStore``.

    Raises:
        ConfigurationError: the URL is not valid, or turns off the verification of TLS.
    """

    def __init__(self, url: str, **settings: Any) -> None:
        self._plain = RedisReplayStore.from_url(url, **settings)
        self._awaited = AsyncRedisReplayStore.from_url(url, **settings)
        self.where = self._plain.where

    def claim(self, request: ClaimRequest, /) -> ClaimStatus | Awaitable[ClaimStatus]:
        """Take the lease where the rules allow it, in one round trip.

        Raises:
            Unavailable: ``replay_store_unavailable`` or ``replay_store_full``.
        """
        return self._store().claim(request)

    def confirm(self, request: ClaimRequest, /) -> Awaitable[None] | None:
        """Mark the claim as done, if this owner still holds it."""
        return self._store().confirm(request)

    def release(self, request: ClaimRequest, /) -> Awaitable[None] | None:
        """Forget the claim, if this owner still holds it."""
        return self._store().release(request)

    def claim_many(self, requests: Sequence[ClaimRequest], /) -> list[ClaimStatus] | Awaitable[list[ClaimStatus]]:
        """Claim each, in order, in one round trip for every 1,000."""
        return self._store().claim_many(requests)

    def _store(self) -> RedisReplayStore | AsyncRedisReplayStore:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return self._plain
        return self._awaited


def _backoff() -> redis.backoff.AbstractBackoff:
    # Short waits, because the consumer itself waits for the end of a longer outage.
    return redis.backoff.FullJitterBackoff(cap=0.5, base=0.05)


def _pool(kind: Any, url: str, timeout: float, retry: Any, /, **limits: float) -> Any:
    """Return a pool of connections to a URL."""
    # "from None", and no text of ours repeats the URL: it may hold a password.
    try:
        # Before 6.0 redis-py tries again only where it is told after which errors.
        pool = kind.from_url(
            url, socket_timeout=timeout, socket_connect_timeout=timeout, retry=retry,
            retry_on_error=[redis.ConnectionError, redis.TimeoutError], **limits,
        )  # fmt: skip
    except Exception:
        raise ConfigurationError("the replay store's URL is not one of redis://, rediss:// or unix://") from None
    options = pool.connection_kwargs
    if issubclass(pool.connection_class, redis.SSLConnection | redis.asyncio.SSLConnection):
        # redis-py checks the name of the host by default only since 6.0.
        options.setdefault("ssl_check_hostname", True)
    strict = options.get("ssl_cert_reqs", "required") in ("required", ssl.CERT_REQUIRED)
    require(
        strict and options.get("ssl_check_hostname") is not False,
        "the replay store's URL turns TLS verification off",
    )
    return pool
