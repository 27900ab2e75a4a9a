"""The vectors of consumers with settings of their own: append time, coverage, users, and what is out of reach."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final, NamedTuple

from mqauth.testing.forge import ISSUER, NEIGHBOUR, SUBJECT, with_token
from mqauth.wire import base64url, jwk
from mqauth.wire.json_form import to_form
from mqauth.wire.keys import Key, KeySet, Revocation
from mqauth.wire.message import Message, Origin
from tests.vectors.answers import by, high_s, low_s
from tests.vectors.batches import in_batch
from tests.vectors.world import (
    BATCH_FORGE,
    FORGE,
    KAFKA,
    KEYS,
    NOW,
    RABBITMQ,
    STOCK,
    added,
    edwards,
    kafka,
    rabbit,
    seed,
)

APPENDED: Final = NOW - 300
"""When the broker appended the messages that a consumer with ``at="append"`` gets at ``NOW``."""
AGE: Final = 600
LOST: Final = edwards("lost lately", revocation=Revocation(revoked_at=NOW - 100))
ENDED: Final = edwards("ended lately", expires=NOW - 100)
UNNAMED: Final = edwards("unnamed", subjects=None)
PINNED: Final = edwards("pinned", subjects=None)
OWN: Final = edwards("names its own")
MIRROR: Final = edwards("mirror", subjects=frozenset([ISSUER]))
"""A key of an issuer that has the name of a subject, for the subject that has the name of the issuer."""
SIZES: Final = ("s", "s" * 256, "\U0001f600" * 256)
"""The shortest and the longest names that there are."""


class Vector(NamedTuple):
    """A message, or a form of none, and the verdict of a consumer that is named."""

    name: str
    consumer: str
    message: Message | dict[str, Any]
    verdict: str = "accepted"
    reason: str | None = None
    received: int = NOW
    held: bool = False
    key_set: str | None = None

    def form(self) -> dict[str, Any]:
        """Return the vector as it stands in its file; a deferral has a cause in place of the reason."""
        deferred = self.verdict == "deferred"
        return {
            "name": self.name, "consumer": self.consumer, "received": self.received, "held": self.held,
            "message": to_form(self.message) if isinstance(self.message, Message) else self.message,
            "verdict": self.verdict, "reason": None if deferred else self.reason,
            "cause": self.reason if deferred else None,
        } | ({} if self.key_set is None else {"key_set": self.key_set})  # fmt: skip


def consumers() -> dict[str, dict[str, Any]]:
    """Return the settings that each consumer has in place of the common ones."""
    append = {"at": "append", "max_queue_age": AGE}
    pins = {"*": [SUBJECT], PINNED.kid: [NEIGHBOUR], OWN.kid: [NEIGHBOUR]}
    return {
        "common": {},
        "at append": append | {"append_evidence": "interceptor"},
        "at append without an interceptor": append,
        "at append, with records that can have no time": append | {"without_evidence": [
            {"destination": KAFKA, "through": {"0": 41, "1": 7}}, {"destination": RABBITMQ, "through": NOW - 100},
        ]},
        "requires tenant": {"require_headers": ["tenant"]},
        "requires content-type": {"require_headers": ["content-type"]},
        "refuses what is not covered": {"unsigned_headers": "reject"},
        "without leeway": {"leeway": 0},
        "of most leeway": {"leeway": 60},
        "of short lives": {"max_lifetime": 60},
        "of two audiences": {"audience": ["billing", "shipping"]},
        "with a table of users": {"user_id": {"amqp-orders": SUBJECT, "amqp-stock": NEIGHBOUR}},
        "with pinned subjects": {"subjects": pins},
        "of names of any size": {
            "subjects": {"*": list(SIZES)}, "allow": {name: [KAFKA] for name in SIZES}, "audience": list(SIZES),
        },
        "without keys": {"jwks": None},
        "unable to ask for a key": {"unavailable": ["key_pending"]},
        "without its policy": {"unavailable": ["policy_unavailable"]},
        "without its store": {"unavailable": ["replay_store_unavailable"]},
        "with room for one claim": {"store_entries": 1},
        "with room for two claims": {"store_entries": 2},
        "comparing users": {"user_id": "subject"},
        "whose keys change": {"key_set": "honest"},
        "of one scope": {"scope": "billing"},
        "of two issuers": {
            "other_issuers": {SUBJECT: jwk.dump_key_set(KeySet([MIRROR, UNNAMED]))},
            "allow": {SUBJECT: [KAFKA], ISSUER: [KAFKA]},
        },
    }  # fmt: skip


def keys() -> dict[str, Any]:
    """Return the JWK Set of the common consumer."""
    return jwk.dump_key_set(KeySet([*FORGE.keys, LOST, ENDED, UNNAMED, PINNED, OWN]))


def key_sets() -> dict[str, dict[str, Any]]:
    """Return sets of the issuer that come one after the other, by name."""
    own = FORGE.key
    sets = {
        "honest": own, "retired": replace(own, expires=NOW), "revoked": replace(own, revocation=Revocation()),
        "gone": UNNAMED, "another key": replace(UNNAMED, kid=own.kid, subjects=own.subjects),
    }  # fmt: skip
    return {name: jwk.dump_key_set(KeySet([key])) for name, key in sets.items()}


def stamped(
    message: Message, ms: int | None = APPENDED * 1000, kind: Any = "append"
) -> Message:
    """Return a message with a timestamp that the broker, or its producer, has given it."""
    return replace(
        message, origin=replace(message.origin, timestamp_ms=ms, timestamp_type=kind)
    )


def at(origin: Origin, **claims: Any) -> Message:
    """Return a record with a good token at a place of its log."""
    return replace(FORGE.seal(kafka(), claims=claims), origin=origin)


def of(iat: int, exp: int, *, key: Key | None = None, **claims: Any) -> Message:
    """Return a record with these times, in seconds from ``APPENDED``, which is when it was appended."""
    times = {"iat": APPENDED + iat, "exp": APPENDED + exp}
    return stamped(FORGE.seal(kafka(), key=key, claims=times | claims))


def at_append() -> list[Vector]:
    """Return messages that are judged by the moment at which the broker appended them."""
    late, rabbits = (
        {"iat": APPENDED, "exp": APPENDED + 60},
        "at append without an interceptor",
    )
    batched = BATCH_FORGE.seal(kafka(), claims=late)
    waited = FORGE.seal(kafka(), claims={"iat": NOW - AGE, "exp": NOW - AGE + 60})
    cases: list[tuple[Any, ...]] = [
        ("in time when it was appended, expired since", of(0, 60)),
        ("in a batch, expired since it was appended", stamped(batched)),
        ("on RabbitMQ, expired since it was appended", stamped(FORGE.seal(rabbit(), claims=late))),
        ("issued at the edge of the leeway of its append", of(5, 60)),
        ("issued past the leeway of its append", of(6, 60), "issued_in_future"),
        ("not before the edge of the leeway of its append", of(0, 60, nbf=APPENDED + 5)),
        ("not before a moment past the leeway of its append", of(0, 60, nbf=APPENDED + 6), "not_yet_valid"),
        ("appended at the edge of its end", of(-60, -4)),
        ("appended past its end", of(-60, -5), "expired"),
        ("appended half a second before its end", stamped(of(-60, -5), APPENDED * 1000 - 500)),
        ("as old as may be", stamped(waited, (NOW - AGE) * 1000)),
        ("a millisecond too old", stamped(waited, (NOW - AGE) * 1000 - 1), "queue_age_exceeded"),
        ("lifetime before age", stamped(FORGE.seal(kafka(), claims={"iat": NOW - 999, "exp": NOW + 9999}),
         (NOW - 900) * 1000), "lifetime_excessive"),
        ("appended before its key was revoked", of(0, 60, key=LOST)),
        ("appended the moment its key was revoked", stamped(FORGE.seal(kafka(), key=LOST), (NOW - 100) * 1000),
         "key_revoked"),
        ("appended before its key retired, issued after by a clock ahead", stamped(FORGE.seal(
            kafka(), key=ENDED, claims={"iat": NOW - 97, "exp": NOW}), (NOW - 101) * 1000)),
        ("appended when its key had retired, issued before", stamped(FORGE.seal(
            kafka(), key=ENDED, claims={"iat": NOW - 200, "exp": NOW}), (NOW - 100) * 1000), "key_expired"),
        ("a time that its producer wrote", stamped(FORGE.seal(kafka()), kind="create"), "append_time_unavailable"),
        ("a time of which nobody says whose it is", stamped(FORGE.seal(kafka()), kind=None),
         "append_time_unavailable"),
        ("no time at all", FORGE.seal(kafka()), "append_time_unavailable"),
        ("append without a time", stamped(FORGE.seal(kafka()), None), "append_time_unavailable"),
        ("the audience before the append time", FORGE.seal(kafka(), claims={"aud": "x"}), "audience_mismatch"),
        ("the append time before the subject", FORGE.seal(kafka(), claims={"sub": "x"}),
         "append_time_unavailable"),
        ("a retired key without append time, by iat", FORGE.seal(kafka(), key=ENDED), "key_expired"),
        ("a retired key without append time, issued before", FORGE.seal(
            kafka(), key=ENDED, claims={"iat": NOW - 101, "exp": NOW + 9}), "append_time_unavailable"),
        ("a key revoked meanwhile, without append time", FORGE.seal(kafka(), key=LOST), "key_revoked"),
    ]  # fmt: skip
    place = Origin(topic="orders", partition=0, offset=41)
    timeless = [
        ("no time at the last offset that is named", at(place)),
        (
            "a producer's time before the offset that is named",
            at(
                replace(place, offset=0, timestamp_ms=NOW * 1000, timestamp_type="create")
            ),
        ),
        (
            "no time in a batch before the offset that is named",
            replace(BATCH_FORGE.seal(kafka()), origin=replace(place, offset=1)),
        ),
        (
            "no time on RabbitMQ, signed at the moment that is named",
            FORGE.seal(rabbit(), claims={"iat": NOW - 100, "exp": NOW - 40}),
        ),
        (
            "expired, and no time at the offset that is named",
            replace(
                FORGE.seal(kafka(), claims={"iat": NOW - 999, "exp": NOW - 939}),
                origin=place,
            ),
        ),
    ]
    waiting = [
        ("no time past the offset that is named", at(replace(place, offset=42))),
        (
            "no time in a partition that is not named",
            at(replace(place, partition=2, offset=0)),
        ),
        ("no time and no place", FORGE.seal(kafka())),
        (
            "no time on RabbitMQ, signed after the moment that is named",
            FORGE.seal(rabbit(), claims={"iat": NOW - 99, "exp": NOW + 9}),
        ),
        (
            "no time at a destination that is not named",
            replace(
                FORGE.seal(kafka(destination="kafka:stock")),
                origin=Origin(topic="stock", partition=0, offset=0),
            ),
        ),
    ]
    return [
        *judged("at append, with records that can have no time", [
            *((*case, "append_time_missing") for case in timeless),
            *((*case, "append_time_unavailable") for case in waiting),
            ("a time at an offset that is named", at(replace(
                place, timestamp_ms=APPENDED * 1000, timestamp_type="append"), iat=APPENDED, exp=APPENDED + 60)),
            ("another audience before the missing time", at(place, aud="x"), "audience_mismatch"),
            ("a retired key before the missing time", replace(FORGE.seal(kafka(), key=ENDED), origin=place),
             "key_expired"),
        ]),
        *judged("at append", cases),
        *judged(rabbits, [
            ("on RabbitMQ where anybody may write the time", stamped(FORGE.seal(rabbit())),
             "append_time_unavailable"),
            ("on Kafka where RabbitMQ has no interceptor", of(0, 60)),
        ]),
        *judged("common", [
            ("append time counts for nothing at consume", of(0, 60), "expired"),
            ("append time before a revocation, at consume", of(0, 600, key=LOST), "key_revoked"),
            ("append time after the end of a key, at consume", stamped(FORGE.seal(
                kafka(), key=ENDED, claims={"iat": NOW - 101, "exp": NOW + 9}))),
        ]),
    ]  # fmt: skip


DEFERRALS: Final = (
    "keys_unavailable", "key_pending", "append_time_unavailable", "policy_unavailable",
    "replay_store_unavailable", "replay_store_full", "claim_held",
)  # fmt: skip


def judged(consumer: str, cases: list[tuple[Any, ...]]) -> list[Vector]:
    """Return the vectors of one consumer; what is no reason of a rejection is the cause of a deferral."""
    found = []
    for name, message, *reason in cases:
        said = reason[0] if reason else None
        verdict = (
            "accepted"
            if said is None
            else "deferred"
            if said in DEFERRALS
            else "rejected"
        )
        found.append(Vector(name, consumer, message, verdict, said))
    return found


def covered() -> list[Vector]:
    """Return messages for consumers that require headers, or refuse those that are not covered."""
    bare, short = kafka(headers=()), "coverage_insufficient"
    header = rabbit(properties={}, headers=(("content-type", "text/plain"),))
    return [
        *judged("requires tenant", [
            ("a required header that is covered", FORGE.seal(kafka())),
            ("a required header that is covered in a batch", BATCH_FORGE.seal(kafka())),
            ("a required header that is covered, and another that is not", added(
                FORGE.seal(kafka()), "debug", b"1")),
            ("a required header that is not covered", FORGE.seal(kafka(), cover=[]), short),
            ("a required header that is absent", FORGE.seal(bare), short),
            ("a required header that is covered and absent", FORGE.seal(bare, cover=["tenant"]), short),
            ("a required header in another case", FORGE.seal(kafka(headers=(("Tenant", b"acme"),))), short),
            ("the body before the coverage", replace(FORGE.seal(bare), body=b"x"), "body_mismatch"),
            ("the coverage before the policy", FORGE.seal(replace(bare, destination="kafka:other")), short),
        ]),
        *judged("requires content-type", [
            ("a required property on Kafka", FORGE.seal(kafka())),
            ("a required property on RabbitMQ", FORGE.seal(rabbit())),
            ("a required property that is absent on Kafka", FORGE.seal(bare), short),
            ("a header of the name of a required property on RabbitMQ", FORGE.seal(header), short),
        ]),
        *judged("refuses what is not covered", [
            ("every header covered", FORGE.seal(kafka())),
            ("no header but properties", FORGE.seal(kafka(headers=(("content-type", b"text/plain"),)))),
            ("a header of transports, not covered", added(FORGE.seal(kafka()), "traceparent", b"00-x")),
            ("a header of transports in another case, not covered", added(FORGE.seal(kafka()), "X-Death", b"1")),
            ("a header added and not covered", added(FORGE.seal(kafka()), "debug", b"1"), short),
            ("BCC in lower case, not covered", added(FORGE.seal(rabbit()), "bcc", "x"), short),
            ("BCC, not covered", added(FORGE.seal(rabbit()), "BCC", "x")),
        ]),
    ]  # fmt: skip


def reached() -> list[Vector]:
    """Return messages for consumers that cannot reach something: what needs it is deferred, and nothing else."""
    honest, unsigned = FORGE.seal(kafka()), kafka()
    forbidden = FORGE.seal(kafka(destination=STOCK))
    return [
        *judged("without keys", [
            ("no keys at all", honest, "keys_unavailable"),
            ("no keys for a forged signature", FORGE.seal(kafka(), signature=bytes(64)), "keys_unavailable"),
            ("no keys, and no token", unsigned, "token_missing"),
            ("no keys, and an issuer nobody trusts", FORGE.seal(kafka(), claims={"iss": "x"}), "issuer_untrusted"),
            ("no keys, and no proof", with_token(kafka(), BATCH_FORGE.token(kafka()).partition("~")[0]),
             "proof_invalid"),
        ]),
        *judged("unable to ask for a key", [
            ("a known key while none can be asked for", honest),
            ("an unknown key while none can be asked for", FORGE.seal(kafka(), key=FORGE.stranger), "key_pending"),
        ]),
        *judged("without its policy", [
            ("no policy", honest, "policy_unavailable"),
            ("no policy, and another body", replace(honest, body=b"x"), "body_mismatch"),
        ]),
        *judged("without its store", [
            ("no store", honest, "replay_store_unavailable"),
            ("no store in a batch", BATCH_FORGE.seal(kafka()), "replay_store_unavailable"),
            ("no store, and a producer that may not publish there", forbidden, "producer_forbidden"),
        ]),
    ]  # fmt: skip


def configured() -> list[Vector]:
    """Return messages for consumers with another leeway, lifetime, audience, or table of users or subjects."""

    def user(name: str) -> Message:
        return replace(
            FORGE.seal(rabbit()), properties={**rabbit().properties, "user-id": name}
        )

    def timed(iat: int, exp: int) -> Message:
        return FORGE.seal(kafka(), claims={"iat": NOW + iat, "exp": NOW + exp})

    def spoken(key: Key, subject: str) -> Message:
        return FORGE.seal(kafka(destination=KAFKA if subject == SUBJECT else STOCK), key=key,
                          claims={"sub": subject})  # fmt: skip

    return [
        *judged("without leeway", [
            ("issued now", timed(0, 60)), ("issued a second ahead", timed(1, 60), "issued_in_future"),
            ("ending in a second", timed(-60, 1)), ("ending now", timed(-60, 0), "expired"),
        ]),
        *judged("of most leeway", [
            ("issued a minute ahead", timed(60, 120)),
            ("issued more than a minute ahead", timed(61, 120), "issued_in_future"),
            ("ended less than a minute ago", timed(-99, -59)), ("ended a minute ago", timed(-99, -60), "expired"),
        ]),
        *judged("of short lives", [
            ("living a minute", timed(0, 60)),
            ("leeway lengthens no life", timed(0, 61), "lifetime_excessive"),
        ]),
        *judged("of two audiences", [
            ("one audience of two", FORGE.seal(kafka(), claims={"aud": "billing"})),
            ("the other audience of two", FORGE.seal(kafka(), claims={"aud": "shipping"})),
            ("a third audience", FORGE.seal(kafka(), claims={"aud": "billing,shipping"}), "audience_mismatch"),
        ]),
        *judged("with a table of users", [
            ("a user of the table", user("amqp-orders")),
            ("the user of another subject", user("amqp-stock"), "subject_mismatch"),
            ("a user that the table does not have", user(SUBJECT), "subject_mismatch"),
            ("no user", FORGE.seal(rabbit())),
        ]),
        *judged("common", [
            ("user_id where nobody compares it", user("amqp-stock")),
            ("a key that names nobody, and no setting for it", spoken(UNNAMED, SUBJECT), "subject_mismatch"),
        ]),
        *judged("of names of any size", [
            (f"names of {len(name)} characters, {len(name.encode())} bytes",
             FORGE.seal(kafka(), key=UNNAMED, claims={"sub": name, "aud": name}))
            for name in SIZES
        ]),
        *judged("of two issuers", [
            ("a key of another issuer", FORGE.seal(kafka(), key=MIRROR), "key_unknown"),
            ("a message of another issuer", mirrored()),
            ("another issuer's message by a key of the first", FORGE.seal(
                kafka(), claims={"iss": SUBJECT, "sub": SUBJECT}), "key_unknown"),
        ]),
        *judged("with pinned subjects", [
            ("a key without a pin, pinned for all", spoken(UNNAMED, SUBJECT)),
            ("a key without a pin, another subject", spoken(UNNAMED, NEIGHBOUR), "subject_mismatch"),
            ("a pinned key", spoken(PINNED, NEIGHBOUR)),
            ("a pinned key, the subject of those without a pin", spoken(PINNED, SUBJECT), "subject_mismatch"),
            ("the JWK widens no pin", spoken(OWN, SUBJECT), "subject_mismatch"),
            ("a pin widens no JWK", spoken(OWN, NEIGHBOUR), "subject_mismatch"),
        ]),
    ]  # fmt: skip


def mirrored(**claims: Any) -> Message:
    """Return a message whose issuer has the name of the usual subject, and its subject that of the issuer."""
    return FORGE.seal(
        kafka(), key=MIRROR, claims={"iss": SUBJECT, "sub": ISSUER} | claims
    )


def malformed() -> list[Vector]:
    """Return deliveries that are no message of their broker: step 0 comes before the token."""
    form, broken = to_form(FORGE.seal(rabbit())), "message_malformed"
    record = to_form(FORGE.seal(kafka()))
    token = form["headers"][-1]
    return judged("common", [
        ("a header twice in a table", form | {"headers": [*form["headers"], ["tenant", {"str": "acme"}]]}, broken),
        ("the token twice in a table", form | {"headers": [*form["headers"], token]}, broken),
        ("no such destination, and no token", {"destination": "amqp:x", "body": ""}, broken),
        ("no body on RabbitMQ, and no token", {"destination": RABBITMQ, "body": None}, broken),
        ("a text for the origin's offset", record | {"origin": {"offset": "1"}}, broken),
        ("a negative time of append", record | {"origin": {"timestamp_ms": -1}}, broken),
    ])  # fmt: skip


def sequences() -> dict[str, list[Vector]]:
    """Return deliveries one after the other at one consumer."""
    return claimed() | placed() | roomy() | alike() | changing()


def placed() -> dict[str, list[Vector]]:
    """Return deliveries in places of which the broker tells a part: without all of it there is no place."""
    record, place = FORGE.seal(kafka()), Origin(topic="orders", partition=0, offset=1)
    known = replace(record, origin=place)
    told = replace(record, origin=replace(place, cluster="x"))
    scopes = [
        replace(record, origin=Origin(scope=scope)) for scope in ("billing", "audit")
    ]
    return {
        **{f"a place without its {part}": [
            Vector("", "common", found), Vector("", "common", found, "rejected", "replayed"),
        ] for part in ("topic", "partition", "offset")
           for found in [replace(known, origin=replace(place, **{part: None}))]},
        "a cluster that is told is another one than none": [
            Vector("", "common", known), Vector("", "common", told, "rejected", "replayed"),
        ],
        "a scope that is configured stands above the group": [
            Vector("", "of one scope", scopes[0]), Vector("", "of one scope", scopes[1], "rejected", "replayed"),
        ],
    }  # fmt: skip


def roomy() -> dict[str, list[Vector]]:
    """Return deliveries for stores with little room: a claim that has ended takes none."""

    def sent(iat: int, exp: int, offset: int) -> Message:
        origin = Origin(topic="orders", partition=0, offset=offset)
        return replace(
            FORGE.seal(kafka(), claims={"iat": NOW + iat, "exp": NOW + exp}),
            origin=origin,
        )

    one, two, full = (
        "with room for one claim",
        "with room for two claims",
        ("deferred", "replay_store_full"),
    )
    short, long, brief = sent(0, 60, 1), sent(0, 3000, 2), sent(0, 61, 3)
    late, later, last = (sent(900, 960, offset) for offset in (4, 5, 6))
    batch = BATCH_FORGE.seal(kafka(), claims={"iat": NOW, "exp": NOW + 60})
    copy = replace(long, origin=Origin(topic="orders", partition=0, offset=9))
    return {
        "what is held is claimed again where there is no room": [
            Vector("", one, short, held=True), Vector("", one, short, held=True), Vector("", one, short),
        ],
        "a claim that has ended makes room": [
            Vector("", one, short), Vector("", one, brief, *full), Vector("", one, late, received=NOW + 900),
            Vector("", one, later, *full, NOW + 900), Vector("", one, late, received=NOW + 900),
        ],
        "a claim that was held and has ended makes room": [
            Vector("", one, short, held=True), Vector("", one, late, received=NOW + 900),
            Vector("", one, later, *full, NOW + 900),
        ],
        "a claim in a batch that has ended makes room": [
            Vector("", one, batch), Vector("", one, brief, *full), Vector("", one, late, received=NOW + 900),
        ],
        "a claim that has not ended keeps its room": [
            Vector("", two, short), Vector("", two, long), Vector("", two, brief, *full),
            Vector("", two, late, received=NOW + 900), Vector("", two, later, *full, NOW + 900),
            Vector("", two, copy, "rejected", "replayed", NOW + 900),
        ],
        "a claim that has ended makes room beside one that is held": [
            Vector("", two, long, held=True), Vector("", two, short), Vector("", two, late, received=NOW + 900),
            Vector("", two, later, *full, NOW + 900), Vector("", two, long, received=NOW + 900),
        ],
        "claims that end together make room for as many": [
            Vector("", two, short), Vector("", two, brief), Vector("", two, late, received=NOW + 900),
            Vector("", two, later, received=NOW + 900), Vector("", two, last, *full, NOW + 900),
        ],
        "a claim that was taken over late makes room in its time": [
            Vector("", two, short, held=True), Vector("", two, short, received=NOW + 40),
            Vector("", two, late, received=NOW + 900), Vector("", two, later, received=NOW + 900),
            Vector("", two, last, *full, NOW + 900),
        ],
    }  # fmt: skip


def alike() -> dict[str, list[Vector]]:
    """Return siblings of a batch, in what may differ between them."""
    times = {"iat": APPENDED, "exp": APPENDED + 60}
    appended = in_batch([kafka(), kafka(body=b"2"), kafka(body=b"3")], claims=times)
    users = in_batch([rabbit(), rabbit(body=b"2"), rabbit(body=b"3")])
    jti = base64url.encode(seed("mirrored", 16)).decode()
    late = stamped(appended.seal(1), (APPENDED + 65) * 1000)
    living = in_batch(
        [kafka(), kafka(body=b"2"), kafka(body=b"3")],
        claims={"iat": APPENDED, "exp": NOW + 600},
    )
    early = stamped(living.seal(1), (APPENDED - 6) * 1000)

    def by_user(place: int, name: str) -> Message:
        sealed = users.seal(place)
        return replace(sealed, properties={**sealed.properties, "user-id": name})

    return {
        "a sibling appended after its end": [
            Vector("", "at append", stamped(appended.seal(0))),
            Vector("", "at append", late, "rejected", "expired"),
            Vector("", "at append", stamped(appended.seal(2), None), "deferred", "append_time_unavailable"),
        ],
        "a sibling appended before it was issued": [
            Vector("", "at append", stamped(living.seal(0))),
            Vector("", "at append", early, "rejected", "issued_in_future"),
            Vector("", "at append", living.seal(2), "deferred", "append_time_unavailable"),
        ],
        "a sibling of another user": [
            Vector("", "comparing users", by_user(0, SUBJECT)),
            Vector("", "comparing users", by_user(1, NEIGHBOUR), "rejected", "subject_mismatch"),
            Vector("", "comparing users", by_user(2, SUBJECT)),
        ],
        "issuer and subject with each other's names, and one id": [
            Vector("", "of two issuers", FORGE.seal(kafka(), claims={"jti": jti})),
            Vector("", "of two issuers", mirrored(jti=jti)),
            Vector("", "of two issuers", mirrored(jti=jti), "rejected", "replayed"),
        ],
    }  # fmt: skip


def changing() -> dict[str, list[Vector]]:
    """Return siblings between which the set of their issuer changes."""
    who, found = "whose keys change", {}
    for name, reason in (
        ("retired", "key_expired"), ("revoked", "key_revoked"), ("gone", "key_unknown"),
        ("another key", "signature_invalid"),
    ):  # fmt: skip
        batch = in_batch([kafka(body=b"%d" % number) for number in range(3)])
        found[f"a sibling under a set of keys: {name}"] = [
            Vector("", who, batch.seal(0)), Vector("", who, batch.seal(1), "rejected", reason, key_set=name),
            Vector("", who, batch.seal(2), key_set="honest"),
        ]  # fmt: skip
    return found


def claimed() -> dict[str, list[Vector]]:
    """Return deliveries of one message: what is held, what is full, and how long a claim is known."""
    record, message = FORGE.seal(kafka()), FORGE.seal(rabbit())
    first, second, third = (
        replace(record, origin=Origin(topic="orders", partition=partition, offset=offset))
        for partition, offset in ((0, 1), (0, 2), (1, 1))
    )
    once, again = (
        replace(message, origin=Origin(queue="orders", redelivered=told))
        for told in (False, True)
    )
    scoped = [
        replace(record, origin=Origin(scope=scope)) for scope in ("billing", "audit")
    ]
    queued = [
        replace(message, origin=Origin(queue=queue)) for queue in ("billing", "audit")
    ]
    late = [stamped(found, NOW * 1000) for found in (first, second)]
    siblings = in_batch(
        [kafka(), kafka(body=b"2"), kafka(body=b"3")], key=LOST, claims={"iat": NOW - 150}
    )
    ended = in_batch([kafka(), kafka(body=b"2")], claims={"iat": NOW - 60, "exp": NOW})
    low, high = (
        by(KEYS["ES256"], sign, claims)
        for claims in [FORGE.claims(kafka())]
        for sign in (low_s, high_s)
    )
    other = replace(
        FORGE.seal(kafka()), origin=Origin(topic="orders", partition=0, offset=9)
    )
    return {
        "RabbitMQ: a redelivery waits while the message is held": [
            Vector("", "common", once, held=True), Vector("", "common", again, "deferred", "claim_held"),
            Vector("", "common", once, "rejected", "replayed"),
        ],
        "Kafka: what is held is handled again in its place, and nowhere else": [
            Vector("", "common", first, held=True), Vector("", "common", first, held=True),
            Vector("", "common", second, "rejected", "replayed"), Vector("", "common", first),
        ],
        "Kafka: the same offset of another partition is another place": [
            Vector("", "common", first), Vector("", "common", third, "rejected", "replayed"),
        ],
        "without a place every delivery is one of its own": [
            Vector("", "common", record), Vector("", "common", record, "rejected", "replayed"),
        ],
        "each group handles a message once": [
            Vector("", "common", scoped[0]), Vector("", "common", scoped[1]),
            Vector("", "common", scoped[0], "rejected", "replayed"),
        ],
        "each queue handles a message once": [
            Vector("", "common", queued[0]), Vector("", "common", queued[1]),
            Vector("", "common", queued[0], "rejected", "replayed"),
        ],
        "a full store takes no new claim and forgets none": [
            Vector("", "with room for one claim", first),
            Vector("", "with room for one claim", other, "deferred", "replay_store_full"),
            Vector("", "with room for one claim", first),
            Vector("", "with room for one claim", second, "rejected", "replayed"),
        ],
        "a copy is known to the end of its leeway": [
            Vector("", "common", first), Vector("", "common", second, "rejected", "replayed", NOW + 64),
            Vector("", "common", second, "rejected", "expired", NOW + 65),
        ],
        "a copy is known to the end of the longest leeway": [
            Vector("", "of most leeway", first),
            Vector("", "of most leeway", second, "rejected", "replayed", NOW + 119),
            Vector("", "of most leeway", second, "rejected", "expired", NOW + 120),
        ],
        "a copy is known as long as it may have waited": [
            Vector("", "at append", late[0]),
            Vector("", "at append", late[1], "rejected", "replayed", NOW + AGE),
        ],
        "a rejected message is not claimed": [
            Vector("", "common", replace(second, body=b"x"), "rejected", "body_mismatch"),
            Vector("", "common", first),
        ],
        "a sibling after its key was revoked": [
            Vector("", "common", siblings.seal(0), received=NOW - 150),
            Vector("", "common", siblings.seal(1), received=NOW - 101),
            Vector("", "common", siblings.seal(2), "rejected", "key_revoked", NOW - 100),
        ],
        "a sibling after its end": [
            Vector("", "common", ended.seal(0), received=NOW + 4),
            Vector("", "common", ended.seal(1), "rejected", "expired", NOW + 5),
        ],
        "a message signed a second time": [
            Vector("", "common", low), Vector("", "common", high, "rejected", "replayed"),
        ],
        "a key that is revoked later revokes what comes then": [
            Vector("", "common", FORGE.seal(kafka(), key=LOST, claims={"iat": NOW - 101}), received=NOW - 101),
            Vector("", "common", FORGE.seal(kafka(), key=LOST), "rejected", "key_revoked"),
        ],
    }  # fmt: skip
