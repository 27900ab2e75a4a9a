"""The files of ``mqauth init``: templates, and the text of each file for one producer and one consumer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import date, timedelta
from string import Template
from typing import Any, Final

from mqauth.brokers.amqp_topology import LETTERS, UNPARSEABLE, source_arguments
from mqauth.cli.broker import APPEND_TIME, TIMESTAMP_TYPE
from mqauth.wire import destination

OBSERVED: Final = 30
"""Days after which ``--rung observe`` ends."""
_PRODUCER_TOML: Final = Template("""\
# The producer "$producer": what it signs as. Find what is risky: mqauth check producer/mqauth.toml
[producer]
issuer = "$issuer"      # consumers trust this name; it need not be reachable
subject = "$producer"
audience = "$consumer"  # whom the messages are meant for
keys = "keys"           # the private key; made by mqauth keys new, rotated by mqauth keys rotate
lifetime = "$lifetime"        # how long a token lives$why_lifetime

[check]
accept = [$accepted]    # the key has no passphrase: mqauth keys new --passphrase-file$why_accepted
""")
_CONSUMER_TOML: Final = Template("""\
# The consumer "$consumer": whom it trusts. Find what is risky: mqauth check consumer/mqauth.toml
[consumer]
scope = "$consumer"     # the queue (Kafka: the group) whose consumers share replays
audience = "$consumer"  # tokens for anybody else are rejected
$times
[[consumer.issuers]]
issuer = "$issuer"
file = "jwks.json"      # the producer's public keys; in production: jwks = "https://..."

[[consumer.allow]]      # who may publish where; without a rule every message is rejected
subject = "$producer"
destinations = ["$destination"]
$rollout
[replay]                # which messages were handled; several processes need store = "rediss://..."
file = "replay.sqlite"

[audit]
file = "audit-{host}-{pid}.jsonl"

[dead_letters]
name = "$letters"

[check]                 # headers that nobody signed are hidden from the handler$why_observe
accept = [$consumer_accepted]

# What follows is read by commands alone, such as mqauth dlq groups.
[broker]
url = "$url"            # no password here: user with password_env, or url_env

[review]
audit = "reviewer.jsonl"
""")
_APPEND: Final = """\
at = "append"           # a message is judged by when the broker took it, however long it waits after that
max_queue_age = "7d"    # how long it may wait while this consumer is stopped
"""
_INTERCEPTOR: Final = (
    'append_evidence = "interceptor"    # rabbitmq.conf makes the broker stamp messages; proved at each start\n'
)
_MANAGED: Final = """\
max_lifetime = "1d"     # this broker does not prove when it took a message, so tokens live as long as one may wait
"""
INTERCEPTOR_CONF: Final = """\
# RabbitMQ stamps each message when it takes it, and overwrites what the sender says.
message_interceptors.incoming.set_header_timestamp.overwrite = true
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
    print("not proven:", message.would.code if message.would else "", message.body.decode(), flush=True)
