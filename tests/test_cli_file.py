"""One file for a command: ``[broker]``, ``[brokers.NAME]``, ``[review]`` of ``mqauth.toml``; who counts first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mqauth.cli import main
from mqauth.cli.broker import LetterAddress, place_of
from mqauth.cli.settings import settings_of
from mqauth.errors import ConfigurationError

FILE = """
[broker]
url = "amqp://mq.example/"
queue = "orders.dead"

[brokers.log]
url = "kafka://log-1:9092,log-2:9092"
topic = "orders.gone"

[dead_letters]
name = "shop.dead"
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a reviewer, without variables of mqauth."""
    monkeypatch.chdir(tmp_path)
    for name in ("MQAUTH_CONFIG", "MQAUTH_BROKER"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def place(
    text: str,
    broker: str | None = None,
    *,
    queue: str | None = None,
    topic: str | None = None,
) -> LetterAddress:
    """Return the place that options name beside a file of this text."""
    Path("mqauth.toml").write_text(text)
    return place_of(broker, queue, topic, settings_of(None))


def test_the_only_one_of_several_tables_needs_no_name() -> None:
    """One ``[brokers.NAME]`` is taken; of two the error names both."""
    one = '[brokers.a]\nurl = "amqp://a/"\nqueue = "q"\n'
    assert place(one).broker == "amqp://a/"
    with pytest.raises(ConfigurationError, match=r"several: give --broker, one of a, b"):
        place(one + one.replace("brokers.a", "brokers.b"))


@pytest.mark.parametrize(
    "secret", ["amqp://u:pw@h/", "amqps://:pw@h/", "kafka://a:1,u:pw@b:2"]
)
def test_a_password_in_a_url_is_refused(secret: str) -> None:
    """The file holds no secret, and the error repeats none; in a variable the URL may have one."""
    with pytest.raises(
        ConfigurationError, match=r"mqauth.toml: \[broker\] url: holds a password"
    ) as caught:
        place(f'[broker]\nurl = "{secret}"\nqueue = "q"')
    assert "pw" not in str(caught.value).replace("password", "")


def test_a_url_in_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """``url_env`` names it; an unset one, and one that holds no URL, are refused by name and not repeated."""
    text = '[broker]\nurl_env = "SHOP_URL"\nqueue = "q"'
    with pytest.raises(ConfigurationError, match="SHOP_URL is not set"):
        place(text)
    monkeypatch.setenv("SHOP_URL", "amqp://u:pw@h/")
    assert place(text).broker == "amqp://u:pw@h/"
    monkeypatch.setenv("SHOP_URL", "s3cret")
    with pytest.raises(ConfigurationError, match="SHOP_URL holds no amqp://") as caught:
        place(text)
    assert "s3cret" not in str(caught.value)


def shown(
    capsys: pytest.CaptureFixture[str], *options: str
) -> dict[str, tuple[str, str]]:
    """Return what ``config show`` says: value and source of each setting."""
    assert main(["config", "show", "--json", *options]) == 0
    found = json.loads(capsys.readouterr().out)["settings"]
    return {one["key"]: (one["value"], one["source"]) for one in found}


def test_show_says_where_each_value_comes_from(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An option, a variable, a line of the file, or the default; of URLs no password and no query."""
    (folder / "mqauth.toml").write_text(
        FILE + '[replay]\nstore = "redis://:pw@r:1/0?ssl_password=pw"\n'
    )
    found = shown(capsys)
    assert found["file"] == ("mqauth.toml", "this folder")
    assert found["[broker] url"] == ("amqp://mq.example", "mqauth.toml:3")
    assert found["[brokers.log] topic"] == ("orders.gone", "mqauth.toml:8")
    assert found["[replay] store"] == ("redis://r:1", "mqauth.toml:13")
    assert found["[replay] capacity"][1] == "default"
    assert shown(capsys, "--broker", "log")["broker"] == (
        "[brokers.log]",
        "option --broker",
    )
    monkeypatch.setenv("MQAUTH_BROKER", "amqp://u:pw@h/v?pw=1")
    assert shown(capsys)["broker"] == ("amqp://h", "environment MQAUTH_BROKER")
    monkeypatch.setenv("MQAUTH_CONFIG", str(folder / "mqauth.toml"))
    assert shown(capsys)["file"][1] == "environment MQAUTH_CONFIG"


def test_show_for_people_is_a_line_each(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Key, value, and the source in brackets."""
    (folder / "mqauth.toml").write_text(FILE)
    assert main(["config", "show"]) == 0
    assert (
        "[broker] url         amqp://mq.example  (mqauth.toml:3)"
        in capsys.readouterr().out
    )


def test_review_settings_are_those_of_the_options(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``[review]`` gives what no option gives: the first thing missing is then what the file does not have."""
    (folder / "mqauth.toml").write_text(
        '[broker]\nurl = "amqp://127.0.0.1:1/"\nqueue = "q"\n[review]\naudit = "a"'
    )
    assert main(["dlq", "discard", "--why", "w"]) != 0
    assert "--audit" not in capsys.readouterr().err
