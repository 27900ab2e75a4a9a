"""The published JWK Set: what is in it, how long it may be cached, and how it is served; without a network."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from mqauth import ConfigurationError, Key
from mqauth.audit import disk
from mqauth.keystore import KeyRing, Keystore
from mqauth.keystore.disk import folder, ring
from mqauth.keystore.disk.ring import RETIREMENT_GRACE
from mqauth.keystore.remote import keyserver
from mqauth.keystore.remote.keyserver import (
    HEALTH,
    MAX_AGE,
    PATHS,
    KeyServer,
    max_age,
    publish,
    publish_delay,
)
from mqauth.keystore.remote.rules import publish_delay_of
from mqauth.testing.clock import START, FakeClock
from mqauth.wire.jwk import load_key_set

NOW: Final = int(START)
DELAY: Final = 600


def ring_of(count: int, *, delay: int = DELAY) -> KeyRing:
    found = KeyRing(publish_delay=delay, retain=1000)
    for _ in range(count):
        found = ring.add(found, Key.generate(subjects=["a"]), NOW)
    return found


# --- the document -----------------------------------------------------------------------------------------


def test_keystores_are_published_as_one_set() -> None:
    """Several producers of one issuer are one set, whose delay is the shortest any of them keeps."""
    first, second = ring_of(2), ring_of(1, delay=120)
    found = publish([first, second])
    assert (found.keys, found.active) == (3, 2)
    assert json.loads(found.body)["mqauth_publish_delay"] == 120


def test_delay_is_what_every_pending_key_keeps() -> None:
    """A delay raised while a key waits is not announced before that key signs, or it would be refused then."""
    found = replace(ring_of(2), publish_delay=9000)
    assert publish_delay([found]) == DELAY
    assert publish_delay([ring.rotate(found, NOW + DELAY)]) == 9000


def test_delay_beyond_what_caches_read_is_cut() -> None:
    """A longer delay than caches accept is announced as the longest they do."""
    assert (
        publish_delay_of(
            {"mqauth_publish_delay": publish_delay([ring_of(1, delay=30 * 86_400)])}
        )
        == 7 * 86_400
    )


def test_entity_tag_is_the_documents() -> None:
    """The same document has the same tag anywhere, another one another."""
    found = ring_of(2)
    assert publish([found]).etag == publish([KeyRing(**_fields(found))]).etag
    assert publish([found]).etag != publish([ring.rotate(found, NOW + DELAY)]).etag


def _fields(found: KeyRing) -> dict[str, Any]:
    return {
        "keys": found.keys,
        "publish_delay": found.publish_delay,
        "retain": found.retain,
    }


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda key: key.update(d="c2VjcmV0"), "private or symmetric key"),
        (lambda key: key.pop("mqauth_sub"), "another set"),
    ],
    ids=["private", "without its subjects"],
)
def test_what_got_into_the_document_by_mistake_is_refused(
    change: Callable[[Any], object], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A private member, and what a consumer would not read back exactly, is an error, not a line in it."""
    real = keyserver.jwk.dump_key_set

    def mistaken(keys: Any) -> dict[str, Any]:
        document = real(keys)
        change(document["keys"][0])
        return document

    monkeypatch.setattr(keyserver.jwk, "dump_key_set", mistaken)
    with pytest.raises(ConfigurationError, match=said) as caught:
        publish([ring_of(1)])
    assert "c2VjcmV0" not in str(caught.value)


def test_two_keystores_with_one_key_are_refused() -> None:
    """A folder named twice, or copied, is an error."""
    found = ring_of(1)
    with pytest.raises(ConfigurationError, match="two keys"):
        publish([found, found])


def test_document_too_large_for_consumers_is_refused() -> None:
    """A set that no consumer would read is not published."""
    key = ring_of(1).keys[0]
    names = frozenset(f"{number:0256d}" for number in range(1100))
    huge = replace(key, key=replace(key.key, subjects=names))
    with pytest.raises(ConfigurationError, match="over 262144 bytes"):
        publish([KeyRing(keys=(huge,))])


# --- how long it may be cached ----------------------------------------------------------------------------


