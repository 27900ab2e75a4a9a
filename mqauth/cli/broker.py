"""Connections to a broker for ``mqauth dlq``, ``console`` and ``demo``, while the command runs.

``[broker]`` in ``mqauth.toml`` says where the dead letters are and how their broker is reached. An option counts
before the environment, and the environment before the file. Why a broker cannot be used is one line: what, where,
why, and what to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import re
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final
from urllib.parse import urlsplit

from mqauth import review
from mqauth.cli.app import UNDECIDED, Broker, Config, Queue, Topic
from mqauth.cli.forms import CommandFailed
from mqauth.cli.settings import FILE, settings_of
from mqauth.config.broker import BrokerSettings
from mqauth.config.consumer_settings import ConsumerSettings
from mqauth.config.kinds import URLS, is_broker_url
from mqauth.config.settings import FileSettings
from mqauth.errors import ConfigurationError, MqauthError, refusing, require, words_of
from mqauth.flow import arun, run
from mqauth.wire.destination import is_kafka, parse

_REFUSED: Final = (
    (
        re.compile("Authentication|AuthorizationFailed|AccessRefused"),
        "are user, password and permissions right?",
    ),
    (re.compile("NotFoundEntity|UnknownTopic"), "is it declared, in this virtual host?"),
    (re.compile("NotAllowed"), "is there such a virtual host, and may the user use it?"),
    (
        re.compile("CertVerification"),
        "give ca in [broker], and the host's name as the certificate has it",
    ),
    (re.compile("Locked|Precondition"), "is another one using it?"),
)
"""Names of errors that mean: the broker answered, and something in our settings is wrong; and what to do."""


def told(
    error: BaseException,
    urls: list[str],
    user: str | None,
    seconds: float,
    heard: Iterable[BaseException] = (),
) -> MqauthError:
    """Return the error that tells why a broker cannot be used.

    Args:
        error: of its client.
        urls: the brokers; passwords and queries in them are not repeated.
        user: who logs in, where it is not in the URL.
        seconds: for how long it was tried.
        heard: errors that the client has logged meanwhile.
    """
    servers = [
        urlsplit(f"{scheme}://{server}")
        for scheme, _, rest in (url.partition("://") for url in urls)
        for server in rest.split(",")
    ]
    addresses = [
        (
            each.hostname or "",
            each.port or {"amqp": 5672, "amqps": 5671, "kafka": 9092}[each.scheme],
        )
        for each in servers
    ]
    named = (
        f"{each.scheme}://{f'[{host}]' if ':' in host else host}:{port}"
        for each, (host, port) in zip(servers, addresses, strict=True)
    )
    where = ", ".join(named) or "the broker"
    name = user or next((each.username for each in servers if each.username), None)
    who = f" as user {name}" if name else ""
    # The broker answered, and something in our settings is wrong: the client's error says so, or one behind it.
    # Two errors can be the cause and the context of each other.
    causes = [error, *heard]
    for cause in causes:
        for pattern, what_to_do in _REFUSED:
            if pattern.search(type(cause).__name__):
                return ConfigurationError(
                    f"{where} refuses us{who}: {_words(cause)}; {what_to_do}"
                )
        causes += [
            each
            for each in (cause.__cause__, cause.__context__)
            if each is not None and each not in causes
        ]
    why = f"it answers, but not as this broker does ({type(error).__name__})"
    what_to_do = "is TLS on at one end alone (amqps://, tls = true), or the virtual host, password or token wrong?"
    if not servers:
        why, what_to_do = _words(error), "is it running?"
    elif isinstance(error, ssl.SSLError):
        why = "no TLS"
    # Clients keep the reason to themselves, so the servers are tried once more; the first that fails tells it.
    try:
        for address in addresses:
            socket.create_connection(address, 3.0).close()
    except OSError as failure:
        advice = {
            ConnectionRefusedError: (
                "connection refused",
                "is the broker running, and is this its port?",
            ),
            socket.gaierror: (words_of(failure).lower(), "is the host's name right?"),
            TimeoutError: ("no answer", "is a firewall in between?"),
        }
        why, what_to_do = advice.get(
            type(failure), (words_of(failure).lower(), "is the network up?")
        )
    return CommandFailed(
        f"cannot reach {where}{who}: {why}, {seconds:.0f} s; {what_to_do}", UNDECIDED
    )


def _words(error: BaseException) -> str:
    """Return what a broker said, which is no secret of ours; the name of the error where it said nothing."""
    reason = getattr(error, "reason", None) or getattr(error, "verify_message", None)
    # Some reasons of aiormq are templates that nobody has filled in.
    texts = [
        text
        for text in (reason, *error.args)
        if isinstance(text, str) and text and "%" not in text
    ]
    return texts[0][:200] if texts else type(error).__name__


_CLIENTS: Final = ("aio_pika", "aiormq", "kafka", "pamqp", "pika")
_PATIENCE: Final = 60.0
TIMESTAMP_TYPE: Final = "message.timestamp.type"
APPEND_TIME: Final = "LogAppendTime"


def check_url(option: str, url: str) -> None:
    """Refuse a text that is no URL of a broker. The error does not repeat it: it may hold a password.

    Args:
        option: the option it came with.
        url: ``amqp://...``, ``amqps://...`` or ``kafka://host:port``, more servers after commas.

    Raises:
        ConfigurationError: it is none of them.
    """
    require(is_broker_url(url), f"{option}: must be {URLS}")


class Hearing(logging.Handler):
    """Keeps what a client logs of a login that is refused: kafka-python tries again, and raises a time-out.

    Attributes:
        heard: the newest of these errors.
    """

    def __init__(self) -> None:
        super().__init__()
        self.heard: deque[BaseException] = deque(maxlen=10)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the errors among the values of a line."""
        for each in record.args if isinstance(record.args, tuple) else ():
            if isinstance(each, Exception) and "Authentication" in type(each).__name__:
                self.heard.append(each)


