"""Run in an environment that has peers: every trial of those that are installed, as JSON on standard output."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any


def found() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each way of using a peer, with its version and its outcomes."""
    for module, ways in (("celery", {"": ()}), ("webhooks", {"": ()}), ("jwt", {"": ()}),
                         ("http", {", defaults": (False,), ", with care": (True,)})):  # fmt: skip
        try:
            peer: Any = importlib.import_module(f"trial_{module}")
        except ModuleNotFoundError:
            continue
        for way, given in ways.items():
            said = {
                "package": peer.PACKAGE,
                "version": version(peer.PACKAGE),
                "outcomes": peer.run(*given),
            }
            yield peer.NAME + way, said


if __name__ == "__main__":
    print(json.dumps(dict(found())))
