"""The authority: whose credential gets which identity, and what everybody else gets. No network."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mqauth import CallableSink, ConfigurationError, FloodGate
from mqauth.audit.chain import verify_chain
from mqauth.audit.record import AuditRecord
from mqauth.authority.credential import Refusal, Refused
from mqauth.authority.issuing import Grant, IdentityAuthority, Rate, Trace
from mqauth.testing import FakeClock
from mqauth.wire import base64url, identity, jwk
from mqauth.wire.keys import Key, KeySet, Revocation, public_members
from tests.authority_world import (
    ACCOUNT,
    CLUSTER,
    DOMAIN,
    MACHINES,
    ORDERS,
    STOCK,
    URL,
    World,
)
from tests.conftest import away

OTHER = Key.generate("EdDSA")
RSA = Key.generate("RS256")


@pytest.fixture
def world(tmp_path: Path) -> World:
    """An authority and those who ask it."""
    return World(tmp_path)


# --- what honest workloads get ------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["DPoP", "dpop"])
@pytest.mark.parametrize("more", [{}, {"kc-jkt-type": "DPoP"}])
def test_a_bound_credential_counts_for_its_key(
    world: World, scheme: str, more: dict[str, str]
) -> None:
    """A credential that is bound to the key that asks gets its identity; Keycloak's says one thing more."""
    bound = world.credential(claims={"cnf": {"jkt": world.key.kid} | more})
    assert world.ask(bound, scheme=scheme).status == 200


@pytest.mark.parametrize(
    ("bound", "scheme"), [(True, "Bearer"), (True, "bearer"), (False, "DPoP")]
)
def test_a_scheme_that_belies_its_credential(
    world: World, bound: bool, scheme: str
) -> None:
    """A bound credential is none of Bearer, and an unbound one none of DPoP (RFC 9449, sections 7.1 and 7.2)."""
    credential = world.credential(claims={"cnf": {"jkt": world.key.kid}} if bound else {})
    found = world.ask(credential, scheme=scheme)
    (record,) = world.records()
    assert (found.status, found.body) == (401, {"error": "invalid_client"})
    assert (record["verdict"], record["reason"]) == (
        "identity_refused",
        "credential_binding",
    )


def test_an_issuance_is_recorded_before_it_is_answered(world: World) -> None:
    """The record of an identity names subject, key, WIT, and who asked with what, and never the WIT itself."""
    wit = world.ask().body["wit"]
    (record,) = world.records()
    said, asked = record["token"]["verified"], record["asked"]
    assert (record["verdict"], record["scope"], said["sub"]) == (
        "identity_issued",
        DOMAIN,
        ORDERS,
    )
    assert said["identity"]["jkt"] == world.key.kid
    assert said["jti"] == identity.parse_wit(wit.encode()).identity.jti
    assert asked["address"] == "10.0.0.7"
    assert asked["credential"] == {
        "name": "cluster", "verified": True, "kid": world.cluster.kid, "iss": CLUSTER, "sub": ACCOUNT, "jti": "t1",
    }  # fmt: skip
    assert not re.search(r"eyJ[\w-]+\.", world.path.read_text())
    assert verify_chain(world.path).intact


def test_an_answer_that_was_lost_is_asked_for_again(world: World) -> None:
    """The same request once more gets another WIT for the same key: nothing is remembered, and nothing lost."""
    credential = world.credential()
    proof = world.proof(credential)
    wits = [world.ask(credential, proof).body["wit"] for _ in range(2)]
    assert [identity.parse_wit(wit.encode()).identity.jkt for wit in wits] == [
        world.key.kid
    ] * 2
    assert wits[0] != wits[1]
    assert [record["verdict"] for record in world.records()] == ["identity_issued"] * 2


# --- who gets nothing ---------------------------------------------------------------------------------------

