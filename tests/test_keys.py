"""Keys: the algorithm belongs to them, weak ones are refused, and nothing shows a private half."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, x25519

from mqauth.errors import ConfigurationError
from mqauth.wire.keys import (
    ALGORITHMS,
    MAX_KID,
    Key,
    KeySet,
    Revocation,
    thumbprint,
)

KEY = Key.generate(subjects=["orders-api"])


def pem(private: object) -> bytes:
    """Return any private key as PEM."""
    return private.private_bytes(  # type: ignore[attr-defined,no-any-return]
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def test_the_thumbprint_is_that_of_rfc_8037() -> None:
    """The kid of the example key of RFC 8037, appendix A.3, is the one printed there."""
    raw = bytes.fromhex(
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    )
    public = ed25519.Ed25519PublicKey.from_public_bytes(raw)
    assert thumbprint(public) == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_generated_keys_sign_with_their_algorithm(algorithm: str) -> None:
    """Each algorithm has a key, which allows that algorithm alone."""
    key = Key.generate(algorithm, subjects=["a"])
    assert key.kid == thumbprint(key.public)
    allowed = {
        name for name in (*ALGORITHMS, "Ed25519", "HS256", "none", "") if key.allows(name)
    }
    assert allowed == ({"EdDSA", "Ed25519"} if algorithm == "EdDSA" else {algorithm})


@pytest.mark.parametrize("algorithm", ["HS256", "none", "", "Ed25519", "ES512"])
def test_other_algorithms_have_no_keys(algorithm: str) -> None:
    """No key is generated for an algorithm off the list."""
    with pytest.raises(ConfigurationError):
        Key.generate(algorithm)


def test_rsa_signs_rs256_unless_told_ps256() -> None:
    """An RSA key fits two algorithms and is pinned to one."""
    private = rsa.generate_private_key(65537, 2048)
    assert Key.from_private(private).algorithm == "RS256"
    assert Key.from_private(private, algorithm="PS256").allows("PS256")
    with pytest.raises(ConfigurationError):
        Key.from_private(private, algorithm="ES256")


@pytest.mark.parametrize(
    "private",
    [
        rsa.generate_private_key(65537, 1024),  # noqa: S505 - it is to be refused
        rsa.generate_private_key(3, 2048),
    ec.generate_private_key(ec.SECP521R1()),
     ec.generate_private_key(ec.SECP256K1())],
    ids=["rsa-1024", "e-3", "P-521", "secp256k1"],
)  # fmt: skip
def test_weak_and_foreign_keys_are_refused(private: object) -> None:
    """RSA under 2048 bits or with exponent 3, and other curves, make no key."""
    with pytest.raises(ConfigurationError):
        Key.from_pem(pem(private))


@pytest.mark.parametrize("kid", ["", "x" * (MAX_KID + 1)])
def test_a_kid_has_1_to_128_characters(kid: str) -> None:
    """A kid out of its limits is refused; the limits themselves pass."""
    with pytest.raises(ConfigurationError):
        replace(KEY, kid=kid)
    assert replace(KEY, kid="x" * MAX_KID).kid


@pytest.mark.parametrize(
    ("raw", "passphrase", "what"),
    [
        (KEY.to_pem(), b"x", "has no passphrase"),
        (KEY.to_pem(b"open"), None, "needs a passphrase"),
        (KEY.to_pem(b"open"), b"wrong", "no PEM"),
        (b"", None, "no PEM"),
        (b"\xff" * 100, None, "no PEM"),
        (pem(x25519.X25519PrivateKey.generate()), None, "keys are Ed25519"),
    ],
)
def test_a_bad_key_file_is_one_clear_line(
    raw: bytes, passphrase: bytes | None, what: str
) -> None:
    """What is wrong with a PEM is said with its name, and no byte of it."""
    with pytest.raises(ConfigurationError, match=what) as caught:
        Key.from_pem(raw, passphrase=passphrase, name="orders.pem")
    assert str(caught.value).startswith("orders.pem: ")


def test_a_public_key_has_nothing_private_to_write() -> None:
    """Without private half there is no PEM."""
    with pytest.raises(ConfigurationError):
        KEY.public_only.to_pem()


def test_repr_shows_the_kid_alone() -> None:
    """A key can be logged."""
    assert repr(KEY) == f"Key({KEY.kid!r}, EdDSA)"


def test_a_key_set_holds_public_halves_only() -> None:
    """What a consumer holds can verify and never sign."""
    keys = KeySet([KEY])
    assert [key.private for key in keys] == [None]
    assert keys.get(KEY.kid) == KEY.public_only
    assert keys.get("another") is None
    assert keys.key_set() is keys
    assert keys.refresh("another", 0.0) is keys


def test_one_kid_cannot_stand_for_two_keys() -> None:
    """A set in which a kid is ambiguous is refused."""
    with pytest.raises(ConfigurationError):
        KeySet([KEY, replace(Key.generate(), kid=KEY.kid)])


@pytest.mark.parametrize(
    "changes",
    [{"expires": 1}, {"revocation": Revocation()}, {"revocation": Revocation(revoked_at=1)}, {"subjects": None},
     {"subjects": frozenset(["b"])}, {"kid": "other"}],
    ids=repr,
)  # fmt: skip
def test_the_version_changes_with_whatever_a_verdict_depends_on(
    changes: dict[str, object],
) -> None:
    """A key's end, revocation, subjects and kid all show in the set's version; order does not."""
    other = Key.generate()
    before = KeySet([KEY, other]).version
    assert KeySet([other, KEY]).version == before
    assert KeySet([replace(KEY, **changes), other]).version != before  # type: ignore[arg-type]
