"""The key that a producer's settings describe: of a keystore, of a PEM file, or enrolled at an authority."""

from __future__ import annotations

import os

from mqauth.clock import Clock
from mqauth.config.identity_settings import CredentialSettings
from mqauth.config.settings import ProducerSettings
from mqauth.errors import require
from mqauth.keystore import ActiveKey
from mqauth.keystore.disk.folder import read_pem
from mqauth.keystore.identity.credentials import ClientCredentials, Credential, OwnKey, TokenFile
from mqauth.keystore.identity.enrolled import EnrolledKey
from mqauth.wire.keys import Key


def producer_key(found: ProducerSettings, clock: Clock) -> Key | ActiveKey | EnrolledKey:
    """Return the key of ``[producer]``; it must be able to speak for the subject.

    An enrolled key asks its authority at once. If that is out of reach, the producer starts and signs nothing yet.

    Raises:
        ConfigurationError: the key may not be used.
    """
    if found.identity is None:
        return _key_on_disk(found, found.subject, clock)
    with found.identity.table.located("authority"):
        key = EnrolledKey(
            credential=_credential(found, found.identity.credential, clock), clock=clock,
            **found.identity.arguments(EnrolledKey),
        )  # fmt: skip
    key.start()
    return key


def _credential(producer: ProducerSettings, found: CredentialSettings, clock: Clock) -> Credential:
    """Return what the authority is shown; exactly one of three kinds is set."""
    if found.token_file is not None:
        return TokenFile(found.token_file)
    if found.issuer is not None and found.subject is not None:
        return OwnKey(_key_on_disk(producer, found.subject, clock), issuer=found.issuer, subject=found.subject)
    identity = require(producer.identity, "no identity")
    with found.table.located("token_url"):
        return ClientCredentials(
            str(found.token_url), client_id=str(found.client_id), client_secret_file=str(found.client_secret_file),
            ca=identity.ca, unsafe_http_loopback=identity.unsafe_http_loopback,
        )  # fmt: skip


def _key_on_disk(found: ProducerSettings, subject: str, clock: Clock) -> Key | ActiveKey:
    """Return the key of a PEM file, or the active key of a folder; it must be able to speak for the subject."""
    passphrase, keys = found.read_secret("passphrase"), require(found.keys, "no keys")
    with found.table.located("keys"):
        # Path.is_dir raises for a path that we may not look at; reading such a path gives the better error.
        if os.path.isdir(keys):
            key: Key | ActiveKey = ActiveKey(keys, passphrase=passphrase, clock=clock)
        else:
            key = read_pem(keys, passphrase)
        now = key if isinstance(key, Key) else key.signing_key()
    if now.subjects is not None and subject not in now.subjects:
        raise found.table.refuse("subject", f"the key {now.kid} does not speak for it")
    return key
