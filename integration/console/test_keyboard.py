"""A review with the keyboard alone, on a console of two queues: one of RabbitMQ and one topic of Kafka."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from integration.console.browser import Browser, browser, serving
from integration.review.scene import CONFIG, Scene, scene_at
from integration.services import Kafka, RabbitMQ
from mqauth.audit.query import read_records

EACH = 3
REACH = 250
"""Stops of the Tab key within which everything of a page is found."""
BROKERS = """
[brokers.shop]
url_env = "SHOP_URL"
queue = "{queue}"
[brokers.stream]
url = "{stream}"
topic = "{topic}"
"""


class Keyboard:
    """Somebody with a keyboard and no mouse.

    Args:
        seen: the browser.
    """

    def __init__(self, seen: Browser) -> None:
        self.seen = seen

    def type(self, *keys: str) -> None:
        """Press keys."""
        for key in keys:
            ActionChains(self.seen.driver).send_keys(key).perform()

    def reach(self, words: str, *, back: bool = False) -> None:
        """Press Tab until what has the focus says these words; the focus can be seen at each stop."""
        for _ in range(REACH):
            chain = ActionChains(self.seen.driver)
            chain = chain.key_down(Keys.SHIFT) if back else chain
            chain.send_keys(Keys.TAB).key_up(Keys.SHIFT).perform()
            name, outlined = self.seen.driver.execute_script(_FOCUS)
            assert outlined, f"nobody sees that {name!r} has the focus"
            if name.startswith(words):
                return
        raise AssertionError(
            f"the Tab key does not reach {words!r} on {self.seen.driver.current_url}"
        )

    def press(self, words: str, then: str, *, back: bool = False) -> None:
        """Reach a link or button, press Enter, and wait for the words of the next page."""
        self.reach(words, back=back)
        self.type(Keys.ENTER)
        self.seen.wait_for(then)


_FOCUS = """
const found = document.activeElement, style = getComputedStyle(found);
const label = found.getAttribute("aria-label") || found.labels?.[0]?.innerText;
const name = label || found.innerText || found.value || "";
return [name.trim(), found === document.body || found.id === "main" || style.outlineStyle !== "none"];
"""


@pytest.fixture
def scenes(
    rabbitmq: RabbitMQ, kafka: Kafka, tmp_path: Path
) -> Iterator[tuple[Scene, Scene]]:
    """The same service's letters on both brokers, under the same keys."""
    folders = tmp_path / "shop", tmp_path / "stream"
    with (
        scene_at(rabbitmq.url, folders[0]) as shop,
        scene_at(kafka.url, folders[1]) as stream,
    ):
        stream.forge, stream.keys, stream.key, shop.scope = (
            shop.forge,
            shop.keys,
            shop.key,
            stream.scope,
        )
        for scene in (shop, stream):
            scene.folder.mkdir()
            for number in range(EACH):
                scene.stage.inject(scene.message("expired", number))
                scene.stage.inject(scene.message("token_missing", number))
            scene.consume(2 * EACH)
        yield shop, stream


def config_of(shop: Scene, stream: Scene) -> Path:
    """Write one configuration for both brokers."""
    path = shop.write_config()
    own = CONFIG.format(
        destination=f'{shop.stage.destination}", "{stream.stage.destination}',
        scope=shop.scope,
    )
    tables = BROKERS.format(
        queue=shop.place.name, stream=stream.place.broker, topic=stream.place.name
    )
    path.write_text(own + tables)
    return path


