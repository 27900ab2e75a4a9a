"""Keys with their algorithm pinned, the immutable set that a consumer looks them up in, and where sets come from.

The algorithm belongs to the key and never to the token: a token that chose it could have an RSA public key used
as an HMAC secret. Sources: RFC 7517 (JWK), RFC 7518 section 6, RFC 7638 (thumbprints), RFC 8037 and RFC 9864
(Ed25519).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Protocol, TypeAlias, runtime_checkable

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from mqauth.errors import ConfigurationError, file_errors, refusing, require
from mqauth.wire import base64url

PrivateKey: TypeAlias = (
    ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
)
PublicKey: TypeAlias = (
    ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey | rsa.RSAPublicKey
)

MIN_RSA_BITS: Final = 2048
MAX_RSA_BITS: Final = 8192
MIN_RSA_EXPONENT: Final = 65537
MAX_KID: Final = 128
NO_CUTOFFS: Final[Mapping[str, Cutoff]] = MappingProxyType({})
_CURVES: Final = {"secp256r1": "ES256", "secp384r1": "ES384"}
_RSA: Final = partial(rsa.generate_private_key, MIN_RSA_EXPONENT, 3072)
_GENERATORS: Final[Mapping[str, Callable[[], PrivateKey]]] = {
    "EdDSA": ed25519.Ed25519PrivateKey.generate,
    "ES256": partial(ec.generate_private_key, ec.SECP256R1()),
    "ES384": partial(ec.generate_private_key, ec.SECP384R1()),
    "PS256": _RSA,
    "RS256": _RSA,
}
"""What makes a new key, by algorithm."""
ALGORITHMS: Final = tuple(_GENERATORS)


class SigningKey(Protocol):
    """Signs: a key on disk, a KMS, an HSM. ``sign`` returns the raw JWS signature (RFC 7518, section 3.4).

    A key, or a source, that may wait for somebody has ``blocking`` true beside: event loops then sign on a thread.
    """

    @property
    def kid(self) -> str:
        """The key id, at most 128 characters."""

    @property
    def algorithm(self) -> str:
        """One of ``ALGORITHMS``."""

    def sign(self, data: bytes, /) -> bytes:
        """Return the signature over ``data``.

        Raises:
            KeyChanged: the key signs no more; its source has another.
            Unavailable: ``keys_unavailable``, whoever holds the key cannot be reached.
        """


@runtime_checkable
class SigningKeySource(Protocol):
    """Where the key of a running producer comes from; what ``KeySource`` is for a consumer.

    A key that was handed out never changes, so that ``kid``, ``algorithm`` and signature of a token are of one
    key. A key that may speak for some subjects only has these as ``subjects``.
    """

    def signing_key(self) -> SigningKey:
        """Return the key that signs now; it is called for each token, so it must be cheap.

        Raises:
            ConfigurationError: no key may sign.
            Unavailable: ``keys_unavailable``, whoever holds the key cannot be reached.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocation:
    """The revocation of a key, from ``revoked_at`` on (UTC seconds); 0 revokes all it ever signed."""

    revoked_at: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cutoff:
    """From when on identities of a subject count again: a WIT issued before is refused (``mqauth_cutoff``).

    Args:
        before: UTC seconds.
        reason: for people.
    """

    before: int
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Key:
    """One asymmetric key with its algorithm; ``repr`` shows its kid and its algorithm only.

    Args:
        kid: the key id; by default the RFC 7638 thumbprint.
        algorithm: one of ``ALGORITHMS``.
        public: the public half.
        private: the private half, of a producer's key.
        subjects: the producers it may speak for; ``None`` if the key does not say.
        expires: UTC seconds from which it signs nothing new (it is retired), or ``None``.
        revocation: whether and from when it is revoked.
    """

    kid: str
    algorithm: str
    public: PublicKey
    private: PrivateKey | None = None
    subjects: frozenset[str] | None = None
    expires: int | None = None
    revocation: Revocation | None = None

    def __post_init__(self) -> None:
        natural, public = natural_algorithm(self.public), self.public
        require(
            self.algorithm == natural
            or (natural == "RS256" and self.algorithm == "PS256"),
            "the algorithm is not one of this key",
        )
        if isinstance(public, rsa.RSAPublicKey):
            bits = f"RSA keys have {MIN_RSA_BITS} to {MAX_RSA_BITS} bits"
            require(MIN_RSA_BITS <= public.key_size <= MAX_RSA_BITS, bits)
            require(
                public.public_numbers().e >= MIN_RSA_EXPONENT,
                f"the RSA exponent is under {MIN_RSA_EXPONENT}",
            )
        require(1 <= len(self.kid) <= MAX_KID, f"a kid has 1 to {MAX_KID} characters")

    def __repr__(self) -> str:
        return f"Key({self.kid!r}, {self.algorithm})"

    @classmethod
    def generate(
        cls, algorithm: str = "EdDSA", *, subjects: Iterable[str] | None = None
    ) -> Key:
        """Return a new private key.

        Raises:
            ConfigurationError: the algorithm is not one of ``ALGORITHMS``.
        """
        require(algorithm in ALGORITHMS, f"algorithms are {', '.join(ALGORITHMS)}")
        return cls.from_private(
            _GENERATORS[algorithm](), algorithm=algorithm, subjects=subjects
        )

    @classmethod
    def from_private(
        cls,
        private: PrivateKey,
        *,
        algorithm: str | None = None,
        subjects: Iterable[str] | None = None,
    ) -> Key:
        """Return a key around a private key of ``cryptography``; RSA signs RS256 unless told otherwise."""
        public = private.public_key()
        return cls(
            kid=thumbprint(public),
            algorithm=algorithm or natural_algorithm(public),
            public=public,
            private=private,
            subjects=None if subjects is None else frozenset(subjects),
        )

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        passphrase: bytes | None = None,
        algorithm: str | None = None,
    ) -> Key:
        """Read a PKCS#8 PEM private key.

        Raises:
            ConfigurationError: the file cannot be read, has no such key, or needs another passphrase.
        """
        with file_errors(path):
            raw = Path(path).read_bytes()
        return cls.from_pem(
            raw, passphrase=passphrase, algorithm=algorithm, name=str(path)
        )

    @classmethod
    def from_pem(
        cls,
        raw: bytes,
        *,
        passphrase: bytes | None = None,
        algorithm: str | None = None,
        name: str = "key",
    ) -> Key:
        """Parse a PKCS#8 PEM private key; errors quote ``name``.

        Raises:
            ConfigurationError: this is no private key of an allowed kind, or it needs another passphrase.
        """
        wanted = "needs a passphrase" if passphrase is None else "has no passphrase"
        unreadable = f"{name}: no PEM private key that the passphrase opens"
        with (
            refusing(TypeError, f"{name}: the key {wanted}"),
            refusing((ValueError, UnsupportedAlgorithm), unreadable),
        ):
            private = serialization.load_pem_private_key(raw, passphrase)
        if not isinstance(private, PrivateKey):
            raise ConfigurationError(f"{name}: keys are Ed25519, P-256, P-384 or RSA")
        return cls.from_private(private, algorithm=algorithm)

    def to_pem(self, passphrase: bytes | None = None) -> bytes:
        """Return the private half as PKCS#8 PEM, encrypted if a passphrase is given."""
        if self.private is None:
            raise ConfigurationError("a public key has no private half to write")
        return self.private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption()
            if passphrase is None
            else serialization.BestAvailableEncryption(passphrase),
        )

    @property
    def public_only(self) -> Key:
        """The same key without its private half."""
        return replace(self, private=None)

    def allows(self, algorithm: str) -> bool:
        """Tell whether a token may name this ``alg``; EdDSA and Ed25519 are the same (RFC 9864)."""
        return algorithm == self.algorithm or (
            algorithm == "Ed25519" and self.algorithm == "EdDSA"
        )


