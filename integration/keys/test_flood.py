"""Random kids on a real Kafka, 10,000 messages nightly; ``python -m integration.keys.flood`` sends 100,000."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration.keys.flood import HONEST_EVERY, Bounds, flood
from integration.scale import nightly
from integration.services import Kafka
from mqauth.clock import Backoff
from mqauth.keystore.remote import rules as jwks_rules

MESSAGES = nightly(10_000, otherwise=600)
BOUNDS = Bounds(publish_delay=0.5, max_hold=2, backoff=Backoff(first=0.2, longest=1))
MEMORY = 24.0  # MiB; of 100,000 messages it is none


@pytest.mark.slow
@pytest.mark.parametrize("up", [True, False], ids=["up", "down"])
def test_flood_of_random_kids(
    kafka: Kafka, up: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every honest message is handled and every forged one ``key_unknown``, at a bounded price.

    Requests to the issuer, stalls of the partition and growth of memory stay within the cache's bounds, which
    are shortened: a cooldown of 1 s, a hold of 2 s.
    """
    monkeypatch.setattr(jwks_rules, "COOLDOWN", 1.0)
    figures = flood(kafka.url, tmp_path, up=up, messages=MESSAGES, bounds=BOUNDS)
    with capsys.disabled():
        print(f"\n{figures}")
    assert figures.honest == MESSAGES // HONEST_EVERY
    assert figures.reasons == {"key_unknown": MESSAGES - figures.honest}
    assert figures.attempts <= figures.allowed
    assert figures.stall <= BOUNDS.stall
    assert figures.growth < MEMORY
