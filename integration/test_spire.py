"""A real SPIRE says who a producer is: by JWT-SVIDs for our authority, and by WIT-SVIDs in each message.

SPIRE is built once, which takes long, so this is of the nightly form: ``python -m integration test --nightly``.
"""

from __future__ import annotations

import base64
import json
import re
import ssl
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from integration.services.machine import CommandError
from integration.services.spire import Agent, Spire, program
from integration.spire_world import (
    DOMAIN,
    ORDERS,
    STOCK,
    SUBJECT,
    Shop,
    completed,
    mint,
    parts,
    settings,
    until,
)
from mqauth import (
    ConfigurationError,
    Key,
    Message,
    Outcome,
    Signer,
    Verdict,
    WITKey,
    load,
)
from mqauth.flow import run
from mqauth.wire import jwk
from mqauth.wire.message import TOKEN_HEADER
from tests.vectors.spire import SpireForge, bundle

pytestmark = pytest.mark.slow

OTHER: Final = "https://other.example"
BODY: Final = b'{"order": 1}'
WIT_ISSUER: Final = 'wit_issuer = "https://spire.prod.example"'


@pytest.fixture(scope="module")
def agent(spire: Spire) -> Iterator[Agent]:
    """An agent of it."""
    found = spire.agent()
    yield found
    found.close()


@pytest.fixture(scope="module")
def stranger() -> Iterator[Spire]:
    """A server of another trust domain that bears the same ``jwt_issuer``."""
    with Spire.launch("other.example", settings()) as found:
        yield found


@pytest.fixture(scope="module")
def twin() -> Iterator[Spire]:
    """A server of the same trust domain with keys of its own, and no ``jwt_issuer``; its WIT-SVIDs say ``iss``."""
    unnamed = settings().partition("\n")[2]
    with Spire.launch(
        DOMAIN, unnamed.replace("experimental {", f"experimental {{\n    {WIT_ISSUER}")
    ) as found:
        yield found


@pytest.fixture(scope="module")
def shop(
    spire: Spire, agent: Agent, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shop]:
    """Someone who followed the page's part on JWT-SVIDs; its authority runs."""
    found = Shop(spire, agent, tmp_path_factory.mktemp("shop"))
    with found.following():
        yield found
    found.close()


@pytest.fixture(scope="module")
def trial(shop: Shop) -> Shop:
    """The same person, who followed the part on WIT-SVIDs too."""
    shop.follow(parts()[1])
    return shop


