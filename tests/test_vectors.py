"""The vectors of the wire profile: still what the generator makes, and judged by the pipeline as they say."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from mqauth.errors import Cause, ConfigurationError, MalformedMessage, Reason
from mqauth.wire import destination, envelope, jwk
from mqauth.wire import strict_json as strictjson
from mqauth.wire.json_form import from_form
from tests.test_merkle import inclusion, mth
from tests.vectors import checks
from tests.vectors import generate as generator

FOLDER = Path(__file__).parent / "vectors"


def load(name: str) -> Any:
    """Return the content of one vector file."""
    return strictjson.loads((FOLDER / name).read_bytes(), depth=128)


TOKENS, BATCH, ANSWERS = load("tokens.json"), load("batch.json"), load("answers.json")
HDS, DESTINATIONS = load("hds.json"), load("destinations.json")
SETTINGS = load("settings.json")
IDENTITY = load("identity.json")
CLAIMS, JWKS, FORMS = load("claims.json"), load("jwks.json"), load("forms.json")
LETTERS, STORES = load("letters.json"), load("stores.json")
VECTORS = [
    *TOKENS["vectors"],
    *({**vector, "name": f"batch: {vector['name']}"} for vector in BATCH["vectors"]),
]
SEQUENCES = [*TOKENS["sequences"], *BATCH["sequences"], *SETTINGS["sequences"]]


def test_the_files_are_what_the_generator_makes() -> None:
    """A change of the wire shows as drift; made twice the vectors are the same."""
    made = generator.generate()
    assert made == generator.generate()
    assert sorted(made) == sorted(path.name for path in FOLDER.glob("*.json"))
    for name, text in made.items():
        assert (FOLDER / name).read_text(encoding="ascii") == text, (
            f"{name} has drifted: run its generator"
        )


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_each_message_gets_its_verdict(vector: Any) -> None:
    """Positive and negative vectors alike."""
    checks.judge(TOKENS, vector)


@pytest.mark.parametrize("vector", ANSWERS["vectors"], ids=lambda vector: vector["name"])
def test_each_question_has_its_answer(vector: Any) -> None:
    """What another implementation might take otherwise has one verdict."""
    checks.judge(ANSWERS, vector)


@pytest.mark.parametrize("vector", SETTINGS["vectors"], ids=lambda vector: vector["name"])
def test_each_consumer_gives_its_verdict(vector: Any) -> None:
    """A consumer with settings of its own accepts, rejects and defers by them."""
    checks.judge(SETTINGS, vector)


@pytest.mark.parametrize("sequence", SEQUENCES, ids=lambda sequence: sequence["name"])
def test_each_sequence_of_deliveries_gets_its_verdicts(sequence: Any) -> None:
    """Copies are told from redeliveries."""
    checks.deliver(
        SETTINGS if "consumer" in sequence["deliveries"][0] else TOKENS, sequence
    )


def test_the_vectors_cover_every_reason_and_every_cause_of_a_verdict() -> None:
    """Each has a vector, but those that come after the verdict."""
    deliveries = [
        delivery for sequence in SEQUENCES for delivery in sequence["deliveries"]
    ]
    found = [
        *VECTORS,
        *ANSWERS["vectors"],
        *SETTINGS["vectors"],
        *IDENTITY["vectors"],
        *deliveries,
    ]
    assert set(Reason) - {vector["reason"] for vector in found} == {Reason.HANDLER_FAILED}
    assert set(Cause) - {vector.get("cause") for vector in found} == {
        Cause.AUDIT_UNAVAILABLE, Cause.DEAD_LETTER_UNAVAILABLE, Cause.HANDLER_DEFERRED, Cause.BROKER_UNAVAILABLE,
    }  # fmt: skip
    assert {vector["verdict"] for vector in found} == {
        "accepted",
        "rejected",
        "deferred",
        "duplicate",
    }


@pytest.mark.parametrize("vector", HDS["vectors"], ids=lambda vector: vector["name"])
def test_each_headers_digest_is_of_its_bytes(vector: Any) -> None:
    """The bytes under hds and their digest are those of the file."""
    checks.bind(vector)
    assert bytes.fromhex(vector["input_hex"]).startswith(b"mqauth-hds-1h")


@pytest.mark.parametrize("vector", HDS["covers"], ids=lambda vector: vector["name"])
def test_a_producer_covers_the_headers_of_its_vector(vector: Any) -> None:
    """Every header of the application is covered, and none that a transport adds, changes or removes."""
    checks.cover(vector)


@pytest.mark.parametrize("vector", HDS["refused"], ids=lambda vector: vector["name"])
def test_a_producer_signs_nothing_that_has_no_encoding(vector: Any) -> None:
    """What no consumer could verify is refused before it is sent."""
    with pytest.raises(MalformedMessage):
        envelope.bind(from_form(vector["message"]))


def test_both_files_describe_one_consumer() -> None:
    """Messages with tokens of their own and messages of batches are judged side by side."""
    assert (BATCH["consumer"], BATCH["received"]) == (
        TOKENS["consumer"],
        TOKENS["received"],
    )


@pytest.mark.parametrize(
    "file", [TOKENS, BATCH, ANSWERS], ids=["tokens", "batch", "answers"]
)
def test_no_verdict_depends_on_the_vectors_before_it(file: Any) -> None:
    """All vectors of a file through one consumer, and again in reverse: no verdict becomes another one."""
    for order in (file["vectors"], file["vectors"][::-1]):
        checks.judge_all(file, order)


@pytest.mark.parametrize("vector", BATCH["leaves"], ids=lambda vector: vector["name"])
def test_each_leaf_is_of_its_bytes(vector: Any) -> None:
    """A leaf's four parts, its hash and its twelve bytes are those of the file."""
    parts = [bytes.fromhex(part) for part in vector["parts_hex"]]
    digests = [hashlib.sha256(part).digest() for part in parts]
    assert (
        hashlib.sha256(b"\x00" + b"".join(digests[:3]) + parts[3]).hexdigest()
        == vector["hash_hex"]
    )
    assert b"".join(digest[:3] for digest in digests).hex() == vector["shorts_hex"]
    checks.leaf(vector)


