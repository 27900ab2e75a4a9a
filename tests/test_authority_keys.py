"""The keystore of an authority: retired keys end later, and subjects are cut off, wherever it is published."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mqauth import ConfigurationError, Message, Signer, TrustDomain, Verifier, WITKey
from mqauth.keystore import Keystore, public_keys
from mqauth.keystore.disk import ring
from mqauth.keystore.disk.folder import CUTOFFS
from mqauth.keystore.remote.keyserver import publish
from mqauth.testing.clock import FakeClock
from mqauth.wire import jwk
from mqauth.wire.jwk import MAX_CUTOFFS
from mqauth.wire.keys import Cutoff
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
    signed = Signer(
        key=key, issuer=DOMAIN, subject=ORDERS, audience="billing", clock=world.clock
    ).sign(MESSAGE)
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


def test_a_moment_moves_forward_only(store: Keystore) -> None:
    """A second cut-off of a subject may be later, and an earlier one changes nothing."""
    now = int(store.clock.now())
    for before in (now, now + 9, now + 5):
        store.cut_off(ORDERS, reason=str(before), before=before)
    assert store.cutoffs() == {ORDERS: Cutoff(before=now + 9, reason=str(now + 9))}


def test_there_is_room_for_so_many(store: Keystore) -> None:
    """One more than the profile allows is refused, and what was there stays."""
    listed = [
        {"sub": f"{DOMAIN}/{number}", "before": 2**40, "reason": ""}
        for number in range(MAX_CUTOFFS)
    ]
    (store.folder / CUTOFFS).write_text(json.dumps({"keys": [], "mqauth_cutoff": listed}))
    with pytest.raises(ConfigurationError, match="revoke the authority's key"):
        store.cut_off(ORDERS, reason="stolen")
    assert len(store.cutoffs()) == MAX_CUTOFFS
    publish([store.ring()], store.cutoffs())


@pytest.mark.parametrize(
    "text", ["", "{}", '{"keys":[],"mqauth_cutoff":[{"sub":"x"}]}', "[]"]
)
def test_cut_offs_that_cannot_be_read_are_loud(tmp_path: Path, text: str) -> None:
    """With a broken file no set is published, so that consumers keep the cut-offs that they know; nor is a WIT."""
    world = World(tmp_path)
    world.keystore.cut_off(ORDERS, reason="stolen")
    assert world.request("GET", "/jwks.json").status == 200
    (world.keystore.folder / CUTOFFS).write_text(text)
    assert world.request("GET", "/jwks.json").status == 500
    assert world.ask().status == 503
    with pytest.raises(ConfigurationError):
        public_keys(world.keystore.folder)


@pytest.mark.parametrize(
    ("subject", "reason"), [("orders-api", "x"), (ORDERS, "a\nb"), (ORDERS, "x" * 257)]
)
def test_a_cut_off_that_consumers_could_not_read_is_refused(
    store: Keystore, subject: str, reason: str
) -> None:
    """A subject that is no identifier, and a reason of two lines or too many characters, are not written."""
    with pytest.raises(ConfigurationError):
        store.cut_off(subject, reason=reason)
    assert store.cutoffs() == {}
