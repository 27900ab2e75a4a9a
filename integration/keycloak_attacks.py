"""Tokens of a real Keycloak that get nothing: what somebody shows, the answer, and the reason in the audit."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from integration.keycloak_world import World, parts, until
from mqauth.wire import base64url, strict_json
from mqauth.wire.keys import Key

OTHER: Final = Key.generate()
"""A thief's key."""


class Shown(NamedTuple):
    """What somebody shows: a token, the scheme, and the key behind the proof, or another proof."""

    token: str
    scheme: str = "Bearer"
    key: Key = OTHER
    proof: str | None = None
    body: bytes = b""


def stolen(world: World, key: Key) -> str:
    """Return a token of the honest client, bound to its key."""
    return world.token("orders-api", key)


def expired(world: World) -> Shown:
    """Return a token of a second, once that is over."""
    token = world.token("of-a-second")
    until(lambda: time.time() >= parts(token)[1]["exp"])
    return Shown(token)


def of_a_person(world: World) -> Shown:
    """Return a token that a person got through the honest client, bound to the person's key."""
    form = {"grant_type": "password", "username": "ada", "password": world.secrets["ada"]}
    token = world.token("orders-api", OTHER, **form)
    assert parts(token)[1]["azp"] == "orders-api"
    return Shown(token, "DPoP")


def unsigned(world: World, change: Callable[[dict[str, Any], dict[str, Any]], None], *, keep: bool) -> Shown:
    """Return an honest token that was changed, with its signature or without one."""
    token = stolen(world, OTHER)
    header, claims = parts(token)
    change(header, claims)
    said = [base64url.encode(strict_json.dumps(part)).decode() for part in (header, claims)]
    return Shown(".".join([*said, token.rpartition(".")[2] if keep else ""]), "DPoP")


_KEY: Final = Key.generate()
"""The honest client's key."""
_NOBODY: Final = b'{"sub": "wimse://prod.example/shop/loose"}'
INVALID: Final = (401, "invalid_client")
NO_PROOF: Final = (400, "invalid_dpop_proof")
DENIED: Final = (403, "access_denied")
Attack = tuple[Callable[[World], Shown], tuple[int, str], str, str]
ATTACKS: dict[str, Attack] = {
    "another audience": (
        lambda w: Shown(w.token("other-audience")), INVALID, "credential_audience", "its aud is not ours alone",
    ),
    "two audiences": (
        lambda w: Shown(w.token("two-audiences")), INVALID, "credential_audience", "its aud is not ours alone",
    ),
    "our audience, and account": (
        lambda w: Shown(w.token("full-scope")), INVALID, "credential_audience", "its aud is not ours alone",
    ),
    "no audience": (
        lambda w: Shown(w.token("no-audience")), INVALID, "credential_audience", "its aud is not ours alone",
    ),
    "another realm": (
        lambda w: Shown(w.tokens("elsewhere", OTHER, realm="other")["access_token"], "DPoP"), INVALID,
        "credential_issuer", "its iss is not configured",
    ),
    "the realm by another URL": (
        lambda w: Shown(w.by_http("orders-api", OTHER), "DPoP"), INVALID,
        "credential_issuer", "its iss is not configured",
    ),
    "stolen, with another key": (
        lambda w: Shown(stolen(w, _KEY), "DPoP"), INVALID, "credential_binding", "it is bound to another key",
    ),
    "stolen, as Bearer": (
        lambda w: Shown(stolen(w, _KEY)), INVALID, "credential_binding", "it is bound to another key",
    ),
    "bound, as Bearer": (
        lambda w: Shown(stolen(w, OTHER)), INVALID, "credential_binding",
        "it is shown as Bearer where it is bound, or else as DPoP",
    ),
    "not bound, as DPoP": (
        lambda w: Shown(w.token("plain"), "DPoP"), INVALID, "credential_binding",
        "it is shown as Bearer where it is bound, or else as DPoP",
    ),
    "not bound, where the grant asks for it": (
        lambda w: Shown(w.token("loose")), DENIED, "grant_missing", "no grant matches",
    ),
    "the proof that Keycloak got": (
        lambda w: Shown(token := stolen(w, _KEY), "DPoP", _KEY, w.proof(_KEY, w.token_url, token)), NO_PROOF,
        "dpop_invalid", "its htu is another URL",
    ),
    "the proof of another token": (
        lambda w: Shown(stolen(w, _KEY), "DPoP", _KEY, w.proof(_KEY, credential=stolen(w, _KEY))), NO_PROOF,
        "dpop_invalid", "its ath is of another credential",
    ),
    "a proof of no token": (
        lambda w: Shown(stolen(w, _KEY), "DPoP", _KEY, w.proof(_KEY)), NO_PROOF, "dpop_invalid",
        "its ath is of another credential",
    ),
    "expired": (expired, INVALID, "credential_time", "it has expired"),
    "for too long": (
        lambda w: Shown(w.token("too-long")), INVALID, "credential_time", "it lives longer than the limit",
    ),
    "a client that no grant names": (
        lambda w: Shown(w.token("stranger", OTHER), "DPoP"), DENIED, "grant_missing", "no grant matches",
    ),
    "an identity of another client": (
        lambda w: Shown(stolen(w, OTHER), "DPoP", body=_NOBODY), DENIED, "grant_missing",
        "no grant for the sub asked for",
    ),
    "a person, through the honest client": (of_a_person, DENIED, "grant_missing", "no grant matches"),
    "an ID token": (
        lambda w: Shown(w.tokens("plain", scope="openid")["id_token"]), INVALID, "credential_audience",
        "its aud is not ours alone",
    ),
    "an ID token of a client that is called as the authority": (
        lambda w: Shown(w.tokens(w.url, scope="openid")["id_token"]), DENIED, "grant_missing", "no grant matches",
    ),
    "a refresh token": (
        lambda w: Shown(w.tokens("plain")["refresh_token"]), INVALID, "credential_malformed",
        "its alg is not on the list",
    ),
    "an algorithm that is not ours": (
        lambda w: Shown(w.token("by-RS512")), INVALID, "credential_malformed", "its alg is not on the list",
    ),
    "another client's name in it": (
        lambda w: unsigned(w, lambda _, claims: claims.update(client_id="loose"), keep=True), INVALID,
        "credential_signature", "",
    ),
    "without a signature": (
        lambda w: unsigned(w, lambda header, _: header.update(alg="none"), keep=False), INVALID,
        "credential_malformed", "its alg is not on the list",
    ),
    "the realm's public key as a secret": (
        lambda w: unsigned(w, lambda header, _: header.update(alg="HS256"), keep=True), INVALID,
        "credential_malformed", "its alg is not on the list",
    ),
    "a key of Keycloak's own realm": (
        lambda w: unsigned(w, lambda header, _: header.update(kid=w.foreign_kid()), keep=True), INVALID,
        "credential_key", "its kid is unknown",
    ),
}  # fmt: skip
