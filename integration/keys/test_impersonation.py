"""A producer's key does not speak for its neighbour of the same issuer, on either broker."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from integration.keys.issuer import IssuerProcess
from integration.keys.lanes import KafkaLane, Lane, RabbitMQLane
from integration.keys.scene import until
from mqauth import JWKS, Allow, AuditFile, MemoryReplayStore, Pipeline, Signer, Verified, Verifier
from mqauth.keystore import Keystore, signing_key
from mqauth.testing.forge import AUDIENCE, ISSUER


@pytest.fixture(params=["rabbitmq", "kafka"])
def lane(request: pytest.FixtureRequest) -> Iterator[Lane]:
    """A lane on each broker."""
    url = request.getfixturevalue(request.param).url
    found: Lane = RabbitMQLane(url) if request.param == "rabbitmq" else KafkaLane(url)
    yield found
    found.close()


def signer(folder: Path, subject: str) -> Signer:
    """Return a signer with a folder's key that says it is somebody, whatever the key's subjects."""
    key = replace(signing_key(folder), subjects=None)
    return Signer(key=key, issuer=ISSUER, subject=subject, audience=AUDIENCE, lifetime=600)


def test_key_of_one_producer_signing_as_another_is_refused(lane: Lane, tmp_path: Path) -> None:
    """Two producers share an issuer and may both publish; each is handled as itself and refused as the other."""
    folders = {name: tmp_path / name for name in ("orders-api", "stock-api")}
    for name, folder in folders.items():
        Keystore(folder=folder).create(subjects=[name])
    handled: list[tuple[str, bytes | None]] = []

    def handler(verified: Verified) -> None:
        handled.append((verified.subject, verified.body))

    with (
        IssuerProcess(list(folders.values())) as issuer,
        JWKS(issuer.url, unsafe_http_loopback=True) as keys,
        AuditFile(tmp_path / "audit.jsonl", fsync=False) as audit,
    ):
        guard = Pipeline(
            verifier=Verifier(keys={ISSUER: keys}, audience=AUDIENCE),
            policy=Allow({name: [lane.destination] for name in folders}), replay=MemoryReplayStore(), audit=audit,
        )  # fmt: skip
        with lane.consuming(guard, handler):
            for name, folder in folders.items():
                for subject in folders:
                    lane.send(signer(folder, subject), [f"{name} as {subject}".encode()])
            until(lambda: len(handled) == 2 and len(lane.letters()) == 2)
    assert sorted(handled) == [
        ("orders-api", b"orders-api as orders-api"),
        ("stock-api", b"stock-api as stock-api"),
    ]
    letters = {letter.body: letter.occurrences("mqauth-dead-reason")[0] for letter in lane.letters()}
    expected: object = "subject_mismatch" if lane.name == "rabbitmq" else b"subject_mismatch"
    assert letters == {b"orders-api as stock-api": expected, b"stock-api as orders-api": expected}
