"""``[broker]`` and ``[review]``: how commands reach a broker, and what a reviewer works with.

Commands alone read them; the library itself opens no connection. Secrets stand in a file by reference only, and
nothing in it can turn verification off.
"""

# No ``from __future__ import annotations``, as in ``mqauth.config.settings``.

import re
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Annotated, Any, Final
from urllib.parse import parse_qs, quote, urlsplit

from mqauth.config.declaration import Settings, not_with, only_with
from mqauth.config.kinds import (
    BROKER_URL,
    FLAG,
    NAME,
    PATH,
    URLS,
    choice,
    is_broker_url,
    many,
    text,
)
from mqauth.config.toml_file import RefusedSetting, read_passphrase
from mqauth.errors import refusing, require
from mqauth.http.connection import is_loopback

MECHANISMS: Final = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
_BOOTSTRAP_MS: Final = 10_000
_FUNCTION: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerSettings(Settings):
    """``[broker]``: how a broker is reached.

    Args:
        passphrase: of the key of the client's certificate.
        password: of the user.
        ask_token: the function that ``token_callback`` names.
    """

    url: Annotated[
        str | None,
        BROKER_URL,
        "The broker: `amqp://`, `amqps://` or `kafka://host:port`, without a password.",
    ] = field(default=None, repr=False)
    url_env: Annotated[
        str | None,
        NAME,
        "The environment variable with the URL, which may have a password.",
        not_with("url"),
    ] = None
    queue: Annotated[
        str | None, NAME, "The dead-letter queue, on RabbitMQ; else [dead_letters] name."
    ] = None
    topic: Annotated[
        str | None, NAME, "The dead-letter topic, on Kafka; likewise.", not_with("queue")
    ] = None
    tls: Annotated[
        bool,
        FLAG,
        "On Kafka, TLS by the system's authorities; `ca` and `cert` say so too.",
    ] = False
    ca: Annotated[
        Path | None, PATH, "A PEM file of the authorities that certify the broker."
    ] = None
    cert: Annotated[
        Path | None, PATH, "A PEM file with a certificate of ours.", only_with("key")
    ] = None
    key: Annotated[
        Path | None,
        PATH,
        "A PEM file with the key of that certificate.",
        only_with("cert"),
    ] = None
    passphrase_env: Annotated[
        str | None,
        NAME,
        "The environment variable with the passphrase of that key.",
        only_with("key"),
    ] = None
    passphrase_file: Annotated[
        Path | None,
        PATH,
        "The file with the passphrase of that key.",
        only_with("key"),
        not_with("passphrase_env"),
    ] = None
    mechanism: Annotated[
        str | None,
        choice(MECHANISMS),
        "The mechanism of SASL, on Kafka.",
        only_with("user"),
    ] = None
    user: Annotated[
        str | None,
        NAME,
        "The user, on RabbitMQ in place of the URL's.",
        only_with("password_env", "password_file"),
    ] = None
    password_env: Annotated[
        str | None,
        NAME,
        "The environment variable with the user's password.",
        only_with("user"),
    ] = None
    password_file: Annotated[
        Path | None,
        PATH,
        "The file with the user's password.",
        only_with("user"),
        not_with("password_env"),
    ] = None
    token_callback: Annotated[
        str | None,
        text(
            "package.module:function",
            _FUNCTION.fullmatch,
            "must be package.module:function",
            {"pattern": f"^{_FUNCTION.pattern}$"},
        ),
        "A function that returns an OAuth 2.0 token: OAUTHBEARER on Kafka, the password on RabbitMQ.",
        not_with("user"),
    ] = None
    passphrase: bytes | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    ask_token: Callable[[], str] | None = field(default=None, repr=False)

    def refusals(self) -> Iterator[RefusedSetting]:
        """Yield the refusal of a password, which is for the environment or for a file of its own."""
        # Of several servers any may have one; so may the query, for kafka-python.
        servers = (self.url or "").partition("://")[2].split(",")
        return self.refused(
            (
                any(urlsplit(f"//{server}").password is not None for server in servers),
                "url",
                "holds a password; use user with password_env or password_file, or url_env",
            )
        )

    def unlocked(self) -> "BrokerSettings":
        """Return the settings with the secrets that they refer to, and with the URL of ``url_env``.

        Raises:
            ConfigurationError: one of them cannot be read.
        """
        password, passphrase = (
            self.read_secret("password"),
            self.read_secret("passphrase"),
        )
        with self.table.located("url_env"):
            url = read_passphrase(env=self.url_env)
            address = self.url if url is None else url.decode("utf-8", "replace")
            require(
                address is None or is_broker_url(address),
                f"the variable {self.url_env} holds no {URLS}",
            )
        with (
            self.table.located("password_file"),
            refusing(UnicodeDecodeError, "the password is not UTF-8"),
        ):
            text = None if password is None else password.decode("utf-8")
        what = (
            "there is no such function: is it installed, or is its folder in PYTHONPATH?"
        )
        with (
            self.table.located("token_callback"),
            refusing((ImportError, AttributeError), what),
        ):
            ask: Any = self.token_callback and resolve_name(self.token_callback)
        return replace(
            self, passphrase=passphrase, password=text, url=address, ask_token=ask
        )

    def token(self) -> str:
        """Return the token of this moment, which the function of ``token_callback`` gives.

        Raises:
            ConfigurationError: it raises, or returns no text.
        """
        what = "it raised an error, which --debug shows"
        with self.table.located("token_callback"), refusing(Exception, what):
            token = require(self.ask_token, "")()
        self.table.require(
            isinstance(token, str) and token, "token_callback", "it returned no text"
        )
        return token

    @property
    def secure(self) -> bool:
        """Whether TLS is wanted."""
        return self.tls or self.ca is not None or self.cert is not None

    def context(self) -> ssl.SSLContext:
        """Return the TLS context that verifies the broker and shows our certificate.

        Raises:
            ConfigurationError: a file cannot be used.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            if self.cert is not None:
                # Without a callback OpenSSL would ask for a passphrase at the terminal.
                context.load_cert_chain(
                    self.cert, self.key, self.passphrase or (lambda: b"")
                )
        except (OSError, ValueError) as error:
            what = (
                getattr(error, "reason", None)
                or getattr(error, "strerror", None)
                or type(error).__name__
            )
            raise self.table.refuse(
                "cert" if self.ca is None else "ca", f"a PEM file cannot be used ({what})"
            ) from error
        return context

    def for_rabbitmq(self, url: str) -> dict[str, Any]:
        """Return the arguments of ``aio_pika.connect``.

        Raises:
            ConfigurationError: the URL contradicts the settings, or turns verification off.
        """
        parts = urlsplit(url)
        query = parse_qs(parts.query, keep_blank_values=True)
        require(
            set(query.get("no_verify_ssl", ())) <= {"0"},
            "--broker: no_verify_ssl would accept any server's certificate; give ca in [broker]",
        )
        self.table.require(self.mechanism is None, "mechanism", "is for Kafka")
        # The user of the settings, in place of the one in the URL. With a token, RabbitMQ looks at no name.
        user = self.user or (self.ask_token and (parts.username or "token"))
        if user is not None:
            password = self.password if self.ask_token is None else self.token()
            login = f"{quote(user, safe='')}:{quote(password or '', safe='')}"
            url = parts._replace(
                netloc=f"{login}@{parts.netloc.rpartition('@')[2]}"
            ).geturl()
        if not self.secure:
            return {"url": url}
        require(
            parts.scheme == "amqps",
            "--broker: amqps:// is required by the TLS of [broker]",
        )
        require(
            query.keys().isdisjoint(
                ("cafile", "capath", "cadata", "certfile", "keyfile")
            ),
            "--broker: certificates are in the URL and in [broker], not in both",
        )
        return {"url": url, "ssl_context": self.context()}

    def for_kafka(self, url: str) -> dict[str, Any]:
        """Return the arguments that every client of kafka-python takes.

        Args:
            url: ``kafka://host:port``, with further servers after commas.

        Raises:
            ConfigurationError: a password or token would be sent to another machine without TLS, or there is none.
        """
        servers = url.partition("://")[2].strip("/").split(",")
        options: dict[str, Any] = {
            "bootstrap_servers": servers,
            "bootstrap_timeout_ms": _BOOTSTRAP_MS,
            "security_protocol": "SSL" if self.secure else "PLAINTEXT",
            **({"ssl_context": self.context()} if self.secure else {}),
        }
        if self.user is None and self.ask_token is None:
            return options
        self.table.require(
            self.secure
            or all(
                is_loopback(urlsplit(f"//{server}").hostname or "") for server in servers
            ),
            "token_callback" if self.user is None else "password",
            "sent to another machine needs tls = true, or ca",
        )
        options["security_protocol"] = f"SASL_{options['security_protocol']}"
        if self.user is not None:
            self.table.require(
                self.mechanism is not None,
                "user",
                f"needs mechanism, {' or '.join(MECHANISMS)}",
            )
            return options | {
                "sasl_plain_username": self.user,
                "sasl_plain_password": self.password,
                "sasl_mechanism": self.mechanism,
            }
        from kafka.net.sasl.oauth import AbstractTokenProvider

        # Told at once: kafka-python would take it for a broker that cannot be reached.
        self.token()
        provider = type(
            "Provider", (AbstractTokenProvider,), {"token": lambda _: self.token()}
        )()
        return options | {
            "sasl_mechanism": "OAUTHBEARER",
            "sasl_oauth_token_provider": provider,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewSettings(Settings):
    """``[review]``: what a reviewer of dead letters works with, where no option says it."""

    key: Annotated[
        Path | None, PATH, "The reviewer's keystore folder or PEM file, to redrive."
    ] = None
    audit: Annotated[Path | None, PATH, "The reviewer's own audit file."] = None
    authority: Annotated[
        str | None, NAME, "The issuer of the releases, as the consumers know it."
    ] = None
    reviewer: Annotated[
        str | None, NAME, "The reviewer's name, in releases and audit."
    ] = None
    audit_files: Annotated[
        tuple[Path, ...],
        many(PATH),
        "Audit files of consumers and reviewers, for the balance.",
    ] = ()
