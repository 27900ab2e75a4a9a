"""``[[rollout]]`` and ``[[consumer.unsigned]]``: what they become, and what is refused."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from mqauth import ConfigurationError, Key, KeySet, load
from mqauth.config.consumer_settings import RolloutSettings
from mqauth.config.declaration import read
from mqauth.config.toml_file import Table
from mqauth.judging.rollout import Rung
from mqauth.wire.jwk import dump_key_set
from tests.test_config import SMALL

GOOD = {
    "destinations": '["kafka:orders"]', "rung": '"observe"', "since": "2026-11-26", "until": "2027-01-31",
    "owner": '"orders-team"',
}  # fmt: skip


def settings(**changes: str) -> RolloutSettings:
    """Return an entry with some keys changed; an empty one is left out."""
    members = {name: text for name, text in (GOOD | changes).items() if text}
    text = "".join(f"{name.rstrip('_')} = {value}\n" for name, value in members.items())
    return read(
        RolloutSettings,
        Table(file="mqauth.toml", name="[[rollout]] #1", members=tomllib.loads(text)),
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"until": ""}, "until: required below enforce"),
        ({"until": "2027-03-01"}, "until: must be 1 to 90 days after since"),
        ({"until": "2026-11-26"}, "until: must be 1 to 90 days after since"),
        (
            {"until": '"2027-01-31"'},
            "until: must be a date like 2027-01-31, without quotation marks",
        ),
        ({"owner": ""}, "owner: required"),
        ({"rung": '"warn"'}, 'rung: must be "off" or "observe" or "enforce"'),
        ({"window": '"30m"'}, "window: must be at least 3600, not 1800"),
        ({"window": '"soon"'}, 'window: must be seconds, or a duration like "90s"'),
        ({"destinations": '["*"]'}, "until: must be 1 to 30 days after since"),
        (
            {"destinations": '["*", "kafka:orders"]', "until": "2026-12-20"},
            'destinations: "*" stands alone',
        ),
        ({"destinations": '["orders"]'}, "destinations: destination 'orders'"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, str], said: str) -> None:
    """Each is one line that names the key."""
    with pytest.raises(ConfigurationError) as caught:
        settings(**changes)
    assert said in str(caught.value)


FILE = f"""{SMALL}
[[consumer.unsigned]]
destination = "rabbitmq:shop/heartbeat"
kinds = ["heartbeat"]
until = 2027-06-30
why = "sensors, firmware 2"

[[rollout]]
destinations = ["kafka:orders"]
rung = "observe"
since = 2026-11-26
until = 2027-01-31
owner = "orders-team"
"""


def test_the_pipeline_follows_the_file(tmp_path: Path) -> None:
    """The first entry that matches decides; ``judge`` is at enforce whatever the file says."""
    keys = dump_key_set(KeySet([Key.generate(subjects=["orders-api"])]))
    (tmp_path / "jwks.json").write_text(json.dumps(keys), "utf-8")
    (tmp_path / "mqauth.toml").write_text(FILE, "utf-8")
    config = load(tmp_path / "mqauth.toml")
    rollout = config.pipeline.rollout
    assert rollout is not None
    assert [entry.rung for entry in rollout.entries] == [Rung.OBSERVE]
    assert rollout.exemptions[0].kinds == {"heartbeat"}
    assert config.judge.rollout is None


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("rabbitmq:shop/heartbeat", "heartbeat", "destination: destination 'heartbeat'"),
        (
            '["heartbeat"]',
            '["*"]',
            "kinds: must be a name of 1 to 256 characters, never a wildcard",
        ),
        ("until = 2027-06-30\n", "", "until: required"),
        ('why = "sensors, firmware 2"\n', "", "why: required"),
    ],
)
def test_an_exemption_says_until_when_and_why(
    old: str, new: str, said: str, tmp_path: Path
) -> None:
    """Without an end or a reason it is refused."""
    (tmp_path / "mqauth.toml").write_text(FILE.replace(old, new), "utf-8")
    with pytest.raises(
        ConfigurationError, match=r"\[\[consumer.unsigned\]\] #1"
    ) as caught:
        load(tmp_path / "mqauth.toml")
    assert said in str(caught.value)