Attack = Callable[[World], Any]
_CREDENTIALS: dict[str, tuple[Attack, Refusal]] = {
    "another audience": (lambda w: w.credential(claims={"aud": "https://o.example"}), Refusal.CREDENTIAL_AUDIENCE),
    "one more audience": (lambda w: w.credential(claims={"aud": [URL, "https://o"]}), Refusal.CREDENTIAL_AUDIENCE),
    "our url with a slash": (lambda w: w.credential(claims={"aud": URL + "/"}), Refusal.CREDENTIAL_AUDIENCE),
    "no audience": (lambda w: w.credential(claims={"aud": None}), Refusal.CREDENTIAL_AUDIENCE),
    "of another key": (lambda w: w.credential(key=RSA), Refusal.CREDENTIAL_KEY),
    "another key under the kid": (
        lambda w: w.credential(key=RSA, header={"kid": w.cluster.kid}), Refusal.CREDENTIAL_SIGNATURE,
    ),
    "another algorithm": (lambda w: w.credential(header={"alg": "PS256"}), Refusal.CREDENTIAL_SIGNATURE),
    "none": (lambda w: w.credential(header={"alg": "none"}), Refusal.CREDENTIAL_MALFORMED),
    "HS256": (lambda w: w.credential(header={"alg": "HS256"}), Refusal.CREDENTIAL_MALFORMED),
    "no kid": (lambda w: w.credential(header={"kid": ""}), Refusal.CREDENTIAL_MALFORMED),
    "crit": (lambda w: w.credential(header={"crit": ["exp"]}), Refusal.CREDENTIAL_MALFORMED),
    "a WIT": (lambda w: w.credential(header={"typ": "wit+jwt"}), Refusal.CREDENTIAL_MALFORMED),
    "a token of ours": (lambda w: w.credential(header={"typ": "mqauth+jwt"}), Refusal.CREDENTIAL_MALFORMED),
    "a proof": (lambda w: w.credential(header={"typ": "dpop+jwt"}), Refusal.CREDENTIAL_MALFORMED),
    "unknown issuer": (lambda w: w.credential(claims={"iss": "https://evil"}), Refusal.CREDENTIAL_ISSUER),
    "an issuer that is no text": (lambda w: w.credential(claims={"iss": [CLUSTER]}), Refusal.CREDENTIAL_ISSUER),
    "another issuer's key": (lambda w: w.credential(claims={"iss": MACHINES}), Refusal.CREDENTIAL_MALFORMED),
    "too old": (lambda w: w.credential(claims={"iat": 1, "nbf": 1, "exp": 3601}), Refusal.CREDENTIAL_TIME),
    "ends now": (
        lambda w: w.credential(claims={"iat": int(w.clock.now()) - 10, "exp": int(w.clock.now())}),
        Refusal.CREDENTIAL_TIME,
    ),
    "of the future": (
        lambda w: w.credential(claims={"iat": int(w.clock.now()) + 61}), Refusal.CREDENTIAL_TIME,
    ),
    "not yet": (lambda w: w.credential(claims={"nbf": int(w.clock.now()) + 61}), Refusal.CREDENTIAL_TIME),
    "too long": (
        lambda w: w.credential(claims={"exp": int(w.clock.now()) + 7201}), Refusal.CREDENTIAL_TIME,
    ),
    "no exp": (lambda w: w.credential(claims={"exp": None}), Refusal.CREDENTIAL_MALFORMED),
    "float exp": (lambda w: w.credential(claims={"exp": w.clock.now() + 60.5}), Refusal.CREDENTIAL_MALFORMED),
    "true as iat": (lambda w: w.credential(claims={"iat": True}), Refusal.CREDENTIAL_MALFORMED),
    "no sub": (lambda w: w.credential(claims={"sub": None}), Refusal.CREDENTIAL_MALFORMED),
    "bound to another key": (
        lambda w: w.credential(claims={"cnf": {"jkt": OTHER.kid}}), Refusal.CREDENTIAL_BINDING,
    ),
    "bound to a certificate": (
        lambda w: w.credential(claims={"cnf": {"x5t#S256": "a" * 43}}), Refusal.CREDENTIAL_BINDING,
    ),
    "bound to a certificate too": (
        lambda w: w.credential(claims={"cnf": {"jkt": w.key.kid, "x5t#S256": "a" * 43}}),
        Refusal.CREDENTIAL_BINDING,
    ),
    "bound to another key of another kind too": (
        lambda w: w.credential(claims={"cnf": {"jkt": w.key.kid, "jwk": {"kty": "oct"}}}),
        Refusal.CREDENTIAL_BINDING,
    ),
    "bound to no text": (lambda w: w.credential(claims={"cnf": {"jkt": [w.key.kid]}}), Refusal.CREDENTIAL_BINDING),
    "bound to nothing": (lambda w: w.credential(claims={"cnf": {}}), Refusal.CREDENTIAL_BINDING),
    "over 8,192 bytes": (lambda w: w.credential(claims={"more": "x" * 6200}), Refusal.CREDENTIAL_MALFORMED),
    "no JWT": (lambda w: "secret", Refusal.CREDENTIAL_MALFORMED),
    "four segments": (lambda w: w.credential() + ".x", Refusal.CREDENTIAL_MALFORMED),
    "padding": (lambda w: w.credential() + "=", Refusal.CREDENTIAL_MALFORMED),
    "a machine for another machine": (
        lambda w: w.enrolment(claims={"sub": "stock-api"}), Refusal.CREDENTIAL_SUBJECT,
    ),
    "a machine for too long": (
        lambda w: w.enrolment(claims={"exp": int(w.clock.now()) + 301}), Refusal.CREDENTIAL_TIME,
    ),
    "a machine's token without its type": (
        lambda w: w.enrolment(header={"typ": "JWT"}), Refusal.CREDENTIAL_MALFORMED,
    ),
    "a machine's message token": (
        lambda w: w.enrolment(header={"typ": "mqauth+jwt"}), Refusal.CREDENTIAL_MALFORMED,
    ),
    "a cluster's token as a machine's": (
        lambda w: w.credential(header={"typ": "mqauth-enrol+jwt"}), Refusal.CREDENTIAL_MALFORMED,
    ),
    "not granted": (
        lambda w: w.credential(claims={"sub": "system:serviceaccount:shop:other"}), Refusal.GRANT_MISSING,
    ),
}  # fmt: skip
CODES = {"grant_missing": (403, "access_denied")}


