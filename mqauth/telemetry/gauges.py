"""What all gauges have in common: the functions that read them, and how they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from mqauth.logs import emit

Gauge = tuple[dict[str, str], Callable[[], float | None]]
"""The labels of a gauge, and the function that reads it."""


def gauges(meter: Meter, known: Mapping[str, tuple[str, str]]) -> dict[str, list[Gauge]]:
    """Make observable gauges, and return the list of each, which is empty at first.

    Args:
        meter: makes them.
        known: unit and description by name.
    """
    made: dict[str, list[Gauge]] = {name: [] for name in known}
    for name, (unit, text) in known.items():
        reader = partial(_observations, made[name])
        meter.create_observable_gauge(name, callbacks=[reader], unit=unit, description=text)
    return made


def _observations(found: list[Gauge], _options: CallbackOptions) -> Iterator[Observation]:
    """Yield the values of all gauges of one name; OpenTelemetry calls it when metrics are collected."""
    for labels, read in found:
        # An exception here would end the generator, and with it the gauges that follow.
        try:
            value = read()
        except Exception as error:
            emit("telemetry.gauge_failed", "a gauge could not be read: %s", type(error).__name__)
            continue
        if value is not None:
            yield Observation(value, labels)
