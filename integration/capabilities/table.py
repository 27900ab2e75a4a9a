"""Client by capability: what each can do, and the test on the real broker that shows it.

``python -m integration.reference`` writes `docs/clients.md` from this table, and `tests/test_capabilities.py`
holds that no cell is empty and that each test exists. What a client cannot do is refused at its start, and the
cell names the test of that error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

QUEUES: Final = ("rabbitmq aio-pika", "rabbitmq pika", "rabbitmq faststream")
LOGS: Final = (
    "kafka kafka-python", "kafka confluent", "kafka confluent+aio", "kafka aiokafka", "kafka faststream",
    "kafka faststream-confluent",
)  # fmt: skip
NAMES: Final[Mapping[str, str]] = {
    "rabbitmq aio-pika": "aio-pika", "rabbitmq pika": "pika", "kafka kafka-python": "kafka-python",
    "kafka confluent": "confluent-kafka `Consumer`", "kafka confluent+aio": "its `AIOConsumer`",
    "kafka aiokafka": "aiokafka", "rabbitmq faststream": "FastStream, RabbitMQ",
    "kafka faststream": "FastStream, aiokafka", "kafka faststream-confluent": "FastStream, confluent",
}  # fmt: skip
"""Every client of the tests, by its name on the page."""
CLIENTS: Final = (*QUEUES, *LOGS)
FASTSTREAM: Final = tuple(name for name in CLIENTS if "faststream" in name)


@dataclass(frozen=True, slots=True)
class Cell:
    """What one client does.

    Args:
        says: for the page; "yes", or how it does it, or why not.
        test: a file below ``integration`` and a test in it; of a refusal, also one below ``tests``.
    """

    says: str
    test: str


@dataclass(frozen=True, slots=True)
class Capability:
    """One row.

    Args:
        name: what a user would ask for.
        cells: by client.
    """

    name: str
    cells: Mapping[str, Cell]

    @property
    def everywhere(self) -> bool:
        """Whether every client has it."""
        return all(cell.says == "yes" for cell in self.cells.values())


def yes(test: str, *clients: str) -> dict[str, Cell]:
    """Return cells of clients that do it, by default of all; one test shows it."""
    return dict.fromkeys(clients or CLIENTS, Cell("yes", test))


def other(says: str, test: str, *clients: str) -> dict[str, Cell]:
    """Return cells of clients that do it in another way, or refuse it."""
    return dict.fromkeys(clients, Cell(says, test))


_PROMISES: Final = "capabilities/test_promises.py::"
_LEAVES: Final = "test_kafka_clients.py::"
_STAMPS: Final = "capabilities/test_stamps.py::test_they_wait_until_an_operator_ends_that"
_AIO_PIKA, _PIKA, _FS_RABBITMQ = QUEUES
_KAFKA, _CONFLUENT, _AIO, _AIOKAFKA, _FS_KAFKA, _FS_CONFLUENT = LOGS
_CONTRACTS: Final = {
    _AIO_PIKA: "test_contract_rabbitmq.py::TestRabbitMQDeliveries",
    _PIKA: "test_pika.py::TestPikaDeliveries",
    _KAFKA: "test_contract_kafka.py::TestKafkaDeliveries",
    _CONFLUENT: "test_confluent.py::TestConfluentDeliveries",
    _AIOKAFKA: "test_aiokafka.py::TestAiokafkaDeliveries",
}  # fmt: skip
_BY_CONTRACT: Final = {client: Cell("yes", test) for client, test in _CONTRACTS.items()}
"""Clients whose whole delivery is held to a contract on the real broker."""

CAPABILITIES: Final = (
    Capability(
        "a backlog of days is judged by when the broker took it", yes(f"{_PROMISES}test_a_backlog_is_handled")
    ),
    Capability(
        "a message that can never have that time waits until you end it (`without_evidence`)",
        yes(_STAMPS),
    ),
    Capability(
        "the broker proves its times",
        yes("test_append_evidence.py::test_without_the_interceptor_no_consumer_starts", *QUEUES)
        | other("by record", _STAMPS, *LOGS),
    ),
    Capability("a copy at another place is `replayed`", yes(f"{_PROMISES}test_a_copy_is_not_handled")),
    Capability(
        "a message comes again after a kill, and is handled",
        _BY_CONTRACT
        | yes("test_kills.py::test_killed_and_started_again", _AIO, *FASTSTREAM),
    ),
    Capability(
        "acks and commits cover settled messages only",
        _BY_CONTRACT
        | yes("test_storms.py::test_storm", _AIO)
        | yes("test_storms.py::test_storm_of_faststream", _FS_KAFKA, _FS_CONFLUENT)
        | yes("test_kills.py::test_killed_and_started_again", _FS_RABBITMQ),
    ),
    Capability("`RetryLater` holds a message", yes(f"{_PROMISES}test_what_waits_comes_again")),
    Capability(
        "where a group begins loses nothing",
        yes("test_kafka_starts.py::test_an_idle_consumer_restarts", *LOGS)
        | other("a queue keeps what waits", "capabilities/test_promises.py::test_a_backlog_is_handled", *QUEUES),
    ),
    Capability(
        "a stop while the broker is silent takes `grace` and 5 s at most",
        yes("test_rabbitmq_clients.py::TestSilentBroker", *QUEUES)
        | yes("test_kafka_clients.py::TestSilentBroker", *LOGS),
    ),
    Capability(
        "a message that the client cannot read",
        other("stays unacked", "test_rabbitmq_queues.py::test_own_consumers", _AIO_PIKA)
        | other("ends the connection", "test_pika.py::test_poison", _PIKA)
        | other('`on_poison="skip"` passes it', f"{_LEAVES}test_a_header_that_cannot_be_parsed", _KAFKA, _AIOKAFKA)
        | other("ends the consumer", f"{_LEAVES}test_a_batch_that_cannot_be_parsed", _CONFLUENT, _AIO)
        | other("never reaches a verdict", "test_faststream.py::test_shop", *FASTSTREAM),
    ),
    Capability("dead letters with audit records", yes(f"{_PROMISES}test_dead_letters_and_records")),
    Capability(
        "a missing dead-letter queue or topic is told at the start",
        yes("capabilities/test_starts.py::test_missing"),
    ),
    Capability(
        "transactional dead letters",
        yes(f"{_LEAVES}test_a_transaction", _KAFKA, _CONFLUENT, _AIO, _AIOKAFKA)
        | other("refused", "capabilities/test_starts.py::test_transactional_letters_in_faststream", *FASTSTREAM)
        | other("RabbitMQ has none", f"{_PROMISES}test_dead_letters_and_records", _AIO_PIKA, _PIKA),
    ),
    Capability(
        "audit records at the broker",
        other("`AuditQueue`", "audit/test_sinks.py::test_queue", _AIO_PIKA)
        | other("`AuditQueue`", "test_pika.py::test_audit_queue", _PIKA)
        | other("`AuditTopic`", "audit/test_sinks.py::test_topic", _KAFKA)
        | other("`AuditTopic`", "test_confluent.py::test_audit_topic", _CONFLUENT, _AIO)
        | other("`AuditTopic`", "test_aiokafka.py::test_audit_topic", _AIOKAFKA)
        | other("any of these", "capabilities/test_starts.py::test_audit_at_the_broker", *FASTSTREAM),
    ),
    Capability(
        "signed answers (`Verified.reply`)",
        yes("test_rabbitmq_wrapper.py::test_replies_are_signed", _AIO_PIKA)
        | yes("test_pika.py::test_answer", _PIKA)
        | yes(f"{_LEAVES}test_an_answer", _KAFKA, _CONFLUENT, _AIO, _AIOKAFKA)
        | other("the handler's result", "test_faststream.py::test_rabbitmq_request", *FASTSTREAM),
    ),
    Capability(
        "your own loop: `judge`",
        other("yes, and `guarded`", "test_rabbitmq_queues.py::test_own_consumers", _AIO_PIKA)
        | yes("test_pika.py::test_judged_in_a_loop_of_ones_own", _PIKA)
        | yes("test_kafka_records.py::test_own_loop_is_told_the_log", _KAFKA, _CONFLUENT, _AIOKAFKA)
        | other("`ajudge`", "test_confluent.py::test_own_loop", _AIO)
        | other("no `get_one`", "tests/test_faststream.py::test_subscriber_without_a_handler", *FASTSTREAM),
    ),
    Capability("a rollout: off, observe, enforce", yes("test_rollout.py::test_up_the_ladder")),
    Capability("exemptions (`[[consumer.unsigned]]`)", yes(f"{_PROMISES}test_an_exempt_message")),
    Capability("moved and mirrored messages (`accept_as`)", yes(f"{_PROMISES}test_a_moved_message")),
    Capability(
        "RabbitMQ's user compared with the subject (`user_id`)",
        yes("capabilities/test_starts.py::test_user_id", *QUEUES)
        | other("refused", "capabilities/test_starts.py::test_user_id", *LOGS),
    ),
    Capability(
        "`decode=`",
        yes(f"{_PROMISES}test_decode", *(name for name in CLIENTS if name not in FASTSTREAM))
        | other("its own, after the verdict", f"{_PROMISES}test_decode", *FASTSTREAM),
    ),
    Capability(
        "`health()`",
        yes(f"{_PROMISES}test_health", *(name for name in CLIENTS if name not in FASTSTREAM))
        | other("log and metrics", f"{_PROMISES}test_observers", *FASTSTREAM),
    ),
    Capability("metrics of each outcome", yes(f"{_PROMISES}test_observers")),
    Capability(
        "the self-test: a consumer with a hole does not start",
        yes("capabilities/test_starts.py::test_a_consumer_with_a_hole_does_not_start"),
    ),
    Capability("the attack suite: no forgery accepted", yes("capabilities/test_attacks.py::TestEveryClient")),
    Capability("identities of an authority", yes(f"{_PROMISES}test_identities")),
    Capability("messages that were signed in batches", yes(f"{_PROMISES}test_batches")),
    Capability(
        "a producer that signs in batches",
        yes("test_rabbitmq_wrapper.py::test_a_batch_end_to_end", _AIO_PIKA)
        | yes("test_pika.py::TestPikaInBatches", _PIKA)
        | yes("test_contract_kafka.py::TestKafkaInBatches", _KAFKA)
        | yes("test_confluent.py::TestConfluentInBatches", _CONFLUENT, _AIO)
        | yes("test_aiokafka.py::TestAiokafkaInBatches", _AIOKAFKA)
        | other("refused", "tests/test_faststream_kafka.py::test_publisher_of_batches_is_refused", *FASTSTREAM),
    ),
)  # fmt: skip


TASKS: Final = ("taskiq", "dramatiq", "celery")
"""Workers of task queues, by the names of their tests."""


def tasks(test: str) -> dict[str, Cell]:
    """Return a cell for each task queue; a test with its name shows it, or one for all."""
    return {name: Cell("yes", test.format(name)) for name in TASKS}


TASK_QUEUES: Final = (
    Capability(
        "killed, or without keys or store, they run every task",
        tasks("test_task_queues.py::test_kills_and_outages"),
    ),
    Capability(
        "a task may be due in an hour", tasks("test_task_queues.py::test_an_hour_ahead")
    ),
    Capability("TLS", tasks("test_task_queues.py::test_tls")),
    Capability("the attack suite: no forgery accepted", tasks("test_{}.py::TestAttacks")),
)
"""What workers of task queues do, each of them. What one does in its own way is on their page."""


def page() -> str:
    """Return the section of the page: what every client does, and a table of where they differ."""
    same = "".join(f"* {row.name}\n" for row in CAPABILITIES if row.everywhere)
    head = f"| | {' | '.join(NAMES.values())} |\n|---|{'---|' * len(NAMES)}\n"
    rows = "".join(
        f"| {row.name} | {' | '.join(row.cells[client].says for client in NAMES)} |\n"
        for row in CAPABILITIES
        if not row.everywhere
    )
    told = f"Every client, on the real broker in each test run:\n\n{same}\nWhere they differ:\n\n{head}{rows}"
    return f"{told}\nWorkers of [task queues](task-queues.md): {'; '.join(row.name for row in TASK_QUEUES)}.\n"
