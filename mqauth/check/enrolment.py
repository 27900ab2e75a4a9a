"""Rules on how a producer gets its identity: from whom, over what, and with which secret."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

from mqauth.check.findings import Finding, finding, on
from mqauth.check.target import Target, mode, strangers
from mqauth.config.kinds import is_url
from mqauth.config.settings import ProducerSettings
from mqauth.http.connection import is_loopback

_IDENTITY: Final = ("producer", "identity")
_CREDENTIAL: Final = (*_IDENTITY, "credential")
_WRITE: Final = 0o022


@on("producer")
def enrolment(target: Target, producer: ProducerSettings) -> Iterator[Finding]:
    """Find requests for an identity in plain text, and files beside them that are open to others."""
    found = producer.identity
    if found is None:
        return
    secret = found.credential.client_secret_file
    for place, url in ((_IDENTITY, found.authority), (_CREDENTIAL, found.credential.token_url)):
        key = "authority" if place is _IDENTITY else "token_url"
        if url is not None and is_url(url, ("http",)):
            host = urlsplit(url).hostname or ""
            local = found.unsafe_http_loopback and is_loopback(host)
            yield finding("authority_loopback" if local else "authority_http", (*place, key), f"http to {host}")
    if secret is not None and strangers(secret):
        text = f"{target.shown(secret)} is open to others (mode {mode(secret)})"
        yield finding("secret_readable", (*_CREDENTIAL, "client_secret_file"), text)
    if found.ca is not None and strangers(found.ca) & _WRITE:
        text = f"{target.shown(found.ca)} may be written by others (mode {mode(found.ca)})"
        yield finding("trust_writable", (*_IDENTITY, "ca"), text)


RULES: Final = (enrolment,)
