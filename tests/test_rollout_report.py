"""A rollout is loud, and what it counts is bounded: records, warnings, detectors, gauges, check codes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from mqauth import Detector, Message, MisuseWatch, Origin, RejectNow
from mqauth.audit.query import last_rollout
from mqauth.audit.record import CAPACITY, Group, Observed, group_of, iso_time
from mqauth.delivery.health import QueueHealth, State, told_of
from mqauth.judging.observing import lines
from mqauth.judging.rollout import (
    WEEK,
    AcceptAs,
    Exemption,
    Rollout,
    RolloutEntry,
    Rung,
    WithoutEvidence,
)
from mqauth.testing import ATTACKS, FakeClock, Forge
from mqauth.testing.forge import ISSUER, SUBJECT
from mqauth.testing.token_attacks import honest_message
from mqauth.wire import strict_json
from tests.conftest import KAFKA, RABBITMQ, kafka_message, rabbitmq_message
from tests.test_review import SCHEMA
from tests.test_rollout import Ladder, at
from tests.test_telemetry import Meter

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
            shown += counts.would(
                KAFKA, Group("token_missing", KAFKA, app=name), float(number // 1000)
            )
            assert len(counts.groups) <= CAPACITY
        taken = counts.take()
        assert (
            sum(group["count"] for group in taken["groups"]) + taken["other"] == 100_000
        )
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

    def test_three_of_a_group_are_shown_each_hour(self) -> None:
        """At most 100 a minute of all groups together."""
        counts = Observed()
        same = [
            counts.would(KAFKA, Group("expired", KAFKA), float(second))
            for second in range(0, 7200, 60)
        ]
        assert sum(same) == 6
        assert (
            sum(
                counts.would(KAFKA, Group("expired", KAFKA, app=str(n)), 8000.0)
                for n in range(500)
            )
            == 100
        )

    def test_a_group_is_read_back(self) -> None:
        """Its id is the same for all partitions; hostile facts are no error."""
        group = Group("expired", KAFKA, subject="orders-api", kid="k", partition=3)
        assert group_of({**group._asdict(), "count": 3}) == group
        assert group.id == replace_partition(group).id
        assert group_of({"code": 3, "app": ["x"], "partition": "1"}) == Group("", "")


def replace_partition(group: Group) -> Group:
    """Return a group of another partition."""
    return group._replace(partition=7)


class TestRecords:
    """What stands in the audit file."""

    def test_the_start_and_each_minute(
        self, world: Callable[..., Ladder], clock: FakeClock
    ) -> None:
        """A record ``rollout`` first, then ``observed`` a minute; none is a record a message."""
        found = world(at(Rung.OBSERVE))
        for number in range(100):
            found.process(kafka_message(number))
            clock.advance(1)
        found.process(found.sealed(kafka_message(100)))
        found.run(found.pipeline.tick(last=True))
        (rollout,) = of(found, "rollout")
        assert rollout["rungs"][0] == {
            "destinations": [KAFKA, RABBITMQ], "rung": "observe", "owner": "orders-team", "since": "2030-03-01",
            "until": "2030-05-20",
        }  # fmt: skip
        observed = of(found, "observed")
        assert sum(one["unsigned"].get(KAFKA, 0) for one in observed) == 100
        assert sum(one["accepted"].get(KAFKA, 0) for one in observed) == 1
        assert len(of(found, "would_reject")) == 3
        assert len(found.told) == 1 + len(observed) + 3 == 7

    def test_a_would_reject_has_coordinates_and_claims_nothing(
        self, world: Callable[..., Ladder]
    ) -> None:
        """It names topic, partition and offset; a bad token's claims are claimed."""
        found = world(at(Rung.OBSERVE))
        attack = next(
            attack for attack in ATTACKS if attack.reason.value == "signature_invalid"
        )
        found.process(
            replace(
                attack.mount(found.forge, honest_message(KAFKA)),
                origin=kafka_message(9).origin,
            )
        )
        found.run(found.pipeline.tick(last=True))
        (record,) = of(found, "would_reject")
        assert (record["reason"], record["rung"], record["broker"]["offset"]) == (
            "signature_invalid",
            "observe",
            9,
        )
        assert "verified" not in record["token"]

    @pytest.mark.parametrize(
        ("evidence", "more"),
        [
            (True, {}),
            (False, {"append_evidence": None}),
            (False, {"unsafe_append_evidence": True}),
        ],
        ids=["proved", "not given", "unsafe"],
    )
    def test_the_oldest_append_time(
        self,
        evidence: bool,
        more: dict[str, Any],
        world: Callable[..., Ladder],
        clock: FakeClock,
        forge: Forge,
    ) -> None:
        """Of a minute's deliveries, verified or not, where the interceptor proves it; then the next minute's."""
        settings = {
            "at": "append",
            "max_queue_age": 86_400,
            "append_evidence": "interceptor",
        } | more
        found, now = (
            world(at(Rung.OBSERVE), verifier=forge.verifier(**settings)),
            clock.now(),
        )

        def appended(seconds: float) -> Message:
            stamp = Origin(
                queue="orders", timestamp_ms=int(seconds * 1000), timestamp_type="append"
            )
            return replace(rabbitmq_message(body=b"%d" % seconds), origin=stamp)

        for each in (
            appended(now),
            found.sealed(appended(now - 50)),
            appended(now - 200),
        ):
            found.process(each)
        clock.advance(61)
        found.process(appended(now + 60))
        clock.advance(61)
        found.process(appended(now + 120))
        found.run(found.pipeline.tick(last=True))
        oldest = [one["oldest"].get(RABBITMQ) for one in of(found, "observed")]
        assert oldest == [
            iso_time(at) if evidence else None for at in (now, now - 200, now + 120)
        ] + [None]

    def test_the_start_line_says_what_is_not_rejected(
        self, world: Callable[..., Ladder], caplog: pytest.LogCaptureFixture
    ) -> None:
        """Where a rung or an exemption lets messages pass, the line names the destinations."""
        found = world(at(Rung.OBSERVE, KAFKA))
        with caplog.at_level("INFO", "mqauth"):
            for rollout in (found.pipeline.rollout, None):
                found.pipeline.journal.started(
                    "topics", "billing", "orders.dead", rollout
                )
        below, strict = [
            record.getMessage()
            for record in caplog.records
            if record.event == "consumer.started"
        ]  # type: ignore[attr-defined]
        but = f"also what is not signed, but gives what is not proven at {KAFKA} to unverified=; headers"
        assert (but in below, "also what is not signed; headers" in strict) == (
            True,
            True,
        )

    def test_exempt_messages_are_no_news(self, world: Callable[..., Ladder]) -> None:
        """What somebody decided is in no report."""
        found = world(
            Rollout(
                exemptions=[
                    Exemption(destination=RABBITMQ, until=date(2030, 9, 30), why="old")
                ]
            )
        )
        found.process(rabbitmq_message())
        found.run(found.pipeline.tick(last=True))
        assert of(found, "observed")[-1]["groups"] == []

    def test_an_audit_that_fails_defers_nothing_and_loses_no_count(
        self, world: Callable[..., Ladder]
    ) -> None:
        """What a minute saw is written once audit is back."""
        found = world(at(Rung.OBSERVE))
        found.audit.write.failure = OSError("full")
        assert found.process(rabbitmq_message()).verdict.value == "unverified"
        found.run(found.pipeline.tick(last=True))
        found.audit.write.failure = None
        found.run(found.pipeline.tick(last=True))
        assert len(of(found, "rollout")) == 1
        observed = of(found, "observed")
        assert sum(one["unsigned"].get(RABBITMQ, 0) for one in observed) == 1
        assert sum(one["lost"].get("audit_unavailable", 0) for one in observed) > 0


