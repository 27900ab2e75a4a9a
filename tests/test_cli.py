"""The command: what it prints, what it exits with, and that every error is one line."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mqauth import __version__, cli
from mqauth.cli import app
from mqauth.cli.broker import check_url, reached
from mqauth.cli.forms import CommandFailed, one_line
from mqauth.errors import Cause, ConfigurationError, Reason, Unavailable
from mqauth.judging.pipeline import Pipeline
from mqauth.keystore import Keystore, public_keys, signing_key
from mqauth.replay.memory import MemoryReplayStore
from mqauth.wire.jwk import dump_key_set, load_key_set
from mqauth.wire.keys import Key
from mqauth.wire.strict_json import loads
from tests.test_config import SMALL

CONFIG = SMALL.replace('["kafka:orders"]', '["rabbitmq:shop/orders.*", "kafka:orders"]')
MESSAGE = {"destination": "kafka:orders", "key": "aw==", "body": "aGVsbG8=", "headers": [["tenant", {"str": "a"}]]}


class Ran:
    """What a run of the command left: exit code, output, and its lines of errors."""

    def __init__(self, code: int, out: bytes, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def objects(self) -> list[Any]:
        """Return every line of output as JSON."""
        return [json.loads(line) for line in self.out.splitlines()]

    def object(self) -> Any:
        """Return the one line of output as JSON."""
        (found,) = self.objects()
        return found


class Shell:
    """Runs the command in this process, in a folder of its own."""

    def __init__(self, place: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: Any) -> None:
        self.place, self._monkeypatch, self._captured = place, monkeypatch, capfdbinary

    def __call__(self, *arguments: str, stdin: bytes | str | Any = b"") -> Ran:
        raw = stdin if isinstance(stdin, bytes) else stdin.encode() if isinstance(stdin, str) else encoded(stdin)
        self._monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
        code = cli.main(arguments)
        out, err = self._captured.readouterr()
        return Ran(code, out, err.decode())

    def refused(self, *arguments: str, stdin: bytes | str | Any = b"", code: int = 2) -> str:
        """Return the one line a run is refused with."""
        ran = self(*arguments, stdin=stdin)
        assert ran.code == code, (ran.code, ran.err)
        assert ran.err.startswith("mqauth: ")
        assert ran.err.endswith("\n")
        assert ran.err.count("\n") == 1
        assert not any(sign in ran.err for sign in ("Traceback", "╭", "│", "\x1b"))
        return ran.err.strip().removeprefix("mqauth: ")


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: Any) -> Shell:
    monkeypatch.chdir(tmp_path)
    return Shell(tmp_path, monkeypatch, capfdbinary)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with keys, their JWK Set and an ``mqauth.toml``."""
    folder = tmp_path_factory.mktemp("prepared")
    Keystore(folder=folder / "keys").create(subjects=["orders-api"])
    (folder / "jwks.json").write_text(json.dumps(dump_key_set(public_keys(folder / "keys"))))
    (folder / "mqauth.toml").write_text(CONFIG)
    return folder


@pytest.fixture
def ready(shell: Shell, prepared: Path) -> Shell:
    """A shell in a copy of the prepared folder."""
    shutil.copytree(prepared, shell.place, dirs_exist_ok=True)
    return shell


URL = "kafka://127.0.0.1:1"
SIGN = ("sign", "--config", "mqauth.toml")
VERIFY = ("verify", "--config", "mqauth.toml")


def encoded(value: Any) -> bytes:
    return json.dumps(value).encode()


def lines(*values: Any) -> bytes:
    return b"".join(encoded(value) + b"\n" for value in values)


# --- the frame --------------------------------------------------------------------------------------------


