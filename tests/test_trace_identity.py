"""``mqauth audit trace --jkt``: from a message's record to the identity behind it, and to who asked for that."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mqauth.audit.file import AuditFile
from mqauth.audit.record import AuditRecord, token_fields
from mqauth.brokers import memory
from mqauth.cli import main
from mqauth.judging.pipeline import Pipeline
from mqauth.judging.policy import Allow, Rule
from mqauth.judging.trust_domain import TrustDomain
from mqauth.judging.verifier import Verifier
from mqauth.keystore.identity.identity_key import WITKey
from mqauth.replay.memory import MemoryReplayStore
from mqauth.signer import Signer
from mqauth.testing import FakeClock
from mqauth.testing.identity import TRUST_DOMAIN, IdentityForge
from mqauth.testing.token_attacks import honest_message
from mqauth.wire.identity import Identity
from tests.authority_world import ACCOUNT, DOMAIN, ORDERS, World

PLACE = "kafka:orders"
CREDENTIAL = {
    "name": "cluster", "verified": True, "kid": "k", "iss": "https://kubernetes.example",
    "sub": "system:serviceaccount:shop:orders-api", "jti": "c-1",
}  # fmt: skip


def asked_for(who: Identity, number: int, verdict: str = "identity_issued") -> AuditRecord:
    """Return the record of an authority that was asked for an identity."""
    said = token_fields(None, who.kid, "EdDSA", None, verified=True, identity=who)
    said["verified"] |= {"iss": TRUST_DOMAIN, "sub": who.subject, "exp": who.expires}
    if verdict == "identity_refused":
        said = {"claimed": {"iss": TRUST_DOMAIN, "sub": who.subject}, "thumbprint": None}
    return AuditRecord(
        id=f"issued-{number}", time=1_900_000_000.0, verdict=verdict, reason=None, detail="for 3600 s",
        scope=TRUST_DOMAIN, broker={}, token=said, body_sha256=None, body_size=None, key_set=None, policy=None,
        dead_letter=None, instance="authority",
        extra={"asked": {"address": "10.0.0.7", "jkt": who.jkt, "credential": CREDENTIAL}},
    )  # fmt: skip


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, list[str]]:
    """Two workloads' messages in a consumer's file, what was asked in the authority's, and both thumbprints."""
    clock, thumbprints = FakeClock(1_900_000_000), list[str]()
    consumer, authority = tmp_path / "consumer.jsonl", tmp_path / "authority.jsonl"
    with AuditFile(authority, fsync=False) as issued, AuditFile(consumer, fsync=False) as seen:
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
    assert main(["audit", "trace", "--jkt", first, "--json", str(consumer), str(authority)]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["verdict"] for one in found] == ["accepted", "identity_issued", "identity_refused"]
    assert found[1]["id"] == "issued-0"
    assert found[0]["token"]["verified"]["identity"] == found[1]["token"]["verified"]["identity"]
    assert found[1]["asked"]["credential"] == CREDENTIAL


def test_a_message_leads_to_the_record_of_a_real_authority(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A workload asks an authority, signs and is accepted: both files have its thumbprint, and one who asked."""
    world, consumer = World(tmp_path), tmp_path / "consumer.jsonl"
    held = WITKey(world.ask().body["wit"], world.key, clock=world.clock)
    signer = Signer(key=held, issuer=DOMAIN, subject=ORDERS, audience="billing", clock=world.clock)
    verifier = Verifier(
        keys={DOMAIN: TrustDomain(keys=world.keystore.public_keys())}, audience="billing"
    )  # fmt: skip
    with AuditFile(consumer, fsync=False) as audit:
        handle(
            verifier,
            Allow([Rule(subject=ORDERS, destinations=(PLACE,), issuer=DOMAIN)]),
            signer,
            audit,
            world.clock,
        )
    (seen,) = map(json.loads, consumer.read_text().splitlines())
    jkt = seen["token"]["verified"]["identity"]["jkt"]
    assert main(["audit", "trace", "--jkt", jkt, "--json", str(consumer), str(world.path)]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["verdict"] for one in found] == ["accepted", "identity_issued"]
    assert found[1]["asked"]["credential"]["sub"] == ACCOUNT
    assert found[0]["token"]["verified"]["identity"]["jti"] == found[1]["token"]["verified"]["identity"]["jti"]


def handle(verifier: Verifier, policy: Allow, signer: Signer, audit: AuditFile, clock: FakeClock) -> None:
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


def test_its_beginning_is_enough_and_people_read_who_it_was(
    files: tuple[Path, Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """A line of the authority names credential, its issuer and the address."""
    consumer, authority, (first, _) = files
    assert main(["audit", "trace", "--jkt", first[:12], str(consumer), str(authority)]) == 0
    out = capsys.readouterr().out
    who = "from 10.0.0.7 by cluster: system:serviceaccount:shop:orders-api"
    assert out.count(who) == 2
    assert "accepted kafka:orders wimse://prod.example/shop/orders-api (wimse://prod.example, kid " in out


def test_what_was_not_verified_is_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A credential that nobody believed is claimed, and a command on the authority's machine has none."""
    forge = IdentityForge(FakeClock(1_900_000_000))
    who = forge.identity()["key"].identity
    refused, issued = asked_for(who, 0, "identity_refused"), asked_for(who, 1)
    path = tmp_path / "authority.jsonl"
    with AuditFile(path, fsync=False) as file:
        for record, credential in ((refused, CREDENTIAL | {"verified": False}), (issued, None)):
            said = {"address": "root", "jkt": who.jkt} | ({} if credential is None else {"credential": credential})
            record.extra["asked"].clear()
            record.extra["asked"].update(said)
            file.write(record)
    assert main(["audit", "trace", "--jkt", who.jkt, str(path)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert "from root by claimed cluster: system:serviceaccount:shop:orders-api" in first
    assert "from root" in second
    assert " by " not in second


def test_nothing_has_an_unknown_thumbprint(
    files: tuple[Path, Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """What is in no record is said, and a trace needs something to look for."""
    consumer, authority, _ = files
    assert main(["audit", "trace", "--jkt", "x" * 43, str(consumer), str(authority)]) in (1, 2)
    assert main(["audit", "trace", str(consumer)]) == 2
    assert "--jkt" in capsys.readouterr().err
