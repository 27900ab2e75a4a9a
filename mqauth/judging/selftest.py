"""Tries a consumer before it consumes: whether it refuses what nobody signed.

The consumer's own pipeline judges unsigned messages and those of an issuer that nobody trusts: steps (0) to (12)
of a verdict, so that nothing is claimed, recorded or dead-lettered. If one is let in, the consumer does not start.
A signature that does not hold is refused by the crypto library, and is not tried here.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from itertools import islice
from types import GeneratorType
from typing import Any, Final
from weakref import WeakSet

from mqauth.errors import ConfigurationError, require
from mqauth.flow import Flow, call
from mqauth.judging.journal import few
from mqauth.judging.pipeline import Pipeline
from mqauth.judging.policy import local_rules, place_of_pattern
from mqauth.judging.rollout import destinations_of
from mqauth.logs import emit, harmless
from mqauth.signer import Signer
from mqauth.wire.keys import Key
from mqauth.wire.message import Message

__all__ = ["SelfTest", "self_test", "starting"]
MOST: Final = 8
"""Places that are tried; the cost at a start must not grow with a configuration."""
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
    """

    refused: int
    accepted: tuple[str, ...]
    lenient: str

    def lines(self) -> list[str]:
        """Return it for people, one line each."""
        lines = [f"hostile messages refused: {self.refused}"]
        lines += [f"LET IN: {hostile}" for hostile in self.accepted]
        return lines + (
            [f"unsigned messages reach a handler on purpose: {self.lenient}"]
            if self.lenient
            else []
        )


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
    require(
        getattr(policy, "scope", guard.scope) == guard.scope,
        "the policy has another scope than the pipeline",
    )
    if hasattr(policy, "probe"):
        yield from call(policy.probe, twin=policy.aprobe)
    if not guard.self_test:
        emit(
            "selftest.off",
            "self_test is off: nobody has tried whether this consumer refuses a forged message",
        )
        return
    result = self_test(guard)
    told = harmless("; ".join(result.lines()), 1024)
    if result.accepted:
        emit("selftest.accepted", "the consumer does not start: %s", told)
        raise ConfigurationError(
            f"self-test: the consumer would let in {few(result.accepted)}"
        )
    _TRIED.add(guard)
    emit("selftest.passed", "self-test: %s", told)


def self_test(guard: Pipeline) -> SelfTest:
    """Return what a pipeline makes of hostile messages.

    It claims, records and sends nothing, asks for no keys, and never waits.
    """
    # Places that the rules admit; of another policy they are made up.
    rules = local_rules(guard.policy) or ()
    destinations = dict.fromkeys(
        place_of_pattern(pattern) for rule in rules for pattern in rule.destinations
    )
    stranger = Signer(
        key=Key.generate(),
        issuer=STRANGER,
        subject="mqauth-self-test",
        audience=min(guard.verifier.audiences),
        clock=guard.clock,
    )
    refused, accepted = 0, list[str]()
    for destination in list(islice(destinations, MOST)) or _ANYWHERE:
        unsigned = Message(
            destination=destination, body=b"mqauth self-test", headers=(), properties={}
        )
        hostile = {
            "an unsigned message": unsigned,
            "a message of an issuer nobody trusts": stranger.sign(unsigned),
        }
        for what, message in hostile.items():
            delivery = guard.receive(message)
            # Strictly also what a rung or an exemption lets through.
            judge, rollout = guard.verdicts, guard.rollout
            if rollout is not None and (
                rollout.is_lenient(message) or rollout.exemption(message) is not None
            ):
                judge = copy(judge)
                judge.ladder = None
            # Steps (0) to (12), or what it would wait for before.
            asked: Any = judge.prepare(delivery)
            if type(asked) is GeneratorType:
                asked.close()
            if delivery.rejection is None:
                accepted.append(f"{what} to {destination}")
            else:
                refused += 1
    return SelfTest(
        refused=refused,
        accepted=tuple(accepted),
        lenient="" if not guard.rollout else destinations_of(guard.rollout),
    )
