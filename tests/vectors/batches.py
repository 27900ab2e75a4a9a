"""The vectors of batch tokens: trees, leaves, and messages of batches with the verdict on them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mqauth.testing import ATTACKS, BATCH_ATTACKS
from mqauth.testing.batchforge import SIZE, ForgedBatch, forge_batch, leaf_hash, leaf_of
from mqauth.testing.token_attacks import honest_message
from mqauth.wire.batch import HASH_BYTES, Tree
from mqauth.wire.json_form import to_form
from mqauth.wire.message import Message, Origin
from tests.vectors.world import (
    BATCH_FORGE,
    EVERY_TYPE,
    FORGE,
    KAFKA,
    RABBITMQ,
    Case,
    Deliveries,
    added,
    at,
    judged,
    kafka,
    rabbit,
)  # fmt: skip


def in_batch(messages: list[Message], **bends: Any) -> ForgedBatch:
    """Return messages under one signature."""
    return forge_batch(FORGE, messages, **bends)


def numbered(size: int, place: str = KAFKA) -> ForgedBatch:
    """Return a batch of honest messages that all differ."""
    return in_batch([honest_message(place, number) for number in range(size)])


def batch_accepted() -> list[Case]:
    """Return messages of batches that are verified and handled."""
    five, largest, rabbits = numbered(SIZE), numbered(1024), numbered(3, RABBITMQ)
    mixed = in_batch(
        [
            kafka(),
            kafka(body=None),
            kafka(key=None),
            kafka(headers=()),
            kafka(body=b"", key=b""),
        ]
    )
    bare, lie = in_batch([kafka(headers=()), kafka()], cover=[]), numbered(SIZE).messages
    other = numbered(SIZE)
    larger = in_batch(list(lie), tree={"size": SIZE + 1})
    found = [(f"place {place} of five", five.seal(place)) for place in range(SIZE)]
    found += [
        (f"place {place} of three on RabbitMQ", rabbits.seal(place)) for place in range(3)
    ]
    found += [
        (f"place {place} of the largest batch", largest.seal(place))
        for place in (0, 1, 512, 1023)
    ]
    names = (
        "a message",
        "a tombstone",
        "no record key",
        "a covered header that is absent",
        "empty body and key",
    )
    found += [
        (f"{name} among others", mixed.seal(place)) for place, name in enumerate(names)
    ]
    found += [
        ("a batch of one", numbered(1).seal(0)),
        ("a batch that covers no headers", bare.seal(0)),
        ("an uncovered header in a batch", bare.seal(1)),
        ("twelve bytes that are wrong before a path that is right", other.seal(
            1, proof=other.proof(1, shorts=bytes(12)))),
        ("a size that is wrong where the path is the same", larger.seal(0)),
        ("every type of value in a batch", in_batch([rabbit(headers=EVERY_TYPE), rabbit()]).seal(0)),
        ("a header of a transport added in a batch", added(other.seal(3), "traceparent", b"00-x")),
    ]  # fmt: skip
    return [(name, message, "accepted", None) for name, message in found]


def batch_rejected() -> list[Case]:
    """Return every attack, that on a single message too, mounted on messages of batches."""
    found = [
        (attack, place)
        for attack in (*ATTACKS, *BATCH_ATTACKS)
        for place in (KAFKA, RABBITMQ)
    ]
    attacks = [
        (f"{attack.name} on {place}", attack.mount(BATCH_FORGE, honest_message(place)), "rejected",
         attack.reason.value)
        for attack, place in found if attack.fits(place)
    ]  # fmt: skip
    return attacks + batch_edges()


def batch_edges() -> list[Case]:
    """Return messages of batches on edges that no attack stands on."""
    five, text = numbered(SIZE), rabbit(headers=(("tenant", "\u00e9"),))
    twin = added(five.seal(0), "Tenant", b"evil")
    behind = five.seal(0, number=str(SIZE), proof=bytes(12 + 2 * HASH_BYTES))
    others = in_batch(list(five.messages), claims={"aud": "x"})
    few = others.seal(0, proof=bytes(12 + HASH_BYTES))
    return [
        ("a hash too few beside a wrong audience", few, "rejected", "proof_invalid"),
        ("the place behind the last, and twelve wrong bytes", behind, "rejected", "proof_invalid"),
        ("a twin in another case in a batch", twin, "rejected", "headers_mismatch"),
        ("a twin in another case before the destination in a batch", replace(twin, destination="kafka:other"),
         "rejected", "headers_mismatch"),
        ("text beyond ASCII in a batch", in_batch([text, rabbit()]).seal(0), "accepted", None),
    ]  # fmt: skip


def batch_sequences() -> dict[str, Deliveries]:
    """Return siblings one after the other: none changes another's verdict."""
    found, rabbits, largest = numbered(8), numbered(3, RABBITMQ), numbered(1024)
    tail = bytearray(found.tree.paths()[1])
    tail[-1] ^= 1
    bent = found.seal(1, proof=found.proof(1, path=bytes(tail)))
    evil = replace(found.messages[2], body=b"evil")
    shorts = leaf_of(evil, found.names).shorts
    again, once = (
        replace(rabbits.seal(1), origin=Origin(queue="orders", redelivered=r))
        for r in (True, False)
    )
    return {
        "each sibling once, in any order": [
            (at(found.seal(5), 0), "accepted", None), (at(found.seal(0), 1), "accepted", None),
            (at(found.seal(5), 2), "rejected", "replayed"), (at(found.seal(5), 0), "accepted", None),
            (at(found.seal(7), 3), "accepted", None), (at(found.seal(0), 4), "rejected", "replayed"),
        ],
        "a path altered in its tail after a sibling was proven": [
            (at(found.seal(0), 0), "accepted", None), (at(bent, 1), "rejected", "proof_invalid"),
            (at(found.seal(1), 2), "accepted", None), (at(bent, 3), "rejected", "proof_invalid"),
        ],
        "another message under an index that was handled, and under one that was not": [
            (at(found.seal(2), 0), "accepted", None), (at(found.seal(2, evil), 1), "rejected", "body_mismatch"),
            (at(found.seal(2, evil, proof=found.proof(2, shorts=shorts)), 2), "rejected", "proof_invalid"),
            (at(found.seal(3, evil), 3), "rejected", "record_key_mismatch"),
            (at(found.seal(3), 4), "accepted", None),
        ],
        "siblings far apart in the largest batch": [
            (at(largest.seal(place), place), "accepted", None)
            for place in (2, 1023, 1022, 513, 512, 1, 0, 768, 767)
        ],
        "RabbitMQ: a redelivered sibling is a duplicate, another one is not": [
            (once, "accepted", None), (again, "duplicate", None), (once, "rejected", "replayed"),
            (replace(rabbits.seal(2), origin=Origin(queue="orders", redelivered=True)), "accepted", None),
        ],
    }  # fmt: skip


