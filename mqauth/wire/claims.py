"""The claim set of a message token: how it is built, and how it is parsed, strictly and within limits.

Source: wire profile 1 (``docs/wire-profile.md``), RFC 7519 section 4.1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Final, NamedTuple, cast

from mqauth.errors import MalformedMessage, Reason, Rejection, require
from mqauth.wire import destination, strict_json

PROFILE_VERSION: Final = 1
MAX_DEPTH: Final = 8
MAX_NAME: Final = 256
MIN_JTI: Final = 16
MAX_JTI: Final = 128
MAX_BATCH: Final = 1024
MAX_EXTRA: Final = 64
"""Values in claims that this profile does not name; members of objects and elements of lists count, too."""
REQUIRED: Final = ("iss", "sub", "aud", "iat", "exp", "jti", "mqa")
_REGISTERED: Final = frozenset((*REQUIRED, "nbf"))
NO_EXTRA: Final[Mapping[str, Any]] = MappingProxyType({})
_DIGEST = re.compile(r"[A-Za-z0-9\-_]{42}[AEIMQUYcgkosw048]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class Binding(NamedTuple):
    """The ``mqa`` claim of a single token: what of a message it binds.

    Args:
        dst: destination in canonical form.
        bod: base64url SHA-256 of the body; ``None`` for a Kafka tombstone.
        key: base64url SHA-256 of the Kafka record key; ``None`` without a key.
        hdr: names of the covered application headers, in order.
        hds: base64url SHA-256 of the seven properties and the covered headers.
    """

    dst: str
    bod: str | None
    key: str | None
    hdr: tuple[str, ...]
    hds: str

    def as_dict(self) -> dict[str, Any]:
        """Return the binding as it stands in the token."""
        return {
            "v": PROFILE_VERSION,
            "dst": self.dst,
            "bod": self.bod,
            "key": self.key,
            "hdr": list(self.hdr),
            "hds": self.hds,
        }


class Batch(NamedTuple):
    """The ``mqa`` claim of a batch token: the root that binds many messages, each by its own proof.

    Args:
        root: the root of the Merkle tree over the messages, base64url.
        size: messages in the batch, 1 to 1,024.
        hdr: names of the application headers covered in every one of them, in order.
    """

    root: str
    size: int
    hdr: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the claim as it stands in the token; ``hdr`` is left out if it would be empty."""
        return {"v": PROFILE_VERSION, "tree": {"root": self.root, "size": self.size}} | (
            {"hdr": list(self.hdr)} if self.hdr else {}
        )


class Claims(NamedTuple):
    """A parsed claim set. Times are UTC seconds; ``extra`` has the claims that this profile does not name."""

    iss: str
    sub: str
    aud: str
    iat: int
    exp: int
    jti: str
    mqa: Binding | Batch
    nbf: int | None = None
    extra: Mapping[str, Any] = NO_EXTRA

    def as_dict(self) -> dict[str, Any]:
        """Return the claims as they stand in the token."""
        begins = {} if self.nbf is None else {"nbf": self.nbf}
        return {
            "iss": self.iss,
            "sub": self.sub,
            "aud": self.aud,
            "iat": self.iat,
            "exp": self.exp,
            "jti": self.jti,
            **begins,
            "mqa": self.mqa.as_dict(),
            **self.extra,
        }


def is_name(value: object, minimum: int = 1, maximum: int = MAX_NAME) -> bool:
    """Tell whether a value is text within the limits, free of control characters and lone surrogates."""
    # printable text has no control characters, and asking that first is faster
    return (
        isinstance(value, str)
        and minimum <= len(value) <= maximum
        and (value.isprintable() or not _CONTROL.search(value))
    )


def build(claims: Claims) -> bytes:
    """Return the claim set as the compact JSON that is signed."""
    return strict_json.dumps(claims.as_dict())


def parse(raw: bytes) -> Claims:
    """Parse the payload of a token.

    Raises:
        Rejection: ``claims_malformed`` or ``claim_missing``.
    """
    members = load(raw, REQUIRED)
    return Claims(
        text_claim(members, "iss"),
        text_claim(members, "sub"),
        text_claim(members, "aud"),
        time_claim(members, "iat"),
        time_claim(members, "exp"),
        text_claim(members, "jti", MIN_JTI, MAX_JTI),
        mqa_claim(members["mqa"]),
        time_claim(members, "nbf") if "nbf" in members else None,
        extra_claims(members, _REGISTERED),
    )


def extra_claims(
    members: dict[str, Any], registered: frozenset[str]
) -> Mapping[str, Any]:
    """Return the claims that are not among the registered ones.

    Their values are counted, since a list of empty lists takes many times its text in memory.

    Raises:
        Rejection: ``claims_malformed``.
    """
    if members.keys() <= registered:
        return NO_EXTRA
    extra = {name: value for name, value in members.items() if name not in registered}
    _require(
        sum(map(_values, extra.values())) <= MAX_EXTRA,
        f"other claims have more than {MAX_EXTRA} values",
    )
    return extra


