"""Where the keys of an issuer come from: the source that its settings describe."""

from __future__ import annotations

from mqauth.clock import Clock
from mqauth.config.issuer_settings import SourceSettings
from mqauth.keystore import JWKSFile
from mqauth.keystore.remote.jwks import JWKS, discover
from mqauth.wire.keys import KeySource


def key_source(found: SourceSettings, clock: Clock) -> KeySource:
    """Return the source of an issuer's keys; a remote one fetches nothing yet.

    Raises:
        ConfigurationError: the file cannot be read, or the URL may not be used.
    """
    if found.file is not None:
        with found.table.located("file"):
            return JWKSFile(found.file, clock=clock, svid=found.svid)
    given = {"clock": clock, **found.arguments(JWKS)}
    with found.table.located("discovery" if found.jwks is None else "jwks"):
        if found.jwks is None:
            return discover(found.issuer, **given)
        return JWKS(found.jwks, svid=found.svid, **given)
