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
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


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


def test_the_next_commands_can_be_copied(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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


def test_apply_without_a_broker_is_exit_3(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The files stay, and the line names host and port."""
    url = ("--url", "amqp://127.0.0.1:1/")
    assert main(["init", "shop", "--broker", "rabbitmq", *SHOP, *url, "--apply"]) == 3
    assert (
        "cannot reach amqp://127.0.0.1:1: connection refused" in capsys.readouterr().err
    )
    before = files(folder)
    assert main(["init", "shop", "--apply"]) == 3
    assert files(folder) == before
