"""Keys in the transit engine of a real OpenBao: producers, an authority, faults, rotations, and the page."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from integration.documentation import Reader, blocks, matches
from integration.forked import words
from integration.held_key import (
    MESSAGE,
    MOUNT,
    Fault,
    Held,
    OfAKeystore,
    engine,
    private,
    signs_nothing_through,
)
from integration.services.openbao import OpenBao
from mqauth import Unavailable
from mqauth.keystore import Keystore
from mqauth.testing.signing_contract import accepted
from mqauth.wire import identity, jws
from mqauth.wire.keys import Key, jwk_members, public_members
from tests.authority_world import DOMAIN, MACHINES, ORDERS, URL

PAGE: Final = "docs/how-to/use-openbao-or-vault.md"


@pytest.fixture(scope="module", autouse=True)
def _engine(openbao: OpenBao) -> Iterator[None]:
    """A transit engine of these tests."""
    with engine(openbao):
        yield


@pytest.fixture
def held(openbao: OpenBao, tmp_path: Path) -> Held:
    """An Ed25519 key in OpenBao."""
    return Held(openbao, tmp_path)


@pytest.fixture(scope="module", params=["EdDSA", "ES256"])
def adopted(
    openbao: OpenBao,
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Held:
    """A key of each algorithm, adopted."""
    found = Held(openbao, tmp_path_factory.mktemp("held"), request.param)
    found.adopt()
    return found


class TestKeyInOpenBao(OfAKeystore):
    """The contract, by TLS, on a key that OpenBao holds and a keystore names."""


# What a producer meets, and what mends it; each gives what the error must say.


def revoke(held: Held) -> None:
    """Revoke the token."""
    held.openbao.tell("POST", "auth/token/revoke", {"token": held.token.read_text()})


def renew(held: Held) -> None:
    """Write a new token into the file, as an agent does."""
    private(held.token, held.openbao.token(held.policy))


def forbid(held: Held) -> None:
    """Give a token that may read the key, and not sign with it."""
    held.token.write_text(
        held.openbao.token(
            f'path "{MOUNT}/keys/{held.name}" {{ capabilities = ["read"] }}'
        )
    )


FAULTS: Final = {
    "killed": Fault(
        lambda held: held.openbao.kill(),
        lambda held: held.openbao.start(),
        "out of reach",
    ),
    "paused": Fault(
        lambda held: held.openbao.pause(),
        lambda held: held.openbao.resume(),
        "no whole answer within 2 s",
    ),
    "sealed": Fault(
        lambda held: held.openbao.seal(),
        lambda held: held.openbao.unseal(),
        "status 503: sealed",
    ),
    "revoked": Fault(revoke, renew, "status 403: the token has ended or was revoked"),
    "forbidden": Fault(forbid, renew, "status 403: .*its policy does not allow it"),
}


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "paused" else ())
        for name in FAULTS
    ],
)
def test_a_producer_through_a_fault(
    fault: str, held: Held, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is signed meanwhile, the error names the host and no token, and the signer goes on afterwards."""
    caplog.set_level(logging.DEBUG)
    secret = held.token.read_text()
    told = signs_nothing_through(FAULTS[fault], held)
    assert held.openbao.secure in told
    assert secret not in told + caplog.text


def test_a_rotation_there_changes_nothing_until_it_is_adopted(
    openbao: OpenBao, tmp_path: Path
) -> None:
    """The pinned version of a P-384 key signs on after a rotation; the new one is adopted, and then signs."""
    held = Held(openbao, tmp_path, "ES384")
    public = held.adopt()
    held.openbao.tell("POST", f"{MOUNT}/keys/{held.name}/rotate")
    assert accepted(held.signer().sign(MESSAGE), public) == public.kid
    second = held.adopt(held.uri(version=2))
    assert second.kid != public.kid
    assert accepted(held.signer().sign(MESSAGE), second) == second.kid


