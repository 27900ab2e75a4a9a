"""What every command takes and shows alike: ids, times, tables, errors, exit codes, and the end by Ctrl-C."""

from __future__ import annotations

import errno
import json
import logging
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from mqauth.cli import main
from mqauth.cli.broker import reached, told
from mqauth.cli.forms import CommandFailed, moment, pick, shown_time
from mqauth.clock import SYSTEM_CLOCK
from mqauth.errors import Cause, ConfigurationError, Unavailable
from mqauth.keystore import Keystore

IDS = ("abcdefgh1", "abcdefgh2", "abcz", "xyz12345")
Exit = Callable[..., tuple[int, str]]


@pytest.fixture
def ended(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Exit:
    """Run a command in an empty folder; return its exit code and the one line of its error."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        return main(arguments), capsys.readouterr().err

    return run


# --- ids --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [("xyz1", "xyz12345"), ("abcz", "abcz"), ("abcdefgh2", "abcdefgh2")],
)
def test_an_id_is_taken_whole_or_by_its_beginning(text: str, found: str) -> None:
    """Four characters are enough where one id begins so."""
    assert pick(text, IDS, option="--id") == found


def test_at_most_five_are_named() -> None:
    """Of many ids that fit, five stand in the error."""
    with pytest.raises(
        ConfigurationError,
        match=r"9 begin so: same1, same2, same3, same4, same5, \.\.\.$",
    ):
        pick("same", [f"same{number}" for number in range(1, 10)], option="--id")


# --- times ------------------------------------------------------------------------------------------------


def test_times_are_taken_in_three_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 3339 with a zone, a span ago, and now."""
    monkeypatch.setattr(type(SYSTEM_CLOCK), "now", lambda _: 1_000_000.0)
    assert moment("now") == 1_000_000
    assert (moment("30s"), moment("5m"), moment("2h"), moment("7d")) == (
        999_970,
        999_700,
        992_800,
        395_200,
    )
    assert (
        moment("2026-11-25T10:00:00+01:00")
        == datetime(2026, 11, 25, 9, tzinfo=UTC).timestamp()
    )


def test_times_are_shown_to_the_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the year where it is not this one; nothing where no calendar has the time."""
    monkeypatch.setattr(
        type(SYSTEM_CLOCK),
        "now",
        lambda _: datetime(2026, 11, 27, tzinfo=UTC).timestamp(),
    )
    assert (
        shown_time(datetime(2026, 11, 27, 2, 4, 59, tzinfo=UTC).timestamp())
        == "11-27 02:04"
    )
    assert (
        shown_time(datetime(2025, 1, 2, 3, 4, tzinfo=UTC).timestamp())
        == "2025-01-02 03:04"
    )
    assert (shown_time(None), shown_time(1e30)) == ("", "")


# --- tables -----------------------------------------------------------------------------------------------


def in_terminal(arguments: list[str], folder: Path, columns: int = 80) -> str:
    """Return what a command prints on a terminal."""
    master, slave = pty.openpty()
    environment = os.environ | {"COLUMNS": str(columns), "NO_COLOR": "1"}
    command = [sys.executable, "-m", "mqauth", *arguments]
    with subprocess.Popen(
        command, stdout=slave, stderr=slave, stdin=slave, cwd=folder, env=environment
    ):
        os.close(slave)
        found = b""
        while True:
            try:
                part = os.read(master, 65_536)
            except OSError:
                # Linux says so (EIO) where the last program has left the terminal.
                part = b""
            if not part:
                os.close(master)
                return found.decode().replace("\r\n", "\n")
            found += part


# --- keys -------------------------------------------------------------------------------------------------


def test_the_only_active_key_is_not_revoked_unasked(tmp_path: Path, ended: Exit) -> None:
    """Where nobody can be asked ``--yes`` is required; the line has the whole id, and until when nothing signs."""
    keystore = Keystore(folder=tmp_path / "keys")
    kid = keystore.create(subjects=["a"]).kid
    revoke = ("keys", "revoke", "--kid", kid[:8], "--why", "stolen")
    code, error = ended(*revoke)
    assert code == 2
    assert (
        f"{kid} is the only active key: nothing can be signed until you make another key; give --yes"
        in error
    )
    keystore.create()
    assert re.search(
        r"nothing can be signed until \d\d-\d\d \d\d:\d\d UTC", ended(*revoke)[1]
    )
    assert keystore.ring().active is not None
    assert ended(*revoke, "--yes") == (0, "")
    assert keystore.ring().active is None


def test_rotate_says_that_there_is_no_next_key(tmp_path: Path, ended: Exit) -> None:
    """A rotation that leaves no next key names the command that makes one."""
    keystore = Keystore(folder=tmp_path / "keys")
    keystore.create(subjects=["a"])
    assert (
        "keys has no next key; make one with mqauth keys new --dir keys"
        in ended("keys", "rotate")[1]
    )
    keystore.create()
    assert ended("keys", "rotate") == (0, "")


def test_jwks_is_written_whole_or_not_at_all(tmp_path: Path, ended: Exit) -> None:
    """``--output`` replaces the file, which others may read; a keystore that cannot be read leaves it."""
    Keystore(folder=tmp_path / "keys").create(subjects=["a"])
    assert ended("keys", "jwks", "--output", "jwks.json") == (0, "")
    assert len(json.loads(Path("jwks.json").read_text())["keys"]) == 1
    assert Path("jwks.json").stat().st_mode & 0o777 == 0o644
    assert ended("keys", "jwks", "--dir", "nowhere", "--output", "jwks.json")[0] == 2
    assert len(json.loads(Path("jwks.json").read_text())["keys"]) == 1
    assert ended("keys", "jwks", "--output", "no/such/folder.json")[0] == 2


def test_jwks_of_two_keystores_go_into_one_folder_at_once(
    tmp_path: Path, ended: Exit
) -> None:
    """``--output`` leaves alone what another process is writing in the folder."""
    Keystore(folder=tmp_path / "keys").create(subjects=["a"])
    Path("public").mkdir()
    others = Path("public/.writing")
    others.write_bytes(b"half of another set")
    assert ended("keys", "jwks", "--output", "public/jwks.json") == (0, "")
    assert others.read_bytes() == b"half of another set"


def test_jwks_takes_the_place_of_a_regular_file_only(tmp_path: Path, ended: Exit) -> None:
    """``--output`` writes where a link points to, keeps a mode, and refuses what is no regular file."""
    Keystore(folder=tmp_path / "keys").create(subjects=["a"])
    Path("link").symlink_to("jwks.json")
    assert ended("keys", "jwks", "--output", "link") == (0, "")
    assert Path("link").is_symlink()
    assert Path("jwks.json").is_file()
    Path("jwks.json").chmod(0o640)
    before = Path("jwks.json").stat()
    assert ended("keys", "jwks", "--output", "link") == (0, "")
    after = Path("jwks.json").stat()
    assert after.st_mode & 0o777 == 0o640
    assert after.st_ino != before.st_ino
    os.mkfifo("pipe")
    assert ended("keys", "jwks", "--output", "pipe") == (
        2,
        "mqauth: --output pipe: not a regular file\n",
    )
    assert Path("pipe").is_fifo()


# --- errors and exit codes --------------------------------------------------------------------------------


def named(name: str, *arguments: Any) -> Exception:
    """Return an error of a client by the name of its type."""
    error: Exception = type(name, (Exception,), {})(*arguments)
    return error


def test_errors_that_came_from_each_other_are_told() -> None:
    """``raise a from b``, where ``b`` came while ``a`` was handled, has no first cause."""
    first, second = (
        named("KafkaConnectionError"),
        named("SSLCertVerificationError", "self-signed"),
    )
    first.__cause__, second.__context__ = second, first
    assert "self-signed" in str(told(first, ["kafka://mq.example:9093"], None, 0.1))
    second.__class__.__name__ = "OtherError"
    assert "cannot reach" in str(told(first, ["kafka://mq.example:9093"], None, 0.1))


def test_a_login_that_only_the_clients_log_tells_of() -> None:
    """A refused login that the client logs, and hides behind a time-out, is the reason; another error is not."""
    refused = named("SaslAuthenticationFailedError", "invalid_token")
    timeout = named("KafkaTimeoutError", "Unable to bootstrap")
    timeout.__class__.__module__ = "kafka.errors"

    def connect(logged: Exception) -> None:
        with reached("kafka://127.0.0.1:1"):
            logging.getLogger("kafka.net").warning("failed: %s", logged)
            raise timeout

    with pytest.raises(ConfigurationError, match="invalid_token"):
        connect(refused)
    with pytest.raises(CommandFailed, match="cannot reach"):
        connect(timeout)


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ENOSPC])
def test_no_broker_is_blamed_for_a_file(number: int) -> None:
    """A pipe that its reader has closed, a full disk, or a file that cannot be read is no answer of a broker."""
    with (
        pytest.raises(OSError, match=os.strerror(number)),
        reached("kafka://mq.example:9092"),
    ):
        raise OSError(number, os.strerror(number))
    with pytest.raises(PermissionError), reached("kafka://mq.example:9092"):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "audit.jsonl")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigurationError("x"), 2), (CommandFailed("x"), 1), (CommandFailed("x", 3), 3),
        (KeyboardInterrupt(), 130), (Unavailable(Cause.KEYS_UNAVAILABLE), 3), (RuntimeError("x"), 1),
        (FileNotFoundError(2, "No such file", "f"), 1),
    ],
)  # fmt: skip
def test_each_error_has_its_exit_code(
    error: BaseException, code: int, ended: Exit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 failed, 2 usage or configuration, 3 undecided or out of reach, 130 interrupted; never a traceback."""

    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr("mqauth.cli.keys.Keystore", fail)
    found, said = ended("keys", "list")
    assert (found, "Traceback" in said, said.count("\n") <= 1) == (code, False, True)
    if code != 130:
        assert "Traceback" in ended("keys", "list", "--debug")[1]


def test_a_fault_of_ours_repeats_no_text(
    ended: Exit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text of an error that nobody foresaw may hold anything: its type is named, and what to do."""
    monkeypatch.setattr("mqauth.cli.keys.Keystore", lambda **_: 1 / 0)
    assert ended("keys", "list") == (
        1, "mqauth: this is a fault of mqauth (ZeroDivisionError); run it again with --debug and report it\n"
    )  # fmt: skip


_INTERRUPTED = """
import signal, sys, weakref
from mqauth import cli
from mqauth.cli import app

def strike(*_): signal.raise_signal(signal.SIGINT)

def in_a_callback(_):
    class Module: pass
    weakref.ref(Module(), strike)

def in_a_class(_):
    class Name: __set_name__ = strike
    class Module: name = Name()

signal.signal(signal.SIGINT, signal.default_int_handler)
module, importing = sys.argv.pop(1), sys.argv.pop(1)
globals()[module].import_module = globals()[importing]
sys.exit(cli.main())
"""


@pytest.mark.parametrize("module", ["cli", "app"])
@pytest.mark.parametrize("importing", ["in_a_callback", "in_a_class"])
def test_an_interrupt_within_an_import_ends_the_command(
    module: str, importing: str, tmp_path: Path
) -> None:
    """Ctrl-C counts also where Python drops it, in a callback, or makes an error of it, where a class is made."""
    command = [sys.executable, "-c", _INTERRUPTED, module, importing, "keys", "list"]
    ended = subprocess.run(
        command, capture_output=True, cwd=tmp_path, timeout=60, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, b"", b"")
