"""Metrics and spans through the OpenTelemetry API, and a Prometheus endpoint in ``telemetry.prometheus``."""

from mqauth.telemetry.otel import METRICS, Telemetry, traced

__all__ = ["METRICS", "Telemetry", "traced"]
