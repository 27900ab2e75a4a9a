"""The verdict on a token: each step's reason, each limit at its edge, and the order of the steps."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mqauth import (
    ConfigurationError,
    Issuer,
    KeySet,
    Message,
    Reason,
    Rejection,
    TrustDomain,
    Verified,
    Verifier,
)
from mqauth.judging.token import Times
from mqauth.testing import ATTACKS, BATCH_ATTACKS, FakeClock, Forge
from tests.kit.tokens import tokens_in

Maker = Callable[..., Message]


def judged(
    verifier: Verifier, message: Message, received: float, keys: KeySet | None = None
) -> Verified:
    """Open and verify a message."""
    candidate = verifier.open(message)
    return verifier.verify(
        message,
        candidate,
        keys or verifier.issuer(candidate.token).keys.key_set(),
        received,
    )


@pytest.mark.parametrize(
    ("iat", "life", "reason"),
    [
        (5, 3600, None),
        (6, 3600, Reason.ISSUED_IN_FUTURE),
        (0, 3601, Reason.LIFETIME_EXCESSIVE),
    ],
)
def test_times_where_none_are_set(
    iat: int, life: int, reason: Reason | None, forge: Forge, kafka: Maker
) -> None:
    """Without settings clocks may differ by 5 s, and a token lives for an hour at most."""
    now = int(forge.clock.now()) + iat
    message = forge.seal(kafka(), claims={"iat": now, "exp": now + life})
    with pytest.raises(Rejection, match=reason) if reason else nullcontext():
        assert judged(forge.verifier(), message, forge.clock.now())


@pytest.mark.parametrize(
    ("settings", "began", "kept"),
    [
        ({}, "received", 'at = "append"'),
        ({"at": "append", "max_queue_age": 60}, "appended", "a longer lifetime"),
    ],
    ids=["consume", "append"],
)
def test_what_would_have_kept_it(
    settings: dict[str, Any], began: str, kept: str, forge: Forge, kafka: Maker
) -> None:
    """An expired message's detail says how long it had waited, and which setting would have kept it."""
    now = int(forge.clock.now())
    message = forge.seal(kafka(), claims={"iat": now, "exp": now + 60})
    origin = replace(
        message.origin, timestamp_ms=(now + 70) * 1000, timestamp_type="append"
    )
    said = f"{began} 70 s after it was signed, with a token of 60 s; {kept} would have kept it"
    with pytest.raises(Rejection, match=said):
        judged(forge.verifier(**settings), replace(message, origin=origin), now + 70.0)


@pytest.mark.parametrize(
    "settings",
    [
        {"vouches": True, "subjects": {"*": frozenset(["a"])}},
        {"subjects": {"*": "orders-api"}},
    ],
    ids=repr,
)
def test_an_issuer_that_contradicts_itself_is_refused(settings: dict[str, Any]) -> None:
    """Vouching excludes pinning, and a lone text, in which substrings would be found, is no set."""
    with pytest.raises(ConfigurationError):
        Issuer(keys=KeySet([]), **settings)


@pytest.mark.parametrize("keys", ["jwks.json", Path("jwks.json"), b"{}", None])
def test_what_is_no_source_of_keys_is_refused(keys: Any) -> None:
    """A path in place of a source is a configuration error that says what is wanted, and not one at a message."""
    with pytest.raises(ConfigurationError, match="keys come from a source"):
        Verifier(keys={"https://auth.example": keys}, audience="billing")
    with pytest.raises(ConfigurationError, match="keys come from a source"):
        TrustDomain(keys=keys)


@pytest.mark.parametrize(
    "settings",
    [
        {"keys": {}}, {"keys": []}, {"keys": {"": KeySet([])}}, {"audience": ""}, {"audience": []},
        {"audience": "*"},
        {"audience": ["a", "b*"]}, {"audience": [1]}, {"max_lifetime": 0}, {"max_lifetime": 1.5}, {"leeway": -1},
        {"leeway": 61}, {"leeway": True}, {"at": "append"}, {"max_queue_age": 5}, {"at": "produce"},
        {"at": "append", "max_queue_age": 0}, {"at": "append", "max_queue_age": 1.0},
        {"append_evidence": "header"},
        {"unsigned_headers": "show"}, {"user_id": "issuer"}, {"user_id": ["a"]}, {"require_headers": "tenant"},
    ],
    ids=repr,
)  # fmt: skip
def test_contradicting_settings_are_refused(
    settings: dict[str, Any], forge: Forge
) -> None:
    """No issuer, no audience, a wildcard, or times out of bounds: a configuration error."""
    with pytest.raises(ConfigurationError):
        forge.verifier(**settings)


def test_the_limits_of_settings_pass() -> None:
    """No leeway, 60 s of it, and a lifetime and queue age of one second are allowed."""
    assert Times(leeway=0, max_lifetime=1).leeway == 0
    assert Times(leeway=60, at="append", max_queue_age=1).max_queue_age == 1


def test_a_rejection_holds_nothing_of_the_message(
    forge: Forge, kafka: Maker, clock: FakeClock
) -> None:
    """Neither body, header values, claims nor token stand in any rejection's text or representation."""
    message = kafka(body=b"the-secret", headers=(("tenant", b"the-secret"),))
    for attack in (*ATTACKS, *BATCH_ATTACKS):
        hostile = attack.mount(forge, message)
        try:
            judged(forge.verifier(), hostile, clock.now())
        except Rejection as rejection:
            text = repr(rejection) + str(rejection) + repr(rejection.args)
            assert "secret" not in text
            assert tokens_in(text, hostile) == []


def test_no_value_of_a_bad_claim_is_repeated(forge: Forge, kafka: Maker) -> None:
    """The detail names the claim and never its value."""
    with pytest.raises(Rejection) as caught:
        judged(
            forge.verifier(),
            forge.seal(kafka(), claims={"sub": "secret" * 100}),
            forge.clock.now(),
        )
    assert caught.value.reason is Reason.CLAIMS_MALFORMED
    assert "secret" not in str(caught.value)
