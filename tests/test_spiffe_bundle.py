"""Bundles as SPIRE publishes them: keys for WITs are for trust domains, those for JWT-SVIDs for credentials."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mqauth import load
from mqauth.authority.credential import CredentialIssuer
from mqauth.check import check
from mqauth.cli import main
from mqauth.errors import ConfigurationError
from mqauth.judging.verifier import Issuer, Verifier
from mqauth.keystore.remote.jwks import JWKS
from mqauth.wire import jwk
from tests.test_jwks import URL
from tests.vectors import spire

CONFIGURED = """
[consumer]
audience = "billing"
[[consumer.issuers]]
{issuer}
file = "bundle.json"
[[consumer.allow]]
subject = "spiffe://example.org/shop/orders-api"
issuer = "spiffe://example.org"
destinations = ["kafka:orders"]
"""
CREDENTIALS = """
[authority]
trust_domain = "wimse://prod.example"
url = "https://authority.prod.example"
keys = "authority-keys"
audit = "authority.jsonl"
[[authority.credentials]]
name = "spire"
issuer = "https://spire.prod.example"
file = "bundle.json"
{enrolment}
[[authority.grants]]
credential = "spire"
match = {{ sub = "spiffe://example.org/shop/orders-api" }}
subject = "wimse://prod.example/shop/orders-api"
"""
DOMAIN = 'trust_domain = "spiffe://example.org"'


def configured(folder: Path, issuer: str, bundle: dict[str, Any]) -> Path:
    """Return a configuration whose issuer has a bundle for its keys."""
    (folder / "bundle.json").write_text(json.dumps(bundle))
    path = folder / "mqauth.toml"
    path.write_text(CONFIGURED.format(issuer=issuer))
    return path


@pytest.mark.parametrize("svid", ["wit-svid", "jwt-svid"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_source_of_a_bundle_is_refused_for_a_direct_issuer(wrapped: bool, svid: jwk.Svid) -> None:
    """Whoever gives a source of either use to an issuer of the direct form gets no verifier."""
    source = JWKS(URL, svid=svid)
    with pytest.raises(ConfigurationError, match="SPIFFE bundle"):
        Verifier(keys={"a": Issuer(keys=source) if wrapped else source}, audience="billing")


def issuer(source: JWKS, enrolment: bool = False) -> CredentialIssuer:
    """Return an issuer of credentials with this source of keys."""
    return CredentialIssuer(name="spire", issuer="a", keys=source, max_lifetime=300, enrolment=enrolment)


def test_a_configured_trust_domain_reads_a_bundle(tmp_path: Path) -> None:
    """``trust_domain`` in the file is enough, and the check has nothing to say of the other keys."""
    path = configured(tmp_path, DOMAIN, spire.bundle())
    keys: Any = load(path).judge.verifier.issuers["spiffe://example.org"].keys
    assert set(keys.key_set().by_kid) == {spire.WIT.kid}
    assert "jwks_skipped" not in {found.code.name for found in check(path).findings}


def described(folder: Path, enrolment: str) -> int:
    """Ask the authority of a folder what a token of nobody would get, and return the exit code."""
    (folder / "bundle.json").write_text(json.dumps(spire.bundle()))
    (folder / "mqauth.toml").write_text(CREDENTIALS.format(enrolment=enrolment))
    (folder / "token").write_text("a.b.c")
    return main(["authority", "grants", "--config", str(folder / "mqauth.toml"), "--token", str(folder / "token")])


def test_a_configured_authority_reads_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With ``enrolment = false`` the bundle in a file is taken; else it holds no producer's key, and says so."""
    assert described(tmp_path, "enrolment = false") == 1
    assert "no key that can be used" not in capsys.readouterr().err
    assert described(tmp_path, "") == 2
    assert "no key that can be used" in capsys.readouterr().err
