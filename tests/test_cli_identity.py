"""``mqauth identity show``: what a token says, in either form, and that it is not verified."""

from __future__ import annotations

import io
import json
import sys

import pytest

from mqauth.cli import main
from mqauth.testing import FakeClock, Forge
from mqauth.testing.identity import IdentityForge
from mqauth.testing.token_attacks import honest_message
from mqauth.wire.message import TOKEN_HEADER, Message

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


def test_a_wit_alone_and_a_direct_token_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
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
    ("token", "reason"), [("nonsense", "token_malformed"), ("a.b.c", "token_malformed"), ("", "token_malformed")]
)
def test_what_is_no_token_is_refused(capsys: pytest.CaptureFixture[str], token: str, reason: str) -> None:
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
