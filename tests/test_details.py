"""Why a message was rejected: both sides of each reason, bounded, harmless; no letter says what is configured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mqauth.errors import Reason, Rejection
from mqauth.judging import details
from mqauth.judging.details import explain
from mqauth.testing import ATTACKS, BATCH_ATTACKS
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
    place = "kafka:orders" if attack.fits("kafka:orders") else "rabbitmq:shop/orders.created"
    outcome = world.process(attack.mount(world.forge, honest_message(place)))
    return outcome, world.records[-1], dict(world.published[-1].headers)


@pytest.mark.parametrize("attack", [*ATTACKS, *BATCH_ATTACKS], ids=lambda attack: attack.name)
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
    assert all(f"{name} {text}" in outcome.detail for name, text in record["found"].items())


def test_issuer_with_a_slash(world: World) -> None:
    """A trailing slash is pointed out, and what is not proved is said to be claimed."""
    outcome = world.process(world.sealed(claims={"iss": "https://auth.example/"}))
    assert outcome.detail == (
        "no such issuer is configured: issuer https://auth.example/ (claimed); configured: issuer"
        " https://auth.example, note differs by a trailing slash"
    )


def test_destination(world: World) -> None:
    """Where it was signed for, and where it arrived."""
    message = world.sealed()
    world.process(replace(message, destination="rabbitmq:shop/orders.deleted"))
    assert world.records[-1]["found"] == {
        "signed for": "rabbitmq:shop/orders.created", "arrived at": "rabbitmq:shop/orders.deleted",
    }  # fmt: skip


@pytest.mark.parametrize("claim", ["iss", "aud", "sub"])
def test_hostile_names(claim: str, world: World) -> None:
    """Names of 10,000 characters, with escapes and marks of direction, come out bounded and harmless."""
    made = world.sealed(claims={claim: HOSTILE[:256]})
    headers = tuple((f"{HOSTILE[:200]}{number}", "x") for number in range(40))
    world.process(replace(made, headers=(*made.headers, *headers)))
    world.process(replace(honest_message("rabbitmq:shop/orders.created"), headers=headers))
    for record, letter in zip(world.records, world.published, strict=True):
        texts = [*record.get("found", {}).values(), *record.get("expected", {}).values(), record["detail"]]
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


def test_a_flood_of_names_is_not_compared(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a message without a token the first names alone are compared with the token's, however many there are."""
    compared: list[int] = []

    def counted(_word: str, names: Any, *_limits: Any) -> list[str]:
        compared.append(len(names))
        return []

    monkeypatch.setattr(details, "get_close_matches", counted)
    names = tuple((f"mqauth-toke{number}", "x") for number in range(1000))
    world.process(replace(honest_message("rabbitmq:shop/orders.created"), headers=names))
    assert compared == [32]
