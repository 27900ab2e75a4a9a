"""The policy: exact where it is not a wildcard, empty refuses, unsafe says so."""

from __future__ import annotations

from typing import Any

import pytest

from mqauth.errors import ConfigurationError
from mqauth.judging.policy import Allow, Decision, Rule, matches
from mqauth.testing import verified


@pytest.mark.parametrize(
    ("pattern", "place", "fits"),
    [
        ("kafka:orders", "kafka:orders", True),
        ("kafka:orders", "kafka:orders.x", False),
        ("kafka:orders", "kafka:Orders", False),
        ("kafka:*", "kafka:orders", True),
        ("kafka:*", "kafka:orders.eu", False),
        ("kafka:#", "kafka:orders.eu", True),
        ("kafka:#", "rabbitmq:/orders", False),
        ("rabbitmq:/#", "kafka:orders", False),
        ("rabbitmq:shop/orders.*", "rabbitmq:shop/orders.created", True),
        ("rabbitmq:shop/orders.*", "rabbitmq:shop/orders", False),
        ("rabbitmq:shop/orders.*", "rabbitmq:shop/orders.", True),
        ("rabbitmq:shop/orders.*", "rabbitmq:shop/orders.a.b", False),
        ("rabbitmq:shop/orders.#", "rabbitmq:shop/orders", True),
        ("rabbitmq:shop/orders.#", "rabbitmq:shop/orders.a.b", True),
        ("rabbitmq:shop/orders.#", "rabbitmq:shop/ordersx", False),
        ("rabbitmq:shop/#", "rabbitmq:shop/", True),
        ("rabbitmq:shop/#", "rabbitmq:shop2/a", False),
        ("rabbitmq:shop/#", "rabbitmq:/a", False),
        ("rabbitmq:shop/#.b", "rabbitmq:shop/b", True),
        ("rabbitmq:shop/#.b.#", "rabbitmq:shop/a.b.c", True),
        ("rabbitmq:shop/*.#.*", "rabbitmq:shop/a", False),
        ("rabbitmq:shop/*.#.*", "rabbitmq:shop/a.b", True),
        ("rabbitmq:shop/a.*.*", "rabbitmq:shop/a.b", False),
        ("rabbitmq:shop/a.b.#.c", "rabbitmq:shop/a", False),
        ("rabbitmq:shop/%2A", "rabbitmq:shop/%2A", True),
        ("rabbitmq:shop/%2A", "rabbitmq:shop/a", False),
        ("rabbitmq:shop/*", "rabbitmq:shop/a%2Fb", True),
        ("rabbitmq:shop/*", "rabbitmq:shop/a%2Eb", True),
        ("rabbitmq:shop/#", "rabbitmq:shop%2F/a", False),
    ],
)
def test_patterns_follow_amqp_topics(pattern: str, place: str, fits: bool) -> None:
    """* is one word, # any number, the exchange exact, brokers apart."""
    assert matches(pattern, place) is fits


def test_no_pattern_is_slow() -> None:
    """Sixty # against a hundred words, the case that is exponential for a backtracking matcher, ends."""
    pattern = "rabbitmq:x/" + ".".join(["#", "a"] * 60)
    assert not matches(pattern, "rabbitmq:x/" + ".".join(["a"] * 100 + ["b"]))


@pytest.mark.parametrize(
    "pattern",
    ["orders", "kafka:", "kafka:a b", "kafka:a/b", "kafka:a*", "kafka:%2e", "rabbitmq:*/a", "rabbitmq:#/a",
    "rabbitmq:a",
     "*", "#", "", "rabbitmq:a/b/c", "kafka:a.**", "redis:a", "kafka:é"],
)  # fmt: skip
def test_a_pattern_out_of_form_is_refused(pattern: str) -> None:
    """A wildcard is a whole word, never in the exchange, and the rest is canonical."""
    with pytest.raises(ConfigurationError):
        Rule(subject="a", destinations=(pattern,))


@pytest.mark.parametrize(
    "rule",
    [lambda: Rule(subject="", destinations=()), lambda: Rule(subject="a", destinations=(), issuer=""),
     lambda: Allow({"a": "kafka:orders"}), lambda: Allow({"a\n": ["kafka:orders"]}),
     lambda: Rule(subject="a", destinations="kafka:orders")],  # type: ignore[arg-type]
)  # fmt: skip
def test_a_rule_out_of_form_is_refused(rule: Any) -> None:
    """Names have their limits, and destinations are a list."""
    with pytest.raises(ConfigurationError):
        rule()


def test_an_empty_policy_refuses_everything() -> None:
    """No rule, no destination, or another subject: denied."""
    message = verified(subject="orders-api", destination="kafka:orders")
    for rules in (
        {},
        {"orders-api": []},
        {"Orders-api": ["kafka:#"]},
        {"orders-ap": ["kafka:#"]},
    ):
        assert Allow(rules).decide(message) is Decision.DENY


def test_a_rule_allows_what_it_names() -> None:
    """Several rules of a subject add up."""
    policy = Allow(
        [
            Rule(subject="me", destinations=("kafka:a",)),
            Rule(subject="me", destinations=("kafka:b", "kafka:c")),
        ]
    )
    found = {
        place: policy.decide(verified(subject="me", destination=place))
        for place in ("kafka:a", "kafka:c", "kafka:d")
    }
    assert found == {
        "kafka:a": Decision.ALLOW,
        "kafka:c": Decision.ALLOW,
        "kafka:d": Decision.DENY,
    }


def test_a_rule_may_name_its_issuer() -> None:
    """The same subject of another issuer is another producer."""
    policy = Allow(
        [Rule(subject="me", destinations=("kafka:a",), issuer="https://one.example")]
    )
    one = verified(subject="me", destination="kafka:a", issuer="https://one.example")
    two = verified(subject="me", destination="kafka:a", issuer="https://two.example")
    assert (policy.decide(one), policy.decide(two)) == (Decision.ALLOW, Decision.DENY)


def test_the_version_changes_with_the_rules() -> None:
    """Equal rules have one version, others another."""
    assert (
        Allow({"a": ["kafka:a"]}).version
        == Allow([Rule(subject="a", destinations=("kafka:a",))]).version
    )
    assert Allow({"a": ["kafka:a"]}).version != Allow({"a": ["kafka:b"]}).version
