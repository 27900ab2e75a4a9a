"""Targets: what reads a token, its claims, keys, proofs, releases and the JSON form."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import cache
from typing import Any, Final

import jwt

from integration.fuzz.draw import Draw
from integration.fuzz.oracles import (
    CLAIM_REASONS,
    JWS_REASONS,
    TOKEN_REASONS,
    held,
    hold,
    judged,
    plain,
    strictly,
)
from mqauth.errors import ConfigurationError, MalformedMessage, Reason
from mqauth.judging.token import Token
from mqauth.letters import release
from mqauth.wire import (
    base64url,
    batch,
    claims,
    envelope,
    json_form,
    jwk,
    jws,
    memo,
    strict_json,
    template,
)
from mqauth.wire.claims import Batch, Claims
from mqauth.wire.message import TOKEN_HEADER, Message, fold
from tests.test_merkle import rfc_verifies
from tests.vectors.world import KEYS

_ALGORITHMS: Final = frozenset(("EdDSA", "Ed25519", "ES256", "ES384", "PS256", "RS256"))
_PUBLIC: Final = [replace(key, private=None) for key in KEYS.values()]
SIGNED: Final = set[bytes]()
"""SHA-256 of every text that the vectors have a signature of; ``seeds`` fills it."""


def token_header(raw: bytes) -> None:
    """Read the token of a message: exactly one, in its spelling, of its type and size, or a documented reason."""
    message = Draw(raw).message()
    found = judged(lambda: envelope.token_of(message), TOKEN_REASONS)
    spelt = [
        (name, value) for name, value in message.headers if fold(name) == TOKEN_HEADER
    ]
    assert found == (
        _token_in(message, spelt[0][1])
        if [name for name, _ in spelt] == [TOKEN_HEADER]
        else None
    )
    if found is None:
        return
    if found.isascii():
        bare = replace(
            message, headers=tuple(pair for pair in message.headers if pair not in spelt)
        )
        again = replace(bare, headers=envelope.attach(bare, found.decode("ascii")))
        assert envelope.token_of(again) == found


def _token_in(message: Message, value: object) -> bytes | None:
    """Return the token that a value is, by the profile: bytes on Kafka, ASCII text on RabbitMQ, 8,192 at most."""
    if envelope.is_kafka(message.destination):
        raw = value if isinstance(value, bytes) else None
    else:
        raw = value.encode() if isinstance(value, str) and value.isascii() else None
    return raw if raw is not None and len(raw) <= 8192 else None


def compact_jws(raw: bytes) -> None:
    """Take a token apart: it is the one spelling of its parts, PyJWT agrees, and no new signature holds."""
    opened = judged(lambda: jws.take_apart(raw), JWS_REASONS)
    if opened is None:
        return
    parts = (
        raw.split(b".")[0],
        base64url.encode(opened.payload),
        base64url.encode(opened.signature),
    )
    assert b".".join(parts) == raw
    assert len(raw) <= jws.MAX_TOKEN
    header = jwt.get_unverified_header(raw)
    assert header == {"alg": opened.algorithm, "typ": jws.TOKEN_TYPE, "kid": opened.kid}
    assert opened.algorithm in _ALGORITHMS
    key = parts[0], jws.TOKEN_TYPE
    assert held(key, (opened.algorithm, opened.kid)) <= memo.size_of(key)
    assert not opened.payload or repr(opened.payload) not in repr(opened)
    for public in _PUBLIC:
        if judged(lambda key=public: jws.verify(opened, key) or True, _UNSIGNED):  # type: ignore[misc]
            assert hashlib.sha256(opened.signing_input).digest() in SIGNED, (
                "a forged signature holds"
            )


_LEAVES: Final = 40
"""Most leaves of a tree."""
_STEPS: Final = 24
"""Most proofs that are followed one after another."""
_UNSIGNED: Final = frozenset((Reason.ALGORITHM_FORBIDDEN, Reason.SIGNATURE_INVALID))


def claim_set(raw: bytes) -> None:
    """Parse a payload: every reader of JSON reads the same, it is built again the same, within its bytes."""
    found = judged(lambda: claims.parse(raw), CLAIM_REASONS)
    if found is None:
        return
    assert plain(strictly(raw)) == plain(found.as_dict())
    assert plain(claims.parse(claims.build(found))) == plain(found)
    segment = base64url.encode(b'{"alg":"EdDSA","typ":"mqauth+jwt","kid":"k"}')
    text = b".".join((segment, base64url.encode(raw), base64url.encode(bytes(64))))
    if len(text) <= jws.MAX_TOKEN:
        token = Token(text, jws.take_apart(text), found)
        assert held(token) <= token.size, (
            f"a token takes {held(token)} bytes, charged {token.size}"
        )


def payload_template(raw: bytes) -> None:
    """Read one payload by what was learnt of another: the same claims as the parser's, or nothing."""
    first, _, second = raw.partition(b"\n")
    learnt = judged(lambda: claims.parse(first), CLAIM_REASONS)
    reader = None if learnt is None else template.reader_of(first, learnt)
    if reader is None or len(second) != reader.length:
        return
    read = reader.read(second)
    if read is not None:
        assert plain(read) == plain(claims.parse(second)), (
            "the short cut reads other claims"
        )


