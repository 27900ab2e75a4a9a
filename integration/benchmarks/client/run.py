"""A benchmark as a whole: how much is measured, in which order, and the report."""

from __future__ import annotations

import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType
from typing import Any, Final

from integration.benchmarks.client import identity as identities
from integration.benchmarks.client import inprocess
from integration.benchmarks.client.contenders import BrokerResult, Effort, Make
from integration.benchmarks.client.inprocess import BATCH_NAME, Cell, Operations
from integration.benchmarks.client.rounds import Progress, Rounds, rates
from mqauth.config.kinds import is_broker_url
from mqauth.errors import ConfigurationError, require

TOLD: Final = ("bare", "message", "batch")
"""Contenders whose rates are in the short form; of the others it has ratios only."""
_ON_RABBITMQ: Final = ("rabbitmq", "pika")
_PACKAGES: Final = (
    "mqauth",
    "cryptography",
    "PyJWT",
    "aio-pika",
    "pika",
    "kafka-python",
    "confluent-kafka",
    "aiokafka",
    "crc32c",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """How much is measured.

    Args:
        cells: the cells that are measured in process.
        rounds: measured rounds of each.
        count: messages in a round in process.
        base_count: the same for the cells of 1 KiB and five headers.
        rabbitmq, kafka: how much is measured on the brokers.
        kept: messages with which memory per message is measured; 0 skips it.
        seconds: time after which no comparison begins another round.
    """

    cells: tuple[Cell, ...]
    rounds: int
    count: int
    base_count: int
    rabbitmq: Effort
    kafka: Effort
    kept: int
    seconds: float


FULL: Final = Amount(
    cells=tuple(inprocess.cells()), rounds=7, count=96, base_count=512, kept=512, seconds=480,
    rabbitmq=Effort(rounds=7, publish=2048, consume=4096, paced=200),
    kafka=Effort(rounds=7, publish=16_384, consume=24_576, paced=200),
)  # fmt: skip
"""About eight minutes."""
QUICK: Final = Amount(
    cells=tuple(inprocess.cells()), rounds=3, count=16, base_count=128, kept=0, seconds=60,
    rabbitmq=Effort(rounds=3, publish=512, consume=1024, paced=40, paced_rounds=1),
    kafka=Effort(rounds=3, publish=4096, consume=8192, paced=40, paced_rounds=1),
)  # fmt: skip
"""Within two minutes."""


@dataclass(slots=True, kw_only=True)
class Report:
    """The result of a benchmark."""

    amount: Amount
    in_process: Rounds
    brokers: dict[str, BrokerResult] = field(default_factory=dict)
    kept: dict[str, float] = field(default_factory=dict)
    servers: dict[str, str] = field(default_factory=dict)

    def short(self) -> dict[str, Any]:
        """Return the figures that are asked for most: microseconds in process, and rates and ratios on brokers."""
        told: dict[str, Any] = {
            "in_process": inprocess.short(self.in_process, _kinds(self.amount))
        }
        return told | {
            name: _short(found.comparisons) for name, found in self.brokers.items()
        }

    def failed(self) -> dict[str, str]:
        """Return the error of each contender that failed."""
        told = dict(self.in_process.failed)
        for name, broker in self.brokers.items():
            for what, found in broker.comparisons.items():
                told |= {f"{name} {what} {who}": why for who, why in found.failed.items()}
        return told

    def whole(self) -> dict[str, Any]:
        """Return every figure with its spread, and what it was measured on."""
        told: dict[str, Any] = {
            "when": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine(),
            "packages": versions(_PACKAGES), "servers": self.servers, "short": self.short(),
            "in_process": self.in_process.summary(""), "kept_bytes": self.kept, "peak_rss_mib": peak_rss(),
        }  # fmt: skip
        for name, found in self.brokers.items():
            comparisons = {
                what: rounds.summary("bare") for what, rounds in found.comparisons.items()
            }
            told[name] = {"added_bytes": dict(found.added), **comparisons}
        return told


def measure(
    amount: Amount,
    urls: Mapping[str, str] = MappingProxyType({}),
    *,
    identity: bool = False,
    others: Mapping[str, Sequence[Make]] = MappingProxyType({}),
    progress: Progress = lambda _: None,
) -> Report:
    """Measure everything that is asked for.

    Args:
        amount: how much.
        urls: of brokers, by the client that measures them: ``rabbitmq``, ``kafka``, ``confluent``,
            ``confluent_aio``, ``aiokafka``, ``pika``.
        identity: with the identity form beside the direct form on each broker.
        others: by broker, what makes contenders beside the bare client and mqauth.
        progress: called with what is measured next.

    Raises:
        ConfigurationError: a client library is missing.
    """
    asked = [(name, address_of(url), _broker(name)) for name, url in urls.items()]
    for _, url, module in asked:
        # A broker that cannot be reached is reported now. Kept open, the connection would miss its heartbeats.
        with module.Connections(url):
            pass
    clock = _Deadline(amount.seconds, parts=1 + 2 * len(asked))
    found = inprocess.measure(
        amount.cells, rounds=amount.rounds, count=amount.count, base_count=amount.base_count,
        progress=progress, enough=clock.part(1),
    )  # fmt: skip
    report = Report(amount=amount, in_process=found, kept=kept_bytes(amount.kept))
    for place, (name, url, module) in enumerate(asked):
        effort = replace(
            amount.rabbitmq if name in _ON_RABBITMQ else amount.kafka,
            enough=clock.part(3 + 2 * place),
        )
        with module.Connections(url) as connections:
            more = (
                *others.get(name, ()),
                *(identities.makes(module) if identity else ()),
            )
            report.brokers[name] = module.measure(
                connections, effort, more, progress=partial(_tell, progress, name)
            )
    return report


def _tell(progress: Progress, broker: str, what: str) -> None:
    progress(f"{broker}: {what}")


class _Deadline:
    """A time limit that is divided into equal parts."""

    def __init__(self, seconds: float, parts: int) -> None:
        self._began, self._part = time.monotonic(), seconds / parts

    def part(self, number: int) -> Callable[[], bool]:
        """Return a function that tells whether ``number`` parts are over."""
        return lambda: time.monotonic() - self._began > number * self._part


def _broker(name: str) -> Any:
    try:
        return import_module(f"integration.benchmarks.client.{name}")
    except ImportError as error:
        option, extra = name.replace("_", "-"), name.partition("_")[0]
        raise ConfigurationError(f"--{option}: install mqauth[{extra}]") from error


def kept_bytes(count: int) -> dict[str, float]:
    """Return by contender the bytes of memory that one handled message takes until its token expires.

    Args:
        count: messages of each, in batches four times as many; with 0 nothing is measured.
    """
    if not count:
        return {}
    single = Operations(Cell(kind="EdDSA"), count).kept_bytes()
    batch = Operations(Cell(kind=BATCH_NAME), 4 * count).kept_bytes()
    return {"message": round(single, 1), "batch": round(batch, 1)}


def _short(comparisons: Mapping[str, Rounds]) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for name, found in comparisons.items():
        if name != "paced":
            others = [who for who in found.measured if who not in TOLD]
            pairs = {
                f"{ours}/{who}": (ours, who)
                for who in others
                for ours in ("message", "batch")
            }
            told[name] = rates(found, TOLD, "bare", pairs)
    return told


def _kinds(amount: Amount) -> list[str]:
    return list(dict.fromkeys(cell.kind for cell in amount.cells))


def peak_rss() -> float:
    """Return the most memory that this process ever had, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1 << 20 if sys.platform == "darwin" else 1 << 10), 1)


def machine() -> dict[str, Any]:
    """Return a description of this machine."""
    return {
        "python": platform.python_version(), "system": f"{platform.system()} {platform.release()}",
        "cpu": _cpu(), "cores": os.cpu_count(),
    }  # fmt: skip


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found: dict[str, str] = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [
                line.partition(":")[2].strip()
                for line in file
                if line.startswith("model name")
            ]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def amount_of(*, quick: bool) -> Amount:
    """Return how much ``python -m integration.benchmarks.client`` measures."""
    return QUICK if quick else FULL


def url_of(client: str, url: str) -> str:
    """Return the URL of the broker of a client; that of a Kafka may be given without its scheme.

    Raises:
        ConfigurationError: it is none. The error does not repeat it: it may hold a password.
    """
    scheme, wanted = (
        ("amqp", "amqp://... or amqps://...")
        if client in _ON_RABBITMQ
        else ("kafka", "host:port")
    )
    whole = url if scheme == "amqp" else f"kafka://{address_of(url)}"
    good = is_broker_url(whole) and whole.startswith(scheme)
    require(good, f"--{client.replace('_', '-')}: must be {wanted}")
    return whole


def address_of(url: str) -> str:
    """Return what a client takes: the ``host:port`` of a Kafka, and any other URL as it is."""
    return url.removeprefix("kafka://").rstrip("/") if url.startswith("kafka://") else url
