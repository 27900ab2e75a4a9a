"""The policy contract: the promises of every ``Policy``, be it rules in memory or a service that is asked.

Inherit ``PolicyContract`` in a test class and provide the fixture ``policy``: a policy that lets ``orders-api`` of
the issuer ``https://auth.example`` publish to ``kafka:orders``, and refuses everything else. Of a policy that is
kept elsewhere inherit ``AskedPolicyContract``, too, and provide ``out_of_reach``: a function after which whatever
the policy asks gives no answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import pytest

from mqauth.errors import Cause, Reason, Unavailable
from mqauth.flow import arun, run
from mqauth.judging.pipeline import Outcome, Pipeline, Verdict
from mqauth.judging.policy import AskedPolicy, Decision, Policy, decision_of, on_the_spot
from mqauth.judging.verified import Verified
from mqauth.replay.memory import MemoryReplayStore
from mqauth.testing.forge import ISSUER, SUBJECT, Forge
from mqauth.testing.sealed import verified
from mqauth.wire.message import Message

PLACE: Final = "kafka:orders"
ELSEWHERE: Final = "kafka:payments"
MAX_VERSION: Final = 256
"""Characters of a version: audit records quote it."""
_THREADS: Final = 8
_EACH: Final = 10


def honest(**changes: Any) -> Verified:
    """Return a message that the policy under test allows, or one that differs."""
    return verified(
        **({"issuer": ISSUER, "subject": SUBJECT, "destination": PLACE} | changes)
    )


REFUSED: Final = {
    "destination": {"destination": ELSEWHERE},
    "subject": {"subject": "stock-api"},
    "subject in another case": {"subject": "Orders-Api"},
    "destination that begins alike": {"destination": "kafka:orders.eu"},
    "other broker": {"destination": "rabbitmq:/orders"},
}
"""What the policy under test refuses."""


class PolicyContract:
    """What every ``Policy`` must do; the docstring of each test is the promise."""

    def test_it_allows_what_is_allowed(self, policy: Policy) -> None:
        """What is allowed is ``Decision.ALLOW`` itself, the first time and later."""
        assert [run(decision_of(policy, honest())) for _ in range(3)] == [
            Decision.ALLOW
        ] * 3

    @pytest.mark.parametrize("changes", REFUSED.values(), ids=REFUSED)
    def test_it_refuses_everything_else(
        self, policy: Policy, changes: dict[str, str]
    ) -> None:
        """Whatever is not allowed is ``Decision.DENY`` itself, the first time and later."""
        assert [run(decision_of(policy, honest(**changes))) for _ in range(3)] == [
            Decision.DENY
        ] * 3

    def test_body_and_headers_change_nothing(self, policy: Policy) -> None:
        """A decision does not depend on what a message carries."""
        message = honest(body=b"x" * 1000, headers=[("tenant", b"a")], key=b"42")
        assert run(decision_of(policy, message)) is Decision.ALLOW

    def test_its_version_is_short(self, policy: Policy) -> None:
        """The version is a line that audit records can quote, and stays while the rules do."""
        run(decision_of(policy, honest()))
        version = policy.version
        assert version.isprintable()
        assert 0 < len(version) <= MAX_VERSION
        run(decision_of(policy, honest(destination=ELSEWHERE)))
        assert policy.version == version

    def test_threads_share_it(self, policy: Policy) -> None:
        """Threads that ask at the same time each get the decision on their own message."""
        allowed, denied = honest(), honest(destination=ELSEWHERE)

        def ask(number: int) -> list[Decision]:
            return [
                run(decision_of(policy, allowed if number % 2 else denied))
                for _ in range(_EACH)
            ]

        with ThreadPoolExecutor(_THREADS) as pool:
            decisions = list(pool.map(ask, range(_THREADS)))
        assert decisions == [
            [Decision.ALLOW if number % 2 else Decision.DENY] * _EACH
            for number in range(_THREADS)
        ]

    def test_an_event_loop_asks_it(self, policy: Policy) -> None:
        """An event loop that asks several times at once gets the same decisions."""

        async def ask() -> list[Decision]:
            messages = [honest(), honest(destination=ELSEWHERE)] * 5
            return await asyncio.gather(
                *(arun(decision_of(policy, message)) for message in messages)
            )

        assert asyncio.run(ask()) == [Decision.ALLOW, Decision.DENY] * 5

    def test_a_pipeline_follows_it(self, policy: Policy) -> None:
        """A pipeline accepts what it allows, and rejects the rest as ``producer_forbidden``."""
        assert judged(policy, PLACE).verdict is Verdict.ACCEPTED
        refused = judged(policy, ELSEWHERE)
        assert (refused.verdict, refused.reason) == (
            Verdict.REJECTED,
            Reason.PRODUCER_FORBIDDEN,
        )


class AskedPolicyContract:
    """What a policy that is kept elsewhere must do; the docstring of each test is the promise."""

    def test_what_it_said_is_at_hand(self, policy: AskedPolicy) -> None:
        """A decision is at hand without asking once it was given, refusals too; before that there is none."""
        for message in (honest(), honest(destination=ELSEWHERE)):
            assert on_the_spot(policy)(message) is None
            assert policy.decide(message) is policy.remembered(message) is not None

    def test_both_ways_decide_alike(self, policy: AskedPolicy) -> None:
        """``adecide`` says what ``decide`` says."""
        for message in (honest(), honest(destination=ELSEWHERE)):
            assert asyncio.run(policy.adecide(message)) is policy.decide(message)

    def test_out_of_reach_is_no_decision(
        self, policy: AskedPolicy, out_of_reach: Callable[[], object]
    ) -> None:
        """Without an answer nothing is allowed and nothing refused: ``policy_unavailable``, in both ways."""
        out_of_reach()
        with pytest.raises(Unavailable) as blocking:
            policy.decide(honest())
        with pytest.raises(Unavailable) as waiting:
            asyncio.run(policy.adecide(honest(destination=ELSEWHERE)))
        assert blocking.value.cause is waiting.value.cause is Cause.POLICY_UNAVAILABLE

    def test_out_of_reach_defers(
        self, policy: AskedPolicy, out_of_reach: Callable[[], object]
    ) -> None:
        """A pipeline defers what nobody can decide, whether it would be allowed or not."""
        out_of_reach()
        for destination in (PLACE, ELSEWHERE):
            delivery = judged(policy, destination)
            assert (delivery.verdict, delivery.cause) == (
                Verdict.DEFERRED,
                Cause.POLICY_UNAVAILABLE,
            )

    def test_its_failure_tells_nothing_secret(
        self, policy: AskedPolicy, out_of_reach: Callable[[], object]
    ) -> None:
        """The text of a failure is one short line."""
        out_of_reach()
        with pytest.raises(Unavailable) as failed:
            policy.decide(honest())
        assert len(str(failed.value)) <= MAX_VERSION
        assert str(failed.value).isprintable()


def judged(policy: Policy, destination: str) -> Outcome:
    """Return what a pipeline with a policy makes of an honest message to a place."""
    forge = Forge()
    guard = Pipeline(
        verifier=forge.verifier(), policy=policy, replay=MemoryReplayStore(8)
    )
    return run(
        guard.judge(
            guard.receive(
                forge.signer().sign(Message(destination=destination, body=b"hello"))
            )
        )
    )