@dataclass(frozen=True, slots=True)
class KeySet:
    """An immutable set of public keys, found by their kid; it is a ``KeySource`` that never changes.

    Args:
        keys: the keys; two under one kid are refused.
        skipped: one line for each key of a loaded set that could not be used.
        cutoffs: the subjects of a trust domain that its authority has cut off; ``None``, and ``misread`` is true,
            where they cannot be read.
    """

    keys: tuple[Key, ...]
    skipped: tuple[str, ...] = ()
    cutoffs: Mapping[str, Cutoff] = field(default_factory=dict, repr=False)
    misread: bool = field(default=False, repr=False)
    by_kid: Mapping[str, Key] = field(init=False, repr=False)
    version: str = field(init=False)

    def __init__(
        self,
        keys: Iterable[Key],
        skipped: Iterable[str] = (),
        cutoffs: Mapping[str, Cutoff] | None = NO_CUTOFFS,
    ) -> None:
        public = tuple(key.public_only for key in keys)
        by_kid = {key.kid: key for key in public}
        require(len(by_kid) == len(public), "a kid stands for two keys")
        # The version changes with any key, its subjects or its end, and with any cut-off.
        lines = sorted(
            repr(
                (
                    key.kid,
                    key.algorithm,
                    thumbprint(key.public),
                    sorted(key.subjects or ()),
                    key.expires,
                    key.revocation,
                )
            )
            for key in public
        )
        lines += sorted(repr(item) for item in (cutoffs or NO_CUTOFFS).items())
        members = {
            "keys": public,
            "skipped": tuple(skipped),
            "by_kid": by_kid,
            "cutoffs": cutoffs or NO_CUTOFFS,
            "misread": cutoffs is None,
            "version": hashlib.sha256(
                "\n".join(lines).encode("utf-8", "backslashreplace")
            ).hexdigest()[:16],
        }
        for name, value in members.items():
            object.__setattr__(self, name, value)

    def __iter__(self) -> Iterator[Key]:
        return iter(self.keys)

    def after(self, before: KeySet) -> KeySet:
        """Return this set; with the cut-offs of the set before it, where its own cannot be read."""
        return KeySet(self.keys, self.skipped, before.cutoffs) if self.misread else self

    def get(self, kid: str) -> Key | None:
        """Return the key of this kid, if the set has it."""
        return self.by_kid.get(kid)

    def key_set(self) -> KeySet:
        """Return the set itself (``KeySource``)."""
        return self

    def refresh(self, kid: str, received: float, /) -> KeySet:
        """Return the set itself (``KeySource``)."""
        return self


