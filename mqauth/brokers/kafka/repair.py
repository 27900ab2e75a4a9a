"""Workarounds for faults of kafka-python 3.0.12, most of them around ``poll()``.

This is the only module that touches the client's private attributes. Each function names the fault that it works
around, and does nothing for a client without these attributes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from typing import Any, Final

from kafka.protocol.consumer.offsets import OffsetResetStrategy

from mqauth.logs import emit

_WOKEN: Final = "_mqauth_woken"


def before_poll(client: Any) -> None:
    """Remove what would keep the next ``poll()`` from returning records, for a while or for ever."""
    # A join that is due is waited for, up to a second; short polls alone might never finish it. kafka-python 3.0
    # throws away a join that ends between two calls of ``poll()`` and starts another, with short polls for ever.
    # And a leader that joins again because it saw new partitions considers that join unneeded once ``poll()`` has
    # timed out in the middle: it gets no assignment and sends no heartbeat from then on.
    coordinator: Any = getattr(client, "_coordinator", None)
    if coordinator is not None:
        if coordinator.rejoining and not coordinator.rejoin_needed:
            coordinator.request_rejoin()
        if coordinator.need_rejoin():
            coordinator.poll(timeout_ms=1000)

    # Records that were fetched before a pause are delivered after it. kafka-python 3.0 puts them back only where
    # no other iterator is in line, and takes an exhausted iterator for one in line: a resumed partition would
    # neither be delivered nor fetched again.
    fetcher: Any = getattr(client, "_fetcher", None)
    current = getattr(fetcher, "_next_partition_records", None)
    if current is not None and not current:
        fetcher._next_partition_records = None

    # A response that has just arrived is delivered at once. kafka-python 3.0 misses one that arrives between its
    # two looks, and sleeps for ``retry_backoff_ms`` with records at hand.
    fetch, attributes = (
        getattr(fetcher, "fetch_records", None),
        getattr(fetcher, "__dict__", {}),
    )
    if fetch is None or _WOKEN in attributes:
        return

    def fetch_records(*args: Any, **kwargs: Any) -> Any:
        fetched = fetch(*args, **kwargs)
        landed = (
            isinstance(fetched, tuple)
            and fetched[1:] == (True,)
            and getattr(fetcher, "_completed_fetches", None)
        )
        return (fetched[0], False) if landed else fetched

    attributes[_WOKEN] = attributes.get("fetch_records")
    attributes["fetch_records"] = fetch_records


def held(client: Any) -> set[Any]:
    """Return the partitions that the client holds now.

    Rebalance listeners call this on the client's I/O thread, where an exception would break every later poll: so
    it raises nothing.
    """
    try:
        return set(client.assignment())
    except Exception as error:
        emit(
            "client.assignment_unknown",
            "the client's assignment cannot be read: %s",
            type(error).__name__,
        )
        return set()


def generation(client: Any) -> int | None:
    """Return the number of the group's last rebalance; ``None`` where the client cannot tell."""
    membership: Any = getattr(
        getattr(client, "_coordinator", None), "group_metadata", None
    )
    return None if membership is None else int(membership().generation_id)


def forget_positions(client: Any, places: Set[Any]) -> None:
    """Have partitions read from their committed offsets next, as if they were new.

    kafka-python 3.0 keeps a position through an eager rebalance, also where another member had the partition in a
    generation in between, and committed: the records of that member would be read again.
    """
    states: Any = getattr(getattr(client, "_subscription", None), "assignment", {})
    for place in places & states.keys():
        states[place] = type(states[place])()


def committed(client: Any, places: list[Any], timeout_ms: int) -> dict[Any, Any]:
    """Return what the group has committed of partitions, each as an ``OffsetAndMetadata``, by one request.

    The client's own ``committed`` asks for one partition at a time.
    """
    return client._coordinator.fetch_committed_offsets(places, timeout_ms=timeout_ms)  # type: ignore[no-any-return]