def test_version(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """``--version`` tells the package's version from those of its three formats."""
    monkeypatch.setattr("mqauth.wire.claims.PROFILE_VERSION", 2)
    monkeypatch.setattr("mqauth.audit.record.SCHEMA_VERSION", 3)
    monkeypatch.setattr("mqauth.keystore.disk.ring.VERSION", 4)
    ran = shell("--version")
    told = f"mqauth {__version__}\nwire profile 2, audit record 3, keystore 4\n"
    assert (ran.code, ran.out.decode()) == (0, told)


@pytest.mark.parametrize("arguments", [("--help",), ("keys", "--help"), ("sign", "--help"), ("demo", "-h")])
def test_help(shell: Shell, arguments: tuple[str, ...]) -> None:
    """Help goes to standard output and exits 0."""
    ran = shell(*arguments)
    assert (ran.code, ran.err) == (0, "")
    assert b"Usage: mqauth" in ran.out


@pytest.mark.parametrize(("typed", "meant"), [(("sgin",), "sign"), (("keys", "nwe"), "new")])
def test_a_misspelt_verb_is_told_what_was_meant(shell: Shell, typed: tuple[str, ...], meant: str) -> None:
    """A verb that is not there is answered with one that is like it, though no verb was imported yet."""
    assert f"Did you mean '{meant}'?" in shell.refused(*typed)


def test_module_is_the_command(tmp_path: Path) -> None:
    """``python -m mqauth`` is the same command, exit code and all."""
    command = [sys.executable, "-m", "mqauth"]
    good = subprocess.run([*command, "--version"], cwd=tmp_path, capture_output=True, check=False, timeout=300)
    bad = subprocess.run([*command, "nonsense"], cwd=tmp_path, capture_output=True, check=False, timeout=300)
    assert (good.returncode, good.stdout.decode().partition("\n")[0]) == (0, f"mqauth {__version__}")
    assert (bad.returncode, bad.stdout, bad.stderr.count(b"\n")) == (2, b"", 1)


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_missing_extra_is_one_line(missing: str) -> None:
    """Without the extra the command says what to install, and exits 2."""
    script = f"import sys\nsys.modules[{missing!r}] = None\nfrom mqauth.cli import main\nsys.exit(main(['demo']))"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=300)
    assert ran.returncode == 2
    assert ran.stderr == "mqauth: the command needs an extra: install mqauth[cli]\n"