def test_fresh_for_five_minutes_at_most() -> None:
    """Without a change in sight a copy is fresh for five minutes, so that a revocation is seen soon."""
    assert max_age([ring_of(1)], NOW) == MAX_AGE == 300


def test_never_fresh_beyond_the_publish_delay() -> None:
    """A copy taken just before a key is published has to be old by the time that key signs."""
    assert max_age([ring_of(1, delay=45)], NOW) == 45
    assert max_age([ring_of(1), ring_of(1, delay=7)], NOW) == 7


def revoked_ahead() -> KeyRing:
    found = ring_of(1)
    return ring.revoke(found, found.keys[0].kid, NOW, reason="", since=NOW + 5000)


@pytest.mark.parametrize(
    ("made", "moment"),
    [
        (lambda: ring_of(2), NOW + DELAY),
        (lambda: ring.rotate(ring_of(2), NOW + DELAY), NOW + DELAY + RETIREMENT_GRACE),
        (
            lambda: ring.rotate(ring_of(2), NOW + DELAY),
            NOW + DELAY + RETIREMENT_GRACE + 1000,
        ),
        (revoked_ahead, NOW + 5000),
    ],
    ids=["pending", "retired", "gone", "revoked"],
)
def test_not_fresh_beyond_the_next_change(
    made: Callable[[], KeyRing], moment: int
) -> None:
    """A copy taken ten seconds before a key signs, ends, goes, or is revoked is fresh for ten seconds."""
    found = made()
    assert max_age([found], moment - 10) == 10
    assert max_age([found], moment - 0.5) == 0
    assert max_age([found], moment) > 0


# --- the application --------------------------------------------------------------------------------------


