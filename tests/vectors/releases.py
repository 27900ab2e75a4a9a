"""The vectors of releases: what a reviewer may let through, and everything that must not get through with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from mqauth.errors import Reason
from mqauth.letters.release import RELEASE_HEADER, RELEASE_TYPE, WAIVABLE, covered_names
from mqauth.testing.forge import ISSUER, REMOVED, bent, with_token
from mqauth.wire import base64url, envelope, jwk, strict_json
from mqauth.wire.keys import Key, KeySet, Revocation
from mqauth.wire.message import Message, Origin
from tests.vectors.batches import in_batch
from tests.vectors.settings import AGE, APPENDED, Vector, judged, stamped
from tests.vectors.world import (
    BATCH_FORGE,
    FORGE,
    KEYS,
    NOW,
    added,
    edwards,
    kafka,
    rabbit,
    seed,
    signature,
)

REVIEW: Final = "https://review.example"
REVIEWER: Final = "ada"
SCOPE: Final = "billing"
KEY: Final = edwards("reviewer", subjects=frozenset([REVIEWER]))
ANY: Final = edwards("any reviewer", subjects=None)
LOST: Final = edwards(
    "reviewer lost",
    subjects=frozenset([REVIEWER]),
    revocation=Revocation(revoked_at=NOW - 100),
)
ENDED: Final = edwards(
    "reviewer ended", subjects=frozenset([REVIEWER]), expires=NOW - 100
)
AHEAD: Final = edwards(
    "revoked ahead", subjects=None, revocation=Revocation(revoked_at=NOW + 1)
)
SINCE: Final = edwards(
    "reviewer lost now", subjects=None, revocation=Revocation(revoked_at=NOW)
)
STRANGER: Final = edwards("no reviewer", subjects=frozenset([REVIEWER]))
LETTER: Final = "ab" * 32
DIGITS: Final = "ab" * 32, "cd" * 32
"""Names of two authorities that might be the ids of letters."""
INVALID: Final = "release_invalid"
HOP: Final = {"letter": LETTER, "reason": "expired", "time": NOW - 60}


def consumers() -> dict[str, dict[str, Any]]:
    """Return the settings of consumers that have a release authority."""
    known = jwk.dump_key_set(KeySet([KEY, ANY, LOST, ENDED, AHEAD, SINCE]))
    granted = {
        "scope": SCOPE,
        "authorities": {REVIEW: {"jwks": known, "waive": list(WAIVABLE)}},
    }
    return {
        "reviewed": granted,
        "reviewed at append": granted | {"at": "append", "max_queue_age": AGE},
        "reviewed strictly": {"scope": SCOPE, "authorities": {REVIEW: {"jwks": known, "waive": ["replayed"]}}},
        "reviewed, its authority out of reach": {
            "scope": SCOPE, "authorities": {REVIEW: {"jwks": None, "waive": list(WAIVABLE)}}},
        "reviewed, without leeway": granted | {"leeway": 0},
        "reviewed, with the scope of its broker": granted | {"scope": None},
        "reviewed, whose keys change": granted | {"key_set": "honest"},
        "reviewed by two": granted | {
            "authorities": {name: {"jwks": known, "waive": list(WAIVABLE)} for name in DIGITS}},
    }  # fmt: skip


def released(
    message: Message, *waive: str, key: Key = KEY, typ: Any = RELEASE_TYPE, name: str = RELEASE_HEADER,
    header: dict[str, Any] | None = None, sealed: bytes | None = None, **claims: Any,
) -> Message:  # fmt: skip
    """Return a message with a release in which some claims, or JOSE parameters, are others."""
    token = envelope.token_of(message)
    found = {
        "iss": REVIEW, "sub": REVIEWER, "reason": "clock skew", "letter": LETTER, "tok": base64url.digest(token),
        "waive": list(waive), "scope": SCOPE, "iat": NOW, "exp": NOW + 3600,
        "jti": base64url.encode(seed("release", 16)).decode(),
        "mqa": envelope.bind(message, covered_names(token)).as_dict(),
    }  # fmt: skip
    parameters = strict_json.dumps(
        bent({"alg": key.algorithm, "typ": typ, "kid": key.kid}, header)
    )
    data = (
        base64url.encode(parameters)
        + b"."
        + base64url.encode(strict_json.dumps(bent(found, claims)))
    )
    text = (data + b"." + base64url.encode(sealed or signature(data, key))).decode()
    return with_token(message, text, name=name)


def within(message: Message, origin: Origin) -> Message:
    """Return a message as a broker delivers it."""
    return replace(message, origin=origin)


def timed(iat: int, exp: int, **changes: Any) -> Message:
    """Return a record with these times."""
    return FORGE.seal(kafka(), claims={"iat": NOW + iat, "exp": NOW + exp}, **changes)


def accepted() -> list[Vector]:
    """Return messages that a release lets through."""
    honest, expired, forbidden = (
        FORGE.seal(kafka()),
        timed(-120, -60),
        FORGE.seal(kafka(destination="kafka:other")),
    )
    aged = stamped(timed(-AGE - 60, -AGE), (NOW - AGE - 1) * 1000)
    batched = BATCH_FORGE.seal(kafka(), claims={"iat": NOW - 120, "exp": NOW - 60})
    past = {"count": 9, "hops": [HOP, HOP | {"reason": None}]}
    late = FORGE.seal(kafka(), key=FORGE.retired)
    return [
        *judged("reviewed", [
            ("a release that waives nothing", released(honest)),
            ("a release on RabbitMQ", released(FORGE.seal(rabbit()))),
            ("a release of a tombstone", released(FORGE.seal(kafka(body=None, key=None)))),
            ("a release of what has expired", released(expired, "expired")),
            ("a release of what has expired in a batch", released(batched, "expired")),
            ("a release of what lives too long", released(timed(0, 9999), "lifetime_excessive")),
            ("a release of a retired key's message", released(late, "key_expired")),
            ("a release of what may not be published there", released(forbidden, "producer_forbidden")),
            ("a release that waives all", released(timed(-9999, -9), *WAIVABLE)),
            ("a release with a past", released(honest, past=past)),
            ("a release with a past of one letter", released(honest, past={"count": 1, "hops": []})),
            ("a release of the first and the last second there is", released(honest, past={"count": 2, "hops": [
                HOP | {"time": 0}, HOP | {"time": 253_402_300_799}]})),
            ("a release with the longest past", released(honest, past={"count": 1_000_000, "hops": [HOP] * 8})),
            ("a release by a key of every reviewer", released(honest, key=ANY, sub="bob")),
            ("a release by a key that will be revoked", released(honest, key=AHEAD)),
            ("a release by a retired key, made before", released(honest, key=ENDED, iat=NOW - 101)),
            ("a release at the edge of the leeway", released(honest, iat=NOW + 5)),
            ("a release at the edge of its end", released(honest, iat=NOW - 60, exp=NOW - 4)),
            ("a release of the longest life", released(honest, iat=NOW - 5, exp=NOW - 5 + 604_800)),
        ]),
        *judged("reviewed at append", [
            ("a release of what waited too long", released(aged, "queue_age_exceeded")),
            ("a release is judged at receipt", released(stamped(timed(-300, 60), APPENDED * 1000))),
            ("a release of what has no append time", released(honest, "append_time_missing")),
            ("a release of what has no append time, expired since", released(expired, "append_time_missing")),
        ]),
        *judged("reviewed, with the scope of its broker", [
            ("a release for the group of its consumer", within(released(honest), Origin(scope=SCOPE))),
            ("a release for the queue of its consumer", within(
                released(FORGE.seal(rabbit())), Origin(queue=SCOPE))),
        ]),
        *judged("reviewed strictly", [("a release that waives what is granted", released(honest, "replayed"))]),
        *judged("reviewed, without leeway", [("a release made now", released(honest, exp=NOW + 1))]),
    ]  # fmt: skip


def unwaived() -> list[Vector]:
    """Return messages with a good release that have a fault which it does not waive."""
    aged = stamped(timed(-AGE - 60, -AGE), (NOW - AGE - 1) * 1000)
    expired, forged = timed(-120, -60), FORGE.seal(kafka(), signature=bytes(64))
    others: tuple[str, ...] = tuple(
        reason for reason in WAIVABLE if reason != Reason.EXPIRED
    )
    return [
        *judged("reviewed", [
            ("expired, and a release that waives all else", released(expired, *others), "expired"),
            ("another audience, and a release that waives all", released(
                FORGE.seal(kafka(), claims={"aud": "x"}), *WAIVABLE), "audience_mismatch"),
            ("from the future, and a release that waives all", released(timed(60, 99), *WAIVABLE),
             "issued_in_future"),
            ("not valid yet, and a release that waives all", released(
                FORGE.seal(kafka(), claims={"nbf": NOW + 9}), *WAIVABLE), "not_yet_valid"),
            ("another subject, and a release that waives all", released(
                FORGE.seal(kafka(), claims={"sub": "x"}), *WAIVABLE), "subject_mismatch"),
            ("living too long, and a release that waives nothing", released(timed(0, 9999)), "lifetime_excessive"),
            ("a retired key, and a release that waives nothing", released(FORGE.seal(kafka(), key=FORGE.retired)),
             "key_expired"),
            ("a place without rule, and a release that waives nothing", released(
                FORGE.seal(kafka(destination="kafka:other"))), "producer_forbidden"),
            ("a revoked key, and a release that waives all", released(
                FORGE.seal(kafka(), key=FORGE.revoked), *WAIVABLE), "key_revoked"),
            ("a forged signature, and a release that waives all", released(forged, *WAIVABLE),
             "signature_invalid"),
            ("a release in place of a token", replace(released(FORGE.seal(kafka())), headers=tuple(
                pair for pair in released(FORGE.seal(kafka())).headers if pair[0] != "mqauth-token")),
             "token_missing"),
        ]),
        *judged("reviewed at append", [
            ("waiting too long, and a release that waives nothing", released(aged), "queue_age_exceeded"),
            ("from the future without an append time, and a release that waives it", released(
                timed(60, 99), "append_time_missing"), "issued_in_future"),
            ("living too long without an append time, and a release that waives it", released(
                timed(0, 9999), "append_time_missing"), "lifetime_excessive"),
            ("no append time, and a release that waives all else", released(
                expired, *(reason for reason in WAIVABLE if reason != Reason.APPEND_TIME_MISSING)),
             "append_time_unavailable"),
        ]),
        *judged("reviewed, its authority out of reach", [
            ("a release whose authority is out of reach", released(FORGE.seal(kafka())), "keys_unavailable"),
            ("a forged message asks for no authority's keys", released(forged), "signature_invalid"),
            ("a malformed release asks for no keys", released(FORGE.seal(kafka()), scope=""), INVALID),
            ("a release of another authority asks for no keys", released(FORGE.seal(kafka()), iss="x"), INVALID),
        ]),
        *(found._replace(verdict="duplicate") for found in judged("reviewed", [
            ("a release for another scope", released(FORGE.seal(kafka()), scope="audit")),
            ("a release for another scope, before the times", released(expired, scope="audit")),
        ])),
        *(found._replace(verdict="duplicate") for found in judged("reviewed, with the scope of its broker", [
            ("a release for another group", within(released(FORGE.seal(kafka())), Origin(scope="audit"))),
        ])),
    ]  # fmt: skip


def refused() -> list[Vector]:
    """Return messages whose release does not hold."""
    honest = FORGE.seal(kafka())
    good, other = released(honest), FORGE.seal(kafka())
    token = {"binding": base64url.digest(envelope.token_of(other))}
    mqa = envelope.bind(honest, ["tenant"]).as_dict()
    changed: dict[str, Message] = {
        "a release twice": with_token(good, "a.b.c", name=RELEASE_HEADER),
        "a release in another case": released(honest, name="Mqauth-Release"),
        "a release twice, once in another case": with_token(good, "a.b.c", name="MQAUTH-RELEASE"),
        "a release of garbage": with_token(honest, "garbage", name=RELEASE_HEADER),
        "a release of 8193 bytes": with_token(honest, "x" * 8193, name=RELEASE_HEADER),
        "a release without value": added(honest, RELEASE_HEADER, None),
        "a release with a proof": replace(good, headers=(
            *good.headers[:-1], (RELEASE_HEADER, good.headers[-1][1] + b"~0.AAAA"))),  # type: ignore[operator]
        "a release of the type of tokens": released(honest, typ="mqauth+jwt"),
        "a release without a type": released(honest, typ=REMOVED),
        "a release with another parameter": released(honest, header={"jku": "x"}),
        "a release of another alg than its key": released(honest, header={"alg": "ES256"}),
        "a release without alg": released(honest, header={"alg": "none"}),
        "a release of a key nobody has": released(honest, key=STRANGER),
        "a release with a forged signature": released(honest, sealed=bytes(64)),
        "a release by another's key under its kid": released(honest, key=STRANGER, header={"kid": KEY.kid}),
        "a release by a producer's key": released(honest, key=KEYS["EdDSA"]),
        "a release by the issuer of messages": released(honest, key=KEYS["EdDSA"], iss=ISSUER),
        "a release of an authority nobody trusts": released(honest, iss="https://evil.example"),
        "a release by a revoked key": released(honest, key=LOST),
        "a release by a revoked key, made before": released(honest, key=LOST, iat=NOW - 200),
        "a release by a retired key": released(honest, key=ENDED),
        "a release made the second its key retired": released(honest, key=ENDED, iat=NOW - 100),
        "a release by a reviewer whom the key does not name": released(honest, sub="bob"),
        "a release of another token": released(honest, tok=token["binding"]),
        "a release with another body": released(honest, mqa=mqa | {"bod": base64url.digest(b"x")}),
        "a release with another destination": released(honest, mqa=mqa | {"dst": "kafka:other"}),
        "a release with another record key": released(honest, mqa=mqa | {"key": None}),
        "a release with other headers": released(honest, mqa=mqa | {"hds": base64url.digest(b"x")}),
        "a release that covers less": released(honest, mqa=envelope.bind(honest, []).as_dict()),
        "a release of a batch": released(honest, mqa={"v": 1, "tree": {"root": mqa["bod"], "size": 1}}),
        "a release of profile 2": released(honest, mqa=mqa | {"v": 2}),
        "a body changed after the release": replace(good, body=b"x"),
        "a waived reason twice": released(honest, "expired", "expired"),
        "a waived reason that none may waive": released(honest, "body_mismatch"),
        "a waived reason that is none": released(honest, "anything"),
        "waive no list": released(honest, waive="expired"),
        **{f"waive: {strict_json.dumps(value).decode()}": released(honest, waive=value)
           for value in ({}, {"expired": 1}, "", None, 1, [["expired"]], [None])},
        "a release by a key revoked this second": released(honest, key=SINCE),
        "waive a list of a number": released(honest, waive=[1]),
        "a release from the future": released(honest, iat=NOW + 6),
        "a release past its end": released(honest, iat=NOW - 60, exp=NOW - 5),
        "a release that ends when it begins": released(honest, exp=NOW),
        "a release that lives a second too long": released(honest, exp=NOW + 604_801),
        "a release with an unknown claim": released(honest, nbf=NOW),
        "a letter in upper case": released(honest, letter="AB" * 32),
        **{f"a {claim} that is a number": released(honest, **{claim: 1}) for claim in ("letter", "tok")},
        "a letter of 63 digits": released(honest, letter="a" * 63),
        "a letter with a line break": released(honest, letter="a" * 64 + "\n"),
        "an id of 15 characters in a release": released(honest, jti="j" * 15),
        "a reason of 257 characters": released(honest, reason="r" * 257),
        "a reason of two lines": released(honest, reason="a\nb"),
        "a time with a fraction in a release": released(honest, exp=NOW + 0.5),
    }  # fmt: skip
    for claim in (
        "iss",
        "sub",
        "reason",
        "letter",
        "tok",
        "mqa",
        "waive",
        "scope",
        "iat",
        "exp",
        "jti",
    ):
        changed[f"a release without {claim}"] = released(honest, **{claim: REMOVED})
    for name, past in pasts().items():
        changed[f"a past {name}"] = released(honest, past=past)
    return [
        *judged("reviewed", [(name, message, INVALID) for name, message in changed.items()]),
        *judged("common", [("a release where none is configured", good, INVALID)]),
        *judged("reviewed strictly", [("a release that waives what is not granted", released(honest, "expired"),
                                       INVALID)]),
        *judged("reviewed, without leeway", [
            ("a release a second ahead", released(honest, iat=NOW + 1), INVALID)]),
        *judged("reviewed at append", [("a release that had not ended at append", released(
            stamped(timed(-300, 60), APPENDED * 1000), iat=NOW - 400, exp=NOW - 100), INVALID)]),
    ]  # fmt: skip


def pasts() -> dict[str, Any]:
    """Return what is no past."""
    return {
        "that is null": None, "that is a list": [], "without hops": {"count": 1},
        "without count": {"hops": []}, "with another member": {"count": 1, "hops": [], "x": 1},
        "of no letters": {"count": 0, "hops": []},
        "of a million letters and one": {"count": 1_000_001, "hops": []},
        "of true letters": {"count": True, "hops": []},
        "of fewer letters than hops": {"count": 1, "hops": [HOP] * 2},
        "of nine hops": {"count": 9, "hops": [HOP] * 9}, "whose hops are an object": {"count": 1, "hops": {}},
        "with a hop of text": {"count": 1, "hops": ["x"]}, "with a hop of more": one(x=1),
        "with a hop of less": one(time=REMOVED), "with a hop whose letter is none": one(letter="x"),
        "with a hop of no known reason": one(reason="x"),
        "with a hop of a list of reasons": one(reason=["expired"]),
        "with a hop whose reason is a number": one(reason=1), "with a hop whose time is text": one(time="1"),
        "with a hop whose time is true": one(time=True), "with a hop before 1970": one(time=-1),
        "with a hop after the year 9999": one(time=253_402_300_800),
    }  # fmt: skip


def one(**changes: Any) -> dict[str, Any]:
    """Return a past with one hop, changed."""
    return {"count": 1, "hops": [bent(HOP, changes)]}


def sequences() -> dict[str, list[Vector]]:
    """Return deliveries of released messages: each letter is released once."""
    steps: Callable[..., Vector] = Vector
    expired, place = timed(-120, -60), Origin(topic="orders", partition=0, offset=1)
    let, fresh = released(expired, "expired"), FORGE.seal(kafka())
    moved, known = replace(let, origin=place), replace(fresh, origin=place)
    again, waived = released(known), released(known, "replayed")
    second = released(fresh, letter="cd" * 32)
    batch = in_batch([kafka(body=b"%d" % number) for number in range(3)])
    changed = "reviewed, whose keys change"
    one_way, other_way = (
        released(fresh, "replayed", iss=name, letter=letter)
        for name, letter in (DIGITS, DIGITS[::-1])
    )
    return {
        "a release is good for once": [
            steps("", "reviewed", let), steps("", "reviewed", let, "duplicate"),
            steps("", "reviewed", moved, "duplicate"), steps("", "reviewed", let, "duplicate", None, NOW + 3604),
        ],
        "an authority by the name of another's letter": [
            steps("", "reviewed by two", one_way), steps("", "reviewed by two", other_way),
            steps("", "reviewed by two", one_way, "duplicate"),
        ],
        "what a release waives for one sibling is waived for no other": [
            steps("", changed, batch.seal(0)),
            steps("", changed, released(batch.seal(1), "key_expired"), key_set="retired"),
            steps("", changed, batch.seal(2), "rejected", "key_expired"),
        ],
        "a release that is held": [
            steps("", "reviewed", let, held=True), steps("", "reviewed", let, "deferred", "claim_held"),
            steps("", "reviewed", moved, "deferred", "claim_held"),
        ],
        "a release that is held, at its own place": [
            steps("", "reviewed", moved, held=True), steps("", "reviewed", moved, "deferred", "claim_held"),
        ],
        "an expired message that was released is known for as long as its release": [
            steps("", "reviewed", let),
            steps("", "reviewed", released(expired, "expired", letter="cd" * 32), "rejected", "replayed"),
        ],
        "what was handled is no news, whoever releases it": [
            steps("", "reviewed", known), steps("", "reviewed", again, "rejected", "replayed"),
            steps("", "reviewed", again, "rejected", "replayed"),
        ],
        "what was handled may be released, once": [
            steps("", "reviewed", known), steps("", "reviewed", waived),
            steps("", "reviewed", waived, "duplicate"),
        ],
        "what is held is waited for": [
            steps("", "reviewed", known, held=True), steps("", "reviewed", again, "deferred", "claim_held"),
        ],
        "a copy of what was released": [
            steps("", "reviewed", again), steps("", "reviewed", fresh, "rejected", "replayed"),
        ],
        "a message released twice, as two letters": [
            steps("", "reviewed", released(fresh)), steps("", "reviewed", second, "rejected", "replayed"),
        ],
        "a release that waives a replay leaves the message unclaimed": [
            steps("", "reviewed", released(fresh, "replayed")), steps("", "reviewed", known),
        ],
    }  # fmt: skip
