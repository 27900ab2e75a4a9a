"""``mqauth audit trace --jkt``: from a message's record to the identity behind it, and to who asked for that."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from mqauth import Allow, AuditFile, MemoryReplayStore, Pipeline, Signer, Verifier
from mqauth.audit.record import AuditRecord, token_fields
from mqauth.brokers import memory
from mqauth.cli import main
from mqauth.testing import FakeClock, Forge
from mqauth.testing.identity import TRUST_DOMAIN, IdentityForge
from mqauth.testing.token_attacks import honest_message
from mqauth.wire.identity import Identity
from mqauth.wire.message import TOKEN_HEADER, Message
from tests.conftest import audit_record

PLACE = "kafka:orders"
CREDENTIAL = {
    "name": "cluster", "verified": True, "kid": "k", "iss": "https://kubernetes.example",
    "sub": "system:serviceaccount:shop:orders-api", "jti": "c-1",
}  # fmt: skip


def asked_for(
    who: Identity, number: int, verdict: str = "identity_issued"
) -> AuditRecord:
    """Return the record of an authority that was asked for an identity."""
    said = token_fields(None, who.kid, "EdDSA", None, verified=True, identity=who)
    said["verified"] |= {"iss": TRUST_DOMAIN, "sub": who.subject, "exp": who.expires}
    if verdict == "identity_refused":
        said = {"claimed": {"iss": TRUST_DOMAIN, "sub": who.subject}, "thumbprint": None}
    asked = {"address": "10.0.0.7", "jkt": who.jkt, "credential": CREDENTIAL}
    return audit_record(
        id=f"issued-{number}", verdict=verdict, reason=None, detail="for 3600 s", scope=TRUST_DOMAIN, token=said,
        instance="authority", extra={"asked": asked},
    )  # fmt: skip


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, list[str]]:
    """Two workloads' messages in a consumer's file, what was asked in the authority's, and both thumbprints."""
    clock, thumbprints = FakeClock(1_900_000_000), list[str]()
    consumer, authority = tmp_path / "consumer.jsonl", tmp_path / "authority.jsonl"
    with (
        AuditFile(authority, fsync=False) as issued,
        AuditFile(consumer, fsync=False) as seen,
    ):
        for number in range(2):
            forge = IdentityForge(clock)
            who = forge.identity()["key"].identity
            issued.write(asked_for(who, number))
            issued.write(asked_for(who, number, "identity_refused"))
            thumbprints.append(who.jkt)
            handle(forge.verifier(), forge.policy(PLACE), forge.signer(), seen, clock)
    return consumer, authority, thumbprints


def test_a_thumbprint_leads_from_a_message_to_who_asked(
    files: tuple[Path, Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """The message's record, the identity that was issued and every refusal have it; those of others do not."""
    consumer, authority, (first, _) = files
    assert (
        main(["audit", "trace", "--jkt", first, "--json", str(consumer), str(authority)])
        == 0
    )
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["verdict"] for one in found] == [
        "accepted",
        "identity_issued",
        "identity_refused",
    ]
    assert found[1]["id"] == "issued-0"
    assert (
        found[0]["token"]["verified"]["identity"]
        == found[1]["token"]["verified"]["identity"]
    )
    assert found[1]["asked"]["credential"] == CREDENTIAL


def handle(
    verifier: Verifier, policy: Allow, signer: Signer, audit: AuditFile, clock: FakeClock
) -> None:
    """Send one message, and have it handled and recorded."""
    broker = memory.MemoryBroker()
    for queue in (PLACE, "kafka:dead"):
        broker.declare(queue)
    memory.Producer(broker, signer).publish(honest_message(PLACE))
    pipe = Pipeline(
        verifier=verifier, policy=policy, replay=MemoryReplayStore(clock=clock), audit=audit, record="all",
        clock=clock,
    )  # fmt: skip
    letters = memory.DeadLetters(broker, "kafka:dead")
    memory.Consumer(broker, PLACE, pipe, lambda _: None, dead_letters=letters).drain()


# ``mqauth identity show``: what a token says, in either form, and that it is not verified.


MESSAGE = honest_message("kafka:orders")


def token_of(message: Message) -> str:
    """Return the token in a message's headers."""
    found = dict(message.headers)[TOKEN_HEADER]
    return found.decode() if isinstance(found, bytes) else str(found)


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return what the command prints."""
    capsys.readouterr()
    assert main(("identity", "show", *arguments)) == 0
    return capsys.readouterr().out


def test_a_batch_says_how_many(capsys: pytest.CaptureFixture[str]) -> None:
    """Of a batch the number of its messages is shown."""
    forge = IdentityForge(FakeClock(1_900_000_000))
    sealed = forge.signer().sign_many([MESSAGE, MESSAGE])
    assert json.loads(shown(capsys, token_of(sealed[1]), "--json"))["proof"]["batch"] == 2


def test_a_wit_alone_and_a_direct_token_are_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A WIT without a proof, and a token of the direct form, are shown too."""
    forge = IdentityForge(FakeClock(1_900_000_000))
    assert "proof" not in json.loads(shown(capsys, forge.wit(), "--json"))
    direct = Forge(FakeClock(1_900_000_000))
    found = json.loads(shown(capsys, token_of(direct.signer().sign(MESSAGE)), "--json"))
    assert (found["form"], found["token"]["subject"]) == ("direct", direct.subject)


def test_people_are_told_that_nothing_is_verified(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first line says that nothing is verified; times are readable; standard input is the default."""
    wit = IdentityForge(FakeClock(1_900_000_000)).wit(claims={"env": "prod"})
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(wit.encode() + b"\n")))
    lines = shown(capsys).splitlines()
    assert lines[0] == "nothing of this is verified: anybody may have written it"
    assert "  expires: 2030-03-17 18:46" in lines
    assert "  claims: {'env': 'prod'}" in lines


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        ("nonsense", "token_malformed"),
        ("a.b.c", "token_malformed"),
        ("", "token_malformed"),
    ],
)
def test_what_is_no_token_is_refused(
    capsys: pytest.CaptureFixture[str], token: str, reason: str
) -> None:
    """What no consumer could parse ends with its reason, and the text is not repeated."""
    assert main(("identity", "show", token)) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert "nonsense" not in error


def test_a_terminal_is_safe(capsys: pytest.CaptureFixture[str]) -> None:
    """What an attacker wrote into claims reaches no terminal as it is."""
    out = shown(capsys, IdentityForge(FakeClock()).wit(claims={"env": "\x1b[2J\u202e"}))
    assert "\x1b" not in out
    assert "\u202e" not in out