class World:
    """A keystore on a fake clock, and its server, called as an ASGI server would."""

    def __init__(self, place: Path) -> None:
        self.clock = FakeClock()
        self.store = Keystore(folder=place, clock=self.clock)
        self.first = self.store.create(publish_delay=DELAY, subjects=["a"])
        self.server = KeyServer([place], clock=self.clock)

    def ask(
        self, path: str = PATHS[0], method: str = "GET", **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body of an answer."""
        sent: list[Any] = []
        pairs = [
            (name.replace("_", "-").encode(), value.encode())
            for name, value in headers.items()
        ]
        scope: dict[str, Any] = {
            "type": "http",
            "path": path,
            "method": method,
            "headers": pairs,
        }

        async def send(event: Any) -> None:
            sent.append(event)

        async def receive() -> Any:
            raise AssertionError("no request has a body")

        asyncio.run(self.server(scope, receive, send))
        start, body = sent
        names = {name.decode(): value.decode() for name, value in start["headers"]}
        return start["status"], names, body["body"]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "keys")


@pytest.fixture
def alarms(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    return lambda: [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.ERROR
    ]


@pytest.mark.parametrize("path", PATHS)
def test_set_is_served(world: World, path: str) -> None:
    """Both paths give the JWK Set with its type, its tag, and for how long it is fresh."""
    status, headers, body = world.ask(path)
    assert status == 200
    assert headers == {
        "content-type": "application/jwk-set+json",
        "cache-control": "public, max-age=300",
        "etag": world.server.current.etag,
        "content-length": str(len(body)),
        "x-content-type-options": "nosniff",
    }
    assert [key.kid for key in load_key_set(body)] == [world.first.kid]


@pytest.mark.parametrize("given", ["{}", "W/{}", '"other", {}', "*"])
def test_known_set_is_not_sent_again(world: World, given: str) -> None:
    """A request that names the tag, weak, in a list, or by ``*``, gets 304 with tag and freshness, and no body."""
    etag = world.server.current.etag
    status, headers, body = world.ask(if_none_match=given.format(etag))
    assert (status, body) == (304, b"")
    assert headers == {
        "cache-control": "public, max-age=300",
        "etag": etag,
        "x-content-type-options": "nosniff",
    }


def test_another_tag_gets_the_set(world: World) -> None:
    """A tag of another document does not keep the set back."""
    assert world.ask(if_none_match='"other"')[0] == 200


def test_rotation_is_out_with_the_next_request(world: World) -> None:
    """A new key, a rotation and a revocation are each served at once, under a new tag, with fitting freshness."""
    tags = [world.ask()[1]["etag"]]
    second = world.store.create()
    _, headers, body = world.ask()
    assert [key.kid for key in load_key_set(body)] == [world.first.kid, second.kid]
    tags.append(headers["etag"])
    world.clock.advance(DELAY - 20)
    assert world.ask()[1]["cache-control"] == "public, max-age=20"
    world.clock.advance(20)
    world.store.change(ring.rotate)
    tags.append(world.ask()[1]["etag"])
    world.store.change(
        lambda found, now: ring.revoke(found, second.kid, now, reason="stolen")
    )
    _, headers, body = world.ask()
    tags.append(headers["etag"])
    assert json.loads(body)["keys"][1]["revoked"] == {"revoked_at": 0, "reason": "stolen"}
    assert len(set(tags)) == 4


def test_unchanged_folder_is_not_read_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request costs one ``stat`` a folder while nothing changes."""
    monkeypatch.setattr(Keystore, "ring", lambda self: pytest.fail("read"))
    assert world.ask()[0] == 200


def test_head_is_get_without_the_body(world: World) -> None:
    """HEAD has the headers of GET, its length too."""
    status, headers, body = world.ask(method="HEAD")
    assert (status, headers) == world.ask()[:2]
    assert body == b""


def test_other_methods_and_paths(world: World) -> None:
    """Anything but GET and HEAD is 405 with ``Allow``; anything else is 404; no cache keeps either."""
    status, headers, _ = world.ask(method="POST")
    assert (status, headers["allow"], headers["cache-control"]) == (
        405,
        "GET, HEAD",
        "no-store",
    )
    status, headers, _ = world.ask("/keyset.json")
    assert (status, headers["cache-control"]) == (404, "no-store")


def test_health(world: World) -> None:
    """The health page says how many keys are out and how many of them sign, and is not cached."""
    status, headers, body = world.ask(HEALTH)
    assert (status, headers["cache-control"]) == (200, "no-store")
    assert json.loads(body) == {"status": "ok", "keys": 1, "active": 1}
    world.store.change(
        lambda found, now: ring.revoke(found, world.first.kid, now, reason="")
    )
    assert json.loads(world.ask(HEALTH)[2])["active"] == 0


def test_private_member_in_the_keyset_is_500_and_loud(
    world: World, alarms: Callable[[], list[str]]
) -> None:
    """A private member somebody put into keyset.json is not served: 500, an alarm, health 503; until mended."""
    path = world.store.folder / folder.KEYSET
    whole = path.read_bytes()
    members = json.loads(whole)
    members["keys"][0]["public"]["d"] = "c2VjcmV0"
    disk.write_whole(path, json.dumps(members).encode())
    for _ in range(3):
        status, headers, body = world.ask()
        assert (status, headers["cache-control"]) == (500, "no-store")
        assert b"c2VjcmV0" not in body
        assert json.loads(body) == {"error": "the keys cannot be published"}
    assert world.ask(HEALTH)[0] == 503
    assert len(alarms()) == 1
    assert "private or symmetric key" in alarms()[0]
    world.clock.advance(60)
    world.ask()
    assert alarms()[1:] == [f"{alarms()[0]}: and 4 more in 60 s"]
    disk.write_whole(path, whole)
    assert world.ask()[0] == 200


def test_missing_folder_is_500_until_it_is_back(world: World, tmp_path: Path) -> None:
    """An issuer whose folder is away serves nothing rather than something old; consumers have their caches."""
    world.store.folder.rename(tmp_path / "away")
    assert world.ask()[0] == 500
    (tmp_path / "away").rename(world.store.folder)
    assert world.ask()[0] == 200


def test_other_protocols_are_refused(world: World) -> None:
    """A lifespan or WebSocket scope is no request, which tells an ASGI server that there is none."""
    nothing: Any = None
    with pytest.raises(RuntimeError):
        asyncio.run(world.server({"type": "lifespan"}, nothing, nothing))
