"""A Prometheus endpoint: OpenTelemetry's exporter, served by the HTTP server of ``prometheus_client``.

Beside it stands what an orchestrator asks a process: does it live, is it ready, how is it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, cast

from mqauth._version import __version__
from mqauth.delivery.health import Health, State
from mqauth.errors import needs_extra, require
from mqauth.telemetry import Telemetry
from mqauth.threads import Closing

with needs_extra("prometheus"):
    from opentelemetry.exporter.prometheus import PrometheusMetricReader
    from opentelemetry.sdk.metrics import MeterProvider
    from prometheus_client import CollectorRegistry, make_wsgi_app, start_http_server

LIVE, READY, HEALTH = "/live", "/ready", "/health"


def _answering(
    consumers: Mapping[str, Callable[[], Health]], others: Callable[..., Iterable[bytes]]
) -> Callable[..., Iterable[bytes]]:
    """Return a WSGI application that answers the probes, and hands every other path on.

    No probe asks a broker, an issuer, a store or a disk: a restart cures none of them.

    Args:
        consumers: ``health`` of each consumer by its name; looked at when a probe asks.
        others: answers every other path.
    """

    def application(
        environ: Mapping[str, Any], start: Callable[..., Any]
    ) -> Iterable[bytes]:
        path = str(environ.get("PATH_INFO"))
        if path not in (LIVE, READY, HEALTH):
            return others(environ, start)
        looked = {name: _looked(health) for name, health in list(consumers.items())}
        if path == LIVE:
            told: dict[str, Any] = {
                "silent": {
                    name: each.silent for name, each in looked.items() if each.running
                }
            }
            # Seconds without a move of its loop or poll thread after which a process is taken for dead.
            fine = all(seconds < 300.0 for seconds in told["silent"].values())
        elif path == READY:
            told = {"running": {name: each.running for name, each in looked.items()}}
            fine = bool(looked) and all(told["running"].values())
        else:
            states = {each.state for each in looked.values()}
            state = next(
                (
                    state
                    for state in (State.STOPPED, State.STALLED, State.DEGRADED, State.OK)
                    if state in states
                ),
                State.OK,
            )
            told = {
                "state": state.value,
                "consumers": {name: each.as_dict() for name, each in looked.items()},
            }
            fine = state is not State.STOPPED
        body = json.dumps(told, default=str).encode()
        start(
            "200 OK" if fine else "503 Service Unavailable",
            [
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(body))),
                ("Cache-Control", "no-store"),
            ],
        )
        return [body]

    return application


def _looked(health: Callable[[], Health]) -> Health:
    """Look at a consumer, again where it changed at that moment: it runs on another thread."""
    for _ in range(3):
        with contextlib.suppress(RuntimeError):
            return health()
    return health()


ASKED_WITHIN: Final = 5.0
"""Seconds that a connection may be silent; each has a thread."""


class Endpoint(Closing):
    """A ``Telemetry`` whose metrics are served at ``/metrics``, beside ``/live``, ``/ready`` and ``/health``.

    ``meter`` makes further instruments for the same page, as ``AuthorityTelemetry`` does. The probes tell of the
    consumers that ``telemetry.watch_consumer`` was given. Close it, or use it as a context manager.

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

        # The server's class of handlers, with an end to connections that say nothing.
        class Bounded(cast(Any, self._server.RequestHandlerClass)):  # type: ignore[misc]
            timeout = ASKED_WITHIN

            def handle(self) -> None:
                with contextlib.suppress(TimeoutError):
                    super().handle()

        self._server.RequestHandlerClass = Bounded
        self.port = int(self._server.server_port)
        self.meter = self._provider.get_meter("mqauth", __version__)
        self.telemetry = Telemetry(self.meter, now=now)
        self._server.set_app(
            _answering(self.telemetry.consumers, make_wsgi_app(registry))
        )

    def close(self) -> None:
        """Stop the server, and wait until its thread has ended."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._provider.shutdown()
