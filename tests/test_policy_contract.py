"""The policy contract on rules in memory, on a policy of one's own, and on OPA over a scripted connection."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mqauth import OPA, Allow, Decision, Rule, Verified
from mqauth.testing.forge import ISSUER, SUBJECT
from mqauth.testing.policy_contract import PLACE, AskedPolicyContract, PolicyContract
from tests.opa_agent import Agent


class TestAllow(PolicyContract):
    """Rules in this process."""

    @pytest.fixture
    def policy(self) -> Allow:
        """One rule."""
        return Allow([Rule(subject=SUBJECT, issuer=ISSUER, destinations=(PLACE,))])


class InMemory:
    """A policy of one's own, and an asynchronous one where it is told to be."""

    version = "mine"

    def decide(self, verified: Verified, /) -> Decision:
        """Allow one producer one destination."""
        said = (verified.issuer, verified.subject, verified.destination)
        return Decision.ALLOW if said == (ISSUER, SUBJECT, PLACE) else Decision.DENY


class TestInMemory(PolicyContract):
    """A policy of two members."""

    @pytest.fixture
    def policy(self) -> InMemory:
        """A fresh one."""
        return InMemory()


class TestOPA(PolicyContract, AskedPolicyContract):
    """OPA, whose agent is a script."""

    @pytest.fixture
    def agent(self) -> Agent:
        """An agent with the contract's policy."""
        return Agent()

    @pytest.fixture
    def policy(self, agent: Agent) -> OPA:
        """A fresh client."""
        return agent.opa()

    @pytest.fixture
    def out_of_reach(self, agent: Agent) -> Callable[[], object]:
        """Refuses connections from now on."""
        return agent.vanish


class TestOPAWithin(PolicyContract):
    """OPA that allows everything, bounded by rules in this process."""

    @pytest.fixture
    def policy(self) -> OPA:
        """Only what the rules allow is asked."""
        agent = Agent()
        agent.says = lambda _: True
        return agent.opa(within=Allow([Rule(subject=SUBJECT, issuer=ISSUER, destinations=(PLACE,))]))
