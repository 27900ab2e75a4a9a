"""An identity that is renewed: the rules as properties, and the key on a fake clock, its authority a script."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqauth import JWKS, Cause, ConfigurationError, IdentityKey, Signer, Unavailable
from mqauth.http.connection import FetchFailed
from mqauth.keystore.identity import renewal
from mqauth.keystore.identity.renewal import Grant, Moment, Renewal
from mqauth.keystore.identity.request import Refused, TokenFile
from mqauth.keystore.remote.fetch import ThreadRefresher
from mqauth.keystore.remote.rules import Answer
from mqauth.testing import FakeClock
from mqauth.testing.identity import OTHER_WORKLOAD, TRUST_DOMAIN, WORKLOAD, WITSigner
from mqauth.testing.token_attacks import honest_message
from mqauth.wire.jws import LocalSigningKey
from mqauth.wire.keys import Cutoff, Key, KeySet, Revocation
from mqauth.wire.workload import WorkloadKey
from tests.conftest import together
from tests.memory_authority import OnTheSpot

URL = "https://authority.prod.example"
HOST = "authority.prod.example"
JITTER = st.floats(0, 1)
NOW = Moment(1000.0, 1_900_000_000.0)


def grant(life: int = 3600, renew_in: int | None = None) -> Grant:
    """Return what an authority gave."""
    key, authority = Key.generate(), WITSigner(clock=FakeClock(NOW.wall), lifetime=life)
    held = WorkloadKey(
        authority.wit(WORKLOAD, key), LocalSigningKey(key), key.public, HOST
    )
    return Grant(
        key=held, expires_in=life, renew_in=life // 2 if renew_in is None else renew_in
    )


GRANT = grant()


def later(seconds: float, stepped: float = 0) -> Moment:
    """Return a moment after ``NOW``, the wall clock of which was stepped besides."""
    return Moment(NOW.monotonic + seconds, NOW.wall + seconds + stepped)


@pytest.fixture
def bench() -> Bench:
    """A key that is renewed, and its authority."""
    return Bench()


@given(JITTER, st.integers(300, 86_400), st.data())
def test_an_identity_is_renewed_at_half_its_life(
    jitter: float, life: int, data: st.DataObject
) -> None:
    """The next request is due from 45 to 50 % of the life on, or earlier where the authority says so."""
    wanted = data.draw(st.integers(1, life))
    given_ = Grant(key=GRANT.key, expires_in=life, renew_in=wanted)
    state = renewal.granted(given_, asked=NOW, jitter=jitter)
    half = min(life / 2, wanted)
    assert 0.9 * half <= renewal.wait(state, NOW) <= half
    assert renewal.wait(state, later(half)) <= 0
    assert renewal.wait(state, later(0.89 * half)) > 0


@given(JITTER, st.integers(0, 1000), st.floats(0, 1e9))
def test_a_pause_is_1_to_60_seconds(
    jitter: float, failures: int, retry_after: float
) -> None:
    """Whatever an authority asks for, a pause is within 1 and 60 s, and as long as it asks for up to that."""
    found = renewal.pause(failures, jitter=jitter, retry_after=retry_after)
    assert min(60, max(1, retry_after)) <= found <= 60


@given(st.integers(0, 30))
def test_pauses_double(failures: int) -> None:
    """Without jitter a pause is twice the one before, to 60 s."""
    assert renewal.pause(failures, jitter=0) == min(60, 2**failures)


@given(st.lists(st.tuples(JITTER, st.floats(0, 600)), max_size=40))
def test_failures_never_shorten_an_identity(outages: list[tuple[float, float]]) -> None:
    """However requests fail, the identity is used until it ends, and no two requests are within a second."""
    state, now = renewal.granted(GRANT, asked=NOW, jitter=0), later(1800)
    for jitter, seconds in outages:
        state = renewal.failed(state, "out of reach", now=now, jitter=jitter)
        assert 1 <= renewal.wait(state, now) <= 60
        now = Moment(now.monotonic + seconds, now.wall + seconds)
        left = NOW.monotonic + 3600 - now.monotonic
        assert (renewal.usable(state, now) is GRANT.key) == (left > 0)
    assert state.failures == len(outages)


@given(st.floats(-1e6, 1e6), st.floats(0, 7200))
def test_a_clock_that_is_set_never_lengthens_an_identity(
    stepped: float, seconds: float
) -> None:
    """A clock set back changes nothing; one set forward, as after a sleep, ends the identity earlier."""
    state = renewal.granted(GRANT, asked=NOW, jitter=0)
    aged = seconds + max(0, stepped)
    assert (renewal.usable(state, later(seconds, stepped)) is None) == (
        aged >= 3600
    ) or abs(aged - 3600) < 1e-3
    assert (renewal.wait(state, later(seconds, stepped)) <= 0) == (aged >= 1800) or abs(
        aged - 1800
    ) < 1e-3


@given(JITTER)
def test_a_child_asks_no_later_than_its_parent(jitter: float) -> None:
    """After a fork each child asks at a time of its own, up to 10 % earlier."""
    state = renewal.granted(GRANT, asked=NOW, jitter=0)
    assert 0.9 * 1800 - 1e-6 <= renewal.wait(renewal.forked(state, jitter), NOW) <= 1800


def test_without_an_identity_a_request_is_due_at_once() -> None:
    """A producer that starts, and one whose identity was given up, asks now."""
    assert renewal.wait(Renewal(), NOW) <= 0
    state = renewal.given_up(renewal.granted(GRANT, asked=NOW, jitter=0), "revoked")
    assert renewal.usable(state, NOW) is None
    assert renewal.wait(state, NOW) <= 0


def test_giving_up_keeps_the_pause() -> None:
    """An authority that fails is not asked at once because its set says that a key is revoked."""
    state = renewal.failed(
        renewal.granted(GRANT, asked=NOW, jitter=0), "503", now=NOW, jitter=0
    )
    assert renewal.wait(renewal.given_up(state, "revoked"), NOW) == 1


@pytest.mark.parametrize(
    ("keys", "cutoffs", "why"),
    [
        ([], {}, None),
        ([Revocation(revoked_at=0)], {}, "revoked"),
        ([Revocation(revoked_at=1_900_000_500)], {}, "revoked"),
        ([None], {WORKLOAD: 1_900_000_000}, None),
        ([None], {WORKLOAD: 1_900_000_001}, "cut off"),
        ([None], {OTHER_WORKLOAD: 1_900_000_001}, None),
    ],
)
def test_what_consumers_refuse(
    keys: list[Any], cutoffs: dict[str, int], why: str | None
) -> None:
    """An identity is refused by a revocation of its kid and a cut-off after its iat, not by a missing kid."""
    one = Key.generate()
    signed = [
        Key(
            kid=GRANT.key.identity.kid,
            algorithm="EdDSA",
            public=one.public,
            revocation=found,
        )
        for found in keys
    ]
    found = renewal.refusal(
        GRANT.key.identity,
        KeySet(
            signed,
            cutoffs={name: Cutoff(before=before) for name, before in cutoffs.items()},
        ),
    )
    assert found is None if why is None else found is not None and why in found


# --- the key ----------------------------------------------------------------------------------------------


class Bench:
    """An authority that is a script, its set, and one producer's key on a fake clock."""

    def __init__(self, **settings: Any) -> None:
        self.clock = FakeClock()
        self.authority = WITSigner(clock=self.clock)
        self.answer: Exception | None = None
        self.asked = 0
        self.before: Callable[[], Any] = lambda: None
        self.serves: Answer = Answer(keys=self.authority.keys)
        self.watch: JWKS | None = None
        wanted: dict[str, Any] = {
            "subject": WORKLOAD, "credential": TokenFile("token"), "clock": self.clock, "randomness": bytes,
            "ask": self.ask, "keys": self.keys, "refresher": OnTheSpot,
        }  # fmt: skip
        self.key = IdentityKey(URL, **(wanted | settings))

    def ask(self) -> Grant:
        """Answer as told."""
        self.before()
        self.asked += 1
        if self.answer is not None:
            raise self.answer
        key = Key.generate()
        held = WorkloadKey(
            self.authority.wit(WORKLOAD, key), LocalSigningKey(key), key.public, HOST
        )
        return Grant(key=held, expires_in=3600, renew_in=1800)

    def keys(self) -> JWKS:
        """Return what follows the authority's set."""
        self.watch = JWKS(
            f"{URL}/jwks.json", fetch=lambda _: self.serves, clock=self.clock, randomness=bytes,
            refresher=OnTheSpot, fresh=60,
        )  # fmt: skip
        return self.watch

    def signer(self, **settings: Any) -> Signer:
        """Return a signer with the key."""
        wanted = {
            "issuer": TRUST_DOMAIN,
            "subject": WORKLOAD,
            "audience": "billing",
            "clock": self.clock,
        }
        return Signer(key=self.key, **(wanted | settings))

    def tick(self, seconds: float) -> None:
        """Let time pass, and the background do what is due."""
        self.clock.advance(seconds)
        self.key.start(0)

    def publish(self, *keys: Key, **cutoffs: Any) -> None:
        """Serve another set from now on."""
        self.serves = Answer(keys=KeySet(keys, **cutoffs))


