"""A workload's key in memory, with a WIT that was asked for elsewhere. Experimental.

This is the part that asks no authority; ``identity_key`` has the key that is renewed from one.
"""

from __future__ import annotations

from typing import ClassVar

from mqauth.clock import SYSTEM_CLOCK, Clock
from mqauth.errors import Cause, Unavailable, require
from mqauth.wire.identity import Identity
from mqauth.wire.jws import LocalSigningKey
from mqauth.wire.keys import Key
from mqauth.wire.workload import WorkloadKey


class WITKey:
    """A ``SigningKeySource`` whose tokens have the identity form: WIT and proof in one header.

    Args:
        wit: the WIT that an authority issued.
        key: the private key it vouches for: Ed25519, P-256 or P-384.
        clock: tells the time.

    Raises:
        ConfigurationError: this is no WIT, it vouches for another key, or it has ended.
    """

    is_identity: ClassVar[bool] = True

    def __init__(self, wit: str, key: Key, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._current = _workload_key(wit, key)
        require(self.identity.expires > clock.now(), "the identity has ended")

    def __repr__(self) -> str:
        return f"WITKey({self.identity.subject!r})"

    @property
    def identity(self) -> Identity:
        """What the WIT in use says; it was not verified here."""
        return self._current.identity

    def renew(self, wit: str, key: Key) -> None:
        """Sign with another WIT and its key from now on.

        Raises:
            ConfigurationError: this is no WIT, it vouches for another key, or it is of another subject.
        """
        workload = _workload_key(wit, key)
        require(workload.identity.subject == self.identity.subject, "the identity is of another subject")
        self._current = workload

    def signing_key(self) -> WorkloadKey:
        """Return the key that signs now.

        Raises:
            Unavailable: ``keys_unavailable``, the identity has ended.
        """
        workload = self._current
        if workload.identity.expires <= self._clock.now():
            raise Unavailable(Cause.KEYS_UNAVAILABLE, "the identity has ended")
        return workload


def _workload_key(wit: str, key: Key) -> WorkloadKey:
    return WorkloadKey(wit, LocalSigningKey(key), key.public)
