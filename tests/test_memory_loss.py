"""A replay store that lost its memory: nothing is claimed until that is on record, whoever asks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from mqauth.audit.record import AuditRecord
from mqauth.errors import Cause, Unavailable, Verdict
from mqauth.flow import run
from mqauth.judging.pipeline import Pipeline
from mqauth.replay.memory import MemoryReplayStore
from mqauth.replay.rules import ClaimRequest, ClaimStatus, MemoryLost
from mqauth.testing import FakeClock, Forge
from mqauth.testing.clock import START
from mqauth.testing.token_attacks import honest_message

PLACE = "rabbitmq:shop/orders"
SCHEMA = Path(__file__).parent.parent / "docs" / "audit-record.schema.json"


class Forgetful(MemoryReplayStore):
    """A store that is told when it has lost its memory."""

    lost: MemoryLost | None = None
    claims = 0

    def forget(self, **changes: Any) -> None:
        """Lose all."""
        facts = {"scope": None, "since": START - 60, "until": START} | changes
        self.lost = MemoryLost(where="redis host:6379/0", why="it is empty", **facts)

    def claim(self, request: ClaimRequest, /) -> ClaimStatus:
        """Claim, unless a loss is not on record."""
        if self.lost is not None:
            raise Unavailable(Cause.REPLAY_STORE_UNAVAILABLE, "forgot")
        self.claims += 1
        return super().claim(request)

    def recorded(self, lost: MemoryLost, /) -> None:
        """Go on."""
        assert lost is self.lost
        self.lost = None


class Audit:
    """Keeps records, unless it is out of reach."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.away = False

    def write(self, record: AuditRecord, /) -> None:
        """Keep one."""
        if self.away:
            raise Unavailable(Cause.AUDIT_UNAVAILABLE, "away")
        self.records.append(record.as_dict())


@pytest.fixture
def store(clock: FakeClock) -> Forgetful:
    """A store."""
    return Forgetful(clock=clock)


@pytest.fixture
def audit() -> Audit:
    """An audit."""
    return Audit()


@pytest.fixture
def guard(forge: Forge, clock: FakeClock, store: Forgetful, audit: Audit) -> Pipeline:
    """A pipeline over both."""
    return Pipeline(
        verifier=forge.verifier(),
        policy=forge.policy(PLACE),
        replay=store,
        audit=audit,
        clock=clock,
    )


def delivery(guard: Pipeline, forge: Forge) -> Any:
    """Return an honest delivery."""
    return guard.receive(forge.signer().sign(honest_message(PLACE, 1)))


@pytest.mark.parametrize("judges", [False, True], ids=["process", "judge"])
@pytest.mark.parametrize("since", [START - 60, None], ids=["since a time", "all"])
def test_recorded_before_it_claims_again(
    guard: Any, forge: Forge, judges: bool, since: float | None
) -> None:
    """A message that comes after a loss is undecided once, and handled after the record with the span of time."""
    handled: list[Any] = []
    guard.replay.forget(since=since, scope="billing")
    one = delivery(guard, forge)
    outcomes = [
        run(guard.judge(one) if judges else guard.process(one, handled.append, None))
        for _ in range(2)
    ]
    assert [outcome.verdict for outcome in outcomes] == [
        Verdict.DEFERRED,
        Verdict.ACCEPTED,
    ]
    assert outcomes[0].cause is Cause.REPLAY_STORE_UNAVAILABLE
    assert len(handled) == (not judges)
    (record,) = guard.audit.records
    assert (record["verdict"], record["scope"]) == ("replay_memory_lost", "billing")
    assert record["replay_memory_lost"] == {
        "store": "redis host:6379/0",
        "why": "it is empty",
        "since": None if since is None else "2030-03-17T17:45:40.000Z",
        "until": "2030-03-17T17:46:40.000Z",
    }
    Draft202012Validator(json.loads(SCHEMA.read_text("utf-8"))).validate(record)


def test_nothing_is_claimed_without_a_record(
    guard: Pipeline,
    forge: Forge,
    store: Forgetful,
    audit: Audit,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """While the audit is out of reach nothing is claimed, and one line says that the loss is not on record."""
    store.forget()
    audit.away = True
    one, handled = delivery(guard, forge), []  # type: ignore[var-annotated]
    for _ in range(3):
        outcome = run(guard.process(one, handled.append, None))
        assert outcome.cause is Cause.REPLAY_STORE_UNAVAILABLE
    assert store.claims == 0
    events = [getattr(record, "event", None) for record in caplog.records]
    assert events.count("store.unrecorded") == 1
    audit.away = False
    for _ in range(2):
        outcome = run(guard.process(one, handled.append, None))
    assert outcome.verdict is Verdict.ACCEPTED
    assert len(handled) == len(audit.records) == 1


def test_a_quiet_consumer_records_it(
    guard: Pipeline, store: Forgetful, audit: Audit
) -> None:
    """Without any message it is recorded at the next tick, once."""
    store.forget()
    for _ in range(2):
        run(guard.tick())
    assert [record["verdict"] for record in audit.records] == ["replay_memory_lost"]
    assert audit.records[0]["scope"] == "default"
    assert store.lost is None