def _values(value: Any) -> int:
    """Count a value, and the values that its members or elements hold."""
    inner = (
        value.values() if type(value) is dict else value if type(value) is list else ()
    )
    return 1 + sum(map(_values, inner))


def load(raw: bytes, required: tuple[str, ...]) -> dict[str, Any]:
    """Return the members of a payload, which is an object in strict JSON and has every required claim.

    Raises:
        Rejection: ``claims_malformed`` or ``claim_missing``.
    """
    try:
        members = strict_json.loads(raw, depth=MAX_DEPTH)
    except strict_json.StrictJSONError as error:
        raise _malformed(f"the payload is {error}") from error
    _require(type(members) is dict, "the payload is no object")
    for name in required:
        if name not in members:
            raise Rejection(Reason.CLAIM_MISSING, f"no {name}")
    return cast(dict[str, Any], members)


def mqa_claim(members: Any) -> Binding | Batch:
    """Parse the ``mqa`` claim of either form.

    Raises:
        Rejection: ``claims_malformed``.
    """
    if type(members) is not dict or "tree" not in members:
        return binding_claim(members)
    _check_members(members, frozenset(("v", "tree")), frozenset(("v", "tree", "hdr")))
    tree = members["tree"]
    _require(
        type(tree) is dict and tree.keys() == {"root", "size"},
        "mqa.tree has not exactly its members",
    )
    size = tree["size"]
    _require(
        type(size) is int and 1 <= size <= MAX_BATCH,
        f"mqa.tree.size is not 1 to {MAX_BATCH}",
    )
    names = _header_names(members.get("hdr", []))
    _require(names or "hdr" not in members, "mqa.hdr is left out where nothing is listed")
    return Batch(root=digest_claim(tree["root"], "mqa.tree.root"), size=size, hdr=names)


def _check_members(value: Any, *members: frozenset[str]) -> None:
    version = value.get("v") if type(value) is dict else None
    # True == 1, so the type is compared as well
    _require(
        type(version) is int and version == PROFILE_VERSION, "mqa is of no known version"
    )
    _require(value.keys() in members, "mqa has not exactly its members")


def binding_claim(members: Any) -> Binding:
    """Parse the ``mqa`` claim of one message: of a known version, with exactly its members.

    Raises:
        Rejection: ``claims_malformed``.
    """
    _check_members(members, frozenset(("v", "dst", "bod", "key", "hdr", "hds")))
    return Binding(
        dst=_destination(members["dst"]),
        bod=None if members["bod"] is None else digest_claim(members["bod"], "mqa.bod"),
        key=None if members["key"] is None else digest_claim(members["key"], "mqa.key"),
        hdr=_header_names(members["hdr"]),
        hds=digest_claim(members["hds"], "mqa.hds"),
    )


def _destination(value: Any) -> str:
    _require(type(value) is str, "mqa.dst is no text")
    try:
        destination.parse(value)
    except MalformedMessage as error:
        raise _malformed("mqa.dst is not canonical") from error
    return str(value)


def digest_claim(value: Any, name: str) -> str:
    """Return a base64url SHA-256, in its canonical form.

    Raises:
        Rejection: ``claims_malformed``.
    """
    _require(type(value) is str and _DIGEST.fullmatch(value), f"{name} is no digest")
    return str(value)


def _header_names(value: Any) -> tuple[str, ...]:
    _require(
        type(value) is list and all(type(name) is str for name in value),
        "mqa.hdr is no list of names",
    )
    _require(len(set(value)) == len(value), "mqa.hdr names a header twice")
    return tuple(value)


def text_claim(
    members: dict[str, Any], name: str, minimum: int = 1, maximum: int = MAX_NAME
) -> str:
    """Return a text claim within its limits, characters.

    Raises:
        Rejection: ``claims_malformed``.
    """
    value = members[name]
    _require(
        type(value) is str and is_name(value, minimum, maximum),
        f"{name} is no text of {minimum} to {maximum} characters",
    )
    return str(value)


def time_claim(members: dict[str, Any], name: str) -> int:
    """Return a time claim, UTC seconds: an integer, never a boolean or a float.

    Raises:
        Rejection: ``claims_malformed``.
    """
    value = members[name]
    _require(type(value) is int and value >= 0, f"{name} is no time in whole seconds")
    return int(value)


def _malformed(detail: str) -> Rejection:
    return Rejection(Reason.CLAIMS_MALFORMED, detail)


_require: Final = partial(require, error=_malformed)