""")
_PRODUCER_RABBITMQ: Final = Template('''\
"""Publishes a signed message, and one without a token as an attacker would."""

import asyncio
from pathlib import Path

import aio_pika

import mqauth
from mqauth.brokers import rabbitmq

config = mqauth.load(Path(__file__).with_name("mqauth.toml"))


async def main() -> None:
    async with await aio_pika.connect_robust("$url", timeout=30) as connection:
        exchange = await (await connection.channel()).get_exchange("$exchange")
        message = aio_pika.Message(b'{"order": 1}', content_type="application/json")
        await rabbitmq.Producer(exchange, config.signer).publish(message, routing_key="$key")
        print("published: one signed message", flush=True)
        # The attacker. Delete these two lines once you have seen the rejection.
        await exchange.publish(aio_pika.Message(b'{"order": 666}'), routing_key="$key")
        print("published: one message without a token", flush=True)


asyncio.run(main())
''')
_CONSUMER_RABBITMQ: Final = Template('''\
"""Handles what was verified; everything else goes to the dead letters. Stop it with Ctrl-C."""

import asyncio
import logging
from pathlib import Path

import aio_pika

import mqauth
from mqauth.brokers import rabbitmq

URL = "$url"
config = mqauth.load(Path(__file__).with_name("mqauth.toml"))
logging.basicConfig(level="WARNING")


async def handle(verified: mqauth.Verified) -> None:
    print("handled: from", verified.subject, verified.body.decode(), flush=True)
$old

async def main() -> None:
    # Two connections: a broker short of memory stops reading from the one that publishes.
    connect = aio_pika.connect_robust
    async with await connect(URL, timeout=30) as consuming, await connect(URL, timeout=30) as publishing:
        queue = await (await consuming.channel()).get_queue("$consumer")
        letters = rabbitmq.DeadLetters(await publishing.channel(), config.dead_letters_name)
        consumer = rabbitmq.Consumer(queue, config.pipeline, handle, dead_letters=letters$unverified)
        await consumer.run(signals=True)


asyncio.run(main())
''')
_PRODUCER_KAFKA: Final = Template('''\
"""Publishes a signed message, and one without a token as an attacker would."""

from pathlib import Path

from kafka import KafkaProducer

import mqauth
from mqauth.brokers import kafka

config = mqauth.load(Path(__file__).with_name("mqauth.toml"))
client = KafkaProducer(bootstrap_servers="$servers".split(","))
with kafka.Producer(client, config.signer) as producer:
    producer.send("$topic", value=b'{"order": 1}', key=b"1").get(timeout=30)
    print("published: one signed message", flush=True)
    # The attacker. Delete these two lines once you have seen the rejection.
    client.send("$topic", value=b'{"order": 666}', key=b"1").get(timeout=30)
    print("published: one message without a token", flush=True)
''')
_CONSUMER_KAFKA: Final = Template('''\
"""Handles what was verified; everything else goes to the dead letters. Stop it with Ctrl-C."""

import logging
from pathlib import Path

from kafka import KafkaConsumer, KafkaProducer

import mqauth
from mqauth.brokers import kafka

config = mqauth.load(Path(__file__).with_name("mqauth.toml"))
settings = {"bootstrap_servers": "$servers".split(","), "allow_auto_create_topics": False}
logging.basicConfig(level="WARNING")


def handle(verified: mqauth.Verified) -> None:
    print("handled: from", verified.subject, verified.body.decode(), flush=True)
$old

client = KafkaConsumer(
    "$topic", group_id="$consumer", enable_auto_commit=False, auto_offset_reset="earliest", **settings
)
letters = KafkaProducer(acks="all", enable_idempotence=False, **settings)
dead_letters = kafka.DeadLetters(letters, config.dead_letters_name)
consumer = kafka.Consumer(client, config.pipeline, handle, dead_letters=dead_letters$unverified)
consumer.run(signals=True)
client.close()
letters.close()
''')
_COMPOSE: Final = {
    "rabbitmq": """\
services:
  rabbitmq:
    image: rabbitmq:4-management
    ports: ["127.0.0.1:5672:5672", "127.0.0.1:15672:15672"]
    volumes: ["./rabbitmq.conf:/etc/rabbitmq/conf.d/90-mqauth.conf:ro"]
    healthcheck:
      test: ["CMD", "rabbitmq-diagnostics", "-q", "check_port_connectivity"]
      interval: 3s
      retries: 40
""",
    "kafka": """\
services:
  kafka:
    image: apache/kafka:4.3.1
    ports: ["127.0.0.1:9092:9092"]
    healthcheck:
      test: ["CMD", "/opt/kafka/bin/kafka-broker-api-versions.sh", "--bootstrap-server", "127.0.0.1:9092"]
      interval: 3s
      retries: 40
