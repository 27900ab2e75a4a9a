"""Below ``enforce`` a slow or full sink holds no delivery up; at ``enforce`` a letter waits for its record."""

from __future__ import annotations

import threading
from typing import Any

from mqauth.audit.record import AuditRecord
from mqauth.errors import Reason, RejectNow
from mqauth.judging.breaker import PATIENCE, PAUSE
from mqauth.judging.pipeline import Verdict
from mqauth.judging.rollout import Rung
from mqauth.testing import FakeClock, Forge
from tests.conftest import KAFKA, kafka_message
from tests.test_rollout import Ladder, at


class Slow:
    """A sink that takes its time for each record, and fails while it is full."""

    def __init__(self, clock: FakeClock) -> None:
        self.records: list[AuditRecord] = []
        self.full = False
        self._clock = clock

    def write(self, record: AuditRecord, /) -> None:
        """Write one record."""
        self._clock.advance(2 * PATIENCE)
        if self.full:
            raise OSError("full")
        self.records.append(record)


def world(sink: Any, clock: FakeClock, forge: Forge, **settings: Any) -> Ladder:
    """Return a consumer at ``observe`` that has written the record of its start, and may ask its sink again."""
    found = Ladder(clock, forge, False, at(Rung.OBSERVE), audit=sink, **settings)
    found.run(found.pipeline.tick())
    clock.advance(PAUSE)
    return found


def test_a_slow_sink_is_asked_once_in_a_while(clock: FakeClock, forge: Forge) -> None:
    """Both handlers go on, and the sink is asked once in the 30 s after it was slow."""
    found = world(slow := Slow(clock), clock, forge, record="all")
    asked = len(slow.records)
    for number in range(5):
        assert found.process(kafka_message(number)).verdict is Verdict.UNVERIFIED
        assert found.process(found.sealed(kafka_message(number + 5))).verdict is Verdict.ACCEPTED
    assert len(slow.records) == asked + 1
    assert found.pipeline.observing is not None
    assert found.pipeline.observing.counts.lost["audit_unavailable"] >= 4


def test_the_letter_of_a_handler_that_gave_up_is_not_held(clock: FakeClock, forge: Forge) -> None:
    """It is published although its record cannot be written."""
    found = world(full := Slow(clock), clock, forge)
    full.full = True
    found.old.failure = RejectNow("never")
    for number in range(2):
        assert found.process(kafka_message(number)).reason is Reason.HANDLER_FAILED
    assert len(found.published) == 2


def test_at_enforce_a_letter_waits_for_its_record(clock: FakeClock, forge: Forge) -> None:
    """There is no letter without a durable record."""
    going, free = threading.Event(), threading.Event()

    class Stuck:
        def write(self, record: AuditRecord, /) -> None:
            """Hang at the record of a rejection until it is let go."""
            if record.verdict == "rejected":
                going.set()
                free.wait()

    found = Ladder(clock, forge, False, at(Rung.OBSERVE, "kafka:elsewhere"), audit=Stuck())
    found.run(found.pipeline.tick())
    judging = threading.Thread(target=found.process, args=(kafka_message(),))
    judging.start()
    assert going.wait(30)
    assert found.published == []
    free.set()
    judging.join()
    assert len(found.published) == 1


def test_counts_that_could_not_be_written_come_again(clock: FakeClock, forge: Forge) -> None:
    """The record of a minute in which the sink was full is written with a later one, and once."""
    found = world(full := Slow(clock), clock, forge)
    full.full = True
    found.process(kafka_message())
    clock.advance(61)
    found.run(found.pipeline.tick())
    full.full = False
    clock.advance(61)
    found.run(found.pipeline.tick(last=True))
    ids = [record.id for record in full.records]
    assert len(ids) == len(set(ids))
    seen = [record.as_dict()["observed"]["unsigned"].get(KAFKA, 0) for record in full.records
            if record.verdict == "observed"]  # fmt: skip
    assert sum(seen) == 1


def test_without_a_sink_nothing_is_kept(clock: FakeClock, forge: Forge) -> None:
    """A loop of one's own may judge without audit: what would be refused is counted, and judged on."""
    found = Ladder(clock, forge, False, at(Rung.OBSERVE), audit=None)
    for number in range(2):
        guard = found.pipeline
        assert found.run(guard.judge(guard.receive(kafka_message(number)))).verdict is Verdict.UNVERIFIED
