"""The claim set of a message token: built and parsed strictly, with every limit in this file.

Source: wire profile 1 (``docs/wire-profile.md``), RFC 7519 section 4.1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeVar

from mqauth.errors import MalformedMessage, Reason, Rejection
from mqauth.wire import destination
from mqauth.wire import strict_json as strictjson

PROFILE_VERSION: Final = 1
MAX_DEPTH: Final = 8
MAX_NAME: Final = 256
MIN_JTI: Final = 16
MAX_JTI: Final = 128
MAX_BATCH: Final = 1024
MAX_EXTRA: Final = 64
"""Values in the claims this profile does not name, members of objects and elements of lists counted too."""
REQUIRED: Final = ("iss", "sub", "aud", "iat", "exp", "jti", "mqa")
_REGISTERED: Final = frozenset((*REQUIRED, "nbf"))
_MEMBERS: Final = frozenset(("v", "dst", "bod", "key", "hdr", "hds"))
_BATCH_MEMBERS: Final = (frozenset(("v", "tree")), frozenset(("v", "tree", "hdr")))
NO_EXTRA: Final[Mapping[str, Any]] = MappingProxyType({})
_DIGEST = re.compile(r"[A-Za-z0-9\-_]{42}[AEIMQUYcgkosw048]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_T = TypeVar("_T")


class Binding(NamedTuple):
    """The ``mqa`` claim: what of a message the token binds.

    Args:
        dst: destination in canonical form.
        bod: base64url SHA-256 of the body, ``None`` for a Kafka tombstone.
        key: base64url SHA-256 of the Kafka record key, ``None`` for no key.
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
            "v": PROFILE_VERSION, "dst": self.dst, "bod": self.bod, "key": self.key,
            "hdr": list(self.hdr), "hds": self.hds,
        }  # fmt: skip


