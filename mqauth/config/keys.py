"""The keys that settings describe: those of an issuer, which are trusted, and those of a producer, which sign."""

from __future__ import annotations

import os

from mqauth.clock import Clock
from mqauth.config.declaration import Settings
from mqauth.config.issuer_settings import SourceSettings
from mqauth.config.settings import ProducerSettings
from mqauth.errors import require
from mqauth.keystore import ActiveKey, JWKSFile
from mqauth.keystore.disk.folder import read_pem
from mqauth.keystore.identity.credentials import ClientCredentials, Credential, OwnKey, TokenFile
from mqauth.keystore.identity.identity_key import IdentityKey
from mqauth.keystore.remote.jwks import JWKS, discover
from mqauth.wire.keys import Key, KeySource


def key_source(source: SourceSettings, clock: Clock) -> KeySource:
    """Return the source of an issuer's keys; a remote one fetches nothing yet.

    Raises:
        ConfigurationError: the file cannot be read, or the URL may not be used.
    """
    if source.file is not None:
        with source.table.located("file"):
            return JWKSFile(source.file, clock=clock, svid=source.svid)
    given = {"clock": clock, **source.arguments(JWKS)}
    with source.table.located("discovery" if source.jwks is None else "jwks"):
        if source.jwks is None:
            return discover(source.issuer, **given)
        return JWKS(source.jwks, svid=source.svid, **given)


def enrolled(producer: ProducerSettings, clock: Clock) -> IdentityKey:
    """Return the key of ``[producer.identity]``; nothing is asked yet.

    Raises:
        ConfigurationError: there is none, or a setting of it may not be used.
    """
    identity = require(producer.identity, "no identity")
    shown = identity.credential
    # What the authority is shown; exactly one of three kinds is set.
    if shown.token_file is not None:
        credential: Credential = TokenFile(shown.token_file)
    elif shown.issuer is not None and shown.subject is not None:
        own = key_on_disk(producer, shown, shown.subject, clock)
        credential = OwnKey(own, issuer=shown.issuer, subject=shown.subject)
    else:
        with shown.table.located("token_url"):
            credential = ClientCredentials(
                str(shown.token_url),
                client_id=str(shown.client_id),
                client_secret_file=str(shown.client_secret_file),
                ca=identity.ca,
                unsafe_http_loopback=identity.unsafe_http_loopback,
            )
    with identity.table.located("authority"):
        return IdentityKey(clock=clock, **identity.arguments(IdentityKey) | {"credential": credential})


def key_on_disk(producer: ProducerSettings, naming: Settings, subject: str, clock: Clock) -> Key | ActiveKey:
    """Return the key of a PEM file, or the active key of a folder; it must be able to speak for the subject.

    Args:
        producer: has the keys and their passphrase.
        naming: the settings that name keys and subject, for errors.
        subject: whom the key is to speak for.
        clock: tells the time.

    Raises:
        ConfigurationError: the key may not be used.
    """
    passphrase, keys = producer.read_secret("passphrase"), require(producer.keys, "no keys")
    with naming.table.located("keys"):
        # Path.is_dir raises for a path that we may not look at; reading such a path gives the better error.
        if os.path.isdir(keys):
            key: Key | ActiveKey = ActiveKey(keys, passphrase=passphrase, clock=clock)
        else:
            key = read_pem(keys, passphrase)
        now = key if isinstance(key, Key) else key.signing_key()
    subjects = getattr(now, "subjects", None)
    naming.table.require(
        subjects is None or subject in subjects, "subject", f"the key {now.kid} does not speak for it"
    )
    return key
