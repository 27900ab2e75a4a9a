"""The documentation does what it says: code runs, tables are the enums, commands and links exist."""

from __future__ import annotations

import ast
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer.main
from hypothesis import given
from hypothesis import strategies as st

from integration.documentation import ROOT, Block, Reader, blocks, matches, pages
from mqauth import Cause, Message, Reason, Rejection, Verifier
from mqauth.cli.app import app
from mqauth.testing import FakeClock, Forge
from mqauth.testing.batchattacks import PROOF_ATTACKS
from mqauth.testing.batchforge import forge_batch
from mqauth.testing.token_attacks import honest_message
from mqauth.wire import base64url, envelope
from mqauth.wire.message import PROTECTED_PROPERTIES, TOKEN_HEADER

RUN = {"python", "sh", "toml", "json"}
NEEDS_SERVICE = {
    "rabbitmq",
    "kafka",
    "kms",
    "openbao",
    "softhsm",
    "keycloak",
    "spire",
    "tasks",
    "taskiq",
    "dramatiq",
    "celery",
}
ELSEWHERE = {".github/CONTRIBUTING.md"}  # commands of developers' tools
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))
ITEM = re.compile(r"^\* `(\w+)`: ", re.MULTILINE)
SPAN = re.compile(r"`(mqauth [a-z][^`]*)`")


def read(page: str) -> str:
    return (ROOT / page).read_text("utf-8")


def section(page: str, title: str) -> str:
    """Return a section's text up to the next heading of any depth."""
    found = re.search(
        rf"^#+ {re.escape(title)}$\n(.*?)(?=^#|\Z)", read(page), re.DOTALL | re.MULTILINE
    )
    assert found, f"{page} has no section {title}"
    return found[1]


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in pages() if page not in ELSEWHERE])
def test_every_block_that_needs_no_broker_runs(page: str, tmp_path: Path) -> None:
    """A reader who follows a page from top to bottom meets no block that fails or prints something else."""
    reader = Reader(tmp_path)
    printed: str | None = None
    for block in blocks(page):
        if block.mark == "output":
            # What a block prints that needs a service, its own test compares.
            assert printed is None or matches(block.text, printed), (
                f"{page}:{block.line}: printed {printed}"
            )
        elif block.language == "toml":
            reader.write(block)
        elif block.language in ("python", "sh"):
            printed = reader.run(block) if block.mark == "" else None


def test_every_block_is_run_somewhere() -> None:
    """No block of code has a mark that neither this file nor the one on real brokers knows."""
    marked = {
        (block.language, block.mark)
        for page in pages()
        for block in blocks(page)
        if block.language in RUN
    }
    known = {
        ("sh", "install"),
        ("json", "output"),
        ("json", ""),
        ("toml", ""),
        ("python", ""),
        ("sh", ""),
    }
    shells = ("consumer", "review", "opa", "agent", "authority", "again", "attacker")
    known |= {("sh", mark) for mark in shells}
    known |= {
        (language, broker) for language in ("python", "sh") for broker in NEEDS_SERVICE
    }
    assert marked <= known


def test_first_screen_has_both_commands() -> None:
    """The two commands stand within the README's first screen, each on one line."""
    first, second = install_blocks()
    assert second.line < 25
    assert [block.text.count("\n") for block in (first, second)] == [1, 1]
    assert first.text.rstrip().endswith("&& .venv/bin/mqauth demo")


def test_ci_runs_the_readmes_command() -> None:
    """``.ci/run`` ends with the README's test command, to the letter."""
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    assert script.splitlines()[-1] == install_blocks()[1].text.rstrip()
    assert "set -euo pipefail" in script


def test_demo_handles_and_rejects_what_the_readme_says(tmp_path: Path) -> None:
    """The demo's last lines give the numbers of the README's first screen."""
    said = re.search(
        r"three honest messages are handled, (\d+) attacks dead-lettered",
        " ".join(read("README.md").split()),
    )
    assert said
    command = Block(page="README.md", line=1, language="sh", mark="", text="mqauth demo")
    wanted = (
        f"3 honest messages handled, {said[1]} of {said[1]} attacks dead-lettered, "
        "0 lost; audit chain intact."
    )
    assert wanted in " ".join(Reader(tmp_path).run(command).split())


def install_blocks() -> list[Block]:
    return [block for block in blocks("README.md") if block.mark == "install"]


