"""A rollout is loud, and what it counts is bounded: records, warnings, detectors, gauges, check codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from mqauth.audit.misuse import Detector
from mqauth.audit.observed import CAPACITY, Group, Observed
from mqauth.audit.record import iso_time
from mqauth.audit.rollout_watch import last_rollout
from mqauth.audit.sinks import MisuseWatch
from mqauth.delivery.health import QueueHealth, State, told_of
from mqauth.judging.accept_as import AcceptAs
from mqauth.judging.rollout import Exemption, Rollout, Rung
from mqauth.judging.without_evidence import WithoutEvidence
from mqauth.telemetry import Telemetry
from mqauth.testing import ATTACKS, FakeClock, Forge
from mqauth.testing.forge import ISSUER
from mqauth.testing.token_attacks import honest_message
from mqauth.wire import strict_json
from mqauth.wire.message import Message, Origin
from tests.conftest import KAFKA, RABBITMQ, rabbitmq_message
from tests.test_rollout import Ladder, at
from tests.test_telemetry import Meter

SCHEMA = Draft202012Validator(
    json.loads((Path(__file__).parents[1] / "docs" / "audit-record.schema.json").read_text("utf-8"))
)
DAY = 86_400.0


@pytest.fixture
def world(clock: FakeClock, forge: Forge) -> Callable[..., Ladder]:
    """A maker of worlds with a rollout, without an event loop."""
    return lambda rollout, **settings: Ladder(clock, forge, False, rollout, **settings)


def of(world: Ladder, verdict: str) -> list[dict[str, Any]]:
    """Return the facts of a world's records of a verdict, each of which follows the schema."""
    found = [record for record in world.told if record["verdict"] == verdict]
    assert [list(SCHEMA.iter_errors(record)) for record in found] == [[] for _ in found]
    return [record.get(verdict, record) for record in found]


