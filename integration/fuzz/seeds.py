"""The first inputs of each target, made of the vectors; what fuzzing finds beyond them is kept in ``corpus``."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Final

from integration.fuzz.draw import packed_message, sized
from mqauth.errors import MalformedMessage, Rejection
from mqauth.letters.release import RELEASE_HEADER
from mqauth.wire import batch, jws
from mqauth.wire.json_form import from_form
from mqauth.wire.message import TOKEN_HEADER, Message

VECTORS: Final = Path(__file__).parents[2] / "tests" / "vectors"
_FILES: Final = ("tokens", "batch", "answers", "settings")


@cache
def vectors(name: str) -> Any:
    """Return the content of one vector file."""
    return json.loads((VECTORS / f"{name}.json").read_bytes())


def forms_of(found: Any) -> Iterator[dict[str, Any]]:
    """Yield every message in a vector file, in the JSON form."""
    if isinstance(found, dict):
        if "destination" in found and "body" in found:
            yield found
        else:
            for inner in found.values():
                yield from forms_of(inner)
    elif isinstance(found, list):
        for inner in found:
            yield from forms_of(inner)


@cache
def forms() -> tuple[dict[str, Any], ...]:
    """Return every message of the vectors, in the JSON form, malformed ones too."""
    files = [vectors(name) for name in (*_FILES, "hds", "forms")]
    return tuple(form for found in files for form in forms_of(found))


@cache
def messages() -> tuple[Message, ...]:
    """Return every well-formed message of the vectors."""
    found = []
    for form in forms():
        try:
            found.append(from_form(form))
        except MalformedMessage:
            continue
    return tuple(found)


def tokens(header: str = TOKEN_HEADER) -> Iterator[bytes]:
    """Yield the tokens of the vectors' messages, with the proof of a batch."""
    for message in messages():
        yield from _texts(message, header)


def token_values(form: dict[str, Any], header: str = TOKEN_HEADER) -> Iterator[bytes]:
    """Yield the tokens of a message in the JSON form, none where it is malformed."""
    with suppress(MalformedMessage):
        yield from _texts(from_form(form), header)


def _texts(message: Message, header: str) -> Iterator[bytes]:
    for name, value in message.headers:
        if name == header and isinstance(value, str | bytes):
            yield value if isinstance(value, bytes) else value.encode("utf-8", "replace")


def compact() -> Iterator[bytes]:
    """Yield the tokens without their proofs."""
    for token in tokens():
        yield token.partition(batch.SEPARATOR)[0]


def payloads(header: str = TOKEN_HEADER, typ: str = jws.TOKEN_TYPE) -> Iterator[bytes]:
    """Yield the payloads of tokens that can be taken apart."""
    for token in tokens(header):
        try:
            yield jws.take_apart(token.partition(batch.SEPARATOR)[0], typ=typ).payload
        except Rejection:
            continue


def pairs_of_payloads() -> Iterator[bytes]:
    """Yield two payloads each: the one that is learnt from, and one of its length."""
    found = [payload for payload in payloads() if b"\n" not in payload]
    for first, second in itertools.pairwise(found):
        yield first + b"\n" + (second if len(second) == len(first) else first)


def key_sets() -> Iterator[bytes]:
    """Yield JWK Sets of the vectors."""
    found = vectors("jwks")
    for vector in found["vectors"]:
        yield json.dumps({"keys": [vector["jwk"]]}).encode()
    for vector in found["sets"]:
        yield json.dumps({"keys": vector["keys"]}).encode()
    yield from (text.encode() for text in found["no_sets"])


def proofs() -> Iterator[bytes]:
    """Yield ways through trees: honest ones, and texts behind the batch tokens of the vectors."""
    texts = [
        token.partition(batch.SEPARATOR)[2]
        for token in tokens()
        if batch.SEPARATOR in token
    ]
    for size in (1, 2, 5, 8, 17):
        each = b"".join(
            bytes((at,)) + b"\0" + sized(texts[at % len(texts)]) for at in range(6)
        )
        yield (size - 1).to_bytes(2, "big") + b"\6" + each
    for text in texts:
        yield b"\0\4\1" + bytes((len(text) % 5,)) + b"\2\3\1" + sized(text)


def written_forms() -> Iterator[bytes]:
    """Yield the JSON forms as text."""
    yield from (json.dumps(form).encode() for form in forms())


def drawn() -> Iterator[bytes]:
    """Yield the messages as ``Draw`` reads them."""
    yield from map(packed_message, messages())


def signed() -> set[bytes]:
    """Return SHA-256 of what every token of the vectors signs."""
    found = (*compact(), *tokens(RELEASE_HEADER))
    return {hashlib.sha256(token.rpartition(b".")[0]).digest() for token in found}


def few(
    make: Callable[[], Iterator[bytes]], most: int = 64, longest: int = 4096
) -> list[bytes]:
    """Return at most so many different seeds, spread over all of them."""
    found = [seed for seed in dict.fromkeys(make()) if len(seed) <= longest]
    return found[:: -(-len(found) // most)] if found else []
