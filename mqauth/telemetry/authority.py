"""Metrics of an authority: what it answers, whom it gives identities, and how its key and its cut-offs stand.

Labels are bounded, whoever asks: answers and refusals are closed lists, credentials are those that are
configured, and identities beyond a limit count as ``other``. No kid, address or claim is ever a label.
``gauges`` makes those of consumers, too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Final

from opentelemetry import metrics

from mqauth._version import __version__
from mqauth.logs import emit

Gauge = tuple[dict[str, str], Callable[[], float | None]]
"""The labels of a gauge, and the function that reads it."""


def gauges(
    meter: metrics.Meter, known: Mapping[str, tuple[str, str]]
) -> Callable[..., None]:
    """Make observable gauges; return a function that takes the name of one, what reads its value, and its labels.

    Args:
        meter: makes them.
        known: unit and description by name.
    """
    made: dict[str, list[Gauge]] = {name: [] for name in known}
    for name, (unit, text) in known.items():
        meter.create_observable_gauge(
            name,
            callbacks=[partial(_observations, made[name])],
            unit=unit,
            description=text,
        )

    def watch(name: str, read: Callable[[], float | None], **labels: str) -> None:
        made[name].append((labels, read))

    return watch


def _observations(
    gauges: list[Gauge], _options: metrics.CallbackOptions
) -> Iterator[metrics.Observation]:
    """Yield the values of all gauges of one name; OpenTelemetry calls it when metrics are collected."""
    for labels, read in gauges:
        # An exception here would end the generator, and with it the gauges that follow.
        try:
            value = read()
        except Exception as error:
            emit(
                "telemetry.gauge_failed",
                "a gauge could not be read: %s",
                type(error).__name__,
            )
            continue
        if value is not None:
            yield metrics.Observation(value, labels)


MAX_SUBJECTS: Final = 100
"""Identities that have a label of their own; a grant more costs a series at the server that collects them."""
_GAUGES: Final = {
    "mqauth.authority.cutoffs": ("{subject}", "Subjects that are cut off"),
    "mqauth.authority.key.age": ("s", "How long the key of an authority has signed"),
}
AUTHORITY_METRICS: Final = (
    "mqauth.authority.requests",
    "mqauth.authority.identities",
    "mqauth.authority.duration",
    *_GAUGES,
)


class AuthorityTelemetry:
    """Counts the answers of an authority, and measures its key and its cut-offs.

    Pass ``observe`` to ``AuthorityServer(observers=[...])``; ``mqauth authority serve --metrics-port`` does.

    Args:
        meter: by default a meter of the global provider.
    """

    def __init__(self, meter: metrics.Meter | None = None) -> None:
        meter = meter or metrics.get_meter("mqauth", __version__)
        self._lock = threading.Lock()
        self._subjects: set[str] = set()
        self._requests = meter.create_counter(
            "mqauth.authority.requests",
            unit="{request}",
            description="Answers of an authority",
        )
        self._identities = meter.create_counter(
            "mqauth.authority.identities",
            unit="{identity}",
            description="Identities that were given",
        )
        self._duration = meter.create_histogram(
            "mqauth.authority.duration",
            unit="s",
            description="Time of an authority's answer",
            explicit_bucket_boundaries_advisory=(
                0.001,
                0.0025,
                0.005,
                0.01,
                0.025,
                0.05,
                0.1,
                0.25,
                0.5,
                1.0,
                2.5,
                5.0,
                10.0,
            ),
        )
        self._watch = gauges(meter, _GAUGES)

    def observe(
        self, *, answer: str, refusal: str, credential: str, subject: str, seconds: float
    ) -> None:
        """Count one answer of an authority; it says what these are."""
        self._requests.add(
            1, {"answer": answer, "refusal": refusal, "credential": credential}
        )
        self._duration.record(seconds, {"answer": answer})
        if subject:
            with self._lock:
                if len(self._subjects) < MAX_SUBJECTS:
                    self._subjects.add(subject)
                label = subject if subject in self._subjects else "other"
            self._identities.add(1, {"subject": label, "credential": credential})

    def watch(
        self,
        trust_domain: str,
        *,
        cutoffs: Callable[[], float | None],
        key_age: Callable[[], float | None],
    ) -> None:
        """Measure how many subjects are cut off, and for how long the present key has signed.

        Args:
            trust_domain: the label ``trust_domain``.
            cutoffs: returns the number of subjects.
            key_age: returns seconds, ``None`` where no key signs.
        """
        self._watch("mqauth.authority.cutoffs", cutoffs, trust_domain=trust_domain)
        self._watch("mqauth.authority.key.age", key_age, trust_domain=trust_domain)
