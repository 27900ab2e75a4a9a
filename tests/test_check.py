"""``mqauth check``: every code fires on its pitfall and is silent beside it, and a sound file is left in peace."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st

import mqauth
import mqauth.check
from mqauth import ConfigurationError, Key
from mqauth.check import CODES, Report, Severity, check
from mqauth.check.deployment import is_loopback
from mqauth.check.rule import is_own_group
from mqauth.cli import main
from mqauth.clock import SYSTEM_CLOCK
from mqauth.keystore import Keystore, public_keys
from mqauth.keystore.disk import ring
from mqauth.testing.clock import FakeClock
from mqauth.wire.jwk import dump_key_set
from tests.test_config import toml

ROOT = Path(__file__).resolve().parents[1]
DAY = 86_400
PASSPHRASE = b"pa55-phrase-of-a-test"
SOUND = """\
[producer]
issuer = "https://auth.example"
subject = "orders-api"
audience = "billing"
keys = "keys"
passphrase_file = "secret/passphrase"
lifetime = 60

[consumer]
scope = "billing"
audience = "billing"
max_lifetime = 300
leeway = 5
at = "append"
max_queue_age = "1d"
append_evidence = "interceptor"
unsigned_headers = "reject"

[[consumer.issuers]]
issuer = "https://auth.example"
file = "jwks.json"
vouches = false

[[consumer.issuers]]
issuer = "https://partner.example"
jwks = "https://partner.example/jwks.json"
max_stale = 3600
subjects = { "*" = ["stock-api"] }

[[consumer.allow]]
subject = "orders-api"
issuer = "https://auth.example"
destinations = ["rabbitmq:shop/orders.#", "kafka:orders"]

[[consumer.allow]]
subject = "stock-api"
issuer = "https://partner.example"
destinations = ["kafka:stock.*"]

[replay]
store = "memory"
capacity = 700000

[audit]
file = "audit.jsonl"

[dead_letters]
name = "orders.dead"

[[release.authorities]]
issuer = "https://review.example"
file = "review.json"
waive = ["expired", "queue_age_exceeded"]

[check]
brokers = ["amqps://rabbitmq.example/", "kafka://a.example:9093,b.example:9093?security_protocol=SASL_SSL"]
consumers = 1
rate = 8
rotation = 7776000
"""


class World:
    """A folder with a sound ``mqauth.toml`` and everything it names; spoilt by one change at a time."""

    def __init__(self, place: Path, clock: Any = None) -> None:
        self.place = place
        self.clock = clock or FakeClock()
        self.text = SOUND
        (place / "secret").mkdir(mode=0o700)
        self.file("secret/passphrase", PASSPHRASE + b"\n", 0o600)
        self.keystore.create(subjects=["orders-api"])
        self.jwks("jwks.json", dump_key_set(public_keys(self.keys))["keys"])
        self.jwks("review.json", [jwk(Key.generate(subjects=["reviewer"]))])

    @property
    def keys(self) -> Path:
        """The keystore folder."""
        return self.place / "keys"

    @property
    def keystore(self) -> Keystore:
        """The keystore, at the world's time."""
        return Keystore(folder=self.keys, passphrase=PASSPHRASE, clock=self.clock)

    @property
    def pem(self) -> Path:
        """The PEM file of the first key."""
        return next(iter(sorted(self.keys.glob("*.pem"))))

    def file(self, name: str, raw: bytes, mode: int = 0o644) -> Path:
        """Write a file with a mode."""
        path = self.place / name
        path.write_bytes(raw)
        path.chmod(mode)
        return path

    def jwks(self, name: str, keys: list[Any]) -> None:
        """Write a JWK Set."""
        self.file(name, json.dumps({"keys": keys}).encode())

    def edit(self, old: str, new: str) -> None:
        """Replace a text of the configuration, which must be there."""
        assert old in self.text, old
        self.text = self.text.replace(old, new, 1)

    def drop(self, title: str) -> None:
        """Take a table out of the configuration."""
        assert f"[{title}]\n" in self.text, title
        self.text = re.sub(
            rf"^\[{re.escape(title)}\]\n.*?(?=^\[|\Z)",
            "",
            self.text,
            flags=re.DOTALL | re.MULTILINE,
        )

    def write(self, mode: int | None = None) -> Path:
        """Write the configuration; its mode stays where none is given."""
        path = self.place / "mqauth.toml"
        fresh = not path.exists()
        path.write_text(self.text)
        path.chmod(
            mode if mode is not None else 0o640 if fresh else path.stat().st_mode & 0o777
        )
        return path

    def check(self) -> Report:
        """Check the configuration as it is now."""
        return check(self.write(), clock=self.clock)

    def ring(self, change: Callable[[ring.KeyRing], ring.KeyRing]) -> None:
        """Write another ``keyset.json``."""
        path = self.keys / "keyset.json"
        path.write_bytes(ring.dump(change(self.keystore.ring())))


def jwk(key: Key, **more: Any) -> dict[str, Any]:
    """Return a public key as a JWK with members of one's own."""
    (members,) = dump_key_set(mqauth.KeySet([key]))["keys"]
    return {**members, **more}


def made(**more: Any) -> dict[str, Any]:
    """Return the JWK of a new key that names its subject, with members of one's own."""
    return jwk(Key.generate(subjects=["a"]), **more)


