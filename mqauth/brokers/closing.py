"""How long a producer's ``close`` waits for its broker, and what it raises where that was not long enough."""

from __future__ import annotations

from typing import Final, Self

from mqauth.errors import MqauthError

CLOSE_WITHIN: Final = 10.0
"""Seconds for which a producer that is closed waits for confirms, where its caller says nothing else."""
GIVE_UP_WITHIN: Final = 2.0
"""Seconds for a client to let go of what was given up."""


class UnconfirmedError(MqauthError, TimeoutError):
    """A producer was closed before the broker had confirmed everything: the outcome of the rest is unknown.

    The broker may have those messages, or not. Publish them again, which makes new tokens, and expect duplicates.
    """

    code = "unconfirmed"

    @classmethod
    def after(cls, seconds: float, messages: int) -> Self:
        """Return the error of messages that had no confirm when so many seconds were over."""
        return cls(
            f"closed after {seconds:g} s: the broker has not confirmed {messages} of the messages, "
            "and their outcome is unknown"
        )
