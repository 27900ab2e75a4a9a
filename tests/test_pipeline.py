"""THE order, in both colours: each outcome, resumption after each deferral, and nothing done twice."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from mqauth import Decision, Issuer, KeySet, MemoryReplayStore, Message, Origin
from mqauth.errors import (
    Cause,
    ConfigurationError,
    Reason,
    Rejection,
    RejectNow,
    RetryLater,
    StaleDelivery,
    Unavailable,
)
from mqauth.flow import arun, run
from mqauth.judging.pipeline import Delivery, Outcome, Pipeline, Step, Verdict
from mqauth.replay.rules import ClaimStatus
from mqauth.testing import ATTACKS, BATCH_ATTACKS, FakeClock, Forge
from mqauth.testing.batchforge import forge_batch
from mqauth.testing.token_attacks import honest_message
from tests.conftest import Source
from tests.test_flow import Unhashable

Maker = Callable[..., Message]
World = Any
DOWN = OSError("the world is down")
ISSUER = "https://auth.example"


def counts(world: World) -> tuple[int, int, int]:
    """Return how often a handler succeeded, a record was written, and a letter was published."""
    return len(world.handler.done), len(world.audit.write.done), len(world.published)


def assert_rejected(outcome: Outcome, reason: Reason) -> None:
    """Check that an outcome is a rejection for a reason, dead-lettered."""
    assert (outcome.verdict, outcome.reason, outcome.cause) == (
        Verdict.REJECTED,
        reason,
        None,
    )
    assert outcome.dead_letter is not None
    assert outcome.verified is None


def assert_deferred(outcome: Outcome, cause: Cause) -> None:
    """Check that an outcome is a deferral for a cause, with neither reason nor letter."""
    assert (outcome.verdict, outcome.cause, outcome.reason) == (
        Verdict.DEFERRED,
        cause,
        None,
    )
    assert outcome.dead_letter is None


class TestOutcomes:
    """What becomes of one message."""

    def test_an_honest_message_is_claimed_handled_and_confirmed(
        self, world: World
    ) -> None:
        """Accepted: the handler sees it once, the claim is done, nothing is audited or dead-lettered."""
        outcome = world.process(world.sealed())
        assert outcome.verdict is Verdict.ACCEPTED
        assert outcome.verified is world.handler.done[0]
        assert counts(world) == (1, 0, 0)
        assert (
            world.store.claim.calls,
            world.store.confirm.calls,
            world.store.release.calls,
        ) == (1, 1, 0)

    @pytest.mark.parametrize(
        "attack", [*ATTACKS, *BATCH_ATTACKS], ids=lambda attack: attack.name
    )
    def test_every_attack_is_audited_and_dead_lettered(
        self, attack: Any, world: World
    ) -> None:
        """Rejected: the handler never sees it, one record and one letter name the reason."""
        place = (
            "kafka:orders"
            if attack.fits("kafka:orders")
            else "rabbitmq:shop/orders.created"
        )
        message = attack.mount(world.forge, honest_message(place))
        assert_rejected(world.process(message), attack.reason)
        assert counts(world) == (0, 1, 1)
        record = world.records[0]
        assert (record["verdict"], record["reason"]) == ("rejected", attack.reason.value)
        letter = dict(world.published[0].headers)
        assert letter["mqauth-dead-reason"] == attack.reason.value
        assert letter["mqauth-dead-audit"] == record["id"]
        assert letter["mqauth-dead-id"] == record["dead_letter"]

    def test_a_batchs_record_names_the_place(self, make_world: Any, forge: Forge) -> None:
        """Token and index name a message of a batch, claimed or verified; the thumbprint is of its own header."""
        world = make_world(record="all")
        found = forge_batch(
            forge, [honest_message("kafka:orders", number) for number in range(3)]
        )
        wrong = found.seal(1, proof=found.proof(1, path=bytes(64)))
        edited = found.seal(2, replace(found.messages[2], body=b"evil"))
        for message in (found.seal(0), wrong, edited):
            world.process(message)
        said = [next(iter(record["token"].items())) for record in world.records]
        assert [(kind, fields["index"]) for kind, fields in said] == [
            ("verified", 0),
            ("claimed", 1),
            ("verified", 2),
        ]
        assert len({record["token"]["thumbprint"] for record in world.records}) == 3
        assert len({fields["jti"] for _, fields in said}) == 1

    def test_together_the_attacks_and_this_file_reach_every_reason(self) -> None:
        """No reason of the closed set is unreachable but those that have files of their own."""
        elsewhere = {
            Reason.REPLAYED, Reason.HANDLER_FAILED, Reason.MESSAGE_MALFORMED, Reason.COVERAGE_INSUFFICIENT,
            Reason.QUEUE_AGE_EXCEEDED, Reason.IDENTITY_INVALID, Reason.IDENTITY_MISMATCH,
            Reason.APPEND_TIME_MISSING,
        }  # fmt: skip
        reached = {attack.reason for attack in (*ATTACKS, *BATCH_ATTACKS)}
        assert reached | elsewhere | {Reason.RELEASE_INVALID} == set(Reason)

    def test_the_claim_comes_before_the_handler_and_confirm_after(
        self, world: World
    ) -> None:
        """While the handler runs the claim is held and not done."""
        seen: list[tuple[int, int]] = []
        world.handler.function = lambda verified: seen.append(
            (world.store.claim.calls, world.store.confirm.calls)
        )
        world.process(world.sealed())
        assert seen == [(1, 0)]

    @pytest.mark.parametrize("answer", [True, 1, "allow", None, object(), Decision.DENY])
    def test_only_allow_itself_allows(self, answer: object, world: World) -> None:
        """A policy's answer is compared by identity, never by truthiness, and before anything is claimed."""
        world.policy.decide.function = lambda verified: answer
        assert_rejected(world.process(world.sealed()), Reason.PRODUCER_FORBIDDEN)
        assert world.store.claim.calls == 0

    @pytest.mark.parametrize(
        "answer",
        [
            None,
            True,
            False,
            "fresh",
            object(),
            Unhashable("Odd", (), {})(),
            ClaimStatus.LOST,
        ],
    )
    def test_only_a_claim_status_lets_a_message_through(
        self, answer: object, world: World
    ) -> None:
        """A store that answers anything else is out of order: deferred, and not handled."""
        world.store.claim.function = lambda request: answer
        assert_deferred(world.process(world.sealed()), Cause.REPLAY_STORE_UNAVAILABLE)
        assert counts(world) == (0, 0, 0)

    def test_without_audit_an_accepted_message_is_settled(self, make_world: Any) -> None:
        """A pipeline that only verifies needs no audit for what it accepts."""
        assert (
            make_world(audit=None, record="all").process(make_world().sealed()).verdict
            is Verdict.ACCEPTED
        )

    def test_without_audit_a_rejected_message_cannot_be_settled(
        self, make_world: Any, rabbit: Maker
    ) -> None:
        """A rejection nobody recorded is a configuration error, not a loss."""
        world = make_world(audit=None)
        with pytest.raises(ConfigurationError):
            world.process(rabbit())
        assert world.published == []

    def test_an_unknown_kid_makes_the_source_look_again_once(
        self, make_world: Any, forge: Forge, kafka: Maker
    ) -> None:
        """A key that was published since is found; one that was not is key_unknown."""
        source = Source(forge.keys)
        world = make_world(verifier=forge.verifier(keys={ISSUER: Issuer(keys=source)}))
        assert world.process(world.sealed()).verdict is Verdict.ACCEPTED
        assert source.looked == [(forge.key.kid, forge.clock.now())]
        assert_rejected(
            world.process(world.sealed(key=forge.stranger)), Reason.KEY_UNKNOWN
        )

    def test_a_verifier_that_breaks_condemns_one_message_only(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whatever a message makes the pure steps raise, it is message_malformed and the consumer goes on."""
        for step in ("open", "verify"):
            with monkeypatch.context() as patched:
                patched.setattr(world.pipeline.verifier, step, lambda *arguments: {}[1])
                outcome = world.process(world.sealed())
            assert_rejected(outcome, Reason.MESSAGE_MALFORMED)
            assert outcome.detail == "KeyError while it was judged"
        assert world.process(world.sealed()).verdict is Verdict.ACCEPTED


HOSTILE: list[Any] = [
    10**5000, {1: 2}, "\ud800", object(), float("nan"), [1], bytearray(b"x"), {"\ud800": ("\udfff",)}, 1j,
]  # fmt: skip


def bottomless(depth: int) -> Any:
    """Return tables and lists in each other."""
    value: Any = "x"
    for _ in range(depth):
        value = {"a": (value,)}
    return value


class TestHostileMessages:
    """Nothing a sender puts in a message crashes, stalls or loops a consumer."""

    @pytest.mark.parametrize(
        "value",
        [*HOSTILE, bottomless(40), bottomless(400), bottomless(50_000)],
        ids=lambda v: type(v).__name__,
    )
    def test_any_covered_value_is_settled(self, value: Any, world: World) -> None:
        """A covered header of any type, size or depth is headers_mismatch, audited and buried."""
        sealed = world.sealed()
        hostile = replace(sealed, headers=(("tenant", value), *sealed.headers[1:]))
        assert_rejected(world.process(hostile), Reason.HEADERS_MISMATCH)
        assert counts(world) == (0, 1, 1)

    @pytest.mark.parametrize(
        "value", [*HOSTILE, bottomless(50_000)], ids=lambda v: type(v).__name__
    )
    def test_any_uncovered_value_is_hidden(self, value: Any, world: World) -> None:
        """An added header of any type does no harm: the message is accepted without it."""
        sealed = world.sealed()
        outcome = world.process(
            replace(sealed, headers=(*sealed.headers, ("evil", value)))
        )
        assert outcome.verdict is Verdict.ACCEPTED
        assert outcome.verified.header("evil") is None

    @pytest.mark.parametrize(
        "changes",
        [{"properties": {"content-type": "\ud800"}}, {"properties": {"reply-to": "\ud800"}},
         {"headers": (("\ud800", 1), ("mqauth-token", "x"))}, {"origin": Origin(queue="\ud800\n\x1b[2J")},
         {"malformed": "\ud800\n"}],
        ids=lambda value: next(iter(value)),
    )  # fmt: skip
    def test_text_without_utf8_form_is_settled(
        self, changes: dict[str, Any], world: World, rabbit: Maker
    ) -> None:
        """Surrogates in properties, names and places end in an audit record and a letter."""
        assert world.process(rabbit(**changes)).verdict is Verdict.REJECTED
        assert counts(world) == (0, 1, 1)

    def test_hostile_text_is_harmless_in_audit_and_letter(
        self, world: World, forge: Forge, rabbit: Maker
    ) -> None:
        """Bidi controls, line breaks and escapes an attacker signs as names appear escaped."""
        bad = "a\u202eb"
        message = world.sealed(claims={"sub": bad, "aud": bad})
        message = replace(
            message, origin=replace(message.origin, queue="q\x1b[2J\nfake: line")
        )
        assert_rejected(world.process(message), Reason.AUDIENCE_MISMATCH)
        text = repr(world.records) + repr(world.published[0].headers)
        assert "\u202e" not in text
        assert "\\\\u202e" in text
        assert "\x1b" not in text
        assert "\nfake" not in text

    def test_what_a_token_says_is_claimed_until_its_signature_holds(
        self, world: World
    ) -> None:
        """Before step 7 a record's token is claimed; after it, verified, though the message was rejected."""
        early = set()
        for attack in ATTACKS:
            place = (
                "kafka:orders"
                if attack.fits("kafka:orders")
                else "rabbitmq:shop/orders.created"
            )
            world.process(attack.mount(world.forge, honest_message(place)))
            early |= {attack.reason} if "claimed" in world.records[-1]["token"] else set()
        world.handler.failure = ValueError()
        world.process(world.sealed())
        assert "verified" in world.records[-1]["token"]
        assert early == {
            Reason.TOKEN_MISSING, Reason.TOKEN_REPEATED, Reason.TOKEN_OVERSIZE, Reason.TOKEN_MALFORMED,
            Reason.TOKEN_TYPE, Reason.HEADER_FORBIDDEN, Reason.ALGORITHM_FORBIDDEN, Reason.CLAIM_MISSING,
            Reason.CLAIMS_MALFORMED, Reason.ISSUER_UNTRUSTED, Reason.KEY_UNKNOWN, Reason.KEY_REVOKED,
            Reason.SIGNATURE_INVALID,
        }  # fmt: skip

    def test_records_never_hold_token_body_or_key(
        self, world: World, kafka: Maker
    ) -> None:
        """Whatever the verdict, a record has digests only."""
        segments = set[str]()
        for attack in ATTACKS:
            message = kafka(
                body=b"BODY-SECRET",
                key=b"KEY-SECRET",
                headers=(("tenant", b"HEADER-SECRET"),),
            )
            attacked = attack.mount(world.forge, message)
            world.process(attacked)
            segments |= set(re.findall(r"eyJ[\w-]{20,}", repr(attacked.headers)))
        text = repr(world.records)
        assert "SECRET" not in text
        assert len(segments) >= len(ATTACKS)
        assert not any(segment in text for segment in segments)

    def test_a_delivery_can_be_logged(self, world: World) -> None:
        """The repr of a judged delivery and its outcome holds neither token nor body."""
        delivery = world.receive(world.sealed())
        outcome = world.process(delivery)
        text = repr(delivery) + repr(outcome)
        token = dict(delivery.message.headers)["mqauth-token"]
        assert not any(segment in text for segment in str(token).split("."))
        assert "hello" not in text


class TestReplay:
    """The claim table as a consumer meets it."""

    def test_a_redelivery_of_a_done_message_is_a_duplicate(self, make_world: Any) -> None:
        """Settled without the handler, and without a letter; recorded with all the others."""
        world = make_world(record="all")
        message = world.sealed()
        world.process(message)
        again = replace(message, origin=replace(message.origin, redelivered=True))
        outcome = world.process(again)
        assert outcome.verdict is Verdict.DUPLICATE
        assert outcome.verified is not None
        assert counts(world) == (1, 2, 0)
        assert [record["verdict"] for record in world.records] == [
            "accepted",
            "duplicate",
        ]

    def test_a_redelivery_waits_for_a_held_claim_and_inherits_it(
        self, world: World, clock: FakeClock
    ) -> None:
        """While an earlier delivery may still be handled: deferred; once its lease is over: handled."""
        message = world.sealed()
        crashed = world.receive(message)
        world.run(world.pipeline.judge(crashed))
        again = world.receive(
            replace(message, origin=replace(message.origin, redelivered=True))
        )
        assert_deferred(world.process(again), Cause.CLAIM_HELD)
        clock.advance(59.9)
        assert_deferred(world.process(again), Cause.CLAIM_HELD)
        clock.advance(0.1)
        assert world.process(again).verdict is Verdict.ACCEPTED
        assert counts(world) == (1, 0, 0)

    def test_claims_never_hold_the_tokens_text(self, world: World) -> None:
        """The store sees a digest, an owner nonce, the lease and when to forget."""
        world.process(world.sealed())
        request = world.store.claim.done[0]
        assert len(request.id) == 16
        assert request.expires == world.clock.now() + 60 + 5
        assert request.lease == 60

    def test_copies_that_were_deferred_together_are_handled_once(
        self, world: World, clock: FakeClock
    ) -> None:
        """An outage longer than a token's life must not let every copy in once it is over."""
        message = world.sealed()
        deliveries = [world.receive(message) for _ in range(10)]
        world.policy.decide.failure = DOWN
        for delivery in deliveries:
            assert_deferred(world.process(delivery), Cause.POLICY_UNAVAILABLE)
        clock.advance(500)
        world.policy.decide.failure = None
        verdicts = []
        for delivery in deliveries:
            verdicts.append(world.process(delivery).verdict)
            clock.advance(120)
        assert verdicts == [Verdict.ACCEPTED] + [Verdict.REJECTED] * 9
        assert counts(world)[0] == 1

    def test_a_lost_answer_of_the_store_condemns_nobody(self, world: World) -> None:
        """The store took the claim and its answer was lost: the same delivery claims again and is handled."""
        delivery = world.receive(world.sealed())
        real = world.store.claim.function

        def lost(request: Any) -> None:
            real(request)
            raise DOWN

        world.store.claim.function = lost
        assert_deferred(world.process(delivery), Cause.REPLAY_STORE_UNAVAILABLE)
        world.store.claim.function = real
        assert world.process(delivery).verdict is Verdict.ACCEPTED


class TestDeferral:
    """After each kind of outage the delivery goes on where it stopped."""

    @pytest.mark.parametrize(
        ("plug", "cause"),
        [("policy.decide", Cause.POLICY_UNAVAILABLE), ("store.claim", Cause.REPLAY_STORE_UNAVAILABLE),
         ("store.confirm", Cause.REPLAY_STORE_UNAVAILABLE)],
    )  # fmt: skip
    @pytest.mark.parametrize(
        "failure", [DOWN, ValueError("bug"), RecursionError(), StopIteration(1)], ids=repr
    )
    def test_an_accepted_message_is_handled_exactly_once(
        self, plug: str, cause: Cause, failure: Exception, world: World
    ) -> None:
        """Policy or store down, before or after the handler: deferred, resumed where it was, handled once."""
        owner, name = plug.split(".")
        broken = getattr(getattr(world, owner), name)
        broken.failure = failure
        delivery = world.receive(world.sealed())
        for _ in range(3):
            assert_deferred(world.process(delivery), cause)
        assert counts(world)[1:] == (0, 0)
        broken.failure = None
        assert world.process(delivery).verdict is Verdict.ACCEPTED
        assert counts(world) == (1, 0, 0)
        assert delivery.step is Step.SETTLE

    def test_everything_down_in_turn(self, world: World) -> None:
        """A failed handler's message through a store, an audit and a dead-letter outage: each step once.

        No letter without a record, which has one id from the first try on; the verdict is kept.
        """
        delivery = world.receive(world.sealed())
        world.handler.failure = ValueError()
        plugs = [
            world.store.claim,
            world.store.release,
            world.audit.write,
            world.letters.publish,
        ]
        for plug in plugs:
            plug.failure = DOWN
        world.letters.publish.failure = Unavailable(
            Cause.DEAD_LETTER_UNAVAILABLE, "unroutable"
        )
        causes = [
            Cause.REPLAY_STORE_UNAVAILABLE, Cause.REPLAY_STORE_UNAVAILABLE, Cause.AUDIT_UNAVAILABLE,
            Cause.DEAD_LETTER_UNAVAILABLE,
        ]  # fmt: skip
        for plug, cause in zip(plugs, causes, strict=True):
            for _ in range(3):
                outcome = world.process(delivery)
                assert_deferred(outcome, cause)
            assert counts(world) == (0, cause is Cause.DEAD_LETTER_UNAVAILABLE, 0)
            if cause is Cause.AUDIT_UNAVAILABLE:
                identity = delivery.record_id
            plug.failure = None
        assert "unroutable (orders.dead); its verdict is handler_failed: " in str(
            outcome.detail
        )
        assert_rejected(world.process(delivery), Reason.HANDLER_FAILED)
        assert counts(world) == (0, 1, 1)
        assert world.records[0]["id"] == identity
        assert world.handler.calls == 3

    def test_audit_of_an_accepted_message_down(self, make_world: Any) -> None:
        """With all verdicts recorded an audit outage after the handler repeats neither handler nor confirm."""
        world = make_world(record="all")
        world.audit.write.failure = DOWN
        delivery = world.receive(world.sealed())
        assert_deferred(world.process(delivery), Cause.AUDIT_UNAVAILABLE)
        world.audit.write.failure = None
        assert world.process(delivery).verdict is Verdict.ACCEPTED
        assert (world.handler.calls, world.store.confirm.calls) == (1, 1)
        assert len(world.records) == 1

    def test_keys_out_of_reach(self, make_world: Any, forge: Forge) -> None:
        """A source that has no set is asked to look once; what it raises then, whatever it is, defers."""
        source = Source(
            Unavailable(Cause.KEYS_UNAVAILABLE, "unreachable"),
            Unavailable(Cause.KEYS_UNAVAILABLE, "stale"),
        )
        world = make_world(verifier=forge.verifier(keys={ISSUER: Issuer(keys=source)}))
        delivery = world.receive(world.sealed())
        assert_deferred(world.process(delivery), Cause.KEYS_UNAVAILABLE)
        source.held, source.found = KeyError("a bug in somebody's source"), OSError()
        assert_deferred(world.process(delivery), Cause.KEYS_UNAVAILABLE)
        source.held, source.found = KeySet([]), Unavailable(Cause.KEY_PENDING)
        assert_deferred(world.process(delivery), Cause.KEY_PENDING)
        assert len(source.looked) == 3
        source.found = forge.keys
        assert world.process(delivery).verdict is Verdict.ACCEPTED

    @pytest.mark.parametrize("answer", [None, {}, True])
    def test_what_is_no_key_set_condemns_nothing(
        self, make_world: Any, forge: Forge, answer: Any
    ) -> None:
        """A source of keys that answers with something else is the world's fault, and the message waits."""
        source = Source(answer)
        source.held = answer
        world = make_world(verifier=forge.verifier(keys={ISSUER: Issuer(keys=source)}))
        assert_deferred(world.process(world.sealed()), Cause.KEYS_UNAVAILABLE)

    def test_a_source_that_blocks_may_have_a_twin_for_event_loops(
        self, clock: FakeClock, forge: Forge
    ) -> None:
        """run asks refresh, arun its asynchronous twin."""
        asked: list[str] = []

        class Twin(Source):
            async def arefresh(self, kid: str, received: float, /) -> Any:
                asked.append(kid)
                return self.found

        source = Twin(forge.keys)
        verifier = forge.verifier(keys={ISSUER: Issuer(keys=source)})
        guard = Pipeline(verifier=verifier, policy=forge.policy("kafka:orders"),
        replay=MemoryReplayStore(clock=clock),
                         clock=clock)  # fmt: skip
        for runner in (run, lambda flow: asyncio.run(arun(flow))):
            delivery = guard.receive(forge.seal(honest_message("kafka:orders")))
            assert runner(guard.judge(delivery)).verdict is Verdict.ACCEPTED
            assert (len(source.looked), len(asked)) == (1, int(runner is not run))

    def test_a_settled_delivery_stays_settled(self, world: World, rabbit: Maker) -> None:
        """Processing one again returns its outcome and does nothing."""
        for message in (world.sealed(), rabbit()):
            delivery = world.receive(message)
            first, before = world.process(delivery), counts(world)
            assert world.process(delivery) == first
            assert counts(world) == before


class TestHandler:
    """What a handler may do."""

    def test_it_is_not_tried_again_for_another_consumers_delivery(
        self, world: World
    ) -> None:
        """Where the broker gave the delivery away while an attempt ran, no further one begins."""
        delivery = world.receive(world.sealed())
        given_away = False

        def fence(_: Delivery) -> None:
            if given_away:
                raise StaleDelivery("the partition was taken away")

        def failing(verified: Any) -> None:
            nonlocal given_away
            given_away = True
            raise ValueError

        delivery.fence, world.handler.function = fence, failing
        with pytest.raises(StaleDelivery):
            world.process(delivery)
        assert (world.handler.calls, counts(world), delivery.rejection) == (
            1,
            (0, 0, 0),
            None,
        )

    @pytest.mark.parametrize(
        "failure",
        [ValueError("secret"), RecursionError(), MemoryError(), StopIteration(), Rejection(Reason.EXPIRED),
         Unavailable(Cause.KEY_PENDING), ConfigurationError()],
        ids=repr,
    )  # fmt: skip
    def test_its_last_failure_is_handler_failed(
        self, failure: Exception, world: World
    ) -> None:
        """Whatever it raises, even our own errors: dead-lettered by type name only, and the claim released."""
        world.handler.failure = failure
        outcome = world.process(world.sealed())
        assert_rejected(outcome, Reason.HANDLER_FAILED)
        assert "secret" not in repr(world.records) + repr(world.published[0].headers)
        assert re.search(r"attempt [1-3], error [0-9a-f]{12}$", str(outcome.detail))
        assert len(world.memory) == 0

    def test_it_may_ask_for_another_time(self, world: World) -> None:
        """RetryLater defers without using attempts; the next time the handler runs again under the same claim."""
        world.handler.failure = RetryLater("database in maintenance")
        delivery = world.receive(world.sealed())
        outcome = world.process(delivery)
        assert_deferred(outcome, Cause.HANDLER_DEFERRED)
        assert (outcome.detail, world.handler.calls) == ("database in maintenance", 1)
        world.handler.failure = None
        assert world.process(delivery).verdict is Verdict.ACCEPTED
        assert (counts(world), world.store.claim.calls) == ((1, 0, 0), 1)

    def test_it_may_refuse_for_good(self, world: World) -> None:
        """RejectNow is handler_failed at the first attempt, with the handler's own detail."""
        world.handler.failure = RejectNow("no such order")
        outcome = world.process(world.sealed())
        assert_rejected(outcome, Reason.HANDLER_FAILED)
        assert (outcome.detail, world.handler.calls, len(world.memory)) == (
            "no such order",
            1,
            0,
        )

    def test_what_ends_the_process_leaves_the_claim_held(self, world: World) -> None:
        """A killed handler is neither confirmed nor released: its lease runs out, and no letter is written."""
        world.handler.failure = KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt):
            world.process(world.sealed())
        assert len(world.memory) == 1
        assert counts(world) == (0, 0, 0)

    def test_it_sees_the_same_verified_message_each_time(self, world: World) -> None:
        """One that fails twice of three times has succeeded; it gets one object, and nothing is judged anew."""
        seen: list[int] = []

        def handler(verified: Any) -> None:
            seen.append(id(verified))
            if len(seen) < 3:
                raise ValueError

        world.handler.function = handler
        assert world.process(world.sealed()).verdict is Verdict.ACCEPTED
        assert len(seen) == 3
        assert len(set(seen)) == 1