@pytest.mark.parametrize("name", _CREDENTIALS)
def test_credentials_that_get_nothing(world: World, name: str) -> None:
    """Whatever is wrong with a credential has one answer, and the audit says what it was."""
    make, refusal = _CREDENTIALS[name]
    found = world.ask(make(world))
    status, error = CODES.get(refusal.value, (401, "invalid_client"))
    (record,) = world.records()
    assert (found.status, found.body) == (status, {"error": error})
    assert (record["verdict"], record["reason"]) == ("identity_refused", refusal.value)
    assert not re.search(r"eyJ[\w-]+\.", world.path.read_text())


_PROOFS: dict[str, Callable[[World, str], Any]] = {
    "another url": lambda w, c: w.proof(
        c, claims={"htu": "https://other.example/v1/identity"}
    ),
    "its url without the path": lambda w, c: w.proof(c, claims={"htu": URL}),
    "another method": lambda w, c: w.proof(c, claims={"htm": "GET"}),
    "another credential": lambda w, c: w.proof("other"),
    "no credential": lambda w, c: w.proof(c, claims={"ath": None}),
    "too old": lambda w, c: w.proof(c, claims={"iat": int(w.clock.now()) - 61}),
    "of the future": lambda w, c: w.proof(c, claims={"iat": int(w.clock.now()) + 61}),
    "float iat": lambda w, c: w.proof(c, claims={"iat": w.clock.now()}),
    "no iat": lambda w, c: w.proof(c, claims={"iat": None}),
    "no jti": lambda w, c: w.proof(c, claims={"jti": None}),
    "another type": lambda w, c: w.proof(c, header={"typ": "mqauth-pop+jwt"}),
    "kid": lambda w, c: w.proof(c, header={"kid": "k"}),
    "no jwk": lambda w, c: w.proof(c, header={"jwk": None}),
    "a private jwk": lambda w, c: w.proof(
        c, header={"jwk": public_members(w.key.public) | {"d": "AAAA"}}
    ),
    "a key without possession": lambda w, c: w.proof(c, signer=OTHER),
    "another key in its header": lambda w, c: w.proof(
        c, header={"jwk": public_members(OTHER.public)}
    ),
    "an alg of its own": lambda w, c: w.proof(
        c, header={"jwk": public_members(w.key.public) | {"alg": "Ed25519"}}
    ),
    "RSA": lambda w, c: w.proof(c, key=RSA),
    "small order": lambda w, c: w.proof(
        c,
        header={
            "jwk": {
                "kty": "OKP",
                "crv": "Ed25519",
                "x": base64url.encode(bytes(32)).decode(),
            }
        },
    ),
    "none": lambda w, c: w.proof(c, header={"alg": "none"}),
    "no JWT": lambda w, c: "x",
}


