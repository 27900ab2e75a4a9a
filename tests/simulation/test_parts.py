"""The simulator's parts by themselves: time, queues, plans, and the reduction of a plan."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from pamqp import commands

from mqauth.errors import Reason, Rejection
from mqauth.letters.dead_letter import DeadLetter
from mqauth.wire.message import Message
from tests.simulation.amqp_broker import Queue, Stored, Subscription
from tests.simulation.clock import Agenda
from tests.simulation.determinism import OrderedSet
from tests.simulation.faults import Fault, Plan
from tests.simulation.invariants import INVARIANTS
from tests.simulation.ledger import Event, Handling, Ledger, Outages
from tests.simulation.runner import Play, Result, reduced
from tests.simulation.scenario import rejected_body
from tests.simulation.settings import Settings


@dataclass
class Sink:
    """A channel that notes what it is sent."""

    sent: list[tuple[bytes, int]] = field(default_factory=list)
    told: int = 0

    def deliver(self, _consumer: Subscription, message: Stored) -> None:
        """Note a delivery."""
        self.sent.append((message.body, message.returned))

    def cancelled(self, _consumer: Subscription) -> None:
        """Note that the consumer was cancelled."""
        self.told += 1


def message(number: int) -> Stored:
    """Return a message whose body is its number."""
    return Stored(number, "", "q", commands.Basic.Properties(), str(number).encode())


def queue(limit: int = 20) -> tuple[Queue, list[Stored]]:
    """Return a queue, and where its dead letters go."""
    dead: list[Stored] = []
    return Queue(
        "q", {"x-delivery-limit": limit}, lambda _, found: dead.append(found)
    ), dead


def test_time_goes_by_entries() -> None:
    """Entries happen in the order of their times, and those of one moment in the order they were made."""
    agenda, seen = Agenda(), []
    for when, name in ((2.0, "c"), (1.0, "a"), (1.0, "b")):
        agenda.at(when, lambda name=name: seen.append((agenda.now, name)))
    cancelled = agenda.at(1.5, lambda: seen.append((0.0, "never")))
    cancelled.cancel()
    while agenda.step():
        pass
    assert seen == [(1.0, "a"), (1.0, "b"), (2.0, "c")]


def test_prefetch_holds_back() -> None:
    """A consumer is sent no more than its prefetch, and the next one with each ack."""
    q, sink = queue()[0], Sink()
    consumer = Subscription(sink, "tag", q, 2)
    first, *others = [message(number) for number in range(4)]
    for found in (first, *others):
        q.publish(found)
    q.subscribe(consumer)
    assert [body for body, _ in sink.sent] == [b"0", b"1"]
    q.acked(consumer, (first,))
    assert [body for body, _ in sink.sent] == [b"0", b"1", b"2"]


def test_returned_come_first() -> None:
    """What is given back is delivered before what waits, with its count."""
    q, sink = queue()[0], Sink()
    consumer = Subscription(sink, "tag", q, 1)
    first, second = message(0), message(1)
    q.publish(first)
    q.publish(second)
    q.subscribe(consumer)
    q.returned(consumer, (first,))
    assert sink.sent == [(b"0", 0), (b"0", 1)]


def test_limit_ends_in_dead_letters() -> None:
    """What comes back more often than the limit is dead-lettered."""
    q, dead = queue(limit=1)
    sink = Sink()
    consumer, found = Subscription(sink, "tag", q, 1), message(0)
    q.publish(found)
    q.subscribe(consumer)
    for _ in range(2):
        q.returned(consumer, (found,))
    assert (len(sink.sent), dead) == (2, [found])


def test_missing_queue_keeps_messages() -> None:
    """A queue that is missing cancels its consumers, and has its messages when it is back."""
    q, sink = queue()[0], Sink()
    q.subscribe(Subscription(sink, "tag", q, 1))
    q.hide()
    q.publish(message(0))
    q.show()
    assert (sink.told, sink.sent) == (1, [])
    q.subscribe(Subscription(sink, "other", q, 1))
    assert sink.sent == [(b"0", 0)]


def test_ordered_set_takes_the_oldest() -> None:
    """An ordered set gives its items back in the order of insertion."""
    found = OrderedSet("cab")
    found.add("c")
    assert [found.pop() for _ in range(3)] == ["c", "a", "b"]


def test_plan_is_drawn_from_the_seed() -> None:
    """A seed has one plan, and another seed another."""
    plans = [
        [str(fault) for fault in Plan(seed, Settings.of(seed)).faults()]
        for seed in (5, 5, 6)
    ]
    assert plans[0] == plans[1] != plans[2]


def test_every_kind_is_drawn() -> None:
    """A hundred seeds have faults of every kind."""
    from tests.simulation.faults import KINDS

    found = {
        fault.kind
        for seed in range(100)
        for fault in Plan(seed, Settings.of(seed)).faults()
    }
    assert found == set(KINDS)


@pytest.mark.parametrize("guilty", [(7,), (2, 11), (0, 5, 12)])
def test_reduced_to_the_guilty(guilty: tuple[int, ...]) -> None:
    """A plan is cut down to exactly the faults that break the invariant together."""
    settings = Settings.of(0)
    faults = [
        Fault(kind="cut", at=float(number), target="consumer1", how="reset")
        for number in range(13)
    ]

    def play_one(play: Play) -> Result:
        left = {fault.at for fault in play.faults}
        broken: list[Any] = (
            [("an invariant", "")] if left >= set(map(float, guilty)) else []
        )
        return Result(play=play, problems=broken)

    whole = Play(seed=0, settings=settings, faults=faults)
    found = reduced(play_one(whole), play_one)
    assert {fault.at for fault in found.play.faults} == set(map(float, guilty))


def test_an_outage_concerns_whom_it_concerns() -> None:
    """A facility is out of reach of one service or of all, until the end of the outage that is nearest."""
    outages = Outages()
    outages.begin("store", None, "silent", 1.0)
    outages.begin("store", "consumer1", "refused", 2.0)
    assert outages.how("store", "consumer1#2") == "refused"
    assert outages.how("store", "consumer2#1") == "silent"
    assert outages.how("audit", "consumer2#1") is None
    outages.end("store", "consumer1", 3.0)
    assert outages.how("store", "consumer1#2") == "silent"
    assert outages.end("store", None, 4.0)
    assert not outages.end("store", None, 5.0)
    assert [each.how for each in outages.between("store", "consumer1#1", 2.5, 9.0)] == [
        "silent",
        "refused",
    ]
    assert [each.how for each in outages.between("store", "consumer1#1", 3.5, 9.0)] == [
        "silent"
    ]
    assert outages.between("store", "consumer1#1", 4.5, 9.0) == []


@pytest.mark.parametrize(
    ("outages", "second", "loses", "allowed"),
    [
        ([(None, "refused", 9.0, 30.0)], "consumer2#1", "consumer1#1", True),
        ([("consumer1", "silent", 10.5, 25.0)], "consumer2#1", "consumer1#1", True),
        ([(None, "refused", 9.0, 17.0), (None, "refused", 21.0, 30.0)], "consumer2#1", "consumer1#1", True),
        ([(None, "refused", 9.0, 17.0), (None, "refused", 23.0, 30.0)], "consumer2#1", "consumer1#1", False),
        ([(None, "refused", 9.0, 20.0)], "consumer2#1", "consumer1#1", True),
        ([(None, "refused", 9.0, 18.0)], "consumer2#1", "consumer1#1", False),
        ([(None, "refused", 13.0, 30.0)], "consumer2#1", "consumer1#1", False),
        ([(None, "answer lost", 9.0, 30.0)], "consumer2#1", "consumer1#1", False),
        ([("consumer2", "refused", 9.0, 30.0)], "consumer2#1", "consumer1#1", False),
        ([(None, "refused", 9.0, 30.0)], "consumer1#1", "consumer1#1", False),
        ([(None, "refused", 9.0, 30.0)], "consumer2#1", "consumer2#1", False),
    ],
    ids=[
        "of all", "of the first", "not asked between two", "asked between two", "not asked after it",
        "asked after it", "confirmed before", "its answer lost", "of another", "by itself", "given back",
    ],
)  # fmt: skip
def test_handled_again_after_an_outage(
    outages: list[tuple[str | None, str, float, float]],
    second: str,
    loses: str,
    allowed: bool,
) -> None:
    """Handled by consumer1, and again: only if its store was away to its lease's end and it lost the channel."""
    ledger, away = Ledger(), Outages()
    ledger.losses[b"a"].append((20.0, loses))
    for process, at in (("consumer1#1", 9.0), (second, 40.0)):
        ledger.handlings[b"a"].append(Handling(b"a", process, at, at + 1.0))
    for service, how, begun, ended in outages:
        away.begin("store", service, how, begun)
        away.end("store", service, ended)
    processes = {
        process: SimpleNamespace(pauses=[]) for process in ("consumer1#1", second)
    }
    scenario: Any = SimpleNamespace(
        settings=SimpleNamespace(shared=True, lease=15.0),
        world=SimpleNamespace(ledger=ledger, outages=away, everyone=processes),
    )
    assert (not list(INVARIANTS["handled once"](scenario))) is allowed


