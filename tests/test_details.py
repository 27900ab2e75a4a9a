"""Why a message was rejected: both sides of each reason, bounded, harmless; no letter says what is configured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest

from mqauth import Allow, MemoryReplayStore, Origin, Reason, Rejection
from mqauth.judging import details
from mqauth.judging.details import explain
from mqauth.replay.rules import ClaimRequest, ReplayStore, first_seen
from mqauth.testing import ATTACKS, BATCH_ATTACKS, FakeClock
from mqauth.testing.token_attacks import honest_message

World = Any
SECRET_SIDE = {
    Reason.ISSUER_UNTRUSTED, Reason.KEY_UNKNOWN, Reason.KEY_REVOKED, Reason.KEY_EXPIRED, Reason.AUDIENCE_MISMATCH,
    Reason.SUBJECT_MISMATCH, Reason.EXPIRED, Reason.LIFETIME_EXCESSIVE, Reason.ISSUED_IN_FUTURE,
    Reason.NOT_YET_VALID,
}  # fmt: skip
HOSTILE = "\x1b[2J\u202e" + "x" * 10_000


def rejected(world: World, attack: Any) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Return outcome, audit record and headers of the letter of an attack."""
    place = (
        "kafka:orders" if attack.fits("kafka:orders") else "rabbitmq:shop/orders.created"
    )
    outcome = world.process(attack.mount(world.forge, honest_message(place)))
    return outcome, world.records[-1], dict(world.published[-1].headers)


@pytest.mark.parametrize(
    "attack", [*ATTACKS, *BATCH_ATTACKS], ids=lambda attack: attack.name
)
def test_both_sides(attack: Any, world: World) -> None:
    """Of each attack whose reason has two sides the record holds both, and the letter what was found alone."""
    outcome, record, letter = rejected(world, attack)
    if attack.reason not in SECRET_SIDE:
        return
    assert record["found"]
    assert record["expected"]
    for name, text in record["expected"].items():
        assert f"{name} {text}" in outcome.detail
    assert "; configured:" not in letter["mqauth-dead-detail"]
    assert all(
        f"{name} {text}" in outcome.detail for name, text in record["found"].items()
    )


@pytest.mark.parametrize(
    "attack", [*ATTACKS, *BATCH_ATTACKS], ids=lambda attack: attack.name
)
def test_a_letter_holds_no_expected_value(attack: Any, world: World) -> None:
    """No value that is configured, and was not in the message, is in any header that mqauth wrote."""
    _, record, letter = rejected(world, attack)
    own = " ".join(
        str(text) for name, text in letter.items() if name.startswith("mqauth-dead-")
    )
    said = set(record.get("found", {}).values())
    for name, text in record.get("expected", {}).items():
        assert text in said or f"{name} {text}" not in own


def test_issuer_with_a_slash(world: World) -> None:
    """A trailing slash is pointed out, and what is not proved is said to be claimed."""
    outcome = world.process(world.sealed(claims={"iss": "https://auth.example/"}))
    assert outcome.detail == (
        "no such issuer is configured: issuer https://auth.example/ (claimed); configured: issuer"
        " https://auth.example, note differs by a trailing slash"
    )


def test_expired(world: World, clock: FakeClock) -> None:
    """Both times, the difference, leeway, limit and by whose clock."""
    message = world.sealed()
    clock.advance(3600)
    detail = str(world.process(message).detail)
    for part in (
        "exp 20",
        "received 20",
        "since exp ",
        "lifetime ",
        "at consume",
        "leeway 5 s",
        "by this consumer's",
    ):
        assert part in detail


def test_destination(world: World) -> None:
    """Where it was signed for, and where it arrived."""
    message = world.sealed()
    world.process(replace(message, destination="rabbitmq:shop/orders.deleted"))
    assert world.records[-1]["found"] == {
        "signed for": "rabbitmq:shop/orders.created", "arrived at": "rabbitmq:shop/orders.deleted",
    }  # fmt: skip


def test_headers(world: World) -> None:
    """Names alone: what is absent, what is spelt in two ways, or how many names might have changed."""
    message = world.sealed()
    without = tuple(pair for pair in message.headers if pair[0] != "tenant")
    for headers, wanted in (
        (without, {"covered but absent": "tenant"}),
        ((*message.headers, ("Tenant", "evil")), {"in another spelling": "Tenant"}),
        ((*without, ("tenant", "evil")), {"a value changed of one of": "2"}),
    ):
        world.process(replace(message, headers=headers))
        assert world.records[-1]["found"] == wanted
        assert "evil" not in repr(world.records[-1])


