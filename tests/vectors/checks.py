"""Every vector as one check: a name, and a call that raises where the code does not do as its vector says.

Nothing here needs a test runner, so that whoever changes the code on purpose (``integration/mutation``) can ask
the vectors alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from mqauth.audit.chain import GENESIS, chain_hash
from mqauth.errors import ConfigurationError, MalformedMessage, Reason, Rejection
from mqauth.letters.dead_letter import DeadLetter
from mqauth.letters.release import Hop, Past
from mqauth.replay.rules import ClaimRequest, batch_id, claim_id, release_id
from mqauth.review import letter as review
from mqauth.stores.redis_script import Verb, script_call
from mqauth.testing.batchforge import leaf_hash, leaf_of
from mqauth.wire import base64url, batch, destination, envelope, jwk, strict_json
from mqauth.wire.json_form import JSON_DEPTH, from_form, to_form
from mqauth.wire.message import NO_ORIGIN, Message
from tests.vectors.consumers import Consumer
from tests.vectors.identity_consumer import IdentityConsumer

FOLDER: Final = Path(__file__).parent
JUDGED: Final = ("tokens", "answers", "batch", "settings", "identity")
"""The files of messages that a consumer judges."""
FILES: Final = (
    *JUDGED,
    "hds",
    "destinations",
    "claims",
    "jwks",
    "forms",
    "letters",
    "stores",
)
AMONG_MANY: Final = ("tokens", "answers", "batch", "identity")
"""The files whose vectors are judged by one consumer together, too."""
EVERY: Final = "every vector, "
"""How the names of checks begin, behind their file's, that are of many vectors by one consumer."""
Files = Mapping[str, Any]


class Check(NamedTuple):
    """A vector, by the name of its file and its own."""

    name: str
    run: Callable[[], None]


def read() -> dict[str, Any]:
    """Return the content of every file of vectors, by its name without ``.json``."""
    return {
        name: json.loads((FOLDER / f"{name}.json").read_text("ascii")) for name in FILES
    }


def checks(files: Files) -> list[Check]:
    """Return the checks of all vectors."""
    parts = (_judged(files), _sequences(files), _orders(files), _hds(files), _keys(files), _forms(files),
             _destinations(files), _ids(files), _batches(files), _letters(files), _stores(files))  # fmt: skip
    return [check for part in parts for check in part]


def consumer_of(file: Any, vector: Any) -> Consumer | IdentityConsumer:
    """Return the consumer that a vector is for, which has seen nothing yet."""
    if "long_key_sets" in file:
        return IdentityConsumer(file, vector["consumer"])
    return Consumer(file, vector.get("consumer"), vector.get("received"))


def judge(file: Any, vector: Any) -> None:
    """Judge the message of a vector by a new consumer."""
    consumer_of(file, vector).check(vector)


def judge_all(file: Any, vectors: list[Any]) -> None:
    """Judge the messages of vectors by one consumer."""
    consumer = consumer_of(file, vectors[0])
    for vector in vectors:
        consumer.check(vector)


def deliver(file: Any, sequence: Any) -> None:
    """Judge the deliveries of a sequence by one consumer."""
    judge_all(file, sequence["deliveries"])


def together(file: Any) -> list[Any]:
    """Return the vectors of a file that one consumer may judge together: no clock and no key set moves on."""
    now = ("common", None, file["received"])
    return [
        vector
        for vector in file["vectors"]
        if (
            vector.get("consumer", now[0]),
            vector.get("key_set"),
            vector.get("received", now[2]),
        )
        == now
    ]


def refuses(
    error: type[Exception] | tuple[type[Exception], ...],
    call: Callable[..., Any],
    *arguments: Any,
) -> None:
    """Expect a refusal."""
    try:
        call(*arguments)
    except error:
        return
    raise AssertionError("not refused")


def bind(vector: Any) -> None:
    """Hold the bytes under ``hds``, and their digest, against a vector's."""
    raw = envelope.headers_input(from_form(vector["message"]), vector["hdr"])
    assert raw.hex() == vector["input_hex"]
    assert (
        base64url.encode(hashlib.sha256(raw).digest()).decode()
        == base64url.digest(raw)
        == vector["hds"]
    )


def cover(vector: Any) -> None:
    """Hold the names that a producer covers against a vector's, and what it says of a message's parts."""
    message = from_form(vector["message"])
    found = envelope.bind(message)
    assert list(found.hdr) == vector["hdr"]
    assert (found.bod, found.key, found.dst) == (
        vector["bod"],
        vector["key"],
        vector["message"]["destination"],
    )
    assert found.hds == base64url.digest(envelope.headers_input(message, found.hdr))


def read_jwk(vector: Any) -> None:
    """Hold what a JWK becomes against its vector."""
    found = list(jwk.load_key_set({"keys": [vector["jwk"]]}))
    unreadable = [
        key.revocation is not None and key.revocation.revoked_at == 0 for key in found
    ]
    assert (
        unreadable
        == {"used": [False], "revoked": [True], "unused": []}[vector["becomes"]]
    )