class TestByHand:
    """judge, confirm, release, bury and renew, for those who settle themselves."""

    def judge(self, world: World, message: Message) -> tuple[Delivery, Outcome]:
        """Receive and judge a message."""
        delivery = world.receive(message)
        return delivery, world.run(world.pipeline.judge(delivery))

    def test_judge_and_confirm(self, world: World) -> None:
        """An accepted message is claimed by judge and done by confirm; both may be called again."""
        message = world.sealed()
        delivery, outcome = self.judge(world, message)
        assert outcome.verdict is Verdict.ACCEPTED
        assert world.run(world.pipeline.judge(delivery)).verdict is Verdict.ACCEPTED
        world.store.confirm.failure = DOWN
        assert_deferred(
            world.run(world.pipeline.confirm(delivery)), Cause.REPLAY_STORE_UNAVAILABLE
        )
        world.store.confirm.failure = None
        for _ in range(2):
            assert world.run(world.pipeline.confirm(delivery)).verdict is Verdict.ACCEPTED
        assert (world.store.claim.calls, world.store.confirm.calls) == (1, 2)
        assert_rejected(world.process(message), Reason.REPLAYED)

    def test_judge_and_release(self, world: World) -> None:
        """A released message may be judged again, by this delivery or another; release is retried."""
        message = world.sealed()
        delivery, _ = self.judge(world, message)
        world.store.release.failure = DOWN
        assert_deferred(
            world.run(world.pipeline.release(delivery)), Cause.REPLAY_STORE_UNAVAILABLE
        )
        world.store.release.failure = None
        for _ in range(2):
            assert_deferred(
                world.run(world.pipeline.release(delivery)), Cause.HANDLER_DEFERRED
            )
        assert world.store.release.calls == 2
        assert world.process(message).verdict is Verdict.ACCEPTED

    def test_judge_and_bury(self, world: World, rabbit: Maker) -> None:
        """A rejected message is audited and dead-lettered by bury alone, once."""
        delivery, outcome = self.judge(world, rabbit())
        assert (outcome.verdict, outcome.reason) == (
            Verdict.REJECTED,
            Reason.TOKEN_MISSING,
        )
        assert counts(world) == (0, 0, 0)
        world.letters.publish.failure = DOWN
        assert_deferred(
            world.run(world.pipeline.bury(delivery, world.letters)),
            Cause.DEAD_LETTER_UNAVAILABLE,
        )
        world.letters.publish.failure = None
        for _ in range(2):
            assert_rejected(
                world.run(world.pipeline.bury(delivery, world.letters)),
                Reason.TOKEN_MISSING,
            )
        assert counts(world) == (0, 1, 1)

    @pytest.mark.parametrize("deferred", [False, True])
    def test_nothing_ends_without_a_verdict(self, deferred: bool, world: World) -> None:
        """Neither confirm nor bury takes a delivery that was not judged to an end."""
        delivery = world.receive(world.sealed())
        if deferred:
            world.policy.decide.failure = DOWN
            world.run(world.pipeline.judge(delivery))
        for flow in (
            world.pipeline.confirm(delivery),
            world.pipeline.bury(delivery, world.letters),
        ):
            with pytest.raises(ConfigurationError, match="judged"):
                world.run(flow)
        assert (world.store.confirm.calls, counts(world)) == (0, (0, 0, 0))

    def test_release_needs_a_judgement(self, world: World) -> None:
        """What was never judged has no claim to give back; what was deferred stays so."""
        delivery = world.receive(world.sealed())
        with pytest.raises(ConfigurationError, match="judged"):
            world.run(world.pipeline.release(delivery))
        world.policy.decide.failure = DOWN
        world.run(world.pipeline.judge(delivery))
        assert_deferred(
            world.run(world.pipeline.release(delivery)), Cause.HANDLER_DEFERRED
        )

    def test_a_verdict_is_not_ended_as_another(self, world: World, rabbit: Maker) -> None:
        """A rejected delivery cannot be confirmed away, nor an accepted one buried unhandled."""
        rejected, _ = self.judge(world, rabbit())
        accepted, _ = self.judge(world, world.sealed())
        with pytest.raises(ConfigurationError, match="bury"):
            world.run(world.pipeline.confirm(rejected))
        with pytest.raises(ConfigurationError, match="confirm"):
            world.run(world.pipeline.bury(accepted, world.letters))
        assert counts(world) == (0, 0, 0)
        assert_deferred(
            world.run(world.pipeline.release(rejected)), Cause.HANDLER_DEFERRED
        )
        assert_rejected(
            world.run(world.pipeline.bury(rejected, world.letters)), Reason.TOKEN_MISSING
        )

    def test_a_duplicate_ends_either_way(self, world: World, rabbit: Maker) -> None:
        """A duplicate has nothing to confirm or bury and may be settled."""
        message = world.sealed()
        world.process(message)
        again = replace(message, origin=replace(message.origin, redelivered=True))
        delivery, outcome = self.judge(world, again)
        assert outcome.verdict is Verdict.DUPLICATE
        assert world.run(world.pipeline.confirm(delivery)).verdict is Verdict.DUPLICATE
        assert (
            world.run(world.pipeline.bury(delivery, world.letters)).verdict
            is Verdict.DUPLICATE
        )
        assert world.store.confirm.calls == 1

    def test_renew_holds_a_claim_while_its_handler_runs(
        self, world: World, clock: FakeClock
    ) -> None:
        """A renewed lease keeps a redelivery waiting; a claim that is not held, or was lost, is not renewed."""
        message = world.sealed()
        delivery, _ = self.judge(world, message)
        clock.advance(50)
        assert world.run(world.pipeline.renew(delivery)) is True
        clock.advance(50)
        again = world.receive(
            replace(message, origin=replace(message.origin, redelivered=True))
        )
        delivery_again = replace(again, received=delivery.received)
        assert_deferred(world.process(delivery_again), Cause.CLAIM_HELD)
        clock.advance(10)
        assert world.process(delivery_again).verdict is Verdict.ACCEPTED
        assert world.run(world.pipeline.renew(delivery)) is False
        assert world.run(world.pipeline.renew(delivery_again)) is False

    def test_a_lease_that_cannot_be_renewed_stops_no_handler(
        self, world: World, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A store out of reach is logged, and the handler goes on."""
        delivery, _ = self.judge(world, world.sealed())
        world.store.claim.failure = DOWN
        with caplog.at_level(logging.WARNING):
            assert world.run(world.pipeline.renew(delivery)) is True
        assert "lease" in caplog.text


class TestObservers:
    """Metrics see every outcome and change none."""

    def test_an_observer_that_fails_is_logged(
        self, make_world: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A broken metric loses no message and stops no other observer."""
        seen: list[Outcome] = []

        def broken(outcome: Outcome, message: Message, seconds: float) -> None:
            raise ValueError

        world = make_world(
            observers=[broken, lambda outcome, message, seconds: seen.append(outcome)]
        )
        assert world.process(world.sealed()).verdict is Verdict.ACCEPTED
        assert len(seen) == 1
        assert "observer" in caplog.text


class TestSettings:
    """What a pipeline refuses to be."""

    @pytest.mark.parametrize(
        "settings",
        [{"record": "some"}, {"reread": "skip"}, {"lease": 0}, {"lease": -1}],
        ids=repr,
    )
    def test_unknown_settings_are_refused(
        self, settings: dict[str, Any], make_world: Any
    ) -> None:
        """No silent option."""
        with pytest.raises(ConfigurationError):
            make_world(**settings)

    def test_a_pipeline_names_itself_in_its_records(
        self, make_world: Any, rabbit: Maker
    ) -> None:
        """By a random name unless told."""
        world = make_world(instance=None, randomness=lambda size: b"\0" * size)
        world.process(rabbit())
        assert world.records[0]["instance"] == "AAAAAAAA"


def test_a_change_of_keys_is_passed_on(
    make_world: Callable[..., World], forge: Forge
) -> None:
    """The callback runs once for each change of an issuer that tells of changes, and not after its end."""
    listeners: list[Callable[[KeySet], None]] = []

    class Telling(KeySet):
        def subscribe(self, listener: Callable[[KeySet], None]) -> Callable[[], None]:
            listeners.append(listener)
            return lambda: listeners.remove(listener)

    calls: list[str] = []
    issuers = {
        ISSUER: Issuer(keys=Telling([])),
        "https://two.example": Issuer(keys=forge.keys),
    }
    pipeline = make_world(verifier=forge.verifier(keys=issuers)).pipeline
    end = pipeline.on_change(lambda: calls.append("changed"))
    for listener in listeners:
        listener(forge.keys)
    assert calls == ["changed"]
    end()
    assert listeners == []
