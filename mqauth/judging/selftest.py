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

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, field, replace
from itertools import islice
from types import GeneratorType
from typing import Any, Final
from weakref import WeakSet

from mqauth.clock import SYSTEM_RANDOMNESS
from mqauth.errors import ConfigurationError, Reason, Unavailable, require
from mqauth.flow import Flow, either, run
from mqauth.judging.delivery import Delivery, Outcome
from mqauth.judging.journal import Journal, few
from mqauth.judging.judge import Judge
from mqauth.judging.pipeline import Pipeline
from mqauth.judging.policy import Allow, Rule, local_rules, place_of_pattern
from mqauth.judging.rollout import Rung, destinations_of
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
_LIFETIME: Final = 60
_BODY: Final = b"mqauth self-test"
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
        yield from either(policy.probe, policy.aprobe)
    _try(guard)


def _try(guard: Pipeline) -> None:
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
    trial = _Trial(guard)
    trial.try_hostile()
    try:
        trial.try_honest()
    except Exception as error:  # whatever is wrong there is no reason to keep a consumer from starting
        trial.condemned.append(f"the second pipeline failed: {type(error).__name__}")
    return SelfTest(
        refused=trial.refused, accepted=tuple(trial.accepted),
        lenient="" if not guard.rollout else destinations_of(guard.rollout), handled=trial.handled,
        condemned=tuple(trial.condemned), untried=tuple(trial.untried),
    )  # fmt: skip


@dataclass(slots=True)
class _Trial:
    """One self-test while it runs."""

    guard: Pipeline
    refused: int = 0
    handled: int = 0
    accepted: list[str] = field(default_factory=list)
    condemned: list[str] = field(default_factory=list)
    untried: list[str] = field(default_factory=list)

    def try_hostile(self) -> None:
        """Have the own pipeline judge what nobody signed."""
        for what, message in _hostile(self.guard):
            if _is_let_in(_judge_of(self.guard, message), self.guard.receive(message)):
                self.accepted.append(f"{what} to {message.destination}")
            else:
                self.refused += 1

    def try_honest(self) -> None:
        """Have a pipeline with the same settings handle honest messages, one for each rule."""
        policy = self.guard.policy
        if not isinstance(policy, Allow):
            self.untried.append(f"the policy {type(policy).__name__}")
        rules = _rules(self.guard)
        key = Key.generate(subjects=[rule.subject for rule in rules])
        twin = _twin(self.guard, key, rules)
        for rule in rules:
            self._try_rule(twin, key, rule)

    def _try_rule(self, twin: Pipeline, key: Key, rule: Rule) -> None:
        """Try one message of a rule, and a copy of it."""
        for place in map(place_of_pattern, rule.destinations[:1]):
            message = _signed(twin, place, key, STRANGER, rule.subject)
            seen: list[Verified] = []
            first, second = (replace(message, origin=_origin(message, number, twin)) for number in range(2))
            delivery = twin.receive(first)
            outcome = run(twin.judge(delivery))
            if outcome.verdict is Verdict.ACCEPTED:
                run(twin.process(delivery, seen.append, None))
            copy = run(twin.judge(twin.receive(second)))
            if len(seen) != 1:
                said = outcome.reason or outcome.cause or outcome.verdict.value
                self.condemned.append(f"{rule.subject} to {place}: {said}: {outcome.detail or ''}")
            elif copy.reason is not Reason.REPLAYED:
                self.condemned.append(f"a copy to {place}: {copy.verdict.value}")
            else:
                self.handled += 1


def _hostile(guard: Pipeline) -> Iterator[tuple[str, Message]]:
    """Yield what must be refused, and what it is."""
    rules, stranger = _rules(guard), Key.generate()
    for place in _places(rules):
        yield "an unsigned message", _plain(guard.verifier, place)
        yield "a message of an issuer nobody trusts", _signed(guard, place, stranger, STRANGER, rules[0].subject)


def _rules(guard: Pipeline) -> tuple[Rule, ...]:
    """Return the rules to try, with an issuer of our own and no claims; of another policy they are made up."""
    known = (local_rules(guard.policy) or ())[:MOST]
    made_up = Rule(subject="mqauth-self-test", destinations=_ANYWHERE)
    return tuple(replace(rule, issuer=STRANGER, claims=None) for rule in known or (made_up,))


def _places(rules: tuple[Rule, ...]) -> list[str]:
    """Return destinations that the rules admit, each once."""
    found = dict.fromkeys(place_of_pattern(pattern) for rule in rules for pattern in rule.destinations)
    return list(islice(found, MOST)) or list(_ANYWHERE)


def _judge_of(guard: Pipeline, message: Message) -> Judge:
    """Return what judges a message in this pipeline: strictly also what a rung or an exemption lets through."""
    judge, rollout = guard.verdicts, guard.rollout
    if rollout is None:
        return judge
    entry = rollout.entry(message.destination)
    below = (entry is not None and entry.rung is not Rung.ENFORCE) or rollout.exemption(message) is not None
    if below:
        judge = copy(judge)
        judge.ladder = None
    return judge


def _is_let_in(judge: Judge, delivery: Delivery) -> bool:
    """Return whether steps (0) to (12) let a message in, or would have to wait before they refuse it."""
    asked: Any = judge.prepare(delivery)
    if type(asked) is GeneratorType:
        asked.close()
    return delivery.rejection is None


def _plain(verifier: Verifier, place: str) -> Message:
    """Return an unsigned message that has the headers this verifier requires."""
    on_kafka = destination.is_kafka(place)
    value: HeaderValue = b"self-test" if on_kafka else "self-test"
    named = {name: value for name in verifier.required}
    properties = {} if on_kafka else dict.fromkeys(named.keys() & set(PROTECTED_PROPERTIES), "self-test")
    headers = tuple((name, found) for name, found in named.items() if name not in properties)
    return Message(destination=place, body=_BODY, headers=headers, properties=properties)


def _signed(guard: Pipeline, place: str, key: Key, issuer: str, subject: str) -> Message:
    """Return a message to a place, signed as somebody."""
    verifier = guard.verifier
    signer = Signer(
        key=replace(key, subjects=None), issuer=issuer, subject=subject,
        audience=min(verifier.audiences),
        lifetime=min(_LIFETIME, verifier.times.max_lifetime), clock=guard.clock,
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


def _twin(guard: Pipeline, key: Key, rules: tuple[Rule, ...]) -> Pipeline:
    """Return a pipeline with the same settings that trusts one key, and has parts in memory."""
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
    return twin
