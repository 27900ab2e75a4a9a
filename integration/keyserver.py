"""A real HTTP(S) key server in a process of its own that misbehaves on command.

``python -m integration.keyserver --port N [--cert PEM --key PEM]`` prints a line once it listens. Then it obeys
JSON lines on standard input, with one answer a line; ``KeyServer`` is the other end. It speaks over bare sockets,
because no server library would send what some of its modes send.
"""

from __future__ import annotations

import argparse
import datetime
import ipaddress
import json
import os
import socket
import ssl
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from integration.services.machine import Port
from mqauth.wire.jwk import dump_key_set
from mqauth.wire.keys import Key, KeySet

_MIB = 1024 * 1024
_PATIENCE = 30.0  # seconds until a hanging connection is given up by the server too


class Mode:
    """What the server does with a request; the names are those of its methods."""

    def __init__(self, wire: socket.socket, state: Mapping[str, Any]) -> None:
        self.wire = wire
        self.state = state
        self.stopped = threading.Event()

    def ok(self, request: str) -> None:
        """Serve the document, honouring ``If-None-Match``."""
        body = self.state["document"].encode()
        etag = self.state["headers"].get("ETag")
        if etag is not None and f"If-None-Match: {etag}" in request:
            return self.send(b"", status="304 Not Modified")
        return self.send(body)

    def status(self, request: str) -> None:
        """Serve another status."""
        self.send(b"{}", status=self.state["status"])

    def redirect(self, request: str) -> None:
        """Point to the real set, elsewhere on this server."""
        self.send(b"", status="302 Found", Location="/real")

    def hang(self, request: str) -> None:
        """Say nothing."""
        self.stopped.wait(_PATIENCE)

    def slow(self, request: str) -> None:
        """Hang for a while and then serve another status."""
        self.stopped.wait(self.state["delay"])
        self.status(request)

    def reset(self, request: str) -> None:
        """Break the connection off."""
        self.wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def large(self, request: str) -> None:
        """Send 30 MiB that are valid JSON and a valid set."""
        head, tail = self.state["document"].encode()[:-1], b"}"
        self.head(len(head) + 30 * _MIB + len(tail))
        self.wire.sendall(head)
        for _ in range(30):
            self.wire.sendall(b" " * _MIB)
        self.wire.sendall(tail)

    def drip_body(self, request: str) -> None:
        """Send the body a byte at a time."""
        body = self.state["document"].encode()
        self.head(len(body))
        self._drip(body)

    def drip_head(self, request: str) -> None:
        """Send headers a byte at a time."""
        self._drip(b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 1000)

    def head(self, length: int | None, *, status: str = "200 OK", **headers: str) -> None:
        """Send the status line and headers."""
        found = {"Content-Type": "application/json", **self.state["headers"]}
        found |= {name.replace("_", "-"): value for name, value in headers.items()}
        if length is not None:
            found["Content-Length"] = str(length)
        lines = [
            f"HTTP/1.1 {status}",
            *(f"{name}: {value}" for name, value in found.items()),
            "",
            "",
        ]
        self.wire.sendall("\r\n".join(lines).encode("latin-1"))

    def send(self, body: bytes, **headers: Any) -> None:
        """Send a whole answer."""
        self.head(len(body), **headers)
        self.wire.sendall(body)

    def _drip(self, raw: bytes) -> None:
        for byte in raw:
            self.wire.sendall(bytes([byte]))
            self.stopped.wait(0.02)


class _Server:
    """The server's own process: a listener, a thread a connection, and commands."""

    def __init__(self, port: int, context: ssl.SSLContext | None) -> None:
        self._port = port
        self._context = context
        self._state: dict[str, Any] = {
            "mode": "ok", "document": '{"keys":[]}', "headers": {}, "status": "503 Unavailable",
            "tls": True,
        }  # fmt: skip
        self._requests = 0
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self.up()

    def up(self) -> None:
        """Listen."""
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self._port), backlog=128)
            threading.Thread(
                target=self._accept, args=(self._listener,), daemon=True
            ).start()

    def down(self) -> None:
        """Refuse connections."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.shutdown(socket.SHUT_RDWR)  # wakes the thread in accept
            listener.close()

    def obey(self, command: dict[str, Any]) -> dict[str, Any]:
        """Carry out one command."""
        if command.pop("listen", None) is False:
            self.down()
        if command.pop("listen_again", False):
            self.up()
        with self._lock:
            self._state = {**self._state, **command}
            return {"requests": self._requests}

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                wire, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(wire,), daemon=True).start()

    def _serve(self, wire: socket.socket) -> None:
        with suppress(OSError), wire:
            with self._lock:
                state = self._state
            if self._context is not None and state["tls"]:
                wire = self._context.wrap_socket(wire, server_side=True)
            with wire:
                request = _request(wire)
                with self._lock:
                    self._requests += 1
                mode: Callable[[str], None] = getattr(Mode(wire, state), state["mode"])
                mode(request)


def _request(wire: socket.socket) -> str:
    """Read a request's head."""
    raw = b""
    while b"\r\n\r\n" not in raw:
        chunk = wire.recv(65536)
        if not chunk:
            raise ConnectionResetError
        raw += chunk
    return raw.decode("latin-1")


