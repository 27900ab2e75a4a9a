"""``mqauth demo --identity``: an authority, producers, a consumer and attackers in memory; one is cut off.

Each case is looked up afterwards, as in the demo of the direct form: what the handler saw, what was dead-lettered,
what the authority answered. Nothing in the table is written by hand.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from mqauth import AuditFile, Key, Message, Reason, Signer, TrustDomain, Unavailable, Verifier
from mqauth.audit.chain import verify_chain
from mqauth.cli.app import answer
from mqauth.cli.demo_cases import ACCEPTED, CASE, Case, audit_file, consumed, named
from mqauth.cli.tables import table_lines
from mqauth.errors import MqauthError
from mqauth.judging.policy import Allow, Rule
from mqauth.keystore.identity.credentials import Asking, Credential
from mqauth.keystore.identity.request import Refused
from mqauth.testing.authority import MemoryAuthority
from mqauth.testing.clock import RunningClock
from mqauth.testing.forge import AUDIENCE, Forge
from mqauth.testing.identity import OTHER_WORKLOAD, TRUST_DOMAIN, WORKLOAD, IdentityForge, WITSigner
from mqauth.testing.stage import MemoryStage
from mqauth.testing.token_attacks import honest_message
from mqauth.wire import envelope
from mqauth.wire.workload import WorkloadKey

RETURNS: Final = f"{TRUST_DOMAIN}/shop/returns-api"
_PRODUCERS: Final = {"orders-api": WORKLOAD, "returns-api": RETURNS, "stock-api": OTHER_WORKLOAD}
_WATCHED: Final = 61.0
"""Seconds after which a producer has seen what its authority publishes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One line of the report.

    Args:
        case: its name.
        verdict: what became of it.
        reason: of a rejection or a refusal.
        expected: the reason that it must have, ``accepted`` where it is honest.
        story: what it is.
    """

    case: str
    verdict: str
    reason: str
    expected: str
    story: str

    @property
    def as_expected(self) -> bool:
        """Whether it ended as it must."""
        return self.expected == (self.verdict if self.verdict == ACCEPTED else self.reason)


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
        self.signers = {name: self._signer(name) for name in _PRODUCERS}

    def verifier(self) -> Verifier:
        """Return the consumer's verifier: it knows the authority, and none of the producers."""
        return Verifier(keys={TRUST_DOMAIN: TrustDomain(keys=self.authority)}, audience=AUDIENCE)

    def policy(self, place: str) -> Allow:
        """Return who may publish to a destination: two of the three."""
        return Allow(
            [Rule(subject=who, destinations=(place,), issuer=TRUST_DOMAIN) for who in (WORKLOAD, RETURNS)]
        )

    def _signer(self, name: str) -> Signer:
        return Signer(key=self.keys[name], issuer=TRUST_DOMAIN, subject=_PRODUCERS[name], audience=AUDIENCE)


def play(kept: Path | None, *, as_json: bool, messages: int) -> int:
    """Run the demo, print the report, and return the exit code."""
    with tempfile.TemporaryDirectory() as name:
        with audit_file(kept, Path(name)) as audit:
            world = World(Path(name) / "authority-keys", audit)
            stolen = world.keys["orders-api"].signing_key()
            shown = [*_consumed(world, _before(world, messages)), *_asked(world, _strangers(world))]
            world.authority.cut_off("orders-api", "its host was stolen")
            world.clock.advance(_WATCHED)
            shown += [*_consumed(world, _after(world, stolen)), *_asked(world, _again(world)), _silent(world)]
        intact = verify_chain(audit.path).intact
    answer(as_json, _report(shown, intact), *_lines(shown, intact))
    return 0 if intact and all(one.as_expected for one in shown) else 1


def _consumed(world: World, cases: list[Case]) -> Iterator[Shown]:
    """Publish cases, consume them, and yield what became of each."""
    with closing(MemoryStage()) as stage:
        for case in cases:
            stage.inject(case.message)
        for one in consumed(stage, world, world.audit, cases, True):
            yield Shown(
                case=one.case.name, verdict=one.verdict, reason=one.reason or "", expected=one.case.expected,
                story=one.case.story,
            )  # fmt: skip


