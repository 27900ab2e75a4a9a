"""``mqauth init``: writes a producer, a consumer, their keys and settings, and declares what they need."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from string import Template
from typing import Annotated, Any, Final

import typer

from mqauth.brokers.amqp_messages import LETTERS, UNPARSEABLE, source_arguments
from mqauth.check import Severity, check
from mqauth.cli.app import answer
from mqauth.cli.broker import (
    APPEND_TIME,
    TIMESTAMP_TYPE,
    check_stamps,
    check_url,
    kafka_admin,
    needing,
    place_of,
    rabbitmq,
)
from mqauth.cli.settings import settings_of
from mqauth.clock import SYSTEM_CLOCK
from mqauth.errors import ConfigurationError, file_errors, refusing, require
from mqauth.keystore import Keystore
from mqauth.wire import destination, jwk

_URLS: Final = {"rabbitmq": "amqp://localhost:5672/", "kafka": "kafka://localhost:9092"}
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_TOPOLOGY: Final = "topology.json"
TEMPLATES: Final = Path(__file__).with_name("templates")
"""The files by their paths: in ``both``, by broker, and those of a broker of one's own."""
_APPEND: Final = """\
at = "append"           # a message is judged by when the broker took it, however long it waits after that
max_queue_age = "7d"    # how long it may wait while this consumer is stopped
"""
_INTERCEPTOR: Final = (
    'append_evidence = "interceptor"    '
    "# rabbitmq.conf makes the broker stamp messages; proved at each start\n"
)
_MANAGED: Final = """\
max_lifetime = "1d"     # this broker does not prove when it took a message, so tokens live as long as one may wait
"""
_ROLLOUT: Final = Template("""
[[rollout]]             # a running system: everything is handled, and mqauth rollout status says who does not sign
destinations = ["$destination"]
rung = "observe"
since = $since
until = $until
owner = "$owner"
""")
_OLD: Final = Template("""

${kind}def old_handle(message: mqauth.Unverified) -> None:
    # What handled messages before mqauth. It gets those that nothing proves, until the rung is enforce.
    print("not proven:", message.would.code if message.would else "", message.payload.decode(), flush=True)
""")


