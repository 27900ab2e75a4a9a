"""The keystore of an authority: retired keys end later, and subjects are cut off, wherever it is published."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mqauth.errors import ConfigurationError
from mqauth.judging.trust_domain import TrustDomain
from mqauth.judging.verifier import Verifier
from mqauth.keystore import Keystore, public_keys
from mqauth.keystore.disk import cutoffs, ring
from mqauth.keystore.disk.ring import MAX_OVERLAP, RETIREMENT_GRACE, KeyRing
from mqauth.keystore.identity.identity_key import WITKey
from mqauth.keystore.remote.keyserver import KeyServer, max_age, publish
from mqauth.signer import Signer
from mqauth.testing.clock import FakeClock
from mqauth.wire import jwk
from mqauth.wire.jwk import MAX_CUTOFFS
from mqauth.wire.keys import Cutoff
from mqauth.wire.message import Message
from tests.authority_world import DOMAIN, ORDERS, World

MESSAGE = Message(destination="kafka:orders", body=b'{"order": 1}')


@pytest.fixture
def store(tmp_path: Path) -> Keystore:
    """A keystore of an authority, with one key."""
    found = Keystore(folder=tmp_path / "keys", clock=FakeClock())
    found.create(overlap=3600)
    return found


def judged(world: World, wit: str) -> str:
    """Return the subject of a message that is signed under a WIT now, by the set that is served now."""
    keys = jwk.load_key_set(world.request("GET", "/jwks.json").body)
    key = WITKey(wit, world.key, clock=world.clock)
    signed = Signer(key=key, issuer=DOMAIN, subject=ORDERS, audience="billing", clock=world.clock).sign(MESSAGE)
    verifier = Verifier(keys={DOMAIN: TrustDomain(keys=keys)}, audience="billing")
    return verifier.verify(signed, verifier.open(signed), keys, world.clock.now()).subject


def test_what_a_retired_key_vouched_for_lives_out(tmp_path: Path) -> None:
    """A WIT of the last second before a rotation is accepted to its end; the next is by the next key."""
    world = World(tmp_path)
    world.keystore.create()
    world.clock.advance(600)
    wit = world.ask().body["wit"]
    world.keystore.change(ring.rotate)
    world.clock.advance(10)
    later = world.ask().body["wit"]
    world.clock.advance(3500)
    assert wit.partition(".")[0] != later.partition(".")[0]
    assert [judged(world, each) for each in (wit, later)] == [ORDERS, ORDERS]


def test_an_end_comes_later_by_the_overlap(store: Keystore) -> None:
    """A retired key ends after its grace and the overlap, and goes from the set after ``retain`` more."""
    before = store.ring()
    retired = ring.rotate(ring.add(before, store.create().key, 0), before.keys[0].created + 600)
    now = before.keys[0].created + 600
    (first, _) = retired.published
    assert first.expires == now + RETIREMENT_GRACE + 3600
    assert len(ring.rotate(retired, now + retired.grace + retired.retain - 1).keys) == 2
    assert len(ring.rotate(retired, now + retired.grace + retired.retain).keys) == 1
    assert max_age([retired], now + retired.grace - 5) == 5


def test_the_overlap_is_kept(store: Keystore) -> None:
    """The overlap stands in the folder until another one is named; a folder of before has none."""
    store.create()
    assert store.ring().overlap == 3600
    store.create(overlap=7200)
    assert ring.load(ring.dump(store.ring()), name="x").overlap == 7200
    assert b"overlap" not in ring.dump(KeyRing())
    assert ring.load(ring.dump(KeyRing()), name="x").overlap == 0


@pytest.mark.parametrize("overlap", [-1, MAX_OVERLAP + 1])
def test_an_overlap_out_of_bounds_is_refused(store: Keystore, overlap: int) -> None:
    """An overlap is no time before zero, and at most a day."""
    with pytest.raises(ConfigurationError, match="overlap is 0 to"):
        store.create(overlap=overlap)


def test_a_cut_off_stays_until_nothing_it_refuses_can_be_read(store: Keystore) -> None:
    """The next cut-off removes those of identities that ended, a keystore's ``retain`` later."""
    store.cut_off(ORDERS, reason="stolen")
    kept = RETIREMENT_GRACE + 3600 + 8 * 86_400
    for seconds, wanted in ((kept, {ORDERS, f"{DOMAIN}/a"}), (1, {f"{DOMAIN}/b", f"{DOMAIN}/a"})):
        store.clock.advance(seconds)  # type: ignore[attr-defined]
        store.cut_off(f"{DOMAIN}/{'a' if seconds > 1 else 'b'}", reason="")
        assert store.cutoffs().keys() == wanted


def test_a_moment_moves_forward_only(store: Keystore) -> None:
    """A second cut-off of a subject may be later, and an earlier one changes nothing."""
    now = int(store.clock.now())
    for before in (now, now + 9, now + 5):
        store.cut_off(ORDERS, reason=str(before), before=before)
    assert store.cutoffs() == {ORDERS: Cutoff(before=now + 9, reason=str(now + 9))}


@pytest.mark.parametrize("later", [0, 1])
def test_of_two_folders_the_later_moment_counts(tmp_path: Path, later: int) -> None:
    """A subject that two keystores cut off is served with the later moment, in whatever order they stand."""
    folders = [Keystore(folder=tmp_path / name, clock=FakeClock()) for name in "ab"]
    for number, each in enumerate(folders):
        each.create()
        each.cut_off(ORDERS, reason="", before=2_000_000_000 + (number == later))
    body = KeyServer([each.folder for each in folders], clock=FakeClock()).current.body
    assert jwk.load_key_set(body).cutoffs[ORDERS].before == 2_000_000_001


def test_there_is_room_for_so_many(store: Keystore) -> None:
    """One more than the profile allows is refused, and what was there stays."""
    listed = [{"sub": f"{DOMAIN}/{number}", "before": 2**40, "reason": ""} for number in range(MAX_CUTOFFS)]
    (store.folder / cutoffs.FILE).write_text(json.dumps({"keys": [], "mqauth_cutoff": listed}))
    with pytest.raises(ConfigurationError, match="revoke the authority's key"):
        store.cut_off(ORDERS, reason="stolen")
    assert len(store.cutoffs()) == MAX_CUTOFFS
    publish([store.ring()], store.cutoffs())


@pytest.mark.parametrize("text", ["", "{}", '{"keys":[],"mqauth_cutoff":[{"sub":"x"}]}', "[]"])
def test_cut_offs_that_cannot_be_read_are_loud(tmp_path: Path, text: str) -> None:
    """With a broken file no set is published, so that consumers keep the cut-offs that they know; nor is a WIT."""
    world = World(tmp_path)
    world.keystore.cut_off(ORDERS, reason="stolen")
    assert world.request("GET", "/jwks.json").status == 200
    (world.keystore.folder / cutoffs.FILE).write_text(text)
    assert world.request("GET", "/jwks.json").status == 500
    assert world.ask().status == 503
    with pytest.raises(ConfigurationError):
        public_keys(world.keystore.folder)


@pytest.mark.parametrize(("subject", "reason"), [("orders-api", "x"), (ORDERS, "a\nb"), (ORDERS, "x" * 257)])
def test_a_cut_off_that_consumers_could_not_read_is_refused(store: Keystore, subject: str, reason: str) -> None:
    """A subject that is no identifier, and a reason of two lines or too many characters, are not written."""
    with pytest.raises(ConfigurationError):
        store.cut_off(subject, reason=reason)
    assert store.cutoffs() == {}
