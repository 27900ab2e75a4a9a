"""``mqauth init``: writes a producer, a consumer, their keys and settings, and declares what they need."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import re
import shutil
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from mqauth.check import Severity, check
from mqauth.cli.app import answer
from mqauth.cli.broker import check_stamps, check_url, kafka_admin, needing, place_of, rabbitmq
from mqauth.cli.init_files import Project
from mqauth.cli.settings import settings_of
from mqauth.clock import SYSTEM_CLOCK
from mqauth.errors import ConfigurationError, file_errors, refusing, require
from mqauth.keystore import Keystore
from mqauth.wire.jwk import dump_key_set

_URLS: Final = {"rabbitmq": "amqp://localhost:5672/", "kafka": "kafka://localhost:9092"}
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_TOPOLOGY: Final = "topology.json"


def init(
    *,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder, made where it is missing.")],
    broker: Annotated[str | None, typer.Option("--broker", help="rabbitmq or kafka.")] = None,
    producer: Annotated[str | None, typer.Option("--producer", help="Its name, like orders-api.")] = None,
    consumer: Annotated[str | None, typer.Option("--consumer", help="Its name, like billing.")] = None,
    issuer: Annotated[
        str, typer.Option("--issuer", help="The name that consumers trust; it need not be reachable.")
    ] = "https://auth.example",
    url: Annotated[
        str | None,
        typer.Option("--url", help="The broker, without a password: amqp://host:port/ or kafka://host:port."),
    ] = None,
    rung: Annotated[
        str,
        typer.Option("--rung", help="enforce, or observe for a running system whose producers do not sign yet."),
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
        producer = _answered("producer", producer, "orders-api")
        consumer = _answered("consumer", consumer, "billing")
        for option, name in (("--producer", producer), ("--consumer", consumer)):
            require(_NAME.fullmatch(name), f"{option}: must be 1 to 100 letters, digits, '.', '_' or '-'")
        require(producer != consumer, "--consumer: must be another name than --producer")
        printable = re.fullmatch(r"[!#-\[\]-~]{1,256}", issuer)
        require(printable, "--issuer: must be 1 to 256 printable characters, no quotes")
        require(rung in ("enforce", "observe"), "--rung: must be enforce or observe")
        url = url or _URLS[broker]
        check_url("--url", url)
        secret = ":" in url.partition("://")[2].rpartition("@")[0]
        require(not secret, "--url: holds a password; leave it out, and see [broker] in consumer/mqauth.toml")
        fits = url.startswith("kafka:") == (broker == "kafka")
        require(fits, f"--url: is no URL of {broker}, like {_URLS[broker]}")
        _write(
            folder,
            Project(
                broker=broker,
                producer=producer,
                consumer=consumer,
                issuer=issuer,
                url=url,
                managed=managed,
                observe=rung == "observe",
                owner=getpass.getuser(),
                today=datetime.fromtimestamp(SYSTEM_CLOCK.now(), UTC).date(),
            ),
        )
    if apply:
        _declare(folder)
    # The commands that come next.
    ready = f"{folder / _TOPOLOGY} is declared at the broker" if apply else f"{folder} is ready"
    compose = not apply and (folder / "compose.yml").exists()
    answer(
        False,
        None,
        f"{ready}. Next:",
        *([f"  cd {folder}"] if folder != Path() else []),
        *(["  docker compose up -d --wait      # a broker, unless you have one"] if compose else []),
        *(
            []
            if apply
            else ["  mqauth init . --apply            # declares the queues or topics of topology.json"]
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


def _write(folder: Path, project: Project) -> None:
    """Write all files or none."""
    made, moved = not folder.exists(), list[Path]()
    with file_errors(folder), contextlib.ExitStack() as stack:
        folder.mkdir(parents=True, exist_ok=True)
        stack.callback(lambda: folder.rmdir() if made and not any(folder.iterdir()) else None)
        # All is written into a folder beside, and appears once it is whole.
        stage = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".mqauth-init-", dir=folder)))
        for name, text in project.texts().items():
            path = stage / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, "utf-8")
        keystore = Keystore(folder=stage / "producer" / "keys")
        keystore.create(subjects=[project.producer])
        public = json.dumps(dump_key_set(keystore.public_keys()), indent=2)
        (stage / "consumer" / "jwks.json").write_text(public + "\n", "utf-8")
        for side in ("producer", "consumer"):
            findings = check(stage / side / "mqauth.toml").findings
            for wrong in [each for each in findings if each.severity is Severity.ERROR]:
                raise ConfigurationError(f"{side}/mqauth.toml: {wrong.key}: {wrong.message}")
        names = sorted(entry.name for entry in stage.iterdir())
        taken = [name for name in names if os.path.lexists(folder / name)]
        require(not taken, f"{folder}: has {', '.join(taken)} already; nothing was changed")
        try:
            for name in names:
                moved.append((stage / name).rename(folder / name))
        except BaseException:
            for path in moved:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            raise


def _declare(folder: Path) -> None:
    """Declare exchange and queues, or topics, at the broker of ``consumer/mqauth.toml``; what exists stays."""
    path = folder / _TOPOLOGY
    with file_errors(path), refusing(ValueError, "topology.json: not the topology that mqauth init writes"):
        topology: Any = json.loads(path.read_text("utf-8"))
        require(isinstance(topology, dict), "", ValueError)
    settings = settings_of(folder / "consumer" / "mqauth.toml")
    place = place_of(None, None, None, settings)
    # What a consumer would ask at its start: it is not to fail there.
    proves = settings.consumer is not None and settings.consumer.append_evidence is not None
    require(("topics" in topology) is place.on_kafka, f"{path}: is for another broker than [broker] url")
    with needing("--apply", place):
        if place.on_kafka:
            import kafka
            from kafka.errors import TopicAlreadyExistsError

            client: Any = kafka  # its classes have no types
            with kafka_admin(place) as admin:
                check_stamps(admin, settings.consumer)
                for topic in topology["topics"]:
                    # The number of replicas is the broker's own default.
                    new = client.admin.NewTopic(
                        topic["name"], topic["partitions"], -1, topic_configs=topic["configs"]
                    )
                    with contextlib.suppress(TopicAlreadyExistsError):
                        admin.create_topics([new])
        else:
            with rabbitmq(place.settings, place.broker) as (connection, call):
                call(_declared(connection, topology, proves=proves))


async def _declared(connection: Any, topology: dict[str, Any], *, proves: bool) -> None:
    from mqauth.brokers.queue.interceptor import question
    from mqauth.brokers.rabbitmq.channel import echoed

    channel = await connection.channel()
    for exchange in topology["exchanges"]:
        await channel.declare_exchange(exchange["name"], exchange["type"], durable=True)
    queues = {
        queue["name"]: await channel.declare_queue(queue["name"], durable=True, arguments=queue["arguments"])
        for queue in topology["queues"]
    }
    for binding in topology["bindings"]:
        await queues[binding["destination"]].bind(binding["source"], binding["routing_key"])
    if proves:
        await question(connection.transport.connection, echoed)