class TestWarnings:
    """Loud, and not for ever."""

    def at_start(
        self, caplog: pytest.LogCaptureFixture, world: Ladder
    ) -> list[tuple[int, str]]:
        """Return what a tick logged."""
        caplog.clear()
        world.run(world.pipeline.tick(last=True))
        return [
            (record.levelno, record.message)
            for record in caplog.records
            if record.name == "mqauth.rollout"
        ]

    def test_each_rung_and_exemption_is_said_at_the_start(
        self, world: Callable[..., Ladder], caplog: pytest.LogCaptureFixture
    ) -> None:
        """A WARNING for each, once."""
        found = world(Rollout(
            at(Rung.OBSERVE, KAFKA).entries, [Exemption(destination=RABBITMQ, until=date(2030, 9, 30), why="old")]
        ))  # fmt: skip
        said = self.at_start(caplog, found)
        assert [level for level, _ in said] == [logging.WARNING] * 2
        assert "kafka:orders: observe until 2030-05-20, ask orders-team" in said[0][1]
        assert self.at_start(caplog, found) == []
        assert found.pipeline.rollout is not None
        assert len(list(lines(found.pipeline.rollout))) == 2

    def test_the_end_is_said_daily_and_past_it_hourly(
        self,
        world: Callable[..., Ladder],
        caplog: pytest.LogCaptureFixture,
        clock: FakeClock,
    ) -> None:
        """WARNING from 14 days before, CRITICAL after it; no verdict changes by the calendar."""
        found = world(at(Rung.OBSERVE, KAFKA))
        self.at_start(caplog, found)
        end = datetime(2030, 5, 20, tzinfo=UTC).timestamp()
        clock.advance(end - 14 * DAY - clock.now())
        assert [level for level, _ in self.at_start(caplog, found)] == [logging.WARNING]
        clock.advance(3600)
        assert self.at_start(caplog, found) == []
        clock.advance(end + 2 * DAY - clock.now())
        for _ in range(2):
            assert [level for level, _ in self.at_start(caplog, found)] == [
                logging.CRITICAL
            ]
            clock.advance(3600)
        assert found.process(kafka_message()).verdict.value == "unverified"

    def test_gauges(self, clock: FakeClock) -> None:
        """The rung as a number, and the days left."""
        found = Meter(now=lambda: datetime(2030, 5, 21, tzinfo=UTC).timestamp())
        found.telemetry.watch_rollout(at(Rung.OBSERVE, KAFKA))
        assert {
            labels[0][1]: point.value
            for labels, point in found.points("mqauth.rollout.rung").items()
        } == {KAFKA: 1}
        assert [
            point.value for point in found.points("mqauth.rollout.days_left").values()
        ] == [-1]


