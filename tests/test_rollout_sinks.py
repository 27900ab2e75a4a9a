"""A sink that hangs holds no delivery below ``enforce``, and what it writes late is not written twice."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from mqauth.audit.bounded import BoundedSink
from mqauth.audit.record import AuditRecord
from mqauth.errors import Reason, RejectNow, Unavailable
from mqauth.flow import arun, settling
from mqauth.judging.pipeline import Verdict
from mqauth.judging.rollout import Rung
from mqauth.testing import FakeClock, Forge
from tests.conftest import KAFKA, kafka_message
from tests.test_rollout import Ladder, at


class Stuck:
    """A sink that hangs from its second record on, until it is let go."""

    def __init__(self) -> None:
        self.records: list[AuditRecord] = []
        self.asked: list[str] = []
        self.free = threading.Event()

    def write(self, record: AuditRecord, /) -> None:
        """Write one record, some day."""
        self.asked.append(record.id)
        if len(self.asked) > 1:
            self.free.wait()
        self.records.append(record)


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stuck]:
    """A sink that hangs, and a short limit."""
    monkeypatch.setattr(BoundedSink.__init__, "__defaults__", (0.05,))
    made = Stuck()
    yield made
    made.free.set()


def world(stuck: Any, clock: FakeClock, forge: Forge, **settings: Any) -> Ladder:
    """Return a consumer at ``observe`` that has written the record of its start."""
    found = Ladder(clock, forge, False, at(Rung.OBSERVE), audit=stuck, **settings)
    found.run(found.pipeline.tick())
    return found


def test_a_hanging_sink_holds_no_delivery(stuck: Stuck, clock: FakeClock, forge: Forge) -> None:
    """Both handlers go on while the sink hangs, and it is asked once in the 30 s after that."""
    found = world(stuck, clock, forge, record="all")
    asked = len(stuck.asked)
    for number in range(5):
        assert found.process(kafka_message(number)).verdict is Verdict.UNVERIFIED
        assert found.process(found.sealed(kafka_message(number + 5))).verdict is Verdict.ACCEPTED
    assert not stuck.free.is_set()
    assert len(stuck.asked) - asked <= 1
    assert found.pipeline.observing is not None
    assert found.pipeline.observing.counts.lost["audit_unavailable"] >= 5


def test_the_letter_of_a_handler_that_gave_up_is_not_held(stuck: Stuck, clock: FakeClock, forge: Forge) -> None:
    """It is published although its record is not written yet."""
    found = world(stuck, clock, forge)
    found.old.failure = RejectNow("never")
    for number in range(2):
        assert found.process(kafka_message(number)).reason is Reason.HANDLER_FAILED
    assert len(found.published) == 2


def test_at_enforce_a_letter_waits_for_its_record(stuck: Stuck, clock: FakeClock, forge: Forge) -> None:
    """Nobody is told of a bound there: no letter without a durable record."""
    found = Ladder(clock, forge, False, at(Rung.OBSERVE, "kafka:elsewhere"), audit=stuck)
    found.run(found.pipeline.tick())
    stuck.asked.append("the next one hangs")
    judging = threading.Thread(target=found.process, args=(kafka_message(),))
    judging.start()
    judging.join(0.5)
    assert (judging.is_alive(), found.published) == (True, [])
    stuck.free.set()
    judging.join()
    assert len(found.published) == 1


def test_what_is_written_late_is_written_once(stuck: Stuck, clock: FakeClock, forge: Forge) -> None:
    """The record comes again a minute later; by then its first write has ended, and that is the answer."""
    found = world(stuck, clock, forge)
    found.process(kafka_message())
    clock.advance(61)
    found.run(found.pipeline.tick())
    stuck.free.set()
    for thread in threading.enumerate():
        if thread.name == "mqauth-audit":
            thread.join()
    clock.advance(61)
    found.run(found.pipeline.tick(last=True))
    ids = [record.id for record in stuck.records]
    assert len(ids) == len(set(ids))
    seen = [record.as_dict()["observed"]["unsigned"].get(KAFKA, 0) for record in stuck.records
            if record.verdict == "observed"]  # fmt: skip
    assert sum(seen) == 1


def test_without_a_sink_nothing_is_kept(clock: FakeClock, forge: Forge) -> None:
    """A loop of one's own may judge without audit: what would be refused is counted, and judged on."""
    found = Ladder(clock, forge, False, at(Rung.OBSERVE), audit=None)
    for number in range(2):
        guard = found.pipeline
        assert found.run(guard.judge(guard.receive(kafka_message(number)))).verdict is Verdict.UNVERIFIED


def test_the_error_of_a_sink_is_its_own() -> None:
    """What it raises on the other thread is raised here."""

    class Full:
        calls = 0

        def write(self, _record: Any, /) -> None:
            """Fail from the second record on."""
            self.calls += 1
            if self.calls > 1:
                raise OSError("full")

    sink = BoundedSink(Full())
    record: Any = type("Record", (), {"id": "a"})()
    sink.write(record)
    with pytest.raises(OSError, match="full"):
        sink.write(record)


async def test_an_asynchronous_sink_stays_in_its_loop() -> None:
    """It is called where its caller is, and awaited there; its own limit bounds it."""
    threads: list[int] = []

    class Later:
        async def write(self, _record: Any, /) -> None:
            """Note the thread."""
            threads.append(threading.get_ident())

    sink = BoundedSink(Later())
    record: Any = type("Record", (), {"id": "a"})()
    for _ in range(2):
        await arun(settling(sink.write(record)))
    assert threads == [threading.get_ident()] * 2


def test_while_a_write_is_late_others_are_refused_at_once(stuck: Stuck) -> None:
    """So that threads do not pile up behind a disk that hangs."""
    sink = BoundedSink(stuck)
    records: list[Any] = [type("Record", (), {"id": str(number)})() for number in range(4)]
    sink.write(records[0])
    for record in records[1:]:
        with pytest.raises(Unavailable, match="audit_unavailable"):
            sink.write(record)
    assert stuck.asked == ["0", "1"]