@contextlib.contextmanager
def reached(*urls: str | None, user: str | None = None) -> Iterator[None]:
    """Turn an error of a client library into one line, and silence the library's own log.

    Args:
        urls: the brokers.
        user: who logs in, where it is not in the URL.

    Raises:
        CommandFailed: a broker cannot be reached; exit code 3.
        ConfigurationError: it refused us, or does not have what we named.
        OSError: a file cannot be read, or standard output is closed or full.
    """
    hearing = Hearing()
    for name in _CLIENTS:
        logging.getLogger(name).addHandler(logging.NullHandler())
        logging.getLogger(name).addHandler(hearing)
    began = time.monotonic()
    try:
        yield
    except Exception as error:
        # Of a file, or of standard output whose pipe is closed or disk is full: clients have errors of their own.
        if type(error).__module__.partition(".")[0] not in _CLIENTS and (
            not isinstance(error, OSError)
            or error.filename is not None
            or error.errno in (errno.EPIPE, errno.ENOSPC)
        ):
            raise
        raise told(
            error,
            [url for url in urls if url],
            user,
            time.monotonic() - began,
            hearing.heard,
        ) from error
    finally:
        for name in _CLIENTS:
            logging.getLogger(name).removeHandler(hearing)


@dataclass(frozen=True, slots=True, kw_only=True)
class LetterAddress:
    """A dead-letter queue or topic.

    Args:
        broker: URL of the broker.
        name: of the queue on RabbitMQ, of the topic on Kafka.
        settings: certificates and credentials.
    """

    broker: str
    name: str
    settings: BrokerSettings

    @property
    def on_kafka(self) -> bool:
        """Whether the broker is Kafka."""
        return self.broker.startswith("kafka:")


def place_of(
    broker: str | None, queue: str | None, topic: str | None, file: FileSettings
) -> LetterAddress:
    """Return the dead-letter queue or topic that the options and the configuration name.

    Raises:
        ConfigurationError: no broker is named, or by something else than its URL or the name of its table; or no
            queue or topic is named, or a queue on Kafka or a topic on RabbitMQ.
    """
    is_url = broker is not None and "://" in broker
    settings = table_of(None if is_url else broker, file).unlocked()
    url = require(
        broker if is_url else settings.url,
        f"no broker: give --broker URL, or [broker] url in {file.table.file or FILE}",
    )
    check_url("--broker", url)
    options = {"queue": queue, "topic": topic}
    wanted, other = ("topic", "queue") if url.startswith("kafka:") else ("queue", "topic")
    require(options[other] is None, f"--{other}: this broker needs --{wanted}")
    name = (
        options[wanted]
        or getattr(settings, wanted)
        or (file.dead_letters and file.dead_letters.name)
    )
    return LetterAddress(
        broker=url,
        name=require(
            name, f"--{wanted}: required with this broker; or [broker] {wanted} in {FILE}"
        ),
        settings=settings,
    )


