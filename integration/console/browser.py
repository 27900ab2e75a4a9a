"""A console in a process of its own, and a real headless Chromium with a new profile that looks at it."""

from __future__ import annotations

import base64
import contextlib
import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

from selenium import webdriver
from selenium.common.exceptions import (
    NoSuchElementException,
    StaleElementReferenceException,
    WebDriverException,
)
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from integration.review.scene import Scene
from integration.scale import is_nightly
from integration.services.machine import install


@contextlib.contextmanager
def console(scene: Scene) -> Iterator[dict[str, Any]]:
    """Run ``mqauth console`` on the scene's letters, and give what it printed, and its ``pid``."""
    where = (
        ["--topic", scene.place.name]
        if scene.place.on_kafka
        else ["--queue", str(scene.place.name)]
    )
    files = ["--audit-file", str(scene.folder / "consumer.jsonl")]
    with serving(
        scene, scene.write_config(), "--broker", scene.place.broker, *where, *files
    ) as told:
        yield told


@contextlib.contextmanager
def serving(scene: Scene, config: Path, *options: str) -> Iterator[dict[str, Any]]:
    """Run ``mqauth console`` for the scene's reviewer with a configuration and further options."""
    audit = str(scene.folder / "reviewer.jsonl")
    arguments = [
        "-m", "mqauth", "console", "--port", "0", "--json", "--config", str(config), "--key",
        str(scene.write_key()), "--reviewer", "ada", "--audit", audit, "--audit-file", audit,
        "--token-file", str(scene.folder / "tokens"), *options,
    ]  # fmt: skip
    with running(arguments) as told:
        yield told


