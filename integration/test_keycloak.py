"""Access tokens of a real Keycloak as credentials for a real authority: who gets an identity by them, and who not.

It takes minutes, so it is of the nightly form: ``python -m integration test --nightly`` runs it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from integration.documentation import ROOT, Block, Reader, blocks, matches
from integration.keycloak_attacks import ATTACKS, OTHER
from integration.keycloak_world import DOMAIN, ORDERS, REALM, STOCK, World, parts, until
from integration.services.keycloak import Keycloak
from integration.services.machine import Port
from mqauth import ClientCredentials, Message, Signer, Unavailable
from mqauth.errors import Cause
from mqauth.keystore.identity.request import Asking
from mqauth.wire.keys import Key, thumbprint

pytestmark = pytest.mark.slow

PAGE: Final = "docs/how-to/use-keycloak.md"
AUTHORITY_PAGE: Final = "docs/how-to/start-an-authority.md"

BOUND: Final = {"dpop.bound.access.tokens": "true"}
ALGORITHMS: Final = ("PS256", "ES256", "ES384", "EdDSA")
"""Of access tokens, beside Keycloak's RS256."""
KEPT: Final = 'discovery = true\nsnapshot = "realm-keys.json"'
MESSAGE: Final = Message(destination="kafka:orders", body=b"{}")


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
    found.start(source=KEPT)
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
            for algorithm in (*ALGORITHMS, "RS512")
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
    """The access token says ``cnf.jkt`` of the new key, and the identity too; it is renewed for another key."""
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
    assert token[:40] not in json.dumps(answered.record)


def test_the_count_of_the_attacks() -> None:
    """So many were tried on the real Keycloak."""
    assert len(ATTACKS) == 27


def test_keycloak_gives_no_token_without_a_proof(world: World) -> None:
    """With the switch of DPoP on, a client that shows no proof gets nothing, whatever secret it has."""
    with pytest.raises(ValueError, match=r"400 .*DPoP proof is missing"):
        world.token("orders-api")


def test_keycloak_takes_a_proof_once_and_for_its_own_url(world: World) -> None:
    """A proof that was used before, and one for another URL, get no token from Keycloak."""
    key = Key.generate()
    for proof in (used := world.proof(key, world.token_url), world.proof(key, "https://other.example/token")):
        if proof is used:
            world.answer("orders-api", proof=used)
        with pytest.raises(ValueError, match=r"400 .*invalid_request"):
            world.answer("orders-api", proof=proof)


