"""Why a broker cannot be used, in one line: what, where, why, and what to do."""

from __future__ import annotations

import re
import socket
import ssl
from typing import Final
from urllib.parse import urlsplit

from mqauth.cli.app import UNDECIDED
from mqauth.cli.forms import CommandFailed
from mqauth.errors import ConfigurationError, MqauthError, words_of

_PORTS: Final = {"amqp": 5672, "amqps": 5671, "kafka": 9092}
_REFUSED: Final = (
    (re.compile("Authentication|AuthorizationFailed|AccessRefused"), "are user, password and permissions right?"),
    (re.compile("NotFoundEntity|UnknownTopic"), "is it declared, in this virtual host?"),
    (re.compile("NotAllowed"), "is there such a virtual host, and may the user use it?"),
    (re.compile("CertVerification"), "give ca in [broker], and the host's name as the certificate has it"),
    (re.compile("Locked|Precondition"), "is another one using it?"),
)
"""Names of errors that mean: the broker answered, and something in our settings is wrong; and what to do."""
_OTHERWISE: Final = "is TLS on at one end alone (amqps://, tls = true), or is there no such virtual host?"


def told(error: BaseException, urls: list[str], user: str | None, seconds: float) -> MqauthError:
    """Return the error that tells why a broker cannot be used.

    Args:
        error: of its client.
        urls: the brokers; passwords and queries in them are not repeated.
        user: who logs in, where it is not in the URL.
        seconds: for how long it was tried.
    """
    servers = []
    for scheme, _, rest in (url.partition("://") for url in urls):
        servers += [urlsplit(f"{scheme}://{server}") for server in rest.split(",")]
    hosts = [(each, f"[{each.hostname}]" if ":" in (each.hostname or "") else each.hostname) for each in servers]
    named = (f"{each.scheme}://{host}:{each.port or _PORTS[each.scheme]}" for each, host in hosts)
    where = ", ".join(named) or "the broker"
    name = user or next((each.username for each in servers if each.username), None)
    who = f" as user {name}" if name else ""
    cause: BaseException | None = error
    while cause is not None:
        for pattern, what_to_do in _REFUSED:
            if pattern.search(type(cause).__name__):
                return ConfigurationError(f"{where} refuses us{who}: {_words(cause)}; {what_to_do}")
        cause = cause.__cause__ or cause.__context__
    why, what_to_do = f"it answers, but not as this broker does ({type(error).__name__})", _OTHERWISE
    if not servers:
        why, what_to_do = _words(error), "is it running?"
    elif isinstance(error, ssl.SSLError):
        why = "no TLS"
    # Clients keep the reason to themselves, so the servers are tried once more, one by one.
    for each in servers:
        try:
            address = each.hostname or "", each.port or _PORTS[each.scheme]
            socket.create_connection(address, 3.0).close()
            continue
        except ConnectionRefusedError:
            why, what_to_do = "connection refused", "is the broker running, and is this its port?"
        except socket.gaierror as found:
            why, what_to_do = words_of(found).lower(), "is the host's name right?"
        except TimeoutError:
            why, what_to_do = "no answer", "is a firewall in between?"
        except OSError as found:
            why, what_to_do = words_of(found).lower(), "is the network up?"
        break
    return CommandFailed(f"cannot reach {where}{who}: {why}, {seconds:.0f} s; {what_to_do}", UNDECIDED)


def _words(error: BaseException) -> str:
    """Return what a broker said, which is no secret of ours; the name of the error where it said nothing."""
    said = getattr(error, "reason", None) or getattr(error, "verify_message", None)
    # Some reasons of aiormq are templates that nobody has filled in.
    texts = [one for one in (said, *error.args) if isinstance(one, str) and one and "%" not in one]
    return texts[0][:200] if texts else type(error).__name__