@pytest.mark.parametrize(
    ("number", "at", "died", "allowed"),
    [
        (1, 11.0, 12.0, False),
        (2, 11.0, 12.0, True),
        (1, 13.0, 12.0, True),
        (1, 13.0, 50.0, False),
    ],
    ids=["acked", "the ack of a copy", "died before its ack", "died after it came again"],
)
def test_handled_again_after_a_death(
    number: int, at: float, died: float, allowed: bool
) -> None:
    """Handled by consumer1 and again: only where that process died first, and the message itself was not acked."""
    ledger = Ledger()
    ledger.deliveries[b"a"] = [(8.0, "consumer1#1", 1), (10.5, "consumer1#1", 2)]
    ledger.acks[b"a"], ledger.deaths["consumer1#1"] = [(at, "consumer1#1", number)], died
    for process, begun in (("consumer1#1", 9.0), ("consumer2#1", 40.0)):
        ledger.handlings[b"a"].append(Handling(b"a", process, begun, begun + 1.0))
    processes = {
        process: SimpleNamespace(pauses=[]) for process in ("consumer1#1", "consumer2#1")
    }
    scenario: Any = SimpleNamespace(
        settings=SimpleNamespace(shared=True, lease=15.0),
        world=SimpleNamespace(ledger=ledger, outages=Outages(), everyone=processes),
    )
    assert (not list(INVARIANTS["handled once"](scenario))) is allowed


