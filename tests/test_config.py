"""``mqauth.toml``: what it builds, and how strictly it is read."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

import mqauth
from mqauth import (
    Alert,
    ConfigurationError,
    Key,
    KeySet,
    Message,
    Pipeline,
    Reason,
    Verdict,
)
from mqauth.audit.file import parts, read_heads, rotated
from mqauth.audit.record import AuditRecord
from mqauth.config.declaration import read
from mqauth.config.kinds import is_url
from mqauth.config.settings import FileSettings
from mqauth.config.toml_file import Table
from mqauth.flow import run
from mqauth.keystore import Keystore, public_keys
from mqauth.replay.rules import NoReplayStore
from mqauth.stores.redis import RedisReplayStore
from mqauth.testing import FakeClock, MemoryStage
from mqauth.wire.jwk import dump_key_set
from tests.conftest import audit_record

SCHEMA = Draft202012Validator(
    json.loads(
        (Path(__file__).parents[1] / "docs" / "mqauth.schema.json").read_text("utf-8")
    )
)
"""What editors hold a file against."""

FULL = """
[producer]
issuer = "https://auth.example"
subject = "orders-api"
audience = "billing"
keys = "keys"
lifetime = 30
batch = 64
linger = 1
[producer.audiences]
"kafka:stock" = "stock"

[consumer]
scope = "billing"
audience = ["billing", "stock"]
max_lifetime = 600
leeway = 3
at = "append"
max_queue_age = 900
append_evidence = "interceptor"
unsigned_headers = "reject"
require_headers = ["content-type"]
user_id = { guest = "orders-api" }

[[consumer.issuers]]
issuer = "https://auth.example"
file = "jwks.json"
subjects = { "*" = ["orders-api"] }

[[consumer.issuers]]
issuer = "https://other.example"
file = "jwks.json"
vouches = true

[[consumer.allow]]
subject = "orders-api"
issuer = "https://auth.example"
destinations = ["rabbitmq:shop/orders.*", "kafka:orders", "kafka:stock"]

[replay]
store = "memory"
capacity = 10

[audit]
file = "audit.jsonl"
record = "all"
max_bytes = 100000
flood_after = 50
unsafe_no_fsync = true
heads = "heads.jsonl"
heads_key = "heads.pem"
heads_every = 10
heads_seconds = 5

[misuse]
window = 30
quiet = 300
burst = 20
replays = 4
expired = 10
skewed_producers = 5
unknown_kids = 6
learn = 0
capacity = 100
authorities = ["https://third.example"]

[dead_letters]
name = "orders.dead"
"""
"""Every key that this version can build, each at another value than its default."""

OPA = {
    "title": "[consumer.opa]",
    "url": 'url = "http://127.0.0.1:8181"',
    "path": 'path = "mqauth/allow"',
}
LOG = {"title": "[audit]", "file": 'file = "audit.jsonl"'}
STORE = {"title": "[replay]"}

SMALL = """
[producer]
issuer = "https://auth.example"
subject = "orders-api"
audience = "billing"
keys = "keys"

[consumer]
audience = "billing"
[[consumer.issuers]]
issuer = "https://auth.example"
file = "jwks.json"
[[consumer.allow]]
subject = "orders-api"
destinations = ["kafka:orders"]
"""


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A keystore folder with one key, made once."""
    folder = tmp_path_factory.mktemp("keystore") / "keys"
    Keystore(folder=folder).create(subjects=["orders-api"])
    return folder


@pytest.fixture
def place(tmp_path: Path, keys: Path) -> Path:
    """A folder with keys, their JWK Set, and room for an ``mqauth.toml``."""
    (tmp_path / "keys").symlink_to(keys)
    (tmp_path / "heads.pem").write_bytes(Key.generate().to_pem())
    (tmp_path / "jwks.json").write_text(json.dumps(dump_key_set(public_keys(keys))))
    return tmp_path