class TestDetectors:
    """A rung that was lowered, and unsigned messages that are back."""

    def rollout(self, rung: str, time: float = 0.0) -> dict[str, Any]:
        """Return a record of a start."""
        return {"verdict": "rollout", "scope": "billing", "time": iso_time(time),
                "rollout": {"rungs": [{"destinations": [KAFKA], "rung": rung}]}}  # fmt: skip

    def observed(self, time: float, accepted: int, unsigned: int) -> dict[str, Any]:
        """Return a record of a minute."""
        seen = {
            "accepted": {KAFKA: accepted},
            "unsigned": {KAFKA: unsigned} if unsigned else {},
        }
        return {
            "verdict": "observed",
            "scope": "billing",
            "time": iso_time(time),
            "observed": seen,
        }

    def test_a_lower_rung_is_an_alert(self) -> None:
        """The same or a higher one is none, and the first start is none."""
        detector = Detector()
        assert detector.observe(self.rollout("enforce")) == []
        assert detector.observe(self.rollout("enforce")) == []
        (alert,) = detector.observe(self.rollout("observe"))
        assert (alert.kind, dict(alert.about)) == (
            "rung_lowered",
            {"destination": KAFKA, "rung": "observe"},
        )
        assert detector.observe(self.rollout("enforce")) == []

    def test_unsigned_after_a_day_without_is_an_alert(self) -> None:
        """Within a day it is none."""
        detector = Detector()
        detector.observe(self.observed(0.0, 5, 1))
        detector.observe(self.observed(60.0, 5, 0))
        assert detector.observe(self.observed(3600.0, 5, 1)) == []
        detector.observe(self.observed(3660.0, 5, 0))
        (alert,) = detector.observe(self.observed(3660.0 + DAY, 5, 2))
        assert (alert.kind, alert.count, dict(alert.about)) == (
            "unsigned_again",
            2,
            {"destination": KAFKA},
        )

    @pytest.mark.parametrize(
        "record",
        [{"rollout": 3}, {"rollout": {"rungs": [1, {"rung": "up"}]}}, {"observed": []}],
    )
    def test_a_hostile_log_is_no_error(self, record: dict[str, Any]) -> None:
        """An edited log may hold anything."""
        for verdict in ("rollout", "observed"):
            assert Detector().observe({"verdict": verdict, **record}) == []

    def test_detectors_see_every_would_reject(self, world: Callable[..., Ladder]) -> None:
        """A burst of forgeries below enforce is an alert with its rung, though three records of it are written."""
        records: list[Any] = []
        watch = MisuseWatch(
            type("Sink", (), {"write": lambda _, record: records.append(record)})()
        )
        found = world(at(Rung.OBSERVE), audit=watch)
        attack = next(
            attack for attack in ATTACKS if attack.reason.value == "signature_invalid"
        )
        for number in range(120):
            found.process(attack.mount(found.forge, honest_message(KAFKA, number)))
        found.run(found.pipeline.tick(last=True))
        alerts = [record.as_dict() for record in records if record.verdict == "alert"]
        assert {alert["alert"]["kind"] for alert in alerts} >= {"burst"}
        assert {alert["rung"] for alert in alerts} == {"observe"}
        assert [list(SCHEMA.iter_errors(alert)) for alert in alerts] == [
            [] for _ in alerts
        ]
        assert sum(record.verdict == "would_reject" for record in records) == 3

    def test_the_last_rollout_is_found_in_the_files_of_all_processes(
        self, tmp_path: Path
    ) -> None:
        """The latest one counts, whatever process wrote it."""
        for pid, (rung, time) in enumerate(
            (("enforce", 5.0), ("observe", 9.0), ("off", 1.0))
        ):
            line = strict_json.dumps(self.rollout(rung, time)) + b"\n"
            (tmp_path / f"audit-{pid}.jsonl").write_bytes(
                line + b'{"verdict":"rejected"}\n'
            )
        found = last_rollout(tmp_path / "audit-{pid}.jsonl")
        assert found["rollout"]["rungs"][0]["rung"] == "observe"
        assert last_rollout(tmp_path / "none.jsonl") is None


