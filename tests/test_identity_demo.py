"""``mqauth demo --identity``, and a producer against the real authority's application."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mqauth.audit.chain import verify_chain
from mqauth.audit.file import AuditFile
from mqauth.cli import demo, main
from mqauth.errors import Unavailable
from mqauth.keystore.identity.request import Refused
from mqauth.testing import FakeClock
from mqauth.testing.authority import MemoryAuthority
from mqauth.testing.identity import OTHER_WORKLOAD, WORKLOAD

GRANTS = {"orders-api": WORKLOAD, "stock-api": OTHER_WORKLOAD}


@pytest.fixture
def authority(tmp_path: Path) -> Any:
    """An authority in memory, on a fake clock."""
    with AuditFile(tmp_path / "audit.jsonl", fsync=False) as audit:
        yield MemoryAuthority(tmp_path / "keys", audit, GRANTS, clock=FakeClock(), rate=3)


def report(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    """Return the exit code and the report of the demo."""
    capsys.readouterr()
    code = main(("demo", "--identity", "--json", *arguments))
    return code, json.loads(capsys.readouterr().out)


def test_the_demo_ends_as_it_must(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Honest messages are handled, each attack meets its reason, and the subject is cut off at the end."""
    monkeypatch.setattr(demo, "AuditFile", lambda path, **more: AuditFile(path, **more | {"fsync": False}))
    audit = tmp_path / "audit.jsonl"
    code, found = report(capsys, "--messages", "1", "--audit-file", str(audit))
    ends = {case["case"]: (case["verdict"], case["reason"]) for case in found["cases"]}
    assert code == 0
    assert (ends["honest-0"], ends["returns-after"]) == (("accepted", None), ("accepted", None))
    assert (ends["stolen"], ends["cut-off"]) == (("rejected", "key_revoked"), ("not sent", "keys_unavailable"))
    assert (ends["ask-again"], len(ends)) == (("refused", "access_denied"), 21)
    assert verify_chain(audit).intact
    verdicts = [json.loads(line)["verdict"] for line in audit.read_text().splitlines()]
    assert (verdicts.count("identity_issued"), verdicts.count("identity_refused")) == (3, 6)


def test_the_demo_fails_where_nobody_is_cut_off(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the cut-off the thief is accepted, and the demo says so and exits with 1."""
    monkeypatch.setattr(MemoryAuthority, "cut_off", lambda *_: None)
    code, found = report(capsys, "--messages", "1")
    ends = {case["case"]: case["verdict"] for case in found["cases"]}
    assert (code, ends["stolen"], ends["ask-again"], ends["cut-off"]) == (1, "accepted", "issued", "sent")


def test_the_demo_with_identities_is_in_memory(capsys: pytest.CaptureFixture[str]) -> None:
    """With a broker the option is refused."""
    assert main(("demo", "--identity", "--broker", "kafka://localhost:9092")) == 2
    assert "in memory only" in capsys.readouterr().err


def test_a_producer_renews_from_the_real_authority(authority: MemoryAuthority) -> None:
    """The authority's own code takes credential and proof, and each half life gives another key."""
    key = authority.enrolled("orders-api", WORKLOAD)
    first = key.signing_key()
    assert (first.identity.subject, first.kid) == (WORKLOAD, authority.key_set().keys[0].kid)
    authority.clock.advance(1800)  # type: ignore[attr-defined]
    key.start(0)
    assert key.signing_key().identity.jkt != first.identity.jkt
    assert dict(key.health().counters) == {"attempts": 2, "renewed": 2}


def test_a_flood_of_requests_is_slowed_down(authority: MemoryAuthority) -> None:
    """The authority's 429 reaches the producer with the seconds to wait."""
    ask = authority.request(WORKLOAD, authority.credential("orders-api"))
    for _ in range(3):
        ask()
    with pytest.raises(Refused, match="429 slow_down") as caught:
        ask()
    assert 0 < caught.value.retry_after <= 60


def test_a_subject_is_cut_off_at_the_authority(authority: MemoryAuthority) -> None:
    """Once a producer has seen that it is cut off, it signs nothing, and another one goes on."""
    orders, stock = (authority.enrolled(name, subject) for name, subject in GRANTS.items())
    orders.signing_key(), stock.signing_key()
    authority.cut_off("orders-api", "stolen")
    assert orders.signing_key()
    authority.clock.advance(61)  # type: ignore[attr-defined]
    for key in (orders, stock):
        key.start(0)
    with pytest.raises(Unavailable, match=r"authority\.prod\.example: refused, 403 access_denied"):
        orders.signing_key()
    assert stock.signing_key()