def read_set(vector: Any) -> None:
    """Hold the kids of a JWK Set against its vector."""
    found = jwk.load_key_set(json.dumps({"keys": vector["keys"]}).encode())
    assert [key.kid for key in found] == vector["used"]


def size_set(vector: Any) -> None:
    """Fill a text up to a size with white space, and hold against its vector whether it is a JWK Set."""
    raw = vector["text"].encode().ljust(vector["bytes"])
    if vector["is_set"]:
        jwk.load_key_set(raw)
    else:
        refuses(ConfigurationError, jwk.load_key_set, raw)


def same_form(vector: Any) -> None:
    """Expect two forms to be one message, whose form is read to it again."""
    message = from_form(_read_again(vector["form"]))
    other, again = from_form(_read_again(vector["other"])), from_form(to_form(message))
    # forms too, in which 1 is not true
    assert repr(to_form(message)) == repr(to_form(other)) == repr(to_form(again))
    assert message == other == again


def read_text(vector: Any) -> None:
    """Hold the message that a text is against its vector, or its refusal."""

    def read() -> Message:
        return from_form(
            strict_json.loads(vector["text"].encode(), depth=JSON_DEPTH, wide=True)
        )

    if vector["form"] is None:
        refuses((strict_json.StrictJSONError, MalformedMessage), read)
    else:
        assert repr(to_form(read())) == repr(to_form(from_form(vector["form"])))


def _read_again(form: Any) -> Any:
    """Return a form as our strict reader finds it in a file."""
    return strict_json.loads(json.dumps(form).encode(), depth=JSON_DEPTH, wide=True)


def name_destination(vector: Any) -> None:
    """Hold the one spelling of a place against its vector, both ways."""
    if "topic" in vector:
        made, parts = destination.kafka(vector["topic"]), ("kafka", vector["topic"])
    else:
        parts = ("rabbitmq", vector["exchange"], vector["routing_key"])
        made = destination.rabbitmq(*parts[1:])
    assert (made, destination.parse(made)) == (vector["destination"], parts)


def claim(vector: Any) -> None:
    """Hold the id of a claim against its vector."""
    if "letter" in vector:
        found = release_id(vector["iss"], vector["letter"])
    else:
        found = claim_id(vector["iss"], vector["sub"], vector["jti"])
        found = found if vector["index"] is None else batch_id(found, vector["index"])
    assert found.hex() == vector["id_hex"]


def leaf(vector: Any) -> None:
    """Hold a leaf's hash and its twelve bytes against their vector."""
    message = from_form(vector["message"])
    headers = envelope.headers_input(message, vector["hdr"])
    assert b"".join(leaf_of(message, vector["hdr"])).hex() == "".join(vector["parts_hex"])
    found = batch.leaf_of(message, headers)
    assert batch.leaf_hash(found).hex() == vector["hash_hex"]
    assert batch.shorts_of(found).hex() == vector["shorts_hex"]


def tree(inputs: list[str], vector: Any) -> None:
    """Hold a tree's root and paths against its vector, and prove each leaf by its path in the file."""
    leaves = [leaf_hash(bytes.fromhex(text)) for text in inputs[: vector["size"]]]
    made = batch.Tree(leaves)
    assert made.root.hex() == vector["root_hex"]
    proven, paths = batch.Proven(made.root, len(leaves)), made.paths()
    for found in vector["paths"]:
        path = bytes.fromhex("".join(found["hashes_hex"]))
        assert paths[found["index"]] == path
        assert proven.proves(leaves[found["index"]], found["index"], path)


def make_letter(vector: Any) -> None:
    """Hold the id, the digest and the form of a dead letter against its vector."""
    message, past = from_form(_read_again(vector["message"])), vector["past"]
    letter = DeadLetter(
        message=message, rejection=Rejection(Reason(vector["reason"]), vector["detail"]), scope=vector["scope"],
        time=vector["time"] / 1000, audit=vector["audit"], error=vector["error"], rung=vector["rung"],
        release=None if past is None else _Released(past),  # type: ignore[arg-type]
    )  # fmt: skip
    assert message.origin.source == vector["source"]
    assert (letter.digest, letter.id) == (vector["digest"], vector["id"])
    made = {
        "whole": lambda: letter.whole(lambda *_: True),
        "json": letter.in_body,
        "reference": letter.reference,
    }
    said = to_form(
        replace(
            made[vector["form"]](),
            destination=vector["letter"]["destination"],
            origin=NO_ORIGIN,
        )
    )
    assert repr(said) == repr(vector["letter"])


class _Released:
    """What a letter takes of a release: the letters before it."""

    def __init__(self, past: Any) -> None:
        hops = (
            Hop(**hop | {"reason": hop["reason"] and Reason(hop["reason"])})
            for hop in past["hops"]
        )
        self.lineage = Past(count=past["count"], hops=tuple(hops))


def read_letter(vector: Any) -> None:
    """Hold whether a letter is intact against its vector."""
    reading = review.read(review.Letter(message=from_form(_read_again(vector["letter"]))))
    assert reading.intact is vector["intact"], reading.fault


