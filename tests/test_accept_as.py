"""Headers that stand unsigned, and messages that arrive elsewhere than they were signed for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mqauth import Allow, ConfigurationError, Issuer, Reason, Signer, Verdict
from mqauth.judging.rollout import AcceptAs
from mqauth.testing import Forge
from mqauth.testing.batchforge import forge_batch
from mqauth.wire.message import HeaderNames, Message, Origin

MIRROR = AcceptAs(at="kafka:eu.orders", signed_for=("kafka:orders",))
SHOVEL = AcceptAs(at="rabbitmq:/billing", signed_for=("rabbitmq:shop/orders.*",))


def with_header(message: Message, name: str, value: Any = b"x") -> Message:
    """Return a message to which a header was added on the way."""
    return replace(message, headers=(*message.headers, (name, value)))


class TestHeaders:
    """Test 8 of the design's page on rollout."""

    def test_allowed(self, make_world: Any, forge: Forge, kafka: Any) -> None:
        """Names and beginnings of one's own are accepted in any case; others are rejected as before."""
        world = make_world(
            verifier=forge.verifier(
                unsigned_headers="reject", allow_unsigned_headers=["sw8", "x-acme-*"]
            )
        )
        for offset, (name, wanted) in enumerate((
            ("SW8", Verdict.ACCEPTED), ("X-Acme-Trace", Verdict.ACCEPTED), ("x-other", Verdict.REJECTED),
        )):  # fmt: skip
            outcome = world.process(with_header(world.sealed(kafka(offset)), name))
            assert outcome.verdict is wanted
            assert outcome.verified is None or name not in dict(outcome.verified.headers)

    def test_producer_leaves_them(self, forge: Forge, kafka: Any) -> None:
        """A producer signs none of those it is told, alone and in batches; what it is told to cover it covers."""
        common: dict[str, Any] = {
            "key": Forge().key, "issuer": "https://auth.example", "subject": "orders-api", "audience": "billing",
        }  # fmt: skip
        message = with_header(with_header(kafka(), "SW8"), "x-acme-a")
        signer = Signer(**common, leave_unsigned=["sw8", "x-acme-*"])
        assert names(signer, message) == ["tag", "tenant"]
        assert names(Signer(**common), message) == ["SW8", "tag", "tenant", "x-acme-a"]
        assert names(
            Signer(**common, cover=["SW8"], leave_unsigned=["sw8"]), message
        ) == ["SW8"]

    @pytest.mark.parametrize(
        "names",
        [
            "x-*",
            "*",
            "x-a*b",
            "",
            "content-type",
            "mqauth-token",
            "mqauth-*",
            "mqau*",
            "cont*",
            "tenant",
            "ten*",
        ],
    )
    def test_refused(self, names: str, forge: Forge) -> None:
        """Short beginnings, protected properties, mqauth's own and required headers are no headers to leave."""
        with pytest.raises(ConfigurationError):
            forge.verifier(require_headers=["tenant"], allow_unsigned_headers=[names])

    def test_a_text_is_no_list(self) -> None:
        """One name in place of a list is refused: it would be its letters."""
        with pytest.raises(ConfigurationError, match="leave_unsigned is a list"):
            HeaderNames("leave_unsigned", "sw8")

    def test_broad(self) -> None:
        """A beginning is broad where it ends within a word."""
        assert HeaderNames("x", ["x-trace-*", "x-trac*", "acme.*", "sw8"]).broad == (
            "x-trac*",
        )


def names(signer: Signer, message: Message) -> list[str]:
    """Return the names that a signer covers in a message, the same alone and in a batch."""
    from mqauth.wire import claims, jws

    alone, batched = (
        signer.sign(message),
        signer.sign_many([message, replace(message, body=b"2")])[0],
    )
    found = []
    for sealed in (alone, batched):
        token = sealed.headers[-1][1]
        assert isinstance(token, bytes)
        found.append(
            sorted(claims.parse(jws.take_apart(token.partition(b"~")[0]).payload).mqa.hdr)
        )
    assert found[0] == found[1]
    return found[0]