def trees() -> list[dict[str, Any]]:
    """Return roots and inclusion paths over the first of the leaf inputs."""
    found = []
    for size in (*range(1, 10), 64, 1024):
        tree = Tree([leaf_hash(leaf_input(index)) for index in range(size)])
        places = (
            range(size)
            if size < 64
            else sorted({0, 1, 2, size // 2 - 1, size // 2, size - 2, size - 1})
        )
        found.append({
            "size": size, "root_hex": tree.root.hex(),
            "paths": [{"index": index, "hashes_hex": hashes_of(tree.paths()[index])} for index in places],
        })  # fmt: skip
    return found


def leaf_input(index: int) -> bytes:
    """Return what the leaf at an index of every tree is the hash of."""
    return index.to_bytes(2, "big")


def hashes_of(path: bytes) -> list[str]:
    """Return the hashes of a path."""
    return [
        path[start : start + HASH_BYTES].hex()
        for start in range(0, len(path), HASH_BYTES)
    ]


def leaves() -> list[dict[str, Any]]:
    """Return messages with the exact bytes their leaves are the hash of."""
    cases = [
        ("on Kafka", kafka(), ["tenant"]), ("on RabbitMQ", rabbit(), ["tenant"]), ("no headers", kafka(), []),
        ("a tombstone without record key", kafka(body=None, key=None), ["tenant"]),
        ("empty body and record key", kafka(body=b"", key=b""), ["tenant"]),
        ("a covered header that is absent", kafka(), ["absent", "tenant"]),
    ]  # fmt: skip
    found = []
    for name, message, names in cases:
        leaf = leaf_of(message, names)
        found.append({
            "name": name, "message": to_form(message), "hdr": names,
            "parts_hex": [part.hex() for part in leaf],
            "hash_hex": leaf.hash.hex(), "shorts_hex": leaf.shorts.hex(),
        })  # fmt: skip
    return found


def batches() -> dict[str, Any]:
    """Return trees, leaves, and messages of batches with the verdict on them."""
    return {
        "profile": 1, "leaf_inputs_hex": [leaf_input(index).hex() for index in range(1024)], "trees": trees(),
        "leaves": leaves(),
    } | judged([*batch_accepted(), *batch_rejected()], batch_sequences())  # fmt: skip
