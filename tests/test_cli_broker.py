"""``[broker]``: what it may say, what reaches the clients, and what is refused."""

from __future__ import annotations

import ssl
import warnings
from itertools import count
from pathlib import Path
from unittest import mock

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
)
from pamqp import commands

from integration.documentation import blocks
from mqauth.cli.broker import LetterAddress, table_of
from mqauth.config.broker import BrokerSettings
from mqauth.config.declaration import read_file
from mqauth.config.settings import FileSettings
from mqauth.errors import ConfigurationError
from mqauth.review.rabbitmq import is_unlimited

with warnings.catch_warnings():  # kafka-python reads its schemas by a deprecated function
    warnings.simplefilter("ignore", DeprecationWarning)
    import kafka  # noqa: F401 - imported before a test imports it

NUMBERS = count()
SASL = (
    'mechanism = "SCRAM-SHA-512"\nuser = "rev/iewer"\npassword_env = "BROKER_PASSWORD"\n'
)


@pytest.fixture(autouse=True)
def _password(monkeypatch: pytest.MonkeyPatch) -> None:
    """A password in the environment."""
    monkeypatch.setenv("BROKER_PASSWORD", "s3cr@t:/")


def load(tmp_path: Path, lines: str) -> BrokerSettings:
    """Read a file whose ``[broker]`` has these lines."""
    path = tmp_path / "mqauth.toml"
    path.write_text(f"[broker]\n{lines}")
    return table_of(None, read_file(FileSettings, path)).unlocked()


def test_sasl_over_tls_reaches_kafka_python(tmp_path: Path) -> None:
    """Mechanism, user and password; TLS that verifies names and chains, from 1.2 on."""
    found = load(tmp_path, SASL + "tls = true\n").for_kafka("kafka://a:9093,b:9093")
    context = found.pop("ssl_context")
    assert found.pop("bootstrap_timeout_ms") <= 10_000
    assert found == {
        "bootstrap_servers": ["a:9093", "b:9093"], "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-512", "sasl_plain_username": "rev/iewer", "sasl_plain_password": "s3cr@t:/",
    }  # fmt: skip
    assert (context.check_hostname, context.verify_mode) == (True, ssl.CERT_REQUIRED)
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize(
    ("lines", "protocol"),
    [("", "PLAINTEXT"), ("tls = true", "SSL"), (SASL, "SASL_PLAINTEXT")],
)
def test_protocol_follows_from_what_is_there(
    lines: str, protocol: str, tmp_path: Path
) -> None:
    """On this machine a password may go in the clear."""
    for server in ("127.0.0.1:9092", "localhost:9092", "[::1]:9092"):
        assert (
            load(tmp_path, lines).for_kafka(f"kafka://{server}")["security_protocol"]
            == protocol
        )


@pytest.mark.parametrize(
    "servers", ["10.0.0.1:9092", "127.0.0.1:9092,kafka.example:9092", "localhost.evil:1"]
)
@pytest.mark.parametrize(
    ("lines", "secret"),
    [(SASL, "password"), (f'token_callback = "{__name__}:fresh"', "token_callback")],
)
def test_no_secret_goes_elsewhere_in_the_clear(
    lines: str, secret: str, servers: str, tmp_path: Path
) -> None:
    """SASL without TLS off loopback is refused, with a password or a token."""
    with pytest.raises(
        ConfigurationError, match=f"{secret}: sent to another machine needs tls = true"
    ):
        load(tmp_path, lines).for_kafka(f"kafka://{servers}")


def test_tls_reaches_aio_pika(tmp_path: Path) -> None:
    """A context of ours, that verifies."""
    context = load(tmp_path, "tls = true").for_rabbitmq("amqps://mq.example/")[
        "ssl_context"
    ]
    assert (context.check_hostname, context.verify_mode) == (True, ssl.CERT_REQUIRED)


@pytest.mark.parametrize(
    ("lines", "url", "said"),
    [
        ("tls = true", "amqp://mq.example/", "amqps:// is required"),
        ("tls = true", "amqps://mq.example/?cafile=a", "not in both"),
        ("", "amqps://mq.example/?no_verify_ssl=1", "no_verify_ssl"),
        ("", "amqps://mq.example/?no_verify_ssl=false", "no_verify_ssl"),
        ("", "amqps://mq.example/?no_verify_ssl=", "no_verify_ssl"),
        (SASL, "amqps://mq.example/", "mechanism: is for Kafka"),
    ],
)
def test_what_contradicts_the_url_is_refused(
    lines: str, url: str, said: str, tmp_path: Path
) -> None:
    """TLS that would not be used, settings in two places, and verification turned off."""
    with pytest.raises(ConfigurationError, match=said):
        load(tmp_path, lines).for_rabbitmq(url)


def fresh() -> str:
    """Return another token at each call."""
    return f"token/{next(NUMBERS)}"


def failing() -> str:
    """Fail with a text that nobody should read."""
    raise LookupError("s3cr@t")