def test_a_wrong_secret(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The error names Keycloak's host and its answer, never the secret, and the authority is not asked."""
    secret, before = "a-wrong-secret-of-mine", len(world.records())
    path = world.folder / "wrong.secret"
    path.touch(0o600)
    path.write_text(secret)
    given = ClientCredentials(
        world.token_url, client_id="orders-api", client_secret_file=path, ca=world.keycloak.ca
    )
    with world.enrolled("orders-api", ORDERS, given) as enrolled:
        with pytest.raises(Unavailable) as caught:
            enrolled.signing_key()
        host = world.token_url.split("/")[2]
        assert f"the token endpoint {host}: refused, 401 unauthorized_client" in str(caught.value)
        # The line comes just after the state that the caller sees.
        until(lambda: host in caplog.text)
        assert secret not in f"{caught.value!r}{caught.value.__cause__!r}{caplog.text}"
        assert len(world.records()) == before
        path.write_text(world.secrets["orders-api"])
        until(lambda: enrolled.health().state == "fresh")


def test_a_client_that_was_disabled(world: World) -> None:
    """A client that Keycloak shuts out gets no token, and its producer says so; it goes on once that is over."""
    world.tell_client("stranger", enabled=False)
    with world.enrolled("stranger", ORDERS) as enrolled, pytest.raises(Unavailable, match="refused, 401"):
        enrolled.signing_key()
    world.tell_client("stranger", enabled=True)
    assert world.ask(world.token("stranger", OTHER), OTHER).status == 403


# --- what happens to Keycloak -------------------------------------------------------------------------------


def test_a_rotation_is_followed_without_a_restart(world: World) -> None:
    """A new key of the realm counts at once, and one that was taken away counts no more."""
    process, old = world.process, world.token("plain")
    before = world.signing_keys()
    assert world.ask(old, OTHER, scheme="Bearer").status == 200
    world.add_signing_key()
    new = world.token("plain")
    assert parts(new)[0]["kid"] != parts(old)[0]["kid"]
    until(lambda: world.ask(new, OTHER, scheme="Bearer").status == 200)
    assert world.ask(old, OTHER, scheme="Bearer").status == 200
    for provider in before:
        world.keycloak.tell("DELETE", f"realms/{REALM}/components/{provider['id']}")
    until(lambda: world.ask(old, OTHER, scheme="Bearer").status != 200)
    refused = world.ask(old, OTHER, scheme="Bearer")
    assert refused.record is not None
    assert (refused.status, refused.body) == (401, {"error": "invalid_client"})
    assert refused.record["reason"] == "credential_key"
    assert world.ask(new, OTHER, scheme="Bearer").status == 200
    assert world.process is process


def test_keycloak_is_killed_and_comes_back(world: World, keycloak: Keycloak) -> None:
    """The authority goes on with the keys that it has or kept; one without says 503; all go on by themselves.

    A producer signs while its identity lives, and then says that Keycloak is out of reach, with its host.
    """
    host, key = world.token_url.split("/")[2], Key.generate()
    with world.enrolled("brief", STOCK) as enrolled:
        signer = Signer(key=enrolled, issuer=DOMAIN, subject=STOCK, audience="billing", lifetime=4)
        signer.sign(MESSAGE)
        token = world.token("orders-api", key)
        keycloak.kill()
        assert world.ask(token, key).status == 200
        until(lambda: enrolled.health().state == "failing")
        signer.sign(MESSAGE)
        until(lambda: enrolled.health().state == "unavailable")
        with pytest.raises(Unavailable, match=f"the token endpoint {host}: out of reach") as caught:
            signer.sign(MESSAGE)
        assert caught.value.cause is Cause.KEYS_UNAVAILABLE
        world.start("kept", KEPT)
        assert world.ask(token, key).status == 200
        world.start("restarted", f'jwks = "{world.issuer}/protocol/openid-connect/certs"')
        answered = world.ask(token, key)
        assert (answered.status, answered.body) == (503, {"error": "temporarily_unavailable"})
        assert answered.record is None
        assert host in world.log()
        keycloak.start()
        until(lambda: enrolled.health().state == "fresh")
        signer.sign(MESSAGE)
        until(lambda: world.ask(world.token("orders-api", key), key).status == 200)


# --- the how-to page ----------------------------------------------------------------------------------------


def reader_of(keycloak: Keycloak, folder: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> Reader:
    """Return someone who follows the page with this Keycloak, and an authority at a URL."""
    (folder / "home").mkdir()
    monkeypatch.setenv("PATH", str(keycloak.program.parent), prepend=os.pathsep)
    ca = str(keycloak.ca)
    for name, value in (
        ("HOME", str(folder / "home")),
        ("KC_CLI_PASSWORD", keycloak.password),
        ("SSL_CERT_FILE", ca),
    ):
        monkeypatch.setenv(name, value)
    local = f'ca = "{ca}"\nunsafe_http_loopback = true'
    secret, subject = 'client_secret_file="orders-api.secret",', f'subject="{ORDERS}",'
    # Keycloak has a CA of its own here, and the authority none.
    return Reader(
        folder,
        {
            "--server https://sso.prod.example": f"--server {keycloak.url}",
            'authority = "https://authority.prod.example"': f'authority = "{url}"\n{local}',
            "discovery = true": f'discovery = true\nca = "{ca}"',
            secret: f'{secret} ca="{ca}",', subject: f"{subject} unsafe_http_loopback=True,",
            "https://sso.prod.example": keycloak.secure, "https://authority.prod.example": url,
            "http://127.0.0.1:8443": url,
        },
    )  # fmt: skip


def shell(text: str) -> Block:
    """Return a command that the page does not show."""
    return Block(page=PAGE, line=0, language="sh", mark="", text=text)


@contextmanager
def serving(reader: Reader, port: int) -> Iterator[None]:
    """Serve identities by the page's settings while the block runs."""
    process = reader.start(shell(f"mqauth authority serve --port {port}"))
    assert process.stdout is not None
    try:
        assert f":{port}/v1/identity" in process.stdout.readline()
        yield
    finally:
        process.terminate()
        process.communicate(timeout=60)


def test_the_page_does_what_it_says(keycloak: Keycloak, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who follows the page gets what it shows; its producer signs, and a consumer of the authority accepts."""
    keycloak.tell("POST", "realms", {"realm": "shop", "enabled": True})
    port = Port()
    reader = reader_of(keycloak, tmp_path, f"http://127.0.0.1:{port.number}", monkeypatch)
    reader.run(shell("mqauth keys new --dir authority-keys --pinned --overlap 3600"))
    printed, steps = "", {block.name: block for block in blocks(PAGE)}
    with ExitStack() as running:
        running.callback(port.release)
        for block in blocks(PAGE):
            if block.mark == "output":
                assert matches(block.text, printed), printed
            elif block.language == "toml":
                reader.write(block)
            else:
                printed = reader.run(block)
            if block.name == "producer.toml":
                running.enter_context(serving(reader, port.number))
        (consumer,) = (block for block in blocks(AUTHORITY_PAGE) if block.name == "consumer.toml")
        reader.write(consumer)
        verdict = json.loads(reader.run(shell("mqauth verify --config consumer.toml < signed.json")))
        assert (verdict["verdict"], verdict["claims"]["sub"]) == ("accepted", ORDERS)
        with pytest.raises(AssertionError, match="HTTP Error 400"):
            reader.run(steps["ask.py"])


def test_the_page_names_what_was_seen() -> None:
    """The page's tables have every refusal of the attacks but those of forgers, as the audit says it."""
    page = (ROOT / PAGE).read_text("utf-8")
    forged = ("credential_signature", "dpop_invalid")
    for _, _, reason, detail in ATTACKS.values():
        assert reason in forged or f"| `{reason}` | `{detail}` |" in page or "sub asked for" in detail
