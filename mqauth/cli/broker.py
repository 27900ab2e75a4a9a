"""Connections to a broker for ``mqauth dlq``, ``console``, ``demo`` and ``bench``, while the command runs.

``--broker-settings FILE`` holds certificates and credentials in one TOML table, ``[broker]``, for RabbitMQ and
Kafka alike. Secrets stand in it by reference only, and nothing in it can turn verification off.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar
from urllib.parse import parse_qs, quote, urlsplit

from mqauth import review
from mqauth.config.declaration import Settings, inner, not_with, only_with, read_file
from mqauth.config.kinds import FLAG, NAME, PATH, choice, is_broker_url
from mqauth.errors import ConfigurationError, require
from mqauth.flow import arun, run
from mqauth.keystore.remote.connection import is_loopback

R = TypeVar("R")
MECHANISMS: Final = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
_CLIENTS: Final = ("aio_pika", "aiormq", "kafka", "pamqp", "pika")
_PATIENCE: Final = 60.0
_BOOTSTRAP_MS: Final = 10_000
"""Milliseconds for which kafka-python tries to reach a first server."""
_BACKOFF_MS: Final = 5000
"""Milliseconds after which kafka-python tries a lost broker again at the latest; its own default is 30 s."""
_MAX_REQUEST: Final = 64 * 1024 * 1024
"""Bytes of a record that is sent back. The broker's own limit decides."""
_URL_TLS: Final = ("cafile", "capath", "cadata", "certfile", "keyfile")


def check_url(option: str, url: str) -> None:
    """Refuse a text that is no URL of a broker. The error does not repeat it: it may hold a password.

    Args:
        option: the option it came with.
        url: ``amqp://...``, ``amqps://...`` or ``kafka://host:port``, more servers after commas.

    Raises:
        ConfigurationError: it is none of them.
    """
    require(is_broker_url(url), f"{option}: must be amqp://..., amqps://... or kafka://host:port")


@contextlib.contextmanager
def reached(option: str) -> Iterator[None]:
    """Turn an error of a client library into one line, and silence the library's own log.

    Args:
        option: the option that named the broker.

    Raises:
        ConfigurationError: the broker cannot be reached, or refused us.
    """
    for name in _CLIENTS:
        logging.getLogger(name).addHandler(logging.NullHandler())
    try:
        yield
    except Exception as error:
        if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in _CLIENTS:
            raise
        raise ConfigurationError(f"{option}: the broker cannot be used ({type(error).__name__})") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerSettings(Settings):
    """``[broker]``: how a broker is reached.

    Args:
        passphrase: of the key of the client's certificate.
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
    mechanism: Annotated[str | None, choice(MECHANISMS), "The mechanism of SASL, on Kafka.", only_with("user")] = (
        None
    )
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
        """Read a settings file and the secrets it refers to.

        Raises:
            ConfigurationError: no such file, an unknown key, a wrong type or a contradiction, or a secret cannot
                be read.
        """
        found = read_file(BrokerFile, path).broker
        password = found.read_secret("password")
        try:
            text = None if password is None else password.decode("utf-8")
        except UnicodeDecodeError as error:
            raise found.table.refuse("password_file", "the password is not UTF-8") from error
        return replace(found, passphrase=found.read_secret("passphrase"), password=text)

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
                context.load_cert_chain(self.cert, self.key, self.passphrase or (lambda: b""))
        except (OSError, ValueError) as error:
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
        query = parse_qs(parts.query, keep_blank_values=True)
        require(
            set(query.get("no_verify_ssl", ())) <= {"0"},
            "--broker: no_verify_ssl would accept any server's certificate: give ca in --broker-settings",
        )
        require(self.mechanism is None, "--broker-settings: mechanism is for Kafka")
        found: dict[str, Any] = {"url": self._with_login(url)}
        if not self.secure:
            return found
        require(parts.scheme == "amqps", "--broker: amqps:// is required by the TLS of --broker-settings")
        require(
            query.keys().isdisjoint(_URL_TLS),
            "--broker: certificates are in the URL and in --broker-settings, not in both",
        )
        return found | {"ssl_context": self.context()}

    def for_kafka(self, servers: list[str]) -> dict[str, Any]:
        """Return the arguments that every client of kafka-python takes.

        Raises:
            ConfigurationError: a password would be sent to another machine without TLS.
        """
        found: dict[str, Any] = {
            "bootstrap_servers": servers, "bootstrap_timeout_ms": _BOOTSTRAP_MS,
            "security_protocol": "SSL" if self.secure else "PLAINTEXT",
        }  # fmt: skip
        if self.secure:
            found["ssl_context"] = self.context()
        if self.user is None:
            return found
        require(self.mechanism is not None, f"--broker-settings: user needs mechanism, {' or '.join(MECHANISMS)}")
        require(
            self.secure or all(map(_is_loopback, servers)),
            "--broker-settings: a password sent to another machine needs tls = true, or ca",
        )
        return found | {
            "security_protocol": f"SASL_{found['security_protocol']}", "sasl_mechanism": self.mechanism,
            "sasl_plain_username": self.user, "sasl_plain_password": self.password,
        }  # fmt: skip

    def _with_login(self, url: str) -> str:
        """Return an AMQP URL with the user and password of the settings in place of its own."""
        if self.user is None:
            return url
        parts = urlsplit(url)
        login = f"{quote(self.user, safe='')}:{quote(self.password or '', safe='')}"
        return parts._replace(netloc=f"{login}@{parts.netloc.rpartition('@')[2]}").geturl()


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerFile(Settings):
    """The file of ``--broker-settings`` as a whole."""

    broker: Annotated[BrokerSettings, inner(BrokerSettings), "How the broker is reached."]


def _is_loopback(server: str) -> bool:
    return is_loopback(urlsplit(f"//{server}").hostname or "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A dead-letter queue or topic.

    Args:
        broker: URL of the broker.
        queue: on RabbitMQ.
        topic: on Kafka.
        settings: certificates and credentials.

    Raises:
        ConfigurationError: no URL of a broker, or a queue on Kafka or a topic on RabbitMQ.
    """

    broker: str
    queue: str | None = None
    topic: str | None = None
    settings: BrokerSettings = field(default_factory=BrokerSettings)

    def __post_init__(self) -> None:
        check_url("--broker", self.broker)
        wanted, other = ("--topic", "--queue") if self.on_kafka else ("--queue", "--topic")
        found, foreign = (self.topic, self.queue) if self.on_kafka else (self.queue, self.topic)
        require(foreign is None, f"{other}: this broker needs {wanted}")
        require(found, f"{wanted}: required with this broker")

    @property
    def on_kafka(self) -> bool:
        """Whether the broker is Kafka."""
        return self.broker.startswith("kafka:")


