"""A producer that follows its keystore, an issuer in another process, and consumers with the real cache.

The cache's bounds are shortened, or each test would take an hour: ``COOLDOWN`` from 30 s to 0.5 s, and what its
own settings allow.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from integration.keys.issuer import IssuerProcess
from integration.keys.lanes import Lane
from mqauth import JWKS, ActiveKey, Allow, AuditFile, MemoryReplayStore, Pipeline, Signer, Verified, Verifier
from mqauth.keystore import Keystore
from mqauth.keystore.disk import ring
from mqauth.keystore.remote import rules as jwks_rules
from mqauth.testing.forge import AUDIENCE, ISSUER, SUBJECT
from mqauth.wire.keys import Key, SigningKey, SigningKeySource

COOLDOWN = 0.5
FRESH = 2.0
"""Seconds a set is fresh; by ``Cache-Control`` three times that at most."""
SEEN_WITHIN = 3 * FRESH
"""Seconds within which consumers see a revocation, for an attempt that succeeds at once."""
ATTEMPT = 5.0
PUBLISH_DELAY = 10
PATIENCE = 120.0


class Scene:
    """One issuer with one producer, and consumers of one lane.

    Args:
        lane: where messages go.
        folder: for keys, snapshots and audit.
        issuer: serves the keystore.
    """

    def __init__(self, lane: Lane, folder: Path, issuer: IssuerProcess, store: Keystore) -> None:
        self.lane = lane
        self.issuer = issuer
        self.store = store
        self.active = ActiveKey(store.folder, look_every=0.5)
        self.handled: dict[bytes, str] = {}
        self.kids: dict[str, int] = {}
        self._snapshot = folder / "snapshot.json"
        self._audit = AuditFile(folder / "audit.jsonl", fsync=False)
        self._replay = MemoryReplayStore()

    def signer(self, key: Key | SigningKey | SigningKeySource | None = None, **settings: Any) -> Signer:
        """Return a signer; the honest one unless told."""
        wanted: dict[str, Any] = {"issuer": ISSUER, "subject": SUBJECT, "audience": AUDIENCE, "lifetime": 3600}
        return Signer(key=key or self.active, **(wanted | settings))

    @contextmanager
    def consumer(self, *, snapshot: bool) -> Iterator[JWKS]:
        """Run a new consumer with a new cache, as after a restart of its process."""
        keys = JWKS(
            self.issuer.url, fresh=FRESH, publish_delay=1, max_stale=300, max_hold=5, unsafe_http_loopback=True,
            snapshot=self._snapshot if snapshot else None,
        )  # fmt: skip
        guard = Pipeline(
            verifier=Verifier(keys={ISSUER: keys}, audience=AUDIENCE),
            policy=Allow({SUBJECT: [self.lane.destination]}), replay=self._replay, audit=self._audit,
        )  # fmt: skip
        with keys, self.lane.consuming(guard, self._handle):
            yield keys

    def rotate(self) -> None:
        """Do as ``mqauth keys rotate``."""
        self.store.change(ring.rotate)

    def revoke(self, kid: str) -> None:
        """Do as ``mqauth keys revoke``."""
        self.store.change(lambda found, now: ring.revoke(found, kid, now, reason="stolen"))

    def close(self) -> None:
        """Close the audit file."""
        self._audit.close()

    def _handle(self, verified: Verified) -> None:
        body = verified.body or b""
        self.handled[body] = verified.kid
        self.kids[verified.kid] = self.kids.get(verified.kid, 0) + 1


@contextmanager
def staged(lane: Lane, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    """Set a scene: a keystore with one active key, served."""
    monkeypatch.setattr(jwks_rules, "COOLDOWN", COOLDOWN)
    store = Keystore(folder=folder / "keys")
    store.create(publish_delay=PUBLISH_DELAY, subjects=[SUBJECT])
    with IssuerProcess([store.folder]) as issuer:
        scene = Scene(lane, folder, issuer, store)
        try:
            yield scene
        finally:
            scene.close()


def until(condition: Callable[[], bool], patience: float = PATIENCE) -> None:
    """Wait for a condition.

    Raises:
        TimeoutError: it did not come to hold.
    """
    waiting = threading.Event()
    for _ in range(int(patience / 0.02)):
        if condition():
            return
        waiting.wait(0.02)
    raise TimeoutError("the condition did not come to hold")
