"""JWK Set files and URLs: what is in them that must not be, and how they are reached."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from mqauth.check import codes
from mqauth.check.findings import Finding
from mqauth.check.target import Rule, Target, few
from mqauth.check.transport import is_loopback
from mqauth.config.kinds import is_url
from mqauth.config.settings import SourceSettings
from mqauth.errors import ConfigurationError
from mqauth.keystore import Keystore
from mqauth.keystore.disk import files
from mqauth.keystore.disk.ring import KeyRing
from mqauth.wire import base64url
from mqauth.wire import strict_json as strictjson
from mqauth.wire.jwk import MAX_DOCUMENT, load_key, load_key_set
from mqauth.wire.keys import MIN_RSA_BITS, MIN_RSA_EXPONENT, KeySet

DAY: Final = 86_400
_DEPTH: Final = 8
_PRIVATE: Final = frozenset(("d", "p", "q", "dp", "dq", "qi", "oth"))


def contents(target: Target) -> Iterator[Finding]:
    """Keys in a JWK Set file that are symmetric, private, weak, or of no use."""
    for source in target.sources:
        faults: dict[tuple[str, str], list[str]] = {}
        for number, members in enumerate(listed(source.file)):
            code, what = _fault(members)
            faults.setdefault((code, what), []).append(str(number))
        for (code, what), numbers in faults.items():
            if code:
                said = f"{target.shown(source.file or target.file)}: key {few(numbers)}: {what}"
                yield codes.CODES[code].at((*source.table.path, "file"), said)


def ambiguous(target: Target) -> Iterator[Finding]:
    """Kids of a file that stand for two keys."""
    for source in target.sources:
        keys = key_set(source.file)
        twice = [] if keys is None else [line for line in keys.skipped if line.startswith("kid ")]
        if twice:
            said = f"{target.shown(source.file or target.file)}: {few(twice)}"
            yield codes.JWKS_SKIPPED.at((*source.table.path, "file"), said)


def reached(target: Target) -> Iterator[Finding]:
    """Remote sets that are asked for without TLS."""
    for source in target.sources:
        key = "discovery" if source.discovery else "jwks"
        url = source.issuer if source.discovery else source.jwks or ""
        if not is_url(url, ("http",)):
            continue
        host = urlsplit(url).hostname or ""
        if is_loopback(host) and source.unsafe_http_loopback:
            said = f"http to this machine ({host})"
            yield codes.JWKS_LOOPBACK.at((*source.table.path, "unsafe_http_loopback"), said)
        else:
            yield codes.JWKS_HTTP.at((*source.table.path, key), f"http to {host}")


def staleness(target: Target) -> Iterator[Finding]:
    """Cached keys trusted for longer than they are published or used."""
    for source in target.sources:
        limit, what = _limit(target, source)
        if "max_stale" in source.table.members and source.max_stale > limit:
            said = f"max_stale is {source.max_stale} s, over {limit} s, {what}"
            yield codes.STALE_BEYOND_ROTATION.at((*source.table.path, "max_stale"), said)


def overstated(target: Target) -> Iterator[Finding]:
    """A publish delay that the issuer's own keystore, in the same file, does not keep."""
    for source in target.sources:
        ring = _own_ring(target, source)
        given = "publish_delay" in source.table.members
        if ring is not None and given and source.publish_delay > ring.publish_delay:
            said = f"publish_delay is {source.publish_delay} s, the keystore's {ring.publish_delay} s"
            yield codes.PUBLISH_DELAY_OVERSTATED.at((*source.table.path, "publish_delay"), said)


def listed(path: Path | None) -> list[Any]:
    """Return the members of every key of a JWK Set file; none where it cannot be read."""
    if path is None:
        return []
    try:
        found = strictjson.loads(files.read_bounded(path, MAX_DOCUMENT), depth=_DEPTH)
    except (ConfigurationError, strictjson.StrictJSONError):
        return []
    keys = found.get("keys") if isinstance(found, dict) else None
    return keys if isinstance(keys, list) else []


def key_set(path: Path | None) -> KeySet | None:
    """Return the usable keys of a JWK Set file, ``None`` where it cannot be read."""
    if path is None:
        return None
    try:
        return load_key_set(files.read_bounded(path, MAX_DOCUMENT))
    except ConfigurationError:
        return None


def ring(folder: Path) -> KeyRing | None:
    """Return the ring of a keystore folder, ``None`` where it is none."""
    try:
        return Keystore(folder=folder).ring() if os.path.isdir(folder) else None
    except ConfigurationError:
        return None


def _fault(members: Any) -> tuple[str, str]:
    """Return the code of what is wrong with a key, and what it is, without a word of the key; empty where fine."""
    if isinstance(members, Mapping):
        if _is_symmetric(members):
            return codes.JWKS_SYMMETRIC.name, "a shared secret, or an alg that signs nothing"
        if _PRIVATE & members.keys():
            return codes.JWKS_PRIVATE.name, "holds a private key"
        if _is_weak(members):
            return codes.KEY_WEAK.name, f"RSA under {MIN_RSA_BITS} bits, or an exponent under {MIN_RSA_EXPONENT}"
    try:
        load_key(members)
    except ConfigurationError as error:
        return codes.JWKS_SKIPPED.name, str(error)
    return "", ""


def _is_symmetric(members: Mapping[str, Any]) -> bool:
    """Tell whether a JWK is a shared secret, or for an algorithm of one (RFC 7518, section 3.1)."""
    algorithm = str(members.get("alg", "")).lower()
    return members.get("kty") == "oct" or "k" in members or algorithm == "none" or algorithm.startswith("hs")


def _is_weak(members: Mapping[str, Any]) -> bool:
    """Tell whether a JWK is RSA and too small."""
    if members.get("kty") != "RSA":
        return False
    try:
        modulus, exponent = (int.from_bytes(base64url.decode(str(members[name]).encode())) for name in ("n", "e"))
    except (KeyError, ValueError):
        return False
    return modulus.bit_length() < MIN_RSA_BITS or exponent < MIN_RSA_EXPONENT


def _limit(target: Target, source: SourceSettings) -> tuple[int, str]:
    """Return the longest sound ``max_stale``, and what it is."""
    limits = [(DAY, "a day"), (target.options.rotation, "the rotation period")]
    found = _own_ring(target, source)
    if found is not None:
        limits.append((found.retain, "for which the keystore goes on publishing a retired key"))
    return min(limits)


def _own_ring(target: Target, source: SourceSettings) -> KeyRing | None:
    """Return the keystore of an issuer whose producer is in the same file."""
    producer = target.producer
    return ring(producer.keys) if producer is not None and producer.issuer == source.issuer else None


RULES: Final[tuple[Rule, ...]] = (contents, ambiguous, reached, staleness, overstated)
