"""Vectors of what implementations share beside messages: claims in Redis, and the chain of an audit file."""

from __future__ import annotations

from typing import Any, Final

from mqauth.audit.chain import GENESIS, chain_hash
from mqauth.replay.rules import ClaimRequest, batch_id, claim_id
from mqauth.stores.redis_script import ScriptCall, Verb, script_call
from mqauth.wire import strict_json
from mqauth.wire.message import Origin

OWNER: Final = "0123456789abcdef01234567"
ENDS: Final = 1_900_000_060_000
"""Milliseconds at which the lease ends."""


def claims_in_redis() -> list[dict[str, Any]]:
    """Return keys, fields and values of claims, held and done."""
    token = claim_id("https://auth.example", "orders-api", "j" * 16)
    there = Origin(
        topic="orders",
        partition=2,
        offset=17,
        cluster="q1Sh-9_ISia_zwGINzRvyQ",
        topic_id="dAuV3yR2SqOq",
    )
    bare = Origin(topic="orders", partition=0, offset=0)
    cases = [
        ("on RabbitMQ", "billing in", token, None, Origin(queue="billing in")),
        ("on Kafka", "billing", token, None, there),
        ("on Kafka without cluster and topic id", "billing", token, None, bare),
        ("in a batch", "\u00fc", batch_id(token, 258), 258, there),
    ]
    return [_claim(*case) for case in cases]


def _claim(
    name: str, scope: str, token: bytes, index: int | None, origin: Origin
) -> dict[str, Any]:
    request = ClaimRequest(
        scope, token, OWNER, origin.coordinates, False, 60.0, 1_900_000_000.0, index=index
    )
    call: ScriptCall = script_call(
        Verb.CLAIM,
        [request],
        namespace="mqauth",
        now=1_900_000_000.0,
        margin=60.0,
        lease_clock=None,
    )
    argument = call.arguments[-1]
    assert isinstance(argument, bytes)
    # what the script is given behind the owner is the digest of the place
    place = argument.partition(OWNER.encode())[2]
    held = b"h%d %d %s" % (ENDS, len(OWNER), OWNER.encode() + place)
    return {
        "name": name, "scope": scope, "id_hex": token.hex(), "index": index,
        "place": None if origin.coordinates is None else list(origin.coordinates),
        "owner": OWNER, "lease_ends": ENDS,
        "key_hex": call.keys[0].hex(), "held_hex": held.hex(), "done_hex": (b"d" + place).hex(),
    }  # fmt: skip


def audit_chain() -> list[str]:
    """Return the lines of an audit file, each with the hash of the one before it."""
    lines, previous = [], GENESIS
    for number, scope in enumerate(("billing", "\u00fc")):
        members: dict[str, Any] = {
            "v": 1,
            "id": f"r-{number}",
            "scope": scope,
            "prev": previous,
        }
        previous = chain_hash(previous, members)
        lines.append(strict_json.dumps(members | {"hash": previous}).decode())
    return lines


def stores() -> dict[str, Any]:
    """Return the vectors."""
    return {"profile": 1, "redis": claims_in_redis(), "audit": audit_chain()}
