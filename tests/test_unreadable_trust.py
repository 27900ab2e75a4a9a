"""A key set that cannot be read is not a missing key: every source of keys that is read more than once."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from mqauth import JWKS, JWKSFile
from mqauth.audit import disk
from mqauth.errors import Cause, Unavailable
from mqauth.flow import run
from mqauth.judging.pipeline import Pipeline, Verdict
from mqauth.judging.verifier import Issuer
from mqauth.keystore import Keystore
from mqauth.keystore.disk.folder import CUTOFFS, KEYSET
from mqauth.keystore.remote import rules
from mqauth.keystore.remote.keyserver import KeyServer
from mqauth.replay.memory import MemoryReplayStore
from mqauth.testing import FakeClock, Forge
from mqauth.testing.forge import ISSUER
from mqauth.wire.jwk import dump_key_set
from mqauth.wire.keys import Key, KeySet
from mqauth.wire.message import Message
from tests.conftest import Sink, together
from tests.test_jwks import Inline

OLD, NEW = Key.generate(), Key.generate()
THIEF = "wimse://prod.example/thief"
DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "gone": lambda path: path.unlink(),
    # As root reads a file of any mode, what nobody can read is a folder in its place.
    "unreadable": lambda path: (path.unlink(), path.mkdir()),
    "too large": lambda path: path.write_bytes(b" " * 5_000_000),
    "no usable key": lambda path: path.write_bytes(b'{"keys":[{"kty":"oct","k":"AA"}]}'),
}


class Trust:
    """One source of keys, and the file behind it."""

    def __init__(self, path: Path, source: Any, clock: FakeClock) -> None:
        self.path = path
        self.source = source
        self._clock = clock
        self._good = b""

    def damage(self, kind: str) -> None:
        """Spoil the file, and let the time pass after which it is looked at again."""
        self._good = self.path.read_bytes()
        DAMAGES[kind](self.path)
        self._clock.advance(60)

    def mend(self, text: bytes | None = None) -> None:
        """Write the file again as a whole."""
        if self.path.is_dir():
            self.path.rmdir()
        fresh = self.path.with_name("fresh")
        fresh.write_bytes(self._good if text is None else text)
        fresh.replace(self.path)
        self._clock.advance(60)

    def look(self, kid: str) -> KeySet:
        """Look for a kid that a message names which comes now, as a consumer does."""
        keys: KeySet = self.source.key_set()
        return keys if kid in keys.by_kid else self.source.refresh(kid, self._clock.now())


def served(answer: Callable[[], tuple[int, bytes]]) -> Iterator[str]:
    """Serve what a function answers at a URL of this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answer()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/jwks.json"
    server.shutdown()
    thread.join()
    server.server_close()


def remote(url: str, clock: FakeClock, svid: Any) -> JWKS:
    """Return the keys at a URL, fetched on the spot."""
    inline = Inline(clock)

    def refresher(_condition: threading.Condition, work: Callable[[], float]) -> Inline:
        inline.work = work
        return inline

    keys = JWKS(
        url, unsafe_http_loopback=True, svid=svid, clock=clock, refresher=refresher
    )
    keys.start()
    return keys


def content(path: Path) -> tuple[int, bytes]:
    """Return what a plain web server answers of a file; of one that it cannot read, nothing."""
    return 200, path.read_bytes() if path.is_file() else b""


def asked(application: KeyServer) -> tuple[int, bytes]:
    """Ask an ASGI application for the set that it publishes."""
    said: list[Any] = []

    async def send(message: Any) -> None:
        said.append(message)

    async def receive() -> Any:
        raise AssertionError("a GET has no body")

    scope = {"type": "http", "method": "GET", "path": "/jwks.json", "headers": []}
    asyncio.run(application(scope, receive, send))
    return said[0]["status"], said[1]["body"]


