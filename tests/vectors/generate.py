"""Make the vectors of wire profile 1, byte for byte the same each time: keys, times, ids and salts are fixed.

python -m tests.vectors.generate          writes the files of vectors here
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from mqauth.replay.rules import batch_id, claim_id, release_id
from mqauth.testing import ATTACKS
from mqauth.testing.forge import AUDIENCE, NEIGHBOUR, REMOVED, with_token
from mqauth.testing.token_attacks import honest_message
from mqauth.wire import base64url, claims, destination, envelope, jws
from mqauth.wire import strict_json as strictjson
from mqauth.wire.json_form import to_form
from mqauth.wire.keys import Key
from mqauth.wire.message import Message, Origin
from tests.vectors import releases, settings
from tests.vectors.answers import answers
from tests.vectors.batches import batches
from tests.vectors.identities import identities
from tests.vectors.letters import letters
from tests.vectors.readers import forms, key_sets
from tests.vectors.spire import with_spire
from tests.vectors.stores import stores
from tests.vectors.world import (
    BATCH_FORGE,
    EVERY_TYPE,
    FORGE,
    KAFKA,
    KEYS,
    NOW,
    RABBITMQ,
    STOCK,
    Case,
    Deliveries,
    added,
    judged,
    kafka,
    rabbit,
)  # fmt: skip

FOLDER: Final = Path(__file__).parent
SEVEN: Final = (
    "content-type",
    "content-encoding",
    "type",
    "message-id",
    "correlation-id",
    "reply-to",
    "app-id",
)
LOGS: Final = (
    ("q1Sh-9_ISia_zwGINzRvyQ", "dAuV3yR2SqOqyRXx7m3ZkA"),
    ("MkU3OEVBNTcwNTJENDM2Qg", "dAuV3yR2SqOqyRXx7m3ZkA"),
    ("q1Sh-9_ISia_zwGINzRvyQ", "f5zTnBvXQ5mYxPqV2a0hLw"),
)
"""Ids of a cluster and a topic; the second is in another cluster, the third a topic that was made anew."""


def hds_cases() -> list[tuple[str, Message, list[str]]]:
    """Return messages with the names to cover."""
    reply = {"reply-to": "amq.rabbitmq.reply-to.g2dkABByYWJiaXQ"}
    return [
        ("nothing at all", rabbit(properties={}, headers=()), []),
        ("every property", rabbit(properties={name: name.upper() for name in SEVEN}, headers=()), []),
        ("an empty property is not an absent one", rabbit(properties={"type": ""}, headers=()), []),
        ("direct reply-to without its suffix", rabbit(properties=reply, headers=()), []),
        ("a covered header that is absent", rabbit(properties={}, headers=()), ["absent"]),
        ("names in the order of hdr", rabbit(headers=(("a", 1), ("b", 2))), ["b", "a"]),
        ("an uncovered header counts for nothing", rabbit(headers=(("a", 1), ("b", 2))), ["a"]),
        ("every type of value", rabbit(headers=EVERY_TYPE), [name for name, _ in EVERY_TYPE]),
        ("only reply-to has the suffix of direct reply-to", rabbit(
            properties={"correlation-id": "amq.rabbitmq.reply-to.x", "reply-to": "amq.rabbitmq.reply-to"},
            headers=()), []),
        ("bytes on RabbitMQ", rabbit(
            headers=(("a", b"x" * 255), ("b", b"x" * 256), ("c", (b"",)))), ["a", "b", "c"]),
        ("text beyond ASCII in a property", rabbit(properties={"type": "\u00e9"}, headers=()), []),
        ("Kafka: values of 255 to 257 bytes", kafka(
            headers=tuple((str(size), b"x" * size) for size in (255, 256, 257))), ["255", "256", "257"]),
        ("Kafka: properties are headers", kafka(), ["tenant"]),
        ("Kafka: direct reply-to is bound whole", kafka(headers=(("reply-to", b"amq.rabbitmq.reply-to.x"),)), []),
        ("Kafka: every occurrence in order", kafka(headers=(("a", b"1"), ("b", b""), ("a", None), ("a", b"2"))),
        ["a", "b"]),
        ("Kafka: a property that stands twice", kafka(headers=(("type", b"1"), ("type", b"2"))), []),
        ("Kafka: bytes that are no UTF-8", kafka(headers=(("raw", b"\xff\xfe"),)), ["raw"]),
    ]  # fmt: skip


def hds() -> dict[str, Any]:
    """Return the vectors of the headers digest: what goes in, the exact bytes hashed, and the digest."""
    vectors = []
    for name, message, names in hds_cases():
        raw = envelope.headers_input(message, names)
        vectors.append(
            {
                "name": name,
                "message": to_form(message),
                "hdr": names,
                "input_hex": raw.hex(),
                "hds": base64url.digest(raw),
            }
        )
    return {"profile": 1, "vectors": vectors, "covers": covers(), "refused": refused()}


def covers() -> list[dict[str, Any]]:
    """Return messages with the names that a producer covers where nobody says which."""
    added = [
        "x-death", "X-Death", "x-delivery-count", "x-acquired-count", "x-delay", "timestamp_in_ms",
        "TIMESTAMP_IN_MS", "B3", "x-b3-traceid", "sentry-trace", "x-datadog-a", "uber-trace-id", "uberctx-a",
        "newrelic",
        "x-amzn-trace-id", "x-cloud-trace-context", "elastic-apm-traceparent", "x-shovelled",
        "x-shovelled-timestamp",
        "x-received-from", "x-original-exchange", "x-original-routing-key",
        "BCC", "traceparent", "Tracestate", "baggage", "x-first-death-queue", "x-last-death-reason",
        "x-stream-offset", "x-opt-a", "X-OPT-B", "mqauth-token", "MQAUTH-release", "mqauth-x",
    ]  # fmt: skip
    kept = ["b", "a", "x-deaths", "x-first-death", "mqauth", "\u212aey", "x-other"]
    names = [
        name
        for pair in zip(added, [*kept, *map(str, range(99))], strict=False)
        for name in pair
    ]
    rabbits = rabbit(headers=tuple((name, 1) for name in (*names, "content-type")))
    records = kafka(
        headers=tuple(
            (name, b"1")
            for name in ("type", "b", "reply-to", "a", "b", "x-delay", "app-id")
        )
    )
    shown = [
        ("on RabbitMQ", rabbits),
        ("on Kafka, without the seven properties", records),
        ("nothing", rabbit(headers=())),
        ("a tombstone without a record key", kafka(body=None, key=None)),
        ("an empty body and an empty record key", kafka(body=b"", key=b"")),
        ("bcc in lower case", rabbit(headers=(("bcc", 1),))),
    ]
    return [
        {
            "name": name, "message": to_form(message),
            "bod": None if message.body is None else base64url.digest(message.body),
            "key": None if message.key is None else base64url.digest(message.key),
            "hdr": [header for header in dict.fromkeys(found for found, _ in message.headers)
                    if header not in added and not (message.destination == KAFKA and header in SEVEN)],
        }
        for name, message in shown
    ]  # fmt: skip


def refused() -> list[dict[str, Any]]:
    """Return messages that no producer signs: a value has no encoding, or two names differ in case only."""
    values = {
        "a time after 2106": {"time": "2106-02-07T06:28:16Z"},
        "a time before 1970": {"time": "1969-12-31T23:59:59Z"},
        "a decimal of 33 bits": {"decimal": "2147483648"}, "a negative zero": {"decimal": "-0.0"},
        "a decimal of 256 places": {"decimal": f"0.{'0' * 255}1"},
        "a time in a list in a table": {"table": {"a": {"list": [{"time": "1969-12-31T23:59:59Z"}]}}},
    }  # fmt: skip
    empty: dict[str, Any] = {"destination": RABBITMQ, "body": ""}
    twins = [["a", {"str": "1"}], ["A", {"str": "1"}]]
    return [
        *({"name": name, "message": empty | {"headers": [["a", value]]}} for name, value in values.items()),
        {"name": "two names that differ in case", "message": empty | {"headers": twins}},
        {"name": "two names that differ in case on Kafka", "message": {"destination": KAFKA, "body": None,
         "headers": twins}},
        {"name": "a property in another case on Kafka", "message": {"destination": KAFKA, "body": None,
         "headers": [["Content-Type", {"str": "1"}]]}},
    ]  # fmt: skip


def destinations() -> dict[str, Any]:
    """Return names with their canonical destinations, and texts that are none."""
    pairs = [
        ("shop", "orders.created"),
        ("", "queue"),
        ("", ""),
        ("a/b", "c d"),
        ("é", "*.#"),
        ("-._~", "%41"),
    ]
    topics = ["orders", "orders.v1", "a_b-c", "%", "é", "kafka:orders"]
    return {
        "profile": 1,
        "rabbitmq": [{"exchange": e, "routing_key": k, "destination": destination.rabbitmq(e, k)} for e,
        k in pairs],
        "kafka": [{"topic": topic, "destination": destination.kafka(topic)} for topic in topics],
        "malformed": [
            "", "orders", "kafka:", "kafka:a/b", "rabbitmq:a", "rabbitmq:a/b/c", "KAFKA:a", "kafka:%61",
            "kafka:a%2fb",
            "kafka:%FF", "kafka:%C0%AF", "kafka:%ED%A0%80", "kafka:é", "kafka:a b", "kafka:%", "redis:a",
        ],
    }  # fmt: skip


def accepted() -> list[Case]:
    """Return messages that are verified and handled."""
    reply, sent = (
        "amq.rabbitmq.reply-to",
        rabbit(properties={"reply-to": "amq.rabbitmq.reply-to"}),
    )
    bound = FORGE.seal(sent)
    found = [(f"signed with {algorithm}", by(key)) for algorithm, key in KEYS.items()]
    found += [
        ("alg Ed25519 is EdDSA", FORGE.seal(kafka(), header={"alg": "Ed25519"})),
        ("on RabbitMQ", FORGE.seal(rabbit())),
        ("every type of value", FORGE.seal(rabbit(headers=EVERY_TYPE))),
        ("a tombstone", FORGE.seal(kafka(body=None))),
        ("an empty body", FORGE.seal(kafka(body=b""))),
        ("no record key", FORGE.seal(kafka(key=None))),
        ("an empty record key", FORGE.seal(kafka(key=b""))),
        ("no headers", FORGE.seal(kafka(headers=()))),
        ("names that repeat", FORGE.seal(kafka(headers=(("a", b"1"), ("a", None), ("a", b"1"))))),
        ("names in another order", moved(FORGE.seal(kafka(headers=(("a", b"1"), ("b", b"2")))))),
        ("an uncovered header beside", FORGE.seal(kafka(), cover=[])),
        ("an added header of a transport", added(FORGE.seal(kafka()), "traceparent", b"00-x")),
        ("an added header of the application", added(FORGE.seal(kafka()), "debug", b"1")),
        ("direct reply-to with the broker's suffix", replace(bound, properties={"reply-to": f"{reply}.g2dkAB"})),
        ("an unknown claim", FORGE.seal(kafka(), claims={"role": {"x": [1, None]}})),
        ("other claims of 64 values", FORGE.seal(kafka(), claims={"x": [[]] * 31, "y": {"a": [1] * 30}})),
        ("not before now", FORGE.seal(kafka(), claims={"nbf": NOW})),
        ("issued at the edge of the leeway", timed(NOW + 5, NOW + 60)),
        ("expiring at the edge of the leeway", timed(NOW - 60, NOW - 4)),
        ("living as long as may be", timed(NOW, NOW + 3600)),
        ("names of 256 and an id of 128 characters", FORGE.seal(kafka(), claims={"jti": "j" * 128})),
        ("claims nested 8 deep", FORGE.seal(kafka(), claims={"x": nested(7)})),
    ]  # fmt: skip
    return [(name, message, "accepted", None) for name, message in found]


def by(key: Key) -> Message:
    """Return an honest message signed with a key of any algorithm."""
    header = strictjson.dumps({"alg": key.algorithm, "typ": "mqauth+jwt", "kid": key.kid})
    return FORGE.signed(kafka(), header, strictjson.dumps(FORGE.claims(kafka())), key)


def timed(iat: int, exp: int) -> Message:
    """Return a message with these times."""
    return FORGE.seal(kafka(), claims={"iat": iat, "exp": exp})


def nested(depth: int) -> Any:
    """Return lists in each other."""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def moved(message: Message) -> Message:
    """Return a message with its headers in reverse."""
    return replace(message, headers=message.headers[::-1])


def retoken(bend: Callable[[str], str]) -> Message:
    """Return a message whose good token was bent as text."""
    return with_token(kafka(), bend(FORGE.token(kafka())))


def payload(bend: Callable[[bytes], bytes]) -> Message:
    """Return a message whose signed claims are these bytes."""
    return FORGE.seal(kafka(), payload=bend(strictjson.dumps(FORGE.claims(kafka()))))


def header(raw: bytes) -> Message:
    """Return a message whose signed JOSE header is these bytes."""
    return FORGE.signed(kafka(), raw, strictjson.dumps(FORGE.claims(kafka())), FORGE.key)


def rejected() -> list[Case]:
    """Return messages that are dead-lettered, with the reason."""
    found: list[tuple[str, Message, str]] = []
    for place in (KAFKA, RABBITMQ):
        fitting = (attack for attack in ATTACKS if attack.fits(place))
        found += [
            (
                f"{attack.name} on {place}",
                attack.mount(FORGE, honest_message(place)),
                attack.reason.value,
            )
            for attack in fitting
        ]
    kid = FORGE.key.kid
    found += [
        ("the header in another case", with_token(kafka(), FORGE.token(kafka()), name="Mqauth-Token"),
        "token_missing"),
        ("one token twice", with_token(FORGE.seal(kafka()), FORGE.token(kafka())), "token_repeated"),
        ("a null token", added(kafka(), "mqauth-token", None), "token_malformed"),
        ("a token of bytes on RabbitMQ", added(rabbit(), "mqauth-token", b"a.b.c"), "token_malformed"),
        ("a padded signature", retoken(lambda token: token + "=="), "token_malformed"),
        ("a fourth segment", retoken(lambda token: token + ".e30"), "token_malformed"),
        ("a line break", retoken(lambda token: token + "\n"), "token_malformed"),
        ("bits that no canonical text has", retoken(lambda token: token[:-1] + "B"), "token_malformed"),
        ("no signature", retoken(lambda token: token[: token.rindex(".") + 1]), "signature_invalid"),
        ("a header with a name twice", header(
            b'{"alg":"EdDSA","alg":"EdDSA","typ":"mqauth+jwt","kid":"%s"}' % kid.encode()), "token_malformed"),
        ("a header that is a list", header(b"[]"), "token_malformed"),
        ("no kid", FORGE.seal(kafka(), header={"kid": REMOVED}), "token_malformed"),
        ("a kid of 129 characters", FORGE.seal(kafka(), header={"kid": "k" * 129}), "token_malformed"),
        ("typ in upper case", FORGE.seal(kafka(), header={"typ": "MQAUTH+JWT"}), "token_type"),
        ("no typ", FORGE.seal(kafka(), header={"typ": REMOVED}), "token_type"),
        ("a critical extension", FORGE.seal(kafka(), header={"crit": ["b64"], "b64": False}), "header_forbidden"),
        ("an embedded key", FORGE.seal(kafka(), header={"jwk": {}}), "header_forbidden"),
        ("no alg", FORGE.seal(kafka(), header={"alg": REMOVED}), "algorithm_forbidden"),
        ("alg in another case", FORGE.seal(kafka(), header={"alg": "eddsa"}), "algorithm_forbidden"),
        ("a claim twice", payload(lambda raw: raw[:-1] + b',"sub":"orders-api"}'), "claims_malformed"),
        ("a name twice within mqa", payload(lambda raw: raw.replace(b'"v":1', b'"v":1,"v":1')),
        "claims_malformed"),
        ("NaN", payload(lambda raw: raw[:-1] + b',"x":NaN}'), "claims_malformed"),
        ("an integer beyond 2^53", payload(lambda raw: raw[:-1] + b',"x":9007199254740993}'), "claims_malformed"),
        ("a number that overflows", payload(lambda raw: raw[:-1] + b',"x":1e999}'), "claims_malformed"),
        ("a lone surrogate", payload(lambda raw: raw[:-1] + b',"x":"\\ud800"}'), "claims_malformed"),
        ("bytes that are no UTF-8", payload(lambda raw: raw[:-1] + b',"x":"\xff"}'), "claims_malformed"),
        ("claims nested 9 deep", FORGE.seal(kafka(), claims={"x": nested(8)}), "claims_malformed"),
        ("other claims of 65 values", FORGE.seal(kafka(), claims={"x": [[]] * 31, "y": {"a": [1] * 31}}),
        "claims_malformed"),
        ("claims that are a list", payload(lambda raw: b"[" + raw + b"]"), "claims_malformed"),
        ("a boolean time", FORGE.seal(kafka(), claims={"iat": True}), "claims_malformed"),
        ("a time with a fraction", payload(lambda raw: raw.replace(b'"iat":1900000000', b'"iat":1900000000.0')),
         "claims_malformed"),
        ("a negative time", FORGE.seal(kafka(), claims={"iat": -1}), "claims_malformed"),
        ("an empty subject", FORGE.seal(kafka(), claims={"sub": ""}), "claims_malformed"),
        ("a subject of 257 characters", FORGE.seal(kafka(), claims={"sub": "s" * 257}), "claims_malformed"),
        ("a control character", FORGE.seal(kafka(), claims={"sub": "a\n"}), "claims_malformed"),
        ("an id of 15 characters", FORGE.seal(kafka(), claims={"jti": "j" * 15}), "claims_malformed"),
        ("a list of audiences", FORGE.seal(kafka(), claims={"aud": [AUDIENCE]}), "claims_malformed"),
        ("profile 2", FORGE.seal(kafka(), binding={"v": 2}), "claims_malformed"),
        ("an unknown member of mqa", FORGE.seal(kafka(), binding={"x": 1}), "claims_malformed"),
        ("a member of mqa left out", FORGE.seal(kafka(), binding={"key": REMOVED}), "claims_malformed"),
        ("a destination in another spelling", FORGE.seal(kafka(), binding={"dst": "kafka:%6Frders"}),
        "claims_malformed"),
        ("a covered name twice", FORGE.seal(kafka(), binding={"hdr": ["tenant", "tenant"]}), "claims_malformed"),
        ("a digest in hex", FORGE.seal(kafka(), binding={"bod": "00" * 32}), "claims_malformed"),
        ("hds null", FORGE.seal(kafka(), binding={"hds": None}), "claims_malformed"),
        ("mqa left out", FORGE.seal(kafka(), claims={"mqa": REMOVED}), "claim_missing"),
        ("issued past the leeway", timed(NOW + 6, NOW + 60), "issued_in_future"),
        ("expired past the leeway", timed(NOW - 60, NOW - 5), "expired"),
        ("expiring when issued", timed(NOW, NOW), "expired"),
        ("living a second too long", timed(NOW, NOW + 3601), "lifetime_excessive"),
        ("a tombstone in place of the body", replace(FORGE.seal(kafka()), body=None), "body_mismatch"),
        ("an empty body in place of a tombstone", replace(FORGE.seal(kafka(body=None)), body=b""),
        "body_mismatch"),
        ("an empty record key in place of none", replace(FORGE.seal(kafka(key=None)), key=b""),
        "record_key_mismatch"),
        ("occurrences exchanged", moved(FORGE.seal(kafka(headers=(("a", b"1"), ("a", b"2"))))),
        "headers_mismatch"),
        ("an occurrence repeated", added(FORGE.seal(kafka()), "tenant", b"acme"), "headers_mismatch"),
        ("an absent covered header added", added(FORGE.seal(kafka(), cover=["x"]), "x", b""), "headers_mismatch"),
        ("a twin in another case", added(FORGE.seal(kafka()), "Tenant", b"evil"), "headers_mismatch"),
        ("a property added", added(FORGE.seal(kafka()), "reply-to", b"evil"), "headers_mismatch"),
        ("a property in another case on Kafka", added(FORGE.seal(kafka()), "Content-Type", b"evil"),
        "headers_mismatch"),
        ("text in place of bytes", replace(
            FORGE.seal(rabbit(headers=(("a", b"1"),))),
            headers=(("a", "1"), *FORGE.seal(rabbit(headers=(("a", b"1"),))
            ).headers[1:])), "headers_mismatch"),
    ]  # fmt: skip
    return [(name, message, "rejected", reason) for name, message, reason in found]


def sequences() -> dict[str, Deliveries]:
    """Return deliveries one after the other, which one consumer's replay store tells apart."""
    record, message = FORGE.seal(kafka()), FORGE.seal(rabbit())
    first, second = (
        replace(record, origin=Origin(topic="orders", partition=0, offset=offset))
        for offset in (1, 2)
    )
    here, mirrored, renewed = (
        replace(record, origin=replace(first.origin, cluster=cluster, topic_id=topic_id))
        for cluster, topic_id in LOGS
    )
    again = replace(message, origin=Origin(queue="orders", redelivered=True))
    once = replace(message, origin=Origin(queue="orders"))
    jti = claims.parse(jws.take_apart(envelope.token_of(record)).payload).jti
    neighbours = FORGE.seal(
        kafka(destination=STOCK),
        key=FORGE.neighbour,
        claims={"sub": NEIGHBOUR, "jti": jti},
    )
    return {
        "Kafka: the same offset again is a re-read, another one a copy": [
            (first, "accepted", None), (first, "accepted", None), (second, "rejected", "replayed"),
        ],
        "the id of another producer's message is no copy of it": [
            (neighbours, "accepted", None), (record, "accepted", None), (record, "rejected", "replayed"),
        ],
        "Kafka: another cluster, or a topic made anew, is another place": [
            (here, "accepted", None), (mirrored, "rejected", "replayed"), (renewed, "rejected", "replayed"),
            (here, "accepted", None),
        ],
        "RabbitMQ: a redelivery is a duplicate, anything else a copy": [
            (once, "accepted", None), (again, "duplicate", None), (once, "rejected", "replayed"),
        ],
    }  # fmt: skip


