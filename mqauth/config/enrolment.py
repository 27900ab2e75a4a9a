"""The key that a producer's settings describe: of a keystore, of a PEM file, or enrolled at an authority."""

from __future__ import annotations

import os

from mqauth.clock import Clock
from mqauth.config.declaration import Settings
from mqauth.config.identity_settings import IdentitySettings
from mqauth.config.settings import ProducerSettings
from mqauth.errors import require
from mqauth.keystore import ActiveKey
from mqauth.keystore.disk.folder import read_pem
from mqauth.keystore.identity.credentials import ClientCredentials, Credential, OwnKey, TokenFile
from mqauth.keystore.identity.identity_key import IdentityKey
from mqauth.wire.keys import Key


def enrolled(found: ProducerSettings, clock: Clock) -> IdentityKey:
    """Return the key of ``[producer.identity]``; nothing is asked yet.

    Raises:
        ConfigurationError: there is none, or a setting of it may not be used.
    """
    identity = require(found.identity, "no identity")
    credential = _credential(found, identity, clock)
    with identity.table.located("authority"):
        return IdentityKey(clock=clock, **identity.arguments(IdentityKey) | {"credential": credential})


def _credential(producer: ProducerSettings, identity: IdentitySettings, clock: Clock) -> Credential:
    """Return what the authority is shown; exactly one of three kinds is set."""
    found = identity.credential
    if found.token_file is not None:
        return TokenFile(found.token_file)
    if found.issuer is not None and found.subject is not None:
        own = key_on_disk(producer, found, found.subject, clock)
        return OwnKey(own, issuer=found.issuer, subject=found.subject)
    with found.table.located("token_url"):
        return ClientCredentials(
            str(found.token_url), client_id=str(found.client_id), client_secret_file=str(found.client_secret_file),
            ca=identity.ca, unsafe_http_loopback=identity.unsafe_http_loopback,
        )  # fmt: skip


def key_on_disk(found: ProducerSettings, said: Settings, subject: str, clock: Clock) -> Key | ActiveKey:
    """Return the key of a PEM file, or the active key of a folder; it must be able to speak for the subject.

    Args:
        found: has the keys and their passphrase.
        said: the settings that name keys and subject, for errors.
        subject: whom the key is to speak for.
        clock: tells the time.

    Raises:
        ConfigurationError: the key may not be used.
    """
    passphrase, keys = found.read_secret("passphrase"), require(found.keys, "no keys")
    with said.table.located("keys"):
        # Path.is_dir raises for a path that we may not look at; reading such a path gives the better error.
        if os.path.isdir(keys):
            key: Key | ActiveKey = ActiveKey(keys, passphrase=passphrase, clock=clock)
        else:
            key = read_pem(keys, passphrase)
        now = key if isinstance(key, Key) else key.signing_key()
    subjects = getattr(now, "subjects", None)
    if subjects is not None and subject not in subjects:
        raise said.table.refuse("subject", f"the key {now.kid} does not speak for it")
    return key