def place_of(broker: str, queue: str | None, topic: str | None, settings: Path | None) -> Place:
    """Return the dead-letter queue or topic that the options name.

    Raises:
        ConfigurationError: as for ``Place``, or the settings file is refused.
    """
    loaded = BrokerSettings() if settings is None else BrokerSettings.load(settings)
    return Place(broker=broker, queue=queue, topic=topic, settings=loaded)


@contextlib.contextmanager
def opened(place: Place, **settings: Any) -> Iterator[review.Session]:
    """Connect to the broker, and give a review session on the queue or topic.

    Args:
        place: the dead-letter queue or topic.
        settings: of the ``Session``.

    Raises:
        ConfigurationError: the broker cannot be reached, its client is not installed, or there is no such
            queue or topic.
    """
    opener = _on_kafka if place.on_kafka else _on_rabbitmq
    try:
        with reached("--broker"), opener(place, settings) as session:
            yield session
    except ImportError as error:
        extra = "kafka" if place.on_kafka else "rabbitmq"
        raise ConfigurationError(f'--broker: needs its client: install "mqauth[{extra}]"') from error


@contextlib.contextmanager
def _on_rabbitmq(place: Place, settings: dict[str, Any]) -> Iterator[review.Session]:
    """Connect to RabbitMQ on an event loop of our own, which answers heartbeats while people think."""
    queue, arguments = place.queue or "", place.settings.for_rabbitmq(place.broker)
    import aio_pika

    from mqauth.review.rabbitmq import RabbitMQLetterBox, is_unlimited

    connect = partial(aio_pika.connect, **arguments)
    with contextlib.ExitStack() as stack:
        call = stack.enter_context(_event_loop())
        connection = call(connect(), _PATIENCE)
        stack.callback(_close, connection, call)
        unlimited = call(is_unlimited(connection, queue), _PATIENCE)
        box = RabbitMQLetterBox(connection, queue, connect=connect, unlimited=unlimited)
        # The box may have another connection by then, where the first one was lost.
        stack.callback(lambda: _close(box.connection, call))
        yield review.Session(box, lambda flow: call(arun(flow)), **settings)


def _close(connection: Any, call: Callable[..., Any]) -> None:
    """Close a connection that is still open."""
    if not connection.is_closed:
        with contextlib.suppress(OSError, TimeoutError):
            call(connection.close(), _PATIENCE)


@contextlib.contextmanager
def _on_kafka(place: Place, settings: dict[str, Any]) -> Iterator[review.Session]:
    """Connect to Kafka, and create the topic of resolutions where it is missing."""
    servers = place.broker.partition("://")[2].strip("/")
    require("?" not in servers, "--broker: certificates and credentials for Kafka stand in --broker-settings")
    bootstrap = {"reconnect_backoff_max_ms": _BACKOFF_MS} | place.settings.for_kafka(servers.split(","))
    import kafka

    from mqauth.review.kafka import KafkaLetterBox, KafkaRecords, create_reviewed

    client: Any = kafka  # its classes have no types
    topic = place.topic or ""
    reading = bootstrap | {"group_id": None, "enable_auto_commit": False, "allow_auto_create_topics": False}
    with contextlib.ExitStack() as stack:
        admin = stack.enter_context(contextlib.closing(client.KafkaAdminClient(**bootstrap)))
        require(topic in admin.list_topics(), f"--topic: there is no topic {topic}")
        create_reviewed(admin, topic)
        consumer = stack.enter_context(contextlib.closing(client.KafkaConsumer(**reading)))
        records = stack.enter_context(contextlib.closing(client.KafkaConsumer(**reading)))
        producer = client.KafkaProducer(
            **bootstrap, acks="all", enable_idempotence=False, allow_auto_create_topics=False, max_block_ms=5000,
            max_request_size=_MAX_REQUEST,
        )  # fmt: skip
        stack.callback(producer.close)
        box = KafkaLetterBox(consumer, producer, topic)
        yield review.Session(box, run, originals=KafkaRecords(records), **settings)


@contextlib.contextmanager
def _event_loop() -> Iterator[Callable[..., Any]]:
    """Give a function that runs a coroutine on a loop with a thread of its own, to its end or for some seconds."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield lambda work, seconds=None: asyncio.run_coroutine_threadsafe(work, loop).result(seconds)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_PATIENCE)
        loop.close()
