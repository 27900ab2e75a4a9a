"""``${NAME}`` in a text of ``mqauth.toml``, and ``{host}`` and its like in the path of the audit file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from mqauth import AuditFile, ConfigurationError
from mqauth.check import check
from mqauth.config.toml_file import read_toml


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that is set, one that is empty, and one that is not there."""
    monkeypatch.setenv("SHOP", "billing")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("GONE", raising=False)


def read(text: str, folder: Path) -> dict[str, Any]:
    """Return the tables of a file of this text."""
    (folder / "mqauth.toml").write_text(text)
    return read_toml(folder / "mqauth.toml")[1]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("${SHOP}", "billing"), ("a-${SHOP}-${SHOP}", "a-billing-billing"), ("${GONE:-x}", "x"),
        ("${EMPTY:-x}", "x"),        ("${EMPTY}", ""), ("${GONE:-}", ""), ("${SHOP:-x}", "billing"),
        ("$${SHOP}", "${SHOP}"),
        ("$SHOP $", "$SHOP $"),
        ("$$", "$$"), ("{pid}", "{pid}"),
    ],
)  # fmt: skip
def test_a_placeholder_is_its_variable(text: str, found: str, tmp_path: Path) -> None:
    """In texts, also those of arrays and of tables in arrays; ``$${`` is none."""
    assert read(f'a = "{text}"\nb = ["{text}"]\n[[c]]\nd = "{text}"', tmp_path) == {
        "a": found, "b": [found], "c": [{"d": found}],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[consumer]\naudience = "${GONE}"', "[consumer] audience: the variable GONE is not set, and"),
        ('[consumer]\naudience = ["${GONE}"]', "[consumer] audience: the variable GONE is not set"),
        ('[consumer]\naudience = "${A-b}"', "[consumer] audience: a placeholder is ${NAME} or ${NAME:-default}"),
    ],
)  # fmt: skip
def test_a_placeholder_that_cannot_be_filled_is_refused_by_name(
    text: str, said: str, tmp_path: Path
) -> None:
    """File, table, key and variable stand in one line."""
    with pytest.raises(ConfigurationError) as caught:
        read(text, tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'mqauth.toml'}: {said}")


def test_results_obey_the_same_limits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A wildcard from the environment is refused as one in the file."""
    monkeypatch.setenv("SHOP", "*")
    read('[consumer]\naudience = "${SHOP}"', tmp_path)
    found = check(tmp_path / "mqauth.toml").findings
    assert "consumer.audience" in {
        one.key for one in found if one.code.name == "configuration"
    }


def test_the_audit_file_has_the_process_own_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Process, host, and the instance, which is the host unless it is named."""
    host = os.uname().nodename
    monkeypatch.delenv("MQAUTH_INSTANCE", raising=False)
    with AuditFile(tmp_path / "{host}-{pid}-{instance}.jsonl") as file:
        assert file.path.name == f"{host}-{os.getpid()}-{host}.jsonl"
    monkeypatch.setenv("MQAUTH_INSTANCE", "blue")
    with AuditFile(tmp_path / "{instance}.jsonl") as file:
        assert file.path.name == "blue.jsonl"
