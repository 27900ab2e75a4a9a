"""The console in headless Chromium: a review, a hostile letter, slow reading, a broker that goes away."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from selenium.webdriver.common.keys import Keys

from integration.console.browser import LOOKS, Browser, browser, console
from integration.review.scene import KINDS, Scene, scene_at
from integration.scale import is_nightly
from integration.services import Kafka, RabbitMQ
from mqauth.audit.chain import verify_chain
from mqauth.audit.query import read_records
from mqauth.brokers.rabbitmq.channel import LOST
from mqauth.cli.broker import opened
from mqauth.console import Backend, Tokens, application
from mqauth.review import Letter, Session
from mqauth.review.letterbox import BATCH, LetterBox
from mqauth.testing.stage_kafka import KafkaStage
from mqauth.wire.message import Message

EVIL = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
LATE = 12


@pytest.fixture(params=["rabbitmq", *(["kafka"] if is_nightly() else [])])
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    """A scene on each broker, its own queues and topics.

    By day on RabbitMQ: on Kafka a broker that goes away, and the keyboard, have the console read and act.
    """
    with scene_at(request.getfixturevalue(request.param).url, tmp_path) as scene:
        yield scene


def fill(scene: Scene) -> None:
    """Make late letters, letters of a key not known yet, unsigned ones, and a hostile one."""
    for number in range(LATE):
        scene.stage.inject(scene.message("expired", number))
    for number in range(3):
        scene.stage.inject(scene.message("key_unknown", number))
        scene.stage.inject(scene.message("token_missing", number))
    value: Any = EVIL.encode() if isinstance(scene.stage, KafkaStage) else EVIL
    headers = (("x-evil", value), (EVIL, value))
    plain = Message(
        destination=scene.stage.destination, body=EVIL.encode(), headers=headers
    )
    scene.stage.inject(scene.forge.seal(plain, claims={"sub": EVIL, "iss": EVIL}))
    scene.consume(LATE + 7)


@pytest.mark.slow
def test_review_in_a_browser(scene: Scene, tmp_path: Path) -> None:
    """Log in, find the group, read why, judge, redrive, watch, cancel, discard; hostile text runs nothing."""
    fill(scene)
    scene.keys.append(scene.forge.stranger)  # the key arrives
    with (
        console(scene) as told,
        browser(told["url"].rstrip("/"), tmp_path / "profile") as seen,
    ):
        log_in(seen, told["tokens"]["reviewer"])
        find_and_judge(seen)
        done = redrive_and_cancel(seen, scene)
        look_at_hostile(seen)
        discard_rest(seen)
        reckon(seen, 3 + done)
        severe = [
            entry
            for entry in seen.driver.get_log("browser")
            if "Content Security Policy" in entry["message"]
        ]
        assert not severe
    scene.consume(3 + done)
    assert scene.outcomes["accepted"] == 3 + done
    assert {verified.release.sub for verified in scene.handled if verified.release} == {
        "ada"
    }
    assert all(verify_chain(path).intact for path in scene.audits)


def log_in(seen: Browser, token: str) -> None:
    """Log in, after a wrong token."""
    seen.go("/")
    seen.look("login")
    seen.find("#token").send_keys("x" * 43)
    seen.press("Sign in")
    seen.wait_for("not one of this console")
    log_in_as(seen, token)
    seen.wait_for("All dead letters are read")
    seen.look("read")
    seen.go("/")
    seen.wait_for(f"{LATE + 7} dead letters in 4 groups")
    seen.look("groups")


def log_in_as(seen: Browser, token: str) -> None:
    """Log in with a token, and look at the job."""
    seen.go("/login")
    seen.find("#token").send_keys(token)
    seen.press("Sign in")
    seen.go("/job")


def find_and_judge(seen: Browser) -> None:
    """Reach the first group with the keyboard, read why; judge the letters whose key arrived, and redrive them."""
    seen.find("body").send_keys("j")
    seen.driver.switch_to.active_element.send_keys(Keys.ENTER)
    seen.wait_for("The token had expired when the message was received.")
    seen.look("letters")
    seen.click("a.open")
    seen.wait_for("the signer made these claims")
    seen.look("letter")
    seen.go("/letters?reason=key_unknown")
    seen.open_all()
    seen.press("Check again")
    seen.wait_for("3 of 3 dead letters would pass now")
    seen.look("judged")
    seen.press("See the dead letters")
    seen.open_all()
    seen.look("letters-all")
    seen.press("Redrive")
    seen.find("#why").send_keys("the key arrived late")
    seen.look("act")
    seen.press("Preview")
    seen.wait_for("3 of 3 dead letters would be redriven")
    seen.look("rehearsed")
    seen.press("Redrive 3 dead letters")
    # The page is loaded once more when the dead letters that are left are read.
    seen.wait_for("See what is left")
    assert "3 of 3 dead letters redriven" in seen.text
    seen.look("redriven")


def redrive_and_cancel(seen: Browser, scene: Scene) -> int:
    """Redrive slowly under a waiver, watch, cancel in the middle: page, queue and audit tell the same number."""
    seen.go("/act/redrive?reason=expired")
    seen.find("#why").send_keys("the clock was skewed")
    # All that are redriven need this waiver, so it is ticked.
    assert seen.find("input[name=waive][value=expired]").is_selected()
    # So slow that there is something left to cancel, however long the pictures take.
    seen.find("#rate").send_keys("0.2")
    seen.press("Preview")
    seen.wait_for(f"{LATE} of {LATE} dead letters would be redriven")
    seen.press(f"Redrive {LATE} dead letters")
    seen.wait_for(f"2 of {LATE} dead letters")
    seen.look("progress")
    seen.press("Cancel")
    seen.wait_for("See what is left")
    found = re.search(r"(\d+) of (\d+) dead letters redriven, then cancelled", seen.text)
    assert found is not None
    done = int(found[1])
    assert 2 <= done < LATE
    assert (
        f"selected\n{LATE}\ndone\n{done}\nfailed\n0\ngone\n0\nleft\n{LATE - done}"
        in seen.text
    )
    seen.look("cancelled")
    acts = Counter(
        (record["verdict"], record["reason"])
        for record in read_records([scene.audits[1]])
    )
    assert acts[("redriven", "expired")] == done
    seen.go("/letters?reason=expired")
    seen.wait_for(f"{LATE - done} dead letter")
    return done


def look_at_hostile(seen: Browser) -> None:
    """A letter whose body, header and claims are HTML and script shows as text, in every form."""
    seen.go("/letters?reason=issuer_untrusted")
    seen.click("a.open")
    for form in ("text", "json", "hex"):
        seen.go(
            seen.driver.current_url.removeprefix(seen.origin).partition("?")[0]
            + f"?view={form}"
        )
        assert EVIL in seen.text
        assert seen.driver.title != "owned"
        assert not seen.driver.execute_script(
            "return document.querySelectorAll('main img, main script').length"
        )
    seen.look("hostile")


def discard_rest(seen: Browser) -> None:
    """Discard everything that is left, with a reason."""
    seen.go("/act/discard")
    seen.find("#why").send_keys(EVIL)
    seen.press("Preview")
    seen.wait_for("would be discarded for good")
    seen.press("Discard")
    seen.wait_for("See what is left")
    assert f"Reason: {EVIL}. Each dead letter is in the audit log." in seen.text
    seen.go("/")
    seen.wait_for("No dead letters")
    seen.look("empty")


def reckon(seen: Browser, redriven: int) -> None:
    """The account of audit and queue adds up."""
    seen.go("/account")
    seen.press("Recalculate")
    seen.wait_for("Done.")
    seen.go("/account")
    seen.wait_for("adds up")
    assert (
        f"{LATE + 7} rejected = 0 open + {redriven} redriven + {LATE + 7 - redriven} discarded"
        in seen.text
    )
    seen.look("account")
    seen.go("/nothing")
    seen.look("error")


pytestmark = pytest.mark.slow

MANY = (BATCH // len(KINDS) + 5) * len(KINDS)
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
        app = application(
            backend, hosts=[host], reviewer="ada", tokens=Tokens({"reviewer": TOKEN})
        )
        server = uvicorn.Server(
            uvicorn.Config(app, lifespan="off", log_config=None, ws="none")
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://{host}"
        finally:
            server.should_exit = True
            thread.join()


def test_first_page_grows(rabbitmq: RabbitMQ, tmp_path: Path) -> None:
    """After the first batch the groups are there, marked as not all; the open page becomes whole by itself."""
    with scene_at(rabbitmq.url, tmp_path) as scene:
        scene.fill(MANY // len(KINDS))
        _grows(scene, tmp_path)


def _grows(scene: Scene, tmp_path: Path) -> None:
    with opened(scene.place) as found:
        gate = Gate(found.box)
        backend = Backend(Session(gate, found.run))
        with served(backend) as url, browser(url, tmp_path / "profile") as seen:
            backend.read("ada")
            log_in_as(seen, TOKEN)
            seen.go("/")
            seen.wait_for(f"{BATCH} dead letters in 8 groups")
            seen.wait_for(
                f"Not all yet: reading goes on, {BATCH} of about {MANY} dead letters."
            )
            seen.look("growing")
            gate.open.set()
            seen.wait_for(f"{MANY} dead letters in 8 groups")
            assert "Not all" not in seen.text
        backend.close()


FEW = 3


@pytest.fixture(params=["rabbitmq", "kafka"])
def own(request: pytest.FixtureRequest) -> RabbitMQ | Kafka:
    """A broker that the test may stop."""
    broker: RabbitMQ | Kafka = request.getfixturevalue(f"own_{request.param}")
    return broker


@pytest.fixture
def losing(own: RabbitMQ | Kafka, tmp_path: Path) -> Iterator[Scene]:
    """Letters on that broker."""
    # A connection of the stage's died with the broker.
    with contextlib.suppress(*LOST), scene_at(own.url, tmp_path) as found:
        for number in range(FEW):
            found.stage.inject(found.message("expired", number))
        found.consume(FEW)
        yield found
        own.start()


@pytest.mark.slow
def test_broker_gone_and_back(
    own: RabbitMQ | Kafka, losing: Scene, tmp_path: Path
) -> None:
    """Stopped: the page says since when, and shows what was read before; back: read anew, and acted on."""
    # The pages are the same on Kafka: by day they are looked at on RabbitMQ.
    looks = LOOKS if is_nightly() or isinstance(own, RabbitMQ) else ()
    with (
        console(losing) as told,
        browser(told["url"].rstrip("/"), tmp_path / "profile", looks=looks) as seen,
    ):
        log_in_as(seen, told["tokens"]["reviewer"])
        seen.wait_for("All dead letters are read")
        own.control.stop()
        seen.go("/")
        seen.press("Refresh")
        seen.wait_for("Cannot reach the broker")
        seen.look("lost")
        seen.go("/")
        seen.wait_for(f"{FEW} dead letters in 1 group")
        seen.look("lost-groups")
        own.start()
        seen.go("/job")
        seen.wait_for("All dead letters are read")
        seen.go("/act/discard")
        seen.find("#why").send_keys("the broker is back")
        seen.press("Preview")
        seen.wait_for(f"{FEW} of {FEW} dead letters would be discarded for good")
        seen.press("Discard")
        seen.wait_for(f"{FEW} of {FEW} dead letters discarded")
        seen.go("/")
        seen.wait_for("No dead letters")