def claim_ids() -> dict[str, Any]:
    """Return what is claimed: the texts, the bytes under the digest, and the ids."""
    said = [
        ("https://auth.example", "orders-api"),
        ("https://auth.example", "stock-api"),
        ("é", "s" * 256),
    ]
    return {
        "profile": 1,
        "messages": [
            claimed(iss, sub, index) for iss, sub in said for index in (None, 0, 258)
        ],
        "releases": [
            claimed_release(iss, "0" * 64) for iss in ("https://review.example", "é")
        ],
    }


def claimed(iss: str, sub: str, index: int | None) -> dict[str, Any]:
    """Return the id of a message, with what it is made of."""
    jti = "jjjjjjjjjjjjjjjj"
    token = claim_id(iss, sub, jti)
    found = token if index is None else batch_id(token, index)
    raw = sized(iss) + sized(sub) + jti.encode()
    return {
        "iss": iss,
        "sub": sub,
        "jti": jti,
        "index": index,
        "input_hex": raw.hex(),
        "id_hex": found.hex(),
    }


def claimed_release(iss: str, letter: str) -> dict[str, Any]:
    """Return the id of a release, with what it is made of."""
    raw = bytes(4) + sized(iss) + letter.encode()
    return {
        "iss": iss,
        "letter": letter,
        "input_hex": raw.hex(),
        "id_hex": release_id(iss, letter).hex(),
    }


