"""What is shipped and how: no secret in the repository, workflows that trust nothing they did not pin."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from integration import secrets

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
USES = re.compile(r"^\s*-? *uses: (\S+)(.*)$", re.MULTILINE)
SAMPLES = {
    "private key": "-----BEGIN PRIVATE KEY-----\n" + "M" * 64,
    "private key in a JWK": '"d": "' + "x" * 43 + '"',
    "key of AWS": "AKIA" + "A" * 16,
    "token of GitHub": "ghp_" + "a" * 36,
    "token of GitLab": "glpat-" + "a" * 20,
    "token of PyPI": "pypi-AgE" + "I" * 60,
    "token of npm": "npm_" + "a" * 36,
    "token of Slack": "xoxb-" + "1" * 12,
    "key of Stripe": "sk_live_" + "a" * 24,
    "key of Google": "AIza" + "a" * 35,
}


def test_no_file_holds_a_secret() -> None:
    """No file that git knows holds a private key or a token."""
    assert list(secrets.in_files()) == []


def test_a_secret_that_was_removed_again_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """History is looked through, and no secret is printed."""

    def git(*arguments: str) -> None:
        who = (
            "-c",
            "user.name=x",
            "-c",
            "user.email=x@x.example",
            "-c",
            "commit.gpgsign=false",
        )
        subprocess.run(
            ["git", *who, *arguments],  # noqa: S607
            cwd=tmp_path,
            check=True,
            capture_output=True,
        )

    git("init", "-q")
    for text in (SAMPLES["private key"], "nothing"):
        (tmp_path / "file").write_text(text)
        git("add", "file")
        git("commit", "-q", "-m", "x")
    assert list(secrets.in_files(tmp_path)) == []
    (found,) = secrets.in_history(tmp_path)
    assert re.fullmatch(r"[0-9a-f]{40}: private key", found)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
class TestWorkflow:
    """Each workflow."""

    def test_actions_are_pinned(self, path: Path) -> None:
        """Every action is pinned by a commit hash, with its version for people."""
        used = USES.findall(path.read_text("utf-8"))
        assert used
        for action, note in used:
            assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action), action
            assert re.fullmatch(r" # v\d+\.\d+\.\d+", note), action

    def test_rights_are_the_least(self, path: Path) -> None:
        """Rights are named, none writes to the repository, and a checkout keeps no credentials."""
        text = path.read_text("utf-8")
        assert re.search(
            r"^permissions:(?: \{\}|\n  contents: read)$", text, re.MULTILINE
        )
        assert set(re.findall(r"^ +([\w-]+: write)$", text, re.MULTILINE)) <= {
            "id-token: write"
        }
        assert text.count("actions/checkout@") == text.count("persist-credentials: false")

    def test_nothing_from_outside_is_run(self, path: Path) -> None:
        """No secret is read, no pull request runs with rights, and no event's text stands in a command."""
        text = path.read_text("utf-8")
        assert "secrets." not in text.replace("integration.secrets", "")
        assert "pull_request_target" not in text
        assert re.findall(r"\$\{\{(?! github\.(?:workflow|ref) )", text) == []

    def test_tools_come_by_their_hashes(self, path: Path) -> None:
        """pip installs from a lock with hashes alone."""
        installs = re.findall(r"pip install .*", path.read_text("utf-8"))
        assert installs
        assert all("--require-hashes" in line for line in installs)


def test_only_the_job_that_publishes_may_sign() -> None:
    """The right to publish is one job's, which checks out no code, in an environment that a person guards."""
    text = (ROOT / ".github" / "workflows" / "release.yml").read_text("utf-8")
    build, publish = text.split("\n  publish:\n")
    assert "id-token" not in build
    assert "environment:\n      name: pypi" in publish
    assert "actions/checkout" not in publish
    assert "run:" not in publish


def test_the_release_lock_has_hashes() -> None:
    """Each tool of a release has an exact version and hashes, and is built by the hatchling of the other locks."""
    lock = (ROOT / ".github" / "requirements-release.lock").read_text("utf-8")
    names = re.findall(r"^([\w.-]+)==\S+", lock, re.MULTILINE)
    assert {"pip-audit", "cyclonedx-bom", "hatchling"} <= set(names)
    assert all(
        "--hash=sha256:" in part
        for part in re.split(r"^(?=[\w.-]+==)", lock, flags=re.MULTILINE)[1:]
    )
    (ours,) = re.findall(r"^hatchling==(\S+)", lock, re.MULTILINE)
    assert f"\nhatchling=={ours} " in (ROOT / "requirements.lock").read_text("utf-8")