def rsa_jwk(bits: int) -> dict[str, Any]:
    """Return an RSA key of a size as a JWK, without making one."""
    modulus = ((1 << bits) - 1).to_bytes(bits // 8)
    from mqauth.wire.base64url import encode

    return {
        "kty": "RSA",
        "alg": "PS256",
        "kid": f"rsa-{bits}",
        "n": encode(modulus).decode(),
        "e": "AQAB",
    }


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


# --- every code -------------------------------------------------------------------------------------------

Change = Callable[[World], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A pitfall, where it is found, and its sound neighbour."""

    code: str
    key: str
    bad: Change
    good: Change


def edits(*pairs: tuple[str, str]) -> Change:
    """Return a change of the configuration's text."""
    return lambda world: [world.edit(old, new) for old, new in pairs]


def judged_on_receipt(lifetime: str, max_lifetime: str) -> Change:
    """Return a change to a consumer that judges by its own clock, with these lifetimes."""
    return edits(
        ("lifetime = 60", lifetime), ("max_lifetime = 300", max_lifetime),
        ('at = "append"\nmax_queue_age = "1d"\nappend_evidence = "interceptor"\n', ""),
    )  # fmt: skip


def later(seconds: int, *changes: Change) -> Change:
    """Return a change that happens and lies back some seconds."""
    return lambda world: [
        *(change(world) for change in changes),
        world.clock.advance(seconds),
    ]


def both(*changes: Change) -> Change:
    """Return several changes as one."""
    return lambda world: [change(world) for change in changes]


def keys_with(*members: Callable[[], Any]) -> Change:
    """Return a change that adds keys to the JWK Set file."""
    return lambda world: world.jwks(
        "jwks.json", [*own(world), *(make() for make in members)]
    )


def own(world: World) -> list[Any]:
    """Return the sound keys of the JWK Set file."""
    keys: list[Any] = dump_key_set(public_keys(world.keys))["keys"]
    return keys


def mode(name: str, bits: int) -> Change:
    """Return a change of a file's mode."""
    return lambda world: (world.place / name).chmod(bits)


def config_mode(bits: int) -> Change:
    """Return a change of the configuration's own mode."""
    return lambda world: world.write(bits)


def no_binding(world: World) -> None:
    """Have a key that names no subject."""
    world.jwks("jwks.json", [*own(world), jwk(Key.generate())])


def rsa_pem(bits: int) -> Change:
    """Return a change to a single PEM file with RSA of a size."""

    def change(world: World) -> None:
        private = rsa.generate_private_key(65537, bits)
        raw = private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        world.file("rsa.pem", raw, 0o600)
        world.edit(
            'keys = "keys"\npassphrase_file = "secret/passphrase"', 'keys = "rsa.pem"'
        )

    return change


def other_keys(name: str, **settings: Any) -> Change:
    """Return the change to another keystore, without a passphrase."""

    def change(world: World) -> None:
        Keystore(folder=world.place / name, clock=world.clock).create(
            subjects=["orders-api"], **settings
        )
        world.edit(
            'keys = "keys"\npassphrase_file = "secret/passphrase"', f'keys = "{name}"'
        )

    return change


def single_pem(world: World) -> None:
    """Have a single PEM file in place of a keystore."""
    world.file("one.pem", Key.generate().to_pem(PASSPHRASE), 0o600)
    world.edit('keys = "keys"', 'keys = "one.pem"')


def beside(world: World) -> None:
    """Keep the passphrase with the keys."""
    world.file("keys/passphrase", PASSPHRASE, 0o600)
    world.edit("secret/passphrase", "keys/passphrase")


def next_key(world: World) -> None:
    """Make a second key, which is pending."""
    world.keystore.create(subjects=["orders-api"])


def broken_ring(world: World) -> None:
    """Have a keystore whose state is unreadable, and a PEM that is none."""
    world.file("keys/keyset.json", b"{", 0o600)
    world.file("keys/huge.pem", b"-" * 100_000, 0o600)


def audit_file(bits: int) -> Change:
    """Return a change that leaves an audit file of a mode behind."""
    return lambda world: world.file("audit.jsonl", b"", bits)


def pin(kid: str | None) -> Change:
    """Return a change that pins a kid, or the one there is."""

    def change(world: World) -> None:
        wanted = kid or world.keystore.ring().keys[0].kid
        world.edit("vouches = false", f'subjects = {{ "{wanted}" = ["orders-api"] }}')

    return change


NOTHING: Change = edits()
OWN = 'file = "jwks.json"\nvouches = false'
STALE = "max_stale = 3600"
STAR = '{ "*" = ["stock-api"] }'
BROKERS = '["amqps://rabbitmq.example/", "kafka://a.example:9093,b.example:9093?security_protocol=SASL_SSL"]'
FILE = "consumer.issuers[0].file"
PARTNER = "consumer.issuers[1]"


def brokers(url: str) -> Change:
    """Return a change of the broker."""
    return edits((BROKERS, f'["{url}"]'))


def redis(url: str) -> Change:
    """Return a change of the replay store."""
    return edits(('"memory"', f'"{url}"'))


def in_file(path: str) -> Change:
    """Return a change of the replay store to a file."""
    return edits(('store = "memory"', f'file = "{path}"'))


def rung(
    rung: str = "observe", place: str = "rabbitmq:shop/old", until: str = "2030-04-20"
) -> Change:
    """Return a change that adds an entry to the rollout."""
    lines = [
        "[[rollout]]",
        f'destinations = ["{place}"]',
        f'rung = "{rung}"',
        "since = 2030-03-01",
    ]
    lines += [f"until = {until}", 'owner = "orders-team"']
    return added(lines)


def exempt(
    place: str = "rabbitmq:shop/beat", until: str = "2030-09-30", kinds: str = ""
) -> Change:
    """Return a change that exempts messages from being signed."""
    lines = [
        "[[consumer.unsigned]]",
        f'destination = "{place}"',
        f"until = {until}",
        'why = "sensors"',
        kinds,
    ]
    return added(lines)


def added(lines: list[str]) -> Change:
    """Return a change that adds a table at the end."""

    def change(world: World) -> None:
        world.text += "\n" + "\n".join(lines) + "\n"

    return change


def agent(url: str, *lines: str) -> Change:
    """Return a change that has an agent asked."""
    return added(["[consumer.opa]", f'url = "{url}"', 'path = "mqauth/allow"', *lines])


def agent_file(key: str, content: bytes, bits: int) -> Change:
    """Return a change that has an agent asked with a file of a mode."""
    return both(
        lambda world: world.file("opa.file", content, bits),
        agent("https://opa.example", f'{key} = "opa.file"'),
    )


def moved(signed_for: str) -> Change:
    """Return an edit that takes messages that were signed for elsewhere."""
    table = (
        '[[consumer.accept_as]]\nat = "rabbitmq:/billing"\n'
        f'signed_for = ["{signed_for}"]\n\n[[consumer.issuers]]'
    )
    return lambda world: setattr(
        world, "text", world.text.replace("[[consumer.issuers]]", table, 1)
    )


def case(code: str, key: str, bad: Change, good: Change = NOTHING) -> Any:
    """Return a case as a parameter."""
    return pytest.param(Case(code=code, key=key, bad=bad, good=good), id=f"{code}-{key}")


def identity(*lines: str) -> Change:
    """Return the change that has the producer get its identity from an authority."""
    table = [
        "[producer.identity]",
        'subject = "wimse://prod.example/shop/orders-api"',
        *lines,
    ]
    return both(
        edits(
            (
                'issuer = "https://auth.example"\nsubject = "orders-api"\naudience',
                "audience",
            ),
            ('keys = "keys"\npassphrase_file = "secret/passphrase"\n', ""),
        ),
        added(table),
    )


HTTPS = 'authority = "https://a.example"'
SECRET = 'client_id = "c", client_secret_file = "secret/passphrase" }'


def domain(
    more: str = "", places: str = "kafka:stock.*", subject: str = "stock"
) -> Change:
    """Return the change that makes a trust domain of the partner."""
    return edits(
        ('issuer = "https://partner.example"\njwks', f'trust_domain = "wimse://partner.example"\n{more}jwks'),
        (f"subjects = {STAR}\n", ""),
        ('subject = "stock-api"\nissuer = "https://partner.example"\ndestinations = ["kafka:stock.*"]',
         f'subject = "wimse://partner.example/{subject}"\nissuer = "wimse://partner.example"\n'
         f'destinations = ["{places}"]'),
    )  # fmt: skip


def ending(day: str) -> Change:
    """Return the change that gives the own issuer, of the direct form, a day by which it goes."""
    return edits((OWN, f"{OWN}\nuntil = {day}"))


DOMAIN = "wimse://prod.example"
AUTHORITY = f"""
[authority]
trust_domain = "{DOMAIN}"
url = "https://authority.example"
keys = "held"
lifetime = 3600
audit = "authority.jsonl"
heads = "heads.jsonl"
heads_key = "heads.pem"

[[authority.credentials]]
name = "machines"
issuer = "https://machines.example"
file = "machines.json"

[[authority.credentials]]
name = "cluster"
issuer = "https://cluster.example"
jwks = "https://cluster.example/jwks.json"
max_lifetime = 7200

[[authority.grants]]
credential = "machines"
match = {{ sub = "orders-api" }}
subject = "{DOMAIN}/orders"
claims = {{ env = "prod" }}

[[authority.grants]]
credential = "cluster"
match = {{ sub = "system:serviceaccount:shop:stock" }}
subject = "{DOMAIN}/stock"
"""
TRANSIT = "transit:https://bao.example:8200/transit/orders?key_version=1&token_file={}"
PLAIN = (
    TRANSIT.replace("https", "http").replace("bao.example", "127.0.0.1")
    + "&unsafe_http_loopback=true"
)
OVERLAP = 3600


def authority(*changes: Change) -> Change:
    """Return the change that adds an authority, sound but for further changes."""
    return both(sound_authority, *changes) if changes else sound_authority


def sound_authority(world: World) -> None:
    """Add an authority whose key OpenBao holds, and all that it names."""
    world.text += AUTHORITY
    held(TRANSIT)(world)
    world.file("heads.pem", Key.generate().to_pem(), 0o600)
    world.jwks("machines.json", [jwk(Key.generate(subjects=["orders-api"]))])


def held(uri: str, folder: str = "held", bits: int = 0o600) -> Change:
    """Return the change that enters a reference into a keystore as its active key, with a token file."""

    def change(world: World) -> None:
        token, place = world.file("token", b"t", bits), world.place / folder
        new = ring.add(
            ring.KeyRing(overlap=OVERLAP),
            Key.generate(),
            int(world.clock.now()),
            uri=uri.format(token),
        )
        place.mkdir(0o700, exist_ok=True)
        world.file(f"{folder}/keyset.json", ring.dump(new), 0o600)

    return change


def on_disk(world: World) -> None:
    """Have the authority's key on the disk."""
    (world.place / "held/keyset.json").unlink()
    Keystore(folder=world.place / "held", clock=world.clock).create(overlap=OVERLAP)


def held_ring(change: Callable[[ring.KeyRing], ring.KeyRing]) -> Change:
    """Return the change of the authority's keystore."""

    def changed(world: World) -> None:
        path = world.place / "held/keyset.json"
        path.write_bytes(
            ring.dump(change(Keystore(folder=path.parent, clock=world.clock).ring()))
        )

    return changed


def machines(*subjects: str) -> Change:
    """Return the change of the producers' key: it speaks for these."""
    return lambda world: world.jwks(
        "machines.json", [jwk(Key.generate(subjects=subjects))]
    )


def silent_machine(world: World) -> None:
    """Have a second producer's key, which speaks for nobody."""
    keys = [Key.generate(subjects=["orders-api"]), Key.generate()]
    world.jwks("machines.json", [jwk(key) for key in keys])


def granted(match: str, *more: str) -> Change:
    """Return the change that adds a grant of the machines for the identity that they already get."""
    lines = [
        "[[authority.grants]]",
        'credential = "machines"',
        f"match = {match}",
        f'subject = "{DOMAIN}/orders"',
    ]
    return added([*lines, *more])


def trusting(seconds: int) -> Change:
    """Return the change that has the file's own consumer take identities that live so long."""
    lines = ["[[consumer.issuers]]", f'trust_domain = "{DOMAIN}"', 'jwks = "https://authority.example/jwks.json"',
             f"max_identity_lifetime = {seconds}"]  # fmt: skip
    return added(lines)


GRANT = "authority.grants[2]"
CASES = [
    # an authority
    case("configuration", "authority.keys", authority(held_ring(lambda found: replace(found, overlap=3599))),
         authority()),
    case("configuration", "authority.keys", authority(edits(('keys = "held"', 'keys = "nowhere"')))),
    case("configuration", "authority.grants[0].claims", authority(edits(('{ env', '{ aud')))),
    case("configuration", "authority.credentials[0].file", authority(edits(("machines.json", "none.json")))),
    case("authority_key_on_disk", "authority.keys", authority(on_disk), authority()),
    case("key_plain", "authority.keys", authority(on_disk), authority()),
    case("key_readable", "authority.keys",
         authority(on_disk, lambda world: [path.chmod(0o640) for path in world.place.glob("held/*.pem")]),
         authority(on_disk)),
    case("keystore_writable", "authority.keys", authority(mode("held", 0o720)), authority()),
    case("key_overdue", "authority.keys", authority(later(90 * DAY + 1)), authority(later(90 * DAY))),
    case("publish_delay_short", "authority.keys",
         authority(held_ring(lambda found: replace(found, publish_delay=59))),
         authority(held_ring(lambda found: replace(found, publish_delay=60)))),
    case("passphrase_unavailable", "authority.passphrase_file",
         authority(on_disk, edits(('keys = "held"', 'keys = "held"\npassphrase_file = "none"')))),
    case("passphrase_unavailable", "authority.keys", authority(lambda world: (world.place / "token").unlink()),
         authority()),
    case("secret_readable", "authority.keys", authority(held(TRANSIT, bits=0o644)), authority()),
    case("secret_readable", "authority.heads_passphrase_file",
         authority(lambda world: world.file("phrase", b"x", 0o644), edits(
             ('heads_key = "heads.pem"', 'heads_key = "heads.pem"\nheads_passphrase_file = "phrase"')))),
    case("transit_loopback", "authority.keys", authority(held(PLAIN)), authority()),
    case("identity_lifetime_long", "authority.lifetime", authority(
        held_ring(lambda found: replace(found, overlap=7200)),
        edits(("lifetime = 3600\naudit", "lifetime = 3601\naudit"))), authority()),
    case("identity_lifetime_long", "authority.lifetime", authority(trusting(1800)), authority(trusting(3600))),
    case("authority_loopback", "authority.url", authority(
        edits(("https://authority.example", "http://127.0.0.1:8443"))), authority()),
    case("configuration", "authority.credentials[1].jwks", authority(
        edits(("https://cluster.example/jwks", "http://cluster.example/jwks")))),
    case("jwks_skipped", "authority.credentials[0].file", authority(
        lambda world: world.jwks("machines.json", [made(), made(alg="ES384")]))),
    case("trust_writable", "authority.credentials[0].file", authority(mode("machines.json", 0o646)), authority()),
    case("credential_lifetime_long", "authority.credentials[1].max_lifetime",
         authority(edits(("max_lifetime = 7200", "max_lifetime = 7201"))), authority()),
    case("enrolment_unbound", "authority.credentials[0].file", authority(silent_machine), authority()),
    case("enrolment_unbound", "authority.credentials[0].file", authority(machines()),
         authority(machines(), edits(('file = "machines.json"', 'file = "machines.json"\nenrolment = false')))),
    case("grants_empty", "authority.grants", authority(
        lambda world: setattr(world, "text", world.text.partition("[[authority.grants]]")[0])), authority()),
    case("grant_matches_all", f"{GRANT}.match", authority(granted('{ iss = "https://machines.example" }')),
         authority(granted('{ iss = "https://machines.example", sub = "b" }'))),
    case("grant_without_key", "authority.grants[0].match", authority(machines("stock-api")), authority()),
    case("grants_overlap", f"{GRANT}.match", authority(granted('{ sub = "orders-api" }')),
         authority(granted('{ sub = "stock-api" }'))),
    case("grants_overlap", f"{GRANT}.match", authority(granted('{ env = "eu" }')),
         authority(granted('{ env = "eu" }', 'claims = { env = "prod" }'))),
    case("grants_overlap", f"{GRANT}.match",
         authority(granted('{ sub = "orders-api", a = "b" }', 'claims = { env = "prod" }'))),
    case("grant_claim_registered", "authority.grants[0].claims", authority(edits(("{ env", "{ Sub"))),
         authority()),
    case("authority_rate_off", "authority.rate", authority(edits(("lifetime = 3600\naudit", "rate = 0\naudit")))),
    case("authority_refusals_off", "authority.refusal_rate",
         authority(edits(("lifetime = 3600\naudit", "refusal_rate = 0\naudit")))),
    case("authority_unanchored", "authority.heads", authority(
        edits(('heads = "heads.jsonl"\nheads_key = "heads.pem"\n', ""))), authority()),
    case("audit_not_durable", "authority.audit", authority(edits(("authority.jsonl", "/dev/null"))), authority()),
    case("audit_writable", "authority.audit",
         authority(lambda world: world.file("authority.jsonl", b"", 0o602)), authority()),
    case("audit_unwritable", "authority.audit", authority(edits(("authority.jsonl", "none/a.jsonl"))),
         authority()),
    case("audit_unwritable", "audit.file", edits(("audit.jsonl", "none/audit.jsonl"))),
    # of a path that cannot be looked at the system says why; one in a folder of another user is such a path too
    case("audit_unwritable", "audit.file", edits(("audit.jsonl", f"{'a' * 300}/audit.jsonl"))),
    case("configuration", "producer.keys", edits(('keys = "keys"', f'keys = "{"k" * 300}"'))),
    case("audit_shared", "authority.audit", authority(edits(("authority.jsonl", "./audit.jsonl"))), authority()),
    case("transit_loopback", "producer.keys", held(PLAIN, "keys"), held(TRANSIT, "keys")),
    case("secret_readable", "producer.keys", held(TRANSIT, "keys", 0o604), held(TRANSIT, "keys")),
    case("passphrase_unavailable", "producer.keys",
         held("pkcs11:token=t;object=o?pin-source=file:/none/pin", "keys"),
         held("pkcs11:token=t;object=o?pin-source=env:PIN", "keys")),
    # the file
    case("configuration", "producer.lifetyme", edits(("lifetime", "lifetyme"))),
    case("configuration", "nonsense", edits(("[producer]", "[nonsense]\n[producer]"))),
    case("configuration", FILE, lambda world: (world.place / "jwks.json").unlink()),
    case("configuration", FILE, lambda world: world.file("jwks.json", b"{")),
    case("configuration", "consumer.audience", edits(('audience = "billing"\nmax', "audience = 7\nmax"))),
    case("configuration", "producer.keys", both(broken_ring, edits(("vouches = false", "")))),
    case("configuration", f"{PARTNER}.max_stale", edits((STALE, "max_stale = 5")),
         edits((STALE, "max_stale = 30"))),
    case("configuration", f"{PARTNER}.jwks", edits((STALE, f'{STALE}\nca = "jwks.json"'))),
    case("configuration", "check.accept[0]", edits(("rate = 8", 'rate = 8\naccept = ["issuer_vouched"]'))),
    case("configuration", "check.accept[0]", edits(("rate = 8", 'rate = 8\naccept = ["jwks_private"]'))),
    case("configuration", "producer.keys", both(other_keys("new", pending=True), edits(("vouches = false", "")))),
    case("configuration", "producer.subject", both(other_keys("plain"), edits(('"orders-api"', '"b"')))),
    case("configuration", "producer.subject", edits(('subject = "orders-api"', 'subject = "another"'))),
    case("trust_writable", "", config_mode(0o602), config_mode(0o604)),
    case("trust_writable", FILE, mode("jwks.json", 0o646), mode("jwks.json", 0o644)),
    case("trust_writable", "release.authorities[0].file", mode("review.json", 0o666), mode("review.json", 0o600)),
    case("secret_readable", "producer.passphrase_file", mode("secret/passphrase", 0o604)),
    case("secret_readable", "consumer.opa.token_file", agent_file("token_file", b"t0ken", 0o644),
         agent_file("token_file", b"t0ken", 0o600)),
    case("secret_readable", "replay.store", both(redis("rediss://:hunter2@r.example"), config_mode(0o644)),
         both(redis("rediss://:hunter2@r.example"), config_mode(0o600))),
    case("secret_readable", "check.brokers[0]", both(brokers("amqps://u:hunter2@r.example"), config_mode(0o644)),
         both(brokers("amqps://u@r.example"), config_mode(0o644))),
    case("secret_readable", "check.brokers[0]",
         both(brokers("kafka://a.example:1,u:hunter2@b.example:1?security_protocol=SSL"), config_mode(0o644))),
    case("config_readable", "producer.passphrase_file", config_mode(0o644), config_mode(0o640)),
    # tokens
    case("configuration", "producer.lifetime", edits(("lifetime = 60", "lifetime = 0"))),
    case("lifetime_unbounded", "consumer.max_lifetime", edits(("= 300", f"= {DAY + 1}")),
         edits(("= 300", f"= {DAY}"))),
    case("lifetime_long", "producer.lifetime", edits(("lifetime = 60", "lifetime = 901")),
         edits(("lifetime = 60", "lifetime = 900"))),
    case("lifetime_long", "consumer.max_lifetime", edits(("= 300", "= 3601")), edits(("= 300", "= 3600"))),
    case("backlog_expires", "consumer.max_queue_age", edits(('"1d"', '"23h"')),
         edits(('"1d"', '"23h"'), ("leeway = 5", 'leeway = 5\nbacklog = "expires"'))),
    case("backlog_expires", "consumer.at", judged_on_receipt("lifetime = 86400", "max_lifetime = 86399"),
         judged_on_receipt("lifetime = 86400", "max_lifetime = 86400")),
    case("backlog_expires", "consumer.at", judged_on_receipt("lifetime = 86399", "max_lifetime = 86400")),
    case("configuration", "producer.audience", edits(('audience = "billing"\nkeys', "keys"))),
    case("configuration", "consumer.audience", edits(('audience = "billing"\nmax', "audience = []\nmax"))),
    case("configuration", "consumer.audience",
         edits(('audience = "billing"\nmax', 'audience = ["a", "*"]\nmax')),
         edits(('audience = "billing"\nmax', 'audience = ["a", "b"]\nmax'))),
    case("configuration", "producer.audience", edits(('audience = "billing"', 'audience = "billing.*"'))),
    case("leeway_large", "consumer.leeway", edits(("leeway = 5", "leeway = 16")),
         edits(("leeway = 5", "leeway = 15"))),
    case("append_evidence_unproved", "consumer.unsafe_append_evidence",
         edits(('append_evidence = "interceptor"\n',
                'append_evidence = "interceptor"\nunsafe_append_evidence = true\n'))),
    case("append_without_evidence", "consumer.append_evidence", edits(('append_evidence = "interceptor"\n', "")),
         edits(('append_evidence = "interceptor"\n', ""), ('"rabbitmq:shop/orders.#", ', ""))),
    case("allow_unsigned_headers_broad", "consumer.allow_unsigned_headers",
         edits(("[consumer]\n", '[consumer]\nallow_unsigned_headers = ["x-trac*"]\n')),
         edits(("[consumer]\n", '[consumer]\nallow_unsigned_headers = ["x-trace-*", "sw8"]\n'))),
    case("accept_as_broad", "consumer.accept_as", moved("rabbitmq:shop/orders.#"),
         moved("rabbitmq:shop/orders.*")),
    case("unsigned_headers_hidden", "consumer.unsigned_headers", edits(('"reject"', '"hide"'))),
    # issuers and rules
    case("issuer_unbound", "consumer.issuers[0].subjects", no_binding,
         both(no_binding, edits(("vouches = false", 'subjects = { "*" = ["orders-api"] }')))),
    case("binding_unseen", f"{PARTNER}.subjects", edits((f"subjects = {STAR}", ""))),
    case("subjects_shared", f'{PARTNER}.subjects."*"', edits((STAR, '{ "*" = ["stock-api", "b"] }')),
         edits((STAR, '{ "*" = ["stock-api"], kid-1 = ["a", "b"] }'))),
    case("subjects_shared", 'consumer.issuers[0].subjects."*"',
         both(no_binding, edits(("vouches = false", 'subjects = { "*" = ["a", "b"] }'))),
         edits(("vouches = false", 'subjects = { "*" = ["a", "b"] }'))),
    case("issuer_vouches", f"{PARTNER}.vouches", edits((f"subjects = {STAR}", "vouches = true"))),
    case("issuer_unbound", "consumer.issuers[0].subjects", both(keys_with(
        lambda: {**made(), "kid": "mute", "mqauth_sub": []}),
        edits(("vouches = false", 'subjects = { mute = ["a"] }')))),
    case("identity_outlives_keys", f"{PARTNER}.max_stale", domain("max_identity_lifetime = 7200\n"), domain()),
    case("forms_both", "consumer.allow[0].subject", domain(subject="orders-api"), domain()),
    case("forms_both", "consumer.allow[0].subject", domain(subject="shop/orders-api"),
         both(domain(subject="shop/orders-api"), ending("2030-06-01"))),
    case("forms_both", "consumer.allow[0].subject", domain(places='rabbitmq:shop/orders.#", "kafka:orders'),
         domain(places="kafka:orders")),
    case("forms_both", "consumer.allow[0].subject", domain(subject="orders-api"),
         both(domain(subject="orders-api"), lambda world: world.jwks("jwks.json", [made()]))),
    case("issuer_ending", "consumer.issuers[0].until", ending("2030-03-31"), ending("2030-04-01")),
    case("issuer_overdue", "consumer.issuers[0].until", ending("2030-03-16"), ending("2030-03-17")),
    case("issuers_share_keys", f"{PARTNER}.file", edits(
        ('jwks = "https://partner.example/jwks.json"\nmax_stale = 3600', 'file = "./jwks.json"'))),
    case("issuers_share_keys", f"{PARTNER}.jwks", edits(
        ('file = "jwks.json"\nvouches = false', 'jwks = "https://partner.example/jwks.json"'))),
    case("pin_unknown", 'consumer.issuers[0].subjects.kid-1', pin("kid-1"), pin(None)),
    case("policy_empty", "consumer.allow", lambda world: world.drop("[consumer.allow]"), NOTHING),
    case("opa_unbounded", "consumer.opa", both(agent("https://opa.example"), lambda world: world.drop(
        "[consumer.allow]")), agent("https://opa.example")),
    case("opa_loopback", "consumer.opa.url", agent("http://127.0.0.1:8181"), agent("https://opa.example")),
    case("rule_matches_all", "consumer.allow[0].destinations[1]", edits(("kafka:orders", "kafka:#"))),
    case("rule_matches_all", "consumer.allow[0].destinations[1]", edits(("kafka:orders", "kafka:*.#")),
         edits(("kafka:orders", "kafka:orders.#"))),
    case("rule_matches_all", "consumer.allow[0].destinations[0]", edits(("shop/orders.#", "/#")),
         edits(("shop/orders.#", "/orders.#"))),
    case("rule_broad", "consumer.allow[0].destinations[0]", edits(("shop/orders.#", "shop/#"))),
    case("rule_broad", "consumer.allow[0].destinations[0]", edits(("shop/orders.#", "shop/*.*")),
         edits(("shop/orders.#", "shop/*.created"))),
    case("subject_without_key", "consumer.allow[0].subject", edits(('orders-api"\nissuer', 'order-api"\nissuer'))),
    case("subject_without_key", "consumer.allow[0].subject", lambda world: world.jwks(
        "jwks.json", [jwk(Key.generate(subjects=["orders-api"]), revoked={"revoked_at": 0, "reason": ""})])),
    # release
    case("release_self", "release.authorities[0].issuer", edits(("review.example", "auth.example"))),
    case("release_self", "release.authorities[0].issuer", edits(("review.json", "jwks.json"))),
    case("release_waives_much", "release.authorities[0].waive", edits(('"expired"', '"replayed"'))),
    # JWK Sets
    case("jwks_symmetric", FILE, keys_with(lambda: {"kty": "oct", "kid": "s", "k": "c2VjcmV0"})),
    case("jwks_symmetric", FILE,
         keys_with(lambda: made(alg="none")),
         keys_with(lambda: made(alg="EdDSA"))),
    case("jwks_symmetric", FILE, keys_with(lambda: made(alg="HS256"))),
    case("jwks_private", FILE, keys_with(lambda: made(d="c2VjcmV0"))),
    case("jwks_skipped", FILE, keys_with(lambda: rsa_jwk(1024)),
         keys_with(lambda: {**rsa_jwk(2048), "mqauth_sub": ["a"]})),
    case("jwks_skipped", FILE, keys_with(lambda: {**rsa_jwk(2048), "e": "Aw"})),
    case("jwks_skipped", FILE, keys_with(lambda: jwk(Key.generate(), use="enc"))),
    case("jwks_skipped", FILE, keys_with(lambda: "no key")),
    case("jwks_skipped", FILE, keys_with(lambda: {"kty": "RSA", "kid": "r", "n": "?", "e": "AQAB"})),
    case("jwks_skipped", FILE, keys_with(*2 * [lambda: jwk(Key.generate(), kid="twice")])),
    case("configuration", f"{PARTNER}.jwks", edits(("https://partner.example/jwks", "http://partner.example/jwks"))),
    case("configuration", f"{PARTNER}.jwks", edits(("https://partner.example/jwks", "HTTP://partner.example/jwks"))),
    case("configuration", f"{PARTNER}.jwks", edits(("https://partner.example/jwks", "http://localhost/jwks"))),
    case("configuration", f"{PARTNER}.discovery", edits(
        ('"https://partner.example"\njwks = "https://partner.example/jwks.json"',
         '"http://partner.example"\ndiscovery = true'), ('"https://partner.example"', '"http://partner.example"'))),
    case("jwks_loopback", f"{PARTNER}.unsafe_http_loopback", edits(
        ("https://partner.example/jwks", "http://127.0.0.1/jwks"),
        (STALE, f"{STALE}\nunsafe_http_loopback = true"))),
    case("configuration", "producer.identity.authority",
         identity('authority = "http://a.example"', 'credential = { token_file = "t" }'),
         identity(HTTPS, 'credential = { token_file = "t" }')),
    case("configuration", "producer.identity.credential.token_url",
         identity(HTTPS, f'credential = {{ token_url = "http://a.example/t", {SECRET}'),
         identity(HTTPS, f'credential = {{ token_url = "https://a.example/t", {SECRET}')),
    case("authority_loopback", "producer.identity.authority",
         identity('authority = "http://127.0.0.1:8"', "unsafe_http_loopback = true",
                  'credential = { token_file = "t" }')),
    case("secret_readable", "producer.identity.credential.client_secret_file",
         both(identity(HTTPS, f'credential = {{ token_url = "https://a.example/t", {SECRET}'),
              mode("secret/passphrase", 0o604)),
         identity(HTTPS, f'credential = {{ token_url = "https://a.example/t", {SECRET}')),
    case("trust_writable", "producer.identity.ca",
         both(identity(HTTPS, 'ca = "jwks.json"', 'credential = { token_file = "t" }'), mode("jwks.json", 0o646)),
         identity(HTTPS, 'ca = "jwks.json"', 'credential = { token_file = "t" }')),
    case("stale_beyond_rotation", f"{PARTNER}.max_stale", edits((STALE, f"max_stale = {DAY + 1}")),
         edits((STALE, f"max_stale = {DAY}"))),
    case("stale_beyond_rotation", f"{PARTNER}.max_stale", edits(("7776000", "3599")), edits(("7776000", "3600"))),
    case("publish_delay_overstated", "consumer.issuers[0].publish_delay",
         edits((OWN, 'jwks = "https://auth.example/jwks.json"\npublish_delay = 601')),
         edits((OWN, 'jwks = "https://auth.example/jwks.json"\npublish_delay = 600'))),
    # the producer's keys
    case("key_readable", "producer.keys", lambda world: world.pem.chmod(0o640)),
    case("keystore_writable", "producer.keys", mode("keys", 0o720)),
    case("keystore_readable", "producer.keys", mode("keys", 0o750)),
    case("configuration", "producer.keys", rsa_pem(1024), rsa_pem(2048)),
    case("key_plain", "producer.keys", other_keys("plain")),
    case("passphrase_beside_keys", "producer.passphrase_file", beside),
    case("passphrase_unavailable", "producer.passphrase_env",
         edits(('passphrase_file = "secret/passphrase"', 'passphrase_env = "MQAUTH_TEST_UNSET"'))),
    case("passphrase_unavailable", "producer.passphrase_file", edits(("secret/passphrase", "secret/nowhere"))),
    case("key_alone", "producer.keys", single_pem),
    case("key_overdue", "producer.keys", later(90 * DAY + 1), later(90 * DAY)),
    case("key_no_next", "producer.keys", later(81 * DAY + 1), later(81 * DAY)),
    case("key_no_next", "producer.keys", later(82 * DAY), later(82 * DAY, next_key)),
    case("rotation_stalled", "producer.keys", later(DAY + 601, next_key), later(DAY + 600, next_key)),
    case("publish_delay_short", "producer.keys",
         lambda world: world.ring(lambda found: replace(found, publish_delay=299)),
         lambda world: world.ring(lambda found: replace(found, publish_delay=300))),
    case("retain_short", "producer.keys",
         lambda world: world.ring(lambda found: replace(found, retain=60 + DAY - 1)),
         lambda world: world.ring(lambda found: replace(found, retain=60 + DAY))),
    # brokers and stores
    case("broker_plaintext", "check.brokers[0]", brokers("amqp://r.example/"), brokers("amqp://127.0.0.1/")),
    case("broker_plaintext", "check.brokers[0]", brokers("AMQP://r.example/"), brokers("amqp://[::1]:5672/")),
    case("broker_plaintext", "check.brokers[0]", brokers("kafka://r.example:9092"), brokers("kafka://localhost:9092")),
    case("broker_plaintext", "check.brokers[0]", brokers("kafka://localhost:9092,r.example:9092")),
    case("broker_plaintext", "check.brokers[0]", brokers("kafka://r.example:9?security_protocol=SASL_PLAINTEXT"),
         brokers("kafka://[2001:db8::1]:9,[2001:db8::2]:9?security_protocol=SSL")),
    case("broker_unverified", "check.brokers[0]", brokers("amqps://r.example/?no_verify_ssl=false"),
         brokers("amqps://r.example/?no_verify_ssl=0")),
    case("broker_unverified", "check.brokers[0]", brokers("amqps://r.example?heartbeat=5&no_verify_ssl=")),
    case("broker_unverified", "check.brokers[0]",
         brokers("kafka://r.example:9?security_protocol=SSL&ssl_check_hostname=False"),
         brokers("kafka://r.example:9?security_protocol=SSL&ssl_check_hostname=True")),
    case("broker_tls_ignored", "check.brokers[0]", brokers("amqp://localhost/?ssl=True"),
         brokers("amqps://r.example/?cafile=ca.pem")),
    case("replay_plaintext", "replay.store", redis("redis://r.example/0"), redis("redis://localhost/0")),
    case("replay_unverified", "replay.store", redis("rediss://r.example/0?ssl_cert_reqs=none"),
         redis("rediss://r.example/0?ssl_cert_reqs=required")),
    case("replay_unverified", "replay.store", redis("rediss://r.example/0?ssl_check_hostname=no"),
         redis("rediss://r.example/0?ssl_check_hostname=yes")),
    # delivery
    case("replay_memory_shared", "replay.store", edits(("consumers = 1", "consumers = 2")),
         both(edits(("consumers = 1", "consumers = 2")), redis("rediss://r.example/0"))),
    case("replay_memory_shared", "replay.file",
         both(edits(("consumers = 1", "consumers = 2")), in_file("r.sqlite")), in_file("r.sqlite")),
    case("replay_capacity", "replay.capacity", edits(("700000", str(8 * (300 + 5 + DAY) - 1))),
         edits(("700000", str(8 * (300 + 5 + DAY))))),
    case("replay_capacity", "replay.file", both(edits(("rate = 8", "rate = 1000000000")), in_file("r.sqlite")),
         in_file("r.sqlite")),
    case("replay_not_durable", "replay.file", in_file("/dev/shm/r.sqlite"), in_file("r.sqlite")),
    case("replay_off", "replay.store", redis("none"), in_file("r.sqlite")),
    case("trust_writable", "replay.file",
         both(in_file("r.sqlite"), lambda world: world.file("r.sqlite", b"", 0o666)),
         both(in_file("r.sqlite"), lambda world: world.file("r.sqlite", b"", 0o600))),
    case("audit_missing", "audit", lambda world: world.drop("audit")),
    case("audit_not_durable", "audit.file", edits(("audit.jsonl", "/dev/null")),
         edits(("audit.jsonl", "/srv/a.jsonl"))),
    case("audit_not_durable", "audit.file", lambda world: (world.place / "audit.jsonl").mkdir(),
         audit_file(0o600)),
    case("audit_not_durable", "audit.file", edits(("audit.jsonl", "/dev/shm/../shm/a.jsonl"))),
    case("audit_writable", "audit.file", audit_file(0o602), audit_file(0o604)),
    case("audit_shared", "audit.file", edits(("consumers = 1", "consumers = 2")),
         edits(("consumers = 1", "consumers = 2"), ("audit.jsonl", "audit-{host}-{pid}.jsonl"))),
    case("trust_from_environment", "consumer.issuers[0].file",
         edits(('file = "jwks.json"', 'file = "${NO_SUCH_VARIABLE:-jwks.json}"'))),
    case("dead_letters_missing", "dead_letters", lambda world: world.drop("dead_letters")),
    case("self_test_off", "consumer.self_test", edits(("[consumer]\n", "[consumer]\nself_test = false\n"))),
    case("settles_nothing", "consumer", lambda world: [world.drop("dead_letters"), world.drop("audit")]),
    case("dead_letters_source", "dead_letters.name", edits(('"orders.dead"', '"orders"'))),
    case("dead_letters_source", "dead_letters.name", edits(('"orders.dead"', '"billing"'))),
    case("dead_letters_reachable", "dead_letters.name", edits(('"orders.dead"', '"stock.dead"')),
         edits(('"orders.dead"', '"stock.dead.letters"'))),
    # the rollout; the world's day is 2030-03-17
    case("rollout_off", "rollout[0].rung", rung(rung="off"), rung(rung="observe")),
    case("rollout_observe", "rollout[0].rung", rung(rung="observe"), rung(rung="off")),
    case("rollout_ending", "rollout[0].until", rung(until="2030-03-31"), rung(until="2030-04-01")),
    case("rollout_overdue", "rollout[0].until", rung(until="2030-03-16"), rung(until="2030-03-17")),
    case("rollout_catch_all", "rollout[0].destinations", rung(place="*", until="2030-03-30"), rung()),
    case("rollout_weakest", "rollout", rung(), rung(place="kafka:orders")),
    case("unsigned_exempt", "consumer.unsigned[0].destination", exempt()),
    case("exempt_broad", "consumer.unsigned[0].destination", exempt("rabbitmq:shop/#"),
         exempt("rabbitmq:shop/#", kinds='kinds = ["beat"]')),
    case("exempt_long", "consumer.unsigned[0].until", exempt(until="2031-03-19"), exempt(until="2031-03-17")),
]  # fmt: skip


def found_at(report: Report, code: str) -> list[str]:
    return [finding.key for finding in report.findings if finding.code.name == code]


@pytest.mark.parametrize("case", CASES)
def test_code_fires_at_its_place(world: World, case: Case) -> None:
    """A pitfall is found under its code, with the registry's severity, at the key and line it stands on."""
    case.bad(world)
    report = world.check()
    (finding,) = [
        found
        for found in report.findings
        if (found.code.name, found.key) == (case.code, case.key)
    ]
    assert finding.severity is CODES[case.code].severity
    assert finding.message
    said = "" if finding.line is None else world.text.splitlines()[finding.line - 1]
    named = re.findall(r"[\w*-]+", re.sub(r"\[\d+\]", "", case.key))
    present = [part for part in named if part in said]
    assert present or finding.line is None, (case.key, said)


# That the sound files themselves are silent is a test of its own.
BESIDE = [each for each in CASES if each.values[0].good not in (NOTHING, sound_authority)]


@pytest.mark.parametrize("case", BESIDE)
def test_code_is_silent_beside_its_place(world: World, case: Case) -> None:
    """What differs from a pitfall only by being sound is not reported under its code."""
    case.good(world)
    assert found_at(world.check(), case.code) == []


def test_every_code_has_a_case() -> None:
    """No code of the registry goes without a case that fires it."""
    assert {parameter.values[0].code for parameter in CASES} == set(CODES)


def test_rules_name_codes_of_the_registry() -> None:
    """No rule can report a code that the registry does not have, on whatever branch it stands."""
    sources = Path(mqauth.check.__file__).parent.glob("*.py")
    nodes = [
        node for path in sources for node in ast.walk(ast.parse(path.read_text("utf-8")))
    ]
    calls = [
        (getattr(node.func, "id", ""), node.args)
        for node in nodes
        if isinstance(node, ast.Call)
    ]
    codes = [arguments[0] for name, arguments in calls if name == "finding"]
    # A row of a table has its code in the second place.
    rows = [row for name, arguments in calls if name == "those" for row in arguments]
    codes += [row.elts[1] for row in rows if isinstance(row, ast.Tuple)]
    named = {
        part.value
        for code in codes
        for part in ast.walk(code)
        if isinstance(part, ast.Constant)
    }
    assert len(named) > 40
    assert named <= set(CODES)


def test_sound_file_is_silent(world: World) -> None:
    """A sound file has no finding at all, not even a note, and all of it was looked at but the remote keys."""
    report = world.check()
    assert report.findings == ()
    assert report.unseen == ("remote key sets",)


def test_a_finding_shows_no_option_of_a_reference(world: World) -> None:
    """Of a reference the finding says where the key is, and nothing that stands behind its question mark."""
    authority(held(PLAIN))(world)
    (finding,) = [
        one for one in world.check().findings if one.code.name == "transit_loopback"
    ]
    assert (
        finding.message
        == "transit:http://127.0.0.1:8200/transit/orders: http to http://127.0.0.1:8200"
    )


def test_registry_is_written_for_people() -> None:
    """Every code says why it matters and what to write instead, and is named in the reasons' own spelling."""
    for code in CODES.values():
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", code.name)
        assert code.why.endswith(".")
        assert code.instead.endswith(".")


def test_page_has_every_code() -> None:
    """The list of the page is the registry: every code once, in its order, and what to write instead."""
    page = (ROOT / "docs" / "check.md").read_text("utf-8").partition("## Codes")[2]
    items = [item for item in page.splitlines() if item.startswith("* `")]
    assert items == [
        f"* `{code.name}` ({code.severity.value}): {code.instead}"
        for code in CODES.values()
    ]


def test_every_refusal_of_a_table_is_found(world: World) -> None:
    """A table with several refused settings shows each of them, inner tables and entries included."""
    world.edit("leeway = 5", "leeway = 61\nmax_lifetyme = 1")
    world.edit("max_lifetime = 300", "max_lifetime = 0.5")
    world.edit(STALE, "max_stale = 5")
    world.edit(f"subjects = {STAR}", f'subjects = {{ {"k" * 129} = ["a"], kid-1 = [] }}')
    world.edit('destinations = ["kafka:stock.*"]', "")
    world.edit('name = "orders.dead"', 'nmae = "orders.dead"')
    found = {(finding.key, finding.message) for finding in world.check().findings}
    assert found == {
        ("consumer.leeway", "must be 0 to 60, not 61"),
        ("consumer.max_lifetyme", "unknown key; did you mean max_lifetime?"),
        (
            "consumer.max_lifetime",
            'must be an integer (seconds) or a string like "15m", not a float',
        ),
        (f"{PARTNER}.max_stale", "must be 30 to 604800, not 5"),
        (
            f"{PARTNER}.subjects.{'k' * 129}",
            'must be a kid of at most 128 characters, or "*"',
        ),
        (f"{PARTNER}.subjects.kid-1", "must name at least 1"),
        ("consumer.allow[1].destinations", "required"),
        ("dead_letters.nmae", "unknown key; did you mean name?"),
    }


# --- the check as a whole ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConfigurationError("an object refuses"), "an object refuses"),
        (OSError(5, "I/O error", "x"), "x: I/O error"),
    ],
)
def test_refusal_without_a_place_is_found(
    world: World, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    """What an object refuses when it is built, or the system, is a finding even where no setting is named."""

    def refuse(*_arguments: Any, **_settings: Any) -> None:
        raise error

    monkeypatch.setattr("mqauth.config.load.Configuration._pipeline", refuse)
    (finding,) = world.check().findings
    assert (finding.code.name, finding.key, finding.line, finding.message) == (
        "configuration",
        "",
        None,
        said,
    )


def test_strict_makes_warnings_errors(world: World) -> None:
    """Under ``strict`` no warning is left, and notes stay notes."""
    world.edit("leeway = 5", "leeway = 30")
    world.edit('"reject"', '"hide"')
    report = world.check().strict()
    assert [report.count(severity) for severity in Severity] == [1, 0, 1]


def test_an_error_cannot_be_accepted(world: World) -> None:
    """Naming an error under ``accept`` is an error itself, and hides nothing."""
    world.edit("orders.dead", "orders")
    world.edit("rate = 8", 'rate = 8\naccept = ["dead_letters_source"]')
    assert {found.code.name for found in world.check().findings} == {
        "dead_letters_source",
        "configuration",
    }


def test_nothing_is_changed(world: World) -> None:
    """A check leaves every file as it was and makes none: no audit file, no lock."""
    world.write()
    before = {
        path: (path.stat().st_mtime_ns, path.stat().st_mode)
        for path in world.place.rglob("*")
    }
    world.check()
    assert {path for path in world.place.rglob("*")} == set(before)
    assert all(path.stat().st_mode == bits for path, (_, bits) in before.items())


KEYS = (
    "issuer", "subject", "audience", "keys", "issuers", "file", "allow", "brokers", "store", "lifetime",
    "max_lifetime", "accept", "authorities", "destinations", "jwks",
)  # fmt: skip
MEMBERS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.sampled_from(["", "*", "a", "https://a", "kafka:#"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)
    ),
    max_leaves=12,
)
TABLES = (
    "producer",
    "consumer",
    "replay",
    "audit",
    "dead_letters",
    "release",
    "check",
    "x",
)


