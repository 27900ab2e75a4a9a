"""The commands of the how-to pages, as printed, on a real queue of dead letters."""

from __future__ import annotations

import io
import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.documentation import blocks
from integration.review.scene import Scene, scene_at
from integration.services import RabbitMQ
from mqauth.cli import main
from mqauth.keystore import Keystore
from mqauth.wire import json_form
from mqauth.wire.message import Message

PAGES = (
    "docs/review.md",
    "docs/how-to/respond-to-a-stolen-key.md", "docs/how-to/run-a-fleet-in-several-languages.md",
    "docs/troubleshooting.md",
)  # fmt: skip
REVIEW = """
[broker]
url_env = "BROKER_URL"
queue = "{queue}"

[review]
key = "review-keys"
audit = "reviewer.jsonl"
authority = "https://review.example"
reviewer = "ada"
"""


@pytest.fixture
def scene(
    rabbitmq: RabbitMQ, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Scene]:
    """Dead letters of each kind, and of a revoked key; the reviewer's folder is the working directory."""
    with scene_at(rabbitmq.url, tmp_path) as found:
        _fill(found, tmp_path)
        monkeypatch.setenv("BROKER_URL", rabbitmq.url)
        monkeypatch.chdir(tmp_path)
        yield found


def _fill(found: Scene, tmp_path: Path) -> None:
    stage = found.stage
    found.fill(1)
    keys = Keystore(folder=tmp_path / "review-keys")
    keys.create(subjects=["ada"])
    found.key = keys.ring().keys[0].key
    # The key of the unknown letters has arrived by now.
    found.keys.append(found.forge.stranger)
    config = found.write_config()
    config.write_text(config.read_text() + REVIEW.format(queue=stage.dead))
    Keystore(folder=tmp_path / "keys").create(subjects=["orders-api"])
    (tmp_path / "audit.jsonl").symlink_to(tmp_path / "consumer.jsonl")
    (tmp_path / "reviewer.jsonl").touch(0o600)
    message = found.forge.seal(Message(destination=stage.destination, body=b"mine"))
    (tmp_path / "message.json").write_text(json.dumps(json_form.to_form(message)))


def commands(page: str) -> list[str]:
    """Return the commands of a page's blocks on review."""
    found = [block.text for block in blocks(page) if block.mark == "review"]
    return [line for text in found for line in text.strip().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_page_can_be_followed(
    page: str,
    scene: Scene,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each command ends well, with an id of a letter and a key that are there, and *yes* to what it asks."""
    assert commands(page)
    with scene.session() as session:
        (letter, *_) = scene.look(session, lambda index: [id for id, _ in index.ids()])
    for command in commands(page):
        known = {"KID": scene.forge.key.kid, "8fJ2Lq0aVb3x": letter[:12]}
        words = [known.get(word, word) for word in shlex.split(command)]
        if "<" in words:
            words, (path,) = words[: words.index("<")], words[words.index("<") + 1 :]
            monkeypatch.setattr(
                sys, "stdin", io.TextIOWrapper(io.BytesIO(Path(path).read_bytes()))
            )
        if {"redrive", "discard"} & set(words) and "--dry-run" not in words:
            words.append("--yes")
        code = main(words[1:])
        assert code == 0, (command, capsys.readouterr().err)


def test_no_page_is_left_out() -> None:
    """Every page with such a block is one of these."""
    assert all(commands(page) for page in PAGES)
    root = Path(__file__).parents[2]
    texts = {
        str(path.relative_to(root)): path.read_text()
        for path in (root / "docs").rglob("*.md")
    }
    marked = {name for name, text in texts.items() if "```sh review" in text}
    assert marked == set(PAGES)