class Batch(NamedTuple):
    """The ``mqa`` claim of a batch token: the root that binds many messages, each by its proof.

    Args:
        root: base64url root of the Merkle tree over the messages.
        size: messages in the batch, 1 to 1,024.
        hdr: names of the application headers covered in every one of them, in order.
    """

    root: str
    size: int
    hdr: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the claim as it stands in the token; ``hdr`` is left out where nothing is listed."""
        tree = {"root": self.root, "size": self.size}
        return {"v": PROFILE_VERSION, "tree": tree} | ({"hdr": list(self.hdr)} if self.hdr else {})


class Claims(NamedTuple):
    """A parsed claim set; times are UTC seconds, ``extra`` holds the claims this profile does not name."""

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
        result: dict[str, Any] = {
            "iss": self.iss, "sub": self.sub, "aud": self.aud, "iat": self.iat, "exp": self.exp,
            "jti": self.jti,
        }  # fmt: skip
        if self.nbf is not None:
            result["nbf"] = self.nbf
        result["mqa"] = self.mqa.as_dict()
        return result | dict(self.extra)


def is_name(value: object, minimum: int = 1, maximum: int = MAX_NAME) -> bool:
    """Tell whether a value is text within the limits, free of control characters and lone surrogates."""
    if not isinstance(value, str) or not minimum <= len(value) <= maximum:
        return False
    return value.isprintable() or not _CONTROL.search(value)  # printable text has none of them, and is told faster


def build(claims: Claims) -> bytes:
    """Return the claim set as compact JSON, for signing."""
    return strictjson.dumps(claims.as_dict())


def parse(raw: bytes) -> Claims:
    """Parse the payload of a token.

    Raises:
        Rejection: ``claims_malformed`` or ``claim_missing``.
    """
    found = load(raw, REQUIRED)
    return Claims(
        text_claim(found, "iss"),
        text_claim(found, "sub"),
        text_claim(found, "aud"),
        time_claim(found, "iat"),
        time_claim(found, "exp"),
        text_claim(found, "jti", MIN_JTI, MAX_JTI),
        _bound_claim(found["mqa"]),
        time_claim(found, "nbf") if "nbf" in found else None,
        NO_EXTRA if found.keys() <= _REGISTERED else _extra(found),
    )


def _extra(found: dict[str, Any]) -> Mapping[str, Any]:
    """Return the claims this profile does not name; of few values, since lists of nothing take most memory."""
    extra = {name: value for name, value in found.items() if name not in _REGISTERED}
    if sum(map(_values, extra.values())) > MAX_EXTRA:
        raise _malformed(f"other claims have more than {MAX_EXTRA} values")
    return extra


def _values(value: Any) -> int:
    """Return how many values stand in one: itself, and what its members and elements hold."""
    inner = value.values() if type(value) is dict else value if type(value) is list else ()
    return 1 + sum(map(_values, inner))


def load(raw: bytes, required: tuple[str, ...]) -> dict[str, Any]:
    """Return the members of a payload: strict JSON, an object, with every required claim.

    Raises:
        Rejection: ``claims_malformed`` or ``claim_missing``.
    """
    try:
        found = strictjson.loads(raw, depth=MAX_DEPTH)
    except strictjson.StrictJSONError as error:
        raise _malformed(f"the payload is {error}") from error
    if type(found) is not dict:
        raise _malformed("the payload is no object")
    for name in required:
        if name not in found:
            raise Rejection(Reason.CLAIM_MISSING, f"no {name}")
    return found


def _bound_claim(found: Any) -> Binding | Batch:
    """Return the ``mqa`` claim in the form it has."""
    if type(found) is dict and "tree" in found:
        return _batch_claim(found)
    return binding_claim(found)


def _batch_claim(found: dict[str, Any]) -> Batch:
    """Parse the batch form of ``mqa``."""
    _check_members(found, *_BATCH_MEMBERS)
    tree = found["tree"]
    if type(tree) is not dict or tree.keys() != {"root", "size"}:
        raise _malformed("mqa.tree has not exactly its members")
    if type(tree["size"]) is not int or not 1 <= tree["size"] <= MAX_BATCH:
        raise _malformed(f"mqa.tree.size is not 1 to {MAX_BATCH}")
    names = _header_names(found.get("hdr", []))
    if not names and "hdr" in found:
        raise _malformed("mqa.hdr is left out where nothing is listed")
    root = _required(_digest(tree["root"], "tree.root"), "tree.root")
    return Batch(root=root, size=tree["size"], hdr=names)


def _check_members(found: Any, *members: frozenset[str]) -> None:
    """Refuse what is not of the known version with exactly its members."""
    if type(found) is not dict or found.get("v") is True or found.get("v") != PROFILE_VERSION:
        raise _malformed("mqa is of no known version")
    if type(found["v"]) is not int or found.keys() not in members:
        raise _malformed("mqa has not exactly its members")


def binding_claim(found: Any) -> Binding:
    """Parse the ``mqa`` claim of one message: a known version with exactly its members.

    Raises:
        Rejection: ``claims_malformed``.
    """
    _check_members(found, _MEMBERS)
    return Binding(
        dst=_destination(found["dst"]),
        bod=_digest(found["bod"], "bod"),
        key=_digest(found["key"], "key"),
        hdr=_header_names(found["hdr"]),
        hds=_required(_digest(found["hds"], "hds"), "hds"),
    )


def _destination(value: Any) -> str:
    """Return a destination that is canonical."""
    if type(value) is not str:
        raise _malformed("mqa.dst is no text")
    try:
        destination.parse(value)
    except MalformedMessage as error:
        raise _malformed("mqa.dst is not canonical") from error
    return value


def _digest(value: Any, name: str) -> str | None:
    """Return a canonical base64url SHA-256, or ``None``."""
    if value is None:
        return None
    if type(value) is not str or not _DIGEST.fullmatch(value):
        raise _malformed(f"mqa.{name} is no digest")
    return value


def _required(value: _T | None, name: str) -> _T:
    """Return a member that may not be null."""
    if value is None:
        raise _malformed(f"mqa.{name} is null")
    return value


def _header_names(value: Any) -> tuple[str, ...]:
    """Return the covered names: a list of texts, none twice."""
    if type(value) is not list or not all(type(name) is str for name in value):
        raise _malformed("mqa.hdr is no list of names")
    if len(set(value)) != len(value):
        raise _malformed("mqa.hdr names a header twice")
    return tuple(value)


def text_claim(found: dict[str, Any], name: str, minimum: int = 1, maximum: int = MAX_NAME) -> str:
    """Return a text claim within its limits, characters.

    Raises:
        Rejection: ``claims_malformed``.
    """
    value = found[name]
    if type(value) is not str or not is_name(value, minimum, maximum):
        raise _malformed(f"{name} is no text of {minimum} to {maximum} characters")
    return value


def time_claim(found: dict[str, Any], name: str) -> int:
    """Return a time claim, UTC seconds: an integer, never a boolean or a float.

    Raises:
        Rejection: ``claims_malformed``.
    """
    value = found[name]
    if type(value) is not int or value < 0:
        raise _malformed(f"{name} is no time in whole seconds")
    return value


def _malformed(detail: str) -> Rejection:
    """Return the rejection of a claim set that breaks the profile."""
    return Rejection(Reason.CLAIMS_MALFORMED, detail)