@given(tables=st.dictionaries(st.sampled_from(TABLES), MEMBERS))
def test_no_shape_of_a_file_crashes_it(
    tmp_path_factory: pytest.TempPathFactory, tables: dict[str, Any]
) -> None:
    """Whatever a file holds, the check ends with findings."""
    path = tmp_path_factory.getbasetemp() / "shapes.toml"
    path.write_text(
        "".join(
            f"{name} = {toml(value)}\n"
            for name, value in tables.items()
            if value is not None
        )
    )
    report = check(path, clock=FakeClock())
    assert report.count(Severity.ERROR) <= len(report.findings)


@pytest.mark.parametrize(
    ("host", "is_it"),
    [
        ("localhost", True), ("127.8.9.1", True), ("::1", True), ("::", False), ("localhost.example", False),
        ("10.0.0.1", False), ("", False), ("127.0.0.1.example", False),
    ],
)  # fmt: skip
def test_loopback_is_this_machine_only(host: str, is_it: bool) -> None:
    """Only names and addresses that can be nobody else count as this machine."""
    assert is_loopback(host) is is_it


def test_group_of_a_stranger_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A group is its owner's own when it has his name and no other member, as ``umask 002`` presumes."""
    import grp
    import pwd
    from types import SimpleNamespace

    monkeypatch.setattr(pwd, "getpwuid", lambda user: SimpleNamespace(pw_name="ann"))
    members: list[str] = []
    monkeypatch.setattr(grp, "getgrgid", lambda group: SimpleNamespace(
        gr_name="ann" if group == 1000 else "staff", gr_mem=members
    ))  # fmt: skip
    assert [is_own_group(1000, group) for group in (1000, 50)] == [True, False]
    members.append("bob")
    assert not is_own_group(1000, 1000)
    assert is_own_group(0, 50)


