"""Prometheus, from the distribution's packages: scrapes what it is told to, and evaluates rules."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from integration.services.handle import Service
from integration.services.local import LocalServer
from integration.services.machine import LOOPBACK, Port, install
from integration.services.probes import NotReadyError


@dataclass(frozen=True, kw_only=True)
class Prometheus(Service):
    """A running Prometheus."""

    @staticmethod
    def ask(url: str, timeout: float) -> str:
        """Return the version it names."""
        return str(_get(url, "status/buildinfo", {}, timeout)["version"])

    @classmethod
    def launch(cls, *, targets: Sequence[str], rules: str) -> Prometheus:
        """Start one that scrapes and evaluates every second.

        Args:
            targets: `host:port` of each metrics endpoint.
            rules: a file of alert rules, as text.
        """
        program = _program()
        port, folder = Port(), Path(tempfile.mkdtemp(prefix="mqauth-prometheus-"))
        (folder / "rules.yml").write_text(rules)
        (folder / "prometheus.yml").write_text(
            _CONFIG % ", ".join(f'"{target}"' for target in targets)
        )
        server = LocalServer(
            origin=program,
            commands=[
                [program, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
                 f"--web.listen-address={LOOPBACK}:{port.number}"]
            ],
            env=os.environ,
            folder=folder,
            ports=[port],
        )  # fmt: skip
        server.start()
        return cls.ready(f"http://{LOOPBACK}:{port.number}", server)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the instant vector of a PromQL expression."""
        found: list[dict[str, Any]] = _get(
            self.url, "query", {"query": expression}, 10.0
        )["result"]
        return found

    def firing(self) -> dict[str, dict[str, str]]:
        """Return the labels of every alert that fires, by its name."""
        alerts = _get(self.url, "alerts", {}, 10.0)["alerts"]
        return {
            alert["labels"]["alertname"]: alert["labels"]
            for alert in alerts
            if alert["state"] == "firing"
        }


_CONFIG = """\
global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}
rule_files: [rules.yml]
scrape_configs:
  - job_name: mqauth
    static_configs: [{targets: [%s]}]
"""
_STARTING = 503


def prepare() -> None:
    """Install what a Prometheus needs here."""
    _program()


def _program() -> str:
    found = shutil.which("prometheus")
    if found is None:
        install(
            "prometheus", why="Prometheus, for the dashboard's and alert rules' queries"
        )
    return found or "prometheus"


def _get(url: str, path: str, parameters: Mapping[str, str], timeout: float) -> Any:
    """Return the data of an answer of the HTTP API."""
    query = urllib.parse.urlencode(parameters)
    try:
        with urllib.request.urlopen(  # noqa: S310
            f"{url}/api/v1/{path}?{query}", timeout=timeout
        ) as answer:
            return json.loads(answer.read())["data"]
    except urllib.error.HTTPError as refused:
        if refused.code == _STARTING:
            raise NotReadyError(f"{url}: {refused}") from refused
        raise ValueError(
            f"{path}: {refused.read().decode(errors='replace')}"
        ) from refused
    except OSError as silent:
        raise NotReadyError(f"{url}: {silent}") from silent
