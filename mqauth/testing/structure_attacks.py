"""Attacks on a token's structure: its algorithm, its key, its header and its encoding.

Like ``ATTACKS``, each turns an honest, unsigned message into the message that is published in its place. They are
the ways in which libraries for JOSE were broken; ``attack_classes`` has the sources.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from typing import Any, Final

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mqauth.errors import Reason
from mqauth.testing.forge import REMOVED, Forge, with_token
from mqauth.testing.token_attacks import Attack
from mqauth.wire import base64url
from mqauth.wire import strict_json as strictjson
from mqauth.wire.jws import TOKEN_TYPE
from mqauth.wire.message import Message

_DEEP: Final = 40
_LONG_KID: Final = 5000
_MALFORMED: Final = Reason.TOKEN_MALFORMED
_EVIL: Final = "https://evil.example/keys"


def _header(
    name: str, story: str, reason: Reason = Reason.HEADER_FORBIDDEN, **header: Any
) -> Attack:
    """Return an attack that writes other parameters, signed by the honest key."""
    return Attack(
        name=name,
        story=story,
        reason=reason,
        mount=lambda forge, message: forge.seal(message, header=header),
    )


def _stolen(
    name: str, story: str, reason: Reason = Reason.HEADER_FORBIDDEN, **header: Any
) -> Attack:
    """Return an attack that writes other parameters, signed by a key that the attacker made."""
    return Attack(
        name=name,
        story=story,
        reason=reason,
        mount=lambda forge, message: forge.seal(
            message, key=forge.stranger, header=header
        ),
    )


def _text(
    name: str,
    story: str,
    bend: Callable[[str], str],
    reason: Reason = _MALFORMED,
    **other: Any,
) -> Attack:
    """Return an attack on the text of an honest token."""
    return Attack(
        name=name,
        story=story,
        reason=reason,
        **other,
        mount=lambda forge, message: with_token(message, bend(forge.jws(message))),
    )


def _signed(name: str, story: str, signature: bytes) -> Attack:
    """Return an attack that puts these bytes in place of the honest signature."""
    return Attack(
        name=name,
        story=story,
        reason=Reason.SIGNATURE_INVALID,
        mount=lambda forge, message: forge.seal(message, signature=signature),
    )


def _jwk(forge: Forge) -> dict[str, str]:
    public = forge.stranger.public.public_bytes(
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    )
    return {
        "kty": "OKP",
        "crv": "Ed25519",
        "x": base64url.encode(public[-32:]).decode("ascii"),
    }


def _embedded(forge: Forge, message: Message) -> Message:
    """Bring the attacker's own public key in the token's header."""
    return forge.seal(message, key=forge.stranger, header={"jwk": _jwk(forge)})


def _hmac_of_key(encoding: Encoding) -> Callable[[Forge, Message], Message]:
    """Return a mount that signs by HMAC, with the honest public key as the secret."""

    def mount(forge: Forge, message: Message) -> Message:
        secret = forge.key.public.public_bytes(
            encoding, PublicFormat.SubjectPublicKeyInfo
        )
        unsigned = forge.jws(message, header={"alg": "HS256"}, signature=b"").rstrip(".")
        mac = hmac.new(secret, unsigned.encode("ascii"), hashlib.sha256).digest()
        return with_token(message, f"{unsigned}.{base64url.encode(mac).decode('ascii')}")

    return mount


def _duplicate_claim(forge: Forge, message: Message) -> Message:
    """Write the subject twice: readers that take the first and the last one disagree."""
    honest = strictjson.dumps(forge.claims(message))
    twice = b'{"sub":"' + forge.neighbour_subject.encode() + b'",' + honest[1:]
    return forge.seal(message, payload=twice)


def _duplicate_parameter(forge: Forge, message: Message) -> Message:
    """Write the algorithm twice in the header."""
    _, payload, signature = forge.jws(message).split(".")
    header = b'{"alg":"none","alg":"EdDSA","typ":"%s","kid":"%s"}' % (
        TOKEN_TYPE.encode(),
        forge.key.kid.encode(),
    )
    return with_token(
        message, f"{base64url.encode(header).decode('ascii')}.{payload}.{signature}"
    )


def _as_json(jws: str, **more: Any) -> str:
    header, payload, signature = jws.split(".")
    one = {"protected": header, "signature": signature} | more
    return strictjson.dumps({"payload": payload, "signatures": [one]}).decode("ascii")


def _flip_bits(jws: str) -> str:
    """Return the token with other unused bits in the last character, which sloppy readers ignore."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return jws[:-1] + letters[letters.index(jws[-1]) ^ 1]


def _without_payload(jws: str) -> str:
    header, _, signature = jws.split(".")
    return f"{header}..{signature}"