def test_reader_that_leaves_is_no_traceback(ready: Shell) -> None:
    """A closed pipe ends the command quietly."""
    signed = ready(*SIGN, stdin=MESSAGE).out
    many = signed * 2000
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-m", "mqauth", *VERIFY, "--lines"]
    with os.fdopen(write_end, "wb") as pipe:
        ran = subprocess.run(
            command, cwd=ready.place, input=many, stdout=pipe, stderr=subprocess.PIPE, check=False, timeout=300
        )
    assert (ran.returncode, ran.stderr) == (1, b"")


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [("--version > /dev/full", 1, "No space left on device"), ("--version >&-", 1, "standard output is closed")],
)
def test_output_that_cannot_be_written_is_one_line(command: str, code: int, said: str) -> None:
    """A full or closed standard output is one line, and never a traceback on exit."""
    ran = subprocess.run(
        ["/bin/sh", "-c", f"{sys.executable} -m mqauth {command}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert (ran.returncode, ran.stderr) == (code, f"mqauth: {said}\n")


def test_closed_standard_input_is_one_line(ready: Shell, capfdbinary: Any) -> None:
    """A process without standard input is told so."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", None)
        assert cli.main(SIGN) == 2
    assert capfdbinary.readouterr().err == b"mqauth: standard input is closed\n"


def test_error_lines_are_harmless() -> None:
    """Whatever an error holds, it is one line and moves no cursor."""
    assert one_line("a\nb\r\n\x1b[31mc\udcff") == "a b \\x1b[31mc\\udcff"


# --- keys -------------------------------------------------------------------------------------------------


def test_keys_new_as_json(shell: Shell) -> None:
    """``keys new --json`` is exactly kid, algorithm and state; the first key active, the next pending."""
    first, second = (
        shell("keys", "new", "--pinned", "--json").object(),
        shell("keys", "new", "--alg", "PS256", "--json").object(),
    )
    assert first == {"kid": first["kid"], "algorithm": "EdDSA", "state": "active"}
    assert second == {"kid": second["kid"], "algorithm": "PS256", "state": "pending"}
    assert signing_key(shell.place / "keys").kid == first["kid"]


def test_keys_new_for_people(shell: Shell) -> None:
    """For people it is one line with kid, algorithm, state and folder."""
    out = shell("keys", "new", "--dir", "deep/er", "--pinned", "--pending", "--publish-delay", "30").out.decode()
    kid = Keystore(folder=shell.place / "deep/er").ring().keys[0].kid
    assert out.startswith(f"{kid} (EdDSA) is pending until ")
    assert out.endswith(" in deep/er\n")
    assert out.count("\n") == 1


def test_keys_jwks_is_what_consumers_load(shell: Shell) -> None:
    """``keys jwks`` prints a JWK Set with subjects and no private member."""
    shell("keys", "new", "--subject", "a", "--subject", "b")
    out = shell("keys", "jwks").out
    (key,) = json.loads(out)["keys"]
    assert key["mqauth_sub"] == ["a", "b"]
    assert not {"d", "p", "q", "k"} & key.keys()
    assert load_key_set(out).skipped == ()


def test_keys_jwks_of_a_single_pem(shell: Shell) -> None:
    """Where a keystore folder is expected a single PEM serves too, encrypted or not."""
    key = Key.generate("ES384")
    Path("plain.pem").write_bytes(key.to_pem())
    Path("locked.pem").write_bytes(key.to_pem(b"secret"))
    Path("passphrase").write_bytes(b"secret\n")
    for name in ("plain.pem", "locked.pem"):
        Path(name).chmod(0o600)
    plain = json.loads(shell("keys", "jwks", "--dir", "plain.pem").out)
    locked = json.loads(shell("keys", "jwks", "--dir", "locked.pem", "--passphrase-file", "passphrase").out)
    assert plain == locked
    assert plain["keys"][0]["kid"] == key.kid
    assert "locked.pem: the key needs a passphrase" in shell.refused("keys", "jwks", "--dir", "locked.pem")


def test_passphrase_from_the_environment(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """``--passphrase-env`` encrypts the PEM, and ``keys jwks`` of the folder needs no passphrase."""
    monkeypatch.setenv("MQAUTH_TEST_PASSPHRASE", "secret")
    made = shell("keys", "new", "--pinned", "--passphrase-env", "MQAUTH_TEST_PASSPHRASE", "--json").object()
    assert b"ENCRYPTED" in Path(f"keys/{made['kid']}.pem").read_bytes()
    assert json.loads(shell("keys", "jwks").out)["keys"][0]["kid"] == made["kid"]


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("new", "--passphrase-env", "A", "--passphrase-file", "b"), "--passphrase-file contradicts"),
        (("new", "--pinned", "--dir", "/dev/null/keys"), "/dev/null/keys: Not a directory"),
        (("jwks", "--dir", "."), ".: no keystore"),
        (("jwks", "--dir", "bad.pem"), "bad.pem: no PEM private key"),
        (("jwks", "--dir", "open.pem"), "open.pem: private, but open to others (mode 0644); chmod 600 it"),
        (("retire", "--kid", "x", "--dir", "damaged"), "damaged/keyset.json: not UTF-8 JSON"),
    ],
)
def test_keys_error_is_one_line(shell: Shell, arguments: tuple[str, ...], what: str) -> None:
    """Each fault of a keystore or an argument is one line that names what and where."""
    Path("bad.pem").write_text("no key")
    Path("bad.pem").chmod(0o600)
    Path("open.pem").write_bytes(Key.generate().to_pem())
    Path("open.pem").chmod(0o644)
    Path("damaged").mkdir()
    Path("damaged/keyset.json").write_text("{")
    assert shell.refused("keys", *arguments).startswith(what)


def test_keys_list(shell: Shell) -> None:
    """``list --json`` names every key with state and times; the table has no colour where it is piped."""
    kids = [shell("keys", "new", "--pinned", "--json").object()["kid"] for _ in range(2)]
    listed = shell("keys", "list", "--json").object()["keys"]
    assert [(key["kid"], key["state"]) for key in listed] == [(kids[0], "active"), (kids[1], "pending")]
    assert all(isinstance(key["created"], int) and "public" not in key for key in listed)
    table = shell("keys", "list").out.decode()
    assert all(kid in table for kid in kids)
    assert "\x1b" not in table


def test_keys_rotate_retire_revoke(shell: Shell) -> None:
    """A key goes from pending to active to revoked, and what the JWK Set says follows."""
    first = shell("keys", "new", "--pinned", "--publish-delay", "0", "--json").object()["kid"]
    second = shell("keys", "new", "--pinned", "--json").object()["kid"]
    assert "no pending key is ready" not in shell("keys", "rotate").err
    assert [key["state"] for key in shell("keys", "list", "--json").object()["keys"]] == ["retired", "active"]
    assert "no pending key is ready" in shell.refused("keys", "retire", "--kid", second)
    ran = shell(
        "keys",
        "revoke",
        "--kid",
        second,
        "--why",
        "stolen",
        "--from",
        "2030-01-31T12:00:00Z",
        "--yes",
        "--json",
    )
    assert ran.object() == {"kid": second, "algorithm": "EdDSA", "state": "revoked"}
    listed = {key["kid"]: key for key in json.loads(shell("keys", "jwks").out)["keys"]}
    assert listed[second]["revoked"] == {"revoked_at": 1_896_091_200, "reason": "stolen"}
    assert "exp" in listed[first]


def test_kid_may_begin_with_a_hyphen(shell: Shell) -> None:
    """A thumbprint that looks like an option is taken as the kid."""
    shell("keys", "new", "--pinned")
    assert shell.refused("keys", "retire", "--kid", "-abc").startswith("--kid -abc: give the id, or at least")


# --- sign -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        MESSAGE,
        {"destination": "kafka:orders", "body": None},
        {"destination": "kafka:orders", "body": "", "properties": {"type": "order"}},
        {"body": "AA==", "destination": "rabbitmq:shop/orders.new", "origin": {"queue": "q", "redelivered": True},
         "properties": {"content_type": "a/b", "priority": 3},
         "headers": [["n", {"int": 2**63 - 1}], ["m", {"int": -(2**63)}], ["f", {"float": 0.1}],
                     ["z", {"null": None}],
                     ["l", {"list": [{"bool": True}, {"table": {"x": {"decimal": "12.50"}}}]}]]},
    ],
)  # fmt: skip
def test_sign_appends_the_token_and_keeps_the_rest(ready: Shell, message: dict[str, Any]) -> None:
    """The form goes out as it came in, one token header longer, and verifies."""
    ran = ready(*SIGN, stdin=message)
    signed = ran.object()
    name, value = signed["headers"].pop()
    assert (ran.code, name, list(value)) == (0, "mqauth-token", ["str"])
    assert signed == {"headers": [], **message}
    assert [key for key in signed if key in message] == list(message)
    assert ready(*VERIFY, stdin=ran.out).object()["verdict"] == "accepted"


def test_sign_lines(ready: Shell) -> None:
    """``--lines`` signs each line and skips blank ones."""
    ran = ready(*SIGN, "--lines", stdin=b"\n" + lines(MESSAGE) + b"  \r\n" + encoded(MESSAGE))
    assert ran.code == 0
    assert [signed["headers"][-1][0] for signed in ran.objects()] == ["mqauth-token"] * 2


def test_bad_line_ends_signing_and_is_named(ready: Shell) -> None:
    """The first bad line ends it with its number; the lines before it are signed and printed."""
    ran = ready(*SIGN, "--lines", stdin=lines(MESSAGE) + b"\n{bad\n" + lines(MESSAGE))
    assert (ran.code, len(ran.objects())) == (2, 1)
    assert ran.err == "mqauth: line 3: not UTF-8 JSON\n"


def numbered(count: int) -> bytes:
    """Return that many messages, a line each."""
    return b"".join(encoded(MESSAGE | {"key": base64.b64encode(b"%d" % n).decode()}) + b"\n" for n in range(count))


def proofs(ran: Ran) -> list[list[str]]:
    """Return token and proof of each signed message."""
    return [signed["headers"][-1][1]["str"].split("~") for signed in ran.objects()]


def test_sign_in_batches(ready: Shell) -> None:
    """``--batch`` lets so many lines share a signature; the order stays, and each verifies, by itself too."""
    ran = ready(*SIGN, "--lines", "--batch", "3", stdin=numbered(7))
    tokens, places = zip(*proofs(ran)[:6], strict=True)
    assert [tokens.count(token) for token in tokens] == [3] * 6
    assert [place.partition(".")[0] for place in places] == ["0", "1", "2"] * 2
    assert len(proofs(ran)[6]) == 1
    assert [signed["key"] for signed in ran.objects()] == [
        json.loads(line)["key"] for line in numbered(7).splitlines()
    ]
    verdicts = ready(*VERIFY, "--lines", stdin=b"\n".join(ran.out.splitlines()[::-1])).objects()
    assert [found["verdict"] for found in verdicts] == ["accepted"] * 7
    assert "tree" in ready(*VERIFY, stdin=ran.out.splitlines()[4]).object()["claims"]["mqa"]


def test_sign_in_batches_of_what_may_share(ready: Shell) -> None:
    """Messages with other headers have another signature, and stand where they stood."""
    other = encoded(MESSAGE | {"headers": []})
    found = proofs(ready(*SIGN, "--lines", "--batch", "4", stdin=b"\n".join([lines(MESSAGE), other] * 2)))
    assert found[0][0] == found[2][0] != found[1][0] == found[3][0]
    assert [len(token) for token in found] == [2] * 4


def test_bad_line_ends_a_batch(ready: Shell) -> None:
    """Whatever stands before a bad line in its batch is signed and printed, and the line is named."""
    ran = ready(*SIGN, "--lines", "--batch", "4", stdin=numbered(6) + b"{bad\n" + numbered(1))
    assert (ran.code, ran.err) == (2, "mqauth: line 7: not UTF-8 JSON\n")
    assert [token.partition(".")[0] for _, token in proofs(ran)] == ["0", "1", "2", "3", "0", "1"]


def test_a_batch_over_the_size_of_a_token_is_named(ready: Shell) -> None:
    """Where a token cannot be sent, the first line of its batch is named, and the batches before stay printed."""
    long = encoded(MESSAGE | {"headers": [["h" * 7000, {"str": ""}]]}) + b"\n"
    ran = ready(*SIGN, "--lines", "--batch", "2", stdin=numbered(2) + long * 2)
    assert (ran.code, len(ran.objects())) == (2, 2)
    assert ran.err.startswith("mqauth: line 3: the token is over 8192 bytes")


@pytest.mark.parametrize("number", ["0", "1025", "-1", "x"])
def test_a_batch_has_1_to_1024_messages(ready: Shell, number: str) -> None:
    """Any other number is refused in one line."""
    assert "--batch" in ready.refused(*SIGN, "--lines", "--batch", number, stdin=numbered(1))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (b"", "not UTF-8 JSON"),
        (b"\xff", "not UTF-8 JSON"),
        (b"[]", "a message is an object"),
        (b"3", "a message is an object"),
        (b"{}", "a message has destination"),
        (b'{"destination": "kafka:a", "body": "", "body": ""}', "a duplicate name"),
        (b'{"destination": "kafka:a", "body": NaN}', "not finite"),
        (b'{"destination": "kafka:a b", "body": ""}', "percent-encoded"),
        (b'{"destination": "kafka:a", "body": "*"}', "not base64"),
        (b'{"destination": "kafka:a", "body": "", "more": 1}', "no unknown member"),
        (b'{"destination": "kafka:a", "body": "", "headers": {}}', "headers is a list"),
        (b'{"destination": "kafka:a", "body": "", "headers": [["n", {"int": 1}]]}', "Kafka headers are"),
        (
            b'{"destination": "rabbitmq:/q", "body": "", "headers": [["n", {"int": 18446744073709551616}]]}',
            "64 bits",
        ),
        (b'{"destination": "rabbitmq:/q", "body": null}', "only Kafka"),
        (
            b'{"destination": "kafka:a", "body": "", "headers": [["mqauth-token", {"str": "x"}]]}',
            "a token already",
        ),
        (b"[" * 10_000, "JSON"),
    ],
)
@pytest.mark.parametrize("by_line", [False, True])
def test_what_cannot_be_signed_is_one_line(ready: Shell, text: bytes, what: str, by_line: bool) -> None:
    """A text that is no message, or cannot be signed, is one line that says where and what."""
    if by_line and not text:
        assert ready(*SIGN, "--lines", stdin=text).code == 0
        return
    said = ready.refused(*SIGN, *(["--lines"] if by_line else []), stdin=text)
    assert said.startswith("line 1: " if by_line else "standard input: ")
    assert what in said


# --- verify -----------------------------------------------------------------------------------------------


def test_verify_accepts(ready: Shell) -> None:
    """An honest message: accepted, its claims shown, reason and detail null, exit 0."""
    ran = ready(*VERIFY, stdin=ready(*SIGN, stdin=MESSAGE).out)
    found = ran.object()
    assert (ran.code, list(found)) == (0, ["verdict", "reason", "detail", "claims"])
    assert (found["verdict"], found["reason"], found["detail"]) == ("accepted", None, None)
    assert (found["claims"]["sub"], found["claims"]["mqa"]["dst"]) == ("orders-api", "kafka:orders")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"body": "AAAA"}, Reason.BODY_MISMATCH),
        ({"key": None}, Reason.RECORD_KEY_MISMATCH),
        ({"destination": "kafka:other"}, Reason.DESTINATION_MISMATCH),
        ({"properties": {"type": "other"}}, Reason.HEADERS_MISMATCH),
        ({"headers": []}, Reason.TOKEN_MISSING),
        ({"headers": [["mqauth-token", {"str": "a.b.c"}]]}, Reason.TOKEN_MALFORMED),
    ],
)
def test_verify_rejects(ready: Shell, changes: dict[str, Any], reason: Reason) -> None:
    """A tampered message: rejected with its reason, no claims, exit 1, and neither token nor body shown."""
    signed = ready(*SIGN, stdin=MESSAGE).object()
    ran = ready(*VERIFY, stdin=signed | changes)
    found = ran.object()
    assert (ran.code, found["verdict"], found["reason"], found["claims"]) == (1, "rejected", reason.value, None)
    assert signed["headers"][-1][1]["str"].encode() not in ran.out
    assert b"hello" not in ran.out


@pytest.mark.parametrize("text", [b"", b"{bad", b"\xff", b"[]", b"{}", b'{"a":1,"a":1}', b"{} {}", b"[" * 10_000])
def test_what_is_no_message_is_a_verdict(ready: Shell, text: bytes) -> None:
    """A text that is no message is rejected as ``message_malformed`` like any other, exit 1, nothing on stderr."""
    ran = ready(*VERIFY, stdin=text)
    found = ran.object()
    assert (ran.code, ran.err) == (1, "")
    assert (found["verdict"], found["reason"], found["claims"]) == ("rejected", "message_malformed", None)
    assert found["detail"]


def test_verify_lines_share_one_store(ready: Shell) -> None:
    """``--lines``: one verdict a message in order, blank lines skipped, a copy replayed."""
    signed = ready(*SIGN, stdin=MESSAGE).out
    ran = ready(*VERIFY, "--lines", stdin=signed + b"\n{bad\n" + signed + b" \r\n" + lines(MESSAGE))
    assert [(found["verdict"], found["reason"]) for found in ran.objects()] == [
        ("accepted", None), ("rejected", "message_malformed"), ("rejected", "replayed"),
        ("rejected", "token_missing"),
    ]  # fmt: skip


ACCEPTED, COPY, AGAIN = "accepted", "rejected", "duplicate"


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [([], 0), ([ACCEPTED], 0), ([ACCEPTED, ACCEPTED], 0), ([ACCEPTED, COPY], 1), ([ACCEPTED, AGAIN], 3),
     ([ACCEPTED, AGAIN, COPY], 1), ([ACCEPTED, COPY, AGAIN], 1), ([ACCEPTED, AGAIN, ACCEPTED], 3)],
)  # fmt: skip
def test_exit_code_of_lines(ready: Shell, verdicts: list[str], code: int) -> None:
    """``--lines`` exits 1 where any message was rejected, else 3 where one is undecided, else 0."""
    origins = {COPY: {"queue": "billing"}, AGAIN: {"queue": "billing", "redelivered": True}}
    queued = {"destination": "rabbitmq:shop/orders.a", "body": ""}
    first = ready(*SIGN, stdin=queued).object()
    messages = [first | {"origin": origins[COPY]}]
    for verdict in verdicts[1:]:
        fresh = verdict is ACCEPTED
        messages.append(ready(*SIGN, stdin=queued).object() if fresh else first | {"origin": origins[verdict]})
    ran = ready(*VERIFY, "--lines", stdin=lines(*messages[: len(verdicts)]))
    assert ([found["verdict"] for found in ran.objects()], ran.code) == (verdicts, code)


def test_redelivery_is_told_from_replay(ready: Shell) -> None:
    """A Kafka record read again at its offset is accepted; a RabbitMQ redelivery of a done one is a duplicate."""
    record = ready(*SIGN, stdin=MESSAGE).object()
    record["origin"] = {"scope": "billing", "topic": "orders", "partition": 0, "offset": 12}
    copy = record | {"origin": record["origin"] | {"offset": 13}}
    queued = ready(*SIGN, stdin={"destination": "rabbitmq:shop/orders.a", "body": ""}).object()
    again = queued | {"origin": {"queue": "billing", "redelivered": True}}
    first = queued | {"origin": {"queue": "billing"}}
    ran = ready(*VERIFY, "--lines", stdin=lines(record, record, copy, first, again))
    assert [found["verdict"] for found in ran.objects()] == [
        "accepted", "accepted", "rejected", "accepted", "duplicate",
    ]  # fmt: skip
    assert ran.objects()[-1] == {"verdict": "duplicate", "reason": None, "detail": None, "claims": None}


def test_scopes_are_told_apart(ready: Shell) -> None:
    """Without ``[consumer] scope`` the origin's scope counts: the same message may reach many."""
    record = ready(*SIGN, stdin=MESSAGE).object()
    found = ready(*VERIFY, "--lines", stdin=lines(*(record | {"origin": {"scope": name}} for name in "abb")))
    assert [line["verdict"] for line in found.objects()] == ["accepted", "accepted", "rejected"]


def test_deferred_names_its_cause(ready: Shell) -> None:
    """Deferred: the cause stands as the reason, exit 3."""
    appended = CONFIG.replace("[consumer]\n", '[consumer]\nat = "append"\nmax_queue_age = 60\n')
    signed = ready(*SIGN, stdin=MESSAGE).object()
    Path("mqauth.toml").write_text(appended)
    stamped = signed | {"origin": {"timestamp_ms": 1, "timestamp_type": "create"}}
    ran = ready(*VERIFY, stdin=json.dumps(stamped))
    found = ran.object()
    assert (ran.code, found["verdict"], found["claims"]) == (3, "deferred", None)
    assert found["reason"] == Cause.APPEND_TIME_UNAVAILABLE.value


def test_duplicate_exits_3(ready: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """A single message that is a duplicate exits 3."""
    from mqauth.replay.rules import ClaimStatus

    monkeypatch.setattr(MemoryReplayStore, "claim", lambda *_arguments: ClaimStatus.DUPLICATE)
    ran = ready(*VERIFY, stdin=ready(*SIGN, stdin=MESSAGE).out)
    assert (ran.code, ran.object()["verdict"]) == (3, "duplicate")


def test_unconfirmed_is_not_accepted(ready: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """The claim is confirmed as a consumer would; where that fails the verdict is deferred, not accepted."""

    def down(*_arguments: object) -> None:
        raise Unavailable(Cause.REPLAY_STORE_UNAVAILABLE, "down")

    monkeypatch.setattr(MemoryReplayStore, "confirm", down)
    ran = ready(*VERIFY, stdin=ready(*SIGN, stdin=MESSAGE).out)
    assert (ran.code, ran.object()["reason"]) == (3, "replay_store_unavailable")


def test_verify_leaves_the_audit_alone(ready: Shell) -> None:
    """``verify`` works beside a running consumer: it neither opens nor writes the audit file."""
    Path("mqauth.toml").write_text(CONFIG + '[audit]\nfile = "audit.jsonl"\nrecord = "all"\n')
    assert ready(*VERIFY, stdin=ready(*SIGN, stdin=MESSAGE).out).code == 0
    assert not Path("audit.jsonl").exists()


def test_details_are_harmless(ready: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """A detail is bounded and moves no cursor, whoever wrote it."""

    def claim(*_arguments: object) -> None:
        raise Unavailable(Cause.REPLAY_STORE_UNAVAILABLE, "\x1b[31m" + "x" * 1000)

    monkeypatch.setattr(MemoryReplayStore, "claim", claim)
    detail = ready(*VERIFY, stdin=ready(*SIGN, stdin=MESSAGE).out).object()["detail"]
    assert detail.startswith("\\x1b[31mxxx")
    assert len(detail) <= 256


# --- input is bounded -------------------------------------------------------------------------------------


def test_huge_line_is_malformed_and_the_next_is_read(ready: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line over the bound is a rejection; the line after it is judged as ever."""
    monkeypatch.setattr(app, "MAX_INPUT", 4096)
    signed = ready(*SIGN, stdin=MESSAGE).out
    ran = ready(*VERIFY, "--lines", stdin=b'{"x":"' + b"a" * 200_000 + b'"}\n' + signed)
    assert [(found["verdict"], found["detail"]) for found in ran.objects()] == [
        ("rejected", "over 4096 bytes"), ("accepted", None),
    ]  # fmt: skip


@pytest.mark.parametrize("arguments", [(), ("--lines",)])
def test_oversize_input_is_not_signed(ready: Shell, monkeypatch: pytest.MonkeyPatch, arguments: Any) -> None:
    """A message or line over the bound is refused in one line."""
    monkeypatch.setattr(app, "MAX_INPUT", 100)
    assert "over 100 bytes" in ready.refused(*SIGN, *arguments, stdin=b" " * 100 + encoded(MESSAGE))


def test_oversize_message_is_not_signed(ready: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text over the bound is refused in one line."""
    monkeypatch.setattr(app, "MAX_INPUT", 100)
    assert "over 100 bytes" in ready.refused(*SIGN, stdin=b"x" * 101)


@pytest.mark.parametrize("key", [[], ["--key", "42"]])
def test_sign_a_body(ready: Shell, key: list[str]) -> None:
    """``--to`` makes the form from the raw bytes of standard input, and ``--key`` a record key."""
    body = b"\x00\xff\n no JSON \n"
    ran = ready(*SIGN, "--to", "kafka:orders", *key, stdin=body)
    form = ran.object()
    assert base64.b64decode(form["body"]) == body
    assert base64.b64decode(form.get("key", "")) == (b"42" if key else b"")
    assert ready(*VERIFY, stdin=ran.out).object()["verdict"] == "accepted"
    assert ready(*SIGN, "--to", "rabbitmq:shop/orders.new").object()["body"] == ""


@pytest.mark.parametrize("size", [99, 100, 101])
def test_line_bound_is_exact(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """A line of exactly the bound passes, with or without its newline; one byte more does not."""
    monkeypatch.setattr(app, "MAX_INPUT", 100)
    for end in (b"\n", b""):
        stream = io.BytesIO(b"x" * size + end)
        ((_, raw),) = app.read_texts(stream, lines=True)
        assert (raw is None) is (size > 100)


# --- demo -------------------------------------------------------------------------------------------------


def test_demo_as_json(shell: Shell) -> None:
    """``demo --json`` runs the main job in memory: nothing lost, every case as expected, exit 0."""
    ran = shell("demo", "--json", "--messages", "1", "--audit-file", "audit.jsonl")
    report = loads(ran.out, depth=8)
    assert (ran.code, report["broker"], report["lost"], report["audit_chain"]) == (0, "memory", 0, "intact")
    assert all(case["expected"] in (case["verdict"], case["reason"]) for case in report["cases"])
    assert (shell.place / "audit.jsonl").exists()


def test_fault_of_a_client_library_is_told_from_ours() -> None:
    """What a client library raises is one line; a fault of this library stays what it is."""
    fault = type("NoBrokersAvailable", (Exception,), {"__module__": "kafka.errors"})
    with (
        pytest.raises(CommandFailed, match=r"cannot reach kafka://127\.0\.0\.1:1: connection refused"),
        reached(URL),
    ):
        raise fault
    with pytest.raises(ZeroDivisionError), reached(URL):
        raise ZeroDivisionError


def test_guard_of_verify_is_a_pipeline(ready: Shell) -> None:
    """``verify`` judges by the pipeline a consumer runs, not by rules of its own."""
    import mqauth

    assert type(mqauth.load("mqauth.toml").judge) is Pipeline


@pytest.mark.parametrize(
    ("url", "good"),
    [
        *((url, True) for url in ("kafka://a:1,b:2", "kafka://a", "amqp://a/vhost", "amqps://user:x@a:5671/")),
        *((url, False) for url in ("", "localhost", "http://a/", "amqp://", "kafka://a:b", "kafka://a:70000")),
        *((url, False) for url in ("kafka://a:1,b:x", "amqp://a b")),
    ],
)
def test_a_broker_url_is_checked(url: str, good: bool) -> None:
    """A vhost, a password and several Kafka servers are allowed."""
    with (
        contextlib.nullcontext() if good else pytest.raises(ConfigurationError, match="--broker: must be amqp://")
    ):
        check_url("--broker", url)
