"""Below ``enforce`` a slow or full sink holds no delivery up; at ``enforce`` a letter waits for its record."""

from __future__ import annotations

import threading
from typing import Any

from mqauth.audit.record import AuditRecord
from mqauth.judging.breaker import PATIENCE, PAUSE
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
