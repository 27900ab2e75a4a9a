"""``--broker-settings FILE``: certificates and credentials of a broker; secrets only by reference.

One TOML table, ``[broker]``, for RabbitMQ and Kafka alike. Nothing here can turn verification off.
"""

from __future__ import annotations

import ipaddress
import ssl
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import parse_qs, quote, urlsplit

from mqauth.config.declaration import Settings, inner, not_with, only_with, read_file, secret_of
from mqauth.config.kinds import FLAG, NAME, PATH, choice
from mqauth.config.toml_file import Table
from mqauth.errors import ConfigurationError

MECHANISMS: Final = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
BOOTSTRAP_MS: Final = 10_000
"""Milliseconds for which kafka-python tries to reach a server."""
_USER: Final = only_with("user")
_URL_TLS: Final = ("cafile", "capath", "cadata", "certfile", "keyfile")


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerSettings(Settings):
    """``[broker]``: how to reach a broker.

    Args:
        passphrase: of the client's key.
        password: of the user.
    """

    tls: Annotated[bool, FLAG, "On Kafka, TLS by the system's authorities; `ca` and `cert` say so too."] = False
    ca: Annotated[Path | None, PATH, "A PEM file of the authorities that certify the broker."] = None
    cert: Annotated[Path | None, PATH, "A PEM file with a certificate of ours.", only_with("key")] = None
    key: Annotated[Path | None, PATH, "A PEM file with the key of that certificate.", only_with("cert")] = None
    passphrase_env: Annotated[
        str | None, NAME, "The environment variable with the passphrase of that key.", only_with("key")
    ] = None
    passphrase_file: Annotated[
        Path | None,
        PATH,
        "The file with the passphrase of that key.",
        only_with("key"),
        not_with("passphrase_env"),
    ] = None
    mechanism: Annotated[str | None, choice(MECHANISMS), "The mechanism of SASL, on Kafka.", _USER] = None
    user: Annotated[
        str | None,
        NAME,
        "The user, on RabbitMQ in place of the URL's.",
        only_with("password_env", "password_file"),
    ] = None
    password_env: Annotated[
        str | None, NAME, "The environment variable with the user's password.", only_with("user")
    ] = None
    password_file: Annotated[
        Path | None, PATH, "The file with the user's password.", only_with("user"), not_with("password_env")
    ] = None
    passphrase: bytes | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)

    @classmethod
    def load(cls, path: Path) -> BrokerSettings:
        """Read a settings file.

        Raises:
            ConfigurationError: no such file, an unknown key, a wrong type or a contradiction, or a secret cannot
                be had.
        """
        found = read_file(BrokerFile, path).broker
        password = secret_of(found, "password")
        return replace(
            found,
            passphrase=secret_of(found, "passphrase"),
            password=None if password is None else _text(found.table, password),
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


def _text(table: Table, password: bytes) -> str:
    """Return a password as text."""
    try:
        return password.decode("utf-8")
    except UnicodeDecodeError as error:
        raise table.refuse("password_file", "the password is not UTF-8") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerFile(Settings):
    """The file of ``--broker-settings`` as a whole."""

    broker: Annotated[BrokerSettings, inner(BrokerSettings), "How the broker is reached."]


def _is_loopback(server: str) -> bool:
    """Tell whether ``host:port`` is this machine."""
    host = urlsplit(f"//{server}").hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
