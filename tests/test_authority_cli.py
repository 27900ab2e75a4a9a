"""``mqauth authority``: what its commands do, print and exit with; and what ``[authority]`` may say."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mqauth import ConfigurationError, load
from mqauth.audit.chain import verify_chain
from mqauth.audit.file import read_heads
from mqauth.authority.issuing import Trace
from mqauth.cli import app
from mqauth.clock import SYSTEM_CLOCK, SYSTEM_RANDOMNESS
from mqauth.keystore import Keystore
from mqauth.keystore.identity.request import enrolment_credential
from mqauth.testing.clock import FakeClock
from mqauth.wire.jwk import dump_key_set
from mqauth.wire.jws import LocalSigningKey
from mqauth.wire.keys import Key, KeySet, public_members

ORDERS = "wimse://prod.example/shop/orders-api"
URL = "https://authority.prod.example"
MACHINES = "https://machines.example"
TOML = f"""
[authority]
trust_domain = "wimse://prod.example"
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
claims = {{ env = "prod" }}
"""
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Key:
    """A machine's key, in a folder with the configuration, the authority's key and the machines' set."""
    monkeypatch.chdir(tmp_path)
    key = Key.generate(subjects=["orders-api"])
    (tmp_path / "mqauth.toml").write_text(TOML)
    (tmp_path / "jwks.json").write_text(json.dumps(dump_key_set(KeySet([key]))))
    Keystore(folder=tmp_path / "authority-keys").create(overlap=3600)
    return key


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], machine: Key) -> Run:
    """A function that runs ``mqauth authority`` and returns exit code, output and errors."""

    def runner(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = app.run(["authority", *arguments])
        return code, *capsys.readouterr()

    return runner


def credential(key: Key, **changes: Any) -> Path:
    """Write a credential of a machine to a file."""
    said: dict[str, Any] = {"issuer": MACHINES, "subject": "orders-api", "authority": URL, "lifetime": 300,
                            "jkt": "t" * 43,
                            "clock": SYSTEM_CLOCK, "randomness": SYSTEM_RANDOMNESS}  # fmt: skip
    path = Path("credential")
    path.write_text(enrolment_credential(LocalSigningKey(key), **(said | changes)) + "\n")
    return path


def test_grants_tells_what_a_credential_gets(run: Run, machine: Key) -> None:
    """The dry run names identity, claims and why, and writes no audit."""
    code, out, _ = run("grants", "--token", str(credential(machine)), "--json")
    assert code == 0
    assert json.loads(out) == {
        "granted": ORDERS, "claims": {"env": "prod"}, "lifetime": None, "credential": "machines", "iss": MACHINES,
        "sub": "orders-api", "verified": True,
    }  # fmt: skip
    assert run("grants", "--token", "credential")[1] == f"{ORDERS}\n  {ORDERS}: matches\n"
    assert not Path("authority.jsonl").exists()


def test_grants_tells_why_a_credential_gets_nothing(run: Run, machine: Key) -> None:
    """The dry run says what is wrong with a credential, or in what it differs from each grant."""
    other = Key.generate(subjects=["stock-api"])
    Path("jwks.json").write_text(json.dumps(dump_key_set(KeySet([machine, other]))))
    tried = [
        credential(other, subject="stock-api").read_text(),
        credential(machine, authority="https://o").read_text(),
    ]
    said = []
    for text in tried:
        Path("credential").write_text(text)
        code, out, _ = run("grants", "--token", "credential")
        assert code == 1
        said.append(out.splitlines())
    assert said[0] == [
        "nothing: grant_missing: no grant matches",
        f"  {ORDERS}: wants another sub",
    ]
    assert said[1][0] == "nothing: credential_audience: its aud is not ours alone"


@pytest.mark.parametrize(
    ("members", "subject", "wanted"),
    [
        ({"d": "AA"}, ORDERS, "exactly its members"), ({"alg": "RS256"}, ORDERS, "one of its kind"),
        ({}, "wimse://prod.example/other", "no grant names this subject"),
    ],
)  # fmt: skip
def test_issue_refuses(
    run: Run, members: dict[str, str], subject: str, wanted: str
) -> None:
    """A private key, a key of no kind, or a subject that nobody granted gets nothing, and leaves no record."""
    Path("key.json").write_text(
        json.dumps(public_members(Key.generate().public) | {"alg": "EdDSA"} | members)
    )
    code, out, error = run("issue", "--sub", subject, "--jwk", "key.json")
    assert (code != 0, out) == (True, "")
    assert wanted in error
    assert not Path("authority.jsonl").exists()


def test_cutoff_tells_how_many_identities_still_live(run: Run) -> None:
    """The audit file tells how many live. Where it has none, a misspelling is suspected; without it, none."""
    _, out, error = run("cutoff", "--sub", f"{ORDERS}s", "--why", "stolen", "--json")
    assert (json.loads(out)["alive"], "spelt" in error) == (None, False)
    Path("key.json").write_text(
        json.dumps(public_members(Key.generate("ES256").public) | {"alg": "ES256"})
    )
    run("issue", "--sub", ORDERS, "--jwk", "key.json")
    for subject, alive in ((ORDERS, 1), (f"{ORDERS}s", 0)):
        code, out, error = run("cutoff", "--sub", subject, "--why", "stolen", "--json")
        assert (code, json.loads(out)["alive"]) == (0, alive)
        assert ("is it spelt right?" in error) == (not alive)


@pytest.mark.parametrize(
    "subject", ["orders-api", "wimse://other.example/a", "wimse://prod.example/"]
)
def test_cutoff_is_of_our_domain(run: Run, subject: str) -> None:
    """What is no identifier of the trust domain cannot be cut off."""
    assert run("cutoff", "--sub", subject, "--why", "x")[0] == 2


def test_trace_leads_from_a_key_to_who_asked(
    run: Run, machine: Key, capsys: pytest.CaptureFixture[str]
) -> None:
    """``audit trace --jkt`` finds the record of an identity by the thumbprint of its key."""
    authority = load("mqauth.toml").authority.authority()
    key = Key.generate()
    grant = authority.desk.grants[0]
    members = public_members(key.public) | {"alg": "EdDSA"}
    authority.vouch(grant, members, Trace("10.0.0.7", jkt=key.kid))
    capsys.readouterr()
    assert app.run(["audit", "trace", "authority.jsonl", "--jkt", key.kid[:12]]) == 0
    assert f"from 10.0.0.7 {ORDERS}" in capsys.readouterr().out
    assert app.run(["audit", "trace", "authority.jsonl", "--jkt", machine.kid]) == 1


def test_a_key_that_is_limited_vouches_for_nobody(machine: Key, tmp_path: Path) -> None:
    """An authority's key with ``mqauth_sub`` would be refused by consumers, so it does not start with one."""
    Path("mqauth.toml").write_text(TOML.replace("authority-keys", "limited"))
    Keystore(folder=tmp_path / "limited").create(subjects=[ORDERS], overlap=3600)
    with pytest.raises(ConfigurationError, match="--pinned"):
        load("mqauth.toml").authority.authority()


def test_a_restart_forgets_no_credential(machine: Key, tmp_path: Path) -> None:
    """After a restart a credential that no record before shows is new: the audit file is read at the start."""
    for name in ("machines", "thieves"):
        Path("mqauth.toml").write_text(TOML.replace('"machines"', f'"{name}"'))
        authority = load("mqauth.toml").authority.authority()
        key = Key.generate()
        trace = Trace("10.0.0.7", jkt=key.kid)
        authority.desk.read(credential(machine).read_text().strip(), trace)
        authority.vouch(
            authority.desk.grants[0], public_members(key.public) | {"alg": "EdDSA"}, trace
        )
        authority._audit.close()
    records = [
        json.loads(line) for line in Path("authority.jsonl").read_text().splitlines()
    ]
    assert [record["alert"]["kind"] for record in records if "alert" in record] == [
        "new_credential"
    ]


def test_key_age_and_cutoffs_of_the_keystore(run: Run, machine: Key) -> None:
    """What is measured of an authority comes from its keystore: since when its key signs, and who is cut off."""
    del machine
    found = load("mqauth.toml", clock=FakeClock(SYSTEM_CLOCK.now() + 1000)).authority
    assert 990 <= (found.key_age() or 0) <= 1100
    assert len(found.keystore.cutoffs()) == 0
    run("cutoff", "--sub", ORDERS, "--why", "stolen")
    assert len(found.keystore.cutoffs()) == 1


def test_serve_shows_its_metrics(machine: Key) -> None:
    """``--metrics-port`` serves what the authority counts beside its own port, and misuse alerts with it."""
    del machine
    command = [
        sys.executable,
        "-m",
        "mqauth",
        "authority",
        "serve",
        "--port",
        "0",
        "--metrics-port",
        "0",
        "--json",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            told = json.loads(process.stdout.readline())
            request = urllib.request.Request(told["url"], method="POST", data=b"")  # noqa: S310
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(request, timeout=10)  # noqa: S310
            with urllib.request.urlopen(told["metrics"], timeout=10) as answer:  # noqa: S310
                page = answer.read().decode()
        finally:
            process.terminate()
    assert re.search(
        r'mqauth_authority_requests_total\{answer="invalid_client",.*refusal="credential_malformed"',
        page,
    )
    assert re.search(
        r'mqauth_authority_key_age_seconds\{.*trust_domain="wimse://prod.example"\} \d',
        page,
    )
    assert re.search(r"mqauth_authority_cutoffs\{.*\} 0.0", page)


def test_a_taken_port_of_the_metrics_is_said(run: Run) -> None:
    """A port for metrics that somebody has is an error of the command, with the option named."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, error = run("serve", "--port", "0", "--metrics-port", str(port))
    assert code == 2
    assert (
        f"--metrics-host 127.0.0.1 --metrics-port {port}: Address already in use" in error
    )


def heads(machine: Key, more: str = "") -> Any:
    """Return the authority with signed heads, and the keys that verify them."""
    del machine
    key = Key.generate()
    Path("heads.pem").touch(0o600)
    Path("heads.pem").write_bytes(key.to_pem())
    added = f'heads = "heads.jsonl"\nheads_key = "heads.pem"\n{more}'
    Path("mqauth.toml").write_text(
        TOML.replace('audit = "authority.jsonl"\n', f'audit = "authority.jsonl"\n{added}')
    )
    return load("mqauth.toml").authority, KeySet([key])


def test_a_shortened_record_of_an_authority_is_found(machine: Key) -> None:
    """The end of an authority's audit file that was cut off is found by its signed heads, and not without them."""
    configured, keys = heads(machine, "heads_every = 1\n")
    authority, trace = configured.authority(), Trace("command", ORDERS)
    jwk = public_members(Key.generate("ES256").public) | {"alg": "ES256"}
    for _ in range(3):
        authority.vouch(configured.desk.grants[0], jwk, trace)
    authority._audit.close()
    path = Path("authority.jsonl")
    whole = verify_chain([path], read_heads("heads.jsonl", keys))
    assert (whole.intact, whole.anchored, whole.records) == (True, True, 3)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]))
    assert verify_chain([path]).intact
    assert not verify_chain([path], read_heads("heads.jsonl", keys)).intact