def _message(case: str, number: int = 0) -> Message:
    return named(honest_message("kafka:orders", number), case)


def _before(world: World, messages: int) -> list[Case]:
    """Return honest messages, and those of attackers who can read and write the topic."""
    orders = world.signers["orders-api"]
    honest = [
        Case(name=name, story="an honest order, by an identity of an hour", expected=ACCEPTED,
             message=orders.sign(_message(name, number)))
        for number, name in enumerate(f"honest-{number}" for number in range(messages))
    ]  # fmt: skip
    returned = world.signers["returns-api"].sign(_message("returns"))
    attacks = [
        Case(name=name, story=story, expected=reason.value, message=message)
        for name, reason, story, message in _attacks(world)
    ]
    story = "a copy of honest-0, published again"
    replay = Case(name="replay", story=story, expected=Reason.REPLAYED.value, message=honest[0].message)
    return [
        *honest, Case(name="returns", story="an honest return", expected=ACCEPTED, message=returned), *attacks,
        replay,
    ]  # fmt: skip


def _attacks(world: World) -> Iterator[tuple[str, Reason, str, Message]]:
    orders, thief = world.signers["orders-api"], IdentityForge()
    wit, _, proof = _token(orders.sign(_message("seen"))).partition("~")
    other = _token(world.signers["stock-api"].sign(_message("seen"))).partition("~")[0]
    kid = world.authority.key_set().keys[0].kid
    posing = WITSigner(replace(Key.generate(), kid=kid))
    evil = f"{TRUST_DOMAIN.replace('prod', 'evil')}/shop/orders-api"
    made = {
        "identity-alone": (Reason.TOKEN_TYPE, "an identity read from the topic, without a proof", wit),
        "wrong-pair": (Reason.IDENTITY_MISMATCH, "a proof behind another workload's identity", f"{other}~{proof}"),
    }
    for name, (reason, story, token) in made.items():
        yield name, reason, story, _with(_message(name), token)
    for name, reason, story, shown in (
        ("no-key", Reason.SIGNATURE_INVALID, "an identity read from the topic, a proof by another key", wit),
        ("self-made", Reason.SIGNATURE_INVALID, "an identity that the thief signed, under the authority's kid",
         posing.wit(WORKLOAD, thief.key)),
        ("unknown-authority", Reason.KEY_UNKNOWN, "an identity by an authority that nobody knows", thief.wit()),
        ("other-domain", Reason.ISSUER_UNTRUSTED, "an identity of a domain that the thief has",
         thief.authority.wit(evil, thief.key)),
    ):  # fmt: skip
        message = _message(name)
        yield name, reason, story, _with(message, f"{shown}~{thief.proof(message, wit=shown)}")
    direct = Forge(issuer=TRUST_DOMAIN, subject=WORKLOAD, audience=AUDIENCE).signer().sign(_message("direct"))
    yield "direct", Reason.ISSUER_UNTRUSTED, "a token of the direct form, by a key of the thief", direct
    yield (
        "not-allowed", Reason.PRODUCER_FORBIDDEN, "a workload with an identity, and no right to publish here",
        world.signers["stock-api"].sign(_message("not-allowed")),
    )  # fmt: skip
    changed = replace(orders.sign(_message("changed")), body=b'{"order": 666}')
    yield "changed", Reason.BODY_MISMATCH, "the body is another one", changed
    yield "unsigned", Reason.TOKEN_MISSING, "no token", _message("unsigned")