def why(key: IdentityKey) -> str:
    """Return why nothing can be signed."""
    with pytest.raises(Unavailable) as caught:
        key.signing_key()
    assert caught.value.cause is Cause.KEYS_UNAVAILABLE
    return caught.value.detail


def test_the_first_use_asks(bench: Bench) -> None:
    """Nothing is asked before the first use, and one request serves every token after it."""
    assert bench.asked == 0
    keys = {bench.key.signing_key() for _ in range(3)}
    assert (len(keys), bench.asked) == (1, 1)


def test_each_identity_has_a_fresh_key(bench: Bench) -> None:
    """At half its life the identity is another one, of another key; one before is not asked for again."""
    first = bench.key.signing_key()
    bench.tick(1799)
    assert bench.key.signing_key() is first
    bench.tick(1)
    second = bench.key.signing_key()
    assert (second.identity.jkt != first.identity.jkt, bench.asked) == (True, 2)
    assert bench.key.health().expires_in == 3600


def test_an_outage_changes_nothing_until_the_identity_ends(bench: Bench) -> None:
    """For 28 minutes of an outage messages are signed; then nothing is, and the error names the host."""
    signer = bench.signer(lifetime=60)
    bench.answer = FetchFailed("out of reach: Connection refused")
    bench.tick(1800)
    bench.tick(3600 - 1800 - 60 - 30)
    assert signer.sign(honest_message("kafka:orders")).headers
    bench.tick(1)
    with pytest.raises(
        Unavailable, match=f"{HOST}: the identity ends too soon"
    ) as caught:
        signer.sign(honest_message("kafka:orders"))
    assert caught.value.cause is Cause.KEYS_UNAVAILABLE
    bench.tick(89)
    assert why(bench.key) == f"{HOST}: out of reach: Connection refused"
    health = bench.key.health()
    assert (health.state, health.expires_in, health.failing_for) == (
        "unavailable",
        None,
        1800,
    )
    bench.answer = None
    bench.tick(60)
    assert signer.sign(honest_message("kafka:orders")).headers
    assert bench.key.health().state == "fresh"


