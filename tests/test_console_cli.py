"""``mqauth console`` refuses what would open it to others, before it asks any broker."""

from __future__ import annotations

from pathlib import Path

import pytest

from mqauth.cli.app import run

NOWHERE = ["console", "--broker", "amqp://127.0.0.1:1/", "--queue", "orders.dead", "--port", "0"]


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])  # noqa: S104
def test_other_addresses_want_tls(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Without TLS the console listens on loopback only."""
    assert run([*NOWHERE, "--host", host]) == 2
    assert "only with --tls-cert and --tls-key" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tls-cert", "a.pem"], "--tls-cert and --tls-key go together"),
        (["--tls-cert", "none.pem", "--tls-key", "none.pem"], "none.pem"),
        (["--authority", "https://review.example"], "--authority: only with --key"),
        (["--key", "ada.pem"], "--key: wants --config"),
        (["--config", "none.toml"], "none.toml"),
    ],
)
def test_bad_options(options: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Options that do not fit together or name nothing are one line and exit code 2."""
    assert run([*NOWHERE, *options]) == 2
    assert words in capsys.readouterr().err


def test_broker_out_of_reach_makes_no_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the broker cannot be reached nothing is served, and no token file is made."""
    tokens = tmp_path / "tokens"
    assert run([*NOWHERE, "--token-file", str(tokens)]) == 2
    assert "--broker" in capsys.readouterr().err
    assert not tokens.exists()
