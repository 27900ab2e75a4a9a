"""Signed heads of an audit chain: who can edit the log can recompute it, but not what was said of it elsewhere.

A head is a compact JWS (typ ``mqauth-head+jwt``) over the chain's first hash, the number of records and the
last hash, one a line in a file of its own, best on another disk or host.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final

from mqauth.audit.chain import MAX_LINE, Head, raw_lines
from mqauth.audit.line_file import append_shared, last_lines
from mqauth.clock import SYSTEM_CLOCK, Clock
from mqauth.errors import ConfigurationError, Rejection
from mqauth.wire import jws
from mqauth.wire import strict_json as strictjson
from mqauth.wire.jwk import load_key
from mqauth.wire.keys import Key, KeySet, SigningKey, jwk_members

HEAD_TYPE: Final = "mqauth-head+jwt"
_DEPTH: Final = 4
_RECENT: Final = 100


class HeadFile:
    """Signs the head of a chain at intervals, and when the chain is closed or rotated.

    Args:
        path: the file heads are appended to, mode 0600; ``{pid}`` in its name is the process id. Several
            chains may share it.
        key: the instance's own private key.
        every: records between two heads; what is cut from the log after the last head goes unnoticed.
        seconds: a record that comes so long after the last head is signed at once, with those before it.

    Raises:
        ConfigurationError: an interval is not positive, or the key cannot sign.
    """

    def __init__(
        self, path: str | Path, key: Key, *, every: int = 1000, seconds: float = 60, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        if every < 1 or seconds <= 0:
            raise ConfigurationError("every is at least 1 record, seconds more than 0")
        self.path = Path(str(path).replace("{pid}", str(os.getpid())))
        self._every = every
        self._seconds = seconds
        self._public = jwk_members(key.public_only)
        self._keys = KeySet([key])
        self._key: SigningKey = jws.LocalSigningKey(key)
        self._clock = clock
        self._tried = clock.monotonic()

    def due(self, unsigned: int) -> bool:
        """Tell whether a head is to be signed, with so many records behind the last one."""
        return unsigned >= self._every or (unsigned > 0 and self._clock.monotonic() - self._tried >= self._seconds)

    def append(self, head: Head) -> None:
        """Sign one head and make it durable.

        Raises:
            OSError: the disk refused.
        """
        self._tried = self._clock.monotonic()
        payload = strictjson.dumps(
            {"chain": head.chain, "records": head.records, "hash": head.hash, "iat": int(self._clock.now())}
        )
        token = jws.compact(payload, self._key, typ=HEAD_TYPE)
        line = json.dumps({"head": token, "jwk": self._public}, separators=(",", ":")) + "\n"
        append_shared(self.path, line.encode("ascii"))

    def recent(self) -> list[Head]:
        """Return the last hundred heads of the file that this key signed; none where it cannot be read."""
        found = []
        try:
            lines = last_lines(self.path, _RECENT)
        except ConfigurationError:
            return []
        for raw in lines:
            try:
                found.append(_read(raw, self._keys))
            except _UNREADABLE:
                continue
        return found


def read_heads(path: str | Path, keys: KeySet | None = None) -> list[Head]:
    """Return the heads of a file, each signature verified; a last line that a crash tore is passed over.

    Args:
        path: the file.
        keys: who may sign heads; by default the key its first line names, so keep the file out of reach.

    Raises:
        ConfigurationError: the file cannot be read, or a head is not signed by these keys.
    """
    found: list[Head] = []
    for number, raw in enumerate(raw_lines(Path(path)), 1):
        if not raw.endswith(b"\n") and len(raw) < MAX_LINE:
            break
        try:
            keys = KeySet([signer(raw)]) if keys is None else keys
            found.append(_read(raw, keys))
        except _UNREADABLE as error:
            raise ConfigurationError(f"{path}: line {number} is no head signed by a known key") from error
    return found


def signer(raw: bytes) -> Key:
    """Return the key a line of a head file names; whether it may be trusted is not known by it.

    Raises:
        ValueError, KeyError, TypeError, ConfigurationError: the line names none.
    """
    return load_key(strictjson.loads(raw, depth=_DEPTH)["jwk"])


_UNREADABLE: Final = (ValueError, KeyError, TypeError, Rejection, ConfigurationError)


def _read(raw: bytes, keys: KeySet) -> Head:
    """Return what one head says, once its signature holds."""
    token = str(strictjson.loads(raw, depth=_DEPTH)["head"])
    opened = jws.take_apart(token.encode("ascii"), typ=HEAD_TYPE)
    key = keys.get(opened.kid)
    if key is None:
        raise ConfigurationError("an unknown key")
    jws.verify(opened, key)
    said: dict[str, Any] = strictjson.loads(opened.payload, depth=_DEPTH)
    return Head(chain=str(said["chain"]), records=int(said["records"]), hash=str(said["hash"]))