def test_requests_that_fail_follow_each_other_slowly(bench: Bench) -> None:
    """In an outage of half an hour there are few requests, a minute apart in the end."""
    bench.key.start()
    bench.answer = FetchFailed("out of reach")
    moments = []
    for second in range(3600):
        before = bench.asked
        bench.tick(1)
        moments += [second] if bench.asked > before else []
    apart = [one - before for before, one in pairwise(moments)]
    assert apart[:6] == [1, 2, 4, 8, 16, 32]
    assert set(apart[6:]) == {60}


def test_a_slow_down_is_heeded(bench: Bench) -> None:
    """A 429 with ``Retry-After`` is the wait, where it is longer than the pause."""
    bench.answer = Refused("refused, 429 slow_down", 20)
    assert why(bench.key) == f"{HOST}: refused, 429 slow_down"
    assert bench.key.health().renew_in == 20


@pytest.mark.parametrize(
    "error",
    [
        FetchFailed("no"),
        ConfigurationError("token: missing"),
        Unavailable(Cause.KEYS_UNAVAILABLE, "hsm"),
    ],
)
def test_a_producer_starts_without_its_authority(bench: Bench, error: Exception) -> None:
    """A signer is made while nothing can be had, and signs once there is an identity."""
    bench.answer = error
    signer = bench.signer()
    with pytest.raises(Unavailable, match=HOST):
        signer.sign(honest_message("kafka:orders"))
    bench.answer = None
    bench.tick(2)
    assert signer.sign(honest_message("kafka:orders")).headers