class KeySource(Protocol):
    """Where the keys of one issuer come from.

    A source whose ``refresh`` blocks may have a coroutine ``arefresh`` beside it, which event loops await instead.
    """

    def key_set(self) -> KeySet:
        """Return the set in use; never waits.

        Raises:
            Unavailable: ``keys_unavailable``, there is no set that may still be used.
        """

    def refresh(self, kid: str, received: float, /) -> KeySet | Awaitable[KeySet]:
        """Look for an unknown kid once more, for a bounded time, and return the set in use after that.

        Args:
            kid: the key id that a token names.
            received: UTC seconds at which its message was received.

        Raises:
            Unavailable: ``key_pending``, the issuer cannot be asked now.
            Rejection: ``key_unknown``, the issuer could not be asked for too long.
        """


def natural_algorithm(public: PublicKey) -> str:
    """Return the algorithm that a key signs with unless told otherwise.

    Raises:
        ConfigurationError: the curve is not P-256 or P-384.
    """
    if isinstance(public, ed25519.Ed25519PublicKey):
        return "EdDSA"
    if isinstance(public, rsa.RSAPublicKey):
        return "RS256"
    require(public.curve.name in _CURVES, "elliptic curves are P-256 and P-384")
    return _CURVES[public.curve.name]


def thumbprint(public: PublicKey) -> str:
    """Return the RFC 7638 SHA-256 thumbprint, base64url."""
    return base64url.digest(
        json.dumps(public_members(public), separators=(",", ":"), sort_keys=True).encode(
            "ascii"
        )
    )


def public_members(public: PublicKey) -> dict[str, str]:
    """Return the required JWK members of a public key (RFC 7518, section 6; RFC 8037, section 2)."""
    if isinstance(public, ed25519.Ed25519PublicKey):
        return {"kty": "OKP", "crv": "Ed25519", "x": _text(public.public_bytes_raw())}
    if isinstance(public, rsa.RSAPublicKey):
        numbers = public.public_numbers()
        return {"kty": "RSA", "n": _unsigned(numbers.n), "e": _unsigned(numbers.e)}
    point = public.public_numbers()
    size = (public.curve.key_size + 7) // 8
    return {
        "kty": "EC",
        "crv": "P-256" if isinstance(public.curve, ec.SECP256R1) else "P-384",
        "x": _unsigned(point.x, size),
        "y": _unsigned(point.y, size),
    }


def _text(raw: bytes) -> str:
    return base64url.encode(raw).decode("ascii")


def _unsigned(number: int, size: int | None = None) -> str:
    """Return a big-endian unsigned integer as base64url (RFC 7518, section 2)."""
    return _text(number.to_bytes(size or (number.bit_length() + 7) // 8, "big"))


def jwk_members(key: Key) -> dict[str, Any]:
    """Return a public key as a JWK, with its subjects and its end."""
    optional = {
        "mqauth_sub": None if key.subjects is None else sorted(key.subjects),
        "exp": key.expires,
        "revoked": None if key.revocation is None else asdict(key.revocation),
    }
    return {
        **public_members(key.public),
        "kid": key.kid,
        "alg": key.algorithm,
        "use": "sig",
        **{name: value for name, value in optional.items() if value is not None},
    }
