"""The last good set on disk, so that a consumer that starts while its issuer is down still works.

The digest finds a torn or damaged file; what keeps others from writing it is its mode, 0600.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mqauth.errors import ConfigurationError, MqauthError
from mqauth.wire import strict_json as strictjson
from mqauth.wire.jwk import MAX_DOCUMENT, dump_key_set, load_key_set
from mqauth.wire.keys import KeySet

_DEPTH: Final = 10
_MAX_FILE: Final = 2 * MAX_DOCUMENT
_SKEW: Final = 60.0


class SnapshotRefused(MqauthError):
    """The snapshot is missing, open to others, damaged, of another source, or too old."""

    code = "snapshot"


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A good set.

    Args:
        source: the URL it came from.
        keys: the set.
        asked: when it was asked for, UTC seconds.
        publish_delay: what its issuer announced, seconds.
    """

    source: str
    keys: KeySet
    asked: float
    publish_delay: float


def save(path: Path, snapshot: Snapshot) -> None:
    """Write a snapshot, whole or not at all.

    Raises:
        OSError: the disk refused.
    """
    content = _content(snapshot)
    raw = strictjson.dumps(content | {"sha256": _digest(content)})
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


def load(path: Path, *, source: str, now: float, max_age: float) -> Snapshot:
    """Read a snapshot back.

    Args:
        path: the file.
        source: the URL it must come from.
        now: UTC seconds.
        max_age: an older one is refused, seconds.

    Raises:
        SnapshotRefused: it may not be used; the text says why.
    """
    found = _parse(_read(path))
    if found.source != source:
        raise SnapshotRefused("it is of another source")
    if not -_SKEW <= now - found.asked <= max_age:
        raise SnapshotRefused("it is too old, or of the future")
    return found


def _content(snapshot: Snapshot) -> dict[str, Any]:
    """Return what is written and digested."""
    return {
        "v": 1, "source": snapshot.source, "asked": snapshot.asked, "publish_delay": snapshot.publish_delay,
        "document": dump_key_set(snapshot.keys),
    }  # fmt: skip


def _digest(content: dict[str, Any]) -> str:
    """Return the digest of the content's own bytes."""
    return hashlib.sha256(strictjson.dumps(content)).hexdigest()


def _read(path: Path) -> bytes:
    """Read the file, if it is ours alone and small."""
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
                raise SnapshotRefused("others may read or write it: its mode is to be 0600")
            raw = file.read(_MAX_FILE + 1)
    except OSError as error:
        raise SnapshotRefused(error.strerror or "it cannot be read") from error
    if len(raw) > _MAX_FILE:
        raise SnapshotRefused("it is too large")
    return raw


def _parse(raw: bytes) -> Snapshot:
    """Check the digest and return what was saved."""
    try:
        content = strictjson.loads(raw, depth=_DEPTH)
        if content.pop("sha256") != _digest(content) or content["v"] != 1:
            raise SnapshotRefused("it is damaged")
        return Snapshot(
            source=content["source"],
            keys=load_key_set(content["document"]),
            asked=float(content["asked"]),
            publish_delay=float(content["publish_delay"]),
        )
    except (ValueError, KeyError, AttributeError, TypeError, ConfigurationError) as error:
        raise SnapshotRefused("it is damaged") from error