@pytest.mark.parametrize(
    ("dead", "reasons", "acks", "lifetime", "allowed"),
    [
        ("consumer1#1", ["expired"], [(300.0, "consumer1#2", 1)], 120, True),
        ("consumer1#2", ["expired"], [(300.0, "consumer1#2", 1)], 120, False),
        ("consumer1#1", ["replayed"], [(300.0, "consumer1#2", 1)], 120, False),
        (
            "consumer1#1",
            ["expired"],
            [(11.0, "consumer1#1", 1), (300.0, "consumer1#2", 1)],
            120,
            False,
        ),
        ("consumer1#1", ["expired"], [(300.0, "consumer1#2", 1)], 3600, False),
    ],
    ids=["died", "another died", "another reason", "acked", "a long life"],
)
def test_expired_after_a_death(
    dead: str, reasons: list[str], acks: list[Event], lifetime: int, allowed: bool
) -> None:
    """Handled by consumer1 and then expired: only where that process died and the broker never had its ack."""
    ledger = Ledger()
    ledger.sent[b"a"], ledger.deaths[dead], ledger.acks[b"a"] = "", 20.0, acks
    ledger.handlings[b"a"].append(Handling(b"a", "consumer1#1", 9.0, 10.0))
    scenario: Any = SimpleNamespace(
        settings=SimpleNamespace(lifetime=lifetime),
        handlers=SimpleNamespace(behaviours={}),
        letters=lambda: [(b"a", reason) for reason in reasons],
        world=SimpleNamespace(
            ledger=ledger, everyone={"consumer1#1": SimpleNamespace(pauses=[])}
        ),
    )
    assert (not list(INVARIANTS["no honest message is condemned"](scenario))) is allowed


@pytest.mark.parametrize(
    ("form", "body", "found"),
    [
        ("whole", b"a", True),
        ("in_body", b"a", True),
        ("in_body", b"b", False),
        ("reference", b"a", False),
        ("unmarked", b"a", False),
    ],
    ids=[
        "whole",
        "in the JSON form",
        "of another",
        "by reference alone",
        "a body that looks like it",
    ],
)
def test_the_letter_of_a_forgery(form: str, body: bytes, found: bool) -> None:
    """A forgery has its letter where the whole of it is in there, as it was or in the JSON form."""
    rejected = Message(destination="rabbitmq:shop/orders.created", body=body)
    letter = DeadLetter(
        message=rejected,
        rejection=Rejection(Reason.TOKEN_MISSING, "none"),
        scope="orders",
        time=0.0,
        audit="1",
    )
    forms = {
        "whole": letter.whole(lambda _name, _value: True),
        "reference": letter.reference(),
    }
    sent = forms.get(form, letter.in_body())
    headers = {} if form == "unmarked" else dict(sent.headers)
    stored = Stored(
        1, "", "orders.dead", commands.Basic.Properties(headers=headers), sent.body or b""
    )
    ledger = Ledger()
    ledger.forged.append(("no-token", b"a"))
    scenario: Any = SimpleNamespace(
        world=SimpleNamespace(ledger=ledger),
        letters=lambda: [(rejected_body(stored), "token_missing")],
    )
    assert (not list(INVARIANTS["no forgery is handled"](scenario))) is found
