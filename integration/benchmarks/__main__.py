"""``python -m integration.benchmarks``: messages a second and CPU seconds per 1,000, bare against wrapped."""

from __future__ import annotations

import argparse

from integration.benchmarks import kafka, rabbitmq
from integration.benchmarks.rounds import as_json, table
from integration.services import launch_all, prepare_all


def main() -> None:
    """Bring the brokers up, or use those of the environment, measure, and print."""
    parser = argparse.ArgumentParser(prog="python -m integration.benchmarks", description=main.__doc__)
    parser.add_argument("--messages", type=int, default=2000, help="messages a round (default 2000)")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds of each variant (default 5)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    prepare_all()
    running = launch_all()
    sizes = {"messages": arguments.messages, "rounds": arguments.rounds}
    with running.rabbitmq as broker, running.kafka as log, running.redis:
        found = [*rabbitmq.compare(broker.url, **sizes), *kafka.compare(log.url, **sizes)]
    print(as_json(found) if arguments.json else "\n".join(table(found)))


if __name__ == "__main__":
    main()
