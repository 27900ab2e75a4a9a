"""kafka-python closes the sockets that it is done with; tests fail for each that is left open.

It leaves three of them open, to be closed when Python forgets them: that of an attempt that its client's close
cuts off, that of a TLS handshake that fails or is cut off, and that of a connection which was closed while bytes
waited to be written, when the client's loop ends before (``kafka.net.inet.KafkaNetSocket.sock_connect``,
``kafka.net.manager.KafkaConnectionManager._build_transport`` and
``kafka.net.transport.KafkaTCPTransport._write_to_sock``, 3.0).
"""

from __future__ import annotations

from typing import Any

from kafka.net import inet, transport

_socket: Any = inet.KafkaNetSocket
_tls: Any = transport.KafkaSSLTransport
_tcp: Any = transport.KafkaTCPTransport
_connect, _handshake, _write = _socket.sock_connect, _tls.handshake, _tcp._write_to_sock


def install() -> None:
    """Let every client of kafka-python close these sockets from now on."""
    _socket.sock_connect, _tls.handshake, _tcp._write_to_sock = (
        _connecting,
        _shaking_hands,
        _writing,
    )


async def _connecting(
    self: Any, net: Any, sock: Any, *place: Any, **settings: Any
) -> Any:
    try:
        return await _connect(self, net, sock, *place, **settings)
    except BaseException:
        sock.close()
        raise


async def _shaking_hands(self: Any) -> None:
    try:
        await _handshake(self)
    except BaseException:
        self.close()
        raise


async def _writing(self: Any) -> None:
    try:
        await _write(self)
    except BaseException:
        if self._closed and self._sock is not None:
            self._sock.close()
        raise
