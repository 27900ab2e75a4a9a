"""Releases: what a reviewer may let through, for whom, and everything that must not get through with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from mqauth import (
    Cause,
    ConfigurationError,
    MalformedMessage,
    Outcome,
    Reason,
    Rejection,
    Verdict,
)
from mqauth.letters.authorities import Authority, ReleaseAuthorities, Releaser
from mqauth.letters.dead_letter import letter_id
from mqauth.letters.release import (
    MAX_LIFETIME,
    RELEASE_HEADER,
    RELEASE_TYPE,
    WAIVABLE,
    open_release,
)
from mqauth.testing import FakeClock, Forge
from mqauth.testing.forge import ISSUER, with_token
from mqauth.wire import strict_json as strictjson
from mqauth.wire.jws import LocalSigningKey, compact
from mqauth.wire.keys import Key, KeySet
from mqauth.wire.message import Message
from tests.conftest import World, away, kafka_message, rabbitmq_message

REVIEW = "https://review.example"
REVIEWER = "ada"
SCOPE = "orders"


class Desk:
    """A world whose consumer trusts one reviewer, and that reviewer's releaser."""

    def __init__(
        self,
        make_world: Callable[..., World],
        clock: FakeClock,
        forge: Forge,
        **changes: Any,
    ) -> None:
        self.key = Key.generate(subjects=[REVIEWER])
        self.clock, self.forge = clock, forge
        authority = Authority(keys=KeySet([self.key]), waive=frozenset(WAIVABLE))
        release = changes.pop("release", ReleaseAuthorities({REVIEW: authority}))
        self.world = make_world(verifier=forge.verifier(release=release), **changes)
        self.releaser = Releaser(
            key=self.key, issuer=REVIEW, reviewer=REVIEWER, clock=clock
        )

    def released(self, message: Message, *waive: Reason, **changes: Any) -> Message:
        """Return a sealed message with a release."""
        wanted: dict[str, Any] = {
            "letter": letter_id(message, SCOPE),
            "scope": SCOPE,
            "reason": "clock skew",
        }
        return self.releaser.release(message, waive=waive, **(wanted | changes))[0]

    def bent(self, message: Message, **claims_: Any) -> Message:
        """Return a message with a release in which claims were changed before it was signed."""
        good = self.released(message, Reason.EXPIRED)
        found = open_release(good).release.as_dict() | claims_
        token = compact(
            strictjson.dumps(found), LocalSigningKey(self.key), typ=RELEASE_TYPE
        )
        kept = tuple(pair for pair in good.headers if pair[0] != RELEASE_HEADER)
        return with_token(replace(good, headers=kept), token, name=RELEASE_HEADER)

    def process(self, message: Message) -> Outcome:
        """Process one delivery."""
        return self.world.process(message)


@pytest.fixture
def desk(desk_of: Callable[..., Desk]) -> Desk:
    """A desk whose reviewer may waive everything waivable."""
    return desk_of()


@pytest.fixture
def desk_of(
    make_world: Callable[..., World], clock: FakeClock, forge: Forge
) -> Callable[..., Desk]:
    """A maker of desks."""
    return lambda **settings: Desk(make_world, clock, forge, **settings)


@pytest.fixture(params=["rabbitmq", "kafka"])
def late(request: pytest.FixtureRequest, desk: Desk) -> Message:
    """An honest message that has expired."""
    message = rabbitmq_message() if request.param == "rabbitmq" else kafka_message()
    sealed = desk.world.sealed(
        replace(message, origin=replace(message.origin, scope=SCOPE))
    )
    desk.clock.advance(3600)
    return sealed


def why(outcome: Outcome) -> Reason | None:
    """Return the reason of a rejection."""
    assert outcome.verdict is Verdict.REJECTED
    return outcome.reason


