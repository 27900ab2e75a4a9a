"""Dashboard and alert rules on a real Prometheus, over a running consumer on a real RabbitMQ, under attack."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from integration.documentation import ROOT
from integration.services import RabbitMQ
from integration.services.prometheus import Prometheus
from integration.waiting import until
from mqauth.audit.file import AuditFile
from mqauth.audit.misuse import Alert
from mqauth.audit.sinks import FloodGate, MisuseWatch
from mqauth.errors import Reason, RejectNow
from mqauth.judging.pipeline import Pipeline
from mqauth.judging.rollout import AcceptAs, Rollout, RolloutEntry, Rung
from mqauth.judging.verified import Verified
from mqauth.replay.memory import MemoryReplayStore
from mqauth.telemetry import AuthorityTelemetry
from mqauth.telemetry.prometheus import Endpoint
from mqauth.testing.forge import ISSUER, Forge
from mqauth.testing.stage_rabbitmq import RabbitMQStage
from mqauth.testing.token_attacks import ATTACKS, honest_message
from mqauth.wire.message import Message

OBSERVABILITY = ROOT / "docs" / "observability"
WINDOW = "20s"
SHORTER = {"[5m]": f"[{WINDOW}]", "offset 5m": f"offset {WINDOW}", "_seconds) > 60": "_seconds) > 1",
           "[24h]": f"[{WINDOW}]", "offset 24h": f"offset {WINDOW}",
           "[10m]": f"[{WINDOW}]", "offset 10m": f"offset {WINDOW}"}  # fmt: skip
"""What stands in the files, and what does in the test: nobody waits five minutes."""


def shortened(text: str) -> str:
    """Return queries with shorter windows; every one of the replacements must apply somewhere."""
    for said, meant in SHORTER.items():
        text = text.replace(said, meant)
    return text


def panels() -> dict[str, list[str]]:
    """Return the queries of the dashboard by panel."""
    found = json.loads((OBSERVABILITY / "grafana-dashboard.json").read_text())["panels"]
    return {
        panel["title"]: [shortened(target["expr"]) for target in panel["targets"]]
        for panel in found
    }


class Demo:
    """A consumer under attack: everything a service would set up, and an attacker."""

    def __init__(self, stage: RabbitMQStage, endpoint: Endpoint, folder: Path) -> None:
        self.stage, self.forge, self.key_age = stage, Forge(lifetime=600), 10.0
        self._number = 0
        telemetry, store = endpoint.telemetry, MemoryReplayStore()
        self.audit = AuditFile(folder / "audit.jsonl")
        guard = Pipeline(
            verifier=self.forge.verifier(), policy=self.forge.policy(stage.destination), replay=store,
            audit=MisuseWatch(FloodGate(self.audit), on_alert=telemetry.alert), observers=[telemetry.observe],
        )  # fmt: skip
        self.endpoint, self.open, self.oldest, self.policy_failing = (
            endpoint,
            0.0,
            0.0,
            0.0,
        )
        handler = telemetry.timed(self._handle)
        self.consumer = stage._call(stage._consumer(guard, handler))
        telemetry.watch_dead_letters(
            "orders.dead", lambda: self.open, lambda: self.oldest
        )
        self.roll_out("kafka:orders", 30)
        alias = AcceptAs(at="kafka:eu.orders", signed_for=("kafka:orders",))
        telemetry.watch_rollout(None, self.forge.verifier(accept_as=[alias]))
        telemetry.watch_consumer("billing", self.consumer.health)
        telemetry.watch_keys(ISSUER, lambda: self.key_age)
        telemetry.watch_policy(
            "opa", lambda: SimpleNamespace(failing_for=self.policy_failing)
        )
        self.identity_left = 3600.0
        telemetry.watch_identity(
            lambda: SimpleNamespace(
                subject="wimse://prod.example/a", expires_in=self.identity_left
            )
        )
        telemetry.watch_store("memory", store.__len__)
        self.losses = 0
        telemetry.watch_losses("redis", lambda: self.losses)
        telemetry.watch_issuers(
            SimpleNamespace(ends={ISSUER: datetime.now(UTC).date() + timedelta(days=30)})
        )
        self.authority, self.signing_for = AuthorityTelemetry(endpoint.meter), 10.0
        self.authority.watch(
            "wimse://prod.example", cutoffs=lambda: 0.0, key_age=lambda: self.signing_for
        )

    def asks(
        self, answer: str, refusal: str = "", subject: str = "", times: int = 1
    ) -> None:
        """Have an authority tell of an answer, so many times."""
        for _ in range(times):
            self.authority.observe(
                answer=answer,
                refusal=refusal,
                credential="cluster",
                subject=subject,
                seconds=0.01,
            )

    def roll_out(self, destination: str, days: int) -> None:
        """Have a destination at ``observe`` for so many days from now."""
        today = datetime.now(UTC).date()
        self.endpoint.telemetry.watch_rollout(Rollout([RolloutEntry(
            destinations=(destination,), rung=Rung.OBSERVE, since=today, until=today + timedelta(days=days),
            owner="orders-team", window=86_400.0,
        )]))  # fmt: skip

    @staticmethod
    def _handle(verified: Verified) -> None:
        if verified.header("fails") is not None:
            raise RejectNow("no")

    def fails(self) -> None:
        """Publish an honest message that the handler cannot handle."""
        self._number += 1
        message = honest_message(self.stage.destination, self._number)
        self.stage.inject(
            self.forge.signer().sign(
                replace(message, headers=(*message.headers, ("fails", "1")))
            )
        )

    def honest(self) -> Message:
        """Publish an honest message, for which somebody gets an identity, and return it as it was published."""
        self._number += 1
        self.asks("issued", subject="wimse://prod.example/a")
        sealed = self.forge.signer().sign(
            honest_message(self.stage.destination, self._number)
        )
        self.stage.inject(sealed)
        return sealed

    def attack(self, reason: Reason, times: int = 1) -> None:
        """Mount the attack that is rejected for this reason."""
        attack = next(attack for attack in ATTACKS if attack.reason is reason)
        for _ in range(times):
            self._number += 1
            self.stage.inject(
                attack.mount(
                    self.forge, honest_message(self.stage.destination, self._number)
                )
            )

    def close(self) -> None:
        """End the consumer."""
        self.stage._call(self.consumer.__aexit__(None, None, None))
        self.audit.close()


@contextmanager
def traffic(demo: Demo) -> Iterator[None]:
    """Publish honest messages all the while."""
    done = threading.Event()

    def publish() -> None:
        while not done.wait(0.2):
            demo.honest()

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.fixture
def demo(rabbitmq: RabbitMQ, tmp_path: Path) -> Iterator[tuple[Demo, Prometheus]]:
    """A running consumer with its metrics, and a Prometheus that scrapes them every second."""
    rules = shortened((OBSERVABILITY / "alerts.yml").read_text())
    with (
        Endpoint(0) as endpoint,
        Prometheus.launch(targets=[f"127.0.0.1:{endpoint.port}"], rules=rules) as server,
    ):
        stage = RabbitMQStage(rabbitmq.url, prefetch=10)
        demo = Demo(stage, endpoint, tmp_path)
        try:
            yield demo, server
        finally:
            demo.close()
            stage.close()


def test_every_shortening_applies() -> None:
    """The files have the windows and bounds that this test shortens: none of them is there in vain."""
    text = (OBSERVABILITY / "alerts.yml").read_text() + (
        OBSERVABILITY / "grafana-dashboard.json"
    ).read_text()
    assert [said for said in SHORTER if said not in text] == []
    assert "5m" not in shortened(text)


@pytest.mark.slow
def test_dashboard_and_alerts(
    demo: tuple[Demo, Prometheus], capsys: pytest.CaptureFixture[str]
) -> None:
    """Every panel shows data; no alert fires on honest traffic, each fires on its attack, at the first one."""
    consumer, server = demo
    with traffic(consumer):
        until(
            lambda: _sum(server, 'mqauth_messages_total{verdict="accepted"} > 10'),
            moment=0.1,
        )
        quiet = server.firing()
        _every_attack(consumer)
        until(lambda: set(server.firing()) >= wanted() - OUTAGES, moment=0.1)
        until(lambda: not _empty(server), moment=0.1)
        consumer.key_age, consumer.oldest = 2000.0, 700_000.0
        consumer.stage.remove_dead_letters()
        consumer.attack(Reason.TOKEN_MISSING)
        until(lambda: set(server.firing()) >= OUTAGES, moment=0.1)
        consumer.stage.restore_dead_letters()
    assert quiet == {}
    with capsys.disabled():
        print(
            f"\nPrometheus {server.version}: {len(panels())} panels with data, {len(wanted())} alerts fired"
        )


OUTAGES = {"MqauthStalled", "MqauthKeySetOld", "MqauthDeadLettersUnreviewed"}


def wanted() -> set[str]:
    """Return the names of all alert rules."""
    lines = (OBSERVABILITY / "alerts.yml").read_text().splitlines()
    return {
        line.split(": ")[1] for line in lines if line.lstrip().startswith("- alert: ")
    }


def _every_attack(demo: Demo) -> None:
    """Do what each alert is there for."""
    copy = demo.honest()
    demo.stage.inject(replace(copy))
    demo.attack(Reason.SIGNATURE_INVALID, 11)
    demo.attack(Reason.BODY_MISMATCH)
    demo.attack(Reason.KEY_REVOKED)
    demo.attack(Reason.EXPIRED, 21)
    demo.attack(Reason.PRODUCER_FORBIDDEN)
    for _ in range(40):
        demo.fails()
    demo.endpoint.telemetry.alert(Alert(kind="unsigned_again", about={}, count=1, time=0))
    demo.open, demo.policy_failing, demo.identity_left = 500.0, 61.0, 60.0
    demo.roll_out("kafka:refunds", -2)
    for issuer, days in (("https://near.example", 3), ("https://late.example", -3)):
        ends = {issuer: datetime.now(UTC).date() + timedelta(days=days)}
        demo.endpoint.telemetry.watch_issuers(SimpleNamespace(ends=ends))
    demo.asks("temporarily_unavailable", "audit_unavailable")
    demo.asks("invalid_client", "credential_signature", times=11)
    demo.asks("slow_down", "unread")
    demo.losses = 1
    demo.signing_for = 8_000_000.0


def _empty(server: Prometheus) -> list[str]:
    """Return the panels of which a query has no data."""
    return [
        title
        for title, queries in panels().items()
        if not all(
            any(math.isfinite(float(point["value"][1])) for point in server.query(query))
            for query in queries
        )
    ]


def _sum(server: Prometheus, query: str) -> float:
    """Return the sum of an instant vector."""
    return sum(float(point["value"][1]) for point in server.query(query))
