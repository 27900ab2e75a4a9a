"""The vectors of the wire profile: still what the generator makes, and judged by the pipeline as they say."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mqauth import base64url, destination, envelope, jwk, strictjson
from mqauth.errors import MalformedMessage, Reason
from mqauth.flow import run
from mqauth.jsonform import from_form
from mqauth.pipeline import Outcome, Pipeline
from mqauth.policy import Allow
from mqauth.replay import MemoryReplayStore
from mqauth.testing import FakeClock
from mqauth.verifier import Verifier

FOLDER = Path(__file__).parent / "vectors"


def load(name: str) -> Any:
    """Return the content of one vector file."""
    return strictjson.loads((FOLDER / name).read_bytes(), depth=64)


TOKENS, HDS, DESTINATIONS = load("tokens.json"), load("hds.json"), load("destinations.json")


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """The generator, as a module."""
    spec = importlib.util.spec_from_file_location("vector_generator", FOLDER / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def guard() -> Pipeline:
    """Return the consumer the vectors describe, with an empty store."""
    clock, consumer = FakeClock(TOKENS["received"]), TOKENS["consumer"]
    keys = jwk.load_key_set(consumer["jwks"])
    assert keys.skipped == ()
    return Pipeline(
        verifier=Verifier(
            keys={consumer["issuer"]: keys}, audience=consumer["audience"], leeway=consumer["leeway"],
            max_lifetime=consumer["max_lifetime"],
        ),
        policy=Allow(consumer["allow"]), replay=MemoryReplayStore(clock=clock), clock=clock,
    )  # fmt: skip


def judge(pipeline: Pipeline, form: Any) -> Outcome:
    """Judge a message in the JSON form, and confirm it where it was accepted."""
    delivery = pipeline.receive(from_form(form))
    outcome = run(pipeline.judge(delivery))
    if outcome.reason is None:
        run(pipeline.confirm(delivery))
    return outcome


def test_the_files_are_what_the_generator_makes(generator: ModuleType) -> None:
    """A change of the wire shows as drift; made twice the vectors are the same."""
    made = generator.generate()
    assert made == generator.generate()
    assert sorted(made) == sorted(path.name for path in FOLDER.glob("*.json"))
    for name, text in made.items():
        assert (FOLDER / name).read_text(encoding="ascii") == text, f"{name} has drifted: run its generator"


@pytest.mark.parametrize("vector", TOKENS["vectors"], ids=lambda vector: vector["name"])
def test_each_message_gets_its_verdict(vector: Any) -> None:
    """Positive and negative vectors alike."""
    outcome = judge(guard(), vector["message"])
    assert (outcome.verdict.value, outcome.reason) == (vector["verdict"], vector["reason"])


@pytest.mark.parametrize("sequence", TOKENS["sequences"], ids=lambda sequence: sequence["name"])
def test_each_sequence_of_deliveries_gets_its_verdicts(sequence: Any) -> None:
    """Copies are told from redeliveries."""
    pipeline = guard()
    for delivery in sequence["deliveries"]:
        outcome = judge(pipeline, delivery["message"])
        assert (outcome.verdict.value, outcome.reason) == (delivery["verdict"], delivery["reason"])


def test_the_vectors_cover_every_reason_a_default_consumer_gives() -> None:
    """Each reason but those of settings, handlers and later profiles has a vector."""
    found = {vector["reason"] for vector in TOKENS["vectors"]} - {None}
    found |= {delivery["reason"] for sequence in TOKENS["sequences"] for delivery in sequence["deliveries"]} - {
        None
    }
    assert set(Reason) - {Reason(reason) for reason in found} == {
        Reason.QUEUE_AGE_EXCEEDED, Reason.COVERAGE_INSUFFICIENT, Reason.PROOF_INVALID, Reason.RELEASE_INVALID,
        Reason.MESSAGE_MALFORMED, Reason.HANDLER_FAILED,
    }  # fmt: skip


@pytest.mark.parametrize("vector", HDS["vectors"], ids=lambda vector: vector["name"])
def test_each_headers_digest_is_of_its_bytes(vector: Any) -> None:
    """The bytes under hds and their digest are those of the file."""
    raw = envelope.headers_input(from_form(vector["message"]), vector["hdr"])
    assert raw.hex() == vector["input_hex"]
    assert base64url.encode(hashlib.sha256(raw).digest()).decode() == vector["hds"]
    assert raw.startswith(b"mqauth-hds-1h")


def test_no_two_headers_vectors_share_their_bytes() -> None:
    """Each case means something else."""
    inputs = [vector["input_hex"] for vector in HDS["vectors"]]
    assert len(set(inputs)) == len(inputs)


def test_destinations_are_those_of_the_file() -> None:
    """Names have their canonical form, and nothing else parses."""
    for found in DESTINATIONS["rabbitmq"]:
        assert destination.rabbitmq(found["exchange"], found["routing_key"]) == found["destination"]
    for found in DESTINATIONS["kafka"]:
        assert destination.parse(found["destination"]) == ("kafka", found["topic"])
    for text in DESTINATIONS["malformed"]:
        with pytest.raises(MalformedMessage):
            destination.parse(text)


def test_the_files_are_json_for_every_reader() -> None:
    """Plain ASCII without integers that other languages round."""
    for path in FOLDER.glob("*.json"):
        json.loads(
            path.read_text(encoding="ascii"), parse_int=lambda text: abs(int(text)) <= 2**53 or pytest.fail(text)
        )
