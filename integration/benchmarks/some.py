"""``python -m integration.benchmarks.some``: a few contenders on one broker, in seconds, for who works on speed.

``python -m integration.benchmarks.some --kafka localhost:9092 --contenders bare,batch --messages 20000``
"""

from __future__ import annotations

import argparse
from types import ModuleType
from typing import Any

from integration.benchmarks.client import kafka, rabbitmq, report, run
from integration.benchmarks.client.contenders import WORK, Effort, compare
from integration.benchmarks.rivals import rivals


def main() -> None:
    """Compare some contenders and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m integration.benchmarks.some", description=main.__doc__)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--rabbitmq", help="amqp://...")
    where.add_argument("--kafka", help="host:port")
    parser.add_argument("--contenders", default="bare,message,batch,handwritten", help="names, with commas")
    parser.add_argument("--messages", type=int, default=4096, help="messages of a round (default 4096)")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds of each (default 3)")
    parser.add_argument("--work", action="store_true", help="on Kafka also with a handler that works 100 us")
    chosen = parser.parse_args()
    module: ModuleType = rabbitmq if chosen.rabbitmq else kafka
    effort = Effort(rounds=chosen.rounds, publish=chosen.messages, consume=chosen.messages, paced=0)
    with module.Connections(chosen.rabbitmq or run.address_of(chosen.kafka)) as connections:
        others = rivals()["rabbitmq" if chosen.rabbitmq else "kafka"]
        made: list[Any] = list(module.contenders(connections, others))
        try:
            some = [one for one in made if one.name in chosen.contenders.split(",")]
            found = compare(some, effort, works=(0.0, WORK) if chosen.work else (0.0,))
        finally:
            for one in made:
                one.close()
    print("\n".join(report.broker_lines("rabbitmq" if chosen.rabbitmq else "kafka", found)))


if __name__ == "__main__":
    main()
