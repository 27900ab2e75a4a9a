"""The ladder of a rollout: each cell of its table, both colours, and that observing changes nothing."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from typing import Any

import pytest

from mqauth import Unverified, testing
from mqauth.audit.record import AuditRecord
from mqauth.delivery.log_work import EarlyClaims
from mqauth.errors import Cause, ConfigurationError, Reason, RejectNow, Unavailable
from mqauth.flow import run
from mqauth.judging.pipeline import Outcome, Verdict
from mqauth.judging.rollout import WEEK, Exemption, Rollout, RolloutEntry, Rung
from mqauth.judging.verified import Verified
from mqauth.judging.verifier import Verifier
from mqauth.replay.memory import MemoryReplayStore
from mqauth.testing import ATTACKS, BATCH_ATTACKS, FakeClock, Forge
from mqauth.testing.token_attacks import honest_message
from mqauth.wire.message import Message, Origin
from tests.conftest import (
    KAFKA,
    RABBITMQ,
    Plug,
    World,
    away,
    kafka_message,
    rabbitmq_message,
)

BOTH = (KAFKA, RABBITMQ)
ATTACKS_ON_KAFKA = [attack for attack in (*ATTACKS, *BATCH_ATTACKS) if attack.fits(KAFKA)]


def at(rung: Rung, *destinations: str) -> Rollout:
    """Return a rollout of one entry."""
    return Rollout([
        RolloutEntry(
            destinations=destinations or BOTH, rung=rung, since=date(2030, 3, 1), until=date(2030, 5, 20),
            owner="orders-team", window=WEEK,
        )
    ])  # fmt: skip


class Ladder(World):
    """A world with a rollout, and a handler for what is not verified."""

    def __init__(
        self,
        clock: FakeClock,
        forge: Forge,
        asynchronous: bool,
        rollout: Rollout,
        handlers: Any = None,
        **settings: Any,
    ) -> None:
        super().__init__(clock, forge, asynchronous, rollout=rollout, **settings)
        self.old = Plug(lambda unverified: None, asynchronous)
        self.ran: list[Message] = []
        self.unverified: Any = self.pipeline.handlers(self.handler, handlers or self.old)

    def process(self, delivery: Any) -> Outcome:
        """Process a delivery, or a message received now."""
        if isinstance(delivery, Message):
            delivery = self.receive(delivery)
        outcome: Outcome = self.run(
            self.pipeline.process(delivery, self.handler, self.letters, self.unverified)
        )
        return outcome

    @property
    def records(self) -> list[dict[str, Any]]:
        """The records of verdicts; those of the rollout itself are in ``told``."""
        return [
            record
            for record in self.told
            if record["verdict"] in ("accepted", "rejected", "duplicate")
        ]

    @property
    def told(self) -> list[dict[str, Any]]:
        """All records."""
        return super().records


Maker = Callable[..., Ladder]


@pytest.fixture(params=[False, True], ids=["run", "arun"])
def ladder(request: pytest.FixtureRequest, clock: FakeClock, forge: Forge) -> Maker:
    """A maker of worlds with a rollout, in both colours."""
    return lambda rollout, handlers=None, **settings: Ladder(
        clock, forge, request.param, rollout, handlers, **settings
    )


def test_the_payload_of_what_nothing_proved() -> None:
    """It is the body, an empty one too; a tombstone has none, and ends a handler that asks for it."""
    assert testing.unverified(body=b"").payload == b""
    with pytest.raises(RejectNow, match="a tombstone has no payload"):
        _ = testing.unverified(body=None, destination="kafka:orders").payload


def is_unverified(world: Ladder, outcome: Outcome, why: str | None) -> bool:
    """Tell whether the last message went to the old handler alone, and would have been refused for a reason."""
    unverified = world.old.done[-1]
    said = None if unverified.would is None else unverified.would.code
    return (
        outcome.verdict is Verdict.UNVERIFIED
        and outcome.verified is None
        and outcome.unverified is unverified
        and type(unverified) is Unverified
        and (said, world.published, world.records, world.handler.done)
        == (why, [], [], [])
    )


def test_off_no_message_is_judged(ladder: Maker) -> None:
    """Neither the policy nor the store is asked, and the handler gets an ``Unverified`` that says nothing."""
    world = ladder(at(Rung.OFF))
    assert is_unverified(world, world.process(world.sealed()), None)
    assert world.store.claim.calls == world.policy.decide.calls == 0


class TestObserve:
    """What would be refused goes to the old handler, and says why."""

    def test_a_malformed_message_reaches_the_old_handler(self, ladder: Maker) -> None:
        """What no ``Message`` can hold is in ``native``."""
        world = ladder(at(Rung.OBSERVE))
        broken = rabbitmq_message(malformed="a header has no UTF-8 form", native=object())
        assert is_unverified(world, world.process(broken), "message_malformed")
        assert world.old.done[0].native is broken.native

    def test_a_duplicate_runs_again(self, ladder: Maker) -> None:
        """A redelivery of what was handled would be settled, and runs again as without mqauth."""
        world = ladder(at(Rung.OBSERVE))
        message = world.sealed()
        world.process(message)
        again = replace(message, origin=replace(message.origin, redelivered=True))
        assert world.process(again).unverified.would.code == "duplicate"  # type: ignore[union-attr]

    @pytest.mark.parametrize("plug", ["store.claim", "policy.decide"])
    def test_a_plug_in_that_is_down_defers_nothing(
        self, plug: str, ladder: Maker, clock: FakeClock
    ) -> None:
        """It is not asked again for 30 s, and each message would have been deferred."""
        world = ladder(at(Rung.OBSERVE))
        room, name = plug.split(".")
        failing = getattr(getattr(world, room), name)
        failing.failure = OSError("down")
        cause = "replay_store_unavailable" if room == "store" else "policy_unavailable"
        for number in range(5):
            outcome = world.process(world.sealed(rabbitmq_message(body=b"%d" % number)))
            assert is_unverified(world, outcome, cause)
        assert failing.calls == 1
        failing.failure = None
        clock.advance(30)
        assert world.process(world.sealed(rabbitmq_message())).verdict is Verdict.ACCEPTED

    @pytest.mark.parametrize("step", ["confirm", "release"])
    def test_a_claim_that_cannot_be_ended_is_not_waited_for(
        self, step: str, ladder: Maker
    ) -> None:
        """A verified message is settled, or dead-lettered for its handler, although the store is down."""
        world = ladder(at(Rung.OBSERVE))
        getattr(world.store, step).failure = OSError("down")
        if step == "release":
            world.handler.failure = RejectNow("never")
        outcome = world.process(world.sealed())
        assert outcome.verdict is (
            Verdict.ACCEPTED if step == "confirm" else Verdict.REJECTED
        )
        assert len(world.published) == (step == "release")

    def test_an_audit_that_is_down_is_not_waited_for(self, ladder: Maker) -> None:
        """The letter of a handler that gave up is sent all the same."""
        world = ladder(at(Rung.OBSERVE))
        world.audit.write.failure = OSError("full")
        world.old.failure = RejectNow("never")
        assert world.process(rabbitmq_message()).reason is Reason.HANDLER_FAILED
        assert len(world.published) == 1

    def test_what_was_given_back_is_judged_anew(self, ladder: Maker) -> None:
        """A message that was out of luck once is verified the next time."""
        world = ladder(at(Rung.OBSERVE))
        world.policy.decide.failure = OSError("down")
        delivery = world.receive(world.sealed())
        assert world.run(world.pipeline.judge(delivery)).verdict is Verdict.UNVERIFIED
        world.run(world.pipeline.release(delivery))
        world.policy.decide.failure = None
        world.clock.advance(30)
        outcome = world.process(delivery)
        assert (outcome.verdict, outcome.unverified) == (Verdict.ACCEPTED, None)


def heartbeat(kind: str = "heartbeat", **changes: Any) -> Message:
    """Return an unsigned message of a kind."""
    return rabbitmq_message(properties={"type": kind}, **changes)


EXEMPT = Rollout(exemptions=[
    Exemption(destination=RABBITMQ, kinds=frozenset({"heartbeat"}), until=date(2027, 6, 30), why="firmware 2")
])  # fmt: skip


def test_a_kind_reaches_its_own_handler_alone(ladder: Maker) -> None:
    """A forged ``heartbeat`` is a heartbeat and nothing else; any other kind is rejected."""
    beats: list[Unverified] = []
    world = ladder(EXEMPT, {"heartbeat": beats.append})
    assert world.process(heartbeat()).verdict is Verdict.UNVERIFIED
    assert world.process(heartbeat("order")).reason is Reason.TOKEN_MISSING
    assert [beat.destination for beat in beats] == [RABBITMQ]


class TestHandlers:
    """What a consumer refuses before it starts."""

    def test_one_function_for_both_is_refused(self, ladder: Maker) -> None:
        """Code for one never runs with the other."""
        world = ladder(at(Rung.OBSERVE))
        with pytest.raises(ConfigurationError, match="itself"):
            world.pipeline.handlers(world.handler, world.handler)

    def test_one_annotated_verified_is_refused(self, ladder: Maker) -> None:
        """It would read what an ``Unverified`` does not have."""

        def handle(message: Verified) -> None: ...

        with pytest.raises(ConfigurationError, match="annotated"):
            ladder(at(Rung.OBSERVE), handle)


class TestUnverified:
    """A class of its own."""

    def test_nobody_can_authorise_by_it(self) -> None:
        """It has nothing of what a ``Verified`` proves, and shares no base with it."""
        message = testing.unverified(headers=[("tenant", "acme")])
        for name in (
            "subject",
            "issuer",
            "claims",
            "jti",
            "value",
            "header",
            "reply",
            "audience",
            "kid",
        ):
            assert not hasattr(message, name)
        assert set(Unverified.__mro__) & set(Verified.__mro__) == {object}
        assert message.headers == (("tenant", "acme"),)

    def test_it_cannot_be_made_or_changed(self) -> None:
        """The pipeline alone makes one."""
        with pytest.raises(ConfigurationError):
            Unverified(object(), rabbitmq_message(), None, None)
        with pytest.raises(AttributeError):
            testing.unverified()._would = None  # type: ignore[misc]


def deliveries(forge: Forge, choose: random.Random, count: int) -> list[Message]:
    """Return random deliveries of a dozen kinds to one queue, with offsets of their own."""
    found: list[Message] = []
    for offset in range(count):
        kind = choose.randrange(12)
        plain = honest_message(KAFKA, offset)
        if kind < 4 or not found:
            made = forge.seal(plain)
        elif kind < 6:
            made = plain
        elif kind < 9:
            made = choose.choice(ATTACKS_ON_KAFKA).mount(forge, plain)
        elif kind == 9:
            made = replace(choose.choice(found[-50:]))
        elif kind == 10:
            found.append(choose.choice(found[-50:]))
            continue
        else:
            made = replace(plain, malformed="a header has no UTF-8 form")
        found.append(
            replace(made, origin=Origin(topic="orders", partition=0, offset=offset))
        )
    return found


@pytest.mark.slow
def test_observe_is_transparent(clock: FakeClock, forge: Forge) -> None:
    """For 10,000 random deliveries the handlers run as often, and in the order, of a bare consumer.

    Store, policy and audit are down for the middle third.
    """
    messages = deliveries(forge, random.Random(11), 10_000)
    world = Ladder(clock, forge, False, at(Rung.OBSERVE), record="all")
    ran: list[int | None] = []
    world.handler.function = world.old.function = lambda found: ran.append(
        found.origin.offset
    )
    for number, message in enumerate(messages):
        down = OSError("down") if 3333 <= number < 6666 else None
        world.store.claim.failure = world.store.confirm.failure = (
            world.audit.write.failure
        ) = down
        world.policy.decide.failure = down
        world.process(message)
    assert ran == [message.origin.offset for message in messages]
    assert world.published == []
    assert min(world.handler.calls, world.old.calls) > 1000


def test_verdicts_made_ahead_are_as_lenient(clock: FakeClock, forge: Forge) -> None:
    """Claims made in one round trip, and what becomes of them, keep no message from its handler either."""
    messages = deliveries(forge, random.Random(7), 1000)
    world = Ladder(
        clock, forge, False, at(Rung.OBSERVE), replay=MemoryReplayStore(clock=clock)
    )
    ran: list[int | None] = []
    world.handler.function = world.old.function = lambda found: ran.append(
        found.origin.offset
    )
    waiting = [world.receive(message) for message in messages]
    for at_once in range(0, len(waiting), 50):
        run(EarlyClaims(world.pipeline).judge_ahead(waiting[at_once : at_once + 50]))
        for delivery in waiting[at_once : at_once + 50]:
            run(
                world.pipeline.process(
                    delivery, world.handler, world.letters, world.unverified
                )
            )
    assert ran == [message.origin.offset for message in messages]
    assert world.published == []


@pytest.mark.parametrize(("rung", "together"), [(Rung.OBSERVE, 0), (Rung.ENFORCE, 1)])
def test_below_enforce_a_record_is_confirmed_by_itself(
    clock: FakeClock, forge: Forge, rung: Rung, together: int
) -> None:
    """What is confirmed with others waits for the store; below enforce nothing may."""
    world, done = Ladder(clock, forge, False, at(rung)), list[Any]()
    delivery = world.receive(world.sealed(kafka_message()))
    run(
        world.pipeline.process(
            delivery, world.handler, world.letters, world.unverified, done
        )
    )
    assert (len(done), world.store.confirm.calls) == (together, 1 - together)


def test_a_slow_store_delays_no_second_poll(clock: FakeClock, forge: Forge) -> None:
    """Below enforce the claims that are made together are made with little patience, too."""

    class Slow(MemoryReplayStore):
        asked = 0

        def claim_many(self, requests: Any, /) -> Any:
            """Take a second, and fail."""
            Slow.asked += 1
            clock.advance(1)
            raise Unavailable(Cause.REPLAY_STORE_UNAVAILABLE)

    world = Ladder(clock, forge, False, at(Rung.OBSERVE), replay=Slow(clock=clock))
    polls = [
        [world.receive(message) for message in deliveries(forge, random.Random(n), 20)]
        for n in range(3)
    ]
    for waiting in polls:
        run(EarlyClaims(world.pipeline).judge_ahead(waiting))
    assert Slow.asked == 1


def test_keys_out_of_reach_defer_nothing(
    ladder: Maker, forge: Forge, clock: FakeClock
) -> None:
    """A key server that is down is asked once in 30 s; each message would have been deferred."""
    source = away()
    world = ladder(
        at(Rung.OBSERVE),
        verifier=Verifier(keys={"https://auth.example": source}, audience="billing"),
    )
    for number in range(3):
        message = world.sealed(rabbitmq_message(body=b"%d" % number))
        assert is_unverified(world, world.process(message), "keys_unavailable")
    assert len(source.looked) == 1


def test_at_enforce_a_letter_waits_for_its_record(clock: FakeClock, forge: Forge) -> None:
    """There is no letter without a durable record."""
    going, free = threading.Event(), threading.Event()

    class Stuck:
        def write(self, record: AuditRecord, /) -> None:
            """Hang at the record of a rejection until it is let go."""
            if record.verdict == "rejected":
                going.set()
                free.wait()

    found = Ladder(
        clock, forge, False, at(Rung.OBSERVE, "kafka:elsewhere"), audit=Stuck()
    )
    found.run(found.pipeline.tick())
    judging = threading.Thread(target=found.process, args=(kafka_message(),))
    judging.start()
    assert going.wait(30)
    assert found.published == []
    free.set()
    judging.join()
    assert len(found.published) == 1
