"""What happens to an authority and its producers in the row of identities: the same for each broker.

The play is one thread that waits for conditions. Producers and consumers run beside it, and know nothing of it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from integration.chaos.identity_authority import DOMAIN, LIFETIME, Authority, subject_of
from integration.chaos.row import Count, Letter, Sent, count
from integration.scale import nightly
from integration.waiting import until
from mqauth import JWKS, Allow, Pipeline, TrustDomain, Unavailable, Verifier
from mqauth.delivery.health import Health, State
from mqauth.errors import Cause, Reason
from mqauth.keystore.disk import ring
from mqauth.signer import Signer
from mqauth.testing.forge import AUDIENCE
from mqauth.wire.workload import WorkloadKey

TOTAL = nightly(10_000, otherwise=1_000)
"""Honest messages, at least."""
OUTAGE = 3 * LIFETIME
BURST = nightly(20, otherwise=2)
PAUSE = 0.5
"""Seconds between two bursts of a producer."""
TOKEN = 4
"""Seconds that a token lives."""
FORGED = 100
WITHIN = OUTAGE + 60.0
"""Seconds in which what is waited for has to come; a request that failed is made again within 60."""


STILL = (State.STALLED, State.STOPPED)
"""What a consumer may never be."""


class Kept:
    """An identity as it was stolen; a thief asks nobody whether it still counts, and sets its clock back."""

    is_identity: ClassVar[bool] = True

    def __init__(self, key: WorkloadKey) -> None:
        self.key = key
        self._moment = time.time()

    def signing_key(self) -> WorkloadKey:
        """Return the stolen key."""
        return self.key

    def now(self) -> float:
        """Return the moment of the theft."""
        return self._moment

    def monotonic(self) -> float:
        """Return seconds that never go on."""
        return 0.0


class Workload:
    """A producer with an identity, and what became of what it published.

    Args:
        authority: gives the identity.
        name: of the producer.
    """

    def __init__(self, authority: Authority, name: str) -> None:
        self.name = name
        self.subject = subject_of(name)
        self.key = authority.enrolled(name)
        self.signer = signer_of(self.key, self.subject)
        self.ended = threading.Event()
        self.gone = threading.Event()
        self.sent: list[bytes] = []
        self.refusals: list[Unavailable] = []
        self.bursts = 0
        self._number = 0

    def burst(self) -> list[bytes]:
        """Return the bodies to publish next; none of them comes again."""
        self._number += BURST
        return [
            b"%s %d" % (self.name.encode(), number)
            for number in range(self._number - BURST, self._number)
        ]

    def took(self, bodies: Iterable[bytes], refusals: Iterable[Unavailable]) -> None:
        """Note the end of a burst: what the broker has confirmed, and what could not be signed."""
        self.sent += bodies
        self.refusals += refusals
        self.bursts += 1


def signer_of(key: Any, subject: str, **settings: Any) -> Signer:
    """Return a signer with an identity."""
    return Signer(
        key=key,
        issuer=DOMAIN,
        subject=subject,
        audience=AUDIENCE,
        lifetime=TOKEN,
        **settings,
    )


class World:
    """An authority, three producers, and what consumers trust.

    Args:
        folder: for files.
        destination: of all messages.
    """

    def __init__(self, folder: Path, destination: str) -> None:
        self.authority = Authority(folder / "authority", ["orders", "stock", "stolen"])
        self.workloads = [
            Workload(self.authority, name) for name in self.authority.machines
        ]
        self.keys = JWKS(
            f"{self.authority.orders.url}/jwks.json", fresh=30, unsafe_http_loopback=True
        )
        self.policy = Allow({work.subject: [destination] for work in self.workloads})
        self.forged: dict[bytes, Reason] = {}
        self.figures: dict[str, float] = {}

    def guard(self, row: Any, audit: Any, **append: Any) -> Pipeline:
        """Return a pipeline that trusts the authority."""
        verifier = Verifier(
            keys={DOMAIN: TrustDomain(keys=self.keys)}, audience=AUDIENCE, **append
        )
        found: Pipeline = row.guard(audit, verifier=verifier, policy=self.policy)
        return found

    @property
    def honest(self) -> list[bytes]:
        """The bodies that the broker has confirmed to the producers."""
        return [body for work in self.workloads for body in work.sent]

    def count(
        self, broker: str, handled: Iterable[bytes], letters: list[Letter]
    ) -> Count:
        """Return the sums of the row; each letter has the reason that it has to have."""
        assert {letter.body: letter.reason for letter in letters} == self.forged
        sent = Sent(honest=self.honest, forged=[*self.forged])
        row = "authority killed for three lifetimes, its key revoked, a subject cut off"
        return count(row, broker, sent, handled=handled, letters=letters)


class Play:
    """The events of the row, in their order.

    Args:
        world: in which they happen.
        row: the scene of a broker: what was handled and judged.
        forge: publishes so many forged messages under a signer, or without a token.
        health: tells how the consumer is doing.
    """

    def __init__(
        self,
        world: World,
        row: Any,
        forge: Callable[[int, Signer | None], None],
        health: Callable[[], Health],
    ) -> None:
        self.world, self.row = world, row
        self._forge, self._health = forge, health

    def all(self) -> None:
        """Play everything, then let producers end and consumers handle what is left."""
        self._until(lambda: all(work.bursts > 10 for work in self.world.workloads))
        self.outage()
        self.revocation()
        self.cut_off()
        self._until(lambda: len(self.world.honest) >= TOTAL)
        for work in self.world.workloads:
            work.ended.set()
        self._until(lambda: all(work.gone.is_set() for work in self.world.workloads))
        self._all_handled()

    def outage(self) -> None:
        """Producers stop and name the host, consumers go on, and all is well again by itself."""
        world, began = self.world, time.monotonic()
        world.authority.kill()
        refused = [len(work.refusals) for work in world.workloads]
        self._until(
            lambda: all(
                len(w.refusals) > n for w, n in zip(world.workloads, refused, strict=True)
            )
        )
        self._all_handled()
        stopped = len(world.honest)
        self.forged(None, Reason.TOKEN_MISSING)
        self._until(lambda: time.monotonic() - began >= OUTAGE)
        assert len(world.honest) == stopped, "something was published without an identity"
        world.authority.start()
        again = time.monotonic()
        self._until(
            lambda: all(work.key.health().state == "fresh" for work in world.workloads)
        )
        self._two_bursts(world.workloads)
        assert {work.key.health().state for work in world.workloads} == {"fresh"}
        world.figures |= {"outage": again - began, "back after": time.monotonic() - again}
        for work in world.workloads:
            assert {error.cause for error in work.refusals} == {Cause.KEYS_UNAVAILABLE}
            assert all(world.authority.host in str(error) for error in work.refusals)

    def revocation(self) -> None:
        """The authority's key rotates; nothing signs under the old one any more, and it is revoked."""
        world, keystore = self.world, self.world.authority.keystore
        first = world.workloads[0]
        kept, old = Kept(first.key.signing_key()), first.key.signing_key().identity.kid
        # A key that is made while consumers cannot read the set may be unknown to them when it signs.
        self._until(lambda: world.keys.health().state == "fresh")
        new = keystore.create().kid
        self._until(lambda: keystore.change(ring.rotate).active.kid == new)  # type: ignore[union-attr]
        self._until(
            lambda: (
                {work.key.signing_key().identity.kid for work in world.workloads} == {new}
            )
        )
        self._two_bursts(world.workloads)
        self._all_handled()
        keystore.change(lambda keys, now: ring.revoke(keys, old, now, reason="replaced"))
        self._until(
            lambda: getattr(world.keys.key_set().get(old), "revocation", None) is not None
        )
        self.forged(signer_of(kept, first.subject, clock=kept), Reason.KEY_REVOKED)

    def cut_off(self) -> None:
        """A thief has enrolled with a producer's own key; the producer is stopped, and its subject cut off."""
        world, victim = self.world, self.world.workloads[-1]
        with world.authority.enrolled(victim.name) as enrolled:
            kept = Kept(enrolled.signing_key())
        victim.ended.set()
        self._until(victim.gone.is_set)
        self._all_handled()
        cut = world.authority.keystore.cut_off(victim.subject, reason="stolen")
        self._until(
            lambda: (
                victim.subject in world.keys.key_set().cutoffs
                and time.time() >= cut.before
            )
        )
        self.forged(signer_of(kept, victim.subject, clock=kept), Reason.KEY_REVOKED)

    def forged(self, signer: Signer | None, reason: Reason) -> None:
        """Publish forged messages, and wait until as many more were judged."""
        before = len(self.row.forged)
        self._forge(FORGED, signer)
        self.world.forged |= dict.fromkeys(self.row.forged[before:], reason)
        due = sum(each == reason for each in self.world.forged.values())
        self._until(
            lambda: (
                sum(outcome.reason == reason for outcome in [*self.row.outcomes]) >= due
            )
        )

    def _two_bursts(self, workloads: list[Workload]) -> None:
        """Wait until each producer has ended the burst it is in, and published one more."""
        before = {work.name: work.bursts for work in workloads}
        self._until(
            lambda: all(work.bursts >= before[work.name] + 2 for work in workloads)
        )

    def _all_handled(self) -> None:
        """Wait until everything is handled that was confirmed up to now."""
        due = {*self.world.honest}
        self._until(lambda: due <= {*self.row.handled})

    def _until(self, condition: Callable[[], bool]) -> None:
        def holds() -> bool:
            assert self._health().state not in STILL, self._health().reasons
            return condition()

        until(holds, seconds=WITHIN)


@contextmanager
def world(folder: Path, destination: str) -> Iterator[World]:
    """Start the authority, and end everything that was begun."""
    made = World(folder, destination)
    made.authority.start()
    try:
        until(made.authority.listens)
        for work in made.workloads:
            work.key.start()
        with made.keys:
            yield made
    finally:
        for work in made.workloads:
            work.ended.set()
            work.key.close()
        made.authority.kill()
