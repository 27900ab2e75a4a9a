"""A producer whose identity an authority renews, over real brokers, while keys rotate and a thief is cut off.

Authority, HTTP and broker are real. Everybody goes by one fake clock, so that hours pass in no time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from integration.test_identity_brokers import RealKafka, RealRabbitMQ
from mqauth import AuditFile, MemoryReplayStore, Pipeline
from mqauth.cli.serve import listen
from mqauth.errors import Reason
from mqauth.judging.policy import Allow
from mqauth.judging.trust_domain import TrustDomain
from mqauth.judging.verified import Verified
from mqauth.judging.verifier import Verifier
from mqauth.keystore.disk import ring
from mqauth.keystore.identity.identity_key import IdentityKey
from mqauth.keystore.identity.request import OwnKey
from mqauth.keystore.remote.jwks import JWKS
from mqauth.signer import Signer
from mqauth.testing.token_attacks import honest_message
from mqauth.wire.workload import WorkloadKey
from tests.authority_world import DOMAIN, LIFETIME, MACHINES, ORDERS, World
from tests.test_authority_http import serving
from tests.test_identity_renewal import Inline

EACH = 8


class Shop:
    """One enrolled producer, one consumer that has the address of the authority's keys alone, and their broker.

    Args:
        stage: the broker.
        world: the authority, which is served over HTTP.
        folder: for the audit file.
        batch: messages under one signature.
    """

    def __init__(self, stage: Any, world: World, folder: Path, batch: int) -> None:
        self.stage, self.world, self._batch = stage, world, batch
        clock = {"clock": world.clock, "refresher": Inline}
        own = OwnKey(world.machine, issuer=MACHINES, subject="orders-api")
        keys = JWKS(f"{world.url}/jwks.json", unsafe_http_loopback=True, **clock)
        self.key = IdentityKey(
            world.url, subject=ORDERS, credential=own, unsafe_http_loopback=True, keys=lambda: keys, **clock
        )
        trusted = JWKS(f"{world.url}/jwks.json", unsafe_http_loopback=True, **clock)
        self.audit = AuditFile(folder / "audit.jsonl", fsync=False)
        self.reasons: Counter[Reason | None] = Counter()
        self.handled: list[Verified] = []
        self._guard = Pipeline(
            verifier=Verifier(keys={DOMAIN: TrustDomain(keys=trusted)}, audience="billing"),
            policy=Allow({ORDERS: [stage.destination]}), replay=MemoryReplayStore(clock=world.clock),
            audit=self.audit, clock=world.clock,
            observers=[lambda outcome, *_: self.reasons.update([outcome.reason])],
        )  # fmt: skip

    def tick(self, seconds: float) -> None:
        """Let time pass, and the producer do what is due."""
        self.world.clock.advance(seconds)
        self.key.start(0)

    def publish(self, key: IdentityKey | WorkloadKey) -> None:
        """Publish messages signed with a key, and have the consumer judge them."""
        signer = Signer(key=key, issuer=DOMAIN, subject=ORDERS, audience="billing", clock=self.world.clock)
        messages = [honest_message(self.stage.destination, number) for number in range(EACH)]
        self.stage.publish(signer, messages, self._batch)
        due = self.reasons.total() + EACH
        self.stage.consume(self._guard, self.handled.append, until=lambda: self.reasons.total() >= due)

    def signed_by(self) -> set[str]:
        """Return the kids of the authority that vouched for the last messages."""
        return {seen.identity.kid for seen in self.handled[-EACH:] if seen.identity is not None}


@pytest.fixture(params=["rabbitmq", "kafka"])
def stage(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A queue or a topic."""
    make: Any = {"rabbitmq": RealRabbitMQ, "kafka": RealKafka}[request.param]
    found = make(request.getfixturevalue(request.param).url)
    yield found
    found.close()


@pytest.mark.parametrize("batch", [1, EACH])
def test_an_identity_over_a_rotation_and_a_cut_off(stage: Any, tmp_path: Path, batch: int) -> None:
    """The authority's key rotates and the producer loses no message; a thief's identity is refused once cut off.

    The producer, whose identity is cut off with the thief's, gets another one and goes on.
    """
    with listen("127.0.0.1", 0, tls=False) as listener:
        world = World(tmp_path, url=f"http://127.0.0.1:{listener.getsockname()[1]}")
        shop = Shop(stage, world, tmp_path, batch)
        with serving(world, listener), shop.audit:
            shop.publish(shop.key)
            (first,) = shop.signed_by()
            second = world.keystore.create()
            shop.tick(second.ready - world.clock.now())
            world.keystore.change(ring.rotate)
            shop.publish(shop.key)
            assert shop.signed_by() == {first}
            shop.tick(LIFETIME / 2)
            shop.publish(shop.key)
            assert shop.signed_by() == {second.kid}

            stolen = shop.key.signing_key()
            shop.publish(stolen)
            assert shop.reasons == {None: 4 * EACH}
            world.keystore.cut_off(ORDERS, reason="stolen")
            shop.tick(60)
            assert shop.key.signing_key().identity.jkt != stolen.identity.jkt
            shop.publish(shop.key)
            shop.publish(stolen)
    assert shop.reasons == {None: 5 * EACH, Reason.KEY_REVOKED: EACH}
    assert len(shop.handled) == 5 * EACH
    assert len(stage.letters()) == EACH
