"""Beside a real Redis: a TLS front of it with a certificate of its own, and a connection that loses answers."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class LossyConnection(redis.Connection):
    """A connection that breaks once, after the server did what it was told and before its answer is read."""

    armed = False

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        """Read an answer, and lose it where the class is armed."""
        answer = super().read_response(*args, **kwargs)
        if LossyConnection.armed:
            LossyConnection.armed = False
            self.disconnect()
            raise redis.ConnectionError("lost on the way")
        return answer


class CountingRedis(redis.Redis):
    """A client that counts its round trips."""

    trips = 0

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Count and execute."""
        self.trips += 1
        return super().execute_command(*args, **options)


def certificate(folder: Path, name: str) -> Path:
    """Write a self-signed certificate for a host name or address, its key in the same file, and return it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    try:
        alternative: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        alternative = x509.DNSName(name)
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / f"{name}.pem"
    pkcs8, clear = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, pkcs8, clear)
        + built.public_bytes(serialization.Encoding.PEM)
    )
    return path


@contextmanager
def tls_front(pem: Path, host: str, port: int) -> Iterator[int]:
    """Serve TLS on a loopback port in front of a plain server, and yield the port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    ready: list[int] = []
    started, stop = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        server = await asyncio.start_server(
            lambda reader, writer: _join(reader, writer, host, port), "127.0.0.1", 0, ssl=context
        )
        ready.append(server.sockets[0].getsockname()[1])
        started.set()
        await stop.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0)

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    started.wait()
    try:
        yield ready[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


async def _join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int) -> None:
    """Copy bytes both ways until either side ends."""
    far_reader, far_writer = await asyncio.open_connection(host, port)
    ways = [asyncio.create_task(_copy(reader, far_writer)), asyncio.create_task(_copy(far_reader, writer))]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        for end in (writer, far_writer):
            end.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
