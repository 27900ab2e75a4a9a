"""The replay store in a file on real disks: killed at chosen calls, full, slow, read-only; several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from integration.file_store_victim import SHIM
from integration.scale import nightly
from integration.waiting import until
from mqauth.audit.file import AuditFile
from mqauth.errors import Cause, ConfigurationError, Unavailable, Verdict
from mqauth.flow import run
from mqauth.judging.pipeline import Pipeline
from mqauth.stores.file import FileReplayStore
from mqauth.testing import Forge
from mqauth.testing.store_contract import FRESH, HERE, REPLAYED, REREAD, THERE, wish
from mqauth.testing.token_attacks import honest_message
from mqauth.wire.message import Message

KILLS = nightly(500, otherwise=100)
SYNC_MS = 300


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that kills and delays."""
    folder = tmp_path_factory.mktemp("shim")
    (folder / "shim.c").write_text(SHIM)
    command = [
        "cc",
        "-shared",
        "-fPIC",
        "-O1",
        "-o",
        folder / "shim.so",
        folder / "shim.c",
        "-ldl",
    ]
    subprocess.run(command, check=True)
    return folder / "shim.so"


def victim(shim: Path, *command: object) -> Any:
    """Return what a process under the library says."""
    run = subprocess.run(
        [sys.executable, "-m", "integration.file_store_victim", *map(str, command)],
        env={**os.environ, "LD_PRELOAD": str(shim)}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return json.loads(run.stdout)


def test_kills(shim: Path, tmp_path: Path) -> None:
    """A process killed at its first, second, third write and so on, every other one torn, loses no confirm."""
    found = victim(shim, "kills", tmp_path / "replay.sqlite", KILLS)
    assert found["killed"] >= 100
    assert found["confirmed"] > 500
    assert (found["confirms_lost"], found["copies_let_through"], found["condemned"]) == (
        0,
        0,
        0,
    )


def test_slow_disk(shim: Path, tmp_path: Path) -> None:
    """No call of an event loop waits for a sync, however long that takes; some answers come later instead."""
    found = victim(shim, "slow", tmp_path / "replay.sqlite", SYNC_MS)
    assert found["messages"] > 100
    assert found["awaited"] > 0
    assert found["answer_ms"] > SYNC_MS
    assert found["call_ms"] < SYNC_MS / 2


def test_children(shim: Path, tmp_path: Path) -> None:
    """Children that end in their order leave the file of their parent whole."""
    assert victim(shim, "children", tmp_path / "replay.sqlite") == {
        "reread": 80,
        "of": 80,
    }


def test_two_processes(tmp_path: Path) -> None:
    """A file that another process has is refused in one line, until that process is dead, however it died."""
    path, code = (
        tmp_path / "replay.sqlite",
        "import mqauth, sys, time; s = mqauth.FileReplayStore(sys.argv[1]); ",
    )
    command = [
        sys.executable,
        "-c",
        code + "print(s.claim.__name__, flush=True); time.sleep(600)",
        path,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        try:
            with pytest.raises(ConfigurationError) as caught:
                FileReplayStore(path)
        finally:
            other.kill()
    share = "several processes (prefork, replicas) share a store on Redis or Valkey"
    assert (
        str(caught.value) == f"{path}: already open, here or in another process; {share}"
    )
    FileReplayStore(path).close()


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """Mount a file system of its own in memory."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_full_disk(tmp_path: Path) -> None:
    """A disk that is full defers claims and confirms, loses nothing, and all goes on once it has room again."""
    with mounted(tmp_path / "small", "size=2m") as folder:
        (folder / "filler").write_bytes(bytes(1_000_000))
        store: Any = FileReplayStore(folder / "replay.sqlite")
        done, requests = (
            [],
            (wish(id=os.urandom(16), place=HERE, expires=9e9) for _ in range(100_000)),
        )
        with pytest.raises(Unavailable) as refused:
            done.extend(
                request
                for request in requests
                if store.claim(request) is FRESH and not store.confirm(request)
            )
        assert len(done) > 100
        assert (
            str(refused.value)
            == f"replay_store_full: {folder}/replay.sqlite: the disk is full"
        )
        request = next(requests)
        # The thread finds the disk full as well; it needs room for what it forgets.
        store._tend()
        with pytest.raises(Unavailable, match="replay_store_full"):
            store.claim(request)
        (folder / "filler").unlink()
        store._tend()
        assert store.claim(request) is FRESH
        store.confirm(request)
        store.close()
        store = FileReplayStore(folder / "replay.sqlite")
        for each in (*done, request):
            assert (
                store.claim(wish("again", id=each.id, place=HERE, expires=9e9)) is REREAD
            )
            assert (
                store.claim(wish("copy", id=each.id, place=THERE, expires=9e9))
                is REPLAYED
            )
        store.close()


def test_a_file_that_is_deleted_under_a_consumer(tmp_path: Path) -> None:
    """The store's own thread notices it: copies and new messages wait, it is on record, and a restart goes on."""
    forge, place, path = Forge(), "rabbitmq:shop/orders", tmp_path / "replay.sqlite"
    handled: list[Any] = []

    def opened() -> tuple[FileReplayStore, Pipeline, AuditFile]:
        store, audit = FileReplayStore(path), AuditFile(tmp_path / "audit.jsonl")
        verifier, policy = forge.verifier(), forge.policy(place)
        return (
            store,
            Pipeline(verifier=verifier, policy=policy, replay=store, audit=audit),
            audit,
        )

    def deliver(guard: Pipeline, message: Message) -> Any:
        return run(guard.process(guard.receive(message), handled.append, None))

    store, guard, audit = opened()
    message, other = (
        forge.signer().sign(honest_message(place, number)) for number in range(2)
    )
    assert deliver(guard, message).verdict is Verdict.ACCEPTED
    for each in tmp_path.glob("replay.sqlite*"):
        each.unlink()
    until(lambda: store.lost is not None, seconds=30)
    for each in (message, other, message):
        assert deliver(guard, each).cause is Cause.REPLAY_STORE_UNAVAILABLE
    store.close()
    audit.close()

    store, guard, audit = opened()
    assert deliver(guard, other).verdict is Verdict.ACCEPTED
    store.close()
    audit.close()
    records = [
        json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()
    ]
    assert [record["verdict"] for record in records] == ["replay_memory_lost"]
    assert records[0]["replay_memory_lost"]["store"] == str(path)[:256]
    assert len(handled) == 2


@pytest.mark.parametrize("made_before", [True, False])
def test_read_only_disk(tmp_path: Path, made_before: bool) -> None:
    """A file on a file system that may only be read is refused at the start."""
    with mounted(tmp_path / "fixed", "size=4m") as folder:
        if made_before:
            FileReplayStore(folder / "replay.sqlite").close()
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        with pytest.raises(ConfigurationError, match=r"[Rr]ead-only"):
            FileReplayStore(folder / "replay.sqlite")


def test_start_on_a_full_disk(tmp_path: Path) -> None:
    """A disk without any room is named at the start."""
    with mounted(tmp_path / "none", "size=64k") as folder:
        (folder / "filler").write_bytes(bytes(60_000))
        with pytest.raises(ConfigurationError, match="the disk is full"):
            FileReplayStore(folder / "replay.sqlite")