@pytest.mark.parametrize("vector", BATCH["trees"], ids=lambda vector: str(vector["size"]))
def test_each_tree_is_the_rfcs(vector: Any) -> None:
    """Roots and paths are those of RFC 9162 over the file's inputs, and prove their leaves."""
    inputs = [bytes.fromhex(text) for text in BATCH["leaf_inputs_hex"][: vector["size"]]]
    assert len(inputs) == vector["size"]
    assert mth(inputs).hex() == vector["root_hex"]
    for found in vector["paths"]:
        assert inclusion(found["index"], inputs) == [
            bytes.fromhex(text) for text in found["hashes_hex"]
        ]
    checks.tree(BATCH["leaf_inputs_hex"], vector)


@pytest.mark.parametrize(
    "vector", [*CLAIMS["messages"], *CLAIMS["releases"]], ids=lambda vector: vector["iss"]
)
def test_each_claim_is_on_the_id_of_its_bytes(vector: Any) -> None:
    """An id is the first sixteen bytes of SHA-256, and in a batch the index behind them."""
    digest = hashlib.sha256(bytes.fromhex(vector["input_hex"])).digest()[:16]
    index = vector.get("index")
    assert (
        vector["id_hex"]
        == (digest if index is None else digest + index.to_bytes(2, "big")).hex()
    )
    checks.claim(vector)


def test_no_two_claims_vectors_share_an_id() -> None:
    """Of another producer, of another place in its batch, of a release: another id."""
    ids = [vector["id_hex"] for vector in (*CLAIMS["messages"], *CLAIMS["releases"])]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("vector", JWKS["vectors"], ids=lambda vector: vector["name"])