@pytest.mark.parametrize("name", _PROOFS)
def test_proofs_that_prove_nothing(world: World, name: str) -> None:
    """Without possession of the key, for this request and this credential, there is no identity."""
    credential = world.credential()
    found = world.ask(credential, _PROOFS[name](world, credential))
    (record,) = world.records()
    assert (found.status, found.body) == (400, {"error": "invalid_dpop_proof"})
    assert (record["verdict"], record["reason"]) == ("identity_refused", "dpop_invalid")
    assert "credential" not in record["asked"]


def test_the_counts_of_the_attacks() -> None:
    """So many credentials and proofs were tried."""
    assert (len(_CREDENTIALS), len(_PROOFS)) == (42, 21)


@pytest.mark.parametrize("typ", ["mqauth-enrol+jwt", "JWT"])
def test_a_key_without_subjects_enrols_nobody(world: World, typ: str) -> None:
    """A machine's key that names no subject itself could ask for any grant: it gets none."""
    pinned = Key.generate("EdDSA")
    world.sources[MACHINES] = KeySet([pinned])
    world.server._authority = world.start()
    found = world.ask(world.enrolment(key=pinned, header={"typ": typ}))
    assert found.status == 401


@pytest.mark.parametrize(
    "change", [{"revocation": Revocation(revoked_at=2**40)}, {"expires": 1_900_000_000}]
)
def test_a_key_that_ended_signs_no_credential(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    """A revoked or retired key of an issuer counts for no credential, whenever it says it was signed."""
    from dataclasses import replace

    world = World(tmp_path)
    world.sources[CLUSTER] = KeySet([replace(world.cluster, **change)])
    world.server._authority = world.start()
    assert world.ask().status == 401
    assert world.records()[0]["reason"] == "credential_key"


# --- grants ---------------------------------------------------------------------------------------------------


def test_of_two_grants_one_has_to_be_named(tmp_path: Path) -> None:
    """Where a credential matches two subjects, the request names one; another one it does not get."""
    grants = [
        Grant(credential="cluster", match={"sub": ACCOUNT}, subject=each)
        for each in (ORDERS, STOCK)
    ]
    world = World(tmp_path, grants=grants)
    asked = [
        b"",
        json.dumps({"sub": STOCK}).encode(),
        json.dumps({"sub": f"{DOMAIN}/root"}).encode(),
    ]
    found = [world.ask(body=body) for body in asked]
    assert [(each.status, each.body.get("error")) for each in found] == [
        (400, "invalid_request"), (200, None), (403, "access_denied"),
    ]  # fmt: skip
    assert found[1].body["sub"] == STOCK
    assert [record["reason"] for record in world.records()] == [
        "subject_ambiguous",
        None,
        "grant_missing",
    ]


def test_grants_match_exactly(tmp_path: Path) -> None:
    """All claims of a grant must be there as this very text; neither a part nor another type matches."""
    grant = Grant(
        credential="cluster", match={"sub": ACCOUNT, "tenant": "1"}, subject=ORDERS
    )
    world = World(tmp_path, grants=[grant])
    statuses = [
        world.ask(world.credential(claims=claims)).status
        for claims in (
            {"tenant": "1"},
            {"tenant": 1},
            {"tenant": ["1"]},
            {"tenant": "1 "},
            {},
        )
    ]
    assert statuses == [200, 403, 403, 403, 403]


@pytest.mark.parametrize(
    "change",
    [
        {"claims": {"sub": "x"}},
        {"claims": {"cnf": "x"}}, {"claims": {f"c{number}": "x" for number in range(17)}},
        {"claims": {f"c{number}": "x" * 250 for number in range(7)}},
    ],
)  # fmt: skip
def test_grants_that_are_refused(change: dict[str, Any]) -> None:
    """A grant that would change what a WIT means, or make it too large, is no grant."""
    with pytest.raises(ConfigurationError):
        Grant(**({"credential": "c", "match": {"sub": "a"}, "subject": ORDERS} | change))


def test_a_grant_of_all_it_may_say_fits_into_a_wit(tmp_path: Path) -> None:
    """The largest claims of a grant, in a subject of full length and for the largest key, are a WIT still."""
    claims = {f"c{number}": "x" * 240 for number in range(6)}
    subject = f"{DOMAIN}/{'s' * (255 - len(DOMAIN))}"
    world = World(
        tmp_path,
        grants=[
            Grant(
                credential="cluster",
                match={"sub": ACCOUNT},
                subject=subject,
                claims=claims,
            )
        ],
    )
    world.key = Key.generate("ES384")
    assert world.ask().status == 200


# --- rates, cut-offs, what is out of reach ------------------------------------------------------------------


def test_a_subject_gets_so_many_a_minute(tmp_path: Path) -> None:
    """Beyond the rate of a subject there is 429 until the minute is over; its address may ask for others."""
    world = World(tmp_path, rate=3, refusals=2)
    found = [world.ask() for _ in range(6)]
    assert [each.status for each in found] == [200, 200, 200, 429, 429, 429]
    assert (found[3].body, found[3].headers[b"retry-after"]) == (
        {"error": "slow_down"},
        b"60",
    )
    assert world.ask("bad").status == 401
    world.clock.advance(60)
    assert world.ask().status == 200


def test_whoever_is_refused_too_often_is_not_read(tmp_path: Path) -> None:
    """After so many refusals an address gets 429 for what it sends, and leaves no record; others are served."""
    world = World(tmp_path, refusals=3)
    found = [world.ask("bad").status for _ in range(5)] + [
        world.ask("bad", address="10.0.0.8").status
    ]
    assert found == [401, 401, 401, 429, 429, 401]
    assert len(world.records()) == 4
    world.clock.advance(60)
    assert world.ask().status == 200


def test_a_neighbour_without_a_credential_shuts_nobody_out(tmp_path: Path) -> None:
    """Who shares an address with others, and asks with nothing, rubbish or a forgery, stops nobody."""
    world = World(tmp_path, refusals=3)
    forged = world.credential(
        claims={"sub": "system:serviceaccount:shop:eve"}, key=Key.generate("ES256")
    )
    assert [world.ask(headers=[]).status for _ in range(5)] == [401, 401, 401, 429, 429]
    assert [world.ask("bad").status, world.ask(forged).status] == [429, 401]
    assert [world.ask(forged).status for _ in range(3)] == [401, 401, 429]
    assert world.ask().status == 200


def test_one_site_of_ipv6_is_one_address(tmp_path: Path) -> None:
    """Whoever has a /64 is one address, not 2^64."""
    world = World(tmp_path, refusals=1)
    assert [world.ask("bad", address=f"2001:db8::{n}").status for n in range(1, 4)] == [
        401,
        429,
        429,
    ]
    assert world.ask("bad", address="2001:db8:0:1::1").status == 401


def test_who_only_looks_counts_for_nothing(clock: FakeClock) -> None:
    """A rate counts what is taken; who only looks takes no room."""
    rate = Rate(2, clock)
    assert [rate.take("a", counts=False) for _ in range(5)] == [0] * 5
    assert [rate.take("a") for _ in range(3)] == [0, 0, 60]


def test_a_flood_of_refusals_is_summed_up(tmp_path: Path) -> None:
    """Beyond 100 refusals of one kind in a minute records have no details any more, and each is still there."""
    world = World(tmp_path, refusals=0)
    for _ in range(120):
        world.ask("bad")
    records = world.records()
    assert len(records) == 120
    assert sum("flood" in record and "asked" not in record for record in records) == 20


def test_a_flood_from_many_addresses_hides_no_other_refusal(clock: FakeClock) -> None:
    """However many addresses flood the audit with one reason, the first refusals of another one say who asked."""
    written: list[AuditRecord] = []
    gate = FloodGate(CallableSink(written.append), flood_after=1)
    nothing: Any = None
    authority = IdentityAuthority(
        trust_domain=DOMAIN, desk=nothing, keys=nothing, audit=gate, clock=clock
    )
    refused = Refused(Refusal.CREDENTIAL_SIGNATURE, "forged")
    for address in (
        f"2001:db8:0:{number:x}::/64" for number in range(26) for _ in range(4)
    ):
        authority.refuse(refused, Trace(address))
    authority.refuse(refused, Trace("10.0.0.3"))
    assert ["asked" in record.extra for record in written[-2:]] == [False, True]


@pytest.mark.parametrize("ask", [World.ask, lambda world: world.ask("bad")])
def test_without_audit_there_is_no_answer(
    world: World, ask: Callable[[World], Any]
) -> None:
    """Where a record cannot be written, neither an identity nor a refusal is given: 503."""
    world.file.close()
    found = ask(world)
    assert (found.status, found.body) == (503, {"error": "temporarily_unavailable"})
    assert found.headers[b"retry-after"] == b"5"


def test_without_a_key_there_is_no_identity(world: World) -> None:
    """A keystore whose only key was revoked gives no identity: 503, and no record of one."""
    (key,) = world.keystore.ring().keys
    from mqauth.keystore.disk import ring

    world.keystore.change(
        lambda found, now: ring.revoke(found, key.kid, now, reason="stolen")
    )
    world.clock.advance(10)
    assert world.ask().status == 503
    assert world.records() == []


def test_an_issuer_out_of_reach_is_503(tmp_path: Path) -> None:
    """Without the keys of a credential's issuer nothing is said of the credential."""
    world = World(tmp_path)
    world.sources[CLUSTER] = away()
    world.server._authority = world.start()
    assert world.ask().status == 503
    assert world.ask(world.enrolment()).status == 200


def test_a_cut_off_is_published_and_ends_with_its_moment(world: World) -> None:
    """A subject that is cut off stands in the JWK Set; what is issued from its moment on counts again."""
    cut = world.keystore.cut_off(ORDERS, reason="stolen")
    keys = jwk.load_key_set(world.request("GET", "/jwks.json").body)
    assert keys.cutoffs[ORDERS].before == cut.before == int(world.clock.now()) + 1
    assert world.ask().status == 403
    assert world.records()[0]["reason"] == "subject_cut_off"
    world.clock.advance(1)
    assert world.ask().status == 200


# --- requests ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"x",
        b"[]",
        b'{"sub":1}',
        b'{"sub":""}',
        b'{"sub":"a","sub":"a"}',
        b'{"key":"a"}',
        b" " * 16_385,
    ],
)
def test_bodies_that_are_none(world: World, body: bytes) -> None:
    """A body is nothing, or an object with ``sub``, of at most 16 KiB."""
    found = world.ask(body=body)
    assert (found.status, found.body) == (400, {"error": "invalid_request"})
    assert world.records()[0]["reason"] == "request_malformed"


