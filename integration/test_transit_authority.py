"""An authority whose key is in a real OpenBao: it issues identities, and none while OpenBao is out of reach."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from integration.held_key import Held, engine, private
from integration.services.openbao import OpenBao
from mqauth.keystore import ActiveKey, Keystore
from mqauth.wire import identity, jws
from mqauth.wire.keys import Key, jwk_members, public_members
from tests.authority_world import DOMAIN, MACHINES, ORDERS, URL, World

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


@pytest.fixture(scope="module", autouse=True)
def _engine(openbao: OpenBao) -> Iterator[None]:
    """A transit engine of these tests."""
    with engine(openbao):
        yield


@pytest.fixture(params=["EdDSA", "ES256"])
def held(openbao: OpenBao, tmp_path: Path, request: pytest.FixtureRequest) -> Held:
    """The authority's key, of each algorithm."""
    return Held(openbao, tmp_path, request.param)


@pytest.fixture
def public(held: Held) -> Key:
    """Its public half, once it was adopted."""
    return held.adopt(pinned=True)


@pytest.fixture
def world(held: Held, public: Key, tmp_path: Path) -> World:
    """An authority that signs with it."""
    folder = tmp_path / "world"
    folder.mkdir()
    return World(folder, keys=ActiveKey(held.store.folder))


def verified(wit: str, public: Key) -> str:
    """Return the subject of a WIT whose signature holds."""
    jws.verify(jws.take_apart(wit.encode(), typ=identity.WIT_TYPE), public)
    return identity.parse_wit(wit.encode()).identity.subject


def test_it_issues(world: World, public: Key) -> None:
    """A workload gets a WIT that the authority's public half verifies, and an audit record is there."""
    answered = world.ask()
    assert answered.status == 200
    assert verified(answered.body["wit"], public) == ORDERS
    assert [record["verdict"] for record in world.records()] == ["identity_issued"]


FAULTS: dict[str, tuple[Callable[[Held], None], Callable[[Held], object], str]] = {
    "killed": (lambda held: held.openbao.kill(), lambda held: held.openbao.start(), "out of reach"),
    "sealed": (lambda held: held.openbao.seal(), lambda held: held.openbao.unseal(), "status 503: sealed"),
    "no token": (
        lambda held: held.token.unlink(),
        lambda held: private(held.token, held.openbao.token(held.policy)),
        "No such file",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_it_says_503_while_openbao_is_down(
    fault: str, held: Held, world: World, public: Key, caplog: pytest.LogCaptureFixture
) -> None:
    """503 ``temporarily_unavailable``, and a line in the log that names the host; then it issues again."""
    broken, mended, says = FAULTS[fault]
    broken(held)
    with caplog.at_level(logging.WARNING):
        answered = world.ask()
    assert (answered.status, answered.body) == (503, {"error": "temporarily_unavailable"})
    assert int(answered.headers[b"retry-after"]) > 0
    assert says in caplog.text
    assert held.openbao.secure in caplog.text
    assert [record for record in world.records() if record["verdict"] == "identity_issued"] == []
    mended(held)
    assert verified(world.ask().body["wit"], public) == ORDERS


def command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command of mqauth in a process of its own."""
    entry = "import sys; from mqauth.cli import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", entry, *words], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.slow
def test_the_command_signs_with_the_adopted_key(openbao: OpenBao, tmp_path: Path) -> None:
    """``keys adopt --overlap`` makes a keystore that ``authority`` takes; with OpenBao sealed it gives no WIT."""
    held, key = Held(openbao, tmp_path, "ES256"), Key.generate()
    (tmp_path / "mqauth.toml").write_text(SETTINGS)
    (tmp_path / "jwks.json").write_text(json.dumps({"keys": [jwk_members(Key.generate())]}))
    (tmp_path / "key.json").write_text(json.dumps({**public_members(key.public), "alg": key.algorithm}))
    adopt = ("keys", "adopt", "--dir", "authority-keys", "--pinned", "--publish-delay", "0")
    adopted = command(tmp_path, *adopt, "--overlap", "3600", "--uri", held.uri())
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
