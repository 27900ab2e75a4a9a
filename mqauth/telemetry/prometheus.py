"""A Prometheus endpoint: OpenTelemetry's exporter, served by the HTTP server of ``prometheus_client``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Final

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import CollectorRegistry, make_wsgi_app, start_http_server

from mqauth._version import __version__
from mqauth.errors import require
from mqauth.telemetry import Telemetry
from mqauth.telemetry.probes import answering

ASKED_WITHIN: Final = 5.0
"""Seconds that a connection may be silent; each has a thread."""


def _bounded(handler: Any) -> Any:
    """Return the server's class of handlers with an end to connections that say nothing."""

    class Bounded(handler):  # type: ignore[misc]
        timeout = ASKED_WITHIN

        def handle(self) -> None:
            with contextlib.suppress(TimeoutError):
                super().handle()

    return Bounded


class Endpoint(AbstractContextManager["Endpoint"]):
    """A ``Telemetry`` whose metrics are served at ``/metrics``, beside ``/live``, ``/ready`` and ``/health``.

    ``meter`` makes further instruments for the same page, as ``AuthorityTelemetry`` does. The probes tell of the
    consumers that ``telemetry.watch_consumer`` was given. Close it, or use it as a context
    manager.

    Args:
        port: the TCP port; 0 takes a free one, which the attribute ``port`` names.
        host: the address to listen at, loopback by default.
        expose: allow an address that is not loopback. The page names destinations and reasons, and asks nobody
            for a password.
        now: as for ``Telemetry``.

    Raises:
        ConfigurationError: the address is not loopback, and ``expose`` is not set.
        OSError: the port is in use.
    """

    def __init__(
        self,
        port: int = 9464,
        *,
        host: str = "127.0.0.1",
        expose: bool = False,
        now: Callable[[], float] | None = None,
    ) -> None:
        require(
            host in ("127.0.0.1", "::1", "localhost") or expose,
            f"metrics are served on loopback unless expose=True, not on {host}",
        )
        registry = CollectorRegistry()
        # A registry of its own keeps the metrics of two endpoints in one process apart.
        self._provider = MeterProvider([PrometheusMetricReader(registry=registry)])
        self._server, self._thread = start_http_server(port, addr=host, registry=registry)
        self._server.RequestHandlerClass = _bounded(self._server.RequestHandlerClass)
        self.port = int(self._server.server_port)
        self.meter = self._provider.get_meter("mqauth", __version__)
        self.telemetry = Telemetry(self.meter, now=now)
        self._server.set_app(answering(self.telemetry.consumers, make_wsgi_app(registry)))

    def close(self) -> None:
        """Stop the server, and wait until its thread has ended."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._provider.shutdown()

    def __exit__(self, *_exception: Any) -> None:
        self.close()
