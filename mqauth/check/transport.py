"""Brokers and the replay store: whether the way to them is encrypted, and to whom.

Kafka has no URLs of its own: here ``kafka://host:port?name=value`` has kafka-python's keyword arguments as its
query. Hosts are never looked up: this machine is ``localhost`` and the loopback addresses.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from typing import Final
from urllib.parse import parse_qs, urlsplit

from mqauth.check import codes
from mqauth.check.findings import Finding
from mqauth.check.locator import Path
from mqauth.check.target import Rule, Target

_KAFKA: Final = "kafka"
_ENCRYPTED: Final = frozenset(("SSL", "SASL_SSL"))
_AMQP_TLS: Final = frozenset(
    ("ssl", "ssl_options", "ssl_context", "cafile", "capath", "cadata", "certfile", "keyfile", "no_verify_ssl")
)
_END: Final = re.compile("[/?#]")
_YES: Final = frozenset(("true", "t", "yes", "y", "1"))


def is_loopback(host: str) -> bool:
    """Tell whether a host can only be this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def brokers(target: Target) -> Iterator[Finding]:
    """Broker connections in the clear, or encrypted towards anyone."""
    for number, url in enumerate(target.options.brokers):
        path = ("check", "brokers", number)
        scheme, hosts, options = _parts(url)
        where = f"{scheme}://{','.join(hosts)}"
        if scheme == "amqp" and _AMQP_TLS & options.keys():
            given = ", ".join(sorted(_AMQP_TLS & options.keys()))
            yield codes.BROKER_TLS_IGNORED.at(path, f"{where} with {given}")
        elif not _is_encrypted(scheme, options) and not all(is_loopback(host) for host in hosts):
            yield codes.BROKER_PLAINTEXT.at(path, f"{where} is plaintext")
        elif _is_unverified(scheme, options):
            yield codes.BROKER_UNVERIFIED.at(path, f"{where} turns verification off")


def replay(target: Target) -> Iterator[Finding]:
    """A Redis in the clear, or encrypted towards anyone."""
    url = None if target.replay is None else target.replay.redis
    if url is None:
        return
    scheme, hosts, options = _parts(url)
    if scheme == "redis" and not all(is_loopback(host) for host in hosts):
        yield codes.REPLAY_PLAINTEXT.at(("replay", "store"), f"redis://{','.join(hosts)} is plaintext")
    lax = any(value != "required" for value in options.get("ssl_cert_reqs", ()))
    if scheme == "rediss" and (lax or not _all_yes(options.get("ssl_check_hostname", []))):
        yield codes.REPLAY_UNVERIFIED.at(("replay", "store"), f"rediss://{','.join(hosts)} is not verified")


def passwords(target: Target) -> Iterator[tuple[Path, str]]:
    """Yield where a URL has a password, and the URL without it."""
    urls: list[tuple[Path, str]] = [(("check", "brokers", n), url) for n, url in enumerate(target.options.brokers)]
    if target.replay is not None and target.replay.redis is not None:
        urls.append((("replay", "store"), target.replay.redis))
    for path, url in urls:
        scheme, hosts, options = _parts(url)
        inside = any(":" in server.rpartition("@")[0] for server in _servers(url))
        if inside or {"password", "sasl_plain_password"} & options.keys():
            yield path, f"{scheme}://{','.join(hosts)}"


def _parts(url: str) -> tuple[str, list[str], Mapping[str, list[str]]]:
    """Return the scheme, the hosts and the query of what was found to be a URL."""
    scheme = _scheme(url)
    hosts = [urlsplit(f"{scheme}://{server}").hostname or "" for server in _servers(url)]
    query = url.partition("#")[0].partition("?")[2]
    return scheme, hosts, parse_qs(query, keep_blank_values=True)


def _scheme(url: str) -> str:
    """Return the scheme, which is the same in capitals (RFC 3986, section 3.1)."""
    return url.partition("://")[0].lower()


def _servers(url: str) -> list[str]:
    """Return what stands between the scheme and the path, for each server."""
    place = _END.split(url.partition("://")[2], maxsplit=1)[0]
    return place.split(",") if _scheme(url) == _KAFKA else [place]


def _is_encrypted(scheme: str, options: Mapping[str, list[str]]) -> bool:
    """Tell whether a connection is encrypted; kafka-python's default is not."""
    if scheme == _KAFKA:
        return set(options.get("security_protocol", ["PLAINTEXT"])) <= _ENCRYPTED
    return scheme == "amqps"


def _is_unverified(scheme: str, options: Mapping[str, list[str]]) -> bool:
    """Tell whether an encrypted connection is to anyone who answers."""
    if scheme == _KAFKA:
        return not _all_yes(options.get("ssl_check_hostname", []))
    return any(value != "0" for value in options.get("no_verify_ssl", ()))


def _all_yes(values: list[str]) -> bool:
    """Tell whether a switch is on, each time it is given."""
    return {value.lower() for value in values} <= _YES


RULES: Final[tuple[Rule, ...]] = (brokers, replay)