@pytest.fixture(params=["file", "bundle", "url", "bundle url", "folder"])
def trust(
    request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock
) -> Iterator[Trust]:
    """Each source of keys that is read more than once, with OLD in it."""
    kind, path = request.param, tmp_path / "jwks.json"
    document = dump_key_set(KeySet([OLD]))
    if "bundle" in kind:
        document["keys"][0]["use"] = "wit-svid"
    path.write_text(json.dumps(document))
    svid: Any = "wit-svid" if "bundle" in kind else None
    if kind in ("file", "bundle"):
        yield Trust(path, JWKSFile(path, svid=svid, clock=clock), clock)
        return
    answer: Callable[[], tuple[int, bytes]] = lambda: content(path)  # noqa: E731
    if kind == "folder":
        # A set that is younger than the delay it announces would be believed without a look.
        keys = Keystore(folder=tmp_path / "keys", clock=clock)
        keys.create(subjects=["orders-api"], publish_delay=30)
        path = tmp_path / "keys" / KEYSET
        application = KeyServer([path.parent], clock=clock)
        answer = lambda: asked(application)  # noqa: E731
    for url in served(answer):
        yield Trust(path, remote(url, clock, svid), clock)


@pytest.mark.parametrize("kind", DAMAGES)
def test_what_cannot_be_read_decides_nothing(
    trust: Trust, kind: str, clock: FakeClock
) -> None:
    """Known kids go on for an hour and unknown ones wait all the time; then all wait, until it can be read."""
    (known,) = trust.source.key_set()
    trust.damage(kind)
    for _ in range(50):
        assert known.kid in trust.look(known.kid).by_kid
        with pytest.raises(Unavailable) as caught:
            trust.look(NEW.kid)
        assert caught.value.cause is Cause.KEY_PENDING
        clock.advance(60)
    assert trust.source.health().failing_for >= 2900
    clock.advance(700)
    with pytest.raises(Unavailable) as caught:
        trust.look(known.kid)
    assert caught.value.cause is Cause.KEYS_UNAVAILABLE

    trust.mend()
    assert known.kid in trust.look(known.kid).by_kid
    assert NEW.kid not in trust.look(NEW.kid).by_kid
    assert trust.source.health().failing_for is None


