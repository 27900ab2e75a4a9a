"""The attack suite as users run it, on the broker in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from mqauth import (
    AuditFile,
    Decision,
    MemoryReplayStore,
    Pipeline,
    Reason,
    Rejection,
    Verifier,
)
from mqauth.brokers import memory
from mqauth.replay.rules import ClaimStatus
from mqauth.testing import Forge, MemoryStage
from mqauth.testing.attack_classes import CLASSES
from mqauth.testing.attacks import ALL_ATTACKS, AttackSuite, Probe, Tally


def consumer(target: MemoryStage, probe: Probe, **settings: Any) -> memory.Consumer:
    """Return a consumer of the broker in memory that is made with a probe's parts."""
    wanted = {
        "verifier": Verifier(keys=probe.keys, audience=probe.forge.audience),
        "policy": probe.forge.policy(target.destination), "observers": [probe.observer],
    }  # fmt: skip
    guard, letters = (
        Pipeline(**wanted | settings),
        memory.DeadLetters(target.broker, target.dead),
    )
    return memory.Consumer(
        target.broker, target.destination, guard, probe.handler, dead_letters=letters
    )


class OnMemory:
    """A consumer of the broker in memory."""

    place = "kafka:orders"

    @pytest.fixture
    def target(self) -> MemoryStage:
        """The queue that is attacked."""
        return MemoryStage(self.place)

    @pytest.fixture
    def make_consumer(self, target: MemoryStage, tmp_path: Path) -> Any:
        """Return what makes the consumer."""
        store, audit = (
            MemoryReplayStore(),
            AuditFile(tmp_path / "audit.jsonl", fsync=False),
        )

        yield lambda probe, **changes: consumer(
            target, probe, **{"replay": store, "audit": audit} | changes
        )
        audit.close()


class TestKafkaInMemory(OnMemory, AttackSuite):
    """Places are exact, as Kafka's are."""


class TestRabbitMQInMemory(OnMemory, AttackSuite):
    """There are no places, as on RabbitMQ."""

    place = "rabbitmq:shop/orders.created"


class Permissive:
    """A policy that lets everybody publish everywhere."""

    version = "all"

    def decide(self, verified: Any) -> Decision:
        """Allow."""
        return Decision.ALLOW


class Forgetful(MemoryReplayStore):
    """A replay store that has never seen anything."""

    def claim(self, request: Any) -> ClaimStatus:
        """Claim."""
        return ClaimStatus.FRESH


