"""Bundles as SPIRE publishes them: their keys for WITs are read for a trust domain, and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mqauth import load
from mqauth.check import check
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
    keys = jwk.load_key_set(spire.bundle(), wit_svid=True)
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
    keys = jwk.load_key_set(bundle, wit_svid=True)
    assert (keys.keys, len(keys.skipped)) == ((), 1)


def test_a_file_and_a_url_are_read_as_a_bundle_where_they_are_a_trust_domains(tmp_path: Path) -> None:
    """Both sources take the keys for WITs, once they are told."""
    clock = FakeClock()
    (tmp_path / "bundle.json").write_text(json.dumps(spire.bundle()))
    assert set(JWKSFile(tmp_path / "bundle.json", wit_svid=True).key_set().by_kid) == {spire.WIT.kid}
    with pytest.raises(ConfigurationError, match="no key that can be used"):
        JWKSFile(tmp_path / "bundle.json")
    for told, kids in ((True, {spire.WIT.kid}), (False, set[str]())):
        wire: Any = Wire(response(json.dumps(spire.bundle()).encode()), clock)
        fetch = URLFetch(
            Endpoint.parse(URL), timeout=5, context=None, clock=clock, dial=lambda *_, wire=wire: wire,
            wit_svid=told,
        )  # fmt: skip
        found = fetch(None).keys
        assert found is not None
        assert set(found.by_kid) == kids


def test_what_a_trust_domain_kept_is_no_snapshot_of_a_direct_issuer(tmp_path: Path) -> None:
    """A snapshot tells no use any more, so it is refused where it was kept for the other form."""
    clock, path = FakeClock(), tmp_path / "set.json"
    Bench(clock, spire.WIT, snapshot=path, wit_svid=True).jwks.start()
    assert Bench(clock, snapshot=path, wit_svid=True).jwks.key_set().get(spire.WIT.kid) is not None
    assert Bench(clock, snapshot=path).jwks.health().keys == 0


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_source_of_a_bundle_is_refused_for_a_direct_issuer(wrapped: bool) -> None:
    """Whoever gives such a source to an issuer of the direct form gets no verifier; a trust domain takes it."""
    source = JWKS(URL, wit_svid=True)
    Verifier(keys={spire.DOMAIN: TrustDomain(keys=source)}, audience="billing")
    with pytest.raises(ConfigurationError, match="SPIFFE bundle"):
        Verifier(keys={"a": Issuer(keys=source) if wrapped else source}, audience="billing")


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
