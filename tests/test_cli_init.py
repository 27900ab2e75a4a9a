"""``mqauth init``: what it writes, that it overwrites nothing, and writes all or nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mqauth.cli import main

SHOP = ("--producer", "orders-api", "--consumer", "billing")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_it_overwrites_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A second run is refused with what is there already, and changes nothing."""
    (folder / "shop").mkdir()
    (folder / "shop" / "compose.yml").write_text("mine")
    assert main(["init", "shop", "--broker", "kafka", *SHOP]) == 2
    assert "shop: has compose.yml already; nothing was changed" in capsys.readouterr().err
    assert files(folder) == {"shop/compose.yml": b"mine"}
    assert main(["init", "other", "--broker", "kafka", *SHOP]) == 0
    before = files(folder)
    assert main(["init", "other", "--broker", "rabbitmq", *SHOP]) == 2
    assert files(folder) == before


def test_the_next_commands_can_be_copied(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder whose name has a space is quoted."""
    assert main(["init", "my shop", "--broker", "kafka", *SHOP]) == 0
    assert "\n  cd 'my shop'\n" in capsys.readouterr().out


def test_it_writes_all_or_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the last file cannot be moved into its place, none is left, nor the folder."""
    kept = Path.rename

    def rename(path: Path, target: Any) -> Path:
        if path.name == "topology.json":
            raise OSError(28, "No space left on device")
        return kept(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    assert main(["init", "shop", "--broker", "kafka", *SHOP]) == 2
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--broker", "redis", *SHOP), "--broker: must be rabbitmq or kafka"),
        (SHOP, "--broker: required, like rabbitmq or kafka"),
        (("--broker", "kafka", "--producer", "a"), "--consumer: required, like billing"),
        (("--broker", "kafka", "--producer", "a b", "--consumer", "c"), "--producer: must be 1 to 100"),
        (("--broker", "kafka", "--producer", "a", "--consumer", "a"), "--consumer: must be another name"),
        (("--broker", "kafka", *SHOP, "--issuer", 'a"b'), "--issuer: must be 1 to 256"),
        (("--broker", "kafka", *SHOP, "--rung", "off"), "--rung: must be enforce or observe"),
        (
            ("--broker", "kafka", *SHOP, "--framework", "taskiq"),
            "--framework: must be taskiq, with --broker rabbitmq",
        ),
        (("--broker", "rabbitmq", *SHOP, "--framework", "celery"), "--framework: must be taskiq, with --broker"),
        (("--broker", "kafka", *SHOP, "--url", "amqp://a/"), "--url: is no URL of kafka"),
        (("--broker", "rabbitmq", *SHOP, "--url", "amqp://u:pw@a/"), "--url: holds a password"),
        (("--broker", "rabbitmq", *SHOP, "--url", "localhost"), "--url: must be amqp://..."),
    ],
)
def test_what_is_wrong_is_named(
    options: tuple[str, ...], said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, exit 2, and nothing is written."""
    assert main(["init", "shop", *options]) == 2
    error = capsys.readouterr().err
    assert (said in error, error.count("\n"), "pw" in error.replace("password", "")) == (True, 1, False)
    assert list(folder.iterdir()) == []


def test_apply_without_a_broker_is_exit_3(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The files stay, and the line names host and port."""
    url = ("--url", "amqp://127.0.0.1:1/")
    assert main(["init", "shop", "--broker", "rabbitmq", *SHOP, *url, "--apply"]) == 3
    assert "cannot reach amqp://127.0.0.1:1: connection refused" in capsys.readouterr().err
    before = files(folder)
    assert main(["init", "shop", "--apply"]) == 3
    assert files(folder) == before