class TestHoles(OnMemory):
    """A consumer with a hole fails the suite, by the name of the attack that gets through."""

    @pytest.fixture
    def probe(self, target: MemoryStage) -> Probe:
        """A probe whose counts are its own."""
        return Probe(target, Forge(lifetime=600), Tally())

    def fails(
        self, test: str, make: Callable[[Probe], Any], probe: Probe, *rest: Any
    ) -> str:
        """Return what a test of the suite says when it fails."""
        suite = AttackSuite()
        with pytest.raises(pytest.fail.Exception) as failed:
            getattr(suite, test)(probe, make, *rest)
        return str(failed.value)

    def test_a_policy_that_allows_all(self, probe: Probe, make_consumer: Any) -> None:
        """Who may publish where is missed by the name of the attack, and the handler's call is counted."""
        said = self.fails(
            "test_attacks",
            lambda found: make_consumer(found, policy=Permissive()),
            probe,
            False,
        )
        assert (
            "forbidden-producer: must be rejected, producer_forbidden; was accepted"
            in said
        )
        assert "producer-by-header" in said
        assert (probe.tally.accepted, probe.tally.other, probe.tally.condemned) == (
            2,
            0,
            0,
        )
        assert probe.tally.calls == 2

    def test_a_store_that_forgets(self, probe: Probe, make_consumer: Any) -> None:
        """Copies, racing copies and copies after a restart are missed."""
        for test in ("test_copies", "test_race", "test_copy_after_a_restart"):
            fresh = Probe(probe.target, Forge(lifetime=600), probe.tally)
            said = self.fails(
                test, lambda found: make_consumer(found, replay=Forgetful()), fresh
            )
            assert (
                "one must be accepted, the rest replayed; was accepted, accepted" in said
            )

    def test_an_outage_that_condemns(
        self, probe: Probe, make_consumer: Any, monkeypatch: Any
    ) -> None:
        """A consumer that rejects while it has no keys fails: honest messages were lost by our fault."""

        def refuse(self: Any, *_: Any) -> None:
            if self.open:
                return self._keys
            raise Rejection(Reason.KEY_UNKNOWN)

        monkeypatch.setattr("mqauth.testing.attack_probe.KeyGate.refresh", refuse)
        said = self.fails("test_keys_out_of_reach", make_consumer, probe)
        assert "without keys nothing can be decided" in said

    def test_a_handler_that_is_called_too_early(
        self, probe: Probe, make_consumer: Any
    ) -> None:
        """A handler that runs before the verdict is counted, and so is a second call for an honest message."""

        def make(found: Probe) -> memory.Consumer:
            made = make_consumer(found, self_test=False)
            receive = made._guard.receive
            made._guard.receive = lambda message: (
                found.handler(message),
                receive(message),
            )[1]
            return made

        said = self.fails("test_unknown_keys_in_a_flood", make, probe)
        assert said == "the handler was called 103 times for what no honest producer sent"

    def test_other_reasons_and_what_is_left_out(
        self, target: MemoryStage, make_consumer: Any
    ) -> None:
        """A suite may expect other reasons and leave attacks out, and the count names these."""
        probe = Probe(target, Forge(lifetime=600), Tally())

        class Suite(AttackSuite):
            left_out = frozenset(("forbidden-producer", "producer-by-header"))
            other_reasons: ClassVar[Any] = {"no-token": Reason.TOKEN_MALFORMED}
            remembers = False

        with pytest.raises(
            pytest.fail.Exception, match="no-token: must be rejected, token_malformed"
        ):
            Suite().test_attacks(
                probe, lambda found: make_consumer(found, policy=Permissive()), False
            )
        Suite().test_copy_after_a_restart(probe, make_consumer)
        assert (
            "left out: copy-after-a-restart, forbidden-producer, producer-by-header"
            in probe.tally.line()
        )
        assert (probe.tally.accepted, probe.tally.other) == (0, 1)


SCENES = {
    "letter-refused", "copy", "race", "burnt-id", "unknown-key-flood", "in-an-outage", "copy-after-a-restart",
}  # fmt: skip
"""Attacks of several messages, each a test of the suite."""


def test_every_class_is_held() -> None:
    """Each of the 64 classes has an attack in the suite, or names a test, or says why there is none."""
    names = {attack.name for attack in ALL_ATTACKS} | SCENES
    assert len(CLASSES) == 64
    for found in CLASSES:
        assert set(found.attacks) <= names, found
        assert found.attacks or found.elsewhere, found


def test_most_classes_are_attacks() -> None:
    """Of 64 classes 58 are attacked by messages; the others need an issuer, a disk or an operator."""
    assert sum(bool(found.attacks) for found in CLASSES) == 58


def test_names_are_unique() -> None:
    """No two attacks on one broker share a name."""
    names = [(attack.name, attack.scheme) for attack in ALL_ATTACKS]
    assert len(set(names)) == len(names)


def test_the_page_counts_right() -> None:
    """The how-to page says how many attacks and classes there are."""
    page = " ".join(
        (Path(__file__).parent.parent / "docs" / "how-to" / "attack-your-consumer.md")
        .read_text()
        .split()
    )
    single = len({attack.name for attack in ALL_ATTACKS})
    assert (
        f"has {single} attacks of one message, and seven of several messages or of dead letters"
        in page
    )
    assert len(SCENES) == 7
    assert "They cover 58 of 64 known classes" in page
