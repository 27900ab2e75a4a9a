"""Metrics of an authority: what a real application answers, counted by closed lists alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mqauth import Cause, Key, Unavailable
from mqauth.authority.application import AuthorityServer
from mqauth.keystore.remote.keyserver import KeyServer
from mqauth.telemetry.authority import MAX_SUBJECTS, AuthorityTelemetry
from tests.authority_world import ORDERS, World
from tests.test_telemetry import Meter


@pytest.fixture
def meter() -> Meter:
    """Telemetry of an authority."""
    return Meter(AuthorityTelemetry)


@pytest.fixture
def world(tmp_path: Path, meter: Meter) -> World:
    """An authority that is measured, and those who ask it."""
    found = World(tmp_path)
    found.server = AuthorityServer(
        found.authority, KeyServer([found.keystore.folder], clock=found.clock), refusals=2,
        observers=[meter.telemetry.observe], clock=found.clock,
    )  # fmt: skip
    return found


def counted(meter: Meter, name: str) -> dict[tuple[Any, ...], Any]:
    """Return the values of a counter by its labels' values, in the order of their names."""
    return {
        tuple(value for _, value in labels): getattr(point, "value", None) or point.count
        for labels, point in meter.points(name).items()
    }


def test_answers_are_counted(world: World, meter: Meter) -> None:
    """Each answer counts once, with why and by which credential; unread requests too."""
    world.ask()
    stranger = Key.generate("ES256")
    world.ask(world.credential(key=stranger))
    nobody = world.credential(claims={"iss": "https://nobody.example"})
    assert [world.ask(nobody).status for _ in range(3)] == [401, 401, 429]
    assert counted(meter, "mqauth.authority.requests") == {
        ("issued", "cluster", ""): 1,
        ("invalid_client", "cluster", "credential_key"): 1,
        ("invalid_client", "", "credential_issuer"): 2,
        ("slow_down", "", "unread"): 1,
    }
    assert counted(meter, "mqauth.authority.identities") == {("cluster", ORDERS): 1}
    assert counted(meter, "mqauth.authority.duration") == {
        ("issued",): 1,
        ("invalid_client",): 3,
        ("slow_down",): 1,
    }


def test_a_failed_audit_is_counted(world: World, meter: Meter) -> None:
    """An audit file that refuses is an answer of its own, by its cause, and no identity."""

    def refuse(_record: object) -> None:
        raise Unavailable(Cause.AUDIT_UNAVAILABLE, "the disk is full")

    world.authority._audit = SimpleNamespace(write=refuse)
    assert world.ask().status == 503
    assert counted(meter, "mqauth.authority.requests") == {
        ("temporarily_unavailable", "cluster", "audit_unavailable"): 1
    }
    assert counted(meter, "mqauth.authority.identities") == {}


def test_subjects_are_bounded(meter: Meter) -> None:
    """A hundred identities have a label of their own, all others count together."""
    for number in range(MAX_SUBJECTS + 5):
        subject = f"wimse://prod.example/{number}"
        meter.telemetry.observe(
            answer="issued",
            refusal="",
            credential="cluster",
            subject=subject,
            seconds=0.01,
        )
    found = counted(meter, "mqauth.authority.identities")
    assert len(found) == MAX_SUBJECTS + 1
    assert found[("cluster", "other")] == 5


def test_an_observer_that_fails_keeps_no_identity_back(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """What an observer raises is logged, and the identity is given."""

    def broken(**_told: object) -> None:
        raise ValueError("x")

    world.server._observers = (broken,)
    assert world.ask().status == 200
    assert [record.message for record in caplog.records] == [
        "an observer failed: ValueError"
    ]


def test_key_and_cutoffs_are_measured(meter: Meter) -> None:
    """The age of the key and the number of cut-offs are told as they are now; without a key there is no age."""
    meter.telemetry.watch(
        "wimse://prod.example", cutoffs=lambda: 3, key_age=lambda: 86_400.0
    )
    meter.telemetry.watch("wimse://b.example", cutoffs=lambda: 0, key_age=lambda: None)
    ages = {
        labels: point.value
        for labels, point in meter.points("mqauth.authority.key.age").items()
    }
    assert ages == {(("trust_domain", "wimse://prod.example"),): 86_400.0}
    cut = {
        labels[0][1]: point.value
        for labels, point in meter.points("mqauth.authority.cutoffs").items()
    }
    assert cut == {"wimse://prod.example": 3, "wimse://b.example": 0}