def opened(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return header and claims of a JWT, unverified."""
    header, claims = (
        json.loads(base64.urlsafe_b64decode(part + "==")) for part in token.split(".")[:2]
    )
    return header, claims


# --- JWT-SVIDs as credentials -------------------------------------------------------------------------------


def test_the_page_ends_with_an_accepted_message(shop: Shop) -> None:
    """Whoever follows the page has a message accepted; the audit has the SPIFFE ID that asked."""
    dry, verdict = shop.printed[-2], json.loads(shop.printed[-1])
    assert f"{SUBJECT}: matches" in dry
    assert (verdict["verdict"], verdict["claims"]["sub"]) == ("accepted", SUBJECT)
    issued = next(
        record for record in shop.records() if record["verdict"] == "identity_issued"
    )
    assert issued["asked"]["credential"]["sub"] == ORDERS


def test_a_jwt_svid_has_the_shape_that_the_page_tells(shop: Shop) -> None:
    """It is an ES256 JWT of five minutes for one audience, and says the name of the server."""
    header, claims = opened(shop.jwt(ORDERS, shop.url))
    assert (header.keys(), header["typ"], header["alg"]) == (
        {"alg", "kid", "typ"},
        "JWT",
        "ES256",
    )
    assert claims.keys() == {"aud", "exp", "iat", "iss", "sub"}
    assert (claims["aud"], claims["iss"], claims["sub"]) == (
        [shop.url],
        "https://spire.prod.example",
        ORDERS,
    )
    assert claims["exp"] - claims["iat"] == 300


def other_id(shop: Shop, _stranger: Spire, _twin: Spire) -> str:
    """Return a JWT-SVID of another workload of the same user."""
    shop.register(STOCK)
    return shop.jwt(STOCK, shop.url)


def minted(spire: Spire, url: str, subject: str = ORDERS, ttl: str = "60s") -> str:
    """Return a JWT-SVID that a server's administrator mints."""
    return str(
        mint(spire, "jwt", "-audience", url, "-ttl", ttl, subject=subject)["svid"][
            "token"
        ]
    )


REFUSED: Final[dict[str, tuple[Callable[[Shop, Spire, Spire], str], str, str]]] = {
    "for another audience": (lambda shop, *_: shop.jwt(ORDERS, OTHER), "401", "credential_audience"),
    "for two audiences": (lambda shop, *_: shop.jwt(ORDERS, shop.url, OTHER), "401", "credential_audience"),
    "of another SPIFFE ID": (other_id, "403", "grant_missing"),
    "of another trust domain": (
        lambda shop, stranger, _: minted(stranger, shop.url, f"spiffe://{stranger.domain}/shop/orders-api"),
        "401", "credential_key",
    ),
    "of a server without jwt_issuer": (lambda shop, _, twin: minted(twin, shop.url), "401", "credential_issuer"),
    "of an hour": (lambda shop, *_: minted(shop.spire, shop.url, ttl="1h"), "401", "credential_time"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_other_credentials_are_refused(
    what: str, shop: Shop, stranger: Spire, twin: Spire
) -> None:
    """Each one is refused, and the audit record has the reason that the page names."""
    make, status, reason = REFUSED[what]
    answered = shop.ask(make(shop, stranger, twin))
    assert status in answered.error
    assert (answered.record["verdict"], answered.reason) == ("identity_refused", reason)


def test_the_bundle_endpoint_is_a_source_of_keys(shop: Shop, spire: Spire) -> None:
    """``jwks`` and ``ca`` in place of the file read the same keys from the endpoint with ``https_web``."""
    text = (shop.folder / "authority.toml").read_text()
    there = text.replace(
        'file = "bundle.json"', f'jwks = "{spire.bundles}"\nca = "{spire.ca}"'
    )
    (shop.folder / "by-url.toml").write_text(there.replace("enrolment = false\n", ""))
    (shop.folder / "honest").write_text(shop.jwt(ORDERS, shop.url))
    assert SUBJECT in shop.run(
        "mqauth authority grants --config by-url.toml --token honest"
    )


def test_a_bundle_without_enrolment_false_starts_no_authority(shop: Shop) -> None:
    """The error is the one that the page explains."""
    text = (shop.folder / "authority.toml").read_text()
    (shop.folder / "mistaken.toml").write_text(
        text.replace("enrolment = false\nmax_lifetime = 600\n", "")
    )
    assert "no key that can be used" in shop.fails(
        "mqauth authority grants --config mistaken.toml --token token"
    )


def test_a_rotated_and_revoked_key_ends_its_credentials(shop: Shop, spire: Spire) -> None:
    """A new key counts once the bundle was fetched again, and what the revoked one signed counts no more."""
    old = shop.jwt(ORDERS, shop.url)
    prepared = spire.tell("localauthority", "jwt", "prepare")["prepared_authority"][
        "authority_id"
    ]
    spire.tell("localauthority", "jwt", "activate", "-authorityID", prepared)
    new = minted(spire, shop.url)
    assert opened(new)[0]["kid"] == prepared
    assert shop.ask(new).reason == "credential_key"
    assert shop.ask(old).error == ""
    spire.tell("localauthority", "jwt", "taint", "-authorityID", opened(old)[0]["kid"])
    # An agent that never saw it tainted gives out what it has from the revoked key until it renews that.
    until(lambda: opened(shop.jwt(ORDERS, shop.url))[0]["kid"] == prepared)
    spire.tell("localauthority", "jwt", "revoke", "-authorityID", opened(old)[0]["kid"])
    (fetch,) = (
        block for block in parts()[0] if block.text.startswith("spire-server bundle show")
    )
    shop.reader.run(fetch)
    assert shop.ask(new).error == ""
    assert shop.ask(shop.jwt(ORDERS, shop.url)).error == ""
    assert shop.ask(old).reason == "credential_key"


# --- WIT-SVIDs in messages ----------------------------------------------------------------------------------


class Consumer:
    """The consumer of the page.

    Args:
        shop: with its settings.
        name: of its audit file.
    """

    def __init__(self, shop: Shop, name: str) -> None:
        self.audit = shop.folder / f"{name}.jsonl"
        path = shop.folder / f"{name}.toml"
        path.write_text(
            f'[audit]\nfile = "{self.audit}"\n'
            + (shop.folder / "wit_consumer.toml").read_text()
        )
        self.pipeline = load(path).pipeline
        self.handled: list[bytes] = []

    def judge(self, message: Message) -> Outcome:
        """Carry a message to its end."""
        handler: Any = lambda verified: self.handled.append(verified.body)  # noqa: E731
        return run(self.pipeline.process(self.pipeline.receive(message), handler, self))

    def publish(self, letter: object) -> None:
        """Take a dead letter."""

    def reasons(self) -> list[str]:
        """Return the reasons in its audit file, but for alerts."""
        records = [json.loads(line) for line in self.audit.read_text().splitlines()]
        return [record["reason"] for record in records if record["verdict"] != "alert"]


@pytest.fixture
def consumer(trial: Shop, request: pytest.FixtureRequest) -> Consumer:
    """A consumer that trusts SPIRE's keys for WITs."""
    return Consumer(trial, re.sub(r"\W", "-", request.node.name))


def identity(spire: Spire, subject: str = ORDERS, *words: str) -> tuple[str, Key]:
    """Return a WIT-SVID that a server's administrator mints, and its key."""
    made = mint(spire, "wit", *words, subject=subject)
    found = json.loads(made["private_key"])
    curve = {"P-256": ec.SECP256R1, "P-384": ec.SECP384R1}[found["crv"]]()
    number = int.from_bytes(base64.urlsafe_b64decode(found["d"] + "=="), "big")
    return str(made["svid"]["token"]), Key.from_private(
        ec.derive_private_key(number, curve)
    )


def sealed(wit: str, key: Key) -> Message:
    """Return a message of a workload."""
    found = WITKey(wit, key)
    who = found.identity
    signer = Signer(
        key=found, issuer=who.trust_domain, subject=who.subject, audience="billing"
    )
    return signer.sign(Message(destination="kafka:orders", body=BODY))


def test_the_page_signs_with_a_wit_svid(trial: Shop, consumer: Consumer) -> None:
    """Whoever follows the page has a key and its WIT-SVID, and a consumer accepts what it signs."""
    assert trial.printed[-1].strip() == ORDERS
    outcome = consumer.judge(sealed(*identity(trial.spire)))
    assert (outcome.verdict, consumer.handled) == (Verdict.ACCEPTED, [BODY])
    assert outcome.verified is not None
    assert outcome.verified.identity is not None
    assert outcome.verified.identity.subject == ORDERS


@pytest.mark.parametrize(
    ("words", "algorithm"),
    [((), "ES256"), (("-keyType", "ec-p384", "-signingAlgorithm", "ES384"), "ES384")],
)
def test_keys_of_both_curves_are_taken(
    words: tuple[str, ...], algorithm: str, trial: Shop, consumer: Consumer
) -> None:
    """A workload's key may be of either curve that SPIRE and mqauth both know."""
    wit, key = identity(trial.spire, ORDERS, *words)
    assert opened(wit)[1]["cnf"]["jwk"]["alg"] == algorithm
    assert consumer.judge(sealed(wit, key)).verdict is Verdict.ACCEPTED


def test_a_wit_svid_with_an_issuer_is_taken(twin: Spire) -> None:
    """With ``wit_issuer`` it says ``iss``, which is read for the audit."""
    wit, key = identity(twin)
    assert WITKey(wit, key).identity.iss == "https://spire.prod.example"


def shape(token: str) -> list[list[str]]:
    """Return the names in a WIT, each in their order: of header, claims and the workload's key."""
    header, claims = opened(token)
    return [list(header), list(claims), list(claims["cnf"]), list(claims["cnf"]["jwk"])]


def test_the_vectors_have_the_real_shape(trial: Shop) -> None:
    """The WIT-SVID of our vectors has the members of a real one in their order, and times as far apart."""
    real, ours = identity(trial.spire)[0], SpireForge().wit()
    assert shape(real) == shape(ours)
    (header, claims), (our_header, our_claims) = opened(real), opened(ours)
    assert {**header, "kid": ""} == {**our_header, "kid": ""}
    assert len(header["kid"]) == len(our_header["kid"])
    assert claims["exp"] - claims["iat"] == our_claims["exp"] - our_claims["iat"] == 3600


def test_the_bundle_has_no_key_for_wits_yet(spire: Spire) -> None:
    """What SPIRE publishes has the shape of our vectors but for those keys: a trust domain refuses it."""
    trust = ssl.create_default_context(cafile=str(spire.ca))
    with urllib.request.urlopen(spire.bundles, timeout=30, context=trust) as answer:  # noqa: S310
        found = json.load(answer)
    ours = {key["use"]: list(key) for key in bundle()["keys"]}
    assert {key["use"]: list(key) for key in found["keys"]} == {
        use: names for use, names in ours.items() if use != "wit-svid"
    }
    assert found.keys() <= bundle().keys()
    assert jwk.load_key_set(found, svid="wit-svid").keys == ()


def forged(trial: Shop, other: Spire, subject: str) -> Message:
    """Return a message with a WIT-SVID of another server."""
    return sealed(*identity(other, subject))


def with_token(token: str) -> Message:
    """Return a message with any token."""
    return Message(
        destination="kafka:orders", body=BODY, headers=[(TOKEN_HEADER, token.encode())]
    )


REJECTED: Final[dict[str, tuple[Callable[[Shop, Spire, Spire], Message], str]]] = {
    "of another SPIFFE ID": (lambda trial, *_: sealed(*identity(trial.spire, STOCK)), "producer_forbidden"),
    "of another trust domain": (
        lambda trial, stranger, _: forged(trial, stranger, "spiffe://other.example/shop/orders-api"),
        "issuer_untrusted",
    ),
    "of another server of the same name": (lambda trial, _, twin: forged(trial, twin, ORDERS), "key_unknown"),
    "of two hours": (lambda trial, *_: sealed(*identity(trial.spire, ORDERS, "-ttl", "2h")), "lifetime_excessive"),
    "a JWT-SVID": (lambda trial, *_: with_token(trial.jwt(ORDERS, "billing")), "token_type"),
    "alone": (lambda trial, *_: with_token(identity(trial.spire)[0]), "token_type"),
}  # fmt: skip


@pytest.mark.parametrize("what", REJECTED)
def test_attacks_are_rejected(
    what: str, trial: Shop, stranger: Spire, twin: Spire, consumer: Consumer
) -> None:
    """Each one is rejected for its reason, in the verdict and in the audit record, and no handler runs."""
    make, reason = REJECTED[what]
    outcome = consumer.judge(make(trial, stranger, twin))
    assert (outcome.verdict, outcome.reason) == (Verdict.REJECTED, reason)
    assert (consumer.reasons(), consumer.handled) == ([reason], [])


def test_a_key_that_is_gone_from_the_set_vouches_for_nobody(
    trial: Shop, twin: Spire, consumer: Consumer
) -> None:
    """Once the file has another server's keys alone, ours is unknown to a running consumer; that one's counts."""
    (convert,) = (block for block in parts()[1] if block.name == "wit_keys.py")
    path, shown = trial.folder / "wit-keys.json", trial.folder / "spire.json"
    before = path.read_text(), shown.read_text()
    wit, key = identity(trial.spire)
    assert consumer.judge(sealed(wit, key)).verdict is Verdict.ACCEPTED
    shown.write_text(json.dumps(twin.tell("bundle", "show")))
    trial.reader.run(convert)
    assert consumer.judge(sealed(*identity(twin))).verdict is Verdict.ACCEPTED
    assert consumer.judge(sealed(wit, key)).reason == "key_unknown"
    for file, text in zip((path, shown), before, strict=True):
        file.write_text(text)


@pytest.mark.parametrize("kind", ["rsa-2048"])
def test_an_rsa_key_signs_no_proof(kind: str, trial: Shop) -> None:
    """SPIRE vouches for RSA keys too; they are refused where they would sign, and their WITs are none of ours."""
    made = mint(trial.spire, "wit", "-keyType", kind, "-signingAlgorithm", "RS256")
    with pytest.raises(ConfigurationError, match="no WIT"):
        WITKey(made["svid"]["token"], Key.generate("ES256"))


def test_without_the_flag_there_are_no_wit_svids(shop: Shop) -> None:
    """Both errors of the page: the command knows no ``wit mint``, and a server without the flag gives none."""
    words = ("wit", "mint", "-spiffeID", ORDERS, "-socketPath", str(shop.spire.socket))
    assert "Usage" in completed(str(program("spire-server")), *words).stderr
    with (
        Spire.launch(DOMAIN) as plain,
        pytest.raises(CommandError, match="WIT functionality is disabled"),
    ):
        mint(plain, "wit")