def test_unknown_owner_has_no_group_of_his_own() -> None:
    """A user or group the system does not know is a stranger."""
    assert not is_own_group(2**31 - 5, 2**31 - 5)


# --- the command ------------------------------------------------------------------------------------------


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A world in whose folder the command is run; its keys are of today, for the command goes by the clock."""
    monkeypatch.chdir(tmp_path)
    return World(tmp_path, SYSTEM_CLOCK)


@pytest.mark.parametrize(
    ("change", "options", "counts"),
    [
        ((), (), (0, 0)), ((), ("--strict",), (0, 0)),
        (("leeway = 5", "leeway = 30"), (), (0, 1)), (("leeway = 5", "leeway = 30"), ("--strict",), (1, 0)),
        (("kafka:orders", "kafka:*"), (), (1, 0)),
    ],
    ids=["sound", "sound, strict", "a warning", "a warning, strict", "an error"],
)  # fmt: skip
def test_command_counts_and_exits(
    shell: World,
    capsys: pytest.CaptureFixture[str],
    change: Any,
    options: Any,
    counts: Any,
) -> None:
    """An error exits 1, a warning only with ``--strict``; each finding has exactly the promised members."""
    if change:
        shell.edit(*change)
    shell.write()
    assert main(["check", "mqauth.toml", "--json", *options]) == (1 if counts[0] else 0)
    report = json.loads(capsys.readouterr().out)
    assert (report["errors"], report["warnings"]) == counts
    for finding in report["findings"]:
        assert finding.keys() == {
            "code",
            "severity",
            "line",
            "key",
            "message",
            "why",
            "instead",
        }


SECRETS = (
    "hunter2",
    "c2VjcmV0LWtleS1tYXRlcmlhbA",
    PASSPHRASE.decode(),
    "tok3n-in-a-query",
)


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_no_secret_is_printed(
    shell: World, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    """URLs' credentials and queries, key material and passphrases stay out of every output."""
    secret = "c2VjcmV0LWtleS1tYXRlcmlhbA"
    shell.jwks(
        "jwks.json",
        [
            {"kty": "oct", "kid": "s", "k": secret},
            jwk(Key.generate(), d=secret),
            {"kty": secret},
        ],
    )
    shell.edit(
        BROKERS,
        '["amqp://u:hunter2@r.example/?ssl=hunter2", "kafka://u:hunter2@r.example:1?sasl=hunter2"]',
    )
    shell.edit('"memory"', '"redis://u:hunter2@r.example/0?password=hunter2"')
    shell.edit(
        "https://partner.example/jwks.json",
        "http://u:hunter2@partner.example/jwks.json?key=tok3n-in-a-query",
    )
    shell.file("secret/passphrase", PASSPHRASE + b"x", 0o644)
    shell.write(0o644)
    assert main(["check", "mqauth.toml", *options]) == 1
    printed = "".join(capsys.readouterr())
    assert [secret for secret in SECRETS if secret in printed] == []
    assert [code for code in ("broker_tls_ignored", "configuration", "jwks_symmetric", "replay_plaintext") if
            code not in printed] == []  # fmt: skip


HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e[red]"


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_terminal_commands_of_the_file_are_harmless(
    shell: World, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    """Control sequences in keys, paths, kids and the file's own name are printed as text, in every output."""
    shell.edit('file = "audit.jsonl"', f"file = {json.dumps('/dev/' + HOSTILE)}")
    shell.edit('file = "review.json"', f"file = {json.dumps(HOSTILE)}")
    shell.edit("vouches = false", 'subjects = { "\u202e[bold]x" = ["orders-api"] }')
    shell.text += f"\n[{json.dumps(HOSTILE)}]\n"
    name = f"evil{HOSTILE}.toml"
    (shell.place / name).write_text(shell.text)
    assert main(["check", name, *options]) == 1
    printed = capsys.readouterr().out
    assert "audit_not_durable" in printed
    assert [sign for sign in ("\x1b", "\x07", "\x9b", "\u202e") if sign in printed] == []
    assert "[red]" in printed