class Authority:
    """A certificate authority of a test, and what it signs.

    Args:
        folder: where its files are put.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("mqauth test CA")
        self._certificate = (
            _builder(self._name, self._name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs=True), critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        self.path = folder / f"ca-{self._certificate.serial_number}.pem"
        self.path.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, *, host: str = "127.0.0.1", days: int = 1) -> tuple[Path, Path]:
        """Return the files of a certificate and its key; with ``days`` below 0 it has expired."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            _builder(_name("key server"), self._name, key.public_key(), days=days)
            .add_extension(x509.SubjectAlternativeName([_host(host)]), critical=False)
            .add_extension(
                x509.BasicConstraints(ca=False, path_length=None), critical=True
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(
                    self._key.public_key()
                ),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        stem = self._folder / f"server-{certificate.serial_number}"
        chain, secret = stem.with_suffix(".pem"), stem.with_suffix(".key")
        chain.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        secret.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return chain, secret


class KeyServer:
    """A key server in another process; a context manager.

    Args:
        certificate: PEM files of its certificate and key; plain http without.
    """

    def __init__(self, certificate: tuple[Path, Path] | None = None) -> None:
        arguments = (
            []
            if certificate is None
            else ["--cert", str(certificate[0]), "--key", str(certificate[1])]
        )
        self._claimed = Port()  # while the server is down, no client's socket takes it
        self.port = self._claimed.number
        self._process = subprocess.Popen(
            [sys.executable, "-m", "integration.keyserver", "--port", str(self.port), *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd=Path(__file__).resolve().parents[1],
        )  # fmt: skip
        self._read()
        self.origin = (
            f"{'http' if certificate is None else 'https'}://127.0.0.1:{self.port}"
        )
        self.url = f"{self.origin}/jwks.json"

    def __enter__(self) -> KeyServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        _pipe(self._process.stdin).close()
        self._process.wait(10)
        _pipe(self._process.stdout).close()
        self._claimed.release()

    def serve(
        self,
        keys: Iterable[Key],
        *,
        headers: Mapping[str, str] | None = None,
        **members: Any,
    ) -> None:
        """Serve these keys from now on, with these headers and further members of the document."""
        document = json.dumps(dump_key_set(KeySet(keys)) | members)
        self.command(mode="ok", document=document, headers=dict(headers or {}))

    def behave(self, mode: str, **settings: Any) -> None:
        """Misbehave from now on as a method of ``Mode`` does."""
        self.command(mode=mode, **settings)

    def down(self) -> None:
        """Refuse connections from now on."""
        self.command(listen=False)

    def up(self) -> None:
        """Accept connections again."""
        self.command(listen_again=True)

    @property
    def requests(self) -> int:
        """How many requests came."""
        return int(self.command()["requests"])

    def command(self, **members: Any) -> dict[str, Any]:
        """Send one command and return the answer."""
        stream = _pipe(self._process.stdin)
        stream.write(json.dumps(members) + "\n")
        stream.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        line = _pipe(self._process.stdout).readline()
        if not line:
            raise RuntimeError("the key server ended")
        answer: dict[str, Any] = json.loads(line)
        return answer


def _pipe(stream: IO[str] | None) -> IO[str]:
    """Return a pipe that is there."""
    assert stream is not None
    return stream


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True, key_cert_sign=signs, crl_sign=signs, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False,
        decipher_only=False,
    )  # fmt: skip


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    *,
    days: int = 1,
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=10))
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def main() -> None:
    """Serve until standard input ends."""
    parser = argparse.ArgumentParser(
        prog="python -m integration.keyserver", description=main.__doc__
    )
    parser.add_argument("--port", type=int, required=True, help="a free one")
    parser.add_argument("--cert", help="PEM certificate; https with it")
    parser.add_argument("--key", help="its PEM key")
    arguments = parser.parse_args()
    context = None
    if arguments.cert:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(arguments.cert, arguments.key)
    server = _Server(arguments.port, context)
    print(json.dumps({"listens": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(server.obey(json.loads(line))), flush=True)
    os._exit(0)  # connections that hang have threads


if __name__ == "__main__":
    main()