def init(
    *,
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The folder, made where it is missing.")
    ],
    broker: Annotated[
        str | None, typer.Option("--broker", help="rabbitmq or kafka.")
    ] = None,
    framework: Annotated[
        str | None,
        typer.Option(
            "--framework", help="taskiq: the consumer is a worker, on RabbitMQ."
        ),
    ] = None,
    producer: Annotated[
        str | None, typer.Option("--producer", help="Its name, like orders-api.")
    ] = None,
    consumer: Annotated[
        str | None, typer.Option("--consumer", help="Its name, like billing.")
    ] = None,
    issuer: Annotated[
        str,
        typer.Option(
            "--issuer", help="The name that consumers trust; it need not be reachable."
        ),
    ] = "https://auth.example",
    url: Annotated[
        str | None,
        typer.Option(
            "--url",
            help="The broker, without a password: amqp://host:port/ or kafka://host:port.",
        ),
    ] = None,
    rung: Annotated[
        str,
        typer.Option(
            "--rung",
            help="enforce, or observe for a running system whose producers do not sign yet.",
        ),
    ] = "enforce",
    managed: Annotated[
        bool,
        typer.Option(
            "--managed",
            help="For a broker whose configuration is not yours: tokens live a day, and messages wait as long.",
        ),
    ] = False,
    apply: Annotated[
        bool,
        typer.Option(
            "--apply",
            help="Declare the queues or topics at the broker; in a folder that was made before, only that.",
        ),
    ] = False,
) -> None:
    """Write a producer and a consumer that run, with keys and settings. Overwrites nothing."""
    if not (apply and (folder / _TOPOLOGY).exists()):
        # What no option says is asked for, where somebody can be asked.
        broker = _answered("broker", broker, "rabbitmq or kafka")
        require(broker in _URLS, "--broker: must be rabbitmq or kafka")
        require(
            framework is None or (framework, broker) == ("taskiq", "rabbitmq"),
            "--framework: must be taskiq, with --broker rabbitmq",
        )
        producer = _answered("producer", producer, "orders-api")
        consumer = _answered("consumer", consumer, "billing")
        for option, name in (("--producer", producer), ("--consumer", consumer)):
            require(
                _NAME.fullmatch(name),
                f"{option}: must be 1 to 100 letters, digits, '.', '_' or '-'",
            )
        require(producer != consumer, "--consumer: must be another name than --producer")
        require(
            re.fullmatch(r"[!#-\[\]-~]{1,256}", issuer),
            "--issuer: must be 1 to 256 printable characters, no quotes",
        )
        require(rung in ("enforce", "observe"), "--rung: must be enforce or observe")
        url = url or _URLS[broker]
        check_url("--url", url)
        require(
            ":" not in url.partition("://")[2].rpartition("@")[0],
            "--url: holds a password; leave it out, and see [broker] in consumer/mqauth.toml",
        )
        require(
            url.startswith("kafka:") == (broker == "kafka"),
            f"--url: is no URL of {broker}, like {_URLS[broker]}",
        )
        _write(
            folder,
            producer,
            texts(
                broker=broker,
                producer=producer,
                consumer=consumer,
                issuer=issuer,
                url=url,
                managed=managed,
                observe=rung == "observe",
                framework=framework,
            ),
        )
    if apply:
        # Exchange and queues, or topics, at the broker of ``consumer/mqauth.toml``; what exists stays.
        path = folder / _TOPOLOGY
        with (
            file_errors(path),
            refusing(
                ValueError, "topology.json: not the topology that mqauth init writes"
            ),
        ):
            topology: Any = json.loads(path.read_text("utf-8"))
            require(isinstance(topology, dict), "", ValueError)
        settings = settings_of(folder / "consumer" / "mqauth.toml")
        address = place_of(None, None, None, settings)
        # What a consumer would ask at its start: it is not to fail there.
        proves = (
            settings.consumer is not None
            and settings.consumer.append_evidence is not None
        )
        require(
            ("topics" in topology) is address.on_kafka,
            f"{path}: is for another broker than [broker] url",
        )
        with needing("--apply", address):
            if address.on_kafka:
                import kafka
                from kafka.errors import TopicAlreadyExistsError

                client: Any = kafka  # its classes have no types
                with kafka_admin(address) as admin:
                    check_stamps(admin, settings.consumer)
                    for topic in topology["topics"]:
                        # The number of replicas is the broker's own default.
                        new = client.admin.NewTopic(
                            topic["name"],
                            topic["partitions"],
                            -1,
                            topic_configs=topic["configs"],
                        )
                        with contextlib.suppress(TopicAlreadyExistsError):
                            # The broker's own list of topics may lag behind what it has created.
                            admin.create_topics([new], wait_for_metadata=True)
            else:
                with rabbitmq(address.settings, address.broker) as (connection, call):
                    call(_declared(connection, topology, proves=proves))
    # The commands that come next.
    answer(
        False,
        None,
        f"{folder / _TOPOLOGY} is declared at the broker. Next:"
        if apply
        else f"{folder} is ready. Next:",
        *([f"  cd {shlex.quote(str(folder))}"] if folder != Path() else []),
        *(
            ["  docker compose up -d --wait      # a broker, unless you have one"]
            if not apply and (folder / "compose.yml").exists()
            else []
        ),
        *(
            []
            if apply
            else [
                "  mqauth init . --apply            # declares the queues or topics of topology.json"
            ]
        ),
        "  python consumer/consumer.py      # in a terminal of its own",
        "  python producer/producer.py      # one signed message, one without a token",
        "  mqauth dlq groups --config consumer/mqauth.toml",
    )


def _answered(name: str, given: str | None, like: str) -> str:
    if given is not None:
        return given
    require(sys.stdin.isatty(), f"--{name}: required, like {like}")
    return str(typer.prompt(f"{name.capitalize()} ({like})", err=True))


