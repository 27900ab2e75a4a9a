"""The consumers that the file of the identity form describes, made of mqauth."""

from __future__ import annotations

from typing import Any, Final

from mqauth.flow import run
from mqauth.judging.identities import TrustDomain
from mqauth.judging.pipeline import Outcome, Pipeline, Verdict
from mqauth.judging.policy import Allow, Rule
from mqauth.judging.verifier import Issuer, Verifier
from mqauth.replay.memory import MemoryReplayStore
from mqauth.testing import FakeClock
from mqauth.wire import jwk
from mqauth.wire.json_form import from_form
from mqauth.wire.keys import KeySet

_PASSED: Final = ("audience", "leeway", "max_lifetime", "at", "max_queue_age")


class Authority:
    """The keys of the authority, which change from delivery to delivery.

    Args:
        file: ``identity.json``.
        name: of the first set.
    """

    def __init__(self, file: Any, name: str) -> None:
        self._sets, self._long = file["key_sets"], file["long_key_sets"]
        self.keys = KeySet([])
        self.turn(name)

    def turn(self, name: str) -> None:
        """Take the set of this name from now on; a long one repeats the cut-off of another."""
        found = self._sets[name if name in self._sets else self._long[name]["like"]]
        if name in self._long:
            found = found | {
                "mqauth_cutoff": found["mqauth_cutoff"] * self._long[name]["cutoffs"]
            }
        self.keys = jwk.load_key_set(found, svid="wit-svid").after(self.keys)

    def key_set(self) -> KeySet:
        """Return the keys."""
        return self.keys

    def refresh(self, kid: str, received: float, /) -> KeySet:
        """Return the keys."""
        return self.keys


def settings(file: Any, name: str) -> Any:
    """Return all that the file says of a consumer."""
    return file["consumer"] | file["consumers"][name]


def verifier_of(said: Any, authority: Authority) -> Verifier:
    """Return the verifier of a consumer's settings."""
    keys: dict[str, Any] = {said["issuer"]: Issuer(keys=jwk.load_key_set(said["jwks"]))}
    if said["trust_domain"] is not None:
        pins = said["subjects"]
        keys[said["trust_domain"]] = TrustDomain(
            keys=authority, max_identity_lifetime=said["max_identity_lifetime"],
            subjects=pins and {kid: frozenset(names) for kid, names in pins.items()},
        )  # fmt: skip
    return Verifier(
        keys=keys, **{setting: said[setting] for setting in _PASSED if setting in said}
    )


class IdentityConsumer:
    """A consumer of the file, with an empty store and an empty memory.

    Args:
        file: ``identity.json``.
        name: of the consumer.
    """

    def __init__(self, file: Any, name: str) -> None:
        said = settings(file, name)
        self.clock = FakeClock(file["received"])
        self.authority = Authority(file, "honest")
        verifier = verifier_of(said, self.authority)
        rules = [
            Rule(**rule | {"destinations": tuple(rule["destinations"])})
            for rule in said["allow"]
        ]
        self.pipeline = Pipeline(
            verifier=verifier, policy=Allow(rules), replay=MemoryReplayStore(clock=self.clock), clock=self.clock,
        )  # fmt: skip

    def judge(self, vector: Any) -> Outcome:
        """Judge one delivery when it comes, and confirm it where it was accepted."""
        self.clock.advance(max(0, vector["received"] - self.clock.now()))
        if vector["key_set"] is not None:
            self.authority.turn(vector["key_set"])
        delivery = self.pipeline.receive(from_form(vector["message"]))
        outcome = run(self.pipeline.judge(delivery))
        if outcome.verdict is Verdict.ACCEPTED:
            run(self.pipeline.confirm(delivery))
        return outcome

    def check(self, vector: Any) -> None:
        """Judge one delivery, and hold the verdict against the vector's."""
        found = self.judge(vector)
        assert (found.verdict.value, found.reason) == (
            vector["verdict"],
            vector["reason"],
        ), vector.get("name")