def test_each_jwk_becomes_what_its_vector_says(vector: Any) -> None:
    """A JWK is used, is not used, or counts as revoked from the beginning."""
    checks.read_jwk(vector)


@pytest.mark.parametrize("vector", JWKS["sets"], ids=lambda vector: vector["name"])
def test_each_set_gives_the_keys_of_its_vector(vector: Any) -> None:
    """What cannot be used takes nothing with it, and a kid stands for one key or for none."""
    checks.read_set(vector)


@pytest.mark.parametrize("text", JWKS["no_sets"])
def test_no_set_is_read_from_another_document(text: str) -> None:
    """Only a strict JSON object with a list of keys is a set."""
    with pytest.raises(ConfigurationError):
        jwk.load_key_set(text.encode())


@pytest.mark.parametrize("vector", JWKS["sizes"], ids=lambda vector: str(vector["bytes"]))
def test_each_text_is_a_set_up_to_its_size(vector: Any) -> None:
    """The bound of a JWK Set is in bytes, white space included."""
    checks.size_set(vector)


@pytest.mark.parametrize("vector", FORMS["same"], ids=lambda vector: vector["name"])
def test_both_forms_are_one_message(vector: Any) -> None:
    """The two forms of a vector are read alike."""
    checks.same_form(vector)


@pytest.mark.parametrize("vector", FORMS["malformed"], ids=lambda vector: vector["name"])
def test_what_is_no_message_is_malformed(vector: Any) -> None:
    """A form that is not the profile's is refused."""
    checks.refuses(MalformedMessage, from_form, vector["form"])


@pytest.mark.parametrize("vector", FORMS["texts"], ids=lambda vector: vector["text"])
def test_each_text_of_a_form_is_read_as_it_says(vector: Any) -> None:
    """Numbers of a text are read up to 64 bits, and what is no strict JSON is no message."""
    checks.read_text(vector)


def test_no_two_headers_vectors_share_their_bytes() -> None:
    """Each case means something else."""
    inputs = [vector["input_hex"] for vector in HDS["vectors"]]
    assert len(set(inputs)) == len(inputs)


def test_destinations_are_those_of_the_file() -> None:
    """Names have their canonical form, and nothing else parses."""
    for found in (*DESTINATIONS["rabbitmq"], *DESTINATIONS["kafka"]):
        checks.name_destination(found)
    for text in DESTINATIONS["malformed"]:
        checks.refuses(MalformedMessage, destination.parse, text)


def test_the_files_are_json_for_every_reader() -> None:
    """Plain ASCII without integers that other languages round."""
    for path in FOLDER.glob("*.json"):
        json.loads(
            path.read_text(encoding="ascii"),
            parse_int=lambda text: abs(int(text)) <= 2**53 or pytest.fail(text),
        )


def test_every_vector_is_a_check() -> None:
    """Whoever asks the vectors alone asks all of them, under names that differ, and all of them hold."""
    found = checks.checks(checks.read())
    assert len({check.name for check in found}) == len(found)
    lists = [*VECTORS, *ANSWERS["vectors"], *SETTINGS["vectors"], *SEQUENCES, *IDENTITY["vectors"],
             *IDENTITY["sequences"], *HDS["vectors"], *HDS["covers"],
             *HDS["refused"], *JWKS["vectors"], *JWKS["sets"], *JWKS["no_sets"], *JWKS["sizes"], *FORMS["same"],
             *FORMS["malformed"], *FORMS["texts"], *DESTINATIONS["rabbitmq"], *DESTINATIONS["kafka"],
             *DESTINATIONS["malformed"],
             *CLAIMS["messages"], *CLAIMS["releases"], *BATCH["leaves"], *BATCH["trees"], *LETTERS["made"],
             *LETTERS["read"], *STORES["redis"], STORES["audit"]]  # fmt: skip
    assert len(found) == len(lists) + 2 * len(checks.AMONG_MANY)
