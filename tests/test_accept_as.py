"""Headers that stand unsigned, and messages that arrive elsewhere than they were signed for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mqauth.errors import ConfigurationError, Reason
from mqauth.judging.accept_as import AcceptAs
from mqauth.judging.pipeline import Verdict
from mqauth.judging.policy import Allow
from mqauth.signer import Signer
from mqauth.testing import Forge
from mqauth.testing.batchforge import forge_batch
from mqauth.wire.header_names import HeaderNames
from mqauth.wire.message import Message, Origin

MIRROR = AcceptAs(at="kafka:eu.orders", signed_for=("kafka:orders",))
SHOVEL = AcceptAs(at="rabbitmq:/billing", signed_for=("rabbitmq:shop/orders.*",))


class TestHeaders:
    """Test 8 of the design's page on rollout."""

    @pytest.mark.parametrize(
        "names",
        ["x-*", "*", "x-a*b", "", "content-type", "mqauth-token", "mqauth-*", "mqau*", "cont*", "tenant", "ten*"],
    )
    def test_refused(self, names: str, forge: Forge) -> None:
        """Short beginnings, protected properties, mqauth's own and required headers are no headers to leave."""
        with pytest.raises(ConfigurationError):
            forge.verifier(require_headers=["tenant"], allow_unsigned_headers=[names])

    def test_a_text_is_no_list(self) -> None:
        """One name in place of a list is refused: it would be its letters."""
        with pytest.raises(ConfigurationError, match="leave_unsigned is a list"):
            HeaderNames("leave_unsigned", "sw8")


def names(signer: Signer, message: Message) -> list[str]:
    """Return the names that a signer covers in a message, the same alone and in a batch."""
    from mqauth.wire import claims, jws

    alone, batched = signer.sign(message), signer.sign_many([message, replace(message, body=b"2")])[0]
    found = []
    for sealed in (alone, batched):
        token = sealed.headers[-1][1]
        assert isinstance(token, bytes)
        found.append(sorted(claims.parse(jws.take_apart(token.partition(b"~")[0]).payload).mqa.hdr))
    assert found[0] == found[1]
    return found[0]


class TestAcceptAs:
    """Test 7 of the same page."""

    def mirrored(self, message: Message, offset: int = 7) -> Message:
        """Return a record as a mirror writes it into another topic."""
        return replace(
            message, destination="kafka:eu.orders", origin=Origin(topic="eu.orders", partition=0, offset=offset)
        )

    def test_shoveled_queue(self, make_world: Any, forge: Forge, rabbit: Any) -> None:
        """A queue that a shovel fills is accepted by a pattern; another exchange is not."""
        world = make_world(verifier=forge.verifier(accept_as=[SHOVEL]))
        moved = replace(world.sealed(rabbit()), destination="rabbitmq:/billing")
        assert world.process(moved).verdict is Verdict.ACCEPTED
        other = replace(forge.seal(rabbit(destination="rabbitmq:stock/orders.x")), destination="rabbitmq:/billing")
        assert world.process(other).reason is Reason.DESTINATION_MISMATCH

    def test_once(self, make_world: Any, forge: Forge, kafka: Any) -> None:
        """In one scope the original and its mirrored copy are one message: the second is ``replayed``."""
        world = make_world(verifier=forge.verifier(accept_as=[MIRROR]), scope="billing")
        sealed = world.sealed(kafka(3))
        assert world.process(sealed).verdict is Verdict.ACCEPTED
        assert world.process(self.mirrored(sealed)).reason is Reason.REPLAYED
        assert world.handler.calls == 1

    @pytest.mark.parametrize(
        ("rules", "reason"),
        [(["kafka:orders"], None), (["kafka:eu.orders"], Reason.PRODUCER_FORBIDDEN)],
    )
    def test_policy(
        self, rules: list[str], reason: Reason | None, make_world: Any, forge: Forge, kafka: Any
    ) -> None:
        """The policy decides on the signed destination."""
        world = make_world(verifier=forge.verifier(accept_as=[MIRROR]), policy=Allow({"orders-api": rules}))
        assert world.process(self.mirrored(world.sealed(kafka()))).reason is reason

    def test_batch(self, make_world: Any, forge: Forge, kafka: Any) -> None:
        """A message of a batch is accepted for a destination without wildcards, and no other."""
        made = forge_batch(forge, [kafka(number, body=b"%d" % number) for number in range(3)])
        world = make_world(verifier=forge.verifier(accept_as=[MIRROR]))
        assert world.process(self.mirrored(made.seal(1))).verdict is Verdict.ACCEPTED
        elsewhere = replace(made.seal(2), destination="kafka:us.orders")
        assert world.process(elsewhere).reason is Reason.DESTINATION_MISMATCH

    @pytest.mark.parametrize(
        ("at", "signed_for"),
        [
            ("orders", ("kafka:orders",)),
            ("kafka:orders", ("orders",)),
            ("kafka:orders", ("rabbitmq:shop/orders",)),
            ("kafka:orders", "kafka:orders"),
        ],
    )
    def test_refused(self, at: str, signed_for: Any) -> None:
        """Neither is a destination without its form, nor one of another broker."""
        with pytest.raises(ConfigurationError):
            AcceptAs(at=at, signed_for=signed_for)

    def test_two_of_one_place(self, forge: Forge) -> None:
        """There is one entry for each destination."""
        with pytest.raises(ConfigurationError, match="one entry"):
            forge.verifier(accept_as=[MIRROR, MIRROR])
