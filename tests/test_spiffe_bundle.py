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
from mqauth.http.connection import Endpoint
from mqauth.judging.trust_domain import TrustDomain
from mqauth.judging.verifier import Issuer, Verifier
from mqauth.keystore import JWKSFile
from mqauth.keystore.remote.fetch import URLFetch
from mqauth.keystore.remote.jwks import JWKS
from mqauth.testing import FakeClock
from mqauth.wire import jwk
from tests.test_jwks import URL, Bench, Wire, response
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
DIRECT = 'issuer = "spiffe://example.org"'


def configured(folder: Path, issuer: str, bundle: dict[str, Any]) -> Path:
    """Return a configuration whose issuer has a bundle for its keys."""
    (folder / "bundle.json").write_text(json.dumps(bundle))
    path = folder / "mqauth.toml"
    path.write_text(CONFIGURED.format(issuer=issuer))
    return path


def test_a_bundle_has_one_kind_of_key_for_a_trust_domain() -> None:
    """Keys of ``wit-svid`` alone are taken, and those of other SVIDs are passed over without a complaint."""
    keys = jwk.load_key_set(spire.bundle(), svid="wit-svid")
    assert (set(keys.by_kid), keys.skipped) == ({spire.WIT.kid}, ())
    assert keys.keys[0].algorithm == "ES256"


def test_a_bundle_has_no_key_for_anybody_else() -> None:
    """Without being told that a set is a trust domain's, the reader skips each key of a bundle."""
    keys = jwk.load_key_set(spire.bundle())
    assert (keys.keys, len(keys.skipped)) == ((), 3)


@pytest.mark.parametrize("use", ["WIT-SVID", "wit-svid ", "enc", "", None, ["wit-svid"], 1])
def test_any_other_use_is_skipped_for_a_trust_domain(use: object) -> None:
    """A use that is neither known nor spelt exactly so takes the key out, and says so."""
    bundle = spire.bundle()
    bundle["keys"][2]["use"] = use
    keys = jwk.load_key_set(bundle, svid="wit-svid")
    assert (keys.keys, len(keys.skipped)) == ((), 1)


def test_a_bundle_has_one_kind_of_key_for_credentials() -> None:
    """Keys of ``jwt-svid`` alone are taken where they are asked for, and those for WITs passed over."""
    keys = jwk.load_key_set(spire.bundle(), svid="jwt-svid")
    assert (set(keys.by_kid), keys.skipped) == ({spire.JWT.kid}, ())


def test_a_file_and_a_url_are_read_as_a_bundle_where_they_are_a_trust_domains(tmp_path: Path) -> None:
    """Both sources take the keys for WITs, once they are told."""
    clock = FakeClock()
    (tmp_path / "bundle.json").write_text(json.dumps(spire.bundle()))
    assert set(JWKSFile(tmp_path / "bundle.json", svid="wit-svid").key_set().by_kid) == {spire.WIT.kid}
    with pytest.raises(ConfigurationError, match="no key that can be used"):
        JWKSFile(tmp_path / "bundle.json")
    for told, kids in (("wit-svid", {spire.WIT.kid}), ("jwt-svid", {spire.JWT.kid}), (None, set[str]())):
        wire: Any = Wire(response(json.dumps(spire.bundle()).encode()), clock)
        fetch = URLFetch(
            Endpoint.parse(URL), timeout=5, context=None, clock=clock, dial=lambda *_, wire=wire: wire,
            svid=told,
        )  # fmt: skip
        found = fetch(None).keys
        assert found is not None
        assert set(found.by_kid) == kids


def test_what_a_trust_domain_kept_is_no_snapshot_of_a_direct_issuer(tmp_path: Path) -> None:
    """A snapshot tells no use any more, so it is refused where it was kept for the other form."""
    clock, path = FakeClock(), tmp_path / "set.json"
    Bench(clock, spire.WIT, snapshot=path, svid="wit-svid").jwks.start()
    assert Bench(clock, snapshot=path, svid="wit-svid").jwks.key_set().get(spire.WIT.kid) is not None
    assert Bench(clock, snapshot=path).jwks.health().keys == 0


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


def test_each_reader_takes_the_use_that_is_its_own() -> None:
    """A trust domain takes ``wit-svid`` and no ``jwt-svid``, an issuer of credentials the other way round."""
    wit, jwt = JWKS(URL, svid="wit-svid"), JWKS(URL, svid="jwt-svid")
    assert TrustDomain(keys=wit).keys is wit
    assert issuer(jwt).keys is jwt
    for refused in (
        lambda: TrustDomain(keys=jwt), lambda: issuer(wit), lambda: issuer(wit, True), lambda: issuer(jwt, True)
    ):  # fmt: skip
        with pytest.raises(ConfigurationError, match="SPIFFE bundle"):
            refused()


def test_a_configured_trust_domain_reads_a_bundle(tmp_path: Path) -> None:
    """``trust_domain`` in the file is enough, and the check has nothing to say of the other keys."""
    path = configured(tmp_path, DOMAIN, spire.bundle())
    keys: Any = load(path).judge.verifier.issuers["spiffe://example.org"].keys
    assert set(keys.key_set().by_kid) == {spire.WIT.kid}
    assert "jwks_skipped" not in {found.code.name for found in check(path).findings}


def test_a_configured_issuer_reads_none(tmp_path: Path) -> None:
    """An issuer of the direct form does not get at the keys of a bundle, and the check names each."""
    path = configured(tmp_path, DIRECT, spire.bundle())
    with pytest.raises(ConfigurationError, match="no key that can be used"):
        load(path).judge  # noqa: B018 - it is built when it is asked for
    assert "jwks_skipped" in {found.code.name for found in check(path).findings}


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


@pytest.mark.parametrize(("enrolment", "skipped"), [("enrolment = false", False), ("", True)])
def test_the_check_reads_a_bundle_for_credentials_as_the_authority_does(
    enrolment: str, skipped: bool, tmp_path: Path
) -> None:
    """It has nothing to say of a bundle's keys, and names each where the file is to have producers' keys."""
    (tmp_path / "bundle.json").write_text(json.dumps(spire.bundle()))
    path = tmp_path / "mqauth.toml"
    path.write_text(CREDENTIALS.format(enrolment=enrolment))
    assert ("jwks_skipped" in {found.code.name for found in check(path).findings}) is skipped
