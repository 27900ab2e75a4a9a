"""Transactions that the broker refuses to a former member, and offsets that are final (KIP-447).

aiokafka 0.14 names the group alone in a transaction, so that the broker takes offsets from who lost the partitions
long ago; and it asks for offsets of which a transaction may still be open. Both requests exist in newer versions,
which brokers have since Kafka 2.5. They are made here in aiokafka's own terms.
"""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any, Final, Self

from aiokafka.client import CoordinationType
from aiokafka.errors import CommitFailedError, GroupLoadInProgressError
from aiokafka.producer.sender import TxnOffsetCommitHandler
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.commit import OffsetFetchRequest
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Int64,
    Schema,
    TaggedFields,
)

_TEXT: Final = CompactString("utf-8")
_TAGS: Final = ("tags", TaggedFields)


class Membership(str):
    """A group's id with one of its members; aiokafka takes it for the id alone.

    Attributes:
        generation: the number of the last rebalance.
        member: the member's id.
    """

    generation: int
    member: str

    def __new__(cls, group: str, generation: int, member: str) -> Self:
        """Return the id of a group, with a member of it."""
        made = super().__new__(cls, group)
        made.generation, made.member = generation, member
        return made


class TxnOffsetCommitResponse(Response):
    """Version 3."""

    API_KEY = 28
    API_VERSION = 3
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "topics",
            CompactArray(
                ("topic", _TEXT),
                (
                    "partitions",
                    CompactArray(("partition", Int32), ("error_code", Int16), _TAGS),
                ),
                _TAGS,
            ),
        ),
        _TAGS,
    )


class TxnOffsetCommitStruct(RequestStruct):
    """Version 3, the first with a member."""

    FLEXIBLE_VERSION = True
    API_KEY = 28
    API_VERSION = 3
    RESPONSE_TYPE = TxnOffsetCommitResponse
    SCHEMA = Schema(
        ("transactional_id", _TEXT),
        ("group_id", _TEXT),
        ("producer_id", Int64),
        ("producer_epoch", Int16),
        ("generation_id", Int32),
        ("member_id", _TEXT),
        ("group_instance_id", _TEXT),
        (
            "topics",
            CompactArray(
                ("topic", _TEXT),
                (
                    "partitions",
                    CompactArray(
                        ("partition", Int32),
                        ("offset", Int64),
                        ("leader_epoch", Int32),
                        ("metadata", _TEXT),
                        _TAGS,
                    ),
                ),
                _TAGS,
            ),
        ),
        _TAGS,
    )


class OffsetFetchResponse(Response):
    """Version 7."""

    API_KEY = 9
    API_VERSION = 7
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "topics",
            CompactArray(
                ("topic", _TEXT),
                (
                    "partitions",
                    CompactArray(
                        ("partition", Int32),
                        ("offset", Int64),
                        ("leader_epoch", Int32),
                        ("metadata", _TEXT),
                        ("error_code", Int16),
                        _TAGS,
                    ),
                ),
                _TAGS,
            ),
        ),
        ("error_code", Int16),
        _TAGS,
    )


class OffsetFetchStruct(RequestStruct):
    """Version 7, the first that asks for final offsets."""

    FLEXIBLE_VERSION = True
    API_KEY = 9
    API_VERSION = 7
    RESPONSE_TYPE = OffsetFetchResponse
    SCHEMA = Schema(
        ("consumer_group", _TEXT),
        (
            "topics",
            CompactArray(("topic", _TEXT), ("partitions", CompactArray(Int32)), _TAGS),
        ),
        ("require_stable", Boolean),
        _TAGS,
    )


class _Ready(Request[RequestStruct]):
    """A request whose version is given."""

    API_KEY = -1

    def __init__(self, struct: RequestStruct) -> None:
        self._struct = struct

    def build(self, request_struct_class: type[RequestStruct]) -> RequestStruct:
        """Return the request."""
        return self._struct

    def prepare(self, versions: dict[int, tuple[int, int]]) -> RequestStruct:
        """Return the request; a broker that does not know its version closes the connection."""
        return self._struct


class FencedHandler(TxnOffsetCommitHandler):
    """Commits offsets of a transaction as a member of the group."""

    def create_request(self) -> Request[Any]:
        """Return the request, with the member."""
        topics: dict[str, list[Any]] = {}
        for place, offset in sorted(self._offsets.items()):
            topics.setdefault(place.topic, []).append(
                (place.partition, offset.offset, -1, offset.metadata, {})
            )
        state, group = self._sender._txn_manager, self._group_id
        return _Ready(
            TxnOffsetCommitStruct(
                state.transactional_id,
                group,
                state.producer_id,
                state.producer_epoch,
                group.generation,
                group.member,
                None,
                [(topic, partitions, {}) for topic, partitions in topics.items()],
                {},
            )
        )

    def handle_response(self, resp: Any) -> Any:
        """Act on the response; of a former member the transaction fails, and can be aborted."""
        errors = [
            (topic, [each[:2] for each in partitions])
            for topic, partitions, _ in resp.topics
        ]
        # Codes of a commit by somebody who is no member any more.
        if any(
            code in {22, 25, 82} for _, partitions in errors for _, code in partitions
        ):
            state = self._sender._txn_manager
            state.error_transaction(
                CommitFailedError("the consumer is no member of this generation")
            )
            state.wait_for_transaction_end().exception()  # nobody else may ask for it
            return None
        return super().handle_response(SimpleNamespace(errors=errors))  # type: ignore[no-untyped-call]


def fence(producer: Any) -> None:
    """Have a transactional producer commit offsets as the member that is named by a ``Membership``."""
    producer._sender._do_txn_offset_commit = partial(_commit, producer._sender)


def require_stable(consumer: Any) -> None:
    """Have a consumer wait for the end of a transaction that would commit the offsets it asks for."""
    coordinator = consumer._coordinator
    coordinator._send_req = partial(_send, coordinator._send_req)


async def _commit(sender: Any, offsets: Any, group: Membership) -> None:
    node = await sender._find_coordinator(CoordinationType.GROUP, group)
    handler: Any = FencedHandler
    await handler(sender, offsets, group).do(node)


async def _send(theirs: Any, request: Any) -> Any:
    if not isinstance(request, OffsetFetchRequest):
        return await theirs(request)
    topics: list[Any] = [
        (topic, list(partitions), {}) for topic, partitions in request._partitions or ()
    ]
    response = await theirs(
        _Ready(OffsetFetchStruct(request._consumer_group, topics, True, {}))
    )
    again = GroupLoadInProgressError.errno
    # The code of an offset of which a transaction is still open.
    return SimpleNamespace(
        topics=[
            (
                topic,
                [
                    (number, offset, metadata, again if code == 88 else code)
                    for number, offset, _epoch, metadata, code, _tags in partitions
                ],
            )
            for topic, partitions, _tags in response.topics
        ]
    )
