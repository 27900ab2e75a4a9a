"""The signing contract: the promises of every ``SigningKey``, be it on disk, in a KMS or in another process.

Inherit ``SigningContract`` in a test class and provide two fixtures: ``signing_key``, the key under test, and
``public``, its public half as a ``Key`` without subjects. ``RotationContract`` is for a ``SigningKeySource``. Its
fixtures are ``source``, and ``rotate``, a function that gives the source another key and returns that key's public
half.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import pytest

from mqauth.errors import KeyChanged
from mqauth.judging.verifier import Issuer, Verifier
from mqauth.signer import Signer
from mqauth.testing.forge import AUDIENCE, ISSUER, SUBJECT
from mqauth.wire import base64url, envelope, jws
from mqauth.wire.claims import is_name
from mqauth.wire.keys import (
    ALGORITHMS,
    MAX_KID,
    Key,
    KeySet,
    SigningKey,
    SigningKeySource,
)
from mqauth.wire.message import Message

SIZES: Final = {
    "EdDSA": (64,),
    "ES256": (64,),
    "ES384": (96,),
    "PS256": range(256, 1025),
    "RS256": range(256, 1025),
}
"""Bytes of a raw JWS signature (RFC 7518, sections 3.3 to 3.5); a DER one of ECDSA has others."""
_MESSAGE: Final = Message(destination="kafka:orders", body=b"hello", key=b"42")
_THREADS: Final = 8
_EACH: Final = 25


class SigningContract:
    """What every ``SigningKey`` must do; the docstring of each test is the promise."""

    def test_kid_and_algorithm_are_those_of_the_public_half(
        self, signing_key: SigningKey, public: Key
    ) -> None:
        """The key has the kid and algorithm that consumers know, and keeps them."""
        assert is_name(signing_key.kid, 1, MAX_KID)
        assert signing_key.algorithm in ALGORITHMS
        assert (signing_key.kid, signing_key.algorithm) == (public.kid, public.algorithm)
        assert (signing_key.kid, signing_key.algorithm) == (public.kid, public.algorithm)

    @pytest.mark.parametrize("size", [0, 1, 300, 5000])
    def test_signature_holds(
        self, signing_key: SigningKey, public: Key, size: int
    ) -> None:
        """A signature over any bytes, up to about the largest token, is raw and verifies with the public half."""
        token = jws.compact(b"\xa5" * size, signing_key)
        assert len(signature_of(token)) in SIZES[public.algorithm]
        verify(token, public)

    def test_signature_is_over_these_bytes(
        self, signing_key: SigningKey, public: Key
    ) -> None:
        """A signature does not verify over other bytes."""
        token = jws.compact(b"one", signing_key)
        head, _, signature = token.split(".")
        other = ".".join((head, base64url.encode(b"two").decode(), signature))
        with pytest.raises(Exception, match="signature_invalid"):
            verify(other, public)

    def test_threads_share_it(self, signing_key: SigningKey, public: Key) -> None:
        """Threads that sign at the same time each get the signature of their own bytes."""

        def sign(thread: int) -> list[str]:
            return [
                jws.compact(b"%d/%d" % (thread, number), signing_key)
                for number in range(_EACH)
            ]

        with ThreadPoolExecutor(_THREADS) as pool:
            tokens = [
                token for signed in pool.map(sign, range(_THREADS)) for token in signed
            ]
        for token in tokens:
            verify(token, public)
        assert len(set(tokens)) == _THREADS * _EACH

    def test_messages_are_accepted(self, signing_key: SigningKey, public: Key) -> None:
        """A ``Signer`` with this key makes messages that a consumer accepts."""
        signer = Signer(
            key=signing_key, issuer=ISSUER, subject=SUBJECT, audience=AUDIENCE
        )
        assert accepted(signer.sign(_MESSAGE), public) == public.kid

    def test_it_shows_nothing(self, signing_key: SigningKey) -> None:
        """Neither ``repr`` nor ``str`` contains key material."""
        for text in (repr(signing_key), str(signing_key)):
            assert "PRIVATE" not in text
            assert len(text) < 256


class RotationContract:
    """What every ``SigningKeySource`` that follows rotation must do; the docstring of each test is the promise."""

    def test_key_handed_out_never_changes(
        self, source: SigningKeySource, rotate: Callable[[], Key]
    ) -> None:
        """A key taken before a rotation keeps its kid and algorithm, and never signs as another."""
        before = source.signing_key()
        named = (before.kid, before.algorithm)
        rotate()
        source.signing_key()
        assert (before.kid, before.algorithm) == named

    def test_rotation_is_followed(
        self, source: SigningKeySource, rotate: Callable[[], Key]
    ) -> None:
        """A running signer signs with the next key after a rotation, without an error in between."""
        signer = Signer(key=source, issuer=ISSUER, subject=SUBJECT, audience=AUDIENCE)
        first = kid_of(signer.sign(_MESSAGE))
        public = rotate()
        assert public.kid != first
        assert accepted(signer.sign(_MESSAGE), public) == public.kid

    def test_old_key_signs_as_itself_or_not_at_all(
        self, source: SigningKeySource, rotate: Callable[[], Key]
    ) -> None:
        """A token begun before a rotation is the old key's, or raises ``KeyChanged``; it never mixes two keys."""
        before = source.signing_key()
        old = jws.compact(b"x", before)
        public = rotate()
        source.signing_key()
        try:
            token = jws.compact(b"x", before)
        except KeyChanged:
            return
        assert jws.take_apart(token.encode()).kid == jws.take_apart(old.encode()).kid
        with pytest.raises(Exception, match="signature_invalid"):
            verify(token, public)


def verify(token: str, public: Key) -> None:
    """Verify a token with a public key."""
    jws.verify(jws.take_apart(token.encode("ascii")), public)


def signature_of(token: str) -> bytes:
    """Return the raw signature of a token."""
    return jws.take_apart(token.encode("ascii")).signature


def kid_of(message: Message) -> str:
    """Return the kid with which a message was signed."""
    return jws.take_apart(envelope.token_of(message)).kid


def accepted(message: Message, public: Key) -> str:
    """Verify a message as a consumer that knows this key, and return the kid with which it was signed."""
    issuer = Issuer(
        keys=KeySet([public]),
        subjects=None if public.subjects else {"*": frozenset((SUBJECT,))},
    )
    verifier = Verifier(keys={ISSUER: issuer}, audience=AUDIENCE)
    candidate = verifier.open(message)
    return verifier.verify(
        message, candidate, KeySet([public]), float(candidate.token.claims.iat)
    ).kid