class TestAcceptAs:
    """Test 7 of the same page."""

    def mirrored(self, message: Message, offset: int = 7) -> Message:
        """Return a record as a mirror writes it into another topic."""
        return replace(
            message,
            destination="kafka:eu.orders",
            origin=Origin(topic="eu.orders", partition=0, offset=offset),
        )

    def test_mirrored_topic(self, make_world: Any, forge: Forge, kafka: Any) -> None:
        """A mirrored record is accepted as what was signed; its origin says where it arrived, the audit both."""
        world = make_world(verifier=forge.verifier(accept_as=[MIRROR]), record="all")
        outcome = world.process(self.mirrored(world.sealed(kafka())))
        assert outcome.verdict is Verdict.ACCEPTED
        assert (outcome.verified.destination, outcome.verified.origin.topic) == (
            "kafka:orders",
            "eu.orders",
        )
        (record,) = world.records
        assert (record["broker"]["destination"], record["signed_for"]) == (
            "kafka:eu.orders",
            "kafka:orders",
        )

    def test_shoveled_queue(self, make_world: Any, forge: Forge, rabbit: Any) -> None:
        """A queue that a shovel fills is accepted by a pattern; another exchange is not."""
        world = make_world(verifier=forge.verifier(accept_as=[SHOVEL]))
        moved = replace(world.sealed(rabbit()), destination="rabbitmq:/billing")
        assert world.process(moved).verdict is Verdict.ACCEPTED
        other = replace(
            forge.seal(rabbit(destination="rabbitmq:stock/orders.x")),
            destination="rabbitmq:/billing",
        )
        assert world.process(other).reason is Reason.DESTINATION_MISMATCH

    def test_other_pairs(self, make_world: Any, forge: Forge, kafka: Any) -> None:
        """Neither the other way round, nor from elsewhere, nor in two steps."""
        chain = AcceptAs(at="kafka:archive", signed_for=("kafka:eu.orders",))
        world = make_world(verifier=forge.verifier(accept_as=[MIRROR, chain]))
        sealed = world.sealed(kafka())
        for place in ("kafka:archive", "kafka:us.orders"):
            assert (
                world.process(replace(sealed, destination=place)).reason
                is Reason.DESTINATION_MISMATCH
            )
        back = replace(
            forge.seal(kafka(destination="kafka:eu.orders")), destination="kafka:orders"
        )
        assert world.process(back).reason is Reason.DESTINATION_MISMATCH

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
        self,
        rules: list[str],
        reason: Reason | None,
        make_world: Any,
        forge: Forge,
        kafka: Any,
    ) -> None:
        """The policy decides on the signed destination."""
        world = make_world(
            verifier=forge.verifier(accept_as=[MIRROR]),
            policy=Allow({"orders-api": rules}),
        )
        assert world.process(self.mirrored(world.sealed(kafka()))).reason is reason

    def test_batch(self, make_world: Any, forge: Forge, kafka: Any) -> None:
        """A message of a batch is accepted for a destination without wildcards, and no other."""
        made = forge_batch(
            forge, [kafka(number, body=b"%d" % number) for number in range(3)]
        )
        world = make_world(verifier=forge.verifier(accept_as=[MIRROR]))
        assert world.process(self.mirrored(made.seal(1))).verdict is Verdict.ACCEPTED
        elsewhere = replace(made.seal(2), destination="kafka:us.orders")
        assert world.process(elsewhere).reason is Reason.DESTINATION_MISMATCH

    def test_changed_on_the_way(self, make_world: Any, forge: Forge, kafka: Any) -> None:
        """An alias is no pardon: a changed body is a mismatch."""
        world = make_world(verifier=forge.verifier(accept_as=[MIRROR]))
        changed = replace(self.mirrored(world.sealed(kafka())), body=b"evil")
        assert world.process(changed).reason is Reason.BODY_MISMATCH

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


def test_what_is_trusted_is_told_apart() -> None:
    """An alias, a header that needs no signature and a pinned subject each make other settings of a verifier."""
    forge = Forge()
    key = forge.keys
    changed: list[dict[str, Any]] = [
        {}, {"accept_as": [MIRROR]}, {"accept_as": [SHOVEL]}, {"allow_unsigned_headers": ["sw8"]},
        {"keys": {"a": Issuer(keys=key, subjects={"k": frozenset(["one"])})}},
        {"keys": {"a": Issuer(keys=key, subjects={"k": frozenset(["one", "two"])})}},
    ]  # fmt: skip
    settings = [forge.verifier(**each).settings for each in changed]
    assert len(set(settings)) == len(settings)
    assert forge.verifier(accept_as=[MIRROR]).settings == settings[1]
