"""Tries a consumer before it consumes: whether it refuses what nobody signed, and handles what is honest.

Two halves. In the first the consumer's *own* pipeline judges unsigned messages and those of an issuer that
nobody trusts: steps (0) to (12) of a verdict, so that nothing is claimed, recorded or dead-lettered. If one is
let in, the consumer does not start. A signature that does not hold is refused by the crypto library, and is not
tried here.

An honest message needs a key, and nothing may be added to what the consumer trusts. So in the second half honest
messages go through *another* pipeline with the same settings, which trusts a key made for the moment, has memory
for its store, and is thrown away (decision 4).
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, replace
from itertools import islice
from types import GeneratorType
from typing import Any, Final
from weakref import WeakSet

from mqauth.clock import SYSTEM_RANDOMNESS
from mqauth.errors import ConfigurationError, Reason, Unavailable, require
from mqauth.flow import Flow, call, run
from mqauth.judging.delivery import Delivery, Outcome
from mqauth.judging.journal import Journal, few
from mqauth.judging.pipeline import Pipeline
from mqauth.judging.policy import Allow, Rule, local_rules, place_of_pattern
from mqauth.judging.rollout import destinations_of
from mqauth.judging.unverified import Verdict
from mqauth.judging.verified import Verified
from mqauth.judging.verifier import Verifier
from mqauth.letters.dead_letter import DeadLetterSink
from mqauth.logs import emit, harmless
from mqauth.replay.memory import MemoryReplayStore
from mqauth.signer import Signer
from mqauth.wire import destination
from mqauth.wire.keys import Key, KeySet
from mqauth.wire.message import PROTECTED_PROPERTIES, HeaderValue, Message, Origin

__all__ = ["SelfTest", "at_start", "self_test", "starting"]
MOST: Final = 8
"""Rules that are tried; the cost at a start must not grow with a configuration."""
STRANGER: Final = "urn:mqauth:self-test"
_ANYWHERE: Final = ("kafka:mqauth-self-test", "rabbitmq:/mqauth-self-test")
_TRIED: Final[WeakSet[Pipeline]] = WeakSet()


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfTest:
    """What became of a self-test.

    Args:
        refused: hostile messages that the consumer's own pipeline refused.
        accepted: those that it let in, for people.
        lenient: destinations where unsigned messages reach a handler on purpose, by a rung or an exemption.
        handled: honest messages that the second pipeline gave to its handler, once.
        condemned: honest messages, or copies of them, whose verdict is wrong, for people.
        untried: parts that were not tried.
    """

    refused: int
    accepted: tuple[str, ...]
    lenient: str
    handled: int
    condemned: tuple[str, ...]
    untried: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return it for people, one line each."""
        lines = [f"hostile messages refused: {self.refused}"]
        lines += [f"LET IN: {found}" for found in self.accepted]
        lines += [f"unsigned messages reach a handler on purpose: {self.lenient}"] if self.lenient else []
        lines += [f"honest messages handled, and their copies refused: {self.handled}"]
        lines += [f"HONEST, AND NOT HANDLED: {found}" for found in self.condemned]
        return lines + [f"not tried: {found}" for found in self.untried]


def at_start(guard: Pipeline) -> None:
    """Try a pipeline, as ``starting``, where no event loop can be waited in."""
    run(starting(guard))


def starting(guard: Pipeline) -> Flow[None]:
    """Try a pipeline, and a policy that is kept elsewhere, the first time that one of its consumers starts.

    Raises:
        ConfigurationError: a hostile message was let in, the policy gives no decisions, or the replay store is
            another process's; nothing was consumed.
    """
    starts = getattr(guard.replay, "at_start", None)
    if starts is not None:
        starts()
    if guard in _TRIED:
        return
    policy: Any = guard.policy
    require(getattr(policy, "scope", guard.scope) == guard.scope, "the policy has another scope than the pipeline")
    if hasattr(policy, "probe"):
        yield from call(policy.probe, twin=policy.aprobe)
    if not guard.self_test:
        emit("selftest.off", "self_test is off: nobody has tried whether this consumer refuses a forged message")
        return
    found = self_test(guard)
    said = harmless("; ".join(found.lines()), 1024)
    if found.accepted:
        emit("selftest.accepted", "the consumer does not start: %s", said)
        raise ConfigurationError(f"self-test: the consumer would let in {few(list(found.accepted))}")
    _TRIED.add(guard)
    if found.condemned:
        emit("selftest.condemned", "honest messages would not be handled: %s", said)
    else:
        emit("selftest.passed", "self-test: %s", said)


def self_test(guard: Pipeline) -> SelfTest:
    """Return what a pipeline makes of hostile messages, and another one with its settings of honest ones.

    It claims, records and sends nothing, asks for no keys, and never waits.
    """
    rules, policy, stranger = _rules(guard), guard.policy, Key.generate()
    refused, accepted = 0, list[str]()
    # The consumer's own pipeline judges what nobody signed: steps (0) to (12), or what it would wait for before.
    for place in _places(rules):
        forged = _signed(guard, place, stranger, STRANGER, rules[0].subject)
        hostile = {
            "an unsigned message": _plain(guard.verifier, place),
            "a message of an issuer nobody trusts": forged,
        }
        for what, message in hostile.items():
            delivery = guard.receive(message)
            # Strictly also what a rung or an exemption lets through.
            judge, rollout = guard.verdicts, guard.rollout
            if rollout is not None and (rollout.is_lenient(message) or rollout.exemption(message) is not None):
                judge = copy(judge)
                judge.ladder = None
            asked: Any = judge.prepare(delivery)
            if type(asked) is GeneratorType:
                asked.close()
            if delivery.rejection is None:
                accepted.append(f"{what} to {place}")
            else:
                refused += 1
    try:
        handled, condemned = _honest(guard, rules)
    except Exception as error:  # whatever is wrong there is no reason to keep a consumer from starting
        handled, condemned = 0, [f"the second pipeline failed: {type(error).__name__}"]
    return SelfTest(
        refused=refused, accepted=tuple(accepted),
        lenient="" if not guard.rollout else destinations_of(guard.rollout), handled=handled,
        condemned=tuple(condemned),
        untried=() if isinstance(policy, Allow) else (f"the policy {type(policy).__name__}",),
    )  # fmt: skip


