"""A workload's key: ``WITKey``, whose WIT was asked for elsewhere, and ``IdentityKey``, which asks. Experimental.

``renewal`` decides, as pure functions; ``request`` asks. ``IdentityKey`` joins them with one thread, which alone
makes requests, so that there is one at a time. A second thread follows the authority's JWK Set, as a consumer
does: it tells when the key that vouches for us is revoked, or our subject cut off.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Final, Literal

from mqauth.clock import SYSTEM_CLOCK, SYSTEM_RANDOMNESS, Clock, Randomness
from mqauth.errors import Cause, ConfigurationError, Unavailable, require
from mqauth.http.connection import MAX_TIMEOUT, FetchFailed
from mqauth.keystore.identity import renewal
from mqauth.keystore.identity.request import (
    KEYS_PATH,
    Credential,
    IdentityRequest,
    Refused,
)
from mqauth.keystore.remote.fetch import ThreadRefresher
from mqauth.keystore.remote.jwks import JWKS
from mqauth.logs import emit
from mqauth.threads import Closing, after_fork, in_event_loop
from mqauth.wire.identity import Identity
from mqauth.wire.jws import LocalSigningKey
from mqauth.wire.keys import Key, KeySet
from mqauth.wire.workload import WorkloadKey

WAIT: Final = 2.0
"""Seconds for which a caller without a key waits for the first answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The state of a renewed identity. Times are in seconds, ``None`` where there is none.

    Args:
        authority: its host.
        subject: the identity.
        state: ``"fresh"``; ``"failing"``, in use while requests fail; or ``"unavailable"``, nothing is signed.
        expires_in: the time until the identity ends.
        renew_in: the time until the next request.
        failing_for: the time since the first request that failed, of the present outage.
        last_failure: why the last request failed or the identity was given up, ``None`` where all is well.
        counters: the number of ``attempts``, and of those ``renewed`` and ``failed``, since the start.
    """

    authority: str
    subject: str
    state: Literal["fresh", "failing", "unavailable"]
    expires_in: float | None
    renew_in: float
    failing_for: float | None
    last_failure: str | None
    counters: Mapping[str, int]


class WITKey:
    """A ``SigningKeySource`` whose tokens have the identity form: WIT and proof in one header.

    Args:
        wit: the WIT that an authority issued.
        key: the private key it vouches for: Ed25519, P-256 or P-384.
        clock: tells the time.

    Raises:
        ConfigurationError: this is no WIT, it vouches for another key, or it has ended.
    """

    is_identity: ClassVar[bool] = True

    def __init__(self, wit: str, key: Key, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._current = WorkloadKey(wit, LocalSigningKey(key), key.public)
        require(self.identity.expires > clock.now(), "the identity has ended")

    @property
    def identity(self) -> Identity:
        """What the WIT in use says; it was not verified here."""
        return self._current.identity

    def renew(self, wit: str, key: Key) -> None:
        """Sign with another WIT and its key from now on.

        Raises:
            ConfigurationError: this is no WIT, it vouches for another key, or it is of another subject.
        """
        workload = WorkloadKey(wit, LocalSigningKey(key), key.public)
        require(
            workload.identity.subject == self.identity.subject,
            "the identity is of another subject",
        )
        self._current = workload

    def signing_key(self) -> WorkloadKey:
        """Return the key that signs now.

        Raises:
            Unavailable: ``keys_unavailable``, the identity has ended.
        """
        workload = self._current
        require(
            workload.identity.expires > self._clock.now(),
            "the identity has ended",
            partial(Unavailable, Cause.KEYS_UNAVAILABLE),
        )
        return workload


class IdentityKey(Closing):
    """A ``SigningKeySource`` whose identity an authority gives and renews; it asks nothing before its first use.

    Each identity gets a fresh key, which is never written anywhere. It is renewed at half its life. While the
    authority is out of reach the identity is used on until it ends; after that nothing is signed. Threads, event
    loops and a child after a fork may share it.

    Args:
        authority: its url: https; http only on loopback, with ``unsafe_http_loopback``.
        subject: the identity that is asked for, such as ``wimse://prod.example/shop/orders-api``.
        credential: what the authority takes: ``TokenFile``, ``OwnKey`` or ``ClientCredentials``.
        algorithm: of the keys: ``EdDSA``, ``ES256`` or ``ES384``.
        ca: a PEM file of the CAs to trust instead of the system's.
        unsafe_http_loopback: allow http to this machine.
        clock: tells the time.
        randomness: spreads the requests of many producers, and makes the ids of proofs.
        ask: makes a request, in place of HTTP.
        keys: makes what follows the authority's set, in place of ``JWKS``.
        refresher: makes the object that does the work when it is due, in place of a thread; for tests.

    Raises:
        ConfigurationError: an argument is not allowed.
    """

    is_identity: ClassVar[bool] = True

    def __init__(
        self,
        authority: str,
        *,
        subject: str,
        credential: Credential,
        algorithm: str = "EdDSA",
        ca: str | Path | None = None,
        unsafe_http_loopback: bool = False,
        clock: Clock = SYSTEM_CLOCK,
        randomness: Randomness = SYSTEM_RANDOMNESS,
        ask: Callable[[], renewal.Grant] | None = None,
        keys: Callable[[], JWKS] | None = None,
        refresher: Callable[
            [threading.Condition, Callable[[], float]], ThreadRefresher
        ] = ThreadRefresher,
    ) -> None:
        request = IdentityRequest(
            authority,
            subject=subject,
            credential=credential,
            algorithm=algorithm,
            timeout=MAX_TIMEOUT,
            ca=ca,
            unsafe_http_loopback=unsafe_http_loopback,
            clock=clock,
            randomness=randomness,
        )
        self.host = request.host
        self.subject = subject
        self._ask = ask or request
        self._clock = clock
        self._randomness = randomness
        make_keys = keys or partial(
            JWKS,
            f"{authority}{KEYS_PATH}",
            fresh=60,
            ca=ca,
            unsafe_http_loopback=unsafe_http_loopback,
            clock=clock,
            randomness=randomness,
        )
        self._keys = make_keys()
        self._keys.subscribe(self._heard)
        self._make_refresher = refresher
        self._counters: Counter[str] = Counter()
        self._state = renewal.Renewal()
        self.forked()
        after_fork(self)

    def __enter__(self) -> IdentityKey:
        self.start()
        return self

    def start(self, wait: float = MAX_TIMEOUT) -> None:
        """Ask now, and from now on in the background; the first use does the same.

        Args:
            wait: seconds for which the first answer is waited for, also in an event loop.
        """
        self._refresher.ensure()
        with self._condition:
            # Until there is a key, or a failure that says why not.
            self._condition.wait_for(
                lambda: (
                    self._state.failures > 0
                    or renewal.usable(self._state, renewal.Moment.of(self._clock))
                    is not None
                ),
                wait,
            )
        self._keys.start()

    def close(self) -> None:
        """Stop asking; the identity is used on until it ends.

        Waits for a request in flight, at most for its timeout.
        """
        self._refresher.close()
        self._keys.close()

    def signing_key(self) -> WorkloadKey:
        """Return the key that signs now.

        Without an identity the first answer is waited for, 2 s at most, and not in an event loop.

        Raises:
            Unavailable: ``keys_unavailable``, with the authority's host.
        """
        # A child after a fork, where something is signed too, has no threads yet.
        self._refresher.ensure()
        self._keys.start()
        key = renewal.usable(self._state, renewal.Moment.of(self._clock))
        if key is None:
            self.start(0 if in_event_loop() else WAIT)
            key = renewal.usable(self._state, renewal.Moment.of(self._clock))
        if key is None:
            why = self._state.why or "the identity has ended, or was not given yet"
            raise Unavailable(Cause.KEYS_UNAVAILABLE, f"{self.host}: {why}")
        return key

    def health(self) -> Health:
        """Return the state of the identity, its times and its counters."""
        state, now = self._state, renewal.Moment.of(self._clock)
        usable = renewal.usable(state, now) is not None
        return Health(
            authority=self.host,
            subject=self.subject,
            state="unavailable"
            if not usable
            else "failing"
            if state.failures
            else "fresh",
            expires_in=state.life - now.since(state.asked) if usable else None,
            renew_in=max(0.0, renewal.wait(state, now)),
            failing_for=None
            if state.failing_since is None
            else now.monotonic - state.failing_since,
            last_failure=state.why or None,
            counters=dict(self._counters),
        )

    def forked(self) -> None:
        """Make what a child after a fork lacks, lock and thread; it renews at a time of its own."""
        self._condition = threading.Condition()
        self._refresher = self._make_refresher(self._condition, self._work)
        self._state = renewal.forked(self._state, self._jitter())

    def _work(self) -> float:
        """Make the request that is due, if any; return the seconds until the next one is due."""
        asked = renewal.Moment.of(self._clock)
        if renewal.wait(self._state, asked) <= 0:
            self._counters["attempts"] += 1
            result: renewal.Grant | Exception
            try:
                result = self._ask()
            except (FetchFailed, ConfigurationError, Unavailable) as error:
                result = error
            # Whatever goes wrong is a failure of this request. The thread goes on, and asks again.
            except Exception as error:
                emit(
                    "keys.fetch_failed",
                    "%s: the request for an identity broke",
                    self.host,
                    error=error,
                )
                result = FetchFailed(f"the request broke: {type(error).__name__}")
            # The state after the request; everybody who waits is woken.
            if isinstance(result, renewal.Grant):
                # An authority that goes on to vouch with a revoked key would be asked without end.
                why = self._refusal(result.key)
                result = result if why is None else FetchFailed(why)
            with self._condition:
                before = self._state
                if isinstance(result, renewal.Grant):
                    self._state = renewal.granted(
                        result, asked=asked, jitter=self._jitter()
                    )
                else:
                    self._state = renewal.failed(
                        before,
                        str(result),
                        now=renewal.Moment.of(self._clock),
                        jitter=self._jitter(),
                        retry_after=result.retry_after
                        if isinstance(result, Refused)
                        else 0,
                    )
                self._condition.notify_all()
            state = self._state
            if not state.failures:
                self._counters["renewed"] += 1
                emit(
                    "identity.renewed",
                    "%s: %s has an identity for %.0f s",
                    self.host,
                    self.subject,
                    state.life,
                )
            else:
                self._counters["failed"] += 1
                usable = renewal.usable(state, renewal.Moment.of(self._clock)) is not None
                text = "the last one is in use" if usable else "nothing can be signed"
                emit(
                    "identity.failed",
                    "%s: no identity for %s: %s; %s",
                    self.host,
                    self.subject,
                    state.why,
                    text,
                    level=None if usable else logging.ERROR,
                )
            # A set that came since the look above was heard of while another identity was held, or none.
            with suppress(Unavailable):
                self._heard(self._keys.key_set())
        return renewal.wait(self._state, renewal.Moment.of(self._clock))

    def _heard(self, keys: KeySet) -> None:
        """Give an identity up that consumers refuse by a new set of the authority."""
        with self._condition:
            held = self._state.key
            why = None if held is None else renewal.refusal(held.identity, keys)
            if why is not None:
                self._state = renewal.given_up(self._state, why)
        if why is not None:
            emit(
                "identity.refused",
                "%s: %s may sign no more: %s",
                self.host,
                self.subject,
                why,
            )
            self._refresher.wake()

    def _refusal(self, key: WorkloadKey) -> str | None:
        with suppress(Unavailable):
            return renewal.refusal(key.identity, self._keys.key_set())
        return None

    def _jitter(self) -> float:
        return self._randomness(1)[0] / 256
