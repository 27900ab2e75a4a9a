"""A newcomer's wrong inputs, spread over every command: each is one clear line that names the wrong thing."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import pytest

from mqauth import Key
from mqauth.cli import main
from mqauth.cli.app import VERBS
from mqauth.keystore import Keystore
from mqauth.wire.jwk import dump_key_set
from tests.test_config import SMALL as CONFIG

RABBITMQ = "--broker amqp://127.0.0.1:1/ --queue q"
KAFKA = "--broker kafka://127.0.0.1:1 --topic t"
BROKEN = {
    "syntax.toml": "[consumer\n", "unknown.toml": "[consumr]\n", "type.toml": "[consumer]\naudience = 5\n",
    "empty.toml": "", "binary.toml": "\udcff", "secret.toml": '[broker]\nurl = "amqp://u:hunter2@h/"\n',
    "unset.toml": '[consumer]\naudience = "${NO_SUCH_VARIABLE}"\n', "wide.toml": '[consumer]\naudience = "*"\n',
    "nobroker.toml": '[broker]\nqueue = "q"\n', "both.toml": '[broker]\nqueue = "q"\ntopic = "t"\n',
    "scheme.toml": '[broker]\nurl = "http://h/"\n',
    "two.toml": '[brokers.a]\nqueue = "q"\n[brokers.b]\nqueue = "q"\n',
    "nokeys.toml": CONFIG.replace('keys = "keys"', 'keys = "nowhere"'),
    "nojwks.toml": CONFIG.replace("jwks.json", "nowhere.json"),
    "norule.toml": CONFIG.replace('destinations = ["kafka:orders"]', 'destinations = ["orders"]'),
    "other.toml": CONFIG.replace('subject = "orders-api"', 'subject = "other"', 1),
}  # fmt: skip
"""Configuration files with one mistake each."""
INPUTS = [
    # The command itself.
    ("", 2, "no command given: try mqauth demo"),
    ("key new", 2, "No such command 'key'"),
    ("--verbose", 2, "No such option: --verbose"),
    ("dlq", 2, "no command given: try mqauth dlq groups"),
    ("keys", 2, "no command given: try mqauth keys new"),
    ("audit", 2, "no command given: try mqauth audit verify"),
    ("config", 2, "no command given"),
    # init
    ("init", 2, "Missing argument 'DIR'"),
    ("init shop", 2, "--broker: required, like rabbitmq or kafka"),
    ("init shop --broker rabbit --producer a --consumer b", 2, "--broker: must be rabbitmq or kafka"),
    ("init shop --broker kafka --consumer b", 2, "--producer: required, like orders-api"),
    ("init shop --broker kafka --producer a", 2, "--consumer: required, like billing"),
    ("init shop --broker kafka --producer a/b --consumer c", 2, "--producer: must be 1 to 100 letters"),
    ("init shop --broker kafka --producer a --consumer a", 2, "--consumer: must be another name"),
    ("init shop --broker kafka --producer a --consumer b --url amqp://h/", 2,
     "--url: is no URL of kafka, like kafka://"),
    ("init shop --broker rabbitmq --producer a --consumer b --url amqp://u:hunter2@h/", 2,
     "--url: holds a password"),
    ("init shop --broker rabbitmq --producer a --consumer b --rung warn", 2,
     "--rung: must be enforce or observe"),
    ("init shop --broker rabbitmq --producer a --consumer b --url localhost", 2, "--url: must be amqp://..."),
    ("init shop --broker kafka --producer a --consumer b --rung off", 2, "--rung: must be enforce or observe"),
    ('init shop --broker kafka --producer a --consumer b --issuer a"b', 2, "--issuer: must be 1 to 256"),
    ("init shop --broker kafka --producer a --consumer b --framework taskiq", 2,
     "--framework: must be taskiq, with --broker rabbitmq"),
    ("init shop --broker rabbitmq --producer a --consumer b --framework celery", 2,
     "--framework: must be taskiq, with --broker"),
    ("init jwks.json --broker kafka --producer a --consumer b", 2, "jwks.json: File exists"),
    # keys
    ("keys new --dir other", 2, "--subject: name the producer"),
    ("keys new --dir other --subject a --pinned", 2, "--pinned: contradicts --subject"),
    ("keys new --alg RS512", 2, "--alg: must be EdDSA, ES256"),
    ("keys new --alg HS256", 2, "--alg: must be"),
    ("keys new --dir other --subject ''", 2, "a subject is text"),
    ("keys new --publish-delay soon", 2, "Invalid value for '--publish-delay'"),
    ("keys new --publish-delay -5", 2, "publish_delay is 0 to"),
    ("keys new --passphrase-env NO_SUCH_VARIABLE", 2, "the variable NO_SUCH_VARIABLE is not set"),
    ("keys new --passphrase-file nowhere", 2, "nowhere: No such file"),
    ("keys new --passphrase hunter2", 2, "No such option: --passphrase"),
    ("keys jwks --dir keys --dir other", 2, "--dir: given twice"),
    ("dlq discard --why x --reason expired --reason replayed", 2, "--reason: given twice"),
    ("keys list --dir nowhere", 2, "nowhere: no keystore (no keyset.json): mqauth keys new --dir nowhere"),
    ("keys list --dir jwks.json", 2, "jwks.json"),
    ("keys rotate --dir nowhere", 2, "nowhere: no keystore (no keyset.json): mqauth keys new --dir nowhere"),
    ("keys jwks --dir nowhere", 2, "nowhere: No such file"),
    ("keys jwks --dir audit.jsonl", 2, "audit.jsonl"),
    ("keys jwks --output no/folder/jwks.json", 2, "no/folder/jwks.json: No such file"),
    ("keys new --passphrase-env A --passphrase-file b", 2, "--passphrase-file contradicts"),
    ("keys new --pinned --dir /dev/null/keys", 2, "/dev/null/keys: Not a directory"),
    ("keys jwks --dir .", 2, ".: no keystore"),
    ("keys jwks --dir bad.pem", 2, "bad.pem: no PEM private key"),
    ("keys jwks --dir open.pem", 2, "open.pem: private, but open to others (mode 0644); chmod 600 it"),
    ("keys retire --kid x --dir damaged", 2, "damaged/keyset.json: not UTF-8 JSON"),
    ("keys retire", 2, "Missing option '--kid' (try mqauth keys retire --help)"),
    ("keys retire --kid abc", 2, "--kid abc: give the id, or at least its first 8 characters"),
    ("keys retire --kid abcdefghi", 1, "--kid abcdefghi: there is none that begins so"),
    ("keys revoke --kid abcdefghi", 2, "Missing option '--why'"),
    ("keys revoke --kid abcdefghi --why x --from yesterday", 2, "'--from' / '--since': give a time with a zone"),
    ("keys revoke --kid abcdefghi --why x --from 2026-11-25T10:00:00", 2, "give a time with a zone"),
    ("keys revoke --kid @kid --why stolen", 2, "is the only active key: nothing can be signed until"),
    ("keys serve --host 10.0.0.1", 2, "--host 10.0.0.1: reached from outside only with --tls-cert and --tls-key"),
    ("keys serve --host no.such.host.invalid", 2, "--host no.such.host.invalid"),
    ("keys serve --tls-cert cert.pem", 2, "--tls-cert and --tls-key go together"),
    ("keys serve --port 70000", 2, "Invalid value for '--port'"),
    ("keys serve --dir nowhere", 2, "nowhere"),
    # check
    ("selftest --config nowhere.toml", 2, "nowhere.toml: No such file or directory"),
    ("selftest extra", 2, "Got unexpected extra argument"),
    ("check nowhere.toml", 2, "nowhere.toml: No such file or directory"),
    ("check keys", 2, "keys: "),
    ("check syntax.toml", 2, "syntax.toml: not TOML"),
    ("check binary.toml", 2, "binary.toml: not UTF-8 (at line 1)"),
    ("check unset.toml", 2, "[consumer] audience: the variable NO_SUCH_VARIABLE is not set"),
    ("check mqauth.toml extra", 2, "Got unexpected extra argument"),
    ("check --stict", 2, "No such option: --stict"),
    # config
    ("config show --config nowhere.toml", 2, "nowhere.toml: No such file"),
    ("config show --config unknown.toml", 2, "unknown key; did you mean consumer?"),
    ("config show --config secret.toml", 2, "[broker] url: holds a password"),
    ("config show --broker lgo", 2, "mqauth.toml has no [brokers.NAME]"),
    ("config show --broker lgo --config two.toml", 2, "or a name of [brokers.NAME]; two.toml has a, b"),
    # sign
    ("sign --config nowhere.toml", 2, "nowhere.toml: No such file"),
    ("sign --config empty.toml", 2, "empty.toml: [producer]: required here, and missing"),
    ("sign --config nokeys.toml", 2, "[producer] keys: "),
    ("sign --config other.toml", 2, "[producer] subject: the key"),
    ("sign", 2, "standard input: "),
    ("sign --lines --to kafka:orders", 2, "--lines: not with --to"),
    ("sign --to orders", 2, "a destination is"),
    ("sign --to rabbitmq:shop/a --key k", 2, "--key: only with --to kafka:TOPIC"),
    ("sign --batch 8", 2, "--batch: only with --lines"),
    ("sign --batch 5000 --lines", 2, "Invalid value for '--batch'"),
    # verify
    ("verify --config nowhere.toml", 2, "nowhere.toml: No such file"),
    ("verify --config syntax.toml", 2, "syntax.toml: not TOML"),
    ("verify --config unknown.toml", 2, "unknown.toml: consumr: unknown key"),
    ("verify --config empty.toml", 2, "[consumer]: required here, and missing"),
    ("verify --config nojwks.toml", 2, "nowhere.json: No such file"),
    ("verify --config norule.toml", 2, "[[consumer.allow]] #1 destinations: "),
    ("verify --config type.toml", 2,
     "[consumer] audience: must be a string or an array of strings, not an integer"),
    ("verify --config wide.toml", 2, "[consumer] audience: must be a name of 1 to 256"),
    ("verify message.json", 2, "Got unexpected extra argument"),
    # authority and identity
    ("authority", 2, "no command given: try mqauth authority serve"),
    ("authority serve --config nowhere.toml", 2, "nowhere.toml: No such file"),
    ("authority serve", 2, "mqauth.toml: [authority]: required here, and missing"),
    ("authority grants", 2, "Missing option '--token'"),
    ("authority issue --sub x", 2, "Missing option '--jwk'"),
    ("authority cutoff --sub x --why y --before yesterday", 2, "give a time with a zone"),
    ("identity show nowhere", 2, "(for a file: mqauth identity show - < FILE): token_malformed:"),
    # audit
    ("audit verify", 2, "Missing argument 'files'"),
    ("audit verify nowhere.jsonl", 2, "nowhere.jsonl: No such file"),
    ("audit verify audit.jsonl --keys jwks.json", 2, "--keys and --continued need --heads"),
    ("audit verify audit.jsonl --heads nowhere", 2, "nowhere: No such file"),
    ("audit tail nowhere.jsonl", 2, "nowhere.jsonl: No such file"),
    ("audit tail mqauth.toml", 2, "mqauth.toml: its end is no audit record"),
    ("audit tail audit.jsonl --lines 0", 2, "Invalid value for '--lines'"),
    ("audit show abc audit.jsonl", 2, "id abc: give the id, or at least its first 4 characters"),
    ("audit show abcdef audit.jsonl", 1, "id abcdef: there is none that begins so"),
    ("audit show abcdef mqauth.toml", 2, "mqauth.toml: line 1 is no audit record"),
    ("audit trace audit.jsonl", 2, "trace needs --kid, --subject, --jti or --jkt"),
    ("audit trace audit.jsonl --kid abcdef", 1, "--kid abcdef: there is none that begins so"),
    ("audit trace audit.jsonl --subject a --since 2h30m", 2, "give a time with a zone"),
    ("audit stats audit.jsonl --by colour", 2, "--by: must be reason, verdict"),
    ("audit stats audit.jsonl --since 2026-11-25", 2, "give a time with a zone"),
    ("audit detect audit.jsonl --config nowhere.toml", 2, "nowhere.toml: No such file"),
    # dlq
    ("dlq", 2, "no command given: try mqauth dlq groups"),
    (f"dlq list {RABBITMQ} --topic t", 2, "--topic: this broker needs --queue"),
    (f"dlq list {KAFKA} --limit 0", 2, "Invalid value for '--limit'"),
    (f"dlq list {RABBITMQ} --reason x9", 2, "no such reason; see mqauth dlq groups"),
    (f"dlq discard {RABBITMQ} --audit a --reason expird --yes", 2, "did you mean expired"),
    ("dlq group", 2, "No such command 'group'"),
    ("dlq groups", 2, "no broker: give --broker URL, or [broker] url in mqauth.toml"),
    ("dlq groups --config nobroker.toml", 2, "or [broker] url in nobroker.toml"),
    ("dlq groups --config both.toml", 2, "[broker] topic: contradicts queue"),
    ("dlq groups --config scheme.toml", 2, "[broker] url: must be amqp://..., amqps://... or kafka://host:port"),
    ("dlq groups --config two.toml", 2, "[brokers] has several: give --broker, one of a, b"),
    ("dlq groups --broker localhost:5672", 2,
     "--broker: must be amqp://..., amqps://... or kafka://host:port, or a name"),
    ("dlq groups --broker http://h/ --queue q", 2, "--broker: must be amqp://"),
    ("dlq groups --broker amqp://h/", 2, "--queue: required with this broker; or [broker] queue in mqauth.toml"),
    ("dlq groups --broker kafka://h:1 --queue q", 2, "--queue: this broker needs --topic"),
    ("dlq groups --broker amqp://h/ --topic q", 2, "--topic: this broker needs --queue"),
    (f"dlq groups {RABBITMQ}", 3, "cannot reach amqp://127.0.0.1:1: connection refused"),
    ("dlq groups --broker amqps://h/?no_verify_ssl=1 --queue q", 2,
     "no_verify_ssl would accept any server's certificate"),
    ("dlq groups --broker kafka://h:1?tls=1 --topic t", 2, "certificates and credentials for Kafka stand in"),
    (f"dlq list {KAFKA} --limit none", 2, "Invalid value for '--limit'"),
    (f"dlq list {KAFKA} --since soon", 2, "give a time with a zone"),
    (f"dlq show {KAFKA}", 2, "Missing argument 'letter'"),
    (f"dlq check {RABBITMQ} --config nowhere.toml", 2, "nowhere.toml: No such file"),
    (f"dlq check {RABBITMQ} --config empty.toml", 2, "[consumer]: required here, and missing"),
    (f"dlq redrive {RABBITMQ}", 2, "Missing option '--why'"),
    (f"dlq redrive {RABBITMQ} --why late", 2, "--audit: required, or [review] audit in mqauth.toml"),
    (f"dlq redrive {RABBITMQ} --why late --audit a.jsonl", 2, "--key: required, or [review] key in mqauth.toml"),
    (f"dlq redrive {RABBITMQ} --why late --audit a.jsonl --key nowhere", 2, "has no [[release.authorities]]"),
    (f"dlq discard {RABBITMQ}", 2, "Missing option '--why'"),
    (f"dlq discard {RABBITMQ} --why late", 2, "--audit: required, or [review] audit"),
    (f"dlq discard {RABBITMQ} --why late --audit a.jsonl --rate fast", 2, "Invalid value for '--rate'"),
    (f"dlq balance {RABBITMQ}", 2, "no audit files: name them, or [review] audit_files"),
    (f"dlq export {RABBITMQ} --intact maybe", 2, "Got unexpected extra argument"),
    # console
    ("console", 2, "no broker: give --broker URL"),
    (f"console {RABBITMQ} --host 10.0.0.1", 2, "--host 10.0.0.1: reached from outside only with"),
    (f"console {RABBITMQ} --authority a", 2, "--authority: only with --key"),
    (f"console {RABBITMQ} --tls-cert a.pem", 2, "--tls-cert and --tls-key go together"),
    (f"console {RABBITMQ} --tls-cert none.pem --tls-key none.pem", 2, "none.pem"),
    (f"console {RABBITMQ} --config nowhere.toml", 2, "nowhere.toml: No such file"),
    (f"console {RABBITMQ} --no-tokens --oidc x --token-file y", 2, "without --token-file"),
    (f"console {RABBITMQ} --no-tokens", 2, "--no-tokens: only with --oidc"),
    (f"console {RABBITMQ} --oidc nowhere.toml", 2, "nowhere.toml: No such file"),
    (f"console {RABBITMQ} --config empty.toml --key keys", 2, "--key: needs --config too"),
    # demo
    ("demo --broker localhost", 2, "--broker: must be amqp://"),
    ("demo --broker amqp://u:hunter2@127.0.0.1:1/", 3,
     "cannot reach amqp://127.0.0.1:1 as user u: connection refused"),
    ("demo --messages none", 2, "Invalid value for '--messages'"),
    ("demo --messages 1000000000000", 2, "Invalid value for '--messages'"),
    ("demo --audit-file missing/audit.jsonl", 2, "--audit-file: missing is no folder"),
    ("sign --to kafka:\udcff --config mqauth.toml", 2, "an argument or a variable is not UTF-8"),
    ("keys revoke --kid @kid --why \udcff --yes", 2, "an argument or a variable is not UTF-8"),
    ("dlq list --limit 99999999999999999999", 2, "Invalid value for '--limit'"),
    ("health --timeout 1e300", 2, "Invalid value for '--timeout'"),
    ("health http://[::1", 2, "a URL is like http://127.0.0.1:9464/health"),
    ("health ftp://127.0.0.1/", 2, "a URL is like http://127.0.0.1:9464/health"),
    ("rollout up kafka:orders", 2, "kafka:orders is in no entry below enforce"),
    ("rollout down kafka:orders --until 2027-01-31 --why x", 2, "kafka:orders is in no [[rollout]] of the file"),
]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A newcomer's folder: keys, a JWK Set, an audit file, a good configuration, and bad ones."""
    folder = tmp_path_factory.mktemp("newcomer")
    keystore = Keystore(folder=folder / "keys")
    keystore.create(subjects=["orders-api"])
    (folder / "jwks.json").write_text(json.dumps(dump_key_set(keystore.public_keys())))
    (folder / "mqauth.toml").write_text(CONFIG)
    for name, text in BROKEN.items():
        (folder / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    (folder / "bad.pem").write_text("no key")
    (folder / "bad.pem").chmod(0o600)
    (folder / "open.pem").write_bytes(Key.generate().to_pem())
    (folder / "open.pem").chmod(0o644)
    (folder / "damaged").mkdir()
    (folder / "damaged" / "keyset.json").write_text("{")
    (folder / "audit.jsonl").write_text('{"id":"0123456789ab","verdict":"rejected"}\n')
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to work in, without variables of mqauth."""
    folder = tmp_path / "here"
    shutil.copytree(made, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hello")))
    for name in ("MQAUTH_CONFIG", "MQAUTH_BROKER"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.mark.parametrize(("line", "code", "said"), INPUTS)
def test_a_wrong_input_is_one_line(
    line: str, code: int, said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It names the wrong thing, has the right exit code, no traceback and no password, and changes nothing."""
    kid = Keystore(folder=folder / "keys").ring().keys[0].kid
    arguments = [word.strip("'") for word in line.replace("@kid", kid).split()]
    before = sorted(path.name for path in folder.rglob("*"))
    assert main(arguments) == code
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("mqauth: ")
    assert (error.count("\n"), "Traceback" in error, "hunter2" in error) == (
        1,
        False,
        False,
    )
    assert sorted(path.name for path in folder.rglob("*")) == before


def test_there_are_a_hundred_over_every_command() -> None:
    """At least 100, and some for each verb."""
    assert len(INPUTS) >= 100
    assert {line.split()[0] for line, _, _ in INPUTS if line} >= VERBS.keys()
