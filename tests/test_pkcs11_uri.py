"""The URI of a key in an HSM (RFC 7512): what is read, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from mqauth.errors import ConfigurationError
from mqauth.keystore.reference.uri import TokenURI


def test_all_parts() -> None:
    """Each part is read, with its escapes, in any order."""
    found = TokenURI.parse(
        "pkcs11:id=%00%ff;serial=12;object=a%3Bb;token=my%20token;type=private"
        "?pin-source=file:/run/pin&module-path=/usr/lib/hsm.so"
    )
    assert found == TokenURI(
        token="my token", serial="12", label="a;b", id=b"\0\xff", module_path="/usr/lib/hsm.so",
        pin_source="file:/run/pin",
    )  # fmt: skip
    assert (found.where, found.what) == ("token 'my token' (serial 12)", "'a;b' of id 00ff")


@pytest.mark.parametrize(
    ("uri", "refusal"),
    [
        ("pkcs12:token=a;object=b", "not a pkcs11 URI"),
        ("pkcs11:token=a;object=%zz", "a % that escapes nothing"),
        ("pkcs11:token=a;object=b%4", "a % that escapes nothing"),
        ("pkcs11:object=b", "names its token"),
        ("pkcs11:token=;object=b", "names its token"),
        ("pkcs11:token=a", "names its object, or its id"),
        ("pkcs11:token=a;object=", "names its object, or its id"),
        ("pkcs11:token=a;object=b;object=c", "object stands twice"),
        ("pkcs11:token=a;object=b;type=public", "type=private"),
        ("pkcs11:token=a;object=b;slot-id=1", "not 'slot-id'"),
        ("pkcs11:token=a;object=b;pin-source=file:/x", "not 'pin-source'"),
        ("pkcs11:token=a;object=b?object=c", "not 'object'"),
        ("pkcs11:token=a;object=b?module-name=x", "not 'module-name'"),
        ("pkcs11:token=a;object=b?pin-source=file:/x&pin-source=env:Y", "pin-source stands twice"),
        ("pkcs11:token=a;object=b?pin-source=file:relative", "pin-source is file: and a full path, or env:NAME"),
        ("pkcs11:token=a;object=b?pin-source=|command", "pin-source is file: and a full path, or env:NAME"),
        ("pkcs11:token=a;object=b?pin-source=1234", "pin-source is file: and a full path, or env:NAME"),
        ("pkcs11:token=%ff;object=b", "token is no UTF-8"),
        ("pkcs11:token=a;object=b?pin-source=file:/x%00", "pin-source has a NUL"),
    ],
)
def test_refused(uri: str, refusal: str) -> None:
    """What is missing, repeated, unknown or malformed is refused by its name."""
    with pytest.raises(ConfigurationError, match=refusal.replace("|", r"\|")):
        TokenURI.parse(uri)


@pytest.mark.parametrize("uri", ["pkcs11:token=a;object=b?pin-value=4711", "pkcs11:token=a?x=y&pin-value=4711"])
def test_a_pin_is_refused_and_not_repeated(uri: str) -> None:
    """A PIN in a URI is refused, and the error does not have it."""
    with pytest.raises(ConfigurationError, match="a PIN never stands in a uri") as caught:
        TokenURI.parse(uri)
    assert "4711" not in str(caught.value)


def test_pin_of_a_file(tmp_path: Path) -> None:
    """One newline at the end of the file is not part of the PIN; an empty file has none."""
    file = tmp_path / "pin"
    found = TokenURI.parse(f"pkcs11:token=a;object=b?pin-source=file:{file}")
    file.touch(0o600)
    with pytest.raises(ConfigurationError, match="token 'a': no PIN in file"):
        found.pin()
    file.write_text("12 34\r\n")
    assert found.pin() == "12 34"
    file.write_bytes(b"\xff")
    with pytest.raises(ConfigurationError, match="is no UTF-8"):
        found.pin()


def test_pin_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable that the URI names comes before the common one, which is not asked then."""
    monkeypatch.setenv("MQAUTH_PKCS11_PIN", "1")
    assert TokenURI.parse("pkcs11:token=a;object=b").pin() == "1"
    with pytest.raises(ConfigurationError, match="token 'a': no PIN in env OTHER"):
        TokenURI.parse("pkcs11:token=a;object=b?pin-source=env:OTHER").pin()


def test_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library of the URI comes before that of the environment; it is a file under a full path."""
    monkeypatch.setenv("PKCS11_MODULE", "/nowhere")
    library = tmp_path / "hsm.so"
    library.touch()
    assert TokenURI.parse(f"pkcs11:token=a;object=b?module-path={library}").library() == str(library)
    with pytest.raises(ConfigurationError, match="token 'a': there is no library /nowhere"):
        TokenURI.parse("pkcs11:token=a;object=b").library()
