"""A Prometheus endpoint: OpenTelemetry's own exporter on an HTTP server of ``prometheus_client``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import CollectorRegistry, start_http_server

from mqauth._version import __version__
from mqauth.errors import ConfigurationError
from mqauth.telemetry.otel import Telemetry

_LOOPBACK = frozenset(("127.0.0.1", "::1", "localhost"))


class Endpoint:
    """``Telemetry`` whose metrics are served at ``/metrics``; close it, or use it as a context manager.

    Args:
        port: TCP port; 0 takes a free one, see ``port``.
        host: loopback by default; another address must be asked for with ``expose=True``, since the page
            names destinations and reasons.
        expose: allow an address that is not loopback.
        now: as for ``Telemetry``.

    Raises:
        ConfigurationError: an address that is not loopback, without ``expose``.
        OSError: the port is taken.
    """

    def __init__(
        self,
        port: int = 9464,
        *,
        host: str = "127.0.0.1",
        expose: bool = False,
        now: Callable[[], float] | None = None,
    ) -> None:
        if host not in _LOOPBACK and not expose:
            raise ConfigurationError("metrics are served on loopback unless expose=True")
        registry = CollectorRegistry()
        self._reader = PrometheusMetricReader(registry=registry)
        self._provider = MeterProvider([self._reader])
        self._server, self._thread = start_http_server(port, addr=host, registry=registry)
        self.port = int(self._server.server_port)
        self.telemetry = Telemetry(self._provider.get_meter("mqauth", __version__), now=now)

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._provider.shutdown()

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_exception: Any) -> None:
        self.close()
