"""The first page in Chromium while letters are read: there at once, marked as not whole, and growing by itself."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import uvicorn

from integration.console.browser import browser
from integration.console.test_console import log_in_as, pictures_of
from integration.review.scene import Scene
from integration.review.survey import fill_rabbitmq, letters_of
from integration.services import RabbitMQ
from mqauth.cli.broker import opened
from mqauth.console import Backend, Tokens, application
from mqauth.review import Letter, Session
from mqauth.review.letterbox import BATCH, LetterBox
from mqauth.testing.stage_rabbitmq import RabbitMQStage
from mqauth.wire.message import Message

pytestmark = pytest.mark.slow

LETTERS = BATCH + 50
TOKEN = "r" * 40


class Gate:
    """A letter box that answers once, and again when it is opened.

    Args:
        box: the real one.
    """

    def __init__(self, box: LetterBox) -> None:
        self.name, self.destination = box.name, box.destination
        self.open = threading.Event()
        self._box, self._free = box, 1

    @property
    def expected(self) -> int:
        """As the broker says."""
        return self._box.expected

    async def browse(self, limit: int, /) -> Sequence[Letter]:
        """Answer."""
        self._free -= 1
        if self._free < 0:
            await asyncio.to_thread(self.open.wait)
        found = self._box.browse(limit)
        return found if isinstance(found, Sequence) else await found

    def publish(self, message: Message, /) -> None:
        """Refuse: nothing is sent here."""
        raise NotImplementedError

    def remove(self, letter: Letter, /) -> None:
        """Refuse: nothing is removed here."""
        raise NotImplementedError


@contextlib.contextmanager
def served(backend: Backend) -> Iterator[str]:
    """Serve a backend on a free port of loopback, and give its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host = f"127.0.0.1:{listener.getsockname()[1]}"
        app = application(backend, hosts=[host], reviewer="ada", tokens=Tokens({"reviewer": TOKEN}))
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None, ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://{host}"
        finally:
            server.should_exit = True
            thread.join()


def test_first_page_grows(rabbitmq: RabbitMQ, tmp_path: Path) -> None:
    """After the first batch the groups are there, marked as not all; the open page becomes whole by itself."""
    stage = RabbitMQStage(rabbitmq.url)
    scene = Scene(stage, rabbitmq.url, tmp_path)
    asyncio.run(fill_rabbitmq(scene, letters_of(scene, LETTERS)))
    with opened(scene.place) as found:
        gate = Gate(found.box)
        backend = Backend(Session(gate, found.run))
        with served(backend) as url, browser(url, tmp_path / "profile", pictures_of(scene)) as seen:
            backend.read("ada")
            log_in_as(seen, TOKEN)
            seen.go("/")
            seen.wait_for(f"{BATCH} dead letters in 8 groups")
            seen.wait_for(f"Not all yet: reading goes on, {BATCH} of about {LETTERS} dead letters.")
            seen.look("growing")
            gate.open.set()
            seen.wait_for(f"{LETTERS} dead letters in 8 groups")
            assert "Not all" not in seen.text
        backend.close()
    stage.close()
