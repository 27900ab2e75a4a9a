"""Letters that are only a reference: redriven where the broker still has the original, and never on trust."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mqauth import Cause, Message, Origin, Reason, Rejection, Unavailable, Verdict, flow
from mqauth.letters.dead_letter import DeadLetter
from mqauth.review import Letter, act, judge, read, rehearse
from mqauth.review.letterbox import CHANGED, GONE, ONLY_REFERENCE, Judge, recalled
from mqauth.testing import FakeClock, Forge
from tests.conftest import KAFKA, kafka_message, rabbitmq_message
from tests.test_review import Bureau, letter_of, lying


class Log(dict[tuple[str, int, int], Message]):
    """The records a broker still has."""

    asked = 0
    down = False

    def __call__(self, topic: str, partition: int, offset: int, /) -> Message | None:
        """Return one."""
        self.asked += 1
        if self.down:
            raise Unavailable(Cause.DEAD_LETTER_UNAVAILABLE, "down")
        return self.get((topic, partition, offset))


@pytest.fixture
def desk(clock: FakeClock, forge: Forge) -> Bureau:
    """A bureau on a broker like Kafka."""
    return Bureau(clock, forge, KAFKA)


@pytest.fixture
def log() -> Log:
    """A log without records."""
    return Log()


def planted(desk: Bureau, log: Log, offset: int = 7, **seal: Any) -> Message:
    """Let the consumer reject an expired message of this offset, its letter being a reference; return it."""
    message = desk.forge.seal(
        kafka_message(offset, body=b"x" * 2000), claims={"iat": 1, "exp": 2}, **seal
    )
    log["orders", 0, offset] = message
    desk.plant(letter_of(message).reference())
    return message


def acted(desk: Bureau, log: Log | None, *waive: Reason) -> dict[str, Any]:
    """Rehearse and redrive everything, which must agree, and return the account."""
    plan = desk.plan("redrive", waive=frozenset(waive))
    settings: Any = {"guard": desk.guard, "releaser": desk.releaser, "originals": log}
    with desk.survey() as index:
        selection = index.freeze()
        rehearsed = flow.run(rehearse(index, plan, **settings))
    found = flow.run(
        act(desk.box, selection, plan, audit=desk.audit, clock=desk.clock, **settings)
    ).as_dict()
    assert found["error"] or dict(rehearsed) == found["refused"] | (
        {"accepted": found["done"]} if found["done"] else {}
    )
    return found


def test_a_reference_is_redriven_with_its_original(desk: Bureau, log: Log) -> None:
    """Read again, proven by the letter's id, released, handled byte for byte; the act counts as proven."""
    original = planted(desk, log)
    assert acted(desk, log, Reason.EXPIRED)["done"] == 1
    assert desk.send() == [Verdict.ACCEPTED]
    assert desk.handled[0].body == original.body
    act = next(record for record in desk.audit if record["verdict"] == "redriven")
    assert (act["review"]["intact"], act["body"]["size"]) == (True, 2000)
    assert desk.letters() == ()


def test_judging_reads_it_again_too(desk: Bureau, log: Log) -> None:
    """Today's verdict is that of the original; without a place to read it, that it is only a reference."""
    planted(desk, log)
    with desk.survey() as index:
        assert flow.run(judge(index, desk.guard, originals=log)) == {"expired": 1}
        assert flow.run(judge(index, desk.guard)) == {ONLY_REFERENCE: 1}


CHANGES = ("body", "key", "headers", "destination", "offset", "malformed")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        *((change, CHANGED) for change in CHANGES),
        ("deleted by retention", GONE),
        ("no log", ONLY_REFERENCE),
    ],
)
def test_without_its_very_record_a_reference_is_refused(
    change: str, said: str, desk: Bureau, log: Log
) -> None:
    """Whatever differs from what was rejected, the id differs; nothing is sent, and the letter stays."""
    original = planted(desk, log)
    changes: dict[str, Any] = {
        "body": {"body": b"y" * 2000}, "key": {"key": b"43"}, "headers": {"headers": original.headers[1:]},
        "destination": {"destination": "kafka:other"},
        "offset": {"origin": replace(original.origin, offset=8)}, "malformed": {"malformed": "unreadable"},
    }  # fmt: skip
    log.clear()
    if change in changes:
        log["orders", 0, 7] = replace(original, **changes[change])
    assert acted(desk, None if said == ONLY_REFERENCE else log, Reason.EXPIRED)[
        "refused"
    ] == {said: 1}
    assert (len(desk.letters()), desk.broker.waiting(KAFKA)) == (1, ())


@pytest.mark.parametrize("line", ["source", "scope", "id"])
def test_a_forged_reference_names_nothing_that_it_could_prove(
    line: str, desk: Bureau, log: Log
) -> None:
    """A letter pointed at another record, scope or id is refused, whatever is there."""
    original = planted(desk, log)
    desk.discard()
    log["orders", 0, 8] = replace(original, origin=replace(original.origin, offset=8))
    lie = {"source": "orders/0/8", "scope": "elsewhere", "id": "0" * 64}[line]
    desk.plant(lying(letter_of(original).reference(), **{line: lie}))
    assert acted(desk, log, Reason.EXPIRED)["refused"] == {CHANGED: 1}


@pytest.mark.parametrize(
    "source", ["", "orders", "orders/0", "orders/0/-1", "orders/0/1/2", "or ders/0/1", "../0/1", "orders/0/1\n",
               "a" * 250 + "/0/1", "orders/9999999999/1", "orders/0/9999999999999999999"],
)  # fmt: skip
def test_no_broker_is_asked_for_what_is_no_place(source: str, log: Log) -> None:
    """A reference that names no place in a log is refused before anything is looked up."""
    letter = lying(letter_of(kafka_message()).reference(), source=source)
    found = flow.run(recalled(read(Letter(message=letter)), log))
    assert (found.fault, found.intact, log.asked) == (ONLY_REFERENCE, False, 0)


@pytest.mark.parametrize("form", ["whole", "in_body", "reference"])
def test_a_consumer_of_any_name_gets_its_letters_back(
    form: str, desk: Bureau, log: Log
) -> None:
    """A scope and a queue that no terminal shows as they are: id and release are of the names themselves."""
    name = "b\u00fccher-\U0001f680\u3164" * 30
    message = kafka_message(7, body=b"x")
    if form != "reference":
        message = rabbitmq_message(origin=Origin(scope=name, queue=name))
    letter = DeadLetter(
        message=message,
        rejection=Rejection(Reason.EXPIRED),
        scope=name,
        time=0.0,
        audit="a",
    )
    made = letter.whole(lambda *_: True) if form == "whole" else getattr(letter, form)()
    log["orders", 0, 7] = message
    found = flow.run(recalled(read(Letter(message=made)), log))
    assert (found.intact, found.fault) == (True, None)
    assert "\U0001f680" not in found.scope + found.source
    desk.guard.scope = None
    assert Judge(desk.guard).scope_for(found) == name


def test_a_broker_that_cannot_be_asked_ends_the_run(desk: Bureau, log: Log) -> None:
    """An outage condemns no letter: it is left, and the run says why."""
    planted(desk, log)
    with desk.survey() as index:
        selection = index.freeze()
    log.down = True
    plan = desk.plan("redrive", waive=frozenset([Reason.EXPIRED]))
    able: Any = {
        "guard": desk.guard,
        "releaser": desk.releaser,
        "audit": desk.audit,
        "originals": log,
    }
    found = flow.run(act(desk.box, selection, plan, **able))
    assert (found.failed, found.done, found.refused.total()) == (1, 0, 0)
    assert len(desk.letters()) == 1
