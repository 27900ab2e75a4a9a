"""When a producer asks for its next identity, and how long it may use the one it has: pure functions.

An identity has an *age*: the seconds since it was asked for, by the monotonic or the wall clock, whichever
is more. The first is never set. The second also counts what a suspended machine slept. What differs between the
clocks of producer and authority cancels out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from mqauth.clock import Backoff, Clock
from mqauth.wire.identity import Identity
from mqauth.wire.keys import KeySet
from mqauth.wire.workload import WorkloadKey

RETRIES: Final = Backoff(first=1.0, longest=60.0)
"""Seconds between two requests while they fail."""
JITTER: Final = 0.1
"""The share of a wait by which it may be shorter, so that many producers do not ask at the same time."""
NEVER: Final = float("-inf")


class Moment(NamedTuple):
    """Now, on both clocks.

    Args:
        monotonic: seconds that are never set.
        wall: UTC seconds.
    """

    monotonic: float
    wall: float

    @classmethod
    def of(cls, clock: Clock) -> Moment:
        """Return what a clock says now."""
        return cls(clock.monotonic(), clock.now())

    def since(self, earlier: Moment) -> float:
        """Return the seconds since an earlier moment, by the clock that says more."""
        return max(self.monotonic - earlier.monotonic, self.wall - earlier.wall)


_NEVER: Final = Moment(NEVER, NEVER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What an authority gave.

    Args:
        key: a new key, with the WIT that vouches for it.
        expires_in: seconds for which the WIT lives, from the request on.
        renew_in: seconds after which the authority wants to be asked again.
    """

    key: WorkloadKey
    expires_in: float
    renew_in: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewal:
    """How far the renewal of one producer's identity has come; it begins without an identity, and due.

    Args:
        key: signs; ``None`` where there is none, or where consumers refuse it.
        asked: when it was asked for.
        life: seconds for which it may be used.
        renew_after: the age at which the next one is asked for.
        retry: monotonic seconds before which nothing is asked.
        failures: requests that failed since the last that succeeded.
        failing_since: monotonic seconds of the first of these.
        why: the last failure, or why the key was given up; empty where all is well.
    """

    key: WorkloadKey | None = None
    asked: Moment = _NEVER
    life: float = 0
    renew_after: float = 0
    retry: float = NEVER
    failures: int = 0
    failing_since: float | None = None
    why: str = ""


def usable(state: Renewal, now: Moment) -> WorkloadKey | None:
    """Return the key that may sign now; tokens of a longer life than it has left are refused by ``Signer``."""
    return state.key if now.since(state.asked) < state.life else None


def wait(state: Renewal, now: Moment) -> float:
    """Return the seconds until the next request is due, at most 0 where it is due now."""
    return max(
        0.0 if state.key is None else state.renew_after - now.since(state.asked),
        state.retry - now.monotonic,
    )


def granted(grant: Grant, *, asked: Moment, jitter: float) -> Renewal:
    """Return the state after a good answer: the next request is due at half the life, at most.

    Args:
        grant: the answer.
        asked: the moment before the request, so that its way counts.
        jitter: 0 to 1.
    """
    return Renewal(
        key=grant.key,
        asked=asked,
        life=grant.expires_in,
        renew_after=min(grant.renew_in, grant.expires_in / 2) * (1 - JITTER * jitter),
    )


def failed(
    state: Renewal, why: str, *, now: Moment, jitter: float, retry_after: float = 0
) -> Renewal:
    """Return the state after a request that failed; the identity in use stays.

    Args:
        state: the state before.
        why: one line for people, without a credential.
        now: the moment after the request.
        jitter: 0 to 1.
        retry_after: seconds that the authority asks for; they count up to 60.
    """
    return replace(
        state,
        retry=now.monotonic
        + pause(state.failures, jitter=jitter, retry_after=retry_after),
        failures=state.failures + 1,
        failing_since=now.monotonic
        if state.failing_since is None
        else state.failing_since,
        why=why,
    )


def pause(failures: int, *, jitter: float, retry_after: float = 0) -> float:
    """Return the seconds to wait after a failure: 1, doubling to 60, and at least what the authority asks for."""
    return min(
        RETRIES.longest,
        max(
            RETRIES.first, RETRIES.step(1 + failures) * (1 - JITTER * jitter), retry_after
        ),
    )


def given_up(state: Renewal, why: str) -> Renewal:
    """Return the state in which consumers refuse the identity: nothing is signed, and the next is due at once.

    While requests fail, their pauses stay, so that an authority that goes on to vouch with a revoked key is not
    asked without a pause.
    """
    return replace(state, key=None, why=why)


def refusal(identity: Identity, keys: KeySet) -> str | None:
    """Return why consumers refuse an identity by the authority's set, ``None`` if they do not.

    A kid that the set lacks is no reason: the copy may be older than the key.
    """
    key, cutoff = keys.get(identity.kid), keys.cutoffs.get(identity.subject)
    if key is not None and key.revocation is not None:
        return "the authority's key that signed the identity is revoked"
    is_cut = cutoff is not None and (
        identity.issued is None or identity.issued < cutoff.before
    )
    return "the subject is cut off" if is_cut else None


def forked(state: Renewal, jitter: float) -> Renewal:
    """Return the state of a child after a fork, which asks earlier than its parent by its own jitter."""
    return replace(state, renew_after=state.renew_after * (1 - JITTER * jitter))
