"""The subjects that an authority has cut off: ``cutoffs.json`` beside the keys that vouch for them.

It is a JWK Set without keys, so that one reader reads both. An entry stays until the last identity that it refuses
has ended, and as long again as a retired key stays published: a consumer that judges by append time may read a
message that waited so long.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from mqauth.errors import require
from mqauth.keystore.disk import files
from mqauth.wire import jwk, strict_json
from mqauth.wire.claims import is_name
from mqauth.wire.identity import trust_domain_of
from mqauth.wire.keys import NO_CUTOFFS, Cutoff, KeySet

FILE: Final = "cutoffs.json"


def read(folder: Path) -> Mapping[str, Cutoff]:
    """Return the subjects that are cut off, none where the file is not there.

    Raises:
        ConfigurationError: the file cannot be read.
    """
    path = folder / FILE
    if files.is_missing(path):
        return NO_CUTOFFS
    key_set = jwk.load_key_set(files.read_bounded(path, jwk.MAX_DOCUMENT), name=str(path))
    require(not key_set.misread, f"{path}: mqauth_cutoff cannot be read")
    return key_set.cutoffs


def add(folder: Path, subject: str, cutoff: Cutoff, *, keep_after: int) -> None:
    """Add a subject, or move the moment of one that is cut off already; the caller holds the folder's lock.

    Args:
        folder: of the keystore.
        subject: an identifier of a workload.
        cutoff: from when on its identities count again.
        keep_after: UTC seconds; entries from before that refuse nothing any more, and go.

    Raises:
        ConfigurationError: the subject or the reason is out of its limits, or there is no room for another one.
    """
    require(trust_domain_of(subject), "a subject is wimse:// or spiffe://, a trust domain, and a path")
    require(is_name(cutoff.reason, 0), "a reason is one line of at most 256 characters")
    before = {name: earlier for name, earlier in read(folder).items() if earlier.before > keep_after}
    # An earlier moment would take back part of what was cut off.
    latest = max(cutoff, before.get(subject, cutoff), key=lambda earlier: earlier.before)
    after = before | {subject: latest}
    raw = strict_json.dumps(jwk.dump_key_set(KeySet((), (), after)))
    require(
        len(after) <= jwk.MAX_CUTOFFS and len(raw) <= jwk.MAX_DOCUMENT // 2,
        f"no room for more than {jwk.MAX_CUTOFFS} subjects that are cut off: revoke the authority's key",
    )
    files.write_whole(folder / FILE, raw + b"\n")