def placed(
    *,
    broker: Broker = None,
    config: Config = None,
    queue: Queue = None,
    topic: Topic = None,
) -> LetterAddress:
    """Return the dead-letter queue or topic that the options of a command name; ``options`` calls it."""
    return place_of(broker, queue, topic, settings_of(config))


def places_of(
    broker: str | None, queue: str | None, topic: str | None, file: FileSettings
) -> dict[str, LetterAddress]:
    """Return all dead-letter queues and topics of the configuration by their names, where no option names one.

    Arguments and errors are those of ``place_of``.
    """
    names = list(file.brokers or ())
    if any((broker, queue, topic)) or len(names) + (file.broker is not None) < 2:
        # A URL is no name: it may hold a password.
        name = broker if broker in names else None
        return {name or "": place_of(broker, queue, topic, file)}
    own = {} if file.broker is None else {"broker": place_of(None, None, None, file)}
    return own | {name: place_of(name, None, None, file) for name in names}


def table_of(name: str | None, file: FileSettings) -> BrokerSettings:
    """Return ``[brokers.NAME]``; without a name ``[broker]``, or the only table of ``[brokers]``.

    Raises:
        ConfigurationError: there is no such table, or there are several and none is named.
    """
    known, where = file.brokers or {}, file.table.file or FILE
    if name is None and (file.broker is not None or not known):
        return file.broker or BrokerSettings()
    if name is None and len(known) == 1:
        return next(iter(known.values()))
    name = require(
        name, f"{where}: [brokers] has several: give --broker, one of {', '.join(known)}"
    )
    has = f"{where} has {', '.join(known)}" if known else f"{where} has no [brokers.NAME]"
    return require(
        known.get(name), f"--broker: must be {URLS}, or a name of [brokers.NAME]; {has}"
    )


@contextlib.contextmanager
def opened(address: LetterAddress, **settings: Any) -> Iterator[review.Session]:
    """Connect to the broker, and give a review session on the queue or topic.

    On RabbitMQ its letter box finds another connection where one is lost. On Kafka the topic of resolutions is
    created where it is missing.

    Args:
        address: the dead-letter queue or topic.
        settings: of the ``Session``.

    Raises:
        ConfigurationError: the broker cannot be reached, its client is not installed, or there is no such
            queue or topic.
    """
    with needing("--broker", address), contextlib.ExitStack() as stack:
        if not address.on_kafka:
            import aio_pika

            from mqauth.review.rabbitmq import RabbitMQLetterBox, is_unlimited

            connection, call = stack.enter_context(
                rabbitmq(address.settings, address.broker)
            )
            letters = RabbitMQLetterBox(
                connection,
                address.name,
                # With a fresh token, where there is one.
                connect=lambda: aio_pika.connect(
                    **address.settings.for_rabbitmq(address.broker)
                ),
                unlimited=call(is_unlimited(connection, address.name), _PATIENCE),
            )
            stack.callback(lambda: _close(letters.connection, call))
            yield review.Session(letters, lambda flow: call(arun(flow)), **settings)
            return
        require(
            "?" not in address.broker,
            "--broker: certificates and credentials for Kafka stand in [broker]",
        )
        # Milliseconds after which kafka-python tries a lost broker again at the latest; its own default is 30 s.
        bootstrap = {"reconnect_backoff_max_ms": 5000} | address.settings.for_kafka(
            address.broker
        )
        from mqauth.review.kafka import KafkaLetterBox, KafkaRecords, create_reviewed

        client = import_module("kafka")
        reading = bootstrap | {
            "group_id": None,
            "enable_auto_commit": False,
            "allow_auto_create_topics": False,
        }
        admin = stack.enter_context(
            contextlib.closing(client.KafkaAdminClient(**bootstrap))
        )
        require(
            address.name in admin.list_topics(),
            f"--topic: there is no topic {address.name}",
        )
        create_reviewed(admin, address.name)
        consumer = stack.enter_context(
            contextlib.closing(client.KafkaConsumer(**reading))
        )
        records = stack.enter_context(contextlib.closing(client.KafkaConsumer(**reading)))
        # Bytes of a record that is sent back. The broker's own limit decides.
        producer = stack.enter_context(
            contextlib.closing(
                client.KafkaProducer(
                    **bootstrap,
                    acks="all",
                    enable_idempotence=False,
                    allow_auto_create_topics=False,
                    max_block_ms=5000,
                    max_request_size=64 * 1024 * 1024,
                )
            )
        )
        box = KafkaLetterBox(consumer, producer, address.name)
        yield review.Session(box, run, originals=KafkaRecords(records).fetch, **settings)