def jwk_set(raw: bytes) -> None:
    """Read a JWK Set: what is used is public, within its limits, and the same once published again."""
    try:
        found = jwk.load_key_set(raw)
    except ConfigurationError as error:
        hold(len(str(error)) < 1024, "an error quotes what it refuses")
        return
    assert len(raw) <= jwk.MAX_DOCUMENT
    assert all(len(line) < 1024 for line in found.skipped)
    assert all(key.private is None and key.algorithm in _ALGORITHMS for key in found)
    again = jwk.load_key_set(strict_json.dumps(jwk.dump_key_set(found)))
    assert again.skipped == ()
    assert {key.kid: key for key in again} == {key.kid: key for key in found}


def batch_proof(raw: bytes) -> None:
    """Read proofs and follow their paths: as RFC 9162 verifies them, whatever was remembered of others."""
    draw = Draw(raw)
    size = 1 + draw.number(2) % claims.MAX_BATCH
    leaves, root, paths = _tree(min(size, _LEAVES))
    proven = batch.Proven(root, len(leaves))
    made = Claims(
        "i", "s", "a", 0, 1, "j" * 16, Batch(base64url.encode(root).decode(), len(leaves))
    )
    for at, flips, text in draw.listed(lambda: (draw.number(), draw.some(), draw.some()))[
        :_STEPS
    ]:
        _follow(
            proven,
            leaves,
            root,
            at % len(leaves),
            _flipped(paths[at % len(leaves)], flips),
        )
        proof = judged(
            lambda text=text: batch.proof_of(text, made),
            frozenset((Reason.PROOF_INVALID,)),
        )  # type: ignore[misc]
        if proof is not None:
            assert batch.proof_text(*proof).encode("ascii") == batch.SEPARATOR + text
            _follow(proven, leaves, root, proof.place, proof.path)
    assert held(proven) <= _token_of(made).size


@cache
def _tree(size: int) -> tuple[list[bytes], bytes, list[bytes]]:
    """Return leaves, the root and the path of each leaf."""
    leaves = [hashlib.sha256(b"%d" % number).digest() for number in range(size)]
    tree = batch.Tree(leaves)
    return leaves, tree.root, tree.paths()


def _token_of(made: Claims) -> Token:
    return Token(b"." * 300, jws.Opened("EdDSA", "k", b"", b"", b""), made)


def _flipped(path: bytes, flips: bytes) -> bytes:
    """Return a path with some bytes changed, cut or added."""
    found = bytearray(path)
    for at, mask in zip(flips[::2], flips[1::2], strict=False):
        if at < len(found):
            found[at] ^= mask
    return bytes(found[: len(found) - (flips[0] if len(flips) % 2 else 0)])


def _follow(
    proven: batch.Proven, leaves: list[bytes], root: bytes, at: int, path: bytes
) -> None:
    size = 32
    steps = [path[start : start + size] for start in range(0, len(path), size)]
    whole = len(path) % size == 0
    expected = whole and rfc_verifies(leaves[at], at, len(leaves), steps, root)
    assert proven.proves(leaves[at], at, path) is expected, (
        "a path is judged otherwise than RFC 9162 does"
    )


def release_payload(raw: bytes) -> None:
    """Parse the payload of a release: nothing but its claims, and the same once written again."""
    found = judged(lambda: release.parse(raw), CLAIM_REASONS | {Reason.RELEASE_INVALID})
    if found is None:
        return
    assert release.parse(strict_json.dumps(found.as_dict())) == found
    assert found.waive <= set(release.WAIVABLE)
    assert len(found.lineage.hops) <= release.MAX_HOPS


def parsed_form(raw: bytes) -> Message | None:
    """Return the message of a JSON form, ``None`` where it is refused in the documented way."""
    try:
        form: Any = strict_json.loads(raw, depth=json_form.JSON_DEPTH, wide=True)
    except strict_json.StrictJSONError:
        return None
    assert plain(form) == plain(strictly(raw)), "the strict reader reads another value"
    try:
        return json_form.from_form(form)
    except MalformedMessage as error:
        hold(len(str(error)) <= 200, "an error quotes what it refuses")
        return None


def form_of_message(raw: bytes) -> None:
    """Read the JSON form of a message: it is written and read again the same, where brokers carry its values."""
    message = parsed_form(raw)
    if message is None:
        return
    written = strict_json.dumps(json_form.to_form(message))
    again = parsed_form(written)
    assert again is not None, "what was read is refused once it is written again"
    assert strict_json.dumps(json_form.to_form(again)) == written
    for name in (
        "destination",
        "body",
        "key",
        "properties",
        "origin",
        *(("headers",) * is_carried(message)),
    ):
        assert plain(getattr(message, name)) == plain(getattr(again, name)), (
            f"another {name}"
        )


def is_carried(message: Message) -> bool:
    """Tell whether every header value has an encoding; the JSON form names the others instead of keeping them."""
    try:
        envelope.add_named([], "", [value for _, value in message.headers])
    except MalformedMessage:
        return False
    return True
