"""The vectors of the identity form: each attack has its reason, single and in a batch, cold and remembered."""

from __future__ import annotations

from typing import Any

import pytest

from tests.test_vectors import load
from tests.vectors import checks
from tests.vectors.identity_consumer import IdentityConsumer

FILE = load("identity.json")
VECTORS = FILE["vectors"]
ATTACKS = [vector for vector in VECTORS if vector["verdict"] == "rejected"]
HONEST = {
    form: next(v for v in VECTORS if v["name"] == f"{form}: as a producer makes it")
    for form in ("single", "batch")
}


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_each_message_gets_its_verdict(vector: Any) -> None:
    """At a consumer that has seen nothing yet, each message has the verdict of its vector."""
    checks.judge(FILE, vector)


@pytest.mark.parametrize("vector", ATTACKS, ids=lambda vector: vector["name"])
def test_each_attack_gets_its_reason_where_the_identity_is_remembered(
    vector: Any,
) -> None:
    """An honest message before it, in both forms, changes no verdict."""
    consumer = IdentityConsumer(FILE, vector["consumer"])
    for honest in HONEST.values():
        consumer.judge(honest | {"received": FILE["received"]})
    consumer.check(vector)


@pytest.mark.parametrize(
    "sequence", FILE["sequences"], ids=lambda sequence: sequence["name"]
)
def test_each_sequence_of_deliveries_gets_its_verdicts(sequence: Any) -> None:
    """What is remembered of an identity says nothing of keys, cut-off and time now."""
    checks.deliver(FILE, sequence)


def test_no_verdict_depends_on_the_vectors_before_it() -> None:
    """All vectors of the common consumer through one, and again in reverse: no verdict becomes another one."""
    common = checks.together(FILE)
    for order in (common, common[::-1]):
        checks.judge_all(FILE, order)


def test_an_attack_is_counted_in_both_forms() -> None:
    """The file has at least 96 attacks, none of them accepted, most of them single and in a batch."""
    names = {vector["name"].partition(": ")[2] for vector in ATTACKS}
    assert len(names) >= 96
    assert len(ATTACKS) >= 192
