"""The consumers that files of vectors describe, made of mqauth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from mqauth.audit.sinks import CallableSink
from mqauth.errors import Cause, MalformedMessage, Reason, Unavailable
from mqauth.flow import run
from mqauth.judging.pipeline import Outcome, Pipeline, Verdict
from mqauth.judging.policy import Allow, Rule
from mqauth.judging.rollout import WithoutEvidence
from mqauth.judging.verifier import Issuer, Verifier
from mqauth.letters.authorities import Authority, ReleaseAuthorities
from mqauth.letters.dead_letter import DeadLetter
from mqauth.replay.memory import DEFAULT_CAPACITY, MemoryReplayStore
from mqauth.testing import FakeClock
from mqauth.wire import jwk
from mqauth.wire.json_form import from_form
from mqauth.wire.keys import KeySet, KeySource

_PASSED: Final = (
    "audience", "leeway", "max_lifetime", "user_id", "at", "max_queue_age", "append_evidence", "require_headers",
    "unsigned_headers",
)  # fmt: skip
"""The settings that are the verifier's own, by the same name."""


def _through(said: Any) -> Any:
    """Return offsets by the number of their partition, or a time."""
    return (
        {int(partition): offset for partition, offset in said.items()}
        if isinstance(said, dict)
        else said
    )


class OutOfReach:
    """Keys, a policy or a store that cannot be asked now.

    Args:
        cause: what it says instead.
        keys: the keys that are known nevertheless.
    """

    version = "0"

    def __init__(self, cause: str, keys: KeySet | None = None) -> None:
        self._cause, self._keys = Cause(cause), keys

    def key_set(self) -> KeySet:
        """Return the known keys."""
        return self._keys or self._fail()

    def _fail(self, *_asked: Any) -> Any:
        raise Unavailable(self._cause, "out of reach")

    refresh = decide = claim = confirm = release = _fail


class Published:
    """The keys of an issuer whose set changes from delivery to delivery.

    Args:
        sets: JWK Sets by name.
        name: of the first one.
    """

    def __init__(self, sets: Any, name: str) -> None:
        self._sets = sets
        self.turn(name)

    def turn(self, name: str) -> None:
        """Take the set of this name from now on."""
        self._keys = jwk.load_key_set(self._sets[name])

    def key_set(self) -> KeySet:
        """Return the keys."""
        return self._keys

    def refresh(self, kid: str, received: float, /) -> KeySet:
        """Return the keys."""
        return self._keys


class Buried:
    """Takes every dead letter."""

    name = "dead"

    def publish(self, letter: DeadLetter, /) -> None:
        """Take it."""


class Consumer:
    """The consumer of a file of vectors, with an empty store.

    Args:
        file: of vectors.
        name: of the consumer, where the file has several.
        received: when its first message comes, UTC seconds.
    """

    def __init__(
        self, file: Any, name: str | None = None, received: int | None = None
    ) -> None:
        said = file["consumer"] | file.get("consumers", {}).get(name, {})
        self.clock = FakeClock(file["received"] if received is None else received)
        lost = said.get("unavailable", ())
        store: Any = MemoryReplayStore(
            said.get("store_entries", DEFAULT_CAPACITY), clock=self.clock
        )
        self.published = (
            Published(file["key_sets"], said["key_set"]) if "key_set" in said else None
        )
        source = self.published or _source(said["jwks"], "key_pending" in lost)
        issuer = Issuer(keys=source, subjects=_pins(said))
        others = {
            name: Issuer(keys=_source(jwks, False))
            for name, jwks in said.get("other_issuers", {}).items()
        }
        self.pipeline = Pipeline(
            verifier=Verifier(
                keys={said["issuer"]: issuer} | others, release=_authorities(said),
                without_evidence=[
                    WithoutEvidence(**entry | {"through": _through(entry["through"]), "why": "of before"})
                    for entry in said.get("without_evidence", ())
                ],
                **{setting: said[setting] for setting in _PASSED if setting in said},
            ),
            policy=OutOfReach("policy_unavailable") if "policy_unavailable" in lost else _rules(said),
            replay=OutOfReach("replay_store_unavailable") if "replay_store_unavailable" in lost else store,
            scope=said.get("scope"), clock=self.clock, audit=CallableSink(lambda record: None),
        )  # fmt: skip

    def judge(self, form: Any, *, held: bool = False) -> Outcome:
        """Judge a message in the JSON form, and confirm it where it was accepted, unless it is to be held."""
        try:
            delivery = self.pipeline.receive(from_form(form))
        except MalformedMessage:
            return Outcome(Verdict.REJECTED, Reason.MESSAGE_MALFORMED)
        outcome = run(self.pipeline.judge(delivery))
        if outcome.verdict is Verdict.ACCEPTED and not held:
            run(self.pipeline.confirm(delivery))
        elif outcome.verdict is Verdict.REJECTED and delivery.claims:
            run(self.pipeline.bury(delivery, Buried()))
        return outcome

    def check(self, vector: Any) -> None:
        """Judge the message of a vector when it comes, and hold the verdict against the vector's."""
        self.clock.advance(max(0, vector.get("received", 0) - self.clock.now()))
        if self.published is not None and vector.get("key_set"):
            self.published.turn(vector["key_set"])
        found = self.judge(vector["message"], held=vector.get("held", False))
        said = (found.verdict.value, found.reason, found.cause)
        assert said == (vector["verdict"], vector["reason"], vector.get("cause")), (
            vector.get("name")
        )


def _pins(said: Mapping[str, Any]) -> dict[str, frozenset[str]] | None:
    pins = said.get("subjects")
    return (
        None
        if pins is None
        else {kid: frozenset(subjects) for kid, subjects in pins.items()}
    )


def _rules(said: Mapping[str, Any]) -> Allow:
    """Return the rules by subject; of several issuers they are those of each."""
    issuers = (said["issuer"], *said.get("other_issuers", {}))
    if len(issuers) == 1:
        return Allow(said["allow"])
    return Allow([
        Rule(subject=name, destinations=tuple(places), issuer=issuer)
        for issuer in issuers for name, places in said["allow"].items()
    ])  # fmt: skip


def _source(jwks: Any, pending: bool) -> KeySource:
    if jwks is None:
        return OutOfReach("keys_unavailable")
    keys = jwk.load_key_set(jwks)
    assert keys.skipped == ()
    return OutOfReach("key_pending", keys) if pending else keys


def _authorities(said: Mapping[str, Any]) -> ReleaseAuthorities | None:
    granted = said.get("authorities")
    return granted and ReleaseAuthorities(
        {
            name: Authority(
                keys=_source(found["jwks"], False),
                waive=frozenset(Reason(reason) for reason in found["waive"]),
            )
            for name, found in granted.items()
        },
        leeway=said["leeway"],
    )
