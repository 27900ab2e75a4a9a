"""JWK Sets: a bad key is skipped and reported, a good one beside it goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mqauth import JWKS, ConfigurationError, Issuer, Verifier, load
from mqauth.authority.credential import CredentialIssuer
from mqauth.check import check
from mqauth.cli import main
from mqauth.wire import base64url, jwk
from mqauth.wire.keys import ALGORITHMS, Key, Revocation, jwk_members
from tests.test_jwks import URL
from tests.vectors import spire

KEYS = {algorithm: Key.generate(algorithm, subjects=["a"]) for algorithm in ALGORITHMS}
GOOD = {algorithm: jwk_members(key) for algorithm, key in KEYS.items()}
GONE = object()


def bent(algorithm: str = "EdDSA", **changes: Any) -> dict[str, Any]:
    """Return a good JWK with changes."""
    return {
        name: value
        for name, value in (GOOD[algorithm] | changes).items()
        if value is not GONE
    }


def octets(raw: bytes) -> str:
    """Return base64url text."""
    return base64url.encode(raw).decode()


@pytest.mark.parametrize(
    ("members", "what"),
    [
        ("x", "no JSON object"), (bent(d="AA"), "private"), ({"kty": "oct", "kid": "a", "k": "AA"}, "symmetric"),
        (bent(kid=["a"]), "kid"), (bent(use="enc"), "use"), (bent(key_ops=[]), "key_ops"),
        (bent(kty=["OKP"]), "kty"), (bent(crv="X25519"), "kty"), (bent("ES256", crv="secp256k1"), "kty"),
        (bent(x=GONE), "malformed"), (bent(x="é"), "malformed"), (bent("RS256", n=""), "malformed"),
        (bent("ES384", x=octets(b"\xff" * 48)), "malformed"),
        (bent("RS256", n=octets(b"\xff" * 1025)), "malformed"),
        (bent("RS256", n=octets(b"\xff" * 128)), "RSA keys have"), (bent("RS256", e=octets(b"\x03")), "exponent"),
        (bent("RS256", alg=GONE), "without alg"), (bent(alg=1), "alg is no text"), (bent(alg="none"), "algorithm"),
        (bent("RS256", alg="RS512"), "algorithm"), (bent(mqauth_sub=[1]), "mqauth_sub"),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_a_bad_key_is_skipped_with_its_position(members: object, what: str) -> None:
    """A key that cannot be used is left out and reported; the next one is used. What is no key say the vectors."""
    found = jwk.load_key_set({"keys": [members, GOOD["ES384"]]})
    assert [key.algorithm for key in found] == ["ES384"]
    assert found.skipped[0].startswith("key 0: ")
    assert what in found.skipped[0]


@pytest.mark.parametrize("point", sorted(jwk._SMALL_ORDER))
def test_points_of_small_order_are_skipped(point: bytes) -> None:
    """Under such a key one signature fits many messages."""
    found = jwk.load_key_set({"keys": [bent(x=octets(point))]})
    assert len(found.keys) == 0
    assert len(found.skipped) == 1


def test_a_revocation_is_read_with_its_time_and_reason() -> None:
    """A reason that is no text is dropped, the revocation is not."""
    assert jwk.load_key(
        bent(revoked={"revoked_at": 7, "reason": "lost"})
    ).revocation == Revocation(revoked_at=7, reason="lost")
    assert jwk.load_key(
        bent(revoked={"revoked_at": 7, "reason": 1})
    ).revocation == Revocation(revoked_at=7)


@pytest.mark.parametrize(
    "document",
    [b"", b"[]", b"{}", b'{"keys":{}}', b'{"keys":null}', b'{"keys":[],"keys":[]}', b"\xff",
    b" " * (256 * 1024 + 1),
     b'{"keys":' + b"[" * 10_000, {"keys": "x"}, {}, []],
    ids=lambda value: repr(value)[:20],
)  # fmt: skip
def test_a_document_that_is_no_key_set_is_a_configuration_error(document: Any) -> None:
    """Anything but a bounded JSON object with a list of keys is refused, with its name."""
    with pytest.raises(ConfigurationError, match=r"^jwks\.json: "):
        jwk.load_key_set(document, name="jwks.json")


# Bundles as SPIRE publishes them: keys for WITs are for trust domains, those for JWT-SVIDs for credentials.


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


@pytest.mark.parametrize(
    ("use", "svid", "other"),
    [
        ("x509-svid", "jwt-svid", True), ("wit-svid", "jwt-svid", True), ("jwt-svid", "wit-svid", True),
        ("jwt-svid", "jwt-svid", False), ("sig", "jwt-svid", False), ("x509-svid", None, False),
    ],
    ids=str,
)  # fmt: skip
def test_keys_of_a_bundle_for_something_else(
    use: str, svid: jwk.Svid | None, other: bool
) -> None:
    """Keys of the other uses of a SPIFFE bundle are left out without a word, where one of them is read."""
    assert jwk.is_other_svid({"use": use}, svid) is other
    keys = jwk.load_key_set({"keys": [bent(use=use)]}, svid=svid)
    assert not (other and (keys.skipped or keys.by_kid))


def test_cutoffs_that_cannot_be_read() -> None:
    """A JWK Set whose cut-offs cannot be read says so, and its keys are used."""
    keys = jwk.load_key_set({"keys": [GOOD["EdDSA"]], "mqauth_cutoff": "x"})
    assert list(keys.skipped) == [
        "mqauth_cutoff cannot be read; the cut-offs before it stay"
    ]
    assert set(keys.by_kid) == {KEYS["EdDSA"].kid}


@pytest.mark.parametrize("svid", ["wit-svid", "jwt-svid"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_source_of_a_bundle_is_refused_for_a_direct_issuer(
    wrapped: bool, svid: jwk.Svid
) -> None:
    """Whoever gives a source of either use to an issuer of the direct form gets no verifier."""
    source = JWKS(URL, svid=svid)
    with pytest.raises(ConfigurationError, match="SPIFFE bundle"):
        Verifier(
            keys={"a": Issuer(keys=source) if wrapped else source}, audience="billing"
        )


def issuer(source: JWKS, enrolment: bool = False) -> CredentialIssuer:
    """Return an issuer of credentials with this source of keys."""
    return CredentialIssuer(
        name="spire", issuer="a", keys=source, max_lifetime=300, enrolment=enrolment
    )


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
    return main(
        [
            "authority",
            "grants",
            "--config",
            str(folder / "mqauth.toml"),
            "--token",
            str(folder / "token"),
        ]
    )


def test_a_configured_authority_reads_a_bundle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With ``enrolment = false`` the bundle in a file is taken; else it holds no producer's key, and says so."""
    assert described(tmp_path, "enrolment = false") == 1
    assert "no key that can be used" not in capsys.readouterr().err
    assert described(tmp_path, "") == 2
    assert "no key that can be used" in capsys.readouterr().err
