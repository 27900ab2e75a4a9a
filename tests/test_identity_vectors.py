"""The vectors of the identity form: each attack has its reason, single and in a batch, cold and remembered."""

from __future__ import annotations

from typing import Any

import pytest

from mqauth.flow import run
from mqauth.judging.pipeline import Outcome, Pipeline
from mqauth.judging.policy import Allow, Rule
from mqauth.judging.trust_domain import TrustDomain
from mqauth.judging.unverified import Verdict
from mqauth.judging.verifier import Issuer, Verifier
from mqauth.replay.memory import MemoryReplayStore
from mqauth.testing import FakeClock
from mqauth.wire import jwk
from mqauth.wire.json_form import from_form
from mqauth.wire.keys import KeySet
from tests.test_vectors import load

FILE = load("identity.json")
VECTORS = FILE["vectors"]
ATTACKS = [vector for vector in VECTORS if vector["verdict"] == "rejected"]
HONEST = {
    form: next(v for v in VECTORS if v["name"] == f"{form}: as a producer makes it")
    for form in ("single", "batch")
}
_PASSED = ("audience", "leeway", "max_lifetime", "at", "max_queue_age")


class Authority:
    """The keys of the authority, which change from delivery to delivery."""

    def __init__(self, name: str) -> None:
        self.keys = KeySet([])
        self.turn(name)

    def turn(self, name: str) -> None:
        """Take the set of this name from now on."""
        self.keys = jwk.load_key_set(FILE["key_sets"][name], wit_svid=True).after(self.keys)

    def key_set(self) -> KeySet:
        """Return the keys."""
        return self.keys

    def refresh(self, kid: str, received: float, /) -> KeySet:
        """Return the keys."""
        return self.keys


def settings(consumer: str) -> Any:
    """Return all that the file says of a consumer."""
    return FILE["consumer"] | FILE["consumers"][consumer]


def verifier_of(said: Any, authority: Authority) -> Verifier:
    """Return the verifier of a consumer's settings."""
    keys: dict[str, Any] = {said["issuer"]: Issuer(keys=jwk.load_key_set(said["jwks"]))}
    if said["trust_domain"] is not None:
        pins = said["subjects"]
        keys[said["trust_domain"]] = TrustDomain(
            keys=authority, max_identity_lifetime=said["max_identity_lifetime"],
            subjects=pins and {kid: frozenset(names) for kid, names in pins.items()},
        )  # fmt: skip
    return Verifier(keys=keys, **{name: said[name] for name in _PASSED if name in said})


class Consumer:
    """A consumer of the file, with an empty store and an empty memory."""

    def __init__(self, vector: Any) -> None:
        said = settings(vector["consumer"])
        self.clock = FakeClock(FILE["received"])
        self.authority = Authority("honest")
        verifier = verifier_of(said, self.authority)
        rules = [Rule(**rule | {"destinations": tuple(rule["destinations"])}) for rule in said["allow"]]
        self.pipeline = Pipeline(
            verifier=verifier, policy=Allow(rules), replay=MemoryReplayStore(clock=self.clock), clock=self.clock
        )

    def judge(self, vector: Any) -> Outcome:
        """Judge one delivery when it comes."""
        self.clock.advance(max(0, vector["received"] - self.clock.now()))
        if vector["key_set"] is not None:
            self.authority.turn(vector["key_set"])
        delivery = self.pipeline.receive(from_form(vector["message"]))
        outcome = run(self.pipeline.judge(delivery))
        if outcome.verdict is Verdict.ACCEPTED:
            run(self.pipeline.confirm(delivery))
        return outcome

    def check(self, vector: Any) -> None:
        """Hold the verdict on one delivery against the vector's."""
        found = self.judge(vector)
        assert (found.verdict.value, found.reason) == (vector["verdict"], vector["reason"]), (
            vector["name"],
            found,
        )


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_each_message_gets_its_verdict(vector: Any) -> None:
    """At a consumer that has seen nothing yet, each message has the verdict of its vector."""
    Consumer(vector).check(vector)


@pytest.mark.parametrize("vector", ATTACKS, ids=lambda vector: vector["name"])
def test_each_attack_gets_its_reason_where_the_identity_is_remembered(vector: Any) -> None:
    """An honest message before it, in both forms, changes no verdict."""
    consumer = Consumer(vector)
    for honest in HONEST.values():
        consumer.judge(honest | {"received": FILE["received"]})
    consumer.check(vector)


@pytest.mark.parametrize("sequence", FILE["sequences"], ids=lambda sequence: sequence["name"])
def test_each_sequence_of_deliveries_gets_its_verdicts(sequence: Any) -> None:
    """What is remembered of an identity says nothing of keys, cut-off and time now."""
    consumer = Consumer(sequence["deliveries"][0])
    for delivery in sequence["deliveries"]:
        consumer.check(delivery)


def test_no_verdict_depends_on_the_vectors_before_it() -> None:
    """All vectors of the common consumer through one, and again in reverse: no verdict becomes another one."""
    common = [
        v
        for v in VECTORS
        if v["consumer"] == "common" and v["key_set"] is None and v["received"] == FILE["received"]
    ]
    for order in (common, common[::-1]):
        consumer = Consumer(order[0])
        for vector in order:
            consumer.check(vector)


def test_an_attack_is_counted_in_both_forms() -> None:
    """The file has at least 96 attacks, none of them accepted, most of them single and in a batch."""
    names = {vector["name"].partition(": ")[2] for vector in ATTACKS}
    assert len(names) >= 96
    assert len(ATTACKS) >= 192
