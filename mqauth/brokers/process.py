"""The one rule of every producer and consumer after a fork: it is used in the process that made it."""

from __future__ import annotations

import os

from mqauth.errors import require


class HomeProcess:
    """The process that something was made in.

    A child that is forked from it lacks its threads and shares its sockets: a call there would wait for a thread
    that is gone, or write into the frames of the parent.

    Args:
        what: names what was made, for the refusal.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._process = os.getpid()

    def check(self) -> None:
        """Refuse a call in another process.

        Raises:
            ConfigurationError: this process was forked from the one that made it.
        """
        require(
            os.getpid() == self._process,
            f"the {self._what} was made before a fork: make it, and its client, in the child",
        )