def test_a_server_whose_certificate_is_not_trusted_is_out_of_reach(held: Held) -> None:
    """Without a CA of its own the system's are asked, and they do not know it; nothing is adopted."""
    uri = held.uri().partition("&ca=")[0]
    with pytest.raises(Unavailable, match="its certificate is not trusted"):
        held.adopt(uri)
    assert not held.store.folder.exists()


@pytest.mark.slow
def test_the_page_does_what_it_says(
    openbao: OpenBao, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each command of the how-to page runs on OpenBao, in order, and the last one cuts the producer off."""
    monkeypatch.setenv("PATH", str(openbao.program.parent), prepend=os.pathsep)
    for name, value in (
        ("ADDR", openbao.secure),
        ("CACERT", str(openbao.ca)),
        ("TOKEN", openbao.root),
    ):
        monkeypatch.setenv(f"BAO_{name}", value)
    etc = tmp_path / "etc"
    etc.mkdir()
    shutil.copy(openbao.ca, etc / "ca.pem")
    reader = Reader(
        tmp_path, {"https://bao.example:8200": openbao.secure, "/etc/mqauth": str(etc)}
    )
    printed, signed = (
        "",
        next(block for block in blocks(PAGE) if block.language == "python"),
    )
    for block in blocks(PAGE):
        if block.mark == "output":
            assert matches(block.text, printed)
        elif block.mark == "openbao":
            printed = reader.run(block)
    with pytest.raises(AssertionError, match="status 403"):
        reader.run(signed)


SETTINGS = f"""\
[authority]
trust_domain = "{DOMAIN}"
url = "{URL}"
keys = "authority-keys"
audit = "authority.jsonl"
[[authority.credentials]]
name = "machines"
issuer = "{MACHINES}"
file = "jwks.json"
[[authority.grants]]
credential = "machines"
match = {{ sub = "orders-api" }}
subject = "{ORDERS}"
"""


def verified(wit: str, public: Key) -> str:
    """Return the subject of a WIT whose signature holds."""
    jws.verify(jws.take_apart(wit.encode(), typ=identity.WIT_TYPE), public)
    return identity.parse_wit(wit.encode()).identity.subject


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of mqauth in a process of its own."""
    line = [*words("mqauth"), *arguments]
    return subprocess.run(
        line, cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.slow
def test_the_command_signs_with_the_adopted_key(openbao: OpenBao, tmp_path: Path) -> None:
    """``keys adopt --overlap`` makes a keystore that ``authority`` takes; with OpenBao sealed it gives no WIT."""
    signing, key = Held(openbao, tmp_path, "ES256"), Key.generate()
    (tmp_path / "mqauth.toml").write_text(SETTINGS)
    (tmp_path / "jwks.json").write_text(
        json.dumps({"keys": [jwk_members(Key.generate())]})
    )
    (tmp_path / "key.json").write_text(
        json.dumps({**public_members(key.public), "alg": key.algorithm})
    )
    adopt = (
        "keys",
        "adopt",
        "--dir",
        "authority-keys",
        "--pinned",
        "--publish-delay",
        "0",
    )
    adopted = command(tmp_path, *adopt, "--overlap", "3600", "--uri", signing.uri())
    assert adopted.returncode == 0, adopted.stderr
    assert command(tmp_path, "keys", "rotate", "--dir", "authority-keys").returncode == 0
    issue = ("authority", "issue", "--sub", ORDERS, "--jwk", "key.json")
    issued = command(tmp_path, *issue)
    assert issued.returncode == 0, issued.stderr
    (public,) = Keystore(folder=tmp_path / "authority-keys").public_keys().keys
    assert verified(issued.stdout.strip(), public) == ORDERS
    openbao.seal()
    refused = command(tmp_path, *issue)
    assert refused.returncode != 0
    assert refused.stdout == ""
    assert "keys_unavailable" in refused.stderr
    assert "status 503: sealed" in refused.stderr