STRUCTURE_ATTACKS: Final = (
    _header(
        "alg-none-in-another-case",
        "an unsigned token, spelt so that a block list misses it",
        Reason.ALGORITHM_FORBIDDEN,
        alg="nOnE",
    ),
    _header(
        "alg-left-out", "no algorithm at all", Reason.ALGORITHM_FORBIDDEN, alg=REMOVED
    ),
    _header(
        "alg-is-a-list",
        "an algorithm that is a list",
        Reason.ALGORITHM_FORBIDDEN,
        alg=["EdDSA"],
    ),
    Attack(
        name="hmac-with-pem",
        story="HMAC whose secret is the public key in PEM",
        reason=Reason.ALGORITHM_FORBIDDEN,
        mount=_hmac_of_key(Encoding.PEM),
    ),
    Attack(
        name="hmac-with-der",
        story="HMAC whose secret is the public key in DER",
        reason=Reason.ALGORITHM_FORBIDDEN,
        mount=_hmac_of_key(Encoding.DER),
    ),
    _header(
        "alg-of-another-kind",
        "ES256 in the header, over a key that is not one",
        Reason.ALGORITHM_FORBIDDEN,
        alg="ES256",
    ),
    Attack(
        name="embedded-key",
        story="the attacker's public key in the header",
        reason=Reason.HEADER_FORBIDDEN,
        mount=_embedded,
    ),
    _stolen("certificate-url", "the attacker names a certificate to fetch", x5u=_EVIL),
    _stolen("embedded-certificate", "the attacker brings a certificate", x5c=["MIIB"]),
    _stolen(
        "key-url-of-the-cloud",
        "a key URL inside the consumer's network",
        jku="http://169.254.169.254/latest/meta-data",
    ),
    _stolen(
        "kid-is-a-path",
        "a kid that is a path",
        Reason.KEY_UNKNOWN,
        kid="../../../../dev/null",
    ),
    _stolen(
        "kid-is-sql", "a kid that is SQL", Reason.KEY_UNKNOWN, kid="x' UNION SELECT 'key"
    ),
    _stolen("kid-is-a-url", "a kid that is a URL", Reason.KEY_UNKNOWN, kid=_EVIL),
    _stolen("kid-too-long", "a kid of 5,000 characters", _MALFORMED, kid="k" * _LONG_KID),
    _stolen(
        "kid-with-line-break",
        "a kid that forges a line of the log",
        _MALFORMED,
        kid="k\n2026 INFO accepted",
    ),
    _stolen("kid-is-a-number", "a kid that is no text", _MALFORMED, kid=1),
    _header(
        "kid-left-out", "no kid, so that any key may be tried", _MALFORMED, kid=REMOVED
    ),
    _header(
        "critical-parameter", "an extension that must be understood", crit=["exp"], exp=1
    ),
    _header(
        "payload-not-encoded", "a payload that is not base64url", b64=False, crit=["b64"]
    ),
    _header("compressed", "a payload that is to be inflated", zip="DEF"),
    _header(
        "many-iterations",
        "a key derivation of two thousand million rounds",
        Reason.HEADER_FORBIDDEN,
        alg="PBES2-HS256+A128KW",
        p2c=2_000_000_000,
        p2s="AAAA",
    ),
    _header("nested", "a token within a token", cty="JWT"),
    _header("type-left-out", "a token of no type", Reason.TOKEN_TYPE, typ=REMOVED),
    _header("type-jwt", "any JWT of the same issuer", Reason.TOKEN_TYPE, typ="JWT"),
    _header(
        "type-of-a-release",
        "the type of a reviewer's release",
        Reason.TOKEN_TYPE,
        typ="mqauth-release+jwt",
    ),
    _text("encrypted", "five segments, as a JWE has", lambda jws: jws + ".AAAA.AAAA"),
    _text("json-form", "the JSON serialisation", _as_json),
    _text(
        "json-without-signatures",
        "the JSON serialisation, and nobody has signed",
        lambda jws: '{"payload":"e30","signatures":[]}',
    ),
    _text(
        "json-with-loose-header",
        "a header that nothing protects",
        lambda jws: _as_json(jws, header={"alg": "none"}),
    ),
    _text("many-dots", "four thousand segments", lambda jws: "a." * 4000),
    _text(
        "payload-detached",
        "no payload in the token",
        _without_payload,
        Reason.CLAIMS_MALFORMED,
    ),
    _signed("signature-empty", "nothing behind the last dot", b""),
    _signed("signature-short", "a byte less than a signature has", bytes(63)),
    _signed("signature-of-zeros", "a signature of zeros", bytes(64)),
    _text(
        "signature-padded",
        "the same signature with padding, another text",
        lambda jws: jws + "==",
    ),
    _text(
        "signature-not-canonical", "the same signature with other unused bits", _flip_bits
    ),
    _text("space-before", "a space before the token", lambda jws: " " + jws),
    _text("line-break-behind", "a line break behind it", lambda jws: jws + "\n"),
    _text("bearer", "a scheme before the token", lambda jws: "Bearer " + jws),
    _text(
        "not-ascii", "a letter that looks like another", lambda jws: "\u0435" + jws[1:]
    ),
    Attack(
        name="claim-twice",
        story="a subject twice, for readers that differ",
        reason=Reason.CLAIMS_MALFORMED,
        mount=_duplicate_claim,
    ),
    Attack(
        name="parameter-twice",
        story="an algorithm twice, for readers that differ",
        reason=_MALFORMED,
        mount=_duplicate_parameter,
    ),
    Attack(
        name="payload-too-deep",
        story="lists within lists",
        reason=Reason.CLAIMS_MALFORMED,
        mount=lambda forge, message: forge.seal(
            message, payload=b"[" * _DEEP + b"]" * _DEEP
        ),
    ),
    Attack(
        name="payload-of-another-encoding",
        story="claims in UTF-16",
        reason=Reason.CLAIMS_MALFORMED,
        mount=lambda forge, message: forge.seal(
            message,
            payload=strictjson.dumps(forge.claims(message)).decode().encode("utf-16"),
        ),
    ),
    Attack(
        name="two-equal-tokens",
        story="the same token twice",
        reason=Reason.TOKEN_REPEATED,
        scheme="kafka",
        mount=lambda forge, message: with_token(
            with_token(message, token := forge.token(message)), token
        ),
    ),
    Attack(
        name="honest-and-forged",
        story="a forged token behind an honest one",
        reason=Reason.TOKEN_REPEATED,
        mount=lambda forge, message: with_token(
            forge.seal(message),
            forge.token(message, key=forge.stranger),
            name="Mqauth-Token",
        ),
    ),
)
"""Attacks on how a token is written, by whoever may write to the broker."""