""",
}
_IGNORED: Final = "keys/\n*.pem\n*.sqlite*\n*.jsonl\n*.jsonl.*\n__pycache__/\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """What ``mqauth init`` was asked for.

    Args:
        broker: ``rabbitmq`` or ``kafka``.
        producer: its name; also the exchange, or the topic.
        consumer: its name; also the queue, or the group.
        issuer: of the producer's tokens.
        url: of the broker.
        managed: whether the broker's configuration is somebody else's, so that it proves no append time.
        observe: whether the consumer begins at the rung observe.
        owner: who is asked about that rung.
        today: the day from which on it has it.
    """

    broker: str
    producer: str
    consumer: str
    issuer: str
    url: str
    managed: bool
    observe: bool
    owner: str
    today: date

    @property
    def values(self) -> dict[str, str]:
        """What stands in the templates."""
        exchange, key = self.producer, "created"
        place = destination.kafka(self.producer) if self.broker == "kafka" else destination.rabbitmq(exchange, key)
        return {
            "producer": self.producer,
            "consumer": self.consumer,
            "issuer": self.issuer,
            "url": self.url,
            "destination": place,
            "exchange": exchange,
            "key": key,
            "topic": self.producer,
            "owner": self.owner,
            "letters": f"{self.producer}.dead",
            "servers": self.url.partition("://")[2].strip("/"),
            "since": self.today.isoformat(),
            "until": (self.today + timedelta(OBSERVED)).isoformat(),
        }

    def texts(self) -> dict[str, str]:
        """Return the text of every file but the keys, by its path."""
        values, on_kafka, managed = self.values, self.broker == "kafka", self.managed
        # By which clock messages are judged, how long they may wait, and which findings that explains.
        accepted = ["key_plain", *(["lifetime_long"] if managed else [])]
        hidden = ["unsigned_headers_hidden", *accepted[1:], *(["rollout_observe"] if self.observe else [])]
        hidden += [] if on_kafka or not self.observe else ["rollout_weakest"]
        values |= {
            "lifetime": "1d" if managed else "60s",
            "times": _MANAGED if managed else _APPEND + ("" if on_kafka else _INTERCEPTOR),
            "why_lifetime": ", and so a message may wait" if managed else "",
            "accepted": json.dumps(accepted)[1:-1],
            "consumer_accepted": json.dumps(hidden)[1:-1],
            "why_accepted": "; a day is long, and outlasts a night" if managed else "",
            "why_observe": "; observe lets all pass, until its day" if self.observe else "",
            "rollout": _ROLLOUT.substitute(values) if self.observe else "",
            "old": _OLD.substitute(kind="" if on_kafka else "async ") if self.observe else "",
            "unverified": ", unverified=old_handle" if self.observe else "",
        }
        if on_kafka:
            producer, consumer = _PRODUCER_KAFKA, _CONSUMER_KAFKA
            # Dead letters are kept until somebody reviewed them. They have the broker's stamp too, since Kafka
            # refuses a record of a client whose clock is an hour ahead, and are larger than the message.
            stamped = {TIMESTAMP_TYPE: APPEND_TIME}
            kept = {"max.message.bytes": "2097152", "cleanup.policy": "delete", "retention.ms": "-1"}
            topics = [
                {"name": values["topic"], "partitions": 3, "configs": {} if managed else stamped},
                {"name": values["letters"], "partitions": 1, "configs": stamped | kept},
            ]
            topology: dict[str, Any] = {"topics": topics}
        else:
            producer, consumer = _PRODUCER_RABBITMQ, _CONSUMER_RABBITMQ
            # Definitions that RabbitMQ imports.
            queues = {
                values["consumer"]: source_arguments(values["consumer"], 20),
                values["consumer"] + UNPARSEABLE: dict(LETTERS),
                values["letters"]: dict(LETTERS),
            }
            exchange = {"name": values["exchange"], "type": "topic", "internal": False, "arguments": {}}
            binding = {
                "vhost": "/",
                "source": values["exchange"],
                "destination": values["consumer"],
                "destination_type": "queue",
                "routing_key": values["key"],
                "arguments": {},
            }
            durable = {"vhost": "/", "durable": True, "auto_delete": False}
            topology = {
                "exchanges": [durable | exchange],
                "queues": [durable | {"name": name, "arguments": found} for name, found in queues.items()],
                "bindings": [binding],
            }
        # A broker of Docker Compose and its configuration, unless the broker is somebody else's.
        files = {} if managed else {"compose.yml": _COMPOSE[self.broker]}
        files |= {} if managed or on_kafka else {"rabbitmq.conf": INTERCEPTOR_CONF}
        return files | {
            "producer/mqauth.toml": _PRODUCER_TOML.substitute(values),
            "producer/producer.py": producer.substitute(values),
            "consumer/mqauth.toml": _CONSUMER_TOML.substitute(values),
            "consumer/consumer.py": consumer.substitute(values),
            "topology.json": json.dumps(topology, indent=2) + "\n",
            ".gitignore": _IGNORED,
        }