@contextlib.contextmanager
def running(arguments: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Run a console by Python with these arguments, and stop it in order; give what it printed and its ``pid``."""
    process = subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, text=True
    )
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


_AXE: Any = importlib.import_module("axe_core_python.selenium")  # untyped
_STALE: Final = (StaleElementReferenceException, NoSuchElementException)
PATIENCE: Final = 60.0
WIDE: Final = (1280, 900)
PHONE: Final = (390, 844)
Looks: TypeAlias = Sequence[tuple[str, tuple[int, int]]]
LOOKS: Final[Looks] = (
    ("light", WIDE), ("dark", PHONE), *((("light", PHONE), ("dark", WIDE)) if is_nightly() else ()),
)  # fmt: skip
_FLAGS: Final = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-dev-shm-usage", "--disable-component-update",
)  # fmt: skip


class Browser:
    """A browser looking at one console.

    Args:
        driver: selenium's.
        origin: scheme, host and port of the console.
        pictures: folder for screenshots; ``None`` where nobody wants them.
        looks: the colours and sizes in which pages are looked at.
    """

    def __init__(
        self, driver: Any, origin: str, pictures: Path | None, looks: Looks = LOOKS
    ) -> None:
        self.driver, self.origin, self.pictures, self.looks = (
            driver,
            origin,
            pictures,
            looks,
        )

    def go(self, path: str) -> None:
        """Open a page."""
        self.driver.get(self.origin + path)

    def find(self, css: str) -> WebElement:
        """Wait for an element, and return it."""
        found: WebElement = WebDriverWait(self.driver, PATIENCE).until(
            lambda d: d.find_element(By.CSS_SELECTOR, css)
        )
        return found

    def click(self, css: str) -> None:
        """Click an element, and wait until its page is gone."""
        element = self.find(css)
        before = self.find("html").id
        element.click()
        WebDriverWait(self.driver, PATIENCE).until(
            lambda d: d.find_element(By.TAG_NAME, "html").id != before
        )

    def open_all(self) -> None:
        """Open the acts on all letters that match."""
        self.find("details.all summary").click()

    def press(self, words: str) -> None:
        """Click the button or link with these words."""
        path = f"//main//*[self::button or self::a][starts-with(normalize-space(.), '{words}')]"
        WebDriverWait(self.driver, PATIENCE).until(
            lambda d: d.find_element(By.XPATH, path)
        )
        before = self.find("html").id
        self.driver.find_element(By.XPATH, path).click()
        WebDriverWait(self.driver, PATIENCE).until(
            lambda d: d.find_element(By.TAG_NAME, "html").id != before
        )

    def wait_for(self, words: str) -> None:
        """Wait until the page shows these words."""
        WebDriverWait(self.driver, PATIENCE, ignored_exceptions=_STALE).until(
            lambda d: words in self.text
        )

    def wait_until(self, done: Callable[[], bool]) -> None:
        """Wait until something holds."""
        WebDriverWait(self.driver, PATIENCE, ignored_exceptions=_STALE).until(
            lambda _: done()
        )

    @property
    def text(self) -> str:
        """What a person reads."""
        try:
            return str(self.driver.find_element(By.TAG_NAME, "main").text)
        except WebDriverException as error:
            # Of an element whose page was left in between, Chromium's driver may say only this.
            if "does not belong to the document" in (error.msg or ""):
                raise StaleElementReferenceException(error.msg) from error
            raise

    def look(self, name: str) -> None:
        """Look at the whole page, light and dark, wide and on a phone; refuse any accessibility fault.

        By day each colour and each size is looked at once, at night each pair of them.
        """
        for scheme, size in self.looks:
            label = "" if size == WIDE else "-390"
            self._set(scheme, size)
            if self.pictures is not None:
                self._picture(self.pictures / f"{name}-{scheme}{label}.png")
            faults = _AXE.Axe().run(self.driver)["violations"]
            told = [
                (fault["id"], [node["html"][:120] for node in fault["nodes"][:2]])
                for fault in faults
            ]
            assert not told, f"{name}, {scheme}{label}: {told}"
            overflow = self.driver.execute_script(
                "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
            )
            assert overflow <= 0, f"{name}{label}: the page is {overflow} pixels too wide"
        self._set("light", WIDE)

    def _picture(self, path: Path) -> None:
        """Save a picture of the page to its end."""
        shot = self.driver.execute_cdp_cmd(
            "Page.captureScreenshot", {"captureBeyondViewport": True}
        )
        path.write_bytes(base64.b64decode(shot["data"]))

    def _set(self, scheme: str, size: tuple[int, int]) -> None:
        """Set colours and size."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        metrics = {
            "width": size[0],
            "height": size[1],
            "deviceScaleFactor": 1,
            "mobile": size == PHONE,
        }
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def prepare() -> None:
    """Install what a browser needs here."""
    if not shutil.which("chromium") or not shutil.which("chromedriver"):
        install(
            "chromium",
            "chromium-driver",
            "fonts-dejavu-core",
            why="the console is tested in a real browser",
        )


@contextlib.contextmanager
def browser(
    origin: str, profile: Path, *, looks: Looks = LOOKS, own_certificates: bool = False
) -> Iterator[Browser]:
    """Start Chromium with an empty profile.

    Where MQAUTH_ARTIFACTS names a folder it gets a screenshot of each page that is looked at, by test.

    Args:
        origin: scheme, host and port of the console.
        profile: folder that is not there yet, in the test's own.
        looks: the colours and sizes in which pages are looked at.
        own_certificates: let it take certificates of an authority that it does not know.

    Raises:
        UnavailableError: it is not installed and may not be: says what to install.
    """
    prepare()
    pictures = None
    if wanted := os.environ.get("MQAUTH_ARTIFACTS"):
        pictures = Path(wanted) / "console" / profile.parent.name
        pictures.mkdir(parents=True, exist_ok=True)
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    for flag in (*_FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.accept_insecure_certs = own_certificates
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(
        executable_path=shutil.which("chromedriver") or "chromedriver"
    )
    driver = webdriver.Chrome(options=options, service=service)
    try:
        yield Browser(driver, origin, pictures, looks)
    finally:
        driver.quit()