def written(place: Path, text: str | bytes) -> Path:
    path = place / "mqauth.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refusal(place: Path, text: str | bytes, attribute: str | None = None) -> str:
    """Return the one line a file is refused with, its path cut to its name."""
    path = written(place, text)
    with pytest.raises(ConfigurationError) as caught:
        getattr(mqauth.load(path), attribute or "file")
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(f"{place}/", "")


# --- what is built ----------------------------------------------------------------------------------------


def test_full_file_signs_and_verifies(place: Path) -> None:
    """A message signed by ``.signer`` passes ``.pipeline`` of the same file, at its second audience too."""
    found = mqauth.load(written(place, FULL), clock=FakeClock())
    message = Message(
        destination="kafka:stock",
        body=b"x",
        headers=(("content-type", b"text/plain"),),
        origin=mqauth.Origin(timestamp_ms=1_900_000_000_000, timestamp_type="append"),
    )
    guard = found.pipeline
    outcome = run(guard.judge(guard.receive(found.signer.sign(message))))
    assert outcome.verdict is Verdict.ACCEPTED, outcome
    assert outcome.verified.audience == "stock"
    assert outcome.verified.claims.exp - outcome.verified.claims.iat == 30
    audit_file(guard).close()


def audit_file(guard: Pipeline) -> mqauth.AuditFile:
    """Return the file behind the watch and the flood gate of a configured pipeline."""
    assert isinstance(guard.audit, mqauth.MisuseWatch)
    gate = guard.audit.sink
    assert isinstance(gate, mqauth.FloodGate)
    assert isinstance(gate.sink, mqauth.AuditFile)
    return gate.sink


def test_every_setting_reaches_its_object(place: Path) -> None:
    """No option is silent: each value of the full file stands in the object it is for."""
    found = mqauth.load(written(place, FULL))
    guard = found.pipeline
    assert isinstance(guard, Pipeline)
    assert guard.scope == "billing"
    assert guard.verifier.retention == 903
    assert set(guard.verifier.issuers) == {
        "https://auth.example",
        "https://other.example",
    }
    assert guard.verifier.issuers["https://auth.example"].subjects == {
        "*": {"orders-api"}
    }
    assert guard.verifier.issuers["https://other.example"].vouches is True
    assert audit_file(guard).path == place / "audit.jsonl"
    assert found.dead_letters_name == "orders.dead"
    assert found.batching == {"batch": 64, "linger": 1.0}
    assert isinstance(guard.audit, mqauth.MisuseWatch)
    guard.audit.close()


def test_objects_are_built_once(place: Path) -> None:
    """Asking twice gives the same object: one audit file, one replay store."""
    found = mqauth.load(written(place, SMALL))
    assert found.pipeline is found.pipeline
    assert found.signer is found.signer


def test_defaults_are_those_of_the_design(place: Path) -> None:
    """Left out: 60 s to live, 5 s leeway, 1 h at most, judged on receipt, memory store, no audit."""
    found = mqauth.load(written(place, SMALL))
    assert found.signer.lifetime == 60
    assert found.batching == {"batch": 64, "linger": 0}
    assert found.pipeline.verifier.retention == 5
    assert found.pipeline.audit is None
    assert found.pipeline.scope is None


def test_an_agent_is_asked_beside_the_rules(place: Path) -> None:
    """``[consumer.opa]`` makes the policy: within the rules where there are some, alone where there is none."""
    table = '[consumer.opa]\nurl = "http://127.0.0.1:8181"\npath = "mqauth/allow"\nremember = 3\ntimeout = 1\n'
    scoped = SMALL.replace("[consumer]\n", '[consumer]\nscope = "billing"\n')
    found: Any = mqauth.load(written(place, scoped + table)).pipeline.policy
    assert (type(found), found.scope, found.within.rules[0].subject) == (
        mqauth.OPA,
        "billing",
        "orders-api",
    )
    assert (found._remember, found._timeout) == (3, 1)
    alone: Any = mqauth.load(
        written(place, scoped.partition("[[consumer.allow]]")[0] + table)
    ).pipeline.policy
    assert (type(alone), alone.within) == (mqauth.OPA, None)