def _strangers(world: World) -> list[tuple[str, str, str, str, Credential]]:
    """Return those who ask the authority: case, error, story, subject and credential."""
    wit = _token(world.signers["orders-api"].sign(_message("seen"))).partition("~")[0]
    return [
        ("ask-for-another", "access_denied", "stock-api asks for the identity of orders-api", WORKLOAD,
         world.authority.credential("stock-api")),
        ("ask-as-another", "invalid_client", "a credential of orders-api, signed by another key", WORKLOAD,
         world.authority.credential("orders-api", Key.generate())),
        ("ask-with-wit", "invalid_client", "an identity from the topic, shown as a credential", WORKLOAD,
         lambda _: ("Bearer", wit)),
        ("ask-elsewhere", "invalid_client", "a credential that was made for another authority", WORKLOAD,
         lambda asking: world.authority.credential("orders-api")(_for_another(asking))),
    ]  # fmt: skip


def _for_another(asking: Asking) -> Asking:
    return asking._replace(authority="https://authority.evil.example")


def _after(world: World, stolen: WorkloadKey) -> list[Case]:
    """Return the messages after the cut-off: of the thief, and of a producer that is not concerned."""
    thief = Signer(key=_Stolen(stolen), issuer=TRUST_DOMAIN, subject=WORKLOAD, audience=AUDIENCE)
    return [
        Case(name="stolen", story="a thief signs with the stolen key and its identity",
             expected=Reason.KEY_REVOKED.value, message=thief.sign(_message("stolen"))),
        Case(name="returns-after", story="an honest return, after another was cut off", expected=ACCEPTED,
             message=world.signers["returns-api"].sign(_message("returns-after"))),
    ]  # fmt: skip


def _again(world: World) -> list[tuple[str, str, str, str, Credential]]:
    """Return the thief who asks for the next identity with what was stolen."""
    return [
        ("ask-again", "access_denied", "the thief asks for the next identity with the stolen credential", WORKLOAD,
         world.authority.credential("orders-api")),
    ]  # fmt: skip


def _asked(world: World, askers: list[tuple[str, str, str, str, Credential]]) -> Iterator[Shown]:
    """Ask the authority, and yield what it answered."""
    for case, expected, story, subject, credential in askers:
        try:
            world.authority.request(subject, credential)()
            verdict, reason = "issued", ""
        except Refused as refused:
            verdict, reason = "refused", str(refused).rpartition(" ")[2]
        except MqauthError as error:
            verdict, reason = "failed", error.code
        yield Shown(case=case, verdict=verdict, reason=reason, expected=expected, story=story)


def _silent(world: World) -> Shown:
    """Return what becomes of a message that the cut-off producer itself wants to send."""
    world.keys["orders-api"].start(0)
    try:
        world.signers["orders-api"].sign(_message("cut-off"))
        verdict, reason = "sent", ""
    except Unavailable as error:
        verdict, reason = "not sent", error.cause.value
    story = "the producer that was cut off has seen it, and sends nothing"
    return Shown(case="cut-off", verdict=verdict, reason=reason, expected="keys_unavailable", story=story)


class _Stolen:
    """A source with the one key that somebody copied."""

    is_identity = True

    def __init__(self, key: WorkloadKey) -> None:
        self._key = key

    def signing_key(self) -> WorkloadKey:
        return self._key


def _token(message: Message) -> str:
    found = message.headers[-1][1]
    return found.decode("ascii") if isinstance(found, bytes) else str(found)


def _with(message: Message, token: str) -> Message:
    return replace(message, headers=envelope.attach(message, token))


def _report(shown: list[Shown], intact: bool) -> dict[str, Any]:
    return {
        "broker": "memory",
        "cases": [
            {"case": one.case, "expected": one.expected, "verdict": one.verdict, "reason": one.reason or None}
            for one in shown
        ],
        "audit_chain": "intact" if intact else "broken",
    }


def _lines(shown: list[Shown], intact: bool) -> Iterator[str]:
    cells = ((one.case, one.verdict, one.reason, "yes" if one.as_expected else "NO", one.story) for one in shown)
    yield from table_lines("mqauth demo --identity, in memory", CASE, cells)
    attacks = [one for one in shown if one.expected != ACCEPTED]
    yield (
        f"{len(shown) - len(attacks)} honest messages handled, "
        f"{sum(one.as_expected for one in attacks)} of {len(attacks)} attacks refused; "
        f"audit chain {'intact' if intact else 'BROKEN'}."
    )