@contextlib.contextmanager
def needing(option: str, address: LetterAddress) -> Iterator[None]:
    """Turn what keeps a command from its broker within the block into one line.

    Args:
        option: that needs the broker's client.
        address: at the broker.

    Raises:
        CommandFailed, ConfigurationError: as for ``reached``; or its client is not installed.
    """
    extra = "kafka" if address.on_kafka else "rabbitmq"
    with (
        refusing(ImportError, f'{option}: needs its client: install "mqauth[{extra}]"'),
        reached(address.broker, user=address.settings.user),
    ):
        yield


def kafka_admin(address: LetterAddress) -> contextlib.AbstractContextManager[Any]:
    """Return kafka-python's admin client of a broker, which is closed at the end of the block."""
    client = import_module("kafka")
    return contextlib.closing(
        client.KafkaAdminClient(**address.settings.for_kafka(address.broker))
    )


def _close(connection: Any, call: Callable[..., Any]) -> None:
    """Close a connection that is still open."""
    if not connection.is_closed:
        with contextlib.suppress(OSError, TimeoutError):
            call(connection.close(), _PATIENCE)


def check_stamps(admin: Any, consumer: ConsumerSettings | None) -> None:
    """Refuse topics whose records have the time of their sender, where the consumer judges by the broker's.

    Args:
        admin: kafka-python's admin client.
        consumer: whose rules name the topics; those with a wildcard name none.

    Raises:
        ConfigurationError: there is one.
    """
    if consumer is None or consumer.at != "append":
        return
    of = import_module("kafka.admin")
    destinations = [
        each for rule in consumer.allow for each in rule.destinations if is_kafka(each)
    ]
    topics = {parse(each)[1] for each in destinations if not set(each) & set("*#")} & {
        *admin.list_topics()
    }
    asked = [
        of.ConfigResource(of.ConfigResourceType.TOPIC, each, configs=[TIMESTAMP_TYPE])
        for each in topics
    ]
    configs = admin.describe_configs(asked, config_filter="all")["topic"] if asked else {}
    for topic, settings in configs.items():
        kind = settings.get(TIMESTAMP_TYPE, {}).get("value")
        require(
            kind == APPEND_TIME,
            f"topic {topic}: {TIMESTAMP_TYPE} is {kind}, and the consumer judges by the broker's time"
            f' (at = "append"). Set {APPEND_TIME}, if no program reads the time that producers write into records;'
            " or take mqauth init --managed",
        )


@contextlib.contextmanager
def rabbitmq(
    settings: BrokerSettings, url: str | None = None
) -> Iterator[tuple[Any, Callable[..., Any]]]:
    """Give a connection of aio-pika's, and a function that runs a coroutine on its event loop.

    The loop has a thread of its own, which answers heartbeats while people think.

    Args:
        settings: of the broker.
        url: in place of theirs.

    Raises:
        CommandFailed: the broker cannot be reached.
        ConfigurationError: it refused us.
    """
    import aio_pika

    url = url or settings.url or ""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def call(work: Any, seconds: float | None = None) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(seconds)

    try:
        with reached(url, user=settings.user):
            connection = call(aio_pika.connect(**settings.for_rabbitmq(url)), _PATIENCE)
            try:
                yield connection, call
            finally:
                _close(connection, call)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_PATIENCE)
        loop.close()