def test_a_handler_that_gives_up_is_told_with_the_rung(
    world: Callable[..., Ladder],
) -> None:
    """Record and letter of ``handler_failed`` follow the schema."""
    found = world(at(Rung.OBSERVE))
    found.old.failure = RejectNow("never")
    found.process(kafka_message())
    (record,) = of(found, "rejected")
    assert record["rung"] == "observe"


def test_entries_of_a_rollout(world: Callable[..., Ladder]) -> None:
    """The first entry that matches decides."""
    first = RolloutEntry(destinations=("kafka:orders.new",), rung=Rung.ENFORCE, since=date(2026, 1, 1),
                         until=date(2026, 2, 1), owner="o", window=WEEK)  # fmt: skip
    rollout = Rollout([first, *at(Rung.OBSERVE, "kafka:orders.#").entries])
    found = [rollout.entry(f"kafka:orders.{name}") for name in ("new", "old")]
    assert [entry and entry.rung for entry in found] == [Rung.ENFORCE, Rung.OBSERVE]


def test_the_record_of_the_start_has_what_needs_no_append_time(
    world: Callable[..., Ladder], forge: Forge, caplog: pytest.LogCaptureFixture
) -> None:
    """Where nobody waits for append times, up to what, and why, is in audit and log at each start."""
    entries = [
        WithoutEvidence(destination=KAFKA, through={0: 12}, why="before LogAppendTime"),
        WithoutEvidence(
            destination="rabbitmq:shop/#",
            through=1_800_000_000.0,
            why="before the interceptor",
        ),
    ]
    found = world(
        Rollout(),
        verifier=forge.verifier(
            at="append", max_queue_age=3600, without_evidence=entries
        ),
    )
    found.run(found.pipeline.tick(last=True))
    (facts,) = of(found, "rollout")
    assert facts["without_evidence"] == [
        {"destination": KAFKA, "through": {"0": 12}, "why": "before LogAppendTime"},
        {
            "destination": "rabbitmq:shop/#", "through": "2027-01-15T08:00:00.000Z",
            "why": "before the interceptor",
        },
    ]  # fmt: skip
    said = [
        record.getMessage()
        for record in caplog.records
        if record.event == "rollout.without_evidence"
    ]  # type: ignore[attr-defined]
    assert (
        said[0]
        == f"{KAFKA}: dead-lettered without an append time, through {{'0': 12}}: before LogAppendTime"
    )


class TestAliases:
    """What is accepted where it was not signed for is said at each start, and is nothing amiss."""

    ALIAS = AcceptAs(at="kafka:eu.orders", signed_for=(KAFKA, "kafka:refunds"))

    def test_the_record_of_the_start_has_them(
        self, world: Callable[..., Ladder], forge: Forge
    ) -> None:
        """With and without a rung below ``enforce``; without one nothing is counted."""
        for rollout, verdicts in (
            (at(Rung.OBSERVE), {"rollout", "observed"}),
            (Rollout(), {"rollout"}),
        ):
            found = world(rollout, verifier=forge.verifier(accept_as=[self.ALIAS]))
            found.run(found.pipeline.tick(last=True))
            (facts,) = of(found, "rollout")
            assert facts["accept_as"] == [
                {"at": "kafka:eu.orders", "signed_for": [KAFKA, "kafka:refunds"]}
            ]
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
        meter = Meter()
        meter.telemetry.watch_rollout(None, forge.verifier(accept_as=[self.ALIAS]))
        found = meter.points("mqauth.rollout.aliases")
        assert {labels[0][1]: point.value for labels, point in found.items()} == {
            "kafka:eu.orders": 2
        }


class TestSigners:
    """Who signed, in bounded memory and records."""

    def test_a_record_says_who_signed(self, world: Callable[..., Ladder]) -> None:
        """By pattern, issuer and subject."""
        found = world(at(Rung.OBSERVE))
        for number in range(3):
            found.process(found.sealed(kafka_message(number)))
        found.run(found.pipeline.tick(last=True))
        signed = [one["signed"][KAFKA][ISSUER] for one in of(found, "observed")]
        assert {name for one in signed for name in one} == {SUBJECT}
        assert sum(one[SUBJECT] for one in signed) == 3

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
