"""The future of a record that waits for its batch to be sealed; from then on it shows the client's own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Final, Self

from kafka.errors import KafkaTimeoutError
from kafka.future import Future

_FUTURE: Final[Any] = Future  # it has no types


class Stage:
    """What the futures of one batch wait for: that it was handed to the client, or failed."""

    __slots__ = ("_calls", "_lock", "_over")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._calls: list[tuple[RecordFuture, Callable[[Any], Any]]] = []

    def wait(self, timeout: float | None) -> bool:
        """Tell whether the batch is over, after at most so many seconds."""
        return self._over.wait(timeout)

    def keep(self, future: RecordFuture, call: Callable[[Any], Any]) -> bool:
        """Keep what is to be called with the client's future; false where there is one already."""
        with self._lock:
            if future.sent is None:
                self._calls.append((future, call))
            return future.sent is None

    def end(self, outcomes: Iterable[tuple[RecordFuture, Any]]) -> None:
        """Give each future the client's."""
        with self._lock:
            for future, sent in outcomes:
                future.sent = sent
        self._over.set()

    def call(self) -> None:
        """Make the calls that were kept, on this thread."""
        calls, self._calls = self._calls, []
        for future, call in calls:
            call(future.sent)


class RecordFuture(_FUTURE):  # type: ignore[misc]
    """A ``FutureRecordMetadata`` of a record that was not sent yet.

    Args:
        stage: of its batch.
    """

    __slots__ = ("sent", "stage")

    def __init__(self, stage: Stage) -> None:  # not the client's: its state is never used
        self.stage = stage
        self.sent: Any = None

    @property
    def is_done(self) -> bool:
        """Whether the record was acknowledged, or has failed."""
        return self.sent is not None and self.sent.is_done

    @property
    def value(self) -> Any:
        """The record's metadata, once it was acknowledged."""
        return None if self.sent is None else self.sent.value

    @property
    def exception(self) -> BaseException | None:
        """Why the record failed, once it did."""
        return None if self.sent is None else self.sent.exception

    def get(self, timeout: float | None = None) -> Any:
        """Return the record's metadata, after at most so many seconds.

        Raises:
            kafka.errors.KafkaTimeoutError: it is not known yet.
            Exception: why the record failed.
        """
        until = None if timeout is None else time.monotonic() + timeout
        if self.sent is None and not self.stage.wait(timeout):
            raise KafkaTimeoutError(f"Timeout after waiting for {timeout} secs.")
        return self.sent.get(None if until is None else max(0.0, until - time.monotonic()))

    def add_callback(self, f: Callable[..., Any], *args: Any, **kwargs: Any) -> Self:
        """Have the record's metadata given to a function, after ``args``."""
        return self._to_sent(lambda sent: sent.add_callback(f, *args, **kwargs))

    def add_errback(self, f: Callable[..., Any], *args: Any, **kwargs: Any) -> Self:
        """Have the record's error given to a function, after ``args``."""
        return self._to_sent(lambda sent: sent.add_errback(f, *args, **kwargs))

    def _add_cb_eb(self, cb: Callable[[Any], Any], eb: Callable[[Any], Any]) -> Self:
        """Add both; the client's ``chain`` asks for this."""
        return self.add_callback(cb).add_errback(eb)

    def _to_sent(self, call: Callable[[Any], Any]) -> Self:
        """Make a call on the client's future, now or once there is one."""
        if self.sent is not None or not self.stage.keep(self, call):
            call(self.sent)
        return self


class Failed(_FUTURE):  # type: ignore[misc]
    """The future of a record that was never given to the client.

    Args:
        error: why.
    """

    __slots__ = ()

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.failure(error)

    def get(self, timeout: float | None = None) -> Any:
        """Raise the error, at once."""
        raise self.exception
