"""The last good key set on the disk, for a consumer that starts while its issuer is down.

A digest finds a file that is torn or damaged. It does not prove who wrote the file: its mode 0600 keeps others
out.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mqauth.errors import ConfigurationError, MqauthError
from mqauth.keystore.disk.files import read_bounded
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
    """A good key set.

    Args:
        source: the URL it came from.
        keys: the set.
        asked: when it was asked for, UTC seconds.
        publish_delay: the publish delay that its issuer announced, seconds.
    """

    source: str
    keys: KeySet
    asked: float
    publish_delay: float


def save(path: Path, snapshot: Snapshot) -> None:
    """Write a snapshot as a whole, or leave the file as it was.

    Raises:
        OSError: the system refused.
    """
    content = {
        "v": 1, "source": snapshot.source, "asked": snapshot.asked, "publish_delay": snapshot.publish_delay,
        "document": dump_key_set(snapshot.keys),
    }  # fmt: skip
    # A name of its own for each writer, and mode 0600: several processes may write one snapshot at the same time.
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(strictjson.dumps(content | {"sha256": _digest(content)}))
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


def load(path: Path, *, source: str, now: float, max_age: float) -> Snapshot:
    """Read a snapshot.

    Args:
        path: the file.
        source: the URL that it must come from.
        now: UTC seconds.
        max_age: seconds; an older snapshot is refused.

    Raises:
        SnapshotRefused: it may not be used; the text says why.
    """
    try:
        # A file that another user owns, or may write, would let that user choose the keys.
        raw = read_bounded(path, _MAX_FILE, private=True, own=True)
    except ConfigurationError as error:
        raise SnapshotRefused(str(error)) from error
    try:
        content = strictjson.loads(raw, depth=_DEPTH)
        if content.pop("sha256") != _digest(content) or content["v"] != 1:
            raise SnapshotRefused("it is damaged")
        found = Snapshot(
            source=content["source"],
            keys=load_key_set(content["document"]),
            asked=float(content["asked"]),
            publish_delay=float(content["publish_delay"]),
        )
    except (ValueError, KeyError, AttributeError, TypeError, ConfigurationError) as error:
        raise SnapshotRefused("it is damaged") from error
    if found.source != source:
        raise SnapshotRefused("it is of another source")
    if not -_SKEW <= now - found.asked <= max_age:
        raise SnapshotRefused("it is too old, or of the future")
    return found


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(strictjson.dumps(content)).hexdigest()
