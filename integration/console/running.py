"""``mqauth console`` in a process of its own, on a scene's letters."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from integration.review.scene import Scene


@contextlib.contextmanager
def console(scene: Scene) -> Iterator[dict[str, Any]]:
    """Run ``mqauth console`` on the scene's letters, and give what it printed, and its ``pid``."""
    where = ["--topic", scene.place.name] if scene.place.on_kafka else ["--queue", str(scene.place.name)]
    files = ["--audit-file", str(scene.folder / "consumer.jsonl")]
    with serving(scene, scene.write_config(), "--broker", scene.place.broker, *where, *files) as told:
        yield told


@contextlib.contextmanager
def serving(scene: Scene, config: Path, *options: str) -> Iterator[dict[str, Any]]:
    """Run ``mqauth console`` for the scene's reviewer with a configuration and further options."""
    private = scene.key.private
    assert private is not None
    key = scene.folder / "ada.pem"
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    key.chmod(0o600)
    arguments = [
        sys.executable, "-m", "mqauth", "console", "--port", "0", "--json", "--config", str(config), "--key",
        str(key), "--reviewer", "ada", "--audit", str(scene.folder / "reviewer.jsonl"), "--audit-file",
        str(scene.folder / "reviewer.jsonl"), "--token-file", str(scene.folder / "tokens"), *options,
    ]  # fmt: skip
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield {**json.loads(process.stdout.readline()), "pid": process.pid}
        process.terminate()
        process.wait(30)
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
