"""The relay before a Kafka broker passes every answer on whole, with its own port in place of the broker's."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import closing

import pytest

from integration.relay_kafka import HOST, Relay

PATIENCE = 30.0


@pytest.fixture
def ends() -> Iterator[tuple[Relay, socket.socket, socket.socket]]:
    """A relay, a client's connection to it, and the broker's end of it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        with closing(Relay(f"127.0.0.1:{listener.getsockname()[1]}")) as relay:
            host, _, port = relay.server.rpartition(":")
            with socket.create_connection((host, int(port)), PATIENCE) as client:
                broker, _ = listener.accept()
                with broker:
                    yield relay, client, broker


def answered(client: socket.socket, broker: socket.socket, answer: bytes) -> bytes:
    """Return what a client gets of an answer."""
    broker.sendall(struct.pack(">i", len(answer)) + answer)
    with client.makefile("rb") as stream:
        size = int.from_bytes(stream.read(4), "big")
        return stream.read(size)


@pytest.mark.parametrize("size", range(1, len(HOST) + 4))
def test_answer_that_ends_like_an_address(
    ends: tuple[Relay, socket.socket, socket.socket], size: int
) -> None:
    """An answer comes whole and at once where its last bytes are the first of the broker's address."""
    _, client, broker = ends
    address = HOST + struct.pack(">i", broker.getsockname()[1])
    assert (
        answered(client, broker, b"an answer " + address[:size])
        == b"an answer " + address[:size]
    )
