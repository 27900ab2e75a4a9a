"""The container image: its Dockerfile is clean, and where an engine answers it is built and run."""

from __future__ import annotations

import re
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from integration.documentation import ROOT
from integration.services.machine import docker_answers

PIN = re.compile(r"^([\w.-]+)==([^\s;\\]+)", re.MULTILINE)
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
LAST_STAGE = DOCKERFILE.rpartition("\nFROM ")[2]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)


def test_hadolint_has_nothing_to_say() -> None:
    """hadolint finds nothing in the Dockerfile, warnings and notes included."""
    found = run(
        str(Path(sys.executable).parent / "hadolint"),
        "--failure-threshold",
        "style",
        "Dockerfile",
    )
    assert (found.returncode, found.stdout) == (0, "")


def test_the_image_runs_as_nobody_in_particular() -> None:
    """The last stage runs ``mqauth`` as user 10001 in ``/data``, its one volume, with a health check."""
    assert {
        "USER 10001:10001",
        "WORKDIR /data",
        "VOLUME /data",
        'ENTRYPOINT ["mqauth"]',
    } <= set(LAST_STAGE.splitlines())
    assert "HEALTHCHECK " in LAST_STAGE


def test_nothing_but_the_package_goes_to_the_build() -> None:
    """The build's context starts empty, so that no key, configuration or history can get into a layer."""
    first, *rest = (ROOT / ".dockerignore").read_text("utf-8").split()
    copied = {
        word
        for line in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
        for word in line.split()
    }
    assert first == "*"
    assert {word.removeprefix("!") for word in rest if word.startswith("!")} == {
        *copied,
        "Dockerfile",
    }


def test_the_image_has_what_the_tests_had() -> None:
    """Every package of the image has the version and a hash in its lock that the tests' lock has."""
    tested, image = (
        (ROOT / f"requirements{name}.lock").read_text("utf-8") for name in ("", "-image")
    )
    assert set(PIN.findall(image)) <= set(PIN.findall(tested))
    assert len(PIN.findall(image)) > 20
    assert set(re.findall(r"sha256:\w+", image)) <= set(re.findall(r"sha256:\w+", tested))


if docker_answers():

    @pytest.mark.slow
    def test_the_image_runs_with_a_read_only_root() -> None:
        """Built, it makes a key in its volume as user 10001, and writes nowhere else."""
        name = f"mqauth-test-{secrets.token_hex(4)}"
        built = run("docker", "build", "--quiet", "--tag", name, ".")
        assert built.returncode == 0, built.stderr
        try:
            command = [
                "docker",
                "run",
                "--rm",
                "--read-only",
                "--volume",
                f"{name}:/data",
            ]
            made = run(
                *command, name, "keys", "new", "--dir", "keys", "--subject", "orders-api"
            )
            assert made.returncode == 0, made.stderr
            owner = run(*command, "--entrypoint", "stat", name, "-c", "%u", "keys")
            assert owner.stdout.strip() == "10001"
        finally:
            run("docker", "image", "rm", "--force", name)
            run("docker", "volume", "rm", "--force", name)