def test_reasons_are_the_enum() -> None:
    """The page of reasons has every reason once, and no other."""
    assert sorted(
        ITEM.findall(section("docs/reference/reasons.md", "Reasons"))
    ) == sorted(map(str, Reason))


def test_causes_are_the_enum() -> None:
    """The page of causes has every deferred cause once, in the enum's order, and no other."""
    assert ITEM.findall(section("docs/reference/reasons.md", "Causes")) == [
        str(cause) for cause in Cause
    ]


def test_wire_profile_names_every_reason() -> None:
    """The wire profile says of every reason where in the verdict it comes from."""
    verdict = section("docs/wire-profile.md", "8. The verdict") + section(
        "docs/wire-profile.md", "7. Time"
    )
    assert {str(reason) for reason in Reason} <= set(re.findall(r"`(\w+)`", verdict))


def words(page: str) -> int:
    return len(read(page).split())


def test_the_manual_is_short() -> None:
    """A reader has at most 82,000 words in 90 pages, a newcomer 1,700, and who looks what is new 900."""
    manual = [page for page in pages() if not page.startswith(".github/")]
    assert sum(map(words, manual)) <= 82_000
    assert len(manual) <= 90
    assert words("README.md") <= 1_700
    news = re.split(r"^## ", read("CHANGELOG.md"), flags=re.MULTILINE)[1:]
    first = [
        section for section in news if section.startswith(("[Unreleased]", "[0.1.0]"))
    ]
    assert first
    assert sum(len(section.split()) for section in first) <= 900


def test_decisions_are_few_and_short() -> None:
    """At most 25 decisions stand, each under 400 words."""
    lengths = {path.name: len(path.read_text("utf-8").split()) for path in DECISIONS}
    assert 0 < len(lengths) <= 25
    assert {name: length for name, length in lengths.items() if length >= 400} == {}


def test_decisions_are_indexed() -> None:
    """Every decision stands in the index under its own title, and says what was decided and what was not taken."""
    index = read("docs/decisions/README.md")
    for path in DECISIONS:
        title, *_ = path.read_text("utf-8").splitlines()
        number, _, name = title.removeprefix("# ").partition(". ")
        assert path.name.startswith(f"{int(number):02}-")
        assert f"* [{int(number):02}]({path.name}) {name}\n" in index
        assert re.findall(r"^## (.*)$", path.read_text("utf-8"), re.MULTILINE) == [
            "Decision",
            "Not taken",
        ], path.name


COMMANDS = sorted(
    {span for page in [*pages(), "CHANGELOG.md"] for span in SPAN.findall(read(page))}
)


@pytest.mark.parametrize("span", COMMANDS)
def test_commands_in_prose_exist(span: str) -> None:
    """A command that a page names exists, with its options."""
    assert exists(span)


def exists(span: str) -> bool:
    """Tell whether the command line has a command with the options of a span."""
    command: Any = typer.main.get_command(app)
    words = span.split()[1:]
    while words and hasattr(command, "commands"):
        command = command.get_command(typer.Context(command), words.pop(0))
        if command is None:
            return False
    options = {option for parameter in command.params for option in parameter.opts}
    return {word for word in words if word.startswith("--")} <= options


def test_profiles_own_code_agrees() -> None:
    """The standalone implementation in the wire profile gives the bytes that mqauth digests."""
    profile = profile_code("hds_input")

    @given(properties=PROPERTIES, headers=st.dictionaries(NAMES, VALUES, max_size=4))
    def agree(properties: dict[str, str], headers: dict[str, Any]) -> None:
        pairs = tuple((name, frozen(value)) for name, value in headers.items())
        message = Message(
            destination="rabbitmq:shop/orders",
            body=b"",
            properties=properties,
            headers=pairs,
        )
        assert profile["hds_input"](
            properties, list(headers.items()), [*headers]
        ) == envelope.headers_input(message, [*headers])

    agree()