def texts(
    *,
    broker: str,
    producer: str,
    consumer: str,
    issuer: str,
    url: str,
    managed: bool,
    observe: bool,
    framework: str | None = None,
) -> dict[str, str]:
    """Return the text of every file but the keys, by its path.

    Args:
        broker: ``rabbitmq`` or ``kafka``.
        producer: its name; also the exchange, or the topic.
        consumer: its name; also the queue, or the group.
        issuer: of the producer's tokens.
        url: of the broker.
        managed: whether the broker's configuration is somebody else's, so that it proves no append time.
        observe: whether the consumer begins at the rung observe.
        framework: of tasks, in place of a consumer's own loop.
    """
    on_kafka, today = (
        broker == "kafka",
        datetime.fromtimestamp(SYSTEM_CLOCK.now(), UTC).date(),
    )
    values = {
        "producer": producer,
        "consumer": consumer,
        "issuer": issuer,
        "url": url,
        "destination": destination.kafka(producer)
        if on_kafka
        else destination.rabbitmq(producer, "created"),
        "exchange": producer,
        "key": "created",
        "topic": producer,
        "owner": getpass.getuser(),
        "letters": f"{producer}.dead",
        "servers": url.partition("://")[2].strip("/"),
        "since": today.isoformat(),
        # When ``--rung observe`` ends.
        "until": (today + timedelta(days=30)).isoformat(),
    }
    # By which clock messages are judged, how long they may wait, and which findings that explains.
    accepted = ["key_plain", *(["lifetime_long"] if managed else [])]
    hidden = [
        "unsigned_headers_hidden",
        *accepted[1:],
        *(["rollout_observe"] if observe else []),
        *([] if on_kafka or not observe else ["rollout_weakest"]),
    ]
    values |= {
        "lifetime": "1d" if managed else "60s",
        "times": _MANAGED if managed else _APPEND + ("" if on_kafka else _INTERCEPTOR),
        "why_lifetime": ", and so a message may wait" if managed else "",
        "accepted": json.dumps(accepted)[1:-1],
        "consumer_accepted": json.dumps(hidden)[1:-1],
        "why_accepted": "; a day is long, and outlasts a night" if managed else "",
        "why_observe": "; observe lets all pass, until its day" if observe else "",
        "rollout": _ROLLOUT.substitute(values) if observe else "",
        "old": _OLD.substitute(kind="" if on_kafka else "async ") if observe else "",
        "unverified": ", unverified=old_handle" if observe else "",
    }
    if on_kafka:
        # Dead letters are kept until somebody reviewed them. They have the broker's stamp too, since Kafka
        # refuses a record of a client whose clock is an hour ahead, and are larger than the message.
        stamped = {TIMESTAMP_TYPE: APPEND_TIME}
        kept = {
            "max.message.bytes": "2097152",
            "cleanup.policy": "delete",
            "retention.ms": "-1",
        }
        topology: dict[str, Any] = {
            "topics": [
                {
                    "name": values["topic"],
                    "partitions": 3,
                    "configs": {} if managed else stamped,
                },
                {"name": values["letters"], "partitions": 1, "configs": stamped | kept},
            ]
        }
    else:
        # Definitions that RabbitMQ imports.
        queues = {
            values["consumer"]: source_arguments(values["consumer"], 20),
            values["consumer"] + UNPARSEABLE: dict(LETTERS),
            values["letters"]: dict(LETTERS),
        }
        durable = {"vhost": "/", "durable": True, "auto_delete": False}
        topology = {
            "exchanges": [
                durable
                | {
                    "name": values["exchange"],
                    "type": "topic",
                    "internal": False,
                    "arguments": {},
                }
            ],
            "queues": [
                durable | {"name": name, "arguments": arguments}
                for name, arguments in queues.items()
            ],
            "bindings": [
                {
                    "vhost": "/",
                    "source": values["exchange"],
                    "destination": values["consumer"],
                    "destination_type": "queue",
                    "routing_key": values["key"],
                    "arguments": {},
                }
            ],
        }
    # A broker of Docker Compose and its configuration are there, unless the broker is somebody else's.
    return {
        str(path.relative_to(folder).with_suffix("")): Template(
            path.read_text("utf-8")
        ).substitute(values)
        for folder in [
            TEMPLATES / name
            for name in (
                "both",
                framework or broker,
                *([] if managed else [f"{broker}-broker"]),
            )
        ]
        for path in folder.rglob("*.txt")
    } | {"topology.json": json.dumps(topology, indent=2) + "\n"}


def _write(folder: Path, producer: str, files: Mapping[str, str]) -> None:
    """Write all files or none."""
    made = not folder.exists()
    with file_errors(folder), contextlib.ExitStack() as stack:
        folder.mkdir(parents=True, exist_ok=True)
        stack.callback(
            lambda: folder.rmdir() if made and not any(folder.iterdir()) else None
        )
        # All is written into a folder beside, and appears once it is whole.
        stage = Path(
            stack.enter_context(
                tempfile.TemporaryDirectory(prefix=".mqauth-init-", dir=folder)
            )
        )
        for name, text in files.items():
            path = stage / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, "utf-8")
        keystore = Keystore(folder=stage / "producer" / "keys")
        keystore.create(subjects=[producer])
        (stage / "consumer" / "jwks.json").write_text(
            json.dumps(jwk.dump_key_set(keystore.public_keys()), indent=2) + "\n", "utf-8"
        )
        for side in ("producer", "consumer"):
            for wrong in [
                each
                for each in check(stage / side / "mqauth.toml").findings
                if each.severity is Severity.ERROR
            ]:
                raise ConfigurationError(
                    f"{side}/mqauth.toml: {wrong.key}: {wrong.message}"
                )
        names = sorted(entry.name for entry in stage.iterdir())
        taken = [name for name in names if os.path.lexists(folder / name)]
        require(
            not taken, f"{folder}: has {', '.join(taken)} already; nothing was changed"
        )
        with contextlib.ExitStack() as undo:
            for name in names:
                moved = (stage / name).rename(folder / name)
                undo.callback(moved.rename, stage / name)
            undo.pop_all()


async def _declared(connection: Any, topology: dict[str, Any], *, proves: bool) -> None:
    from mqauth.brokers.queue.client import question
    from mqauth.brokers.rabbitmq.channel import echoed

    channel = await connection.channel()
    for exchange in topology["exchanges"]:
        await channel.declare_exchange(exchange["name"], exchange["type"], durable=True)
    queues = {
        queue["name"]: await channel.declare_queue(
            queue["name"], durable=True, arguments=queue["arguments"]
        )
        for queue in topology["queues"]
    }
    for binding in topology["bindings"]:
        await queues[binding["destination"]].bind(
            binding["source"], binding["routing_key"]
        )
    if proves:
        await question(connection.transport.connection, echoed)
