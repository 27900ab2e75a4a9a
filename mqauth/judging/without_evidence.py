"""Messages of which the broker will never say when it appended them, and which wait no longer for that.

A consumer with ``at="append"`` defers a message without evidence of its append time: somebody may still set the
topic to LogAppendTime, or the broker's interceptor. But records that were stamped before that keep their stamp for
ever. An operator who has looked at them names them here. They become dead letters (``append_time_missing``), which
a reviewer can release. An entry touches nothing that has evidence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mqauth.audit.record import iso_time
from mqauth.errors import require
from mqauth.judging.policy import check_pattern, matches
from mqauth.wire import destination
from mqauth.wire.claims import is_name
from mqauth.wire.message import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class WithoutEvidence:
    """Messages at some destinations that can never have evidence of their append time.

    Args:
        destination: where they arrive, a pattern as of a ``Rule``.
        through: of a Kafka topic, the last such offset of each partition, or the time in UTC seconds by which they
            were signed; of a queue, that time.
        why: the operator's reason, which the audit records.

    Raises:
        ConfigurationError: the destination is not in its form, there is no reason, or offsets of a queue.
    """

    destination: str
    through: Mapping[int, int] | float
    why: str

    def __post_init__(self) -> None:
        check_pattern(self.destination)
        require(is_name(self.why), "why is a reason of 1 to 256 characters")
        of_a_queue = isinstance(self.through, Mapping) and not destination.is_kafka(self.destination)
        require(not of_a_queue, "only a Kafka topic has offsets")

    @property
    def facts(self) -> dict[str, Any]:
        """Itself as JSON values, for the audit record ``rollout``."""
        through = self.through
        if isinstance(through, Mapping):
            shown: Any = {str(partition): offset for partition, offset in through.items()}
        else:
            shown = iso_time(through)
        return {"destination": self.destination, "through": shown, "why": self.why}

    def names(self, message: Message, issued: int) -> bool:
        """Tell whether a message is one of these.

        Args:
            message: as the broker delivered it.
            issued: UTC seconds, ``iat`` of its verified token.
        """
        if not matches(self.destination, message.destination):
            return False
        if isinstance(self.through, Mapping):
            partition, offset = message.origin.partition, message.origin.offset
            last = None if partition is None else self.through.get(partition)
            return last is not None and offset is not None and offset <= last
        return issued <= self.through
