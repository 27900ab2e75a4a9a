"""A consumer whose ``run`` blocks, in a background thread for the time of a ``with`` block; its first error."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

from mqauth.logs import emit


class FirstError:
    """A ``with`` block whose error is kept, and raised by ``check``; of several blocks the first error counts.

    What ended a consumer is told so, whatever fails later while it leaves its client. Later errors are noted at it
    by their types alone: their texts may hold anything.

    Attributes:
        error: the first error, ``None`` where there was none.
    """

    error: BaseException | None = None

    def __enter__(self) -> None:
        """Begin a block."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        """Keep the error of the block."""
        if error is not None:
            self.keep(error)
        return True

    def keep(self, error: BaseException) -> None:
        """Keep an error, or note it at the one that came before."""
        if self.error is None:
            self.error = error
        elif error is not self.error:
            self.error.add_note(f"and later: {type(error).__name__}")

    def check(self) -> None:
        """Raise the first error, if there was one."""
        if self.error is not None:
            raise self.error


class BackgroundRun:
    """Runs ``run`` in a background thread, until ``stop`` at the end of the block."""

    _background: threading.Thread | None = None
    _error: BaseException | None = None

    def run(self) -> None:
        """Consume until ``stop`` is called."""
        raise NotImplementedError

    def stop(self) -> None:
        """Let ``run`` end."""
        raise NotImplementedError

    @property
    def failed(self) -> bool:
        """Whether a background run ended with an error, which leaving the ``with`` block raises."""
        return self._error is not None

    def __enter__(self) -> Self:
        """Run in a background thread."""

        def run() -> None:
            try:
                self.run()
            except BaseException as error:
                emit("consumer.ended", "the consumer stopped: %s", type(error).__name__)
                self._error = error

        self._background = threading.Thread(target=run, name="mqauth-consumer", daemon=True)
        self._background.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop gracefully; raise the error that ended ``run``, unless the block raised one."""
        self.stop()
        if self._background is not None:
            self._background.join()
        if self._error is not None and kind is None:
            raise self._error