class TestCounting:
    """Groups, and what has no place among them."""

    def test_nothing_is_lost_and_memory_is_bounded(self) -> None:
        """Of 100,000 messages of 50,000 names no count is lost, and a record has at most 64 KiB."""
        counts = Observed()
        shown = 0
        for number in range(100_000):
            name = "crm-export" if number % 3 == 0 else f"flood-{number % 50_000}"
            shown += counts.would(KAFKA, Group("token_missing", KAFKA, app=name), float(number // 1000))
            assert len(counts.groups) <= CAPACITY
        taken = counts.take()
        assert sum(group["count"] for group in taken["groups"]) + taken["other"] == 100_000
        assert taken["groups"][0]["app"] == "crm-export"
        assert len(strict_json.dumps(taken)) <= 64 * 1024
        assert shown <= 200
        assert counts.take()["groups"] == []

    def test_a_rare_producer_in_a_flood_is_in_other(self) -> None:
        """A flood can keep it out of sight, and then ``other`` is not 0."""
        counts = Observed()
        for number in range(3000):
            counts.would(KAFKA, Group("token_missing", KAFKA, app=f"flood-{number}"), 0.0)
        counts.would(KAFKA, Group("token_missing", KAFKA, app="rare"), 0.0)
        taken = counts.take()
        assert "rare" not in [group.get("app") for group in taken["groups"]]
        assert taken["other"] > 0


class TestRecords:
    """What stands in the audit file."""

    @pytest.mark.parametrize(
        ("evidence", "more"),
        [(True, {}), (False, {"append_evidence": None}), (False, {"unsafe_append_evidence": True})],
        ids=["proved", "not given", "unsafe"],
    )
    def test_the_oldest_append_time(
        self, evidence: bool, more: dict[str, Any], world: Callable[..., Ladder], clock: FakeClock, forge: Forge
    ) -> None:
        """Of a minute's deliveries, verified or not, where the interceptor proves it; then the next minute's."""
        settings = {"at": "append", "max_queue_age": 86_400, "append_evidence": "interceptor"} | more
        found, now = world(at(Rung.OBSERVE), verifier=forge.verifier(**settings)), clock.now()

        def appended(seconds: float) -> Message:
            stamp = Origin(queue="orders", timestamp_ms=int(seconds * 1000), timestamp_type="append")
            return replace(rabbitmq_message(body=b"%d" % seconds), origin=stamp)

        for each in (appended(now), found.sealed(appended(now - 50)), appended(now - 200)):
            found.process(each)
        clock.advance(61)
        found.process(appended(now + 60))
        clock.advance(61)
        found.process(appended(now + 120))
        found.run(found.pipeline.tick(last=True))
        oldest = [one["oldest"].get(RABBITMQ) for one in of(found, "observed")]
        assert oldest == [iso_time(at) if evidence else None for at in (now, now - 200, now + 120)] + [None]

    def test_the_start_line_says_what_is_not_rejected(
        self, world: Callable[..., Ladder], caplog: pytest.LogCaptureFixture
    ) -> None:
        """Where a rung or an exemption lets messages pass, the line names the destinations."""
        found = world(at(Rung.OBSERVE, KAFKA))
        with caplog.at_level("INFO", "mqauth"):
            for rollout in (found.pipeline.rollout, None):
                found.pipeline.journal.started("topics", "billing", "orders.dead", rollout)
        below, strict = [record.getMessage() for record in caplog.records if record.event == "consumer.started"]  # type: ignore[attr-defined]
        but = f"also what is not signed, but gives what is not proven at {KAFKA} to unverified=; headers"
        assert (but in below, "also what is not signed; headers" in strict) == (True, True)


class TestDetectors:
    """A rung that was lowered, and unsigned messages that are back."""

    def rollout(self, rung: str, time: float = 0.0) -> dict[str, Any]:
        """Return a record of a start."""
        return {"verdict": "rollout", "scope": "billing", "time": iso_time(time),
                "rollout": {"rungs": [{"destinations": [KAFKA], "rung": rung}]}}  # fmt: skip

    def observed(self, time: float, accepted: int, unsigned: int) -> dict[str, Any]:
        """Return a record of a minute."""
        seen = {"accepted": {KAFKA: accepted}, "unsigned": {KAFKA: unsigned} if unsigned else {}}
        return {"verdict": "observed", "scope": "billing", "time": iso_time(time), "observed": seen}

    def test_a_lower_rung_is_an_alert(self) -> None:
        """The same or a higher one is none, and the first start is none."""
        detector = Detector()
        assert detector.observe(self.rollout("enforce")) == []
        assert detector.observe(self.rollout("enforce")) == []
        (alert,) = detector.observe(self.rollout("observe"))
        assert (alert.kind, dict(alert.about)) == ("rung_lowered", {"destination": KAFKA, "rung": "observe"})
        assert detector.observe(self.rollout("enforce")) == []

    def test_unsigned_after_a_day_without_is_an_alert(self) -> None:
        """Within a day it is none."""
        detector = Detector()
        detector.observe(self.observed(0.0, 5, 1))
        detector.observe(self.observed(60.0, 5, 0))
        assert detector.observe(self.observed(3600.0, 5, 1)) == []
        detector.observe(self.observed(3660.0, 5, 0))
        (alert,) = detector.observe(self.observed(3660.0 + DAY, 5, 2))
        assert (alert.kind, alert.count, dict(alert.about)) == ("unsigned_again", 2, {"destination": KAFKA})

    @pytest.mark.parametrize(
        "record", [{"rollout": 3}, {"rollout": {"rungs": [1, {"rung": "up"}]}}, {"observed": []}]
    )
    def test_a_hostile_log_is_no_error(self, record: dict[str, Any]) -> None:
        """An edited log may hold anything."""
        for verdict in ("rollout", "observed"):
            assert Detector().observe({"verdict": verdict, **record}) == []

    def test_detectors_see_every_would_reject(self, world: Callable[..., Ladder]) -> None:
        """A burst of forgeries below enforce is an alert with its rung, though three records of it are written."""
        records: list[Any] = []
        watch = MisuseWatch(type("Sink", (), {"write": lambda _, record: records.append(record)})())
        found = world(at(Rung.OBSERVE), audit=watch)
        attack = next(attack for attack in ATTACKS if attack.reason.value == "signature_invalid")
        for number in range(120):
            found.process(attack.mount(found.forge, honest_message(KAFKA, number)))
        found.run(found.pipeline.tick(last=True))
        alerts = [record.as_dict() for record in records if record.verdict == "alert"]
        assert {alert["alert"]["kind"] for alert in alerts} >= {"burst"}
        assert {alert["rung"] for alert in alerts} == {"observe"}
        assert [list(SCHEMA.iter_errors(alert)) for alert in alerts] == [[] for _ in alerts]
        assert sum(record.verdict == "would_reject" for record in records) == 3

    def test_the_last_rollout_is_found_in_the_files_of_all_processes(self, tmp_path: Path) -> None:
        """The latest one counts, whatever process wrote it."""
        for pid, (rung, time) in enumerate((("enforce", 5.0), ("observe", 9.0), ("off", 1.0))):
            line = strict_json.dumps(self.rollout(rung, time)) + b"\n"
            (tmp_path / f"audit-{pid}.jsonl").write_bytes(line + b'{"verdict":"rejected"}\n')
        found = last_rollout(tmp_path / "audit-{pid}.jsonl")
        assert found is not None
        assert found["rollout"]["rungs"][0]["rung"] == "observe"
        assert last_rollout(tmp_path / "none.jsonl") is None


def test_the_record_of_the_start_has_what_needs_no_append_time(
    world: Callable[..., Ladder], forge: Forge, caplog: pytest.LogCaptureFixture
) -> None:
    """Where nobody waits for append times, up to what, and why, is in audit and log at each start."""
    entries = [
        WithoutEvidence(destination=KAFKA, through={0: 12}, why="before LogAppendTime"),
        WithoutEvidence(destination="rabbitmq:shop/#", through=1_800_000_000.0, why="before the interceptor"),
    ]
    found = world(Rollout(), verifier=forge.verifier(at="append", max_queue_age=3600, without_evidence=entries))
    found.run(found.pipeline.tick(last=True))
    (facts,) = of(found, "rollout")
    assert facts["without_evidence"] == [
        {"destination": KAFKA, "through": {"0": 12}, "why": "before LogAppendTime"},
        {
            "destination": "rabbitmq:shop/#", "through": "2027-01-15T08:00:00.000Z",
            "why": "before the interceptor",
        },
    ]  # fmt: skip
    said = [record.getMessage() for record in caplog.records if record.event == "rollout.without_evidence"]  # type: ignore[attr-defined]
    assert said[0] == f"{KAFKA}: dead-lettered without an append time, through {{'0': 12}}: before LogAppendTime"


class TestAliases:
    """What is accepted where it was not signed for is said at each start, and is nothing amiss."""

    ALIAS = AcceptAs(at="kafka:eu.orders", signed_for=(KAFKA, "kafka:refunds"))

    def test_the_record_of_the_start_has_them(self, world: Callable[..., Ladder], forge: Forge) -> None:
        """With and without a rung below ``enforce``; without one nothing is counted."""
        for rollout, verdicts in ((at(Rung.OBSERVE), {"rollout", "observed"}), (Rollout(), {"rollout"})):
            found = world(rollout, verifier=forge.verifier(accept_as=[self.ALIAS]))
            found.run(found.pipeline.tick(last=True))
            (facts,) = of(found, "rollout")
            assert facts["accept_as"] == [{"at": "kafka:eu.orders", "signed_for": [KAFKA, "kafka:refunds"]}]
            assert {record["verdict"] for record in found.told} == verdicts

    def test_health_has_them(self, forge: Forge) -> None:
        """The state stays ``ok``: such a message has a proof like any other."""
        found = QueueHealth(
            consuming=True, in_flight=0, deferred=0, stalled_since=None, cause=None, detail=None,
            connection_deaths=0, prefetch=1, unsettled=0, party=None, held={}, at_limit=0,
            **told_of(None, forge.verifier(accept_as=[self.ALIAS])),
        )  # fmt: skip
        assert found.aliases == {"kafka:eu.orders": f"{KAFKA}, kafka:refunds"}
        assert found.state is State.OK
        assert told_of(None, forge.verifier())["aliases"] == {}

    def test_an_exemption_is_in_health_as_well(self, forge: Forge) -> None:
        """It is not enforced, so that the consumer is degraded."""
        exempt = Exemption(destination=RABBITMQ, until=date(2030, 9, 30), why="old")
        verifier = forge.verifier()
        told = told_of(Rollout(exemptions=[exempt]), verifier)["rollout"]
        assert told == {RABBITMQ: "enforce, exempt until 2030-09-30"}
        off = Rollout(at(Rung.OFF, RABBITMQ).entries, [exempt])
        assert told_of(off, verifier)["rollout"] == {RABBITMQ: "off"}

    def test_a_gauge_has_them(self, forge: Forge) -> None:
        """How many destinations each accepts."""
        reader = InMemoryMetricReader()
        telemetry = Telemetry(MeterProvider([reader]).get_meter("test"))
        telemetry.watch_rollout(None, forge.verifier(accept_as=[self.ALIAS]))
        found = Meter(reader, telemetry).points("mqauth.rollout.aliases")
        assert {labels[0][1]: point.value for labels, point in found.items()} == {"kafka:eu.orders": 2}


class TestSigners:
    """Who signed, in bounded memory and records."""

    def test_nobody_is_lost_where_there_are_many(self) -> None:
        """Those that have no room in a record come in the next; each record has at most 64 KiB."""
        counts, seen = Observed(), set[str]()
        for number in range(CAPACITY):
            counts.accept(KAFKA, ISSUER, f"{number:0200}")
        for _ in range(20):
            taken = counts.take()
            assert len(strict_json.dumps(taken)) <= 64 * 1024
            seen |= set(taken["signed"].get(KAFKA, {}).get(ISSUER, {}))
        assert len(seen) == CAPACITY
        for number in range(2 * CAPACITY):
            counts.accept(KAFKA, ISSUER, str(number))
        assert len(counts.signed) == CAPACITY