def test_a_request_that_breaks_is_a_failure(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """An error that nobody expected is logged, and is one more failure."""
    bench.answer = RuntimeError("secret")
    assert why(bench.key) == f"{HOST}: the request broke: RuntimeError"
    assert "keys.fetch_failed" in [
        getattr(record, "event", "") for record in caplog.records
    ]


def test_a_revoked_authority_key_is_renewed_at_once(bench: Bench) -> None:
    """When the set says that the kid is revoked, the next thing signed is by an identity of another kid."""
    first, old = bench.key.signing_key(), bench.authority.key
    bench.authority.key = Key.generate()
    revoked = Key(
        kid=old.kid, algorithm="EdDSA", public=old.public, revocation=Revocation()
    )
    bench.publish(revoked, bench.authority.key)
    bench.tick(60)
    assert bench.asked == 2
    assert bench.key.signing_key().kid == bench.authority.key.kid != first.kid
    assert bench.asked == 2


def test_an_authority_that_vouches_with_a_revoked_key_is_not_believed(
    bench: Bench,
) -> None:
    """Where the authority goes on with its revoked key, nothing is signed, and it is asked with pauses."""
    bench.key.start()
    old = bench.authority.key
    bench.publish(
        Key(kid=old.kid, algorithm="EdDSA", public=old.public, revocation=Revocation())
    )
    bench.tick(60)
    assert (
        why(bench.key)
        == f"{HOST}: the authority's key that signed the identity is revoked"
    )
    assert bench.asked == 2
    for _ in range(120):
        bench.tick(1)
    assert bench.asked <= 2 + 7


def test_a_subject_that_is_cut_off_stops(bench: Bench) -> None:
    """When the subject is cut off and its grant gone, nothing is signed from then on."""
    bench.key.start()
    bench.clock.advance(10)
    bench.answer = Refused("refused, 403 access_denied", 0)
    bench.publish(
        bench.authority.key,
        cutoffs={WORKLOAD: Cutoff(before=int(bench.clock.now()) + 1, reason="stolen")},
    )
    bench.tick(50)
    assert why(bench.key) == f"{HOST}: refused, 403 access_denied"


def test_a_cut_off_in_the_middle_of_a_renewal_stops(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A set that comes between the look at a new identity and its first use ends that identity, too."""
    bench.key.start()
    bench.clock.advance(1800)
    look = bench.key._refusal

    def looked(key: WorkloadKey) -> str | None:
        found, moment = look(key), int(bench.clock.now()) + 1
        monkeypatch.undo()
        bench.answer = Refused("refused, 403 access_denied", 0)
        bench.publish(
            bench.authority.key,
            cutoffs={WORKLOAD: Cutoff(before=moment, reason="stolen")},
        )
        bench.clock.advance(60)
        bench.watch.start()
        return found

    monkeypatch.setattr(bench.key, "_refusal", looked)
    bench.key.start(0)
    assert why(bench.key) == f"{HOST}: refused, 403 access_denied"


def test_a_set_that_cannot_be_had_changes_nothing(bench: Bench) -> None:
    """A producer whose authority serves no set signs with what it has."""
    first = bench.key.signing_key()
    bench.publish(Key.generate())
    bench.tick(60)
    assert bench.key.signing_key() is first


@pytest.mark.parametrize(("lifetime", "good"), [(1770, True), (1771, False)])
def test_tokens_live_for_half_an_identity_at_most(
    bench: Bench, lifetime: int, good: bool
) -> None:
    """A lifetime of tokens over half of the identity's is a configuration error, at the start."""
    if good:
        assert (
            bench.signer(lifetime=lifetime).sign(honest_message("kafka:orders")).headers
        )
    else:
        with pytest.raises(ConfigurationError, match="half of the identity's 3600 s"):
            bench.signer(lifetime=lifetime)


async def test_an_event_loop_is_never_blocked(monkeypatch: pytest.MonkeyPatch) -> None:
    """In an event loop the first use asks in the background and does not wait."""
    waits: list[float] = []
    start = IdentityKey.start
    monkeypatch.setattr(
        IdentityKey,
        "start",
        lambda key, wait=5: (waits.append(wait), start(key, wait))[1],
    )
    begun, go = threading.Event(), threading.Event()
    bench = Bench(refresher=ThreadRefresher)
    bench.before = lambda: (begun.set(), go.wait(5))
    assert "not given yet" in why(bench.key)
    assert waits == [0]
    assert await asyncio.to_thread(begun.wait, 5)
    go.set()
    await asyncio.to_thread(bench.key.start)
    assert bench.key.signing_key().identity.subject == WORKLOAD
    bench.key.close()


def test_threads_wait_for_one_request() -> None:
    """Many threads without an identity cause one request, and each gets its answer."""
    bench = Bench(refresher=ThreadRefresher)
    start, found = threading.Barrier(8), []

    def use(_: int) -> None:
        start.wait()
        found.append(bench.key.signing_key())

    together(use, range(8))
    bench.key.close()
    assert (len(set(found)), len(found), bench.asked) == (1, 8, 1)


def test_a_child_after_a_fork_goes_on() -> None:
    """A child signs with the identity of its parent, has threads of its own, and renews for itself."""
    bench = Bench(refresher=ThreadRefresher)
    bench.key.start()
    first = bench.key.signing_key()
    held, go = threading.Event(), threading.Event()

    def hold() -> None:
        with bench.key._condition:
            held.set()
            go.wait(5)

    # Another thread of the parent holds the lock at the fork, and no such thread is in the child.
    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(5)
    child = os.fork()
    if child == 0:
        # A child that waits for that lock ends by the signal.
        signal.alarm(10)
        good = bench.key.signing_key() is first
        bench.clock.advance(1800)
        bench.key._refresher.wake()
        with bench.key._condition:
            good &= bench.key._condition.wait_for(
                lambda: bench.key._counters["renewed"] == 2, 5
            )
        os._exit(0 if good and bench.key.signing_key() is not first else 1)
    go.set()
    holder.join()
    assert os.waitpid(child, 0)[1] == 0
    bench.key.close()
    assert bench.key.signing_key() is first


@pytest.mark.parametrize(
    ("url", "settings", "text"),
    [
        ("http://authority.prod.example", {}, "https"),
        (f"{URL}/", {}, "ends in no /"),
        (URL, {"subject": "orders-api"}, "identifier of a workload"),
        (URL, {"algorithm": "RS256"}, "algorithm is one of"),
    ],
)
def test_wrong_arguments_are_refused(
    url: str, settings: dict[str, Any], text: str
) -> None:
    """What no authority could take is a configuration error."""
    wanted: dict[str, Any] = {"subject": WORKLOAD, "credential": TokenFile("token")}
    with pytest.raises(ConfigurationError, match=text):
        IdentityKey(url, **(wanted | settings))
