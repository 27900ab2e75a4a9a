"""Signed heads of an audit chain: who can edit the log can recompute it, but not what was said of it elsewhere.

A head is a compact JWS (typ ``mqauth-head+jwt``) over the chain's first hash, the number of records and the
last hash, one a line in a file of its own, best on another disk or host.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any, Final

from mqauth import jws, strictjson
from mqauth.auditchain import Head, raw_lines
from mqauth.clock import SYSTEM_CLOCK, Clock
from mqauth.errors import ConfigurationError, Rejection
from mqauth.jwk import load_key
from mqauth.keys import Key, KeySet, SigningKey, jwk_members

HEAD_TYPE: Final = "mqauth-head+jwt"
_DEPTH: Final = 4


class HeadFile:
    """Signs the head of a chain every so many records, and when the chain is closed.

    Args:
        path: the file heads are appended to, mode 0600.
        key: the instance's own private key.
        every: records between two heads; what is cut from the log after the last head goes unnoticed.
    """

    def __init__(self, path: str | Path, key: Key, *, every: int = 1000, clock: Clock = SYSTEM_CLOCK) -> None:
        if every < 1:
            raise ConfigurationError("every is at least 1 record")
        self.path = Path(path)
        self.every = every
        self._public = jwk_members(key.public_only)
        self._key: SigningKey = jws.LocalSigningKey(key)
        self._clock = clock
        self._lock = threading.Lock()

    def append(self, head: Head) -> None:
        """Sign one head and make it durable.

        Raises:
            OSError: the disk refused.
        """
        payload = strictjson.dumps(
            {"chain": head.chain, "records": head.records, "hash": head.hash, "iat": int(self._clock.now())}
        )
        token = jws.compact(payload, self._key, typ=HEAD_TYPE)
        line = json.dumps({"head": token, "jwk": self._public}, separators=(",", ":")) + "\n"
        with self._lock:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                os.write(descriptor, line.encode("ascii"))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def read_heads(path: str | Path, keys: KeySet | None = None) -> list[Head]:
    """Return the heads of a file, each signature verified.

    Args:
        path: the file.
        keys: who may sign heads; by default the key its first line names, so keep the file out of reach.

    Raises:
        ConfigurationError: the file cannot be read, or a head is not signed by these keys.
    """
    found: list[Head] = []
    for number, raw in enumerate(raw_lines(Path(path)), 1):
        try:
            members = strictjson.loads(raw, depth=_DEPTH)
            keys = keys or KeySet([load_key(members["jwk"])])
            found.append(_read(str(members["head"]), keys))
        except (ValueError, KeyError, TypeError, Rejection, ConfigurationError) as error:
            raise ConfigurationError(f"{path}: line {number} is no head signed by a known key") from error
    return found


def _read(token: str, keys: KeySet) -> Head:
    """Return what one head says, once its signature holds."""
    opened = jws.take_apart(token.encode("ascii"), typ=HEAD_TYPE)
    key = keys.get(opened.kid)
    if key is None:
        raise ConfigurationError("an unknown key")
    jws.verify(opened, key)
    said: dict[str, Any] = strictjson.loads(opened.payload, depth=_DEPTH)
    return Head(chain=str(said["chain"]), records=int(said["records"]), hash=str(said["hash"]))
