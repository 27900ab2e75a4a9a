"""A consumer whose ``run`` blocks, in a background thread for the time of a ``with`` block."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

from mqauth.logs import emit


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
        self._background = threading.Thread(target=self._run_in_background, name="mqauth-consumer", daemon=True)
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

    def _run_in_background(self) -> None:
        try:
            self.run()
        except BaseException as error:
            emit("consumer.ended", "the consumer stopped: %s", type(error).__name__)
            self._error = error