def test_headers_stand_once(world: World) -> None:
    """Two credentials, two proofs, none of them, or another scheme get nothing."""
    credential = world.credential()
    bearer, dpop = (
        (b"authorization", f"Bearer {credential}".encode()),
        (b"dpop", world.proof(credential).encode()),
    )
    tried = [[bearer], [dpop], [], [bearer, bearer, dpop], [bearer, dpop, dpop],
             [(b"authorization", b"Basic eA=="), dpop], [(b"authorization", b"Bearer \xff"), dpop]]  # fmt: skip
    found = [world.ask(headers=headers) for headers in tried]
    assert [each.status for each in found] == [400, 401, 401, 401, 400, 401, 401]
    assert all(
        b"DPoP algs=" in each.headers[b"www-authenticate"]
        for each in found
        if each.status == 401
    )


def test_other_paths_are_the_key_servers(world: World) -> None:
    """The JWK Set is fresh for a minute at most, health says how many keys sign, and all else is not there."""
    assert (
        world.request("GET", "/jwks.json").headers[b"cache-control"]
        == b"public, max-age=60"
    )
    assert world.request("GET", "/healthz").body == {
        "status": "ok",
        "keys": 1,
        "active": 1,
    }
    assert world.request("GET", "/v1/identity").status == 405
    assert world.request("POST", "/v1/other").status == 404