def test_a_flood_of_unknown_kids_reads_no_more_often(
    trust: Trust, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1,000 kids that nobody has, in a minute in which the source cannot be read, cause at most 61 reads of it."""
    trust.damage("half")
    reads: list[Path] = []
    read = disk.read_bounded

    def counted(path: Path, *limits: Any, **more: Any) -> bytes:
        reads.append(path)
        return read(path, *limits, **more)

    monkeypatch.setattr(disk, "read_bounded", counted)
    for number in range(1000):
        with pytest.raises(Unavailable, match="key_pending"):
            trust.look(f"nobody-{number}")
        clock.advance(0.06)
    assert len(reads) <= 61
    assert trust.source.health().counters.get("attempts", 0) <= 5


@pytest.mark.parametrize("trust", ["file", "bundle", "url"], indirect=True)
def test_a_set_without_keys_is_taken_at_its_word(
    trust: Trust, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A valid set of no key makes every kid unknown, told by one CRITICAL line; at a URL if seen twice."""
    trust.mend(b'{"keys":[]}')
    with caplog.at_level(logging.CRITICAL, "mqauth"):
        for _ in range(10):
            clock.advance(300)
            trust.look(OLD.kid)
    assert trust.look(OLD.kid).keys == ()
    (line,) = [each for each in caplog.records if each.levelno == logging.CRITICAL]
    assert rules.EMPTIED in line.getMessage()


@pytest.mark.parametrize("trust", ["file", "bundle", "url"], indirect=True)
def test_cutoffs_that_cannot_be_read_keep_those_before_for_an_hour(
    trust: Trust, clock: FakeClock
) -> None:
    """A new key counts, a subject that was cut off stays so, other kids wait; after an hour all do."""
    document = json.loads(trust.path.read_bytes())
    document["mqauth_cutoff"] = [{"sub": THIEF, "before": 100}]
    trust.mend(json.dumps(document).encode())
    trust.look(NEW.kid)
    (entry,) = dump_key_set(KeySet([NEW]))["keys"]
    document["keys"].append(entry | {"use": document["keys"][0]["use"]})
    document["mqauth_cutoff"] = [{"sub": THIEF}]
    trust.mend(json.dumps(document).encode())
    with pytest.raises(Unavailable, match=r"key_pending: .*mqauth_cutoff cannot be read"):
        trust.look("nobody")
    assert set(trust.look(NEW.kid).by_kid) == {OLD.kid, NEW.kid}
    assert trust.look(OLD.kid).cutoffs[THIEF].before == 100
    clock.advance(3601)
    with pytest.raises(Unavailable, match="keys_unavailable"):
        trust.look(OLD.kid)


@pytest.mark.parametrize("trust", ["folder"], indirect=True)
def test_a_lost_file_of_cutoffs_lets_nobody_in_again(
    trust: Trust, clock: FakeClock
) -> None:
    """A server whose ``cutoffs.json`` is gone publishes nothing, and consumers keep whom it had cut off."""
    Keystore(folder=trust.path.parent, clock=clock).cut_off(THIEF, reason="stolen")
    clock.advance(60)
    trust.look(NEW.kid)
    (trust.path.parent / CUTOFFS).unlink()
    clock.advance(60)
    with pytest.raises(Unavailable, match="key_pending: status 500"):
        trust.look(NEW.kid)
    assert THIEF in trust.source.key_set().cutoffs


@pytest.mark.parametrize("kind", DAMAGES)
def test_an_honest_message_of_a_new_key_waits(
    kind: str,
    tmp_path: Path,
    clock: FakeClock,
    forge: Forge,
    kafka: Callable[..., Message],
) -> None:
    """It is deferred with a cause and what is wrong with the file, and accepted once that can be read again."""
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps(dump_key_set(KeySet([forge.key]))))
    trust, sink = Trust(path, JWKSFile(path, clock=clock), clock), Sink()
    pipeline = Pipeline(
        verifier=forge.verifier(keys={ISSUER: Issuer(keys=trust.source)}),
        policy=forge.policy("kafka:orders"), replay=MemoryReplayStore(clock=clock), audit=sink, clock=clock,
    )  # fmt: skip
    trust.damage(kind)
    outcomes = []
    for number, key in enumerate((forge.key, forge.stranger)):
        delivery = pipeline.receive(forge.seal(kafka(number), key=key))
        outcomes.append(judged(pipeline, delivery))
    assert outcomes[0].verdict is Verdict.ACCEPTED
    assert outcomes[1].verdict is Verdict.DEFERRED
    assert outcomes[1].cause is Cause.KEY_PENDING
    assert str(path) in outcomes[1].detail

    trust.mend(json.dumps(dump_key_set(KeySet([forge.key, forge.stranger]))).encode())
    assert judged(pipeline, delivery).verdict is Verdict.ACCEPTED


def judged(pipeline: Pipeline, delivery: Any) -> Any:
    """Process a delivery with a handler that does nothing."""
    letters: Any = type("Letters", (), {"name": "dead", "publish": lambda *_: None})()
    return run(pipeline.process(delivery, lambda verified: None, letters))


def test_threads_share_a_file_that_comes_and_goes(tmp_path: Path) -> None:
    """However threads look while the file is replaced, damaged and gone, a known key is never missing."""
    path = tmp_path / "jwks.json"
    good = json.dumps(dump_key_set(KeySet([OLD]))).encode()
    path.write_bytes(good)
    source, ended, missing = JWKSFile(path), threading.Event(), []

    def look(number: int) -> None:
        if number == 0:
            for step in range(300):
                path.write_bytes((good, b"", good[:40])[step % 3])
                path.unlink()
            path.write_bytes(good)
            ended.set()
            return
        while not ended.is_set():
            if OLD.kid not in source.key_set().by_kid:
                missing.append(number)
            try:
                source.refresh(NEW.kid, 0.0)
            except Unavailable as error:
                if error.cause is not Cause.KEY_PENDING:
                    missing.append(number)

    together(look, range(5))
    assert missing == []