def test_profiles_own_code_judges_proofs() -> None:
    """The standalone implementation of batches has mqauth's leaves, roots, paths and reasons, good and bad."""
    profile, forge, clock = profile_code("root_of"), Forge(FakeClock()), FakeClock()

    @given(st.integers(1, 12), st.data())
    def agree(size: int, data: st.DataObject) -> None:
        index, other = (
            data.draw(st.integers(0, size - 1)),
            data.draw(st.integers(0, size - 1)),
        )
        found = forge_batch(
            forge, [honest_message("kafka:orders", number) for number in range(size)]
        )
        proof = bytearray(found.proof(index))
        if data.draw(st.booleans()):
            proof[data.draw(st.integers(0, len(proof) - 1))] ^= 1
        sealed = found.seal(index, found.messages[other], proof=bytes(proof))
        message, header = found.messages[other], sealed.headers[-1][1]
        headers = envelope.headers_input(message, found.names)
        parts = profile["leaf_parts"](
            message.destination, message.key, message.body, headers
        )
        assert profile["leaf_hash"](parts) == found.leaves[other].hash
        said = profile["verdict"](
            header.partition(b"~")[2].decode(), found.tree.root, size, parts
        )
        assert said == said_by(forge.verifier(), sealed, clock.now())

    agree()


def said_by(verifier: Verifier, message: Message, now: float) -> str:
    """Return a verifier's reason, or that the message is bound."""
    try:
        candidate = verifier.open(message)
        verifier.verify(
            message, candidate, verifier.issuer(candidate.token).keys.key_set(), now
        )
    except Rejection as rejection:
        return str(rejection.reason)
    return "bound"


@pytest.mark.parametrize("attack", PROOF_ATTACKS, ids=lambda attack: attack.name)
def test_profiles_own_code_refuses_every_proof_attack(attack: Any) -> None:
    """What mqauth refuses as proof_invalid, behind whatever index and path, the page's code refuses too."""
    message = honest_message("kafka:orders")
    if not attack.fits(message.destination) or attack.name == "proof-without-tree":
        return
    sealed = attack.mount(Forge(FakeClock()), message)
    jws, _, proof = dict(sealed.headers)[TOKEN_HEADER].partition(b"~")
    tree = json.loads(base64url.decode(jws.split(b".")[1]))["mqa"]["tree"]
    profile = profile_code("root_of")
    headers = envelope.headers_input(sealed, ("tenant",))
    parts = profile["leaf_parts"](sealed.destination, sealed.key, sealed.body, headers)
    root = base64url.decode(tree["root"].encode())
    assert profile["verdict"](proof.decode(), root, tree["size"], parts) == attack.reason


def profile_code(name: str) -> dict[str, Any]:
    """Run the wire profile's block of code that defines a function, and return what it defines."""
    (block,) = (
        block for block in blocks("docs/wire-profile.md") if f"def {name}(" in block.text
    )
    profile: dict[str, Any] = {}
    exec(block.text, profile)  # noqa: S102 - our own page
    return profile


def frozen(value: Any) -> Any:
    """Return a value with lists as mqauth has them."""
    if isinstance(value, list):
        return tuple(map(frozen, value))
    return (
        {name: frozen(item) for name, item in value.items()}
        if isinstance(value, dict)
        else value
    )


NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
PROPERTIES = st.dictionaries(
    st.sampled_from([n for n in PROTECTED_PROPERTIES if n != "reply-to"]), NAMES
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | NAMES
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)


def test_lock_holds_every_dependency() -> None:
    """The lock pins each dependency of each extra at or above its lower bound, with hashes, and names no host."""
    lock = (ROOT / "requirements.lock").read_text("utf-8")
    pins = dict(
        re.findall(
            r"^([\w.-]+)==([\w.]+)[^\\]*\\\n    --hash=sha256:", lock, re.MULTILINE
        )
    )
    project = tomllib.loads(read("pyproject.toml"))["project"]
    wanted = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    for line in wanted:
        name, _, least = line.partition(">=")
        name = re.sub(r"\[.*\]", "", name).lower()
        if name != "mqauth":
            assert version(pins[name]) >= version(least), name
    assert "hatchling" in pins
    assert "://" not in lock


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())


def test_conversions_count_their_lines() -> None:
    """A conversion has as many lines before and after as the page says of them, its imports aside."""
    found = re.findall(
        r"(?:Before|After), (\d+) lines.*?```python\n(.*?)```",
        read("docs/pika.md"),
        re.DOTALL,
    )
    assert len(found) >= 2
    for said, code in found:
        (function,) = (
            node
            for node in ast.parse(code).body
            if not isinstance(node, ast.ImportFrom | ast.Import)
        )
        lines = code.splitlines()[function.lineno - 1 : function.end_lineno]
        assert sum(bool(line.strip()) for line in lines) == int(said), code