def position(client: Any, place: Any) -> int | None:
    """Return the offset that is read next, ``None`` where there is none yet.

    The client's own ``position`` asks the broker for what is missing of all partitions.
    """
    states: Any = getattr(getattr(client, "_subscription", None), "assignment", {})
    known = getattr(states.get(place), "position", None)
    return None if known is None else int(known.offset)


def reset_to_earliest(client: Any, told: Callable[[Any], object]) -> None:
    """Have the client go to the earliest record where its offset is out of range, and tell of it.

    It would go where ``auto_offset_reset`` says: by default to the end, past all that is left.

    Args:
        client: the ``KafkaConsumer``.
        told: called with each such partition.
    """
    state: Any = getattr(client, "_subscription", None)
    theirs = getattr(state, "request_offset_reset", None)
    if theirs is None:
        return

    def request_offset_reset(partition: Any, strategy: Any = None) -> None:
        if strategy is None:
            told(partition)
        theirs(partition, OffsetResetStrategy.EARLIEST if strategy is None else strategy)

    state.request_offset_reset = request_offset_reset


def tell(listener: Any, method: str, partitions: Any) -> None:
    """Call the user's own rebalance listener; an exception from it would break every later ``poll()``."""
    try:
        if listener is not None:
            getattr(listener, method)(partitions)
    except Exception as error:
        emit(
            "client.listener_failed",
            "the client's own rebalance listener failed: %s",
            type(error).__name__,
        )


def rejoins(client: Any) -> bool:
    """Return whether the next ``poll()`` takes part in a rebalance; kafka-python has no public name for that."""
    coordinator: Any = getattr(client, "_coordinator", None)
    return coordinator is not None and bool(
        coordinator.rejoining or coordinator.need_rejoin()
    )


@contextmanager
def not_joining(client: Any) -> Iterator[None]:
    """Postpone a rebalance that becomes due meanwhile to a later ``poll()``, since handlers are running.

    kafka-python looks for one inside each ``poll()``, and begins it there at once.
    """
    coordinator: Any = getattr(client, "_coordinator", None)
    attributes: dict[str, Any] = getattr(coordinator, "__dict__", {})
    theirs = attributes.get("need_rejoin")
    attributes["need_rejoin"] = lambda: False
    try:
        yield
    finally:
        del attributes["need_rejoin"]
        attributes.update({} if theirs is None else {"need_rejoin": theirs})


def hand_back(client: Any) -> None:
    """Remove our workarounds from a client that its owner goes on using."""
    attributes = getattr(getattr(client, "_fetcher", None), "__dict__", {})
    if _WOKEN in attributes:
        theirs = attributes.pop(_WOKEN)
        del attributes["fetch_records"]
        attributes.update({} if theirs is None else {"fetch_records": theirs})
    getattr(getattr(client, "_subscription", None), "__dict__", {}).pop(
        "request_offset_reset", None
    )


def postponed(client: Any) -> BaseException | None:
    """Take the exception that kafka-python keeps for its next ``poll()``, and would lose with a pause.

    It keeps one where the same fetch had records to deliver first.
    """
    fetcher: Any = getattr(client, "_fetcher", None)
    kept = getattr(fetcher, "_next_in_line_exception_metadata", None)
    if kept is None:
        return None
    fetcher._next_in_line_exception_metadata = None
    error: BaseException = kept.exception
    return error


def discard(client: Any, partition: Any) -> None:
    """Remove the dead iterator of a partition, so that the next ``poll()`` fetches instead of spinning."""
    fetcher: Any = getattr(client, "_fetcher", None)
    current = getattr(fetcher, "_next_partition_records", None)
    if current is not None and current.topic_partition == partition:
        fetcher._next_partition_records = None
    getattr(fetcher, "_paused_partition_records", {}).pop(partition, None)


def close_producer(client: Any) -> None:
    """Close a producer within seconds, whatever its state.

    Where its records can no longer be sent, kafka-python's ``close()`` raises and leaves its thread running.
    """
    try:
        client.close(timeout=1)
    except Exception as error:
        emit(
            "client.producer_stopped",
            "a producer could not be closed, its thread is stopped: %s",
            type(error).__name__,
        )
        sender = getattr(client, "_sender", None)
        if sender is not None:
            sender.force_close()