@pytest.mark.parametrize(
    ("table", "line", "what"),
    [
        (OPA, 'url = "http://opa.example"', "url: the URL of OPA is https; http only on loopback"),
        (OPA, 'url = "ftp://opa.example"', "url: must be https://... or http://..."),
        (OPA, 'path = "/allow"', "path: must be words of letters"),
        (OPA, "remember = 301", "remember: must be 0 to 300"),
        (OPA, "timeout = 0", "timeout: must be 0.01 to 5"),
        (OPA, 'token_file = "nowhere"', "url: nowhere: No such file"),
        (LOG, "heads_every = 5", "heads_every: only with heads"),
        (LOG, 'heads_key = "heads.pem"', "heads_key: only with heads"),
        (LOG, 'heads = "h"', "heads: only with heads_key"),
        (LOG, 'heads = "h"\nheads_key = "none.pem"', "heads_key: none.pem: "),
        (LOG, 'heads = "h"\nheads_key = "jwks.json"', "heads_key: jwks.json: "),
        (LOG, 'heads = "h"\nheads_key = "heads.pem"\nheads_passphrase_env = "MQAUTH_NOT_SET"',
         "heads_passphrase_env: the variable MQAUTH_NOT_SET is not set"),
        (STORE, 'store = "rediss://user:hunter2@redis.example:6379/0?ssl_cert_reqs=none"',
         "store: the replay store's URL turns TLS verification off"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_refused_at_its_setting(
    place: Path, table: dict[str, str], line: str, what: str
) -> None:
    """What a URL, a path or a number may not be, a missing file, a key that is none: in one line, no password."""
    title, *members = (table | {line.partition(" = ")[0]: line}).values()
    said = refusal(place, "\n".join([SMALL, title, *members]), "pipeline")
    assert said.startswith(f"mqauth.toml: {title} {what}")
    assert "hunter2" not in said


def test_no_rule_refuses_everything(place: Path) -> None:
    """A consumer without ``[[consumer.allow]]`` is configured, and lets nothing pass."""
    found = mqauth.load(written(place, SMALL.partition("[[consumer.allow]]")[0]))
    guard = found.pipeline
    outcome = run(
        guard.judge(
            guard.receive(
                found.signer.sign(Message(destination="kafka:orders", body=b""))
            )
        )
    )
    assert outcome.reason is mqauth.Reason.PRODUCER_FORBIDDEN


@pytest.mark.parametrize("table", ["producer", "consumer"])
def test_one_half_alone_is_fine(place: Path, table: str) -> None:
    """A file with ``[producer]`` or ``[consumer]`` alone serves that half, and names the missing one."""
    head, _, tail = SMALL.partition("[consumer]")
    half = head if table == "producer" else "[consumer]" + tail
    has, lacks, missing = (
        ("signer", "pipeline", "consumer")
        if table == "producer"
        else ("pipeline", "signer", "producer")
    )
    assert getattr(mqauth.load(written(place, half)), has)
    assert (
        refusal(place, half, lacks)
        == f"mqauth.toml: [{missing}]: required here, and missing"
    )


def test_paths_are_relative_to_the_file(
    place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where the process runs does not matter."""
    path = written(place, SMALL)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert mqauth.load(path).signer.subject == "orders-api"


@pytest.mark.parametrize("by", ["passphrase_env", "passphrase_file"])
def test_passphrase_by_reference(
    place: Path, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A passphrase comes from the environment or from a file, whose last newline does not count."""
    Keystore(folder=place / "locked", passphrase=b"secret").create()
    monkeypatch.setenv("MQAUTH_TEST_PASSPHRASE", "secret")
    (place / "passphrase").write_bytes(b"secret\n")
    value = "MQAUTH_TEST_PASSPHRASE" if by == "passphrase_env" else "passphrase"
    text = SMALL.replace('keys = "keys"', f'keys = "locked"\n{by} = "{value}"')
    assert mqauth.load(written(place, text)).signer.subject == "orders-api"


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (
            'passphrase_env = "MQAUTH_TEST_UNSET"',
            "passphrase_env: the variable MQAUTH_TEST_UNSET is not set",
        ),
        (
            'passphrase_env = "MQAUTH_TEST_EMPTY"',
            "passphrase_env: the variable MQAUTH_TEST_EMPTY: a passphrase has",
        ),
        ('passphrase_file = "nowhere"', "passphrase_file: nowhere: No such file"),
        (
            'passphrase_file = "long"',
            "passphrase_file: long: a passphrase has 1 to 1023 bytes",
        ),
        ('passphrase_file = "wrong"', "keys: "),
    ],
)
def test_passphrase_that_cannot_be_had(
    place: Path, line: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A passphrase that is missing, empty, too long or wrong is located, and never shown."""
    Keystore(folder=place / "locked", passphrase=b"secret").create()
    monkeypatch.setenv("MQAUTH_TEST_EMPTY", "")
    (place / "long").write_bytes(b"p" * 1024)
    (place / "wrong").write_bytes(b"wr0ng")
    said = refusal(
        place, SMALL.replace('keys = "keys"', f'keys = "locked"\n{line}'), "signer"
    )
    assert said.startswith(f"mqauth.toml: [producer] {what}")
    assert "wr0ng" not in said


def test_second_writer_of_the_audit_is_refused(place: Path) -> None:
    """One audit file has one writer; the second is told by table and key."""
    text = SMALL + '[audit]\nfile = "audit.jsonl"\n'
    guard = mqauth.load(written(place, text)).pipeline
    assert refusal(place, text, "pipeline").startswith(
        "mqauth.toml: [audit] file: audit.jsonl: another process"
    )
    audit_file(guard).close()


def test_audit_settings_reach_their_objects(place: Path) -> None:
    """Thresholds, rotation, flood gate and heads are those of the file; issuers that vouch are authorities."""
    guard = mqauth.load(written(place, FULL)).pipeline
    assert isinstance(guard.audit, mqauth.MisuseWatch)
    assert guard.audit.detector.thresholds == mqauth.Thresholds(
        window=30, quiet=300, burst=20, replays=4, expired=10, skewed_producers=5, unknown_kids=6, learn=0,
        capacity=100, authorities=frozenset(["https://third.example", "https://other.example"]),
    )  # fmt: skip
    file = audit_file(guard)
    with file:
        for number in range(300):
            guard.audit.write(rejection(number))
    heads = read_heads(place / "heads.jsonl", KeySet([Key.load(place / "heads.pem")]))
    assert [head.records for head in heads][:2] == [10, 20]
    assert len(rotated(place / "audit.jsonl")) == 1
    records = [
        json.loads(line)
        for part in parts(place / "audit.jsonl")
        for line in part.read_text().splitlines()
    ]
    assert sum("flood" in record for record in records) == 250
    assert [
        record["alert"]["count"] for record in records if record["verdict"] == "alert"
    ] == [20, 20]


def rejection(number: int) -> AuditRecord:
    """Return the record of a forgery."""
    claimed, place = {"claimed": {"kid": "k"}}, {"destination": "kafka:orders"}
    return audit_record(
        number, reason="signature_invalid", detail="x" * 200, broker=place, token=claimed
    )


def test_observers_and_alerts_are_handed_on(place: Path) -> None:
    """Who asks ``load`` for it is told every outcome and every alert."""
    seen: list[object] = []
    found = mqauth.load(
        written(place, FULL),
        observers=[lambda outcome, *_: seen.append(outcome.verdict)],
        on_alert=seen.append,
    )
    stage = MemoryStage("kafka:stock")
    stage.inject(Message(destination="kafka:stock", body=b"forged"))
    stage.consume(found.pipeline, lambda _: None, until=lambda: len(stage.letters()) == 1)
    assert seen == [Verdict.REJECTED]
    assert isinstance(found.pipeline.audit, mqauth.MisuseWatch)
    for number in range(20):
        found.pipeline.audit.write(rejection(number))
    assert [alert.kind for alert in seen[1:] if isinstance(alert, Alert)] == [
        "burst",
        "burst",
    ]
    found.pipeline.audit.close()


def test_heads_key_with_passphrase(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The heads' key may be encrypted; its passphrase is named, never written."""
    (place / "heads.pem").write_bytes(Key.generate().to_pem(b"secret"))
    monkeypatch.setenv("HEADS_PASSPHRASE", "secret")
    table = (
        '[audit]\nfile = "audit.jsonl"\nheads = "heads.jsonl"\nheads_key = "heads.pem"\n'
    )
    guard = mqauth.load(
        written(place, f'{SMALL}{table}heads_passphrase_env = "HEADS_PASSPHRASE"\n')
    ).pipeline
    with audit_file(guard) as file:
        file.write(rejection(0))
    assert len(read_heads(place / "heads.jsonl")) == 1


def test_redis_store_is_built_unconnected(place: Path) -> None:
    """A Redis URL gives a store that connects at the first claim, and says nothing of its password."""
    text = SMALL + '[replay]\nstore = "rediss://user:hunter2@redis.example:6379/0"\n'
    store = mqauth.load(written(place, text)).pipeline.replay
    assert isinstance(store, RedisReplayStore)
    assert "hunter2" not in repr(store)


def test_a_file_is_its_consumers_alone(place: Path) -> None:
    """The pipeline opens the replay file, beside the configuration; what commands use beside it does not."""
    text = SMALL + '[replay]\nfile = "replay.sqlite"\n'
    config, beside = mqauth.load(written(place, text)), mqauth.load(place / "mqauth.toml")
    store = config.pipeline.replay
    assert isinstance(store, mqauth.FileReplayStore)
    assert store.where == str(place / "replay.sqlite")
    assert not isinstance(beside.judge.replay, mqauth.FileReplayStore)
    assert not isinstance(beside.trial.replay, mqauth.FileReplayStore)
    with pytest.raises(
        mqauth.ConfigurationError, match=r"mqauth.toml: \[replay\] file: .*: already open"
    ):
        assert beside.pipeline
    store.close()


def test_a_store_may_be_left_out_in_words(place: Path) -> None:
    """The word ``none`` gives a pipeline that remembers nothing, as ``replay=None`` does."""
    guard = mqauth.load(written(place, SMALL + '[replay]\nstore = "none"\n')).pipeline
    assert isinstance(guard.replay, NoReplayStore)


def test_no_password_is_shown() -> None:
    """Settings can be logged: a URL that may hold a password is not in them."""
    members = (
        {"store": "rediss://user:hunter2@redis.example/0"},
        {"brokers": ["amqps://user:hunter2@mq.example/"]},
    )
    for name, table in zip(("replay", "check"), members, strict=True):
        found = read(FileSettings, Table(file="mqauth.toml", members={name: table}))
        assert "hunter2" not in repr(found)


def test_release_authorities_are_built(place: Path) -> None:
    """Who may release, and what they may waive, reaches the verifier; without the table nobody may."""
    table = '[[release.authorities]]\nissuer = "https://r.example"\nfile = "jwks.json"\nwaive = ["expired"]\n'
    release = mqauth.load(written(place, SMALL + table)).pipeline.verifier.release
    assert release is not None
    assert {name: found.waive for name, found in release.authorities.items()} == {
        "https://r.example": frozenset([Reason.EXPIRED])
    }
    assert mqauth.load(written(place, SMALL)).pipeline.verifier.release is None


# --- strictness -------------------------------------------------------------------------------------------

EVERYTHING = (
    FULL
    + """
[[release.authorities]]
issuer = "https://review.example"
jwks = "https://review.example/jwks.json"
max_stale = 60
publish_delay = 5
ca = "ca.pem"
snapshot = "review-snapshot.json"
unsafe_http_loopback = false
waive = ["expired", "queue_age_exceeded", "lifetime_excessive", "key_expired", "producer_forbidden", "replayed"]

[check]
brokers = ["amqps://rabbitmq.example/", "kafka://a.example:9093,b.example:9093?security_protocol=SSL"]
consumers = 2
rate = 500
rotation = 7776000
accept = ["issuer_vouches"]
"""
)


def toml(value: Any) -> str:
    """Return a value as TOML; what TOML lacks as an empty text."""
    if isinstance(value, dict):
        return (
            "{"
            + ", ".join(
                f"{json.dumps(key)} = {toml(item)}" for key, item in value.items()
            )
            + "}"
        )
    if isinstance(value, list):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    return '""' if value is None else json.dumps(value)


def document(tables: dict[str, Any]) -> str:
    """Return a whole file as TOML, every table inline."""
    return "\n".join(
        f"{json.dumps(name)} = {toml(members)}" for name, members in tables.items()
    )


def at(tables: dict[str, Any], spot: tuple[str, ...]) -> dict[str, Any]:
    """Return the table at a path."""
    found: Any = tables
    for step in spot:
        found = found[int(step)] if isinstance(found, list) else found[step]
    return dict(found) if found is None else found


def shown(spot: tuple[str, ...]) -> str:
    """Return how an error names the table at a path."""
    if not spot:
        return ""
    if spot[-1].isdigit():
        return f"[[{spot[0]}.{spot[1]}]] #{int(spot[2]) + 1}"
    return f"[{spot[0]}]"


def test_the_file_with_everything_is_good(place: Path) -> None:
    """The file the strictness tests start from loads, so that each refusal below is of its one change."""
    assert (
        mqauth.load(written(place, document(tomllib.loads(EVERYTHING)))).dead_letters_name
        == "orders.dead"
    )
    assert SCHEMA.is_valid(tomllib.loads(EVERYTHING))


PRODUCER, CONSUMER, AUDIT = ("producer",), ("consumer",), ("audit",)
ISSUER, RULE, RELEASER = (
    ("consumer", "issuers", "0"),
    ("consumer", "allow", "0"),
    ("release", "authorities", "0"),
)


@pytest.mark.parametrize(
    ("spot", "changes", "where"),
    [
        ((), {"nonsense": 1}, "nonsense: unknown key"),
        (RULE, {"with space": 1}, '"with space": unknown key'),
        (PRODUCER, {"issuer": None}, "issuer: required"),
        (PRODUCER, {"subject": None}, "subject: required"),
        (PRODUCER, {"keys": None}, "keys: required"),
        (
            PRODUCER,
            {"passphrase_env": "NAME", "passphrase_file": "path"},
            "passphrase_file: contradicts",
        ),
        (
            PRODUCER,
            {"audiences": {"kafka orders": "b"}},
            '[producer.audiences] "kafka orders": must be a dest',
        ),
        (
            PRODUCER,
            {"audiences": {"kafka:a": 1}},
            '[producer.audiences] "kafka:a": must be a string, not an int',
        ),
        (
            PRODUCER,
            {"audiences": {"kafka:a": "*"}},
            '[producer.audiences] "kafka:a": must be a name of 1 to 256',
        ),
        (CONSUMER, {"max_queue_age": None}, "max_queue_age: required"),
        (CONSUMER, {"at": "consume"}, 'max_queue_age: only with at = "append"'),
        (CONSUMER, {"user_id": "name"}, 'user_id: must be "subject" or a table'),
        (ISSUER, {"file": None}, ": needs one of file, jwks and discovery"),
        (ISSUER, {"jwks": "https://a.example/"}, ": needs one of file, jwks and"),
        (ISSUER, {"discovery": True}, ": needs one of file, jwks and"),
        (
            ISSUER,
            {"file": None, "discovery": False},
            "discovery: must be true or left out",
        ),
        (ISSUER, {"max_stale": 60}, "max_stale: only with jwks or discovery"),
        (ISSUER, {"publish_delay": 5}, "publish_delay: only with jwks or discovery"),
        (ISSUER, {"ca": "ca.pem"}, "ca: only with jwks or discovery"),
        (
            RELEASER,
            {"publish_delay": 604_801},
            "publish_delay: must be 0 to 604800, not 604801",
        ),
        (ISSUER, {"vouches": True}, "vouches: contradicts subjects"),
        (ISSUER, {"issuer": "https://other.example"}, "issuer: is configured twice"),
        (
            ISSUER,
            {"subjects": {}},
            "[consumer.issuers.subjects]: must have at least 1 entry",
        ),
        (
            ISSUER,
            {"subjects": {"k" * 129: ["a"]}},
            f"[consumer.issuers.subjects] {'k' * 129}: must be a kid",
        ),
        (
            ISSUER,
            {"subjects": {"*": []}},
            '[consumer.issuers.subjects] "*": must name at least 1',
        ),
        (
            ISSUER,
            {"subjects": {"*": "a"}},
            '[consumer.issuers.subjects] "*": must be an array of strings',
        ),
        (RULE, {"issuer": None}, "issuer: required where several issuers are configured"),
        (RULE, {"issuer": "https://x.example"}, "issuer: is not among"),
        (RULE, {"destinations": ["orders"]}, "destinations: destination 'orders'"),
        (RULE, {"destinations": ["kafka:a b"]}, "destinations: destination 'kafka:a b'"),
        (("replay",), {"file": "replay.sqlite"}, "file: contradicts store"),
        (
            AUDIT,
            {"heads_passphrase_env": "N", "heads_passphrase_file": "p"},
            "heads_passphrase_file: contradicts",
        ),
        (RELEASER, {"waive": ["signature_invalid"]}, 'waive: must be "expired" or'),
        (
            ("check",),
            {"brokers": ["amqp://a/", "http://b/"]},
            "brokers: must be amqp://..., amqps://... or kafka",
        ),
    ],
)
def test_what_contradicts_is_refused(
    place: Path, spot: tuple[str, ...], changes: dict[str, Any], where: str
) -> None:
    """A key that is unknown, missing, or against another is refused in one line at its table and key."""
    tables = tomllib.loads(EVERYTHING)
    table = at(tables, spot)
    table.update(changes)
    for key in [key for key, value in table.items() if value is None]:
        del table[key]
    said = refusal(place, document(tables))
    # Of two issuers of one name the second is refused.
    name = shown(spot).replace("#1", "#2") if "twice" in where else shown(spot)
    assert said.startswith(
        f"mqauth.toml: {where if where[0] == '[' else f'{name} {where}'.replace(' : ', ': ').strip()}"
    )


def test_an_issuer_may_say_that_it_does_not_vouch(place: Path) -> None:
    """``vouches = false`` beside ``subjects`` says what is so, and is no contradiction."""
    text = SMALL.replace(
        '"jwks.json"', '"jwks.json"\nvouches = false\nsubjects = { "*" = ["orders-api"] }'
    )
    assert (
        mqauth.load(written(place, text))
        .judge.verifier.issuers["https://auth.example"]
        .vouches
        is False
    )


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[producer\n", "at line 1"),
        ('[producer]\nissuer = "a"\nissuer = "b"\n', "at line 3"),
        ('[producer]\n\nissuer = "a\n', "at line 3"),
        ('[producer]\nissuer = """a', "(at line 2, the end)"),
        (b'[producer]\nissuer = "\xff"\n', "not UTF-8 (at line 2)"),
        ("a = " + "[" * 5000, "nested too deep"),
        ("a = " + "9" * 5000, "not TOML"),
    ],
)
def test_syntax_error_names_its_line(place: Path, text: str | bytes, what: str) -> None:
    """What is no TOML is refused in one line with the file and the line."""
    said = refusal(place, text)
    assert said.startswith("mqauth.toml: ")
    assert what in said


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("https://a.example/jwks.json", True), ("https://[::1]:8443/x", True), ("http://a.example", False),
        ("https://", False), ("https:///x", False), ("https://a.example:x/", False),
        ("https://a.example:70000/", False),
        ("https://a b/", False), ("https://a\n/", False), ("https://[::1/", False), ("https://a:0/", False),
        ("", False),
    ],
)  # fmt: skip
def test_url_is_checked_whole(text: str, good: bool) -> None:
    """A URL has an allowed scheme, a host, a port in range, and no white space."""
    assert is_url(text, ("https",)) is good