def test_each_connection_has_a_fresh_token(tmp_path: Path) -> None:
    """The function is asked at each login: OAUTHBEARER on Kafka, on RabbitMQ the password of whatever user."""
    settings = load(tmp_path, f'token_callback = "{__name__}:fresh"\ntls = true')
    for number in (0, 1):
        url = settings.for_rabbitmq("amqps://ada@mq.example/")["url"]
        assert url == f"amqps://ada:token%2F{number}@mq.example/"
    assert (
        settings.for_rabbitmq("amqps://mq.example/")["url"]
        == "amqps://token:token%2F2@mq.example/"
    )
    found = settings.for_kafka("kafka://a:9093")
    assert (found["sasl_mechanism"], found["security_protocol"]) == (
        "OAUTHBEARER",
        "SASL_SSL",
    )
    # One was asked for already, to tell at once what is wrong with the function.
    assert [found["sasl_oauth_token_provider"].token() for _ in range(2)] == [
        "token/4",
        "token/5",
    ]


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (f"{__name__}:failing", "it raised an error, which --debug shows"),
        ("os:getpid", "it returned no text"),
    ],
)
def test_a_function_without_a_token_is_named(
    function: str, said: str, tmp_path: Path
) -> None:
    """A function that raises, or returns something else, is one line without the text of its error."""
    settings = load(tmp_path, f'token_callback = "{function}"')
    for login in (settings.for_rabbitmq, settings.for_kafka):
        with pytest.raises(ConfigurationError, match=f"token_callback: {said}$"):
            login("kafka://127.0.0.1:9092")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('certificate = "a"', "unknown key"), ("tls = 1", "boolean"), ('cert = "a"', "cert: only with key"),
        ('key = "a"', "key: only with cert"), ('user = "a"', "user: only with password_env or"),
        ('passphrase_env = "BROKER_PASSWORD"', "passphrase_env: only with key"),
        ('password_env = "BROKER_PASSWORD"', "only with user"),
        ('mechanism = "PLAIN"', "mechanism: only with user"),
        (SASL.replace("SCRAM-SHA-512", "NONE"), "must be"), ('user = "a"\npassword = "b"', "unknown key"),
        ('user = "a"\npassword_env = "NOT_SET"', "not set"), ("password_file = 3", "string"),
        ('user = "a"\npassword_env = "BROKER_PASSWORD"\npassword_file = "b"', "password_file: contradicts"),
        ('token_callback = "msk.token"', "must be package.module:function"),
        (SASL + 'token_callback = "a:b"', "token_callback: contradicts user"),
        ('token_callback = "nowhere:token"', "token_callback: there is no such function"),
        (f'token_callback = "{__name__}:nothing"', "token_callback: there is no such function"),
        ("x", "not TOML"),
    ],
)  # fmt: skip
def test_a_file_that_says_nothing_clear_is_refused(
    lines: str, said: str, tmp_path: Path
) -> None:
    """Unknown keys, wrong types, halves of pairs, and secrets that are not references."""
    with pytest.raises(ConfigurationError, match=said):
        load(tmp_path, lines)


def test_a_user_on_kafka_needs_a_mechanism(tmp_path: Path) -> None:
    """The file alone does not tell which broker it is for; the client does."""
    settings = load(tmp_path, 'user = "a"\npassword_env = "BROKER_PASSWORD"')
    with pytest.raises(ConfigurationError, match="needs mechanism"):
        settings.for_kafka("kafka://127.0.0.1:9092")


def test_a_password_file_of_other_bytes_is_refused(tmp_path: Path) -> None:
    """A password is text; of the file one line end does not count."""
    (tmp_path / "password").write_bytes(b"\xff\n")
    with pytest.raises(ConfigurationError, match="UTF-8"):
        load(tmp_path, 'user = "a"\npassword_file = "password"')
    (tmp_path / "password").write_bytes(b"p\n")
    assert load(tmp_path, 'user = "a"\npassword_file = "password"').password == "p"


def test_pem_files_that_cannot_be_used_are_one_error(tmp_path: Path) -> None:
    """Missing, no PEM, and a key whose passphrase is missing: refused, and nobody is asked at a terminal."""
    (tmp_path / "none.pem").write_text("x")
    encrypted = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"p")
    )
    (tmp_path / "key.pem").write_bytes(encrypted)
    for lines in (
        'ca = "missing.pem"',
        'ca = "none.pem"',
        'cert = "none.pem"\nkey = "key.pem"',
    ):
        with pytest.raises(ConfigurationError, match="a PEM file cannot be used"):
            load(tmp_path, lines).context()


def test_no_secret_is_shown(tmp_path: Path) -> None:
    """A place can be logged."""
    place = LetterAddress(
        broker="kafka://127.0.0.1:1", name="t", settings=load(tmp_path, SASL)
    )
    assert "s3cr" not in repr(place) + repr(place.settings)


def test_the_documented_file_is_read(tmp_path: Path) -> None:
    """The page's example says what it seems to say."""
    (block,) = [
        block for block in blocks("docs/review.md") if "SCRAM-SHA-512" in block.text
    ]
    found = load(tmp_path, block.text.partition("[broker]")[2])
    assert (found.user, found.password, found.mechanism) == (
        "ada",
        "s3cr@t:/",
        "SCRAM-SHA-512",
    )
    assert (found.ca, found.cert, found.key) == (
        tmp_path / "ca.pem", tmp_path / "reviewer.pem", tmp_path / "reviewer-key.pem"
    )  # fmt: skip


async def test_a_queue_that_aio_pika_cannot_name() -> None:
    """A queue of pika's may have letters beyond ASCII; that is told, and is no fault of mqauth."""

    async def get_queue(name: str, *, ensure: bool) -> None:
        commands.Queue.Declare(queue=name, passive=ensure)

    connection = mock.AsyncMock()
    connection.channel.return_value.get_queue = get_queue
    with pytest.raises(
        ConfigurationError,
        match="queue caf\u00e9: aio-pika cannot name it: Invalid value for queue",
    ):
        await is_unlimited(connection, "caf\u00e9")