# --- what a release does ----------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["authenticate", "verify"])
def test_a_step_that_breaks_condemns_one_released_message_only(
    step: str, desk: Desk, late: Message, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a released message makes a step raise, it is message_malformed and the consumer goes on."""
    released = desk.released(late, Reason.EXPIRED)
    with monkeypatch.context() as patched:
        patched.setattr(desk.world.pipeline.verifier, step, lambda *arguments: {}[1])
        assert why(desk.process(released)) is Reason.MESSAGE_MALFORMED
    assert desk.process(released).verdict is Verdict.ACCEPTED


# --- once, and for one scope ------------------------------------------------------------------------------


def test_a_released_message_is_confirmed_at_once(desk: Desk, late: Message) -> None:
    """Both its claims end before it is settled, also for a caller who confirms the records of a poll together."""
    world, done = desk.world, list[Any]()
    delivery = world.receive(desk.released(late, Reason.EXPIRED))
    outcome = world.run(
        world.pipeline.process(delivery, world.handler, world.letters, None, done)
    )
    assert outcome.verdict is Verdict.ACCEPTED
    assert (done, world.store.confirm.calls) == ([], 2)


@pytest.mark.parametrize(
    ("confirmed", "verdict"), [(False, Verdict.ACCEPTED), (True, Verdict.DUPLICATE)]
)
def test_killed_while_it_is_handled(
    desk: Desk, late: Message, confirmed: bool, verdict: Verdict
) -> None:
    """Before its release is confirmed it is handled twice rather than lost; after that it is a duplicate.

    A claim whose owner died lapses with its lease, and the release is confirmed first.
    """
    released = desk.released(late, Reason.EXPIRED)
    dead = desk.world.receive(released)
    desk.world.run(desk.world.pipeline.judge(dead))
    assert dead.release_claim is not None
    if confirmed:
        desk.world.memory.confirm(dead.release_claim)
    desk.clock.advance(desk.world.pipeline.lease + 1)
    assert desk.process(released).verdict is verdict


def test_both_leases_are_renewed_and_a_lost_one_is_told(
    desk: Desk, late: Message
) -> None:
    """Renewing keeps the release's claim and the message's; one lost to another owner is reported."""
    released = desk.released(late, Reason.EXPIRED)
    delivery = desk.world.receive(released)
    desk.world.run(desk.world.pipeline.judge(delivery))
    for _ in range(3):
        desk.clock.advance(desk.world.pipeline.lease * 0.9)
        assert desk.world.run(desk.world.pipeline.renew(delivery)) is True
        assert (
            desk.world.run(desk.world.pipeline.judge(desk.world.receive(released))).cause
            is Cause.CLAIM_HELD
        )
    assert delivery.release_claim is not None
    desk.world.memory.release(delivery.release_claim)
    assert desk.world.run(desk.world.pipeline.renew(delivery)) is False


def test_a_duplicate_of_another_scope_is_audited_as_claimed(
    desk_of: Callable[..., Desk],
) -> None:
    """Where every verdict is recorded, a message that was not judged has only claims, and names the release."""
    desk = desk_of(record="all")
    assert (
        desk.process(desk.released(desk.world.sealed(), scope="audit")).verdict
        is Verdict.DUPLICATE
    )
    (record,) = desk.world.records
    assert (
        record["verdict"],
        record["release"]["scope"],
        "claimed" in record["token"],
    ) == (
        "duplicate",
        "audit",
        True,
    )


# --- laundering -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "found"),
    [(7, "the header is not of the type"), ("x" * 9000, "over 8192 bytes")],
)
def test_a_refused_release_says_what_was_found(
    desk: Desk, late: Message, value: Any, found: str
) -> None:
    """The detail names what is wrong with the release, and not only the kind of the fault."""
    if isinstance(value, str) and late.destination.startswith("kafka:"):
        value = value.encode()
    outcome = desk.process(
        replace(late, headers=(*late.headers, (RELEASE_HEADER, value)))
    )
    assert found in str(outcome.detail)


def test_an_authority_has_no_issuers_name(forge: Forge) -> None:
    """A consumer whose issuer could release its own dead letters is not built; the message names it."""
    authorities = ReleaseAuthorities({ISSUER: Authority(keys=forge.keys)})
    with pytest.raises(ConfigurationError, match=ISSUER):
        forge.verifier(release=authorities)


# --- the world --------------------------------------------------------------------------------------------


def test_a_kid_that_an_authority_will_never_have(desk_of: Callable[..., Desk]) -> None:
    """Where a look at an authority's keys finds a kid unknown for good, the release is invalid."""
    authority = Authority(
        keys=away(Rejection(Reason.KEY_UNKNOWN)), waive=frozenset(WAIVABLE)
    )
    desk = desk_of(release=ReleaseAuthorities({REVIEW: authority}))
    assert why(desk.process(desk.released(desk.world.sealed()))) is Reason.RELEASE_INVALID


def test_audit_names_the_release(desk_of: Callable[..., Desk]) -> None:
    """An accepted record says who released what, and what was waived; never the release itself."""
    desk = desk_of(record="all")
    sealed = desk.world.sealed()
    assert desk.process(desk.released(sealed, Reason.EXPIRED)).verdict is Verdict.ACCEPTED
    assert desk.process(desk.world.sealed()).verdict is Verdict.ACCEPTED
    first, second = desk.world.records
    assert (first["release"]["sub"], first["release"]["waive"]) == (REVIEWER, ["expired"])
    assert first["release"]["letter"] == letter_id(sealed, SCOPE)
    assert "release" not in second


# --- making them ------------------------------------------------------------------------------------------


def test_a_message_without_a_whole_token_cannot_be_released(desk: Desk) -> None:
    """There is nothing to bind: refused at signing."""
    for message in (rabbitmq_message(), with_token(rabbitmq_message(), "no.to.ken")):
        with pytest.raises(MalformedMessage):
            desk.released(message)


@pytest.mark.parametrize(
    "wrong",
    [
        {"reason": ""},
        {"reason": "a\nb"},
        {"scope": ""},
        {"waive": [Reason.SIGNATURE_INVALID]},
    ],
)
def test_a_release_in_bad_form_is_not_signed(desk: Desk, wrong: dict[str, Any]) -> None:
    """What consumers would refuse is refused at signing."""
    wanted: dict[str, Any] = {"letter": "a" * 64, "scope": SCOPE, "reason": "why"} | wrong
    with pytest.raises(ConfigurationError):
        desk.releaser.release(desk.world.sealed(), **wanted)


@pytest.mark.parametrize(
    "wrong",
    [
        {"lifetime": 0},
        {"lifetime": MAX_LIFETIME + 1},
        {"issuer": ""},
        {"reviewer": "eve"},
        {"reviewer": "\n"},
    ],
)
def test_a_releaser_refuses_contradictions(wrong: dict[str, Any]) -> None:
    """Settings out of their limits, or a key of another reviewer, are refused at once."""
    wanted: dict[str, Any] = {
        "key": Key.generate(subjects=[REVIEWER]),
        "issuer": REVIEW,
        "reviewer": REVIEWER,
    }
    with pytest.raises(ConfigurationError):
        Releaser(**(wanted | wrong))


@pytest.mark.parametrize(
    "wrong", [{"max_lifetime": 0}, {"max_lifetime": MAX_LIFETIME + 1}, {"leeway": 61}]
)
def test_authorities_refuse_contradictions(wrong: dict[str, Any]) -> None:
    """Limits are held, there is at least one authority, and none may waive what is not waivable."""
    with pytest.raises(ConfigurationError):
        ReleaseAuthorities({REVIEW: Authority(keys=KeySet([]))}, **wrong)
    with pytest.raises(ConfigurationError):
        ReleaseAuthorities({})
    with pytest.raises(ConfigurationError):
        Authority(keys=KeySet([]), waive=frozenset([Reason.SIGNATURE_INVALID]))