@pytest.mark.slow
def test_a_keyboard_does_everything(
    scenes: tuple[Scene, Scene], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From signing in to signing out, on both brokers, no step needs a mouse, and the focus is always seen."""
    shop, stream = scenes
    monkeypatch.setenv("SHOP_URL", shop.place.broker)
    files = [
        option
        for scene in scenes
        for option in ("--audit-file", str(scene.folder / "consumer.jsonl"))
    ]
    with (
        serving(shop, config_of(shop, stream), *files) as told,
        browser(told["url"].rstrip("/"), tmp_path / "profile") as seen,
    ):
        keys = Keyboard(seen)
        enter(keys, told["tokens"]["reviewer"])
        find(keys)
        redrive_two(keys)
        read_one(keys)
        discard_rest(keys)
        balance(keys)
        other_queue(keys)
        keys.press("Sign out", "Token", back=True)
        assert not seen.driver.get_cookies()
    acts = [
        record["verdict"] for record in read_records([shop.folder / "reviewer.jsonl"])
    ]
    assert acts == ["redriven"] * 2 + ["discarded"] * (2 * EACH - 2)
    shop.consume(2)
    assert shop.outcomes["accepted"] == 2


def enter(keys: Keyboard, token: str) -> None:
    """Sign in: the field has the focus. The first page lists both queues."""
    keys.seen.go("/login")
    keys.type(token, Keys.ENTER)
    keys.seen.wait_for("Queues and topics")
    keys.seen.look("places")
    keys.type("j", Keys.ENTER)
    keys.seen.wait_for(f"{2 * EACH} dead letters in 2 groups")


def find(keys: Keyboard) -> None:
    """Search and sort the groups, and open the one that is left."""
    keys.type("/", "expir")
    keys.reach("Sort by")
    keys.type(Keys.DOWN)
    keys.press("Show", "expired")
    assert (
        "token missing" not in keys.seen.driver.find_element("css selector", "table").text
    )
    assert "sort=" in keys.seen.driver.current_url
    keys.seen.look("searched")
    keys.type("j", Keys.ENTER)
    keys.seen.wait_for(f"{EACH} dead letters")


def redrive_two(keys: Keyboard) -> None:
    """Choose two rows, redrive them with a waiver, and watch the job."""
    keys.type("j", "x", "j", "x")
    assert keys.seen.find("#count").text == "2 chosen:"
    keys.seen.look("chosen")
    keys.press("Redrive", "Redrive 2 dead letters", back=True)
    keys.type("the clock was skewed")
    keys.reach("expired")
    assert keys.seen.find("input[name=waive][value=expired]").is_selected()
    keys.seen.look("act-waived")
    keys.press("Preview", "2 of 2 dead letters would be redriven")
    keys.press("Redrive 2 dead letters", "See what is left")
    keys.seen.wait_for("2 of 2 dead letters redriven")


def read_one(keys: Keyboard) -> None:
    """Open a letter, go to the next and back, see its body as hex and its audit record."""
    keys.type("l")
    keys.seen.wait_for(f"{2 * EACH - 2} dead letters")
    keys.type("j", Keys.ENTER)
    keys.seen.wait_for("What the dead letter says")
    first = keys.seen.driver.current_url
    keys.type("n")
    keys.seen.wait_until(lambda: keys.seen.driver.current_url != first)
    keys.type("p")
    keys.seen.wait_until(lambda: keys.seen.driver.current_url == first)
    keys.press("hex", "00000000")
    keys.seen.look("letter-hex")
    keys.press("Audit record", "Each record from the beginning of the chain")
    keys.seen.look("audit")
    keys.press("Back to the dead letter", "What the dead letter says", back=True)


def discard_rest(keys: Keyboard) -> None:
    """Open the acts on all that match, go back once, then discard everything."""
    keys.type("l")
    keys.seen.wait_for("that match")
    for answer in ("Cancel", "Preview"):
        keys.reach(f"All {2 * EACH - 2} dead letters")
        keys.type(Keys.ENTER)
        keys.press("Discard", "removed for good")
        if answer == "Cancel":
            keys.seen.look("act-discard")
            keys.press("Cancel", "that match")
    keys.type("unsigned")
    keys.press("Preview", "would be discarded for good")
    keys.seen.look("rehearsed-discard")
    keys.press("Discard", "See what is left")
    keys.type("g")
    keys.seen.wait_for("No dead letters")


def balance(keys: Keyboard) -> None:
    """Recalculate the balance, which counts the letters of both queues."""
    keys.type("b")
    keys.seen.wait_for("Not calculated yet")
    keys.seen.look("account-none")
    keys.press("Recalculate", "Done.", back=True)
    keys.type("b")
    keys.seen.wait_for("adds up")
    rejected, left = 4 * EACH, 2 * EACH
    assert (
        f"{rejected} rejected = {left} open + 2 redriven + {left - 2} discarded"
        in keys.seen.text
    )
    keys.seen.look("account-both")


def other_queue(keys: Keyboard) -> None:
    """Change to the other broker's topic: its letters are untouched. Refresh it, and choose all of a page."""
    keys.type("q")
    keys.seen.wait_for("Queues and topics")
    keys.type("j", "j", Keys.ENTER)
    keys.seen.wait_for(f"{2 * EACH} dead letters in 2 groups")
    keys.press("Refresh", "All dead letters are read", back=True)
    keys.type("l")
    keys.seen.wait_for("that match")
    keys.reach("Choose all")
    keys.type(Keys.SPACE)
    assert keys.seen.find("#count").text == f"{2 * EACH} chosen:"
    keys.press("Check again", f"0 of {2 * EACH} dead letters would pass now", back=True)
    keys.seen.look("judged-none")
