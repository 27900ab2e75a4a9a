"""A replay store on Redis or Valkey, which all consumers of a scope share, with and without an event loop.

A claim is one Lua script and one round trip; so are up to 1,000 claims together. What the deliveries of a queue
ask in one turn of an event loop goes together, too. Redis counts leases by its own clock, and forgets an id by
itself ``margin`` seconds after its token can last be accepted. Every failure is ``replay_store_unavailable``
(``replay_store_full`` where Redis is out of memory), never a verdict. A client may repeat a command whose answer
was lost, because an owner that claims again gets the same answer.

The server is Redis 6.0 or newer (``SET ... KEEPTTL``) or Valkey, with ``maxmemory-policy noeviction`` and
``appendonly yes``. Redis replicates asynchronously: a replica that takes over may lack the last claims.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Final

from mqauth.audit.record import iso_time
from mqauth.clock import SYSTEM_CLOCK, Clock
from mqauth.errors import Cause, ConfigurationError, Unavailable, needs_extra, require
from mqauth.flow import Flow, arun, call, run
from mqauth.logs import emit
from mqauth.replay.rules import FORGOT, ClaimRequest, ClaimStatus, MemoryLost
from mqauth.stores import redis_script
from mqauth.threads import in_event_loop

with needs_extra("redis"):
    import redis.asyncio.retry

BATCH: Final = 1000
_RETRIES: Final = 2


class RedisReplayStore:
    """Claims in Redis; threads may share it, and an event loop.

    What it answers is plain, or awaitable where the client of the calling thread is an asynchronous one.

    Args:
        client: a ``redis.Redis``, a ``redis.RedisCluster`` or a Sentinel's master, or one of ``redis.asyncio``,
            which consumers without an event loop refuse. The caller closes it.
        namespace: the first part of every key.
        margin: seconds for which an id is kept after its token has expired. No copy gets in where clocks differ
            by less than that, or after an outage that is shorter.
        clock: tells how long a token still lives.
        unsafe_lease_clock: counts leases in tests. Processes with clocks of their own may hold one claim at once.

    Raises:
        ConfigurationError: the client could wait for an answer for ever, or the margin is negative.
    """

    def __init__(
        self,
        client: Any,
        *,
        namespace: str = "mqauth",
        margin: float = 300.0,
        clock: Clock = SYSTEM_CLOCK,
        unsafe_lease_clock: Clock | None = None,
    ) -> None:
        require(
            client.get_connection_kwargs().get("socket_timeout") is not None,
            "the Redis client needs a socket_timeout: a silent server would stop the consumer",
        )
        require(margin >= 0, f"margin is 0 seconds or more, not {margin}")
        # For threads without an event loop, and for one with a loop.
        self._plain = self._awaited = client
        self._namespace = namespace
        self._margin = margin
        self._clock = clock
        self._lease_clock = unsafe_lease_clock
        # Host, port and database, or the socket; never user or password.
        settings = client.get_connection_kwargs()
        host = (
            settings.get("path")
            or f"{settings.get('host', type(client).__name__)}:{settings.get('port', '')}"
        )
        self.where = f"redis {host}/{settings.get('db', 0)}"
        # By event loop, verb and scope what was asked in its present turn, and the task that will send it.
        self._asked: dict[Any, tuple[list[ClaimRequest], asyncio.Task[list[Any]]]] = {}
        self._inspected = False
        # By scope, what the server said of its mark.
        self._marks: dict[str, str] = {}
        self.lost: MemoryLost | None = None
        """What the server has forgotten, until that is on record."""
        self.losses = 0
        """How often it did, since this process began."""

    @classmethod
    def from_url(
        cls, url: str, *, timeout: float = 2.0, connections: int = 16, **settings: Any
    ) -> RedisReplayStore:
        """Return a store with clients of its own, one for threads and one for a loop; they connect when used.

        Args:
            url: ``redis://``, ``rediss://`` (TLS, always verified) or ``unix://``, with user and password.
            timeout: seconds to wait for a connection, for an answer, and in a loop for one that is free.
            connections: the most connections open at once in a loop, whatever the consumer's prefetch.
            settings: as for the class. ``ssl_ca_certs`` and other options of the client belong in the URL.

        Raises:
            ConfigurationError: the URL is not valid or turns off the verification of TLS, or ``connections`` is
                below 1.
        """
        require(connections >= 1, f"connections is at least 1, not {connections}")
        # Short waits, because the consumer itself waits for the end of a longer outage.
        backoff = redis.backoff.FullJitterBackoff(cap=0.5, base=0.05)
        pool = _pool(
            redis.ConnectionPool, url, timeout, redis.retry.Retry(backoff, _RETRIES)
        )
        store = cls(redis.Redis.from_pool(pool), **settings)
        retry = redis.asyncio.retry.Retry(backoff, _RETRIES)
        pool = _pool(
            redis.asyncio.BlockingConnectionPool,
            url,
            timeout,
            retry,
            max_connections=connections,
            timeout=timeout,
        )
        store._awaited = redis.asyncio.Redis.from_pool(pool)
        return store

    def at_start(self) -> None:
        """Refuse an asynchronous client in a consumer without an event loop.

        Raises:
            ConfigurationError: it is one.
        """
        client, awaits = self._client()
        require(
            not awaits or in_event_loop(),
            f"there is no event loop: give the store no {type(client).__module__}.{type(client).__name__}",
        )

    def recorded(self, lost: MemoryLost, /) -> None:
        """Go on with what the server knows by now."""
        if self.lost is lost:
            self.lost = None

    def claim(self, request: ClaimRequest, /) -> ClaimStatus | Awaitable[ClaimStatus]:
        """Take the lease where the rules allow it, in one round trip.

        Raises:
            Unavailable: ``replay_store_unavailable`` or ``replay_store_full``.
        """
        return self._one(redis_script.Verb.CLAIM, request)  # type: ignore[no-any-return]

    def confirm(self, request: ClaimRequest, /) -> Awaitable[None] | None:
        """Mark the claim as done, if this owner still holds it."""
        return self._one(redis_script.Verb.CONFIRM, request)  # type: ignore[no-any-return]

    def confirm_many(self, requests: Sequence[ClaimRequest], /) -> Awaitable[None] | None:
        """Mark each as done, in one round trip for every 1,000. On a cluster all must be of one scope."""
        return self._many(redis_script.Verb.CONFIRM, requests)  # type: ignore[no-any-return]

    def release(self, request: ClaimRequest, /) -> Awaitable[None] | None:
        """Forget the claim, if this owner still holds it."""
        return self._one(redis_script.Verb.RELEASE, request)  # type: ignore[no-any-return]

    def claim_many(
        self, requests: Sequence[ClaimRequest], /
    ) -> list[ClaimStatus] | Awaitable[list[ClaimStatus]]:
        """Claim each, in order, in one round trip for every 1,000. On a cluster all must be of one scope."""
        return self._many(redis_script.Verb.CLAIM, requests)  # type: ignore[no-any-return]

    def close(self) -> None:
        """Close the connections of threads."""
        self._plain.close()

    async def aclose(self) -> None:
        """Close the connections of the event loop."""
        await self._awaited.aclose()

    def _client(self) -> tuple[Any, bool]:
        """Return the client for this thread, and whether what it gives is to be awaited."""
        client = self._awaited if in_event_loop() else self._plain
        return client, isinstance(
            client, redis.asyncio.Redis | redis.asyncio.RedisCluster
        )

    def _one(self, verb: redis_script.Verb, request: ClaimRequest) -> Any:
        """Have one request sent, in an event loop together with what comes in the same turn."""
        return (
            self._joined(verb, request)
            if self._client()[1]
            else run(self._sent(verb, (request,)))[0]
        )

    def _many(self, verb: redis_script.Verb, requests: Sequence[ClaimRequest]) -> Any:
        flow = self._sent(verb, requests)
        return arun(flow) if self._client()[1] else run(flow)

    async def _joined(self, verb: redis_script.Verb, request: ClaimRequest) -> Any:
        together = asyncio.get_running_loop(), verb, request.scope
        # What was cancelled before it began has left its list behind.
        if together not in self._asked or self._asked[together][1].done():
            self._asked[together] = [], asyncio.create_task(self._answering(together))
        asked, answering = self._asked[together]
        asked.append(request)
        number = len(asked) - 1
        # One who is cancelled takes nothing from the others.
        return (await asyncio.shield(answering))[number]

    async def _answering(self, together: Any) -> list[Any]:
        # All of this turn have asked then, also where tasks begin at once (``asyncio.eager_task_factory``).
        await asyncio.sleep(0)
        asked, _ = self._asked.pop(together)
        return await arun(self._sent(together[1], asked))

    def _sent(
        self, verb: redis_script.Verb, requests: Sequence[ClaimRequest]
    ) -> Flow[list[Any]]:
        """Return what the script says of each request, in order; it takes a round trip for every 1,000."""
        statuses: list[Any] = []
        client, _ = self._client()
        try:
            if not self._inspected:
                yield from self._inspecting(client)
            for start in range(0, len(requests), BATCH):
                part = requests[start : start + BATCH]
                statuses += yield from self._part_sent(client, verb, part)
        except Unavailable:
            raise
        except Exception as error:
            # The server has become a replica: its name may lead to the new master by now, on a new connection.
            replica = isinstance(error, redis.exceptions.ReadOnlyError)
            if replica and (pool := getattr(client, "connection_pool", None)) is not None:
                yield from call(pool.disconnect, False)
            full = isinstance(error, redis.exceptions.OutOfMemoryError)
            cause = Cause.REPLAY_STORE_FULL if full else Cause.REPLAY_STORE_UNAVAILABLE
            # The type alone: the text of a client's error may name users.
            raise Unavailable(cause, f"{type(error).__name__} ({self.where})") from error
        return statuses

    def _part_sent(
        self, client: Any, verb: redis_script.Verb, requests: Sequence[ClaimRequest]
    ) -> Flow[list[Any]]:
        """Return what the script says of up to 1,000 requests; claims ask whether the scope's mark is still there.

        Raises:
            Unavailable: it is not, or was not before, and that is not on record yet.
        """
        scope, known = requests[0].scope, redis_script.NO_MARK
        said: Mapping[str, Any] = redis_script.ENDED
        keys: list[bytes] = []
        if verb is redis_script.Verb.CLAIM:
            if self.lost is not None:
                raise self._forgetful()
            said, known = redis_script.STATUSES, self._marks.get(scope, "")
            keys.append(redis_script.mark_key(self._namespace, scope))
        asked = redis_script.script_call(
            verb,
            requests,
            namespace=self._namespace,
            now=self._clock.now(),
            margin=self._margin,
            lease_clock=None
            if self._lease_clock is None
            else self._lease_clock.monotonic(),
        )
        keys += asked.keys
        given = len(keys), *keys, known, *asked.arguments
        try:
            answer = yield from call(client.evalsha, redis_script.SHA, *given)
        # A server forgets its scripts when it restarts, or when another one takes over.
        except redis.exceptions.NoScriptError:
            answer = yield from call(client.eval, redis_script.SCRIPT, *given)

        # Another call may have told of it meanwhile: what an older answer says is no news.
        found = redis_script.read(answer)
        is_news = self.lost is None and self._marks.get(scope, "") == known
        if found.mark and is_news:
            self._marks[scope] = found.mark
        if found.since is not None:
            if is_news:
                self._forgot(scope, found.since)
            raise self._forgetful()
        letters = redis_script.letters(found.letters, asked)
        return [said[letter] for letter in letters]

    def _forgot(self, scope: str, since: float) -> None:
        """Claim nothing until it is on record that the server has lost what it knew."""
        why = f"it lacks what was written from {iso_time(since)} on"
        self.losses += 1
        self.lost = MemoryLost(
            where=self.where, why=why, scope=scope, since=since, until=self._clock.now()
        )
        emit("store.forgot", FORGOT, self.where, why)

    def _forgetful(self) -> Unavailable:
        """Return why nothing is claimed."""
        return Unavailable(
            Cause.REPLAY_STORE_UNAVAILABLE,
            f"{self.where} has lost its memory, and that is not on record yet",
        )

    def _inspecting(self, client: Any) -> Flow[None]:
        """Ask the server how it is set up, and log what it may forget."""
        info, forbidden = dict[str, Any](), None
        try:
            info = yield from call(client.info)
        except redis.exceptions.ResponseError as error:
            forbidden = type(error).__name__

        # Several first claims at once all ask the server; one of them logs.
        if self._inspected:
            return
        self._inspected = True
        if forbidden is not None:
            emit(
                "store.unchecked",
                "INFO is forbidden (%s): make sure of maxmemory-policy noeviction",
                forbidden,
            )

        # A cluster answers with a dict for each of its nodes.
        nodes = [info]
        if all(isinstance(node, dict) for node in info.values()):
            nodes = [*info.values()]
        for risk in sorted({risk for node in nodes for risk in redis_script.risks(node)}):
            emit("store.unsafe", "the replay store is not safe: %s", risk)


def _pool(kind: Any, url: str, timeout: float, retry: Any, /, **limits: float) -> Any:
    """Return a pool of connections to a URL."""
    # "from None", and no text of ours repeats the URL: it may hold a password.
    try:
        # Before 6.0 redis-py tries again only where it is told after which errors.
        pool = kind.from_url(
            url,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            retry=retry,
            retry_on_error=[redis.ConnectionError, redis.TimeoutError],
            **limits,
        )
    except Exception:
        raise ConfigurationError(
            "the replay store's URL is not one of redis://, rediss:// or unix://"
        ) from None
    options = pool.connection_kwargs
    if issubclass(
        pool.connection_class, redis.SSLConnection | redis.asyncio.SSLConnection
    ):
        # redis-py checks the name of the host by default only since 6.0.
        options.setdefault("ssl_check_hostname", True)
    strict = options.get("ssl_cert_reqs", "required") in ("required", ssl.CERT_REQUIRED)
    require(
        strict and options.get("ssl_check_hostname") is not False,
        "the replay store's URL turns TLS verification off",
    )
    return pool
