"""The identity form: a WIT and a proof in one header, signed, judged, remembered and cut off."""

from __future__ import annotations

import pytest

from mqauth.errors import Reason
from mqauth.flow import run
from mqauth.judging.pipeline import Outcome, Pipeline
from mqauth.judging.unverified import Verdict
from mqauth.replay.memory import MemoryReplayStore
from mqauth.testing import FakeClock
from mqauth.testing.identity import TRUST_DOMAIN, WORKLOAD, BatchIdentityForge, IdentityForge
from mqauth.testing.token_attacks import honest_message
from mqauth.wire.message import Message

PLACES = ("kafka:orders", "rabbitmq:shop/orders.created")
FORMS = {"single": IdentityForge, "batch": BatchIdentityForge}


def pipeline(forge: IdentityForge, clock: FakeClock, **settings: object) -> Pipeline:
    """Return a pipeline of the honest workload's consumer."""
    return Pipeline(
        verifier=forge.verifier(**settings), policy=forge.policy(*PLACES), replay=MemoryReplayStore(clock=clock),
        scope="billing", clock=clock,
    )  # fmt: skip


def judged(pipe: Pipeline, message: Message) -> Outcome:
    """Return what a message comes to."""
    delivery = pipe.receive(message)
    return run(pipe.judge(delivery))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("algorithm", ["EdDSA", "ES256", "ES384"])
def test_a_signed_message_is_verified_with_its_identity(form: str, place: str, algorithm: str) -> None:
    """What a producer with an IdentityKey signs is accepted, and shows whose it is."""
    clock = FakeClock(1_900_000_000)
    forge = FORMS[form](clock, algorithm=algorithm)
    outcome = judged(pipeline(forge, clock), forge.signer().sign(honest_message(place)))
    assert outcome.verdict is Verdict.ACCEPTED, outcome
    assert outcome.verified is not None
    assert outcome.verified.identity is not None
    assert (outcome.verified.issuer, outcome.verified.subject) == (TRUST_DOMAIN, WORKLOAD)
    assert outcome.verified.identity.expires == 1_900_003_600
    assert outcome.verified.kid == forge.authority.key.kid


@pytest.mark.parametrize("form", FORMS)
def test_a_forged_token_is_as_a_signed_one(form: str) -> None:
    """The forge's honest token is accepted."""
    clock = FakeClock(1_900_000_000)
    forge = FORMS[form](clock)
    outcome = judged(pipeline(forge, clock), forge.seal(honest_message(PLACES[0])))
    assert outcome.verdict is Verdict.ACCEPTED, outcome


def test_what_is_remembered_is_bounded() -> None:
    """The oldest of the WITs goes, forged ones are not remembered, and one that is known costs no signature."""
    clock = FakeClock(1_900_000_000)
    forge = IdentityForge(clock)
    pipe = pipeline(forge, clock, identities=2)
    known = pipe.verifier.identities
    assert known is not None
    for number in range(200):
        forged = forge.wit(
            key=forge.stranger, header={"kid": forge.authority.key.kid}, claims={"jti": f"{number}"}
        )
        assert judged(pipe, forge.seal(honest_message(PLACES[0]), wit=forged)).reason is Reason.SIGNATURE_INVALID
    assert len(known) == 0
    wits = [forge.wit(claims={"jti": f"{number}"}) for number in range(3)]
    for wit in wits:
        assert judged(pipe, forge.seal(honest_message(PLACES[0]), wit=wit)).verdict is Verdict.ACCEPTED
    assert [text.decode() for text in known.held()] == wits[1:]
