"""``mqauth demo --identity``: an authority, producers, a consumer and attackers in memory; one is cut off.

Each case is looked up afterwards, as in the demo of the direct form: what the handler saw, what was dead-lettered,
what the authority answered. Nothing in the table is written by hand.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from mqauth import AuditFile, Key, Message, Reason, Signer, TrustDomain, Unavailable, Verifier
from mqauth.cli.demo import ACCEPTED, Case, Result, audit_file, consumed, named, reported
from mqauth.errors import MqauthError
from mqauth.judging.policy import Allow, Rule
from mqauth.keystore.identity.credentials import Credential
from mqauth.keystore.identity.request import Refused
from mqauth.testing.authority import MemoryAuthority
from mqauth.testing.clock import RunningClock
from mqauth.testing.forge import AUDIENCE, Forge
from mqauth.testing.identity import OTHER_WORKLOAD, TRUST_DOMAIN, WORKLOAD, IdentityForge, WITSigner
from mqauth.testing.stage import MemoryStage
from mqauth.testing.token_attacks import honest_message
from mqauth.wire import envelope

RETURNS: Final = f"{TRUST_DOMAIN}/shop/returns-api"
_PRODUCERS: Final = {"orders-api": WORKLOAD, "returns-api": RETURNS, "stock-api": OTHER_WORKLOAD}
_WATCHED: Final = 61.0
"""Seconds after which a producer has seen what its authority publishes."""


class World:
    """An authority, its producers, and a consumer that trusts its domain.

    Args:
        folder: for the authority's keystore.
        audit: of authority and consumer.
    """

    def __init__(self, folder: Path, audit: AuditFile) -> None:
        # Only authority and producers go ahead in time, to see the cut-off.
        self.clock = RunningClock()
        self.audit = audit
        self.authority = MemoryAuthority(folder, audit, _PRODUCERS, clock=self.clock)
        self.keys = {name: self.authority.enrolled(name, subject) for name, subject in _PRODUCERS.items()}
        self.signers = {
            name: Signer(key=self.keys[name], issuer=TRUST_DOMAIN, subject=subject, audience=AUDIENCE)
            for name, subject in _PRODUCERS.items()
        }


def play(kept: Path | None, *, as_json: bool, messages: int) -> int:
    """Run the demo, print the report, and return the exit code."""
    with tempfile.TemporaryDirectory() as name:
        with audit_file(kept, Path(name)) as audit:
            world = World(Path(name) / "authority-keys", audit)
            stolen = world.keys["orders-api"].signing_key()
            results = [*_consumed(world, _before(world, messages)), *_asked(world, _strangers(world))]
            world.authority.cut_off("orders-api", "its host was stolen")
            world.clock.advance(_WATCHED)
            # A thief signs with what was stolen, and asks for more; a producer that is not concerned goes on.
            copied: Any = SimpleNamespace(is_identity=True, signing_key=lambda: stolen)
            thief = Signer(key=copied, issuer=TRUST_DOMAIN, subject=WORKLOAD, audience=AUDIENCE)
            returns = world.signers["returns-api"].sign(_message("returns-after"))
            results += _consumed(
                world,
                [
                    Case(
                        name="stolen",
                        story="a thief signs with the stolen key and its identity",
                        expected=Reason.KEY_REVOKED.value,
                        message=thief.sign(_message("stolen")),
                    ),
                    Case(
                        name="returns-after",
                        story="an honest return, after another was cut off",
                        expected=ACCEPTED,
                        message=returns,
                    ),
                ],
            )
            results += _asked(
                world,
                [
                    (
                        "ask-again",
                        "access_denied",
                        "the thief asks for the next identity with the stolen credential",
                        WORKLOAD,
                        world.authority.credential("orders-api"),
                    ),
                ],
            )
            # What becomes of a message that the cut-off producer itself wants to send.
            world.keys["orders-api"].start(0)
            verdict, reason = "sent", ""
            try:
                world.signers["orders-api"].sign(_message("cut-off"))
            except Unavailable as error:
                verdict, reason = "not sent", error.cause.value
            story = "the producer that was cut off has seen it, and sends nothing"
            results.append(
                Result(case="cut-off", verdict=verdict, reason=reason, expected="keys_unavailable", story=story)
            )
        return reported("memory", results, audit.path, as_json=as_json, end="refused", more=())


def _consumed(world: World, cases: list[Case]) -> list[Result]:
    """Publish cases, consume them, and return what became of each."""
    with closing(MemoryStage()) as stage:
        for case in cases:
            stage.inject(case.message)
        # Two of the three producers may publish there.
        rules = [
            Rule(subject=subject, destinations=(stage.destination,), issuer=TRUST_DOMAIN)
            for subject in (WORKLOAD, RETURNS)
        ]
        # The consumer's verifier knows the authority, and none of the producers.
        verifier = Verifier(keys={TRUST_DOMAIN: TrustDomain(keys=world.authority)}, audience=AUDIENCE)
        return consumed(stage, verifier, Allow(rules), world.audit, cases, keep=True)


def _message(case: str, number: int = 0) -> Message:
    return named(honest_message("kafka:orders", number), case)


def _before(world: World, messages: int) -> list[Case]:
    """Return honest messages, and those of attackers who can read and write the topic."""
    orders, returns, stock = world.signers["orders-api"], world.signers["returns-api"], world.signers["stock-api"]
    cases = [
        Case(
            name=name,
            story="an honest order, by an identity of an hour",
            expected=ACCEPTED,
            message=orders.sign(_message(name, number)),
        )
        for number, name in enumerate(f"honest-{number}" for number in range(messages))
    ]
    cases.append(
        Case(
            name="returns", story="an honest return", expected=ACCEPTED, message=returns.sign(_message("returns"))
        )
    )
    thief = IdentityForge()
    wit, _, proof = _token(orders.sign(_message("seen"))).partition("~")
    other = _token(stock.sign(_message("seen"))).partition("~")[0]
    posing = WITSigner(replace(Key.generate(), kid=world.authority.key_set().keys[0].kid))
    evil = f"{TRUST_DOMAIN.replace('prod', 'evil')}/shop/orders-api"
    direct = Forge(issuer=TRUST_DOMAIN, subject=WORKLOAD, audience=AUDIENCE).signer()
    attacks: list[tuple[str, Reason, str, Message]] = [
        (name, reason, story, replace(_message(name), headers=envelope.attach(_message(name), token)))
        for name, reason, story, token in (
            ("identity-alone", Reason.TOKEN_TYPE, "an identity read from the topic, without a proof", wit),
            (
                "wrong-pair",
                Reason.IDENTITY_MISMATCH,
                "a proof behind another workload's identity",
                f"{other}~{proof}",
            ),
            (
                "no-key",
                Reason.SIGNATURE_INVALID,
                "an identity read from the topic, a proof by another key",
                _paired(thief, "no-key", wit),
            ),
            (
                "self-made",
                Reason.SIGNATURE_INVALID,
                "an identity that the thief signed, under the authority's kid",
                _paired(thief, "self-made", posing.wit(WORKLOAD, thief.key)),
            ),
            (
                "unknown-authority",
                Reason.KEY_UNKNOWN,
                "an identity by an authority that nobody knows",
                _paired(thief, "unknown-authority", thief.wit()),
            ),
            (
                "other-domain",
                Reason.ISSUER_UNTRUSTED,
                "an identity of a domain that the thief has",
                _paired(thief, "other-domain", thief.authority.wit(evil, thief.key)),
            ),
        )
    ]
    attacks += [
        (
            "direct",
            Reason.ISSUER_UNTRUSTED,
            "a token of the direct form, by a key of the thief",
            direct.sign(_message("direct")),
        ),
        (
            "not-allowed",
            Reason.PRODUCER_FORBIDDEN,
            "a workload with an identity, and no right to publish here",
            stock.sign(_message("not-allowed")),
        ),
        (
            "changed",
            Reason.BODY_MISMATCH,
            "the body is another one",
            replace(orders.sign(_message("changed")), body=b'{"order": 666}'),
        ),
        ("unsigned", Reason.TOKEN_MISSING, "no token", _message("unsigned")),
        ("replay", Reason.REPLAYED, "a copy of honest-0, published again", cases[0].message),
    ]
    return [
        *cases,
        *(
            Case(name=name, story=story, expected=reason.value, message=message)
            for name, reason, story, message in attacks
        ),
    ]


def _paired(thief: IdentityForge, case: str, wit: str) -> str:
    """Return an identity with the thief's proof for the message of a case."""
    return f"{wit}~{thief.proof(_message(case), wit=wit)}"


