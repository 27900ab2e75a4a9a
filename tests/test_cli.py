"""The command: what it prints, what it exits with, and that every error is one line."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mqauth import Cause, MemoryReplayStore, Reason, Unavailable, __version__, cli
from mqauth.cli import app
from mqauth.keystore import Keystore, public_keys
from mqauth.wire.jwk import dump_key_set
from tests.test_config import SMALL

CONFIG = SMALL.replace('["kafka:orders"]', '["rabbitmq:shop/orders.*", "kafka:orders"]')
MESSAGE = {
    "destination": "kafka:orders",
    "key": "aw==",
    "body": "aGVsbG8=",
    "headers": [["tenant", {"str": "a"}]],
}


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

    def __init__(
        self, place: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: Any
    ) -> None:
        self.place, self._monkeypatch, self._captured = place, monkeypatch, capfdbinary

    def __call__(self, *arguments: str, stdin: bytes | str | Any = b"") -> Ran:
        raw = (
            stdin
            if isinstance(stdin, bytes)
            else stdin.encode()
            if isinstance(stdin, str)
            else encoded(stdin)
        )
        self._monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
        code = cli.main(arguments)
        out, err = self._captured.readouterr()
        return Ran(code, out, err.decode())

    def refused(
        self, *arguments: str, stdin: bytes | str | Any = b"", code: int = 2
    ) -> str:
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
    (folder / "jwks.json").write_text(
        json.dumps(dump_key_set(public_keys(folder / "keys")))
    )
    (folder / "mqauth.toml").write_text(CONFIG)
    return folder


@pytest.fixture
def ready(shell: Shell, prepared: Path) -> Shell:
    """A shell in a copy of the prepared folder."""
    shutil.copytree(prepared, shell.place, dirs_exist_ok=True)
    return shell


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


@pytest.mark.parametrize(
    "arguments", [("--help",), ("keys", "--help"), ("sign", "--help"), ("demo", "-h")]
)
def test_help(shell: Shell, arguments: tuple[str, ...]) -> None:
    """Help goes to standard output and exits 0."""
    ran = shell(*arguments)
    assert (ran.code, ran.err) == (0, "")
    assert b"Usage: mqauth" in ran.out


def test_module_is_the_command(tmp_path: Path) -> None:
    """``python -m mqauth`` is the same command, exit code and all."""
    command = [sys.executable, "-m", "mqauth"]
    good = subprocess.run(
        [*command, "--version"],
        cwd=tmp_path,
        capture_output=True,
        check=False,
        timeout=300,
    )
    bad = subprocess.run(
        [*command, "nonsense"],
        cwd=tmp_path,
        capture_output=True,
        check=False,
        timeout=300,
    )
    assert (good.returncode, good.stdout.decode().partition("\n")[0]) == (
        0,
        f"mqauth {__version__}",
    )
    assert (bad.returncode, bad.stdout, bad.stderr.count(b"\n")) == (2, b"", 1)


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_missing_extra_is_one_line(missing: str) -> None:
    """Without the extra the command says what to install, and exits 2."""
    script = f"import sys\nsys.modules[{missing!r}] = None\nfrom mqauth.cli import main\nsys.exit(main(['demo']))"
    ran = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
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
            command,
            cwd=ready.place,
            input=many,
            stdout=pipe,
            stderr=subprocess.PIPE,
            check=False,
            timeout=300,
        )
    assert (ran.returncode, ran.stderr) == (1, b"")


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("--version > /dev/full", 1, "No space left on device"),
        ("--version >&-", 1, "standard output is closed"),
    ],
)
def test_output_that_cannot_be_written_is_one_line(
    command: str, code: int, said: str
) -> None:
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


# --- keys -------------------------------------------------------------------------------------------------


def test_keys_rotate_retire_revoke(shell: Shell) -> None:
    """A key goes from pending to active to revoked, and what the JWK Set says follows."""
    first = shell("keys", "new", "--pinned", "--publish-delay", "0", "--json").object()[
        "kid"
    ]
    second = shell("keys", "new", "--pinned", "--json").object()["kid"]
    assert "no pending key is ready" not in shell("keys", "rotate").err
    assert [key["state"] for key in shell("keys", "list", "--json").object()["keys"]] == [
        "retired",
        "active",
    ]
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
def test_sign_appends_the_token_and_keeps_the_rest(
    ready: Shell, message: dict[str, Any]
) -> None:
    """The form goes out as it came in, one token header longer, and verifies."""
    ran = ready(*SIGN, stdin=message)
    signed = ran.object()
    name, value = signed["headers"].pop()
    assert (ran.code, name, list(value)) == (0, "mqauth-token", ["str"])
    assert signed == {"headers": [], **message}
    assert [key for key in signed if key in message] == list(message)
    assert ready(*VERIFY, stdin=ran.out).object()["verdict"] == "accepted"


def numbered(count: int) -> bytes:
    """Return that many messages, a line each."""
    return b"".join(
        encoded(MESSAGE | {"key": base64.b64encode(b"%d" % n).decode()}) + b"\n"
        for n in range(count)
    )


def test_a_batch_over_the_size_of_a_token_is_named(ready: Shell) -> None:
    """Where a token cannot be sent, the first line of its batch is named, and the batches before stay printed."""
    long = encoded(MESSAGE | {"headers": [["h" * 7000, {"str": ""}]]}) + b"\n"
    ran = ready(*SIGN, "--lines", "--batch", "2", stdin=numbered(2) + long * 2)
    assert (ran.code, len(ran.objects())) == (2, 2)
    assert ran.err.startswith("mqauth: line 3: the token is over 8192 bytes")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (b"", "not UTF-8 JSON"),
        (b"\xff", "not UTF-8 JSON"),
        (b"[]", "a message is an object"),
        (b"{}", "a message has destination"),
        (b'{"destination": "kafka:a", "body": "", "body": ""}', "a duplicate name"),
        (
            b'{"destination": "kafka:a", "body": "", "headers": [["mqauth-token", {"str": "x"}]]}',
            "a token already",
        ),
        (b"[" * 10_000, "JSON"),
    ],
)
@pytest.mark.parametrize("by_line", [False, True])
def test_what_cannot_be_signed_is_one_line(
    ready: Shell, text: bytes, what: str, by_line: bool
) -> None:
    """A text that is no message, or cannot be signed, is one line that says where and what."""
    if by_line and not text:
        assert ready(*SIGN, "--lines", stdin=text).code == 0
        return
    said = ready.refused(*SIGN, *(["--lines"] if by_line else []), stdin=text)
    assert said.startswith("line 1: " if by_line else "standard input: ")
    assert what in said


# --- verify -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"body": "AAAA"}, Reason.BODY_MISMATCH),
        ({"headers": []}, Reason.TOKEN_MISSING),
        ({"headers": [["mqauth-token", {"str": "a.b.c"}]]}, Reason.TOKEN_MALFORMED),
    ],
)
def test_verify_rejects(ready: Shell, changes: dict[str, Any], reason: Reason) -> None:
    """A tampered message: rejected with its reason, no claims, exit 1, and neither token nor body shown."""
    signed = ready(*SIGN, stdin=MESSAGE).object()
    ran = ready(*VERIFY, stdin=signed | changes)
    found = ran.object()
    assert (ran.code, found["verdict"], found["reason"], found["claims"]) == (
        1,
        "rejected",
        reason.value,
        None,
    )
    assert signed["headers"][-1][1]["str"].encode() not in ran.out
    assert b"hello" not in ran.out


def test_verify_lines_share_one_store(ready: Shell) -> None:
    """``--lines``: one verdict a message in order, blank lines skipped, a copy replayed."""
    signed = ready(*SIGN, stdin=MESSAGE).out
    ran = ready(
        *VERIFY,
        "--lines",
        stdin=signed + b"\n{bad\n" + signed + b" \r\n" + lines(MESSAGE),
    )
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
    origins = {
        COPY: {"queue": "billing"},
        AGAIN: {"queue": "billing", "redelivered": True},
    }
    queued = {"destination": "rabbitmq:shop/orders.a", "body": ""}
    first = ready(*SIGN, stdin=queued).object()
    messages = [first | {"origin": origins[COPY]}]
    for verdict in verdicts[1:]:
        fresh = verdict is ACCEPTED
        messages.append(
            ready(*SIGN, stdin=queued).object()
            if fresh
            else first | {"origin": origins[verdict]}
        )
    ran = ready(*VERIFY, "--lines", stdin=lines(*messages[: len(verdicts)]))
    assert ([found["verdict"] for found in ran.objects()], ran.code) == (verdicts, code)


def test_unconfirmed_is_not_accepted(
    ready: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The claim is confirmed as a consumer would; where that fails the verdict is deferred, not accepted."""

    def down(*_arguments: object) -> None:
        raise Unavailable(Cause.REPLAY_STORE_UNAVAILABLE, "down")

    monkeypatch.setattr(MemoryReplayStore, "confirm", down)
    ran = ready(*VERIFY, stdin=ready(*SIGN, stdin=MESSAGE).out)
    assert (ran.code, ran.object()["reason"]) == (3, "replay_store_unavailable")


def test_verify_leaves_the_audit_alone(ready: Shell) -> None:
    """``verify`` works beside a running consumer: it neither opens nor writes the audit file."""
    Path("mqauth.toml").write_text(
        CONFIG + '[audit]\nfile = "audit.jsonl"\nrecord = "all"\n'
    )
    assert ready(*VERIFY, stdin=ready(*SIGN, stdin=MESSAGE).out).code == 0
    assert not Path("audit.jsonl").exists()


# --- input is bounded -------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [(), ("--lines",)])
def test_oversize_input_is_not_signed(
    ready: Shell, monkeypatch: pytest.MonkeyPatch, arguments: Any
) -> None:
    """A message or line over the bound is refused in one line."""
    monkeypatch.setattr(app, "MAX_INPUT", 100)
    assert "over 100 bytes" in ready.refused(
        *SIGN, *arguments, stdin=b" " * 100 + encoded(MESSAGE)
    )


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
