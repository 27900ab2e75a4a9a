"""A producer's calls that are under way on an event loop, and its closing: for every client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType


class UnderWay:
    """Lets calls in until it is closed, and then waits until all of them have ended.

    Args:
        refusal: makes what is raised to a call that comes later.
    """

    def __init__(self, refusal: Callable[[], Exception]) -> None:
        self._refusal = refusal
        self._count = 0
        self._over: asyncio.Future[None] | None = None

    def __enter__(self) -> None:
        if self._over is not None:
            raise self._refusal()
        self._count += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._count -= 1
        self._tell()

    def close(self) -> None:
        """Let no more calls in."""
        if self._over is None:
            self._over = asyncio.get_running_loop().create_future()
            self._tell()

    async def over(self) -> None:
        """Return once it is closed and no call is under way."""
        self.close()
        if self._over is not None:
            await asyncio.shield(self._over)

    def _tell(self) -> None:
        """Let those who wait for the end go on where there is nothing left."""
        if self._over is not None and not self._count and not self._over.done():
            self._over.set_result(None)