def claim_in_redis(vector: Any) -> None:
    """Hold the key and the place of a claim in Redis against their vector; the store's own test has the rest."""
    place = None if vector["place"] is None else tuple(vector["place"])
    request = ClaimRequest(
        vector["scope"], bytes.fromhex(vector["id_hex"]), vector["owner"], place, False, 60.0, 0.0,
        index=vector["index"],
    )  # fmt: skip
    call = script_call(
        Verb.CLAIM, [request], namespace="mqauth", now=0.0, margin=60.0, lease_clock=None
    )
    assert call.keys[0].hex() == vector["key_hex"]
    assert str(call.arguments[-1]).endswith(
        str(bytes.fromhex(vector["done_hex"])[1:])[2:]
    )
    assert vector["held_hex"].endswith(vector["done_hex"][2:])


def follow(lines: list[str]) -> None:
    """Hold the hash of each line of an audit file against the line before it."""
    previous = GENESIS
    for line in lines:
        members = strict_json.loads(line.encode(), depth=8)
        own = members.pop("hash")
        assert members["prev"] == previous
        assert chain_hash(previous, members) == own
        previous = own


def _stores(files: Files) -> Iterator[Check]:
    for vector in files["stores"]["redis"]:
        yield Check(f"stores: {vector['name']}", partial(claim_in_redis, vector))
    yield Check(
        "stores: the lines of an audit file", partial(follow, files["stores"]["audit"])
    )


def _letters(files: Files) -> Iterator[Check]:
    for kind, call in (("made", make_letter), ("read", read_letter)):
        for vector in files["letters"][kind]:
            yield Check(f"letters: {kind}: {vector['name']}", partial(call, vector))


def _judged(files: Files) -> Iterator[Check]:
    for file in JUDGED:
        for vector in files[file]["vectors"]:
            yield Check(f"{file}: {vector['name']}", partial(judge, files[file], vector))


def _sequences(files: Files) -> Iterator[Check]:
    for file in ("tokens", "batch", "settings", "identity"):
        for sequence in files[file]["sequences"]:
            yield Check(
                f"{file}: {sequence['name']}", partial(deliver, files[file], sequence)
            )


def _orders(files: Files) -> Iterator[Check]:
    """Yield all vectors of one consumer, by one consumer: no verdict depends on the vectors before it."""
    for file in AMONG_MANY:
        for name, step in (("in order", 1), ("in reverse", -1)):
            run = partial(judge_all, files[file], together(files[file])[::step])
            yield Check(f"{file}: {EVERY}{name}", run)


def _hds(files: Files) -> Iterator[Check]:
    for kind, call in (("vectors", bind), ("covers", cover)):
        for vector in files["hds"][kind]:
            yield Check(f"hds: {kind}: {vector['name']}", partial(call, vector))
    for vector in files["hds"]["refused"]:
        run = partial(
            refuses,
            MalformedMessage,
            lambda form: envelope.bind(from_form(form)),
            vector["message"],
        )
        yield Check(f"hds: refused: {vector['name']}", run)


def _keys(files: Files) -> Iterator[Check]:
    for kind, call in (("vectors", read_jwk), ("sets", read_set)):
        for vector in files["jwks"][kind]:
            yield Check(f"jwks: {vector['name']}", partial(call, vector))
    for text in files["jwks"]["no_sets"]:
        run = partial(refuses, ConfigurationError, jwk.load_key_set, text.encode())
        yield Check(f"jwks: no set: {text[:40]}", run)
    for vector in files["jwks"]["sizes"]:
        yield Check(f"jwks: {vector['bytes']} bytes", partial(size_set, vector))


def _forms(files: Files) -> Iterator[Check]:
    for vector in files["forms"]["same"]:
        yield Check(f"forms: {vector['name']}", partial(same_form, vector))
    for vector in files["forms"]["malformed"]:
        run = partial(
            refuses,
            MalformedMessage,
            lambda form: from_form(_read_again(form)),
            vector["form"],
        )
        yield Check(f"forms: malformed: {vector['name']}", run)
    for at, vector in enumerate(files["forms"]["texts"]):
        yield Check(f"forms: text {at}", partial(read_text, vector))


def _destinations(files: Files) -> Iterator[Check]:
    for vector in (*files["destinations"]["rabbitmq"], *files["destinations"]["kafka"]):
        yield Check(
            f"destinations: {vector['destination']}", partial(name_destination, vector)
        )
    for text in files["destinations"]["malformed"]:
        yield Check(
            f"destinations: malformed: {text}",
            partial(refuses, MalformedMessage, destination.parse, text),
        )


def _ids(files: Files) -> Iterator[Check]:
    for kind in ("messages", "releases"):
        for at, vector in enumerate(files["claims"][kind]):
            yield Check(f"claims: {kind} {at}", partial(claim, vector))


def _batches(files: Files) -> Iterator[Check]:
    for vector in files["batch"]["leaves"]:
        yield Check(f"batch: leaf: {vector['name']}", partial(leaf, vector))
    for vector in files["batch"]["trees"]:
        run = partial(tree, files["batch"]["leaf_inputs_hex"], vector)
        yield Check(f"batch: tree of {vector['size']}", run)
