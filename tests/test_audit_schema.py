"""The schema of audit records: everything the pipeline writes follows it, and it is no wider than that."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from mqauth.audit import misuse
from mqauth.audit.file import AuditFile
from mqauth.audit.misuse import Detector, Thresholds
from mqauth.audit.query import Selection, claims_of, count, is_verified, read_records
from mqauth.audit.record import SCHEMA_VERSION, AuditRecord
from mqauth.audit.sinks import FloodGate, MisuseWatch
from mqauth.authority.credential import Refusal
from mqauth.brokers.memory import DeadLetters, MemoryBroker
from mqauth.errors import ConfigurationError, Reason
from mqauth.flow import Attempts, run
from mqauth.judging.pipeline import Pipeline
from mqauth.logs import MAX_TEXT
from mqauth.replay.memory import MemoryReplayStore
from mqauth.testing import Forge, MemoryStage
from mqauth.testing.token_attacks import ATTACKS, honest_message
from mqauth.wire import strict_json as strictjson
from mqauth.wire.keys import ALGORITHMS
from mqauth.wire.message import Message, Origin

SCHEMA = json.loads(
    (Path(__file__).parent.parent / "docs" / "audit-record.schema.json").read_text()
)
VALIDATOR = Draft202012Validator(SCHEMA)
PLACES = ("kafka:orders", "rabbitmq:shop/orders.created")


def faults(record: Any) -> list[str]:
    """Return what is wrong with a record."""
    return [error.message for error in VALIDATOR.iter_errors(record)]


def guarded(forge: Forge, place: str, audit: Any, **settings: Any) -> Pipeline:
    """Return a pipeline over these sinks."""
    return Pipeline(
        verifier=forge.verifier(), policy=forge.policy(place), replay=MemoryReplayStore(), audit=audit,
        record="all", attempts=Attempts(limit=1), **settings,
    )  # fmt: skip


def written(folder: Path, place: str) -> Iterator[dict[str, Any]]:
    """Yield every record of a file after every attack, each three times, with detectors and flood gate on edge."""
    forge, stage = Forge(), MemoryStage(place)
    path = folder / "audit.jsonl"
    fitting = [attack for attack in ATTACKS if attack.fits(place)]
    with AuditFile(path, fsync=False) as file:
        watch = MisuseWatch(
            FloodGate(file, 2),
            Detector(Thresholds(burst=2, replays=1, expired=2, unknown_kids=1, learn=0)),
        )
        for number in range(3):
            stage.inject(forge.signer().sign(honest_message(place, number)))
            for attack in fitting:
                stage.inject(attack.mount(forge, honest_message(place, number)))
        copy = forge.signer().sign(honest_message(place, 9))
        stage.inject(copy)
        stage.inject(copy)
        stage.consume(guarded(forge, place, watch), _fail_sometimes, until=lambda: True)
    yield from map(json.loads, path.read_text().splitlines())


def _fail_sometimes(verified: Any) -> None:
    if b'"order": 1' in verified.body:
        raise ValueError


def test_schema_is_one() -> None:
    """The document is a JSON Schema of draft 2020-12, for the version that is written."""
    Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["properties"]["v"]["const"] == SCHEMA_VERSION
    assert SCHEMA["$defs"]["text"]["maxLength"] == MAX_TEXT


def test_enumerations_are_the_codes() -> None:
    """Reasons, algorithms and kinds of alert are those of the code, no fewer and no more."""
    kinds = set(re.findall(r'fact\.alert\(\s*"(\w+)"', Path(misuse.__file__).read_text()))
    kinds |= {kind for kind, *_ in misuse.AT_ONCE.values()} | {
        "rung_lowered",
        "unsigned_again",
    }
    kinds |= set(
        re.findall(r'yield\s+\(?\s*"(\w+)",\s', Path(misuse.__file__).read_text())
    )
    assert SCHEMA["$defs"]["refusal"]["enum"] == [refusal.value for refusal in Refusal]
    assert SCHEMA["$defs"]["reason"]["enum"] == [reason.value for reason in Reason]
    assert set(SCHEMA["$defs"]["claims"]["properties"]["alg"]["enum"]) == {
        *ALGORITHMS,
        "Ed25519",
    }
    assert set(SCHEMA["properties"]["alert"]["properties"]["kind"]["enum"]) == kinds


@pytest.mark.parametrize("place", PLACES)
def test_every_record_of_the_pipeline(tmp_path: Path, place: str) -> None:
    """Accepted, rejected for every reason of the attack suite, handler failures, floods and alerts follow it."""
    records = list(written(tmp_path, place))
    assert [faults(record) for record in records if faults(record)] == []
    wanted = {attack.reason.value for attack in ATTACKS if attack.fits(place)} | {
        "replayed",
        "handler_failed",
    }
    assert {record["reason"] for record in records} >= wanted
    assert {record["verdict"] for record in records} == {"accepted", "rejected", "alert"}
    assert sum("flood" in record for record in records) > 10
    assert len({record["alert"]["kind"] for record in records if "alert" in record}) >= 6


@given(
    place=st.sampled_from(PLACES),
    headers=st.lists(
        st.tuples(st.text(max_size=300), st.binary(max_size=300)), max_size=4
    ),
    body=st.none() | st.binary(max_size=64),
    kid=st.text(max_size=128),
    text=st.text(max_size=400),
)
def test_hostile_messages(
    place: str, headers: Any, body: bytes | None, kid: str, text: str
) -> None:
    """Whatever a sender wrote, and wherever, its record follows the schema."""
    seen: list[AuditRecord] = []
    origin = (
        Origin(queue=text, exchange=text, routing_key=text)
        if place.startswith("r")
        else Origin(topic=text)
    )
    message = Message(
        destination=place, body=body or b"", headers=tuple(headers), origin=origin
    )
    forge = Forge()
    claims = {"sub": text or "s", "jti": (text + "j" * 16)[:128], "iss": text or "i"}
    sealed = _sealed(forge, message, kid, claims)
    guard = guarded(
        forge, place, type("Sink", (), {"write": staticmethod(seen.append)})()
    )
    _process(guard, sealed)
    assert [faults(record.as_dict()) for record in seen] == [[]]


def _sealed(forge: Forge, message: Message, kid: str, claims: dict[str, Any]) -> Message:
    """Return the message with a token that says all this, where such a token can be made."""
    try:
        return forge.seal(
            replace(message, headers=()), header={"kid": kid}, claims=claims
        )
    except ValueError:  # lone surrogates are no JSON
        return message


def _process(guard: Pipeline, message: Message) -> None:
    broker = MemoryBroker()
    broker.declare("kafka:dead")
    run(
        guard.process(
            guard.receive(message), lambda _: None, DeadLetters(broker, "kafka:dead")
        )
    )


GOOD = {
    "v": 1, "id": "01a2109a-0c51-7e4a-b0ad-c58a97ef972f", "time": "2026-11-25T02:47:40.881Z",
    "verdict": "rejected", "reason": "expired", "detail": "late", "scope": "billing",
    "broker": {"topic": "orders"},
    "token": {"verified": {"kid": "k"}, "thumbprint": None}, "body": {"sha256": None, "size": None},
    "key_set": None, "policy": None, "dead_letter": "0" * 64, "instance": "me",
}  # fmt: skip
ALERT = {"kind": "burst", "about": {"kid": "k"}, "count": 3, "verified": True}
QUIET = {
    "verdict": "alert",
    "reason": None,
    "token": {},
    "broker": {},
    "dead_letter": None,
}
ID = str(GOOD["id"])
LACKING = object()


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2}, {"id": "1"}, {"time": "2026-11-25"}, {"verdict": "deferred"}, {"reason": "nonsense"},
        {"reason": None}, {"detail": "x" * 257}, {"secret": 1}, {"broker": {"offset": -1}},
        {"broker": {"key": "x"}},
        {"token": {"thumbprint": None}}, {"token": {"claimed": {}, "verified": {}, "thumbprint": None}},
        {"token": {"claimed": {"token": "x"}, "thumbprint": None}}, {"token": {"claimed": {"alg": "none"}}},
        {"body": {"sha256": "x", "size": 1}}, {"body": {}}, {"prev": "0" * 64}, {"flood": 7}, {"flood": 1},
        {"alert": ALERT, "completed_by": ID}, {**QUIET}, {**QUIET, "alert": ALERT},
        {**QUIET, "alert": ALERT | {"kind": "x"}, "completed_by": ID}, {"verdict": "redriven"}, {"review": {}},
        {"verdict": "accepted"}, {"dead_letter": "d"},
        {"verdict": "accepted", "reason": None, "token": {"claimed": {}, "thumbprint": None}},
        *({name: LACKING} for name in GOOD),
    ],
)  # fmt: skip
def test_bad_records_fail(change: dict[str, Any]) -> None:
    """What is no record of ours, or lacks a member, does not pass."""
    assert (
        faults(
            {key: value for key, value in (GOOD | change).items() if value is not LACKING}
        )
        != []
    )


# Questions to an audit log: what is asked for is found, nothing else, and a foreign file is refused.


def record(**changes: Any) -> dict[str, Any]:
    """Return a record of a rejection."""
    return {
        "id": "r1", "time": "2026-11-25T10:30:00.000Z", "verdict": "rejected", "reason": "expired",
        "broker": {"destination": "kafka:orders"},
        "token": {"verified": {"iss": "i", "sub": "s", "kid": "k", "jti": "j"}},
    } | changes  # fmt: skip


@pytest.mark.parametrize(
    ("wanted", "holds"),
    [
        ({}, True),
        ({"kid": "k", "subject": "s", "jti": "j"}, True),
        ({"kid": "other"}, False),
        ({"subject": "other"}, False),
        ({"verdict": "rejected"}, True),
        ({"verdict": "accepted"}, False),
        ({"since": 1_795_602_600.0}, True),
        ({"until": 1_795_602_600.0}, False),
        ({"since": 1_795_651_200.0}, False),
        ({"until": 1_795_651_200.0}, True),
    ],
)
def test_selection(wanted: dict[str, Any], holds: bool) -> None:
    """A selection holds exactly for the records it describes; times are from inclusive, to exclusive."""
    assert Selection(**wanted).holds(record()) is holds


@pytest.mark.parametrize(
    ("dimension", "value", "times"),
    [
        ("reason", "expired", 3), ("verdict", "rejected", 3), ("issuer", "i", 2), ("subject", "s", 2),
        ("kid", "k", 2), ("destination", "kafka:orders", 2), ("alert", "burst", 2), ("hour", "2026-11-25T10", 3),
        ("time", "2026-11-25T10", 3), ("day", "2026-11-25", 3), ("minute", "2026-11-25T10:30", 3),
    ],
)  # fmt: skip
def test_count(dimension: str, value: str, times: int) -> None:
    """Records are counted by each dimension; one without token, coordinates or alert is none of theirs."""
    alert, odd = record(alert={"kind": "burst"}), record(token=None, broker=None)
    assert count([alert, alert, odd], dimension) == {value: times}


def test_count_is_bounded() -> None:
    """A log full of random kids is counted in a thousand values and the others together."""
    records = (record(token={"claimed": {"kid": f"k{n}"}}) for n in range(5000))
    found = count(records, "kid")
    assert (len(found), found["(others)"]) == (1001, 4000)


def test_count_by_nonsense() -> None:
    """An unknown dimension is refused."""
    with pytest.raises(ConfigurationError, match="counted by"):
        count([], "colour")


@pytest.mark.parametrize("token", [None, "text", {}, {"claimed": "text"}])
def test_odd_tokens(token: object) -> None:
    """A record whose token is not as it should be says nothing of claims and is not verified."""
    assert claims_of(record(token=token)) == {}
    assert not is_verified(record(token=token))


def test_read(tmp_path: Path) -> None:
    """Records come back in order; a torn last line is passed over."""
    path = tmp_path / "audit.jsonl"
    path.write_bytes(strictjson.dumps(record()) + b"\n" + b'{"torn')
    assert list(read_records([path, path])) == [record(), record()]


@pytest.mark.parametrize("raw", [b"text\n", b"[]\n"])
def test_read_garbage(tmp_path: Path, raw: bytes) -> None:
    """A line that is no record is named."""
    path = tmp_path / "audit.jsonl"
    path.write_bytes(raw)
    with pytest.raises(ConfigurationError, match="line 1 is no audit record"):
        list(read_records([path]))
