"""``mqauth console`` refuses what would open it to others, before it asks any broker."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from integration.keyserver import Authority
from mqauth.cli.app import run
from mqauth.wire.jwk import dump_key_set
from mqauth.wire.keys import Key, KeySet
from tests.test_config import SMALL

NOWHERE = [
    "console",
    "--broker",
    "amqp://127.0.0.1:1/",
    "--queue",
    "orders.dead",
    "--port",
    "0",
]


OIDC = """
issuer = "http://127.0.0.1:1"
client_id = "console"
unsafe_http_loopback = true
[roles]
viewer = ["look"]
"""


def oidc(folder: Path, *lines: str) -> list[str]:
    """Return the options for a provider that is down."""
    path = folder / "oidc.toml"
    path.write_text("\n".join([*lines, OIDC]))
    return ["--oidc", str(path), "--no-tokens"]


def test_provider_that_is_down_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A provider out of reach stops no start: it is asked again at each login."""
    assert run([*NOWHERE, *oidc(tmp_path)]) == 3
    warned, stopped = capsys.readouterr().err.splitlines()
    assert warned.startswith("warning: identity provider: out of reach")
    assert "cannot reach amqp://127.0.0.1:1" in stopped


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])  # noqa: S104
def test_every_address_wants_a_url(
    host: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the console listens on every address, the provider must be told where to send people back to."""
    chain, key = Authority(tmp_path).issue()
    tls = ["--host", host, "--tls-cert", str(chain), "--tls-key", str(key)]
    assert run([*NOWHERE, *tls, *oidc(tmp_path)]) == 2
    assert "url: required" in capsys.readouterr().err


CONSUMER = f"""{SMALL}
[[release.authorities]]
issuer = "https://review.example"
file = "jwks.json"
waive = ["expired"]
"""


def test_key_that_speaks_for_several(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A key for several people wants ``--reviewer`` only where a local token acts under one name."""
    subjects = ["--subject", "ada@example.test", "--subject", "bob@example.test"]
    assert run(["keys", "new", "--dir", str(tmp_path / "keys"), *subjects]) == 0
    (tmp_path / "mqauth.toml").write_text(CONSUMER)
    (tmp_path / "jwks.json").write_text(
        json.dumps(dump_key_set(KeySet([Key.generate(subjects=["orders-api"])])))
    )
    options = [
        *NOWHERE,
        "--config",
        str(tmp_path / "mqauth.toml"),
        "--key",
        str(tmp_path / "keys"),
    ]
    capsys.readouterr()
    assert run([*options, *oidc(tmp_path)[:2]]) == 2
    assert "does not speak for " in capsys.readouterr().err
    assert run([*options, *oidc(tmp_path)]) == 3
    assert "cannot reach amqp://127.0.0.1:1" in capsys.readouterr().err
