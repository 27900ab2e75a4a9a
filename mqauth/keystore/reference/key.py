"""A key that a keystore names by a URI, and that an HSM or a service holds; what chooses the holder by scheme.

To add a kind of holder, write a class with the members of ``Holder``, and add its line to ``SCHEMES``. A holder
is made without asking anything, so that a producer starts while its HSM is out of reach.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pkgutil import resolve_name
from typing import ClassVar, Final, Protocol

import tenacity

from mqauth.clock import SYSTEM_CLOCK
from mqauth.errors import (
    Cause,
    ConfigurationError,
    Rejection,
    Unavailable,
    refusing,
    require,
)
from mqauth.logs import Rate, emit
from mqauth.wire import jwk, jws
from mqauth.wire.keys import Key, PublicKey, natural_algorithm, public_members, thumbprint

tried: Final = tenacity.Retrying(
    stop=tenacity.stop_after_attempt(3),
    wait=tenacity.wait_random_exponential(multiplier=0.1, max=1.0),
    retry=tenacity.retry_if_not_exception_type(ConfigurationError),
    reraise=True,
)
"""What is out of reach is asked three times; what was refused is not, for an HSM counts wrong PINs."""

SCHEMES: Final = {
    "pkcs11": ("mqauth.keystore.reference.pkcs11:TokenKey", "pkcs11"),
    "transit": ("mqauth.keystore.reference.transit:TransitKey", ""),
    "awskms": ("mqauth.keystore.reference.awskms:KmsKey", "aws"),
}
"""The ``Holder`` of a key by the scheme of its URI, and the extra that it needs; imported when it is asked for."""


class Holder(Protocol):
    """What holds one private key, and signs with it; threads share it, and a child after a fork.

    Each call takes ``TIMEOUT`` at most, and is one attempt. It raises nothing but:

    * ``Unavailable``, ``keys_unavailable``: the host or token, named in the detail, is out of reach. It is tried
      again.
    * ``ConfigurationError``: what was found is not what the URI names, or refuses us. It is not tried again.
    """

    @property
    def generation(self) -> int | None:
        """A number that changes with each connection; the first signature after a change is checked again.

        ``None`` where others may stand between us and the holder: then each signature is checked.
        """

    def public(self) -> PublicKey:
        """Return the public half."""

    def sign(self, data: bytes, algorithm: str, /) -> bytes:
        """Return the raw JWS signature over ``data`` (RFC 7518, section 3.4; RFC 8037, section 3.1).

        Args:
            data: the signing input, not digested.
            algorithm: one of ``ALGORITHMS``, that of the key.
        """


class ReferenceKey:
    """A key of a keystore whose private half is elsewhere: a ``SigningKey`` that may block.

    Its first signature in a process, or over a new connection, is checked against the public half, so that a
    mixed-up key is found before a consumer meets it.

    Args:
        key: the public half, with algorithm and subjects.
        uri: names the private half.
        holder: in place of the one that the URI names.

    Raises:
        ConfigurationError: the URI is of no known scheme or is not well formed, or a library is missing.
    """

    blocking: ClassVar[bool] = True
    """An event loop has such a key sign on a thread."""

    def __init__(self, key: Key, uri: str, holder: Holder | None = None) -> None:
        self.uri = uri
        self._key = key.public_only
        self.kid, self.algorithm, self.subjects = key.kid, key.algorithm, key.subjects
        self._holder = holder or open_holder(uri)
        self._checked: tuple[int, int | None] | None = None
        self._rate = Rate(SYSTEM_CLOCK)

    def sign(self, data: bytes, /) -> bytes:
        """Return the raw JWS signature over ``data``.

        Raises:
            Unavailable: ``keys_unavailable``: its holder was out of reach three times.
            ConfigurationError: its holder refuses us, or signs with another key.
        """
        try:
            return tried(self._signed, data)
        except Unavailable as error:
            if self._rate.admits("signer.unavailable", (error.detail,), {}):
                emit(
                    "signer.unavailable",
                    "nothing is signed with key %s: %s",
                    self.kid,
                    error.detail,
                )
            raise

    def _signed(self, data: bytes) -> bytes:
        """Return the signature that one attempt gave, checked where it must be."""
        before = (os.getpid(), self._holder.generation)
        signature = self._holder.sign(data, self.algorithm)
        # A lost connection is opened again within the call, and then its first signature is this one.
        same = before[1] is not None and before[1] == self._holder.generation
        if not same or before != self._checked:
            try:
                jws.verify(
                    jws.Opened(self.algorithm, self.kid, data, b"", signature), self._key
                )
            except Rejection as error:
                text = f"{self.uri}: signs with another key than {self.kid}"
                # Who stands between us and a holder may have answered in its place, and be gone later.
                if self._holder.generation is None:
                    raise Unavailable(Cause.KEYS_UNAVAILABLE, text) from error
                raise ConfigurationError(f"{text}, the key of the keystore") from error
            self._checked = before if same else None
        return signature


def open_holder(uri: str) -> Holder:
    """Return what holds the private key that a URI names; nothing is asked yet.

    Raises:
        ConfigurationError: the URI is of no known scheme or is not well formed, or a library is missing.
    """
    scheme = uri.partition(":")[0]
    require(
        scheme in SCHEMES,
        f"the schemes of a key's uri are {', '.join(SCHEMES)}, not {scheme!r}",
    )
    named, extra = SCHEMES[scheme]
    with refusing(
        ImportError, f"a {scheme} key needs the extra: pip install 'mqauth[{extra}]'"
    ):
        kind: Callable[[str], Holder] = resolve_name(named)
    return kind(uri)


def adopted(uri: str) -> Key:
    """Return the public half of the key that a URI names, once it has signed something that this half verifies.

    Raises:
        Unavailable: ``keys_unavailable``: its holder was out of reach three times.
        ConfigurationError: the URI, its holder or the key is not as it must be.
    """
    holder = open_holder(uri)
    # Read as a consumer reads it: under a point of small order anything verifies.
    public = jwk.public_key(public_members(tried(holder.public)))
    key = Key(kid=thumbprint(public), algorithm=natural_algorithm(public), public=public)
    ReferenceKey(key, uri, holder).sign(b"mqauth: the first signature of an adopted key")
    return key
