"""``--broker-settings FILE``: certificates and credentials of a broker; secrets only by reference.

One TOML table, ``[broker]``, for RabbitMQ and Kafka alike. Nothing here can turn verification off.
"""

from __future__ import annotations

import ipaddress
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import parse_qs, quote, urlsplit

from mqauth.config import read_passphrase, read_toml
from mqauth.config_table import Table
from mqauth.errors import ConfigurationError

MECHANISMS: Final = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
BOOTSTRAP_MS: Final = 10_000
"""Milliseconds for which kafka-python tries to reach a server."""
_KEYS: Final = (
    "tls", "ca", "cert", "key", "passphrase_env", "passphrase_file", "mechanism", "user", "password_env",
    "password_file",
)  # fmt: skip
_URL_TLS: Final = ("cafile", "capath", "cadata", "certfile", "keyfile")


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerSettings:
    """How to reach a broker.

    Args:
        tls: on Kafka, TLS by the system's authorities; ``ca`` and ``cert`` say so too.
        ca: PEM file of the authorities that the broker's certificate is checked against.
        cert, key: PEM files of the client's certificate and its key.
        passphrase: of the key.
        mechanism: of SASL, on Kafka.
        user, password: on RabbitMQ in place of those in the URL.
    """

    tls: bool = False
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    passphrase: bytes | None = field(default=None, repr=False)
    mechanism: str | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a settings file.

        Raises:
            ConfigurationError: no such file, an unknown key, a wrong type or a contradiction.
        """
        top = Table(file=str(path), name="", members=read_toml(path)[1], known=("broker",))
        table = top.table("broker", _KEYS)
        if table is None:
            raise top.refuse("broker", "required")
        passphrase, password = _secret(table, "passphrase"), _secret(table, "password")
        _check_pairs(table, passphrase, password)
        return cls(
            tls=table.flag("tls"),
            ca=table.optional_file_path("ca"),
            cert=table.optional_file_path("cert"),
            key=table.optional_file_path("key"),
            passphrase=passphrase,
            mechanism=table.choice("mechanism", MECHANISMS, None),
            user=table.optional_name("user"),
            password=None if password is None else _text(table, password),
        )

    @property
    def secure(self) -> bool:
        """Whether TLS is asked for."""
        return self.tls or self.ca is not None or self.cert is not None

    def context(self) -> ssl.SSLContext:
        """Return what verifies the broker and shows our certificate.

        Raises:
            ConfigurationError: a file cannot be used.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            if self.cert is not None:
                context.load_cert_chain(self.cert, self.key, self.passphrase or (lambda: b""))
        except (OSError, ValueError) as error:  # SSLError is an OSError
            raise ConfigurationError(
                f"--broker-settings: a PEM file cannot be used ({type(error).__name__})"
            ) from error
        return context

    def for_rabbitmq(self, url: str) -> dict[str, Any]:
        """Return the arguments of ``aio_pika.connect``.

        Raises:
            ConfigurationError: the URL contradicts the settings, or turns verification off.
        """
        parts = urlsplit(url)
        asked = parse_qs(parts.query, keep_blank_values=True)
        if any(value != "0" for value in asked.get("no_verify_ssl", ())):
            raise ConfigurationError(
                "--broker: no_verify_ssl would talk TLS with anyone: give ca in --broker-settings"
            )
        if self.mechanism is not None:
            raise ConfigurationError("--broker-settings: mechanism is for Kafka")
        found: dict[str, Any] = {"url": self._with_login(url)}
        if not self.secure:
            return found
        if parts.scheme != "amqps":
            raise ConfigurationError("--broker: amqps:// is required by the TLS of --broker-settings")
        if any(name in asked for name in _URL_TLS):
            raise ConfigurationError(
                "--broker: certificates stand in the URL or in --broker-settings, not in both"
            )
        return found | {"ssl_context": self.context()}

    def for_kafka(self, servers: list[str]) -> dict[str, Any]:
        """Return the arguments every client of kafka-python takes.

        Raises:
            ConfigurationError: a password would go in the clear to another machine.
        """
        found: dict[str, Any] = {"bootstrap_servers": servers, "bootstrap_timeout_ms": BOOTSTRAP_MS}
        if self.user is not None and self.mechanism is None:
            raise ConfigurationError(f"--broker-settings: user wants mechanism, {' or '.join(MECHANISMS)}")
        if self.user is not None and not self.secure and not all(map(_is_loopback, servers)):
            raise ConfigurationError("--broker-settings: a password off this machine wants tls = true, or ca")
        sasl = "SASL_" if self.user is not None else ""
        found["security_protocol"] = sasl + ("SSL" if self.secure else "PLAINTEXT")
        if self.secure:
            found["ssl_context"] = self.context()
        if self.user is not None:
            found |= {"sasl_mechanism": self.mechanism, "sasl_plain_username": self.user,
                      "sasl_plain_password": self.password}  # fmt: skip
        return found

    def _with_login(self, url: str) -> str:
        """Return an AMQP URL with our user and password in place of its own."""
        if self.user is None:
            return url
        parts = urlsplit(url)
        login = f"{quote(self.user, safe='')}:{quote(self.password or '', safe='')}"
        return parts._replace(netloc=f"{login}@{parts.netloc.rpartition('@')[2]}").geturl()


def _secret(table: Table, name: str) -> bytes | None:
    """Return a secret that a variable or a file holds."""
    variable, file = table.optional_name(f"{name}_env"), table.optional_file_path(f"{name}_file")
    if variable is not None and file is not None:
        raise table.refuse(f"{name}_env", f"only one of {name}_env and {name}_file")
    return read_passphrase(env=variable, file=file)


def _text(table: Table, password: bytes) -> str:
    """Return a password as text."""
    try:
        return password.decode("utf-8")
    except UnicodeDecodeError as error:
        raise table.refuse("password_file", "the password is not UTF-8") from error


def _check_pairs(table: Table, passphrase: bytes | None, password: bytes | None) -> None:
    """Refuse settings of which one is nothing without the other."""
    members = table.members
    if ("cert" in members) != ("key" in members):
        raise table.refuse("cert", "cert and key go together")
    if passphrase is not None and "key" not in members:
        raise table.refuse("passphrase_env", "there is no key it could be for")
    if "mechanism" in members and "user" not in members:
        raise table.refuse("mechanism", "wants user")
    if ("user" in members) != (password is not None):
        raise table.refuse("user", "user goes with password_env or password_file")


def _is_loopback(server: str) -> bool:
    """Tell whether ``host:port`` is this machine."""
    host = urlsplit(f"//{server}").hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
