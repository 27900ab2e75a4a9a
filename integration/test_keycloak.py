"""Access tokens of a real Keycloak are credentials for a real authority: who gets an identity by them, and who not.

It takes minutes, so it is of the nightly form: ``python -m integration test --nightly`` runs it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import pytest

from integration.keycloak_world import DOMAIN, ORDERS, REALM, STOCK, World, parts, until
from integration.services.keycloak import Keycloak
from mqauth import ClientCredentials, Unavailable
from mqauth.keystore.identity.credentials import Asking
from mqauth.wire import base64url, strict_json
from mqauth.wire.keys import Key, thumbprint

pytestmark = pytest.mark.slow

BOUND: Final = {"dpop.bound.access.tokens": "true"}
ALGORITHMS: Final = ("PS256", "ES256", "ES384", "EdDSA")
"""Of access tokens, beside Keycloak's RS256."""
OTHER: Final = Key.generate()
"""A thief's key."""


@pytest.fixture(scope="module")
def world(keycloak: Keycloak, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A realm with an honest client and many others, and an authority that runs."""
    found = World(keycloak, tmp_path_factory.mktemp("keycloak"))
    found.realm(REALM, *clients(found))
    found.realm("other", found.client("elsewhere", attributes=BOUND))
    found.user("ada")
    # A realm makes the key of an algorithm when it first needs it; the authority then gets all of them at once.
    for algorithm in ALGORITHMS:
        found.token(f"by-{algorithm}")
    with found.serving():
        yield found
    found.close()


def clients(world: World) -> list[Any]:
    """Return the clients of the realm."""
    return [
        world.client("orders-api", attributes=BOUND, directAccessGrantsEnabled=True),
        world.client("brief", attributes=BOUND),
        world.client("stranger", attributes=BOUND),
        world.client("plain", attributes={"client_credentials.use_refresh_token": "true"}),
        world.client("loose"),
        world.client("of-a-second", attributes={"access.token.lifespan": "1"}),
        world.client("too-long", attributes={"access.token.lifespan": "3700"}),
        world.client("rfc9068", attributes={"access.token.header.type.rfc9068": "true"}),
        world.client("other-audience", "https://other.example"),
        world.client("two-audiences", world.url, "https://other.example"),
        world.client("full-scope", fullScopeAllowed=True),
        world.client("no-audience") | {"protocolMappers": []},
        world.client(world.url),
        *(
            world.client(f"by-{algorithm}", attributes={"access.token.signed.response.alg": algorithm})
            for algorithm in ALGORITHMS
        ),
    ]


class Seen:
    """A credential that keeps what it showed, and for which key.

    Args:
        credential: what makes it.
    """

    def __init__(self, credential: ClientCredentials) -> None:
        self._credential = credential
        self.shown: list[tuple[str, str, str]] = []

    def __call__(self, asking: Asking, /) -> tuple[str, str]:
        """Return what the other one makes."""
        scheme, token = self._credential(asking)
        self.shown.append((scheme, token, thumbprint(asking.key.public)))
        return scheme, token


def signed_and_judged(world: World) -> tuple[int, Any]:
    """Sign a message by the settings of a producer, and return the verdict by those of a consumer."""
    signed = world.mqauth("sign", "--config", "producer.toml", "--to", "kafka:orders", given="{}")
    assert signed.returncode == 0, signed.stderr
    judged = world.mqauth("verify", "--config", "consumer.toml", given=signed.stdout)
    return judged.returncode, json.loads(judged.stdout)


# --- honest producers ---------------------------------------------------------------------------------------


def test_a_producer_signs_and_a_consumer_accepts(world: World) -> None:
    """By settings alone a producer gets its identity with a secret, and a consumer accepts what it signs."""
    code, verdict = signed_and_judged(world)
    assert (code, verdict["verdict"]) == (0, "accepted")
    assert (verdict["claims"]["iss"], verdict["claims"]["sub"]) == (DOMAIN, ORDERS)
    assert [record["verdict"] for record in world.records()][-1] == "identity_issued"


def test_each_identity_has_a_fresh_key_that_its_token_is_bound_to(world: World) -> None:
    """The access token says ``cnf.jkt`` of the new key, and so does the identity; it is renewed for another key."""
    seen = Seen(world.credentials("brief"))
    with world.enrolled("brief", STOCK, seen) as enrolled:
        first = enrolled.signing_key().identity.jkt
        until(lambda: enrolled.health().counters["renewed"] >= 2)
        second = enrolled.signing_key().identity.jkt
    assert first != second
    (scheme, token, key), (_, next_token, next_key) = seen.shown[:2]
    assert (scheme, key, next_key) == ("DPoP", first, second)
    assert [parts(each)[1]["cnf"]["jkt"] for each in (token, next_token)] == [first, second]
    given = [record for record in world.records() if record["verdict"] == "identity_issued"]
    assert [record["asked"]["jkt"] for record in given if record["token"]["verified"]["sub"] == STOCK][:2] == [
        first, second,
    ]  # fmt: skip


@pytest.mark.parametrize("algorithm", ["EdDSA", "ES256", "ES384"])
def test_keycloak_takes_a_proof_of_each_algorithm(world: World, algorithm: str) -> None:
    """Keycloak binds a token to a key of each algorithm that an identity may have."""
    key = Key.generate(algorithm)
    answered = world.ask(world.token("orders-api", key), key)
    assert (answered.status, answered.body["sub"]) == (200, ORDERS)


@pytest.mark.parametrize("client", ["rfc9068", *(f"by-{algorithm}" for algorithm in ALGORITHMS)])
def test_tokens_of_each_kind_are_read(world: World, client: str) -> None:
    """Tokens of each algorithm, and those with ``typ`` at+jwt, are believed; only the grant is missing."""
    answered = world.ask(world.token(client), OTHER, scheme="Bearer")
    assert (answered.status, answered.record["reason"]) == (403, "grant_missing")
    assert answered.record["asked"]["credential"]["verified"] is True


def test_a_token_that_is_not_bound_gets_what_its_grant_says(world: World) -> None:
    """A grant that does not ask for DPoP takes a bearer token, with a proof of the key that is vouched for."""
    assert world.ask(world.token("plain"), OTHER, scheme="Bearer").status == 200


# --- attacks ------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_get_nothing(world: World, name: str) -> None:
    """What is wrong with a token has its answer, and the audit record says what it was, and never the token."""
    make, (status, error), reason, detail = ATTACKS[name]
    token, scheme, key, proof, body = make(world)
    answered = world.ask(token, key, scheme=scheme, proof=proof, body=body)
    assert (answered.status, answered.body) == (status, {"error": error})
    assert answered.record is not None
    assert (answered.record["verdict"], answered.record["reason"]) == ("identity_refused", reason)
    assert detail in answered.record["detail"]
    assert token.rpartition(".")[2][-20:] not in json.dumps(answered.record) or not token.rpartition(".")[2]


def test_the_count_of_the_attacks() -> None:
    """So many were tried on the real Keycloak."""
    assert len(ATTACKS) == 26


def test_keycloak_gives_no_token_without_a_proof(world: World) -> None:
    """With the switch of DPoP on, a client that shows no proof gets nothing, whatever secret it has."""
    with pytest.raises(ValueError, match="400 .*DPoP proof is missing"):
        world.token("orders-api")


def test_a_wrong_secret(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The error names Keycloak's host and its answer, never the secret, and the authority is not asked."""
    secret, before = "a-wrong-secret-of-mine", len(world.records())
    path = world.folder / "wrong.secret"
    path.touch(0o600)
    path.write_text(secret)
    given = ClientCredentials(
        world.token_url, client_id="orders-api", client_secret_file=path, ca=world.keycloak.ca
    )
    with world.enrolled("orders-api", ORDERS, given) as enrolled, pytest.raises(Unavailable) as caught:
        enrolled.signing_key()
    host = world.token_url.split("/")[2]
    assert f"the token endpoint {host}: refused, 401 unauthorized_client" in str(caught.value)
    assert secret not in f"{caught.value!r}{caught.value.__cause__!r}{caplog.text}"
    assert host in caplog.text
    assert len(world.records()) == before
