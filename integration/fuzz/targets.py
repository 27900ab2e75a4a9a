"""The table of targets: what each runs, its first inputs, and the modules whose coverage is told."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Final

from integration.fuzz import binding, identities, natives, readers, seeds, views
from mqauth.letters.release import RELEASE_HEADER, RELEASE_TYPE


@dataclass(frozen=True, slots=True)
class Target:
    """One target.

    Args:
        run: takes bytes and returns, or raises because an oracle does not hold.
        seeds: yields the first inputs.
        modules: what it is to cover, as paths below ``mqauth``.
    """

    run: Callable[[bytes], None]
    seeds: Callable[[], Iterable[bytes]]
    modules: tuple[str, ...]


TARGETS: Final = {
    "token-header": Target(readers.token_header, seeds.drawn, ("wire/envelope", "wire/message")),
    "jws": Target(readers.compact_jws, seeds.compact, ("wire/jws", "wire/base64url", "wire/strict_json")),
    "identity": Target(identities.identity_form, identities.tokens, ("wire/identity", "wire/jwk")),
    "claims": Target(readers.claim_set, seeds.payloads, ("wire/claims", "wire/destination", "wire/strict_json")),
    "template": Target(readers.payload_template, seeds.pairs_of_payloads, ("wire/template", "wire/claims")),
    "jwk-set": Target(readers.jwk_set, seeds.key_sets, ("wire/jwk", "wire/keys")),
    "batch": Target(readers.batch_proof, seeds.proofs, ("wire/batch",)),
    "release": Target(
        readers.release_payload, partial(seeds.payloads, RELEASE_HEADER, RELEASE_TYPE), ("letters/release",)
    ),
    "json-form": Target(readers.form_of_message, seeds.written_forms, ("wire/json_form", "wire/strict_json")),
    "binding": Target(binding.binding, binding.changed, ("wire/envelope", "wire/batch")),
    "verdict": Target(binding.verdict, seeds.drawn, ("judging/verifier", "judging/token", "wire/envelope")),
    "rabbitmq-frame": Target(
        natives.rabbitmq_frame, natives.frames,
        ("brokers/amqp_messages", "brokers/amqp_values", "brokers/rabbitmq/translate", "brokers/pika/translate"),
    ),
    "rabbitmq-published": Target(
        natives.rabbitmq_published, natives.published, ("brokers/amqp_messages", "brokers/amqp_values"),
    ),
    "kafka-record": Target(natives.kafka_record, natives.records, ("brokers/log/records",)),
    "kafka-values": Target(
        natives.kafka_values, natives.values, ("brokers/log/records", "brokers/kafka/translate")
    ),
    "dead-letter": Target(views.dead_letter, views.dead_letters, ("letters/dead_letter", "review/letter")),
    "letter": Target(views.letter, views.hidden_letters, ("review/letter", "wire/json_form")),
    "view": Target(views.view, views.views, ("console/display", "review/index", "review/letter")),
}  # fmt: skip
readers.SIGNED.update(seeds.signed())
