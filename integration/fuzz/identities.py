"""Target: the identity form of a token, ``wit~proof``, taken apart; nothing of it is believed yet."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Final

import jwt

from integration.fuzz import seeds
from integration.fuzz.oracles import (
    CLAIM_REASONS,
    JWS_REASONS,
    hold,
    judged,
    plain,
    strictly,
)
from mqauth.errors import Reason
from mqauth.wire import base64url, identity, jwk, jws
from mqauth.wire.keys import KeySet

_WIT_REASONS: Final = frozenset(
    (Reason.TOKEN_OVERSIZE, Reason.TOKEN_MALFORMED, Reason.IDENTITY_INVALID)
)
_PROOF_REASONS: Final = JWS_REASONS | CLAIM_REASONS
_UNSIGNED: Final = frozenset((Reason.ALGORITHM_FORBIDDEN, Reason.SIGNATURE_INVALID))
_SEGMENT: Final = re.compile(r"[A-Za-z0-9._-]+")
_LONGEST_NAME: Final = 256


def tokens() -> Iterator[bytes]:
    """Yield the tokens of the vectors of the identity form."""
    for form in seeds.forms_of(seeds.vectors("identity")):
        yield from seeds.token_values(form)


def identity_form(raw: bytes) -> None:
    """Take a WIT and a proof apart: one spelling, the JSON that others read, no key or name that is none."""
    first, _, rest = raw.partition(b"~")
    if identity.is_wit(first):
        found = judged(lambda: identity.parse_wit(first), _WIT_REASONS)
        if found is not None:
            _hold_wit(first, found)
    text = rest.partition(b"~")[0]
    proof = judged(
        lambda: identity.parse_proof(identity.open_proof(text)), _PROOF_REASONS
    )
    if proof is not None:
        _hold_proof(text, proof)


def _hold_wit(text: bytes, found: identity.Wit) -> None:
    """Assert what a WIT that was read says, by other readers than ours."""
    said, who = _payload(text, found.opened), found.identity
    assert jwt.get_unverified_header(text) == {
        "typ": "wit+jwt", "alg": found.opened.algorithm, "kid": who.kid,
    }  # fmt: skip
    assert len(text) <= identity.MAX_WIT
    assert (who.subject, who.expires, who.issued) == (
        said["sub"],
        said["exp"],
        said.get("iat"),
    )
    assert (who.jti, who.iss) == (said.get("jti"), said.get("iss"))
    assert "aud" not in said
    assert said["cnf"].keys() == {"jwk"}
    _hold_subject(who.subject, who.trust_domain)
    key = judged(
        lambda: identity.workload_key(found), frozenset((Reason.IDENTITY_INVALID,))
    )
    assert key is None or (
        key.private is None and key.kid == who.jkt and key.subjects == {who.subject}
    )
    _hold_unsigned(found.opened)


def _hold_subject(subject: str, domain: str) -> None:
    """Assert the form of an identifier, without the expression that reads it."""
    scheme, _, rest = subject.partition("://")
    authority, *segments = rest.split("/")
    assert scheme in ("wimse", "spiffe")
    assert domain == f"{scheme}://{authority}"
    assert len(subject) <= _LONGEST_NAME
    assert subject.isascii()
    assert segments
    assert all(
        _SEGMENT.fullmatch(segment) and segment not in (".", "..") for segment in segments
    )


def _hold_proof(text: bytes, found: identity.Proof) -> None:
    """Assert what a proof that was read says, by other readers than ours."""
    said = _payload(text, found.opened)
    assert jwt.get_unverified_header(text) == {
        "typ": "mqauth-pop+jwt",
        "alg": found.opened.algorithm,
    }
    assert not {"iss", "sub"} & said.keys()
    read = {
        name: value
        for name, value in found.claims.as_dict().items()
        if name not in ("iss", "sub")
    }
    assert plain(read | {"wth": found.wth}) == plain(said), (
        "the proof reads as other claims"
    )


def _payload(text: bytes, opened: jws.Opened) -> Mapping[str, Any]:
    parts = (
        text.split(b".")[0],
        base64url.encode(opened.payload),
        base64url.encode(opened.signature),
    )
    assert b".".join(parts) == text, "a part has a second spelling"
    found: Mapping[str, Any] = strictly(opened.payload)
    return found


def _hold_unsigned(opened: jws.Opened) -> None:
    """Assert that no authority's key signed it, unless the vectors have that signature."""
    for key in _authorities():
        if judged(lambda key=key: jws.verify(opened, key) or True, _UNSIGNED):  # type: ignore[misc]
            hold(
                hashlib.sha256(opened.signing_input).digest() in _signed(),
                "a forged signature holds",
            )


@cache
def _authorities() -> tuple[Any, ...]:
    found = seeds.vectors("identity")
    sets = [one for one in _key_sets(found) if "keys" in one]
    keys = {(key.kid, key.algorithm): key for one in sets for key in _loaded(one)}
    return tuple(keys.values())


def _key_sets(found: Any) -> Iterator[dict[str, Any]]:
    if isinstance(found, dict):
        if isinstance(found.get("keys"), list):
            yield found
        for inner in found.values():
            yield from _key_sets(inner)


def _loaded(document: dict[str, Any]) -> KeySet:
    return jwk.load_key_set(document)


@cache
def _signed() -> frozenset[bytes]:
    wits = (token.partition(b"~")[0] for token in tokens())
    return frozenset(hashlib.sha256(wit.rpartition(b".")[0]).digest() for wit in wits)