# --- misuse ---------------------------------------------------------------------------------------------------


def test_one_key_under_two_subjects_is_an_alert(tmp_path: Path) -> None:
    """Whoever enrols another's key, or one key twice, is noticed."""
    grants = [
        Grant(credential="cluster", match={"sub": ACCOUNT}, subject=each)
        for each in (ORDERS, STOCK)
    ]
    world = World(tmp_path, grants=grants)
    for subject in (ORDERS, ORDERS, STOCK):
        world.ask(body=json.dumps({"sub": subject}).encode())
    assert world.alerts() == ["shared_identity_key"]


def test_more_identities_than_instances_is_an_alert(world: World) -> None:
    """The 65th identity of a subject that is alive at once is noticed; those that ended do not count."""
    for number in range(65):
        world.key = OTHER
        assert world.ask().status == 200
        assert world.alerts() == (["many_identities"] if number == 64 else [])
    world.clock.advance(3600)
    world.ask()
    assert world.alerts() == ["many_identities"]


def test_another_credential_than_ever_is_an_alert(world: World) -> None:
    """A subject that comes by another issuer's credential is noticed, once for each."""
    for _ in range(2):
        world.ask()
        world.clock.advance(700)
    world.ask(world.enrolment())
    world.ask(world.enrolment())
    assert world.alerts() == ["new_credential"]
