"""The table of targets: what each runs, and its first inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Final, NamedTuple

from integration.fuzz import binding, identities, natives, readers, seeds, views
from mqauth.letters.release import RELEASE_HEADER, RELEASE_TYPE


class Target(NamedTuple):
    """One target.

    Args:
        run: takes bytes and returns, or raises because an oracle does not hold.
        seeds: yields the first inputs.
    """

    run: Callable[[bytes], None]
    seeds: Callable[[], Iterable[bytes]]


TARGETS: Final = {
    "token-header": Target(readers.token_header, seeds.drawn),
    "jws": Target(readers.compact_jws, seeds.compact),
    "identity": Target(identities.identity_form, identities.tokens),
    "claims": Target(readers.claim_set, seeds.payloads),
    "template": Target(readers.payload_template, seeds.pairs_of_payloads),
    "jwk-set": Target(readers.jwk_set, seeds.key_sets),
    "batch": Target(readers.batch_proof, seeds.proofs),
    "release": Target(
        readers.release_payload, partial(seeds.payloads, RELEASE_HEADER, RELEASE_TYPE)
    ),
    "json-form": Target(readers.form_of_message, seeds.written_forms),
    "binding": Target(binding.binding, binding.changed),
    "verdict": Target(binding.verdict, seeds.drawn),
    "rabbitmq-frame": Target(natives.rabbitmq_frame, natives.frames),
    "rabbitmq-published": Target(natives.rabbitmq_published, natives.published),
    "kafka-record": Target(natives.kafka_record, natives.records),
    "kafka-values": Target(natives.kafka_values, natives.values),
    "dead-letter": Target(views.dead_letter, views.dead_letters),
    "letter": Target(views.letter, views.hidden_letters),
    "view": Target(views.view, views.views),
}
readers.SIGNED.update(seeds.signed())
