"""The fuzz targets without atheris: seeds and kept inputs are replayed, and broken code is found."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jinja2 import Environment

from integration.fuzz import corpus, seeds, targets, views
from integration.fuzz.__main__ import LONGEST, summary
from integration.fuzz.draw import Draw, packed_message
from integration.fuzz.engine import saving
from integration.fuzz.oracles import plain
from integration.fuzz.readers import is_carried
from integration.mutation.planted import forget
from mqauth.brokers import amqp_values
from mqauth.brokers.log import records
from mqauth.console import display, site
from mqauth.errors import Reason, Rejection
from mqauth.judging import token
from mqauth.review import letter as review_letter
from mqauth.wire import batch, envelope, identity, jws, strict_json
from mqauth.wire.message import message_of

NAMES = sorted(targets.TARGETS)


@pytest.mark.parametrize("name", NAMES)
def test_every_oracle_holds_for_the_corpus(name: str) -> None:
    """What fuzzing found and kept, and seeds out of the vectors, break no oracle."""
    target = targets.TARGETS[name]
    inputs = [*corpus.kept(name), *seeds.few(target.seeds, most=24)]
    assert len(inputs) >= 10
    for one in inputs:
        target.run(one)


def test_the_corpus_is_small_and_of_the_targets() -> None:
    """Each file is a target's, each input is within the limit, and all together they are small."""
    files = [*corpus.FOLDER.iterdir()]
    assert {path.stem for path in files} <= {*NAMES}
    assert sum(path.stat().st_size for path in files) < 1_000_000
    assert all(len(one) <= LONGEST for name in NAMES for one in corpus.kept(name))


def test_a_message_that_was_packed_is_drawn_again() -> None:
    """Seeds mean what the vectors say, where a broker carries that."""
    for message in filter(is_carried, seeds.messages()):
        found = Draw(packed_message(message)).message()
        for part in ("destination", "body", "key", "properties", "headers"):
            assert plain(getattr(found, part)) == plain(getattr(message, part))


def test_no_target_needs_atheris() -> None:
    """All targets are imported here, and it is not: whoever runs the tests need not install it."""
    assert "atheris" not in sys.modules


def test_an_input_that_breaks_an_oracle_is_written(tmp_path: Path) -> None:
    """It is in the folder, byte for byte, and the run ends."""
    run = saving(targets.TARGETS["jws"].run, tmp_path)
    run(b"no token")
    with pytest.raises(TypeError):
        saving(lambda raw: raw + 1, tmp_path)(b"found")  # type: ignore[operator]
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"found"]


def test_a_summary_says_what_libfuzzer_did() -> None:
    """Executions, edges, features and inputs of the last line that it printed."""
    told = (
        "#2\tINITED cov: 10 ft: 11 corp: 1/1b\n#4096\tpulse  cov: 31 ft: 42 corp: 7/90b\n"
    )
    told += "stat::number_of_executed_units: 5000\n"
    assert (
        summary("jws", told, 60)
        == "jws: 5,000 executions in 60 s, 31 edges of mqauth, 42 features, 7 inputs"
    )


def _undocumented(*_: Any, **__: Any) -> Any:
    raise Rejection(Reason.REPLAYED, "undocumented")


def _bare(**named: Any) -> Environment:
    return Environment(**named | {"autoescape": False})  # noqa: S701 - the fault is that


def _headerless(*parts: Any) -> Any:
    # Of what a client read alone: what is sealed has no object of a client.
    return message_of(*parts[:4], () if parts[6] is not None else parts[4], *parts[5:])


def _last_wins(raw: bytes, **_: Any) -> Any:
    try:
        return json.loads(raw)
    except ValueError as error:
        raise strict_json.StrictJSONError(str(error)) from error


FAULTS: dict[str, tuple[str, Any, str, Any]] = {
    "a reason that is not documented": ("jws", jws, "take_apart", _undocumented),
    "a signature that always holds": ("jws", jws, "ed25519_holds", lambda *_: True),
    "JSON of which the last duplicate counts": ("claims", strict_json, "loads", _last_wins),
    "a token whose bytes are counted too low": ("claims", token, "_CHARACTER", 1),
    "a name of which case does not count": ("token-header", envelope, "TOKEN_HEADER", "MQAUTH-Token"),
    "a table whose order counts": ("binding", envelope, "sorted", list),
    "a body that is not looked at": ("binding", envelope.base64url, "digest", lambda raw: "A" * 43),
    "a path of which a byte is not looked at": ("batch", batch, "HASH_BYTES", 31),
    "a client that is said to carry all": ("rabbitmq-frame", amqp_values, "_same", lambda *_: True),
    "an identity whose names are not in their form": (
        "identity", identity, "_SUBJECT", re.compile(r"((?:wimse|spiffe)://[^/]+).*"),
    ),
    "a WIT that holds under every key": ("identity", jws, "verify", lambda *_: None),
    "a proof that may name its producer": ("identity", identity, "require", lambda *_: True),
    "a float that is sealed as it was given": ("rabbitmq-published", amqp_values, "single", float),
    "a record whose headers are dropped": ("kafka-values", records, "message_of", _headerless),
    "a letter without its properties": ("dead-letter", review_letter, "LIVE_PROPERTIES", frozenset()),
    "a page that escapes nothing": ("view", site, "Environment", _bare),
    "a page that shows what is invisible": ("view", display, "visible", lambda text, **_: text),
}  # fmt: skip
"""Faults of the library: the target that finds each, and what it puts in whose place."""


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_breaks_an_oracle(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Targets do not only look for crashes: each of these faults is quiet, and is found."""
    name, module, attribute, replacement = FAULTS[fault]
    views._site.cache_clear()
    monkeypatch.setattr(module, attribute, replacement, raising=False)
    target = targets.TARGETS[name]
    try:
        assert any(
            _breaks(target.run, one) for one in (*corpus.kept(name), *target.seeds())
        )
    finally:
        monkeypatch.undo()
        views._site.cache_clear()
        forget()


def _breaks(run: Callable[[bytes], None], one: bytes) -> bool:
    """Tell whether an input, or the same with one byte changed, breaks an oracle."""
    for tried in (one, one[: len(one) // 2] + b"A" + one[len(one) // 2 + 1 :]):
        try:
            run(tried)
        except AssertionError:
            return True
    return False
