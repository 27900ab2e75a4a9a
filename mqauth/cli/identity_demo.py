"""``mqauth demo --identity``: an authority, producers, a consumer and attackers in memory; one is cut off.

Each case is looked up afterwards, as in the demo of the direct form: what the handler saw, what was dead-lettered,
what the authority answered. Nothing in the table is written by hand.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from mqauth import AuditFile, Key, Message, Reason, Signer, TrustDomain, Unavailable, Verifier
from mqauth.cli.demo import ACCEPTED, Case, consumed, named
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


def play(audit: AuditFile, folder: Path, messages: int) -> list[Case]:
    """Run the demo, and return what became of each case.

    Args:
        audit: of authority and consumer.
        folder: for the authority's keystore.
        messages: how many honest ones there are.
    """
    # Only authority and producers go ahead in time, to see the cut-off.
    clock = RunningClock()
    authority = MemoryAuthority(folder / "authority-keys", audit, _PRODUCERS, clock=clock)
    keys = {name: authority.enrolled(name, subject) for name, subject in _PRODUCERS.items()}
    orders, returns, stock = (
        Signer(key=keys[name], issuer=TRUST_DOMAIN, subject=subject, audience=AUDIENCE)
        for name, subject in _PRODUCERS.items()
    )

    def published(*cases: tuple[str, str, str, Message]) -> list[Case]:
        # Two of the three producers may publish there. The consumer knows the authority, and no producer.
        with closing(MemoryStage()) as stage:
            destinations = (stage.destination,)
            rules = [
                Rule(subject=subject, destinations=destinations, issuer=TRUST_DOMAIN)
                for subject in (WORKLOAD, RETURNS)
            ]
            verifier = Verifier(keys={TRUST_DOMAIN: TrustDomain(keys=authority)}, audience=AUDIENCE)
            made = [
                Case(case=name, expected=expected, story=story, message=message)
                for name, expected, story, message in cases
            ]
            return consumed(stage, verifier, Allow(rules), audit, made, keep=True)

    def asked(name: str, expected: str, story: str, credential: Credential) -> Case:
        case = Case(case=name, expected=expected, story=story, verdict="issued")
        try:
            authority.request(WORKLOAD, credential)()
        except Refused as refused:
            case.verdict, case.reason = "refused", str(refused).rpartition(" ")[2]
        except MqauthError as error:
            case.verdict, case.reason = "failed", error.code
        return case

    # What those have who can read the topic: an identity and a proof of orders-api, an identity of stock-api.
    wit, _, proof = _token(orders.sign(_message("seen"))).partition("~")
    other = _token(stock.sign(_message("seen"))).partition("~")[0]
    first = orders.sign(_message("honest-0"))
    honest = [first, *(orders.sign(_message(f"honest-{number}", number)) for number in range(1, messages))]
    order = "an honest order, by an identity of an hour"
    results = published(
        *((f"honest-{number}", ACCEPTED, order, message) for number, message in enumerate(honest)),
        ("returns", ACCEPTED, "an honest return", returns.sign(_message("returns"))),
        *_forged(wit, f"{other}~{proof}", authority.key_set().keys[0].kid),
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
        ("replay", Reason.REPLAYED, "a copy of honest-0, published again", first),
    )
    # Those who ask the authority for the identity of orders-api.
    mine, elsewhere = authority.credential("orders-api"), "https://authority.evil.example"
    by_another_key = authority.credential("orders-api", Key.generate())
    results += [
        asked(
            "ask-for-another",
            "access_denied",
            "stock-api asks for the identity of orders-api",
            authority.credential("stock-api"),
        ),
        asked(
            "ask-as-another", "invalid_client", "a credential of orders-api, signed by another key", by_another_key
        ),
        asked(
            "ask-with-wit",
            "invalid_client",
            "an identity from the topic, shown as a credential",
            lambda _: ("Bearer", wit),
        ),
        asked(
            "ask-elsewhere",
            "invalid_client",
            "a credential that was made for another authority",
            lambda asking: mine(asking._replace(authority=elsewhere)),
        ),
    ]
    # One is cut off. A thief signs with what was stolen, and asks for more; who is not concerned goes on.
    stolen = keys["orders-api"].signing_key()
    copied: Any = SimpleNamespace(is_identity=True, signing_key=lambda: stolen)
    thief = Signer(key=copied, issuer=TRUST_DOMAIN, subject=WORKLOAD, audience=AUDIENCE)
    authority.cut_off("orders-api", "its host was stolen")
    clock.advance(_WATCHED)
    signed, by_thief = returns.sign(_message("returns-after")), thief.sign(_message("stolen"))
    results += published(
        ("stolen", Reason.KEY_REVOKED, "a thief signs with the stolen key and its identity", by_thief),
        ("returns-after", ACCEPTED, "an honest return, after another was cut off", signed),
    )
    story = "the thief asks for the next identity with the stolen credential"
    results.append(asked("ask-again", "access_denied", story, mine))
    # What becomes of a message that the cut-off producer itself wants to send.
    keys["orders-api"].start(0)
    story = "the producer that was cut off has seen it, and sends nothing"
    last = Case(case="cut-off", verdict="sent", expected="keys_unavailable", story=story)
    try:
        orders.sign(_message("cut-off"))
    except Unavailable as error:
        last.verdict, last.reason = "not sent", error.cause.value
    return [*results, last]


def _forged(wit: str, wrong_pair: str, kid: str) -> list[tuple[str, str, str, Message]]:
    """Return the messages of a thief who can read and write the topic, each with name, reason and story.

    Args:
        wit: an identity read from the topic.
        wrong_pair: a proof read there, behind another identity.
        kid: of the authority's key.
    """
    thief, posing = IdentityForge(), WITSigner(replace(Key.generate(), kid=kid))
    evil = f"{TRUST_DOMAIN.replace('prod', 'evil')}/shop/orders-api"
    tokens = [
        ("identity-alone", Reason.TOKEN_TYPE, "an identity read from the topic, without a proof", wit),
        ("wrong-pair", Reason.IDENTITY_MISMATCH, "a proof behind another workload's identity", wrong_pair),
    ]
    for name, reason, story, identity in (
        ("no-key", Reason.SIGNATURE_INVALID, "an identity read from the topic, a proof by another key", wit),
        (
            "self-made",
            Reason.SIGNATURE_INVALID,
            "an identity that the thief signed, under the authority's kid",
            posing.wit(WORKLOAD, thief.key),
        ),
        (
            "unknown-authority",
            Reason.KEY_UNKNOWN,
            "an identity by an authority that nobody knows",
            thief.wit(),
        ),
        (
            "other-domain",
            Reason.ISSUER_UNTRUSTED,
            "an identity of a domain that the thief has",
            thief.authority.wit(evil, thief.key),
        ),
    ):
        tokens.append((name, reason, story, f"{identity}~{thief.proof(_message(name), wit=identity)}"))
    direct = Forge(issuer=TRUST_DOMAIN, subject=WORKLOAD, audience=AUDIENCE).signer().sign(_message("direct"))
    return [
        *(
            (name, reason, story, replace(_message(name), headers=envelope.attach(_message(name), token)))
            for name, reason, story, token in tokens
        ),
        ("direct", Reason.ISSUER_UNTRUSTED, "a token of the direct form, by a key of the thief", direct),
    ]


def _message(case: str, number: int = 0) -> Message:
    return named(honest_message("kafka:orders", number), case)


def _token(message: Message) -> str:
    token = message.headers[-1][1]
    return token.decode("ascii") if isinstance(token, bytes) else str(token)