def _honest(guard: Pipeline, rules: tuple[Rule, ...]) -> tuple[int, list[str]]:
    """Have a pipeline with the same settings handle a message of each rule, and refuse a copy of it.

    Returns:
        How many were handled, and what was not, for people.
    """
    key = Key.generate(subjects=[rule.subject for rule in rules])
    # It trusts one key, and has parts in memory.
    verifier, policy = guard.verifier.under({STRANGER: KeySet([key])}), Allow(rules)
    replay = MemoryReplayStore(2 * MOST, clock=guard.clock)
    twin = Pipeline(
        verifier=verifier, policy=policy, replay=replay, scope=guard.scope, lease=guard.lease,
        attempts=guard.attempts, clock=guard.clock,
    )  # fmt: skip
    twin.journal = _Unlogged(
        guard.clock, SYSTEM_RANDOMNESS, twin.scope_of, verifier=verifier, policy=policy, replay=replay, audit=None,
        messages=False,
    )  # fmt: skip
    handled, condemned = 0, list[str]()
    tried = [(rule.subject, place_of_pattern(place)) for rule in rules for place in rule.destinations[:1]]
    for subject, place in tried:
        message = _signed(twin, place, key, STRANGER, subject)
        seen: list[Verified] = []
        first, second = (replace(message, origin=_origin(message, number, twin)) for number in range(2))
        delivery = twin.receive(first)
        outcome = run(twin.judge(delivery))
        if outcome.verdict is Verdict.ACCEPTED:
            run(twin.process(delivery, seen.append, None))
        copied = run(twin.judge(twin.receive(second)))
        if len(seen) != 1:
            said = outcome.reason or outcome.cause or outcome.verdict.value
            condemned.append(f"{subject} to {place}: {said}: {outcome.detail or ''}")
        elif copied.reason is not Reason.REPLAYED:
            condemned.append(f"a copy to {place}: {copied.verdict.value}")
        else:
            handled += 1
    return handled, condemned


def _rules(guard: Pipeline) -> tuple[Rule, ...]:
    """Return the rules to try, with an issuer of our own and no claims; of another policy they are made up."""
    known = (local_rules(guard.policy) or ())[:MOST]
    made_up = Rule(subject="mqauth-self-test", destinations=_ANYWHERE)
    return tuple(replace(rule, issuer=STRANGER, claims=None) for rule in known or (made_up,))


def _places(rules: tuple[Rule, ...]) -> list[str]:
    """Return destinations that the rules admit, each once."""
    found = dict.fromkeys(place_of_pattern(pattern) for rule in rules for pattern in rule.destinations)
    return list(islice(found, MOST)) or list(_ANYWHERE)


def _plain(verifier: Verifier, place: str) -> Message:
    """Return an unsigned message that has the headers this verifier requires."""
    on_kafka = destination.is_kafka(place)
    value: HeaderValue = b"self-test" if on_kafka else "self-test"
    named = {name: value for name in verifier.required}
    properties = {} if on_kafka else dict.fromkeys(named.keys() & set(PROTECTED_PROPERTIES), "self-test")
    headers = tuple((name, found) for name, found in named.items() if name not in properties)
    return Message(destination=place, body=b"mqauth self-test", headers=headers, properties=properties)


def _signed(guard: Pipeline, place: str, key: Key, issuer: str, subject: str) -> Message:
    """Return a message to a place, signed as somebody."""
    verifier = guard.verifier
    signer = Signer(
        key=replace(key, subjects=None), issuer=issuer, subject=subject,
        audience=min(verifier.audiences),
        lifetime=min(60, verifier.times.max_lifetime), clock=guard.clock,
        cover=[name for name in verifier.required if name not in PROTECTED_PROPERTIES],
    )  # fmt: skip
    return signer.sign(_plain(verifier, place))


def _origin(message: Message, number: int, guard: Pipeline) -> Origin:
    """Return what a broker would say of a delivery that it appended now."""
    _, *names = destination.parse(message.destination)
    stamp: dict[str, Any] = {"timestamp_ms": int(guard.clock.now() * 1000), "timestamp_type": "append"}
    if destination.is_kafka(message.destination):
        return Origin(topic=names[0], partition=0, offset=number, **stamp)
    return Origin(queue="mqauth-self-test", exchange=names[0], routing_key=names[1], **stamp)


class _Unlogged(Journal):
    """A journal that says nothing."""

    def ended(self, delivery: Delivery) -> None:
        """Say nothing of a delivery's end."""

    def deferred(self, delivery: Delivery, error: Unavailable, dead_letters: DeadLetterSink | None) -> Outcome:
        """Defer a delivery, and say nothing."""
        return delivery.defer(error)
