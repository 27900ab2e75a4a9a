"""Sockets of kafka-python that close themselves: it leaves those open that a closed client was still connecting.

Tests fail for sockets left open. Those that a client had sent on still do, since then the fault is ours.
"""

from __future__ import annotations

import socket
import warnings
from typing import Any

from kafka.net import inet

_client: Any = inet.KafkaNetSocket


class Connecting(socket.socket):
    """A socket that is closed silently where it is forgotten before anything was sent on it."""

    connected = False

    def send(self, *found: Any) -> int:
        """Send, and be one that its client has taken over: a connect may just have gone through at its close."""
        self.connected = True
        return super().send(*found)

    def __del__(self) -> None:
        """Warn of a connected socket that was left open, as every other socket does, and close it."""
        if self.connected and self.fileno() >= 0:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=1)
        self.close()


def install() -> None:
    """Let every client of kafka-python use these sockets from now on."""
    _client.socket = _new_socket


def _new_socket(_: Any, *kind: Any) -> Connecting:
    return Connecting(*kind)
