"""Metrics and spans through the OpenTelemetry API, and a Prometheus endpoint (``telemetry.prometheus``)."""

from mqauth.telemetry.metrics import METRICS, Telemetry
from mqauth.telemetry.tracing import traced

__all__ = ["METRICS", "Telemetry", "traced"]