def test_coverage(make_world: Any, forge: Any) -> None:
    """The headers that nobody signed, and those that are required."""
    world = make_world(
        verifier=forge.verifier(unsigned_headers="reject", require_headers=("tenant",))
    )
    message = world.sealed()
    world.process(replace(message, headers=(*message.headers, ("later", "x"))))
    record = world.records[-1]
    assert (record["found"], record["expected"]) == (
        {"not covered": "later"},
        {"required": "tenant"},
    )


def test_producer(make_world: Any) -> None:
    """Who wanted to publish where, and where it may."""
    world = make_world(policy=Allow({"orders-api": ["kafka:orders"]}))
    world.process(world.sealed())
    record = world.records[-1]
    assert record["found"] == {
        "subject": "orders-api",
        "destination": "rabbitmq:shop/orders.created",
    }
    assert record["expected"] == {"its rules": "kafka:orders"}


def test_misspelt_header(world: World, rabbit: Any) -> None:
    """The header that looks most like the token's is named, with how many there are."""
    outcome = world.process(rabbit(headers=(("mqauth_token", "x"), ("tenant", "acme"))))
    assert outcome.detail == (
        "no token header: headers 2, nearest mqauth_token, names mqauth_token, tenant (claimed);"
        " configured: header mqauth-token"
    )


def test_replayed(world: World, kafka: Any) -> None:
    """On Kafka a copy names the first place and its own, where the store knows the first; the letter does too."""
    world.store.first_place = world.memory.first_place
    message = world.forge.seal(kafka(7))
    world.process(message)
    world.process(replace(message, origin=Origin(topic="orders", partition=0, offset=9)))
    assert world.records[-1]["found"]["this is"] == "orders/0/9"
    assert world.records[-1]["detail"] == "first at orders/0/7"
    detail = str(dict(world.published[-1].headers)["mqauth-dead-detail"])
    assert detail.startswith("first at orders/0/7: this is orders/0/9")


def test_replayed_as_another_delivery(world: World, rabbit: Any) -> None:
    """On RabbitMQ no place is known: a copy is told from a redelivery by the broker's mark alone."""
    message = world.forge.seal(rabbit())
    assert world.process(message).detail is None
    assert "handled before, or being handled, as another delivery" in str(
        world.process(message).detail
    )


def test_a_store_without_places_says_so(kafka: Any) -> None:
    """A store that keeps no place, as Redis does, names none."""
    store = MemoryReplayStore()
    request = ClaimRequest(
        "billing", bytes(16), "a", ("", "orders", 0, 9), False, 60.0, 1e12
    )
    assert first_seen(store, request) == "first at another place"
    store.claim(request)
    assert first_seen(store, request) == "first at orders/0/9"
    store.confirm(request)
    assert first_seen(store, request) == "first at orders/0/9"
    assert first_seen(cast(ReplayStore, object()), request) == "first at another place"


@pytest.mark.parametrize("claim", ["iss", "aud", "sub"])
def test_hostile_names(claim: str, world: World) -> None:
    """Names of 10,000 characters, with escapes and marks of direction, come out bounded and harmless."""
    made = world.sealed(claims={claim: HOSTILE[:256]})
    headers = tuple((f"{HOSTILE[:200]}{number}", "x") for number in range(40))
    world.process(replace(made, headers=(*made.headers, *headers)))
    world.process(
        replace(honest_message("rabbitmq:shop/orders.created"), headers=headers)
    )
    for record, letter in zip(world.records, world.published, strict=True):
        texts = [
            *record.get("found", {}).values(),
            *record.get("expected", {}).values(),
            record["detail"],
        ]
        texts.append(str(dict(letter.headers)["mqauth-dead-detail"]))
        assert all("\x1b" not in text and "\u202e" not in text for text in texts)
        assert all(len(text) <= 512 for text in texts)
        assert len(record.get("found", {})) <= 8


def test_what_explains_never_fails(world: World, rabbit: Any) -> None:
    """Where nothing is left to explain a rejection by, it stands as it is."""
    delivery = world.receive(rabbit())
    explain(delivery, world.pipeline.verifier, world.policy)
    for reason in Reason:
        delivery.rejection = Rejection(reason, "short")
        explain(delivery, world.pipeline.verifier, world.policy)
        assert delivery.rejection.sentence().startswith("short")


def test_a_flood_of_names_is_not_compared(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a message without a token the first names alone are compared with the token's, however many there are."""
    compared: list[int] = []

    def counted(_word: str, names: Any, *_limits: Any) -> list[str]:
        compared.append(len(names))
        return []

    monkeypatch.setattr(details, "get_close_matches", counted)
    names = tuple((f"mqauth-toke{number}", "x") for number in range(1000))
    world.process(replace(honest_message("rabbitmq:shop/orders.created"), headers=names))
    assert compared == [32]