def sized(text: str) -> bytes:
    """Return a text as the profile sizes it."""
    raw = text.encode()
    return len(raw).to_bytes(4, "big") + raw


def tokens() -> dict[str, Any]:
    """Return messages with their tokens and the verdict on them."""
    return {"profile": 1} | judged([*accepted(), *rejected()], sequences())


def other_consumers() -> dict[str, Any]:
    """Return messages for consumers with settings of their own, and the verdicts on them."""
    common = judged([], {})["consumer"] | {"jwks": settings.keys()}
    found = [
        *settings.at_append(), *settings.covered(), *settings.reached(), *settings.configured(),
        *settings.malformed(), *releases.accepted(), *releases.unwaived(), *releases.refused(),
    ]  # fmt: skip
    steps = settings.sequences() | releases.sequences()
    return {
        "profile": 1,
        "consumer": common,
        "consumers": settings.consumers() | releases.consumers(),
        "key_sets": settings.key_sets(),
        "vectors": [vector.form() for vector in found],
        "sequences": [
            {"name": name, "deliveries": [vector.form() for vector in deliveries]}
            for name, deliveries in steps.items()
        ],
    }


def generate() -> dict[str, str]:
    """Return the text of each file by its name."""
    FORGE.count = BATCH_FORGE.count = 0
    made = {
        "hds.json": hds(),
        "tokens.json": tokens(),
        "destinations.json": destinations(),
        "batch.json": batches(),
        "claims.json": claim_ids(),
        "answers.json": answers(),
        "jwks.json": key_sets(),
        "forms.json": forms(),
        "settings.json": other_consumers(),
        "identity.json": with_spire(identities()),
        "letters.json": letters(),
        "stores.json": stores(),
    }
    return {
        name: json.dumps(content, indent=1, ensure_ascii=True) + "\n"
        for name, content in made.items()
    }


if __name__ == "__main__":
    for file, text in generate().items():
        (FOLDER / file).write_text(text, encoding="ascii")
