"""kafka-python closes the sockets of its connection attempts; tests fail for each that is left open.

It leaves two of them open, to be closed when Python forgets them: that of an attempt that its client's close cuts
off, and that of a TLS handshake that fails or is cut off (``kafka.net.inet.KafkaNetSocket.sock_connect`` and
``kafka.net.manager.KafkaConnectionManager._build_transport``, 3.0).
"""

from __future__ import annotations

from typing import Any

from kafka.net import inet, transport

_socket: Any = inet.KafkaNetSocket
_tls: Any = transport.KafkaSSLTransport
_connect, _handshake = _socket.sock_connect, _tls.handshake


def install() -> None:
    """Let every client of kafka-python close these sockets from now on."""
    _socket.sock_connect, _tls.handshake = _connecting, _shaking_hands


async def _connecting(self: Any, net: Any, sock: Any, *place: Any, **settings: Any) -> Any:
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
