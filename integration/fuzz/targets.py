"""The table of targets: what each runs, its first inputs, and the modules whose coverage is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

from integration.fuzz import readers, seeds
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
    seeds: Callable[[], Iterator[bytes]]
    modules: tuple[str, ...]


TARGETS: Final = {
    "token-header": Target(readers.token_header, seeds.drawn, ("wire/envelope", "wire/message")),
    "jws": Target(readers.compact_jws, seeds.compact, ("wire/jws", "wire/base64url", "wire/strict_json")),
    "claims": Target(readers.claim_set, seeds.payloads, ("wire/claims", "wire/destination", "wire/strict_json")),
    "template": Target(readers.payload_template, seeds.pairs_of_payloads, ("wire/template", "wire/claims")),
    "jwk-set": Target(readers.jwk_set, seeds.key_sets, ("wire/jwk", "wire/keys")),
    "batch": Target(readers.batch_proof, seeds.proofs, ("wire/batch",)),
    "release": Target(
        readers.release_payload, partial(seeds.payloads, RELEASE_HEADER, RELEASE_TYPE), ("letters/release",)
    ),
    "json-form": Target(readers.form_of_message, seeds.written_forms, ("wire/json_form", "wire/strict_json")),
}
readers.SIGNED.update(seeds.signed())
