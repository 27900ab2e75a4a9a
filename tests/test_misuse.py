"""Misuse detection: each detector fires on its attack and stays silent on what is honest."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mqauth.audit import misuse
from mqauth.audit.misuse import AT_ONCE, NUMBERS, Alert, Detector, Thresholds
from mqauth.audit.record import Window, iso_time
from mqauth.errors import ConfigurationError

START = 1_900_000_000


def record(
    at: float,
    reason: str | None = None,
    *,
    destination: str = "kafka:orders",
    **said: str,
) -> Mapping[str, Any]:
    """Return the members of an audit record at so many seconds."""
    token = {
        "iss": "https://auth.example",
        "sub": "orders-api",
        "kid": "k1",
        "jti": "j",
    } | said
    return {
        "time": iso_time(START + at),
        "verdict": "accepted" if reason is None else "rejected",
        "reason": reason,
        "broker": {"destination": destination},
        "token": {"verified": token},
    }


def alerts(*records: Mapping[str, Any], **thresholds: Any) -> list[Alert]:
    """Return the alerts that records give."""
    detector = Detector(Thresholds(**thresholds))
    return [alert for members in records for alert in detector.observe(members)]


def kinds(records: list[Mapping[str, Any]], **thresholds: Any) -> list[str]:
    """Return the kinds of alerts a list of records gives."""
    return [alert.kind for alert in alerts(*records, **thresholds)]


def test_burst_fires_once() -> None:
    """A burst of one reason for one kid is one alert, not one for each message."""
    found = kinds([record(0, "signature_invalid") for _ in range(50)], burst=10)
    assert found.count("burst") == 4  # issuer, kid, subject, destination: once each


@pytest.mark.parametrize(
    ("records", "thresholds", "told"),
    [
        pytest.param([record(120 * n, "signature_invalid") for n in range(50)], {"burst": 10}, [],
                     id="rejections spread over hours are no burst"),
        pytest.param([record(n / 100, "replayed", jti=f"j{n}") for n in range(50)], {}, [],
                     id="one copy each of many tokens, as after an offset reset, is no repeated replay"),
        pytest.param([record(n / 10, "expired") for n in range(20)], {}, ["expired_burst"],
                     id="twenty expired tokens of one producer are a burst of that producer's, not a clock"),
        pytest.param([record(n / 10, "expired", sub=f"s{n % 4}") for n in range(20)], {}, ["clock_skew"],
                     id="twenty expired tokens of several producers are told as a clock that is wrong"),
        pytest.param([record(n, "expired") for n in range(10)], {}, [],
                     id="a few expired messages of a backlog are nobody's misuse"),
        pytest.param([record(n / 10, "key_unknown", kid=f"random-{n}") for n in range(30)], {}, ["unknown_keys"],
                     id="many different unknown kids of one issuer are one alert"),
        pytest.param([*(record(n, "key_unknown", kid="new") for n in range(5)), record(10, kid="k1"),
                      record(20, kid="new")], {}, [],
                     id="an honest rotation, seen late, is none, and a new key of the same producer neither"),
        pytest.param([record(0, "key_revoked")], {}, ["resurrected_key"], id="first use of a revoked key"),
        pytest.param([record(0, "key_expired")], {}, ["resurrected_key"], id="first use of a retired key"),
        pytest.param([record(n, "producer_forbidden") for n in range(3)], {}, ["new_destination"],
                     id="a destination that a producer may not publish to is told once"),
        pytest.param([record(0), record(50), record(101, destination="kafka:refunds"), record(102)],
                     {"learn": 100}, ["new_destination"],
                     id="a producer where it was never seen, once the time to learn is over"),
        pytest.param([record(0), record(50, destination="kafka:refunds")], {"learn": 100}, [],
                     id="while habits are learned, a new destination is one of them"),
        pytest.param([record(0), record(1, sub="stock-api")], {}, ["shared_key"],
                     id="a key that signs for a second producer"),
        pytest.param([record(n, sub=f"s{n}") for n in range(5)],
                     {"authorities": frozenset(["https://auth.example"])}, [],
                     id="an authority's key may sign for many producers"),
        pytest.param([record(0, "subject_mismatch")], {}, ["shared_key"],
                     id="a key that signs as a subject it may not speak for is told at once"),
        pytest.param([{"verdict": "alert", "time": "2030-01-01T00:00:00Z"}], {}, [],
                     id="an alert in a log that is read again gives none"),
        pytest.param([{"verdict": "rejected", "reason": "token_missing", "time": "soon"}], {}, [],
                     id="a record without a readable time is counted at the epoch"),
        pytest.param([record(3600, "token_type"), *(record(60 * n, "token_type") for n in range(1, 30))],
                     {"burst": 5}, [],
                     id="after a clock was set back an hour, rejections a minute apart do not add up"),
    ],
)  # fmt: skip
def test_what_is_told(
    records: list[Mapping[str, Any]], thresholds: dict[str, Any], told: list[str]
) -> None:
    """Each detector fires on its attack, and is silent on what is honest."""
    assert kinds(records, **thresholds) == told


def test_burst_again_after_quiet() -> None:
    """A burst that lasts is told again after the quiet time."""
    records = [
        record(n, "token_type", destination=f"kafka:d{n}", kid=f"k{n}", sub=f"s{n}")
        for n in range(1200)
    ]
    assert kinds(records, burst=10, quiet=600).count("burst") == 2


def test_repeated_replay() -> None:
    """The third copy of one token within a minute is an alert about that token."""
    records = [record(n, "replayed", jti="same") for n in range(3)]
    (alert,) = alerts(*records)
    assert (alert.kind, alert.about["jti"], alert.count) == ("repeated_replay", "same", 3)


def test_window_is_bounded_and_keeps_heavy_hitters() -> None:
    """A flood of different keys neither grows a window nor hides the one that repeats."""
    window = Window(60, 16)
    counts = [
        window.add((("heavy",) if n % 2 else (f"random-{n}",)), 0.0)
        for n in range(10_000)
    ]
    assert len(window.counts) <= 16
    assert max(counts) > 1000


def test_detector_is_bounded() -> None:
    """A hundred thousand hostile records leave no more than the capacity in any table."""
    detector = Detector(Thresholds(capacity=64, burst=5, learn=0))
    for n in range(20_000):
        reason = (None, "key_unknown", "replayed", "key_revoked")[n % 4]
        detector.observe(
            record(
                n / 100,
                reason,
                kid=f"k{n}",
                jti=f"j{n}",
                sub=f"s{n}",
                destination=f"kafka:d{n}",
            )
        )
    tables = (detector._pairs, detector._subjects, detector._silent,
              *(window.counts for window in detector._windows.values()))  # fmt: skip
    assert max(len(table) for table in tables) <= 64


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [-1, float("nan"), 0])
def test_thresholds_are_positive(name: str, value: float) -> None:
    """A threshold of nothing is refused by name; only the time to learn may be nothing."""
    if (name, value) == ("learn", 0):
        assert Thresholds(learn=0).learn == 0
        return
    with pytest.raises(ConfigurationError, match=name):
        Thresholds(**{name: value})


@pytest.mark.parametrize("reason", ["expired", "queue_age_exceeded", "handler_failed"])
def test_backlog_is_no_burst(reason: str) -> None:
    """Thousands of messages that a backlog or a broken handler condemns are no burst of forgeries."""
    assert "burst" not in kinds(
        [record(n / 100, reason, sub=f"s{n % 4}") for n in range(2000)], burst=10
    )


def test_clock_set_back_does_not_silence() -> None:
    """After a clock was set back a day, a burst is told again."""
    burst = [record(86_400 + n / 10, "token_type") for n in range(5)]
    later = [record(n / 10, "token_type") for n in range(5)]
    assert kinds([*burst, *later], burst=5).count("burst") == 8


@pytest.mark.parametrize(("member", "verified"), [("claimed", False), ("verified", True)])
def test_alert_says_whether_it_was_signed(member: str, verified: bool) -> None:
    """An alert about values that a forger wrote is not taken for one about their owner."""
    said = {"iss": "i", "kid": "k", "sub": "s", "jti": "j"}
    members = {**record(0, "key_revoked"), "token": {member: said}}
    (alert,) = alerts(members)
    assert (alert.verified, alert.as_dict()["verified"]) == (verified, verified)


@pytest.mark.parametrize(
    "change",
    [
        {"token": []}, {"token": {"verified": "text"}}, {"token": {"claimed": {"kid": ["k"], "iss": 5}}},
        {"broker": "text"}, {"broker": {"destination": {}}}, {"reason": ["expired"]}, {"reason": {}},
        {"verdict": ["rejected"]}, {"time": None}, {"time": 5}, {"time": "9999-12-31T23:59:59+00:00"},
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "reason",
    [None, "expired", "replayed", "key_unknown", "key_revoked", "signature_invalid"],
)
def test_edited_log_breaks_no_detector(
    reason: str | None, change: dict[str, Any]
) -> None:
    """Whatever an editor put into a record, detectors read on."""
    found = kinds([{**record(0, reason), **change}, record(1, "key_revoked", kid="k9")])
    assert "resurrected_key" in found


def test_long_values_are_cut() -> None:
    """A record of megabytes in an edited log costs no megabytes to remember."""
    (alert,) = alerts(record(0, "key_revoked", kid="k" * 1_000_000))
    assert len(alert.about["kid"]) == 256


DOCS = (Path(__file__).parent.parent / "docs" / "audit.md").read_text("utf-8")


def test_documented_thresholds_are_the_defaults() -> None:
    """The settings have every threshold with its default, and no other number."""
    page = (Path(__file__).parent.parent / "docs" / "configuration.md").read_text("utf-8")
    settings = page.partition("### `[misuse]`\n")[2].partition("\n### ")[0]
    told = dict(re.findall(r"^\* `(\w+)` \(.*default `(\d+)`\)", settings, re.MULTILINE))
    assert told == {name: f"{getattr(Thresholds(), name):.0f}" for name in NUMBERS}


def test_documented_alerts_are_the_detectors() -> None:
    """The page's table has every kind of alert, and no other."""
    kinds = set(
        re.findall(r'fact\.alert\(\s*"(\w+)"', Path(misuse.__file__).read_text("utf-8"))
    )
    kinds |= {kind for kind, *_ in AT_ONCE.values()} | {"rung_lowered", "unsigned_again"}
    kinds |= set(
        re.findall(r'yield\s+\(?\s*"(\w+)",\s', Path(misuse.__file__).read_text("utf-8"))
    )
    table = DOCS.partition("| alert |")[2].partition("The detectors learn habits")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == kinds
