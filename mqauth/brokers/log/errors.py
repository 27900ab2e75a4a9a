"""Errors that end a consumer or a producer of a log, whichever client it is built on."""

from __future__ import annotations

from typing import Self

from mqauth.errors import MqauthError


class PoisonRecordError(MqauthError):
    """A record that the client cannot parse stands at the head of a partition, and the policy is to stop.

    Nothing was skipped or committed. Look at the record with another client, then move the group's offset; with
    kafka-python ``on_poison="skip"`` steps over it.
    """

    code = "poison_record"


class CommitUnansweredError(MqauthError):
    """A client has not returned from a commit for 90 seconds; nothing more can be asked of it.

    librdkafka 2.16 loses a commit that is under way while its broker stands still for longer than the session, and
    confluent-kafka lets no other call of that client begin meanwhile. Start the process again: what was not
    committed comes again.
    """

    code = "commit_unanswered"


class OffsetsRefusedError(MqauthError):
    """The broker does not let the consumer's group read or commit its offsets; nothing was handled.

    Give the group the right ``READ`` on itself and on the topics.
    """

    code = "offsets_refused"


class ProducerFatalError(MqauthError):
    """An idempotent producer has failed for good; close it and make a new one.

    One error that cannot be retried makes every later send to every topic fail with it (KIP-360 state
    ``FATAL_ERROR``). In kafka-python an unauthorized topic is such an error.
    """

    code = "producer_fatal"

    @classmethod
    def after(cls, name: str) -> Self:
        """Return the error for a producer that failed for good with an error of this name."""
        return cls(f"the producer failed for good with {name}: close it and make a new one")
