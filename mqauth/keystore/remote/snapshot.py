"""The last good key set on the disk, for a consumer that starts while its issuer is down.

A digest finds a file that is torn or damaged. It does not prove who wrote the file: its mode 0600 keeps others
out.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

from mqauth.audit.disk import read_bounded, undone_on_error
from mqauth.errors import ConfigurationError, refusing, require
from mqauth.wire import jwk, strict_json
from mqauth.wire.keys import KeySet


def save(path: Path, keys: KeySet, *, source: str, asked: float, publish_delay: float) -> None:
    """Write a snapshot as a whole, or leave the file as it was.

    Args:
        path: the file.
        keys: the set.
        source: the URL it came from.
        asked: when it was asked for, UTC seconds.
        publish_delay: the publish delay that its issuer announced, seconds.

    Raises:
        OSError: the system refused.
    """
    content = {
        "v": 1, "source": source, "asked": asked, "publish_delay": publish_delay,
        "document": jwk.dump_key_set(keys),
    }  # fmt: skip
    # A name of its own for each writer, and mode 0600: several processes may write one snapshot at the same time.
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    with undone_on_error(os.unlink, name):
        with os.fdopen(descriptor, "wb") as file:
            file.write(strict_json.dumps(content | {"sha256": _digest(content)}))
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)


def load(path: Path, *, source: str, now: float, max_age: float) -> tuple[KeySet, float, float]:
    """Read a snapshot.

    Args:
        path: the file.
        source: the URL that it must come from.
        now: UTC seconds.
        max_age: seconds; an older snapshot is refused.

    Returns:
        The set, its age in seconds, and the publish delay that its issuer announced.

    Raises:
        ConfigurationError: it may not be used: it cannot be read, is open to others, damaged, of another source,
            or too old.
    """
    # A file that another user owns, or may write, would let that user choose the keys.
    raw = read_bounded(path, 2 * jwk.MAX_DOCUMENT, private=True, own=True)
    with refusing((ValueError, KeyError, AttributeError, TypeError, ConfigurationError), "it is damaged"):
        content = strict_json.loads(raw, depth=10)
        require(content.pop("sha256") == _digest(content) and content["v"] == 1, "it is damaged")
        keys, age = jwk.load_key_set(content["document"]), now - float(content["asked"])
        stored, publish_delay = content["source"], float(content["publish_delay"])
    require(stored == source, "it is of another source")
    require(-60.0 <= age <= max_age, "it is too old, or of the future")
    return keys, max(0.0, age), publish_delay


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(strict_json.dumps(content)).hexdigest()