def _strangers(world: World) -> list[tuple[str, str, str, str, Credential]]:
    """Return those who ask the authority: case, error, story, subject and credential."""
    wit = _token(world.signers["orders-api"].sign(_message("seen"))).partition("~")[0]
    elsewhere = "https://authority.evil.example"
    return [
        (
            "ask-for-another",
            "access_denied",
            "stock-api asks for the identity of orders-api",
            WORKLOAD,
            world.authority.credential("stock-api"),
        ),
        (
            "ask-as-another",
            "invalid_client",
            "a credential of orders-api, signed by another key",
            WORKLOAD,
            world.authority.credential("orders-api", Key.generate()),
        ),
        (
            "ask-with-wit",
            "invalid_client",
            "an identity from the topic, shown as a credential",
            WORKLOAD,
            lambda _: ("Bearer", wit),
        ),
        (
            "ask-elsewhere",
            "invalid_client",
            "a credential that was made for another authority",
            WORKLOAD,
            lambda asking: world.authority.credential("orders-api")(asking._replace(authority=elsewhere)),
        ),
    ]


def _asked(world: World, askers: list[tuple[str, str, str, str, Credential]]) -> Iterator[Result]:
    """Ask the authority, and yield what it answered."""
    for case, expected, story, subject, credential in askers:
        verdict, reason = "issued", ""
        try:
            world.authority.request(subject, credential)()
        except Refused as refused:
            verdict, reason = "refused", str(refused).rpartition(" ")[2]
        except MqauthError as error:
            verdict, reason = "failed", error.code
        yield Result(case=case, verdict=verdict, reason=reason, expected=expected, story=story)


def _token(message: Message) -> str:
    token = message.headers[-1][1]
    return token.decode("ascii") if isinstance(token, bytes) else str(token)
